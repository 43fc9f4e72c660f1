"""Findings: what a rule says a person should look at, and how each came and went."""

from django.db import models
from django.db.models import Q


class Severity(models.IntegerChoices):
    LOW = 1, "low"
    MEDIUM = 2, "medium"
    HIGH = 3, "high"


class FindingKind(models.TextChoices):
    """One for each rule of audit.findings; audit.findings.kinds says what each means and what to do."""

    EXPLOSION = "lease explosion"
    OUTLIVES_POD = "lease outlives its pod"
    HOLDER_UNKNOWN = "holder unknown"
    OVER_TTL = "TTL over policy"
    IRREVOCABLE = "irrevocable lease"
    ISSUED_TWICE = "issued twice at start"
    ROOT_TOKEN = "root token used"
    STATIC_ROLE = "static database role read"
    DENIALS = "repeated denials"
    ENTITY_CHANGED = "entity disabled or re-enabled"
    DEVICE_DISABLED = "audit device disabled"
    DEVICE_ANEW = "audit device enabled anew"
    RAW_DEVICE = "audit device logs raw secrets"
    GAP = "audit lines missing"
    LAG = "stream behind"
    WATCH_GAP = "pod watch gap"
    CONFLICT = "contradicting lines"
    REVOCATION_FAILED = "revocation failed"
    ELSEWHERE = "credential used from elsewhere"
    LOGIN_ELSEWHERE = "login from elsewhere"
    GHOST_USER = "database user without a lease"
    NO_USER = "lease without a database user"
    USER_VANISHED = "session outlives its user"
    BACK = "back in spite of containment"


class Finding(models.Model):
    """One thing that a rule found, for as long as it lasts. `key` says what it is about: while it is open there is one of it."""

    kind = models.TextField(choices=FindingKind)
    key = models.TextField()
    severity = models.PositiveSmallIntegerField(choices=Severity)
    vault = models.TextField(blank=True)
    summary = models.TextField()
    # who did it, or has it, as far as that is known
    culprit = models.TextField(blank=True)
    service_account_namespace = models.TextField(blank=True)
    service_account = models.TextField(blank=True)
    # what it rests on: a list of audit.findings.found.Item
    evidence = models.JSONField(default=list)
    # how much of it there is, and the newest of it: whether it has become worse since a person closed it
    weight = models.BigIntegerField(default=1)
    newest_at = models.DateTimeField(null=True)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    closed_why = models.TextField(blank=True)
    # empty where its facts were gone
    closed_by = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "key"], condition=Q(closed_at=None), name="one_open_finding_of_a_thing"
            ),
            models.CheckConstraint(
                condition=Q(closed_at=None, closed_why="", closed_by="")
                | Q(closed_at__isnull=False) & ~Q(closed_why=""),
                name="a_closed_finding_says_why",
            ),
            models.CheckConstraint(
                condition=Q(last_seen_at__gte=models.F("first_seen_at")), name="a_finding_is_seen_first_before_last"
            ),
        ]
        indexes = [
            # findings.queries.page(), worst(), open_counts()
            models.Index(
                fields=["-severity", "-first_seen_at", "-id"], condition=Q(closed_at=None), name="finding_open"
            ),
            # findings.queries.page(): closed ones
            models.Index(fields=["-closed_at", "-id"], condition=Q(closed_at__isnull=False), name="finding_closed"),
            # findings.queries.concerning()
            models.Index(fields=["key", "-last_seen_at"], name="finding_by_key"),
            # findings.watch.look(): what was seen lately may come back
            models.Index(fields=["last_seen_at"], name="finding_seen"),
        ]

    def __str__(self) -> str:
        return f"{self.kind}: {self.summary}"

    @property
    def open(self) -> bool:
        return self.closed_at is None


class Look(models.Model):
    """When the rules were run last, to their end: one row. Without it nobody could tell "nothing found" from "nobody looked"."""

    at = models.DateTimeField()
    seconds = models.FloatField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="there_is_one_look")]

    def __str__(self) -> str:
        return f"{self.at:%FT%TZ}"


class FindingChange(models.Model):
    """How a finding came and went. Append-only by database rights."""

    class Change(models.TextChoices):
        OPENED = "opened"
        WORSENED = "worsened"
        REOPENED = "reopened"
        CLOSED = "closed"

    finding = models.ForeignKey(Finding, models.PROTECT, related_name="changes")
    at = models.DateTimeField()
    change = models.TextField(choices=Change)
    severity = models.PositiveSmallIntegerField(choices=Severity)
    # what was said then: the summary, or why it was closed
    why = models.TextField()
    by = models.TextField(blank=True)

    class Meta:
        # findings.queries.changes_of()
        indexes = [models.Index(fields=["finding", "at", "id"], name="changes_of_finding")]

    def __str__(self) -> str:
        return f"{self.finding_id} {self.change}"
