"""Database servers that dynamic users live on, one file for each kind: what every kind can answer, and which there are.

A new kind is one module here with the three functions of `Kind`, and one line in `_MODULES`.
"""

from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Protocol

from leases.errors import SourceError

# the words of [[databases]] kind, and the module that speaks to it
_MODULES = {"postgresql": "leases.databases.postgresql"}


class DatabaseError(SourceError):
    """A database did not answer what was asked. `cause` and `fix` are for an operator and hold no secret."""


class DatabaseUnreachable(DatabaseError):
    """No connection: address, network, server down or full, time limit."""


class DatabaseDenied(DatabaseError):
    """The server refused the log-in, or the account may not read what is asked."""


class UnknownKind(DatabaseError):
    """No module here speaks to this kind of database."""


@dataclass(frozen=True, slots=True)
class DatabaseUser:
    """A dynamic user. `oid` is the server's own number for it; `valid_until` (UTC) is None where it has no end."""

    name: str
    oid: int
    valid_until: datetime | None


class Kind(Protocol):
    """What each module of this package offers. `dsn` is the monitoring account's address; each raises DatabaseError."""

    def check(self, dsn: str) -> None:
        """Return if the account can log in and read what the others need."""

    def dynamic_users(self, dsn: str) -> list[DatabaseUser]:
        """The users that Vault made (named v-…), by name."""

    def user_exists(self, dsn: str, name: str) -> bool:
        """Whether the server still has the user."""


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
