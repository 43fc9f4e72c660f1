"""What the ledger depends on, row by row, on a real OpenBao: what its log and its lease API give, and what the ledger makes of it.

With VAULT_BINARY the same runs against HashiCorp Vault.
"""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
from django.utils import timezone

from audit import unexplained
from audit.models import Device, Event, Hash, Kind, Token
from demo import vault_setup
from demo.workloads import STUCK_ROLE
from leases import clients, jobs, lookups, revoke
from leases.models import Certainty, EndReason, Lease, LeaseState, Login, Vault
from tests.workers import catch_up, issue, look_up, read_streams
from tests.world import TestPod, World

pytestmark = pytest.mark.django_db
HMAC = "hmac-sha256:"


class Log:
    """What one device writes from now on."""

    def __init__(self, world: World) -> None:
        self._file = Path(min(world.openbao.audit_logs.values()))
        self._from = self._file.stat().st_size

    def entries(self, path: str, kind: str = "response") -> list[dict[str, Any]]:
        lines = self._file.read_bytes()[self._from :].splitlines()
        found = [json.loads(line) for line in lines]
        return [entry for entry in found if entry["type"] == kind and entry["request"]["path"].startswith(path)]


@pytest.fixture
def log(configured: World) -> Log:
    return Log(configured)


def maker(world: World) -> TestPod:
    """A pod whose token may make others."""
    world.let_make_tokens("storefront", role="maker")
    pod = world.pod("storefront")
    pod.log_in("maker")
    return pod


def read_with(pod: TestPod) -> str:
    return str(pod.read_credentials()["lease_id"])


# the audit log


def test_a_kubernetes_login_bears_its_identity_in_the_response_alone(configured: World, log: Log) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    (request,), (response,) = log.entries("auth/kubernetes/login", "request"), log.entries("auth/kubernetes/login")
    assert request["request"]["data"]["role"].startswith(HMAC)
    assert "metadata" not in request["auth"]
    assert response["auth"]["metadata"]["service_account_name"] == "storefront"
    assert response["auth"]["accessor"].startswith(HMAC)
    # the pod is nowhere
    assert pod.name not in json.dumps([request, response])
    read_streams()
    login = Login.objects.get(own=False)
    assert (login.service_account_namespace, login.service_account, login.claimed_pod) == ("shop", "storefront", "")
    assert login.expires_at is not None
    assert (login.expires_at - login.logged_in_at).total_seconds() == pytest.approx(
        response["auth"]["token_ttl"], abs=1
    )


def test_a_credential_read_names_its_lease_in_plain_and_its_user_as_a_hash_and_no_ttl(
    configured: World, log: Log
) -> None:
    lease_id = issue(configured.pod("storefront"))
    (response,) = log.entries("database/creds/")
    assert response["response"]["secret"] == {"lease_id": lease_id}
    assert response["response"]["data"]["username"].startswith(HMAC)
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.expires_at, lease.database_user) == (None, "")
    assert look_up(lease_id).expires_at is not None


def test_a_renewal_gives_the_hash_of_its_lease_id_for_nothing(configured: World, log: Log) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    pod.renew(lease_id)
    read_streams()
    (response,) = log.entries("sys/leases/renew")
    hashed = response["request"]["data"]["lease_id"]
    assert hashed.startswith(HMAC)
    assert response["response"]["secret"]["lease_id"] == lease_id
    assert (
        Hash.objects.filter(hash=hashed, of=Hash.Of.LEASE_ID).values_list("lease_name__text", flat=True)[0] == lease_id
    )


def test_a_denied_read_shows_who_it_was_and_issues_nothing(configured: World, log: Log) -> None:
    pod = configured.pod("billing-api")
    pod.log_in()
    with pytest.raises(AssertionError, match="403"):
        pod.call("GET", "database/creds/my-role")
    (response,) = log.entries("database/creds/")
    assert "permission denied" in response["error"]
    assert response["auth"]["metadata"]["service_account_name"] == "billing-api"
    read_streams()
    event = Event.objects.get(what__path="database/creds/my-role")
    assert (event.kind, event.who.metadata["service_account_name"]) == (Kind.OTHER, "billing-api")
    assert not Lease.objects.exists()


