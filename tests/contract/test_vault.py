"""What leases/vault.py relies on, held against a real OpenBao and, with VAULT_BINARY, against HashiCorp Vault."""

import http.server
import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import hvac
import hvac.exceptions
import psycopg
import pytest

from demo import openbao as openbao_server
from demo import processes
from demo.kube import Cluster, driver
from demo.openbao import OpenBao
from demo.postgres import Postgres
from leases import vault as boundary
from leases.references import read_secret
from leases.vault import (
    DatabaseConnection,
    DatabaseRole,
    LeaseTimes,
    LoginMethod,
    RevocationFailed,
    VaultClient,
    VaultDenied,
    VaultError,
    VaultLoginFailed,
    VaultSealed,
    VaultUnreachable,
)

_POLICIES = Path(__file__).resolve().parents[2] / "deploy" / "vault"
_CREATE = [
    "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';",
    'GRANT CONNECT ON DATABASE postgres TO "{{name}}";',
]
_REVOKE = ['REVOKE CONNECT ON DATABASE postgres FROM "{{name}}";', 'DROP ROLE IF EXISTS "{{name}}";']

_PROGRAMS = {"openbao": openbao_server.packaged}
if os.environ.get("VAULT_BINARY"):
    _PROGRAMS["vault"] = openbao_server.binary


@pytest.fixture(scope="module", params=_PROGRAMS)
def server(request: pytest.FixtureRequest, run_folder: Path, postgres: Postgres) -> Iterator[OpenBao]:
    """A server of this suite's own: it seals it and breaks roles. Database engine as in the classic tutorial."""
    running = openbao_server.start(run_folder / f"contract-{request.param}", program=_PROGRAMS[request.param]())
    _prepare(running, postgres)
    yield running
    running.stop()


@pytest.fixture
def root(server: OpenBao) -> hvac.Client:
    return hvac.Client(server.address, token=server.root_token)


@pytest.fixture
def observer(server: OpenBao, root: hvac.Client) -> Iterator[VaultClient]:
    yield from _account(server, root, "leasehold-observe")


@pytest.fixture
def responder(server: OpenBao, root: hvac.Client) -> Iterator[VaultClient]:
    yield from _account(server, root, "leasehold-respond")


def _prepare(server: OpenBao, postgres: Postgres) -> None:
    root = hvac.Client(server.address, token=server.root_token)
    postgres.create_role("contract_vault", "CREATEROLE")
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("GRANT CONNECT ON DATABASE postgres TO contract_vault WITH GRANT OPTION")
    account = postgres.dsn("contract_vault")
    for mount in ("database", "other"):
        root.sys.enable_secrets_engine("database", path=mount)
        root.write_data(
            f"{mount}/config/orders",
            data={
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": ["*"],
                "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/postgres",
                "username": "contract_vault",
                "password": account.split(":")[2].split("@")[0],
            },
        )
        for role in ("my-role", "broken"):
            root.write_data(
                f"{mount}/roles/{role}",
                data={
                    "db_name": "orders",
                    "creation_statements": _CREATE,
                    "revocation_statements": _REVOKE if role == "my-role" else ["SELECT no_such_function()"],
                    "default_ttl": "120s",
                    "max_ttl": "1h",
                },
            )
    for name in ("leasehold-observe", "leasehold-respond"):
        root.sys.create_or_update_policy(name, (_POLICIES / f"{name}.hcl").read_text())
    root.sys.enable_auth_method("approle")


def _token(root: hvac.Client, *policies: str, ttl: str = "1h", **more: object) -> str:
    made = root.auth.token.create(policies=list(policies), no_default_policy=True, ttl=ttl, **more)
    token: str = made["auth"]["client_token"]
    return token


def _with_token(server: OpenBao, token: str) -> VaultClient:
    return VaultClient(server.address, LoginMethod("token", "token", "", lambda: token))


@dataclass(frozen=True)
class _Person:
    """Somebody who logs in by an AppRole: the entity, and how the mount knows it."""

    entity_id: str
    mount_accessor: str
    alias: str


def _person(root: hvac.Client) -> _Person:
    root.write_data("auth/approle/role/person", data={"token_policies": ["default"]})
    role: Any = root.read("auth/approle/role/person/role-id")
    entity_id = root.auth.token.lookup(_log_in(root))["data"]["entity_id"]
    methods: Any = root.read("sys/auth")
    return _Person(str(entity_id), methods["data"]["approle/"]["accessor"], role["data"]["role_id"])


def _log_in(root: hvac.Client) -> str:
    role: Any = root.read("auth/approle/role/person/role-id")
    made: Any = root.write_data("auth/approle/role/person/secret-id")
    body = {"role_id": role["data"]["role_id"], "secret_id": made["data"]["secret_id"]}
    answer: Any = hvac.Client(root.url).write_data("auth/approle/login", data=body)
    return str(answer["auth"]["client_token"])


