"""The boundary to PostgreSQL servers that dynamic users live on: reads roles and sessions through psycopg, and ends sessions.

Each call opens a short read-only session of its own, so no account of this product holds one open.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Annotated, LiteralString

import msgspec
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from leases.databases import (
    Backend,
    Backends,
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    DatabaseUser,
    MayNotEnd,
    Sample,
    SeenSession,
    Server,
    SessionsHidden,
    Terminated,
    UserForgotten,
    kept,
)

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_SECONDS = 5
# between two looks whether sessions are gone; an idle one takes about a millisecond
LOOK_SECONDS = 0.02
# how a server words that it is there but will not have this account; libpq gives no code for a failed connection
_REFUSALS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "not permitted", "permission denied")


def check(dsn: str) -> None:
    """Return if the account can log in, read the roles and see others' sessions; raises SessionsHidden for the last alone."""
    with _session(dsn) as session:
        row = session.execute(
            "SELECT pg_has_role('pg_read_all_stats', 'USAGE') FROM pg_catalog.pg_roles LIMIT 1"
        ).fetchone()
        account = session.info.user
    if not (row and row[0]):
        raise _sessions_hidden(_where(dsn), account)


def check_responder(dsn: str) -> None:
    """Return if the account can log in, see others' sessions and end them."""
    with _session(dsn) as session:
        _server_of(session, dsn)
        row = session.execute("SELECT pg_has_role('pg_signal_backend', 'USAGE')").fetchone()
        account = session.info.user
    if not (row and row[0]):
        raise _may_not_end(_where(dsn), account)


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


def sample(dsn: str, *, with_users: bool) -> Sample:
    """Sessions of users that Vault may have made, and of dropped ones, in all databases of the server. One query.

    https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
    """
    with _session(dsn) as session:
        cursor = session.execute(_SAMPLE_WITH_USERS if with_users else _SAMPLE)
        text = cursor.pgresult.get_value(0, 0) if cursor.pgresult else None
        account = session.info.user
    try:
        # names that are not in UTF-8 come only from databases without an encoding
        told = msgspec.json.decode((text or b"").decode(errors="replace"), type=_Told)
    except msgspec.DecodeError as error:
        # the decoder's text names fields and types, never values
        raise DatabaseError(
            f"{_where(dsn)} answers what is no sample of sessions ({str(error)[:100]})",
            "Check that PostgreSQL itself answers there, version 13 or newer.",
        ) from error
    if not told.sees_all:
        raise _sessions_hidden(_where(dsn), account)
    return Sample(
        server=_server(told.system, told.address, told.port, told.started_at, told.version),
        at=told.at.astimezone(UTC),
        took_ms=told.took_ms,
        sessions=tuple(_seen(row) for row in told.sessions),
        users=None
        if told.users is None
        else tuple(DatabaseUser(u.name, u.oid, _utc(u.valid_until)) for u in told.users),
        database=told.database,
    )


def backends(dsn: str, user: str, *, user_oid: int | None = None) -> Backends:
    """Sessions of the role, or of the one that had this number; whatever kind they are, but for helpers that end with their leader.

    https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
    """
    with _session(dsn) as session:
        server = _server_of(session, dsn)
        rows = session.execute(_BACKENDS, {"user": user, "oid": user_oid}).fetchall()
        oid, found = rows[0][0], [row[1:] for row in rows if row[1] is not None]
        # where no dropped role has left any, this one has not either
        orphans = session.execute(_ORPHANS).fetchone() if oid is None else None
    if orphans and orphans[0]:
        raise UserForgotten(
            f"{_where(dsn)} has no role {user} any more, and the number that it had is not known, so nobody can say which sessions it left",
            "See which sessions there are of roles that are gone: SELECT pid, backend_start, usesysid, client_addr FROM pg_stat_activity "
            "WHERE usename IS NULL AND usesysid IS NOT NULL;",
        )
    return Backends(server, user, oid, tuple(_backend(user, *row) for row in found))


