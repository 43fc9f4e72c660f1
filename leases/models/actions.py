"""What a person did here. Actions and their steps are append-only by database rights; only a revocation's state moves."""

import uuid

from django.db import models
from django.db.models import JSONField, Q, Value

from leases.models.ledger import Lease
from leases.models.sources import Vault


class ActionKind(models.TextChoices):
    """What people do here that changes something in Vault; other kinds of action (exports, closings) have words of their own."""

    REVOKE = "revoke"
    FORCE = "force revoke"
    CONTAIN = "contain"
    UNDO = "undo containment"


class Plan(models.Model):
    """What is shown before anything is done: the leases are frozen here, and confirming acts on exactly these."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.TextField(choices=ActionKind)
    # {"kind": …, "value": …} as audit.targets writes it
    scope = models.JSONField(default=dict)
    # primary keys of leases that were live then, in order
    leases = models.JSONField(default=list)
    by = models.TextField()
    at = models.DateTimeField()
    # past that the world is another one: plan again
    expires_at = models.DateTimeField()
    # of a containment: the identities that a worker found in the vaults (leases.identities.Found), and when
    found = models.JSONField(null=True)
    found_at = models.DateTimeField(null=True)
    # the action that it became; a plan is confirmed once
    action = models.OneToOneField("Action", models.PROTECT, null=True, related_name="plan")

    def __str__(self) -> str:
        return f"{self.kind} planned by {self.by} at {self.at:%FT%TZ}"


class Action(models.Model):
    """Who did what, why and when. The lease ids are frozen when the person confirms."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.TextField()
    by = models.TextField()
    reason = models.TextField()
    # of a ticket system, as the person wrote it
    ticket = models.TextField(blank=True, default="", db_default="")
    # what was meant, as the plan had it: everything of a pod, of a service account …
    scope = models.JSONField(default=dict, db_default=Value({}, JSONField()))
    at = models.DateTimeField()
    # lease ids and the vault's name as text: history must outlive the rows that it speaks of
    targets = models.JSONField(default=list)

    class Meta:
        constraints = [models.CheckConstraint(condition=~Q(reason=""), name="an_action_has_a_reason")]
        indexes = [models.Index(fields=["-at", "-id"], name="action_newest")]  # action_queries.actions_page()

    def __str__(self) -> str:
        return f"{self.kind} by {self.by} at {self.at:%FT%TZ}"


class Outcome(models.TextChoices):
    OK = "ok"
    FAILED = "failed"
    UNVERIFIED = "unverified"


class ActionStep(models.Model):
    """One verified (or failed, or not verifiable) step of an action on one lease."""

    action = models.ForeignKey(Action, models.PROTECT, related_name="steps")
    lease_id = models.TextField(blank=True)
    name = models.TextField()
    outcome = models.TextField(choices=Outcome)
    detail = models.TextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(fields=["action", "at", "id"], name="action_step_in_order")
        ]  # action_queries.own_steps()

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}"


class JobState(models.TextChoices):
    WAITING = "waiting for approval"
    REFUSED = "refused"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"


OPEN_JOB_STATES = [JobState.WAITING, JobState.RUNNING]

# as TRANSITIONS; what was stopped or left failed items can be taken up again
JOB_TRANSITIONS: dict[str, tuple[str, ...]] = {
    JobState.WAITING: (JobState.RUNNING, JobState.REFUSED),
    JobState.REFUSED: (),
    JobState.RUNNING: (JobState.STOPPED, JobState.DONE),
    JobState.STOPPED: (JobState.RUNNING,),
    JobState.DONE: (JobState.RUNNING,),
}


