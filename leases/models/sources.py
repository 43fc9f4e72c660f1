"""What is watched: vaults, Kubernetes clusters and databases as `manage.py configure` wrote them, and how each is doing."""

from django.db import models


class Policy(models.Model):
    """The [policies] and [heads] of leasehold.toml: one row."""

    # how far the clocks of vault, cluster and this product may be apart
    clock_skew_seconds = models.FloatField(default=2.0)
    # how old an answer may be before a page says that it is stale
    stale_after_seconds = models.FloatField(default=15.0)
    # rules of audit.findings: how long a lease may live from its issue on, and how many live ones a service account may hold;
    # 0: no limit
    max_lease_ttl_seconds = models.PositiveIntegerField(default=0)
    max_live_leases = models.PositiveIntegerField(default=0)
    # ending more leases than this at once wants the number typed, and more than that another responder's word; 0: never
    confirm_above = models.PositiveIntegerField(default=5, db_default=5)
    approval_above = models.PositiveIntegerField(default=0, db_default=0)
    # how long events are kept; older lines count as expired. 400 days: the 12 months of PCI DSS and a bit
    event_days = models.PositiveIntegerField(default=400)
    # how long raw lines stay in the database; 0: for ever. Their headers stay in any case
    raw_days = models.PositiveIntegerField(default=0)
    # where raw lines are moved to before they are dropped: a folder, or s3://BUCKET/PREFIX; empty: they are only dropped
    archive = models.TextField(blank=True)
    # of a bucket; without keys the ones that the worker's surroundings give it (environment, role of its pod)
    archive_endpoint = models.TextField(blank=True)
    archive_region = models.TextField(blank=True)
    archive_ca_file = models.TextField(blank=True)
    archive_access_key = models.JSONField(null=True)
    archive_secret_key = models.JSONField(null=True)
    # [heads]: which key signs the heads of the chains (by reference), and the places outside the database that get them
    heads_key = models.JSONField(null=True)
    heads_deliver_to = models.JSONField(default=list)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="there_is_one_policy")]

    def __str__(self) -> str:
        return "policies"

    @classmethod
    def current(cls) -> "Policy":
        return cls.objects.filter(pk=1).first() or cls(pk=1)


class Vault(models.Model):
    """One Vault or OpenBao cluster. `observe` and `respond` say how to log in; secrets stand there by reference only."""

    name = models.TextField(unique=True)
    address = models.TextField(blank=True)
    namespace = models.TextField(blank=True)
    ca_file = models.TextField(blank=True)
    lease_mounts = models.JSONField(default=list)
    reconcile_seconds = models.PositiveIntegerField(default=600)
    observe = models.JSONField(null=True)
    respond = models.JSONField(null=True)
    # taken out of the configuration: kept for its history, no longer polled
    retired = models.BooleanField(default=False)
    # when the last round of lists that came to its end began; None asks for one at once
    reconciled_at = models.DateTimeField(null=True)
    # when the running round began; None while none runs
    round_at = models.DateTimeField(null=True)
    # child namespaces whose leases are watched too; others are learned from events
    namespaces = models.JSONField(default=list)
    lookups_per_second = models.PositiveIntegerField(default=600)
    # of jobs that end many leases
    revocations_per_second = models.PositiveIntegerField(default=20, db_default=20)
    # how many bytes of audit log LIST may cause within an hour, over all devices
    audit_bytes_per_hour = models.PositiveBigIntegerField(default=64_000_000)
    # whether the active node may be asked at the address that a standby names
    follow_leader = models.BooleanField(default=True)
    # of the active node, where `address` leads to a standby
    active_address = models.TextField(blank=True)
    # as sys/health names it; empty until it was asked
    version = models.TextField(blank=True, default="", db_default="")
    # how many devices write each request down, as Vault says
    audit_devices = models.PositiveSmallIntegerField(default=1)
    # and how many of these write down what a LIST answers (without elide_list_responses)
    listing_devices = models.PositiveSmallIntegerField(default=1)

    def __str__(self) -> str:
        return self.name


class Cluster(models.Model):
    """One Kubernetes cluster. `fetchers`: service accounts (NAMESPACE/NAME) whose pods fetch secrets for others."""

    name = models.TextField(unique=True)
    address = models.TextField(blank=True)
    ca_file = models.TextField(blank=True)
    token = models.JSONField(null=True)
    retired = models.BooleanField(default=False)
    fetchers = models.JSONField(default=list)

    def __str__(self) -> str:
        return self.name


class AuthMount(models.Model):
    """An auth mount whose logins come from one cluster; `claims` names the metadata keys that carry identity."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="auth_mounts")
    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="auth_mounts")
    path = models.TextField()
    claims = models.JSONField(default=dict)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "path"], name="auth_mount_belongs_to_one_cluster")]

    def __str__(self) -> str:
        return f"{self.vault_id}:{self.path}"


class Database(models.Model):
    """One configured connection of a database mount. Without `monitor` its users cannot be checked."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="databases")
    mount = models.TextField()
    name = models.TextField()
    kind = models.TextField(blank=True)
    monitor = models.JSONField(null=True)
    # the account that ends sessions, in the shape of `monitor`; only the `actions` workers can read its secret
    respond = models.JSONField(null=True)
    # instead of the policy's; 0: no limit
    max_lease_ttl_seconds = models.PositiveIntegerField(null=True)
    # how often its sessions are sampled; 0: never
    sample_seconds = models.FloatField(default=5.0)
    # addresses and networks that sessions may come from whoever holds their lease: of NAT, and of poolers such as PgBouncer
    # ("local": a pooler on the server itself)
    nat = models.JSONField(default=list)
    poolers = models.JSONField(default=list)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "mount", "name"], name="database_is_one_connection")]

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        """Its name among all vaults: the one that its SourceState bears."""
        return f"{self.vault.name}/{self.mount}/{self.name}"


class DatabaseRole(models.Model):
    """A role of a database mount and the connection that it opens, as the mount's configuration says."""

    vault = models.ForeignKey(Vault, models.CASCADE)
    mount = models.TextField()
    name = models.TextField()
    database = models.ForeignKey(Database, models.CASCADE, related_name="roles")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "mount", "name"], name="role_opens_one_database")]

    def __str__(self) -> str:
        return self.name


class SourceKind(models.TextChoices):
    VAULT = "vault"
    CLUSTER = "cluster"
    DATABASE = "database"
    STREAM = "stream"


class SourceState(models.Model):
    """How one source answered last: the cause and the fix where it did not, and when it is asked again.

    A source that is ok and has a cause answers, but not everything can be learned from it.
    """

    kind = models.TextField(choices=SourceKind)
    name = models.TextField()
    ok = models.BooleanField()
    cause = models.TextField(blank=True)
    fix = models.TextField(blank=True)
    checked_at = models.DateTimeField()
    since = models.DateTimeField()
    failures = models.PositiveIntegerField(default=0)
    retry_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "name"], name="one_state_per_source"),
            models.CheckConstraint(
                condition=models.Q(ok=True) | ~models.Q(cause=""), name="a_failing_source_names_its_cause"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
