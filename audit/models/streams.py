"""Where lines come from, the lines themselves in a chain of compressed blocks, and how complete they are."""

from django.db import models

from leases.models import Vault

SHA256_OR_NONE = r"^([0-9a-f]{64})?$"


class Device(models.Model):
    """An audit device of a vault. One enablement has one salt: `salt_probe` is the hash of a fixed text under it."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="devices")
    name = models.TextField()
    salt_epoch = models.PositiveIntegerField(default=1)
    salt_probe = models.TextField(blank=True)
    # when its salt was last found to be another one
    salt_changed_at = models.DateTimeField(null=True)
    # since when the vault lists it no longer
    missing_since = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "name"], name="device_name_is_unique_in_its_vault")]

    def __str__(self) -> str:
        return self.name


class Stream(models.Model):
    """One node's output of one device: how far it is read, and the head of its chain."""

    device = models.ForeignKey(Device, models.CASCADE, related_name="streams")
    node = models.TextField()
    path = models.TextField(blank=True)
    # a log shipper sends its lines over HTTP, instead of a worker following a file
    pushed = models.BooleanField(default=False)
    # the shipper's bearer token, which is kept nowhere; and the one before it, until the new one is used
    push_token_sha256 = models.TextField(blank=True)
    push_token_before_sha256 = models.TextField(blank=True)
    retired = models.BooleanField(default=False)
    # a followed file is known by device and inode and by the SHA-256 of its first bytes
    file_inode = models.TextField(blank=True)
    file_start = models.TextField(blank=True)
    offset = models.BigIntegerField(default=0)
    sequence = models.BigIntegerField(default=0)
    head = models.TextField(blank=True)
    # lines = parts + duplicates + rejected + expired + conflicts; redactions are counted beside
    lines = models.BigIntegerField(default=0)
    parts = models.BigIntegerField(default=0)
    duplicates = models.BigIntegerField(default=0)
    rejected = models.BigIntegerField(default=0)
    expired = models.BigIntegerField(default=0)
    conflicts = models.BigIntegerField(default=0)
    redacted = models.BigIntegerField(default=0)
    # why nothing more is taken from it: raw secrets where an HMAC must stand
    refused = models.TextField(blank=True)
    last_line_at = models.DateTimeField(null=True)
    read_at = models.DateTimeField(null=True)
    unread_bytes = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "node"], name="stream_is_one_node_of_one_device"),
            models.CheckConstraint(
                condition=models.Q(
                    lines=models.F("parts")
                    + models.F("duplicates")
                    + models.F("rejected")
                    + models.F("expired")
                    + models.F("conflicts")
                ),
                name="every_line_became_one_thing",
            ),
            models.CheckConstraint(
                condition=models.Q(pushed=False) | models.Q(path=""), name="a_stream_has_one_way_in"
            ),
            models.CheckConstraint(
                condition=models.Q(push_token_sha256="", push_token_before_sha256="") | models.Q(pushed=True),
                name="only_a_pushed_stream_has_a_token",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    push_token_sha256__regex=SHA256_OR_NONE, push_token_before_sha256__regex=SHA256_OR_NONE
                ),
                name="a_token_is_kept_as_its_hash",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.device.vault.name}/{self.device.name}/{self.node}"


class RawBlock(models.Model):
    """The header of a block of lines as they were read. It outlives the lines, which stand in BlockLines.

    `sha256` covers the previous head, stream, sequence, offsets, the number of lines, the salt epoch and `lines_sha256`, which
    is over the uncompressed lines: so the chain of headers can be checked where the lines have been moved away.
    """

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="blocks")
    sequence = models.IntegerField()
    offset_from = models.BigIntegerField()
    offset_to = models.BigIntegerField()
    lines = models.PositiveIntegerField()
    size = models.BigIntegerField()
    # the device's when the lines were read: their HMACs mean nothing under another one
    salt_epoch = models.PositiveIntegerField()
    # of its newest line; retention goes by it
    until = models.DateTimeField()
    previous = models.TextField(blank=True)
    lines_sha256 = models.TextField()
    sha256 = models.TextField()
    # when it was stored; `rebuild` reads the lines as of then
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["stream", "sequence"], name="block_has_one_place_in_its_chain"),
            models.UniqueConstraint(fields=["stream", "sha256"], name="block_stands_once_in_its_chain"),
        ]

    def __str__(self) -> str:
        return f"{self.stream_id}#{self.sequence}"


class BlockLines(models.Model):
    """The lines of a block, zstd-compressed, in daily partitions by the block's `until` (migrations/0005)."""

    pk = models.CompositePrimaryKey("stream", "sequence")
    until = models.DateTimeField()
    stream = models.ForeignKey(Stream, models.DO_NOTHING, db_constraint=False, related_name="+")
    sequence = models.IntegerField()
    data = models.BinaryField()

    class Meta:
        db_table = "audit_blocklines"

    def __str__(self) -> str:
        return f"{self.stream_id}#{self.sequence}"


class RejectedLine(models.Model):
    """A line that is no audit entry: kept with the reason and its place. The same text again is a duplicate."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="rejected_lines")
    block_sequence = models.IntegerField()
    # counted from 0 in its block
    line_number = models.PositiveIntegerField()
    digest = models.UUIDField()
    reason = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["stream", "digest"], name="a_text_is_rejected_once"),
        ]

    def __str__(self) -> str:
        return self.reason


class Conflict(models.Model):
    """A line whose request is known with other content (hashes and times aside): kept, never merged."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="conflict_lines")
    block_sequence = models.IntegerField()
    line_number = models.PositiveIntegerField()
    digest = models.UUIDField()
    request_id = models.TextField()
    # the names of the fields that differ
    fields = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["stream", "digest"], name="a_line_conflicts_once")]

    def __str__(self) -> str:
        return f"{self.request_id}: {self.fields}"


class Gap(models.Model):
    """Lines that are known to be missing from a stream: what was lost, and between which times."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="gaps")
    # a kind of follow.Gap, or "poll not seen"
    kind = models.TextField()
    from_at = models.DateTimeField(null=True)
    to_at = models.DateTimeField()
    # None where it cannot be known
    lost_bytes = models.BigIntegerField(null=True)
    what = models.TextField()
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["stream", "-to_at"], name="gap_newest")]  # coverage.gaps()

    def __str__(self) -> str:
        return self.what


class Coverage(models.Model):
    """One stream's lines of one hour (by their own times; a rejected line counts with the line before it)."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="coverage")
    hour = models.DateTimeField()
    lines = models.PositiveIntegerField(default=0)
    # events of which this stream has both halves, and one half
    pairs = models.PositiveIntegerField(default=0)
    unpaired = models.IntegerField(default=0)
    duplicates = models.PositiveIntegerField(default=0)
    rejected = models.PositiveIntegerField(default=0)
    expired = models.PositiveIntegerField(default=0)
    conflicts = models.PositiveIntegerField(default=0)
    redacted = models.PositiveIntegerField(default=0)
    # the longest that a line waited from its own time until it was stored
    lag_seconds = models.FloatField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["stream", "hour"], name="an_hour_of_a_stream_is_one_row"),
        ]

    def __str__(self) -> str:
        return f"{self.stream_id} at {self.hour}"
