"""Containing a service account: its identities are disabled in Vault, its leases ended, its tokens revoked, and each is verified; or undone.

Only an `actions` worker talks to Vault. Pages read what that one wrote down.
"""

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import msgspec
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from leases import clients, ending, identities, jobs, plans, revoke
from leases.errors import SourceError
from leases.identities import OWN, Account, Alias, Found, Identity
from leases.jobs import NotNow
from leases.models import (
    Action,
    ActionKind,
    ActionStep,
    AuthMount,
    Cluster,
    ContainedEntity,
    Containment,
    Job,
    Lease,
    LeaseState,
    Login,
    Plan,
    Pod,
    Policy,
    Revocation,
    Vault,
)
from leases.models.actions import (
    CONTAINMENT_TRANSITIONS,
    OPEN_CONTAINMENT_STATES,
    OPEN_REVOCATION_STATES,
    ContainmentStage,
    ContainmentState,
    JobState,
    Outcome,
    RevocationState,
)
from leases.plans import PlanExpired, PlanUsed
from leases.vault import VaultClient, VaultLoginFailed, VaultSealed, VaultUnreachable

__all__ = [
    "Account",
    "Alias",
    "AlreadyContained",
    "CannotContain",
    "Identity",
    "NotNow",
    "PlanExpired",
    "PlanUsed",
    "Preview",
    "again",
    "carry_out",
    "confirm",
    "look_at_identities",
    "not_covered",
    "plan",
    "preview",
    "stuck",
    "undo",
]

log = logging.getLogger(__name__)

# a worker that holds a containment says so for as long; a turn is much shorter
CLAIM = timedelta(seconds=30)
TURN_SECONDS = 2.0
# a vault that does not answer, and leases that are not at their end yet, are asked for again after
WAIT_SECONDS, SOON_SECONDS = 5.0, 0.5
# A vault that is away for longer holds up nothing in the others any more
PATIENCE = timedelta(seconds=30)
# what was read just before its identity was disabled is in the ledger by then
CATCH_UP = timedelta(seconds=2)
# how often leases may turn up after all others were ended; then something that is not contained makes them
MOST_ROUNDS = 3
TOKENS_AT_ONCE = 200

# steps of the action as a whole, in this order
IDENTITY_DISABLED = "identity disabled"
LEASES_ADDED = "leases added"
TOKENS_REVOKED = "tokens revoked"
STILL_DISABLED = "identities still disabled"
NO_LEASE_LIVE = "no lease live"
CONTAINED_AGAIN = "contained again"
# of the action that undoes it
IDENTITY_ENABLED = "identity enabled again"

TRIED_AGAIN = "It is tried again until Vault answers."

# of the vault, not of what is asked: it is asked again until it answers
_OF_THE_VAULT = (VaultUnreachable, VaultSealed, VaultLoginFailed)

NOT_COVERED = (
    "The pods go on running, and what they have read stays with them: other secrets of Vault, passwords of static roles, and whatever "
    "they copied elsewhere. Rotate those.",
    "The service account stays good for Kubernetes itself, and for whatever else trusts its tokens. Delete its pods or its role bindings "
    "there.",
    "Other ways into Vault stay open: auth mounts that no cluster of leasehold.toml names, other service accounts that the same pods can "
    "use, and tokens that somebody handed them.",
    "A service account that is deleted and made anew is somebody else to mounts that know it by uid. It is noticed when it logs in; "
    "containing again disables that one, too.",
)


class CannotContain(SourceError):
    """This service account is not to be contained: cause and fix say why, and what to do instead."""


class AlreadyContained(Exception):
    """Somebody was first; `containment` is theirs, and `containment.action.by` is who."""

    def __init__(self, containment: Containment) -> None:
        super().__init__(
            f"{containment.action.by} has contained {containment.namespace}/{containment.service_account} already"
        )
        self.containment = containment


@dataclass(frozen=True, slots=True)
class Preview:
    """What containing would do, as far as it is known. `looked_at`: None while a worker still asks the vaults.

    `warnings`: whom else it hits. `without`: mounts of the cluster where nothing can be disabled, with the reason. `not_covered`:
    sentences. `problems`: what could not be asked, each with its fix. `tokens`: live ones by the audit log.
    """

    account: Account
    leases: int
    looked_at: datetime | None
    identities: tuple[Identity, ...]
    tokens: int
    warnings: tuple[str, ...]
    without: tuple[str, ...]
    not_covered: tuple[str, ...]
    problems: tuple[str, ...]


