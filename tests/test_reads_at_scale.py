"""The bench of page reads at a small size: it works, its rows are consistent, and no page reads a large table from end to end."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import Sum
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import leases.queries
from audit import queries
from audit.models import Event, Hourly, Kind
from demo.postgres import Postgres
from leases.models import Lease, LeaseState
from tests import factories
from tests.bench import page_reads, scale
from tests.bench.figures import Void
from tests.bench.page_reads import Read, falls_short, table
from tests.bench.scale import Ground

LARGE = (
    "audit_event",
    "audit_furthersighting",
    "leases_lease",
    "leases_login",
    "leases_session",
    "leases_pod",
    "audit_attributionchange",
    "audit_text",
)

pytestmark = [
    pytest.mark.slow,
    # committed, so that the server can vacuum it
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def filled(postgres: Postgres, *, leases: int, events: int) -> Ground:
    """Vacuumed and analysed, as autovacuum would."""
    made = scale.lay(leases=leases)
    scale.fill(made, events=events)
    with psycopg.connect(postgres.dsn(database=connection.settings_dict["NAME"]), autocommit=True) as superuser:
        superuser.execute("VACUUM (ANALYZE)")
    return made


def test_the_rows_are_consistent_with_one_another(postgres: Postgres) -> None:
    count, given = 2_000, 10_000
    ground = filled(postgres, leases=count, events=given)
    assert Lease.objects.count() == count
    events = Event.objects.count()
    assert events == given + scale.BUSY * (min(scale.BUSY_EVENTS, count) - 1)
    assert Hourly.objects.aggregate(n=Sum("events"))["n"] == events
    for lease in Lease.objects.exclude(request_id="").order_by("-id")[1000:1003]:
        (first, *_) = queries.lease_events(lease, now=ground.to_at)
        assert (first.event.kind, first.event.at, first.event.request_id) == (
            Kind.READ,
            lease.accessed_at,
            lease.request_id,
        )
        assert len(first.sightings) == len(scale.DEVICES)
    states = Counter(Lease.objects.values_list("state", flat=True))
    assert 0.19 < 1 - states[LeaseState.ENDED] / count < 0.21


def scans(plan: dict[str, Any]) -> Iterator[str]:
    """Tables that a plan reads from end to end."""
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", []):
        yield from scans(part)


def test_no_page_reads_a_large_table_from_end_to_end(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    # a tenth of production's leases, and of the bound
    monkeypatch.setattr(leases.queries, "MOST_LOOKED_THROUGH", 1000)
    ground = filled(postgres, leases=20_000, events=100_000)
    client = Client()
    client.force_login(factories.user("reader", "responder", password=None))
    with connection.cursor() as cursor:
        # tomorrow's partition is there, and empty
        cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > 1000")
        large = {name for (name,) in cursor.fetchall() if name.startswith(LARGE)}
    assert len(large) > scale.DAYS
    found, asked = set(), set()
    for name, address in page_reads.cases(ground).items():
        dice = Random(name)  # noqa: S311
        for _ in range(2):
            with CaptureQueriesContext(connection) as captured:
                page_reads.get(client, address(dice))
            for query in captured:
                sql = query["sql"]
                # one plan for each statement, whatever its values
                shape = re.sub(r"'[^']*'|\d+", "?", sql)
                if not sql.lstrip().upper().startswith(("SELECT", "WITH")) or (name, shape) in asked:
                    continue
                asked.add((name, shape))
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", None)
                    (answer,) = cursor.fetchone()
                plan = json.loads(answer) if isinstance(answer, str) else answer
                found |= {f"{name}: {table} by {sql[:300]}" for table in scans(plan[0]["Plan"]) if table in large}
    assert not found, "\n".join(sorted(found))
    assert {name for name, _ in asked} == set(page_reads.cases(ground))
    assert len(asked) > 200


def test_what_is_slow_or_grows_is_said_to_fall_short() -> None:
    def read(p50: float, p95: float) -> Read:
        return Read("/", "leases.queries.x", "SELECT", p50, p95, p95)

    assert falls_short(10, read(10, 50))
    assert falls_short(10, read(13.1, 20))
    assert not falls_short(10, read(13, 20))
    assert not falls_short(1, read(2.9, 20)), "less than two milliseconds more"
    whole = Read("/", page_reads.WHOLE, "", 40, 99.9, 120, queries=17)
    assert not falls_short(10, whole)
    assert falls_short(10, Read("/", page_reads.WHOLE, "", 40, 100, 120))
    key = ("/", "leases.queries.x", "SELECT")
    shown = table({key: read(10, 12)}, {key: read(20, 30)}, sizes=(1_000_000, 10_000_000))
    assert "falls short" in shown
    assert "1 reads of 1 pages, 1 fall short" in shown
    page = {("/", page_reads.WHOLE, ""): whole}
    shown = table(page, page, sizes=(1_000_000, 10_000_000))
    assert "17 queries" in shown
    assert "the slowest p95 99.9 ms (/), at most 100; the most queries 17" in shown


def test_a_page_that_does_not_answer_makes_the_measurement_void(viewer: Client) -> None:
    with pytest.raises(Void, match="answers 404"):
        page_reads.get(viewer, "/leases/1")


def test_reads_are_named_by_the_function_that_asks() -> None:
    lease = factories.lease()
    factories.event(lease)
    with page_reads.timed() as statements:
        queries.lease_events(lease, now=timezone.now())
    assert {asked_by for asked_by, _, _ in statements} == {"audit.queries.lease_events"}
    assert len(statements) >= 3
