"""Database servers that dynamic users live on, one file for each kind: what every kind can answer, and which there are.

A new kind is one module here with the functions of `Kind`, one line in `_MODULES`, and one entry in the contract tests
(docs/databases.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Protocol

from leases.errors import SourceError

# the words of [[databases]] kind, and the module that speaks to it
_MODULES = {
    "postgresql": "leases.databases.postgresql",
    "mariadb": "leases.databases.mariadb",
    "mysql": "leases.databases.mariadb",
}


class DatabaseError(SourceError):
    """A database did not answer what was asked. `cause` and `fix` are for an operator and hold no secret."""


class DatabaseUnreachable(DatabaseError):
    """No connection: address, network, server down or full, time limit."""


class DatabaseDenied(DatabaseError):
    """The server refused the log-in, or the account may not read what is asked."""


class SessionsHidden(DatabaseDenied):
    """The account logs in and sees users, but not other users' sessions."""


class MayNotEnd(DatabaseDenied):
    """The account logs in and sees sessions, but may not end those of others."""


class UserForgotten(DatabaseError):
    """The user was dropped, and by its name alone the server cannot tell which sessions it left."""


class UnknownKind(DatabaseError):
    """No module here speaks to this kind of database."""


@dataclass(frozen=True, slots=True)
class DatabaseUser:
    """A dynamic user. `oid` is the server's own number for it, if it has one; `valid_until` (UTC) is None where it has no end."""

    name: str
    oid: int | None
    valid_until: datetime | None


@dataclass(frozen=True, slots=True)
class Server:
    """A database server. `identity` stays over restarts and differs between servers behind one address.

    `data`: what the identities of all that serve a copy of the same data begin with, where the server has a number for that. Two of
    them with the very same start are one server that answers at two addresses.
    """

    identity: str
    started_at: datetime | None
    version: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class SeenSession:
    """A connection of a dynamic user, or of one that is dropped: `user_is_gone`; `user` is empty then where the server forgets the name.

    `key` names it on its server for ever: process ids come back. `started_at` (UTC) is None where the server does not say.
    `user_oid` is the server's own number for the user, if it has one: it may be all that is left of a dropped one. `address` is empty for
    a local socket, and no address but a host name where the server tells only that.
    """

    key: str
    pid: int
    started_at: datetime | None
    user: str
    user_oid: int | None
    database: str
    address: str
    port: int | None
    application: str
    state: str
    user_is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What one query says of a server at one moment: `at` and `took_ms` are by its own clock. `users`: None if not asked for.

    Beside users named v-… there may be others that have an end and so may be Vault's. `database` is the monitoring account's own one.
    """

    server: Server
    at: datetime
    took_ms: float
    sessions: tuple[SeenSession, ...]
    users: tuple[DatabaseUser, ...] | None = None
    database: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """One session of a user, named so that exactly this one can be ended: process ids and connection numbers come back.

    `key` is that of samples. `began_at` (UTC) is to the last digit of the server's own, and None where the server does not say; there
    the key is enough, since it holds the start of the server.
    """

    key: str
    pid: int
    began_at: datetime | None
    user: str
    database: str
    # as in SeenSession
    address: str
    port: int | None
    application: str


@dataclass(frozen=True, slots=True)
class Backends:
    """Every session of one user on the whole server, by one query. `user_oid`: the server's own number for it, if it has one."""

    server: Server
    user: str
    user_oid: int | None
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Terminated:
    """What became of sessions that were to be ended: keys of those that were there and were told to end, and of those that still are.

    `server`: which one was asked.
    """

    server: Server
    told: frozenset[str]
    survivors: frozenset[str]


class Kind(Protocol):
    """What each module of this package offers. `dsn` is the address of a monitoring or responding account; each raises DatabaseError."""

    def check(self, dsn: str) -> None:
        """Return if the account can log in and read what the others need; SessionsHidden if sample() alone cannot."""

    def dynamic_users(self, dsn: str) -> list[DatabaseUser]:
        """The users that Vault made (named v-…), by name."""

    def sample(self, dsn: str, *, with_users: bool) -> Sample:
        """Sessions of dynamic users on the whole server, whichever database they are in, by one query. Own ones are left out.

        Raises SessionsHidden where the account may not see them, rather than say that there are none.
        """

    def user_exists(self, dsn: str, name: str) -> bool:
        """Whether the server still has the user."""

    def backends(self, dsn: str, user: str, *, user_oid: int | None = None) -> Backends:
        """Every session of the user, also of one that was dropped: `user_oid` then tells which, where the server forgets the name.

        Raises SessionsHidden where the account may not see them, UserForgotten where the user is gone and its number is not given.
        """

    def terminate(self, dsn: str, backends: Sequence[Backend], *, seconds: float) -> Terminated:
        """Ends exactly these sessions, and looks for up to `seconds` whether they are gone. Raises MayNotEnd, or SessionsHidden."""

    def check_responder(self, dsn: str) -> None:
        """Return if the account may do both; raises SessionsHidden or MayNotEnd."""

    def by_hand(self, found: Backends) -> str:
        """What an administrator types to end these sessions. Asks nothing."""


def kinds() -> tuple[str, ...]:
    """The words that [[databases]] kind may hold."""
    return tuple(_MODULES)


def get(kind: str) -> Kind:
    """The module for one kind of database; raises UnknownKind."""
    if kind not in _MODULES:
        raise UnknownKind(
            f"Databases of kind {kind[:40]!r} cannot be read" if kind else "The database's kind is not configured",
            f"Write one of {', '.join(_MODULES)} as `kind` of its [[databases]] entry into leasehold.toml.",
        )
    module: Kind = import_module(_MODULES[kind])
    return module
