"""Notices: who is told of findings, and which change of a finding was told to whom in which message."""

import uuid

from django.db import models
from django.db.models import Q

from audit.models.findings import Finding, FindingChange, Severity


class Form(models.TextChoices):
    JSON = "json"
    SLACK = "slack"


class Receiver(models.Model):
    """One [[notices]] of leasehold.toml, and how it is doing. The signing secret stands here by reference only."""

    name = models.TextField(unique=True)
    form = models.TextField(choices=Form)
    # one of the two: an address that is a secret itself (Slack's) is named by reference
    url = models.TextField(blank=True)
    url_reference = models.JSONField(null=True)
    secret = models.JSONField(null=True)
    severity = models.PositiveSmallIntegerField(choices=Severity, default=Severity.HIGH)
    group_seconds = models.FloatField(default=10.0)
    ca_file = models.TextField(blank=True)
    insecure = models.BooleanField(default=False)
    # [site] url: what links in messages begin with
    site_url = models.TextField(blank=True)
    # taken out of the configuration: kept for its history, told nothing more
    retired = models.BooleanField(default=False)
    # when a worker last saw whether its address and its secret can be used; None asks for it at once
    checked_at = models.DateTimeField(null=True)
    # what is wrong now: of the last attempt (then `failing_since` says since when), or of the configuration
    cause = models.TextField(blank=True)
    fix = models.TextField(blank=True)
    failing_since = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(url="") ^ Q(url_reference__isnull=True),
                name="a_receiver_has_an_address_plain_or_by_reference",
            ),
            models.CheckConstraint(
                condition=Q(failing_since=None) | ~Q(cause=""), name="a_failing_receiver_names_its_cause"
            ),
            models.CheckConstraint(
                condition=~Q(form=Form.JSON) | Q(secret__isnull=False), name="a_json_receiver_has_a_secret"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class NoticeState(models.TextChoices):
    WAITING = "waiting"
    REFUSED = "refused"
    SENT = "sent"
    GIVEN_UP = "given up"


OPEN_NOTICE_STATES = [NoticeState.WAITING, NoticeState.REFUSED]

# state -> states that may follow; the only place that says so, and what docs/notices.md draws
TRANSITIONS: dict[str, tuple[str, ...]] = {
    NoticeState.WAITING: (NoticeState.SENT, NoticeState.REFUSED, NoticeState.GIVEN_UP),
    NoticeState.REFUSED: (NoticeState.WAITING, NoticeState.SENT, NoticeState.GIVEN_UP),
    NoticeState.SENT: (),
    NoticeState.GIVEN_UP: (),
}


class Notice(models.Model):
    """One message to one receiver. Its id is the webhook-id, the same at each attempt."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    receiver = models.ForeignKey(Receiver, models.PROTECT, related_name="notices")
    state = models.TextField(choices=NoticeState, default=NoticeState.WAITING)
    # the receiver took offence at its content: it is tried again without what others chose the words of
    reduced = models.BooleanField(default=False)
    made_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    # while an attempt runs: until when it is waited for
    next_try_at = models.DateTimeField(null=True)
    # what went wrong at the last attempt
    cause = models.TextField(blank=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["receiver"], condition=Q(state__in=OPEN_NOTICE_STATES), name="one_open_notice_of_a_receiver"
            ),
            models.CheckConstraint(
                condition=Q(state__in=OPEN_NOTICE_STATES, ended_at=None, next_try_at__isnull=False)
                | Q(state__in=[NoticeState.SENT, NoticeState.GIVEN_UP], ended_at__isnull=False, next_try_at=None),
                name="an_open_notice_is_tried_again_and_an_ended_one_is_not",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=[NoticeState.REFUSED, NoticeState.GIVEN_UP]) | ~Q(cause=""),
                name="a_notice_that_was_not_taken_says_why",
            ),
        ]
        indexes = [
            # notices.queries.told_how(): the newest that ended
            models.Index(
                fields=["receiver", "-ended_at"], condition=Q(ended_at__isnull=False), name="notice_that_ended"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pk}: {self.state}"

    @property
    def webhook_id(self) -> str:
        return f"msg_{self.pk.hex}"


class NoticeLine(models.Model):
    """One change of a finding that one receiver is told of. Written with the change; without `notice` it waits for a message."""

    receiver = models.ForeignKey(Receiver, models.PROTECT, related_name="lines")
    finding = models.ForeignKey(Finding, models.PROTECT, related_name="notice_lines")
    change = models.ForeignKey(FindingChange, models.PROTECT, related_name="notice_lines")
    notice = models.ForeignKey(Notice, models.PROTECT, null=True, related_name="lines")
    # when the change was
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["receiver", "change"], name="a_receiver_is_told_of_a_change_once")
        ]
        indexes = [
            # notices.queries.due(), notices.send: what waits for a message
            models.Index(fields=["receiver", "at", "id"], condition=Q(notice=None), name="notice_line_that_waits"),
        ]

    def __str__(self) -> str:
        return f"{self.receiver_id}: {self.change_id}"
