"""Every page in a real browser: no complaint on the console, no sideways scroll, and screenshots for a look."""

from typing import Any

import psycopg
import pytest
from django.db import connections
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from demo.postgres import Postgres
from demo.processes import free_port
from leases.models import Lease
from leases.models.sessions import Place
from leases.models.sources import SourceKind
from tests import factories
from tests.browser.conftest import Watch, log_in, shoot

pytestmark = [
    pytest.mark.browser,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
]


@pytest.fixture
def site(live_server: LiveServer, page: Page) -> str:
    """The site, with a responder logged in."""
    factories.user("operator", "responder")
    log_in(page, live_server.url, "operator", factories.PASSWORD)
    return str(live_server.url)


@pytest.fixture
def scene(site: str) -> dict[str, Any]:
    return factories.scene()


def test_every_page_with_data(site: str, scene: dict[str, Any], page: Page) -> None:
    for name, path in {
        "overview": "/",
        "leases": "/leases?state=any",
        "leases-filter-without-hit": "/leases?pod=nobody",
        "lease": f"/leases/{scene['lease'].pk}",
        "lease-ended": f"/leases/{scene['ended'].pk}",
        "lease-irrevocable": f"/leases/{scene['irrevocable'].pk}",
        "revoke": f"/leases/{scene['revocable'].pk}/revoke",
        "receipt-verified": f"/actions/{scene['verified'].pk}",
        "receipt-running": f"/actions/{scene['running'].pk}",
        "receipt-unverified": f"/actions/{scene['unverified'].pk}",
        "receipt-failed": f"/actions/{scene['failed'].pk}",
        "findings": "/findings?state=any",
        "finding": f"/findings/{scene['finding'].pk}",
        "finding-closed": f"/findings/{scene['closed_finding'].pk}",
        "actions": "/actions",
        "databases": "/databases",
        "lease-guessed": f"/leases/{scene['guessed'].pk}",
        "database": f"/databases/{scene['database'].pk}",
        "database-elsewhere": f"/databases/{scene['database'].pk}?place=elsewhere",
        "database-filter-without-hit": f"/databases/{scene['database'].pk}?address=192.0.2.1",
        "database-not-sampled": f"/databases/{scene['billing'].pk}",
        "workloads": "/workloads",
        "workloads-of-pods": "/workloads?by=pod",
        "workloads-filter-without-hit": "/workloads?text=nobody",
        "workload": "/workloads/demo/shop/checkout",
        "pod": f"/pods/demo/{scene['pod'].uid}",
        "review": "/access-review?database=demo/database/orders",
        "review-not-sampled": "/access-review?database=demo/database/billing&days=7",
        "review-choose": "/access-review",
        "access": "/access?database=demo/database/orders",
        "access-compared": "/access?database=demo/database/orders&to=2026-11-20T12:00&show=lost",
        "access-choose": "/access",
        "access-refused": "/access?database=demo/database/orders&at=2040-01-01T00:00",
        "sources": "/sources",
        "stream": f"/sources/streams/{scene['stream'].pk}/",
        "stream-day-without-lines": f"/sources/streams/{scene['stream'].pk}/?day=2026-01-31",
        "rejected-line": f"/sources/streams/{scene['stream'].pk}/rejected/{scene['rejected'].pk}/",
    }.items():
        factories.watched()  # every source has just answered
        page.goto(site + path)
        shoot(page, name)


def test_every_page_without_anything(site: str, page: Page) -> None:
    for name, path in {
        "empty-overview": "/",
        "empty-leases": "/leases",
        "empty-workloads": "/workloads",
        "empty-findings": "/findings",
        "empty-actions": "/actions",
        "empty-databases": "/databases",
        "empty-access": "/access",
        "empty-review": "/access-review",
        "empty-sources": "/sources",
    }.items():
        page.goto(site + path)
        shoot(page, name)
    page.goto(f"{site}/databases/{factories.database('fresh', monitored=False).pk}")
    shoot(page, "empty-database")
    page.goto(f"{site}/access-review?database=demo/database/fresh")
    shoot(page, "empty-review-of-a-database")
    page.goto(f"{site}/sources/streams/{factories.stream('new', path='').pk}/")
    shoot(page, "empty-stream")


