"""Samples become sessions with a begin and an end, whatever order they come in and whatever happens to the server."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from psycopg import sql

import leases.tasks
from audit import doctor
from dashboard.metrics import LedgerCollector
from demo import postgres as postgres_server
from demo import processes
from demo.postgres import Postgres
from leases import health, queries, sessions
from leases.databases import DatabaseUser, Sample, SeenSession, Server
from leases.models import (
    Database,
    DatabaseServer,
    DynamicUser,
    MonitorUser,
    SampledPeriod,
    Sampling,
    Session,
    SourceState,
)
from leases.models.sources import SourceKind
from leases.sessions import Taken, next_interval, take_sample
from tests import factories
from tests.in_turn import in_turn

pytestmark = [
    pytest.mark.django_db,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]

BEGIN = datetime(2026, 11, 3, 12, tzinfo=UTC)
UP_SINCE = BEGIN - timedelta(days=3)
ALPHA = Server("postgresql 71 10.0.0.9:5432", UP_SINCE, "18.4", "postgresql 71 ")
BETA = Server("postgresql 72 10.0.0.9:5433", UP_SINCE, "18.4", "postgresql 72 ")


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def saw(key: str = "s.1", *, user: str = "v-web", started: float = -60, **fields: Any) -> SeenSession:
    values: dict[str, Any] = {
        "key": key,
        "pid": 1,
        "started_at": after(started),
        "user": user,
        "user_oid": 16_400,
        "database": "orders",
        "address": "10.1.0.7",
        "port": 40_000,
        "application": "shop",
        "state": "idle",
    }
    return SeenSession(**values | fields)


def sample(at: float, *seen: SeenSession, server: Server = ALPHA, users: list[str] | None = None) -> Sample:
    listed = None if users is None else tuple(DatabaseUser(name, 16_400 + n, None) for n, name in enumerate(users))
    return Sample(server, after(at), 2.0, seen, listed, "orders")


@pytest.fixture
def orders() -> Database:
    return factories.database("orders")


def take(database: Database, taken: Sample, **fields: Any) -> Taken:
    return take_sample(database, taken, now=taken.at, **fields)


def only() -> Session:
    return Session.objects.get()


# --- begin and end ------------------------------------------------------------------------------------------------


def test_a_session_has_its_first_and_last_sight_and_ends_with_the_sample_that_does_not_show_it(
    orders: Database,
) -> None:
    assert take(orders, sample(0, saw())) == Taken(1, 1, 0)
    assert take(orders, sample(5, saw(state="active", application="shop-2"))) == Taken(1, 0, 0)
    found = only()
    assert (found.first_seen_at, found.last_seen_at, found.ended_at) == (after(0), after(5), None)
    assert (found.state, found.application, found.address, found.port) == ("active", "shop-2", "10.1.0.7", 40_000)
    assert (found.started_at, found.start_is_known, found.database) == (after(-60), True, orders)
    assert found.sampled
    assert not found.logged

    assert take(orders, sample(10)) == Taken(0, 0, 1)
    found = only()
    assert (found.last_seen_at, found.ended_at, found.end_known_by) == (after(5), after(10), "no longer seen")
    assert take(orders, sample(15)) == Taken()


def test_a_process_id_that_comes_back_is_another_session(orders: Database) -> None:
    take(orders, sample(0, saw("a.1")))
    take(orders, sample(5, saw("b.1", started=3)))
    assert list(Session.objects.order_by("started_at").values_list("key", "ended_at")) == [
        ("a.1", after(5)),
        ("b.1", None),
    ]


def test_a_sample_that_comes_late_ends_nothing_that_a_newer_one_saw(orders: Database) -> None:
    take(orders, sample(10, saw("new", started=7)))
    taken = take(orders, sample(5, saw("old")))
    assert taken.late
    new, old = Session.objects.get(key="new"), Session.objects.get(key="old")
    assert new.ended_at is None
    # the newer one had not shown it
    assert (old.last_seen_at, old.ended_at, old.end_known_by) == (after(5), after(10), "no longer seen")
    assert DatabaseServer.objects.get().sampled_at == after(10)


def test_samples_in_any_order_and_twice_give_the_same_sights(orders: Database) -> None:
    for at in (10, 0, 5, 5, 10):
        take(orders, sample(at, saw(state=f"at {at}")))
    found = only()
    assert (found.first_seen_at, found.last_seen_at, found.ended_at) == (after(0), after(10), None)
    assert found.state == "at 10"


def test_two_samples_that_overlap_end_nothing_that_one_of_them_saw(orders: Database) -> None:
    take(orders, sample(5.000, saw(started=4.999)))
    # began before that one had ended
    take(orders, sample(5.001))
    assert only().ended_at is None


def test_a_session_that_is_seen_again_was_not_ended(orders: Database) -> None:
    take(orders, sample(0, saw()))
    take(orders, sample(5))
    assert only().ended_at
    take(orders, sample(10, saw()))
    assert (only().ended_at, only().end_known_by) == (None, "")


def test_an_end_that_the_log_told_stays(orders: Database) -> None:
    take(orders, sample(0, saw()))
    Session.objects.update(ended_at=after(3), end_known_by="logged", logged=True)
    take(orders, sample(2, saw()))
    take(orders, sample(4, saw()))
    take(orders, sample(5))
    assert (only().ended_at, only().end_known_by) == (after(3), "logged")


def test_what_the_log_told_just_now_is_not_ended_by_a_sample_that_was_too_early_for_it(orders: Database) -> None:
    take(orders, sample(0))
    server = DatabaseServer.objects.get()
    at = after(4)
    row = {"server": server, "pid": 2, "started_at": at, "first_seen_at": at, "last_seen_at": at, "logged": True}
    Session.objects.create(key="logged", database_user="v-web", **row)
    take(orders, sample(5))
    assert only().ended_at is None
    take(orders, sample(10))
    assert only().end_known_by == "no longer seen"


def test_what_only_the_log_can_tell_is_not_ended_by_samples(orders: Database) -> None:
    take(orders, sample(0))
    row = {"server": DatabaseServer.objects.get(), "pid": 2, "logged": True, "started_at": after(1)}
    row |= {"first_seen_at": after(1), "last_seen_at": after(1)}
    # a lease bears its name, but it is not named v-… and has no end, so no sample shows it
    Session.objects.create(key="unseen", database_user="app_orders_1", **row)
    take(orders, sample(10))
    assert only().ended_at is None
    take(orders, sample(15, users=[]), asked_at=after(15))
    assert only().ended_at is None
    take(orders, sample(20, users=["app_orders_1"]))
    DynamicUser.objects.get_or_create(
        server=DatabaseServer.objects.get(),
        name="app_orders_1",
        defaults={"first_seen_at": after(20), "last_seen_at": after(20)},
    )
    take(orders, sample(25))
    assert only().end_known_by == "no longer seen"


def test_a_session_that_log_and_samples_tell_is_one(orders: Database) -> None:
    take(orders, sample(0))
    row = {
        "server": DatabaseServer.objects.get(),
        "pid": 1,
        "logged": True,
        "database_user": "v-web",
        "start_is_known": False,
    }
    Session.objects.create(key="s.1", started_at=after(1), first_seen_at=after(1), last_seen_at=after(1), **row)
    take(orders, sample(5, saw(started=0.5)))
    found = only()
    assert (found.sampled, found.logged, found.start_is_known) == (True, True, True)
    assert (found.started_at, found.first_seen_at, found.address) == (after(0.5), after(1), "10.1.0.7")


def test_where_the_server_does_not_say_when_a_session_began_its_first_sight_counts(orders: Database) -> None:
    take(orders, sample(0, saw(started_at=None)))
    take(orders, sample(5, saw(started_at=None)))
    assert (only().started_at, only().start_is_known) == (after(0), False)


def test_samples_leave_lease_and_place_alone(orders: Database) -> None:
    lease = factories.lease(database=orders)
    take(orders, sample(0, saw()))
    Session.objects.update(lease=lease, place="elsewhere", place_reason="nothing has that address", database=None)
    take(orders, sample(5, saw()))
    assert (only().lease, only().place) == (lease, "elsewhere")


# --- servers ------------------------------------------------------------------------------------------------------


def test_a_restart_ends_what_was_open_at_the_latest_when_the_server_came_up(orders: Database) -> None:
    take(orders, sample(0, saw("old")))
    restarted = Server(ALPHA.identity, after(3), data=ALPHA.data)
    take(orders, sample(5, saw("new", started=4), server=restarted))
    old = Session.objects.get(key="old")
    assert (old.ended_at, old.end_known_by) == (after(3), "server restarted")
    assert Session.objects.get(key="new").ended_at is None
    # one that began and ended since then just is no longer seen
    take(orders, sample(10, server=restarted))
    assert Session.objects.get(key="new").end_known_by == "no longer seen"


def test_sessions_of_one_server_are_not_ended_by_a_sample_of_another(orders: Database) -> None:
    take(orders, sample(0, saw()))
    take(orders, sample(5, saw(address="10.1.0.8"), server=BETA))
    take(orders, sample(10, server=BETA))
    assert Session.objects.get(server__identity=ALPHA.identity).ended_at is None
    assert Session.objects.get(server__identity=BETA.identity).ended_at == after(10)


def test_two_servers_that_answer_in_turn_are_a_doubt_that_names_both(orders: Database) -> None:
    take(orders, sample(0, server=ALPHA))
    take(orders, sample(5, server=BETA))
    # so far the one may have taken the other's place
    assert sessions.doubt(orders, now=after(5)) is None
    take(orders, sample(10, server=ALPHA))
    found = sessions.doubt(orders, now=after(10))
    assert found is not None
    assert "10.0.0.9:5432 and 10.0.0.9:5433" in found.cause
    assert "target_session_attrs=primary" in found.fix
    # mended, it is forgotten
    assert sessions.doubt(orders, now=after(10) + sessions.IN_TURN) is None


def test_a_server_that_answers_at_two_addresses_is_one(orders: Database) -> None:
    billing = factories.database("billing")
    take(orders, sample(0, saw()))
    elsewhere = Server("postgresql 71 192.168.0.9:5432", UP_SINCE, data=ALPHA.data)
    take(billing, sample(1, saw(), server=elsewhere))
    assert DatabaseServer.objects.count() == 1
    assert Session.objects.count() == 1
    # a standby has the same data, but came up at another time
    standby = Server("postgresql 71 192.168.0.10:5432", UP_SINCE + timedelta(seconds=9), data=ALPHA.data)
    take(billing, sample(2, server=standby))
    assert DatabaseServer.objects.count() == 2


def test_a_server_that_answers_no_more_keeps_its_sessions_open_and_is_named(orders: Database, viewer: Client) -> None:
    take(orders, sample(0, saw()))
    take(orders, sample(5, server=BETA))
    assert only().ended_at is None
    (unseen,) = queries.samplings()[orders.pk].unseen
    assert (unseen.where, unseen.seen_at, unseen.sessions) == ("10.0.0.9:5432", after(0), 1)
    factories.source(SourceKind.DATABASE, orders.path)
    assert "answers here no more" in viewer.get("/sources").content.decode()


def test_a_clock_that_is_off_is_told(orders: Database) -> None:
    take_sample(orders, sample(0), now=after(1), asked_at=after(-1))
    assert sessions.doubt(orders, now=after(1)) is None
    take_sample(orders, sample(100), now=after(11), asked_at=after(10))
    found = sessions.doubt(orders, now=after(11))
    assert found is not None
    assert "89.0 s ahead" in found.cause


# --- users --------------------------------------------------------------------------------------------------------


def test_users_are_known_from_their_first_to_their_last_sight(orders: Database) -> None:
    take(orders, sample(0, users=["v-a", "v-b"]))
    take(orders, sample(5, users=None))
    take(orders, sample(15, users=["v-a"]))
    rows = {user.name: user for user in DynamicUser.objects.all()}
    assert (rows["v-a"].first_seen_at, rows["v-a"].last_seen_at, rows["v-a"].gone_at) == (after(0), after(15), None)
    assert (rows["v-b"].last_seen_at, rows["v-b"].gone_at) == (after(0), after(15))
    take(orders, sample(30, users=["v-a", "v-b"]))
    assert DynamicUser.objects.get(name="v-b").gone_at is None


def test_a_list_of_users_that_comes_late_calls_nobody_gone(orders: Database) -> None:
    take(orders, sample(15, users=["v-a"]))
    take(orders, sample(0, users=["v-b"]))
    assert set(DynamicUser.objects.filter(gone_at=None).values_list("name", flat=True)) >= {"v-a"}


def test_a_session_tells_of_its_user_before_a_list_does(orders: Database) -> None:
    take(orders, sample(0, saw(user="v-new")))
    user = DynamicUser.objects.get()
    assert (user.name, user.oid, user.gone_at) == ("v-new", 16_400, None)
    take(orders, sample(5, saw(user="v-new")))
    take(orders, sample(15, saw(user="v-new"), users=["v-new"]))
    assert DynamicUser.objects.get().last_seen_at == after(15)


def test_a_session_whose_user_is_dropped_keeps_the_name(orders: Database) -> None:
    take(orders, sample(0, saw()))
    take(orders, sample(5, saw(user="")))
    take(orders, sample(10, saw(user="")))
    found = only()
    assert (found.database_user, found.user_vanished_at, found.ended_at) == ("v-web", after(5), None)


def test_a_session_that_is_seen_only_after_its_user_was_dropped_has_the_name_by_the_users_number(
    orders: Database,
) -> None:
    take(orders, sample(0, users=["v-web"]))
    take(orders, sample(5, saw(user="", started=2)))
    assert (only().database_user, only().user_vanished_at) == ("v-web", after(5))


def test_a_dropped_user_that_nobody_ever_saw_has_no_name(orders: Database) -> None:
    take(orders, sample(0, saw(user="", user_oid=9)))
    assert (only().database_user, only().user_oid, only().user_vanished_at) == ("", 9, after(0))


def test_users_that_are_not_named_as_vault_does_count_only_where_a_lease_bears_them(orders: Database) -> None:
    factories.lease(database=orders, database_user="tmpl_shop_1")
    take(orders, sample(0, saw("a", user="tmpl_shop_1"), saw("b", user="alice"), users=["alice", "tmpl_shop_1"]))
    assert only().database_user == "tmpl_shop_1"
    assert DynamicUser.objects.get().name == "tmpl_shop_1"


def test_users_that_vault_made_for_this_product_itself_are_set_aside(orders: Database) -> None:
    MonitorUser.objects.create(database=orders, name="v-monitor", read_at=BEGIN)
    take(orders, sample(0, saw(user="v-monitor"), users=["v-monitor"]))
    assert not Session.objects.exists()
    assert not DynamicUser.objects.exists()


# --- which database -----------------------------------------------------------------------------------------------


def test_a_session_is_of_the_database_that_it_is_in_whichever_was_sampled(orders: Database) -> None:
    billing, stray = factories.database("billing"), "postgres"
    take_sample(billing, Sample(ALPHA, after(0), 1.0, (), None, "billing_db"), now=after(0))
    take(orders, sample(1, saw("a"), saw("b", database="billing_db"), saw("c", database=stray)))
    assert dict(Session.objects.values_list("key", "database__name")) == {"a": "orders", "b": "billing", "c": "orders"}


# --- what it costs ------------------------------------------------------------------------------------------------


def test_as_many_statements_for_fifty_sessions_as_for_one(orders: Database) -> None:
    def statements(at: float, number: int) -> int:
        seen = [saw(f"{at}.{n}", user=f"v-{at}-{n}") for n in range(number)]
        with CaptureQueriesContext(connection) as captured:
            take(orders, sample(at, *seen, users=[session.user for session in seen]))
        return len(captured)

    statements(0, 1)
    assert statements(5, 1) == statements(10, 50) == statements(15, 1) <= 25
    assert Session.objects.filter(ended_at=None).count() == 1


@pytest.mark.parametrize(
    ("interval", "took_ms", "sharing", "becomes"),
    [
        (5, 2, 1, 5),  # costs little
        (5, 60, 1, 6),  # a hundredth of a core
        (8, 2000, 1, 10),  # a quarter longer than before, however long it took once
        (50, 2000, 1, 60),  # never longer than a minute
        (60, 2, 1, 5),  # back at once
        (5, 3, 20, 6),  # twenty databases of one server share the hundredth
    ],
)
def test_the_interval_keeps_sampling_below_a_hundredth_of_a_core(
    interval: float, took_ms: float, sharing: int, becomes: float
) -> None:
    assert next_interval(interval, least=5, took_ms=took_ms, sharing=sharing) == becomes


def test_an_interval_that_was_configured_longer_stays() -> None:
    assert next_interval(300, least=300, took_ms=5, sharing=1) == 300


def test_cost_and_next_time_are_kept(orders: Database) -> None:
    take_sample(orders, Sample(ALPHA, after(0), 60.0, (saw(),)), now=after(0))
    take_sample(orders, Sample(ALPHA, after(5), 70.0, (saw(),)), now=after(5))
    row = Sampling.objects.get()
    assert (row.samples, row.sessions, row.took_ms, row.total_ms) == (2, 1, 70.0, 130.0)
    assert row.interval_seconds == pytest.approx(7.0)
    # six seconds after the first, seven after that
    assert row.due_at == after(13)
    assert queries.samplings()[orders.pk].share == pytest.approx(1.0)


def test_time_is_known_as_long_as_samples_keep_their_interval(orders: Database) -> None:
    for at in (0, 5, 10, 22, 40, 45):
        take(orders, sample(at))
    # twelve seconds are a late sample, eighteen a hole
    assert list(SampledPeriod.objects.order_by("from_at").values_list("from_at", "to_at")) == [
        (after(0), after(22)),
        (after(40), after(45)),
    ]
    assert queries.samplings()[orders.pk].known_from == after(40)


def test_metrics_tell_samples_and_their_cost(orders: Database) -> None:
    take(orders, sample(0, saw()))
    told = {
        metric.name: metric.samples[0].value
        for metric in LedgerCollector(now=after(1)).collect()
        if metric.name.startswith("leasehold_session")
    }
    assert told["leasehold_session_samples"] == 1
    assert told["leasehold_session_sample_seconds"] == pytest.approx(0.002)
    assert told["leasehold_sessions_sampled"] == 1
    assert told["leasehold_session_sample_interval_seconds"] == 5


def test_the_sources_page_shows_how_a_database_is_sampled(orders: Database, viewer: Client) -> None:
    factories.source(SourceKind.DATABASE, orders.path)
    take(orders, sample(0, saw()))
    page = " ".join(viewer.get("/sources").content.decode().split())
    assert "<strong>1</strong> under dynamic users" in page
    assert "the last took 2.0 ms of the server's time, 0.04 % of one core" in page.replace("&#x27;", "'")


# --- real servers -------------------------------------------------------------------------------------------------

USER = "v-kubernet-orders-r-AbCdEfGhIjKlMnOpQrSt-1795478400"


@pytest.fixture
def server(run_folder: Path) -> Iterator[Postgres]:
    """A server that a test may stop, restart and break."""
    made = postgres_server.start(run_folder / "sampled")
    made.create_role("monitor")
    made.create_role(USER)
    with psycopg.connect(made.dsn(), autocommit=True) as admin:
        admin.execute("GRANT pg_monitor TO monitor")
    made.create_database("orders")
    yield made
    made.stop()


@pytest.fixture
def address(server: Postgres, tmp_path: Path) -> Path:
    """The file with the monitoring account's address."""
    file = tmp_path / "orders.dsn"
    file.write_text(server.dsn("monitor", "orders"))
    return file


