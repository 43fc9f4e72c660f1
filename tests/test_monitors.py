"""Monitoring accounts whose user and password Vault has: real OpenBao, real PostgreSQL, static and dynamic roles."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest
from django.utils import timezone

import leases.tasks
from audit import doctor, users
from demo import databases as demo_databases
from leases import clients, monitors, sessions
from leases.configuration import ConfigurationError, DatabaseConfig, load
from leases.databases import DatabaseDenied
from leases.models import Database, DynamicUser, Lease, MonitorUser, Sampling, Session, SourceState, Vault
from leases.models.sources import SourceKind
from leases.vault import VaultDenied, VaultError
from tests import workers
from tests.world import World

pytestmark = pytest.mark.django_db

POLICY = Path(__file__).resolve().parent.parent / "deploy/vault/leasehold-observe.hcl"
CREATE = (
    """CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'""",
    """GRANT pg_monitor TO "{{name}}" """,
)
# what the delivered policy has as a comment
LINES = "\n".join(
    f'path "database/{path}" {{ capabilities = ["read"] }}'
    for path in ("static-creds/leasehold-monitor", "creds/leasehold-look")
)


@pytest.fixture
def roles(configured: World) -> Iterator[World]:
    """OpenBao may make monitoring accounts, and rotates one; the observing account may read both."""
    configured.postgres.create_role("vaults_monitor")
    with psycopg.connect(configured.postgres.dsn(), autocommit=True) as admin:
        account = demo_databases.connection_account("orders")
        admin.execute(f"GRANT pg_monitor TO vaults_monitor; GRANT pg_monitor TO {account} WITH ADMIN OPTION")
        admin.execute(f"GRANT vaults_monitor TO {account} WITH ADMIN OPTION")
    vault = configured.admin
    before = vault.read("database/config/orders")["data"]["allowed_roles"]
    vault.write_data(
        "database/config/orders",
        data={"allowed_roles": [*before, "leasehold-monitor", "leasehold-look"], "verify_connection": False},
    )
    vault.write_data(
        "database/static-roles/leasehold-monitor",
        data={"db_name": "orders", "username": "vaults_monitor", "rotation_period": "1h"},
    )
    vault.write_data(
        "database/roles/leasehold-look",
        data={"db_name": "orders", "creation_statements": CREATE, "default_ttl": "60s", "max_ttl": "120s"},
    )
    vault.sys.create_or_update_policy("leasehold-observe", POLICY.read_text() + LINES)
    monitors.forget()
    yield configured
    monitors.forget()
    vault.sys.revoke_prefix("database/creds/leasehold-look")
    vault.sys.create_or_update_policy("leasehold-observe", POLICY.read_text())
    for path in ("static-roles/leasehold-monitor", "roles/leasehold-look"):
        vault.delete(f"database/{path}")
    vault.write_data("database/config/orders", data={"allowed_roles": before, "verify_connection": False})


def orders(world: World, **monitor: str) -> Database:
    address = f"postgresql://127.0.0.1:{world.postgres.port}/orders"
    Database.objects.filter(name="orders").update(monitor={"address": address, **monitor})
    return Database.objects.select_related("vault").get(name="orders")


@pytest.fixture
def static(roles: World) -> Database:
    return orders(roles, static_role="leasehold-monitor")


@pytest.fixture
def dynamic(roles: World) -> Database:
    return orders(roles, role="leasehold-look")


def address_of(database: Database) -> str:
    return clients.ask_monitor(database, lambda _, dsn: dsn)


def user_of(database: Database) -> str:
    return str(urlsplit(address_of(database)).username)


def age(database: Database, *, seconds: float) -> None:
    """As if it had been read so long ago."""
    key = monitors._key(database)
    held = monitors._held[key]
    monitors._held[key] = replace(
        held, read_at=held.read_at - seconds, renew_at=held.renew_at - seconds, ends_at=held.ends_at - seconds
    )


def test_a_static_roles_password_is_read_from_vault_and_samples(roles: World, static: Database) -> None:
    pod = roles.pod("storefront")
    workers.issue(pod)
    taken = sessions.sample_database(static, now=timezone.now())
    assert taken.late is False
    assert user_of(static) == "vaults_monitor"
    assert not MonitorUser.objects.exists()
    leases.tasks.check_vaults()
    assert SourceState.objects.get(name=static.path).cause == ""
    assert SourceState.objects.get(kind=SourceKind.VAULT).cause == ""


