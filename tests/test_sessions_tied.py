"""Sessions in the database: tied to leases, judged by pods' addresses, watch and configuration; and the whole chain on real parts."""

import contextlib
import io
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import attribute, configuration, guess, intern, sessions, tasks, users, whereabouts
from audit.findings import queries
from audit.findings import watch as findings
from audit.models import AskedName, Device, Finding, FindingKind, Hash, Severity, Stream
from audit.place import a_session_comes_from_its_holder_or_from_elsewhere
from audit.sessions import Judged, tie_and_judge
from dashboard.celery import app as celery
from demo.postgres import Postgres
from leases import revoke
from leases.configuration import load
from leases.models import (
    Certainty,
    Database,
    DatabaseServer,
    DynamicUser,
    Lease,
    Login,
    Pod,
    PodAddress,
    Sampling,
    Session,
    SyncedLease,
    Vault,
    WatchPeriod,
)
from leases.models.sessions import Place, TiedBy
from tests.test_candidates import BEGIN, OPERATOR, at
from tests.test_candidates import Place as Shop
from tests.workers import catch_up, read_streams
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db

# ten minutes after a session that began at BEGIN, less what a test says
SOON = at(5)
LATE = at(700)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def server(identity: str = "pg-1") -> DatabaseServer:
    return DatabaseServer.objects.get_or_create(identity=identity)[0]


def database(**fields: Any) -> Database:
    found, _ = Database.objects.update_or_create(
        vault=Vault.objects.get(), mount="database", name="orders", defaults={"kind": "postgresql", **fields}
    )
    return found


def with_user(lease: Lease, user: str = "", **fields: Any) -> Lease:
    """The lease with a database user, on database orders."""
    row = fields.pop("database", None) or Database.objects.filter(name="orders").first() or database()
    values = {"database_user": user or f"v-{lease.pk}", "database_user_by": TiedBy.HASH, "database": row, **fields}
    Lease.objects.filter(pk=lease.pk).update(**values)
    lease.refresh_from_db()
    return lease


def session(user: Lease | str, address: str, *, began: datetime = BEGIN, **fields: Any) -> Session:
    """An open session that a sample showed a moment after it began."""
    values: dict[str, Any] = {
        "key": secrets.token_hex(6),
        "database_user": user.database_user if isinstance(user, Lease) else user,
        "pid": 4711,
        "started_at": began,
        "address": address,
        "port": 50_000,
        "sampled": True,
        "first_seen_at": began + timedelta(seconds=1),
        "last_seen_at": began + timedelta(seconds=1),
        **fields,
    }
    return Session.objects.create(server=values.pop("server", None) or server(), **values)


def judged(row: Session, now: datetime = SOON) -> tuple[str, str]:
    """Place and reason after one more turn."""
    tie_and_judge(now=now)
    row.refresh_from_db()
    return row.place, row.place_reason


# --- tied --------------------------------------------------------------------------------------------------------


