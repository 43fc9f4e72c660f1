"""The pages of findings without a browser."""

import re
import uuid
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.findings import queries, watch
from audit.findings.found import Account, Role
from audit.models import Finding, FindingChange
from leases.models import Action
from tests import factories
from tests.test_pages import HOSTILE, HTMX, text

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def test_a_finding_is_told_with_its_evidence_its_culprit_and_what_to_do(viewer: Client) -> None:
    lease = factories.lease(pod="checkout-1")
    stream = factories.stream()
    finding = factories.finding(
        kind="lease explosion",
        severity=3,
        culprit="shop/checkout",
        service_account="checkout",
        service_account_namespace="shop",
        evidence=[
            {"text": lease.lease_id, "lease": lease.pk, "pod": "checkout-1", "at": timezone.now().isoformat()},
            {"text": "4096 bytes were lost", "stream": stream.pk},
        ],
    )
    page = viewer.get(f"/findings/{finding.pk}")
    body = page.content.decode()
    for link in (
        f"/leases/{lease.pk}",
        f"/sources/streams/{stream.pk}/",
        "/leases?namespace=shop&amp;service_account=checkout",
        "/leases?state=any&amp;pod=checkout-1",
    ):
        assert f'href="{link}"' in body
    for said in (
        "What to do.",
        "it should keep its credentials",
        "high",
        "Closing a finding needs the group responder",
    ):
        assert said in text(page)
    assert viewer.get("/findings/999999").status_code == 404


def test_a_count_of_open_findings_stands_in_the_header_and_the_worst_on_the_overview(viewer: Client) -> None:
    assert 'class="count"' not in viewer.get("/sources").content.decode()
    for number in range(9):
        factories.finding(severity=1 + number // 4, summary=f"summary {number}")
    factories.finding(closed=True)
    assert "9 open" in text(viewer.get("/sources"))
    overview = text(viewer.get("/"))
    assert re.findall(r"summary (\d)", overview) == ["8", "7", "6", "5", "4", "3"]
    assert "Findings" in overview


def test_the_overview_is_sent_again_when_a_finding_opens_or_closes(viewer: Client) -> None:
    factories.watched()

    def address() -> str:
        return unescape(re.search(r'hx-get="([^"]+)"', viewer.get("/").content.decode())[1])  # type: ignore[index]

    before = address()
    assert viewer.get(before, headers=HTMX).status_code == 204
    finding = factories.finding()
    assert viewer.get(before, headers=HTMX).status_code == 200
    during = address()
    assert viewer.get(during, headers=HTMX).status_code == 204
    Finding.objects.filter(pk=finding.pk).update(closed_at=timezone.now(), closed_why="no longer so")
    assert viewer.get(during, headers=HTMX).status_code == 200


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"a", "b"}),
        ("state=open", {"a", "b"}),
        ("state=closed", {"c"}),
        ("state=any", {"a", "b", "c"}),
        ("severity=3", {"b"}),
        ("kind=holder+unknown&state=any", {"a", "c"}),
        ("vault=second&state=any", {"c"}),
        ("vault=demo&severity=1", set()),
        ("severity=9", set()),
    ],
)
def test_filters_narrow_the_list(viewer: Client, query: str, expected: set[str]) -> None:
    factories.vault()
    factories.vault("second")
    found = {
        "a": factories.finding(severity=2),
        "b": factories.finding(kind="audit lines missing", severity=3),
        "c": factories.finding(closed=True, vault="second"),
    }
    body = viewer.get(f"/findings?{query}").content.decode()
    assert {name for name, row in found.items() if f'id="finding-{row.pk}"' in body} == expected