def test_it_is_kept_until_it_is_rotated(roles: World, static: Database) -> None:
    first = address_of(static)
    assert address_of(static) == first
    roles.admin.write_data("database/rotate-role/leasehold-monitor")
    # refused at once, but what was read a moment ago is not read again: the refusal may have another reason
    with pytest.raises(DatabaseDenied) as caught:
        sessions.sample_database(static, now=timezone.now())
    password = str(urlsplit(first).password)
    assert password not in f"{caught.value} {caught.value.__cause__}"
    age(static, seconds=10)
    sessions.sample_database(static, now=timezone.now())
    assert address_of(static) != first


def test_a_rotated_password_is_read_anew_when_its_time_has_come(roles: World, static: Database) -> None:
    first = address_of(static)
    roles.admin.write_data("database/rotate-role/leasehold-monitor")
    age(static, seconds=3700)
    assert address_of(static) != first


def test_a_refusal_that_no_new_password_mends_is_asked_about_less_and_less(roles: World, static: Database) -> None:
    key = monitors._key(static)
    address_of(static)
    with psycopg.connect(roles.postgres.dsn(), autocommit=True) as admin:
        admin.execute("ALTER ROLE vaults_monitor NOLOGIN")
        try:
            patience = []
            for _ in range(3):
                age(static, seconds=monitors._held[key].patience)
                with pytest.raises(DatabaseDenied):
                    sessions.sample_database(static, now=timezone.now())
                patience.append(monitors._held[key].patience)
        finally:
            admin.execute("ALTER ROLE vaults_monitor LOGIN")
    assert patience == [10, 20, 40]
    sessions.sample_database(static, now=timezone.now())
    assert monitors._held[key].patience == 5


def test_a_dynamic_roles_user_is_set_aside_as_this_products_own(roles: World, dynamic: Database) -> None:
    sessions.sample_database(dynamic, now=timezone.now())
    first = user_of(dynamic)
    assert first.startswith("v-")
    # another process of this product has another user, that this one sees
    monitors.forget()
    Sampling.objects.update(users_at=None)
    sessions.sample_database(dynamic, now=timezone.now())
    assert user_of(dynamic) != first
    with psycopg.connect(roles.postgres.dsn(), autocommit=True) as admin:
        admin.execute(f"ALTER ROLE \"{first}\" PASSWORD 'known'")
        with psycopg.connect(f"postgresql://{first}:known@127.0.0.1:{roles.postgres.port}/orders"):
            sessions.sample_database(dynamic, now=timezone.now())
    assert set(MonitorUser.objects.values_list("name", flat=True)) == {first, user_of(dynamic)}
    own = {first, user_of(dynamic)}
    assert not Session.objects.filter(database_user__in=own).exists()
    assert not DynamicUser.objects.filter(name__in=own).exists()


def test_a_dynamic_roles_user_is_replaced_before_its_end(dynamic: Database) -> None:
    first = user_of(dynamic)
    age(dynamic, seconds=39)
    assert user_of(dynamic) == first
    age(dynamic, seconds=2)
    assert user_of(dynamic) != first


def test_a_dynamic_user_that_was_revoked_is_replaced(roles: World, dynamic: Database) -> None:
    first = user_of(dynamic)
    roles.admin.sys.revoke_prefix("database/creds/leasehold-look")
    age(dynamic, seconds=30)
    with pytest.raises(DatabaseDenied):
        sessions.sample_database(dynamic, now=timezone.now())
    age(dynamic, seconds=31)
    sessions.sample_database(dynamic, now=timezone.now())
    assert user_of(dynamic) != first


def test_while_vault_is_away_what_it_gave_is_good_until_its_end(dynamic: Database) -> None:
    first = user_of(dynamic)
    Vault.objects.update(address="http://127.0.0.1:1", active_address="")
    database = Database.objects.select_related("vault").get(pk=dynamic.pk)
    age(database, seconds=45)
    assert user_of(database) == first
    age(database, seconds=60)
    with pytest.raises(VaultError):
        user_of(database)


def test_a_missing_capability_is_told_with_the_line_that_is_needed(roles: World, static: Database) -> None:
    roles.admin.sys.create_or_update_policy("leasehold-observe", POLICY.read_text())
    with pytest.raises(VaultDenied, match="database/static-creds/leasehold-monitor"):
        sessions.sample_database(static, now=timezone.now())
    leases.tasks.check_vaults()
    vault = SourceState.objects.get(kind=SourceKind.VAULT)
    # leases are looked up all the same
    assert vault.ok
    assert "the database behind it is not watched" in vault.cause
    assert 'path "database/static-creds/leasehold-monitor" { capabilities = ["read"] }' in vault.fix
    database = SourceState.objects.get(name=static.path)
    assert not database.ok
    assert 'path "database/static-creds/leasehold-monitor" { capabilities = ["read"] }' in database.fix
    assert not next(found for found in doctor.examine() if found.what == f"database {static.path}").ok