def test_failing_and_stale_sources(site: str, scene: dict[str, Any], page: Page) -> None:
    factories.source(
        SourceKind.VAULT,
        "demo",
        ok=False,
        cause="Vault at http://127.0.0.1:8200 is sealed",
        fix="Unseal it: bao operator unseal, once per key share.",
        since=240,
    )
    factories.source(SourceKind.CLUSTER, "demo", checked=95)
    page.goto(site + "/")
    expect(page.get_by_text("is sealed").first).to_be_visible()
    shoot(page, "failing-overview")
    page.goto(site + "/sources")
    shoot(page, "failing-sources")
    refused = "auth.client_token stands in plain text; the device runs with log_raw or the field is not HMAC'd"
    page.goto(f"{site}/sources/streams/{factories.stream('raw', refused=refused).pk}/")
    expect(page.get_by_text("without log_raw").first).to_be_visible()
    shoot(page, "failing-stream")


def test_pages_that_refuse(site: str, page: Page, watch: Watch) -> None:
    watch.expected = ["403", "404", "422", "503"]
    page.goto(site + "/no-such-page")
    shoot(page, "error-404")
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("User name").fill("operator")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("do not match")).to_be_visible()
    shoot(page, "log-in-refused")
    factories.user("nobody.yet")
    page.get_by_label("User name").fill("nobody.yet")
    page.get_by_label("Password").fill(factories.PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="You belong to no group")).to_be_visible()
    shoot(page, "error-403-no-group")


def test_the_own_database_is_down(site: str, page: Page, watch: Watch, postgres: Postgres) -> None:
    watch.expected = ["503"]
    settings = connections["default"].settings_dict
    port = settings["PORT"]
    settings["PORT"] = str(free_port())
    with psycopg.connect(postgres.dsn()) as administrator:
        administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'leasehold_app'")
    try:
        page.goto(site + "/")
        expect(page.get_by_role("heading", name="Leasehold's own database fails")).to_be_visible()
        shoot(page, "error-503")
    finally:
        settings["PORT"] = port
    page.get_by_role("link", name="Try again").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_attached()


def test_a_new_lease_appears_and_counts_down_without_a_reload(site: str, page: Page) -> None:
    factories.watched()
    page.goto(site + "/")
    lease = factories.lease(age=1, left=125, pod="checkout-new")
    row = page.locator(f"#newest-{lease.pk}").locator("xpath=ancestor::tr")
    expect(row).to_be_visible(timeout=3000)
    left = row.locator("[data-expires-at]")
    expect(left).to_have_text("2 m 00 s", timeout=8000)
    expect(left).to_have_text("1 m 59 s", timeout=3000)


def test_a_wrong_clock_in_the_browser_does_no_harm(site: str, page: Page) -> None:
    factories.watched()
    lease = factories.lease(left=3600)
    page.add_init_script("const real = Date.now; Date.now = () => real() + 7_200_000;")
    page.goto(site + "/leases")
    left = page.locator(f"#lease-{lease.pk}").locator("xpath=ancestor::tr").locator("[data-expires-at]")
    expect(left).to_contain_text("59 m ")


def test_the_page_says_when_the_server_is_gone_and_when_it_is_back(site: str, page: Page, watch: Watch) -> None:
    watch.expected = ["ERR_INTERNET_DISCONNECTED", "htmx:"]
    factories.watched()
    page.goto(site + "/")
    banner = page.get_by_role("alert").filter(has_text="does not answer")
    expect(banner).to_be_hidden()
    page.context.set_offline(True)
    expect(banner).to_be_visible(timeout=4000)
    shoot(page, "server-gone")
    page.context.set_offline(False)
    expect(banner).to_be_hidden(timeout=4000)


def test_a_hidden_tab_asks_nothing(site: str, page: Page) -> None:
    factories.watched()
    page.goto(site + "/")
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    page.wait_for_timeout(300)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []


def test_revoking_asks_for_a_reason_and_leads_to_a_receipt(site: str, page: Page) -> None:
    factories.watched()
    lease = factories.lease(pod="checkout-x")
    page.goto(site + "/")
    page.locator(f"#ending-{lease.pk}").click()
    page.get_by_role("link", name="Revoke…").click()
    page.get_by_label("Reason").fill("INC-1: test")
    page.get_by_role("button", name="Revoke this lease").click()
    expect(page.get_by_role("heading", name="Revoking")).to_be_visible()
    expect(page.get_by_text("waiting for a worker")).to_be_visible()
    assert Lease.objects.get().revocations.get().action.by == "operator"


