"""Jobs: many leases ended one by one at the rate that their vault bears, in short turns; and what people may say meanwhile.

A turn ends after TURN_SECONDS and queues the next one behind whatever was asked meanwhile. A few go on at once, each in a lane of
its own. What a lost worker leaves, the sweep takes up: its lane by due(), an item that it held when its claim has passed.
"""

import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, F, Q, QuerySet
from django.utils import timezone

from leases import revoke
from leases.databases.kept import keeping
from leases.models import Action, ActionKind, Containment, Job, Revocation
from leases.models.actions import (
    JOB_TRANSITIONS,
    OPEN_REVOCATION_STATES,
    ContainmentStage,
    ContainmentState,
    JobState,
    RevocationState,
)
from leases.revoke import Did
from leases.turns import turn

TURN_SECONDS = 2.0
# turns at one job that may run at once, each in a worker of its own
LANES = 3
# items that a turn looks at
CANDIDATES = 200

# steps of an action as a whole
APPROVED = "approved"
REFUSED = "refused"
STOPPED = "stopped"
TAKEN_UP_AGAIN = "taken up again"

_TO_RETRY = {
    RevocationState.FAILED: RevocationState.REQUESTED,
    RevocationState.STOPPED: RevocationState.REQUESTED,
    # its lease is gone: what was not seen is looked at again
    RevocationState.UNVERIFIED: RevocationState.VERIFYING,
}


class NotNow(Exception):
    """The job's state, or who asks, does not allow this; the message says why, for the person who asked."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many items of an action are in which state. `seconds_left`: None while nothing runs, or nothing can be said."""

    total: int
    waiting: int
    working: int
    verified: int
    unverified: int
    failed: int
    stopped: int
    seconds_left: float | None

    @property
    def finished(self) -> int:
        return self.total - self.waiting - self.working


def approve(job: Job, *, by: str, now: datetime) -> None:
    """Lets a job begin that waits for another person's word. Raises NotNow.

    Until now nothing was touched. What has ended since it was asked for, or is being ended by somebody else, is not among its items.
    """
    with transaction.atomic():
        revoke.one_at_a_time()
        job = _locked(job)
        if by == job.action.by:
            raise NotNow("You asked for this yourself. Another responder has to approve it.")
        if not move(job, JobState.RUNNING, now=now, decided_by=by, decided_at=now):
            raise NotNow(f"This is {job.state}: there is nothing to approve any more.")
        revoke.say(job, APPROVED, f"by {by}", now=now)
        if job.action.kind == ActionKind.CONTAIN:
            # identities are disabled first; leases.contain gives it its items then
            return
        leases, taken = revoke.divide(job.action.plan.leases)
        revoke.fill(job, leases=leases, taken=taken, now=now)


def refuse(job: Job, *, by: str, reason: str, now: datetime) -> None:
    """Ends a job that waits for another person's word; whoever asked may take it back so. Nothing was touched. Raises NotNow."""
    with transaction.atomic():
        job = _locked(job)
        if not move(job, JobState.REFUSED, now=now, decided_by=by, decided_at=now):
            raise NotNow(f"This is {job.state}: there is nothing to refuse any more.")
        revoke.say(job, REFUSED, f"by {by}{f': {reason}' if reason else ''}", now=now)


def stop(job: Job, *, by: str, now: datetime) -> None:
    """What has not begun is left alone and becomes `stopped`; what has begun goes on to its end. Raises NotNow."""
    with transaction.atomic():
        job = _locked(job)
        if not move(job, JobState.STOPPED, now=now, stopped_by=by, stopped_at=now):
            raise NotNow(f"This is {job.state}: there is nothing to stop.")
        # by state alone: an item whose worker is about to begin finds itself stopped (compare-and-set)
        left = _items(job.action_id, RevocationState.REQUESTED).update(
            state=RevocationState.STOPPED, claimed_until=None, updated_at=now
        )
        revoke.say(job, STOPPED, f"by {by}: {left:,} of its leases had not begun and are left alone", now=now)


def retry(job: Job, *, by: str, now: datetime) -> int:
    """Takes up again what failed, was stopped or could not be verified; returns how many. Raises NotNow if nothing is to be done.

    Leases that another action is ending meanwhile are left to it.
    """
    with transaction.atomic():
        revoke.one_at_a_time()
        job = _locked(job)
        if job.state not in {JobState.RUNNING, JobState.STOPPED, JobState.DONE}:
            raise NotNow(f"This is {job.state}: nothing of it has been tried yet.")
        taken = Revocation.objects.filter(state__in=OPEN_REVOCATION_STATES).exclude(action=job.action_id)
        count = 0
        for before, after in _TO_RETRY.items():
            items = _items(job.action_id, before).exclude(lease__in=taken.values("lease"))
            count += items.update(state=after, claimed_until=None, updated_at=now)
        if not count:
            raise NotNow(
                "Nothing is left to try again: every lease of this was ended and verified, or somebody else is ending it."
            )
        if job.state != JobState.RUNNING:
            move(job, JobState.RUNNING, now=now, stopped_by="", stopped_at=None)
        revoke.say(job, TAKEN_UP_AGAIN, f"by {by}: {count:,} lease{'' if count == 1 else 's'}", now=now)
        revoke.queue(job, now=now)
        return count


