"""Who could read a database at one instant, and what changed between two: leases that were live then, as they are known now.

A lease is live in [credential read, end). What the ledger cannot know is said: of a lease in `doubts`, of the whole in `Around`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from django.db import connection

from audit.batch import hour
from audit.hours import HOUR, Hour
from audit.models import Stream
from audit.queries import Completeness, completeness
from leases.models import Database, EndReason, Lease, LeaseState

PAGE = 50
# hours before an instant whose audit lines tell of leases that are live at it
BEFORE = 24
FEW = 10
MOST = 1000

# as in the index lease_lived (leases/migrations/0011)
_BEGAN = "COALESCE(l.accessed_at, l.issued_at, l.first_seen_at)"
_LIVED = f"tstzrange({_BEGAN}, CASE WHEN l.ended_at < {_BEGAN} THEN {_BEGAN} ELSE l.ended_at END)"
_OF_DATABASE = "int8range(COALESCE(l.database_id, 0), COALESCE(l.database_id, 0), '[]') @> %(database)s::bigint"
# pods, then service accounts, then nobody known; leases of one holder follow on one another
_HOLDER = """
    CASE WHEN {0}.pod <> '' THEN 0 WHEN {0}.service_account <> '' THEN 1 ELSE 2 END, {0}.cluster,
    COALESCE(NULLIF({0}.pod_namespace, ''), {0}.service_account_namespace), {0}.pod, {0}.service_account, {0}.id
"""


class Change(StrEnum):
    """What became of a lease from one instant to another."""

    GAINED = "gained"
    LOST = "lost"
    KEPT = "kept"


# in terms of the instants `at` and `to`; the first two narrow by the index, on which NOT has no bearing
_MATCHES = {
    None: f"{_LIVED} @> %(at)s",
    Change.GAINED: f"{_LIVED} @> %(to)s AND NOT {_LIVED} @> %(at)s",
    Change.LOST: f"{_LIVED} @> %(at)s AND NOT {_LIVED} @> %(to)s",
    Change.KEPT: f"{_LIVED} @> %(at)s AND {_LIVED} @> %(to)s",
}


@dataclass(frozen=True, slots=True)
class Held:
    """One lease that was live, and what is not certain about that."""

    lease: Lease
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Held]
    # the key of the last row, where there are more
    after: int | None


class NoSuchPlace(Exception):
    """The lease after which a page should begin does not exist."""


def could_read(database: Database | None, *, at: datetime, after: int | None = None, size: int | None = PAGE) -> Page:
    """Leases for a database (None: those whose database is not known) that were live at an instant, by holder."""
    return _page(database, None, at=at, to=at, after=after, size=size)


def changed(
    database: Database | None,
    change: Change,
    *,
    at: datetime,
    to: datetime,
    after: int | None = None,
    size: int | None = PAGE,
) -> Page:
    """Leases that were live at one of two instants, or at both, by holder."""
    return _page(database, change, at=at, to=to, after=after, size=size)


def counts(database: Database | None, *, at: datetime) -> Counter[str]:
    """How many leases were live at an instant, by certainty."""
    query = f"SELECT l.certainty, count(*) FROM {_where(None)} GROUP BY 1"  # noqa: S608
    return Counter({certainty: count for certainty, count in _rows(query, database, at=at, to=at)})  # noqa: C416


def difference(database: Database | None, *, at: datetime, to: datetime) -> dict[Change, Counter[str]]:
    """How many leases were gained, lost and kept from one instant to another, by certainty."""
    found: dict[Change, Counter[str]] = {change: Counter() for change in Change}
    query = f"""
        SELECT CASE WHEN NOT {_LIVED} @> %(at)s THEN 'gained' WHEN NOT {_LIVED} @> %(to)s THEN 'lost' ELSE 'kept' END,
               l.certainty, count(*)
        FROM leases_lease l WHERE {_OF_DATABASE} AND ({_LIVED} @> %(at)s OR {_LIVED} @> %(to)s) GROUP BY 1, 2
    """  # noqa: S608
    for change, certainty, count in _rows(query, database, at=at, to=to):
        found[Change(change)][certainty] = count
    return found


def _page(
    database: Database | None, change: Change | None, *, at: datetime, to: datetime, after: int | None, size: int | None
) -> Page:
    place = ""
    if after is not None:
        if not Lease.objects.filter(pk=after).exists():
            raise NoSuchPlace
        row = f"SELECT {_HOLDER.format('h')} FROM leases_lease h WHERE h.id = %(after)s"  # noqa: S608
        place = f"AND ({_HOLDER.format('l')}) > ({row})"
    limit = "" if size is None else f"LIMIT {size + 1}"
    query = f"SELECT l.id FROM {_where(change)} {place} ORDER BY {_HOLDER.format('l')} {limit}"  # noqa: S608
    keys = [row[0] for row in _rows(query, database, at=at, to=to, after=after)]
    more = size is not None and len(keys) > size
    keys = keys[:size]
    leases = Lease.objects.select_related("vault", "database").in_bulk(keys)
    # of a lease that is live at both, the later one is the one to doubt
    moment = {Change.GAINED: to, Change.KEPT: max(at, to)}.get(change, at) if change else at
    rows = [Held(leases[key], doubts(leases[key], at=moment)) for key in keys if key in leases]
    return Page(rows, keys[-1] if more else None)


def _where(change: Change | None) -> str:
    return f"leases_lease l WHERE {_OF_DATABASE} AND {_MATCHES[change]}"


def _rows(query: str, database: Database | None, **values: datetime | int | None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        of: dict[str, datetime | int | None] = {"database": database.pk if database else 0}
        cursor.execute(query, of | values)
        return list(cursor.fetchall())


def doubts(lease: Lease, *, at: datetime) -> list[str]:
    """What is not certain about a lease being live at an instant, each as a sentence. Pure."""
    found = []
    if not lease.request_id:
        found.append(
            "No event of its issue was seen; Vault says when it was issued."
            if lease.issued_at
            else f"Its issue was not seen: it is known since {_utc(lease.first_seen_at)} and may be older."
        )
    if lease.state != LeaseState.ENDED:
        if lease.vault.retired:
            found.append("Nobody asks its vault any more: whether it ended is not known.")
        elif lease.expires_at and lease.expires_at <= at:
            found.append(f"Its time was over at {_utc(lease.expires_at)}, and nobody has seen it gone.")
    elif lease.end_reason == EndReason.UNKNOWN and lease.ended_at:
        alive = last_known_alive(lease)
        if alive is None or alive < at:
            since = f" It was last known to live at {_utc(alive)}." if alive else ""
            found.append(
                f"It may have been over by then: a lookup found it gone at {_utc(lease.ended_at)}, and when it ended "
                f"before that is not known.{since}"
            )
    return found


def last_known_alive(lease: Lease) -> datetime | None:
    """The last moment at which something proves the lease: its read, a renewal, or a lookup that found it."""
    return max(
        (at for at in (lease.accessed_at, lease.issued_at, lease.last_renewal_at, lease.looked_up_at) if at),
        default=None,
    )


def _utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- what the answer lacks ---------------------------------------------------------------------------------------


def older_than_seen(database: Database | None, *, at: datetime) -> int:
    """Leases first seen after an instant whose issue is not known, so that they may have been live at it; at most MOST."""
    rows = Lease.objects.filter(database=database, accessed_at=None, issued_at=None, first_seen_at__gt=at)
    return rows[:MOST].count()


def forced_before(database: Database | None, *, at: datetime) -> list[Lease]:
    """Leases that were ended by force before an instant, so that their database users may live on; the last FEW of them."""
    rows = Lease.objects.filter(database=database, end_reason=EndReason.FORCED, ended_at__lte=at)
    return list(rows.select_related("vault", "database").order_by("-ended_at", "-id")[:FEW])


@dataclass(frozen=True, slots=True)
class Around:
    """How complete the audit log is in the hours before an instant. `known_from`: the first hour that has lines."""

    streams: list[tuple[Stream, Completeness]]
    hours: int
    incomplete: int
    known_from: datetime | None


def around(database: Database | None, *, at: datetime, now: datetime) -> Around:
    """The BEFORE hours up to an instant, of all streams of the database's vault; of all vaults where it is not known."""
    rows = Stream.objects.select_related("device__vault").order_by("device__vault__name", "node", "device__name", "id")
    streams = list(rows.filter(device__vault=database.vault_id) if database else rows)
    found = completeness(streams, from_at=hour(at) - (BEFORE - 1) * HOUR, to_at=at, now=now)
    firsts = [known.first_at for known in found.values() if known.first_at]
    of_nodes: dict[tuple[int, str], list[list[Hour]]] = defaultdict(list)
    for stream in streams:
        of_nodes[stream.device.vault_id, stream.node].append(found[stream.pk].hours)
    incomplete = incomplete_hours(of_nodes.values())
    hours = max((len(known.hours) for known in found.values()), default=0)
    return Around([(stream, found[stream.pk]) for stream in streams], hours, incomplete, min(firsts, default=None))