def _account(server: OpenBao, root: hvac.Client, policy: str) -> Iterator[VaultClient]:
    """A client whose token carries this one policy, not even `default`."""
    client = _with_token(server, _token(root, policy))
    yield client
    client.close()


def _approle(server: OpenBao, root: hvac.Client, **settings: object) -> tuple[VaultClient, list[int]]:
    """A client that logs in by AppRole, and a list that grows with each of its logins."""
    root.write_data(
        "auth/approle/role/contract",
        data={"token_policies": ["leasehold-observe"], "token_no_default_policy": True, **settings},
    )
    role_id = root.read("auth/approle/role/contract/role-id")["data"]["role_id"]
    logins: list[int] = []

    def read() -> str:
        logins.append(1)
        secret: str = root.write_data("auth/approle/role/contract/secret-id")["data"]["secret_id"]
        return secret

    return VaultClient(server.address, LoginMethod("approle", "approle", role_id, read)), logins


def _issue(root: hvac.Client, role: str = "my-role", mount: str = "database") -> tuple[str, str]:
    """A fresh credential: lease id and database user."""
    made = root.read(f"{mount}/creds/{role}")
    return made["lease_id"], made["data"]["username"]


def _user_exists(postgres: Postgres, name: str) -> bool:
    with psycopg.connect(postgres.dsn()) as connection:
        return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None


def _tokens(root: hvac.Client) -> int:
    return len(root.list("auth/token/accessors")["data"]["keys"])


def _log(server: OpenBao, device: str = "file-a") -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.audit_logs[device].read_text().splitlines()]


# -- the server


def test_health_is_read_without_logging_in(server: OpenBao) -> None:
    def no_secret() -> str:
        raise AssertionError("health needs no login")

    health = VaultClient(server.address, LoginMethod("token", "token", "", no_secret)).health()
    assert (health.initialized, health.sealed, health.standby) == (True, False, False)
    assert health.version
    assert health.cluster_name


def test_a_sealed_vault_is_named_as_such(server: OpenBao, observer: VaultClient) -> None:
    observer.ensure_ready()
    server.seal()
    try:
        assert observer.health().sealed
        calls: list[Callable[[], object]] = [
            observer.ensure_ready,
            lambda: observer.lookup_lease("database/creds/my-role/x"),
            lambda: observer.list_leases("database/"),
            lambda: observer.revoke_lease("database/creds/my-role/x"),
            lambda: _with_token(server, "s.any").audit_devices(),
        ]
        for call in calls:
            with pytest.raises(VaultSealed, match="is sealed") as caught:
                call()
            assert server.address in caught.value.cause
            assert "operator unseal" in caught.value.fix
    finally:
        server.unseal()
    observer.ensure_ready()


def test_capabilities_tell_what_the_account_may_do(observer: VaultClient) -> None:
    assert observer.capabilities(["sys/audit", "database/creds/my-role"]) == {
        "sys/audit": ["read", "sudo"],
        "database/creds/my-role": ["deny"],
    }
    assert observer.capabilities(["sys/audit-hash/file-a"]) == {"sys/audit-hash/file-a": ["update"]}


# -- leases


def test_a_lookup_gives_the_times_of_a_lease_in_utc(root: hvac.Client, observer: VaultClient) -> None:
    before = datetime.now(UTC)
    lease_id, _ = _issue(root)
    times = observer.lookup_lease(lease_id)
    assert times is not None
    assert times.expires_at is not None
    assert times.lease_id == lease_id
    assert before - timedelta(seconds=1) < times.issued_at < datetime.now(UTC) + timedelta(seconds=1)
    assert times.issued_at.tzinfo is UTC
    assert abs(times.expires_at - times.issued_at - timedelta(seconds=120)) < timedelta(seconds=1)
    assert times.last_renewal_at is None
    assert times.renewable
    assert 115 < times.ttl_seconds <= 120
    assert times.revoke_error is None


def test_a_renewal_moves_the_end_of_a_lease(root: hvac.Client, observer: VaultClient) -> None:
    lease_id, _ = _issue(root)
    first = observer.lookup_lease(lease_id)
    root.sys.renew_lease(lease_id, increment=600)
    second = observer.lookup_lease(lease_id)
    assert first is not None
    assert first.expires_at is not None
    assert second is not None
    assert second.expires_at is not None
    assert second.last_renewal_at is not None
    assert second.issued_at == first.issued_at
    assert second.expires_at > first.expires_at + timedelta(seconds=400)
    assert second.issued_at < second.last_renewal_at <= datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.parametrize("lease_id", ["database/creds/my-role/none", "nowhere", "a b/ü?x#y%2f"])
def test_a_lookup_of_an_unknown_lease_finds_nothing(observer: VaultClient, lease_id: str) -> None:
    assert observer.lookup_lease(lease_id) is None