def test_a_bogus_token_is_nobody(configured: World, log: Log) -> None:
    pod = replace(configured.pod("storefront"), token="s.thisisnotatokenofanybody")
    with pytest.raises(AssertionError, match="403"):
        pod.read_credentials()
    (response,) = log.entries("database/creds/")
    assert set(response["auth"]) == {"token_type"}
    read_streams()
    event = Event.objects.get(what__path="database/creds/my-role")
    assert (event.who.display_name, event.token) == ("", None)


def test_a_role_that_does_not_exist_leaves_no_error_and_no_lease(configured: World, log: Log) -> None:
    with pytest.raises(hvac.exceptions.InvalidRequest):
        configured.admin.adapter.get("/v1/database/creds/no-such-role")
    (response,) = log.entries("database/creds/no-such-role")
    assert "error" not in response
    read_streams()
    assert not Lease.objects.exists()


def test_a_wrapped_credential_names_its_lease_only_where_it_is_unwrapped(configured: World, log: Log) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    wrapped = pod.read_wrapped()
    (read,) = log.entries("database/creds/")
    assert "secret" not in read["response"]
    lease_id = replace(pod, token=wrapped).call("POST", "sys/wrapping/unwrap")["lease_id"]
    (unwrap,) = log.entries("sys/wrapping/unwrap")
    assert unwrap["response"]["secret"]["lease_id"] == lease_id
    assert unwrap["auth"]["accessor"] == read["response"]["wrap_info"]["accessor"]
    assert "metadata" not in unwrap["auth"]
    read_streams()
    lease = Lease.objects.select_related("login").get(lease_id=lease_id)
    assert lease.request_id == read["request"]["id"]
    assert lease.login is not None
    assert (lease.login.service_account, lease.source_ip, lease.unwrapped_from) == (
        "storefront",
        pod.address,
        pod.address,
    )
    catch_up()
    assert Lease.objects.get(lease_id=lease_id).pod == pod.name


@pytest.mark.parametrize("way", ["its own token", "named in the request", "rewrapped before"])
def test_a_credential_that_another_pod_unwraps_names_no_pod_with_certainty(configured: World, way: str) -> None:
    reader, other = configured.pod("invoicing"), configured.pod("storefront")
    reader.log_in()
    other.log_in()
    wrapped = reader.read_wrapped()
    if way == "rewrapped before":
        wrapped = configured.admin.adapter.post("/v1/sys/wrapping/rewrap", json={"token": wrapped})["wrap_info"][
            "token"
        ]
    if way == "named in the request":
        lease_id = other.call("POST", "sys/wrapping/unwrap", {"token": wrapped})["lease_id"]
    else:
        lease_id = replace(other, token=wrapped).call("POST", "sys/wrapping/unwrap")["lease_id"]
    read_streams()
    catch_up()
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.source_ip, lease.unwrapped_from) == (reader.address, other.address)
    assert (lease.certainty, lease.pod) == (Certainty.AMBIGUOUS, "")
    assert reader.name in lease.certainty_reason
    assert other.address in lease.certainty_reason


def test_a_batch_token_has_no_accessor_and_is_known_by_its_own_hash(configured: World, log: Log) -> None:
    configured.let_make_tokens("storefront", role="batch", token_type="batch", token_policies=["shop-storefront"])
    pod = configured.pod("storefront")
    pod.log_in("batch")
    lease_id = read_with(pod)
    assert "accessor" not in json.dumps(
        [log.entries("auth/kubernetes/login")[0]["auth"], log.entries("database/")[0]["auth"]]
    )
    read_streams()
    catch_up()
    lease = Lease.objects.select_related("login").get(lease_id=lease_id)
    assert lease.login is not None
    assert (lease.login.token_type, lease.pod, lease.certainty) == ("batch", pod.name, Certainty.INFERRED)