class Searched(msgspec.Struct):
    """How far the tokens of one namespace of a vault were looked through: `after` is the digest of the last accessor."""

    after: str = ""
    tokens: int = 0
    looked_at: int = 0
    revoked: int = 0
    left: int = 0
    done: bool = False


# -- what people ask for


def plan(*, cluster: str, namespace: str, service_account: str, by: str, now: datetime) -> Plan:
    """Freezes the account's open leases (there may be none), and lets a worker ask the vaults for its identities.

    Raises CannotContain for an account of this product's own or of a cluster that no auth mount belongs to, and AlreadyContained.
    """
    from leases.tasks import look_at_identities

    account = Account(cluster, namespace, service_account)
    mounts = identities.mounts_of(cluster)
    if not mounts:
        raise CannotContain(
            f"No auth mount of a vault that is watched belongs to cluster {cluster}, so nothing is known by which {account} could log in",
            "Name the cluster's auth mounts in leasehold.toml ([[clusters.auth_mounts]]) and run `manage.py configure`.",
        )
    if _logins(account, mounts).filter(own=True).exists():
        raise CannotContain(
            f"{account} is Leasehold's own: contained, it could neither look nor undo",
            "If it was taken over, revoke its tokens and change its roles in Vault by hand.",
        )
    if there := open_containment(account):
        raise AlreadyContained(there)
    made = plans.plan(
        kind=ActionKind.CONTAIN,
        scope={"kind": "service account", "value": f"{cluster}/{namespace}/{service_account}"},
        leases=list(open_leases(account).values_list("pk", flat=True)),
        by=by,
        now=now,
    )
    look_at_identities.delay_on_commit(str(made.pk))  # type: ignore[attr-defined]  # Celery's Django task has it
    return made


def look_at_identities(plan_pk: UUID | str, *, now: datetime) -> None:
    """Asks the vaults and writes down what they said beside the plan, for its preview. By a worker."""
    planned = Plan.objects.get(pk=plan_pk)
    found = identities.look(account_of(planned.scope), now=now)
    Plan.objects.filter(pk=planned.pk).update(found=msgspec.to_builtins(found), found_at=timezone.now())


def preview(plan: Plan) -> Preview:
    """What is known so far; ask again while `looked_at` is None."""
    account = account_of(plan.scope)
    found = _found(plan)
    return Preview(
        account=account,
        leases=len(plan.leases),
        looked_at=plan.found_at,
        identities=found.identities,
        tokens=sum(identity.tokens for identity in found.identities),
        warnings=(*_whom_it_hits(found), *_fetches(account)),
        without=found.without,
        not_covered=_not_covered(found),
        problems=found.problems,
    )


def not_covered(containment: Containment) -> tuple[str, ...]:
    """The same of a containment, as its plan knew it, with the mounts where there was nothing to disable."""
    found = _found(Plan.objects.filter(action=containment.action_id).only("found").first())
    return (*found.without, *_not_covered(found))


def confirm(plan: Plan, *, by: str, reason: str, ticket: str = "", now: datetime) -> Action:
    """The action with its containment and its job. A worker begins at once, or once another responder has approved.

    The job's items (revocations of the frozen leases) come once the identities are disabled. Raises AlreadyContained, PlanExpired,
    PlanUsed.
    """
    with transaction.atomic():
        revoke.one_at_a_time()
        plan = plans.take(plan, now=now)
        account = account_of(plan.scope)
        if there := open_containment(account):
            raise AlreadyContained(there)
        most = Policy.current().approval_above
        free, _ = revoke.divide(plan.leases)
        needs_approval = 0 < most < len(free)
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
        Job.objects.create(
            action=action,
            state=JobState.WAITING if needs_approval else JobState.RUNNING,
            needs_approval=needs_approval,
            updated_at=now,
        )
        made = Containment.objects.create(
            action=action,
            cluster=account.cluster,
            namespace=account.namespace,
            service_account=account.name,
            at=now,
            begun_at=now,
            updated_at=now,
            claimed_until=now,
        )
        _queue(made)
        return action