def test_leases_are_listed_by_level(root: hvac.Client, observer: VaultClient) -> None:
    first, _ = _issue(root)
    second, _ = _issue(root)
    assert "creds/" in observer.list_leases("database/")
    assert "my-role/" in observer.list_leases("database/creds")
    assert {first.rpartition("/")[2], second.rpartition("/")[2]} <= set(observer.list_leases("database/creds/my-role/"))


def test_a_prefix_without_leases_is_an_empty_list(observer: VaultClient) -> None:
    assert observer.list_leases("database/nothing/here/") == []


def test_a_revocation_ends_lease_and_user_and_stands_in_the_log_in_plain(
    server: OpenBao, root: hvac.Client, observer: VaultClient, responder: VaultClient, postgres: Postgres
) -> None:
    lease_id, user = _issue(root)
    assert _user_exists(postgres, user)

    assert responder.revoke_lease(lease_id) is None  # a 204 carries no request id

    assert observer.lookup_lease(lease_id) is None
    assert responder.lookup_lease(lease_id) is None
    assert not _user_exists(postgres, user)
    line = next(line for line in _log(server) if line["request"].get("path") == f"sys/leases/revoke/{lease_id}")
    assert line["request"]["data"]["sync"] is True


def test_revoking_an_unknown_lease_proves_nothing_but_is_no_error(responder: VaultClient) -> None:
    assert responder.revoke_lease("database/creds/my-role/none") is None


def test_a_lease_that_its_database_refuses_to_revoke_stays_and_says_why(
    root: hvac.Client, observer: VaultClient, responder: VaultClient, postgres: Postgres
) -> None:
    lease_id, user = _issue(root, "broken")
    with pytest.raises(RevocationFailed, match="no_such_function") as caught:
        responder.revoke_lease(lease_id)
    assert "no_such_function" in caught.value.text
    assert "lease" in caught.value.cause
    assert "revocation statements" in caught.value.fix
    assert observer.lookup_lease(lease_id) is not None
    assert _user_exists(postgres, user)
    root.write_data("database/roles/broken", data={"db_name": "orders", "revocation_statements": _REVOKE})
    assert responder.revoke_lease(lease_id) is None
    assert observer.lookup_lease(lease_id) is None


def test_a_lease_whose_database_is_gone_stays(
    root: hvac.Client, observer: VaultClient, responder: VaultClient, postgres: Postgres
) -> None:
    lease_id, _ = _issue(root)
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("ALTER ROLE contract_vault NOLOGIN")
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'contract_vault'"
        )
        try:
            with pytest.raises(RevocationFailed):
                responder.revoke_lease(lease_id)
            assert observer.lookup_lease(lease_id) is not None
        finally:
            connection.execute("ALTER ROLE contract_vault LOGIN")
    responder.revoke_lease(lease_id)
    assert observer.lookup_lease(lease_id) is None


@pytest.mark.parametrize("lease_id", ["", "database/../sys/seal", "a//b", "./x"])
def test_what_is_no_lease_id_is_never_sent(responder: VaultClient, lease_id: str) -> None:
    with pytest.raises(ValueError, match="no path in Vault"):
        responder.revoke_lease(lease_id)


def test_a_lease_id_with_strange_characters_reaches_vault_as_it_is(server: OpenBao, responder: VaultClient) -> None:
    responder.revoke_lease("database/creds/my role/ü?x#y%2f")
    assert any(
        line["request"].get("path") == "sys/leases/revoke/database/creds/my role/ü?x#y%2f" for line in _log(server)
    )


# -- audit devices


def test_an_audit_hash_matches_the_line_of_that_device_only(
    server: OpenBao, root: hvac.Client, observer: VaultClient
) -> None:
    lease_id, user = _issue(root)
    lines = {
        device: next(
            line
            for line in _log(server, device)
            if line["type"] == "response"
            and line.get("response", {}).get("secret", {}).get("lease_id") == lease_id
            and line["request"]["operation"] == "read"
        )
        for device in ("file-a", "file-b")
    }
    hashes = {device: observer.audit_hash(device, user) for device in lines}
    for device, line in lines.items():
        assert line["response"]["data"]["username"] == hashes[device]
    assert hashes["file-a"] != hashes["file-b"]


def test_the_request_id_of_an_answer_stands_in_the_log(server: OpenBao, observer: VaultClient) -> None:
    observer.audit_hash("file-a", "anything")
    assert observer.last_request_id
    assert observer.last_request_id in {line["request"]["id"] for line in _log(server)}


def test_the_enabled_devices_are_listed(server: OpenBao, observer: VaultClient) -> None:
    assert observer.audit_devices() == ["file-a", "file-b"]
    options = observer.audit_device_options()
    assert options["file-a"]["file_path"] == str(server.audit_logs["file-a"])


def test_the_active_node_says_that_it_is_the_leader(server: OpenBao, observer: VaultClient) -> None:
    leader = observer.leader()
    assert (leader.is_self, leader.address) == (True, server.address)


