"""Where lines come from, and the lines themselves in a chain of compressed blocks."""

from django.db import models

from leases.models import Vault


class Device(models.Model):
    """An audit device of a vault. One enablement has one salt: `salt_probe` is the hash of a fixed text under it."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="devices")
    name = models.TextField()
    salt_epoch = models.PositiveIntegerField(default=1)
    salt_probe = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "name"], name="device_name_is_unique_in_its_vault")]

    def __str__(self) -> str:
        return self.name


class Stream(models.Model):
    """One node's output of one device: how far it is read, and the head of its chain."""

    device = models.ForeignKey(Device, models.CASCADE, related_name="streams")
    node = models.TextField()
    path = models.TextField(blank=True)
    retired = models.BooleanField(default=False)
    # a followed file is known by device and inode and by the SHA-256 of its first bytes
    file_inode = models.TextField(blank=True)
    file_start = models.TextField(blank=True)
    offset = models.BigIntegerField(default=0)
    sequence = models.BigIntegerField(default=0)
    head = models.TextField(blank=True)
    lines = models.BigIntegerField(default=0)
    duplicates = models.BigIntegerField(default=0)
    rejected = models.BigIntegerField(default=0)
    redacted = models.BigIntegerField(default=0)
    conflicts = models.BigIntegerField(default=0)
    # why nothing more is taken from it: raw secrets where an HMAC must stand
    refused = models.TextField(blank=True)
    last_line_at = models.DateTimeField(null=True)
    read_at = models.DateTimeField(null=True)
    unread_bytes = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["device", "node"], name="stream_is_one_node_of_one_device")]

    def __str__(self) -> str:
        return f"{self.device.vault.name}/{self.device.name}/{self.node}"


class RawBlock(models.Model):
    """Lines as they were read, zstd-compressed. `sha256` covers the previous head, stream, sequence, offsets and lines."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="blocks")
    sequence = models.BigIntegerField()
    offset_from = models.BigIntegerField()
    offset_to = models.BigIntegerField()
    lines = models.PositiveIntegerField()
    previous = models.TextField(blank=True)
    sha256 = models.TextField()
    at = models.DateTimeField()
    data = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["stream", "sequence"], name="block_has_one_place_in_its_chain"),
            models.UniqueConstraint(fields=["stream", "sha256"], name="block_stands_once_in_its_chain"),
        ]

    def __str__(self) -> str:
        return f"{self.stream_id}#{self.sequence}"


class RejectedLine(models.Model):
    """A line that is no audit entry: kept with the reason and its place."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="rejected_lines")
    block_sequence = models.BigIntegerField()
    line_number = models.PositiveIntegerField()
    reason = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["stream", "block_sequence", "line_number"], name="a_line_is_rejected_once")
        ]

    def __str__(self) -> str:
        return self.reason
