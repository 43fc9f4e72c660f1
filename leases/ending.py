"""Sessions that outlive their lease: seen before Vault is told, ended after its user is gone, and looked for once more.

A dropped user's sessions live on in every kind of database. What is ended is exactly what was seen under the lease's user, by an account
of its own that only the `actions` workers have; without one the sessions are named, with the words that end them.
"""

from dataclasses import dataclass

from leases.databases import Backend, Backends
from leases.models import Database, Lease
from leases.models.actions import Outcome

# names of a revocation's steps
SESSIONS_SEEN = "sessions seen"
SESSIONS_ENDED = "sessions ended"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of the sessions: an outcome with words for the receipt, and which of them still live."""

    outcome: Outcome
    detail: str
    survivors: tuple[Backend, ...] = ()


def snapshot(lease: Lease) -> Backends:
    """Every session of the lease's user now. Raises SourceError, with cause and fix, where nobody can tell."""
    raise NotImplementedError


def end(database: Database, seen: Backends) -> Ended:
    """Ends the sessions that were seen, and those of the same user that came between; says what is proven of it. Never raises."""
    raise NotImplementedError
