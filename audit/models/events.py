"""Events: one request to one vault. Derived from the raw blocks, interned, in daily partitions (migrations/0005).

Whatever repeats (what was asked, by whom, from where) stands once in a table of its own; an event holds integers. Tables of
one row per request have no foreign keys in the database: each check would cost more than the row.
"""

from datetime import datetime

from django.db import models
from django.db.models import Q

from audit.models.streams import Device, Stream
from leases.models import Lease, Login, Vault


class What(models.Model):
    """What was asked for: one row for each combination that was ever seen. `digest`: 128 bits of the SHA-256 of it all."""

    id = models.AutoField(primary_key=True)
    digest = models.UUIDField(unique=True)
    # empty for `request` and `response`; what stands before it for types such as `kmip-request`
    entry_type = models.TextField(blank=True)
    operation = models.TextField(blank=True)
    path = models.TextField(blank=True)
    mount_point = models.TextField(blank=True)
    mount_type = models.TextField(blank=True)
    namespace_path = models.TextField(blank=True)

    class Meta:
        indexes = [
            # findings.log_facts.rare_events()
            models.Index(
                fields=["path"],
                condition=Q(path__startswith="sys/audit/") | Q(path__startswith="identity/entity"),
                name="what_is_rare",
            )
        ]

    def __str__(self) -> str:
        return f"{self.operation} {self.path}"


class Who(models.Model):
    """The identity that a token bore, as the log gives it."""

    id = models.AutoField(primary_key=True)
    digest = models.UUIDField(unique=True)
    display_name = models.TextField(blank=True)
    entity_id = models.TextField(blank=True)
    token_type = models.TextField(blank=True)
    policies = models.JSONField(default=list)
    metadata = models.JSONField(default=dict)

    def __str__(self) -> str:
        return self.display_name


class Text(models.Model):
    """Addresses, lease ids and errors that events name."""

    id = models.AutoField(primary_key=True)
    digest = models.UUIDField(unique=True)
    text = models.TextField()

    def __str__(self) -> str:
        return self.text


class Token(models.Model):
    """How one token shows in one salt epoch of one device (its accessor's HMAC, or the accessor where tuned so, in epoch 0; a batch
    token's own HMAC), and its login."""

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    accessor = models.TextField()
    login = models.ForeignKey(Login, models.SET_NULL, null=True, related_name="tokens")
    # the token that made it, in the same words
    parent = models.ForeignKey("self", models.SET_NULL, null=True, related_name="children", db_index=False)
    # the first 64 bits of the token's own HMAC: a revocation may name the token by it
    own_hash = models.BigIntegerField(null=True)
    # by its last renewal
    renewed_at = models.DateTimeField(null=True)
    ends_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "salt_epoch", "accessor"], name="an_accessor_is_one_token")
        ]
        indexes = [
            # tokens.take_parents(): children that were told of before their parent
            models.Index(fields=["parent"], name="token_by_parent", condition=~models.Q(parent=None)),
            # endings: revocations that name a token by its HMAC
            models.Index(fields=["own_hash"], name="token_by_own_hash", condition=~models.Q(own_hash=None)),
        ]

    def __str__(self) -> str:
        return self.accessor


class Kind(models.IntegerChoices):
    """What a request did, by its successful response."""

    OTHER = 0
    LOGIN = 1
    READ = 2  # of dynamic credentials: a lease was issued
    STATIC_READ = 3  # of a static role's credentials: no lease
    RENEW = 4
    END = 5  # a revocation of leases or tokens
    TOKEN = 6  # a token made another one
    TOKEN_RENEW = 7
    UNWRAP = 8  # dynamic credentials came out of their wrapping
    REWRAP = 9
    STANDBY = 10  # a standby's error; the request itself is on the active node