def test_many_lookups_are_answered_in_their_order_and_an_unknown_lease_is_none(
    root: hvac.Client, observer: VaultClient
) -> None:
    ids = [_issue(root)[0] for _ in range(9)]
    asked = [(lease_id, "") for lease_id in [*ids[:4], "database/creds/my-role/none", *ids[4:]]]
    found = observer.lookup_leases(asked)
    assert found[4] is None
    assert [times.lease_id for times in found if isinstance(times, LeaseTimes)] == ids


def test_lookups_that_are_denied_say_so_one_by_one(server: OpenBao, root: hvac.Client) -> None:
    client = _with_token(server, _token(root, "default"))
    assert all(
        isinstance(answer, VaultDenied) for answer in client.lookup_leases([("database/creds/my-role/x", "")] * 3)
    )


def test_an_unknown_device_is_named_and_the_value_is_not_repeated(observer: VaultClient) -> None:
    with pytest.raises(VaultError, match="file-z") as caught:
        observer.audit_hash("file-z", "the-secret-value")
    assert "the-secret-value" not in str(caught.value)


# -- database mounts


def test_the_connections_and_roles_of_a_mount_are_read(observer: VaultClient) -> None:
    assert observer.database_connections("database") == [DatabaseConnection("orders", "postgresql-database-plugin")]
    assert DatabaseRole("my-role", "orders", 120, 3600) in observer.database_roles("database/")


def test_a_mount_that_is_not_there_is_named(server: OpenBao) -> None:
    client = _with_token(server, server.root_token)
    with pytest.raises(VaultError, match="nothing at nowhere/config") as caught:
        client.database_connections("nowhere")
    assert "mount's path" in caught.value.fix


def test_a_mount_without_connections_has_none(server: OpenBao, root: hvac.Client) -> None:
    root.sys.enable_secrets_engine("database", path="empty")
    try:
        assert _with_token(server, server.root_token).database_connections("empty") == []
    finally:
        root.sys.disable_secrets_engine("empty")


# -- least privilege


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "database/creds/my-role", None),
        ("put", "sys/leases/revoke", {"lease_id": "database/creds/my-role/x"}),
        ("put", "sys/leases/revoke/other/creds/my-role/x", {}),
        ("put", "sys/leases/revoke-prefix/database", {}),
        ("put", "sys/leases/revoke-force/database", {}),
        ("put", "sys/leases/renew", {"lease_id": "database/creds/my-role/x"}),
        ("list", "sys/leases/lookup/other/", None),
        ("list", "sys/leases/lookup/auth/", None),
        ("list", "sys/policies/acl", None),
        ("get", "sys/policies/acl/leasehold-observe", None),
        ("put", "sys/policies/acl/leasehold-observe", {"policy": 'path "*" { capabilities = ["sudo"] }'}),
        ("get", "sys/mounts", None),
        ("put", "sys/audit/mine", {"type": "file", "options": {"file_path": "discard"}}),
        ("delete", "sys/audit/file-a", None),
        ("put", "sys/seal", {}),
        ("put", "database/config/orders", {"plugin_name": "postgresql-database-plugin"}),
        ("put", "database/roles/my-role", {"db_name": "orders"}),
        ("delete", "database/roles/my-role", None),
        ("put", "database/rotate-root/orders", {}),
        ("put", "auth/token/create", {}),
        ("put", "identity/entity", {"name": "x"}),
        ("put", "identity/entity/name/x", {"disabled": True}),
        ("put", "identity/entity-alias", {"name": "x"}),
        ("put", "auth/token/revoke", {"token": "x"}),
        ("put", "sys/auth/other", {"type": "userpass"}),
        # whoever could write an identity's policies could give himself any right
        ("put", "identity/entity/id/{entity}", {"policies": ["root"]}),
        ("put", "identity/entity/id/{entity}", {"disabled": False, "policies": ["root"]}),
        ("put", "sys/leases/revoke/database/creds/x/y", {"lease_id": "other/creds/x/y"}),
        ("put", "identity/entity/id/{entity}", {"metadata": {"a": "b"}}),
        ("delete", "identity/entity/id/{entity}", None),
        ("list", "identity/entity/id", None),
    ],
)
@pytest.mark.parametrize("policy", ["leasehold-observe", "leasehold-respond"])
def test_the_policies_allow_nothing_else(
    server: OpenBao, root: hvac.Client, policy: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    client = hvac.Client(server.address, token=_token(root, policy))
    with pytest.raises(hvac.exceptions.Forbidden):
        client.adapter.request(method, f"v1/{path.format(entity=_person(root).entity_id)}", json=body)


def test_the_observing_account_ends_no_lease(server: OpenBao, root: hvac.Client, observer: VaultClient) -> None:
    lease_id, _ = _issue(root)
    with pytest.raises(VaultDenied):
        observer.revoke_lease(lease_id)
    assert observer.lookup_lease(lease_id) is not None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "sys/auth", None),
        ("put", "identity/lookup/entity", {"id": "x"}),
        ("put", "identity/entity/id/x", {"disabled": True}),
        ("list", "auth/token/accessors", None),
        ("put", "auth/token/revoke-accessor", {"accessor": "x"}),
    ],
)
def test_the_observing_account_contains_nobody(
    server: OpenBao, root: hvac.Client, method: str, path: str, body: dict[str, object] | None
) -> None:
    client = hvac.Client(server.address, token=_token(root, "leasehold-observe"))
    with pytest.raises(hvac.exceptions.Forbidden):
        client.adapter.request(method, f"v1/{path}", json=body)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("list", "sys/leases/lookup/database/", None),
        ("put", "sys/audit-hash/file-a", {"input": "x"}),
        ("get", "sys/audit", None),
        ("get", "database/config/orders", None),
        ("get", "database/roles/my-role", None),
    ],
)
def test_the_responding_account_does_not_observe(
    server: OpenBao, root: hvac.Client, method: str, path: str, body: dict[str, object] | None
) -> None:
    client = hvac.Client(server.address, token=_token(root, "leasehold-respond"))
    with pytest.raises(hvac.exceptions.Forbidden):
        client.adapter.request(method, f"v1/{path}", json=body)


