"""Revoking: what a person asked for, carried out by a worker and verified step by step.

Nothing counts as done because Vault answered 204, which it also does for a lease that it does not know.
"""

import logging
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial

from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from leases import clients, ending, lookups, pace, plans
from leases.errors import SourceError
from leases.models import Action, ActionKind, ActionStep, EndReason, Job, Lease, LeaseState, Plan, Policy, Revocation
from leases.models.actions import OPEN_REVOCATION_STATES, TRANSITIONS, JobState, Outcome, RevocationState
from leases.models.sessions import TiedBy
from leases.plans import FORCE_CONSEQUENCES, NothingToRevoke, PlanExpired, PlanUsed
from leases.queries import these
from leases.vault import LeaseTimes, RevocationFailed, VaultError, VaultLoginFailed, VaultSealed, VaultUnreachable

__all__ = ["FORCE_CONSEQUENCES", "NothingToRevoke", "PlanExpired", "PlanUsed"]

log = logging.getLogger(__name__)

CLAIM = timedelta(seconds=30)
# a vault that did not answer is left alone for so long
WAIT_SECONDS = 5.0
# the longest wait for a vault's pace; more than that is the next turn's
PACE_SECONDS = 2.0

VAULT_ANSWERED = "Vault answered"
LEASE_GONE = "lease gone"
USER_GONE = "database user gone"
AUDIT_SEEN = "audit line seen"
# of the action, not of one lease: what somebody else was ending already
LEFT = "left to others"

# of the vault, not of one lease: asked again until it answers
_OF_THE_VAULT = (VaultUnreachable, VaultSealed, VaultLoginFailed)


class AlreadyRequested(Exception):
    """Somebody else is ending all of these leases; `action` is theirs."""

    def __init__(self, action: Action) -> None:
        super().__init__(f"{action.by} is already revoking this lease")
        self.action = action


def request(*, leases: list[Lease], by: str, reason: str, now: datetime) -> Action:
    """Plans and confirms at once. Raises as plans.plan() and confirm() do."""
    keys = [lease.pk for lease in leases]
    scope = {"kind": "leases", "value": ",".join(map(str, sorted(keys)))}
    with transaction.atomic():
        plan = plans.plan(kind=ActionKind.REVOKE, scope=scope, leases=keys, by=by, now=now)
        return confirm(plan, by=by, reason=reason, now=now)


def confirm(plan: Plan, *, by: str, reason: str, ticket: str = "", now: datetime) -> Action:
    """Makes an action of a plan, with a job that ends its leases, or that waits for somebody else's word where policy says so.

    Leases that another action is ending are left to it, and the action says so. Raises NothingToRevoke, AlreadyRequested with
    the action of whoever was first if nothing is left, PlanExpired, PlanUsed.
    """
    with transaction.atomic():
        one_at_a_time()
        plan = plans.take(plan, now=now)
        free, taken = divide(plan.leases)
        if not free:
            raise AlreadyRequested(taken[0].action) if taken else NothingToRevoke()
        most = Policy.current().approval_above
        needs_approval = 0 < most < len(free)
        if needs_approval and (waiting := _waiting_for_the_same(plan)):
            raise AlreadyRequested(waiting.action)
        action = Action.objects.create(
            kind=plan.kind,
            by=by,
            reason=reason,
            ticket=ticket,
            scope=plan.scope,
            at=now,
            targets=[{"vault": lease.vault.name, "lease_id": lease.lease_id} for lease in free],
        )
        Plan.objects.filter(pk=plan.pk).update(action=action)
        open_job(action, leases=free, taken=taken, needs_approval=needs_approval, now=now)
        return action