def terminate(dsn: str, backends: Sequence[Backend], *, seconds: float) -> Terminated:
    """Process id and start are matched in the statement that ends them.

    https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
    """
    keys = {(backend.pid, backend.began_at): backend.key for backend in backends}
    wanted = [[backend.pid for backend in backends], [backend.began_at for backend in backends]]
    with _session(dsn) as session:
        server = _server_of(session, dsn)
        try:
            rows = session.execute(
                f"SELECT a.pid, a.backend_start, pg_terminate_backend(a.pid) {_THESE}", wanted
            ).fetchall()
        except errors.InsufficientPrivilege as error:
            raise _may_not_end(_where(dsn), session.info.user) from error
        told = frozenset(keys[pid, _utc(began_at)] for pid, began_at, _ in rows)
        until = time.monotonic() + seconds
        while left := session.execute(f"SELECT a.pid, a.backend_start {_THESE}", wanted).fetchall():
            if time.monotonic() >= until:
                break
            time.sleep(LOOK_SECONDS)
    return Terminated(server, told, frozenset(keys[pid, _utc(began_at)] for pid, began_at in left))


def by_hand(found: Backends) -> str:
    """By the role's number, which stays when its name is gone."""
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = {found.user_oid};"  # noqa: S608 -- for a person


# What is read of the answer, in its order.

_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Row(msgspec.Struct, array_like=True):
    key: str
    pid: int
    started_at: _Time
    user: str
    user_oid: int
    database: str
    # of a local socket: none, and port -1
    address: str | None
    port: int | None
    application: str
    state: str


class _User(msgspec.Struct, array_like=True):
    name: str
    oid: int
    valid_until: _Time | None


class _Told(msgspec.Struct):
    system: str
    sees_all: bool
    address: str | None
    port: int | None
    started_at: _Time
    version: str
    database: str
    sessions: list[_Row]
    users: list[_User] | None
    at: _Time
    took_ms: float


def _seen(row: _Row) -> SeenSession:
    return SeenSession(
        key=row.key,
        pid=row.pid,
        started_at=row.started_at.astimezone(UTC),
        user=row.user,
        user_oid=row.user_oid,
        database=row.database,
        address=row.address or "",
        port=row.port if row.port and row.port > 0 else None,
        application=row.application,
        state=row.state,
        # its name went with it
        user_is_gone=not row.user,
    )


# named as Vault's default template does; or by another one: then it is no superuser and has an end, as Vault's users have
_PERHAPS_VAULTS: LiteralString = "(r.rolname LIKE 'v-%' OR NOT r.rolsuper AND isfinite(r.rolvaliduntil))"
# Of the whole server: a stolen credential may be used on any of its databases. Parts are evaluated in their order, so that `at` and
# `took_ms` come last. `key` is the session id of %c in log_line_prefix, of jsonlog and csvlog. Sent without parameters, as a simple
# query, whose statement_timestamp() is taken before it is parsed and planned. An account without the right to see others' sessions
# gets rows without backend_type, so that there would be none.
_SAMPLES: LiteralString = """
    WITH seen AS (
      SELECT to_hex(floor(extract(epoch FROM a.backend_start))::bigint) || '.' || to_hex(a.pid) AS key, a.pid,
             a.backend_start, coalesce(r.rolname, '') AS usename, a.usesysid, coalesce(a.datname, '') AS datname,
             a.client_addr, a.client_port, coalesce(a.application_name, '') AS application_name, coalesce(a.state, '') AS state
      FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
      WHERE a.backend_type IN ('client backend', 'walsender') AND a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
        AND a.usesysid IS DISTINCT FROM (SELECT oid FROM pg_roles WHERE rolname = session_user) AND (r.oid IS NULL OR {perhaps})
    )
    SELECT json_build_object(
      'system', (SELECT system_identifier::text FROM pg_control_system()),
      'sees_all', pg_has_role('pg_read_all_stats', 'USAGE'),
      'address', host(inet_server_addr()), 'port', inet_server_port(), 'started_at', pg_postmaster_start_time(),
      'version', current_setting('server_version'), 'database', current_database(),
      'sessions', coalesce((SELECT json_agg(json_build_array(
          key, pid, backend_start, usename, usesysid::bigint, datname, host(client_addr), client_port, application_name, state)
        ) FROM seen), '[]'),
      'users', {users},
      'at', clock_timestamp(), 'took_ms', extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000
    )::text
"""
_USERS: LiteralString = """
    coalesce((SELECT json_agg(json_build_array(
      r.rolname, r.oid::bigint, CASE WHEN isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END)
    ) FROM pg_roles r WHERE {perhaps} AND r.rolname <> session_user), '[]')
"""
_SAMPLE = _SAMPLES.format(perhaps=_PERHAPS_VAULTS, users="NULL")
_SAMPLE_WITH_USERS = _SAMPLES.format(perhaps=_PERHAPS_VAULTS, users=_USERS.format(perhaps=_PERHAPS_VAULTS))


