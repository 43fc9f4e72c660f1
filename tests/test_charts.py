"""What pages draw, as geometry: pure."""

import re

import pytest

from dashboard import charts
from dashboard.charts import Flow, bars, graph

KINDS = ["exact", "inferred", "ambiguous"]


def many(number: int) -> list[Flow]:
    """So many holders, each with less than the one before, on five databases."""
    return [Flow(n, n % 5, KINDS[n % 3], 1000 - n) for n in range(number)]


def ends(path: str) -> tuple[float, float]:
    """The heights at which a band begins and ends."""
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", path)]
    return numbers[1], numbers[-1]


def test_two_hundred_holders_become_twenty_and_the_rest_and_nothing_is_lost() -> None:
    flows = many(200)
    drawn = graph(flows, kinds=KINDS)
    assert [node.key for node in drawn.left] == [*range(20), None]
    assert drawn.left[-1].of == 180
    whole = sum(flow.value for flow in flows)
    assert sum(node.value for node in drawn.left) == sum(node.value for node in drawn.right) == whole
    assert sum(band.value for band in drawn.bands) == whole
    assert drawn.height == 21 * charts.ROW


def test_a_rest_of_one_is_drawn_as_itself() -> None:
    drawn = graph(many(21), kinds=KINDS)
    assert None not in [node.key for node in drawn.left]
    assert len(drawn.left) == 21


def test_databases_have_a_rest_of_their_own() -> None:
    drawn = graph([Flow(0, n, "exact", 100 - n) for n in range(40)], kinds=KINDS)
    assert len(drawn.right) == charts.MOST_RIGHT + 1
    assert (drawn.right[-1].key, drawn.right[-1].of) == (None, 25)


def test_what_is_to_come_last_is_drawn_however_little_it_is() -> None:
    drawn = graph([*many(200), Flow(999, 0, "ambiguous", 1)], kinds=KINDS, last_left={999})
    assert [node.key for node in drawn.left[-2:]] == [None, 999]


def test_every_band_begins_and_ends_within_its_rows() -> None:
    drawn = graph([*many(200), *(Flow(0, n, kind, 1) for n in range(5) for kind in KINDS)], kinds=KINDS)
    for band in drawn.bands:
        for height, key, side in zip(ends(band.path), (band.left, band.right), (drawn.left, drawn.right), strict=True):
            row = drawn.height / len(side)
            top = row * [node.key for node in side].index(key)
            assert top <= height <= top + row


def test_a_band_is_as_wide_as_its_share_and_the_widest_row_is_full() -> None:
    drawn = graph([Flow(0, 0, "exact", 300), Flow(0, 1, "exact", 100), Flow(1, 1, "exact", 1)], kinds=KINDS)
    widths = {(band.left, band.right): band.width for band in drawn.bands}
    assert widths[0, 0] + widths[0, 1] == pytest.approx(charts.ROW - charts.FREE, abs=0.1)
    assert widths[0, 0] == pytest.approx(3 * widths[0, 1], abs=0.2)
    assert widths[1, 1] == charts.LEAST, "thin, and still to be seen"


def test_kinds_of_one_pair_are_bands_of_their_own_side_by_side() -> None:
    drawn = graph([Flow(0, 0, kind, 10) for kind in reversed(KINDS)], kinds=KINDS)
    heights = {band.kind: ends(band.path)[0] for band in drawn.bands}
    assert heights["exact"] < heights["inferred"] < heights["ambiguous"]


def test_the_right_side_stands_near_to_what_goes_there() -> None:
    drawn = graph([Flow(0, 2, "exact", 30), Flow(1, 1, "exact", 20), Flow(2, 0, "exact", 10)], kinds=KINDS)
    assert [node.key for node in drawn.right] == [2, 1, 0]


def test_nothing_and_what_was_never_read_can_be_drawn() -> None:
    assert graph([], kinds=KINDS).bands == []
    held = graph([Flow(0, 0, "exact", 0)], kinds=KINDS)
    assert [band.width for band in held.bands] == [charts.LEAST]


def test_bars_are_as_high_as_their_share_and_little_is_not_nothing() -> None:
    drawn = bars([("a", 0), ("b", 50), ("c", 1), ("d", 1000)], height=48)
    assert [bar.height for bar in drawn] == [0, 2.4, 1, 48]
    assert all(bar.y + bar.height == pytest.approx(48) for bar in drawn)
    assert [bar.x for bar in drawn] == pytest.approx([0.1, 1.1, 2.1, 3.1])
    assert [bar.height for bar in bars([("a", 0)])] == [0]
