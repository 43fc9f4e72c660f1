"""Plans, and jobs that end many leases: on real OpenBao and PostgreSQL; the verbs are called in turn, so that each test decides when."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from demo.workloads import STUCK_ROLE
from leases import jobs, lookups, pace, plans, queries, revoke
from leases.models import Action, ActionKind, EndReason, Job, Lease, LeaseState, Pace, Plan, Policy, Revocation, Vault
from leases.models.actions import JOB_TRANSITIONS, TRANSITIONS, JobState, RevocationState
from tests import factories
from tests.workers import read_streams
from tests.world import World

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parent.parent
SCOPE = {"kind": "service account", "value": "demo/shop/storefront"}


def planned(*leases: Lease, kind: ActionKind = ActionKind.REVOKE, by: str = "ada") -> Plan:
    return plans.plan(kind=kind, scope=SCOPE, leases=[row.pk for row in leases], by=by, now=timezone.now())


def confirmed(*leases: Lease, kind: ActionKind = ActionKind.REVOKE, by: str = "ada") -> Job:
    action = revoke.confirm(
        planned(*leases, kind=kind, by=by), by=by, reason="drill", ticket="INC-1", now=timezone.now()
    )
    return action.job


def states(job: Job) -> list[str]:
    return list(job.action.revocations.order_by("id").values_list("state", flat=True))


def said(job: Job) -> dict[str, str]:
    """What the action says as a whole, by step."""
    return dict(job.action.steps.filter(lease_id="").order_by("id").values_list("name", "detail"))


def issued(world: World, count: int, *, service_account: str = "storefront") -> list[Lease]:
    """Live leases of one pod."""
    pod = world.pod(service_account)
    pod.log_in()
    names = [pod.read_credentials()["lease_id"] for _ in range(count)]
    read_streams()
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    return list(Lease.objects.filter(lease_id__in=names).order_by("id"))


def stuck_lease(world: World) -> Lease:
    """One whose user Vault cannot drop."""
    lease_id = world.admin.read(f"database/creds/{STUCK_ROLE}")["lease_id"]
    read_streams()
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    return Lease.objects.get(lease_id=lease_id)


def told(world: World, lease: Lease) -> int:
    """How often Vault was told to revoke it, as its own log says."""
    log = Path(world.openbao.audit_logs["file-a"]).read_text()
    return sum(
        1
        for line in log.splitlines()
        if f'"path":"sys/leases/revoke/{lease.lease_id}"' in line and '"type":"request"' in line
    )


# --- plans


def test_a_plan_freezes_the_leases_that_live_and_lasts_a_quarter_of_an_hour() -> None:
    live, ended = factories.lease(), factories.ended()
    plan = planned(live, ended)
    assert plan.leases == [live.pk]
    assert plan.expires_at - plan.at == timedelta(minutes=15)
    factories.lease()
    assert plans.leases_of(plan) == [live]


def test_where_everything_has_ended_there_is_no_plan() -> None:
    with pytest.raises(plans.NothingToRevoke, match="has ended"):
        planned(factories.ended())


def test_an_account_that_holds_nothing_can_still_be_contained() -> None:
    assert planned(kind=ActionKind.CONTAIN).leases == []


def test_a_plan_that_is_too_old_is_not_confirmed() -> None:
    plan = planned(factories.lease())
    with pytest.raises(plans.PlanExpired, match="Plan again"):
        revoke.confirm(plan, by="ada", reason="drill", now=plan.expires_at)
    assert not Action.objects.exists()


def test_a_plan_is_confirmed_once_and_the_second_presser_is_told_what_it_became() -> None:
    plan = planned(factories.lease())
    first = revoke.confirm(plan, by="ada", reason="drill", ticket="INC-1", now=timezone.now())
    assert (first.scope, first.ticket, first.plan) == (SCOPE, "INC-1", plan)
    with pytest.raises(plans.PlanUsed) as used:
        revoke.confirm(plan, by="bob", reason="me too", now=timezone.now())
    assert used.value.action == first


def test_what_ended_between_plan_and_confirmation_is_no_target() -> None:
    first, second = factories.lease(), factories.lease()
    plan = planned(first, second)
    lookups.end(first, at=timezone.now(), reason=EndReason.EXPIRED, evidence="its time had come", now=timezone.now())
    action = revoke.confirm(plan, by="ada", reason="drill", now=timezone.now())
    assert action.targets == [{"vault": "demo", "lease_id": second.lease_id}]
    plan = planned(factories.lease())
    Lease.objects.filter(pk__in=plan.leases).update(
        state="ended", ended_at=timezone.now(), end_reason="expired (inferred)"
    )
    with pytest.raises(revoke.NothingToRevoke):
        revoke.confirm(plan, by="ada", reason="drill", now=timezone.now())


# --- two people at once


def test_of_a_wide_plan_what_somebody_else_is_ending_is_left_to_them_and_said() -> None:
    first, second, third = factories.lease(), factories.lease(), factories.lease()
    plan = planned(first, second, third, by="bob")
    theirs = confirmed(second)
    job = revoke.confirm(plan, by="bob", reason="all of it", now=timezone.now()).job
    assert [row.lease for row in job.action.revocations.order_by("id")] == [first, third]
    assert [target["lease_id"] for target in job.action.targets] == [first.lease_id, third.lease_id]
    assert "1 of these leases is left to ada" in said(job)["left to others"]
    assert str(theirs.action_id) in said(job)["left to others"]
    assert second.lease_id in said(job)["left to others"]


def test_where_others_are_ending_all_of_it_the_second_one_is_told_so() -> None:
    rows = [factories.lease(), factories.lease()]
    plan, theirs = planned(*rows, by="bob"), confirmed(*rows)
    with pytest.raises(revoke.AlreadyRequested) as other:
        revoke.confirm(plan, by="bob", reason="me too", now=timezone.now())
    assert other.value.action == theirs.action


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_people_who_press_at_once_end_in_one_revocation_of_each_lease() -> None:
    rows = [factories.lease() for _ in range(40)]
    # each wants a part of it that overlaps with the others'
    everybody = [planned(*rows[start : start + 25], by=f"person {start}") for start in (0, 5, 10, 15)]
    at_once = threading.Barrier(len(everybody))
    outcomes: list[Action | revoke.AlreadyRequested] = []

    def press(plan: Plan) -> None:
        try:
            at_once.wait()
            outcomes.append(revoke.confirm(plan, by=plan.by, reason="drill", now=timezone.now()))
        except revoke.AlreadyRequested as other:
            outcomes.append(other)
        finally:
            connection.close()

    _run([partial(press, plan) for plan in everybody])
    assert len(outcomes) == 4
    assert Revocation.objects.count() == 40
    assert Revocation.objects.values("lease").distinct().count() == 40


def _run(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_one_plan_that_two_confirm_at_once_becomes_one_action() -> None:
    plan = planned(factories.lease(), factories.lease())
    at_once, used = threading.Barrier(2), []

    def press(by: str) -> None:
        try:
            at_once.wait()
            revoke.confirm(plan, by=by, reason="drill", now=timezone.now())
        except plans.PlanUsed as told:
            used.append(told.action)
        finally:
            connection.close()

    _run([lambda: press("ada"), lambda: press("bob")])
    assert used == [Action.objects.get()]
    assert Revocation.objects.count() == 2


def test_the_database_itself_refuses_a_second_open_revocation_of_a_lease() -> None:
    lease = factories.lease()
    job = confirmed(lease)
    with pytest.raises(IntegrityError, match="one_open_revocation_per_lease"), transaction.atomic():
        Revocation.objects.create(
            action=job.action, lease=lease, requested_at=timezone.now(), updated_at=timezone.now()
        )


# --- approval


@pytest.fixture
def approval_above_one(db: None) -> None:
    Policy.objects.update_or_create(pk=1, defaults={"approval_above": 1})


@pytest.mark.usefixtures("approval_above_one")
def test_a_wide_job_touches_nothing_until_another_responder_approves() -> None:
    rows = [factories.lease(), factories.lease()]
    job = confirmed(*rows)
    assert (job.state, job.needs_approval, states(job)) == (JobState.WAITING, True, [])
    assert jobs.progress(job.action).waiting == 2
    assert not jobs.work_on(job.pk)
    assert [row.pk for row in queries.waiting_jobs()] == [job.pk]
    with pytest.raises(jobs.NotNow, match="yourself"):
        jobs.approve(job, by="ada", now=timezone.now())
    assert not Revocation.objects.exists()
    jobs.approve(job, by="bob", now=timezone.now())
    job.refresh_from_db()
    assert (job.state, job.decided_by, states(job)) == (JobState.RUNNING, "bob", ["requested", "requested"])
    assert said(job)["approved"] == "by bob"
    with pytest.raises(jobs.NotNow, match="running"):
        jobs.approve(job, by="carol", now=timezone.now())


@pytest.mark.usefixtures("approval_above_one")
def test_a_job_that_was_refused_never_begins() -> None:
    job = confirmed(factories.lease(), factories.lease())
    jobs.refuse(job, by="bob", reason="wrong account", now=timezone.now())
    job.refresh_from_db()
    assert (job.state, states(job)) == (JobState.REFUSED, [])
    assert said(job)["refused"] == "by bob: wrong account"
    for verb in (jobs.approve, jobs.stop, jobs.retry):
        with pytest.raises(jobs.NotNow, match="refused"):
            verb(job, by="carol", now=timezone.now())
    assert jobs.progress(job.action).stopped == 2


@pytest.mark.usefixtures("approval_above_one")
def test_a_few_leases_need_nobody_elses_word() -> None:
    assert confirmed(factories.lease()).state == JobState.RUNNING


@pytest.mark.usefixtures("approval_above_one")
def test_who_asks_for_the_same_while_it_waits_is_told_so() -> None:
    rows = [factories.lease(), factories.lease()]
    waiting = confirmed(*rows)
    with pytest.raises(revoke.AlreadyRequested) as other:
        confirmed(*rows, by="bob")
    assert other.value.action == waiting.action


@pytest.mark.usefixtures("approval_above_one")
def test_what_ended_or_is_being_ended_before_the_approval_is_no_item() -> None:
    ended, taken, free = factories.lease(), factories.lease(), factories.lease()
    job = confirmed(ended, taken, free)
    lookups.end(ended, at=timezone.now(), reason=EndReason.EXPIRED, evidence="its time had come", now=timezone.now())
    confirmed(taken, by="carol")
    jobs.approve(job, by="bob", now=timezone.now())
    assert [row.lease for row in job.action.revocations.all()] == [free]
    assert "left to carol" in said(job)["left to others"]


def test_the_database_itself_refuses_that_a_job_runs_which_nobody_approved(approval_above_one: None) -> None:
    job = confirmed(factories.lease(), factories.lease())
    with pytest.raises(IntegrityError, match="runs_only_when_somebody_decided"), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(state=JobState.RUNNING)


# --- stopping, retrying, and what states may follow


def test_stopping_leaves_alone_what_has_not_begun_and_retrying_takes_it_up_again() -> None:
    job = confirmed(factories.lease(), factories.lease(), factories.lease())
    begun = revoke.claim(job.action.revocations.order_by("id")[0].pk, now=timezone.now())
    # its worker has it, but has not begun when the stop comes
    about_to = revoke.claim(job.action.revocations.order_by("id")[1].pk, now=timezone.now())
    assert begun is not None
    assert about_to is not None
    assert revoke.begin(begun)
    jobs.stop(job, by="bob", now=timezone.now())
    assert not revoke.begin(about_to)
    assert states(job) == ["revoking", "stopped", "stopped"]
    assert "2 of its leases had not begun" in said(job)["stopped"]
    with pytest.raises(jobs.NotNow, match="stopped"):
        jobs.stop(job, by="bob", now=timezone.now())
    job.refresh_from_db()
    assert jobs.retry(job, by="carol", now=timezone.now()) == 2
    assert states(job) == ["revoking", "requested", "requested"]
    job.refresh_from_db()
    assert (job.state, job.stopped_by) == (JobState.RUNNING, "")


def test_a_lease_that_was_left_alone_and_expires_was_not_revoked_here() -> None:
    lease = factories.lease(left=-30)
    job = confirmed(lease)
    jobs.stop(job, by="ada", now=timezone.now())
    lookups.end_gone(lease, now=timezone.now())
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.EXPIRED


def test_retrying_takes_up_what_failed_and_verifies_again_what_was_unverified_and_nothing_else() -> None:
    rows = [factories.lease() for _ in range(4)]
    job = confirmed(*rows)
    ended_as = ["verified", "unverified", "failed", "stopped"]
    for row, state in zip(job.action.revocations.order_by("id"), ended_as, strict=True):
        Revocation.objects.filter(pk=row.pk).update(state=state)
    Job.objects.update(state=JobState.DONE)
    assert jobs.retry(job, by="bob", now=timezone.now()) == 3
    assert states(job) == ["verified", "verifying", "requested", "requested"]
    assert said(job)["taken up again"] == "by bob: 3 leases"
    Revocation.objects.update(state="verified")
    with pytest.raises(jobs.NotNow, match="Nothing is left"):
        jobs.retry(job, by="bob", now=timezone.now())


def test_what_somebody_else_is_ending_meanwhile_is_not_retried() -> None:
    lease = factories.lease()
    job = confirmed(lease)
    Revocation.objects.update(state="failed")
    confirmed(lease, by="bob")
    with pytest.raises(jobs.NotNow, match="somebody else"):
        jobs.retry(job, by="ada", now=timezone.now())


@pytest.mark.parametrize("before", RevocationState.values)
@pytest.mark.parametrize("after", RevocationState.values)
def test_a_revocation_goes_only_where_the_table_lets_it_and_only_once(before: str, after: str) -> None:
    job = confirmed(factories.lease())
    Revocation.objects.update(state=before)
    first, second = Revocation.objects.get(), Revocation.objects.get()
    if after not in TRANSITIONS[before]:
        with pytest.raises(ValueError, match="does not go"):
            revoke.move(first, RevocationState(after), now=timezone.now())
        assert states(job) == [before]
        return
    assert revoke.move(first, RevocationState(after), now=timezone.now())
    # another worker that had read it before
    assert not revoke.move(second, RevocationState(after), now=timezone.now())
    assert states(job) == [after]


@pytest.mark.parametrize("before", JobState.values)
@pytest.mark.parametrize("after", JobState.values)
def test_a_job_goes_only_where_the_table_lets_it_and_only_once(before: str, after: str) -> None:
    confirmed(factories.lease())
    Job.objects.update(state=before)
    first, second = Job.objects.get(), Job.objects.get()
    allowed = after in JOB_TRANSITIONS[before]
    assert jobs.move(first, JobState(after), now=timezone.now()) == allowed
    assert not jobs.move(second, JobState(after), now=timezone.now())
    assert Job.objects.get().state == (after if allowed else before)


@pytest.mark.parametrize(
    ("heading", "table", "words"),
    [
        ("## A revocation's states", TRANSITIONS, {}),
        ("## A job's states", JOB_TRANSITIONS, {"waiting": "waiting for approval"}),
    ],
)
def test_the_diagrams_of_the_docs_are_the_tables(
    heading: str, table: dict[str, tuple[str, ...]], words: dict[str, str]
) -> None:
    text = (
        (ROOT / "docs" / "architecture.md")
        .read_text()
        .partition(heading)[2]
        .partition("```mermaid")[2]
        .partition("```")[0]
    )
    drawn = re.findall(r"^  (\w+) --> (\w+)", text, re.M)
    assert {(words.get(before, before), words.get(after, after)) for before, after in drawn} == {
        (str(before), str(after)) for before, then in table.items() for after in then
    }


# --- the pace


def test_moments_are_given_out_at_the_vaults_rate_and_none_is_saved_up() -> None:
    vault = factories.vault(revocations_per_second=4)
    waits = [pace.reserve(vault, most=2) for _ in range(4)]
    assert waits == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.1)
    # nobody asked for two seconds: the next four are spaced all the same
    Pace.objects.update(free_at=timezone.now() - timedelta(seconds=2))
    assert [pace.reserve(vault, most=2) for _ in range(3)] == pytest.approx([0, 0.25, 0.5], abs=0.1)


def test_who_would_wait_too_long_takes_no_moment_and_a_vault_that_is_held_gives_none() -> None:
    vault = factories.vault(revocations_per_second=1)
    assert pace.reserve(vault, most=0.5) == pytest.approx(0, abs=0.1)
    assert pace.reserve(vault, most=0.5) is None
    assert pace.reserve(vault, most=2) == pytest.approx(1, abs=0.1)
    pace.hold(vault, seconds=30)
    assert pace.reserve(vault, most=2) is None


# --- on real servers


def test_a_job_ends_every_lease_and_says_of_each_what_is_proven(configured: World) -> None:
    rows = issued(configured, 3)
    others = issued(configured, 1)
    job = confirmed(*rows)
    assert jobs.work_on(job.pk) is False
    job.refresh_from_db()
    # whose users are not known here, since nobody has hashed them
    assert (job.state, states(job)) == (JobState.DONE, ["unverified"] * 3)
    assert set(Lease.objects.filter(pk__in=[row.pk for row in rows]).values_list("state", "end_reason")) == {
        (LeaseState.ENDED, EndReason.REVOKED_HERE)
    }
    assert Lease.objects.get(pk=others[0].pk).state == LeaseState.LIVE
    assert configured.admin.write("sys/leases/lookup", lease_id=others[0].lease_id)["data"]["id"]
    read_streams()
    assert job.action.steps.filter(name="audit line seen").count() == 3
    progress = jobs.progress(job.action)
    assert (progress.total, progress.unverified, progress.finished, progress.seconds_left) == (3, 3, 3, None)


def test_one_that_fails_does_not_stop_the_others_and_can_be_tried_again(configured: World) -> None:
    stuck, rows = stuck_lease(configured), issued(configured, 2)
    job = confirmed(stuck, *rows)
    jobs.work_on(job.pk)
    by_lease = dict(job.action.revocations.values_list("lease_id", "state"))
    assert by_lease == {stuck.pk: "failed", rows[0].pk: "unverified", rows[1].pk: "unverified"}
    detail = job.action.steps.get(lease_id=stuck.lease_id, name="Vault answered").detail
    assert "could not revoke" in detail
    assert "revocation statements" in detail
    stuck.refresh_from_db()
    assert stuck.state == LeaseState.LIVE
    assert jobs.retry(job, by="ada", now=timezone.now()) == 3
    jobs.work_on(job.pk)
    assert sorted(states(job)) == ["failed", "unverified", "unverified"]
    # the two that were gone were only looked at
    assert [told(configured, row) for row in (stuck, *rows)] == [2, 1, 1]


def test_a_lost_worker_is_followed_by_one_that_looks_before_it_tells_vault_again(configured: World) -> None:
    gone, there = issued(configured, 2)
    job = confirmed(gone, there)
    for row in job.action.revocations.order_by("id"):
        claimed = revoke.claim(row.pk, now=timezone.now())
        assert claimed is not None
        assert revoke.begin(claimed)
    # the worker told Vault of the first one and was lost; it was lost before it told of the second
    configured.admin.adapter.put(f"/v1/sys/leases/revoke/{gone.lease_id}", json={"sync": True})
    assert jobs.work_on(job.pk) is False
    assert states(job) == ["revoking", "revoking"]
    late = timezone.now() - timedelta(seconds=3)
    Revocation.objects.update(claimed_until=late)
    Job.objects.update(claimed_until=late)
    assert jobs.due(now=timezone.now()) == [job.pk]
    jobs.work_on(job.pk)
    assert states(job) == ["unverified", "unverified"]
    assert [told(configured, row) for row in (gone, there)] == [1, 1]
    step = job.action.steps.get(lease_id=gone.lease_id, name="Vault answered")
    assert step.outcome == "unverified"
    assert "not told again" in step.detail
    gone.refresh_from_db()
    assert gone.end_reason == EndReason.REVOKED_HERE


def test_two_workers_never_have_the_same_turn(configured: World) -> None:
    from leases.turns import turn

    job = confirmed(*issued(configured, 1))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turn("job lane 0", job.pk):
            entered.set()
            leave.wait(20)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert entered.wait(20)
        assert jobs.work_on(job.pk) is False
        assert states(job) == ["requested"]
    finally:
        leave.set()
        thread.join()
    jobs.work_on(job.pk)
    assert states(job) == ["unverified"]


def test_a_job_waits_for_a_vault_that_does_not_answer_and_goes_on_by_itself(configured: World) -> None:
    rows = issued(configured, 3)
    job = confirmed(*rows)
    Vault.objects.update(active_address="http://127.0.0.1:9")
    began = time.monotonic()
    assert jobs.work_on(job.pk) is False
    # one was tried; the others of that vault wait for the next turn
    assert time.monotonic() - began < 2
    assert states(job) == ["requested"] * 3
    step = job.action.steps.get(name="Vault answered")
    assert (step.name, step.outcome) == ("Vault answered", "unverified")
    assert "tried again" in step.detail
    job.refresh_from_db()
    assert job.state == JobState.RUNNING
    # beat leaves it alone for a while
    assert jobs.due(now=timezone.now()) == []
    assert jobs.due(now=timezone.now() + timedelta(seconds=revoke.WAIT_SECONDS)) == [job.pk]
    # nor is anything else of it asked for a while
    assert pace.reserve(Vault.objects.get(), most=2) is None
    Vault.objects.update(active_address="")
    Revocation.objects.update(claimed_until=None)
    Job.objects.update(claimed_until=None)
    Pace.objects.update(free_at=timezone.now())
    jobs.work_on(job.pk)
    assert states(job) == ["unverified"] * 3


def test_a_single_revocation_takes_the_next_moment_of_a_vault_that_a_job_keeps_busy(configured: World) -> None:
    Vault.objects.update(revocations_per_second=2)
    rows = issued(configured, 7)
    big, single = confirmed(*rows[:6]), confirmed(rows[6], by="bob")
    began = time.monotonic()
    assert jobs.work_on(big.pk) is True
    turn_seconds = time.monotonic() - began
    jobs.work_on(single.pk)
    assert states(single) == ["unverified"]
    assert turn_seconds < jobs.TURN_SECONDS + 1
    assert time.monotonic() - began < jobs.TURN_SECONDS + 2
    assert states(big).count("requested") >= 1


# --- force


@pytest.fixture
def may_force(configured: World) -> Iterator[World]:
    """The commented rule of the delivered policy, written as its comment has it."""
    policy = (ROOT / "deploy" / "vault" / "leasehold-respond.hcl").read_text()
    rule = policy[policy.index('# path "sys/leases/revoke-force') :].split("\n\n")[0]
    with_it = policy.replace(rule, rule.replace("# ", ""))
    assert with_it != policy
    configured.admin.sys.create_or_update_policy("leasehold-respond", with_it)
    yield configured
    configured.admin.sys.create_or_update_policy("leasehold-respond", policy)


def test_only_what_was_refused_or_given_up_is_forced() -> None:
    live, given_up, failed = factories.lease(), factories.lease(state=LeaseState.IRREVOCABLE), factories.lease()
    confirmed(failed)
    Revocation.objects.update(state="failed")
    assert planned(given_up, failed, kind=ActionKind.FORCE).leases == sorted([given_up.pk, failed.pk])
    with pytest.raises(plans.NotForcible, match="without force"):
        planned(live, given_up, kind=ActionKind.FORCE)


def test_without_the_rule_for_it_forcing_fails_and_names_the_rule(configured: World) -> None:
    lease = stuck_lease(configured)
    jobs.work_on(confirmed(lease).pk)
    job = confirmed(lease, kind=ActionKind.FORCE)
    jobs.work_on(job.pk)
    assert states(job) == ["failed"]
    assert 'path "sys/leases/revoke-force/database/*"' in job.action.steps.get(name="Vault answered").detail
    lease.refresh_from_db()
    assert lease.state == LeaseState.LIVE


def test_forcing_ends_that_lease_alone_and_says_that_its_database_user_lives_on(may_force: World) -> None:
    world = may_force
    lease, other = stuck_lease(world), stuck_lease(world)
    user = next(name for name in world.users() if "maintena" in name and name[-10:].isdigit())
    Lease.objects.filter(pk=lease.pk).update(database_user=user, database_user_by="audit hash")
    jobs.work_on(confirmed(lease).pk)
    job = confirmed(lease, kind=ActionKind.FORCE)
    jobs.work_on(job.pk)
    steps = {step.name: (step.outcome, step.detail) for step in job.action.steps.all()}
    assert steps["Vault answered"][0] == "ok"
    assert steps["lease gone"][0] == "ok"
    assert steps["database user gone"][0] == "failed"
    assert "still exists" in steps["database user gone"][1]
    assert "until somebody drops" in steps["database user gone"][1]
    # so never verified, and there to be looked at again once the user is dropped
    assert states(job) == ["unverified"]
    lease.refresh_from_db()
    assert (lease.state, lease.end_reason) == (LeaseState.ENDED, EndReason.FORCED)
    assert world.admin.write("sys/leases/lookup", lease_id=other.lease_id)["data"]["id"] == other.lease_id
    read_streams()
    seen = job.action.steps.get(name="audit line seen")
    assert seen.lease_id == lease.lease_id
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.FORCED
    Lease.objects.filter(pk=lease.pk).update(database_user="v-was-dropped-by-hand")
    assert jobs.retry(job, by="ada", now=timezone.now()) == 1
    jobs.work_on(job.pk)
    assert states(job) == ["verified"]


def test_a_forced_lease_that_a_lookup_finds_gone_first_was_ended_by_force() -> None:
    lease = factories.lease(state=LeaseState.IRREVOCABLE)
    job = confirmed(lease, kind=ActionKind.FORCE)
    claimed = revoke.claim(job.action.revocations.get().pk, now=timezone.now())
    assert claimed is not None
    assert revoke.begin(claimed)
    lookups.end_gone(lease, now=timezone.now())
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.FORCED