def work_on(job_id: int, lane: int = 0) -> bool:
    """One turn of one lane at a job's items: at most TURN_SECONDS, but for an item that takes longer. True if another is to follow.

    Safe at any time, and several times at once: a lane has one worker at a time, and so has an item.
    """
    end = time.monotonic() + TURN_SECONDS
    with turn(f"job lane {lane}", job_id) as mine, keeping():
        if not mine or not _runs(job_id, now=timezone.now()):
            return False
        worked, deaf = False, set()
        for item, vault in _next_items(job_id, lane, now=timezone.now()):
            if time.monotonic() >= end:
                break
            if vault in deaf:
                continue
            match revoke.carry_out(item):
                case Did.WAITS:
                    deaf.add(vault)
                case Did.WORKED:
                    worked = True
        if _settle(job_id, now=timezone.now()):
            return False
        if deaf and not worked:
            _hold(job_id, seconds=revoke.WAIT_SECONDS, now=timezone.now())
        return worked


def lanes(job_id: int) -> range:
    """As many as it has work for."""
    waiting = Revocation.objects.filter(action__job=job_id, state__in=OPEN_REVOCATION_STATES)
    return range(min(LANES, max(1, len(waiting.values_list("id")[:LANES]))))


def due(*, now: datetime) -> list[int]:
    """Running jobs, but for those whose vaults did not answer a moment ago. One that is worked on loses nothing by another start:
    its lanes are taken."""
    ready = Q(claimed_until=None) | Q(claimed_until__lte=now)
    return list(Job.objects.filter(ready, state=JobState.RUNNING).order_by("id").values_list("id", flat=True)[:100])


def move(job: Job, to: JobState, *, now: datetime, **fields: object) -> bool:
    """Compare-and-set along JOB_TRANSITIONS; False if it is in no state, or no more, from which it may go there."""
    if to not in JOB_TRANSITIONS[job.state]:
        return False
    moved = Job.objects.filter(pk=job.pk, state=job.state).update(state=to, updated_at=now, **fields)
    if moved:
        job.state = to
    return bool(moved)


def progress(action: Action, *, now: datetime | None = None) -> Progress:
    """How far the action has come, from its items; before an approval from the leases that it asks for."""
    now = now or timezone.now()
    counts = dict(
        Revocation.objects.filter(action=action.pk).order_by("state").values_list("state").annotate(count=Count("id"))
    )
    job = Job.objects.filter(action=action.pk).first()
    asked = len(action.targets) if job and job.state in {JobState.WAITING, JobState.REFUSED} else 0
    waiting = counts.get(RevocationState.REQUESTED, 0) + (asked if job and job.state == JobState.WAITING else 0)
    working = counts.get(RevocationState.REVOKING, 0) + counts.get(RevocationState.VERIFYING, 0)
    return Progress(
        total=sum(counts.values()) or asked,
        waiting=waiting,
        working=working,
        verified=counts.get(RevocationState.VERIFIED, 0),
        unverified=counts.get(RevocationState.UNVERIFIED, 0),
        failed=counts.get(RevocationState.FAILED, 0),
        stopped=counts.get(RevocationState.STOPPED, 0) + (asked if job and job.state == JobState.REFUSED else 0),
        seconds_left=_seconds_left(action, waiting + working, now=now)
        if job and job.state == JobState.RUNNING
        else None,
    )


def _seconds_left(action: Action, left: int, *, now: datetime) -> float | None:
    """By what was finished in the last ten seconds; None where that was nothing."""
    if not left:
        return 0.0
    began = now - timedelta(seconds=10)
    recent = Revocation.objects.filter(action=action.pk, updated_at__gte=began).exclude(
        state__in=OPEN_REVOCATION_STATES
    )
    first_at = recent.order_by("updated_at").values_list("updated_at", flat=True).first()
    if first_at is None:
        return None
    return left * max((now - first_at).total_seconds(), 0.1) / recent.count()


def _locked(job: Job) -> Job:
    """As it is now, and until the transaction's end."""
    return Job.objects.select_for_update(of=("self",)).select_related("action__plan").get(pk=job.pk)


def _items(action_id: uuid.UUID, state: RevocationState) -> QuerySet[Revocation]:
    return Revocation.objects.filter(action=action_id, state=state)


def _runs(job_id: int, *, now: datetime) -> bool:
    return Job.objects.filter(pk=job_id, state=JobState.RUNNING).exclude(claimed_until__gt=now).exists()


def _hold(job_id: int, *, seconds: float, now: datetime) -> None:
    Job.objects.filter(pk=job_id, state=JobState.RUNNING).update(claimed_until=now + timedelta(seconds=seconds))


def _next_items(job_id: int, lane: int, *, now: datetime) -> list[tuple[int, int]]:
    """Open items that nobody holds, with their vaults: those that were not tried yet first, so that one that Vault does not
    answer holds nobody back. Each lane begins with its share."""
    free = Q(claimed_until=None) | Q(claimed_until__lte=now)
    items = list(
        Revocation.objects.filter(free, action__job=job_id, state__in=OPEN_REVOCATION_STATES)
        .order_by(F("claimed_until").asc(nulls_first=True), "id")
        .values_list("id", "lease__vault_id")[:CANDIDATES]
    )
    return items[lane::LANES] + [item for place, item in enumerate(items) if place % LANES != lane]


def _settle(job_id: int, *, now: datetime) -> bool:
    """Calls a running job done once no item is open; true if the job runs no more."""
    with transaction.atomic():
        job = Job.objects.select_for_update().get(pk=job_id)
        if job.state != JobState.RUNNING:
            return True
        if Containment.objects.filter(
            action=job.action_id, state=ContainmentState.CONTAINING, stage=ContainmentStage.IDENTITIES
        ).exists():
            # its items are still to come
            return False
        if Revocation.objects.filter(action=job.action_id, state__in=OPEN_REVOCATION_STATES).exists():
            return False
        return move(job, JobState.DONE, now=now, claimed_until=None)
