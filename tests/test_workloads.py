"""Workloads: which service accounts and pods are listed, in which order, and what the page of one account says."""

import csv
import io
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.findings.found import Account as AccountOfFinding
from audit.findings.queries import cluster_of, of_account
from leases import workload_queries
from leases.models import Certainty, EndReason, Lease, Login, Pod, ServiceAccount
from leases.workload_queries import (
    SORTS,
    Account,
    Place,
    WorkloadFilter,
    accounts_page,
    leases_of,
    logins_of,
    newest_leases,
    opened,
    pods_of,
    pods_page,
)
from tests import factories
from tests.test_pages import HTMX, text

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]

CHECKOUT = Account("demo", "shop", "checkout")


def lately(hours: float = 24, **narrowed: Any) -> WorkloadFilter:
    return WorkloadFilter(since=timezone.now() - timedelta(hours=hours), **narrowed)


def listed(where: WorkloadFilter, **kwargs: Any) -> list[str]:
    return [row.account.name for row in accounts_page(where, **kwargs).rows]


def old(account: str, **fields: Any) -> Lease:
    """Read and ended two days ago."""
    return factories.ended(ago=2 * 86_400, service_account=account, **fields)


# --- service accounts --------------------------------------------------------------------------------------------


def test_an_account_is_listed_if_it_read_in_the_period_or_holds_something() -> None:
    factories.ended(service_account="read")
    old("gone")
    factories.lease(service_account="holds", age=2 * 86_400, left=60)
    assert set(listed(lately())) == {"read", "holds"}
    assert listed(lately(holding=True)) == ["holds"]
    assert set(listed(lately(hours=72))) == {"read", "holds", "gone"}


def test_an_accounts_databases_certainties_and_pods_are_all_there() -> None:
    orders, billing, other = (factories.database(name) for name in ("orders", "billing", "other"))
    first = factories.lease(database=orders)
    factories.pod(first)
    factories.lease(database=orders, certainty=Certainty.AMBIGUOUS)
    # held from before, read in the period, read before it
    factories.lease(database=billing, age=3 * 86_400)
    factories.ended(database=None, certainty=Certainty.SERVICE_ACCOUNT)
    old("checkout", database=other)
    (row,) = accounts_page(lately()).rows
    assert row.account == CHECKOUT
    assert [database and database.name for database in row.databases] == ["billing", "orders", None]
    assert row.certainties == [Certainty.EXACT, Certainty.AMBIGUOUS, Certainty.SERVICE_ACCOUNT]
    assert (row.live, row.pods) == (3, 1)
    assert abs((row.last_at - first.accessed_at).total_seconds()) < 5  # type: ignore[operator]


def test_accounts_of_one_name_in_two_clusters_are_two() -> None:
    factories.lease(cluster="east")
    factories.lease(cluster="west")
    factories.lease(cluster="west")
    rows = accounts_page(lately(), sort="name").rows
    assert [(row.account.cluster, row.live) for row in rows] == [("east", 1), ("west", 2)]
    assert [row.account.cluster for row in accounts_page(lately(cluster="east")).rows] == ["east"]


def test_what_a_log_that_was_only_examined_tells_is_not_held_now() -> None:
    factories.lease(vault=factories.vault("foreign", retired=True))
    (row,) = accounts_page(lately()).rows
    assert row.live == 0
    assert not listed(lately(holding=True))
    (database,) = opened(CHECKOUT)
    assert database.live == 0


def test_filters_narrow_the_list_of_accounts() -> None:
    factories.lease(service_account="storefront", namespace="shop")
    factories.lease(service_account="invoices", namespace="finance")
    assert listed(lately(namespace="finance")) == ["invoices"]
    assert listed(lately(text="FRONT")) == ["storefront"]
    assert not listed(lately(text="100%"))