def test_a_session_is_tied_to_the_lease_of_its_user_and_gets_its_database(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    other = Database.objects.create(vault=shop.mount.vault, mount="other", name="other")
    lease = with_user(shop.lease("10.0.0.1"))
    mine, nobodys = session(lease, "10.0.0.1", database=other), session("v-nobody", "10.0.0.1")
    assert tie_and_judge(now=SOON).tied == 1
    mine.refresh_from_db()
    nobodys.refresh_from_db()
    assert (mine.lease, mine.database) == (lease, lease.database)
    assert (nobodys.lease, nobodys.place) == (None, "")


def test_a_name_that_is_given_again_is_of_the_last_lease_before_the_session(shop: Shop) -> None:
    shop.pod("web-0", "10.0.0.1", until=-30)
    shop.pod("web-1", "10.0.0.2")
    old, new, later = (with_user(shop.lease("10.0.0.2"), "app") for _ in range(3))
    for lease, seconds in ((old, -3600), (new, -1), (later, 300)):
        Lease.objects.filter(pk=lease.pk).update(accessed_at=at(seconds))
    row = session("app", "10.0.0.2", database=new.database)
    assert judged(row)[0] == Place.HOLDER
    assert row.lease == new


def test_a_user_that_becomes_known_later_ties_sessions_that_were_given_up(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = shop.lease("10.0.0.1")
    row = session("v-late", "10.0.0.1", ended_at=at(2), end_known_by="logged")
    assert judged(row)[0] == ""
    assert judged(row, LATE) == (
        Place.NOT_JUDGED,
        "the lease of v-late is not known: no read that was logged fits its name",
    )
    assert not row.place_open
    with_user(lease, "v-late", sessions_due=True)
    assert judged(row, LATE)[0] == Place.HOLDER
    assert row.lease == lease


def test_a_lease_that_gets_another_user_lets_go_of_the_first_ones_sessions(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"), "v-guessed")
    row = session(lease, "10.0.0.1")
    assert judged(row)[0] == Place.HOLDER
    with_user(lease, "v-true", sessions_due=True)
    assert judged(row)[0] == ""
    assert row.lease is None


def test_a_dropped_user_whose_name_nobody_saw_is_not_judged(shop: Shop) -> None:
    row = session("", "10.0.0.1", user_oid=77, user_vanished_at=at(1))
    # its name may come with the next list of users
    assert judged(row)[0] == ""
    place, reason = judged(row, LATE)
    assert (place, "dropped" in reason) == (Place.NOT_JUDGED, True)


# --- judged ------------------------------------------------------------------------------------------------------


def test_a_name_that_comes_while_its_session_is_given_up_is_not_lost(shop: Shop) -> None:
    row = session("", "10.0.0.9", user_oid=7)
    ((seen, found),) = whereabouts.gather([row.pk], skew=timedelta(seconds=2), now=LATE)
    verdict = a_session_comes_from_its_holder_or_from_elsewhere(found)
    assert not verdict.open
    # by the log's reader, between the two
    Session.objects.filter(pk=row.pk).update(database_user="v-late")
    assert sessions.save({row.pk: seen}, {row.pk: verdict}) == []
    row.refresh_from_db()
    assert row.place_open


def test_a_stolen_credential_is_found_and_both_ends_are_named(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("debug-7", "10.0.0.9", account="debug", namespace="tools", node="n2")
    lease = with_user(shop.lease("10.0.0.1"))
    own, pods, nobodys = (session(lease, address) for address in ("10.0.0.1", "10.0.0.9", "203.0.113.9"))
    done = tie_and_judge(now=SOON)
    assert (done.judged, done.elsewhere, done.is_news) == (3, 2, True)
    assert judged(own)[0] == Place.HOLDER
    place, reason = judged(pods)
    assert place == Place.ELSEWHERE
    assert reason == (
        "expected the address of shop/web-1 (10.0.0.1) in cluster c, but it came from 10.0.0.9, then the address of "
        "tools/debug-7 (service account tools/debug, cluster c, node n2)"
    )
    assert judged(nobodys)[1].endswith("203.0.113.9, then the address of no pod and no node that is known")
    # nothing new is found again
    assert not tie_and_judge(now=SOON).is_news


def test_a_new_pod_that_gets_a_dead_pods_address_and_uses_its_credential_is_elsewhere(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1", until=60)
    shop.pod("debug-7", "10.0.0.1", account="debug", since=65)
    lease = with_user(shop.lease("10.0.0.1"))
    assert lease.pod == "web-1"
    before, after = session(lease, "10.0.0.1", began=at(50)), session(lease, "10.0.0.1", began=at(120))
    assert judged(before, LATE)[0] == Place.HOLDER
    place, reason = judged(after, LATE)
    assert place == Place.ELSEWHERE
    assert "shop/web-1 (ended 2026-11-03T12:01:00Z)" in reason
    assert "shop/debug-7" in reason


def test_a_dead_pods_address_that_nobody_has_now_is_elsewhere_too(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1", until=60)
    lease = with_user(shop.lease("10.0.0.1"))
    place, reason = judged(session(lease, "10.0.0.1", began=at(120)), LATE)
    assert (place, "no pod and no node" in reason) == (Place.ELSEWHERE, True)


@pytest.mark.parametrize(("seconds", "place"), [(61.9, Place.HOLDER), (62.1, Place.ELSEWHERE)])
def test_the_clock_skew_is_allowed_for_and_no_more(shop: Shop, seconds: float, place: Place) -> None:
    shop.pod("web-1", "10.0.0.1", until=60)
    lease = with_user(shop.lease("10.0.0.1"))
    assert judged(session(lease, "10.0.0.1", began=at(seconds)), LATE)[0] == place


@pytest.mark.parametrize("ahead", [-200.0, 200.0])
def test_a_database_whose_clock_is_off_makes_no_false_alarm_and_hides_no_thief(shop: Shop, ahead: float) -> None:
    shop.pod("web-1", "10.0.0.1", since=-5, until=5)
    lease, where = with_user(shop.lease("10.0.0.1")), server()
    Sampling.objects.create(
        database=database(), server=where, due_at=BEGIN, interval_seconds=5, clock_ahead_seconds=ahead
    )
    began = at(ahead)
    assert judged(session(lease, "10.0.0.1", began=began), at(600))[0] == Place.HOLDER
    assert judged(session(lease, "10.0.0.2", began=began), at(600))[0] == Place.ELSEWHERE


def test_other_forms_of_an_address_are_the_same_address(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    PodAddress.objects.create(pod=Pod.objects.get(), address="fd00::1", from_at=at(-600))
    lease = with_user(shop.lease("10.0.0.1"))
    for address in ("::ffff:10.0.0.1", "FD00:0:0:0::1"):
        assert judged(session(lease, address))[0] == Place.HOLDER
    assert judged(session(lease, "fd00::2"))[0] == Place.ELSEWHERE


def test_a_pod_that_connects_before_its_address_is_known_is_no_false_alarm(shop: Shop) -> None:
    """Its login names it at once; the cluster's API shows its address a moment later."""
    claims = {"claimed_pod": "web-2", "claimed_pod_uid": "c-web-2"}
    lease = with_user(shop.lease("10.0.0.2", **claims))
    assert lease.certainty == Certainty.EXACT
    WatchPeriod.objects.update(to_at=at(4))
    row = session(lease, "10.0.0.2")
    assert judged(row)[0] == ""
    pod = shop.pod("web-2", since=-1)
    place, reason = judged(row)
    assert (place, "shop/web-2" in reason, row.place_open) == ("", True, True)
    PodAddress.objects.create(pod=pod, address="10.0.0.2", from_at=at(-1))
    assert judged(row)[0] == Place.HOLDER


def test_a_pod_whose_address_changed_is_found_at_its_new_one_once_that_is_known(shop: Shop) -> None:
    """Its sandbox was made anew; nothing says since when it has the new address."""
    pod = shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    PodAddress.objects.update(to_at=at(90))
    WatchPeriod.objects.update(to_at=at(110))
    row = session(lease, "10.0.0.7", began=at(100))
    assert judged(row, at(111))[0] == ""
    PodAddress.objects.create(pod=pod, address="10.0.0.7", from_at=at(104))
    assert judged(row, at(112))[0] == Place.HOLDER
    assert "a moment later" in row.place_reason


def test_a_thief_is_found_while_the_holders_service_account_is_all_that_is_known(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("web-2", "10.0.0.2")
    shop.pod("debug-7", "10.0.0.9", account="debug")
    lease = with_user(shop.lease("10.0.0.1"), certainty=Certainty.SERVICE_ACCOUNT, pod="", pod_uid="", pod_namespace="")
    assert judged(session(lease, "10.0.0.2"))[0] == Place.HOLDER
    place, reason = judged(session(lease, "10.0.0.9"))
    assert place == Place.ELSEWHERE
    assert "one of 2 pods in cluster c: shop/web-1 (10.0.0.1), shop/web-2 (10.0.0.2)" in reason


def test_a_holder_that_is_known_better_is_judged_again(shop: Shop) -> None:
    pod = shop.pod("web-1", "10.0.0.1")
    shop.pod("web-2", "10.0.0.2")
    lease = with_user(shop.lease("10.0.0.1"), certainty=Certainty.SERVICE_ACCOUNT, pod="", pod_uid="", pod_namespace="")
    row = session(lease, "10.0.0.2")
    assert judged(row)[0] == Place.HOLDER
    assert not row.place_open
    attribute.attribute([lease.pk], now=SOON)
    lease.refresh_from_db()
    assert lease.pod == pod.name
    assert judged(row)[0] == Place.ELSEWHERE


def test_a_pod_that_had_ended_when_the_watch_was_behind_is_no_holder(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    WatchPeriod.objects.update(to_at=at(50))
    row = session(lease, "10.0.0.1", began=at(100))
    assert judged(row, at(101))[0] == Place.HOLDER
    assert row.place_open
    Pod.objects.update(ended_at=at(60))
    PodAddress.objects.update(to_at=at(60))
    shop.pod("debug-7", "10.0.0.1", account="debug", since=65)
    WatchPeriod.objects.update(to_at=at(110))
    assert judged(row, at(111))[0] == Place.ELSEWHERE


def test_ambiguous_holders_are_the_candidates_that_the_attribution_saw(shop: Shop) -> None:
    shop.pod("before", "10.0.0.1", until=-1)
    shop.pod("then", "10.0.0.1", since=-0.5)
    shop.pod("bystander", "10.0.0.3")
    lease = with_user(shop.lease("10.0.0.1"))
    assert lease.certainty == Certainty.AMBIGUOUS
    assert judged(session(lease, "10.0.0.1"))[0] == Place.HOLDER
    place, reason = judged(session(lease, "10.0.0.3"))
    assert place == Place.ELSEWHERE
    assert "shop/then (10.0.0.1)" in reason
    assert "shop/bystander (service account shop/web" in reason


def test_behind_nat_towards_vault_every_pod_of_the_account_that_lived_then_may_hold_it(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("web-later", "10.0.0.2", since=100)
    shop.pod("debug-7", "10.0.0.9", account="debug")
    lease = with_user(shop.lease("198.51.100.1"))
    assert lease.certainty == Certainty.AMBIGUOUS
    places = {
        address: judged(session(lease, address, began=at(200)), LATE)[0]
        for address in ("10.0.0.1", "198.51.100.1", "10.0.0.2", "10.0.0.9", "203.0.113.9")
    }
    assert places == {
        "10.0.0.1": Place.HOLDER,
        "198.51.100.1": Place.HOLDER,
        "10.0.0.2": Place.ELSEWHERE,
        "10.0.0.9": Place.ELSEWHERE,
        "203.0.113.9": Place.ELSEWHERE,
    }


def test_a_node_whose_address_its_pods_share_is_the_holders_place_and_another_node_is_not(shop: Shop) -> None:
    shop.pod("proxy-1", "10.1.0.1", account="proxy", host_network=True)
    shop.pod("proxy-2", "10.1.0.2", account="proxy", host_network=True, node="n2")
    shop.pod("web-inside", "10.0.0.1")
    shop.pod("web-other", "10.0.0.2", node="n2")
    lease = with_user(shop.lease("10.1.0.1"))
    assert lease.certainty == Certainty.AMBIGUOUS
    places = {
        address: judged(session(lease, address))[0] for address in ("10.1.0.1", "10.0.0.1", "10.0.0.2", "10.1.0.2")
    }
    assert places == {
        "10.1.0.1": Place.HOLDER,
        "10.0.0.1": Place.HOLDER,
        "10.0.0.2": Place.ELSEWHERE,
        "10.1.0.2": Place.ELSEWHERE,
    }


def test_what_an_operator_fetched_is_used_by_the_pods_of_its_secret(shop: Shop) -> None:
    shop.pod("vso-1", "10.0.0.50", **OPERATOR)
    shop.pod("web-1", "10.0.0.1", secrets=["web-db"])
    shop.pod("bystander", "10.0.0.3")
    sync = shop.sync()
    lease = shop.lease("10.0.0.50", account="vso", namespace="operators")
    SyncedLease.objects.create(sync=sync, lease_id=lease.lease_id, seen_at=BEGIN)
    with_user(lease)
    assert judged(session(lease, "10.0.0.1"))[0] == Place.HOLDER
    assert judged(session(lease, "10.0.0.50"))[0] == Place.HOLDER
    assert judged(session(lease, "10.0.0.3"))[0] == Place.ELSEWHERE


def test_what_an_operator_fetched_for_nobody_known_is_not_judged(shop: Shop) -> None:
    shop.pod("vso-1", "10.0.0.50", **OPERATOR)
    lease = with_user(shop.lease("10.0.0.50", account="vso", namespace="operators"))
    place, reason = judged(session(lease, "10.0.0.3"))
    assert (place, "for which pods is not known" in reason) == (Place.NOT_JUDGED, True)


def test_who_unwrapped_a_credential_may_use_it(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("job-1", "10.0.0.5", account="job")
    lease = with_user(shop.lease("10.0.0.1"), unwrapped_from="10.0.0.5")
    attribute.attribute([lease.pk], now=SOON)
    lease.refresh_from_db()
    assert lease.certainty == Certainty.AMBIGUOUS
    places = [judged(session(lease, address))[0] for address in ("10.0.0.1", "10.0.0.5", "10.0.0.6")]
    assert places == [Place.HOLDER, Place.HOLDER, Place.ELSEWHERE]


def test_who_read_with_a_token_that_was_handed_over_may_use_what_it_read(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("job-1", "10.0.0.5", account="job")
    lease = with_user(shop.lease("10.0.0.1"))
    origin = lease.login
    assert origin is not None
    child = Login.objects.create(
        vault=lease.vault, request_id="child", logged_in_at=BEGIN, mount_path="token", parent=origin, origin=origin
    )
    Lease.objects.filter(pk=lease.pk).update(login=child, source_ip="10.0.0.5")
    attribute.attribute([lease.pk], now=SOON)
    lease.refresh_from_db()
    assert lease.certainty == Certainty.AMBIGUOUS
    assert judged(session(lease, "10.0.0.5"))[0] == Place.HOLDER
    assert judged(session(lease, "10.0.0.6"))[0] == Place.ELSEWHERE


def test_who_reads_and_connects_with_a_token_that_was_stolen_from_a_pod_is_elsewhere(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1", claimed_pod="web-1", claimed_pod_uid="c-web-1"))
    Lease.objects.filter(pk=lease.pk).update(source_ip="203.0.113.9")
    attribute.attribute([lease.pk], now=SOON)
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.EXACT, "web-1")
    # its login came from its own address, so no NAT stands before it
    place, reason = judged(session(lease, "203.0.113.9"))
    assert place == Place.ELSEWHERE
    assert "the credential was read from there, too" in reason


def test_nat_and_poolers_are_allowed_for_each_database_and_a_change_of_them_is_heeded(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    allowing = database(nat=["192.0.2.0/24"], poolers=["local"])
    lease = with_user(shop.lease("10.0.0.1"), database=allowing)
    assert judged(session(lease, "192.0.2.7")) == (
        Place.NAT,
        "192.0.2.7 is allowed by 192.0.2.0/24 in nat of the database",
    )
    assert judged(session(lease, ""))[0] == Place.POOLER
    assert judged(session(lease, "198.51.100.7"))[0] == Place.ELSEWHERE


def test_a_lease_whose_holder_is_unknown_is_never_a_finding(shop: Shop) -> None:
    lease = with_user(shop.lease("10.0.0.1"), certainty=Certainty.UNKNOWN, cluster="", service_account="")
    place, reason = judged(session(lease, "203.0.113.9"))
    assert (place, reason.startswith("who holds its lease is not known")) == (Place.NOT_JUDGED, True)


def test_a_watch_that_is_behind_or_had_a_gap_makes_no_finding(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    row = session(lease, "203.0.113.9", began=at(100))
    WatchPeriod.objects.update(to_at=at(101))
    assert judged(row, at(105)) == ("", "the pod watch of cluster c has not come past its start yet")
    assert judged(row, at(800))[0] == Place.NOT_JUDGED
    # it caught up after all
    WatchPeriod.objects.update(to_at=at(200))
    assert judged(row, at(801))[0] == Place.ELSEWHERE
    other = session(lease, "203.0.113.9", began=at(300))
    WatchPeriod.objects.create(cluster=shop.cluster, from_at=at(301), to_at=at(400))
    assert judged(other, at(401)) == (Place.NOT_JUDGED, "the pod watch of cluster c had a gap when it began")


def test_a_session_of_an_ended_lease_or_of_a_dropped_user_is_judged_all_the_same(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(
        shop.lease("10.0.0.1"), state="ended", ended_at=at(-1), end_reason="expired (inferred)", end_evidence="gone"
    )
    row = session(lease, "203.0.113.9", user_vanished_at=at(1), ended_at=at(2), end_known_by="no longer seen")
    assert judged(row)[0] == Place.ELSEWHERE


def test_pods_of_another_cluster_are_named_and_are_nobodys_alibi(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    other = Shop("d")
    other.pod("web-9", "10.9.0.9")
    lease = with_user(shop.lease("10.0.0.1"))
    place, reason = judged(session(lease, "10.9.0.9"))
    assert (place, "cluster d" in reason) == (Place.ELSEWHERE, True)


def test_many_sessions_take_as_many_queries_as_one(shop: Shop) -> None:
    shop.pod("vso-1", "10.0.0.50", **OPERATOR)
    shop.pod("web-1", "10.0.0.1", secrets=["web-db"])
    shop.sync(paths=["database/creds/web"])
    counts = []
    for size in (1, 30):
        Session.objects.all().delete()
        for _ in range(size):
            for source in ("10.0.0.1", "10.0.0.50", "198.51.100.1"):
                lease = with_user(shop.lease(source))
                session(lease, "203.0.113.9")
                session(lease, source)
        with CaptureQueriesContext(connection) as captured:
            done = tie_and_judge(now=SOON)
        assert (done.tied, done.judged) == (6 * size, 6 * size)
        counts.append(len(captured.captured_queries))
    assert counts[0] == counts[1] <= 23


def test_with_nothing_to_do_a_turn_is_a_few_reads(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    session(lease, "10.0.0.1")
    tie_and_judge(now=SOON)
    with CaptureQueriesContext(connection) as captured:
        assert tie_and_judge(now=SOON) == Judged()
    # savepoints aside: leases that changed, sessions to tie, the skew, sessions to judge
    asked = [query["sql"] for query in captured.captured_queries if "SAVEPOINT" not in query["sql"]]
    assert len(asked) == 4


# --- whose user it is --------------------------------------------------------------------------------------------


@dataclass
class Told:
    """A vault with one followed device, and a lease of orders that was read at BEGIN by a login of kubernetes-shop-web."""

    device: Device
    lease: Lease

    def hash(self, hashed: str, lease: Lease | None = None) -> None:
        """The log has this hash of the lease's user."""
        lease_id = (lease or self.lease).lease_id
        number = intern.texts([lease_id])[lease_id]
        Hash.objects.create(
            device=self.device, salt_epoch=1, of=Hash.Of.DATABASE_USER, hash=hashed, lease_name_id=number
        )

    def asked(self, name: str, hashed: str) -> AskedName:
        """Vault was asked for the name's hash."""
        return AskedName.objects.create(
            device=self.device, salt_epoch=1, name=name, hash=hashed, asked_at=BEGIN, due_at=BEGIN
        )

    def user(self, name: str, **fields: Any) -> DynamicUser:
        return DynamicUser.objects.create(
            server=server(), name=name, first_seen_at=BEGIN, last_seen_at=BEGIN + timedelta(minutes=9), **fields
        )


def name(seconds: float = 0, *, who: str = "kubernet-web") -> str:
    return f"v-{who}-{secrets.token_hex(10)}-{int(at(seconds).timestamp())}"


@pytest.fixture
def told(shop: Shop) -> Told:
    shop.pod("web-1", "10.0.0.1")
    lease = shop.lease("10.0.0.1", display_name="kubernetes-shop-web")
    Lease.objects.filter(pk=lease.pk).update(database=database())
    Sampling.objects.create(database=database(), server=server(), due_at=BEGIN, interval_seconds=5, users_at=BEGIN)
    device = Device.objects.create(vault=shop.mount.vault, name="file-a", salt_epoch=1)
    Stream.objects.create(device=device, node="n", path="/log")
    lease.refresh_from_db()
    return Told(device, lease)


def user_of(lease: Lease) -> tuple[str, str]:
    lease.refresh_from_db()
    return lease.database_user, lease.database_user_by


def test_a_name_is_compared_again_and_again_until_its_line_comes_and_is_asked_for_once(told: Told) -> None:
    mine = name()
    row = told.asked(mine, "hmac-1")
    assert users.tie(now=SOON) == 0
    row.refresh_from_db()
    assert row.due_at > SOON
    told.hash("hmac-1")
    # it waits for its turn, which comes the later the longer nothing told of it
    assert users.tie(now=SOON) == 0
    assert users.tie(now=row.due_at) == 1
    assert user_of(told.lease) == (mine, TiedBy.HASH)
    assert not AskedName.objects.exists()


def test_names_come_from_users_and_sessions_that_are_gone_too_and_other_vaults_are_asked_later(told: Told) -> None:
    vault = told.lease.vault
    other = Vault.objects.create(name="other")
    gone, ended, known = name(), name(1), name(2)
    told.user(gone, gone_at=at(1))
    session(ended, "10.0.0.1", ended_at=at(2), end_known_by="logged")
    told.user(known)
    with_user(told.lease, known)
    assert set(users.names_for(vault, now=SOON)) == {gone, ended}
    assert users.names_for(other, now=SOON) == []
    assert set(users.names_for(other, now=at(60))) == {gone, ended}
    # what was given up on is asked about each minute only, and in the end no more
    tie_and_judge(now=LATE)
    assert users.names_for(vault, now=LATE) == []
    assert set(users.names_for(vault, now=LATE, all_of_them=True)) == {gone, ended}
    assert users.names_for(vault, now=LATE + timedelta(days=8), all_of_them=True) == []


def test_where_no_hash_tells_a_name_that_fits_one_lease_alone_is_taken_for_its(told: Told) -> None:
    mine = name(1)
    told.user(mine)
    # hashes have their time first
    assert guess.guess(now=at(30)) == 0
    assert guess.guess(now=at(90)) == 1
    assert user_of(told.lease) == (mine, TiedBy.TIME_AND_NAME)
    assert judged(session(mine, "10.0.0.1"))[0] == Place.HOLDER


@pytest.mark.parametrize(
    "other",
    [
        {"seconds": 9},
        {"seconds": -9},
        {"who": "kubernet-other"},
        {"who": "token-web"},
        {"who": "web"},
    ],
)
def test_a_name_of_another_time_role_or_login_is_not_taken_for_it(told: Told, other: dict[str, Any]) -> None:
    told.user(name(**other))
    assert guess.guess(now=at(90)) == 0


@pytest.mark.parametrize("other", ["v-kubernet-web-short-1", "v-kubernetes-web-abcdefghij"])
def test_a_name_that_bears_no_time_is_not_guessed_about(told: Told, other: str) -> None:
    told.user(other)
    assert guess.guess(now=at(90)) == 0


def test_of_several_that_fit_none_is_taken(told: Told, shop: Shop) -> None:
    told.user(name())
    other = shop.lease("10.0.0.1", display_name="kubernetes-shop-web")
    Lease.objects.filter(pk=other.pk).update(database=database())
    assert guess.guess(now=at(90)) == 0
    Lease.objects.filter(pk=other.pk).update(accessed_at=at(30))
    told.user(name(1))
    assert guess.guess(now=at(90)) == 0
    DynamicUser.objects.first().delete()  # type: ignore[union-attr]
    assert guess.guess(now=at(90)) == 1


def test_of_another_database_none_is_taken(told: Told) -> None:
    told.user(name())
    Lease.objects.update(database=Database.objects.create(vault=told.lease.vault, mount="m", name="elsewhere"))
    assert guess.guess(now=at(90)) == 0


def test_what_a_hash_denies_is_not_guessed(told: Told) -> None:
    mine = name()
    told.user(mine)
    told.hash("hmac-of-another")
    told.asked(mine, "hmac-1")
    assert guess.guess(now=at(90)) == 0


def test_a_guess_that_a_hash_corrects_moves_its_sessions(told: Told, shop: Shop) -> None:
    mine = name()
    told.user(mine)
    guess.guess(now=at(90))
    row = session(mine, "10.0.0.1")
    tie_and_judge(now=at(91))
    # its line comes late: the name is another lease's
    other = shop.lease("10.0.0.1")
    told.asked(mine, "hmac-1")
    told.hash("hmac-1", other)
    assert mine in users.names_for(told.lease.vault, now=at(92))
    assert users.tie(now=at(92)) == 1
    assert user_of(other) == (mine, TiedBy.HASH)
    assert user_of(told.lease) == ("", "")
    assert judged(row, at(93))[0] == Place.HOLDER
    assert row.lease == other


def test_a_guess_that_a_hash_denies_is_taken_back_and_one_that_it_confirms_is_one_no_more(told: Told) -> None:
    mine = name()
    told.user(mine)
    guess.guess(now=at(90))
    told.asked(mine, "hmac-1")
    told.hash("hmac-of-another")
    users.tie(now=at(91))
    assert user_of(told.lease) == ("", "")
    Hash.objects.all().delete()
    AskedName.objects.all().delete()
    assert guess.guess(now=at(92)) == 1
    told.asked(mine, "hmac-1")
    told.hash("hmac-1")
    assert users.tie(now=at(93)) == 1
    assert user_of(told.lease) == (mine, TiedBy.HASH)


# --- findings ----------------------------------------------------------------------------------------------------


def found(now: datetime = SOON) -> dict[str, Finding]:
    """Open findings about sessions and users after one look."""
    findings.look(now=now)
    kinds = [FindingKind.ELSEWHERE, FindingKind.LOGIN_ELSEWHERE, FindingKind.GHOST_USER, FindingKind.NO_USER]
    rows = Finding.objects.filter(closed_at=None, kind__in=[*kinds, FindingKind.USER_VANISHED])
    return {row.kind: row for row in rows.order_by("id")}


def said(row: Finding) -> str:
    return " | ".join([row.summary, *(item["text"] for item in row.evidence)])


def test_a_stolen_credential_is_one_high_finding_of_its_lease_that_opens_again_on_a_new_session(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("debug-7", "10.0.0.9", account="debug", namespace="tools")
    lease = with_user(shop.lease("10.0.0.1"))
    session(lease, "10.0.0.1")
    assert tie_and_judge(now=SOON).elsewhere == 0
    assert found() == {}
    for address in ("203.0.113.9", "10.0.0.9"):
        session(lease, address, began=at(3))
    tie_and_judge(now=at(6))
    row = found(at(6))[FindingKind.ELSEWHERE]
    assert (row.severity, row.weight, row.service_account) == (Severity.HIGH, 2, "web")
    assert row.summary == (
        "The credential of shop/web-1 for orders as web was used from 10.0.0.9 (tools/debug-7) and 1 other address"
    )
    assert row.culprit == "tools/debug-7"
    assert row.evidence[1]["pod"] == "debug-7"
    assert {item["lease"] for item in row.evidence} == {lease.pk}
    assert "expected the address of shop/web-1 (10.0.0.1)" in said(row)
    assert row.pk in {one.pk for one in queries.concerning(lease)}
    findings.close(row, by="ada", reason="a drill", now=at(10))
    assert found(at(20)) == {}
    session(lease, "203.0.113.9", began=at(30))
    tie_and_judge(now=at(40))
    again = found(at(40))[FindingKind.ELSEWHERE]
    assert (again.pk, again.closed_by) == (row.pk, "")
    # a day after the last of them it is over
    assert found(at(40) + timedelta(hours=25)) == {}


def test_what_turns_out_to_be_allowed_closes_its_finding(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    session(lease, "203.0.113.9")
    assert tie_and_judge(now=SOON).elsewhere == 1
    assert found()
    database(nat=["203.0.113.0/24"])
    Session.objects.update(place_open=True)
    done = tie_and_judge(now=at(6))
    assert (done.cleared, done.is_news) == (1, True)
    assert found(at(6)) == {}


def listed(users_at: datetime, **fields: Any) -> None:
    """Users of orders were listed then, and leases too."""
    defaults = {"server": server(), "due_at": BEGIN, "interval_seconds": 5, "users_at": users_at, **fields}
    Sampling.objects.update_or_create(database=database(), defaults=defaults)
    DynamicUser.objects.filter(gone_at=None).update(last_seen_at=users_at)


def ghost(name: str, *, since: float = 0, **fields: Any) -> DynamicUser:
    return DynamicUser.objects.create(
        server=server(), name=name, first_seen_at=at(since), last_seen_at=at(since), **fields
    )


def test_a_user_without_a_lease_is_a_ghost_once_the_join_had_its_time(shop: Shop) -> None:
    ghost("v-root-web-abcdefghijklmnopqrst-1")
    Vault.objects.update(reconciled_at=at(30))
    listed(at(200))
    assert found(at(201)) == {}
    listed(at(400))
    row = found(at(401))[FindingKind.GHOST_USER]
    assert (row.severity, row.weight) == (Severity.MEDIUM, 1)
    assert "no lease bears its name" in said(row)
    session("v-root-web-abcdefghijklmnopqrst-1", "10.0.0.9", began=at(300))
    assert found(at(402))[FindingKind.GHOST_USER].severity == Severity.HIGH
    # nobody has listed them for long: nothing is said of them
    assert found(at(402) + timedelta(minutes=30)) == {}


def test_a_user_whose_lease_was_forced_away_is_a_ghost_and_says_so(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    ghost(lease.database_user)
    listed(at(400))
    assert found(at(401)) == {}
    reason = "forced (database user may live)"
    Lease.objects.update(state="ended", ended_at=at(60), end_reason=reason, end_evidence="request x")
    row = found(at(401))[FindingKind.GHOST_USER]
    assert reason in said(row)
    assert row.evidence[-1]["lease"] == lease.pk


def test_a_user_whose_lease_is_merely_not_known_is_no_ghost(shop: Shop) -> None:
    """A lease of that time has no user yet; or neither log nor list tells of the time when it was made."""
    shop.pod("web-1", "10.0.0.1")
    lease = shop.lease("10.0.0.1")
    Lease.objects.filter(pk=lease.pk).update(database=database())
    ghost(name(1))
    listed(at(400))
    Vault.objects.update(reconciled_at=at(30))
    assert found(at(401)) == {}
    with_user(lease, "v-another")
    assert set(found(at(401))) == {FindingKind.GHOST_USER}
    Vault.objects.update(reconciled_at=at(-30))
    assert found(at(401)) == {}


def test_users_of_the_other_server_behind_one_address_are_no_ghosts(shop: Shop) -> None:
    ghost("v-root-web-abcdefghijklmnopqrst-1")
    Vault.objects.update(reconciled_at=at(30))
    listed(at(400))
    DynamicUser.objects.update(last_seen_at=at(390) - timedelta(minutes=30))
    assert found(at(401)) == {}
    listed(at(402), server=server("pg-2"))
    assert found(at(403)) == {}


def test_a_live_lease_whose_user_is_gone_is_told_once_vault_says_that_it_still_lives(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"), expires_at=at(900), looked_up_at=at(10), lookup_due_at=at(800))
    ghost(lease.database_user, gone_at=at(100))
    listed(at(400))
    assert found(at(401)) == {}
    assert users.look_up_leases_of_gone(now=at(401)) == 1
    lease.refresh_from_db()
    assert lease.lookup_due_at == at(401)
    Lease.objects.update(looked_up_at=at(402))
    row = found(at(403))[FindingKind.NO_USER]
    assert (row.severity, row.evidence[0]["lease"]) == (Severity.LOW, lease.pk)
    assert row.pk in {one.pk for one in queries.concerning(lease)}
    # it is there on the other server, or its lease has expired
    DynamicUser.objects.create(
        server=server("pg-2"), name=lease.database_user, first_seen_at=at(0), last_seen_at=at(399)
    )
    assert found(at(404)) == {}
    DynamicUser.objects.filter(server__identity="pg-2").delete()
    assert found(at(901)) == {}


def test_a_session_that_outlives_its_user_is_told_and_after_a_revocation_here_it_is_grave(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"))
    session(lease, "10.0.0.1", user_vanished_at=at(100), last_seen_at=at(200))
    tie_and_judge(now=at(200))
    # a pool may take its time
    assert found(at(200)) == {}
    Session.objects.update(last_seen_at=at(300))
    row = found(at(300))[FindingKind.USER_VANISHED]
    assert (row.severity, row.evidence[0]["lease"]) == (Severity.MEDIUM, lease.pk)
    Lease.objects.update(state="ended", ended_at=at(99), end_reason="revoked here", end_evidence="action")
    assert found(at(301))[FindingKind.USER_VANISHED].severity == Severity.HIGH
    # it has ended, or nobody has seen it for long
    assert found(at(300) + timedelta(minutes=20)) == {}
    Session.objects.update(last_seen_at=at(300), ended_at=at(302), end_known_by="no longer seen")
    assert found(at(303)) == {}


def log_in(shop: Shop, address: str, *, account: str = "web", seconds: float = 0, **fields: Any) -> Login:
    return Login.objects.create(
        vault=shop.mount.vault,
        request_id=secrets.token_hex(8),
        logged_in_at=at(seconds),
        mount_path=shop.mount.path,
        auth_mount=shop.mount,
        address=address,
        service_account_namespace="shop",
        service_account=account,
        **fields,
    )


def test_a_login_from_another_accounts_pod_is_told(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("debug-7", "10.0.0.9", account="debug")
    log_in(shop, "10.0.0.1")
    assert found() == {}
    log_in(shop, "10.0.0.9", seconds=1)
    row = found()[FindingKind.LOGIN_ELSEWHERE]
    assert (row.severity, row.culprit, row.service_account) == (Severity.MEDIUM, "shop/debug-7", "web")
    assert row.summary == "shop/web logged in from 10.0.0.9 (shop/debug-7), where none of its pods was"
    # the proof is missing, or what has it fetches for others
    WatchPeriod.objects.update(from_at=at(0.5))
    assert found() == {}
    WatchPeriod.objects.update(from_at=at(-900))
    Pod.objects.filter(name="debug-7").update(fetcher=True)
    assert found() == {}


def test_a_login_from_no_pods_address_is_told_where_others_of_it_come_from_its_pods(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    log_in(shop, "203.0.113.9")
    # NAT or a proxy may stand between: none of its logins is seen directly
    assert found() == {}
    log_in(shop, "10.0.0.1", seconds=2)
    assert "203.0.113.9 (no pod)" in said(found()[FindingKind.LOGIN_ELSEWHERE])
    # a proxy that several accounts log in through
    for account in ("a", "b"):
        log_in(shop, "203.0.113.9", account=account)
    assert found() == {}


@pytest.mark.parametrize("own", [{"own": True}, {"service_account": ""}, {"address": ""}, {"auth_mount": None}])
def test_other_logins_are_not_told_of(shop: Shop, own: dict[str, Any]) -> None:
    shop.pod("web-1", "10.0.0.1")
    log_in(shop, "10.0.0.1")
    row = log_in(shop, "203.0.113.9")
    assert found()
    Login.objects.filter(pk=row.pk).update(**own)
    assert found() == {}


def test_a_login_through_its_own_node_or_an_allowed_network_is_not_told_of(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    shop.pod("proxy-1", "10.1.0.1", account="proxy", host_network=True)
    log_in(shop, "10.0.0.1")
    log_in(shop, "10.1.0.1")
    assert found() == {}
    log_in(shop, "192.0.2.7")
    assert found()
    database(nat=["192.0.2.0/24"])
    assert found() == {}


def test_a_look_asks_as_often_for_a_dozen_as_for_one(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")

    def one_more() -> None:
        lease = with_user(shop.lease("10.0.0.1"))
        session(lease, "203.0.113.9", user_vanished_at=at(100), last_seen_at=at(400))
        gone = with_user(shop.lease("10.0.0.1"), looked_up_at=at(300), expires_at=at(900))
        ghost(gone.database_user, gone_at=at(100))
        ghost(name())
        log_in(shop, "203.0.113.9", seconds=1)
        Vault.objects.update(reconciled_at=at(30))
        listed(at(400))
        tie_and_judge(now=at(401))

    counts = []
    for size in (1, 12):
        for _ in range(size):
            one_more()
        assert len(found(at(401))) == 5
        with CaptureQueriesContext(connection) as captured:
            findings.look(now=at(402))
        counts.append(len(captured.captured_queries))
    assert counts[0] == counts[1]


def test_a_revocation_is_not_called_verified_by_a_user_that_is_a_guess(shop: Shop) -> None:
    shop.pod("web-1", "10.0.0.1")
    lease = with_user(shop.lease("10.0.0.1"), "v-guessed", database_user_by=TiedBy.TIME_AND_NAME)
    outcome, why = revoke.user_gone(lease)
    assert (outcome, "v-guessed is this lease's user is a guess" in why) == ("unverified", True)


# --- the task ----------------------------------------------------------------------------------------------------


def recent_theft(shop: Shop) -> Session:
    """A session from nowhere, a few seconds ago, on a lease of a minute ago."""
    now = timezone.now()
    pod = shop.pod("web-1", "10.0.0.1")
    Pod.objects.update(started_at=now - timedelta(hours=1))
    PodAddress.objects.filter(pod=pod).update(from_at=now - timedelta(hours=1))
    lease = with_user(shop.lease("10.0.0.1"), certainty=Certainty.INFERRED, pod="web-1", pod_uid="c-web-1", cluster="c")
    WatchPeriod.objects.update(from_at=now - timedelta(hours=1), to_at=now)
    return session(lease, "203.0.113.9", began=now - timedelta(seconds=4))


def test_a_session_from_elsewhere_is_a_finding_as_soon_as_it_is_judged(shop: Shop) -> None:
    row = recent_theft(shop)
    tasks.tie_sessions()
    row.refresh_from_db()
    assert row.place == Place.ELSEWHERE
    assert Finding.objects.get(kind=FindingKind.ELSEWHERE).severity == Severity.HIGH


def test_where_another_worker_looks_for_findings_already_it_is_looked_for_again_after_it(
    shop: Shop, postgres: Postgres
) -> None:
    recent_theft(shop)
    with (
        psycopg.connect(postgres.dsn(database=connection.settings_dict["NAME"])) as other,
        celery.connection() as broker,
    ):
        other.execute("SELECT pg_advisory_lock(hashtext('findings'), 0)")
        queue = broker.SimpleQueue("leases")
        queue.clear()
        tasks.tie_sessions()
        assert not Finding.objects.exists()
        message = queue.get(timeout=5)
        assert (message.headers["task"], message.headers["eta"] is not None) == ("audit.tasks.look_for_findings", True)
        message.ack()
        queue.close()
    tasks.look_for_findings(*message.payload[0])
    assert Finding.objects.get().kind == FindingKind.ELSEWHERE


def test_a_change_of_what_a_database_allows_has_its_sessions_judged_again(configured: World) -> None:
    orders = Database.objects.get(name="orders")
    values: dict[str, Any] = {"database": orders, "place_reason": "x", "place_open": False}
    moved = [session("v-1", "203.0.113.9", place=place, **values) for place in (Place.ELSEWHERE, Place.NAT)]
    stays = session("v-1", "10.0.0.1", place=Place.HOLDER, **values)
    file = configured.folder / "leasehold.toml"
    text = file.read_text()
    configuration.apply(load(file))
    assert not Session.objects.filter(place_open=True).exists()
    file.write_text(text.replace('name = "orders"\n', 'name = "orders"\nnat = ["203.0.113.0/24"]\n'))
    configuration.apply(load(file))
    assert set(Session.objects.filter(place_open=True)) == set(moved)
    assert stays not in moved


# --- the whole chain on real parts -------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(world: World, answer: dict[str, Any], address: str, database: str = "orders") -> Iterator[Session]:
    """A real session with these credentials from this address, and the row that a sample makes of it.

    libpq binds no source address, so one connection is relayed from there.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = threading.Thread(target=relay_one, args=(listener, address, world.postgres.port), daemon=True)
        relay.start()
        user = answer["data"]["username"]
        with psycopg.connect(
            host="127.0.0.1",
            port=listener.getsockname()[1],
            dbname=database,
            user=user,
            password=answer["data"]["password"],
            sslmode="disable",
            gssencmode="disable",
        ) as client:
            with psycopg.connect(world.postgres.dsn()) as admin:
                row = admin.execute(
                    "SELECT pid, backend_start, host(client_addr), client_port FROM pg_stat_activity WHERE pid = %s",
                    [client.info.backend_pid],
                ).fetchone()
            assert row is not None
            pid, started_at, came_from, port = row
            assert came_from == address
            yield session(user, came_from, began=started_at, pid=pid, port=port, database_name=database)
        relay.join(5)


def relay_one(listener: socket.socket, address: str, port: int) -> None:
    """One connection, passed on from that address until either side closes it."""
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", port), 5, source_address=(address, 0))
    far.settimeout(None)

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
    back.start()
    pass_on(near, far)
    back.join(5)
    near.close()
    far.close()


def read(pod: TestPod) -> dict[str, Any]:
    pod.log_in()
    return pod.read_credentials()


def test_a_stolen_credential_is_found_on_real_parts_and_the_pods_own_session_is_not(configured: World) -> None:
    # the watch has begun longer ago than clocks may be apart
    for _ in range(3):
        catch_up()
    pod, thief = configured.pod("storefront"), configured.pod("invoicing")
    answer = read(pod)
    vault = Vault.objects.get()
    with (
        connected(configured, answer, pod.address) as own,
        connected(configured, answer, thief.address) as stolen,
        connected(configured, answer, "127.39.9.9") as nobodys,
    ):
        # the sample may come before the line that issued the credential
        assert tie_and_judge(now=timezone.now()).tied == 0
        assert users.ask(vault, users.names_for(vault, now=timezone.now()), now=timezone.now()) == 0
        read_streams()
        users.tie(now=timezone.now() + timedelta(seconds=2))
        assert tie_and_judge(now=timezone.now()).tied == 3
        # nothing is said before the pod watch has come past them
        assert {judged(row, timezone.now())[0] for row in (own, stolen, nobodys)} == {""}
        for _ in range(4):
            catch_up()
        done = tie_and_judge(now=timezone.now())
        assert (done.elsewhere, done.is_news) == (2, True)
    lease = Lease.objects.get(lease_id=answer["lease_id"])
    assert (lease.database_user_by, lease.pod) == (TiedBy.HASH, pod.name)
    for row in (own, stolen, nobodys):
        row.refresh_from_db()
        assert (row.lease, row.database) == (lease, lease.database)
    assert own.place == Place.HOLDER
    assert f"finance/{thief.name}" in stolen.place_reason
    assert f"{pod.name} ({pod.address})" in stolen.place_reason
    assert "no pod and no node" in nobodys.place_reason
    finding = found(timezone.now())[FindingKind.ELSEWHERE]
    assert (finding.severity, finding.weight) == (Severity.HIGH, 2)
    assert answer["data"]["password"] not in said(finding)


def test_a_session_whose_role_is_already_dropped_is_tied_by_the_hash_of_its_name(configured: World) -> None:
    pod = configured.pod("invoicing")
    answer = read(pod)
    with connected(configured, answer, pod.address, "billing") as row:
        pod.call("POST", "auth/token/revoke-self")
        assert answer["data"]["username"] not in configured.users()
        read_streams()
        vault = Vault.objects.get()
        assert users.ask(vault, users.names_for(vault, now=timezone.now()), now=timezone.now()) == 1
        tie_and_judge(now=timezone.now())
    row.refresh_from_db()
    assert row.lease is not None
    assert row.lease.lease_id == answer["lease_id"]
    # what is known is not asked about
    assert not AskedName.objects.exists()


def test_a_tuned_mount_tells_the_user_in_plain_words(configured: World) -> None:
    configured.admin.sys.tune_mount_configuration("database", audit_non_hmac_response_keys=["username"])
    try:
        answer = read(configured.pod("storefront"))
    finally:
        configured.admin.sys.tune_mount_configuration("database", audit_non_hmac_response_keys=[])
    read_streams()
    lease = Lease.objects.get(lease_id=answer["lease_id"])
    assert (lease.database_user, lease.database_user_by) == (answer["data"]["username"], TiedBy.PLAIN)
    assert lease.sessions_due
    # made again from the lines, what stands there is better than a guess; what a hash told meanwhile stays
    for before, after in (
        (("v-guessed", TiedBy.TIME_AND_NAME), (answer["data"]["username"], TiedBy.PLAIN)),
        (("", ""), (answer["data"]["username"], TiedBy.PLAIN)),
        (("v-hashed", TiedBy.HASH), ("v-hashed", TiedBy.HASH)),
    ):
        user, by = before
        Lease.objects.filter(pk=lease.pk).update(database_user=user, database_user_by=by, sessions_due=False)
        call_command("rebuild", vault="demo", stdout=io.StringIO())
        assert user_of(lease) == after
        assert lease.sessions_due == (before != after)