class Event(models.Model):
    """One request, its request and response lines merged, whichever came first."""

    pk = models.CompositePrimaryKey("vault", "request")
    # the request's time, else the response's; the earliest where several devices tell it. Decides the partition
    at = models.DateTimeField()
    # the request id where it is a UUID, else 128 bits of its SHA-256 (then `request_text` holds it)
    request = models.UUIDField()
    response_at = models.DateTimeField(null=True)
    vault = models.ForeignKey(Vault, models.DO_NOTHING, db_constraint=False)
    what = models.ForeignKey(What, models.DO_NOTHING, db_constraint=False, related_name="+")
    who = models.ForeignKey(Who, models.DO_NOTHING, db_constraint=False, related_name="+")
    address = models.ForeignKey(Text, models.DO_NOTHING, db_constraint=False, related_name="+")
    lease_name = models.ForeignKey(Text, models.DO_NOTHING, db_constraint=False, related_name="+", null=True)
    error_text = models.ForeignKey(Text, models.DO_NOTHING, db_constraint=False, related_name="+", null=True)
    kind = models.SmallIntegerField(choices=Kind, default=Kind.OTHER)
    has_request = models.BooleanField()
    # made by this product's own tokens: set aside from lists and counts
    own = models.BooleanField(default=False)
    # the first stream that told of it (see Sighting)
    stream = models.ForeignKey(Stream, models.DO_NOTHING, db_constraint=False, related_name="+")
    request_block = models.IntegerField(null=True)
    response_block = models.IntegerField(null=True)
    token = models.ForeignKey(Token, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")
    request_text = models.TextField(null=True)

    # what select_related() needs so that an event can be read out
    SPELLED_OUT = ("vault", "what", "who", "address", "lease_name", "error_text")

    class Meta:
        db_table = "audit_event"

    def __str__(self) -> str:
        return f"{self.operation} {self.path}"

    @property
    def request_id(self) -> str:
        return self.request_text if self.request_text is not None else str(self.request)

    @property
    def request_at(self) -> datetime | None:
        return self.at if self.has_request else None

    @property
    def operation(self) -> str:
        return self.what.operation

    @property
    def path(self) -> str:
        return self.what.path

    @property
    def lease_id(self) -> str:
        return self.lease_name.text if self.lease_name else ""

    @property
    def error(self) -> str:
        return self.error_text.text if self.error_text else ""


class FurtherSighting(models.Model):
    """What a stream told of an event that another stream had told of before."""

    pk = models.CompositePrimaryKey("stream", "request")
    # by this stream's own lines: the request's time, else the response's
    at = models.DateTimeField()
    request = models.UUIDField()
    stream = models.ForeignKey(Stream, models.DO_NOTHING, db_constraint=False, related_name="+")
    request_block = models.IntegerField(null=True)
    response_block = models.IntegerField(null=True)
    token = models.ForeignKey(Token, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")

    class Meta:
        db_table = "audit_furthersighting"

    def __str__(self) -> str:
        return f"{self.request} on {self.stream_id}"


class Sighting(models.Model):
    """One stream's record of one event: the blocks that hold its lines, and the token in that device's words.

    A view: the first stream's record stands in the event itself, those of others in FurtherSighting. Most events have one.
    """

    pk = models.CompositePrimaryKey("stream", "request")
    at = models.DateTimeField()
    request = models.UUIDField()
    stream = models.ForeignKey(Stream, models.DO_NOTHING, db_constraint=False)
    request_block = models.IntegerField(null=True)
    response_block = models.IntegerField(null=True)
    token = models.ForeignKey(Token, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")

    class Meta:
        managed = False
        db_table = "audit_sighting"

    def __str__(self) -> str:
        return f"{self.request} on {self.stream_id}"


class Hash(models.Model):
    """A dictionary that the log itself gives: the HMAC of a lease id (renewals) or of a database user (reads), and the lease."""

    class Of(models.TextChoices):
        LEASE_ID = "lease id"
        DATABASE_USER = "database user"

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    of = models.TextField(choices=Of)
    hash = models.TextField()
    lease_name = models.ForeignKey(Text, models.DO_NOTHING, related_name="+")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "salt_epoch", "of", "hash"], name="a_hash_is_of_one_lease")
        ]

    def __str__(self) -> str:
        return self.hash


class AskedName(models.Model):
    """A database user's name and its hash under one device, as the audit-hash API gave it: asked once for each salt.

    It is compared with what the log tells until the name's lease is known; then it goes.
    """

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    name = models.TextField()
    hash = models.TextField()
    asked_at = models.DateTimeField()
    # when it is compared next; less and less often
    due_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["name", "device", "salt_epoch"], name="a_name_is_asked_once_for_each_salt")
        ]
        # users.tie()
        indexes = [models.Index(fields=["due_at"], name="asked_name_due")]

    def __str__(self) -> str:
        return self.name


class AskedHash(models.Model):
    """How one device would write what was typed into the search box, or why it did not say: a worker's answer to the web process.

    What was typed stands nowhere. The row goes when it is read.
    """

    question = models.UUIDField()
    device = models.ForeignKey(Device, models.CASCADE, related_name="+")
    hash = models.TextField(blank=True)
    cause = models.TextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["question", "device"], name="a_device_answers_a_question_once"),
            models.CheckConstraint(
                condition=Q(hash="") & ~Q(cause="") | ~Q(hash="") & Q(cause=""),
                name="an_answer_is_a_hash_or_a_cause",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.device_id}: {self.hash or self.cause}"


