"""look(): what every rule finds now -> findings that open, change, come back and close. close(): a person has seen one."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q

from audit.findings import contained, facts, log_facts, log_rules, rules, session_facts, session_rules
from audit.findings.found import Found
from audit.models.findings import Finding, FindingChange, Look
from audit.notices.queue import queue
from leases.models import Action

# what comes back within this time after it was last seen is the same finding; later it is a new one
COMES_BACK = timedelta(hours=24)
# a finding that a person closed opens again when there is that much more of it
WORSE_BY = 1.5
GONE = "no longer so"
CLOSED = "close finding"
Change = FindingChange.Change
_SAID = (
    "severity",
    "vault",
    "summary",
    "culprit",
    "service_account_namespace",
    "service_account",
    "evidence",
    "weight",
    "newest_at",
)


class NotOpen(Exception):
    """The finding was closed before."""


@dataclass(slots=True)
class Looked:
    """What one look changed, and how many findings are open after it."""

    opened: int = 0
    reopened: int = 0
    closed: int = 0
    open: int = 0
    changes: list[FindingChange] = field(default_factory=list)


def found_now(*, now: datetime) -> Iterator[Found]:
    """Every rule on every fact."""
    for growth in facts.growths(now=now):
        yield from rules.a_service_account_takes_ever_more_leases(growth)
    for outlived in facts.outlived(now=now):
        yield from rules.leases_outlive_their_pods(outlived)
    for unknown in facts.unknown(now=now):
        yield from rules.nobody_knows_who_holds_these_leases(unknown)
    for group in facts.irrevocable():
        yield from rules.vault_gave_up_revoking_these_leases(group)
    for over in facts.over_ttl():
        yield from rules.leases_live_longer_than_policy_allows(over)
    for doubled in facts.doubled(now=now):
        yield from rules.credentials_are_issued_twice_at_start(doubled)
    for use in log_facts.root_uses(now=now):
        yield from log_rules.a_root_token_is_used(use)
    for reads in log_facts.static_reads(now=now):
        yield from log_rules.a_static_database_role_is_read(reads)
    for denials in log_facts.denials(now=now):
        yield from log_rules.somebody_is_denied_again_and_again(denials)
    rare = log_facts.rare_events(now=now)
    for disabled in log_facts.devices_disabled(rare):
        yield from log_rules.an_audit_device_was_disabled(disabled)
    for left_out in log_facts.edits_left_out(rare):
        yield from log_rules.not_every_edit_of_an_entity_is_looked_at(left_out)
    for changes in log_facts.entity_changes(rare):
        yield from log_rules.an_entity_was_disabled_or_enabled(changes)
    for device in log_facts.devices(now=now):
        yield from log_rules.vault_lists_an_audit_device_no_longer(device)
        yield from log_rules.an_audit_device_was_enabled_anew(device)
    streams = log_facts.streams(now=now)
    for _, stream in streams:
        yield from log_rules.a_device_logs_raw_secrets(stream)
        yield from log_rules.a_stream_is_read_too_late(stream)
    for stream, missing in log_facts.missing(streams, now=now):
        yield from log_rules.audit_lines_are_missing(stream, missing)
    for stream, contradictions in log_facts.contradictions(streams, now=now):
        yield from log_rules.two_lines_contradict_each_other(stream, contradictions)
    for watched in log_facts.watched(now=now):
        yield from log_rules.the_pod_watch_had_a_gap(watched)
    for revocation in log_facts.failed_revocations(now=now):
        yield from log_rules.a_revocation_did_not_end_its_lease_for_sure(revocation)
    for travelled in session_facts.travelled(now=now):
        yield from session_rules.a_credential_is_used_from_elsewhere(travelled)
    for outliving in session_facts.outliving(now=now):
        yield from session_rules.sessions_outlive_their_user(outliving)
    for ghosts in session_facts.ghosts(now=now):
        yield from session_rules.database_users_have_no_lease(ghosts)
    for zombies in session_facts.zombies(now=now):
        yield from session_rules.live_leases_have_no_database_user(zombies)
    for strays in session_facts.stray_logins(now=now):
        yield from session_rules.logins_came_from_no_pod_of_their_service_account(strays)
    for back in contained.back(now=now):
        yield from contained.a_contained_service_account_is_back(back)


def look(*, now: datetime) -> Looked:
    """Runs all rules and brings the findings up to what they say. One at a time: the caller holds the turn."""
    began = time.monotonic()
    found = {(one.kind.value, one.key): one for one in found_now(now=now)}
    with transaction.atomic():
        looked = settle(found, now=now)
        Look.objects.update_or_create(pk=1, defaults={"at": now, "seconds": time.monotonic() - began})
    return looked


def settle(found: dict[tuple[str, str], Found], *, now: datetime) -> Looked:
    # while a person closes one of them, we wait for that
    rows = Finding.objects.filter(Q(closed_at=None) | Q(last_seen_at__gte=now - COMES_BACK))
    # the newest of each last
    known = {(row.kind, row.key): row for row in rows.order_by("first_seen_at", "id").select_for_update()}
    looked = Looked()
    new, changed, seen = [], [], []
    for key, one in found.items():
        row = known.get(key)
        if row is None:
            new.append(Finding(kind=one.kind, key=one.key, first_seen_at=now, last_seen_at=now, **_said(one)))
            continue
        seen.append(row.pk)
        row.last_seen_at = max(now, row.last_seen_at)
        change = change_of(row, one)
        if row.closed_at is not None and change is None:
            # a person has seen it, and it is no worse: what was true then stays
            continue
        if change is not None:
            looked.changes.append(
                FindingChange(finding=row, at=now, change=change, severity=one.severity, why=one.summary)
            )
        if row.closed_at is not None:
            looked.reopened += 1
            row.closed_at, row.closed_why, row.closed_by = None, "", ""
        elif all(getattr(row, name) == value for name, value in _said(one).items()):
            continue
        for name, value in _said(one).items():
            setattr(row, name, value)
        changed.append(row)
    Finding.objects.filter(pk__in=seen, last_seen_at__lt=now).update(last_seen_at=now)
    Finding.objects.bulk_update(changed, [*_SAID, "closed_at", "closed_why", "closed_by"], batch_size=500)
    Finding.objects.bulk_create(new, batch_size=500)
    gone = [row for key, row in known.items() if row.closed_at is None and key not in found]
    Finding.objects.filter(pk__in=[row.pk for row in gone]).update(closed_at=now, closed_why=GONE)
    looked.changes += [
        FindingChange(finding=row, at=now, change=Change.OPENED, severity=row.severity, why=row.summary) for row in new
    ]
    looked.changes += [
        FindingChange(finding=row, at=now, change=Change.CLOSED, severity=row.severity, why=GONE) for row in gone
    ]
    FindingChange.objects.bulk_create(looked.changes, batch_size=500)
    queue(looked.changes)
    looked.opened, looked.closed = len(new), len(gone)
    looked.open = Finding.objects.filter(closed_at=None).count()
    return looked


def change_of(row: Finding, one: Found) -> str | None:
    """What this sight of a known finding changes: nothing, or it is worse, or open again. Pure."""
    if row.closed_at is None:
        return Change.WORSENED if one.severity > row.severity else None
    return Change.REOPENED if not row.closed_by or is_worse(row, one) else None


def is_worse(row: Finding, one: Found) -> bool:
    """Than when a person closed it. Pure."""
    if one.severity > row.severity or one.weight > WORSE_BY * row.weight:
        return True
    return one.newest_at is not None and row.closed_at is not None and one.newest_at > row.closed_at


def _said(one: Found) -> dict[str, Any]:
    account = one.account
    return {
        "severity": int(one.severity),
        "vault": one.vault,
        "summary": one.summary,
        "culprit": one.culprit,
        "service_account_namespace": account.namespace if account else "",
        "service_account": account.name if account else "",
        "evidence": [_as_json(asdict(item)) for item in one.evidence],
        "weight": one.weight,
        "newest_at": one.newest_at,
    }


def _as_json(item: dict[str, Any]) -> dict[str, Any]:
    """Only what is said, times as RFC 3339."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in item.items()
        if value not in (None, "")
    }


def close(finding: Finding, *, by: str, reason: str, now: datetime) -> Action:
    """A person has seen it and says why it may be closed. It opens again when it becomes worse. Raises NotOpen."""
    with transaction.atomic():
        row = Finding.objects.select_for_update().get(pk=finding.pk)
        if row.closed_at is not None:
            raise NotOpen
        Finding.objects.filter(pk=row.pk).update(closed_at=now, closed_why=reason, closed_by=by)
        change = FindingChange.objects.create(
            finding=row, at=now, change=Change.CLOSED, severity=row.severity, why=reason, by=by
        )
        queue([change])
        # in the same words as other actions: no lease, but what was closed
        target = {"vault": row.vault, "lease_id": "", "finding": row.pk, "summary": row.summary}
        return Action.objects.create(kind=CLOSED, by=by, reason=reason, at=now, targets=[target])
