"""Lookups, lists by role, the cost meter, child namespaces and irrevocable leases, on an OpenBao of this suite's own."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from demo import openbao as openbao_server
from demo.postgres import Postgres
from leases import checks, clients, lists, lookups, meter, queries
from leases.models import ApiCost, EndReason, Lease, LeaseState, Revocation, RoleList, SourceState, Vault
from leases.models.sources import SourceKind
from leases.tasks import check_vaults
from leases.vault import LeaseTimes, Sent, VaultDenied, VaultUnreachable
from tests import factories, observed
from tests.observed import Observed

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

CHILD_RULES = """
path "+/sys/leases/lookup" { capabilities = ["update"] }
path "+/sys/leases/lookup/database/*" { capabilities = ["list", "sudo"] }
path "+/sys/leases" { capabilities = ["read", "sudo"] }
"""


@pytest.fixture(scope="module")
def world(run_folder: Path, postgres: Postgres) -> Iterator[Observed]:
    server = openbao_server.start(run_folder / "times")
    made = observed.prepare(server, postgres, run_folder / "times-config")
    yield made
    server.stop()


def look_up(vault: Vault, *, seconds: float = 5) -> int:
    return lookups.look_up_due(vault, now=timezone.now(), seconds=seconds)


# -- lookups


def test_the_newest_lease_is_looked_up_first_and_what_was_looked_up_is_left_alone(world: Observed) -> None:
    vault = world.configure(more="lookups_per_second = 4")
    old = [world.issue("few") for _ in range(4)]
    for lease_id in old:
        lists.take_in(vault, lease_id, now=timezone.now() - timedelta(seconds=9))
    new = world.issue("few")
    lists.take_in(vault, new, now=timezone.now())
    # a batch is half a second's worth
    assert look_up(vault, seconds=0) == 2
    assert Lease.objects.get(lease_id=new).expires_at is not None
    assert Lease.objects.filter(looked_up_at=None).count() == 3
    assert look_up(vault) == 3
    assert look_up(vault) == 0


def test_lookups_keep_to_their_rate(world: Observed) -> None:
    vault = world.configure(more="lookups_per_second = 20")
    for _ in range(12):
        lists.take_in(vault, world.issue("few"), now=timezone.now())
    began = time.monotonic()
    assert look_up(vault) == 12
    assert 0.55 < time.monotonic() - began < 3


def test_a_vault_that_is_gone_in_the_middle_keeps_what_was_learned(world: Observed) -> None:
    vault = world.configure()
    leases = [lists.take_in(vault, world.issue("few"), now=timezone.now()) for _ in range(3)]
    found = [lease for lease in leases if lease is not None]
    times = clients.observer(vault).lookup_lease(found[0].lease_id)
    with pytest.raises(VaultUnreachable):
        lookups.take_answers(vault, found, [times, VaultUnreachable("gone", "wait"), None], now=timezone.now())
    states = [(lease.state, lease.looked_up_at is not None) for lease in Lease.objects.order_by("id")]
    assert states == [("live", True), ("live", False), ("ended", False)]


def test_what_is_denied_for_one_lease_of_a_namespace_is_not_asked_for_the_others(world: Observed) -> None:
    vault = world.configure()
    now = timezone.now()
    here, there, beside = (factories.lease(lease_id=f"database/creds/few/{n}") for n in "abc")
    Lease.objects.filter(pk__in=[there.pk, beside.pk]).update(vault_namespace="team-z/")
    Lease.objects.update(lookup_due_at=now)
    there.refresh_from_db()
    lookups.take_answers(vault, [there], [VaultDenied("denied", "allow")], now=now)
    assert [lease.pk for lease in lookups.due(vault, now=now)] == [here.pk]
    assert [lease.pk for lease in lookups.due(vault, now=now + lookups.DENIED)] == [beside.pk, there.pk, here.pk]


def test_an_expired_lease_that_is_still_there_is_asked_for_ever_more_slowly() -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def wait(over: float, *, error: str | None = None, ttl: int = -1) -> timedelta | None:
        times = LeaseTimes("x", now, now - timedelta(seconds=over), None, True, ttl, error)
        due = lookups.next_lookup(times, now=now)
        return due - now if due else None

    assert wait(-60) == timedelta(seconds=60) + lookups.AFTER_EXPIRY
    assert wait(1) == timedelta(seconds=2)
    assert wait(40) == timedelta(seconds=10)
    assert wait(86_400) == timedelta(minutes=5)
    assert wait(40, error="out of retries") is None


# -- lists


def test_a_list_makes_no_lookup_for_what_is_known_and_one_for_what_is_missing(world: Observed) -> None:
    vault = world.configure()
    kept, gone = world.issue("few"), world.issue("few")
    world.read()
    look_up(vault)
    assert lists.reconcile(vault, now=timezone.now())["missing"] == 0
    assert not Lease.objects.filter(lease_id__in=[kept, gone], lookup_due_at__lte=timezone.now()).exists()
    look_up(vault)
    world.admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": gone, "sync": True})
    assert lists.reconcile(Vault.objects.get(), now=timezone.now())["missing"] == 1
    assert [lease.lease_id for lease in lookups.due(vault, now=timezone.now())] == [gone]
    look_up(vault)
    assert Lease.objects.get(lease_id=gone).end_reason == "gone, cause unknown"
    assert Lease.objects.get(lease_id=kept).state == LeaseState.LIVE


def test_a_lease_that_a_list_still_shows_long_after_its_end_has_not_ended() -> None:
    """After Vault was restored from a snapshot, or where a standby gave a false answer."""
    lease = factories.ended(ago=3600)
    lists.take_in_all(factories.vault(), [lease.lease_id], namespace="")
    lease.refresh_from_db()
    assert (lease.state, lease.ended_at, lease.end_reason) == (LeaseState.LIVE, None, "")
    assert lease in lookups.due(factories.vault(), now=timezone.now())


@pytest.mark.parametrize("ago", [5, 60])
def test_a_list_that_was_asked_for_before_an_end_was_known_proves_nothing(ago: float) -> None:
    """A large list takes its time, and so does the lookup that confirms what an event told long before."""
    began = timezone.now()
    lease = factories.ended(ago=ago)
    if ago < 10:
        # nor one that was asked for so soon after that clocks may not agree
        began = timezone.now()
    lists.take_in_all(factories.vault(), [lease.lease_id], namespace="", began=began)
    lease.refresh_from_db()
    assert lease.state == LeaseState.ENDED


def test_what_was_taken_for_ended_lives_again_with_its_own_times_and_says_so(world: Observed, viewer: Client) -> None:
    vault = world.configure()
    lease_id = world.issue("few")
    world.read()
    action = factories.action(Lease.objects.get(lease_id=lease_id), ago=130, state="verified")
    an_hour_ago = timezone.now() - timedelta(hours=1)
    Revocation.objects.update(updated_at=an_hour_ago)
    Lease.objects.update(
        state=LeaseState.ENDED,
        ended_at=an_hour_ago,
        end_reason=EndReason.REVOKED_HERE,
        end_evidence=f"action {action.pk}; a lookup finds no such lease",
        lookup_due_at=None,
    )
    lists.reconcile(vault, now=timezone.now())
    look_up(vault)
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.state, lease.end_seen_at) == (LeaseState.LIVE, None)
    assert lease.expires_at is not None
    assert lease.expires_at > timezone.now()
    told = f"taken for ended at {an_hour_ago:%FT%TZ} (revoked here: action {action.pk}; a lookup finds no such lease), but a list"
    assert lease.end_evidence.startswith(told)
    assert told in viewer.get(reverse("leases-detail", args=[lease.pk])).content.decode()
    # its real end has nothing to do with what was done before
    world.admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease_id, "sync": True})
    lists.reconcile(Vault.objects.get(), now=timezone.now())
    look_up(vault)
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.UNKNOWN
    assert told in lease.end_evidence


def test_a_false_list_changes_nothing_of_an_end_but_what_is_said_of_it(world: Observed) -> None:
    vault = world.configure()
    lease = factories.ended(ago=3600, reason=EndReason.REVOKED_IN_VAULT, lease_id="database/creds/few/no-longer")
    for times in (1, 2):
        lists.take_in_all(vault, [lease.lease_id], namespace="")
        look_up(vault)
        before = lease.ended_at
        lease.refresh_from_db()
        assert (lease.state, lease.ended_at, lease.end_reason) == (LeaseState.ENDED, before, EndReason.REVOKED_IN_VAULT)
        assert lease.end_evidence.startswith("request 5b1c8f40")
        assert lease.end_evidence.count("taken for ended at") == times
        assert len(lease.end_evidence) < 2500


def test_a_role_without_any_lease_left_costs_no_list(world: Observed) -> None:
    vault = world.configure()
    factories.lease(role="none-left")
    assert lists.reconcile(vault, now=timezone.now())["missing"] == 1
    assert not RoleList.objects.filter(role="none-left").exists()


def test_a_round_that_was_cut_short_goes_on_where_it_stopped(world: Observed) -> None:
    vault = world.configure()
    world.issue("few")
    world.issue("many")
    first = lists.reconcile(vault, now=timezone.now(), until=time.monotonic())
    assert (first["left"], first["listed"]) == (1, 0)
    vault = Vault.objects.get()
    assert lists.is_due(vault, now=timezone.now())
    listed = lists.reconcile(vault, now=timezone.now())
    assert listed["listed"] >= 2
    assert listed["left"] == 0
    vault = Vault.objects.get()
    assert vault.round_at is None
    assert not lists.is_due(vault, now=timezone.now())
    assert lists.is_due(vault, now=timezone.now() + timedelta(seconds=601))


def test_a_round_that_an_event_asks_for_while_one_runs_is_due_after_it(world: Observed) -> None:
    vault = world.configure()
    lists.reconcile(vault, now=timezone.now(), until=time.monotonic())
    Vault.objects.update(reconciled_at=None)
    lists.reconcile(Vault.objects.get(), now=timezone.now())
    vault = Vault.objects.get()
    assert (vault.round_at, vault.reconciled_at) == (None, None)
    assert lists.is_due(vault, now=timezone.now())


def test_a_list_beyond_the_hours_budget_is_put_off_and_the_page_says_so(world: Observed, viewer: Client) -> None:
    vault = world.configure(more="audit_bytes_per_hour = 1000000")
    world.issue("few")
    # what lists have cost in this hour already
    meter.note(vault.pk, meter.Devices(2, 2), Sent("list", "sys/leases/lookup/database/creds/", 0, 6_300))
    counts = lists.reconcile(vault, now=timezone.now())
    assert counts["put_off"] >= 1
    row = RoleList.objects.get(role="few")
    assert row.listed_at is None
    assert "used up" in row.put_off
    assert "raise audit_bytes_per_hour" in viewer.get("/sources").content.decode()
    # the next hour
    ApiCost.objects.update(hour=timezone.now() - timedelta(hours=2))
    lists.reconcile(Vault.objects.get(), now=timezone.now())
    row.refresh_from_db()
    assert (row.put_off, row.listed_at is not None) == ("", True)


def test_a_list_that_no_hours_budget_holds_says_what_to_write(world: Observed) -> None:
    vault = world.configure(more="audit_bytes_per_hour = 1000000")
    world.issue("few")
    RoleList.objects.create(vault=vault, mount="database", role="few", leases=50_000)
    lists.reconcile(vault, now=timezone.now())
    put_off = RoleList.objects.get(role="few").put_off
    needed = 2 * (2_450 + 79 * 50_000)
    assert f"Raise it in leasehold.toml to {needed} or more" in put_off
    assert "7.9 MB" in put_off


# -- what it costs


def test_the_cost_meter_agrees_with_the_audit_log_within_a_fifth(world: Observed) -> None:
    vault = world.configure()
    world.issue_many("few", 40)
    clients._cached.cache_clear()
    client = clients.observer(vault)
    lease_id = world.issue("few")

    def kinds() -> dict[str, int]:
        meter.flush(now=timezone.now())
        return dict(ApiCost.objects.values_list("kind", "audit_bytes"))

    asks: dict[str, Callable[[], object]] = {
        "login": client.ensure_ready,
        "lookup": lambda: client.lookup_lease(lease_id),
        "list": lambda: client.list_leases("database/creds/few/"),
        "hash": lambda: client.audit_hash("file-a", "v-x"),
        "capabilities": lambda: client.capabilities(
            [*checks.needed_to_observe(vault), *checks.wanted_to_observe(vault)]
        ),
        "other": lambda: (client.database_roles("database"), client.audit_devices(), client.irrevocable_leases()),
    }
    for kind, ask in asks.items():
        before, log_at = kinds().get(kind, 0), world.written()
        ask()
        # the client counts one device, until the first round of lists has asked how many there are
        estimated, written = 2 * (kinds()[kind] - before), world.written() - log_at
        assert abs(estimated / written - 1) < 0.2, (kind, estimated, written)


def test_a_device_that_leaves_lists_out_writes_none_of_their_names() -> None:
    sent = Sent("list", "sys/leases/lookup/database/creds/few/", 100, 1_000)
    assert meter.audit_bytes(sent, meter.Devices(2, 2)) == 2 * (2_450 + 200 + 79_000)
    assert meter.audit_bytes(sent, meter.Devices(2, 1)) == 2 * (2_450 + 200) + 79_000


def test_costs_are_counted_by_hour_and_shown_with_their_share(viewer: Client) -> None:
    vault = factories.vault()
    for _ in range(50):
        factories.lease()
    now = timezone.now()
    for _ in range(10):
        meter.note(vault.pk, meter.Devices(2, 2), Sent("put", "sys/leases/lookup", 0, 0))
    meter.flush(now=now - timedelta(minutes=10))
    meter.note(vault.pk, meter.Devices(2, 2), Sent("put", "sys/leases/lookup", 0, 0))
    meter.note(vault.pk, meter.Devices(2, 2), Sent("put", "sys/audit-hash/file-a", 0, 0))
    meter.flush(now=now)
    meter.flush(now=now)
    cost = queries.costs(now=now)[vault.pk]
    assert [(kind, n) for kind, n, _ in cost.kinds] == [("hash", 1), ("lookup", 11)]
    assert cost.audit_bytes == 2 * (11 * 2_950 + 2_730)
    assert cost.sweep == 50 * 10 * 2 * 2_950
    assert cost.share == pytest.approx(100 * cost.audit_bytes / cost.sweep)
    page = viewer.get("/sources").content.decode()
    assert "that a full sweep each minute would have written" in page
    text = Client().get("/metrics").content.decode()
    assert 'leasehold_vault_requests_total{kind="lookup",vault="demo"} 11.0' in text
    assert 'leasehold_vault_audit_bytes_total{kind="hash",vault="demo"} 5460.0' in text


# -- child namespaces


@pytest.fixture
def child(world: Observed) -> Iterator[str]:
    name = "team-b"
    known = world.admin.list("sys/namespaces")
    if not known or f"{name}/" not in known["data"]["keys"]:
        world.admin.adapter.post(f"/v1/sys/namespaces/{name}", json={})
        world.mount(namespace=name)
    policy = (observed.POLICIES / f"{observed.ACCOUNT}.hcl").read_text()
    world.admin.sys.create_or_update_policy(observed.ACCOUNT, policy + CHILD_RULES)
    yield name
    world.admin.sys.create_or_update_policy(observed.ACCOUNT, policy)


def test_leases_of_a_child_namespace_get_times_from_events_alone(world: Observed, child: str) -> None:
    vault = world.configure()
    lease_id = world.issue("few", namespace=child)
    world.read()
    look_up(vault)
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.vault_namespace, lease.state) == ("team-b/", LeaseState.LIVE)
    assert lease.expires_at is not None
    # learned: its roles are listed, too
    listed = lists.reconcile(vault, now=timezone.now())
    assert listed["missing"] == 0
    assert RoleList.objects.get(vault_namespace="team-b/", role="few").leases >= 1


def test_a_configured_namespace_is_listed_without_an_event(world: Observed, child: str) -> None:
    vault = world.configure(more='namespaces = ["team-b"]')
    lease_id = world.issue("few", namespace=child)
    lists.reconcile(vault, now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.vault_namespace, lease.mount, lease.role, lease.database) == ("team-b/", "database", "few", None)
    look_up(vault)
    lease.refresh_from_db()
    assert lease.expires_at is not None
    assert checks.check_vault(vault) is None


def test_a_namespace_that_may_not_be_listed_names_the_policy_line_and_holds_nothing_back(world: Observed) -> None:
    vault = world.configure(more='namespaces = ["team-b"]')
    lease_id = world.issue("few")
    counts = lists.reconcile(vault, now=timezone.now())
    assert counts["put_off"] == 1
    assert Lease.objects.filter(lease_id=lease_id).exists()
    row = RoleList.objects.get(vault_namespace="team-b/")
    assert 'path "team-b/sys/leases/lookup/database/*" { capabilities = ["list", "sudo"] }' in row.put_off
    doubt = checks.check_vault(vault)
    assert doubt is not None
    assert "team-b/sys/leases" in doubt.cause


def test_leases_of_a_namespace_that_is_no_more_have_ended(world: Observed, child: str) -> None:
    vault = world.configure()
    lease = factories.lease(lease_id="database/creds/few/x.abcdef")
    Lease.objects.filter(pk=lease.pk).update(vault_namespace="was-here/", lookup_due_at=timezone.now())
    look_up(vault)
    lease.refresh_from_db()
    assert lease.state == LeaseState.ENDED


# -- irrevocable leases


def test_a_failed_revocation_is_no_end_and_its_lease_is_listed_as_irrevocable_once_vault_gives_up(
    world: Observed,
) -> None:
    vault = world.configure()
    lease_id = world.issue("stuck")
    world.read()
    look_up(vault)
    time.sleep(max(0, 2.8 - 0.2))
    look_up(vault)
    lease = Lease.objects.get(lease_id=lease_id)
    # its time is over and Vault tries on
    assert lease.expires_at is not None
    assert lease.expires_at < timezone.now()
    assert (lease.state, lease.lookup_due_at is not None) == (LeaseState.LIVE, True)
    assert clients.observer(vault).irrevocable_leases() == []
    Lease.objects.filter(pk=lease.pk).update(
        state=LeaseState.IRREVOCABLE, revoke_error="out of retries", lookup_due_at=None
    )
    # it is none (any more): a lookup says what it is
    lists.reconcile(vault, now=timezone.now())
    assert lease in lookups.due(vault, now=timezone.now())
    look_up(vault)
    lease.refresh_from_db()
    assert (lease.state, lease.revoke_error) == (LeaseState.LIVE, "")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_vault_gives_up_after_six_tries_and_the_lease_shows_its_error(world: Observed) -> None:
    vault = world.configure()
    lease_id, asked = world.issue("stuck"), 0
    world.read()
    end = time.monotonic() + 1_000
    while Lease.objects.filter(lease_id=lease_id).exclude(state=LeaseState.IRREVOCABLE).exists():
        assert time.monotonic() < end
        time.sleep(2)
        asked += look_up(vault, seconds=0)
    lease = Lease.objects.get(lease_id=lease_id)
    assert "no_such_function" in lease.revoke_error
    assert lease.lookup_due_at is None
    # ever more slowly: every 2 s it would have been asked 240 times
    assert asked < 40
    # and from the list alone, as a ledger that never heard of it learns it
    Lease.objects.all().delete()
    Vault.objects.update(round_at=None)
    lists.reconcile(Vault.objects.get(), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.state, lease.certainty) == (LeaseState.IRREVOCABLE, "unknown")
    assert "no_such_function" in lease.revoke_error


def test_without_the_right_to_list_irrevocable_leases_all_else_goes_on(world: Observed, viewer: Client) -> None:
    policy = (observed.POLICIES / f"{observed.ACCOUNT}.hcl").read_text()
    begin = policy.index('path "sys/leases" {')
    without = policy[:begin] + policy[policy.index("}", begin) + 1 :]
    world.admin.sys.create_or_update_policy(observed.ACCOUNT, without)
    try:
        vault = world.configure()
        lease_id = world.issue("few")
        lists.reconcile(vault, now=timezone.now())
        assert Lease.objects.filter(lease_id=lease_id).exists()
        check_vaults()
        state = SourceState.objects.get(kind=SourceKind.VAULT)
        assert state.ok
        assert "irrevocable leases are not listed" in state.cause
        assert "bao policy write leasehold-observe" in state.fix
        (source,) = queries.sources(now=timezone.now())
        assert (source.status, source.ok) == ("limited", True)
        assert "irrevocable leases are not listed" in viewer.get("/sources").content.decode()
    finally:
        world.admin.sys.create_or_update_policy(observed.ACCOUNT, policy)
    check_vaults()
    assert SourceState.objects.get(kind=SourceKind.VAULT).cause == ""