def test_a_batch_login_that_was_sent_with_an_older_token_is_not_taken_for_that_one(configured: World, log: Log) -> None:
    configured.let_make_tokens("storefront", role="batch", token_type="batch", token_policies=["shop-storefront"])
    pod = configured.pod("storefront")
    pod.log_in()
    before = read_with(pod)
    # the login's response then shows the older token
    pod.log_in("batch")
    login = log.entries("auth/kubernetes/login")[-1]
    assert login["response"]["auth"]["client_token"] == login["request"]["client_token"]
    after = read_with(pod)
    read_streams()
    assert Lease.objects.get(lease_id=before).login.token_type == "service"  # type: ignore[union-attr]
    assert Lease.objects.get(lease_id=after).login is None
    assert not Token.objects.filter(login__token_type="batch").exists()


def test_what_ends_with_its_token_leaves_no_line(configured: World, log: Log) -> None:
    pod = maker(configured)
    lease_id = read_with(pod.make_token())
    configured.admin.adapter.post("/v1/auth/token/revoke", json={"token": pod.token})
    assert lease_id not in json.dumps(log.entries("sys/") + log.entries("auth/token/revoke"))
    read_streams()
    lease = look_up(lease_id)
    assert (lease.state, lease.end_reason) == (LeaseState.ENDED, "token revoked")
    assert "auth/token/revoke by root" in lease.end_evidence


def test_a_child_token_inherits_the_pod_and_not_its_own_metadata(configured: World) -> None:
    pod = maker(configured)
    child = pod.make_token(meta={"service_account_name": "somebody", "pod_name": "somebody-else"})
    lease_id = read_with(child)
    read_streams()
    catch_up()
    lease = Lease.objects.select_related("login__parent").get(lease_id=lease_id)
    assert lease.login is not None
    assert (lease.login.mount_path, lease.login.service_account) == ("token", "")
    assert lease.login.parent is not None
    assert lease.login.origin_id == lease.login.parent_id
    assert (lease.service_account, lease.pod, lease.certainty) == ("storefront", pod.name, Certainty.INFERRED)
    assert "another token made" in lease.certainty_reason


def test_the_child_of_a_token_whose_login_was_not_seen_has_no_holder(configured: World) -> None:
    admin = configured.admin.auth.token.create(policies=["shop-storefront"], ttl="60s")
    pod = replace(configured.pod("storefront"), token=admin["auth"]["client_token"])
    lease_id = read_with(pod)
    read_streams()
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.service_account) == (Certainty.UNKNOWN, "")
    assert "made by another token" in lease.certainty_reason


@pytest.mark.parametrize("way", ["create-orphan", "no_parent"])
def test_an_orphan_outlives_the_token_that_made_it(configured: World, way: str) -> None:
    pod = maker(configured)
    orphan = pod.make_token("auth/token/create-orphan") if way == "create-orphan" else pod.make_token(no_parent=True)
    lease_id = read_with(orphan)
    configured.admin.adapter.post("/v1/auth/token/revoke", json={"token": pod.token})
    read_streams()
    lease = look_up(lease_id)
    assert (lease.state, lease.end_seen_reason) == (LeaseState.LIVE, "")


def test_a_token_that_is_revoked_alone_leaves_its_children(configured: World) -> None:
    pod = maker(configured)
    own, child = read_with(pod), read_with(pod.make_token())
    configured.admin.adapter.post("/v1/auth/token/revoke-orphan", json={"token": pod.token})
    read_streams()
    assert look_up(own).end_reason == "token revoked"
    assert Lease.objects.get(lease_id=child).state == LeaseState.LIVE
    assert Lease.objects.get(lease_id=child).end_seen_reason == ""


def test_an_ending_that_a_lease_has_outlived_is_no_evidence(configured: World) -> None:
    """A token role may make orphans, and no line says so: the lookup does."""
    configured.admin.write_data(
        "auth/token/roles/orphans", data={"orphan": True, "allowed_policies": "shop-storefront"}
    )
    pod = maker(configured)
    lease_id = read_with(pod.make_token("auth/token/create/orphans"))
    configured.admin.adapter.post("/v1/auth/token/revoke", json={"token": pod.token})
    read_streams()
    lease = look_up(lease_id)
    assert (lease.state, lease.end_seen_reason) == (LeaseState.LIVE, "token revoked")
    assert lease.lookup_due_at is not None
    assert lease.lookup_due_at - timezone.now() < timedelta(seconds=12)
    # eleven seconds later
    Lease.objects.update(end_seen_at=timezone.now() - timedelta(seconds=11), lookup_due_at=timezone.now())
    lease = look_up(lease_id)
    assert (lease.state, lease.end_seen_at, lease.end_seen_reason) == (LeaseState.LIVE, None, "")


