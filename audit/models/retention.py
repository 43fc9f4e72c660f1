"""What became of lines that are in the database no longer, and when the house was kept last."""

from django.db import models

from audit.models.streams import Stream


class Moved(models.Model):
    """One file of the archive: the lines of a stream's blocks of one day. Append-only by database rights.

    It holds each block of that stream and day from `first` to `last`: later ones get a file of their own.
    """

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="moved")
    day = models.DateField()
    # sequences of its blocks
    first = models.IntegerField()
    last = models.IntegerField()
    blocks = models.PositiveIntegerField()
    # the archive as the policy named it then, and the file's name in it
    archive = models.TextField()
    name = models.TextField()
    size = models.BigIntegerField()
    sha256 = models.TextField()
    # of the headers that stand beside it
    chain_sha256 = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(first__lte=models.F("last")), name="a_moved_file_has_blocks"),
            # parts.moved_with(), leasehold_drop_day()
            models.UniqueConstraint(fields=["stream", "day", "first"], name="a_block_is_moved_once"),
        ]

    def __str__(self) -> str:
        return self.name


class Dropped(models.Model):
    """A partition that was dropped. Only the database's own function leasehold_drop_day() can write it (migrations/0005).

    Of raw lines there is one row for each stream: how many blocks the partition held, and how many of them the archive.
    """

    # the table whose partition it was
    of = models.TextField()
    day = models.DateField()
    stream = models.ForeignKey(Stream, models.PROTECT, null=True, related_name="dropped")
    first = models.IntegerField(null=True)
    last = models.IntegerField(null=True)
    blocks = models.PositiveIntegerField(null=True)
    archived = models.PositiveIntegerField(null=True)
    at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["stream", "day"], name="dropped_of_stream")]  # blocks.records_of()

    def __str__(self) -> str:
        return f"{self.of} of {self.day}"


class Housekeeping(models.Model):
    """How retention.keep_house() is doing: one row, made by `configure`."""

    # when all that was due had been done
    kept_at = models.DateTimeField()
    tried_at = models.DateTimeField(null=True)
    # what kept it from being done
    cause = models.TextField(blank=True)
    fix = models.TextField(blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="there_is_one_house")]

    def __str__(self) -> str:
        return "housekeeping"
