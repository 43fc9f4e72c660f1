"""Reads of notices: one function per question that a task, a page, a metric or doctor asks."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count, Max, Min, OuterRef, Q, QuerySet, Subquery

from audit.models.findings import Finding, Severity
from audit.models.notices import OPEN_NOTICE_STATES, Notice, NoticeLine, NoticeState, Receiver
from audit.notices.send import RECHECK_EVERY

# the task comes every two seconds; what waits for a message for so long beyond its group waits for a worker
LATE = timedelta(minutes=2)


def receivers() -> list[Receiver]:
    return list(Receiver.objects.filter(retired=False).order_by("name"))


def due(*, now: datetime) -> list[int]:
    """Receivers for which something is to be done now. One query."""
    open_ = Notice.objects.filter(receiver=OuterRef("pk"), state__in=OPEN_NOTICE_STATES)
    rows = Receiver.objects.filter(retired=False).annotate(
        waits_since=Subquery(_waiting().values("at")[:1]), next_try_at=Subquery(open_.values("next_try_at")[:1])
    )
    return [row.pk for row in rows.order_by("id") if _is_due(row, row.waits_since, row.next_try_at, now=now)]


def _is_due(receiver: Receiver, waits_since: datetime | None, next_try_at: datetime | None, *, now: datetime) -> bool:
    if next_try_at is not None:
        return next_try_at <= now
    if waits_since is not None and waits_since + timedelta(seconds=receiver.group_seconds) <= now:
        return True
    return needs_check(receiver, now=now)


def needs_check(receiver: Receiver, *, now: datetime) -> bool:
    """After it was configured, and while what is wrong was found by a check alone. Pure."""
    if receiver.checked_at is None:
        return True
    return bool(receiver.cause) and receiver.failing_since is None and receiver.checked_at <= now - RECHECK_EVERY


def _waiting() -> QuerySet[NoticeLine]:
    return NoticeLine.objects.filter(receiver=OuterRef("pk"), notice=None).order_by("at", "id")


@dataclass(frozen=True, slots=True)
class Ended:
    """Messages that ended in one way: how many, and when the newest did."""

    count: int = 0
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ToldHow:
    """A receiver and how it goes. `waiting`: findings that it is still to be told of, the first of them since `waits_since`."""

    receiver: Receiver
    waiting: int = 0
    waits_since: datetime | None = None
    sent: Ended = Ended()
    given_up: Ended = Ended()

    @property
    def severity(self) -> str:
        return str(Severity(self.receiver.severity).label)

    @property
    def failing(self) -> bool:
        return bool(self.receiver.cause)


def told_how() -> list[ToldHow]:
    """Every receiver that is configured, by name. The number of queries does not depend on how many there are."""
    rows = receivers()
    if not rows:
        return []
    open_ = Q(notice=None) | Q(notice__state__in=OPEN_NOTICE_STATES)
    lines = NoticeLine.objects.filter(open_, receiver__in=rows).values_list("receiver")
    waiting = {
        receiver: (count, since)
        for receiver, count, since in lines.annotate(Count("finding", distinct=True), Min("at")).order_by("receiver")
    }
    notices = Notice.objects.filter(receiver__in=rows, ended_at__isnull=False).values_list("receiver", "state")
    ended = {
        (receiver, state): Ended(count, at)
        for receiver, state, count, at in notices.annotate(Count("id"), Max("ended_at")).order_by("receiver", "state")
    }
    return [
        ToldHow(
            row,
            *waiting.get(row.pk, (0, None)),
            sent=ended.get((row.pk, NoticeState.SENT), Ended()),
            given_up=ended.get((row.pk, NoticeState.GIVEN_UP), Ended()),
        )
        for row in rows
    ]


def told_of(finding: Finding) -> list[NoticeLine]:
    """Who was told what of it, first to last, also those who are told nothing more."""
    rows = NoticeLine.objects.filter(finding=finding).select_related("receiver", "change", "notice")
    return list(rows.order_by("at", "id")[:200])


def is_late(told: ToldHow, *, now: datetime) -> bool:
    """Whether something waits that no worker has tried yet. Pure."""
    if told.waits_since is None or told.failing:
        return False
    return now - told.waits_since > timedelta(seconds=told.receiver.group_seconds) + LATE
