"""The search box and the pages of events in a real browser."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from tests import factories, logged
from tests.browser.conftest import Watch, log_in, shoot

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
]


@pytest.fixture
def site(live_server: LiveServer, page: Page) -> str:
    factories.user("operator", "responder")
    log_in(page, live_server.url, "operator", factories.PASSWORD)
    return str(live_server.url)


@pytest.fixture
def scene(site: str) -> dict[str, Any]:
    """The usual evening, with some traffic that two devices logged."""
    found = factories.scene()
    at, lease = timezone.now() - timedelta(minutes=3), found["lease"]
    request_id = str(uuid.uuid4())
    for device in ("file-a", "file-b"):
        stream = factories.stream(device)
        logged.log(at, id=request_id, stream=stream, accessor=f"hmac-sha256:{device.encode().hex():0>64}")
    for number in range(60):
        began = at - timedelta(minutes=number)
        if number % 3:
            logged.log(began, path=f"secret/data/shop/storefront-configuration/{number}", account="shop/storefront")
        else:
            logged.log(began, error="1 error occurred:\n\t* permission denied\n\n")
    return found | {"request_id": request_id, "lease": lease}


def test_the_pages_of_events_and_of_the_search(site: str, scene: dict[str, Any], page: Page, watch: Watch) -> None:
    for name, path in {
        "events": "/events",
        "events-filtered": "/events?identity=shop%2Fcheckout&errors_only=on&own=any",
        "events-without-hit": "/events?address=192.0.2.1",
        "events-refused": "/events?from=2026-11-20T10:00&to=2026-11-20T09:00",
        "event": f"/events/demo/{scene['request_id']}",
        "event-without-lines": f"/events/demo/{scene['lease'].request_id}",
        "search": "/search",
    }.items():
        page.goto(site + path)
        shoot(page, name)
    box = page.get_by_label("Search for any identifier")
    box.fill("check")
    box.press("Enter")
    expect(page.get_by_role("heading", name="Service accounts")).to_be_visible()
    shoot(page, "search-found")
    box.fill("nobody-knows-this")
    box.press("Enter")
    expect(page.get_by_text("Nothing is known")).to_be_visible()
    shoot(page, "search-nothing")
    watch.expected = ["422"]
    box.fill("hvs.CAESIJ4vbXQxR2tYQkVr")
    box.press("Enter")
    expect(page.get_by_text("looks like a token")).to_be_visible()
    assert "CAESIJ4" not in page.content()
    assert page.url == f"{site}/search"
    expect(box).to_have_value("")
    shoot(page, "search-refused")


def test_a_slash_takes_the_cursor_into_the_box_and_one_hit_opens_its_page(
    site: str, scene: dict[str, Any], page: Page
) -> None:
    lease = scene["lease"]
    page.goto(f"{site}/leases")
    page.keyboard.press("/")
    box = page.get_by_label("Search for any identifier")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    page.keyboard.type(lease.lease_id)
    expect(box).to_have_value(lease.lease_id)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site}/leases/{lease.pk}")
    page.go_back()
    expect(page.get_by_role("heading", name="Leases", exact=True)).to_be_visible()


def test_back_from_a_hit_shows_the_hits_again(site: str, scene: dict[str, Any], page: Page) -> None:
    page.goto(f"{site}/findings")
    box = page.get_by_label("Search for any identifier")
    box.fill("check")
    box.press("Enter")
    page.get_by_role("link", name="shop/checkout", exact=True).first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Service account shop/checkout")
    page.go_back()
    expect(page.get_by_role("heading", name="Service accounts")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Service accounts")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Findings", exact=True)).to_be_visible()


def test_searching_and_reading_lines_works_without_javascript(live_server: LiveServer, page: Page) -> None:
    factories.user("operator", "viewer")
    request_id = logged.log(timezone.now() - timedelta(minutes=1))
    logged.log(timezone.now() - timedelta(minutes=2), address="10.9.8.7")
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    log_in(plain, live_server.url, "operator", factories.PASSWORD)
    plain.get_by_label("Search for any identifier").fill(request_id)
    plain.get_by_label("Search for any identifier").press("Enter")
    expect(plain.get_by_role("heading", name="Raw lines of file-a/bao-0")).to_be_visible()
    expect(plain.locator("pre.raw").first).to_contain_text(request_id)
    plain.goto(f"{live_server.url}/events")
    plain.get_by_label("Address").fill("10.9.8.7")
    plain.get_by_role("button", name="Filter").click()
    expect(plain.locator("tbody tr")).to_have_count(1)
    context.close()