@pytest.fixture
def watched(address: Path) -> Database:
    return factories.database("orders", monitor={"file": str(address)})


@contextmanager
def _deaf_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def run(database: Database) -> SourceState:
    """The task, as if its time had come; and what the source then says."""
    Sampling.objects.filter(database=database).update(due_at=timezone.now())
    SourceState.objects.update(retry_at=timezone.now())
    leases.tasks.sample_database(database.pk)
    return SourceState.objects.get(kind=SourceKind.DATABASE, name=database.path)


def test_a_real_session_is_taken_from_its_first_sight_to_its_end(server: Postgres, watched: Database) -> None:
    with psycopg.connect(server.dsn(USER, "orders"), application_name="shop"):
        assert run(watched).ok
        found = only()
        assert (found.database_user, found.database, found.application) == (USER, watched, "shop")
        assert (found.address, found.ended_at) == ("127.0.0.1", None)
    # the server lets go of it a moment later
    processes.wait_until(lambda: run(watched).ok and only().ended_at is not None, what="the session's end", seconds=10)
    assert only().end_known_by == "no longer seen"
    assert DynamicUser.objects.get().name == USER


def test_a_sample_before_its_time_is_not_taken(server: Postgres, watched: Database) -> None:
    run(watched)
    leases.tasks.sample_database(watched.pk)
    assert Sampling.objects.get().samples == 1
    assert sessions.due(now=timezone.now()) == []
    assert sessions.due(now=timezone.now() + timedelta(seconds=5.1)) == [watched]
    Database.objects.update(sample_seconds=0)
    assert sessions.due(now=timezone.now() + timedelta(seconds=5.1)) == []