def again(containment: Containment, *, by: str, now: datetime) -> None:
    """What failed, or came back, once more: looks for identities anew, disables, ends and revokes what is there now. Raises NotNow."""
    with transaction.atomic():
        if not move(
            containment,
            ContainmentState.CONTAINING,
            now=now,
            stage=ContainmentStage.IDENTITIES,
            begun_at=now,
            tokens={},
            claimed_until=now,
        ):
            raise NotNow(f"This is {containment.state}: it cannot be contained again now.")
        say(containment.action_id, CONTAINED_AGAIN, Outcome.OK, f"by {by}", now=now)
        job = Job.objects.get(action=containment.action_id)
        try:
            jobs.retry(job, by=by, now=now)
        except NotNow:
            # stopped when nothing was left to be stopped: what is found from now on becomes its items
            if job.state == JobState.STOPPED:
                jobs.move(job, JobState.RUNNING, now=now, stopped_by="", stopped_at=None)
        _queue(containment)


def undo(containment: Containment, *, by: str, reason: str, ticket: str = "", now: datetime) -> Action:
    """Enables what the containment disabled, nothing else: revoked leases and tokens stay so. Raises NotNow."""
    with transaction.atomic():
        action = Action.objects.create(
            kind=ActionKind.UNDO, by=by, reason=reason, ticket=ticket, scope=containment.action.scope, at=now
        )
        if not move(containment, ContainmentState.LIFTING, now=now, undo=action, claimed_until=now):
            raise NotNow(f"This is {containment.state}: it cannot be undone now.")
        _queue(containment)
        return action


def _queue(containment: Containment) -> None:
    from leases.tasks import carry_out_containment

    # robust: what was confirmed stands, whatever becomes of the message; the sweep finds it
    transaction.on_commit(partial(carry_out_containment.delay, containment.pk), robust=True)


# -- reads


def account_of(scope: dict[str, str]) -> Account:
    """Of a plan's or an action's scope."""
    return Account(*scope["value"].split("/", 2))


def account(containment: Containment) -> Account:
    return Account(containment.cluster, containment.namespace, containment.service_account)


def open_containment(account: Account) -> Containment | None:
    return (
        Containment.objects.filter(
            cluster=account.cluster,
            namespace=account.namespace,
            service_account=account.name,
            state__in=OPEN_CONTAINMENT_STATES,
        )
        .select_related("action")
        .first()
    )


def open_leases(account: Account) -> QuerySet[Lease]:
    """What it holds, but for what this product's own logins read; in order of the ledger."""
    return (
        Lease.objects.filter(
            cluster=account.cluster, service_account_namespace=account.namespace, service_account=account.name
        )
        .exclude(state=LeaseState.ENDED)
        .exclude(login__own=True)
        .order_by("id")
    )


def stuck(*, now: datetime) -> list[int]:
    """Under way, and no worker is at it: it is gone, the broker lost the message, or a vault did not answer a while ago."""
    late = Q(claimed_until=None) | Q(claimed_until__lt=now - timedelta(seconds=1))
    return list(
        Containment.objects.filter(late, state__in=[ContainmentState.CONTAINING, ContainmentState.LIFTING])
        .exclude(action__job__state=JobState.WAITING)
        .order_by("id")
        .values_list("id", flat=True)[:100]
    )


def _logins(account: Account, mounts: dict[Vault, list[AuthMount]]) -> QuerySet[Login]:
    return Login.objects.filter(
        auth_mount__in=[mount.pk for rows in mounts.values() for mount in rows],
        service_account_namespace=account.namespace,
        service_account=account.name,
    )


# -- what a preview says


def _found(plan: Plan | None) -> Found:
    return msgspec.convert(plan.found, Found) if plan and plan.found else Found()


def _not_covered(found: Found) -> tuple[str, ...]:
    """What is so here first, then what is so everywhere."""
    return (
        *(_by_pod(mount) for mount in found.by_pod),
        *([_loose(found.loose)] if found.loose else []),
        *NOT_COVERED,
    )


def _whom_it_hits(found: Found) -> list[str]:
    return [
        f"The identity {one.name or one.entity_id} of vault {one.vault} is shared: {', '.join(one.shared_with)} would be shut out, too."
        if OWN not in one.shared_with
        else f"The identity {one.name or one.entity_id} of vault {one.vault} is Leasehold's own, too: it is left alone."
        for one in found.identities
        if one.shared_with
    ]


def _fetches(account: Account) -> list[str]:
    named = Cluster.objects.filter(name=account.cluster, fetchers__contains=[str(account)]).exists()
    pods = Pod.objects.filter(
        cluster__name=account.cluster, namespace=account.namespace, service_account=account.name, ended_at=None
    )
    if not named and not pods.filter(fetcher=True).exists():
        return []
    return [f"{account} fetches secrets for others: whoever gets them through it gets none while it is contained."]