@pytest.mark.parametrize("sort", SORTS)
def test_pages_of_every_order_show_each_account_once(sort: str) -> None:
    for number in range(7):
        for _ in range(1 + number % 3):
            factories.lease(service_account=f"sa-{number}", age=60 * number)
    whole = listed(lately(), sort=sort)
    found: list[str] = []
    place: Place | None = None
    for _ in range(4):
        page = accounts_page(lately(), sort=sort, after=place, size=2)
        found += [row.account.name for row in page.rows]
        place = Place.parse(str(page.next)) if page.next else None
    assert place is None
    assert found == whole
    assert set(found) == {f"sa-{number}" for number in range(7)}


def test_the_orders_are_what_they_are_called() -> None:
    factories.lease(service_account="b", age=300)
    factories.lease(service_account="a", age=200)
    factories.lease(service_account="b", age=250)
    factories.lease(service_account="c", age=100)
    assert listed(lately(), sort="last") == ["c", "a", "b"]
    assert listed(lately(), sort="live")[0] == "b"
    assert listed(lately(), sort="name") == ["a", "b", "c"]


def test_a_list_that_lacks_accounts_says_so(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    factories.lease(service_account="a")
    factories.lease(service_account="b")
    assert not accounts_page(lately()).cut_off
    monkeypatch.setattr(workload_queries, "_PAIRS", workload_queries._PAIRS.replace("LIMIT 10000", "LIMIT 1"))
    monkeypatch.setattr(workload_queries, "MOST_PAIRS", 1)
    assert accounts_page(lately()).cut_off
    assert "the list lacks some" in text(viewer.get("/workloads"))


# --- pods --------------------------------------------------------------------------------------------------------


def read(name: str, *, age: float, uid: str, **fields: Any) -> Lease:
    return factories.lease(pod=name, pod_uid=uid, age=age, **fields)


def pod_names(where: WorkloadFilter) -> list[str]:
    return [row.newest.pod for row in pods_page(where).rows]


def test_each_pod_stands_once_in_the_list_the_last_read_first() -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    read("one", age=300, uid=one)
    read("two", age=200, uid=two)
    read("one", age=100, uid=one, database=factories.database("billing"))
    factories.lease(certainty=Certainty.SERVICE_ACCOUNT)
    rows = pods_page(lately()).rows
    assert [(row.newest.pod, row.live) for row in rows] == [("one", 2), ("two", 1)]
    assert [database and database.name for database in rows[0].databases] == ["billing", "orders"]


def test_pods_that_hold_something_from_before_the_period_follow_those_that_read_in_it() -> None:
    read("early", age=2 * 86_400, uid="early")
    read("late", age=10, uid="late")
    factories.ended(ago=2 * 86_400, pod="gone", pod_uid="gone")
    read("reader", age=3 * 86_400, uid="reader")
    factories.ended(ago=5, pod="reader", pod_uid="reader")
    assert pod_names(lately()) == ["late", "reader", "early"]
    assert pod_names(lately(holding=True)) == ["late", "early", "reader"]
    assert pod_names(lately(text="EARL")) == ["early"]


def test_pods_of_two_clusters_with_one_uid_are_two() -> None:
    read("a", age=20, uid="same", cluster="east")
    read("a", age=10, uid="same", cluster="west")
    assert [row.newest.cluster for row in pods_page(lately()).rows] == ["west", "east"]


@pytest.mark.parametrize("most", [3, 5000])
def test_pages_of_pods_show_each_once_however_little_is_looked_through(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        age = 60 * number + (2 * 86_400 if number > 7 else 0)
        read(f"pod-{number % 9}", age=age, uid=str(number % 9))
    whole = pod_names(lately())
    assert len(whole) == 9
    monkeypatch.setattr(workload_queries, "MOST_LOOKED_THROUGH", most)
    found: list[str] = []
    before = None
    for _ in range(12):
        page = pods_page(lately(), before=before, size=2)
        assert len(page.rows) <= 2
        found += [row.newest.pod for row in page.rows]
        before = page.older
        if before is None:
            break
    assert found == whole


# --- one account -------------------------------------------------------------------------------------------------


def test_every_database_of_an_account_is_known_whatever_the_number_of_its_leases() -> None:
    for _ in range(30):
        factories.ended(ago=50)
    factories.ended(ago=90_000, database=factories.database("rare"))
    factories.lease(database=None)
    factories.lease(service_account="other", database=factories.database("others"))
    rows = opened(CHECKOUT)
    assert [(row.database and row.database.name, row.live) for row in rows] == [(None, 1), ("orders", 0), ("rare", 0)]


def test_leases_of_an_account_are_paged_over_all_its_databases() -> None:
    keys = [factories.database("orders").pk, factories.database("billing").pk, 0]
    made = [
        factories.lease(
            age=10 * number, database=[factories.database("orders"), factories.database("billing"), None][number % 3]
        )
        for number in range(1, 8)
    ]
    factories.lease(namespace="elsewhere", service_account="checkout")
    ended = factories.ended(ago=5)
    found: list[int] = []
    before = None
    while True:
        page = leases_of(CHECKOUT, databases=keys, before=before, size=3)
        found += [row.pk for row in page.rows]
        before = page.older
        if before is None:
            break
    assert found == [row.pk for row in made] + [ended.pk]
    held = leases_of(CHECKOUT, databases=keys, holding=True).rows
    assert [row.pk for row in held] == [row.pk for row in made]
    assert {row.database_id for row in leases_of(CHECKOUT, databases=keys[1:2]).rows} == {keys[1]}


def test_pods_that_run_come_first_and_those_that_only_a_lease_names_last() -> None:
    runs, over = factories.lease(pod="runs", age=500), factories.ended(pod="over")
    factories.pod(runs)
    factories.pod(over, ended_at=timezone.now())
    factories.lease(pod="claimed")
    newest = newest_leases(CHECKOUT, databases=[factories.database().pk])
    assert [row.pod for row in newest] == ["claimed", "over", "runs"]
    rows = pods_of(CHECKOUT, newest)
    assert [(row.name, row.live, row.pod is not None) for row in rows] == [
        ("runs", 1, True),
        ("over", 0, True),
        ("claimed", 1, False),
    ]
    Pod.objects.all().delete()
    assert {row.name for row in pods_of(CHECKOUT, newest)} == {"claimed", "over", "runs"}


def test_logins_are_of_the_accounts_own_cluster() -> None:
    mine = factories.login(factories.lease())
    assert logins_of(CHECKOUT) == [mine]
    assert not logins_of(Account("another", "shop", "checkout"))


def test_identities_are_summed_over_log_ins() -> None:
    first, second, third = (factories.login(factories.lease(age=age)) for age in (200, 100, 300))
    Login.objects.filter(pk=second.pk).update(entity_id=first.entity_id, mount_path="jwt", policies=["orders-rw"])
    Login.objects.filter(pk=third.pk).update(entity_id="")
    (entity,) = workload_queries.entities_of(CHECKOUT)
    assert (entity.entity_id, entity.logins, entity.mounts) == (first.entity_id, 2, ["jwt", "kubernetes"])
    assert (entity.policies, entity.last_at) == (["orders-rw"], second.logged_in_at)
    assert not workload_queries.entities_of(Account("another", "shop", "checkout"))


def test_findings_about_an_account_are_not_those_of_its_namesake_in_another_cluster() -> None:
    factories.vault()
    names: dict[str, Any] = {"service_account_namespace": "shop", "service_account": "checkout"}
    mine = factories.finding(key=AccountOfFinding("demo", "demo", "shop", "checkout").key, **names)
    of_role = factories.finding(
        key=f"{AccountOfFinding('demo', 'demo', 'shop', 'checkout').key} database/my-role", **names
    )
    closed = factories.finding(closed=True, key=mine.key, **names)
    other = factories.finding(key=AccountOfFinding("demo", "west", "shop", "checkout").key, **names)
    factories.finding(
        key="account demo demo/shop/checkout-two", service_account_namespace="shop", service_account="checkout-two"
    )
    found = of_account(cluster="demo", namespace="shop", name="checkout")
    assert set(found) == {mine, of_role, closed}
    assert found[-1] == closed
    assert [cluster_of(row) for row in (mine, of_role, other)] == ["demo", "demo", "west"]
    assert cluster_of(factories.finding()) == ""


# --- pages -------------------------------------------------------------------------------------------------------


def test_the_page_of_an_account_says_everything_of_it(viewer: Client) -> None:
    scene = factories.scene()
    ServiceAccount.objects.create(
        cluster=factories.cluster(),
        uid="u",
        namespace="shop",
        name="checkout",
        created_at=timezone.now(),
        first_seen_at=timezone.now(),
    )
    lease = scene["lease"]
    body = text(viewer.get("/workloads/demo/shop/checkout"))
    for said in (
        "It holds 5 live leases",
        scene["finding"].summary,
        "demo / database",
        lease.login.entity_id,
        "auth/kubernetes",
        scene["pod"].name,
        "node-1",
        "Used from elsewhere than its holder",
        "token revoked",
        "irrevocable",
        "orders-read",
    ):
        assert said in body, said
    assert "has not told of it" not in body


def test_an_account_that_nobody_told_of_is_not_found(viewer: Client) -> None:
    factories.lease()
    assert viewer.get("/workloads/demo/shop/nobody").status_code == 404
    assert viewer.get("/workloads/another/shop/checkout").status_code == 404
    ServiceAccount.objects.create(
        cluster=factories.cluster(),
        uid="u",
        namespace="shop",
        name="idle",
        created_at=timezone.now(),
        first_seen_at=timezone.now(),
        deleted_at=timezone.now(),
    )
    body = text(viewer.get("/workloads/demo/shop/idle"))
    for said in (
        "It holds no lease now",
        "The cluster deleted it",
        "not known to have held a lease",
        "No log-in of it",
    ):
        assert said in body


def test_what_an_account_holds_now_is_told_from_what_it_held(viewer: Client) -> None:
    live = factories.lease()
    ended = factories.ended()
    both = viewer.get("/workloads/demo/shop/checkout").content.decode()
    now = viewer.get("/workloads/demo/shop/checkout?show=now").content.decode()
    assert live.lease_id in both
    assert ended.lease_id in both
    assert live.lease_id in now
    assert ended.lease_id not in now


def test_leases_of_an_account_are_narrowed_to_a_database(viewer: Client) -> None:
    billing = factories.database("billing")
    one, two, none = factories.lease(), factories.lease(database=billing), factories.lease(database=None)
    for query, expected in {
        f"database={billing.pk}": {two},
        "database=0": {none},
        f"database={billing.pk}&show=now": {two},
        "database=999999": set(),
        "database=x": set(),
        "": {one, two, none},
    }.items():
        body = viewer.get(f"/workloads/demo/shop/checkout?{query}").content.decode()
        assert {lease for lease in (one, two, none) if lease.lease_id in body} == expected, query


def test_a_name_that_no_database_can_hold_is_not_found(viewer: Client) -> None:
    assert viewer.get("/workloads/demo/shop/a%00b").status_code == 404


def test_lists_of_workloads_say_what_to_do_when_they_are_empty(viewer: Client) -> None:
    assert "manage.py configure" in text(viewer.get("/workloads"))
    factories.watched()
    old("gone")
    assert "Look at the last 30 days" in text(viewer.get("/workloads"))
    assert "Look at the last 30 days" in text(viewer.get("/workloads?by=pod"))
    assert "gone" in text(viewer.get("/workloads?period=30d"))
    assert "Nothing fits this filter" in text(viewer.get("/workloads?text=nobody"))


@pytest.mark.parametrize("query", ["before=x", "before=1/a", "by=pod&before=x", "before=-1/a/b/c"])
def test_a_page_of_workloads_that_this_site_did_not_name_is_refused(viewer: Client, query: str) -> None:
    assert viewer.get(f"/workloads?{query}").status_code == 400


def test_a_filter_of_workloads_that_makes_no_sense_lists_nothing(viewer: Client) -> None:
    factories.lease()
    body = text(viewer.get("/workloads?period=forever"))
    assert "Nothing is listed until the filter is mended" in body
    assert "checkout" not in body


def test_a_list_of_workloads_is_sent_again_only_when_something_changed(viewer: Client) -> None:
    factories.watched()
    factories.lease()
    poll = re.search(r'hx-get="([^"]+)"', viewer.get("/workloads?period=7d").content.decode())
    assert poll
    assert viewer.get(unescape(poll[1]), headers=HTMX).status_code == 204
    factories.lease(service_account="fresh")
    answer = viewer.get(unescape(poll[1]), headers=HTMX)
    assert answer.status_code == 200
    assert "fresh" in text(answer)
    assert "<html" not in answer.content.decode()


def one_more_account() -> None:
    lease = factories.lease(service_account=f"sa-{uuid.uuid4()}", database=factories.database(f"db-{uuid.uuid4()}"))
    factories.pod(lease)


def one_more_of_checkout() -> None:
    lease = factories.lease(database=factories.database(f"db-{uuid.uuid4()}"))
    factories.pod(lease)
    factories.login(lease)
    factories.session(lease)
    factories.ended(reason=EndReason.BY_PREFIX)
    factories.finding(service_account="checkout", service_account_namespace="shop")


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/workloads", one_more_account),
        ("/workloads?sort=live", one_more_account),
        ("/workloads?by=pod", one_more_account),
        ("/workloads/demo/shop/checkout", one_more_of_checkout),
        ("/workloads/demo/shop/checkout?show=now", one_more_of_checkout),
    ],
)
def test_a_workload_page_asks_as_often_for_fifty_rows_as_for_one(
    viewer: Client, path: str, more: Callable[[], None]
) -> None:
    factories.watched()

    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(path).status_code == 200
        return len(captured)

    more()
    once = asked()
    for _ in range(49):
        more()
    assert asked() == once
    assert once <= 30


