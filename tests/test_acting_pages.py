"""Pages on which people act, without a browser: plans, jobs, receipts, containments; who may do what, and what each says."""

import re
import time
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

from audit import again
from dashboard import receipts
from dashboard.views.plans import preview
from leases import action_queries as queries
from leases import revoke
from leases.models import Action, ActionStep, EndReason, Job, Lease, Login, Plan, Policy, Revocation
from leases.models.actions import JobState, RevocationState
from tests import factories
from tests.test_pages import HOSTILE, HTMX, text

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def press(client: Client, kind: str, scope_kind: str, value: str = "", **extra: Any) -> Any:
    return client.post("/plans", {"kind": kind, "scope_kind": scope_kind, "scope_value": value, **extra})


def poll_of(response: Any) -> str:
    found = re.search(r'data-poll hx-get="([^"]+)"', response.content.decode())
    return unescape(found[1]) if found else ""


@pytest.fixture
def policy() -> Policy:
    return Policy.objects.get_or_create(pk=1)[0]


# --- plans -------------------------------------------------------------------------------------------------------


def test_a_selection_becomes_a_plan_and_nothing_more(responder: Client) -> None:
    first, second, _ = factories.lease(), factories.lease(), factories.lease()
    response = press(responder, "revoke", "leases", lease=[first.pk, second.pk])
    plan = Plan.objects.get()
    assert response["Location"] == f"/plans/{plan.pk}"
    assert plan.leases == [first.pk, second.pk]
    assert (plan.by, plan.kind) == ("user-responder", "revoke")
    assert not Action.objects.exists()


def test_whoever_selects_nothing_is_told_what_to_do(responder: Client) -> None:
    response = press(responder, "revoke", "leases")
    assert response.status_code == 422
    assert "No lease was selected. Tick those that are to end" in text(response)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("role", "demo", "A role is written VAULT/MOUNT/ROLE"),
        ("login", "x", "named by numbers"),
        ("prefix", "demo/nothing/here", "Nothing is left to revoke"),
    ],
)
def test_a_scope_that_means_nothing_is_refused_in_the_form(responder: Client, kind: str, value: str, told: str) -> None:
    factories.lease()
    response = press(responder, "revoke", kind, value)
    assert response.status_code == 422
    assert told in text(response)
    assert f'value="{value}"' in response.content.decode()


def test_everything_of_each_scope_is_planned(responder: Client) -> None:
    lease = factories.lease(pod_uid="uid-1")
    login = factories.login(lease)
    factories.lease(service_account="other", database=factories.database("billing"), role="else", mount="elsewhere")
    for kind, value in {
        "pod": "demo/uid-1",
        "service account": "demo/shop/checkout",
        "entity": f"demo/{login.entity_id}",
        "login": str(login.pk),
        "role": "demo/database/my-role",
        "database": str(factories.database().pk),
        "prefix": "demo/database/creds/my-role",
    }.items():
        response = press(responder, "revoke", kind, value)
        assert Plan.objects.latest("at").leases == [lease.pk], kind
        assert lease.lease_id in text(responder.get(response["Location"])), kind


def test_a_plan_shows_what_ends_whose_sessions_and_who_comes_back(responder: Client) -> None:
    database = factories.database(respond={"file": "/etc/leasehold/respond.dsn"})
    lease = factories.lease(age=300, database=database)
    factories.pod(lease)
    factories.login(lease)
    factories.session(lease, application="checkout-api")
    other = factories.lease(service_account="reports", namespace="finance", database=factories.database("billing"))
    factories.session(other)
    plan = factories.plan(lease, other)
    page = text(responder.get(f"/plans/{plan.pk}"))
    assert "Revoke 2 selected leases?" in page
    assert "orders (database) 1" in page
    assert "1 on demo/database/orders : noted before Vault is told, then exactly these are ended" in page
    assert "1 on demo/database/billing : not ended: the database has no responding account." in page
    assert f"1: {lease.pod} 1" in page
    assert "Expect a new lease in about 10 s, if it is bao agent; it was never measured" in page
    assert "None of its pods runs and no token of it is known to live" in page


