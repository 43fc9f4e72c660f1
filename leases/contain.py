"""Containing a service account: its identities disabled in Vault, its leases revoked, its tokens revoked, each step verified; and undone.

What Vault knows of its identities is asked for by an `actions` worker alone; pages read what that one wrote down.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from leases.errors import SourceError
from leases.models import Action, Containment, Plan

# as any plan: past that the world is another one
LIVES = timedelta(minutes=15)


class CannotContain(SourceError):
    """This service account is not to be contained: cause and fix say why, and what to do instead."""


class AlreadyContained(Exception):
    """Somebody was first; `containment` is theirs, and `containment.action.by` is who."""

    def __init__(self, containment: Containment) -> None:
        super().__init__(f"{containment} by {containment.action.by}")
        self.containment = containment


class NotNow(Exception):
    """The containment's state does not allow it; the message is for the page."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A way to log in: the auth mount's path, and the name there. `registered`: the mount is one of the cluster's."""

    mount: str
    name: str
    registered: bool = True


@dataclass(frozen=True, slots=True)
class Identity:
    """One entity of one vault. `shared_with`: whom disabling it shuts out, too; `tokens`: None where they were not counted."""

    vault: str
    vault_namespace: str
    entity_id: str
    name: str = ""
    aliases: tuple[Alias, ...] = ()
    disabled: bool = False
    shared_with: tuple[str, ...] = ()
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What containing would do, as far as it is known. `looked_at`: None while a worker still asks the vaults.

    `without_identity`: mounts of the cluster where nothing can be disabled, with the reason; `not_covered`: sentences;
    `problems`: what could not be asked, each with its fix.
    """

    cluster: str
    namespace: str
    service_account: str
    looked_at: datetime | None = None
    identities: tuple[Identity, ...] = ()
    without_identity: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())


def plan(*, cluster: str, namespace: str, service_account: str, by: str, now: datetime) -> Plan:
    """Freezes the account's open leases (there may be none), and lets a worker ask the vaults for its identities.

    Raises CannotContain for an account of this product's own, or one of a cluster without auth mounts.
    """
    raise NotImplementedError


def preview(plan: Plan) -> Preview:
    """What is known so far; ask again while `looked_at` is None."""
    raise NotImplementedError


def confirm(plan: Plan, *, by: str, reason: str, ticket: str = "", now: datetime) -> Action:
    """The action with its containment, its job and its revocations; a worker begins at once, or once it is approved.

    Raises AlreadyContained, PlanExpired, PlanUsed.
    """
    raise NotImplementedError


def again(containment: Containment, *, by: str, now: datetime) -> None:
    """What failed, or what came back, once more: looks for identities anew. Raises NotNow."""
    raise NotImplementedError


def undo(containment: Containment, *, by: str, reason: str, ticket: str = "", now: datetime) -> Action:
    """Enables what the containment disabled, nothing else. Raises NotNow."""
    raise NotImplementedError


def carry_out(containment_pk: int) -> None:
    """Goes on with it for a short turn. Safe to run again after a worker was lost."""
    raise NotImplementedError