# the ways in which leases end


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("by accessor", "token revoked"),
        ("by the parent token", "token revoked"),
        ("by the grandparent's accessor", "token revoked"),
        ("forced", "forced (database user may live)"),
        ("unmounted", "by prefix"),
        ("the auth mount is gone", "token revoked"),
    ],
)
def test_a_lease_that_ends_in_vault_has_the_reason_that_the_log_gives(configured: World, way: str, reason: str) -> None:
    admin, pod = configured.admin, maker(configured)
    if way == "by the grandparent's accessor":
        child = pod.make_token(policies=["shop-storefront", "makes-tokens"])
        lease_id = read_with(child.make_token())
    elif way == "by the parent token":
        lease_id = read_with(pod.make_token())
    elif way == "unmounted":
        lease_id = _read_elsewhere(configured, pod)
    elif way == "the auth mount is gone":
        lease_id = read_with(_through_another_mount(configured, pod))
    else:
        lease_id = read_with(pod)
    accessor = admin.lookup_token(pod.token)["data"]["accessor"]
    if way in {"by accessor", "by the grandparent's accessor"}:
        admin.adapter.post("/v1/auth/token/revoke-accessor", json={"accessor": accessor})
    elif way == "by the parent token":
        admin.adapter.post("/v1/auth/token/revoke", json={"token": pod.token})
    elif way == "forced":
        admin.adapter.put(f"/v1/sys/leases/revoke-force/{pod.application.credentials_path}", json={})
    elif way == "unmounted":
        admin.sys.disable_secrets_engine("elsewhere")
    else:
        admin.sys.disable_auth_method("kubernetes-elsewhere")
    read_streams()
    lease = look_up(lease_id)
    assert (lease.state, lease.end_reason) == (LeaseState.ENDED, reason)
    assert "request " in lease.end_evidence
    if way == "forced":
        assert configured.users()


def _read_elsewhere(world: World, pod: TestPod) -> str:
    vault_setup.set_up_mount(world.admin, world.postgres, mount="elsewhere", databases=["orders"])
    world.admin.sys.create_or_update_policy("elsewhere", 'path "elsewhere/creds/*" { capabilities = ["read"] }')
    world.let_make_tokens("storefront", role="elsewhere", token_policies=["elsewhere"])
    pod.log_in("elsewhere")
    return str(pod.call("GET", "elsewhere/creds/my-role")["lease_id"])


def _through_another_mount(world: World, pod: TestPod) -> TestPod:
    admin = world.admin
    admin.sys.enable_auth_method("userpass", path="kubernetes-elsewhere")
    body = {"password": "not-a-secret-of-anybody", "token_policies": ["shop-storefront"]}
    admin.write_data("auth/kubernetes-elsewhere/users/ada", data=body)
    answer = pod.call("POST", "auth/kubernetes-elsewhere/login/ada", {"password": body["password"]})
    return replace(pod, token=answer["auth"]["client_token"])


# namespaces


@pytest.fixture
def team(configured: World) -> hvac.Client:
    """The administrator, in a namespace that has a database mount and an auth mount of the same names as the root's."""
    name = f"team-{secrets.token_hex(3)}"
    try:
        configured.admin.adapter.post(f"/v1/sys/namespaces/{name}", json={})
    except hvac.exceptions.InvalidPath:
        pytest.skip("this server has no namespaces (HashiCorp Vault has them in Enterprise only)")
    there = hvac.Client(url=configured.openbao.address, token=configured.admin.token, namespace=name, timeout=10)
    vault_setup.set_up_mount(there, configured.postgres, databases=["orders"])
    there.sys.enable_auth_method("userpass", path="kubernetes")
    return there