class Job(models.Model):
    """How far an action has come that works on leases one by one. Its items are the action's revocations."""

    action = models.OneToOneField(Action, models.PROTECT, related_name="job")
    state = models.TextField(choices=JobState, default=JobState.RUNNING)
    # who allowed or refused it, where another responder's word is needed
    needs_approval = models.BooleanField(default=False)
    decided_by = models.TextField(blank=True)
    decided_at = models.DateTimeField(null=True)
    stopped_by = models.TextField(blank=True)
    stopped_at = models.DateTimeField(null=True)
    # its vaults did not answer: not to be worked on before
    claimed_until = models.DateTimeField(null=True)
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(needs_approval=False) | Q(state=JobState.WAITING) | ~Q(decided_by=""),
                name="what_needs_approval_runs_only_when_somebody_decided",
            ),
        ]
        indexes = [
            # jobs.due()
            models.Index(fields=["claimed_until"], name="job_running", condition=Q(state=JobState.RUNNING)),
            # action_queries.waiting_jobs()
            models.Index(fields=["id"], name="job_waiting", condition=Q(state=JobState.WAITING)),
        ]

    def __str__(self) -> str:
        return f"{self.action_id}: {self.state}"

    @property
    def open(self) -> bool:
        return self.state in OPEN_JOB_STATES


class Pace(models.Model):
    """The next moment at which a vault may be told of a revocation; leases.pace reserves it."""

    vault = models.OneToOneField(Vault, models.CASCADE, primary_key=True)
    free_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.vault_id}: {self.free_at:%FT%TZ}"


class RevocationState(models.TextChoices):
    REQUESTED = "requested"
    REVOKING = "revoking"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    FAILED = "failed"
    # its job was stopped before its turn: nothing was done
    STOPPED = "stopped"


OPEN_REVOCATION_STATES = [RevocationState.REQUESTED, RevocationState.REVOKING, RevocationState.VERIFYING]

# state -> states that may follow; the only place that says so, and what docs/architecture.md draws
TRANSITIONS: dict[str, tuple[str, ...]] = {
    RevocationState.REQUESTED: (RevocationState.REVOKING, RevocationState.FAILED, RevocationState.STOPPED),
    RevocationState.REVOKING: (RevocationState.VERIFYING, RevocationState.FAILED),
    RevocationState.VERIFYING: (RevocationState.VERIFIED, RevocationState.UNVERIFIED, RevocationState.FAILED),
    RevocationState.VERIFIED: (),
    # what somebody asks for again; nothing repeats these by itself
    RevocationState.UNVERIFIED: (RevocationState.VERIFYING,),
    RevocationState.FAILED: (RevocationState.REQUESTED,),
    RevocationState.STOPPED: (RevocationState.REQUESTED,),
}


class Revocation(models.Model):
    """One lease of one action on its way to a verified end."""

    action = models.ForeignKey(Action, models.PROTECT, related_name="revocations")
    lease = models.ForeignKey(Lease, models.PROTECT, related_name="revocations")
    state = models.TextField(choices=RevocationState, default=RevocationState.REQUESTED)
    # a worker that holds it says until when; past that, the sweep takes it up again
    claimed_until = models.DateTimeField(null=True)
    audit_request_id = models.TextField(blank=True)
    # sessions of the lease's user as they were before Vault was told: what leases.ending froze; None: not looked at (yet)
    sessions = models.JSONField(null=True)
    requested_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["lease"], condition=Q(state__in=OPEN_REVOCATION_STATES), name="one_open_revocation_per_lease"
            )
        ]
        indexes = [
            # revoke.stuck()
            models.Index(
                fields=["claimed_until"], name="revocation_open", condition=Q(state__in=OPEN_REVOCATION_STATES)
            ),
            # a job's progress and its next items
            models.Index(fields=["action", "state", "id"], name="revocation_of_action"),
        ]

    def __str__(self) -> str:
        return f"{self.lease_id}: {self.state}"

    @property
    def open(self) -> bool:
        return self.state in OPEN_REVOCATION_STATES


class ContainmentState(models.TextChoices):
    CONTAINING = "containing"
    CONTAINED = "contained"
    FAILED = "failed"
    LIFTING = "lifting"
    LIFTED = "lifted"
    # it needed another responder's word, who said no: nothing was done
    REFUSED = "refused"


