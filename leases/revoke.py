"""Revoking: what a person asked for, carried out by a worker and verified step by step.

Nothing counts as done because Vault answered 204, which it also does for a lease that it does not know.
"""

import logging
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from leases import clients, lookups
from leases.errors import SourceError
from leases.models import Action, ActionStep, EndReason, Lease, LeaseState, Revocation
from leases.models.actions import OPEN_REVOCATION_STATES, TRANSITIONS, Outcome, RevocationState
from leases.models.sessions import TiedBy
from leases.vault import RevocationFailed, VaultError

log = logging.getLogger(__name__)

CLAIM = timedelta(seconds=30)

VAULT_ANSWERED = "Vault answered"
LEASE_GONE = "lease gone"
USER_GONE = "database user gone"
AUDIT_SEEN = "audit line seen"


class AlreadyRequested(Exception):
    """Somebody else is revoking one of these leases; `action` is theirs."""

    def __init__(self, action: Action) -> None:
        super().__init__(f"{action.by} is already revoking this lease")
        self.action = action


class NothingToRevoke(Exception):
    """No lease of the plan is live any more."""


def request(*, leases: list[Lease], by: str, reason: str, now: datetime) -> Action:
    """Freezes the plan as an action with one revocation per lease, and queues them after commit.

    Raises NothingToRevoke, or AlreadyRequested with the action of whoever was first.
    """
    from leases.tasks import carry_out_revocation

    ids = [lease.pk for lease in leases]
    try:
        with transaction.atomic():
            live = list(
                Lease.objects.filter(pk__in=ids).exclude(state=LeaseState.ENDED).select_related("vault").order_by("id")
            )
            if not live:
                raise NothingToRevoke
            action = Action.objects.create(
                kind="revoke",
                by=by,
                reason=reason,
                at=now,
                targets=[{"vault": lease.vault.name, "lease_id": lease.lease_id} for lease in live],
            )
            for lease in live:
                revocation = Revocation.objects.create(
                    action=action, lease=lease, requested_at=now, updated_at=now, claimed_until=now
                )
                mark(lease, LeaseState.LIVE, LeaseState.REVOKING, now=now)
                carry_out_revocation.delay_on_commit(revocation.pk)  # type: ignore[attr-defined]  # Celery's Django task has it
            return action
    except IntegrityError:
        # one_open_revocation_per_lease: two people pressed at once, and the other one was first
        other = (
            Revocation.objects.filter(lease__in=ids, state__in=OPEN_REVOCATION_STATES).select_related("action").first()
        )
        if other is None:
            raise
        raise AlreadyRequested(other.action) from None


def move(revocation: Revocation, to: RevocationState, *, now: datetime) -> bool:
    """Compare-and-set along TRANSITIONS; False if somebody else has moved it meanwhile."""
    if to not in TRANSITIONS[revocation.state]:
        raise ValueError(f"a revocation does not go from {revocation.state} to {to}")
    moved = Revocation.objects.filter(pk=revocation.pk, state=revocation.state).update(
        state=to, updated_at=now, claimed_until=now + CLAIM
    )
    if moved:
        revocation.state = to
    return bool(moved)


def note(revocation: Revocation, name: str, outcome: Outcome, detail: str, *, now: datetime) -> None:
    ActionStep.objects.create(
        action_id=revocation.action_id,
        lease_id=revocation.lease.lease_id,
        name=name,
        outcome=outcome,
        detail=detail[:1000],
        at=now,
    )


def mark(lease: Lease, before: LeaseState, after: LeaseState, *, now: datetime) -> None:
    """Compare-and-set of the lease's own state; a lease that is irrevocable or ended stays so."""
    Lease.objects.filter(pk=lease.pk, state=before).update(state=after, updated_at=now)


def claim(revocation_id: int, *, now: datetime) -> Revocation | None:
    """Takes an open revocation that no other worker holds; None if there is nothing to do."""
    free = Q(claimed_until=None) | Q(claimed_until__lte=now)
    taken = Revocation.objects.filter(free, pk=revocation_id, state__in=OPEN_REVOCATION_STATES).update(
        claimed_until=now + CLAIM
    )
    if not taken:
        return None
    return Revocation.objects.select_related("lease__vault", "lease__database", "action").get(pk=revocation_id)


def stuck(*, now: datetime) -> list[int]:
    """Open revocations whose worker is gone."""
    return list(
        Revocation.objects.filter(state__in=OPEN_REVOCATION_STATES, claimed_until__lt=now - timedelta(seconds=2))
        .order_by("id")
        .values_list("id", flat=True)[:100]
    )


def release(revocation: Revocation, *, seconds: float, now: datetime) -> None:
    """Vault cannot be asked now: try again in a while. The revocation stays open and says so."""
    Revocation.objects.filter(pk=revocation.pk, state__in=OPEN_REVOCATION_STATES).update(
        claimed_until=now + timedelta(seconds=seconds), updated_at=now
    )