def test_how_soon_somebody_comes_back_is_what_was_measured() -> None:
    now = timezone.now()
    pod: dict[str, Any] = {"pod_uid": "uid-1", "pod": "checkout-1"}
    for minutes, seconds in ((50, 4), (40, 6), (30, 11)):
        end = now - timedelta(minutes=minutes)
        lease = factories.ended(reason=EndReason.REVOKED_HERE, ago=minutes * 60, **pod)
        # not the answer: another role, another pod, or read before
        for other in ({"role": "else", **pod}, {"pod_uid": "uid-2", "pod": "checkout-2"}):
            factories.lease(
                accessed_at=end + timedelta(seconds=1),
                state="ended",
                ended_at=now,
                end_reason="expired (inferred)",
                **other,
            )
        factories.ended(accessed_at=end + timedelta(seconds=seconds), **pod)
        assert lease.ended_at is not None
    live = factories.lease(**pod)
    factories.pod(live)
    (row,), more = again.returns([live.pk], now=now)
    assert more == 0
    assert (row.measured, round(row.seconds or 0)) == (3, 6)
    assert row.running == 1
    assert "in about 6 s, as measured 3 times in the last 30 days" in row.expected


def test_of_many_service_accounts_those_with_most_leases_are_looked_at_in_as_many_queries_as_one() -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            again.returns(list(Lease.objects.values_list("pk", flat=True)), now=timezone.now())
        return len(captured)

    factories.lease()
    once = asked()
    for number in range(40):
        factories.lease(service_account=f"account-{number}")
    rows, more = again.returns(list(Lease.objects.values_list("pk", flat=True)), now=timezone.now())
    assert (len(rows), more) == (again.MOST_ACCOUNTS, 41 - again.MOST_ACCOUNTS)
    assert asked() == once


def test_a_plan_asks_as_often_for_fifty_leases_as_for_one(responder: Client) -> None:
    def asked(plan: Plan) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert responder.get(f"/plans/{plan.pk}").status_code == 200
        return len(captured)

    first = factories.lease()
    factories.session(first)
    few, rows = factories.plan(first), [first]
    for number in range(49):
        lease = factories.lease(service_account=f"sa-{number}", database=factories.database(f"db-{number % 7}"))
        factories.session(lease)
        rows.append(lease)
    many = factories.plan(*rows)
    # of a plan of one lease the words name it, which asks once more
    assert asked(many) <= asked(few) <= 22


def test_a_plan_leads_to_its_action_and_the_second_who_presses_to_the_first(responder: Client) -> None:
    lease, other = factories.lease(), factories.lease()
    plan = factories.plan(lease, other)
    form = {"reason": "INC-7: leaked", "ticket": "INC-7"}
    response = responder.post(f"/plans/{plan.pk}", form)
    action = Action.objects.get()
    assert response["Location"] == f"/actions/{action.pk}"
    assert (action.by, action.reason, action.ticket) == ("user-responder", "INC-7: leaked", "INC-7")
    assert action.revocations.count() == 2
    again_ = responder.post(f"/plans/{plan.pk}", form)
    assert again_["Location"] == f"/actions/{action.pk}"
    second = responder.post(f"/plans/{factories.plan(lease).pk}", form, follow=True)
    assert second.redirect_chain[-1][0] == f"/actions/{action.pk}"
    assert "user-responder was first" in text(second)
    assert Action.objects.count() == 1


def test_a_reason_is_needed_and_a_wide_plan_wants_its_number_typed(responder: Client, policy: Policy) -> None:
    policy.confirm_above = 2
    policy.save()
    plan = factories.plan(*(factories.lease() for _ in range(3)))
    path = f"/plans/{plan.pk}"
    assert "Type 3 to confirm" in text(responder.get(path))
    for wrong in ({"reason": "why"}, {"reason": "why", "typed": "2"}, {"reason": " ", "typed": "3"}):
        assert responder.post(path, wrong).status_code == 422
    assert not Action.objects.exists()
    assert responder.post(path, {"reason": "why", "typed": "3"}).status_code == 302
    assert Action.objects.get().revocations.count() == 3
    few = factories.plan(factories.lease())
    assert "to confirm" not in text(responder.get(f"/plans/{few.pk}"))