# One row even where there is no session: the role's number. The one that was given counts only where no role has name or number any
# more: else it would be somebody else's by now.
_BACKENDS: LiteralString = """
    WITH role AS (
      SELECT coalesce(
        (SELECT oid FROM pg_roles WHERE rolname = %(user)s),
        (SELECT given FROM (SELECT %(oid)s::bigint::oid AS given) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = given))
      ) AS oid
    )
    SELECT role.oid::bigint, to_hex(floor(extract(epoch FROM a.backend_start))::bigint) || '.' || to_hex(a.pid), a.pid, a.backend_start,
           coalesce(a.datname, ''), host(a.client_addr), a.client_port, coalesce(a.application_name, '')
    FROM role LEFT JOIN pg_stat_activity a ON a.usesysid = role.oid AND a.leader_pid IS NULL
    ORDER BY a.backend_start, a.pid
"""
_ORPHANS: LiteralString = """
    SELECT count(*) FROM pg_stat_activity a
    WHERE a.usesysid IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid)
"""
_THESE: LiteralString = """
    FROM pg_stat_activity a JOIN unnest(%s::integer[], %s::timestamptz[]) AS seen (pid, backend_start)
      ON seen.pid = a.pid AND seen.backend_start = a.backend_start
"""
_SERVER: LiteralString = """
    SELECT system_identifier::text, host(inet_server_addr()), inet_server_port(), pg_postmaster_start_time(),
           current_setting('server_version'), pg_has_role('pg_read_all_stats', 'USAGE') FROM pg_control_system()
"""


def _server_of(session: psycopg.Connection, dsn: str) -> Server:
    """Which server it is; raises SessionsHidden where the account may not see others' sessions."""
    row = session.execute(_SERVER).fetchone()
    if row is None or not row[5]:
        raise _sessions_hidden(_where(dsn), session.info.user, grant="pg_read_all_stats, pg_signal_backend")
    system, address, port, started_at, version, _ = row
    return _server(system, address, port, started_at, version)


def _server(system: str, address: str | None, port: int | None, started_at: datetime, version: str) -> Server:
    data = f"postgresql {system} "
    where = f"{address or 'local socket'}:{port}" if port else "local socket"
    return Server(data + where, started_at.astimezone(UTC), version, data)


def _backend(
    user: str,
    key: str,
    pid: int,
    began_at: datetime,
    database: str,
    address: str | None,
    port: int | None,
    application: str,
) -> Backend:
    port = port if port and port > 0 else None
    return Backend(key, pid, _utc(began_at), user, database, address or "", port, application)


def _session(dsn: str) -> AbstractContextManager[psycopg.Connection]:
    return kept.session(_opened, dsn)


@contextmanager
def _opened(dsn: str) -> Iterator[psycopg.Connection]:
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
            f"The account of {server} may not do what every role may: {error.diag.message_primary}",
            "Give it back what was taken from PUBLIC: SELECT on pg_roles and pg_stat_activity, EXECUTE on pg_control_system().",
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


def _sessions_hidden(server: str, account: str, *, grant: str = "pg_monitor") -> SessionsHidden:
    """https://www.postgresql.org/docs/current/predefined-roles.html"""
    return SessionsHidden(
        f"The account {account} of {server} may not see other users' sessions, so nobody can say which are there",
        f"Grant it that as a superuser: GRANT {grant} TO {_quoted(account)}.",
    )


def _may_not_end(server: str, account: str) -> MayNotEnd:
    return MayNotEnd(
        f"The account {account} of {server} may not end other users' sessions",
        f"Grant it that as a superuser: GRANT pg_read_all_stats, pg_signal_backend TO {_quoted(account)}.",
    )


def _quoted(name: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"'


def _refused(server: str, text: str) -> DatabaseError:
    line = " ".join(text.split())[:300]
    if any(words in text for words in _REFUSALS):
        return DatabaseDenied(
            f"{server} refuses the account: {line}",
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
            "The account's address is not one of PostgreSQL",
            "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE into its secret.",
        ) from None
    return f"PostgreSQL at {parts.get('host', 'localhost')}:{parts.get('port', '5432')}"


def _password(dsn: str) -> str | None:
    password = conninfo_to_dict(dsn).get("password")
    return str(password) if password else None


def _utc(moment: object) -> datetime | None:
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None