def _by_pod(mount: str) -> str:
    return (
        f"{mount} knows pods instead of the service account: each new pod is somebody new there and can log in. It is noticed; "
        "containing again disables that one, too."
    )


def _loose(count: int) -> str:
    one = count == 1
    return (
        f"{count:,} token{' that its tokens made is an orphan' if one else 's that its tokens made are orphans'}: Vault knows "
        f"{'it' if one else 'them'} under no identity, so disabling does not stop {'it' if one else 'them'}. "
        "The leases are ended; what is read later is noticed. The log names the accessor's hash on the page of each login."
    )


# -- carrying it out


def carry_out(containment_pk: int) -> float | None:
    """Goes on with it for a short turn. Returns in how many seconds the next one is to follow; None if nothing is to follow by itself.

    Safe to run again after a worker was lost: each part is read from what is so in Vault before it is changed.
    """
    containment = claim(containment_pk, now=timezone.now())
    if containment is None:
        return None
    if containment.action.job.state == JobState.REFUSED and containment.state == ContainmentState.CONTAINING:
        move(containment, ContainmentState.REFUSED, now=timezone.now(), claimed_until=None)
        return None
    seconds = _lift(containment) if containment.state == ContainmentState.LIFTING else _contain(containment)
    now = timezone.now()
    Containment.objects.filter(pk=containment.pk).update(
        claimed_until=None if seconds is None else now + timedelta(seconds=seconds), updated_at=now
    )
    return seconds


def claim(containment_pk: int, *, now: datetime) -> Containment | None:
    """Takes one that is under way and that no other worker holds; None if there is nothing to do."""
    taken = (
        Containment.objects.filter(
            Q(claimed_until=None) | Q(claimed_until__lte=now),
            pk=containment_pk,
            state__in=[ContainmentState.CONTAINING, ContainmentState.LIFTING],
        )
        .exclude(action__job__state=JobState.WAITING)
        .update(claimed_until=now + CLAIM)
    )
    return Containment.objects.select_related("action__job", "undo").get(pk=containment_pk) if taken else None


def move(containment: Containment, to: ContainmentState, *, now: datetime, **fields: object) -> bool:
    """Compare-and-set along CONTAINMENT_TRANSITIONS; False if it is in no state, or no more, from which it may go there."""
    if to not in CONTAINMENT_TRANSITIONS[containment.state]:
        return False
    moved = Containment.objects.filter(pk=containment.pk, state=containment.state).update(
        state=to, updated_at=now, **fields
    )
    if moved:
        containment.state = to
        for name, value in fields.items():
            setattr(containment, name, value)
    return bool(moved)


def say(action: UUID, name: str, outcome: Outcome, detail: str, *, now: datetime) -> None:
    ActionStep.objects.create(action_id=action, name=name, outcome=outcome, detail=detail[:1000], at=now)


def _say_once(containment: Containment, name: str, outcome: Outcome, detail: str) -> None:
    """In this round of it."""
    action = _at_work(containment)
    said = ActionStep.objects.filter(action=action, name=name, detail=detail[:1000], at__gte=_begun(containment))
    if not said.exists():
        say(action.pk, name, outcome, detail, now=timezone.now())


def _at_work(containment: Containment) -> Action:
    undoes = containment.state == ContainmentState.LIFTING
    return containment.undo if undoes and containment.undo else containment.action


def _begun(containment: Containment) -> datetime:
    return containment.begun_at or containment.at


def _contain(containment: Containment) -> float | None:
    stages = {
        ContainmentStage.IDENTITIES: _disable,
        ContainmentStage.LEASES: _end_leases,
        ContainmentStage.TOKENS: _revoke_tokens,
        ContainmentStage.CHECK: _check,
    }
    end = time.monotonic() + TURN_SECONDS
    while containment.state == ContainmentState.CONTAINING:
        stage = ContainmentStage(containment.stage)
        try:
            seconds = stages[stage](containment)
        except _OF_THE_VAULT as error:
            log.warning("containment %s waits: %s", containment.pk, error.cause)
            _say_once(containment, _STEP[stage], Outcome.UNVERIFIED, f"{error} {TRIED_AGAIN}")
            return WAIT_SECONDS
        if seconds is not None:
            return seconds
        if containment.stage != stage and time.monotonic() >= end:
            return 0.0
    return None