@pytest.mark.parametrize("field", ["reason", "ticket"])
def test_a_token_is_not_kept_with_an_action(responder: Client, field: str) -> None:
    """Actions are there for good, and go into exports."""
    token = "hvs.CAESIJ4vbXQxOGZk"
    lease = factories.lease()
    typed = {"reason": "why", field: f"seen in a chat: {token}"}
    for page in (f"/plans/{factories.plan(lease).pk}", f"/leases/{lease.pk}/revoke"):
        answer = responder.post(page, typed)
        assert "which would be kept for good" in text(answer)
    assert not Action.objects.exists()
    waiting = factories.scene()["waiting"]
    refused = text(responder.post(f"/actions/{waiting.pk}/refuse", {"reason": token}, follow=True))
    assert "which would be kept for good" in refused
    assert token not in refused
    scope = {"kind": "contain", "scope_kind": "service account", "scope_value": f"demo/shop/{token}"}
    assert responder.post("/plans", scope).status_code == 422
    assert not Plan.objects.filter(scope__value__contains=token).exists()


def test_leaseholds_own_lease_is_not_ended_here(responder: Client) -> None:
    """It may be what sessions are ended with."""
    lease = factories.lease()
    Lease.objects.update(login=factories.login(lease))
    Login.objects.update(own=True)
    told = text(responder.post(f"/leases/{lease.pk}/revoke", {"reason": "why"}, follow=True))
    assert "It is Leasehold's own, which it does not end" in told
    assert not Action.objects.exists()


def test_a_plan_that_is_too_old_offers_another_one(responder: Client) -> None:
    plan = factories.plan(factories.lease(), left=-1)
    page = responder.get(f"/plans/{plan.pk}")
    assert "This plan is too old to act on." in text(page)
    assert "Plan again" in text(page)
    response = responder.post(f"/plans/{plan.pk}", {"reason": "late"}, follow=True)
    assert "Plan again" in text(response)
    assert not Action.objects.exists()


def test_force_is_planned_only_for_what_vault_refused_and_names_its_consequences(responder: Client) -> None:
    live, given_up = factories.lease(), factories.lease(left=-400, state="irrevocable", revoke_error="no route to host")
    refused = press(responder, "force revoke", "leases", str(live.pk))
    assert refused.status_code == 422
    assert "can be revoked without force" in text(refused)
    page = responder.get(press(responder, "force revoke", "leases", str(given_up.pk))["Location"])
    assert "Vault forgets the lease without ending its database user" in text(page)
    assert "Drop by force" in text(page)


def test_a_viewer_plans_and_presses_nothing(viewer: Client) -> None:
    scene = factories.scene()
    plan = factories.plan(factories.lease())
    action = scene["waiting"].pk
    assert press(viewer, "revoke", "leases", str(scene["lease"].pk)).status_code == 403
    for path in ("/plans/new", f"/plans/{plan.pk}"):
        assert viewer.get(path).status_code == 403
    paths = [f"/actions/{action}/{verb}" for verb in ("stop", "retry", "approve", "refuse")]
    paths += [f"/containments/{scene['containment'].pk}/{verb}" for verb in ("undo", "again")]
    for path in [*paths, f"/plans/{plan.pk}"]:
        assert viewer.post(path, {"reason": "because"}).status_code == 403, path
    for path in ("/leases", f"/pods/demo/{scene['pod'].uid}", f"/findings/{scene['finding'].pk}"):
        assert 'action="/plans"' not in viewer.get(path).content.decode(), path
    assert Job.objects.get(action=action).state == JobState.WAITING


@pytest.mark.parametrize("verb", ["stop", "retry", "approve", "refuse"])
def test_coming_back_from_a_log_in_presses_no_button(responder: Client, verb: str) -> None:
    scene = factories.scene()
    response = responder.get(f"/actions/{scene['waiting'].pk}/{verb}")
    assert response["Location"] == f"/actions/{scene['waiting'].pk}"
    assert Job.objects.get(action=scene["waiting"]).state == JobState.WAITING


