"""Reads of events: the list that the audit search page shows, and one event with all that is known of it. Nothing here writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from audit import intern
from audit.models import Conflict, Event, Sighting
from audit.plan import key_of
from leases import queries
from leases.models import Lease
from leases.queries import PAGE, Cursor

# of one path prefix, or of one identity: with more, rows are looked through one by one
MOST_IDS = 1000
# so much of a text is in its index: a client may write paths of any length
INDEXED = 200
MOST_CONFLICTS = 20


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
    """`narrow`: what an index answers. `rest`: what is tried on no more than so many of those rows; `joins` is for that."""

    narrow: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    joins: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    # it is known already that nothing fits
    empty: bool = False


def events_page(where: EventFilter, *, before: Cursor | None = None, size: int = PAGE) -> EventPage:
    """One page of events, newest first. Raises ValueError for a foreign cursor.

    As with queries.leases_page(): one condition, the narrowest that has an index, finds rows; the others are tried on no more
    than MOST_LOOKED_THROUGH of them, newest first. So a rare hit, or none, takes no longer than that.
    """
    search = _search_of(where)
    if search.empty:
        return EventPage([])
    if before:
        request, vault = key_parts(before.pk)
        # the first of the two is what partitions are left out by
        search.bounds += ["at <= %(at)s", "(at, request, vault_id) < (%(at)s, %(request)s, %(vault_before)s)"]
        search.values |= {"at": before.at, "request": request, "vault_before": vault}
    most = queries.MOST_LOOKED_THROUGH if search.rest else size + 1
    candidates = (
        "SELECT at, request, vault_id, what_id, who_id, address_id, error_text_id, token_id, own FROM audit_event"  # noqa: S608
        f" WHERE {' AND '.join(search.narrow + search.bounds) or 'true'}"
        f" ORDER BY at DESC, request DESC, vault_id DESC LIMIT {most}"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT e.at, e.request, e.vault_id FROM ({candidates}) e {' '.join(search.joins)}"  # noqa: S608
            f" WHERE {' AND '.join(search.rest) or 'true'}"
            f" ORDER BY e.at DESC, e.request DESC, e.vault_id DESC LIMIT {size + 1}",
            search.values,
        )
        keys = cursor.fetchall()
        last = None
        if search.rest and len(keys) <= size:
            cursor.execute(
                "SELECT at, request, vault_id FROM (SELECT *, count(*) OVER () AS n FROM"  # noqa: S608
                f" ({candidates}) e) e WHERE n = {most} ORDER BY at, request, vault_id LIMIT 1",
                search.values,
            )
            last = cursor.fetchone()
    rows = _rows(keys[:size])
    if len(keys) > size:
        return EventPage(rows, _cursor(*keys[size - 1]))
    return EventPage(rows, _cursor(*last), last[0]) if last else EventPage(rows)


def key_parts(pk: str) -> tuple[UUID, int]:
    """What a cursor's key is made of: the event's key and its vault's."""
    return UUID(hex=pk[:32]), int(pk[32:])


def _cursor(at: datetime, request: UUID, vault: int) -> Cursor:
    return Cursor(at, f"{request.hex}{vault}")


def _rows(keys: Sequence[tuple[datetime, UUID, int]]) -> list[Event]:
    """These events, in this order."""
    if not keys:
        return []
    # the times leave the other days' partitions alone
    rows = Event.objects.filter(request__in=[key[1] for key in keys], at__gte=keys[-1][0], at__lte=keys[0][0])
    found = {(event.request, event.vault_id): event for event in rows.select_related(*Event.SPELLED_OUT)}
    return [found[key] for _, *rest in keys if (key := (rest[0], rest[1])) in found]


def _search_of(where: EventFilter) -> _Search:
    search = _Search()
    # the narrowest first
    if where.request_id:
        search.values["key"] = key_of(where.request_id)
        _add(search, "request = %(key)s")
    if where.login is not None:
        search.values["tokens"] = _ids(
            "SELECT id FROM audit_token WHERE login_id = %(login)s", {"login": where.login}, most=MOST_IDS
        )
        _add(search, "token_id = ANY(%(tokens)s)")
        search.empty |= not search.values["tokens"]
    if where.address:
        search.values["address"] = intern.known_texts([where.address]).get(where.address)
        _add(search, "address_id = %(address)s")
        search.empty |= search.values["address"] is None
    if where.identity:
        condition, values = _identity(where.identity)
        _by_ids(search, "who", f"SELECT id FROM audit_who WHERE {condition}", condition, values)  # noqa: S608
    if where.path:
        condition, values = _path(where.path)
        _by_ids(search, "what", f"SELECT id FROM audit_what WHERE {condition}", condition, values)  # noqa: S608
    if where.errors:
        _add(search, "error_text_id IS NOT NULL")
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


def _add(search: _Search, condition: str) -> None:
    """One that an index answers: the first is looked up, the others are tried."""
    if search.narrow:
        search.rest.append(f"e.{condition}")
    else:
        search.narrow.append(condition)


def _by_ids(search: _Search, table: str, query: str, condition: str, values: dict[str, str]) -> None:
    """By the keys of what or who it was, where they are few enough to be named; else row by row."""
    ids = _ids(query, values, most=MOST_IDS + 1)
    if len(ids) <= MOST_IDS:
        search.values[table] = ids
        _add(search, f"{table}_id = ANY(%({table})s)")
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


def _path(prefix: str) -> tuple[str, dict[str, str]]:
    """Paths that begin like this."""
    values = {"path_start": f"{like(prefix[:INDEXED])}%", "path": prefix}
    return f"left(path, {INDEXED}) LIKE %(path_start)s AND starts_with(path, %(path)s)", values


def like(text: str) -> str:
    """As a part of a pattern that means just this text."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")


# --- one event ---------------------------------------------------------------------------------------------------


def event(*, vault: str, request_id: str) -> Event | None:
    """The request of that id, with its token's login."""
    rows = Event.objects.filter(vault__name=vault, request=key_of(request_id))
    # the same id on both sides of midnight is one request (audit/ingest.py)
    return rows.select_related(*Event.SPELLED_OUT, "token__login").order_by("at").first()


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
    rows = Conflict.objects.filter(request_id=event.request_id, stream__device__vault=event.vault_id)
    return list(rows.select_related("stream__device__vault").order_by("at", "id")[:MOST_CONFLICTS])