def test_the_policies_work_beside_the_default_policy_too(server: OpenBao, root: hvac.Client) -> None:
    """`default` names sys/leases/lookup exactly, which shadows globs."""
    lease_id, _ = _issue(root)
    for policy in ("leasehold-observe", "leasehold-respond"):
        made = root.auth.token.create(policies=[policy, "default"], ttl="1h")
        client = _with_token(server, made["auth"]["client_token"])
        assert client.lookup_lease(lease_id) is not None
    assert client.revoke_lease(lease_id) is None


def test_a_missing_capability_names_the_path_and_the_line_of_deploys_policy(server: OpenBao, root: hvac.Client) -> None:
    observing, responding = (
        " ".join((_POLICIES / f"leasehold-{name}.hcl").read_text().split()) for name in ("observe", "respond")
    )
    bare = _with_token(server, _token(root, "no-such-policy"))
    lease_id = "database/creds/my-role/x"
    calls: list[tuple[Callable[[], object], str, str]] = [
        (lambda: bare.revoke_lease(lease_id), "sys/leases/revoke/database/*", '"update"'),
        (lambda: bare.list_leases("database/"), "sys/leases/lookup/database/*", '"list", "sudo"'),
        (lambda: bare.lookup_lease(lease_id), "sys/leases/lookup", '"update"'),
        (lambda: bare.audit_hash("file-a", "x"), "sys/audit-hash/*", '"update"'),
        (lambda: bare.audit_devices(), "sys/audit", '"read", "sudo"'),
        (lambda: bare.database_connections("database"), "database/config", '"list"'),
        (lambda: bare.database_roles("database"), "database/roles", '"list"'),
        (lambda: bare.capabilities(["x"]), "sys/capabilities-self", '"update"'),
        (lambda: bare.auth_methods(), "sys/auth", '"read"'),
        (lambda: bare.entity_of_alias("x", "y"), "identity/lookup/entity", '"update"'),
        (lambda: bare.token_accessors(), "auth/token/accessors", '"list", "sudo"'),
        (lambda: bare.lookup_tokens(["x"]), "auth/token/lookup-accessor", '"update"'),
        (lambda: bare.revoke_token("x"), "auth/token/revoke-accessor", '"update"'),
    ]
    of_responding = ("sys/leases/revoke/", "sys/auth", "identity/", "auth/token/")
    for call, path, words in calls:
        line = f'path "{path}" {{ capabilities = [{words}] }}'
        with pytest.raises(VaultDenied) as caught:
            call()
        assert line in caught.value.fix
        # the delivered policy may narrow it further (allowed_parameters)
        assert line.removesuffix(" }") in (responding if path.startswith(of_responding) else observing)
        assert caught.value.path.startswith(path.rstrip("*"))
        assert caught.value.path in caught.value.cause


def test_a_poller_that_lacks_a_capability_does_not_make_a_token_for_each_poll(
    server: OpenBao, root: hvac.Client
) -> None:
    client, logins = _approle(server, root)
    client.audit_devices()
    for _ in range(3):
        with pytest.raises(VaultDenied):
            client.revoke_lease("database/creds/my-role/x")
    assert len(logins) == 1


def test_an_old_token_is_replaced_once_before_a_denial_is_believed(
    server: OpenBao, root: hvac.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "FRESH_TOKEN_SECONDS", 0.3)
    client, logins = _approle(server, root, token_policies=["no-such-policy"])
    with pytest.raises(VaultDenied):
        client.audit_devices()
    assert len(logins) == 1
    time.sleep(0.4)
    with pytest.raises(VaultDenied):
        client.audit_devices()
    assert len(logins) == 2
    root.write_data("auth/approle/role/contract", data={"token_policies": ["leasehold-observe"]})
    time.sleep(0.4)
    assert client.audit_devices() == ["file-a", "file-b"]