def test_what_is_due_is_started_on_the_queue_watch_unless_its_source_waits(orders: Database) -> None:
    broker = redis.Redis.from_url(settings.CELERY_BROKER_URL)
    broker.delete("watch")
    leases.tasks.sample_databases()
    assert broker.llen("watch") == 1
    assert "leases.tasks.sample_database" in str(broker.lindex("watch", 0))
    health.report_failure(SourceKind.DATABASE, orders.path, cause="down", fix="start it", now=timezone.now())
    leases.tasks.sample_databases()
    assert broker.llen("watch") == 1
    broker.delete("watch")
    broker.close()


def test_a_real_restart_ends_sessions_and_says_so(server: Postgres, watched: Database) -> None:
    with psycopg.connect(server.dsn(USER, "orders")):
        run(watched)
        server.restart()
        assert run(watched).ok
    found = only()
    assert found.end_known_by == "server restarted"
    assert found.ended_at == DatabaseServer.objects.get().started_at


def test_a_database_that_is_down_is_told_and_ends_no_session_until_it_answers_again(
    server: Postgres, watched: Database
) -> None:
    with psycopg.connect(server.dsn(USER, "orders")):
        run(watched)
        server.stop()
        state = run(watched)
        assert not state.ok
        assert f"127.0.0.1:{server.port} cannot be reached" in state.cause
        assert state.retry_at > timezone.now()
        assert only().ended_at is None
        # as if a minute had passed
        minute = timedelta(minutes=1)
        SampledPeriod.objects.update(from_at=timezone.now() - 2 * minute, to_at=timezone.now() - minute)
        server.restart()
        assert run(watched).ok
    assert SampledPeriod.objects.count() == 2
    assert only().end_known_by == "server restarted"


