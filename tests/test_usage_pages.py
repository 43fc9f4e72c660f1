"""Which pod used which database: the page's counts, what it draws, and what it says of what it leaves out."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from leases import usage
from leases.models import Certainty, Vault
from leases.usage import Span, UseFilter
from tests import factories
from tests.test_pages import text

pytestmark = [
    pytest.mark.django_db,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]

ALL = UseFilter()


def last(**ago: float) -> Span:
    return Span(timezone.now() - timedelta(**ago))


def moment(**ago: float) -> str:
    return f"{timezone.now() - timedelta(**ago):%Y-%m-%dT%H:%M:%S}"


def bands(body: str) -> list[tuple[str, str]]:
    """(class, words) of each line that is drawn."""
    return [
        (kind, unescape(words))
        for kind, words in re.findall(
            r'<path class="band ([^"]*)" d="[^"]*" stroke-width="[\d.]+"><title>([^<]*)', body
        )
    ]


# --- counts ------------------------------------------------------------------------------------------------------


def test_uses_are_counted_by_holder_and_period(viewer: Client) -> None:
    factories.watched()
    pod: dict[str, Any] = {"pod": "checkout-1", "pod_uid": "uid-1"}
    factories.lease(**pod)
    factories.ended(ago=7200, **pod)
    factories.ended(ago=3 * 86_400, **pod)
    for hours, reads in ((1, 1), (24, 2), (24 * 7, 3)):
        (use,) = usage.by_pod(last(hours=hours), ALL).rows
        assert (use.holder.pod, use.reads, use.live, use.pods) == ("checkout-1", reads, 1, 1)
        (use,) = usage.by_account(last(hours=hours)).rows
        assert (use.holder.name, use.reads, use.live) == ("shop/checkout", reads, 1)
    page = text(viewer.get("/databases?period=7d"))
    assert "a session proves that somebody did" in page
    assert "nobody used it" in page, "billing"


def test_a_period_that_is_over_counts_what_was_read_in_it_and_nothing_else(viewer: Client) -> None:
    for ago in (600, 5000, 9000):
        factories.ended(ago=ago, pod=f"read-{ago}")
    factories.lease(age=20_000, pod="held-all-the-time")
    span = Span(timezone.now() - timedelta(seconds=6000), timezone.now() - timedelta(seconds=3000))
    for found in (usage.by_account(span), usage.by_pod(span, ALL)):
        assert [(use.reads, use.live) for use in found.rows] == [(1, 0)]
    page = text(viewer.get(f"/databases?from={moment(seconds=6000)}&to={moment(seconds=3000)}"))
    assert "read-5000" in page
    assert "read-600" not in page
    assert "held-all-the-time" not in page
    assert "Live" not in page.split("Who used what")[1]


def test_what_is_held_since_before_the_period_is_listed_too(viewer: Client) -> None:
    factories.lease(age=7200, left=3600, pod="old-pod")
    body = viewer.get("/databases?period=1h").content.decode()
    assert "old-pod" in body
    assert bands(body) == [("exact held", "shop/old-pod to orders: no read in the period, but live leases, exact")]


def test_of_a_vault_that_is_retired_nothing_is_called_live() -> None:
    factories.lease(age=60)
    Vault.objects.update(retired=True)
    for found in (usage.by_account(last(hours=1)), usage.by_pod(last(hours=1), ALL)):
        assert [(use.reads, use.live) for use in found.rows] == [(1, 0)]


def test_pods_of_one_name_are_one_row_that_says_how_many(viewer: Client) -> None:
    factories.lease(pod="db-0", pod_uid="a")
    factories.lease(pod="db-0", pod_uid="b")
    (use,) = usage.by_pod(last(hours=1), ALL).rows
    assert (use.pods, use.reads) == (2, 2)
    assert "(2 pods of this name)" in text(viewer.get("/databases"))


def test_a_lease_without_a_read_that_was_seen_is_held_by_nobody_known_and_still_counts_as_live(viewer: Client) -> None:
    unknown: dict[str, Any] = {"certainty": Certainty.UNKNOWN, "database": None}
    factories.lease(**unknown)
    for found in (usage.by_account(last(hours=1)), usage.by_pod(last(hours=1), ALL)):
        (use,) = found.rows
        assert (use.holder.name, use.place.name, use.reads, use.live) == ("", "", 0, 1)
    assert bands(viewer.get("/databases").content.decode()) == [
        (
            "unknown held",
            "nobody known to a database that is not known: no read in the period, but live leases, unknown",
        )
    ]


def test_where_there_are_more_reads_than_are_counted_the_page_says_how_far_back_it_looked(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_READS", 3)
    monkeypatch.setattr(usage, "MOST_READS_OF_PODS", 3)
    monkeypatch.setattr(usage, "MOST_OLDER_OF_PODS", 1)
    read = [factories.lease(age=10 * n, left=1000).accessed_at for n in range(1, 6)]
    factories.lease(age=7200)
    accounts, pods = usage.by_account(last(hours=1)), usage.by_pod(last(hours=1), ALL)
    assert accounts.counted_from == read[2]
    assert pods.counted_from == pytest.approx(read[2], abs=timedelta(microseconds=1))
    assert pods.older_left
    assert sum(use.reads for use in accounts.rows) == sum(use.reads for use in pods.rows) == 3
    for by in ("pod", "account"):
        assert "Counted are the newest reads of the period, back to" in text(
            viewer.get(f"/databases?period=1h&by={by}")
        )


# --- filters and order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"a-1", "a-2", "b-1"}),
        ("namespace=finance", {"b-1"}),
        ("service_account=checkout", {"a-1", "a-2"}),
        ("service_account=checkout&database={billing}", {"a-2"}),
        ("database={billing}", {"a-2", "b-1"}),
        ("database=unknown", set()),
        ("service_account=nobody", set()),
    ],
)
def test_filters_narrow_graph_and_table(viewer: Client, query: str, expected: set[str]) -> None:
    billing = factories.database("billing")
    factories.lease(pod="a-1")
    factories.lease(pod="a-2", database=billing)
    factories.lease(pod="b-1", database=billing, service_account="reports", namespace="finance")
    body = viewer.get(f"/databases?{query.format(billing=billing.pk)}").content.decode()
    assert {words.split(" to ")[0].split("/")[1] for _, words in bands(body)} == expected
    assert {pod for pod in ("a-1", "a-2", "b-1") if f"<wbr>{pod}" in body} == expected
    if not expected:
        assert "that this filter fits" in text(viewer.get(f"/databases?{query}"))


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("from=2040-01-01T00:00", "still to come"),
        ("from=1999-01-01T00:00", "No audit log can be of that time"),
        ("from=2026-01-02T00:00&to=2026-01-01T00:00", "ends before it begins"),
        ("from=yesterday", "A moment is written as"),
        ("database=999999", "No such database is watched"),
        ("period=1y", "Select a valid choice"),
    ],
)
def test_a_period_that_makes_no_sense_is_refused_in_words(viewer: Client, query: str, complaint: str) -> None:
    factories.lease()
    page = text(viewer.get(f"/databases?{query}"))
    assert complaint in page
    assert "Nothing is shown until the form is mended" in page


def test_few_reads_are_shown_pod_by_pod_and_many_by_service_account_unless_asked_otherwise(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.lease(pod="checkout-1")
    factories.lease(pod="checkout-2")
    assert "shop/checkout-1 to orders" in viewer.get("/databases").content.decode()
    monkeypatch.setattr("dashboard.views.databases.MOST_BY_POD", 1)
    body = viewer.get("/databases").content.decode()
    assert bands(body) == [("exact", "shop/checkout to orders: 2 reads, exact")]
    assert "shop/checkout-1 to orders" in viewer.get("/databases?by=pod").content.decode()
    # from a service account to its pods, over the same period
    address = re.search(r'<a href="([^"]+)" title="shop/checkout"', body)
    assert address
    assert "shop/checkout-2 to orders" in viewer.get(unescape(address[1])).content.decode()


def test_a_namespace_with_few_reads_among_many_is_not_looked_for_pod_by_pod_unless_asked(
    viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.views.databases.MOST_BY_POD", 2)
    monkeypatch.setattr(usage, "MOST_READS_OF_PODS", 2)
    factories.lease(namespace="finance", age=500)
    for age in (1, 2, 3):
        factories.lease(age=age)
    # pods are looked for among the newest reads only, service accounts among all
    assert "finance/checkout to orders: 1 read" in viewer.get("/databases?namespace=finance").content.decode()
    page = text(viewer.get("/databases?namespace=finance&by=pod"))
    assert "Counted are the newest reads of the period" in page


def test_two_hundred_workloads_are_drawn_as_twenty_and_others_and_the_table_has_them_all(viewer: Client) -> None:
    for number in range(200):
        factories.lease(service_account=f"sa-{number:03}", certainty=Certainty.SERVICE_ACCOUNT)
    for number in range(3):
        factories.lease(service_account="sa-150", age=number, certainty=Certainty.EXACT)
    body = viewer.get("/databases?by=account").content.decode()
    drawn = bands(body)
    assert ("exact", "shop/sa-150 to orders: 3 reads, exact") in drawn
    assert ("service-account", "180 others to orders: 180 reads, service account") in drawn
    assert len(drawn) == 22
    assert "the other 180 stand together, with 180 reads" in text(viewer.get("/databases?by=account"))
    seen: list[str] = []
    path = "/databases?by=account"
    while path:
        body = viewer.get(path).content.decode()
        seen += re.findall(r'<th scope="row" data-label="Service account">.*?<wbr>(sa-\d+)</a>', body)
        more = re.search(r'href="([^"]+)#pairs" rel="next"', body)
        path = unescape(more[1]) if more else ""
    assert seen[0] == "sa-150"
    assert sorted(seen) == [f"sa-{number:03}" for number in range(200)]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [("reads", ["b", "a", "c"]), ("live", ["a", "b", "c"]), ("holder", ["a", "b", "c"]), ("last", ["c", "b", "a"])],
)
def test_the_table_is_sorted_as_its_heads_say(viewer: Client, sort: str, expected: list[str]) -> None:
    for age in (500, 600):
        factories.lease(service_account="a", age=age)
    for ago in (60, 50, 10):
        factories.ended(ago=ago, service_account="b")
    factories.ended(ago=-250, service_account="c")
    body = viewer.get(f"/databases?by=account&sort={sort}").content.decode()
    assert re.findall(r"<wbr>(\w)</a>", body) == expected
    assert len(re.findall("aria-sort", body)) == 1


def test_a_row_that_is_gone_leads_to_the_first_page(viewer: Client) -> None:
    factories.lease(pod="checkout-1")
    assert "checkout-1" in text(viewer.get("/databases?after=nothing|of|that|kind"))


def test_how_surely_a_pod_is_known_is_drawn_by_a_pattern_and_said_in_words(viewer: Client) -> None:
    for certainty in Certainty.values:
        factories.lease(certainty=certainty, service_account="checkout")
    body = viewer.get("/databases?by=account").content.decode()
    kinds = {kind for kind, _ in bands(body)}
    assert kinds == {"exact", "inferred", "ambiguous", "service-account", "unknown held"}
    legend = body.split("How surely the pod is known:")[1].split("</p>")[0]
    for certainty in Certainty.values:
        assert f"{certainty}</span>" in legend
    with open("static/css/graph.css", encoding="utf-8") as css:
        styles = css.read()
    patterns = re.findall(r"\.band\.([\w-]+) \{[^}]*stroke-dasharray: ([\d. ]+)", styles)
    assert len({pattern for _, pattern in patterns}) == 4, "and exact is drawn through"


def test_the_graph_asks_as_often_for_fifty_workloads_as_for_one(viewer: Client) -> None:
    factories.watched()

    def asked(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(path).status_code == 200
        return len(captured)

    paths = [
        f"/databases?by={by}{rest}"
        for by in ("pod", "account")
        for rest in ("", "&namespace=shop", f"&from={moment(hours=5)}&to={moment(hours=0)}")
    ]
    factories.lease()
    once = [asked(path) for path in paths]
    for number in range(49):
        factories.lease(service_account=f"sa-{number}", database=factories.database(f"db-{number}"))
    assert [asked(path) for path in paths] == once
    assert max(once) <= 16
