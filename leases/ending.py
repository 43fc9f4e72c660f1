"""Sessions that outlive their lease: seen before Vault is told, ended after its user is gone, and looked for once more.

A dropped user's sessions live on in every kind of database. What is ended is exactly what was seen under the lease's user, by an account
of its own that only the `actions` workers have; without one the sessions are named, with the words that end them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import msgspec

from leases import clients, databases, monitors
from leases.databases import Backend, Backends, DatabaseError, DatabaseUnreachable, Server
from leases.errors import SourceError
from leases.models import Database, DynamicUser, Lease
from leases.models.actions import Outcome
from leases.models.sessions import TiedBy

# names of a revocation's steps
SESSIONS_SEEN = "sessions seen"
SESSIONS_ENDED = "sessions ended"

# how long it is looked whether sessions that were told to end are gone; most need about a millisecond
WAIT_SECONDS = 3.0
# Sessions that began after the look and before the user was dropped are found by the next look. None can begin then, so more rounds than
# these only run where the user lives on.
ROUNDS = 3
# A database that did not answer is left alone for so long, or a job of thousands of leases would wait for it thousands of times
AWAY_SECONDS = 5.0
# sessions that are named one by one
NAMED = 5


class NobodyCanTell(SourceError):
    """Which database user is the lease's is not known for sure, so none of its sessions may be ended."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of the sessions: an outcome with words for the receipt, and which of them still live."""

    outcome: Outcome
    detail: str
    survivors: tuple[Backend, ...] = ()


def snapshot(lease: Lease, *, before: Backends | None = None) -> Backends:
    """Every session of the lease's user now, also where it is dropped already. Raises SourceError, with cause and fix.

    `before`: what an earlier look saw.
    """
    database, user = _whose(lease)
    known = (
        _Number(before.user_oid, before.server.identity, before.server.started_at)
        if before
        else _number(database, user)
    )
    found = _look(database, user, known.oid)
    if known.oid is not None and not known.is_of(found.server):
        # what the number says on one server it does not say on another
        found = _look(database, user, None)
    return found


def end(database: Database, seen: Backends) -> Ended:
    """Ends the sessions that were seen, and those of the same user that came between; says what is proven of it.

    Where Leasehold may not end them it says which live, and how to end them. Never raises SourceError.
    """
    why = ""
    try:
        if database.respond:
            return _ended(database, seen)
    except SourceError as error:
        why = str(error)
    try:
        # those who only look may still tell what lives
        return _left_alone(database, seen, why=why)
    except SourceError as error:
        return Ended(Outcome.UNVERIFIED, _unknown(database, seen, why or str(error)))


def finish(lease: Lease, frozen: object) -> Ended:
    """As end(), from what freeze() gave; where nothing could be seen before, with what can be seen now."""
    try:
        database, _ = _whose(lease)
        seen = thaw(frozen) or snapshot(lease)
    except SourceError as error:
        return Ended(Outcome.UNVERIFIED, str(error))
    return end(database, seen)


def freeze(seen: Backends) -> dict[str, object]:
    """As Revocation.sessions keeps it."""
    kept: dict[str, object] = msgspec.to_builtins(seen)
    return kept


def thaw(frozen: object) -> Backends | None:
    return msgspec.convert(frozen, Backends) if frozen is not None else None


def tell(database: Database, seen: Backends) -> str:
    """What was seen, in words."""
    if not seen.backends:
        return f"{seen.user} had no session on {database.name}"
    return f"{seen.user} had {_count(seen.backends)} on {database.name}: {name(seen.backends)}"


def name(backends: Sequence[Backend]) -> str:
    """Sessions for people: "4711 from 10.0.0.7:50412 in orders (storefront), since 02:10:11"."""
    more = f"; and {len(backends) - NAMED:,} more" if len(backends) > NAMED else ""
    return "; ".join(_name(backend) for backend in backends[:NAMED]) + more


@contextmanager
def unless_away(database: Database, account: monitors.Account) -> Iterator[None]:
    """Raises again what the database's silence raised a moment ago, instead of waiting for it once more."""
    key = database.pk, account
    told, until = _away.get(key, (None, 0.0))
    if told is not None and time.monotonic() < until:
        raise DatabaseUnreachable(told.cause, told.fix)
    try:
        yield
    except DatabaseUnreachable as error:
        _away[key] = error, time.monotonic() + AWAY_SECONDS
        raise
    _away.pop(key, None)


_away: dict[tuple[int, monitors.Account], tuple[DatabaseUnreachable, float]] = {}


@dataclass(frozen=True, slots=True)
class _Number:
    """A user's number, and on which server it is that."""

    oid: int | None
    identity: str = ""
    started_at: datetime | None = None

    def is_of(self, server: Server) -> bool:
        return _is(server, self.identity, self.started_at)


def _whose(lease: Lease) -> tuple[Database, str]:
    """The lease's database and user. Raises NobodyCanTell: a guess is not enough to end anybody's sessions."""
    if not lease.database_user:
        raise NobodyCanTell(
            "Which database user belongs to this lease is not known, so neither are its sessions",
            "Give the database a monitoring account (docs/databases.md), or look for sessions of users that are gone yourself.",
        )
    if lease.database_user_by == TiedBy.TIME_AND_NAME:
        raise NobodyCanTell(
            f"That {lease.database_user} is this lease's user is a guess by time and name, so none of its sessions is ended",
            "Look for its sessions in the database yourself.",
        )
    if lease.database is None:
        raise NobodyCanTell(
            f"The database of {lease.database_user} is not known, so neither are its sessions",
            "Name it in a [[databases]] entry of leasehold.toml, or look for its sessions yourself.",
        )
    return lease.database, lease.database_user


