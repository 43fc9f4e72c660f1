"""Requests of this product's own, noted until the audit log was searched for them."""

from django.db import models

from leases.models.sources import Vault


class OwnRequest(models.Model):
    """A poll that a vault answered: every audit device of that vault must have logged it. Deleted once it was looked for."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="own_requests")
    request_id = models.TextField()
    # when the answer came, by our clock
    at = models.DateTimeField()

    class Meta:
        # audit.coverage.check_polls(), and polls.note(): was one noted lately
        indexes = [models.Index(fields=["vault", "at"], name="own_request_by_time")]

    def __str__(self) -> str:
        return self.request_id