def _go_on(containment: Containment, stage: ContainmentStage) -> None:
    containment.stage = stage
    now = timezone.now()
    Containment.objects.filter(pk=containment.pk).update(stage=stage, updated_at=now, claimed_until=now + CLAIM)


def _disable(containment: Containment) -> float | None:
    """Disables every identity that is found now and reads it back. A vault that does not answer holds the others up for PATIENCE
    at most, and then has failed."""
    away: list[tuple[Vault, SourceError]] = []
    for vault, mounts in identities.mounts_of(containment.cluster).items():
        try:
            found = identities.look_in(vault, mounts, account(containment), now=timezone.now())
            for one in found.identities:
                _disable_one(containment, vault, one)
        except _OF_THE_VAULT as error:
            away.append((vault, error))
            continue
        except SourceError as error:
            _say_once(containment, IDENTITY_DISABLED, Outcome.FAILED, f"Vault {vault.name}: {error}")
            continue
        for sentence in found.without:
            _say_once(containment, IDENTITY_DISABLED, Outcome.UNVERIFIED, sentence)
    if away and not (containment.entities.exists() and _has_waited(containment)):
        raise away[-1][1]
    for vault, silence in away:
        why = f"Vault {vault.name}: {silence} Nothing is disabled there, and it can log in. Contain again when it answers."
        _say_once(containment, IDENTITY_DISABLED, Outcome.FAILED, why)
    now = timezone.now()
    Containment.objects.filter(pk=containment.pk).update(disabled_at=now)
    containment.disabled_at = now
    if not containment.entities.exists():
        _say_once(
            containment,
            IDENTITY_DISABLED,
            Outcome.FAILED,
            f"No vault knows an identity of {account(containment)}, so nothing was disabled and it can log in. Take it out of the roles "
            "that let it in.",
        )
    _go_on(containment, ContainmentStage.LEASES)
    return None


def _has_waited(containment: Containment) -> bool:
    """Whether a vault has been away for longer than PATIENCE since this round of it began."""
    said = ActionStep.objects.filter(
        action=containment.action_id,
        name=IDENTITY_DISABLED,
        at__gte=_begun(containment),
        at__lte=timezone.now() - PATIENCE,
        detail__endswith=TRIED_AGAIN,
    )
    return said.exists()


def _disable_one(containment: Containment, vault: Vault, one: Identity) -> None:
    name = f"{one.name or one.entity_id} of vault {one.vault}"
    if OWN in one.shared_with:
        _say_once(containment, IDENTITY_DISABLED, Outcome.FAILED, f"{name} is Leasehold's own, too, and is left alone.")
        return
    if one.shared_with and one.entity_id not in _shown(containment):
        _say_once(
            containment,
            IDENTITY_DISABLED,
            Outcome.FAILED,
            f"{name} is shared with {', '.join(one.shared_with)}, which the plan did not show. It is left alone: undo, and plan again.",
        )
        return
    # the row first: who is lost after Vault was told still knows what to take back
    row, _ = ContainedEntity.objects.get_or_create(
        containment=containment,
        vault=vault,
        entity_id=one.entity_id,
        defaults={"vault_namespace": one.vault_namespace, "was_disabled": one.disabled},
    )
    client = clients.responder(vault)
    if not one.disabled:
        client.disable_entity(one.entity_id, True, namespace=one.vault_namespace)
    back = client.entity(one.entity_id, namespace=one.vault_namespace)
    now = timezone.now()
    is_disabled = back is not None and back.disabled
    ContainedEntity.objects.filter(pk=row.pk).update(
        name=one.name,
        aliases=[{"mount": alias.mount, "name": alias.name} for alias in one.aliases],
        disabled_at=now if is_disabled else None,
        restored_at=None,
    )
    ways = ", ".join(f"{alias.mount} as {alias.name}" for alias in one.aliases) or "no alias"
    if is_disabled:
        before = " It was disabled before." if row.was_disabled else ""
        _say_once(
            containment,
            IDENTITY_DISABLED,
            Outcome.OK,
            f"{name} reads back as disabled: nobody logs in by {ways}, and its tokens are refused.{before}",
        )
    else:
        _say_once(
            containment,
            IDENTITY_DISABLED,
            Outcome.FAILED,
            f"{name} does not read back as disabled. Look at it: bao read identity/entity/id/{one.entity_id}",
        )


