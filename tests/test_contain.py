"""Containing on a real OpenBao: nobody logs in any more, nothing lives on, and undoing brings back just that."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from audit import comebacks
from audit.findings import contained
from audit.findings import watch as findings
from audit.models import Finding, FindingKind, Severity
from leases import contain, ending, jobs, revoke
from leases.models import (
    Action,
    ActionKind,
    ActionStep,
    AuthMount,
    ContainedEntity,
    Containment,
    Job,
    Lease,
    LeaseState,
    Login,
    Plan,
    Policy,
    Vault,
)
from leases.models.actions import ContainmentStage, ContainmentState, JobState, Outcome, RevocationState
from tests import factories, workers
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db

POLICY = Path(__file__).resolve().parent.parent / "deploy" / "vault" / "leasehold-respond.hcl"


@pytest.fixture
def shop(configured: World) -> Iterator[World]:
    """The world; whatever a test disabled is enabled again at its end, since OpenBao is shared."""
    yield configured
    listed: Any = configured.admin.list("identity/entity/id")
    for entity in listed["data"]["keys"]:
        enable(configured, entity)


def enable(world: World, entity: str, *, disabled: bool = False) -> None:
    world.admin.write_data(f"identity/entity/id/{entity}", data={"disabled": disabled})


def is_disabled(world: World, entity: str) -> bool:
    read: Any = world.admin.read(f"identity/entity/id/{entity}")
    return bool(read["data"]["disabled"])


def entity_of(pod: TestPod) -> str:
    looked_up: Any = pod.world.admin.auth.token.lookup(pod.token)
    return str(looked_up["data"]["entity_id"])


def plan(name: str = "storefront", *, namespace: str = "shop", by: str = "ola", look: bool = True) -> Plan:
    made = contain.plan(cluster="demo", namespace=namespace, service_account=name, by=by, now=timezone.now())
    if look:
        contain.look_at_identities(made.pk, now=timezone.now())
        made.refresh_from_db()
    return made


def press(planned: Plan, *, by: str = "ola") -> Containment:
    return contain.confirm(planned, by=by, reason="its token was seen elsewhere", now=timezone.now()).containment


def work(containment: Containment, *, seconds: float = 30) -> Containment:
    """What the `actions` workers do, until nothing is left to do by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        contain.carry_out(containment.pk)
        for job in Job.objects.filter(state=JobState.RUNNING):
            jobs.work_on(job.pk)
        # nobody waits here for what is to be tried again soon, but for what the ledger is given time to learn
        time.sleep(0.05)
        Containment.objects.filter(pk=containment.pk).update(claimed_until=None)
        containment.refresh_from_db()
        if containment.state not in {ContainmentState.CONTAINING, ContainmentState.LIFTING}:
            return containment
        # it waits for reads that were under way when the identity was disabled
        time.sleep(0.1)
    raise AssertionError(f"still {containment.state}, at {containment.stage}: {said(containment.action)}")


def said(action: Action) -> list[tuple[str, str, str]]:
    return list(
        ActionStep.objects.filter(action=action, lease_id="").order_by("id").values_list("name", "outcome", "detail")
    )


def undo(containment: Containment, *, by: str = "per") -> Containment:
    contain.undo(containment, by=by, reason="the token was replaced", now=timezone.now())
    return work(containment)


