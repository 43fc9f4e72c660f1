"""What of a stream's period is missing, by rules that are pure: from when to when, and why in words."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from audit.batch import hour
from audit.hours import HOUR, Hour, Period
from audit.pack.values import Hole, StreamCoverage, Stretch


@dataclass(frozen=True, slots=True)
class Reading:
    """How a stream is read: `way` followed, pushed or read by hand. Every line from `first_line_at` to `read_until` was.

    `proven_until`: up to then its device was asked for Leasehold's own requests, which it must have logged; None where nothing
    asks its vault.
    """

    device: str
    way: str
    retired: bool
    refused: str
    first_line_at: datetime | None
    read_until: datetime | None
    proven_until: datetime | None


def holes(
    reading: Reading,
    *,
    hours: Sequence[Hour],
    gaps: Iterable[Period],
    logged: Collection[datetime],
    from_at: datetime,
    until: datetime,
) -> Iterator[Hole]:
    """In [from, until). `logged`: the hours in which any node of the device has lines."""
    if reading.first_line_at is None or reading.read_until is None:
        yield Hole("no line of it was ever read", from_at, until)
        return
    if reading.first_line_at > from_at:
        yield Hole("before the first line that was read of it", from_at, min(reading.first_line_at, until))
    for gap in gaps:
        if not gap.closed:
            # without a beginning it may have been all the time
            begin = max(gap.from_at or from_at, from_at)
            times = f" ({gap.rows} times in a row)" if gap.rows > 1 else ""
            yield Hole(f"{gap.kind}{times}: {gap.what}", begin, max(begin, min(gap.to_at, until)))
    for one in hours:
        row, stretch = one.row, (max(one.at, from_at), min(one.at + HOUR, until))
        if row is not None and row.rejected:
            yield Hole("lines that could not be read", *stretch)
        if row is not None and row.conflicts:
            yield Hole("lines that contradict others", *stretch)
        if row is not None and row.expired:
            yield Hole("lines that came when events of their time were kept no longer", *stretch)
    for one in hours:
        inside = max(reading.first_line_at, from_at) <= one.at and one.at + HOUR <= min(reading.read_until, until)
        if inside and one.at not in logged:
            yield Hole(
                f"no line on any node of device {reading.device}, and nothing proves that there was none to write",
                one.at,
                one.at + HOUR,
            )
    if reading.proven_until is not None and reading.proven_until < min(reading.read_until, until):
        yield Hole(
            "Leasehold's own requests of then have not been looked for yet: a minute later they have",
            max(reading.proven_until, from_at),
            min(reading.read_until, until),
        )
    if reading.read_until < until:
        yield Hole(after_the_end(reading), max(reading.read_until, from_at), until)


def after_the_end(reading: Reading) -> str:
    if reading.refused:
        return f"it is refused, and nothing more is taken from it: {reading.refused}"
    if reading.retired:
        return "it was taken out of the configuration, and nothing later is read"
    if reading.way == "read by hand":
        return "it was read by hand up to here"
    if reading.way == "pushed":
        return "nothing later has been pushed"
    return "later lines have not been read yet"


def merged(found: Iterable[Hole]) -> list[Hole]:
    """In their order in time; holes of one kind that touch are one."""
    by_kind: dict[str, list[Hole]] = {}
    for hole in found:
        of_kind = by_kind.setdefault(hole.what, [])
        if of_kind and hole.from_at <= of_kind[-1].to_at:
            of_kind[-1] = msgspec.structs.replace(of_kind[-1], to_at=max(hole.to_at, of_kind[-1].to_at))
        else:
            of_kind.append(hole)
    return sorted(
        (hole for of_kind in by_kind.values() for hole in of_kind), key=lambda hole: (hole.from_at, hole.to_at)
    )


def told_elsewhere(
    streams: Sequence[StreamCoverage], lines: Mapping[str, Collection[datetime]]
) -> list[StreamCoverage]:
    """The same, each hole with the streams of the same node, but other devices, that lack nothing while it lasts.

    `lines`: by stream, the hours in which it has lines. One without any makes up for nothing.
    """
    return [
        msgspec.structs.replace(
            one,
            holes=[
                msgspec.structs.replace(
                    hole,
                    also_in=[
                        other.stream
                        for other in streams
                        if _is_twin(one, other) and _has_lines(lines[other.stream], hole) and not _overlaps(other, hole)
                    ],
                )
                for hole in one.holes
            ],
        )
        for one in streams
    ]


def _is_twin(one: StreamCoverage, other: StreamCoverage) -> bool:
    return other.counts and (one.vault, one.node) == (other.vault, other.node) and one.device != other.device


def _has_lines(hours: Collection[datetime], hole: Hole) -> bool:
    """In each hour that the hole touches."""
    at = hour(hole.from_at)
    while at in hours:
        at += HOUR
        if at >= hole.to_at:
            return True
    return False


def _overlaps(other: StreamCoverage, hole: Hole) -> bool:
    # touching counts: what is missing at one instant may be at that one
    return any(mine.from_at <= hole.to_at and mine.to_at >= hole.from_at for mine in other.holes)


def uncovered(known: Iterable[tuple[datetime, datetime]], *, from_at: datetime, until: datetime) -> list[Stretch]:
    """What of [from, until) no known stretch covers. `known` in the order of their beginnings."""
    reached, found = from_at, []
    for begin, end in known:
        if reached < begin < until:
            found.append(Stretch(reached, begin))
        elif begin >= until:
            break
        reached = max(reached, end)
    if reached < until:
        found.append(Stretch(reached, until))
    return found


def seconds(stretches: Iterable[Stretch]) -> float:
    return sum((one.to_at - one.from_at).total_seconds() for one in stretches)