# --- jobs --------------------------------------------------------------------------------------------------------


def confirmed(*leases: Lease, by: str = "ola") -> Action:
    """A running job of these leases, as a person's confirmation makes it."""
    from leases import revoke

    return revoke.confirm(factories.plan(*leases, by=by), by=by, reason="drill", now=timezone.now())


def test_a_job_shows_how_far_it_is_and_filters_by_state(viewer: Client) -> None:
    action = confirmed(*(factories.lease() for _ in range(5)))
    rows = list(action.revocations.order_by("id"))
    for row, state in zip(rows, ["verified", "verified", "failed", "unverified", "requested"], strict=True):
        Revocation.objects.filter(pk=row.pk).update(state=state)
    page = viewer.get(f"/actions/{action.pk}")
    assert "4 of 5 decided" in text(page)
    assert page.content.count(b'id="item-') == 5
    failed = viewer.get(f"/actions/{action.pk}?state=failed")
    assert re.findall(r'id="item-(\d+)"', failed.content.decode()) == [str(rows[2].pk)]
    assert "The lease may still work." in text(failed)
    widths = [share.width for share in receipts.shares({"verified": 2, "failed": 1, "unverified": 1, "requested": 1})]
    assert widths == [400, 200, 200]


def test_a_jobs_leases_are_paged_and_asked_for_as_often_for_fifty_as_for_one(viewer: Client) -> None:
    def asked(action: Action) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(f"/actions/{action.pk}").status_code == 200
        return len(captured)

    few = confirmed(factories.lease(), factories.lease())
    many = confirmed(*(factories.lease() for _ in range(120)))
    for row in Revocation.objects.select_related("lease"):
        factories.step(row.action, row.lease, "Vault answered")
    assert asked(many) == asked(few)
    assert asked(many) <= 24
    path, seen = f"/actions/{many.pk}", []
    while path:
        body = viewer.get(path).content.decode()
        seen += re.findall(r'id="item-(\d+)"', body)
        following = re.search(r'href="([^"]+)" rel="next"', body)
        path = unescape(following[1]) if following else ""
    assert seen == [str(pk) for pk in many.revocations.order_by("id").values_list("pk", flat=True)]
    assert viewer.get(f"/actions/{many.pk}?after=x").status_code == 400


def test_an_actions_live_part_is_sent_again_only_when_something_moved(viewer: Client) -> None:
    action = confirmed(factories.lease(), factories.lease())
    address = poll_of(viewer.get(f"/actions/{action.pk}"))
    assert viewer.get(address, headers=HTMX).status_code == 204
    row = action.revocations.first()
    assert row is not None
    factories.step(action, row.lease, "Vault answered")
    changed = viewer.get(address, headers=HTMX)
    assert changed.status_code == 200
    assert b"<html" not in changed.content
    address = poll_of(changed)
    assert viewer.get(address, headers=HTMX).status_code == 204
    Job.objects.update(
        claimed_until=timezone.now() - timedelta(minutes=2), updated_at=timezone.now() - timedelta(minutes=2)
    )
    assert "No worker goes on with it." in text(viewer.get(address, headers=HTMX))
    # nothing can change any more
    Revocation.objects.update(state="verified", audit_request_id="r", updated_at=timezone.now())
    Job.objects.update(state="done")
    assert poll_of(viewer.get(f"/actions/{action.pk}")) == ""


def test_a_job_is_stopped_and_taken_up_again_by_its_buttons(responder: Client) -> None:
    action = confirmed(factories.lease(), factories.lease())
    page = f"/actions/{action.pk}"
    assert "Stop: leave what has not begun" in text(responder.get(page))
    stopped = text(responder.post(f"{page}/stop", follow=True))
    assert "Stopped" in stopped
    assert set(action.revocations.values_list("state", flat=True)) == {RevocationState.STOPPED}
    assert "there is nothing to stop" in text(responder.post(f"{page}/stop", follow=True))
    assert "Try again what is not verified" in stopped
    responder.post(f"{page}/retry")
    assert set(action.revocations.values_list("state", flat=True)) == {RevocationState.REQUESTED}


