"""Exports: rows of a period as CSV or NDJSON, streamed from the database. Times are RFC 3339 UTC; unknown is empty."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TextIO

from django.db.models.functions import Coalesce
from django.utils import timezone

from audit import timemachine
from audit.findings.queries import open_within
from audit.models import Event, Finding
from leases import queries, review, session_queries
from leases.models import Action, Database, Lease, Session
from leases.session_queries import Use

CHUNK = 2000

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
    "sessions",
    "first_session_at",
    "last_session_at",
]
SESSIONS = [
    "started_at",
    "vault",
    "database",
    "database_name",
    "database_user",
    "user_known_by",
    "lease_id",
    "cluster",
    "pod_namespace",
    "pod",
    "service_account",
    "address",
    "port",
    "application",
    "start_is_known",
    "last_seen_at",
    "ended_at",
    "end_known_by",
    "sampled",
    "logged",
    "place",
    "place_reason",
    "server",
]
REVIEW = [
    "vault",
    "database",
    "from",
    "to",
    "cluster",
    "pod_namespace",
    "service_account",
    "database_role",
    "leases",
    "live",
    "used",
    "unused",
    "not_known",
    "sessions",
    "last_use_at",
    "ttl_seconds_median",
    "ttl_seconds_max",
    "use_seconds_median",
    "use_seconds_max",
    "fit",
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
    for lease, use in _used(rows.iterator(chunk_size=CHUNK)):
        yield {**_lease(lease, use), "accessed_at": lease.accessed_at, "source_ip": lease.source_ip}


def leases(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per lease that was issued in [from, to); where that is not known, first seen then."""
    rows = (
        Lease.objects.annotate(began_at=Coalesce("issued_at", "first_seen_at"))
        .filter(began_at__gte=from_at, began_at__lt=to_at)
        .select_related("vault", "database")
        .order_by("began_at", "id")
    )
    yield from of_leases(rows.iterator(chunk_size=CHUNK))


def of_leases(rows: Iterable[Lease]) -> Iterator[Row]:
    """One row per lease, in their order; they have their vault and database with them."""
    for lease, use in _used(rows):
        yield _lease(lease, use)


def _used(leases: Iterable[Lease]) -> Iterator[tuple[Lease, Use]]:
    """Each lease with what is known of its use, chunk by chunk."""
    now, rows = timezone.now(), iter(leases)
    while chunk := list(islice(rows, CHUNK)):
        uses = session_queries.uses([lease.pk for lease in chunk], now=now)
        # one that was dropped meanwhile is known no longer
        yield from ((lease, uses[lease.pk]) for lease in chunk if lease.pk in uses)


def _lease(lease: Lease, use: Use) -> Row:
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
        # empty: unknown, not none
        "sessions": use.counted,
        "first_session_at": use.first_at,
        "last_session_at": use.last_at,
        "request_id": lease.request_id,
    }