# -- logging in


def test_a_revoked_token_is_replaced_by_one_new_login(server: OpenBao, root: hvac.Client) -> None:
    client, logins = _approle(server, root)
    client.audit_devices()
    root.auth.token.revoke(client._adapter.token)
    before = _tokens(root)
    assert client.audit_devices() == ["file-a", "file-b"]
    assert len(logins) == 2
    assert _tokens(root) == before + 1


def test_a_token_is_replaced_before_it_ends(server: OpenBao, root: hvac.Client) -> None:
    client, logins = _approle(server, root, token_ttl="2s", token_max_ttl="2s")
    before = len(_log(server))
    client.audit_devices()
    client.audit_devices()
    assert len(logins) == 1
    time.sleep(1.5)
    client.audit_devices()
    assert len(logins) == 2
    lines = [line for line in _log(server)[before:] if line["request"].get("path") == "sys/audit"]
    assert len(lines) >= 6
    assert not [line for line in lines if "permission denied" in line.get("error", "")]


def test_a_given_token_is_renewed_before_it_ends(server: OpenBao, root: hvac.Client) -> None:
    token = _token(root, "leasehold-observe", ttl="3s")
    client = _with_token(server, token)
    client.audit_devices()
    for _ in range(4):
        time.sleep(1.2)
        client.audit_devices()


def test_a_rotated_token_file_is_read_again(server: OpenBao, root: hvac.Client, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    first = _token(root, "leasehold-observe")
    secret.write_text(first + "\n")
    client = VaultClient(server.address, LoginMethod("token", "token", "", lambda: read_secret({"file": str(secret)})))
    client.audit_devices()
    secret.write_text(_token(root, "leasehold-observe"))
    root.auth.token.revoke(first)
    assert client.audit_devices() == ["file-a", "file-b"]


def test_a_wrong_token_is_a_failed_login_and_is_not_repeated(server: OpenBao) -> None:
    client = _with_token(server, "s.ThisTokenIsSurelyWrong00")
    with pytest.raises(VaultLoginFailed, match="wrong, expired or revoked") as caught:
        client.audit_devices()
    assert "ThisTokenIsSurelyWrong00" not in f"{caught.value}{caught.value.__cause__!r}{caught.value.__context__!r}"


def test_a_token_with_a_line_break_inside_is_refused_without_repeating_it(server: OpenBao) -> None:
    with pytest.raises(VaultLoginFailed, match="characters that no token has") as caught:
        _with_token(server, "s.first\ns.second").audit_devices()
    assert "second" not in f"{caught.value}{caught.value.__cause__!r}{caught.value.__context__!r}"


@pytest.mark.parametrize("method", ["approle", "kubernetes"])
def test_a_login_that_is_refused_names_mount_and_reason(
    server: OpenBao, root: hvac.Client, method: Literal["approle", "kubernetes"]
) -> None:
    if method == "kubernetes" and "kubernetes/" not in root.sys.list_auth_methods()["data"]:
        root.sys.enable_auth_method("kubernetes")
    client = VaultClient(
        server.address, LoginMethod(method, method, "nobody-s-role", lambda: "eyJhbGciOi.eyJpc3Mi.c2ln")
    )
    with pytest.raises(VaultLoginFailed, match=f"refused the {method} log-in at auth/{method}/login") as caught:
        client.audit_devices()
    assert "c2ln" not in str(caught.value)


def test_a_service_account_logs_in_by_its_pods_token(
    server: OpenBao, root: hvac.Client, kubernetes_api: Cluster
) -> None:
    with driver.connect(kubernetes_api) as api:
        driver.create_namespace(api, "leasehold")
        for name in ("leasehold", "reviewer"):
            driver.create_service_account(api, "leasehold", name)
        driver.grant_token_reviewer(api, "leasehold", "reviewer")
        driver.create_pod(api, "leasehold", "worker-0", service_account="leasehold")
        token = driver.request_token(api, "leasehold", "leasehold", pod="worker-0")
        reviewer = driver.request_token(api, "leasehold", "reviewer")
    root.sys.enable_auth_method("kubernetes", path="k8s")
    root.write_data(
        "auth/k8s/config",
        data={
            "kubernetes_host": kubernetes_api.address,
            "kubernetes_ca_cert": kubernetes_api.ca_file.read_text() if kubernetes_api.ca_file else "",
            "token_reviewer_jwt": reviewer,
            # Vault refuses to be without a CA, even where there is no TLS
            "disable_local_ca_jwt": bool(kubernetes_api.ca_file),
        },
    )
    root.write_data(
        "auth/k8s/role/leasehold-observe",
        data={
            "bound_service_account_names": ["leasehold"],
            "bound_service_account_namespaces": ["leasehold"],
            "token_policies": ["leasehold-observe"],
            "token_no_default_policy": True,
        },
    )

    def log_in(role: str, secret: str) -> VaultClient:
        return VaultClient(server.address, LoginMethod("kubernetes", "k8s", role, lambda: secret))

    assert log_in("leasehold-observe", token).audit_devices() == ["file-a", "file-b"]
    for role, secret in (("leasehold-observe", reviewer), ("no-such-role", token)):
        with pytest.raises(VaultLoginFailed, match="auth/k8s/login"):
            log_in(role, secret).audit_devices()


def test_a_login_at_a_mount_that_is_not_there_says_so(server: OpenBao) -> None:
    client = VaultClient(server.address, LoginMethod("kubernetes", "nowhere", "x", lambda: "jwt"))
    with pytest.raises(VaultLoginFailed, match="auth/nowhere"):
        client.audit_devices()


def test_a_secret_that_cannot_be_read_names_its_file(server: OpenBao, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for read in (lambda: read_secret({"file": missing}), lambda: Path(missing).read_text()):
        with pytest.raises(VaultLoginFailed, match="cannot be read") as caught:
            VaultClient(server.address, LoginMethod("token", "token", "", read)).audit_devices()
        assert caught.value.__cause__ is not None


# -- no answer, or none of Vault's. What a real server cannot be made to answer comes from a small stand-in.


def test_a_wrong_address_is_unreachable_and_named() -> None:
    address = f"http://127.0.0.1:{processes.free_port()}"
    client = VaultClient(address, LoginMethod("token", "token", "", lambda: "s.x"))
    for call in (client.health, client.audit_devices, client.ensure_ready):
        with pytest.raises(VaultUnreachable, match="connection refused") as caught:
            call()
        assert address in caught.value.cause
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("http://no-such-host.invalid:8200", "host name cannot be resolved"),
        ("vault.example:8200", "neither http nor https"),
        ("vault", "no URL"),
        ("http://", "no URL"),
        ("http://" + "x" * 70 + ".invalid", "cannot be reached"),
    ],
)
def test_an_address_that_leads_nowhere_is_explained(address: str, cause: str) -> None:
    with pytest.raises(VaultUnreachable, match=cause) as caught:
        VaultClient(address, LoginMethod("token", "token", "", lambda: "s.x")).health()
    assert caught.value.fix


