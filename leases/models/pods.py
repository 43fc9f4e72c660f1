"""Pod history: it stays after the pod is gone, because a lease may outlive its pod. So does what owned or fed pods."""

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
    owner_uid = models.TextField(blank=True)
    # the top of the chain: the Deployment of the ReplicaSet, the CronJob of the Job, else the owner itself
    workload_kind = models.TextField(blank=True)
    workload_name = models.TextField(blank=True)
    annotations = models.JSONField(default=dict)
    # its label says that it is an operator that fetches secrets for others
    fetcher = models.BooleanField(default=False)
    # names of the Secrets that its containers and volumes refer to
    secrets = models.JSONField(default=list)
    started_at = models.DateTimeField()
    # an asked-for deletion is not yet an end: the pod may still work during its grace period
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cluster", "uid"], name="pod_uid_is_unique_in_its_cluster")]
        indexes = [
            # evidence.unplaced_pods(): which pods of this service account started around that time
            models.Index(
                fields=["cluster", "namespace", "service_account", "started_at"], name="pod_by_service_account"
            ),
            # evidence.living_pods(): which pods of this service account lived then; those that had ended before are not read
            models.Index(
                F("cluster"),
                F("namespace"),
                F("service_account"),
                Coalesce("ended_at", models.Value("infinity"), output_field=models.DateTimeField()),
                F("started_at"),
                name="pod_living",
            ),
            # inventory.take_owners(): whose workload becomes known with this owner
            models.Index(fields=["cluster", "owner_uid"], name="pod_by_owner", condition=~models.Q(owner_uid="")),
            # inventory.end_missing(): which pods were still there
            models.Index(fields=["cluster", "uid"], name="pod_not_ended", condition=models.Q(ended_at=None)),
            # evidence.fetching_accounts()
            models.Index(
                fields=["cluster", "namespace", "service_account"], name="pod_fetcher", condition=models.Q(fetcher=True)
            ),
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


class PodOwner(models.Model):
    """A ReplicaSet or a Job, and what controls it. It stays after it is gone: its pods may come to light later."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="pod_owners")
    uid = models.TextField()
    kind = models.TextField()
    namespace = models.TextField()
    name = models.TextField()
    owner_kind = models.TextField(blank=True)
    owner_name = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cluster", "uid"], name="owner_uid_is_unique_in_its_cluster")]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class ServiceAccount(models.Model):
    """One service account (by uid): one that was deleted and made anew under its name is another one."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="service_accounts")
    uid = models.TextField()
    namespace = models.TextField()
    name = models.TextField()
    created_at = models.DateTimeField()
    first_seen_at = models.DateTimeField()
    deleted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["cluster", "uid"], name="service_account_uid_is_unique_in_its_cluster")
        ]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class SecretSync(models.Model):
    """A resource by which an operator copies something of Vault into a Secret, or (without a Secret) a generator of one.

    Nothing of the Secret but its name is known here.
    """

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="secret_syncs")
    uid = models.TextField()
    kind = models.TextField()
    namespace = models.TextField()
    name = models.TextField()
    # what it reads of Vault, as far as it says, and the generators of its namespace that it takes its content from
    paths = models.JSONField(default=list)
    generators = models.JSONField(default=list)
    secret = models.TextField(blank=True)
    created_at = models.DateTimeField()
    deleted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cluster", "uid"], name="sync_uid_is_unique_in_its_cluster")]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class SyncedLease(models.Model):
    """A lease that a resource's status named as the source of its Secret: an exact link, which stays after a rotation."""

    sync = models.ForeignKey(SecretSync, models.CASCADE, related_name="leases")
    lease_id = models.TextField()
    seen_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["sync", "lease_id"], name="sync_names_a_lease_once")]
        # consumers.SYNCS: which resource copied this lease's credentials
        indexes = [models.Index(fields=["lease_id"], name="synced_lease_by_id")]

    def __str__(self) -> str:
        return self.lease_id


class WatchedKind(models.Model):
    """How far one kind of object of a cluster is watched; and where it is not, the missing rule and who gives it."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="watched_kinds")
    # resource, group and version: `replicasets.apps v1`
    kind = models.TextField()
    # where its watch goes on; empty: it is listed anew
    resource_version = models.TextField(blank=True)
    cause = models.TextField(blank=True)
    fix = models.TextField(blank=True)
    retry_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["cluster", "kind"], name="a_kind_is_watched_once_in_its_cluster")
        ]

    def __str__(self) -> str:
        return self.kind


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