def _shown(containment: Containment) -> set[str]:
    found = _found(Plan.objects.filter(action=containment.action_id).only("found").first())
    return {one.entity_id for one in found.identities}


def _end_leases(containment: Containment) -> float | None:
    """Gives the job its items, and more of them as leases turn up that were read before the identity was disabled; waits for it."""
    job = Job.objects.get(action=containment.action_id)
    _fill(containment, job)
    job.refresh_from_db()
    if job.state == JobState.STOPPED:
        _give_up(
            containment,
            NO_LEASE_LIVE,
            f"{job.stopped_by} stopped it: its identities stay disabled, and what is left of its leases and tokens lives. Contain again, "
            "or undo.",
        )
        return None
    if job.state == JobState.RUNNING or _others_at_it(containment):
        return SOON_SECONDS
    if (early := _disabled_at(containment) + CATCH_UP - timezone.now()) > timedelta(0):
        return early.total_seconds()
    if _without_item(containment) and _rounds(containment) < MOST_ROUNDS:
        return 0.0
    _go_on(containment, ContainmentStage.TOKENS)
    return None


def _disabled_at(containment: Containment) -> datetime:
    return containment.disabled_at or containment.at


def _without_item(containment: Containment) -> list[int]:
    """Its open leases that are no item of this, nor anybody else's now."""
    return list(
        open_leases(account(containment))
        .exclude(revocations__action=containment.action_id)
        .exclude(revocations__state__in=OPEN_REVOCATION_STATES)
        .values_list("pk", flat=True)
    )


def _others_at_it(containment: Containment) -> bool:
    return (
        Revocation.objects.filter(
            lease__in=open_leases(account(containment)).values("pk"), state__in=OPEN_REVOCATION_STATES
        )
        .exclude(action=containment.action_id)
        .exists()
    )


def _rounds(containment: Containment) -> int:
    return ActionStep.objects.filter(
        action=containment.action_id, name=LEASES_ADDED, at__gte=_begun(containment)
    ).count()


def _fill(containment: Containment, job: Job) -> None:
    with transaction.atomic():
        revoke.one_at_a_time()
        job = Job.objects.select_for_update().get(pk=job.pk)
        if job.state not in {JobState.RUNNING, JobState.DONE}:
            return
        planned = Plan.objects.filter(action=containment.action_id).first()
        frozen = set(planned.leases if planned else [])
        wanted = _without_item(containment)
        later = [key for key in wanted if key not in frozen]
        if not wanted or (later and _rounds(containment) >= MOST_ROUNDS):
            return
        free, taken = revoke.divide(wanted)
        now = timezone.now()
        if added := [lease.lease_id for lease in free if lease.pk not in frozen]:
            _say_once(
                containment,
                LEASES_ADDED,
                Outcome.OK,
                f"{len(added):,} lease{' was' if len(added) == 1 else 's were'} read after the plan, or turned up later: "
                f"{', '.join(added[:5])}{' …' if len(added) > 5 else ''}",
            )
        if job.state == JobState.DONE and free:
            jobs.move(job, JobState.RUNNING, now=now)
        revoke.fill(job, leases=free, taken=taken, now=now)


def _revoke_tokens(containment: Containment) -> float | None:
    """Looks each accessor of the vault up, in batches, and revokes those of its identities. So long as Vault bears it, in short turns."""
    end = time.monotonic() + TURN_SECONDS
    places: dict[tuple[Vault, str], set[str]] = {}
    for row in containment.entities.exclude(disabled_at=None).select_related("vault"):
        places.setdefault((row.vault, row.vault_namespace), set()).add(row.entity_id)
    for (vault, namespace), ids in places.items():
        key = f"{vault.name}/{namespace}"
        searched = msgspec.convert(containment.tokens.get(key, {}), Searched)
        if searched.done:
            continue
        try:
            _search(containment, vault, namespace, ids, key, searched, end=end)
        except _OF_THE_VAULT:
            raise
        except SourceError as error:
            say(
                containment.action_id,
                TOKENS_REVOKED,
                Outcome.FAILED,
                f"{error} Until then its tokens are refused, but come to life again when this is undone.",
                now=timezone.now(),
            )
            searched.done = True
            _keep(containment, key, searched)
            continue
        if not searched.done:
            return 0.0
        left = f", {searched.left:,} of which could not be ended" if searched.left else ""
        say(
            containment.action_id,
            TOKENS_REVOKED,
            Outcome.FAILED if searched.left else Outcome.OK,
            f"{searched.revoked + searched.left:,} of {searched.looked_at:,} tokens in vault {vault.name}"
            f"{f', namespace {namespace},' if namespace else ''} were its own, and are revoked{left}",
            now=timezone.now(),
        )
    _go_on(containment, ContainmentStage.CHECK)
    return None


