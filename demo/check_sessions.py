"""Were the pods' sessions seen, tied to the right lease, and taken for theirs? And the thieves' ones for what they are? Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from demo import truth
from demo.incident import Incident

# a session begins before its client knows, and the two are on one clock
_BEFORE, _AFTER = timedelta(seconds=6), timedelta(seconds=0.5)
# what opened just before the last look may not have been sampled
_YOUNG = timedelta(seconds=15)
OURS = ("holder", "NAT")
# of the sessions that pods opened
MOST_NOT_JUDGED = 0.1


class SessionRow(msgspec.Struct, frozen=True):
    """A line of `manage.py export sessions`."""

    database_user: str
    lease_id: str
    address: str
    started_at: datetime
    place: str
    place_reason: str
    sampled: bool
    logged: bool
    ended_at: datetime | None = None


@dataclass(slots=True)
class Sessions:
    """Counts of sessions that pods opened, and in words what is not right."""

    opened: int = 0
    seen: int = 0
    tied: int = 0
    taken_for_theirs: int = 0
    not_judged: int = 0
    sampled: int = 0
    logged: int = 0
    stolen: int = 0
    stolen_found: int = 0
    # wrong lease, false alarms
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "problems"}


def judge(
    lines: Iterable[truth.Line], incidents: Sequence[Incident], rows: Iterable[SessionRow], *, now: datetime
) -> Sessions:
    """`rows`: read after `lines`. A user is one lease's for ever, so a session is known by its user and its beginning."""
    report = Sessions()
    left: dict[str, list[SessionRow]] = {}
    for seen in sorted(rows, key=lambda one: one.started_at):
        left.setdefault(seen.database_user, []).append(seen)
    for incident in incidents:
        report.stolen += 1
        theft = _take(left, incident.database_user, incident.at, incident.address)
        if theft and theft.place == "elsewhere" and theft.lease_id == incident.lease_id:
            report.stolen_found += 1
        else:
            report.problems.append(f"{incident.database_user} was used from {incident.address}: {_said(theft)}")
    for line in lines:
        if line.event != "connect" or now - datetime.fromisoformat(line.at) < _YOUNG:
            continue
        report.opened += 1
        row = _take(left, str(line.database_user), line.at)
        what = f"{line.namespace}/{line.pod} opened {line.database} as {line.database_user} at {line.at}: {_said(row)}"
        if row is None:
            report.problems.append(what)
            continue
        report.seen += 1
        report.sampled += row.sampled
        report.logged += row.logged
        if row.lease_id == line.lease_id:
            report.tied += 1
        else:
            report.wrong += bool(row.lease_id)
            report.problems.append(what)
        if row.place in OURS:
            report.taken_for_theirs += 1
        elif row.place == "not judged":
            report.not_judged += 1
        else:
            report.wrong += row.place == "elsewhere"
            report.problems.append(what)
    # nobody's session is judged where nothing works: a few at most are not, whose lease's holder was not known then
    if report.not_judged > MOST_NOT_JUDGED * report.opened:
        report.problems.append(f"{report.not_judged} of {report.opened} sessions were not judged")
    for other in (one for rest in left.values() for one in rest):
        if other.place == "elsewhere":
            report.wrong += 1
            report.problems.append(f"no pod and no thief opened {other.database_user}'s session: {_said(other)}")
    return report


def _take(left: dict[str, list[SessionRow]], user: str, at: str, address: str = "") -> SessionRow | None:
    """The row of the session that was there at that time, which then is nobody else's."""
    moment = datetime.fromisoformat(at)
    for row in left.get(user, []):
        if -_AFTER <= moment - row.started_at <= _BEFORE and address in ("", row.address):
            left[user].remove(row)
            return row
    return None


def _said(row: SessionRow | None) -> str:
    if row is None:
        return "no such session"
    return f"{row.lease_id or 'no lease'}, from {row.address or 'a local socket'}, {row.place or 'no place yet'} ({row.place_reason})"
