"""Geometry of what pages draw: pure. Lengths are in the units of the viewBox that a page puts around them, one to a pixel at the
usual size of type; across, a drawing is stretched to the room that there is."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# of a graph: the least height of a node's row, what of it stays free of bands, and the least that one band takes
ROW, FREE, LEAST = 28.0, 6.0, 1.5
WIDE = 100.0
MOST_LEFT, MOST_RIGHT = 20, 15


# a node on the left, one on the right (None: the rest), and a kind
Ends = tuple[int | None, int | None, str]
Sums = dict[Ends, int]


@dataclass(frozen=True, slots=True)
class Flow:
    """So much that goes from one node on the left to one on the right, each by its number. `kind` decides how its band looks."""

    left: int
    right: int
    kind: str
    value: int


@dataclass(frozen=True, slots=True)
class Node:
    """A row of a side. Without a key it stands for `of` nodes that are not drawn one by one."""

    key: int | None
    value: int
    of: int = 1


@dataclass(frozen=True, slots=True)
class Band:
    """A line between two rows: its path and its width. Without left (right) it comes from (goes to) the rest."""

    left: int | None
    right: int | None
    kind: str
    value: int
    path: str
    width: float


@dataclass(frozen=True, slots=True)
class Graph:
    """Two sides of nodes from the top down, and the bands between them; bands of most come first, so that thin ones lie above.

    Each side takes the whole height: the rows of the shorter one are higher.
    """

    left: list[Node]
    right: list[Node]
    bands: list[Band]
    height: float


def graph(
    flows: Iterable[Flow],
    *,
    kinds: Sequence[str],
    last_left: Collection[int] = (),
    last_right: Collection[int] = (),
    most_left: int = MOST_LEFT,
    most_right: int = MOST_RIGHT,
) -> Graph:
    """Nodes with the most first, on the right near to what goes there; what is more than `most` becomes one last node on its side.

    `last_left`, `last_right`: nodes that are drawn whatever they have, below all others. `kinds`: their order within a node.
    """
    given = list(flows)
    left = _side([(flow.left, flow.value) for flow in given], most=most_left, last=last_left)
    right = _side([(flow.right, flow.value) for flow in given], most=most_right, last=last_right)
    lefts, rights = {node.key for node in left}, {node.key for node in right}
    sums: Sums = defaultdict(int)
    for flow in given:
        between = flow.left if flow.left in lefts else None, flow.right if flow.right in rights else None
        sums[(*between, flow.kind)] += flow.value
    place = {node.key: number for number, node in enumerate(left)}
    right = _near(right, sums, place, last=last_right)
    height = ROW * max(len(left), len(right), 1)
    return Graph(left, right, _bands(left, right, sums, kinds=kinds, height=height), height)


def _side(values: Iterable[tuple[int, int]], *, most: int, last: Collection[int]) -> list[Node]:
    sums: dict[int, int] = defaultdict(int)
    for key, value in values:
        sums[key] += value
    # the order in which they come decides where the sums are equal
    order = sorted((key for key in sums if key not in last), key=lambda key: -sums[key])
    # a rest of one takes as much room as that one
    shown = order if len(order) <= most + 1 else order[:most]
    nodes = [Node(key, sums[key]) for key in shown]
    if rest := order[len(shown) :]:
        nodes.append(Node(None, sum(sums[key] for key in rest), len(rest)))
    return nodes + [Node(key, sums[key]) for key in sums if key in last]


def _near(
    right: list[Node],
    sums: Sums,
    place: dict[int | None, int],
    *,
    last: Collection[int],
) -> list[Node]:
    """The right side in the order of what goes there, so that few bands cross."""
    weight: dict[int | None, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (of, to, _), value in sums.items():
        weight[to][0] += place[of] * (value + 0.01)
        weight[to][1] += value + 0.01

    def key(node: Node) -> tuple[bool, bool, float]:
        mean, whole = weight[node.key]
        return node.key in last, node.key is None, mean / whole

    return sorted(right, key=key)


def _bands(
    left: list[Node],
    right: list[Node],
    sums: Sums,
    *,
    kinds: Sequence[str],
    height: float,
) -> list[Band]:
    rooms = [height / len(side) - FREE for side in (left, right)] if sums else []
    # one scale for both sides: the row that needs the most room for what it has is full
    needs = [node.value / room for side, room in zip((left, right), rooms, strict=False) for node in side]
    most = max(needs, default=0.0)
    width = {key: max(LEAST, value / most if most else LEAST) for key, value in sums.items()}
    kind = {name: number for number, name in enumerate(kinds)}
    rows = [{node.key: number for number, node in enumerate(side)} for side in (left, right)]
    ends: list[dict[Ends, float]] = []
    for side, (nodes, there, room) in enumerate(zip((left, right), reversed(rows), rooms, strict=False)):
        at = {}
        for number, node in enumerate(nodes):
            mine = sorted(
                (key for key in sums if key[side] == node.key),
                key=lambda k: (there[k[0] if side else k[1]], kind[k[2]]),
            )
            whole = sum(width[key] for key in mine)
            # many thin bands lie closer than they are wide, rather than in another's row
            squeeze = min(1.0, room / whole) if whole else 1.0
            y = (room + FREE) * (number + 0.5) - whole * squeeze / 2
            for key in mine:
                at[key] = y + width[key] * squeeze / 2
                y += width[key] * squeeze
        ends.append(at)
    bands = [
        Band(
            *key,
            value,
            f"M0 {ends[0][key]:.1f}C{WIDE / 2:g} {ends[0][key]:.1f} {WIDE / 2:g} {ends[1][key]:.1f} {WIDE:g} {ends[1][key]:.1f}",
            round(width[key], 1),
        )
        for key, value in sums.items()
    ]
    return sorted(bands, key=lambda band: -band.width)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a row of bars that each have one unit of room. `label` is what it stands for, in words."""

    x: float
    y: float
    width: float
    height: float
    value: int
    label: str


def bars(values: Sequence[tuple[str, int]], *, height: float = 48.0, gap: float = 0.2) -> list[Bar]:
    """(label, value) as bars from left to right, the highest as high as the drawing; what is not nothing is seen."""
    most = max((value for _, value in values), default=0)
    made = []
    for number, (label, value) in enumerate(values):
        tall = max(1.0, height * value / most) if value else 0.0
        made.append(Bar(number + gap / 2, round(height - tall, 2), 1 - gap, round(tall, 2), value, label))
    return made
