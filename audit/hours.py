"""How complete an hour of a stream is, and gaps as a person reads them. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from audit import polls
from audit.models import Coverage, Gap

HOUR = timedelta(hours=1)


class State(StrEnum):
    """From the best to the worst."""

    BEFORE = "before the first line"
    COMPLETE = "complete"
    NO_LINES = "no lines"
    LAG = "lag"
    REJECTED = "rejected"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class Period:
    """A gap. `rows` of the same kind that follow on one another are one; `closed`: all that was missing has come since."""

    kind: str
    from_at: datetime | None
    to_at: datetime
    lost_bytes: int | None
    what: str
    closed: bool
    rows: int = 1

    def touches(self, begin: datetime, end: datetime) -> bool:
        return (self.from_at or self.to_at) < end and self.to_at >= begin


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of one stream; without `row` it had no lines. `gaps` counts those that are open."""

    at: datetime
    state: State
    row: Coverage | None
    gaps: int
    # not all of it has been read yet
    unread: bool


def periods(gaps: Iterable[Gap], *, closed: Collection[int]) -> list[Period]:
    """Gaps of one stream, oldest first, as periods, oldest first."""
    found: list[Period] = []
    for gap in gaps:
        add(found, Period(gap.kind, gap.from_at, gap.to_at, gap.lost_bytes, gap.what, gap.pk in closed))
    return found


def add(found: list[Period], one: Period) -> None:
    """Adds the next one, or makes the last one longer by it."""
    before = found[-1] if found else None
    if (
        before is not None
        and one.kind == before.kind == polls.KIND
        and one.closed == before.closed
        and one.from_at == before.to_at
    ):
        found[-1] = replace(before, to_at=one.to_at, what=one.what, rows=before.rows + one.rows)
    else:
        found.append(one)


def hours(
    *,
    from_at: datetime,
    to_at: datetime,
    rows: Mapping[datetime, Coverage],
    gaps: Collection[Period],
    first_at: datetime | None,
    unread_since: datetime | None,
    late_after: float,
) -> list[Hour]:
    """The hours that begin in [from, to), oldest first. `first_at`: the first hour in which the stream had lines."""
    found = []
    at = from_at
    while at < to_at:
        row = rows.get(at)
        unread = unread_since is not None and unread_since < at + HOUR
        missing = sum(1 for gap in gaps if not gap.closed and gap.touches(at, at + HOUR))
        before = first_at is None or at < first_at
        found.append(
            Hour(
                at, state(row, gaps=missing, before=before, unread=unread, late_after=late_after), row, missing, unread
            )
        )
        at += HOUR
    return found


def state(row: Coverage | None, *, gaps: int, before: bool, unread: bool, late_after: float) -> State:
    """The worst that is known of an hour. Lines that contradict others count like rejected ones: they are in no event."""
    if gaps:
        return State.GAP
    if row is not None and (row.rejected or row.conflicts):
        return State.REJECTED
    if unread or (row is not None and row.lag_seconds > late_after):
        return State.LAG
    if row is None:
        return State.BEFORE if before else State.NO_LINES
    return State.COMPLETE


def unread_since(
    *,
    followed: bool,
    refused: bool,
    read_at: datetime | None,
    last_line_at: datetime | None,
    unread_bytes: int,
    late: timedelta,
    now: datetime,
) -> datetime | None:
    """From when on there may be lines that nobody has read; None if a followed file was read to its end just now.

    Of a stream that is `refused` nothing is taken since its last line, and where it has none, nothing ever was.
    """
    if refused:
        return last_line_at or datetime.min.replace(tzinfo=UTC)
    if not followed or read_at is None:
        return None
    if unread_bytes:
        return last_line_at or read_at
    return read_at if now - read_at > late else None
