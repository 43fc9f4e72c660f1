"""Reads how complete streams are in a period, one stream after the other, so that a year of many streams needs little memory."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, islice
from typing import TypeVar

from django.db import connection
from django.db.models import OuterRef, Q, Subquery, Sum

from audit import exports, polls
from audit.batch import hour
from audit.hours import Hour, Period, State, add, hours, periods
from audit.models import Coverage, Dropped, Gap, Stream
from audit.pack import holes
from audit.pack.values import MOST, GapTold, Lines, StreamCoverage
from leases import health
from leases.models import OwnRequest, Vault

HOURS = [
    "hour",
    "vault",
    "device",
    "node",
    "state",
    "lines",
    "pairs",
    "unpaired",
    "duplicates",
    "rejected",
    "expired",
    "conflicts",
    "redacted",
    "longest_wait_seconds",
    "open_gaps",
]
GAPS = ["from", "to", "vault", "device", "node", "kind", "what", "lost_bytes", "closed", "gaps"]
_COUNTS = ("lines", "pairs", "unpaired", "duplicates", "rejected", "expired", "conflicts", "redacted")
_BATCH = 2000
# the clock asks every ten seconds; a device that is asked later is asked
CHECKED_EVERY = timedelta(seconds=30)
Row = TypeVar("Row", Coverage, Gap)


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of one stream in the period. `counts`: whether it is judged (see StreamCoverage)."""

    stream: Stream
    reading: holes.Reading
    hours: list[Hour]
    gaps: list[Period]
    counts: bool


def streams(*, from_at: datetime, until: datetime, now: datetime) -> Iterator[Read]:
    """Every stream that ever was, by the time of its making."""
    earliest = Coverage.objects.filter(stream=OuterRef("pk")).order_by("hour").values("hour")[:1]
    known = list(Stream.objects.select_related("device__vault").annotate(first_hour=Subquery(earliest)).order_by("pk"))
    firsts = first_lines({stream.pk: stream.first_hour for stream in known if stream.first_hour})
    rows = by_stream(
        Coverage.objects.filter(hour__gte=hour(from_at), hour__lt=until)
        .order_by("stream_id", "hour")
        .iterator(chunk_size=_BATCH)
    )
    begun = Q(from_at__lt=until) | Q(from_at=None, to_at__lt=until)
    gaps = by_stream(
        Gap.objects.filter(begun, to_at__gt=from_at)
        .select_related("stream")
        .order_by("stream_id", "to_at", "id")
        .iterator(chunk_size=_BATCH)
    )
    looked_for = looked_for_until(until=until, now=now)
    late = health.stale_after().total_seconds()
    for stream in known:
        of_hours = {row.hour: row for row in rows(stream.pk)}
        of_gaps = _periods(gaps(stream.pk))
        reading = _reading(stream, firsts.get(stream.pk), looked_for[stream.device.vault_id])
        live = not stream.retired and reading.way != "read by hand"
        behind = live and not stream.refused and reading.read_until is not None and reading.read_until < until
        within = hours(
            from_at=hour(from_at),
            to_at=until,
            rows=of_hours,
            gaps=of_gaps,
            first_at=stream.first_hour,
            unread_since=reading.read_until if behind else None,
            late_after=late,
        )
        yield Read(stream, reading, within, of_gaps, live or bool(of_hours or of_gaps))


def by_stream(rows: Iterator[Row]) -> Callable[[int], Iterator[Row]]:
    """Gives the rows of a stream that is asked for, of rows in the order of their streams; these must be asked for in that order."""
    groups = groupby(rows, key=lambda row: row.stream_id)
    waiting: list[tuple[int, Iterator[Row]]] = []

    def of(stream_id: int) -> Iterator[Row]:
        if not waiting and (group := next(groups, None)):
            waiting.append(group)
        return waiting.pop()[1] if waiting and waiting[0][0] == stream_id else iter(())

    return of


def _periods(gaps: Iterator[Gap]) -> list[Period]:
    """A device that lacks polls for months has a row for each minute: they are one period, and only some are held at once."""
    found: list[Period] = []
    while batch := list(islice(gaps, _BATCH)):
        for period in periods(batch, closed=polls.turned_up(batch)):
            add(found, period)
    return found


def looked_for_until(*, until: datetime, now: datetime) -> dict[int, datetime]:
    """By vault, up to when its audit devices were asked for Leasehold's own requests. See polls.check()."""
    found = dict.fromkeys(Vault.objects.values_list("pk", flat=True), now - polls.SETTLED - CHECKED_EVERY)
    noted: dict[int, list[datetime]] = defaultdict(list)
    # of those that were found the last one stays; any others still wait
    rows = OwnRequest.objects.filter(at__lt=until).order_by("vault", "at").values_list("vault", "at")
    for vault, at in rows.iterator(chunk_size=_BATCH):
        if len(noted[vault]) < 2:
            noted[vault].append(at)
    for vault, times in noted.items():
        if len(times) > 1:
            found[vault] = min(found[vault], times[0])
    return found


def _reading(stream: Stream, first_line_at: datetime | None, looked_for: datetime) -> holes.Reading:
    way = "followed" if stream.path else "pushed" if stream.pushed else "read by hand"
    read_to_end = way == "followed" and not stream.retired and not stream.refused and stream.unread_bytes == 0
    read_until = stream.read_at if read_to_end and stream.read_at else stream.last_line_at
    polled = not (stream.device.vault.retired or stream.retired or stream.refused or way == "read by hand")
    return holes.Reading(
        device=stream.device.name,
        way=way,
        retired=stream.retired,
        refused=stream.refused,
        first_line_at=first_line_at,
        read_until=read_until,
        proven_until=min(looked_for, read_until - polls.READ_PAST) if polled and read_until else None,
    )


