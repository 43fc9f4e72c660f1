"""How complete a stream is: per hour what became of its lines, and the gaps that are known."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from django.db import connection

from audit import follow
from audit.batch import OLDEST, Batch, hour
from audit.models import Gap, Stream
from audit.plan import Plan, Seen

_HOUR = timedelta(hours=1)
_COUNTS = ("lines", "pairs", "unpaired", "duplicates", "rejected", "expired", "conflicts", "redacted")
_NO_TIME = timedelta()


def count(stream: Stream, batch: Batch, plan: Plan, stored_at: Sequence[datetime]) -> None:
    """Adds a batch to the hours of its lines, inside the transaction that stores it. `stored_at`: for each of its blocks."""
    hours: dict[datetime, dict[str, int]] = {}
    waits: dict[datetime, timedelta] = {}
    moved: dict[datetime, list[int]] = {}

    def add(at: datetime, name: str, number: int) -> None:
        row = hours.setdefault(at, dict.fromkeys(_COUNTS, 0))
        row[name] += number

    for begin, at, block, lines, pairs, unpaired in _gains(plan, moved):
        row = hours.get(begin)
        if row is None:
            row = hours[begin] = dict.fromkeys(_COUNTS, 0)
        if (wait := stored_at[block] - at) > waits.get(begin, _NO_TIME):
            waits[begin] = wait
        row["lines"] += lines
        row["pairs"] += pairs
        row["unpaired"] += unpaired
    last = stream.last_line_at
    for name, counter in (("duplicates", plan.duplicates), ("expired", batch.expired), ("redacted", batch.redacted)):
        for at, number in counter.items():
            at = hour(last or stored_at[0]) if at == OLDEST else at
            add(at, name, number)
            if name != "redacted":
                add(at, "lines", number)
    for reject in plan.rejects:
        # the newest line before it, in this batch or an earlier one
        after = max(reject.after or OLDEST, last or OLDEST)
        at = hour(stored_at[reject.block] if after == OLDEST else after)
        add(at, "rejected", 1)
        add(at, "lines", 1)
    for clash in plan.clashes:
        add(hour(clash.half.at), "conflicts", 1)
        add(hour(clash.half.at), "lines", 1)
    rows = [
        (at, *(row[name] for name in _COUNTS), waits.get(at, _NO_TIME).total_seconds())
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
        if moved:
            losses = [(at, *row) for at, row in sorted(moved.items())]
            cursor.execute(
                """
                UPDATE audit_coverage c SET lines = c.lines - u.lines, pairs = c.pairs - u.pairs, unpaired = c.unpaired - u.unpaired
                FROM unnest(%s::timestamptz[], %s::int[], %s::int[], %s::int[]) AS u (hour, lines, pairs, unpaired)
                WHERE c.stream_id = %s AND c.hour = u.hour
                """,
                [*[list(column) for column in zip(*losses, strict=True)], stream.pk],
            )
            cursor.execute(
                "DELETE FROM audit_coverage WHERE stream_id = %s AND hour = ANY(%s) AND lines = 0 AND redacted = 0",
                [stream.pk, sorted(moved)],
            )


# an hour, a time in it, the block that was told of then, and (lines, pairs, unpaired) that it gains
_Gain = tuple[datetime, datetime, int, int, int, int]


def _gains(plan: Plan, moved: dict[datetime, list[int]]) -> Iterator[_Gain]:
    """What events add to the hours of the stream. `moved` collects what other hours lose by it.

    Nearly all are whole pairs of one hour and block: those are told together, with the earliest of their times.
    """
    begin = end = earliest = None
    number = place = 0
    for event in plan.new.values():
        request, response, at = event.request, event.response, event.content.at
        if request is None or response is None:
            half = request or response
            assert half is not None  # noqa: S101 (an event has a half)
            yield hour(at), half.at, half.block, 1, 0, 1
            continue
        if request.block != response.block:
            # that one may have been stored later
            yield hour(at), response.at, response.block, 0, 0, 0
        if begin is None or end is None or earliest is None or request.block != place or not begin <= at < end:
            if begin is not None and earliest is not None:
                yield begin, earliest, place, 2 * number, number, 0
            begin, number, earliest, place = hour(at), 0, at, request.block
            end = begin + _HOUR
        number += 1
        if at < earliest:
            earliest = at
    if begin is not None and earliest is not None:
        yield begin, earliest, place, 2 * number, number, 0
    for seen in plan.seen.values():
        yield from _gain(seen, moved)


def _gain(seen: Seen, moved: dict[datetime, list[int]]) -> Iterator[_Gain]:
    known, half = seen.known, seen.request or seen.response
    lines = (seen.request is not None) + (seen.response is not None)
    before = (known.request_block is not None) + (known.response_block is not None)
    after, begin = before + lines, hour(seen.at)
    if known.sighted and known.sighted_at is not None and (was_at := hour(known.sighted_at)) != begin:
        # its request was told after its response, which stands in the next hour
        lost = moved.setdefault(was_at, [0, 0, 0])
        for place, number in enumerate((before, before // 2, before % 2)):
            lost[place] += number
        before = 0
    if half is not None:
        yield begin, half.at, half.block, after - before, after // 2 - before // 2, after % 2 - before % 2
    if seen.response is not None and seen.response is not half:
        yield begin, seen.response.at, seen.response.block, 0, 0, 0


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
