"""Pod history: it stays after the pod is gone, because a lease may outlive its pod."""

from django.db import models
from django.db.models import F
from django.db.models.functions import Coalesce

from leases.models.sources import Cluster


class Pod(models.Model):
    """One pod (by uid) from the first sight of it to its end."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="pods")
    uid = models.TextField()
    namespace = models.TextField()
    name = models.TextField()
    service_account = models.TextField()
    node = models.TextField(blank=True)
    host_network = models.BooleanField(default=False)
    phase = models.TextField(blank=True)
    owner_kind = models.TextField(blank=True)
    owner_name = models.TextField(blank=True)
    annotations = models.JSONField(default=dict)
    started_at = models.DateTimeField()
    # an asked-for deletion is not yet an end: the pod may still work during its grace period
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cluster", "uid"], name="pod_uid_is_unique_in_its_cluster")]
        indexes = [
            # evidence.unplaced_pods(): which pods of this service account started around that time
            models.Index(
                fields=["cluster", "namespace", "service_account", "started_at"], name="pod_by_service_account"
            )
        ]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodAddress(models.Model):
    """An address that a pod had, from when to when (to is empty while it has it)."""

    pod = models.ForeignKey(Pod, models.CASCADE, related_name="addresses")
    address = models.GenericIPAddressField()
    from_at = models.DateTimeField()
    to_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["pod", "address", "from_at"], name="pod_address_starts_once"),
            models.CheckConstraint(
                condition=models.Q(to_at=None) | models.Q(to_at__gte=models.F("from_at")),
                name="pod_address_ends_after_its_start",
            ),
        ]
        indexes = [
            # evidence.addresses_of(): who had this address around that time. Most of the past of an address that is reused
            # ended before: the index begins where the time does, and reads nothing else of it from the table.
            models.Index(
                F("address"),
                Coalesce("to_at", models.Value("infinity"), output_field=models.DateTimeField()),
                F("from_at"),
                name="pod_address_by_address",
            )
        ]

    def __str__(self) -> str:
        return str(self.address)


class WatchPeriod(models.Model):
    """A stretch of time in which every change of a cluster's pods is known to have been seen."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="watch_periods")
    from_at = models.DateTimeField()
    to_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(to_at__gte=models.F("from_at")), name="watch_period_ends_after_its_start"
            )
        ]
        # proven(): the periods that had not ended before that time
        indexes = [models.Index(fields=["cluster", "to_at"], name="watch_period_by_end")]

    def __str__(self) -> str:
        return f"{self.from_at:%FT%TZ} to {self.to_at:%FT%TZ}"