def test_a_server_that_answers_nothing_is_given_up_within_seconds(watched: Database, address: Path) -> None:
    # it takes connections and says nothing
    with _deaf_port() as port:
        address.write_text(f"postgresql://monitor:secret-word@127.0.0.1:{port}/orders")
        began = timezone.now()
        state = run(watched)
    assert not state.ok
    assert timezone.now() - began < timedelta(seconds=10)
    assert "secret-word" not in state.cause + state.fix


def test_an_account_without_the_right_is_a_doubt_and_no_empty_sample(server: Postgres, watched: Database) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin, psycopg.connect(server.dsn(USER, "orders")):
        run(watched)
        admin.execute("REVOKE pg_monitor FROM monitor")
        state = run(watched)
        # its users are seen all the same, so it is not failing
        assert state.ok
        assert "may not see other users' sessions" in state.cause
        assert 'GRANT pg_monitor TO "monitor"' in state.fix
        assert only().ended_at is None
        assert Sampling.objects.get().samples == 1
        assert Sampling.objects.get().due_at > timezone.now()

        SourceState.objects.update(cause="", fix="")
        leases.tasks.check_vaults()
        hint = next(found for found in doctor.examine() if found.what == f"database {watched.path}").hint
        assert "GRANT pg_monitor" in hint
        assert "GRANT pg_monitor" in SourceState.objects.get(name=watched.path).fix

        admin.execute("GRANT pg_monitor TO monitor")
        assert run(watched).cause == ""


