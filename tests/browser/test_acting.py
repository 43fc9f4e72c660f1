"""Pages on which people act, in a real browser: selecting, planning, stopping, approving, containing; and how they look."""

import re

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from leases.models import Action, Plan, Revocation
from leases.models.actions import RevocationState
from tests import factories
from tests.browser.conftest import Watch, log_in, shoot

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
]


@pytest.fixture
def site(live_server: LiveServer, page: Page) -> str:
    """The site, with a responder logged in."""
    factories.user("operator", "responder")
    factories.watched()
    log_in(page, live_server.url, "operator", factories.PASSWORD)
    return str(live_server.url)


def test_every_page_on_which_people_act(site: str, page: Page) -> None:
    scene = factories.scene()
    lease = scene["lease"]
    login = factories.login(factories.lease(service_account="storefront", namespace="shop", age=200))
    wide = factories.plan(
        lease,
        *(
            factories.lease(age=n * 7, left=300 - n, service_account=f"svc-{n % 4}", namespace="shop")
            for n in range(30)
        ),
        scope={"kind": "service account", "value": "demo/shop/checkout"},
    )
    found = {
        "identities": [
            {
                "vault": "demo",
                "vault_namespace": "",
                "entity_id": "0b7c3e5d-5d0f-4f6b-8f3d-2a7f4f1f6a10",
                "name": "entity_5b1c8f40",
                "aliases": [
                    {"mount": "auth/kubernetes", "name": "5f1d9a3e-4a0a-4f0e-9b57-6f5b4c0f2a11"},
                    {"mount": "auth/jwt", "name": "system:serviceaccount:shop:checkout"},
                ],
                "shared_with": ["shop/cart"],
                "tokens": 4,
            },
            {"vault": "second", "vault_namespace": "team-a", "entity_id": "e-2", "disabled": True, "tokens": 0},
        ],
        "without": [
            "auth/legacy of vault demo: nobody has logged in there as this account, so there is nothing to disable"
        ],
    }
    contain = factories.plan(
        lease,
        kind="contain",
        scope={"kind": "service account", "value": "demo/shop/checkout"},
        found=found,
        found_at=timezone.now(),
    )
    force = factories.plan(scene["irrevocable"], kind="force revoke")
    lifted = factories.containment(factories.ended(service_account="batch", namespace="finance"), state="lifted")
    assert login.entity_id
    for name, path in {
        "leases-responder": "/leases",
        "revoke": f"/leases/{scene['revocable'].pk}/revoke",
        "plan-wide": f"/plans/{wide.pk}",
        "plan-contain": f"/plans/{contain.pk}",
        "plan-force": f"/plans/{force.pk}",
        "plan-new": "/plans/new",
        "actions": "/actions",
        "job-stopped": f"/actions/{scene['many'].pk}",
        "job-waiting": f"/actions/{scene['waiting'].pk}",
        "receipt-verified": f"/actions/{scene['verified'].pk}",
        "receipt-item": f"/actions/{scene['many'].pk}/leases/{scene['item'].pk}",
        "containments": "/containments?state=any",
        "containment": f"/containments/{scene['containment'].pk}",
        "containment-lifted": f"/containments/{lifted.pk}",
        "finding-act": f"/findings/{scene['finding'].pk}",
        "pod-act": f"/pods/demo/{scene['pod'].uid}",
    }.items():
        factories.watched()  # every source has just answered
        page.goto(site + path)
        shoot(page, f"acting-{name}")
    page.goto(f"{site}/leases/{lease.pk}")
    page.goto(f"{site}/leases/{scene['revocable'].pk}")
    page.get_by_text("More…").click()
    shoot(page, "acting-lease-menu")


def test_pages_on_which_people_act_without_anything(site: str, page: Page) -> None:
    for name, path in {"containments": "/containments", "containments-any": "/containments?state=any"}.items():
        page.goto(site + path)
        shoot(page, f"acting-empty-{name}")


