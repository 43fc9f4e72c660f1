"""Who used which database, as the page draws it and lists it: pure rearrangement of leases.usage."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dashboard import charts
from leases.models import Certainty
from leases.usage import Holder, Place, Use

# rows of the table on one page
PAGE = 50


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
    used = [row for row in rows if row.reads or row.live]
    flows = [charts.Flow(row.holder if row.holder.name else "", row.place, row.certainty, row.reads) for row in used]
    unknown = {row.place for row in used if not row.place.name} | {""}
    made = charts.graph(flows, kinds=Certainty.values, last=unknown)
    left = [_of_holder(node) for node in made.left]
    right = [_of_place(node) for node in made.right]
    lines = [Line(band, _words(band, made), band.kind, band.value) for band in made.bands]
    kinds = {band.kind for band in made.bands}
    return Drawing(
        left=left,
        right=right,
        lines=lines,
        height=made.height,
        certainties=[name for name in Certainty.values if name in kinds],
        rest=next((_of_holder(node) for node in made.left if node.key is None), None),
        rest_of_places=next((_of_place(node) for node in made.right if node.key is None), None),
    )


def _of_holder(node: charts.Node) -> Label:
    if node.key is None:
        return Label(node.value, node.of)
    return Label(node.value, holder=node.key if isinstance(node.key, Holder) else Holder("", "", ""))


def _of_place(node: charts.Node) -> Label:
    return Label(node.value, node.of, place=node.key if isinstance(node.key, Place) else None)


def _words(band: charts.Band, made: charts.Graph) -> str:
    rests = [next((node.of for node in side if node.key is None), 0) for side in (made.left, made.right)]
    who = (
        (band.left.name if isinstance(band.left, Holder) else "nobody known")
        if band.left is not None
        else f"{rests[0]} others"
    )
    place = (
        (band.right.name or "a database that is not known")
        if isinstance(band.right, Place)
        else f"{rests[1]} other databases"
    )
    reads = (
        f"{band.value:,} read{'' if band.value == 1 else 's'}"
        if band.value
        else "no read in the period, but live leases"
    )
    return f"{who} to {place}: {reads}, {band.kind}"


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
        holder = self.holder
        names = (holder.cluster, holder.account_namespace, holder.service_account, holder.namespace, holder.pod)
        return "|".join((*names, str(self.place.key or f"unknown {self.place.vault}")))


def pairs(rows: Iterable[Use]) -> list[Pair]:
    grouped: dict[tuple[Holder, Place], list[Use]] = defaultdict(list)
    for row in rows:
        grouped[row.holder, row.place].append(row)
    return [_pair(holder, place, uses) for (holder, place), uses in grouped.items()]


def _pair(holder: Holder, place: Place, uses: Sequence[Use]) -> Pair:
    counts: Counter[str] = Counter()
    for use in uses:
        counts[use.certainty] += use.reads or use.live
    return Pair(
        holder,
        place,
        sum(use.reads for use in uses),
        sum(use.live for use in uses),
        min((use.first_at for use in uses if use.first_at), default=None),
        max((use.last_at for use in uses if use.last_at), default=None),
        max(use.pods for use in uses),
        [(name, counts[name]) for name in Certainty.values if counts[name]],
    )


def _last(pair: Pair) -> float:
    return -pair.last_at.timestamp() if pair.last_at else 0.0


# name -> (key, whether it goes down)
SORTS: dict[str, tuple[Callable[[Pair], tuple[object, ...]], bool]] = {
    "reads": (lambda pair: (-pair.reads, -pair.live), True),
    "live": (lambda pair: (-pair.live, -pair.reads), True),
    "last": (lambda pair: (_last(pair),), True),
    "holder": (lambda pair: (pair.holder.name == "", pair.holder.name), False),
    "database": (lambda pair: (pair.place.name == "", pair.place.path), False),
}


@dataclass(frozen=True, slots=True)
class PairPage:
    """`after`: the key of the last row, where there are more. `first` and `last`: their numbers among all, from 1."""

    rows: list[Pair]
    first: int
    last: int
    whole: int
    after: str


def page(rows: Iterable[Pair], *, sort: str, after: str, size: int = PAGE) -> PairPage:
    """The rows that follow on the one called `after`; from the first on, if that one is no longer there."""
    key = SORTS[sort][0]
    order = sorted(rows, key=lambda pair: (*key(pair), pair.place.path, pair.holder.name, pair.key))
    begin = next((number for number, pair in enumerate(order, start=1) if pair.key == after), 0) if after else 0
    shown = order[begin : begin + size]
    end = begin + len(shown)
    return PairPage(shown, begin + 1, end, len(order), shown[-1].key if end < len(order) else "")
