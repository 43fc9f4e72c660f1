"""The thin chain on real parts: pod -> OpenBao -> audit log -> event -> login -> lease -> pod -> revoked and verified.

The workers' verbs are called in turn here, so that each test decides when; tests/test_demo.py lets Celery call them.
"""

import contextlib
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from audit import attribute, exports, follow, unexplained, users
from audit.blocks import lines_of
from audit.ingest import ingest
from audit.models import AttributionChange, Device, Event, RawBlock, Sighting, Stream, Token, What
from demo import workloads
from leases import clients, lists, lookups, revoke, watch
from leases.models import Certainty, Cluster, Database, Lease, LeaseState, Login, Pod, PodAddress, Revocation, Vault
from tests.workers import catch_up, issue, read_streams
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db


def test_a_kubernetes_login_is_tied_to_its_pod_by_address_once_the_watch_has_come_past(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.pod) == (Certainty.SERVICE_ACCOUNT, "")
    assert (lease.service_account_namespace, lease.service_account) == ("shop", "storefront")
    catch_up()
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod_namespace, lease.pod, lease.pod_uid) == (
        Certainty.INFERRED,
        "shop",
        pod.name,
        pod.uid,
    )
    assert lease.source_ip == pod.address
    assert [change.certainty for change in AttributionChange.objects.filter(lease_id=lease_id).order_by("id")] == [
        Certainty.SERVICE_ACCOUNT,
        Certainty.INFERRED,
    ]


def test_a_jwt_login_with_pod_claims_is_exact_at_once(configured: World) -> None:
    pod = configured.pod("invoicing")
    lease = Lease.objects.get(lease_id=issue(pod))
    assert (lease.certainty, lease.pod, lease.pod_uid) == (Certainty.EXACT, pod.name, pod.uid)
    assert "jwt" in lease.certainty_reason


def test_two_pods_of_one_service_account_at_one_address_are_ambiguous_and_both_named(configured: World) -> None:
    first = configured.pod("storefront")
    second = configured.pod("storefront", address=first.address)
    lease = Lease.objects.get(lease_id=issue(first))
    catch_up()
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.AMBIGUOUS, "")
    assert first.name in lease.certainty_reason
    assert second.name in lease.certainty_reason


def test_an_address_of_another_service_accounts_pod_does_not_count(configured: World) -> None:
    first = configured.pod("storefront")
    configured.pod("billing-api", address=first.address)
    lease = Lease.objects.get(lease_id=issue(first))
    catch_up()
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.INFERRED, first.name)


def test_a_host_network_pod_is_never_inferred(configured: World) -> None:
    pod = configured.pod("storefront", host_network=True)
    lease = Lease.objects.get(lease_id=issue(pod))
    catch_up()
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.AMBIGUOUS, "")


def test_a_gap_in_the_pod_watch_keeps_the_certainty_at_the_service_account(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    cluster = Cluster.objects.get()
    cluster.watch_periods.all().delete()
    watch.list_all(cluster, clients.kube(cluster))
    catch_up()
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.pod) == (Certainty.SERVICE_ACCOUNT, "")
    assert "gap" in lease.certainty_reason or "not come that far" in lease.certainty_reason


def test_metadata_of_a_created_token_is_no_identity(configured: World) -> None:
    pod = configured.pod("storefront")
    made = configured.admin.auth.token.create(
        policies=["shop-storefront"],
        meta={"service_account_name": "billing-api", "service_account_namespace": "finance", "pod_name": "nobody"},
    )
    pod.token = made["auth"]["client_token"]
    lease_id = pod.read_credentials()["lease_id"]
    read_streams()
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.service_account, lease.pod) == (Certainty.UNKNOWN, "", "")


def told() -> list[tuple[str, str, str]]:
    """Every event, times aside: another device may tell a request some microseconds earlier."""
    return sorted(
        (event.request_id, event.path, event.lease_id) for event in Event.objects.select_related(*Event.SPELLED_OUT)
    )