def in_words(database: Database | None, *, at: datetime, now: datetime) -> list[str]:
    """What the whole answer about an instant lacks, or that nothing is known to be missing, each as a sentence."""
    known, older, forced = (
        around(database, at=at, now=now),
        older_than_seen(database, at=at),
        forced_before(database, at=at),
    )
    if known.known_from is None:
        said = ["No audit line has been read yet: what is listed is known from Vault alone, and holders are not."]
    elif at < known.known_from:
        said = [
            f"The audit log is known from {_utc(known.known_from)} on, and this moment is before that: only leases that Vault still "
            "knew later are listed."
        ]
    elif known.incomplete:
        said = [
            f"In {known.incomplete} of the {known.hours} hours up to this moment the audit log is not known to be complete: leases "
            "issued then may be missing, or known without their holder."
        ]
    else:
        said = [f"In all {known.hours} hours up to this moment the audit log is complete."]
    if older:
        count = f"{older:,}{' or more' if older == MOST else ''}"
        said.append(
            f"Leases that were first seen later, and may have been live, since nothing says when they were issued: {count}."
        )
    if forced:
        users = ", ".join(lease.database_user or lease.lease_id for lease in forced)
        said.append(f"Leases were dropped by force before, and their database users may live on: {users}.")
    return said


def incomplete_hours(nodes: Iterable[list[list[Hour]]]) -> int:
    """In how many hours lines may be missing. `nodes`: of each, its streams' hours; one whole stream that has lines makes it whole. Pure.

    An hour without any line proves nothing, but a standby has many: the hour counts as missing if no node has lines.
    """
    of_hours = [list(zip(*streams, strict=True)) for streams in nodes]
    return sum(
        any(_lacks(streams) for streams in node_hours) or not any(one.row for streams in node_hours for one in streams)
        for node_hours in zip(*of_hours, strict=True)
    )


def _lacks(streams: Iterable[Hour]) -> bool:
    """Whether one of a node's streams lacks lines in this hour that no other one is known to have."""
    known = [(one, _broken(one)) for one in streams]
    return any(broken for _, broken in known) and not any(one.row and not broken for one, broken in known)


def _broken(one: Hour) -> bool:
    return bool(one.gaps or one.unread or (one.row and (one.row.rejected or one.row.conflicts)))