def test_what_waits_for_another_responder_is_approved_by_another_one_only(
    responder: Client, log_in: Callable[..., Client], policy: Policy
) -> None:
    policy.approval_above = 1
    policy.save()
    plan = factories.plan(factories.lease(), factories.lease())
    assert "another responder has to approve it" in text(responder.get(f"/plans/{plan.pk}"))
    page = responder.post(f"/plans/{plan.pk}", {"reason": "INC-9"})["Location"]
    own = text(responder.get(page))
    assert "Waits for another responder" in own
    assert "You asked for it" in own
    assert "Approve: it begins at once" not in own
    assert "You asked for this yourself" in text(responder.post(f"{page}/approve", follow=True))
    assert not Revocation.objects.exists()
    other = log_in("responder", "viewer")
    assert "revoke of 2 leases , asked for by user-responder" in text(other.get("/actions"))
    assert "Approve: it begins at once" in text(other.get(page))
    approved = text(other.post(f"{page}/approve", follow=True))
    assert "Approved" in approved
    assert "approved by user-responder-viewer" in approved
    assert Revocation.objects.count() == 2


def test_whoever_refuses_says_why(responder: Client) -> None:
    waiting = factories.scene()["waiting"]
    page = f"/actions/{waiting.pk}"
    assert "Write why it is not to be done." in text(responder.post(f"{page}/refuse", {"reason": " "}, follow=True))
    refused = text(responder.post(f"{page}/refuse", {"reason": "too wide"}, follow=True))
    assert "Refused: nothing was done" in refused
    assert "by user-responder: too wide" in refused
    assert "Approve: it begins at once" not in refused


def test_force_is_offered_where_vault_refused_and_nowhere_else(responder: Client) -> None:
    action = confirmed(factories.lease(), factories.lease(), factories.lease())
    verified, failed, gone = action.revocations.order_by("id")
    Revocation.objects.update(state="verified")
    assert "by force" not in text(responder.get(f"/actions/{action.pk}"))
    Revocation.objects.filter(pk__in=[failed.pk, gone.pk]).update(state="failed")
    # the lease is gone, only its user is not: nothing is left to be forced
    Lease.objects.filter(pk=gone.lease_id).update(
        state="ended", ended_at=timezone.now(), end_reason=EndReason.REVOKED_HERE
    )
    page = responder.get(f"/actions/{action.pk}")
    assert "Drop what failed by force…" in text(page)
    assert f'name="scope_value" value="{failed.lease_id}"' in page.content.decode()
    assert "Drop it by force…" in text(responder.get(f"/actions/{action.pk}/leases/{failed.pk}"))
    for row in (verified, gone):
        assert "by force" not in text(responder.get(f"/actions/{action.pk}/leases/{row.pk}"))


# --- receipts ----------------------------------------------------------------------------------------------------


def test_a_receipt_as_text_has_every_step_with_its_time_and_only_one_line_for_each(viewer: Client) -> None:
    scene = factories.scene()
    many = scene["many"]
    response = viewer.get(f"/actions/{many.pk}/receipt.txt")
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    told = response.content.decode()
    for said in (
        f"/actions/{many.pk}",
        "INC-4212",
        "1 verified",
        "1 stopped",
        "1 failed",
        "+0.40 s",
        "permission denied to drop role",
    ):
        assert said in told, said
    assert told.count("Vault's own audit line") == 3


def test_nobody_writes_a_line_of_somebody_elses_receipt(viewer: Client) -> None:
    lease = factories.ended()
    action = factories.action(lease, state="failed", reason="mine\nok  Verified by nobody\r\n\x1b[31m")
    factories.step(action, lease, "Vault answered", outcome="failed", detail="first\n   ok   second")
    lines = viewer.get(f"/actions/{action.pk}/receipt.txt").content.decode().splitlines()
    assert "Reason      mine ok Verified by nobody [31m" in lines
    assert not [line for line in lines if line.strip().startswith("ok   second")]