def sessions(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per database session that began in [from, to), tied to a lease or not."""
    rows = (
        Session.objects.filter(started_at__gte=from_at, started_at__lt=to_at)
        .select_related("server", "database__vault", "lease__vault")
        .order_by("started_at", "id")
    )
    yield from of_sessions(rows.iterator(chunk_size=CHUNK))


def of_sessions(rows: Iterable[Session]) -> Iterator[Row]:
    """One row per session, in their order; they have their server, database and lease with them."""
    for row in rows:
        lease, vault = row.lease, row.database.vault if row.database else row.lease.vault if row.lease else None
        yield {
            "started_at": row.started_at,
            "vault": vault.name if vault else "",
            "database": row.database.name if row.database else "",
            "database_name": row.database_name,
            "database_user": row.database_user,
            "user_known_by": lease.database_user_by if lease else "",
            "lease_id": lease.lease_id if lease else "",
            "cluster": lease.cluster if lease else "",
            "pod_namespace": (lease.pod_namespace or lease.service_account_namespace) if lease else "",
            "pod": lease.pod if lease else "",
            "service_account": lease.service_account if lease else "",
            "address": row.address,
            "port": row.port,
            # whoever connects chooses this text
            "application": row.application,
            "start_is_known": row.start_is_known,
            "last_seen_at": row.last_seen_at,
            "ended_at": row.ended_at,
            "end_known_by": row.end_known_by,
            "sampled": row.sampled,
            "logged": row.logged,
            "place": row.place,
            "place_reason": row.place_reason,
            "server": row.server.identity,
        }


USES = [
    "vault",
    "mount",
    "database",
    "cluster",
    "pod_namespace",
    "pod",
    "pods",
    "service_account_namespace",
    "service_account",
    "certainty",
    "live",
    "reads",
    "first_read_at",
    "last_read_at",
]


def of_uses(rows: Iterable[queries.Use]) -> Iterator[Row]:
    """One row per holder of credentials of a database."""
    for use in rows:
        yield {
            "vault": use.vault,
            "mount": use.mount,
            "database": use.database,
            "cluster": use.cluster,
            "pod_namespace": use.namespace,
            "pod": use.pod,
            "pods": use.pods,
            "service_account_namespace": use.account_namespace,
            "service_account": use.service_account,
            "certainty": use.certainty,
            "live": use.live,
            "reads": use.reads,
            "first_read_at": use.first_at,
            "last_read_at": use.last_at,
        }


def access_review(database: Database, found: review.Review, *, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per service account and role, as the page shows them."""
    for row in found.rows:
        yield {
            "vault": database.vault.name,
            "database": database.name,
            "from": from_at,
            "to": to_at,
            "cluster": row.cluster,
            "pod_namespace": row.namespace,
            "service_account": row.service_account,
            "database_role": row.role,
            "leases": row.issued,
            "live": row.live,
            "used": row.used,
            "unused": row.unused,
            "not_known": row.not_known,
            "sessions": row.sessions,
            "last_use_at": row.last_at,
            "ttl_seconds_median": _whole(row.ttl_median),
            "ttl_seconds_max": _whole(row.ttl_most),
            "use_seconds_median": _whole(row.use_median),
            "use_seconds_max": _whole(row.use_most),
            "fit": row.fit,
        }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def events(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per request to a vault in [from, to), own ones included and marked."""
    rows = (
        Event.objects.filter(at__gte=from_at, at__lt=to_at).select_related(*Event.SPELLED_OUT).order_by("at", "request")
    )
    for event in rows.iterator(chunk_size=CHUNK):
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
    yield from of_actions(rows.iterator(chunk_size=200))


def of_actions(rows: Iterable[Action]) -> Iterator[Row]:
    """One row per lease of each action, in their order; what was done without a lease has one row with an empty lease id."""
    for action in rows:
        states = {revocation.lease.lease_id: revocation.state for revocation in action.revocations.all()}
        for target in action.targets or [{}]:
            lease_id = target.get("lease_id", "")
            steps = sorted(
                (step.at, step.name, step.outcome) for step in action.steps.all() if step.lease_id == lease_id
            )
            yield {
                "at": action.at,
                "kind": action.kind,
                "by": action.by,
                "reason": action.reason,
                "vault": target.get("vault", ""),
                "lease_id": lease_id,
                "state": states.get(lease_id, ""),
                "steps": "; ".join(f"{name}: {outcome} at {_text(at)}" for at, name, outcome in steps),
                "id": str(action.pk),
            }


def findings(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """One row per finding that was open at some time in [from, to), with its evidence in words."""
    yield from of_findings(open_within(from_at=from_at, to_at=to_at))


def of_findings(rows: Iterable[Finding]) -> Iterator[Row]:
    """One row per finding, in their order, with its evidence in words."""
    for row in rows:
        yield {name: getattr(row, name) for name in FINDINGS} | {
            "severity": row.get_severity_display(),
            "evidence": "; ".join(f"{item['text']} {item.get('at', '')}".strip() for item in row.evidence),
        }


def could_read(database: Database | None, *, at: datetime, to: datetime | None = None, now: datetime) -> Iterator[Row]:
    """One row per lease that was live at an instant; with `to`, per lease that was live at either, and its change.

    In the end a row without a lease for each instant: its doubts are those of the whole, which also an empty answer has.
    """
    changes: list[timemachine.Change | None] = list(timemachine.Change) if to else [None]
    for change in changes:
        page = (
            timemachine.changed(database, change, at=at, to=to, size=None)
            if change and to
            else timemachine.could_read(database, at=at, size=None)
        )
        doubts = {held.lease.pk: held.doubts for held in page.rows}
        for lease, use in _used(held.lease for held in page.rows):
            yield {
                **_lease(lease, use),
                "at": at,
                "compared_with": to,
                "change": change,
                "doubts": " ".join(doubts[lease.pk]),
            }
    for moment in [at, to] if to else [at]:
        said = timemachine.in_words(database, at=moment, now=now)
        yield {**dict.fromkeys(COULD_READ), "at": moment, "doubts": " ".join(["Of the whole answer:", *said])}


KINDS: dict[str, tuple[list[str], Callable[..., Iterator[Row]]]] = {
    "accesses": (ACCESSES, accesses),
    "leases": (LEASES, leases),
    "sessions": (SESSIONS, sessions),
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
    # a carriage return ends a row for who reads it, unless it is quoted, which the writer does not do by itself
    careful = csv.writer(output, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    count = 0
    for row in rows:
        cells = [cell(row[name]) for name in header]
        (careful if "\r" in "".join(cells) else writer).writerow(cells)
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


# https://owasp.org/www-community/attacks/CSV_Injection: the wide ones are the same to some spreadsheets
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def cell(value: object) -> str:
    """Text for a CSV cell that no spreadsheet runs as a formula."""
    text = _text(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value)
