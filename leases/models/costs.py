"""What watching costs a vault: this product's own requests by the hour, and which roles' leases were listed when."""

from django.db import models

from leases.models.sources import Vault


class ApiCost(models.Model):
    """Own requests of one kind within one hour. `audit_bytes`: estimated, of all audit devices together."""

    class Kind(models.TextChoices):
        LOOKUP = "lookup"
        LIST = "list"
        HASH = "hash"
        CAPABILITIES = "capabilities"
        LOGIN = "login"
        OTHER = "other"

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="costs", db_index=False)
    hour = models.DateTimeField()
    kind = models.TextField(choices=Kind)
    requests = models.PositiveBigIntegerField()
    audit_bytes = models.PositiveBigIntegerField()
    # the first of them: an hour in which counting began is not a whole one
    first_at = models.DateTimeField()

    class Meta:
        # queries.costs(), lists.spent()
        constraints = [models.UniqueConstraint(fields=["vault", "hour", "kind"], name="cost_of_an_hour_is_one_row")]

    def __str__(self) -> str:
        return f"{self.kind} {self.hour}"


class RoleList(models.Model):
    """When the leases of one role were listed last, in the place of LIST; `role` is empty for the list of a mount's roles."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="role_lists", db_index=False)
    vault_namespace = models.TextField(blank=True)
    mount = models.TextField()
    role = models.TextField(blank=True)
    listed_at = models.DateTimeField(null=True)
    leases = models.PositiveIntegerField(default=0)
    # why it was not listed when its time had come, and what to do about it
    put_off = models.TextField(blank=True)
    tried_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["vault", "vault_namespace", "mount", "role"], name="a_role_is_listed_once")
        ]

    def __str__(self) -> str:
        return f"{self.vault_namespace}{self.mount}/{self.role}"