def test_a_lease_of_a_child_namespace_ends_there_and_a_prefix_there_ends_no_other(
    configured: World, team: hvac.Client
) -> None:
    here = issue(configured.pod("storefront"))
    there = team.adapter.get("/v1/database/creds/my-role")["lease_id"]
    team.adapter.put("/v1/sys/leases/revoke-prefix/database/creds/my-role", json={"sync": True})
    read_streams()
    # the suffix is the namespace's
    assert there.startswith("database/creds/my-role/")
    assert "." in there
    leases = {lease.lease_id: lease for lease in Lease.objects.filter(lease_id__in=[here, there])}
    assert (leases[here].vault_namespace, leases[here].end_seen_reason) == ("", "")
    assert (leases[there].vault_namespace, leases[there].end_seen_reason) == (f"{team.adapter.namespace}/", "by prefix")


@pytest.fixture
def may_in_children(configured: World) -> Iterator[None]:
    """The rules for child namespaces, as the delivered policies have them in comments."""
    folder = Path(__file__).resolve().parent.parent / "deploy" / "vault"
    delivered = {name: (folder / f"{name}.hcl").read_text() for name in ("leasehold-observe", "leasehold-respond")}
    for name, policy in delivered.items():
        rules = policy[policy.index('# path "+/sys/leases') :].split("\n\n")[0]
        with_them = policy.replace(rules, rules.replace("# ", ""))
        configured.admin.sys.create_or_update_policy(name, with_them)
    yield
    for name, policy in delivered.items():
        configured.admin.sys.create_or_update_policy(name, policy)


@pytest.mark.usefixtures("may_in_children")
def test_a_lease_of_a_child_namespace_is_revoked_there(team: hvac.Client) -> None:
    lease_id = team.adapter.get("/v1/database/creds/my-role")["lease_id"]
    read_streams()
    lease = Lease.objects.get(lease_id=lease_id)
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    jobs.work_on(action.job.pk)
    read_streams()
    steps = dict(action.steps.filter(lease_id=lease_id).values_list("name", "outcome"))
    assert (steps["Vault answered"], steps["lease gone"], steps["audit line seen"]) == ("ok", "ok", "ok")
    lease.refresh_from_db()
    assert (lease.state, lease.end_reason) == (LeaseState.ENDED, EndReason.REVOKED_HERE)
    with pytest.raises(hvac.exceptions.InvalidRequest, match="invalid lease"):
        team.adapter.put("/v1/sys/leases/lookup", json={"lease_id": lease_id})


def test_without_the_rule_for_a_child_namespace_the_receipt_names_it(configured: World, team: hvac.Client) -> None:
    team.adapter.get("/v1/database/creds/my-role")
    read_streams()
    lease = Lease.objects.get(vault_namespace=f"{team.adapter.namespace}/")
    action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
    jobs.work_on(action.job.pk)
    assert action.revocations.get().state == "failed"
    detail = action.steps.get(name="Vault answered").detail
    assert f'path "{team.adapter.namespace}/sys/leases/lookup" {{ capabilities = ["update"] }}' in detail


def test_an_auth_mount_of_another_namespace_lends_no_identity(configured: World, team: hvac.Client) -> None:
    password = "not-a-secret-of-anybody"
    team.write_data("auth/kubernetes/users/ada", data={"password": password, "token_policies": ["default"]})
    team.adapter.post("/v1/auth/kubernetes/login/ada", json={"password": password})
    read_streams()
    login = Login.objects.get(own=False)
    assert (login.mount_path, login.auth_mount) == (f"{team.adapter.namespace}//kubernetes", None)


# the lease API


def test_a_list_of_what_is_not_there_is_empty(configured: World) -> None:
    assert clients.observer(Vault.objects.get()).list_leases("database/creds/nobody-reads-this/") == []


def test_a_lookup_of_an_unknown_lease_says_that_there_is_none(configured: World) -> None:
    assert clients.observer(Vault.objects.get()).lookup_lease("database/creds/my-role/nothing") is None


@pytest.mark.parametrize("how", ["body", "prefix", "force"])
def test_a_lease_is_ended_by_the_id_that_vault_heeds(configured: World, how: str) -> None:
    """The body's id counts even where the path has another, and a prefix may be a whole id."""
    pod = configured.pod("storefront")
    pod.log_in()
    one, other = read_with(pod), read_with(pod)
    pod.renew(one)
    if how == "body":
        configured.admin.adapter.put(f"/v1/sys/leases/revoke/{other}", json={"lease_id": one, "sync": True})
    else:
        configured.admin.adapter.put(
            f"/v1/sys/leases/revoke-{how}/{one}", json={} if how == "force" else {"sync": True}
        )
    read_streams()
    reason = {"body": "revoked in Vault", "prefix": "by prefix", "force": "forced (database user may live)"}[how]
    assert look_up(one).end_reason == reason
    assert Lease.objects.get(lease_id=other).end_seen_reason == ""


