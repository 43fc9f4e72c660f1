"""The first page's figures: what is live by database and state, how fast credentials are issued, what ends soon."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

import audit.queries
from audit import intern
from audit.models import Hourly, Kind
from dashboard.tables import MOST_LIVE_ROWS, live_matrix, rate
from leases import queries, usage
from leases.models import Certainty, LeaseState, Vault
from leases.usage import Live, Place
from tests import factories
from tests.test_pages import HTMX, text

pytestmark = [
    pytest.mark.django_db,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def hourly(at: datetime, events: int, *, own: int = 0, kind: Kind = Kind.READ) -> None:
    """Reads of one hour, as ingestion counts them."""
    who = ("kubernetes-shop-checkout", "", "service", "", "")
    path = "database/creds/my-role"
    Hourly.objects.create(
        vault=factories.vault(),
        hour=at.replace(minute=0, second=0, microsecond=0),
        kind=kind,
        target_id=intern.texts([path])[path],
        who_id=intern.whos([who])[who],
        events=events,
        errors=0,
        own=own,
    )


def test_live_leases_stand_by_database_and_by_state(viewer: Client) -> None:
    factories.watched()
    billing = factories.database("billing")
    factories.lease()
    factories.lease(certainty=Certainty.AMBIGUOUS)
    factories.lease(state=LeaseState.IRREVOCABLE, database=billing)
    factories.lease(state=LeaseState.REVOKING, database=billing)
    factories.ended()
    matrix = live_matrix(usage.live())
    assert matrix.states == ["live", "revoking", "irrevocable"]
    assert {row.place.name: (row.states, row.certainties, row.total) for row in matrix.rows if row.place} == {
        "billing": ([0, 1, 1], [2, 0], 2),
        "orders": ([2, 0, 0], [1, 1], 2),
    }
    assert (matrix.all.states, matrix.all.total, matrix.irrevocable) == ([2, 1, 1], 4, 1)
    body = viewer.get("/").content.decode()
    assert f'href="/databases/{billing.pk}"' in body
    cells = re.findall(r'data-label="(Live|Revoking|Irrevocable|All)" class="number[^"]*">(\d+)<', body)
    assert cells[:4] == [("Live", "0"), ("Revoking", "1"), ("Irrevocable", "1"), ("All", "2")]


def test_many_databases_are_those_with_the_most_and_the_others_together() -> None:
    counts = [Live(Place(n, "demo", "database", f"db-{n:02}"), "live", "exact", n + 1) for n in range(40)]
    matrix = live_matrix([*counts, Live(Place(None, "demo", "", ""), "live", "unknown", 90)])
    names = [row.place.name if row.place else None for row in matrix.rows]
    assert len(names) == MOST_LIVE_ROWS + 1
    assert names == [*sorted(names[:-2], key=str), "", None]
    assert matrix.rows[-1].of == 41 - MOST_LIVE_ROWS
    assert sum(row.total for row in matrix.rows) == matrix.all.total == sum(range(41)) + 90


def test_of_a_retired_vault_nothing_is_live() -> None:
    factories.lease()
    Vault.objects.update(retired=True)
    assert usage.live() == []
    assert sum(n for _, n in usage.reads_by_minute(now=timezone.now())) == 0


def test_reads_are_counted_in_the_minute_in_which_they_were() -> None:
    now = datetime(2026, 11, 25, 14, 30, 20, tzinfo=UTC)
    for second, n in ((19, 1), (0, 1), (-1, 3), (-60 * 59, 2), (-60 * 59 - 1, 5)):
        for _ in range(n):
            factories.lease(accessed_at=now.replace(second=0) + timedelta(seconds=second))
    counts = usage.reads_by_minute(now=now)
    assert len(counts) == 60
    assert {f"{at:%H:%M}": n for at, n in counts if n} == {"13:31": 2, "14:29": 3, "14:30": 2}


def test_reads_are_counted_by_the_hour_without_reading_events_and_without_own_ones() -> None:
    now = datetime(2026, 11, 25, 14, 30, tzinfo=UTC)
    hourly(now, 7, own=2)
    hourly(now - timedelta(hours=23), 4)
    hourly(now - timedelta(hours=24), 9)
    hourly(now, 100, kind=Kind.RENEW)
    counts = audit.queries.reads_by_hour(now=now)
    assert len(counts) == 24
    assert {f"{at:%d %H:%M}": n for at, n in counts if n} == {"24 15:00": 4, "25 14:00": 5}


def test_the_rate_is_drawn_and_said_in_words(viewer: Client) -> None:
    factories.watched()
    assert "0 in the last hour" in text(viewer.get("/"))
    now = timezone.now()
    for minutes in (0, 5, 5, 5):
        factories.lease(accessed_at=now - timedelta(minutes=minutes))
    hourly(now, 4)
    hourly(now - timedelta(hours=3), 1200)
    body = viewer.get("/").content.decode()
    assert body.count('<rect class="bar') == 4
    page = text(viewer.get("/"))
    # the minute may end between two lines of this test
    assert re.search(r"4 in the last hour: \d in the last whole minute, \d in this one, at most 3 at \d\d:\d\d", page)
    assert re.search(r"1,204 in the last 24 hours: 0 in the last whole hour, 4 in this one, at most 1,200 at", page)


def test_a_rate_names_its_most_and_what_is_still_going_on() -> None:
    begin = datetime(2026, 11, 25, 14, 0, tzinfo=UTC)
    drawn = rate([(begin + timedelta(minutes=n), value) for n, value in enumerate((3, 9, 0, 2))])
    assert (drawn.total, drawn.most, f"{drawn.most_at:%H:%M}", drawn.last, drawn.running) == (14, 9, "14:01", 0, 2)
    assert [bar.label for bar in drawn.bars][1] == "14:01: 9"


def test_what_ends_soon_is_counted(viewer: Client) -> None:
    for left in (5, 290, 310, 4000):
        factories.lease(left=left)
    factories.lease(left=-20)
    factories.lease(left=5, state=LeaseState.IRREVOCABLE)
    assert queries.ending_within(now=timezone.now(), span=timedelta(minutes=5)) == 3
    assert "3 within 5 min" in text(viewer.get("/"))


def test_the_first_page_is_sent_again_when_a_minute_has_passed(viewer: Client) -> None:
    factories.watched()
    address = re.search(r'hx-get="([^"]+)"', viewer.get("/").content.decode())
    assert address
    assert viewer.get(address[1], headers=HTMX).status_code == 204
    version, _, minute = address[1].rpartition(".")
    before = (int(minute) + 5) % 1000
    assert viewer.get(f"{version}.{before:04}", headers=HTMX).status_code == 200


def test_the_first_page_leads_to_graph_and_time_machine(viewer: Client) -> None:
    factories.lease()
    body = viewer.get("/").content.decode()
    for path in ("/databases", "/access", "/databases?period=1h"):
        assert f'href="{path}"' in body
