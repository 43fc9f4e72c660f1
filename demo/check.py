"""Does Leasehold say what really happened? The demo's truth beside `manage.py export leases`; `judge` is pure.

Strict: a pod that is named must be the true one, an ambiguous one must be among those listed, a service account must be
the true one in the true cluster, nothing may be unknown (all pods log in through registered mounts, and no line is missed),
and a lease whose end is known must have ended then and for that reason.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from demo import check_sessions, incident, processes, truth
from demo.administrator import STUCK
from demo.book import OPENED, READ_WRAPPED, Deed, deeds_file
from demo.check_sessions import SessionRow, Sessions
from demo.manage import exported
from demo.workloads import APPLICATIONS

# seconds; what has just happened may take so long until Leasehold has read it, asked Vault and seen the pods
_SETTLE, _LOOK = 60.0, 15.0
# Vault gives a failing revocation up after about ten minutes
_GIVES_UP = timedelta(minutes=12)
# so soon after the last traffic of the pod before
_SOON = timedelta(seconds=20)
_ON_THE_HOST = {(one.namespace, one.service_account) for one in APPLICATIONS if one.network == "host"}
# a wrapped answer is opened within a few seconds
_OPENED = timedelta(seconds=10)
# between Vault's time of issue and when the answer has passed the pod's network, on a busy machine
_READ = timedelta(seconds=10)
# a renewal and the end that a lookup found may be told in the other order
_MARGIN = timedelta(seconds=5)
# an end is written down when Vault has answered, or a lookup found an expired lease gone
_END_MARGIN = timedelta(seconds=10)


class Row(msgspec.Struct, frozen=True):
    """What Leasehold says of one lease."""

    lease_id: str
    state: str
    cluster: str
    pod_namespace: str
    pod: str
    pod_uid: str
    service_account: str
    certainty: str
    certainty_reason: str
    end_reason: str
    ended_at: datetime | None = None
    issued_at: datetime | None = None


@dataclass(slots=True)
class Report:
    """Counts of leases, and in words what is not right."""

    leases: int = 0
    present: int = 0
    # right ones by certainty
    right: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    wrong: int = 0
    # leases that no pod got: somebody read them by hand
    strangers: list[str] = field(default_factory=list)
    # certainties by service account
    holders: dict[str, Counter[str]] = field(default_factory=dict)
    # right, wrong and missing by how the lease was ended
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    addresses_reused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    # named, and not the true one, by lease: what was said once cannot be taken back
    wrong_pods: dict[str, str] = field(default_factory=dict)
    sessions: Sessions = field(default_factory=Sessions)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "leases": self.leases,
            "present": self.present,
            "exact_right": self.right["exact"],
            "inferred_right": self.right["inferred"],
            "ambiguous_right": self.right["ambiguous"],
            "service_account_right": self.right["service account"],
            "unknown": self.unknown,
            "wrong": self.wrong,
            "strangers": self.strangers,
            "holders": self.holders,
            "ends": self.ends,
            "addresses_reused": self.addresses_reused,
            "sessions": self.sessions.as_json(),
            "problems": self.problems,
        }


def judge(lines: Sequence[truth.Line], deeds: Iterable[Deed], rows: Mapping[str, Row], *, now: datetime) -> Report:
    """`rows` by lease id, read after `lines` and before `now`."""
    report = Report()
    issued = {str(line.lease_id): line for line in lines if line.event == "issue"}
    ways = {deed.lease_id: deed for deed in deeds}
    for lease_id, line in issued.items():
        report.leases += 1
        row = rows.get(lease_id)
        if row is None:
            report.problems.append(f"{lease_id} of {line.namespace}/{line.pod} is not there")
            continue
        report.present += 1
        name = f"{line.cluster}: {line.namespace}/{line.service_account}"
        report.holders.setdefault(name, Counter())[row.certainty] += 1
        if wrong := wrong_holder(line, row):
            report.problems.append(wrong)
            if row.certainty == "unknown":
                report.unknown += 1
            else:
                report.wrong += 1
                if row.pod:
                    report.wrong_pods[lease_id] = wrong
        else:
            report.right[row.certainty] += 1
    for line in lines:
        if line.event == "end" and line.lease_id in issued:
            deed = ways.get(str(line.lease_id))
            _judge_end(report, line, rows.get(str(line.lease_id)), deed.deed if deed else str(line.reason))
    _judge_stuck(report, ways.values(), rows, now=now)
    _judge_renewed(report, lines, rows)
    report.addresses_reused = reused(lines)
    return report


def strangers(
    lines: Iterable[truth.Line], deeds: Iterable[Deed], rows: Mapping[str, Row], *, now: datetime
) -> list[str]:
    """Leases that none of these lines, read after the rows, knows. A wrapped one is known when it is opened, which may never be."""
    known = {line.lease_id for line in lines if line.event == "issue"}
    closed: dict[str, datetime] = {}
    for deed in deeds:
        if deed.deed == READ_WRAPPED:
            closed[deed.lease_id] = datetime.fromisoformat(deed.at)
        elif deed.deed == OPENED:
            closed.pop(deed.lease_id, None)
    found = []
    answers = sorted(closed.values())
    foreign = [(row.issued_at, row.lease_id) for row in rows.values() if row.issued_at and row.lease_id not in known]
    # each such answer explains one lease; both in the order of time, so that none takes the only one of another
    for issued_at, lease_id in sorted(foreign):
        if now - issued_at <= _OPENED:
            continue
        if near := [at for at in answers if abs(at - issued_at) <= _READ]:
            answers.remove(near[0])
        else:
            found.append(lease_id)
    return found


def wrong_holder(line: truth.Line, row: Row) -> str:
    """What is wrong with what is said about the holder; empty if nothing is."""
    said = f"{row.lease_id}: {row.certainty} ({row.certainty_reason})"
    if row.pod or row.pod_uid or row.certainty in ("exact", "inferred"):
        named = (row.cluster, row.pod_namespace, row.pod, row.pod_uid)
        if named != (line.cluster, line.namespace, line.pod, line.pod_uid):
            return f"{said} names {row.cluster} {row.pod_namespace}/{row.pod}, it was {line.cluster} {line.namespace}/{line.pod}"
    if row.service_account and (row.cluster, row.pod_namespace, row.service_account) != (
        line.cluster,
        line.namespace,
        line.service_account,
    ):
        return f"{said} names {row.cluster} {row.pod_namespace}/{row.service_account}, it was {line.cluster} {line.namespace}/{line.service_account}"
    if row.certainty == "ambiguous" and not _lists(row.certainty_reason, f"{line.namespace}/{line.pod}"):
        return f"{said} does not list {line.namespace}/{line.pod}"
    if row.certainty == "unknown" or not row.service_account:
        return f"{said}, it was {line.cluster} {line.namespace}/{line.pod}"
    return ""


def _lists(reason: str, name: str) -> bool:
    """Whether exactly this name stands there, and not one that only begins or ends like it."""
    return re.search(rf"(?<![a-z0-9.-]){re.escape(name)}(?![a-z0-9-])", reason) is not None


def _judge_end(report: Report, line: truth.Line, row: Row | None, way: str) -> None:
    found = report.ends.setdefault(way, Counter(right=0, wrong=0, missing=0))
    if row is None or row.state != "ended":
        found["missing"] += 1
        report.problems.append(f"{line.lease_id}: ended {way} at {line.at}, shown as {row.state if row else 'nothing'}")
    elif row.ended_at is None or abs(row.ended_at - datetime.fromisoformat(line.at)) > _END_MARGIN:
        found["wrong"] += 1
        report.problems.append(f"{line.lease_id}: ended {way} at {line.at}, shown as ended at {row.ended_at}")
    elif row.end_reason == line.reason:
        found["right"] += 1
    else:
        found["wrong"] += 1
        report.problems.append(f"{line.lease_id}: ended {way} at {line.at}, shown as {row.end_reason}")


def _judge_stuck(report: Report, deeds: Iterable[Deed], rows: Mapping[str, Row], *, now: datetime) -> None:
    """Leases that Vault could not revoke, once it has given up."""
    for deed in deeds:
        if deed.deed == STUCK and now - datetime.fromisoformat(deed.at) > _GIVES_UP:
            row = rows.get(deed.lease_id)
            found = report.ends.setdefault(STUCK, Counter(right=0, wrong=0, missing=0))
            right = row is not None and row.state == "irrevocable"
            found["right" if right else "wrong"] += 1
            if not right:
                report.problems.append(f"{deed.lease_id}: Vault gave up, shown as {row.state if row else 'nothing'}")


def _judge_renewed(report: Report, lines: Iterable[truth.Line], rows: Mapping[str, Row]) -> None:
    """What was renewed after its end had not ended."""
    for line in lines:
        row = rows.get(line.lease_id or "")
        if line.event == "renew" and row and row.ended_at and row.ended_at + _MARGIN < datetime.fromisoformat(line.at):
            report.problems.append(f"{row.lease_id}: ended at {row.ended_at:%FT%TZ}, but was renewed at {line.at}")


def reused(lines: Iterable[truth.Line]) -> Counter[str]:
    """How often a pod got the address of one that had just gone, by what the two have in common."""
    first: dict[tuple[str, str], truth.Line] = {}
    last: dict[tuple[str, str], datetime] = {}
    for line in lines:
        # what a pod's client still writes at its end is not traffic, and pods on the host network share their address
        if line.event in ("login", "issue", "renew") and (line.namespace, line.service_account) not in _ON_THE_HOST:
            key = (line.cluster, line.pod_uid)
            first.setdefault(key, line)
            last[key] = datetime.fromisoformat(line.at)
    found: Counter[str] = Counter()
    by_address = sorted(first.items(), key=lambda item: (item[1].cluster, item[1].ip, item[1].at))
    for (before, old), (_, new) in pairwise(by_address):
        gap = datetime.fromisoformat(new.at) - last[before]
        if (old.cluster, old.ip) == (new.cluster, new.ip) and timedelta(0) < gap < _SOON:
            same = (old.namespace, old.service_account) == (new.namespace, new.service_account)
            found["the same service account" if same else "another service account"] += 1
    return found


def watch(folder: Path, *, minutes: float) -> Report:
    """Look at the demo of this folder for so long, then judge what happened so far. Raises NotReady.

    What has just happened gets a minute to arrive. A wrong pod is wrong for good, even if it was shown for a moment only.
    """
    wrong: dict[str, str] = {}
    until = time.monotonic() + minutes * 60
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(_LOOK, left))
        wrong |= _look(folder).wrong_pods
    lines, deeds = truth.read(folder / "truth.ndjson"), read_deeds(folder)
    if not any(line.event == "issue" for line in lines):
        raise processes.NotReady(
            f"No pod has a lease yet: {folder / 'truth.ndjson'}. Start a demo with `make demo-up`."
        )
    patience = time.monotonic() + _SETTLE
    while True:
        report = _look(folder, lines, deeds)
        wrong |= report.wrong_pods
        if not report.problems or time.monotonic() > patience:
            break
        time.sleep(2)
    for lease_id in wrong.keys() - report.wrong_pods.keys():
        report.wrong += 1
        report.problems.append(f"for a moment, {wrong[lease_id]}")
    return report


def _look(folder: Path, lines: Sequence[truth.Line] | None = None, deeds: Sequence[Deed] | None = None) -> Report:
    file = folder / "truth.ndjson"
    lines = truth.read(file) if lines is None else lines
    rows = read_rows(folder, since=datetime.fromisoformat(lines[0].at)) if lines else {}
    now = datetime.now(UTC)
    report = judge(lines, read_deeds(folder) if deeds is None else deeds, rows, now=now)
    # an answer that is opened in between is in both rather than in neither
    opened = read_deeds(folder)
    report.strangers = strangers(truth.read(file), opened, rows, now=now)
    if lines:
        # what was opened before is closed by now, or was seen
        seen = exported(folder, "sessions", since=datetime.fromisoformat(lines[0].at), row=SessionRow)
        report.sessions = check_sessions.judge(lines, incident.read(folder), seen, now=now)
        report.problems += report.sessions.problems
    return report


def read_deeds(folder: Path) -> list[Deed]:
    """How the administrator and the pods ended leases."""
    file = deeds_file(folder / "truth.ndjson")
    decoder = msgspec.json.Decoder(Deed)
    return [decoder.decode(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def read_rows(folder: Path, *, since: datetime) -> dict[str, Row]:
    """What Leasehold exports, by lease id. Raises NotReady."""
    return {row.lease_id: row for row in exported(folder, "leases", since=since, row=Row)}


def table(report: Report) -> str:
    """For people."""
    right, sessions = report.right, report.sessions
    lines = [
        f"{report.leases:6}  leases that pods got",
        f"{report.present:6}  of them present",
        f"{right['exact']:6}  exact, right",
        f"{right['inferred']:6}  inferred, right",
        f"{right['ambiguous']:6}  ambiguous, the true pod is listed",
        f"{right['service account']:6}  service account, right",
        f"{report.unknown:6}  unknown",
        f"{report.wrong:6}  wrong",
        f"{len(report.strangers):6}  leases that no pod got",
        "",
        f"{sessions.opened:6}  sessions that pods opened",
        f"{sessions.seen:6}  of them seen ({sessions.sampled} sampled, {sessions.logged} in the server's log)",
        f"{sessions.tied:6}  tied to the right lease",
        f"{sessions.taken_for_theirs:6}  taken for the holder's, {sessions.not_judged} not judged",
        f"{sessions.stolen_found:6}  stolen credentials found, of {sessions.stolen}",
        f"{sessions.wrong:6}  wrong",
        "",
        f"{'how it ended':28} right  wrong  missing",
        *(
            f"{way:28} {found['right']:5}  {found['wrong']:5}  {found['missing']:7}"
            for way, found in sorted(report.ends.items())
        ),
        "",
        f"{'service account':44} exact  inferred  ambiguous  service account  unknown",
        *(
            f"{name:44} {found['exact']:5}  {found['inferred']:8}  {found['ambiguous']:9}  {found['service account']:15}  {found['unknown']:7}"
            for name, found in sorted(report.holders.items())
        ),
        "",
        *(
            f"{count:6}  times a pod had the address of one that had just gone, of {whose}"
            for whose, count in sorted(report.addresses_reused.items())
        ),
    ]
    if report.problems:
        lines += ["", f"Not right ({len(report.problems)}):", *(f"  {problem}" for problem in report.problems[:40])]
    return "\n".join(lines)
