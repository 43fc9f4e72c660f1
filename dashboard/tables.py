"""Rows as the pages lay them out: pure rearrangement of what the reads return."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from audit.hours import Hour
from audit.models import Coverage
from audit.timemachine import Held
from dashboard.charts import Bar, bars
from leases.models import Lease, LeaseState
from leases.queries import in_order
from leases.usage import Live, Place

OPEN_STATES = [state for state in LeaseState.values if state != LeaseState.ENDED]


# databases that have a row of their own; what is beyond stands together
MOST_LIVE_ROWS = 12


@dataclass(frozen=True, slots=True)
class LiveRow:
    """Without a place it stands for `of` databases."""

    place: Place | None
    states: list[int]
    certainties: list[int]
    total: int
    of: int = 1


@dataclass(frozen=True, slots=True)
class LiveMatrix:
    """Live leases: one row per database, one column per state and one per certainty, as far as they occur."""

    states: list[str] = field(default_factory=list)
    certainties: list[str] = field(default_factory=list)
    rows: list[LiveRow] = field(default_factory=list)
    all: LiveRow = field(default_factory=lambda: LiveRow(None, [], [], 0))
    irrevocable: int = 0

    @property
    def vaults(self) -> int:
        return len({row.place.vault for row in self.rows if row.place})


def live_matrix(counts: Sequence[Live]) -> LiveMatrix:
    states = [state for state in OPEN_STATES if any(row.state == state for row in counts)]
    certainties = in_order({row.certainty for row in counts})

    def row(place: Place | None, of: Collection[Live], databases: int = 1) -> LiveRow:
        return LiveRow(
            place,
            [sum(one.count for one in of if one.state == state) for state in states],
            [sum(one.count for one in of if one.certainty == certainty) for certainty in certainties],
            sum(one.count for one in of),
            databases,
        )

    of_place: dict[Place, list[Live]] = defaultdict(list)
    for one in counts:
        of_place[one.place].append(one)
    rows = sorted((row(place, of) for place, of in of_place.items()), key=lambda one: -one.total)
    shown, rest = (rows, []) if len(rows) <= MOST_LIVE_ROWS + 1 else (rows[:MOST_LIVE_ROWS], rows[MOST_LIVE_ROWS:])
    # by name, so that rows keep their places; an unknown database reads best at the end
    shown.sort(key=lambda one: (one.place.name == "", one.place.path) if one.place else (True, ""))
    if rest:
        places = {one.place for one in rest}
        shown.append(row(None, [one for one in counts if one.place in places], len(rest)))
    return LiveMatrix(
        states, certainties, shown, row(None, counts), sum(c.count for c in counts if c.state == "irrevocable")
    )


@dataclass(frozen=True, slots=True)
class Rate:
    """How many credentials were read in each minute or hour of a while, as bars and in words."""

    bars: list[Bar]
    height: float
    total: int
    most: int
    most_at: datetime
    # the last that is over, and the one that goes on
    last: int
    running: int

    begun_at: datetime


RATE_HEIGHT = 56.0


def rate(counts: Sequence[tuple[datetime, int]]) -> Rate:
    """At least two (time, reads), oldest first, of which the last still goes on."""
    drawn = bars([(f"{at:%H:%M}: {n:,}", n) for at, n in counts], height=RATE_HEIGHT)
    most_at, most = max(counts, key=lambda count: count[1])
    return Rate(
        drawn, RATE_HEIGHT, sum(n for _, n in counts), most, most_at, counts[-2][1], counts[-1][1], counts[0][0]
    )


@dataclass(frozen=True, slots=True)
class Holder:
    """Who held leases; `first` is one of them, for its names."""

    first: Lease
    held: list[Held]


def by_holder(rows: Iterable[Held]) -> list[Holder]:
    """Leases that follow on one another and have one holder, under it."""

    def key(held: Held) -> tuple[str, ...]:
        lease = held.lease
        return lease.cluster, lease.pod_namespace, lease.pod, lease.service_account_namespace, lease.service_account

    groups = ([*group] for _, group in groupby(rows, key=key))
    return [Holder(group[0].lease, group) for group in groups]


HOURLY_SUMS = ("lines", "pairs", "unpaired", "duplicates", "rejected", "expired", "conflicts", "redacted")


def total(hours: Iterable[Hour]) -> Coverage:
    """The hours' counts added up, and the worst of their lags; a row that is in no table."""
    rows = [hour.row for hour in hours if hour.row]
    sums = {name: sum(getattr(row, name) for row in rows) for name in HOURLY_SUMS}
    return Coverage(**sums, lag_seconds=max((row.lag_seconds for row in rows), default=0.0))


# of a line that nobody understands; a page is no place for sixteen megabytes
MOST_CHARACTERS = 2000
# of a line of an event, whose lists can be long
MOST_OF_A_LINE = 20_000


def readable(line: bytes, *, most: int = MOST_CHARACTERS) -> str:
    """The beginning of a line, with whatever does not print (NULs, marks that turn the direction of writing) spelled out."""
    # a character has at most four bytes
    text = line[: 4 * most].decode(errors="backslashreplace")[:most]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:most]
