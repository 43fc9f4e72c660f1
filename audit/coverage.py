"""How complete a stream is: per hour what became of its lines, and the gaps that are known."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import connection

from audit import follow
from audit.batch import OLDEST, Batch, hour
from audit.models import Coverage, Gap, Stream
from audit.plan import Plan

_HOUR = timedelta(hours=1)
_COUNTS = ("lines", "pairs", "unpaired", "duplicates", "rejected", "expired", "conflicts", "redacted")


def count(stream: Stream, batch: Batch, plan: Plan, *, now: datetime) -> None:
    """Adds a batch to the hours of its lines, inside the transaction that stores it."""
    hours: dict[datetime, dict[str, int]] = {}
    earliest: dict[datetime, datetime] = {}

    def add(at: datetime, name: str, number: int) -> None:
        row = hours.setdefault(at, dict.fromkeys(_COUNTS, 0))
        row[name] += number

    # nearly all rows of a batch are of one hour or two
    for at, lines, pairs, unpaired in _gains(plan):
        begin = hour(at)
        row = hours.get(begin)
        if row is None:
            row = hours[begin] = dict.fromkeys(_COUNTS, 0)
            earliest[begin] = at
        elif at < earliest.get(begin, at):
            earliest[begin] = at
        row["lines"] += lines
        row["pairs"] += pairs
        row["unpaired"] += unpaired
    last = stream.last_line_at or now
    for name, counter in (("duplicates", plan.duplicates), ("expired", batch.expired)):
        for at, number in counter.items():
            at = hour(last) if at == OLDEST else at
            add(at, name, number)
            add(at, "lines", number)
    for reject in plan.rejects:
        # OLDEST: it stood before the first line with a time
        at = hour(last if reject.after in (None, OLDEST) else reject.after)
        add(at, "rejected", 1)
        add(at, "lines", 1)
    for clash in plan.clashes:
        add(hour(clash.half.at), "conflicts", 1)
        add(hour(clash.half.at), "lines", 1)
    for at, number in batch.redacted.items():
        add(hour(last) if at == OLDEST else at, "redacted", number)
    rows = [
        (
            at,
            *(row[name] for name in _COUNTS),
            max(0.0, (now - earliest[at]).total_seconds()) if at in earliest else 0.0,
        )
        for at, row in sorted(hours.items())
    ]
    if not rows:
        return
    sums = ", ".join(f"{name} = c.{name} + excluded.{name}" for name in _COUNTS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO audit_coverage AS c (stream_id, hour, {", ".join(_COUNTS)}, lag_seconds)
            SELECT %s, * FROM unnest(%s::timestamptz[], {"%s::int[], " * len(_COUNTS)} %s::float8[])
            ON CONFLICT (stream_id, hour) DO UPDATE SET
              {sums}, lag_seconds = GREATEST(c.lag_seconds, excluded.lag_seconds)
            """,  # noqa: S608 (the names are the constant above)
            [stream.pk, *[list(column) for column in zip(*rows, strict=True)]],
        )


def _gains(plan: Plan) -> Iterator[tuple[datetime, int, int, int]]:
    """(time, lines, pairs, unpaired) that events add to the stream's count; whole pairs of one hour at once."""
    begin = end = earliest = None
    number = 0
    for event in plan.new.values():
        at = event.content.at
        if event.request is None or event.response is None:
            yield at, 1, 0, 1
            continue
        if begin is None or end is None or earliest is None or not begin <= at < end:
            if earliest is not None:
                yield earliest, 2 * number, number, 0
            begin, number, earliest = hour(at), 0, at
            end = begin + _HOUR
        number += 1
        if at < earliest:
            earliest = at
    if earliest is not None:
        yield earliest, 2 * number, number, 0
    for seen in plan.seen.values():
        lines = (seen.request is not None) + (seen.response is not None)
        if seen.known.sighted:
            # a half was known, and its twin has come
            yield seen.known.sighted_at or seen.known.content.at, lines, 1, -1
        else:
            yield seen.content.at, lines, lines // 2, lines % 2


def add_gap(stream: Stream, gap: follow.Gap, *, now: datetime) -> Gap:
    """A loss that was seen while reading: between the last line that was read before it and now."""
    # what the last look at the file saw waiting, which may have been read by another way since
    seen = f"; {stream.unread_bytes} bytes were seen waiting before" if stream.unread_bytes else ""
    return Gap.objects.create(
        stream=stream,
        kind=gap.kind,
        what=(gap.what + seen)[:1000],
        lost_bytes=gap.lost_bytes,
        from_at=stream.last_line_at,
        to_at=now,
        at=now,
    )


def of_stream(stream: Stream, *, from_at: datetime, to_at: datetime) -> list[Coverage]:
    """The hours of [from, to) in which the stream had lines, oldest first."""
    return list(Coverage.objects.filter(stream=stream, hour__gte=hour(from_at), hour__lt=to_at).order_by("hour"))
