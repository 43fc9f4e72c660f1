"""Reads of events: the list that the audit search page shows, and one event with all that is known of it. Nothing here writes."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models.functions import Left
from django.utils import timezone

from audit import intern, partitions
from audit.models import Conflict, Event, Sighting
from audit.plan import key_of
from leases import queries
from leases.models import Lease, Vault
from leases.queries import MICROSECOND, PAGE, Cursor

# of one path prefix, or of one identity: with more, rows are looked through one by one
MOST_IDS = 1000
# so much of a text is in its index: a client may write paths of any length
INDEXED = 200
MOST_CONFLICTS = 20
DAY = timedelta(days=1)
# stretches of time that a page looks through one after the other: how long, and how many
SHORTEST, LONGEST = timedelta(minutes=10), timedelta(days=4)
MOST_STRETCHES = 30
# the same for one request by its id: each day's partition answers at once, and only to plan for hundreds of them takes time
OF_ONE = timedelta(days=8), timedelta(days=2000)
# the key before which there is none
FIRST = f"{'0' * 32}0"

# an event's place in the list
_Key = tuple[datetime, UUID, int]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What a list of events is narrowed to; empty means everything. `path` is a prefix.

    `identity`: a service account (NAME or NAMESPACE/NAME), a display name or an entity id. `own`: this product's requests are
    left out (empty), shown too ("any"), or shown alone ("only").
    """

    vault: str = ""
    from_at: datetime | None = None
    to_at: datetime | None = None
    path: str = ""
    operation: str = ""
    identity: str = ""
    address: str = ""
    errors: bool = False
    request_id: str = ""
    own: str = ""
    login: int | None = None


@dataclass(frozen=True, slots=True)
class EventPage:
    """`looked_until`: where the looking through stopped before the page was full; the next page goes on from there."""

    rows: Sequence[Event]
    older: Cursor | None = None
    looked_until: datetime | None = None


@dataclass(slots=True)
class _Search:
    """`narrow`: what indexes answer. `rest`: what is tried on no more than so many of those rows; `joins` is for that."""

    narrow: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    # it is known already that nothing fits
    empty: bool = False


def events_page(where: EventFilter, *, before: Cursor | None = None, size: int = PAGE) -> EventPage:
    """One page of events, newest first. Raises ValueError for a foreign cursor.

    It goes back through time in stretches, short ones first, longer ones where little is found. In each, the conditions that
    have an index find rows; the others are tried on them, on no more than MOST_LOOKED_THROUGH in all. So neither a condition
    that everything fits nor one that nothing fits takes longer than that.
    """
    search = _search_of(where)
    if search.empty:
        return EventPage([])
    newest = _newest(search, before)
    # rows that an index finds lie apart, each on a page of its own
    left = queries.MOST_LOOKED_THROUGH // (4 if search.narrow else 1)
    found: list[_Key] = []
    spans = OF_ONE if where.request_id else (SHORTEST, LONGEST)
    stretches = _stretches(newest, search.values.get("from"), shortest=spans[0], longest=spans[1])
    for number, (from_at, to_at) in enumerate(stretches):
        if number == MOST_STRETCHES:
            return EventPage(_rows(found), Cursor(to_at, FIRST), to_at)
        hits, looked, last = _look(
            search, from_at, to_at, most=left if search.rest else size + 1, hits=size + 1 - len(found)
        )
        found += hits
        if len(found) > size:
            return EventPage(_rows(found[:size]), _cursor(*found[size - 1]))
        if found and where.request_id:
            break  # further back there is no other of its id
        left -= looked
        if search.rest and left <= 0 and last:
            return EventPage(_rows(found), _cursor(*last), last[0])
    return EventPage(_rows(found))


def _newest(search: _Search, before: Cursor | None) -> datetime | None:
    """Where the looking begins; None: now, and whatever is said to be later. Adds what bounds a page after another one."""
    if before:
        request, vault = key_parts(before.pk)
        search.bounds.append("(at, request, vault_id) < (%(before)s, %(request)s, %(vault_before)s)")
        search.values |= {"before": before.at, "request": request, "vault_before": vault}
        return before.at
    return search.values.get("to")