def test_a_retried_lease_does_not_show_what_failed_before_as_if_it_were_now() -> None:
    lease = factories.lease()
    action = factories.action(lease, ago=30, state="failed")
    factories.step(action, lease, "Vault answered", outcome="failed", detail="refused")
    row = action.revocations.select_related("action", "lease").get()
    steps = list(action.steps.all())
    assert [line.outcome for line in receipts.lines(row, steps, now=timezone.now())][2] == "failed"
    row.state = "requested"
    assert [line.outcome for line in receipts.lines(row, steps, now=timezone.now())][2] == "waiting"


@pytest.mark.parametrize(
    ("state", "steps", "lease_state", "said"),
    [
        ("failed", {"Vault answered": "failed"}, "live", "The lease may still work."),
        ("failed", {"Vault answered": "failed"}, "irrevocable", "Vault has given up on this lease"),
        ("failed", {"lease gone": "ok", "sessions ended": "failed"}, "ended", "its database user or a session is not"),
        (
            "unverified",
            {"lease gone": "ok", "database user gone": "unverified"},
            "ended",
            "nobody has seen that the database user",
        ),
        (
            "unverified",
            {"database user gone": "ok", "sessions ended": "unverified"},
            "ended",
            "nobody has seen that its sessions",
        ),
        ("stopped", {}, "live", "Nothing was done to this lease"),
        ("verified", {}, "ended", ""),
    ],
)
def test_what_is_not_proven_says_what_to_do_next(
    state: str, steps: dict[str, str], lease_state: str, said: str
) -> None:
    fields: dict[str, Any] = {"state": lease_state}
    if lease_state == "ended":
        fields |= {"ended_at": timezone.now(), "end_reason": EndReason.REVOKED_HERE}
    lease = factories.lease(**fields)
    action = factories.action(lease, state=state)
    for name, outcome in steps.items():
        factories.step(action, lease, name, outcome=outcome)
    row = action.revocations.select_related("action", "lease").get()
    move = receipts.next_move(row, now=timezone.now(), steps=list(action.steps.all()))
    assert said in move
    assert bool(move) == bool(said)


def test_nothing_is_called_done_that_was_not_verified() -> None:
    def titled(**states: int) -> str:
        return receipts.headline(states, None, kind="revoke")

    assert titled(verified=3) == "Revoked and verified"
    assert titled(verified=2, unverified=1) == "Revoked, not fully verified"
    assert titled(verified=2, failed=1) == "1 of 3 failed"
    assert titled(failed=1) == "Revocation failed"
    assert titled(verified=2, requested=1) == "Revoking"
    assert titled(verified=2, stopped=1) == "Stopped"


# --- the list of actions -----------------------------------------------------------------------------------------


def test_actions_are_filtered_by_kind_person_and_state(viewer: Client) -> None:
    scene = factories.scene()

    def listed(query: str) -> set[uuid.UUID]:
        body = viewer.get(f"/actions?{query}").content.decode()
        table = body[body.index("<table") :] if "<table" in body else ""
        return {uuid.UUID(pk) for pk in re.findall(r'href="/actions/([0-9a-f-]{36})"', table)}

    assert listed("kind=contain") == {scene["containment"].action.pk}
    assert listed("by=second.operator&kind=revoke") == {scene["failed"].pk, scene["waiting"].pk}
    assert listed("state=waiting+for+approval") == {scene["waiting"].pk}
    assert listed("state=not+verified") == {scene["failed"].pk, scene["unverified"].pk, scene["many"].pk}
    assert listed("state=stopped") == {scene["many"].pk}
    assert "No action fits this filter." in text(viewer.get("/actions?by=nobody"))
    assert "Nothing is listed until the filter is mended" in text(viewer.get("/actions?state=odd"))


# --- containments ------------------------------------------------------------------------------------------------


