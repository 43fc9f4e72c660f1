"""Tables of pages as rows: the access review, and who could read a database at an instant. Their pages hold all of them."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice

from django.utils import timezone

from audit import timemachine
from audit.exports.cells import Row
from audit.exports.statements import LEASES
from leases import review, session_queries, usage
from leases.models import Database, Lease
from leases.session_queries import Use

CHUNK = 2000

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
COULD_READ = ["at", "compared_with", "change", *LEASES, "doubts"]


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


def of_uses(rows: Iterable[usage.Use]) -> Iterator[Row]:
    """One row per holder of credentials of a database."""
    for use in rows:
        yield {
            "vault": use.place.vault,
            "mount": use.place.mount,
            "database": use.place.name,
            "cluster": use.holder.cluster,
            "pod_namespace": use.holder.namespace,
            "pod": use.holder.pod,
            "pods": use.pods or None,
            "service_account_namespace": use.holder.account_namespace,
            "service_account": use.holder.service_account,
            "certainty": use.certainty,
            "live": use.live,
            "reads": use.reads,
            "first_read_at": use.first_at,
            "last_read_at": use.last_at,
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
