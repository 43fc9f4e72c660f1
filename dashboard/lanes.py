"""Bars and marks in lanes on one axis of time: pure geometry. Across in percent, so that a drawing fits any width; down in pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

# of the axis
MOST_TICKS = 6
STEPS = [
    *(timedelta(seconds=n) for n in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)),
    *(timedelta(hours=n) for n in (1, 2, 3, 6, 12, 24, 48, 120, 240, 480, 960)),
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SHORTEST = timedelta(seconds=10)
# marks of one kind that are nearer to one another than so many percent are one, with their number
NEAR = 1.5
# bars that overlap lie in rows of their own; what finds no room is counted
MOST_ROWS = 8
# pixels: a row of bars, and the lowest lane
ROW, LANE = 11, 24


@dataclass(frozen=True, slots=True)
class Axis:
    """A stretch of time, with a little room at both sides."""

    from_at: datetime
    to_at: datetime

    @classmethod
    def over(cls, from_at: datetime, to_at: datetime) -> "Axis":
        room = max(to_at - from_at, SHORTEST) / 40
        return cls(from_at - room, max(to_at, from_at + SHORTEST) + room)

    def x(self, at: datetime) -> float:
        """Percent from the left; below 0 or above 100 for what lies outside."""
        return 100 * ((at - self.from_at) / (self.to_at - self.from_at))

    def holds(self, at: datetime) -> bool:
        return self.from_at <= at <= self.to_at


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    label: str
    # the narrow screen has room for every second one
    minor: bool

    @property
    def anchor(self) -> str:
        return "start" if self.x < 5 else "end" if self.x > 95 else "middle"


@dataclass(frozen=True, slots=True)
class Bar:
    """`kind`: how it looks. `before`, `after`: it began or goes on beyond the axis."""

    x: float
    width: float
    kind: str
    title: str
    address: str = ""
    before: bool = False
    after: bool = False
    y: int = 7


@dataclass(frozen=True, slots=True)
class Mark:
    """`symbol`: of the sprite. `count`: so many lie too near to one another to be told apart."""

    x: float
    symbol: str
    kind: str
    title: str
    address: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Lane:
    name: str
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    height: int = LANE
    # what is not drawn
    note: str = ""
    address: str = ""

    @property
    def middle(self) -> int:
        return self.height // 2


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened, as a line of the list."""

    at: datetime
    lane: str
    what: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    axis: Axis
    ticks: list[Tick]
    lanes: list[Lane]
    now: float | None
    moments: list[Moment] = field(default_factory=list)
    # moments that lie outside of the drawing
    outside: int = 0


def ticks(axis: Axis) -> list[Tick]:
    """Round times in UTC, at most MOST_TICKS and one."""
    length = axis.to_at - axis.from_at
    step = next((step for step in STEPS if length / step <= MOST_TICKS), STEPS[-1])
    while length / step > MOST_TICKS:
        step *= 2
    at = EPOCH + -(-(axis.from_at - EPOCH) // step) * step
    found: list[Tick] = []
    while at <= axis.to_at:
        found.append(Tick(axis.x(at), _label(at, step, axis), bool(len(found) % 2)))
        at += step
    return found


def _label(at: datetime, step: timedelta, axis: Axis) -> str:
    """As much of a time as the step needs; where the axis reaches over several days, midnight is the day."""
    if step > STEPS[-1]:
        return f"{at:%b %Y}"
    if step >= DAY or (axis.from_at.date() != axis.to_at.date() and at == at.replace(hour=0, minute=0, second=0)):
        return f"{at:%-d %b}"
    return f"{at:%H:%M:%S}" if step < timedelta(minutes=1) else f"{at:%H:%M}"


def bar(axis: Axis, from_at: datetime, to_at: datetime, *, kind: str, title: str, address: str = "") -> Bar | None:
    """None where all of it lies outside."""
    if to_at < axis.from_at or from_at > axis.to_at:
        return None
    left, right = max(0.0, axis.x(from_at)), min(100.0, axis.x(to_at))
    return Bar(left, max(right - left, 0.0), kind, title, address, from_at < axis.from_at, to_at > axis.to_at)


def packed(bars: Iterable[Bar | None]) -> tuple[list[Bar], int, int]:
    """Bars in rows in which none overlaps, the height of their lane, and how many found no room."""
    ends: list[float] = []
    placed, left = [], 0
    for one in sorted((one for one in bars if one), key=lambda one: (one.x, -one.width)):
        row = next((n for n, end in enumerate(ends) if one.x > end + 0.3), len(ends))
        if row == MOST_ROWS:
            left += 1
            continue
        if row == len(ends):
            ends.append(0.0)
        ends[row] = one.x + max(one.width, 0.5)
        placed.append(replace(one, y=row * ROW))
    height = max(len(ends) * ROW + 4, LANE)
    above = (height - len(ends) * ROW) // 2 + 1
    return [replace(one, y=one.y + above) for one in placed], height, left


def gathered(marks: Iterable[Mark]) -> list[Mark]:
    """Marks of one kind that are too near to one another as one that says how many, and where the first of them leads."""
    found: list[Mark] = []
    for _, group in groupby(
        sorted(marks, key=lambda mark: (mark.kind, mark.symbol, mark.x)), key=lambda m: (m.kind, m.symbol)
    ):
        near: list[Mark] = []
        for mark in group:
            if near and mark.x - near[0].x > NEAR:
                found.append(_one(near))
                near = []
            near.append(mark)
        found.append(_one(near))
    return sorted(found, key=lambda mark: mark.x)


def _one(near: Sequence[Mark]) -> Mark:
    first = near[0]
    if len(near) == 1:
        return first
    title = f"{len(near)} here, the first: {first.title}"
    return Mark(first.x, first.symbol, first.kind, title, first.address, len(near))