def test_what_is_ticked_stays_so_while_the_list_moves_and_becomes_a_plan(site: str, page: Page) -> None:
    rows = [factories.lease(age=60 + n) for n in range(3)]
    page.goto(f"{site}/leases")
    button = page.get_by_role("button", name=re.compile("Revoke"))
    expect(button).to_be_disabled()
    for row in rows[:2]:
        page.locator(f"input[name=lease][value='{row.pk}']").check()
    expect(button).to_have_text("Revoke 2 selected…")
    new = factories.lease(age=1)
    expect(page.locator(f"#lease-{new.pk}")).to_be_visible(timeout=4000)
    expect(button).to_have_text("Revoke 2 selected…")
    for row in rows[:2]:
        expect(page.locator(f"input[name=lease][value='{row.pk}']")).to_be_checked()
    expect(page.locator(f"input[name=lease][value='{new.pk}']")).not_to_be_checked()
    page.get_by_label("Select all that are shown").check()
    expect(button).to_have_text("Revoke 4 selected…")
    page.locator(f"input[name=lease][value='{new.pk}']").uncheck()
    button.click()
    expect(page.get_by_role("heading", name="Revoke 3 selected leases?")).to_be_visible()
    assert Plan.objects.get().leases == [row.pk for row in rows]
    # Back is the list again, with what was ticked
    page.go_back()
    expect(page.get_by_role("button", name="Revoke 3 selected…")).to_be_visible()


def test_a_plan_is_confirmed_and_a_job_is_stopped_and_retried_in_view(site: str, page: Page, watch: Watch) -> None:
    watch.expected = ["422"]
    plan = factories.plan(*(factories.lease(age=n) for n in range(8)))
    page.goto(f"{site}/plans/{plan.pk}")
    page.get_by_label("Reason").fill("INC-1: leaked")
    page.get_by_label("Ticket").fill("INC-1")
    page.get_by_label("Type 8 to confirm").fill("7")
    page.get_by_role("button", name="Revoke 8 leases").click()
    expect(page.get_by_text("8 leases end: type 8.")).to_be_visible()
    expect(page.get_by_label("Reason")).to_have_value("INC-1: leaked")
    page.get_by_label("Type 8 to confirm").fill("8")
    page.get_by_role("button", name="Revoke 8 leases").click()
    expect(page.get_by_text("0 of 8 decided")).to_be_visible()
    action = Action.objects.get()
    rows = list(action.revocations.order_by("id"))
    Revocation.objects.filter(pk__in=[row.pk for row in rows[:3]]).update(
        state=RevocationState.VERIFIED, updated_at=timezone.now()
    )
    expect(page.get_by_text("3 of 8 decided")).to_be_visible(timeout=4000)
    page.get_by_role("button", name="Stop: leave what has not begun").click()
    expect(page.get_by_role("heading", name="Stopped")).to_be_visible()
    page.get_by_role("link", name="stopped before its turn 5").click()
    expect(page.locator("table.items tbody tr")).to_have_count(5)
    page.go_back()
    expect(page.locator("table.items tbody tr")).to_have_count(8)
    page.get_by_role("button", name="Try again what is not verified").click()
    expect(page.get_by_text("3 of 8 decided")).to_be_visible()


def test_acting_works_without_javascript(live_server: LiveServer, page: Page) -> None:
    factories.user("operator", "responder")
    factories.watched()
    rows = [factories.lease(age=60 + n) for n in range(3)]
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    log_in(plain, live_server.url, "operator", factories.PASSWORD)
    plain.goto(f"{live_server.url}/leases")
    plain.locator(f"input[name=lease][value='{rows[1].pk}']").check()
    plain.locator(f"input[name=lease][value='{rows[2].pk}']").check()
    plain.get_by_role("button", name="Revoke selected…").click()
    plain.get_by_label("Reason").fill("without JavaScript")
    plain.get_by_role("button", name="Revoke 2 leases").click()
    expect(plain.get_by_text("0 of 2 decided")).to_be_visible()
    plain.get_by_role("button", name="Stop: leave what has not begun").click()
    expect(plain.get_by_role("heading", name="Stopped")).to_be_visible()
    plain.goto(f"{live_server.url}/leases/{rows[0].pk}")
    plain.get_by_text("More…").click()
    plain.get_by_role("button", name="Revoke everything of its service account…").click()
    expect(
        plain.get_by_role("heading", name="Revoke everything of service account shop/checkout in demo?")
    ).to_be_visible()
    context.close()
