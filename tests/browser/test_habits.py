"""Habits in a real browser: keys, copying, the local time, Back, and no serious violation of accessibility on any page."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from tests import factories
from tests.browser.conftest import Watch, log_in, shoot
from tests.test_pages import pages

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.timeout(600),
]

AXE = next(Path(__file__).parent.glob("vendor/axe-*.min.js"))
# https://github.com/dequelabs/axe-core/blob/develop/doc/API.md: what its rules find, by impact
SERIOUS = {"serious", "critical"}


@pytest.fixture
def site(live_server: LiveServer, page: Page) -> str:
    """The site, with a responder logged in."""
    factories.user("operator", "responder")
    log_in(page, live_server.url, "operator", factories.PASSWORD)
    return str(live_server.url)


def violations(page: Page) -> list[str]:
    """What axe finds to be a serious violation, each with the elements that it is about."""
    if not page.evaluate("typeof window.axe === 'object'"):
        # not through a script element, which the page's own policy refuses
        page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    return [
        f"{item['id']}: {item['help']}: {[node['html'][:160] for node in item['nodes'][:3]]}"
        for item in found
        if item["impact"] in SERIOUS
    ]


def test_axe_finds_what_is_wrong(site: str, page: Page) -> None:
    page.goto(site + "/leases")
    assert violations(page) == []
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<input><button></button>')")
    assert {text.partition(":")[0] for text in violations(page)} >= {"button-name", "label"}


def test_no_page_has_a_serious_violation_in_light_or_dark(site: str, page: Page, watch: Watch) -> None:
    watch.expected = ["404", "403"]
    paths = {**pages(factories.scene()), **EMPTY, "404": "/no-such-page"}
    scene = factories.lease()
    paths["leases-revoke"] = f"/leases/{scene.pk}/revoke"
    found = []
    for name, path in paths.items():
        page.goto(site + path)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += [f"{name}, {scheme}: {text}" for text in violations(page)]
        page.emulate_media(color_scheme="light")
    page.goto(site + "/")
    page.keyboard.press("?")
    found += [f"the sheet of keys: {text}" for text in violations(page)]
    assert not found, "\n".join(found)


EMPTY = {
    "leases-without-a-hit": "/leases?pod=nobody",
    "findings-without-a-hit": "/findings?severity=1&kind=root+token",
    "access-choose": "/access",
    "review-choose": "/access-review",
}


def test_the_log_in_page_has_no_serious_violation(live_server: LiveServer, page: Page) -> None:
    page.goto(f"{live_server.url}/login")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []


# --- keys --------------------------------------------------------------------------------------------------------


def test_keys_lead_to_sections_and_along_rows(site: str, page: Page) -> None:
    factories.watched()
    leases = [factories.lease(age=number, left=900) for number in range(3)]
    page.goto(site + "/")
    page.keyboard.press("g")
    page.keyboard.press("l")
    page.wait_for_url(f"{site}/leases")
    focused = "document.activeElement.id"
    page.keyboard.press("j")
    assert page.evaluate(focused) == f"lease-{leases[0].pk}"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == f"lease-{leases[2].pk}"
    page.keyboard.press("k")
    assert page.evaluate(focused) == f"lease-{leases[1].pk}"
    # the list is sent again under the reader's feet
    factories.lease(age=0, left=900)
    expect(page.locator("tbody tr")).to_have_count(4, timeout=4000)
    assert page.evaluate(focused) == f"lease-{leases[1].pk}"
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site}/leases/{leases[1].pk}")
    page.keyboard.press("r")
    page.wait_for_url(re.compile("revoke|plans"))


def test_keys_do_nothing_while_somebody_types_or_once_they_are_switched_off(site: str, page: Page) -> None:
    factories.lease()
    page.goto(site + "/leases")
    field = page.get_by_label("Pod contains")
    field.focus()
    page.keyboard.type("gl?j/")
    expect(field).to_have_value("gl?j/")
    expect(page.locator("dialog")).to_be_hidden()
    assert page.url == f"{site}/leases"
    field.blur()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    shoot(page, "keys")
    page.get_by_label("Single keys are on").uncheck()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    page.reload()
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Single keys are on").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


def test_slash_leads_to_a_field_to_type_in_and_modified_keys_stay_the_browsers(site: str, page: Page) -> None:
    factories.lease()
    page.goto(site + "/leases")
    page.keyboard.press("Control+j")
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('input, select')")
    assert page.evaluate("document.activeElement.value") in {"", "open"}


def test_a_command_is_copied_by_button_and_by_key(site: str, page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lease = factories.lease()
    page.goto(site + "/leases")
    read = "navigator.clipboard.readText()"
    page.get_by_role("button", name="Copy the command that looks up").click()
    expect(page.get_by_role("status").filter(has_text="Copied: bao lease lookup")).to_be_visible()
    assert page.evaluate(read) == f"bao lease lookup {lease.lease_id}"
    page.keyboard.press("j")
    page.keyboard.press("Shift+C")
    expect(page.get_by_role("status").filter(has_text="Copied: bao lease revoke")).to_be_visible()
    assert page.evaluate(read) == f"bao lease revoke -sync {lease.lease_id}"


# --- times, selection, Back ----------------------------------------------------------------------------------------


def test_a_time_says_on_hover_what_it_is_where_the_reader_sits(live_server: LiveServer, page: Page) -> None:
    factories.user("operator", "viewer")
    factories.lease()
    assert page.context.browser is not None
    context = page.context.browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    there = context.new_page()
    log_in(there, live_server.url, "operator", factories.PASSWORD)
    there.goto(f"{live_server.url}/leases?state=any")
    moment = there.locator("time.moment").first
    moment.hover()
    title = moment.get_attribute("title") or ""
    assert re.match(r"\d+ \w+ \d{4} \d\d:\d\d:\d\d UTC\n.*(GMT\+9|JST).* here", title), title
    context.close()


def test_a_list_waits_while_something_is_selected_in_it_and_says_so(site: str, page: Page) -> None:
    factories.watched()
    factories.lease()
    page.goto(site + "/leases")
    # the ticks of leases that are to be ended are kept over a refresh (select.js): such a list goes on. Others wait
    page.evaluate(
        "document.querySelector('form[data-select]').removeAttribute('data-select');"
        "document.querySelector('tbody td').insertAdjacentHTML('afterbegin', '<input type=checkbox aria-label=Select checked>')"
    )
    note = page.get_by_text("The list waits while something is selected")
    expect(note).to_be_visible(timeout=4000)
    factories.lease()
    page.wait_for_timeout(2500)
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_label("Select", exact=True).uncheck()
    expect(page.locator("tbody tr")).to_have_count(2, timeout=4000)
    expect(note).to_be_hidden()


def test_back_is_always_the_page_before(site: str, page: Page) -> None:
    scene: dict[str, Any] = factories.scene()
    for number in range(60):
        factories.lease(age=number + 100)
    trail = [f"{site}/leases"]
    page.goto(trail[0])
    page.get_by_role("link", name="Issued").click()
    page.wait_for_url("**sort=oldest*")
    trail.append(page.url)
    page.get_by_role("link", name="More", exact=True).click()
    page.wait_for_url("**before=*")
    trail.append(page.url)
    page.get_by_label("Certainty").select_option("inferred")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**certainty=inferred*")
    assert "sort=oldest" in page.url
    trail.append(page.url)
    page.locator("tbody a[id^=lease-]").first.click()
    page.wait_for_url(re.compile(r"/leases/\d+$"))
    for address in reversed(trail):
        # a live list has asked again meanwhile; that is no page of its own
        page.wait_for_timeout(1200)
        page.go_back()
        page.wait_for_url(address)
    expect(page.locator("thead th[aria-sort=descending]")).to_have_text("Issued")
    assert scene["lease"].pk