def one_at_a_time() -> None:
    """Until the transaction's end nobody else confirms, approves or retries: what is free stays so."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('confirm'), 0)")


def divide(keys: Collection[int]) -> tuple[list[Lease], list[Revocation]]:
    """Those of these leases (primary keys) that can be ended now, and the open revocations of the others. Inside one_at_a_time()."""
    taken = list(
        Revocation.objects.filter(lease__in=these(keys), state__in=OPEN_REVOCATION_STATES)
        .select_related("action", "lease")
        .defer("action__targets")
        .order_by("id")
    )
    free = (
        Lease.objects.filter(pk__in=these(keys))
        .exclude(state=LeaseState.ENDED)
        .exclude(pk__in=these([row.lease_id for row in taken]))
        .select_related("vault")
        # of thousands nothing else is needed
        .only("lease_id", "vault__name")
        .order_by("id")
    )
    return list(free), taken


def _waiting_for_the_same(plan: Plan) -> Job | None:
    return (
        Job.objects.filter(state=JobState.WAITING, action__scope=plan.scope, action__kind=plan.kind)
        .select_related("action")
        .order_by("id")
        .first()
    )


def open_job(
    action: Action, *, leases: list[Lease], taken: list[Revocation], needs_approval: bool = False, now: datetime
) -> Job:
    """The job of an action, in its transaction. One that waits for approval has no items: nothing is touched before."""
    job = Job.objects.create(
        action=action,
        state=JobState.WAITING if needs_approval else JobState.RUNNING,
        needs_approval=needs_approval,
        updated_at=now,
    )
    if not needs_approval:
        fill(job, leases=leases, taken=taken, now=now)
    return job


def fill(job: Job, *, leases: list[Lease], taken: list[Revocation], now: datetime) -> None:
    """Gives a running job its items, and queues it after commit. Says which leases are left to whom."""
    Revocation.objects.bulk_create(
        [Revocation(action_id=job.action_id, lease=lease, requested_at=now, updated_at=now) for lease in leases],
        batch_size=1000,
    )
    for action in {row.action_id: row.action for row in taken}.values():
        names = [row.lease.lease_id for row in taken if row.action_id == action.pk]
        say(
            job,
            LEFT,
            f"{len(names):,} of these leases {'is' if len(names) == 1 else 'are'} left to {action.by}, who was first "
            f"(action {action.pk}): {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            now=now,
        )
    queue(job, now=now)


def queue(job: Job, *, now: datetime) -> None:
    """Its first turns, after commit. Should the broker be away or lose the message, the sweep finds the job."""
    from leases.tasks import start_job

    Job.objects.filter(pk=job.pk).update(claimed_until=None, updated_at=now)
    # robust: what was confirmed stands, whatever becomes of the message
    transaction.on_commit(partial(start_job, job.pk), robust=True)


def say(job: Job, name: str, detail: str, *, now: datetime) -> None:
    """A step of the whole action, in its history."""
    ActionStep.objects.create(action_id=job.action_id, name=name, outcome=Outcome.OK, detail=detail[:1000], at=now)


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
    return (
        Revocation.objects.select_related("lease__vault", "lease__database", "action")
        # of thousands of leases, to be read again for each of them
        .defer("action__targets")
        .get(pk=revocation_id)
    )


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


class Did(Enum):
    """What became of one turn at a revocation."""

    WORKED = auto()
    # it is at its end, or another worker has it
    NOTHING = auto()
    # its vault cannot be asked now; it is taken up again
    WAITS = auto()


def carry_out(revocation_id: int) -> Did:
    """Ends one lease and verifies its end.

    Safe to run again after a worker was lost: what the lost one may have done is looked for before Vault is told again.
    """
    revocation = claim(revocation_id, now=timezone.now())
    if revocation is None:
        return Did.NOTHING
    try:
        if revocation.state in {RevocationState.REQUESTED, RevocationState.REVOKING}:
            wait = pace.reserve(revocation.lease.vault, most=PACE_SECONDS)
            if wait is None:
                release(revocation, seconds=WAIT_SECONDS, now=timezone.now())
                return Did.WAITS
            time.sleep(wait)
        _carry_on(revocation)
    except _OF_THE_VAULT as error:
        # nothing was decided, so the sweep goes on with it
        log.warning("revocation %s waits: %s", revocation.pk, error.cause)
        _note_once(revocation, _step(revocation), error)
        release(revocation, seconds=WAIT_SECONDS, now=timezone.now())
        pace.hold(revocation.lease.vault, seconds=WAIT_SECONDS)
        return Did.WAITS
    except SourceError as error:
        fail(revocation, _step(revocation), str(error), now=timezone.now())
    return Did.WORKED


def _carry_on(revocation: Revocation) -> None:
    """From the state that it is in to its end."""
    again = revocation.state == RevocationState.REVOKING
    if revocation.state == RevocationState.REQUESTED:
        _end_if_gone(revocation)
        if not begin(revocation):
            return  # its job was stopped this moment
    elif revocation.state == RevocationState.REVOKING:
        _look_before_repeating(revocation)
    if revocation.state == RevocationState.REVOKING:
        _see_sessions(revocation, again=again)
        if not _revoke(revocation):
            return
    if revocation.state == RevocationState.VERIFYING:
        _verify(revocation)


def begin(revocation: Revocation) -> bool:
    """Its turn has come; False if its job was stopped before."""
    now = timezone.now()
    with transaction.atomic():
        begun = move(revocation, RevocationState.REVOKING, now=now)
        if begun:
            mark(revocation.lease, LeaseState.LIVE, LeaseState.REVOKING, now=now)
    return begun


def _step(revocation: Revocation) -> str:
    """The step that it is at, for the receipt."""
    return LEASE_GONE if revocation.state == RevocationState.VERIFYING else VAULT_ANSWERED


def _end_if_gone(revocation: Revocation) -> None:
    """A lease that ended before Vault was told was not ended here: it keeps the reason that there is evidence for."""
    lease = revocation.lease
    if _look_up(lease) is None:
        lookups.end_gone(lease, now=timezone.now())


def _look_up(lease: Lease) -> LeaseTimes | None:
    """As Vault knows it now. Asked for in the lease's own namespace: what is denied is then named as the policy has to name it."""
    return clients.observer(lease.vault).lookup_lease(lease.lease_id, namespace=lease.vault_namespace)