def test_a_session_that_ends_leads_to_the_log_in(site: str, page: Page) -> None:
    factories.watched()
    page.goto(site + "/")
    page.context.clear_cookies()
    page.wait_for_url(f"{site}/login?next=/", timeout=5000)


def test_a_streams_hours_and_a_rejected_line_are_reached_with_the_keyboard_alone(
    site: str, scene: dict[str, Any], page: Page
) -> None:
    page.goto(site + "/sources")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == f"day-{scene['stream'].pk}":
            break
    # the page looks again every second; the focus stays where it was
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Hours of")).to_be_in_viewport()
    page.get_by_role("link", name="Show line 0 of block 2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("<b>torn</b>")).to_be_visible()


def test_pages_read_without_javascript(live_server: LiveServer, page: Page) -> None:
    factories.user("operator", "responder")
    scene = factories.scene()
    # so that there is a day before, whatever the time of day
    factories.coverage(scene["stream"], hours_ago=30)
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    log_in(plain, live_server.url, "operator", factories.PASSWORD)
    plain.goto(f"{live_server.url}/leases?state=any")
    plain.get_by_label("State").select_option("ended")
    plain.get_by_role("button", name="Filter").click()
    expect(plain.locator("tbody tr")).to_have_count(Lease.objects.filter(state="ended").count())
    plain.goto(f"{live_server.url}/leases/{scene['revocable'].pk}/revoke")
    plain.get_by_label("Reason").fill("without JavaScript")
    plain.get_by_role("button", name="Revoke this lease").click()
    expect(plain.get_by_role("heading", name="Revoking")).to_be_visible()
    plain.goto(f"{live_server.url}/databases/{scene['database'].pk}")
    plain.get_by_label("Came from").select_option("from elsewhere")
    plain.get_by_role("button", name="Filter").click()
    expect(plain.locator("tbody tr[id]")).to_have_count(1)
    plain.goto(f"{live_server.url}/access-review")
    plain.get_by_label("Database", exact=True).select_option("demo/database/orders")
    plain.get_by_role("button", name="Show").click()
    expect(plain.get_by_role("link", name="shop/checkout")).to_be_visible()
    plain.goto(f"{live_server.url}/sources")
    plain.get_by_role("link", name="demo/file-a/bao-0", exact=True).click()
    plain.get_by_role("navigation", name="Days").get_by_role("link").first.click()
    expect(plain.get_by_role("link", name="today")).to_be_visible()
    plain.get_by_role("link", name="Show line 0 of block 2").click()
    expect(plain.get_by_text("<b>torn</b>")).to_be_visible()
    context.close()


def test_a_high_finding_appears_on_the_open_list_by_itself_and_filters_stay(site: str, page: Page) -> None:
    factories.watched()
    for number in range(30):
        factories.finding(summary=f"finding {number}")
    page.goto(f"{site}/findings?state=any")
    page.get_by_label("Kind").select_option("lease explosion")
    page.evaluate("window.scrollTo(0, 400)")
    page.evaluate("window.stayed = true")
    factories.finding(severity=3, summary="A credential for orders was used from elsewhere")
    expect(page.get_by_text("A credential for orders was used from elsewhere")).to_be_attached(timeout=4000)
    expect(page.locator("#findings-count")).to_contain_text("1 of high severity, 31 open")
    assert page.evaluate("window.stayed")
    assert page.evaluate("window.scrollY") > 300
    expect(page.get_by_label("Kind")).to_have_value("lease explosion")


def test_a_stolen_session_appears_on_the_databases_open_page_and_the_header_counts_it(site: str, page: Page) -> None:
    factories.watched()
    lease = factories.lease(age=60, left=600)
    factories.sampling(factories.database())
    page.goto(f"{site}/databases/{factories.database().pk}?state=open")
    expect(page.get_by_text("No session fits this filter.")).to_be_visible()
    stolen = factories.session(lease, age=1, place=Place.ELSEWHERE, address="127.30.0.99")
    factories.finding(severity=3)
    row = page.locator(f"#session-{stolen.pk}")
    expect(row).to_contain_text("elsewhere", timeout=6000)
    expect(page.get_by_text("Used from elsewhere than its holder")).to_be_visible()
    expect(page.locator("#findings-count")).to_contain_text("1 of high severity")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Sessions 1")).to_be_visible()