def test_a_token_that_is_renewed_wrapped_is_not_made_by_itself(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    pod.call("POST", "auth/token/renew-self", {}, wrap_seconds=60)
    read_streams()
    assert Login.objects.filter(own=False).count() == 1
    assert Lease.objects.get(lease_id=lease_id).service_account == "storefront"


def test_a_token_that_another_pod_takes_out_of_its_wrapping_names_no_pod(configured: World) -> None:
    """By claims the login is the one pod's; the read comes from the other."""
    maker_, taker = configured.pod("invoicing"), configured.pod("storefront")
    jwt = maker_.service_account_token()
    body = {"role": maker_.application.vault_role, "jwt": jwt}
    wrapped = maker_.call("POST", "auth/jwt/login", body, wrap_seconds=60)["wrap_info"]["token"]
    token = replace(taker, token=wrapped).call("POST", "sys/wrapping/unwrap")["auth"]["client_token"]
    lease_id = read_with(replace(taker, application=maker_.application, token=token))
    read_streams()
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.certainty, lease.pod) == (Certainty.AMBIGUOUS, "")
    assert maker_.name in lease.certainty_reason


def test_a_long_line_of_tokens_hides_nobody(configured: World) -> None:
    pod = maker(configured)
    last = pod
    for _ in range(60):
        last = last.make_token(policies=["shop-storefront", "makes-tokens"])
    lease_id = read_with(last)
    configured.admin.adapter.post("/v1/auth/token/revoke", json={"token": pod.token})
    read_streams()
    catch_up()
    lease = look_up(lease_id)
    assert (lease.service_account, lease.pod, lease.end_reason) == ("storefront", pod.name, "token revoked")


def test_the_child_of_a_token_that_is_older_than_the_log_ends_with_it(configured: World) -> None:
    parent = configured.admin.auth.token.create(policies=["root"], ttl="60s")["auth"]
    read_streams()
    # as if the line that made the parent had never been there
    Token.objects.update(login=None)
    Login.objects.all().delete()
    pod = replace(configured.pod("storefront"), token=parent["client_token"])
    lease_id = read_with(pod.make_token())
    configured.admin.adapter.post("/v1/auth/token/revoke-accessor", json={"accessor": parent["accessor"]})
    read_streams()
    assert look_up(lease_id).end_reason == "token revoked"


def test_an_event_after_a_lease_was_found_gone_does_not_explain_it(configured: World) -> None:
    lease = Lease.objects.get(lease_id=issue(configured.pod("storefront")))
    ended_at = timezone.now() - timedelta(seconds=10)
    lookups.end(lease, at=ended_at, reason=EndReason.UNKNOWN, evidence="found gone", now=timezone.now())
    configured.admin.adapter.put("/v1/sys/leases/revoke-prefix/database/creds/my-role", json={"sync": True})
    read_streams()
    lease.refresh_from_db()
    assert (lease.end_reason, lease.ended_at) == (EndReason.UNKNOWN, ended_at)


def test_revoking_what_is_not_there_succeeds_so_that_only_a_lookup_proves_an_end(configured: World) -> None:
    answer = configured.admin.adapter.put("/v1/sys/leases/revoke/database/creds/my-role/nothing", json={"sync": True})
    assert answer.status_code == 204


def test_a_revocation_without_sync_is_accepted_at_once_and_done_soon(configured: World) -> None:
    lease_id = issue(configured.pod("storefront"))
    answer = configured.admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease_id, "sync": False})
    assert answer.status_code == 202
    deadline = time.monotonic() + 10
    while clients.observer(Vault.objects.get()).lookup_lease(lease_id) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    Lease.objects.update(lookup_due_at=timezone.now())
    lease = look_up(lease_id)
    assert lease.state == LeaseState.ENDED
    # by the hash of its id, which no renewal has told
    assert lease.end_reason == EndReason.UNKNOWN
    read_streams()
    unexplained.explain(Device.objects.order_by("id")[0], now=timezone.now())
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.REVOKED_IN_VAULT