def _search(
    containment: Containment, vault: Vault, namespace: str, ids: set[str], key: str, searched: Searched, *, end: float
) -> None:
    client = clients.responder(vault)
    # nothing of an accessor is stored but its digest: where to go on
    digests = {hashlib.sha256(name.encode()).hexdigest(): name for name in client.token_accessors(namespace=namespace)}
    rest = sorted(digest for digest in digests if digest > searched.after)
    searched.tokens = len(digests)
    for start in range(0, len(rest), TOKENS_AT_ONCE):
        began = time.monotonic()
        batch = rest[start : start + TOKENS_AT_ONCE]
        for facts in client.lookup_tokens([digests[digest] for digest in batch], namespace=namespace):
            if facts is not None and facts.entity_id in ids:
                gone = _revoke_token(client, facts.accessor, namespace)
                searched.revoked, searched.left = searched.revoked + gone, searched.left + (not gone)
        searched.after, searched.looked_at = batch[-1], searched.looked_at + len(batch)
        _keep(containment, key, searched)
        # as lookups of leases do
        time.sleep(max(0.0, began + len(batch) / vault.lookups_per_second - time.monotonic()))
        if time.monotonic() >= end and start + TOKENS_AT_ONCE < len(rest):
            return
    searched.done = True
    _keep(containment, key, searched)


def _revoke_token(client: VaultClient, accessor: str, namespace: str) -> bool:
    client.revoke_token(accessor, namespace=namespace)
    return client.lookup_tokens([accessor], namespace=namespace)[0] is None


def _keep(containment: Containment, key: str, searched: Searched) -> None:
    containment.tokens = {**containment.tokens, key: msgspec.to_builtins(searched)}
    Containment.objects.filter(pk=containment.pk).update(
        tokens=containment.tokens, claimed_until=timezone.now() + CLAIM, updated_at=timezone.now()
    )


def _check(containment: Containment) -> float | None:
    """Only what is so now counts: every identity disabled, no lease in the ledger live, no step of this round failed."""
    if _without_item(containment) and _rounds(containment) < MOST_ROUNDS:
        _go_on(containment, ContainmentStage.LEASES)
        return None
    if _others_at_it(containment):
        return SOON_SECONDS
    enabled = []
    rows = list(containment.entities.select_related("vault").order_by("id"))
    for row in rows:
        entity = clients.responder(row.vault).entity(row.entity_id, namespace=row.vault_namespace)
        if entity is None or not entity.disabled:
            enabled.append(f"{row.name or row.entity_id} of vault {row.vault.name}")
    now = timezone.now()
    if enabled:
        what = f"Not disabled, or no longer there: {', '.join(enabled)}. Somebody else changed it: look at Vault's log, then contain again."
        say(containment.action_id, STILL_DISABLED, Outcome.FAILED, what, now=now)
    elif rows:
        what = f"{len(rows)} identit{'y is' if len(rows) == 1 else 'ies are'} disabled at the end, too"
        say(containment.action_id, STILL_DISABLED, Outcome.OK, what, now=now)
    live = list(open_leases(account(containment)).values_list("lease_id", flat=True)[:6])
    if live:
        what = (
            f"Still live: {', '.join(live[:5])}{' …' if len(live) > 5 else ''}. The items say why; then contain again."
        )
        say(containment.action_id, NO_LEASE_LIVE, Outcome.FAILED, what, now=now)
    elif left := _something_lives_on(containment):
        what = (
            f"The ledger holds no open lease of it, but of {len(left):,} the database user or a session lives on: "
            f"{', '.join(left[:5])}{' …' if len(left) > 5 else ''}. The items say what to do; then contain again."
        )
        say(containment.action_id, NO_LEASE_LIVE, Outcome.FAILED, what, now=now)
    else:
        say(containment.action_id, NO_LEASE_LIVE, Outcome.OK, "The ledger holds no open lease of it", now=now)
    failed = ActionStep.objects.filter(
        action=containment.action_id, lease_id="", outcome=Outcome.FAILED, at__gte=_begun(containment)
    ).exists()
    move(containment, ContainmentState.FAILED if failed else ContainmentState.CONTAINED, now=now)
    return None


