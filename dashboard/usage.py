"""Who used which database, as the page draws it and lists it: pure rearrangement of leases.usage."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dashboard import charts
from leases.models import Certainty
from leases.usage import Holder, Place, Use

# rows of the table on one page
PAGE = 50
CERTAINTIES: list[str] = list(Certainty.values)
# in the place of every holder that is not known
NOBODY = Holder("", "", "")


@dataclass(frozen=True, slots=True)
class Label:
    """The words beside a node. Without `holder` and `place` it is the rest of its side, `of` of them."""

    value: int
    of: int = 1
    holder: Holder | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A band with its words: from what to what, how many reads (none: only held since before), how surely known."""

    band: charts.Band
    words: str
    certainty: str
    reads: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """Holders on the left, databases on the right."""

    left: list[Label]
    right: list[Label]
    lines: list[Line]
    height: float
    certainties: list[str]
    rest: Label | None
    rest_of_places: Label | None

    @property
    def rem(self) -> float:
        """Its height in the size of the type around it."""
        return self.height / 16


def drawing(rows: Iterable[Use]) -> Drawing:
    holders: dict[Holder, int] = {}
    places: dict[Place, int] = {}
    flows = []
    # numbers for names: they are compared and looked up many times
    for row in rows:
        if row.reads or row.live:
            holder = holders.setdefault(row.holder if row.holder.name else NOBODY, len(holders))
            flows.append(charts.Flow(holder, places.setdefault(row.place, len(places)), row.certainty, row.reads))
    made = charts.graph(
        flows,
        kinds=CERTAINTIES,
        last_left={holders[NOBODY]} if NOBODY in holders else set(),
        last_right={number for place, number in places.items() if not place.name},
    )
    by_number, place_by_number = list(holders), list(places)
    left = [
        Label(node.value, node.of, holder=by_number[node.key] if node.key is not None else None) for node in made.left
    ]
    right = [
        Label(node.value, node.of, place=place_by_number[node.key] if node.key is not None else None)
        for node in made.right
    ]
    rest = next((label for label in left if not label.holder), None)
    rest_of_places = next((label for label in right if not label.place), None)

    def words(band: charts.Band) -> str:
        who = "others" if band.left is None else by_number[band.left].name or "nobody known"
        place = (
            "other databases"
            if band.right is None
            else place_by_number[band.right].name or "a database that is not known"
        )
        who = f"{rest.of:,} {who}" if rest and band.left is None else who
        place = f"{rest_of_places.of:,} {place}" if rest_of_places and band.right is None else place
        plural = "" if band.value == 1 else "s"
        reads = f"{band.value:,} read{plural}" if band.value else "no read in the period, but live leases"
        return f"{who} to {place}: {reads}, {band.kind}"

    kinds = {band.kind for band in made.bands}
    return Drawing(
        left,
        right,
        [Line(band, words(band), band.kind, band.value) for band in made.bands],
        made.height,
        [name for name in CERTAINTIES if name in kinds],
        rest,
        rest_of_places,
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """One holder and one database: all that is known of the two, over all certainties. `certain`: reads, or live leases, by certainty."""

    holder: Holder
    place: Place
    reads: int
    live: int
    first_at: datetime | None
    last_at: datetime | None
    pods: int
    certain: list[tuple[str, int]]

    @property
    def key(self) -> str:
        """Names the row in an address."""
        return _key(self.holder, self.place)


def _key(holder: Holder, place: Place) -> str:
    names = (holder.cluster, holder.account_namespace, holder.service_account, holder.namespace, holder.pod)
    return "|".join((*names, str(place.key or f"unknown {place.vault}")))


def _pair(uses: Sequence[Use]) -> Pair:
    counts: Counter[str] = Counter()
    for use in uses:
        counts[use.certainty] += use.reads or use.live
    return Pair(
        uses[0].holder,
        uses[0].place,
        sum(use.reads for use in uses),
        sum(use.live for use in uses),
        min((use.first_at for use in uses if use.first_at), default=None),
        max((use.last_at for use in uses if use.last_at), default=None),
        max(use.pods for use in uses),
        [(name, counts[name]) for name in CERTAINTIES if counts[name]],
    )


# name -> the key of one holder's uses of one database; the most, or the latest, come first
SORTS: dict[str, Callable[[list[Use]], tuple[object, ...]]] = {
    "reads": lambda uses: (-sum(use.reads for use in uses), -sum(use.live for use in uses)),
    "live": lambda uses: (-sum(use.live for use in uses), -sum(use.reads for use in uses)),
    "last": lambda uses: (-max(use.last_at.timestamp() if use.last_at else 0.0 for use in uses),),
    "holder": lambda uses: (uses[0].holder.name == "", uses[0].holder.name),
    "database": lambda uses: (uses[0].place.name == "", uses[0].place.path),
}


@dataclass(frozen=True, slots=True)
class PairPage:
    """`after`: the key of the last row, where there are more. `first` and `last`: their numbers among all, from 1."""

    rows: list[Pair]
    first: int
    last: int
    whole: int
    after: str


def page(rows: Iterable[Use], *, sort: str, after: str, size: int = PAGE) -> PairPage:
    """Uses as pairs of holder and database: those that follow on the one called `after`, from the first if that one is gone."""
    grouped: dict[tuple[Holder, Place], list[Use]] = {}
    for row in rows:
        grouped.setdefault((row.holder, row.place), []).append(row)
    key = SORTS[sort]
    order = sorted(
        grouped.values(), key=lambda uses: (*key(uses), uses[0].place.path, _key(uses[0].holder, uses[0].place))
    )
    begin = 0
    if after:
        begin = next(
            (number for number, uses in enumerate(order, start=1) if _key(uses[0].holder, uses[0].place) == after), 0
        )
    shown = [_pair(uses) for uses in order[begin : begin + size]]
    end = begin + len(shown)
    return PairPage(shown, begin + 1, end, len(order), shown[-1].key if end < len(order) else "")