def test_two_devices_make_one_event_and_one_lease_whichever_comes_first(configured: World) -> None:
    pod = configured.pod("storefront")
    request_id = pod.log_in()
    lease_id = pod.read_credentials()["lease_id"]
    read_streams(only="file-b")
    assert Lease.objects.filter(lease_id=lease_id).count() == 1
    before = told()
    read_streams(only="file-a")
    assert told() == before
    login = Login.objects.get(request_id=request_id)
    assert Token.objects.filter(login=login).count() == 2
    assert Sighting.objects.filter(request=request_id).count() == 2
    assert Lease.objects.get(lease_id=lease_id).login == login


def test_reading_the_same_lines_again_changes_nothing(configured: World) -> None:
    issue(configured.pod("storefront"))
    events, blocks = Event.objects.count(), RawBlock.objects.count()
    Stream.objects.update(offset=0, file_inode="", file_start="")
    stream = Stream.objects.select_related("device__vault").order_by("id").first()
    assert stream is not None
    stored = {str(sighting.request) for sighting in Sighting.objects.filter(stream=stream)}
    lines = b"".join(
        line + b"\n"
        for line in Path(stream.path).read_bytes().splitlines()
        if any(request_id.encode() in line for request_id in stored)
    )
    chunk = follow.Chunk(lines, 0, follow.Position(offset=len(lines)), 0)
    counts = ingest(stream.pk, chunk, expected=None, now=timezone.now())
    assert (counts.parts, counts.duplicates) == (0, counts.lines)
    assert (Event.objects.count(), RawBlock.objects.count()) == (events, blocks)