def first_lines(first_hours: dict[int, datetime]) -> dict[int, datetime]:
    """When the first line of each stream was written; its hour where the events of then are kept no longer."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT f.stream, COALESCE((
              SELECT min(s.at) FROM audit_sighting s
              WHERE s.stream_id = f.stream AND s.at >= f.hour AND s.at < f.hour + interval '1 hour'), f.hour)
            FROM unnest(%s::int[], %s::timestamptz[]) AS f (stream, hour)
            """,
            [list(first_hours), list(first_hours.values())],
        )
        return dict(cursor.fetchall())


def told(
    read: Read, *, logged: Collection[datetime], gone: tuple[int, int], from_at: datetime, until: datetime
) -> StreamCoverage:
    """`gone`: how many blocks of the period's days were dropped, and how many of those are in the archive."""
    stream, reading = read.stream, read.reading
    missing = holes.holes(reading, hours=read.hours, gaps=read.gaps, logged=logged, from_at=from_at, until=until)
    lines = Lines()
    for one in read.hours:
        for name in _COUNTS if one.row else ():
            setattr(lines, name, getattr(lines, name) + getattr(one.row, name))
    read_until = reading.read_until
    return StreamCoverage(
        stream=str(stream),
        vault=stream.device.vault.name,
        device=stream.device.name,
        node=stream.node,
        way=reading.way,
        counts=read.counts,
        retired=stream.retired,
        refused=stream.refused,
        first_line_at=reading.first_line_at,
        last_line_at=stream.last_line_at,
        read_until=read_until,
        lag_seconds=max(0.0, (until - read_until).total_seconds()) if read_until else None,
        unread_bytes=stream.unread_bytes,
        longest_wait_seconds=max((one.row.lag_seconds for one in read.hours if one.row), default=0.0),
        hours=dict.fromkeys(map(str, State), 0) | Counter(str(one.state) for one in read.hours),
        lines=lines,
        gaps=[gap_told(gap) for gap in read.gaps[:MOST]],
        more_gaps=len(read.gaps[MOST:]),
        # all of them: what they mean for other streams is not told yet
        holes=holes.merged(missing) if read.counts else [],
        more_holes=0,
        blocks_dropped=gone[0],
        blocks_archived=gone[1],
    )


def gap_told(gap: Period) -> GapTold:
    return GapTold(gap.kind, gap.what, gap.to_at, gap.from_at, gap.lost_bytes, gap.closed, gap.rows)


def logged_hours(*, from_at: datetime, until: datetime) -> dict[int, set[datetime]]:
    """By device, the hours in which any of its nodes has lines."""
    found: dict[int, set[datetime]] = defaultdict(set)
    rows = Coverage.objects.filter(hour__gte=hour(from_at), hour__lt=until, lines__gt=0)
    for device, at in rows.values_list("stream__device", "hour").distinct().iterator(chunk_size=_BATCH):
        found[device].add(at)
    return found


def dropped(*, from_at: datetime, until: datetime) -> dict[int, tuple[int, int]]:
    """By stream, blocks whose lines are of the period's days and in the database no longer; how many of them are archived."""
    rows = Dropped.objects.filter(stream__isnull=False, **_days(from_at, until)).order_by()
    sums = rows.values("stream").annotate(n=Sum("blocks"), kept=Sum("archived"))
    return {row["stream"]: (row["n"] or 0, row["kept"] or 0) for row in sums}


def days_without_events(*, from_at: datetime, until: datetime) -> list[str]:
    rows = Dropped.objects.filter(of="audit_event", **_days(from_at, until)).order_by("day")
    return [str(day) for day in rows.values_list("day", flat=True).distinct()]


def _days(from_at: datetime, until: datetime) -> dict[str, date]:
    return {"day__gte": from_at.astimezone(UTC).date(), "day__lte": until.astimezone(UTC).date()}


def hour_rows(*, from_at: datetime, until: datetime, now: datetime) -> Iterator[exports.Row]:
    """Rows of coverage.csv: each hour of each stream that is judged."""
    for read in streams(from_at=from_at, until=until, now=now):
        for one in read.hours if read.counts else ():
            counts = {name: getattr(one.row, name) if one.row else 0 for name in _COUNTS}
            wait = round(one.row.lag_seconds, 3) if one.row else None
            yield {
                "hour": one.at,
                **_place(read.stream),
                "state": str(one.state),
                **counts,
                "longest_wait_seconds": wait,
                "open_gaps": one.gaps,
            }


def gap_rows(*, from_at: datetime, until: datetime, now: datetime) -> Iterator[exports.Row]:
    """Rows of gaps.csv, those that are closed too."""
    for read in streams(from_at=from_at, until=until, now=now):
        for gap in read.gaps:
            yield {
                "from": gap.from_at,
                "to": gap.to_at,
                **_place(read.stream),
                "kind": gap.kind,
                "what": gap.what,
                "lost_bytes": gap.lost_bytes,
                "closed": gap.closed,
                "gaps": gap.rows,
            }


def _place(stream: Stream) -> exports.Row:
    return {"vault": stream.device.vault.name, "device": stream.device.name, "node": stream.node}