def _number(database: Database, user: str) -> _Number:
    """What samples knew of the user: all that a server has left of it when it is dropped."""
    known = DynamicUser.objects.filter(server__sampling__database=database, name=user).exclude(oid=None)
    row = known.select_related("server").order_by("-last_seen_at", "-id").first()
    return _Number(row.oid, row.server.identity, row.server.started_at) if row else _Number(None)


def _look(database: Database, user: str, user_oid: int | None) -> Backends:
    """By the account that will end them, or by the one that only looks."""
    if database.respond:
        try:
            return _backends("respond", database, user, user_oid)
        except SourceError:
            if not database.monitor:
                raise
    return _backends("monitor", database, user, user_oid)


def _backends(account: monitors.Account, database: Database, user: str, user_oid: int | None) -> Backends:
    ask = clients.ask_responder if account == "respond" else clients.ask_monitor
    with unless_away(database, account):
        return ask(database, lambda kind, dsn: kind.backends(dsn, user, user_oid=user_oid))


def _look_again(account: monitors.Account, database: Database, seen: Backends) -> Backends:
    """Every session of the user that lives now, on the same server."""
    left = _backends(account, database, seen.user, seen.user_oid)
    _same_server(database, seen, left.server)
    return left


def _ended(database: Database, seen: Backends) -> Ended:
    known = {backend.key: backend for backend in seen.backends}
    told: set[str] = set()
    wanted: Sequence[Backend] = seen.backends
    for _ in range(ROUNDS):
        if wanted:
            told |= _terminate(database, seen, wanted)
        left = _look_again("respond", database, seen)
        wanted = [backend for backend in left.backends if backend.key not in known]
        known |= {backend.key: backend for backend in wanted}
        if not wanted:
            break
    if left.backends:
        still = _still(database, left, after=f" after {WAIT_SECONDS:g} s")
        return Ended(Outcome.FAILED, still, left.backends)
    return Ended(Outcome.OK, _what_ended(database, seen, known, told))


def _terminate(database: Database, seen: Backends, wanted: Sequence[Backend]) -> frozenset[str]:
    with unless_away(database, "respond"):
        ended = clients.ask_responder(database, lambda kind, dsn: kind.terminate(dsn, wanted, seconds=WAIT_SECONDS))
    _same_server(database, seen, ended.server)
    return ended.told


def _left_alone(database: Database, seen: Backends, *, why: str) -> Ended:
    """What lives on, as whoever may only look sees it."""
    left = _look_again("monitor", database, seen)
    if not left.backends:
        ended = (
            f"{_count(seen.backends)} of {seen.user} ended by themselves" if seen.backends else f"{seen.user} had none"
        )
        return Ended(Outcome.OK, f"{ended}; none lives on {database.name}")
    return Ended(
        Outcome.FAILED,
        f"{_still(database, left)} "
        + (why or "Leasehold does it where the database has a responding account (`respond`, docs/databases.md)."),
        left.backends,
    )


def _same_server(database: Database, seen: Backends, now: Server) -> None:
    """Another one does not know the sessions, which are then not ended but only not seen."""
    if not _is(now, seen.server.identity, seen.server.started_at):
        raise DatabaseError(
            f"Another server answers for {database.name} now: {now.identity}, before it was {seen.server.identity}",
            f"Look on that one whether sessions of {seen.user} are left.",
        )


def _is(server: Server, identity: str, started_at: datetime | None) -> bool:
    """Whether it is the one that had this identity; perhaps at another address, where it has the same data and start."""
    same_data = bool(server.data) and identity.startswith(server.data)
    return server.identity == identity or (same_data and server.started_at == started_at)


def _what_ended(database: Database, seen: Backends, known: dict[str, Backend], told: set[str]) -> str:
    if not known:
        return f"{seen.user} had none; none lives on {database.name}"
    words = f"{_count(list(known.values()))} of {seen.user} ended: {name(list(known.values()))}"
    by_itself, between = len(known) - len(told), len(known) - len(seen.backends)
    if between:
        words += f". {between:,} of them began after the first look"
    if by_itself:
        words += f". {by_itself:,} had ended by then without Leasehold"
    return f"{words}. None lives on {database.name}"


def _unknown(database: Database, seen: Backends, why: str) -> str:
    what = f"{name(seen.backends)} of {seen.user}" if seen.backends else f"sessions of {seen.user}"
    return f"Whether {what} live on {database.name} is not known. {why}"


def _still(database: Database, left: Backends, *, after: str = "") -> str:
    """Who lives on, and what an administrator types against it."""
    lives = "lives" if len(left.backends) == 1 else "live"
    return (
        f"{_count(left.backends)} of {left.user} still {lives} on {database.name}{after}: {name(left.backends)}. "
        f"End what is left there as an administrator: {databases.get(database.kind).by_hand(left)}"
    )


def _name(backend: Backend) -> str:
    where = f"{backend.address}:{backend.port}" if backend.port else backend.address or "a local socket"
    # what a client calls itself may hold anything
    application = "".join(c for c in backend.application if c.isprintable())[:40]
    return (
        f"{backend.pid} from {where}"
        + (f" in {backend.database}" if backend.database else "")
        + (f" ({application})" if application else "")
        + (f", since {backend.began_at:%H:%M:%S}" if backend.began_at else "")
    )


def _count(backends: Sequence[Backend]) -> str:
    return f"{len(backends):,} session{'' if len(backends) == 1 else 's'}"