def test_a_role_that_is_dropped_while_it_is_connected_is_known_by_its_name(server: Postgres, watched: Database) -> None:
    with (
        psycopg.connect(server.dsn(), autocommit=True) as admin,
        psycopg.connect(server.dsn(USER, "orders")) as session,
    ):
        run(watched)
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(USER)))
        session.execute("SELECT 1")
        Sampling.objects.update(users_at=None)
        assert run(watched).ok
    found = only()
    assert found.database_user == USER
    assert found.user_vanished_at == found.last_seen_at
    assert DynamicUser.objects.get().gone_at == found.last_seen_at


def test_two_servers_behind_one_address_keep_their_sessions_and_are_named(
    server: Postgres, watched: Database, address: Path, run_folder: Path
) -> None:
    other = postgres_server.start(run_folder / "sampled-too")
    try:
        for one in (server, other):
            with psycopg.connect(one.dsn(), autocommit=True) as admin:
                admin.execute("DROP ROLE IF EXISTS same")
                admin.execute("CREATE ROLE same LOGIN PASSWORD 'same' IN ROLE pg_monitor")
        other.create_role(USER)
        with (
            in_turn(server.port, other.port) as port,
            psycopg.connect(server.dsn(USER)),
            psycopg.connect(other.dsn(USER)),
        ):
            address.write_text(f"postgresql://same:same@127.0.0.1:{port}/postgres")
            states = [run(watched) for _ in range(4)]
        assert Session.objects.filter(ended_at=None).count() == 2
        assert DatabaseServer.objects.count() == 2
        assert states[0].cause == states[1].cause == ""
        assert states[3].ok
        assert f"127.0.0.1:{server.port}" in states[3].cause
        assert f"127.0.0.1:{other.port}" in states[3].cause
        # what one server has between two of its turns is not known
        assert not SampledPeriod.objects.filter(to_at__gt=F("from_at")).exists()
    finally:
        other.stop()