def test_a_lease_has_its_times_from_the_api_and_its_renewals_from_the_log(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    vault = Vault.objects.get()
    lookups.look_up_due(vault, now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert lease.expires_at is not None
    assert 50 < (lease.expires_at - timezone.now()).total_seconds() < 61
    assert lease.database is not None
    assert lease.database.name == "orders"
    pod.renew(lease_id)
    read_streams()
    lease.refresh_from_db()
    assert lease.renewals == 1
    assert lease.lookup_due_at is not None
    assert lease.lookup_due_at <= timezone.now()


def test_a_database_user_is_tied_to_its_lease_by_its_audit_hash(configured: World) -> None:
    pod = configured.pod("billing-api")
    pod.log_in()
    answer = pod.read_credentials()
    read_streams()
    database = Database.objects.get(name="billing")
    users.match(database, users.unknown_names(database), now=timezone.now())
    assert Lease.objects.get(lease_id=answer["lease_id"]).database_user == answer["data"]["username"]


def revoked(lease: Lease) -> Revocation:
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    revocation = action.revocations.get()
    revoke.carry_out(revocation.pk)
    revocation.refresh_from_db()
    return revocation


def test_a_revoked_lease_is_verified_in_vault_and_in_the_database_and_its_audit_line_is_found(
    configured: World,
) -> None:
    pod = configured.pod("billing-api")
    lease_id = issue(pod)
    database = Database.objects.get(name="billing")
    users.match(database, users.unknown_names(database), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert lease.database_user in configured.users()
    revocation = revoked(lease)
    assert lease.database_user not in configured.users()
    lease.refresh_from_db()
    assert (revocation.state, lease.state, lease.end_reason) == ("verified", LeaseState.ENDED, "revoked here")
    read_streams()
    steps = {step.name: step.outcome for step in revocation.action.steps.all()}
    assert steps == {
        "sessions seen": "ok",
        "Vault answered": "ok",
        "lease gone": "ok",
        "database user gone": "ok",
        "sessions ended": "ok",
        "audit line seen": "ok",
    }


def test_a_revocation_whose_database_user_is_unknown_is_not_called_verified(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    assert revoked(lease).state == "unverified"


def test_a_revocation_that_the_database_refuses_is_failed_and_the_lease_stays(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    configured.admin.secrets.database.create_role(
        name="my-role",
        db_name="orders",
        creation_statements=["SELECT 1"],
        revocation_statements=["SELECT no_such_function()"],
        mount_point="database",
    )
    try:
        revocation = revoked(lease)
    finally:
        configured.admin.secrets.database.create_role(
            name="my-role",
            db_name="orders",
            creation_statements=workloads.CREATE,
            revocation_statements=workloads.REVOKE,
            default_ttl="60s",
            max_ttl="180s",
            mount_point="database",
        )
    lease.refresh_from_db()
    assert (revocation.state, lease.state) == ("failed", LeaseState.LIVE)


def test_two_people_who_press_at_once_make_one_revocation(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    first = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    with pytest.raises(revoke.AlreadyRequested) as told:
        revoke.request(leases=[lease], by="bob", reason="me too", now=timezone.now())
    assert told.value.action == first


@pytest.mark.parametrize("way", ["path", "body", "prefix", "self"])
def test_a_lease_that_somebody_ends_in_vault_says_how_and_by_whom(configured: World, way: str) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    pod.renew(lease_id)
    admin = configured.admin
    if way == "path":
        admin.adapter.put(f"/v1/sys/leases/revoke/{lease_id}", json={"sync": True})
    elif way == "body":
        admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease_id, "sync": True})
    elif way == "prefix":
        admin.adapter.put("/v1/sys/leases/revoke-prefix/database/creds/my-role", json={"sync": True})
    else:
        pod.call("POST", "auth/token/revoke-self")
    read_streams()
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert lease.state == LeaseState.ENDED
    assert (
        lease.end_reason
        == {
            "path": "revoked in Vault",
            "body": "revoked in Vault",
            "prefix": "by prefix",
            "self": "token revoked",
        }[way]
    )
    assert "request" in lease.end_evidence


@pytest.mark.parametrize("known", [True, False])
def test_a_lease_that_was_never_renewed_is_found_by_the_hash_that_its_revocation_logged(
    configured: World, known: bool
) -> None:
    """Also if it was looked up before the line was read."""
    ended, live = (issue(configured.pod("storefront")) for _ in range(2))
    configured.admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": ended, "sync": True})
    if known:
        read_streams()
    Lease.objects.update(lookup_due_at=timezone.now())
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    if not known:
        read_streams()
    device = Device.objects.order_by("id")[0]
    assert Lease.objects.get(lease_id=ended).end_reason == "gone, cause unknown"
    assert unexplained.explain(device, now=timezone.now()) == 1
    lease = Lease.objects.get(lease_id=ended)
    assert (lease.end_reason, lease.state) == ("revoked in Vault", LeaseState.ENDED)
    assert "sys/leases/revoke by" in lease.end_evidence
    assert Lease.objects.get(lease_id=live).state == LeaseState.LIVE
    # neither again, nor by what the other device says of the same request
    assert [unexplained.explain(device, now=timezone.now()) for device in Device.objects.all()] == [0, 0]


def test_a_list_finds_leases_that_no_event_told_of(configured: World) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    lease_id = pod.read_credentials()["lease_id"]
    counts = lists.reconcile(Vault.objects.get(), now=timezone.now())
    assert counts["new"] >= 1
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.request_id) == (Certainty.UNKNOWN, "")
    read_streams()
    catch_up()
    lease.refresh_from_db()
    assert lease.request_id != ""
    assert lease.pod == pod.name


def test_own_requests_are_marked_and_nobody_elses(configured: World) -> None:
    clients.observer(Vault.objects.get())._log_in()
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    read_streams()
    own = set(Event.objects.filter(own=True).values_list("what__path", flat=True))
    others = set(
        Event.objects.filter(own=False, what__path__startswith="database").values_list("lease_name__text", flat=True)
    )
    assert "sys/leases/lookup" in own
    assert not any(path.startswith("database/creds") for path in own)
    assert lease_id in others


def test_no_token_and_no_password_reaches_the_database(configured: World) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    answer = pod.read_credentials()
    # anybody can write a token into a path without logging in
    with contextlib.suppress(AssertionError):
        TestPod(configured, pod.application, "", "", pod.address).call("GET", f"secret/{pod.token}")
    read_streams()
    kept = b"".join(lines_of(block) or b"" for block in RawBlock.objects.all())
    texts = " ".join(What.objects.values_list("path", flat=True))
    for secret in (pod.token, answer["data"]["password"]):
        assert secret.encode() not in kept
        assert secret not in texts
    assert sum(Stream.objects.values_list("redacted", flat=True)) >= 2


def test_accesses_are_exported_with_the_documented_header(configured: World) -> None:
    pod = configured.pod("invoicing")
    lease_id = issue(pod)
    output = io.BytesIO()
    written = exports.write(
        "accesses", output, from_at=datetime(2026, 1, 1, tzinfo=UTC), to_at=datetime(2100, 1, 1, tzinfo=UTC), form="csv"
    )
    header, *rows = output.getvalue().decode().splitlines()
    assert header.startswith("accessed_at,vault,vault_namespace,database,database_role,lease_id,database_user,cluster")
    assert written.rows == len(rows) == 1
    assert lease_id in rows[0]
    assert pod.uid in rows[0]


def test_an_end_whose_reason_was_a_guess_is_explained_by_the_line_that_comes_later(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    pod.call("POST", "auth/token/revoke-self")
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.state, lease.end_reason) == (LeaseState.ENDED, "gone, cause unknown")
    read_streams()
    lease.refresh_from_db()
    assert lease.end_reason == "token revoked"
    assert "auth/token/revoke-self" in lease.end_evidence


def test_a_lease_is_being_revoked_from_when_its_turn_comes(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    lease.refresh_from_db()
    # it works as before until Vault is told
    assert lease.state == LeaseState.LIVE
    revocation = revoke.claim(action.revocations.get().pk, now=timezone.now())
    assert revocation is not None
    assert revoke.begin(revocation)
    lease.refresh_from_db()
    assert lease.state == LeaseState.REVOKING


def test_an_end_that_was_read_in_one_piece_with_its_login_has_its_reason(configured: World) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    lease_id = pod.read_credentials()["lease_id"]
    pod.call("POST", "auth/token/revoke-self")
    read_streams(only="file-a")
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    assert Lease.objects.get(lease_id=lease_id).end_reason == "token revoked"


def test_a_lease_that_ended_before_vault_was_told_was_not_revoked_here(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    configured.admin.adapter.put(f"/v1/sys/leases/revoke/{lease.lease_id}", json={"sync": True})
    read_streams()
    revoke.carry_out(action.revocations.get().pk)
    lease.refresh_from_db()
    assert lease.end_reason == "revoked in Vault"
    assert not action.steps.filter(name="audit line seen").exists()


def test_a_revocation_without_an_account_to_revoke_with_fails_and_says_so(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    Vault.objects.update(respond=None)
    revocation = revoked(lease)
    lease.refresh_from_db()
    assert (revocation.state, lease.state) == ("failed", LeaseState.LIVE)
    assert "[vaults.respond]" in revocation.action.steps.get(name="Vault answered").detail


def test_one_lease_that_may_not_be_looked_up_does_not_hold_the_others_back(configured: World) -> None:
    answer = configured.admin.adapter.post("/v1/sys/namespaces/team-b", json={})
    first = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    elsewhere = f"database/creds/my-role/abc.{answer['data']['id']}"
    Lease.objects.filter(pk=first.pk).update(lease_id=elsewhere, vault_namespace="team-b/")
    second = issue(configured.pod("storefront"))
    lookups.look_up_due(Vault.objects.get(), now=timezone.now())
    assert Lease.objects.get(lease_id=second).expires_at is not None
    first.refresh_from_db()
    assert first.state == LeaseState.LIVE


def test_a_successor_whose_address_comes_late_takes_the_name_away_again(configured: World) -> None:
    pod = configured.pod("storefront")
    lease = Lease.objects.get(lease_id=issue(pod))
    catch_up()
    lease.refresh_from_db()
    assert (lease.certainty, lease.attribution_open) == (Certainty.INFERRED, True)
    row = Pod.objects.get(uid=pod.uid)
    assert lease.accessed_at is not None
    successor = Pod.objects.create(
        cluster=row.cluster,
        uid="late",
        namespace="shop",
        name="late",
        service_account="storefront",
        node="n",
        started_at=lease.accessed_at - timedelta(seconds=1),
    )
    attribute.attribute(attribute.open_leases(), now=timezone.now())
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.SERVICE_ACCOUNT, "")
    PodAddress.objects.create(pod=successor, address=pod.address, from_at=successor.started_at)
    attribute.attribute(attribute.open_leases(), now=timezone.now())
    lease.refresh_from_db()
    assert (lease.certainty, lease.pod) == (Certainty.AMBIGUOUS, "")