def test_https_to_a_plain_port_is_explained(server: OpenBao) -> None:
    client = VaultClient(server.address.replace("http:", "https:"), LoginMethod("token", "token", "", lambda: "s.x"))
    with pytest.raises(VaultUnreachable, match="TLS failed") as caught:
        client.health()
    assert "http or https" in caught.value.fix


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "text"),
    [
        (500, {}, b'{"errors":["internal error"]}', VaultUnreachable, "answers 500 to sys/audit: internal error"),
        (429, {}, b'{"errors":["request path: quota exceeded"]}', VaultUnreachable, "too many requests"),
        (473, {}, b"", VaultUnreachable, "standby"),
        (412, {}, b'{"errors":["required index state not present"]}', VaultUnreachable, "standby"),
        (502, {"Content-Type": "text/html"}, b"<html>Bad Gateway", VaultUnreachable, "not as Vault does"),
        (503, {"Content-Type": "text/plain"}, b"no healthy upstream", VaultUnreachable, "no healthy upstream"),
        (503, {}, b'{"errors":["Vault is sealed"]}', VaultSealed, "is sealed"),
        (503, {}, b'{"errors":["server is not yet initialized"]}', VaultSealed, "not initialised"),
        (200, {"Content-Type": "text/html"}, b"<html>Please log in", VaultUnreachable, "not as Vault does"),
        (200, {}, b'{"data":["a","list"]}', VaultUnreachable, "not as Vault does"),
        (200, {}, b"\xff\xfe", VaultUnreachable, "not as Vault does"),
        (302, {"Location": "http://127.0.0.1:1/steal"}, b"", VaultUnreachable, "redirects"),
        (307, {"Location": "http://127.0.0.1:1/steal"}, b"", VaultUnreachable, "redirects"),
        (400, {}, b'{"errors":["x s.AbCdEfGhIjKlMnOpQrStUvWx y"]}', VaultError, r"x \[removed\] y"),
        (400, {}, b'{"errors":["' + b"long " * 1000 + b'"]}', VaultError, "…"),
    ],
)
def test_each_answer_that_is_no_success_has_its_error(
    status: int, headers: dict[str, str], body: bytes, error: type[VaultError], text: str
) -> None:
    with _stand_in(status, headers, body) as address:
        client = VaultClient(address, LoginMethod("token", "token", "", lambda: "s.x"))
        client._adapter.token = "s.x"
        client._keep(0, renewable=False)
        with pytest.raises(error, match=text) as caught:
            client.audit_devices()
    assert type(caught.value) is error
    assert len(str(caught.value)) < 700
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 — errors travel between worker processes
    assert (again.cause, again.fix) == (caught.value.cause, caught.value.fix)


