"""Exports: rows of a period as CSV or NDJSON, streamed from the database. Times are RFC 3339 UTC; unknown is empty."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TextIO

from django.db.models.functions import Coalesce

from audit import timemachine
from audit.findings.queries import open_within
from audit.models import Event
from leases.models import Action, Database, Lease

Row = dict[str, object]

ACCESSES = [
    "accessed_at",
    "vault",
    "vault_namespace",
    "database",
    "database_role",
    "lease_id",
    "database_user",
    "cluster",
    "pod_namespace",
    "pod",
    "pod_uid",
    "service_account",
    "source_ip",
    "certainty",
    "certainty_reason",
    "issued_at",
    "expires_at",
    "renewals",
    "ended_at",
    "end_reason",
    "sessions",
    "first_session_at",
    "last_session_at",
    "request_id",
]
LEASES = [
    "lease_id",
    "vault",
    "vault_namespace",
    "database",
    "database_role",
    "database_user",
    "state",
    "issued_at",
    "expires_at",
    "last_renewal_at",
    "renewals",
    "ended_at",
    "end_reason",
    "end_evidence",
    "cluster",
    "pod_namespace",
    "pod",
    "pod_uid",
    "service_account",
    "certainty",
    "certainty_reason",
    "request_id",
]
EVENTS = [
    "at",
    "vault",
    "request_id",
    "operation",
    "path",
    "vault_namespace",
    "address",
    "display_name",
    "entity_id",
    "lease_id",
    "error",
    "own",
    "request_at",
    "response_at",
]
FINDINGS = [
    "first_seen_at",
    "last_seen_at",
    "closed_at",
    "closed_by",
    "closed_why",
    "kind",
    "severity",
    "vault",
    "culprit",
    "service_account_namespace",
    "service_account",
    "summary",
    "evidence",
    "id",
]
COULD_READ = ["at", "compared_with", "change", *LEASES, "doubts"]
ACTIONS = ["at", "kind", "by", "reason", "vault", "lease_id", "state", "steps", "id"]


def accesses(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per database credential read in [from, to)."""
    rows = (
        Lease.objects.filter(accessed_at__gte=from_at, accessed_at__lt=to_at)
        .exclude(request_id="")
        .select_related("vault", "database")
        .order_by("accessed_at", "id")
    )
    for lease in rows.iterator(chunk_size=2000):
        yield {**_lease(lease), "accessed_at": lease.accessed_at, "source_ip": lease.source_ip}