def test_a_containment_tells_what_it_did_and_what_it_does_not_cover(responder: Client) -> None:
    held = factories.containment(factories.ended(service_account="importer", namespace="finance"))
    page = text(responder.get(f"/containments/{held.pk}"))
    for said in (
        "finance/importer contained",
        "1 identity, read back as disabled",
        "auth/jwt",
        "The pods go on running",
        "Let it in again",
    ):
        assert said in page, said
    assert "finance/ importer" in text(responder.get("/containments"))


def test_a_containment_tells_what_is_not_covered_here(viewer: Client) -> None:
    held = factories.containment(factories.ended())
    now = timezone.now()
    Plan.objects.create(
        kind="contain",
        scope=held.action.scope,
        by="ola",
        at=now,
        expires_at=now,
        action=held.action,
        found={"without": ["At auth/jwt nothing can be disabled."], "by_pod": ["auth/by-pod"], "loose": 3},
    )
    page = text(viewer.get(f"/containments/{held.pk}"))
    for said in (
        "At auth/jwt nothing can be disabled.",
        "auth/by-pod knows pods",
        "3 tokens that its tokens made are orphans",
    ):
        assert said in page, said


@pytest.mark.parametrize(("state", "every"), [("containing", "500ms"), ("contained", "2s"), ("failed", "2s")])
def test_a_containment_is_looked_at_often_only_while_something_is_done(viewer: Client, state: str, every: str) -> None:
    held = factories.containment(factories.ended(), state=state)
    assert f'hx-trigger="every {every}, wake"' in viewer.get(f"/containments/{held.pk}").text


def test_undoing_wants_a_reason_and_is_done_once(responder: Client) -> None:
    held = factories.containment(factories.ended())
    path = f"/containments/{held.pk}"
    assert responder.post(f"{path}/undo", {"reason": ""}).status_code == 422
    assert responder.get(f"{path}/undo")["Location"] == path
    undone = text(responder.post(f"{path}/undo", {"reason": "mended", "ticket": "INC-8"}, follow=True))
    assert "lifting" in undone
    assert Action.objects.filter(kind="undo containment", reason="mended", ticket="INC-8").count() == 1
    assert "it cannot be undone now" in text(responder.post(f"{path}/undo", {"reason": "twice"}, follow=True))
    assert Action.objects.filter(kind="undo containment").count() == 1


def test_who_would_contain_what_is_contained_is_led_there(responder: Client) -> None:
    lease = factories.lease()
    factories.login(lease)
    held = factories.containment(lease)
    response = press(responder, "contain", "service account", lease.account_scope)
    assert response["Location"] == f"/containments/{held.pk}"
    assert "Its service account is shut out." in text(responder.get(f"/leases/{lease.pk}"))
    assert "Contain its service account…" not in text(responder.get(f"/leases/{lease.pk}"))


def test_a_plan_to_contain_shows_what_a_worker_finds_as_soon_as_it_did(responder: Client) -> None:
    lease = factories.lease()
    factories.login(lease)
    path = press(responder, "contain", "service account", lease.account_scope)["Location"]
    page = responder.get(path)
    assert "Contain shop/checkout?" in text(page)
    assert "A worker is asking the vaults" in text(page)
    assert "What this does not cover" in text(page)
    assert responder.get(path, headers=HTMX).status_code == 204
    found = {
        "identities": [
            {
                "vault": "demo",
                "vault_namespace": "",
                "entity_id": "e-1",
                "aliases": [{"mount": "auth/jwt", "name": "x"}],
                "tokens": 3,
            }
        ]
    }
    Plan.objects.update(found=found, found_at=timezone.now())
    part = responder.get(path, headers=HTMX)
    assert b"<html" not in part.content
    assert "auth/jwt as x" in text(part)
    assert "hx-get" not in part.content.decode()


def test_a_finding_leads_to_its_leases_and_its_account(responder: Client) -> None:
    lease, ended = factories.lease(), factories.ended()
    finding = factories.finding(
        service_account="checkout",
        service_account_namespace="shop",
        evidence=[{"text": "it", "lease": lease.pk}, {"text": "gone", "lease": ended.pk}],
    )
    body = responder.get(f"/findings/{finding.pk}").content.decode()
    assert f'name="scope_value" value="{lease.pk}"' in body
    assert body.count('name="scope_value" value="demo/shop/checkout"') == 2


