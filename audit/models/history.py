"""How a lease's attribution changed, and on what evidence. Append-only by database rights."""

from django.db import models


class AttributionChange(models.Model):
    at = models.DateTimeField()
    vault = models.TextField()
    lease_id = models.TextField()
    certainty_before = models.TextField(blank=True)
    certainty = models.TextField()
    reason = models.TextField()
    cluster = models.TextField(blank=True)
    pod_namespace = models.TextField(blank=True)
    pod = models.TextField(blank=True)
    pod_uid = models.TextField(blank=True)
    service_account = models.TextField(blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["vault", "lease_id", "at"], name="attribution_of_lease")
        ]  # queries.lease_history()

    def __str__(self) -> str:
        return f"{self.lease_id}: {self.certainty}"