def _look_before_repeating(revocation: Revocation) -> None:
    """Vault may have been told, by a worker that was lost or in a request without an answer. Only a lease that is still there is
    told of again."""
    lease = revocation.lease
    if _look_up(lease) is not None:
        return
    now = timezone.now()
    with transaction.atomic():
        note(
            revocation,
            VAULT_ANSWERED,
            Outcome.UNVERIFIED,
            "Vault's answer was not received, or its worker was lost before noting it. The lease is gone, so Vault was not told "
            "again.",
            now=now,
        )
        move(revocation, RevocationState.VERIFYING, now=now)


def _see_sessions(revocation: Revocation, *, again: bool) -> None:
    """Freezes what the lease's user has open. A database that does not tell holds no revocation up.

    `again`: a worker may have done so before. While Vault is waited for, what is still the same is not noted again.
    """
    lease, frozen = revocation.lease, revocation.sessions
    try:
        seen = ending.snapshot(lease, before=ending.thaw(frozen))
        frozen, outcome = ending.freeze(seen), Outcome.OK
        detail = ending.tell(lease.database, seen) if lease.database else ""
    except SourceError as error:
        outcome, detail = Outcome.UNVERIFIED, str(error)
    now = timezone.now()
    with transaction.atomic():
        Revocation.objects.filter(pk=revocation.pk).update(sessions=frozen, updated_at=now)
        if not again or _last(revocation, ending.SESSIONS_SEEN) != (outcome, detail[:1000]):
            note(revocation, ending.SESSIONS_SEEN, outcome, detail, now=now)
    revocation.sessions = frozen


