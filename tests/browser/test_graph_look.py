"""The graph of who used which database in a real browser: few pods, two hundred workloads, a narrow screen, the keyboard."""

import pytest
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from leases.models import Certainty
from tests import factories
from tests.browser.conftest import log_in, shoot

pytestmark = [
    pytest.mark.browser,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
]


@pytest.fixture
def site(live_server: LiveServer, page: Page) -> str:
    factories.user("operator", "responder")
    log_in(page, live_server.url, "operator", factories.PASSWORD)
    return str(live_server.url)


def two_hundred_workloads() -> None:
    factories.watched()
    names = ["orders", "billing", "warehouse", "audit-archive-of-the-finance-department", "users", "search"]
    databases = [factories.database(name) for name in names]
    ways = [Certainty.EXACT, Certainty.INFERRED, Certainty.INFERRED, Certainty.AMBIGUOUS, Certainty.SERVICE_ACCOUNT]
    for number in range(200):
        for turn in range(1 + 60 // (number + 1)):
            factories.lease(
                age=60 * turn + number,
                service_account=f"service-{number:03}" if number != 2 else "a-service-account-with-a-rather-long-name",
                namespace=f"team-{number % 7}",
                database=databases[(number + turn // 7) % 6],
                certainty=ways[(number + turn) % 5] if turn % 5 == 0 else Certainty.EXACT,
            )
    for _ in range(4):
        factories.lease(certainty=Certainty.UNKNOWN, database=databases[1])
    factories.lease(certainty=Certainty.UNKNOWN, database=None)


def test_the_graph_stays_readable_with_two_hundred_workloads(site: str, page: Page) -> None:
    two_hundred_workloads()
    page.goto(f"{site}/databases?by=account")
    expect(page.get_by_role("link", name="180 others")).to_be_visible()
    shoot(page, "graph-accounts")
    labels = page.locator(".side li")
    rows = page.locator(".flow .side").first.locator("li")
    expect(rows).to_have_count(22)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        boxes = [labels.nth(number).bounding_box() for number in range(labels.count())]
        heights = {round(box["height"]) for box in boxes[:22] if box}
        assert heights == {28}, "each label stands beside its row of the drawing"
        drawing = page.locator("svg.bands").bounding_box()
        assert drawing
        assert drawing["height"] == 22 * 28
        assert drawing["width"] >= 40
    # from a service account to its pods, by the keyboard
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("link", name="team-0/service-000").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Pods and databases")).to_be_visible()
    expect(page.get_by_label("Service account", exact=True)).to_have_value("service-000")
    shoot(page, "graph-pods-of-an-account")
    page.go_back()
    expect(page.get_by_role("heading", name="Service accounts and databases")).to_be_visible()


def test_a_period_without_a_read_says_what_to_do(site: str, page: Page) -> None:
    factories.watched()
    page.goto(f"{site}/databases?from=2026-01-05T00:00&to=2026-01-06T00:00")
    expect(page.get_by_text("Choose a longer period")).to_be_visible()
    shoot(page, "graph-empty")
    page.goto(f"{site}/databases?from=2026-01-05T00:00&to=2026-01-04T00:00")
    expect(page.get_by_text("ends before it begins")).to_be_visible()
    shoot(page, "graph-refused")
