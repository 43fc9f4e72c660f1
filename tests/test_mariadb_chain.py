"""The real chain on a real MariaDB: OpenBao makes the user, it connects, is seen, is tied to its lease, is revoked, and is gone."""

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest
from django.utils import timezone

import leases.tasks
from audit import configuration, users
from audit.models import Hash
from demo import mariadb as mariadb_server
from demo.mariadb import MariaDB
from leases import clients, lists, monitors, revoke, sessions
from leases.configuration import load
from leases.models import Database, DynamicUser, Lease, LeaseState, Sampling, Session, SourceState, Vault
from leases.models.actions import RevocationState
from tests import workers
from tests.contract.kinds import MONITOR_GRANTS, NO_MARIADB, RESPONDER_GRANTS, number_of, port_of
from tests.world import AUDIENCE, TestPod, World

pytestmark = [pytest.mark.django_db, NO_MARIADB]

POLICY = Path(__file__).resolve().parent.parent / "deploy/vault/leasehold-observe.hcl"
ROLE, LOOK, STATIC, LEGACY = "stock-reader", "stock-look", "stock-monitor", "stock-legacy"
CREATE = ("CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'", "GRANT SELECT ON stock.* TO '{{name}}'@'%'")
# docs/databases.md
CREATE_MONITOR = (CREATE[0], *(f"GRANT {grant} TO '{{{{name}}}}'@'%'" for grant in MONITOR_GRANTS))


@pytest.fixture(scope="module")
def server(run_folder: Path) -> Iterator[MariaDB]:
    """With a database, an account for Vault that is no superuser, and one to monitor with."""
    started = mariadb_server.start(run_folder / "mariadb-chain")
    started.execute("CREATE DATABASE stock")
    started.create_user("openbao_stock", "CREATE USER ON *.*")
    started.execute(
        "GRANT SELECT ON stock.* TO openbao_stock@'%' WITH GRANT OPTION",
        *(f"GRANT {grant} TO openbao_stock@'%' WITH GRANT OPTION" for grant in MONITOR_GRANTS),
    )
    started.create_user("leasehold_monitor", *MONITOR_GRANTS)
    started.create_user("vaults_monitor", *MONITOR_GRANTS)
    started.create_user("leasehold_responder", *RESPONDER_GRANTS)
    yield started
    started.stop()


@pytest.fixture
def stock(configured: World, server: MariaDB) -> Iterator[Database]:
    """The database "stock" in OpenBao's mount and in leasehold.toml; a role of the Kubernetes method may read its credentials."""
    vault = configured.admin
    for name, plugin in (("stock", "mysql-database-plugin"), ("stock-old", "mysql-legacy-database-plugin")):
        vault.secrets.database.configure(
            name=name,
            plugin_name=plugin,
            allowed_roles=[ROLE, LOOK, STATIC, LEGACY],
            connection_url=f"{{{{username}}}}:{{{{password}}}}@tcp(127.0.0.1:{server.port})/",
            username="openbao_stock",
            password=urlsplit(server.dsn("openbao_stock")).password,
        )
    for name, connection, statements in (
        (ROLE, "stock", CREATE),
        (LOOK, "stock", CREATE_MONITOR),
        (LEGACY, "stock-old", CREATE),
    ):
        vault.secrets.database.create_role(
            name=name, db_name=connection, creation_statements=statements, default_ttl="60s", max_ttl="120s"
        )
    vault.write_data(
        f"database/static-roles/{STATIC}",
        data={"db_name": "stock", "username": "vaults_monitor", "rotation_period": "1h"},
    )
    vault.sys.create_or_update_policy(ROLE, f'path "database/creds/{ROLE}" {{ capabilities = ["read"] }}')
    vault.sys.create_or_update_policy(
        "leasehold-observe",
        POLICY.read_text()
        + "".join(
            f'path "database/{path}" {{ capabilities = ["read"] }}\n'
            for path in (f"creds/{LOOK}", f"static-creds/{STATIC}")
        ),
    )
    vault.write_data(
        f"auth/kubernetes/role/{ROLE}",
        data={
            "bound_service_account_names": ["storefront"],
            "bound_service_account_namespaces": ["shop"],
            "audience": AUDIENCE,
            "token_policies": [ROLE],
        },
    )
    (configured.folder / "stock.dsn").write_text(server.dsn("leasehold_monitor"))
    file = configured.folder / "leasehold.toml"
    file.write_text(
        configured.toml() + f'[[databases]]\nvault = "demo"\nmount = "database"\nname = "stock"\nkind = "mariadb"\n'
        f'monitor = {{ file = "{configured.folder}/stock.dsn" }}\n'
    )
    configuration.apply(load(file))
    lists.read_roles(Vault.objects.get(), "database", clients.observer(Vault.objects.get()))
    monitors.forget()
    yield Database.objects.select_related("vault").get(name="stock")
    monitors.forget()
    for name in (ROLE, LOOK, LEGACY):
        vault.sys.revoke_prefix(f"database/creds/{name}")
        vault.delete(f"database/roles/{name}")
    vault.delete(f"database/static-roles/{STATIC}")
    for name in ("stock", "stock-old"):
        vault.delete(f"database/config/{name}")
    vault.sys.create_or_update_policy("leasehold-observe", POLICY.read_text())
    vault.delete(f"auth/kubernetes/role/{ROLE}")
    vault.sys.delete_policy(ROLE)