def leases(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per lease that was issued in [from, to); where that is not known, first seen then."""
    rows = (
        Lease.objects.annotate(began_at=Coalesce("issued_at", "first_seen_at"))
        .filter(began_at__gte=from_at, began_at__lt=to_at)
        .select_related("vault", "database")
        .order_by("began_at", "id")
    )
    for lease in rows.iterator(chunk_size=2000):
        yield _lease(lease)


def _lease(lease: Lease) -> Row:
    return {
        "vault": lease.vault.name,
        "vault_namespace": lease.vault_namespace,
        "database": lease.database.name if lease.database else lease.mount,
        "database_role": lease.role,
        "lease_id": lease.lease_id,
        "database_user": lease.database_user,
        "state": lease.state,
        "cluster": lease.cluster,
        # a pod runs in the namespace of its service account, so this is known where the pod is not
        "pod_namespace": lease.pod_namespace or lease.service_account_namespace,
        "pod": lease.pod,
        "pod_uid": lease.pod_uid,
        "service_account": lease.service_account,
        "certainty": lease.certainty,
        "certainty_reason": lease.certainty_reason,
        "issued_at": lease.issued_at,
        "expires_at": lease.expires_at,
        "last_renewal_at": lease.last_renewal_at,
        "renewals": lease.renewals,
        "ended_at": lease.ended_at,
        "end_reason": lease.end_reason,
        "end_evidence": lease.end_evidence,
        # sessions are not sampled yet: unknown, not none
        "sessions": None,
        "first_session_at": None,
        "last_session_at": None,
        "request_id": lease.request_id,
    }


def events(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per request to a vault in [from, to), own ones included and marked."""
    rows = (
        Event.objects.filter(at__gte=from_at, at__lt=to_at).select_related(*Event.SPELLED_OUT).order_by("at", "request")
    )
    for event in rows.iterator(chunk_size=2000):
        yield {
            "at": event.at,
            "vault": event.vault.name,
            "request_id": event.request_id,
            "operation": event.operation,
            "path": event.path,
            "vault_namespace": event.what.namespace_path,
            "address": event.address.text,
            "display_name": event.who.display_name,
            "entity_id": event.who.entity_id,
            "lease_id": event.lease_id,
            "error": event.error,
            "own": event.own,
            "request_at": event.request_at,
            "response_at": event.response_at,
        }


def actions(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per lease of an action in [from, to), with its steps in words."""
    rows = (
        Action.objects.filter(at__gte=from_at, at__lt=to_at)
        .prefetch_related("steps", "revocations__lease")
        .order_by("at", "id")
    )
    for action in rows.iterator(chunk_size=200):
        states = {revocation.lease.lease_id: revocation.state for revocation in action.revocations.all()}
        for target in action.targets:
            steps = sorted(
                (step.at, step.name, step.outcome) for step in action.steps.all() if step.lease_id == target["lease_id"]
            )
            yield {
                "at": action.at,
                "kind": action.kind,
                "by": action.by,
                "reason": action.reason,
                "vault": target["vault"],
                "lease_id": target["lease_id"],
                "state": states.get(target["lease_id"], ""),
                "steps": "; ".join(f"{name}: {outcome} at {_text(at)}" for at, name, outcome in steps),
                "id": str(action.pk),
            }


def findings(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per finding that was open at some time in [from, to), with its evidence in words."""
    for row in open_within(from_at=from_at, to_at=to_at):
        yield {name: getattr(row, name) for name in FINDINGS} | {
            "severity": row.get_severity_display(),
            "evidence": "; ".join(f"{item['text']} {item.get('at', '')}".strip() for item in row.evidence),
        }


def could_read(database: Database | None, *, at: datetime, to: datetime | None = None) -> Iterator[Row]:
    """One row per lease that was live at an instant; with `to`, per lease that was live at either, and its change."""
    changes: list[timemachine.Change | None] = list(timemachine.Change) if to else [None]
    for change in changes:
        page = (
            timemachine.changed(database, change, at=at, to=to, size=None)
            if change and to
            else timemachine.could_read(database, at=at, size=None)
        )
        for held in page.rows:
            yield {
                **_lease(held.lease),
                "at": at,
                "compared_with": to,
                "change": change,
                "doubts": " ".join(held.doubts),
            }


KINDS: dict[str, tuple[list[str], Callable[..., Iterator[Row]]]] = {
    "accesses": (ACCESSES, accesses),
    "leases": (LEASES, leases),
    "events": (EVENTS, events),
    "actions": (ACTIONS, actions),
    "findings": (FINDINGS, findings),
}


def write(kind: str, output: TextIO, *, from_at: datetime, to_at: datetime, form: str) -> int:
    """Writes the rows of `kind` in [from, to) as "csv" or "ndjson"; returns how many."""
    header, read = KINDS[kind]
    rows = read(from_at=from_at, to_at=to_at)
    return write_csv(header, rows, output) if form == "csv" else write_ndjson(header, rows, output)


def write_csv(header: list[str], rows: Iterable[Row], output: TextIO) -> int:
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(header)
    count = 0
    for row in rows:
        writer.writerow([cell(row[name]) for name in header])
        count += 1
    return count


def write_ndjson(header: list[str], rows: Iterable[Row], output: TextIO) -> int:
    count = 0
    for row in rows:
        values = {
            name: row[name] if isinstance(row[name], bool | int) or row[name] is None else _text(row[name])
            for name in header
        }
        output.write(json.dumps(values, ensure_ascii=False) + "\n")
        count += 1
    return count


def cell(value: object) -> str:
    """Text for a CSV cell that no spreadsheet runs as a formula."""
    text = _text(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value)