def _last(revocation: Revocation, name: str) -> tuple[str, str] | None:
    """Outcome and words of what was noted last for a step."""
    steps = ActionStep.objects.filter(action=revocation.action_id, lease_id=revocation.lease.lease_id, name=name)
    return steps.order_by("-at", "-id").values_list("outcome", "detail").first()


def fail(revocation: Revocation, name: str, detail: str, *, now: datetime) -> None:
    """Ends it as failed at this step; its lease is what it was before."""
    with transaction.atomic():
        note(revocation, name, Outcome.FAILED, detail, now=now)
        if move(revocation, RevocationState.FAILED, now=now):
            mark(revocation.lease, LeaseState.REVOKING, LeaseState.LIVE, now=now)


def _note_once(revocation: Revocation, name: str, error: VaultError) -> None:
    detail = f"{error.cause}. {error.fix} It is tried again until Vault answers."
    if not ActionStep.objects.filter(action=revocation.action_id, name=name, detail=detail).exists():
        note(revocation, name, Outcome.UNVERIFIED, detail, now=timezone.now())


def _revoke(revocation: Revocation) -> bool:
    """Tells Vault; False if Vault refused, which ends the revocation as failed."""
    lease, forced = revocation.lease, is_forced(revocation)
    client = clients.responder(lease.vault)
    try:
        if forced:
            client.force_revoke_lease(lease.lease_id, namespace=lease.vault_namespace)
        else:
            client.revoke_lease(lease.lease_id, namespace=lease.vault_namespace)
    except RevocationFailed as error:
        fail(revocation, VAULT_ANSWERED, str(error), now=timezone.now())
        return False
    now = timezone.now()
    said = "the forced revocation" if forced else "the revocation"
    with transaction.atomic():
        note(revocation, VAULT_ANSWERED, Outcome.OK, f"Vault answered {said} without an error", now=now)
        return move(revocation, RevocationState.VERIFYING, now=now)


def is_forced(revocation: Revocation) -> bool:
    return revocation.action.kind == ActionKind.FORCE


def _verify(revocation: Revocation) -> None:
    """Asks Vault for the lease and the database for the user; only what both show gone is verified."""
    lease = revocation.lease
    still_there = _look_up(lease)
    now = timezone.now()
    if still_there is not None:
        said = still_there.revoke_error or "Vault still knows the lease. Revoke it again, or look at Vault's own log."
        fail(revocation, LEASE_GONE, said, now=now)
        return
    with transaction.atomic():
        note(revocation, LEASE_GONE, Outcome.OK, "a lookup finds no such lease", now=now)
        lookups.end(
            lease,
            at=now,
            reason=EndReason.FORCED if is_forced(revocation) else EndReason.REVOKED_HERE,
            evidence=f"action {revocation.action_id}; a lookup finds no such lease",
            now=now,
        )
    outcome, detail = user_gone(lease)
    forced = is_forced(revocation)
    if forced and outcome == Outcome.FAILED:
        detail = f"{detail} {FORCE_CONSEQUENCES[0]}"
    note(revocation, USER_GONE, outcome, detail, now=timezone.now())
    ended = ending.finish(lease, revocation.sessions)
    now = timezone.now()
    with transaction.atomic():
        note(revocation, ending.SESSIONS_ENDED, ended.outcome, ended.detail, now=now)
        move(revocation, _verdict(outcome, ended.outcome, forced=forced), now=now)


def _verdict(user: Outcome, sessions: Outcome, *, forced: bool) -> RevocationState:
    """Green only where both were seen gone. A session that lives on is no reason to revoke again: the lease and its user are gone.

    Forcing leaves the user behind: that is looked at again once somebody has dropped it.
    """
    if user == Outcome.FAILED and not forced:
        return RevocationState.FAILED
    both = user == sessions == Outcome.OK
    return RevocationState.VERIFIED if both else RevocationState.UNVERIFIED


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
        with ending.unless_away(lease.database, "monitor"):
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