def _stretches(
    newest: datetime | None, oldest: datetime | None, *, shortest: timedelta, longest: timedelta
) -> Iterator[tuple[datetime, datetime]]:
    """(from, to) of each stretch, the newest first. Days without a partition are left out."""
    days = sorted(partitions.days("audit_event"))
    if not days:
        return
    first, end = (datetime.combine(day, time(), UTC) for day in (days[0], days[-1] + DAY))
    oldest = max(first, oldest) if oldest else first
    to_at = min(newest + MICROSECOND, end) if newest else end
    length = shortest
    if not newest and oldest < (now := timezone.now()) < end:
        # clocks differ, and partitions are made ahead
        yield now, end
        to_at = now
    while to_at > oldest:
        last = bisect_right(days, (to_at - MICROSECOND).astimezone(UTC).date()) - 1
        to_at = min(to_at, datetime.combine(days[last], time(), UTC) + DAY)
        from_at = max(oldest, to_at - length)
        yield from_at, to_at
        to_at, length = from_at, min(2 * length, longest)


def _look(
    search: _Search, from_at: datetime, to_at: datetime, *, most: int, hits: int
) -> tuple[list[_Key], int, _Key | None]:
    """(what fits of one stretch, how many rows were looked at, the last of those), newest first."""
    order = "ORDER BY {0}at DESC, {0}request DESC, {0}vault_id DESC"
    # of two conditions that both fit many rows, but never the same, the planner knows nothing: it would walk along the time.
    # An order that no index has makes it put the indexes of the conditions together
    first = order.replace("{0}at", "at + interval '0'", 1) if len(search.narrow) > 1 else order
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH looked AS MATERIALIZED (
              SELECT at, request, vault_id, what_id, who_id, address_id, error_text_id, own FROM audit_event
              WHERE {" AND ".join([*search.narrow, *search.bounds, "at >= %(stretch_from)s", "at < %(stretch_to)s"])}
              {first.format("")} LIMIT {most}
            )
            SELECT true, (SELECT count(*) FROM looked), hit.* FROM (
              SELECT e.at, e.request, e.vault_id FROM looked e {" ".join(search.joins)} WHERE {" AND ".join(search.rest) or "true"}
              {order.format("e.")} LIMIT {hits}) hit
            UNION ALL
            SELECT false, (SELECT count(*) FROM looked), last.* FROM (
              SELECT at, request, vault_id FROM looked ORDER BY at, request, vault_id LIMIT 1) last
            """,  # noqa: S608
            {**search.values, "stretch_from": from_at, "stretch_to": to_at},
        )
        rows = cursor.fetchall()
    fitting = sorted((row[2:] for row in rows if row[0]), reverse=True)
    last = next((row[2:] for row in rows if not row[0]), None)
    return fitting, rows[0][1] if rows else 0, last


def key_parts(pk: str) -> tuple[UUID, int]:
    """What a cursor's key is made of: the event's key and its vault's."""
    return UUID(hex=pk[:32]), int(pk[32:])


def _cursor(at: datetime, request: UUID, vault: int) -> Cursor:
    return Cursor(at, f"{request.hex}{vault}")


def _rows(keys: Sequence[_Key]) -> list[Event]:
    """These events, in this order."""
    if not keys:
        return []
    # the times leave the other days' partitions alone
    rows = Event.objects.filter(request__in=[key[1] for key in keys], at__gte=keys[-1][0], at__lte=keys[0][0])
    # by their keys: a join over many days may read all texts
    found = {(event.request, event.vault_id): event for event in rows.prefetch_related(*Event.SPELLED_OUT)}
    return [found[key] for _, *rest in keys if (key := (rest[0], rest[1])) in found]


def _search_of(where: EventFilter) -> _Search:
    search = _Search()
    if where.request_id:
        search.values["key"] = key_of(where.request_id)
        search.narrow.append("request = %(key)s")
    if where.login is not None:
        search.values["tokens"] = _ids(
            "SELECT id FROM audit_token WHERE login_id = %(login)s", {"login": where.login}, most=MOST_IDS
        )
        search.narrow.append("token_id = ANY(%(tokens)s)")
        search.empty |= not search.values["tokens"]
    if where.address:
        search.values["address"] = intern.known_texts([where.address]).get(where.address)
        search.narrow.append("address_id = %(address)s")
        search.empty |= search.values["address"] is None
    if where.identity:
        condition, values = _identity(where.identity)
        _by_ids(search, "who", f"SELECT id FROM audit_who WHERE {condition}", condition, values)  # noqa: S608
    if where.path:
        condition, values = path_condition(where.path)
        _by_ids(search, "what", f"SELECT id FROM audit_what WHERE {condition}", condition, values)  # noqa: S608
    if where.errors:
        search.narrow.append("error_text_id IS NOT NULL")
    if where.operation:
        search.values["operation"] = where.operation
        _join(search, "what")
        search.rest.append("what.operation = %(operation)s")
    if where.vault:
        search.values["vault"] = where.vault
        search.rest.append("e.vault_id = (SELECT id FROM leases_vault WHERE name = %(vault)s)")
    if where.own != "any":
        search.rest.append("e.own" if where.own == "only" else "NOT e.own")
    if where.from_at:
        search.values["from"] = where.from_at
        search.bounds.append("at >= %(from)s")
    if where.to_at:
        search.values["to"] = where.to_at
        search.bounds.append("at < %(to)s")
    return search