@pytest.mark.parametrize(
    "path",
    [
        "/leases?state=any",
        "/leases/{lease}",
        "/databases",
        "/pods/demo/{uid}",
        "/findings/{finding}",
        "/workloads",
        "/access?database=demo/database/orders",
    ],
)
def test_a_service_account_leads_to_its_page_wherever_it_is_named(viewer: Client, path: str) -> None:
    scene = factories.scene()
    address = path.format(lease=scene["lease"].pk, uid=scene["pod"].uid, finding=scene["finding"].pk)
    assert 'href="/workloads/demo/shop/checkout"' in viewer.get(address).content.decode()


def test_an_account_whose_cluster_is_not_known_is_named_without_a_link(viewer: Client) -> None:
    lease = factories.lease(cluster="", certainty=Certainty.SERVICE_ACCOUNT)
    page = viewer.get(f"/leases/{lease.pk}")
    assert "shop/ checkout" in text(page)
    assert "/workloads/" not in page.content.decode().replace('"/workloads"', "")


def test_what_is_listed_can_be_taken_out_as_csv(viewer: Client) -> None:
    factories.lease(service_account="checkout")
    old("basket")
    response = viewer.get("/workloads.csv?period=1h")
    rows = list(csv.DictReader(io.StringIO(response.content.decode())))
    assert [(row["namespace"], row["service_account"], row["live"]) for row in rows] == [("shop", "checkout", "1")]
    assert rows[0]["databases"] == "demo/database/orders"
    pods = list(csv.DictReader(io.StringIO(viewer.get("/workloads.csv?by=pod").content.decode())))
    assert [row["live"] for row in pods] == ["1"]
    assert viewer.get("/workloads.csv?period=nonsense").status_code == 400
