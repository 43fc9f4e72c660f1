"""How complete a stream is: per hour what became of its lines, and the gaps that are known."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection

from audit.batch import OLDEST, Batch, hour
from audit.models import Coverage, Gap, Stream
from audit.plan import Plan, Sighted

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

    # the rows of one batch are nearly all of one hour or two: most are counted without a call
    for seen in plan.sighted.values():
        at = hour(seen.at)
        lines, pairs, unpaired = _gain(seen, at, moved)
        row = hours.get(at)
        if row is None:
            row = hours[at] = dict.fromkeys(_COUNTS, 0)
        row["lines"] += lines
        row["pairs"] += pairs
        row["unpaired"] += unpaired
        request, response = seen.request, seen.response
        half = request or response
        if half is not None and (wait := stored_at[half.block] - half.at) > waits.get(at, _NO_TIME):
            waits[at] = wait
        # a response waited less than its request, unless it was stored later
        if request is not None and response is not None and request.block != response.block:
            waits[at] = max(waits.get(at, _NO_TIME), stored_at[response.block] - response.at)
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


def _gain(seen: Sighted, at: datetime, moved: dict[datetime, list[int]]) -> tuple[int, int, int]:
    """(lines, pairs, unpaired) that this adds to the hour `at`. `moved` collects what another hour loses by it."""
    lines = (seen.request is not None) + (seen.response is not None)
    known = seen.known
    if known is None or not known.sighted or known.sighted_at is None:
        return lines, lines // 2, lines % 2
    before = (known.request_block is not None) + (known.response_block is not None)
    after = before + lines
    was_at = hour(known.sighted_at)
    if was_at == at:
        return lines, after // 2 - before // 2, after % 2 - before % 2
    # its request was told after its response, which stands in the next hour
    lost = moved.setdefault(was_at, [0, 0, 0])
    for place, number in enumerate((before, before // 2, before % 2)):
        lost[place] += number
    return after, after // 2, after % 2


def add_gap(stream: Stream, *, kind: str, what: str, lost_bytes: int | None, now: datetime) -> Gap:
    """A loss that was seen: between the last line that was read and now."""
    return Gap.objects.create(
        stream=stream,
        kind=kind,
        what=what[:1000],
        lost_bytes=lost_bytes,
        from_at=stream.last_line_at,
        to_at=now,
        at=now,
    )


def of_stream(stream: Stream, *, from_at: datetime, to_at: datetime) -> list[Coverage]:
    """The hours of [from, to) in which the stream had lines, oldest first."""
    return list(Coverage.objects.filter(stream=stream, hour__gte=hour(from_at), hour__lt=to_at).order_by("hour"))