OPEN_CONTAINMENT_STATES = [
    ContainmentState.CONTAINING,
    ContainmentState.CONTAINED,
    ContainmentState.FAILED,
    ContainmentState.LIFTING,
]

CONTAINMENT_TRANSITIONS: dict[str, tuple[str, ...]] = {
    ContainmentState.CONTAINING: (
        ContainmentState.CONTAINED,
        ContainmentState.FAILED,
        ContainmentState.REFUSED,
    ),
    # what failed halfway can be tried again, and what it did can be taken back
    ContainmentState.FAILED: (ContainmentState.CONTAINING, ContainmentState.LIFTING),
    ContainmentState.CONTAINED: (ContainmentState.CONTAINING, ContainmentState.LIFTING),
    ContainmentState.LIFTING: (ContainmentState.LIFTED, ContainmentState.CONTAINED),
    ContainmentState.LIFTED: (),
    ContainmentState.REFUSED: (),
}


class ContainmentStage(models.TextChoices):
    """Which part of containing its worker is at, in this order; leases that turn up later bring it back to them."""

    IDENTITIES = "identities"
    LEASES = "leases"
    TOKENS = "tokens"
    CHECK = "check"


class Containment(models.Model):
    """One service account that was shut out: its identities disabled in Vault, its tokens and leases revoked, its sessions ended."""

    action = models.OneToOneField(Action, models.PROTECT, related_name="containment")
    cluster = models.TextField()
    namespace = models.TextField()
    service_account = models.TextField()
    state = models.TextField(choices=ContainmentState, default=ContainmentState.CONTAINING)
    stage = models.TextField(
        choices=ContainmentStage, default=ContainmentStage.IDENTITIES, db_default=ContainmentStage.IDENTITIES
    )
    # when a worker began with it, or with it again
    begun_at = models.DateTimeField(null=True)
    # how far the search for its tokens has come: {"VAULT/NAMESPACE": leases.contain.Searched}
    tokens = models.JSONField(default=dict, db_default=Value({}, JSONField()))
    # every identity was seen disabled; what happens from then on is an attempt to come back
    disabled_at = models.DateTimeField(null=True)
    at = models.DateTimeField()
    undo = models.OneToOneField(Action, models.PROTECT, null=True, related_name="undone_containment")
    lifted_at = models.DateTimeField(null=True)
    claimed_until = models.DateTimeField(null=True)
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["cluster", "namespace", "service_account"],
                condition=Q(state__in=OPEN_CONTAINMENT_STATES),
                name="one_containment_of_a_service_account",
            ),
            models.CheckConstraint(
                condition=~Q(state=ContainmentState.LIFTED) | Q(lifted_at__isnull=False, undo__isnull=False),
                name="what_is_lifted_was_undone_by_somebody",
            ),
        ]
        indexes = [
            # contain.stuck()
            models.Index(
                fields=["claimed_until"],
                name="containment_under_way",
                condition=Q(state__in=[ContainmentState.CONTAINING, ContainmentState.LIFTING]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account}: {self.state}"

    @property
    def open(self) -> bool:
        return self.state in OPEN_CONTAINMENT_STATES


class ContainedEntity(models.Model):
    """One identity in one vault that a containment disabled. `was_disabled`: it was so before, and undoing leaves it so."""

    containment = models.ForeignKey(Containment, models.PROTECT, related_name="entities")
    vault = models.ForeignKey(Vault, models.PROTECT)
    # the namespace in Vault that it lives in, beside the account's own
    vault_namespace = models.TextField(blank=True)
    entity_id = models.TextField()
    name = models.TextField(blank=True)
    # [{"mount": "auth/kubernetes", "name": …}]: every way that it can log in by
    aliases = models.JSONField(default=list)
    was_disabled = models.BooleanField(default=False)
    # seen disabled, and seen enabled again
    disabled_at = models.DateTimeField(null=True)
    restored_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["containment", "vault", "entity_id"], name="entity_is_contained_once")
        ]

    def __str__(self) -> str:
        return f"{self.entity_id} of {self.containment_id}"
