"""What a person did here. Actions and their steps are append-only by database rights; only a revocation's state moves."""

import uuid

from django.db import models
from django.db.models import Q

from leases.models.ledger import Lease


class Action(models.Model):
    """Who did what, why and when. The lease ids are frozen when the person confirms."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.TextField()
    by = models.TextField()
    reason = models.TextField()
    at = models.DateTimeField()
    # lease ids and the vault's name as text: history must outlive the rows that it speaks of
    targets = models.JSONField(default=list)

    class Meta:
        constraints = [models.CheckConstraint(condition=~Q(reason=""), name="an_action_has_a_reason")]
        indexes = [models.Index(fields=["-at", "-id"], name="action_newest")]  # queries.actions_page()

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
        indexes = [models.Index(fields=["action", "at", "id"], name="action_step_in_order")]  # queries.receipt()

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}"


class RevocationState(models.TextChoices):
    REQUESTED = "requested"
    REVOKING = "revoking"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    FAILED = "failed"


OPEN_REVOCATION_STATES = [RevocationState.REQUESTED, RevocationState.REVOKING, RevocationState.VERIFYING]

# state -> states that may follow; the only place that says so, and what docs/architecture.md draws
TRANSITIONS: dict[str, tuple[str, ...]] = {
    RevocationState.REQUESTED: (RevocationState.REVOKING, RevocationState.FAILED),
    RevocationState.REVOKING: (RevocationState.VERIFYING, RevocationState.FAILED),
    RevocationState.VERIFYING: (RevocationState.VERIFIED, RevocationState.UNVERIFIED, RevocationState.FAILED),
    RevocationState.VERIFIED: (),
    RevocationState.UNVERIFIED: (),
    RevocationState.FAILED: (),
}


class Revocation(models.Model):
    """One lease of one action on its way to a verified end."""

    action = models.ForeignKey(Action, models.PROTECT, related_name="revocations")
    lease = models.ForeignKey(Lease, models.PROTECT, related_name="revocations")
    state = models.TextField(choices=RevocationState, default=RevocationState.REQUESTED)
    # a worker that holds it says until when; past that, the sweep takes it up again
    claimed_until = models.DateTimeField(null=True)
    audit_request_id = models.TextField(blank=True)
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
        ]

    def __str__(self) -> str:
        return f"{self.lease_id}: {self.state}"

    @property
    def open(self) -> bool:
        return self.state in OPEN_REVOCATION_STATES