def carry_out(revocation_id: int) -> None:
    """Revokes one lease and verifies its end. Safe to run again after a worker was lost: revoking twice is harmless."""
    revocation = claim(revocation_id, now=timezone.now())
    if revocation is None:
        return
    try:
        if revocation.state == RevocationState.REQUESTED:
            _end_if_gone(revocation)
            move(revocation, RevocationState.REVOKING, now=timezone.now())
        if revocation.state == RevocationState.REVOKING and not _revoke(revocation):
            return
        if revocation.state == RevocationState.VERIFYING:
            _verify(revocation)
    except VaultError as error:
        # unreachable or sealed: nothing was decided, so the sweep goes on with it
        log.warning("revocation %s waits: %s", revocation.pk, error.cause)
        _note_once(revocation, _step(revocation), error)
        release(revocation, seconds=5, now=timezone.now())
    except (clients.NotConfigured, clients.SecretUnavailable) as error:
        now = timezone.now()
        with transaction.atomic():
            note(revocation, _step(revocation), Outcome.FAILED, str(error), now=now)
            move(revocation, RevocationState.FAILED, now=now)
            mark(revocation.lease, LeaseState.REVOKING, LeaseState.LIVE, now=now)


def _step(revocation: Revocation) -> str:
    """The step that it is at, for the receipt."""
    return LEASE_GONE if revocation.state == RevocationState.VERIFYING else VAULT_ANSWERED


def _end_if_gone(revocation: Revocation) -> None:
    """A lease that ended before Vault was told was not ended here: it keeps the reason that there is evidence for."""
    lease = revocation.lease
    if clients.observer(lease.vault).lookup_lease(lease.lease_id) is None:
        lookups.end_gone(lease, now=timezone.now())


def _note_once(revocation: Revocation, name: str, error: VaultError) -> None:
    detail = f"{error.cause}. {error.fix} It is tried again until Vault answers."
    if not ActionStep.objects.filter(action=revocation.action_id, name=name, detail=detail).exists():
        note(revocation, name, Outcome.UNVERIFIED, detail, now=timezone.now())


def _revoke(revocation: Revocation) -> bool:
    """Tells Vault; False if Vault refused, which ends the revocation as failed."""
    lease = revocation.lease
    try:
        clients.responder(lease.vault).revoke_lease(lease.lease_id)
    except RevocationFailed as error:
        now = timezone.now()
        with transaction.atomic():
            note(revocation, VAULT_ANSWERED, Outcome.FAILED, f"{error.cause}. {error.fix}", now=now)
            move(revocation, RevocationState.FAILED, now=now)
            mark(lease, LeaseState.REVOKING, LeaseState.LIVE, now=now)
        return False
    now = timezone.now()
    with transaction.atomic():
        note(revocation, VAULT_ANSWERED, Outcome.OK, "Vault answered the revocation without an error", now=now)
        return move(revocation, RevocationState.VERIFYING, now=now)


def _verify(revocation: Revocation) -> None:
    """Asks Vault for the lease and the database for the user; only what both show gone is verified."""
    lease = revocation.lease
    still_there = clients.observer(lease.vault).lookup_lease(lease.lease_id)
    now = timezone.now()
    if still_there is not None:
        with transaction.atomic():
            note(
                revocation,
                LEASE_GONE,
                Outcome.FAILED,
                still_there.revoke_error or "Vault still knows the lease. Revoke it again, or look at Vault's own log.",
                now=now,
            )
            move(revocation, RevocationState.FAILED, now=now)
            mark(lease, LeaseState.REVOKING, LeaseState.LIVE, now=now)
        return
    with transaction.atomic():
        note(revocation, LEASE_GONE, Outcome.OK, "a lookup finds no such lease", now=now)
        lookups.end(
            lease,
            at=now,
            reason=EndReason.REVOKED_HERE,
            evidence=f"action {revocation.action_id}; a lookup finds no such lease",
            now=now,
        )
    outcome, detail = user_gone(lease)
    now = timezone.now()
    states = {
        Outcome.OK: RevocationState.VERIFIED,
        Outcome.UNVERIFIED: RevocationState.UNVERIFIED,
        Outcome.FAILED: RevocationState.FAILED,
    }
    with transaction.atomic():
        note(revocation, USER_GONE, outcome, detail, now=now)
        move(revocation, states[outcome], now=now)


def user_gone(lease: Lease) -> tuple[Outcome, str]:
    """Whether the database no longer knows the lease's user, and the words for the receipt."""
    if not lease.database_user:
        return (
            Outcome.UNVERIFIED,
            "Which database user belongs to this lease is not known, so it was not checked. "
            "Give the database a monitoring account (docs/install.md), or list its roles yourself.",
        )
    if lease.database_user_by == TiedBy.TIME_AND_NAME:
        return (
            Outcome.UNVERIFIED,
            f"That {lease.database_user} is this lease's user is a guess by time and name, so it was not checked. "
            "Look for it among the database's roles yourself.",
        )
    if lease.database is None:
        return Outcome.UNVERIFIED, f"The database of {lease.database_user} is not known, so it was not checked."
    name = lease.database_user
    try:
        exists = clients.ask_monitor(lease.database, lambda kind, dsn: kind.user_exists(dsn, name))
    except SourceError as error:
        return Outcome.UNVERIFIED, f"{error.cause}. {error.fix}"
    if exists:
        return (
            Outcome.FAILED,
            f"{lease.database_user} still exists in {lease.database.name}. Drop it there by hand, and look at the "
            "role's revocation statements.",
        )
    return Outcome.OK, f"{lease.database_user} no longer exists in {lease.database.name}"