def test_pages_of_the_list_show_each_finding_once_open_ones_first_the_worst_on_top(viewer: Client) -> None:
    now = timezone.now()
    for number in range(70):
        factories.finding(severity=1 + number % 3, first_seen_at=now - timedelta(minutes=number // 20))
    for number in range(70):
        factories.finding(closed=True, closed_at=now - timedelta(minutes=number // 20))
    seen: list[int] = []
    path = "/findings?state=any"
    pages = 0
    while path:
        body = viewer.get(path).content.decode()
        seen += [int(pk) for pk in re.findall(r'id="finding-(\d+)"', body)]
        older = re.search(r'href="([^"]+)" rel="next"', body)
        path = unescape(older[1]) if older else ""
        pages += 1
    assert pages == 3
    rows = Finding.objects.in_bulk()
    order = sorted(
        rows.values(),
        key=lambda row: (
            (0, -row.severity, -row.first_seen_at.timestamp(), -row.pk)
            if row.closed_at is None
            else (1, 0, -row.closed_at.timestamp(), -row.pk)
        ),
    )
    assert seen == [row.pk for row in order]
    # a page that ends with the last open one goes on with the closed ones
    first = queries.page(queries.FindingFilter(state=""), size=70)
    assert first.older
    second = queries.page(queries.FindingFilter(state=""), after=first.older, size=70)
    assert [row.pk for row in [*first.rows, *second.rows]] == seen
    assert second.older is None


@pytest.mark.parametrize(
    "place", ["x", "open", "open-1-2", "open-1-2-x", "shut-1-2-3", "open-1-2-" + "9" * 30, "-1-1-1-1"]
)
def test_a_page_that_this_site_did_not_name_is_refused(viewer: Client, place: str) -> None:
    assert viewer.get("/findings", {"before": place}).status_code == 400


def test_pages_ask_as_often_for_fifty_findings_as_for_one(viewer: Client) -> None:
    factories.watched()
    lease = factories.lease()
    key = Account("demo", "demo", "shop", "checkout").key
    shown = factories.finding(key=key)
    paths = ["/findings?state=any", f"/findings/{shown.pk}", f"/leases/{lease.pk}", "/", "/metrics"]

    def asked() -> list[int]:
        counts = []
        for path in paths:
            with CaptureQueriesContext(connection) as captured:
                assert viewer.get(path).status_code == 200
            counts.append(len(captured))
        return counts

    once = asked()
    for _ in range(50):
        factories.finding(severity=3)
        factories.finding(closed=True, key=key)
        FindingChange.objects.create(finding=shown, at=timezone.now(), change="worsened", severity=2, why="x")
    # a first page that open ones fill does not ask for closed ones
    assert [now <= before for now, before in zip(asked(), once, strict=True)] == [True] * len(paths)
    assert max(once[:3]) <= 16


def test_a_lease_shows_what_was_found_about_it_its_role_and_its_service_account(viewer: Client) -> None:
    lease = factories.lease()
    other = factories.lease(service_account="other", role="another-role")
    for key in (
        Account("demo", "demo", "shop", "checkout").key,
        Role("demo", "database", "my-role").key,
        f"lease demo {lease.lease_id}",
    ):
        factories.finding(key=key, summary=f"about {key}")
    body = text(viewer.get(f"/leases/{lease.pk}"))
    assert sum(f"about {what} demo" in body for what in ("account", "role", "lease")) == 3
    assert "Findings about it" not in text(viewer.get(f"/leases/{other.pk}"))


# --- closing -----------------------------------------------------------------------------------------------------


def test_a_responder_closes_a_finding_with_a_reason_and_that_is_an_action(responder: Client) -> None:
    finding = factories.finding(summary="Nobody knows who holds 1 lease")
    path = f"/findings/{finding.pk}/close"
    assert responder.get(path)["Location"] == f"/findings/{finding.pk}"
    finding.refresh_from_db()
    assert finding.open
    refused = responder.post(path, {"reason": "  "})
    assert refused.status_code == 422
    assert "Write why nothing more is to be done" in text(refused)
    response = responder.post(path, {"reason": "planned work"}, follow=True)
    assert "Closed" in text(response)
    assert "by user-responder: planned work" in text(response)
    action = Action.objects.get()
    assert (action.kind, action.by, action.reason) == ("close finding", "user-responder", "planned work")
    assert "It was closed before" in text(responder.post(path, {"reason": "again"}, follow=True))
    assert Action.objects.count() == 1
    assert f'href="/findings/{finding.pk}"' in responder.get("/actions").content.decode()
    assert "Nobody knows who holds 1 lease" in text(responder.get(f"/actions/{action.pk}"))


def test_a_viewer_closes_nothing(viewer: Client) -> None:
    finding = factories.finding()
    response = viewer.post(f"/findings/{finding.pk}/close", {"reason": "because"})
    assert response.status_code == 403
    assert "This needs the group responder" in text(response)
    assert "Close finding" not in text(viewer.get(f"/findings/{finding.pk}"))
    finding.refresh_from_db()
    assert finding.open


def test_hostile_words_in_a_finding_are_shown_and_never_run(responder: Client) -> None:
    fields: dict[str, Any] = dict.fromkeys(
        ("summary", "culprit", "service_account", "service_account_namespace"), HOSTILE
    )
    finding = factories.finding(**fields, evidence=[{"text": HOSTILE, "pod": HOSTILE}], key=str(uuid.uuid4()))
    closed = factories.finding(closed=True, closed_why=HOSTILE, closed_by=HOSTILE)
    for path in ("/", "/findings?state=any", f"/findings/{finding.pk}", f"/findings/{closed.pk}"):
        body = responder.get(path).content.decode()
        assert HOSTILE not in body, path
        assert "&lt;script&gt;" in body or path == "/findings?state=any", path


def test_without_findings_the_list_says_so(viewer: Client) -> None:
    body = text(viewer.get("/findings"))
    assert "The rules have never run." in body
    assert "Nothing is open, but nobody has looked." in body
    now = timezone.now()
    watch.look(now=now - timedelta(minutes=4))
    assert "The rules have not run since" in text(viewer.get("/findings"))
    watch.look(now=now)
    body = text(viewer.get("/findings"))
    assert "Nothing is open. That is good as long as the sources are read" in body
    assert "celery -A dashboard worker" not in body
    assert "No finding fits this filter." in text(viewer.get("/findings?severity=3"))