@pytest.fixture
def pod(configured: World, stock: Database) -> TestPod:
    return configured.pod("storefront")


def issued(pod: TestPod) -> tuple[str, dict[str, Any]]:
    """Lease id, and the credential."""
    pod.log_in(ROLE)
    answer = pod.call("GET", f"database/creds/{ROLE}")
    workers.read_streams()
    return answer["lease_id"], answer["data"]


def test_a_user_of_mariadb_is_tied_to_its_lease_by_the_hash_that_its_read_logged(stock: Database, pod: TestPod) -> None:
    lease_id, credential = issued(pod)
    assert [user.name for user in clients.ask_monitor(stock, lambda kind, dsn: kind.dynamic_users(dsn))] == [
        credential["username"]
    ]
    # each device logged its own hash of the name, and the API gives the same one
    for device in users.followed(stock.vault.devices.all()):
        hashed = clients.observer(stock.vault).audit_hash(device.name, credential["username"])
        assert Hash.objects.filter(device=device, of=Hash.Of.DATABASE_USER, hash=hashed).exists()
    assert users.match(stock, users.unknown_names(stock), now=timezone.now()) == 1
    lease = Lease.objects.get(lease_id=lease_id)
    assert (lease.database, lease.database_user) == (stock, credential["username"])


def test_its_session_is_sampled_until_it_is_revoked_and_both_its_user_and_its_session_are_followed(
    stock: Database, pod: TestPod, server: MariaDB
) -> None:
    lease_id, credential = issued(pod)
    users.match(stock, users.unknown_names(stock), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    with closing(
        server.connect(credential["username"], "stock", password=credential["password"], address=pod.address)
    ) as session:
        taken = sessions.sample_database(stock, now=timezone.now())
        assert (taken.sessions, taken.new) == (1, 1)
        row = Session.objects.get()
        assert (row.database_user, row.database, row.database_name) == (lease.database_user, stock, "stock")
        assert (row.address, row.port) == (pod.address, port_of(session))
        assert not row.start_is_known
        assert row.user_vanished_at is None

        action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
        revocation = action.revocations.get()
        revoke.carry_out(revocation.pk)
        revocation.refresh_from_db()
        steps = {step.name: step.outcome for step in action.steps.all()}
        assert steps["database user gone"] == "ok"
        # nobody may end it: it is named, with what an administrator types
        assert steps["sessions ended"] == "failed"
        words = action.steps.get(name="sessions ended").detail
        assert f"{number_of(session)} from {pod.address}:{port_of(session)} in stock. " in words
        assert f"as an administrator: KILL CONNECTION {number_of(session)};" in words
        assert revocation.state == RevocationState.UNVERIFIED
        lease.refresh_from_db()
        assert lease.state == LeaseState.ENDED

        # revoking does not close a session. It keeps its name, and is known to have outlived its user
        Sampling.objects.update(users_at=None)
        sessions.sample_database(stock, now=timezone.now())
        row.refresh_from_db()
        assert (row.database_user, row.ended_at) == (lease.database_user, None)
        assert row.user_vanished_at is not None
        vanished = row.user_vanished_at
        user = DynamicUser.objects.get(name=lease.database_user)
        assert user.gone_at is not None
        # a sample without the list of users says so, too, and makes nobody come back
        sessions.sample_database(stock, now=timezone.now())
        row.refresh_from_db()
        user.refresh_from_db()
        assert row.user_vanished_at == vanished
        assert user.gone_at is not None
    sessions.sample_database(stock, now=timezone.now())
    row.refresh_from_db()
    assert row.end_known_by == "no longer seen"


def test_with_an_account_for_it_a_revocation_ends_the_users_sessions(
    configured: World, stock: Database, pod: TestPod, server: MariaDB
) -> None:
    (configured.folder / "stock-respond.dsn").write_text(server.dsn("leasehold_responder"))
    Database.objects.filter(pk=stock.pk).update(respond={"file": f"{configured.folder}/stock-respond.dsn"})
    lease_id, credential = issued(pod)
    _, others = issued(configured.pod("storefront"))
    users.match(stock, users.unknown_names(stock), now=timezone.now())
    lease = Lease.objects.get(lease_id=lease_id)
    with (
        closing(server.connect(credential["username"], "stock", password=credential["password"])) as session,
        closing(server.connect(others["username"], password=others["password"])) as other,
    ):
        action = revoke.request(leases=[lease], by="ada", reason="drill", now=timezone.now())
        revocation = action.revocations.get()
        revoke.carry_out(revocation.pk)
        revocation.refresh_from_db()
        told = {step.name: step for step in action.steps.all()}
        assert {step.outcome for step in told.values()} == {"ok"}
        assert f"1 session of {lease.database_user} ended: {number_of(session)} from " in told["sessions ended"].detail
        assert revocation.state == RevocationState.VERIFIED
        other.ping(reconnect=False)
        with pytest.raises(pymysql.Error):
            session.ping(reconnect=False)


def test_a_user_that_is_not_gone_is_never_called_gone(stock: Database, pod: TestPod) -> None:
    lease_id, credential = issued(pod)
    Lease.objects.filter(lease_id=lease_id).update(database_user=credential["username"])
    outcome, words = revoke.user_gone(Lease.objects.get(lease_id=lease_id))
    assert (outcome, "still exists in stock" in words) == ("failed", True)


def test_the_names_that_vault_gives_are_cut_and_bear_no_time(configured: World, stock: Database, pod: TestPod) -> None:
    _, credential = issued(pod)
    # display name kubernetes-shop-storefront and role, 10 characters of each; 32 in all
    assert re.fullmatch(r"v-kubernetes-stock-read-[A-Za-z0-9]{8}", credential["username"])
    old = configured.admin.secrets.database.generate_credentials(LEGACY)["data"]["username"]
    # the plugin for MySQL before 5.7: 4 characters of the role; 16 in all
    assert re.fullmatch(r"v-stoc-[A-Za-z0-9]{9}", old)


@pytest.mark.parametrize("monitor", [{"role": LOOK}, {"static_role": STATIC}])
def test_the_monitoring_account_may_come_from_vault(
    stock: Database, pod: TestPod, server: MariaDB, monitor: dict[str, str]
) -> None:
    _, credential = issued(pod)
    Database.objects.filter(pk=stock.pk).update(
        monitor={"address": f"mariadb://127.0.0.1:{server.port}/stock", **monitor}
    )
    stock.refresh_from_db()
    with closing(server.connect(credential["username"], password=credential["password"])):
        sessions.sample_database(stock, now=timezone.now())
    assert Session.objects.get().database_user == credential["username"]
    assert list(DynamicUser.objects.values_list("name", flat=True)) == [credential["username"]]


def test_a_server_that_names_its_clients_is_a_doubt_with_its_fix_and_stays_well(
    stock: Database, pod: TestPod, server: MariaDB
) -> None:
    _, credential = issued(pod)

    def state() -> SourceState:
        Sampling.objects.update(due_at=timezone.now())
        leases.tasks.sample_database(stock.pk)
        leases.tasks.check_vaults()
        return SourceState.objects.get(name=stock.path)

    server.restart("skip-name-resolve=OFF")
    try:
        with closing(server.connect(credential["username"], password=credential["password"])):
            named = state()
            assert Session.objects.get().address == "localhost"
        assert named.ok
        assert "host name of a client instead of its address, as 'localhost'" in named.cause
        assert "skip_name_resolve=ON" in named.fix
    finally:
        # its start is told to the second: two starts within one would give the same names to two sessions
        time.sleep(1.1)
        server.restart()
    with closing(server.connect(credential["username"], password=credential["password"])):
        assert (state().ok, state().cause) == (True, "")


def test_a_server_that_is_down_or_denies_is_named_without_its_password(stock: Database, server: MariaDB) -> None:
    server.stop()
    try:
        leases.tasks.check_vaults()
        down = SourceState.objects.get(name=stock.path)
    finally:
        server.restart()
    assert not down.ok
    assert f"MariaDB at 127.0.0.1:{server.port} cannot be reached" in down.cause
    server.execute("REVOKE PROCESS ON *.* FROM leasehold_monitor@'%'")
    SourceState.objects.update(retry_at=timezone.now())
    try:
        leases.tasks.check_vaults()
        hidden = SourceState.objects.get(name=stock.path)
    finally:
        server.execute("GRANT PROCESS ON *.* TO leasehold_monitor@'%'")
    # users are checked all the same
    assert hidden.ok
    assert "may not see other users' sessions" in hidden.cause
    assert "GRANT PROCESS ON *.* TO 'leasehold_monitor'@'%'" in hidden.fix
    password = str(urlsplit(server.dsn("leasehold_monitor")).password)
    assert password not in down.cause + down.fix + hidden.cause + hidden.fix