def _something_lives_on(containment: Containment) -> list[str]:
    """Ids of leases that are gone from Vault, while the database still lets their user in, or one that was in already."""
    items = containment.action.revocations.filter(state=RevocationState.FAILED)
    found = set(items.values_list("lease__lease_id", flat=True))
    # of each lease what was seen last
    steps = ActionStep.objects.filter(action=containment.action_id, name=ending.SESSIONS_ENDED)
    last = steps.order_by("lease_id", "-at", "-id").distinct("lease_id").values_list("lease_id", "outcome")
    return sorted(found | {lease_id for lease_id, outcome in last if outcome == Outcome.FAILED})


def _give_up(containment: Containment, name: str, why: str) -> None:
    now = timezone.now()
    say(containment.action_id, name, Outcome.FAILED, why, now=now)
    move(containment, ContainmentState.FAILED, now=now)


_STEP = {
    ContainmentStage.IDENTITIES: IDENTITY_DISABLED,
    ContainmentStage.LEASES: NO_LEASE_LIVE,
    ContainmentStage.TOKENS: TOKENS_REVOKED,
    ContainmentStage.CHECK: STILL_DISABLED,
}


# -- undoing it


def _lift(containment: Containment) -> float | None:
    """Enables each identity that this disabled, and reads it back. What was disabled before stays so."""
    waiting: SourceError | None = None
    failed = False
    for row in containment.entities.filter(restored_at=None).select_related("vault").order_by("id"):
        try:
            failed = not _enable_one(containment, row) or failed
        except _OF_THE_VAULT as error:
            waiting = error
            _say_once(containment, IDENTITY_ENABLED, Outcome.UNVERIFIED, f"{error} {TRIED_AGAIN}")
        except SourceError as error:
            failed = True
            _say_once(containment, IDENTITY_ENABLED, Outcome.FAILED, f"Vault {row.vault.name}: {error}")
    if waiting:
        return WAIT_SECONDS
    now = timezone.now()
    if failed:
        move(containment, ContainmentState.CONTAINED, now=now)
    else:
        move(containment, ContainmentState.LIFTED, now=now, lifted_at=now)
    return None


def _enable_one(containment: Containment, row: ContainedEntity) -> bool:
    name = f"{row.name or row.entity_id} of vault {row.vault.name}"
    if row.was_disabled or row.disabled_at is None:
        why = "was disabled before, so it stays so" if row.was_disabled else "was not disabled here"
        _say_once(containment, IDENTITY_ENABLED, Outcome.OK, f"{name} {why}")
        return True
    if other := _also_contained_by(containment, row):
        # whoever lifts that one enables it
        ContainedEntity.objects.filter(pk=other.pk).update(was_disabled=False)
        _say_once(
            containment,
            IDENTITY_ENABLED,
            Outcome.OK,
            f"{name} stays disabled: {other.containment.namespace}/{other.containment.service_account}, which is contained, logs in as it, too",
        )
        return True
    client = clients.responder(row.vault)
    if client.entity(row.entity_id, namespace=row.vault_namespace) is None:
        _say_once(containment, IDENTITY_ENABLED, Outcome.OK, f"{name} no longer exists")
        return True
    client.disable_entity(row.entity_id, False, namespace=row.vault_namespace)
    back = client.entity(row.entity_id, namespace=row.vault_namespace)
    if back is None or back.disabled:
        look = f"bao read identity/entity/id/{row.entity_id}"
        _say_once(
            containment, IDENTITY_ENABLED, Outcome.FAILED, f"{name} does not read back as enabled. Look at it: {look}"
        )
        return False
    ContainedEntity.objects.filter(pk=row.pk).update(restored_at=timezone.now())
    _say_once(containment, IDENTITY_ENABLED, Outcome.OK, f"{name} reads back as enabled: it can log in again")
    return True


def _also_contained_by(containment: Containment, row: ContainedEntity) -> ContainedEntity | None:
    return (
        ContainedEntity.objects.filter(
            vault=row.vault, entity_id=row.entity_id, containment__state__in=OPEN_CONTAINMENT_STATES
        )
        # of two that are undone at the same time neither leaves it to the other
        .exclude(containment__state=ContainmentState.LIFTING)
        .exclude(containment=containment)
        .select_related("containment")
        .order_by("id")
        .first()
    )
