"""The boundary to PostgreSQL servers that dynamic users live on: reads roles through psycopg, changes nothing.

Each call opens a short read-only session of its own, so a monitoring account never holds one open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from leases.databases import DatabaseDenied, DatabaseError, DatabaseUnreachable, DatabaseUser

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_SECONDS = 5
# how a server words that it is there but will not have this account; libpq gives no code for a failed connection
_REFUSALS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "not permitted", "permission denied")


def check(dsn: str) -> None:
    """Return if the account can log in and read the roles."""
    with _session(dsn) as session:
        session.execute("SELECT 1 FROM pg_catalog.pg_roles LIMIT 1")


def dynamic_users(dsn: str) -> list[DatabaseUser]:
    """Roles named v-…, as Vault's default user name template makes them.

    https://www.postgresql.org/docs/current/view-pg-roles.html
    """
    with _session(dsn) as session:
        # infinity, the way to write "no end", does not fit into a datetime
        rows = session.execute(
            "SELECT rolname, oid, CASE WHEN isfinite(rolvaliduntil) THEN rolvaliduntil END"
            " FROM pg_catalog.pg_roles WHERE rolname LIKE 'v-%' ORDER BY rolname"
        ).fetchall()
    return [DatabaseUser(str(name), int(oid), _utc(valid_until)) for name, oid, valid_until in rows]


def user_exists(dsn: str, name: str) -> bool:
    """Whether a role of that exact name is there."""
    with _session(dsn) as session:
        row = session.execute("SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s)", [name]).fetchone()
    return bool(row and row[0])


# whole server: a stolen credential may be used on any of its databases
_SAMPLE = """
    WITH seen AS (
      SELECT to_hex(floor(extract(epoch FROM a.backend_start))::bigint) || '.' || to_hex(a.pid) AS key, a.pid,
             a.backend_start, coalesce(r.rolname, '') AS usename, a.usesysid, coalesce(a.datname, '') AS datname,
             a.client_addr, a.client_port, coalesce(a.application_name, '') AS application_name, coalesce(a.state, '') AS state
      FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
      WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND (r.rolname LIKE 'v-%%' OR r.oid IS NULL)
    )
    SELECT json_build_object(
      'system', (SELECT system_identifier::text FROM pg_control_system()),
      'address', inet_server_addr(), 'port', inet_server_port(), 'started_at', pg_postmaster_start_time(),
      'version', current_setting('server_version'),
      'sessions', coalesce((SELECT json_agg(json_build_array(
          key, pid, backend_start, usename, usesysid::bigint, datname, host(client_addr), client_port, application_name, state)
        ) FROM seen), '[]'),
      'users', CASE WHEN %(with_users)s THEN coalesce((SELECT json_agg(json_build_array(
          rolname, oid::bigint, CASE WHEN isfinite(rolvaliduntil) THEN rolvaliduntil END)
        ) FROM pg_roles WHERE rolname LIKE 'v-%%'), '[]') END,
      'at', clock_timestamp(), 'took_ms', extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000
    )::text
"""


@contextmanager
def _session(dsn: str) -> Iterator[psycopg.Connection]:
    """A read-only session with time limits; psycopg's errors come out as DatabaseError without the DSN's password."""
    server = _where(dsn)
    try:
        with psycopg.connect(
            make_conninfo(
                dsn,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="leasehold",
                options=f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
                " -c lock_timeout=2s -c TimeZone=UTC -c search_path=pg_catalog",
            ),
            autocommit=True,
        ) as session:
            yield session
    except errors.InsufficientPrivilege as error:
        raise DatabaseDenied(
            f"The monitoring account of {server} may not read its roles",
            "Grant it SELECT on pg_catalog.pg_roles, which every role has unless it was taken away.",
        ) from error
    except errors.QueryCanceled as error:
        raise DatabaseUnreachable(
            f"{server} did not answer within {STATEMENT_TIMEOUT_SECONDS} s", "Look at the server's load and locks."
        ) from error
    except psycopg.OperationalError as error:
        # the server's words, without the password: libpq repeats neither it nor the DSN, yet nothing is left to it
        raise _refused(server, str(error).replace(_password(dsn) or "\0", "[removed]")) from error
    except psycopg.Error as error:
        raise DatabaseError(
            f"{server} refuses the question ({type(error).__name__})", "Look into the server's log."
        ) from error


def _refused(server: str, text: str) -> DatabaseError:
    line = " ".join(text.split())[:300]
    if any(words in text for words in _REFUSALS):
        return DatabaseDenied(
            f"{server} refuses the monitoring account: {line}",
            "Check user, password and database of its address, and the server's pg_hba.conf.",
        )
    return DatabaseUnreachable(
        f"{server} cannot be reached: {line}", "Check host and port of its address, and that the server runs."
    )


def _where(dsn: str) -> str:
    """The server's name for errors, without user and password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # from None: the parser's own text repeats the DSN
        raise DatabaseError(
            "The monitoring account's address is not one of PostgreSQL",
            "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE into its secret.",
        ) from None
    return f"PostgreSQL at {parts.get('host', 'localhost')}:{parts.get('port', '5432')}"


def _password(dsn: str) -> str | None:
    password = conninfo_to_dict(dsn).get("password")
    return str(password) if password else None


def _utc(moment: object) -> datetime | None:
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None