def _by_ids(search: _Search, table: str, query: str, condition: str, values: dict[str, str]) -> None:
    """By the keys of what or who it was, where they are few enough to be named; else row by row."""
    ids = _ids(query, values, most=MOST_IDS + 1)
    if len(ids) <= MOST_IDS:
        search.values[table] = ids
        search.narrow.append(f"{table}_id = ANY(%({table})s)")
        search.empty |= not ids
        return
    search.values |= values
    _join(search, table)
    search.rest.append(f"({condition})")


def _join(search: _Search, table: str) -> None:
    join = f"JOIN audit_{table} {table} ON {table}.id = e.{table}_id"
    if join not in search.joins:
        search.joins.append(join)


def _ids(query: str, values: dict[str, Any], *, most: int) -> list[int]:
    with connection.cursor() as cursor:
        # the newest first: older ones are the likelier to have no events any more
        cursor.execute(f"{query} ORDER BY id DESC LIMIT {most}", values)
        return [row[0] for row in cursor.fetchall()]


def _identity(text: str) -> tuple[str, dict[str, str]]:
    """A service account as its registered mounts name it, a display name or an entity id."""
    namespace, _, name = text.rpartition("/")
    account = "left(metadata->>'service_account_name', 253) = %(account)s"
    values = {"account": name[:253], "identity": text, "identity_start": text[:INDEXED]}
    if namespace:
        values["account_namespace"] = namespace
        account = f"({account} AND metadata->>'service_account_namespace' = %(account_namespace)s)"
    named = f"(left(display_name, {INDEXED}) = %(identity_start)s AND display_name = %(identity)s)"
    return f"{account} OR {named} OR left(entity_id, {INDEXED}) = %(identity)s", values


def path_condition(prefix: str) -> tuple[str, dict[str, str]]:
    """Paths that begin like this."""
    values = {"path_start": f"{like(prefix[:INDEXED])}%", "path": prefix}
    return f"left(path, {INDEXED}) LIKE %(path_start)s AND starts_with(path, %(path)s)", values


def like(text: str) -> str:
    """As a part of a pattern that means just this text."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")


# --- one event ---------------------------------------------------------------------------------------------------


def places_of(request_id: str) -> list[tuple[int, datetime]]:
    """(vault's key, time) of the requests of that id, the newest stretch of time that has any; of one log that was read as two
    vaults there are two."""
    rows = Event.objects.filter(request=key_of(request_id)).order_by("at", "vault").values_list("vault", "at")
    for from_at, to_at in _stretches(None, None, shortest=OF_ONE[0], longest=OF_ONE[1]):
        if found := list(rows.filter(at__gte=from_at, at__lt=to_at)[:MOST_IDS]):
            return found
    return []


def event(*, vault: str, request_id: str) -> Event | None:
    """The request of that id, with its token's login."""
    known = Vault.objects.filter(name=vault).values_list("pk", flat=True).first()
    at = next((at for of, at in places_of(request_id) if of == known), None)
    if at is None:
        return None
    # with its time, one day's partition is enough
    rows = Event.objects.filter(vault=known, request=key_of(request_id), at=at)
    return rows.select_related(*Event.SPELLED_OUT, "token__login").first()


def sightings(event: Event) -> list[Sighting]:
    """Each stream's record of it, by device and node."""
    rows = Sighting.objects.filter(
        request=event.request,
        # another device may have logged it on the other side of midnight
        at__gte=event.at - timedelta(days=1),
        at__lte=event.at + timedelta(days=1),
        stream__device__vault=event.vault_id,
    )
    return list(
        rows.select_related("stream__device__vault", "token").order_by(
            "stream__device__name", "stream__node", "stream_id"
        )
    )


def lease_of(event: Event) -> Lease | None:
    """The lease that it names, where the ledger has it."""
    if not event.lease_id:
        return None
    rows = Lease.objects.filter(vault=event.vault_id, lease_id=event.lease_id)
    return rows.select_related("vault", "database").first()


def conflicts_of(event: Event) -> list[Conflict]:
    """Lines that tell something else of the same request; they were kept, and not merged into it."""
    rows = Conflict.objects.alias(start=Left("request_id", INDEXED)).filter(
        start=event.request_id[:INDEXED], request_id=event.request_id, stream__device__vault=event.vault_id
    )
    return list(rows.select_related("stream__device__vault").order_by("at", "id")[:MOST_CONFLICTS])