def test_a_revocation_without_sync_that_fails_is_accepted_too_and_ends_nothing(configured: World) -> None:
    lease_id = _issue_stuck(configured)
    answer = configured.admin.adapter.put(f"/v1/sys/leases/revoke/{lease_id}", json={"sync": False})
    assert answer.status_code == 202
    read_streams()
    lease = look_up(lease_id)
    assert (lease.state, lease.end_seen_reason) == (LeaseState.LIVE, "revoked in Vault")
    # its time is cut to nothing, and then it is over and still there
    time.sleep(2)
    Lease.objects.update(lookup_due_at=timezone.now())
    lease = look_up(lease_id)
    times = clients.observer(Vault.objects.get()).lookup_lease(lease_id)
    assert times is not None
    assert times.ttl_seconds < 0
    assert (lease.state, lease.ended_at, lease.expires_at) == (LeaseState.LIVE, None, times.expires_at)
    assert lease.lookup_due_at is not None
    assert lease_id in _listed(configured, lease_id)


def _issue_stuck(world: World) -> str:
    """Of a role whose database users cannot be dropped."""
    answer = world.admin.adapter.get(f"/v1/database/creds/{STUCK_ROLE}")
    return str(answer["lease_id"])


def _listed(world: World, lease_id: str) -> list[str]:
    folder = lease_id.rpartition("/")[0]
    return [f"{folder}/{name}" for name in world.admin.list(f"sys/leases/lookup/{folder}")["data"]["keys"]]


def test_a_disabled_entity_leaves_its_leases_alive(configured: World) -> None:
    pod = configured.pod("storefront")
    lease_id = issue(pod)
    entity = Login.objects.get(own=False).entity_id
    configured.admin.secrets.identity.update_entity(entity_id=entity, disabled=True)
    try:
        with pytest.raises(AssertionError, match="403"):
            pod.read_credentials()
        assert look_up(lease_id).state == LeaseState.LIVE
    finally:
        configured.admin.secrets.identity.update_entity(entity_id=entity, disabled=False)


def test_a_lease_says_that_it_lives_longer_than_its_token_and_dies_with_it(configured: World) -> None:
    token = configured.admin.auth.token.create(policies=["shop-storefront"], ttl="2s", renewable=False)
    pod = replace(configured.pod("storefront"), token=token["auth"]["client_token"])
    lease_id = read_with(pod)
    read_streams()
    lease = look_up(lease_id)
    login = lease.login
    assert login is not None
    assert lease.expires_at is not None
    assert login.expires_at is not None
    assert lease.expires_at > login.expires_at
    assert clients.observer(Vault.objects.get()).lookup_lease(lease_id) is not None
    deadline = time.monotonic() + 10
    while clients.observer(Vault.objects.get()).lookup_lease(lease_id) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # the workers ask a moment after the token's time
    time.sleep(1)
    lease = look_up(lease_id)
    assert (lease.state, lease.end_reason, lease.ended_at) == (LeaseState.ENDED, "expired (inferred)", login.expires_at)
    assert "the token that it was issued to ended" in lease.end_evidence


def test_a_lease_dies_with_the_token_that_made_its_token(configured: World) -> None:
    parent = configured.admin.auth.token.create(policies=["root"], ttl="3s", renewable=False)
    pod = replace(configured.pod("storefront"), token=parent["auth"]["client_token"])
    child = pod.call("POST", "auth/token/create", {"policies": ["shop-storefront"], "ttl": "60s"})
    lease_id = read_with(replace(pod, token=child["auth"]["client_token"]))
    read_streams()
    lease = look_up(lease_id)
    assert lease.login is not None
    assert lease.login.parent is not None
    deadline = time.monotonic() + 10
    while clients.observer(Vault.objects.get()).lookup_lease(lease_id) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    ended = look_up(lease_id)
    assert (ended.state, ended.end_reason) == (LeaseState.ENDED, "expired (inferred)")
    assert ended.ended_at == lease.login.parent.expires_at