def test_a_plan_shows_as_whom_the_account_logs_in_and_where_nothing_can_be_disabled(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    waiting = contain.preview(plan(look=False))
    assert waiting.looked_at is None
    assert not waiting.identities

    shown = contain.preview(plan())
    assert shown.looked_at is not None
    assert not shown.problems
    (identity,) = shown.identities
    assert identity.entity_id == entity_of(pod)
    assert not identity.disabled
    assert not identity.shared_with
    assert [alias.mount for alias in identity.aliases] == ["auth/kubernetes"]
    assert identity.aliases[0].registered
    assert shown.leases == 1
    assert shown.tokens == 1
    assert [sentence for sentence in shown.without if "At auth/jwt" in sentence]
    assert len(shown.not_covered) >= 4


def test_an_identity_is_found_that_no_line_of_the_log_told_of(shop: World) -> None:
    pod = shop.pod("invoicing")
    pod.log_in()
    assert not Login.objects.filter(service_account="invoicing").exists()
    (identity,) = contain.preview(plan("invoicing", namespace="finance")).identities
    assert identity.entity_id == entity_of(pod)
    assert identity.aliases[0].name == "system:serviceaccount:finance:invoicing"


def test_a_contained_account_is_out_until_it_is_undone(shop: World) -> None:
    pod, other = shop.pod("storefront"), shop.pod("invoicing")
    workers.issue(other)
    lease_id = workers.issue(pod)
    entity = entity_of(pod)
    containment = press(plan())
    # nothing is ended before its identity is disabled
    assert not containment.action.revocations.exists()
    work(containment)

    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert is_disabled(shop, entity)
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.ENDED
    with pytest.raises(hvac.exceptions.InvalidRequest):
        shop.admin.sys.read_lease(lease_id)
    for attempt in (pod.read_credentials, pod.log_in):
        with pytest.raises(AssertionError, match="403"):
            attempt()
    with pytest.raises(hvac.exceptions.Forbidden):
        shop.admin.auth.token.lookup(pod.token)
    # nobody else is touched
    other.read_credentials()
    row = containment.entities.get()
    assert row.disabled_at
    assert not row.was_disabled
    assert row.aliases[0]["mount"] == "auth/kubernetes"

    undo(containment)
    assert containment.state == ContainmentState.LIFTED
    assert containment.lifted_at
    assert containment.undo
    assert containment.undo.kind == ActionKind.UNDO
    assert containment.undo.by == "per"
    assert not is_disabled(shop, entity)
    pod.token = ""
    pod.log_in()
    pod.read_credentials()


def test_what_was_disabled_before_stays_disabled_when_it_is_undone(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    entity = entity_of(pod)
    enable(shop, entity, disabled=True)
    containment = work(press(plan()))
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert containment.entities.get().was_disabled
    undo(containment)
    assert containment.state == ContainmentState.LIFTED
    assert is_disabled(shop, entity)


def test_the_second_of_two_who_press_is_told_who_was_first(shop: World) -> None:
    workers.issue(shop.pod("storefront"))
    mine, yours = plan(by="ola"), plan(by="per")
    first = press(mine)
    with pytest.raises(contain.AlreadyContained) as caught:
        press(yours, by="per")
    assert caught.value.containment == first
    assert "ola has contained" in str(caught.value)
    with pytest.raises(contain.PlanUsed):
        press(mine)
    with pytest.raises(contain.AlreadyContained):
        plan()
    assert Containment.objects.count() == 1
    assert Action.objects.count() == 1


def test_leases_read_after_the_plan_are_ended_too(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    planned = plan()
    later = pod.read_credentials()["lease_id"]
    workers.read_streams()
    containment = work(press(planned))
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert Lease.objects.get(lease_id=later).state == LeaseState.ENDED
    assert later in next(detail for name, _, detail in said(containment.action) if name == contain.LEASES_ADDED)
    assert containment.action.revocations.count() == 2


def test_a_lost_worker_is_resumed_and_nothing_is_said_twice(shop: World) -> None:
    workers.issue(pod := shop.pod("storefront"))
    entity = entity_of(pod)
    containment = press(plan())
    held = contain.claim(containment.pk, now=timezone.now())
    assert held is not None
    # disabled, then lost before the next part
    contain._disable(held)
    assert is_disabled(shop, entity)
    Containment.objects.filter(pk=containment.pk).update(stage=ContainmentStage.IDENTITIES)
    assert contain.claim(containment.pk, now=timezone.now()) is None
    assert contain.stuck(now=timezone.now()) == []
    assert contain.stuck(now=timezone.now() + contain.CLAIM + timedelta(seconds=5)) == [containment.pk]
    Containment.objects.filter(pk=containment.pk).update(claimed_until=timezone.now())
    work(containment)
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    # who disabled it is not forgotten: it was us
    assert not containment.entities.get().was_disabled
    undo(containment)
    assert not is_disabled(shop, entity)


def test_leaseholds_own_account_is_not_contained(shop: World) -> None:
    vault = Vault.objects.get()
    Login.objects.create(
        vault=vault,
        request_id="own",
        logged_in_at=timezone.now(),
        mount_path="kubernetes",
        auth_mount=vault.auth_mounts.get(path="kubernetes"),
        service_account_namespace="leasehold",
        service_account="leasehold-actions",
        own=True,
    )
    with pytest.raises(contain.CannotContain, match="Leasehold's own"):
        plan("leasehold-actions", namespace="leasehold")


def test_an_own_identity_is_left_alone_even_where_the_ledger_does_not_know_it(shop: World) -> None:
    workers.catch_up()
    containment = work(press(plan("leasehold-actions", namespace="leasehold")))
    assert containment.state == ContainmentState.FAILED
    assert not ContainedEntity.objects.exists()
    assert any("Leasehold's own" in detail for _, _, detail in said(containment.action))


def test_an_account_of_a_cluster_without_auth_mounts_is_not_contained(shop: World) -> None:
    with pytest.raises(contain.CannotContain, match="No auth mount"):
        contain.plan(cluster="elsewhere", namespace="a", service_account="b", by="ola", now=timezone.now())


def test_an_account_that_nobody_knows_is_not_called_contained(shop: World) -> None:
    containment = work(press(plan("nobody")))
    assert containment.state == ContainmentState.FAILED
    assert any("nothing was disabled" in detail for _, _, detail in said(containment.action))
    undo(containment)
    assert containment.state == ContainmentState.LIFTED


def test_a_shared_identity_is_disabled_only_where_the_plan_showed_whom_it_hits(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    hidden = plan(look=False)
    login = Login.objects.get(service_account="storefront")
    Login.objects.create(
        vault=login.vault,
        request_id="other",
        logged_in_at=login.logged_in_at,
        mount_path="kubernetes",
        auth_mount=login.auth_mount,
        entity_id=login.entity_id,
        service_account_namespace="shop",
        service_account="cart",
    )
    containment = work(press(hidden))
    assert containment.state == ContainmentState.FAILED
    assert not is_disabled(shop, login.entity_id)
    assert any("shop/cart" in detail for _, _, detail in said(containment.action))
    undo(containment)

    shown = plan()
    assert any("shop/cart" in warning for warning in contain.preview(shown).warnings)
    work(press(shown))
    assert is_disabled(shop, login.entity_id)


def test_a_missing_rule_is_named_and_containing_again_goes_on_with_it(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    whole = POLICY.read_text()
    shop.admin.sys.create_or_update_policy(
        "leasehold-respond", whole.replace('path "auth/token/revoke-accessor"', 'path "auth/token/elsewhere"')
    )
    try:
        containment = work(press(plan()))
    finally:
        shop.admin.sys.create_or_update_policy("leasehold-respond", whole)
    assert containment.state == ContainmentState.FAILED
    (why,) = [detail for name, outcome, detail in said(containment.action) if outcome == Outcome.FAILED]
    assert 'path "auth/token/revoke-accessor"' in why
    assert is_disabled(shop, entity_of_login())
    contain.again(containment, by="per", now=timezone.now())
    work(containment)
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    with pytest.raises(contain.NotNow):
        contain.undo(
            Containment(pk=containment.pk, state="lifted", action=containment.action),
            by="a",
            reason="b",
            now=timezone.now(),
        )


def entity_of_login() -> str:
    return Login.objects.filter(service_account="storefront").latest("id").entity_id


def test_nothing_is_done_before_somebody_else_has_approved(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    pod.read_credentials()
    workers.read_streams()
    Policy.objects.update_or_create(pk=1, defaults={"approval_above": 1})
    containment = press(plan())
    job = containment.action.job
    assert job.state == JobState.WAITING
    assert contain.carry_out(containment.pk) is None
    assert contain.stuck(now=timezone.now() + timedelta(hours=1)) == []
    assert not is_disabled(shop, entity_of(pod))
    with pytest.raises(jobs.NotNow):
        jobs.approve(job, by="ola", now=timezone.now())
    jobs.approve(job, by="per", now=timezone.now())
    assert not containment.action.revocations.exists()
    work(containment)
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert containment.action.revocations.count() == 2


def test_a_refused_containment_leaves_everything_and_another_one_can_be_asked_for(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    pod.read_credentials()
    workers.read_streams()
    Policy.objects.update_or_create(pk=1, defaults={"approval_above": 1})
    containment = press(plan())
    jobs.refuse(containment.action.job, by="per", reason="not now", now=timezone.now())
    work(containment)
    assert containment.state == ContainmentState.REFUSED
    assert not is_disabled(shop, entity_of(pod))
    assert press(plan()).state == ContainmentState.CONTAINING


def test_a_vault_that_does_not_answer_is_asked_until_it_does(shop: World) -> None:
    workers.issue(shop.pod("storefront"))
    containment = press(plan())
    vault = Vault.objects.get()
    Vault.objects.update(address="http://127.0.0.1:9", active_address="")
    assert contain.carry_out(containment.pk) == contain.WAIT_SECONDS
    assert contain.carry_out(containment.pk) is None
    containment.refresh_from_db()
    assert containment.state == ContainmentState.CONTAINING
    assert containment.stage == ContainmentStage.IDENTITIES
    assert "tried again" in said(containment.action)[-1][2]
    Vault.objects.update(address=vault.address)
    Containment.objects.update(claimed_until=None)
    assert work(containment).state == ContainmentState.CONTAINED


def test_a_vault_that_stays_away_holds_up_nothing_in_the_others_for_long(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_id = workers.issue(shop.pod("storefront"))
    here = Vault.objects.get()
    away = Vault.objects.create(
        name="a", address="http://127.0.0.1:9", observe=here.observe, respond=here.respond, revocations_per_second=20
    )
    AuthMount.objects.create(vault=away, cluster=AuthMount.objects.filter(vault=here)[0].cluster, path="kubernetes")
    containment = press(plan())
    assert contain.carry_out(containment.pk) == contain.WAIT_SECONDS
    Containment.objects.update(claimed_until=None)
    assert contain.carry_out(containment.pk) == contain.WAIT_SECONDS
    monkeypatch.setattr(contain, "PATIENCE", timedelta(0))
    Containment.objects.update(claimed_until=None)
    assert work(containment).state == ContainmentState.FAILED
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.ENDED
    assert any(
        "Nothing is disabled there" in detail for _, outcome, detail in said(containment.action) if outcome == "failed"
    )
    assert undo(containment).state == ContainmentState.LIFTED


def test_somebody_who_stops_it_finds_the_identities_disabled_and_the_rest_as_it_was(shop: World) -> None:
    pod = shop.pod("storefront")
    lease_id = workers.issue(pod)
    containment = press(plan())
    held = contain.claim(containment.pk, now=timezone.now())
    assert held is not None
    contain._disable(held)
    contain._end_leases(held)
    jobs.stop(Job.objects.get(action=containment.action), by="per", now=timezone.now())
    Containment.objects.update(claimed_until=None)
    work(containment)
    assert containment.state == ContainmentState.FAILED
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.LIVE
    assert any("per stopped it" in detail for _, _, detail in said(containment.action))
    contain.again(containment, by="per", now=timezone.now())
    assert work(containment).state == ContainmentState.CONTAINED, said(containment.action)
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.ENDED


@pytest.mark.parametrize("what", ["user", "session"])
def test_an_account_whose_database_user_or_session_lives_on_is_not_called_contained(shop: World, what: str) -> None:
    lease_id = workers.issue(shop.pod("storefront"))
    containment = work(press(plan()))
    assert containment.state == ContainmentState.CONTAINED
    if what == "user":
        containment.action.revocations.update(state=RevocationState.FAILED)
    else:
        revoke.note(
            containment.action.revocations.get(),
            ending.SESSIONS_ENDED,
            Outcome.FAILED,
            "1 session still lives",
            now=timezone.now(),
        )
    Containment.objects.update(state=ContainmentState.CONTAINING, stage=ContainmentStage.CHECK)
    assert work(containment).state == ContainmentState.FAILED
    name, outcome, detail = said(containment.action)[-1]
    assert (name, outcome) == (contain.NO_LEASE_LIVE, "failed")
    assert lease_id in detail
    assert "lives on" in detail


def test_what_was_stopped_before_it_had_anything_to_end_can_be_contained_again(shop: World) -> None:
    lease_id = workers.issue(shop.pod("storefront"))
    containment = press(plan())
    jobs.stop(Job.objects.get(action=containment.action), by="per", now=timezone.now())
    assert work(containment).state == ContainmentState.FAILED
    contain.again(containment, by="per", now=timezone.now())
    assert work(containment).state == ContainmentState.CONTAINED, said(containment.action)
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.ENDED


def test_leases_that_somebody_else_is_ending_are_left_to_them_and_waited_for(shop: World) -> None:
    pod = shop.pod("storefront")
    lease_id = workers.issue(pod)
    theirs = revoke.request(leases=[Lease.objects.get(lease_id=lease_id)], by="per", reason="mine", now=timezone.now())
    containment = work(press(plan()))
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert not containment.action.revocations.exists()
    assert theirs.revocations.get().state != "requested"


def test_orphans_that_its_tokens_made_are_told_of_before(shop: World) -> None:
    shop.let_make_tokens("storefront", role="shop-maker")
    pod = shop.pod("storefront")
    pod.log_in("shop-maker")
    pod.make_token("auth/token/create-orphan", ttl="10m")
    workers.read_streams()
    shown = contain.preview(plan())
    assert any("orphan" in sentence for sentence in shown.not_covered)


def another_with(entity: str, first: Containment) -> Containment:
    """Of another account, which logs in as the same identity; that was disabled already."""
    other = Containment.objects.create(
        action=Action.objects.create(kind="contain", by="per", reason="x", at=timezone.now(), scope=first.action.scope),
        cluster="demo",
        namespace="shop",
        service_account="cart",
        state=ContainmentState.CONTAINED,
        at=timezone.now(),
        updated_at=timezone.now(),
    )
    Job.objects.create(action=other.action, state=JobState.DONE, updated_at=timezone.now())
    ContainedEntity.objects.create(
        containment=other,
        vault=first.entities.get().vault,
        entity_id=entity,
        was_disabled=True,
        disabled_at=timezone.now(),
    )
    return other


def test_two_containments_of_one_identity_are_undone_by_the_last(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    entity = entity_of(pod)
    first = work(press(plan()))
    other = another_with(entity, first)
    undo(first)
    assert is_disabled(shop, entity)
    undo(other)
    assert not is_disabled(shop, entity)


def test_of_two_that_are_undone_at_once_neither_leaves_the_identity_to_the_other(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.issue(pod)
    entity = entity_of(pod)
    first = work(press(plan()))
    both = (first, another_with(entity, first))
    for one in both:
        contain.undo(one, by="per", reason="the token was replaced", now=timezone.now())
    # two workers, each of which has read before the other is done
    rows = [one.entities.get() for one in both]
    for one, row in zip(both, rows, strict=True):
        assert contain._enable_one(one, row)
    assert not is_disabled(shop, entity)


def test_the_log_tells_who_tries_to_come_back(shop: World) -> None:
    pod = shop.pod("storefront")
    workers.catch_up()
    workers.issue(pod)
    containment = work(press(plan()))
    for attempt in (pod.read_credentials, replace(pod, token="").log_in):
        with pytest.raises(AssertionError, match="403"):
            attempt()
    workers.read_streams()
    told = comebacks.attempts(containment, now=timezone.now())
    assert (told.denied_requests, told.denied_logins) == (1, 1)
    assert {one.address for one in told.denied} == {pod.address}
    assert not told.successes
    assert not list(contained.back(now=timezone.now()))


def test_whoever_gets_through_in_spite_of_containment_is_a_high_finding(shop: World) -> None:
    shop.let_make_tokens("storefront", role="shop-maker")
    pod = shop.pod("storefront")
    workers.catch_up()
    pod.log_in("shop-maker")
    orphan = pod.make_token("auth/token/create-orphan", ttl="10m")
    orphan.read_credentials()
    workers.read_streams()
    containment = work(press(plan()))
    assert not Lease.objects.exclude(state=LeaseState.ENDED).exists()
    # not within the clock skew of what was disabled
    Policy.objects.update_or_create(pk=1, defaults={"clock_skew_seconds": 0.1})
    time.sleep(0.3)
    lease_id = orphan.read_credentials()["lease_id"]
    workers.read_streams()
    workers.catch_up()
    containment.refresh_from_db()
    (success,) = comebacks.attempts(containment, now=timezone.now()).successes
    assert lease_id in success.what
    assert success.address == pod.address
    findings.look(now=timezone.now())
    finding = Finding.objects.get(kind=FindingKind.BACK)
    assert finding.severity == Severity.HIGH
    assert finding.service_account == "storefront"

    # the lease goes, and it is told that more will come
    contain.again(containment, by="per", now=timezone.now())
    work(containment)
    assert Lease.objects.get(lease_id=lease_id).state == LeaseState.ENDED
    undo(containment)
    findings.look(now=timezone.now())
    finding.refresh_from_db()
    assert not finding.open


def test_far_back_only_so_many_events_are_looked_through_and_it_says_since_when(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = shop.pod("storefront")
    workers.catch_up()
    workers.issue(pod)
    containment = work(press(plan()))
    for _ in range(4):
        with pytest.raises(AssertionError, match="403"):
            replace(pod, token="").log_in()
    workers.read_streams()
    every = comebacks.attempts(containment, now=timezone.now())
    assert every.denied_logins == 4
    monkeypatch.setattr(comebacks, "MOST_READ", 2)
    some = comebacks.attempts(containment, now=timezone.now())
    assert some.denied_logins == 2
    assert some.nameless_since
    assert every.nameless_since
    assert some.nameless_since > every.nameless_since


def test_the_database_keeps_one_open_containment_of_an_account() -> None:
    def make(state: ContainmentState) -> Containment:
        action = Action.objects.create(kind=ActionKind.CONTAIN, by="ola", reason="x", at=timezone.now())
        times = {name: timezone.now() for name in ("at", "updated_at")}
        return Containment.objects.create(
            action=action, cluster="demo", namespace="shop", service_account="a", state=state, **times
        )

    make(ContainmentState.REFUSED)
    make(ContainmentState.FAILED)
    with pytest.raises(IntegrityError, match="one_containment_of_a_service_account"), transaction.atomic():
        make(ContainmentState.CONTAINING)
    with pytest.raises(IntegrityError, match="what_is_lifted_was_undone_by_somebody"), transaction.atomic():
        make(ContainmentState.LIFTED)


@pytest.mark.django_db(transaction=True)
def test_of_two_who_press_at_the_same_moment_one_is_told() -> None:
    AuthMount.objects.create(vault=factories.vault(), cluster=factories.cluster(), path="kubernetes")
    plans = [plan(by=by, look=False) for by in ("ola", "per")]
    ready, outcomes = threading.Barrier(2), []

    def confirm(planned: Plan) -> None:
        ready.wait()
        try:
            press(planned, by=planned.by)
            outcomes.append("contained")
        except contain.AlreadyContained as told:
            outcomes.append(f"told: {told.containment.action.by}")
        finally:
            connection.close()

    threads = [threading.Thread(target=confirm, args=(planned,)) for planned in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = Containment.objects.all()
    assert sorted(outcomes) == ["contained", f"told: {made.action.by}"]
    assert Action.objects.count() == 1