def test_nothing_of_the_credential_is_logged_or_stored(
    roles: World, dynamic: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    leases.tasks.sample_database(dynamic.pk)
    leases.tasks.check_vaults()
    password = str(urlsplit(address_of(dynamic)).password)
    assert password
    stored = repr(
        [list(model.objects.values()) for model in (Database, MonitorUser, SourceState, Sampling, DynamicUser)]
    )
    told = caplog.text + stored + repr(monitors._held)
    assert password not in told
    assert not re.search(r"hvs\.|\bs\.\w{20}", told)


def test_users_are_matched_and_revocations_checked_through_the_same_account(roles: World, static: Database) -> None:
    lease_id = workers.issue(roles.pod("storefront"))
    assert Lease.objects.get(lease_id=lease_id).database_user == ""
    names = users.unknown_names(static)
    assert any(name.startswith("v-") for name in names)
    now = timezone.now() + timedelta(seconds=1)
    assert users.match(static, names, now=now) >= 1


# --- leasehold.toml ----------------------------------------------------------------------------------------------


def configuration_of(monitor: str, folder: Path, *, respond: str = "") -> DatabaseConfig:
    file = folder / "leasehold.toml"
    respond = f"respond = {respond}\n" if respond else ""
    file.write_text(
        '[[vaults]]\nname = "v"\naddress = "http://127.0.0.1:1"\nobserve = { method = "token", secret = { env = "T" } }\n'
        f'[[databases]]\nvault = "v"\nmount = "database"\nname = "orders"\nkind = "postgresql"\nmonitor = {monitor}\n{respond}'
    )
    return load(file).databases[0]


@pytest.mark.parametrize(
    ("monitor", "path"),
    [
        ('{ file = "/dsn" }', ""),
        ('{ static_role = "look", address = "postgresql://db:5432/orders" }', "database/static-creds/look"),
        ('{ role = "look", address = "postgresql://db:5432,db2:5432/orders", mount = "/other/" }', "other/creds/look"),
    ],
)
def test_a_monitoring_account_is_named_in_one_of_these_ways(monitor: str, path: str, tmp_path: Path) -> None:
    told = msgspec.to_builtins(configuration_of(monitor, tmp_path).monitor)
    assert monitors.vault_path(Database(mount="database", name="orders", monitor=told)) == path


@pytest.mark.parametrize(
    ("monitor", "says"),
    [
        ('{ file = "/dsn", env = "DSN" }', "an account is named by"),
        ("{}", "an account is named by"),
        ('{ static_role = "look" }', "`address` goes with"),
        ('{ file = "/dsn", address = "postgresql://db/orders" }', "`address` goes with"),
        ('{ file = "/dsn", mount = "database" }', "`mount` with them alone"),
        ('{ role = "look", address = "postgresql://me:hunter2secret@db/orders" }', "may not hold a user or a password"),
        ('{ role = "look", address = "me:hunter2secret@db/orders" }', "monitor.address is none"),
        ('{ role = "../../sys/raw", address = "postgresql://db/orders" }', "which Vault cannot have"),
        (
            '{ role = "look", address = "postgresql://db/orders", mount = "a/../sys" }',
            "write the path of a database mount",
        ),
    ],
)
def test_what_names_no_monitoring_account_is_refused_with_what_to_write(
    monitor: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)) as caught:
        configuration_of(monitor, tmp_path)
    assert "hunter2secret" not in str(caught.value)


def test_the_account_that_ends_sessions_is_named_in_the_same_ways(tmp_path: Path) -> None:
    respond = '{ static_role = "end", address = "postgresql://db:5432/orders" }'
    told = msgspec.to_builtins(configuration_of('{ file = "/dsn" }', tmp_path, respond=respond).respond)
    database = Database(mount="database", name="orders", monitor={"file": "/dsn"}, respond=told)
    assert monitors.vault_path(database, "respond") == "database/static-creds/end"
    assert monitors.vault_path(database) == ""


@pytest.mark.parametrize(
    ("respond", "says"),
    [
        ("{}", "an account is named by"),
        (
            '{ role = "end", address = "postgresql://me:hunter2secret@db/orders" }',
            "database orders: respond.address may not",
        ),
        ('{ role = "../../sys/raw", address = "postgresql://db/orders" }', "respond names the role"),
        ('{ file = "/dsn" }', "respond names the account that monitors. What looks may not end anything"),
    ],
)
def test_what_names_no_responding_account_is_refused_with_what_to_write(
    respond: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)) as caught:
        configuration_of('{ file = "/dsn" }', tmp_path, respond=respond)
    assert "hunter2secret" not in str(caught.value)
