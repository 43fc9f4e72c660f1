"""What leases/databases/postgresql.py relies on, held against a real PostgreSQL."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from demo import processes
from demo.postgres import Postgres
from leases import databases
from leases.databases import DatabaseDenied, DatabaseError, DatabaseUnreachable, UnknownKind, postgresql

_NAME = "v-kubernet-my-role-AbCdEfGhIjKlMnOpQrSt-1795478400"


@pytest.fixture
def monitor(postgres: Postgres) -> str:
    """Address of an account with no right but to log in."""
    postgres.create_role("contract_monitor")
    return postgres.dsn("contract_monitor")


@pytest.fixture
def admin(postgres: Postgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        yield connection
        connection.execute(f'DROP ROLE IF EXISTS "{_NAME}"')
        connection.execute('DROP ROLE IF EXISTS "v-endless"')


def test_an_account_that_may_only_log_in_sees_dynamic_users(monitor: str, admin: psycopg.Connection) -> None:
    admin.execute(f"CREATE ROLE \"{_NAME}\" LOGIN VALID UNTIL '2026-11-24 02:00:00.5+02'")
    admin.execute("CREATE ROLE \"v-endless\" LOGIN VALID UNTIL 'infinity'")
    row = admin.execute("SELECT oid FROM pg_roles WHERE rolname = %s", [_NAME]).fetchone()

    users = {user.name: user for user in postgresql.dynamic_users(monitor)}

    assert (users[_NAME].oid,) == row
    valid_until = users[_NAME].valid_until
    assert valid_until == datetime(2026, 11, 24, 0, 0, 0, 500_000, tzinfo=UTC)
    assert valid_until.tzinfo is UTC
    assert users["v-endless"].valid_until is None
    assert "contract_monitor" not in users


def test_a_user_exists_until_it_is_dropped(monitor: str, admin: psycopg.Connection) -> None:
    assert not postgresql.user_exists(monitor, _NAME)
    admin.execute(f'CREATE ROLE "{_NAME}" LOGIN')
    assert postgresql.user_exists(monitor, _NAME)
    assert not postgresql.user_exists(monitor, _NAME.lower())
    admin.execute(f'DROP ROLE "{_NAME}"')
    assert not postgresql.user_exists(monitor, _NAME)


def test_a_session_is_read_only_limited_in_time_and_named(postgres: Postgres) -> None:
    with postgresql._session(postgres.dsn()) as session:
        found = session.execute(
            "SELECT current_setting('application_name'), current_setting('statement_timeout'),"
            " current_setting('default_transaction_read_only')"
        ).fetchone()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("CREATE TABLE never (id int)")
    assert found == ("leasehold", "5s", "on")


def test_a_wrong_password_is_denied_and_not_repeated(monitor: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = monitor.replace(monitor.split(":")[2].split("@")[0], "surely-not-this-one")
    with pytest.raises(DatabaseDenied) as caught:
        postgresql.check(wrong)
    assert "contract_monitor" in caught.value.cause
    assert "Check user, password" in caught.value.fix
    assert "surely-not-this-one" not in f"{caught.value} {caught.value.__cause__!r} {caplog.text}"


def test_an_account_that_may_not_log_in_is_denied(postgres: Postgres, admin: psycopg.Connection) -> None:
    postgres.create_role("contract_locked")
    admin.execute("ALTER ROLE contract_locked NOLOGIN")
    with pytest.raises(DatabaseDenied, match="not permitted to log in"):
        postgresql.check(postgres.dsn("contract_locked"))


def test_a_missing_database_is_denied_by_name(postgres: Postgres) -> None:
    with pytest.raises(DatabaseDenied, match="no_such_database"):
        postgresql.check(postgres.dsn(database="no_such_database"))


def test_a_server_that_is_not_there_is_unreachable_and_named() -> None:
    port = processes.free_port()
    with pytest.raises(DatabaseUnreachable, match=f"PostgreSQL at 127.0.0.1:{port} cannot be reached") as caught:
        postgresql.check(f"postgresql://someone:secret-word@127.0.0.1:{port}/orders")
    assert "secret-word" not in str(caught.value)


def test_a_host_that_has_no_address_is_unreachable() -> None:
    with pytest.raises(DatabaseUnreachable):
        postgresql.check("postgresql://someone:secret-word@no-such-host.invalid/orders")


def test_an_address_that_is_none_is_told_without_repeating_it() -> None:
    with pytest.raises(DatabaseError, match="not one of PostgreSQL") as caught:
        postgresql.check("mysql://someone:secret-word@host/orders")
    assert caught.value.__cause__ is None
    assert "secret-word" not in str(caught.value)


def test_a_statement_that_takes_too_long_is_cut_off(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_SECONDS", 1)
    with (
        pytest.raises(DatabaseUnreachable, match="did not answer within 1 s"),
        postgresql._session(postgres.dsn()) as session,
    ):
        session.execute("SELECT pg_sleep(5)")


def test_a_kind_is_found_by_its_word_and_an_unknown_one_named() -> None:
    assert databases.kinds() == ("postgresql",)
    assert databases.get("postgresql").check is postgresql.check
    with pytest.raises(UnknownKind, match="'oracle' cannot be read"):
        databases.get("oracle")
