"""What leases/databases/postgresql.py relies on beyond the contract of all kinds, held against a real PostgreSQL."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from demo import postgres as postgres_server
from demo import processes
from demo.postgres import Postgres
from leases.databases import (
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    MayNotEnd,
    SeenSession,
    SessionsHidden,
    UserForgotten,
    postgresql,
)

_NAME = "v-kubernet-my-role-AbCdEfGhIjKlMnOpQrSt-1795478400"


@pytest.fixture
def monitor(postgres: Postgres) -> str:
    """Address of an account with no right but to log in."""
    postgres.create_role("contract_monitor")
    return postgres.dsn("contract_monitor")


@pytest.fixture
def sampler(postgres: Postgres, admin: psycopg.Connection) -> str:
    """Address of an account that may see all sessions."""
    postgres.create_role("contract_sampler")
    admin.execute("GRANT pg_monitor TO contract_sampler")
    return postgres.dsn("contract_sampler")


@pytest.fixture
def dynamic(postgres: Postgres, admin: psycopg.Connection) -> str:
    """Address of a dynamic user."""
    postgres.create_role(_NAME, "VALID UNTIL '2030-01-01'")
    return postgres.dsn(_NAME)


def seen(dsn: str, *, user: str = _NAME) -> list[SeenSession]:
    return [session for session in postgresql.sample(dsn, with_users=False).sessions if session.user == user]


@pytest.fixture
def admin(postgres: Postgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        yield connection
        connection.execute(f'DROP ROLE IF EXISTS "{_NAME}"')
        connection.execute('DROP ROLE IF EXISTS "v-endless"')
        connection.execute("DROP ROLE IF EXISTS contract_guest")


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


def test_a_session_is_read_only_limited_in_time_and_named(postgres: Postgres) -> None:
    with postgresql._session(postgres.dsn()) as session:
        found = session.execute(
            "SELECT current_setting('application_name'), current_setting('statement_timeout'),"
            " current_setting('default_transaction_read_only')"
        ).fetchone()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("CREATE TABLE never (id int)")
    assert found == ("leasehold", "5s", "on")


def test_an_account_that_may_not_log_in_is_denied(postgres: Postgres, admin: psycopg.Connection) -> None:
    postgres.create_role("contract_locked")
    admin.execute("ALTER ROLE contract_locked NOLOGIN")
    with pytest.raises(DatabaseDenied, match="not permitted to log in"):
        postgresql.check(postgres.dsn("contract_locked"))


def test_a_missing_database_is_denied_by_name(postgres: Postgres) -> None:
    with pytest.raises(DatabaseDenied, match="no_such_database"):
        postgresql.check(postgres.dsn(database="no_such_database"))


def test_a_statement_that_takes_too_long_is_cut_off(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_SECONDS", 1)
    with (
        pytest.raises(DatabaseUnreachable, match="did not answer within 1 s"),
        postgresql._session(postgres.dsn()) as session,
    ):
        session.execute("SELECT pg_sleep(5)")


def test_a_session_of_a_dynamic_user_is_seen_with_all_that_the_server_knows_of_it(sampler: str, dynamic: str) -> None:
    began = datetime.now(UTC)
    with psycopg.connect(dynamic, application_name="shop", client_encoding="utf8") as session:
        session.execute("SELECT 1")
        sample = postgresql.sample(sampler, with_users=False)
        (row,) = [row for row in sample.sessions if row.user == _NAME]
        told = session.execute(
            "SELECT pid, backend_start, usesysid::bigint, client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchone()
    assert told == (row.pid, row.started_at, row.user_oid, row.port)
    assert row.started_at is not None
    assert row.started_at.tzinfo is UTC
    assert row.started_at.microsecond
    assert (row.database, row.address, row.application, row.state) == (
        "postgres",
        "127.0.0.1",
        "shop",
        "idle in transaction",
    )
    assert began - timedelta(seconds=1) < sample.at < datetime.now(UTC) + timedelta(seconds=1)
    assert 0 < sample.took_ms < 1000
    assert sample.database == "postgres"
    assert sample.users is None


def test_the_key_of_a_session_is_the_one_that_the_servers_logs_write(run_folder: Path) -> None:
    server = postgres_server.start(run_folder / "contract-logs")
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET logging_collector = on")
            connection.execute("ALTER SYSTEM SET log_destination = 'jsonlog,csvlog'")
        server.restart()
        server.create_role(_NAME)
        with psycopg.connect(server.dsn(_NAME)):
            (row,) = seen(server.dsn())
    finally:
        server.stop()
    folder = server.folder / "data" / "log"
    told = [json.loads(line) for file in folder.glob("*.json") for line in file.read_text().splitlines()]
    assert {line["session_id"] for line in told if line.get("user") == _NAME} == {row.key}
    (csv,) = folder.glob("*.csv")
    assert f",{row.key}," in csv.read_text()


def test_a_connection_for_replication_is_a_session_too(run_folder: Path) -> None:
    settings = {"wal_level": "logical", "max_wal_senders": "2"}
    running = postgres_server.start(run_folder / "replicating", settings=settings)
    try:
        running.create_role(_NAME, "REPLICATION")
        with psycopg.connect(running.dsn(_NAME), autocommit=True, replication="database") as session:
            (row,) = seen(running.dsn())
            assert (row.pid, row.user_is_gone) == (session.info.backend_pid, False)
    finally:
        running.stop()


def test_only_sessions_that_may_be_of_vaults_users_are_seen(
    postgres: Postgres, sampler: str, dynamic: str, admin: psycopg.Connection
) -> None:
    postgres.create_role("contract_guest", "VALID UNTIL '2030-01-01'")
    postgres.create_role("contract_plain")
    postgres.create_role("contract_super", "SUPERUSER VALID UNTIL '2030-01-01'")
    names = (_NAME, "contract_guest", "contract_plain", "contract_super")
    sessions = [psycopg.connect(postgres.dsn(name)) for name in names]
    try:
        sample = postgresql.sample(sampler, with_users=True)
    finally:
        for session in sessions:
            session.close()
    # another template than Vault's may have made the guest: it has an end, as what Vault makes has
    assert {row.user for row in sample.sessions} == {_NAME, "contract_guest"}
    assert sample.users is not None
    users = {user.name: user for user in sample.users}
    assert {_NAME, "contract_guest"} <= users.keys()
    assert not {"contract_plain", "contract_super", "postgres", "contract_sampler"} & users.keys()
    assert users[_NAME].valid_until == datetime(2030, 1, 1, tzinfo=UTC)


def test_a_session_whose_role_was_dropped_goes_on_with_its_number_alone(
    sampler: str, dynamic: str, admin: psycopg.Connection
) -> None:
    with psycopg.connect(dynamic) as session:
        (before,) = seen(sampler)
        admin.execute(f'DROP ROLE "{_NAME}"')
        session.execute("SELECT 1")
        (after,) = seen(sampler, user="")
    assert (after.key, after.user_oid) == (before.key, before.user_oid)
    assert after.user_oid


def test_a_monitoring_account_that_vault_made_does_not_see_itself(
    dynamic: str, postgres: Postgres, admin: psycopg.Connection
) -> None:
    admin.execute(f'GRANT pg_monitor TO "{_NAME}"')
    with psycopg.connect(dynamic):
        sample = postgresql.sample(dynamic, with_users=True)
    assert _NAME not in {row.user for row in sample.sessions}
    assert sample.users is not None
    assert _NAME not in {user.name for user in sample.users}


def test_an_account_that_may_not_see_others_sessions_is_told_so_and_never_that_there_are_none(
    monitor: str, dynamic: str
) -> None:
    with psycopg.connect(dynamic), pytest.raises(SessionsHidden, match="may not see other users' sessions") as caught:
        postgresql.sample(monitor, with_users=True)
    assert 'GRANT pg_monitor TO "contract_monitor"' in caught.value.fix
    with pytest.raises(SessionsHidden):
        postgresql.check(monitor)


def test_the_right_to_read_all_statistics_is_enough(
    postgres: Postgres, admin: psycopg.Connection, dynamic: str
) -> None:
    postgres.create_role("contract_reader")
    admin.execute("GRANT pg_read_all_stats TO contract_reader")
    with psycopg.connect(dynamic):
        assert len(seen(postgres.dsn("contract_reader"))) == 1
    postgresql.check(postgres.dsn("contract_reader"))


def test_a_server_keeps_its_identity_over_a_restart_and_says_since_when_it_runs(run_folder: Path) -> None:
    server = postgres_server.start(run_folder / "contract-restart")
    try:
        before = postgresql.sample(server.dsn(), with_users=False).server
        server.restart()
        after = postgresql.sample(server.dsn(), with_users=False).server
    finally:
        server.stop()
    assert before.identity == after.identity
    assert before.identity.startswith(before.data)
    assert before.identity.endswith(f" 127.0.0.1:{server.port}")
    assert before.started_at is not None
    assert after.started_at is not None
    assert before.started_at < after.started_at


def test_a_sample_is_one_statement(postgres: Postgres, sampler: str, admin: psycopg.Connection) -> None:
    admin.execute("ALTER ROLE contract_sampler SET log_statement = 'all'")
    before = len(postgres.log.read_text())
    postgresql.sample(sampler, with_users=True)
    lines = [line for line in postgres.log.read_text()[before:].splitlines() if "user=contract_sampler" in line]
    assert len([line for line in lines if "statement:" in line or "execute" in line]) == 1


@pytest.fixture
def responder(postgres: Postgres, admin: psycopg.Connection) -> str:
    """Address of an account that ends sessions."""
    postgres.create_role("contract_responder")
    admin.execute("GRANT pg_read_all_stats, pg_signal_backend TO contract_responder")
    return postgres.dsn("contract_responder")


def test_a_number_that_is_somebody_elses_by_now_tells_no_session_of_theirs(
    postgres: Postgres, responder: str, dynamic: str, admin: psycopg.Connection
) -> None:
    with psycopg.connect(dynamic):
        found = postgresql.backends(responder, _NAME)
        assert len(found.backends) == 1
        admin.execute(f'ALTER ROLE "{_NAME}" RENAME TO "v-endless"')
        # no role of that name, and its number belongs to one that is there
        assert postgresql.backends(responder, _NAME, user_oid=found.user_oid).backends == ()
        assert postgresql.backends(responder, "v-endless").backends[0].pid == found.backends[0].pid


def test_a_dropped_role_whose_number_is_not_known_is_only_called_empty_where_nobody_left_a_session(
    postgres: Postgres, responder: str, dynamic: str, admin: psycopg.Connection
) -> None:
    assert postgresql.backends(responder, "v-never-there").backends == ()
    with psycopg.connect(dynamic):
        admin.execute(f'DROP ROLE "{_NAME}"')
        with pytest.raises(UserForgotten, match="the number that it had is not known") as caught:
            postgresql.backends(responder, _NAME)
    assert "usename IS NULL" in caught.value.fix


def test_a_superusers_session_is_not_ended(postgres: Postgres, responder: str, admin: psycopg.Connection) -> None:
    pid = admin.info.backend_pid
    found = [one for one in postgresql.backends(responder, "postgres").backends if one.pid == pid]
    with pytest.raises(MayNotEnd):
        postgresql.terminate(responder, found, seconds=1)
    admin.execute("SELECT 1")


def test_helpers_of_a_parallel_query_are_not_counted_as_sessions(responder: str, dynamic: str) -> None:
    with psycopg.connect(dynamic, options="-c debug_parallel_query=on", autocommit=True) as session:
        session.execute("SELECT count(*) FROM pg_class")
        assert len(postgresql.backends(responder, _NAME).backends) == 1


def test_a_session_that_ends_sessions_can_write_nothing_else(responder: str) -> None:
    with (
        pytest.raises(DatabaseError, match="ReadOnlySqlTransaction"),
        postgresql._session(responder) as session,
    ):
        session.execute("CREATE TABLE here (a int)")


def test_a_right_that_was_taken_from_everybody_is_named(sampler: str, admin: psycopg.Connection) -> None:
    admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        with pytest.raises(DatabaseDenied, match="permission denied for function pg_control_system") as caught:
            postgresql.sample(sampler, with_users=False)
    finally:
        admin.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert "EXECUTE on pg_control_system()" in caught.value.fix


def test_of_several_hosts_the_primary_can_be_asked_for(sampler: str) -> None:
    nobody = processes.free_port()
    several = sampler.replace("@127.0.0.1:", f"@127.0.0.1:{nobody},127.0.0.1:") + "?target_session_attrs="
    assert postgresql.sample(several + "primary", with_users=False).server.identity.startswith("postgresql ")
    # the session is read-only
    with pytest.raises(DatabaseUnreachable):
        postgresql.sample(several + "read-write", with_users=False)
