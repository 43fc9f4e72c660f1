"""How completely clusters and databases were watched over a day: the rule, and what the sources page says."""

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

from leases import source_queries
from leases.models import WatchedKind, WatchPeriod
from leases.source_queries import covered
from tests import factories
from tests.test_pages import text

pytestmark = [
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]

NOW = datetime(2026, 11, 25, 14, 30, tzinfo=UTC)
LATE = timedelta(seconds=15)
HOUR = timedelta(hours=1)


def at(hours_ago: float) -> datetime:
    return NOW - timedelta(hours=hours_ago)


def test_a_day_without_a_hole_is_whole() -> None:
    known = covered([(at(40), at(10)), (at(10), NOW - timedelta(seconds=3))], now=NOW, late=LATE)
    assert (known.share, known.holes, known.behind, known.young) == (100, 0, 3, False)


def test_holes_are_counted_once_though_periods_overlap() -> None:
    known = covered([(at(30), at(20)), (at(25), at(18)), (at(12), at(6)), (at(5), NOW)], now=NOW, late=LATE)
    assert (known.holes, known.missing) == (2, 7 * HOUR)
    assert known.share == pytest.approx(100 * 17 / 24)


def test_an_end_that_is_late_is_a_hole_too() -> None:
    known = covered([(at(30), at(2))], now=NOW, late=LATE)
    assert (known.holes, known.missing, known.until, known.behind) == (1, 2 * HOUR, at(2), 7200)


def test_what_is_young_is_measured_by_its_own_time() -> None:
    known = covered([(at(2), at(1.5)), (at(1), NOW)], now=NOW, late=LATE)
    assert (known.share, known.young, known.whole) == (75, True, 2 * HOUR)


def test_what_is_not_whole_is_not_rounded_up_to_it() -> None:
    known = covered([(at(30), at(5)), (at(5) + timedelta(seconds=1), NOW)], now=NOW, late=LATE)
    assert known.holes == 1
    assert known.share == 99.99


def test_what_was_never_watched_or_not_for_a_day_is_not_called_anything_else() -> None:
    assert covered([], now=NOW, late=LATE).from_at is None
    gone = covered([(at(90), at(80))], now=NOW, late=LATE)
    assert (gone.share, gone.until, gone.holes) == (0, None, 1)


@pytest.mark.django_db
def test_the_sources_page_says_how_completely_clusters_and_databases_were_watched(viewer: Client) -> None:
    factories.watched()
    now = timezone.now()
    page = text(viewer.get("/sources"))
    assert "never begun" in page
    row = factories.cluster()
    for begin, end in ((30, 10), (9, 0)):
        WatchPeriod.objects.create(
            cluster=row, from_at=now - timedelta(hours=begin), to_at=now - timedelta(hours=end, seconds=2)
        )
    WatchedKind.objects.create(cluster=row, kind="pods v1")
    WatchedKind.objects.create(cluster=row, kind="jobs.batch v1", cause="may not list jobs", fix="Give it the rule.")
    factories.sampling(factories.database(), since=3600)
    watch = source_queries.cluster_watches([row.pk], now=now)[row.pk]
    assert (watch.kinds, watch.without) == (["pods"], [("jobs.batch", "may not list jobs")])
    page = text(viewer.get("/sources"))
    for said in (
        "95.83 %",
        "1 hole , 1 h 00 m in all: leases of then name no pod",
        "Watched: pods",
        "not jobs.batch: may not list jobs",
        "100 % since 1 h 00 m",
    ):
        assert said in page, said