def test_hostile_names_are_shown_and_never_run_where_people_act(responder: Client) -> None:
    lease = factories.lease(pod=HOSTILE, service_account=HOSTILE, namespace=HOSTILE, role=HOSTILE, cluster=HOSTILE)
    factories.login(lease)
    factories.session(lease, application=HOSTILE, address=HOSTILE)
    action = factories.action(lease, by=HOSTILE, reason=HOSTILE, ticket=HOSTILE, state="failed")
    factories.job(action)
    factories.step(action, lease, "Vault answered", outcome="failed", detail=HOSTILE)
    held = factories.containment(factories.ended(service_account=HOSTILE, namespace=HOSTILE, cluster=HOSTILE))
    plan = factories.plan(lease, factories.lease(role=HOSTILE))
    row = action.revocations.get()
    for path in (
        "/leases",
        "/actions",
        f"/actions/{action.pk}",
        f"/actions/{action.pk}/leases/{row.pk}",
        "/containments",
        f"/containments/{held.pk}",
        f"/plans/{plan.pk}",
        f"/plans/new?kind=revoke&scope_kind=role&scope_value={HOSTILE}",
        f"/leases/{lease.pk}",
        f"/leases/{lease.pk}/revoke",
    ):
        response = responder.get(path)
        assert response.status_code == 200, path
        body = response.content.decode()
        assert HOSTILE not in body, path
        assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:", body), path


def test_the_version_of_a_containment_moves_with_its_identities() -> None:
    held = factories.containment(factories.ended())
    before = queries.containment_version(held)
    assert queries.containment_version(held) == before
    held.entities.update(restored_at=timezone.now())
    assert queries.containment_version(held) != before


def test_a_plan_of_thousands_asks_for_them_as_one_array() -> None:
    """One by one they take the parser longer than the answer takes."""
    keys = [factories.lease().pk, *range(10**9, 10**9 + 5000)]
    with CaptureQueriesContext(connection) as captured:
        shown = preview(keys, now=timezone.now())
        assert revoke.divide(keys)[0] == list(Lease.objects.all())
    assert (shown.states, len(shown.rows)) == ({"live": 1}, 1)
    assert not any("1000000000, 1000000001" in row["sql"] for row in captured)


def test_a_job_of_thousands_is_shown_quickly_and_its_unchanged_part_costs_little(viewer: Client) -> None:
    first = factories.lease()
    names = [f"database/creds/my-role/{n:05}" for n in range(5000)]
    Lease.objects.bulk_create(
        [
            Lease(
                vault=first.vault,
                lease_id=name,
                mount="database",
                role="my-role",
                first_seen_at=first.first_seen_at,
                updated_at=first.updated_at,
            )
            for name in names
        ]
    )
    rows = list(Lease.objects.exclude(pk=first.pk))
    action = confirmed(*rows)
    ActionStep.objects.bulk_create(
        [
            ActionStep(action=action, lease_id=row.lease_id, name=name, outcome="ok", at=timezone.now())
            for row in rows
            for name in ("Vault answered", "lease gone", "database user gone")
        ]
    )
    action.revocations.filter(pk__lt=action.revocations.order_by("pk")[4000].pk).update(state="verified")

    def seconds(path: str, **headers: str) -> float:
        took = []
        for _ in range(7):
            began = time.perf_counter()
            viewer.get(path, headers=headers)
            took.append(time.perf_counter() - began)
        return min(took)

    page = f"/actions/{action.pk}"
    shown = viewer.get(page)
    assert "4,000 of 5,000 decided" in text(shown)
    with CaptureQueriesContext(connection) as captured:
        assert viewer.get(poll_of(shown), headers=HTMX).status_code == 204
    assert len(captured) <= 10
    figures = {"page": seconds(page), "unchanged": seconds(poll_of(shown), **HTMX), "list": seconds("/actions")}
    # the best of seven, on a machine that tests keep busy
    assert max(figures.values()) < 1.0, figures