def test_a_vault_that_does_not_answer_is_given_up_in_time() -> None:
    with _stand_in(200, {}, b"{}", wait=3) as address:
        client = VaultClient(address, LoginMethod("token", "token", "", lambda: "s.x"), timeout_seconds=0.3)
        started = time.monotonic()
        with pytest.raises(VaultUnreachable, match="took too long"):
            client.health()
        assert time.monotonic() - started < 2


def test_times_with_offsets_and_nanoseconds_are_read_exactly() -> None:
    body = b"""{"request_id": "r", "data": {"id": "database/creds/r/x", "renewable": false, "ttl": -3,
        "issue_time": "2026-11-24T01:02:03.123456789+02:00", "expire_time": "0001-01-01T00:00:00Z",
        "last_renewal": "2026-11-23T23:02:04Z", "revoke_error": "pq: postgresql://vault:hidden@db/x refused"}}"""
    with _stand_in(200, {}, body) as address:
        client = VaultClient(address, LoginMethod("token", "token", "", lambda: "s.x"))
        client._adapter.token = "s.x"
        client._keep(0, renewable=False)
        times = client.lookup_lease("database/creds/r/x")
    assert times is not None
    assert times.issued_at == datetime(2026, 11, 23, 23, 2, 3, 123457, tzinfo=UTC)
    assert times.expires_at is None
    assert times.last_renewal_at == datetime(2026, 11, 23, 23, 2, 4, tzinfo=UTC)
    assert times.ttl_seconds == -3
    assert times.revoke_error == "pq: postgresql://[removed]@db/x refused"


@contextmanager
def _stand_in(status: int, headers: dict[str, str], body: bytes, *, wait: float = 0) -> Iterator[str]:
    """An HTTP server that gives one and the same answer to everything."""
    enough = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            enough.wait(wait)
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            with suppress(ConnectionError):  # a client that has given up
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as standing_in:
        thread = threading.Thread(target=standing_in.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{standing_in.server_port}"
        finally:
            enough.set()
            standing_in.shutdown()
            thread.join()


def test_an_entity_is_found_by_an_alias_disabled_and_enabled_again(root: hvac.Client, responder: VaultClient) -> None:
    person = _person(root)
    assert responder.auth_methods()["approle"].accessor == person.mount_accessor
    assert responder.entity_of_alias(person.mount_accessor, "nobody") is None
    found = responder.entity_of_alias(person.mount_accessor, person.alias)
    assert found is not None
    assert found == responder.entity(person.entity_id)
    assert (found.entity_id, found.disabled) == (person.entity_id, False)
    assert [(alias.mount, alias.name) for alias in found.aliases] == [("approle", person.alias)]
    assert responder.entity("11111111-1111-1111-1111-111111111111") is None

    token = _log_in(root)
    root.write_data(f"identity/entity/id/{person.entity_id}", data={"policies": ["kept"], "metadata": {"team": "a"}})
    responder.disable_entity(person.entity_id, True)
    disabled = responder.entity(person.entity_id)
    assert disabled is not None
    assert disabled.disabled
    with pytest.raises(hvac.exceptions.Forbidden):
        hvac.Client(root.url, token=token).auth.token.lookup_self()
    with pytest.raises(hvac.exceptions.Forbidden):
        _log_in(root)

    responder.disable_entity(person.entity_id, False)
    kept: Any = root.read(f"identity/entity/id/{person.entity_id}")
    assert (kept["data"]["disabled"], kept["data"]["policies"], kept["data"]["metadata"]) == (
        False,
        ["kept"],
        {"team": "a"},
    )
    hvac.Client(root.url, token=token).auth.token.lookup_self()


def test_tokens_are_found_by_their_accessors_and_revoked(root: hvac.Client, responder: VaultClient) -> None:
    person, token = _person(root), _log_in(root)
    accessor = root.auth.token.lookup(token)["data"]["accessor"]
    assert accessor in responder.token_accessors()
    facts, nobody = responder.lookup_tokens([accessor, "no-such-accessor"])
    assert nobody is None
    assert facts is not None
    assert (facts.accessor, facts.entity_id, facts.path) == (accessor, person.entity_id, "auth/approle/login")
    # an accessor ends a token, so it stays out of what is printed
    assert accessor not in repr(facts)
    responder.revoke_token(accessor)
    assert responder.lookup_tokens([accessor]) == [None]
    responder.revoke_token(accessor)
    with pytest.raises(hvac.exceptions.Forbidden):
        hvac.Client(root.url, token=token).auth.token.lookup_self()


def test_the_account_knows_its_own_entity(server: OpenBao, root: hvac.Client) -> None:
    token = _log_in(root)
    client = _with_token(server, token)
    client.ensure_ready()
    assert client.entity_id == root.auth.token.lookup(token)["data"]["entity_id"]