class LeaseToken(models.Model):
    """Which token read a lease, in one device's words."""

    lease = models.ForeignKey(Lease, models.CASCADE, related_name="tokens")
    token = models.ForeignKey(Token, models.CASCADE, related_name="leases")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token", "lease"], name="a_token_reads_a_lease_once")]

    def __str__(self) -> str:
        return f"{self.lease_id} by {self.token_id}"


class Wrapping(models.Model):
    """A wrapping token that credentials were put into, as one device tells of it: by its accessor and by itself, a row each."""

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    key = models.TextField()
    # the read of the credentials, or the rewrapping
    request_id = models.TextField()
    at = models.DateTimeField()
    path = models.TextField()
    mount_point = models.TextField(blank=True)
    namespace_path = models.TextField(blank=True)
    address = models.TextField(blank=True)
    # of the token that read them
    accessor = models.TextField(blank=True)
    # of a rewrapping: the key of the wrapping token that went into it
    rewraps = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "salt_epoch", "key"], name="a_wrapping_token_wraps_once")
        ]
        indexes = [
            # wrapping.take(): the other key of a wrapping token, and the rewrappings of one
            models.Index(fields=["device", "salt_epoch", "request_id"], name="wrapping_by_request"),
            models.Index(
                fields=["device", "salt_epoch", "rewraps"], name="wrapping_by_rewraps", condition=~models.Q(rewraps="")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.path} in {self.key}"


class Unwrapping(models.Model):
    """Credentials that came out of their wrapping token, as one device tells of it: only here the log names their lease."""

    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    # the wrapping token's accessor, or its own HMAC where the request's data names it
    key = models.TextField()
    request_id = models.TextField()
    at = models.DateTimeField()
    lease_id = models.TextField()
    username = models.TextField(blank=True)
    address = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "salt_epoch", "key"], name="a_wrapping_token_unwraps_once")
        ]

    def __str__(self) -> str:
        return f"{self.lease_id} out of {self.key}"


class Renewals(models.Model):
    """How often a lease was renewed, by events; kept apart from the lease, whose own line may come later."""

    vault = models.ForeignKey(Vault, models.CASCADE)
    lease_name = models.ForeignKey(Text, models.DO_NOTHING, related_name="+")
    count = models.PositiveIntegerField()
    last_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "lease_name"], name="renewals_of_one_lease")]

    def __str__(self) -> str:
        return f"{self.count} of {self.lease_name_id}"


class Ending(models.Model):
    """A successful request that ends leases or a token, as one device tells of it. Leases that are told of later look here."""

    class By(models.TextChoices):
        LEASE_ID = "lease id"
        HASH = "hash of a lease id"
        PREFIX = "prefix"
        FORCE = "force"
        TOKEN = "token"
        TOKEN_HASH = "hash of a token"
        # its children live on, without a parent
        TOKEN_ALONE = "token alone"
        AUTH_MOUNT = "auth mount"

    vault = models.ForeignKey(Vault, models.CASCADE)
    device = models.ForeignKey(Device, models.CASCADE)
    salt_epoch = models.PositiveIntegerField()
    request_id = models.TextField()
    at = models.DateTimeField()
    by = models.TextField(choices=By)
    # the lease id, the prefix, the HMAC of the lease id, the accessor's or the token's HMAC, or the path of the auth mount
    target = models.TextField()
    path = models.TextField()
    namespace_path = models.TextField(blank=True)
    display_name = models.TextField(blank=True)

    class Meta:
        constraints = [
            # two devices that write to one path tell of one request with a target each
            models.UniqueConstraint(fields=["device", "request_id", "target"], name="a_device_tells_an_ending_once")
        ]
        indexes = [
            # endings.due(): by lease id, by hash, by accessor
            models.Index(fields=["vault", "by", "target"], name="ending_by_target"),
        ]

    def __str__(self) -> str:
        return f"{self.by} {self.target}"


class Hourly(models.Model):
    """Events per hour, counted by the transaction that stores them: one row for each kind, target and identity."""

    vault = models.ForeignKey(Vault, models.CASCADE)
    hour = models.DateTimeField()
    kind = models.SmallIntegerField(choices=Kind)
    # the path of credentials that were read, one of rollups.RARE, else the mount point
    target = models.ForeignKey(Text, models.DO_NOTHING, db_constraint=False, related_name="+")
    who = models.ForeignKey(Who, models.DO_NOTHING, db_constraint=False, related_name="+")
    events = models.PositiveIntegerField()
    errors = models.PositiveIntegerField()
    # how many of them are this product's own
    own = models.PositiveIntegerField()

    class Meta:
        constraints = [
            # ... and queries.accesses_by_service_account(): one vault, a stretch of hours
            models.UniqueConstraint(fields=["vault", "hour", "kind", "target", "who"], name="hour_counts_once"),
        ]

    def __str__(self) -> str:
        return f"{self.events} at {self.hour}"
