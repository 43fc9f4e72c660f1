"""The boundary to MariaDB and MySQL servers that dynamic users live on: reads users and sessions through PyMySQL, and ends
sessions.

One module for both: what they say differently, the greeting of the server decides, not the configuration's word. Each call opens a
short read-only session of its own, so no account of this product holds one open. Texts of statements are never read.
"""

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec
import pymysql
from pymysql.cursors import DictCursor

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
    kept,
)

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_SECONDS = 5
# between two looks whether sessions are gone; an idle one takes about a millisecond
LOOK_SECONDS = 0.02
# so many statements are written one by one for a person
WRITTEN_OUT = 10
PORT = 3306
_SUPPORTED = "MariaDB 10.5, MySQL 8.0 and newer can be sampled."
# TLS: with a certificate authority the server must prove who it is, and nothing is sent in plain
_TLS = {"ssl_ca": "ca", "ssl_cert": "cert", "ssl_key": "key"}

# https://mariadb.com/kb/en/mariadb-error-code-reference/, https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
_NO_PROCESS, _NO_TABLE, _NO_COLUMN, _NO_FUNCTION, _NO_JSON = 1227, 1142, 1143, 1305, 1630
_NO_SUCH_SESSION, _NOT_ITS_OWNER = 1094, 1095
_TOO_SLOW = {1205, 1969, 3024}
# beside those of the driver itself (2000 and more): full, going down, blocks this host
_AWAY = {1040, 1053, 1129, 1203, 1226, 1927}
# it is there, but will not have this account: wrong name or password, host, locked, expired, TLS wanted, another way to log in
_REFUSALS = {1045, 1130, 1251, 1275, 1698, 1820, 1862, 2059, 3118, 3159, 4151}

_USERS = "SELECT DISTINCT User AS name FROM mysql.user WHERE User LIKE 'v-%' ORDER BY name"

# Whole server: a stolen credential may be used on any of its databases. Parts are evaluated in their order: users after sessions, or
# one that was made meanwhile would seem to be dropped; time last. INNODB_CMP (a few rows) is refused to whom the process list hides
# other users' sessions. UNIX_TIMESTAMP() and Uptime count to the same second, so `started` is always the same.
_SAMPLE = """
    SELECT @@hostname AS host, @@port AS port, {number} AS number, @@version AS version, USER() AS own,
      CAST(UNIX_TIMESTAMP() - (SELECT VARIABLE_VALUE FROM {status} WHERE VARIABLE_NAME = 'Uptime') AS SIGNED) AS started,
      (SELECT COUNT(*) FROM information_schema.INNODB_CMP) AS sees_all,
      (SELECT JSON_ARRAYAGG(JSON_ARRAY(ID, USER, COALESCE(DB, ''), HOST, COMMAND)) FROM information_schema.PROCESSLIST
        WHERE USER LIKE 'v-%') AS sessions,
      (SELECT JSON_ARRAYAGG(User) FROM mysql.user WHERE User LIKE 'v-%') AS users,
      UNIX_TIMESTAMP(SYSDATE(6)) AS at, TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) / 1000 AS took_ms
"""
_FOR_MARIADB = _SAMPLE.format(number="@@server_id", status="information_schema.GLOBAL_STATUS")
_FOR_MYSQL = _SAMPLE.format(number="@@server_uuid", status="performance_schema.global_status")

# The number of a connection never comes back while the server runs, so its start and the number name a session for ever.
_BACKENDS = """
    SELECT @@hostname AS host, @@port AS port, {number} AS number, @@version AS version,
      CAST(UNIX_TIMESTAMP() - (SELECT VARIABLE_VALUE FROM {status} WHERE VARIABLE_NAME = 'Uptime') AS SIGNED) AS started,
      (SELECT COUNT(*) FROM information_schema.INNODB_CMP) AS sees_all,
      (SELECT JSON_ARRAYAGG(JSON_ARRAY(ID, USER, COALESCE(DB, ''), HOST, COMMAND)) FROM information_schema.PROCESSLIST
        WHERE USER = %s) AS sessions
"""
_BACKENDS_OF_MARIADB = _BACKENDS.format(number="@@server_id", status="information_schema.GLOBAL_STATUS")
_BACKENDS_OF_MYSQL = _BACKENDS.format(number="@@server_uuid", status="performance_schema.global_status")
# what lets an account end others' sessions: MariaDB, MySQL, older ones of both
_MAY_END = {"CONNECTION ADMIN", "CONNECTION_ADMIN", "SUPER", "ALL PRIVILEGES"}


def check(dsn: str) -> None:
    """Return if the account can log in and read the users' names and everybody's sessions; raises SessionsHidden for the last alone."""
    with _session(dsn) as session:
        _ask(session, "SELECT User FROM mysql.user LIMIT 1")
        _ask(session, _FOR_MARIADB if _is_mariadb(session) else _FOR_MYSQL)


def dynamic_users(dsn: str) -> list[DatabaseUser]:
    """Users named v-…, as Vault's default user name template makes them. The server has no end for them and no number.

    https://mariadb.com/kb/en/mysql-user-table/, https://openbao.org/docs/secrets/databases/mysql-maria
    """
    with _session(dsn) as session:
        rows = _ask(session, _USERS)
    return [DatabaseUser(row["name"], None, None) for row in rows if _is_dynamic(row["name"])]


def sample(dsn: str, *, with_users: bool) -> Sample:
    """Sessions of users named v-… by one query, also of dropped ones, whose name stays with them.

    The server tells neither when a session began nor which application it is; and a host name instead of an address where it finds
    one (docs/databases.md). https://mariadb.com/kb/en/information-schema-processlist-table/
    """
    with _session(dsn) as session:
        mariadb = _is_mariadb(session)
        asked = time.monotonic()
        (row,) = _ask(session, _FOR_MARIADB if mariadb else _FOR_MYSQL)
        waited_ms = (time.monotonic() - asked) * 1000
    try:
        told = msgspec.convert(row, _Told, strict=False)
        sessions = msgspec.json.decode(told.sessions or "[]", type=list[_Row])
        # a user of several hosts is there several times
        users = {name for name in msgspec.json.decode(told.users or "[]", type=list[str]) if _is_dynamic(name)}
    except msgspec.MsgspecError as error:
        raise _no_sample(dsn, error) from error
    # of an account that Vault made, too
    own = told.own.rpartition("@")[0]
    seen = (_seen(told.started, users, session) for session in sessions)
    return Sample(
        server=_server(told, mariadb=mariadb),
        at=datetime.fromtimestamp(told.at, UTC),
        # with sysdate-is-now the clock stands still within a statement: it took no longer than was waited for it
        took_ms=told.took_ms or waited_ms,
        sessions=tuple(session for session in seen if _is_dynamic(session.user) and session.user != own),
        users=tuple(DatabaseUser(name, None, None) for name in sorted(users) if name != own) if with_users else None,
        database=unquote(_parts(dsn)[0].path.strip("/")),
    )


def user_exists(dsn: str, name: str) -> bool:
    """Whether a user of that exact name is there, from whichever host."""
    with _session(dsn) as session:
        rows = _ask(session, "SELECT User AS name FROM mysql.user WHERE User = %s", [name])
    # compared without case where the server's collation does
    return any(row["name"] == name for row in rows)


def backends(dsn: str, user: str, *, user_oid: int | None = None) -> Backends:
    """Sessions of the user by its name, which stays with them when it was dropped; there is no number."""
    with _session(dsn) as session:
        return _backends(session, dsn, user)


def terminate(dsn: str, backends: Sequence[Backend], *, seconds: float) -> Terminated:
    """One statement ends one session, by a number that means the same session for as long as this one is open.

    For that the server's start is compared first: an end of the server in between would be the end of this session, too.
    https://mariadb.com/kb/en/kill/, https://dev.mysql.com/doc/refman/8.4/en/kill.html
    """
    users = {backend.user for backend in backends}
    wanted = {backend.key for backend in backends}
    told = set()
    with _session(dsn) as session:
        until = time.monotonic() + seconds
        server, there = _there(session, dsn, users)
        for backend in there.values():
            if backend.key in wanted:
                try:
                    _ask(session, f"KILL CONNECTION {backend.pid}")
                except pymysql.Error as error:
                    # it ended by itself just now
                    if _code(error) != _NO_SUCH_SESSION:
                        raise
                told.add(backend.key)
        while left := wanted & _there(session, dsn, users)[1].keys():
            if time.monotonic() >= until:
                break
            time.sleep(LOOK_SECONDS)
    return Terminated(server, frozenset(told), frozenset(left))


def by_hand(found: Backends) -> str:
    """One statement for each, or where they are many one that prints them."""
    if len(found.backends) > WRITTEN_OUT:
        user = found.user.replace("\\", "\\\\").replace("'", "''")
        return (
            "SELECT CONCAT('KILL CONNECTION ', ID, ';') FROM information_schema.PROCESSLIST "  # noqa: S608 -- for a person
            f"WHERE USER = '{user}'; -- prints what ends them"
        )
    return " ".join(f"KILL CONNECTION {backend.pid};" for backend in found.backends)


def check_responder(dsn: str) -> None:
    """Return if the account can log in, see others' sessions and end them."""
    with _session(dsn) as session:
        _backends(session, dsn, "")
        # the line holds the account's password hash, too: nothing of it is kept
        rows = [str(next(iter(row.values()))) for row in _ask(session, "SHOW GRANTS")]
        granted = {
            word.strip().upper()
            for row in rows
            if (found := re.match(r"GRANT (.*?) ON \*\.\* TO ", row))
            for word in found[1].split(",")
        }
        if not granted & _MAY_END:
            raise _may_not_end(session, _where(dsn))


def _there(
    session: "pymysql.Connection[DictCursor]", dsn: str, users: Collection[str]
) -> tuple[Server, dict[str, Backend]]:
    """Sessions of these users by their keys."""
    found = [_backends(session, dsn, user) for user in sorted(users) or [""]]
    return found[0].server, {backend.key: backend for one in found for backend in one.backends}


def _backends(session: "pymysql.Connection[DictCursor]", dsn: str, user: str) -> Backends:
    mariadb = _is_mariadb(session)
    (row,) = _ask(session, _BACKENDS_OF_MARIADB if mariadb else _BACKENDS_OF_MYSQL, [user])
    try:
        told = msgspec.convert(row, _Place, strict=False)
        rows = msgspec.json.decode(row["sessions"] or "[]", type=list[_Row])
    except msgspec.MsgspecError as error:
        raise _no_sample(dsn, error) from error
    # compared without case where the server's collation does
    seen = [_seen(told.started, (), row) for row in sorted(rows, key=lambda row: row.number) if row.user == user]
    return Backends(
        _server(told, mariadb=mariadb),
        user,
        None,
        tuple(Backend(s.key, s.pid, None, s.user, s.database, s.address, s.port, "") for s in seen),
    )


class _Place(msgspec.Struct):
    """What a row says of the server itself."""

    host: str
    port: int
    number: int | str
    version: str
    started: int


class _Told(_Place):
    """What is read of the row that a sample is."""

    own: str
    # no rows: none
    sessions: str | None
    users: str | None
    at: float
    took_ms: float


class _Row(msgspec.Struct, array_like=True):
    """A session, in the order of the question."""

    number: int
    user: str
    database: str
    host: str
    command: str


def _server(told: _Place, *, mariadb: bool) -> Server:
    return Server(
        # MySQL keeps a number of its own with its data. MariaDB has none: its server_uid goes with the network card of a pod
        identity=f"mariadb {told.number} {told.host}:{told.port}" if mariadb else f"mysql {told.number}",
        started_at=datetime.fromtimestamp(told.started, UTC),
        version=told.version,
    )


def _seen(started: int, users: Collection[str], row: _Row) -> SeenSession:
    address, port = _address(row.host)
    return SeenSession(
        # connection ids count from 1 at each start of the server
        key=f"{started:x}.{row.number:x}",
        pid=row.number,
        started_at=None,
        user=row.user,
        user_oid=None,
        database=row.database,
        address=address,
        port=port,
        application="",
        state=row.command,
        user_is_gone=row.user not in users,
    )


def _address(host: str) -> tuple[str, int | None]:
    """What stands before and behind the last colon: "10.0.0.7:50412", "fd00::7:50412", "web-7.shop:50412"; a socket is "localhost"."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        return ("" if host == "localhost" else host), None
    try:
        address = ip_address(name)
    except ValueError:
        return name, int(port)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), int(port)


def _is_dynamic(name: str) -> bool:
    # LIKE compares without case where the server's collation does
    return name.startswith("v-")


def _is_mariadb(session: "pymysql.Connection[DictCursor]") -> bool:
    return "mariadb" in str(session.get_server_info()).lower()  # type: ignore[no-untyped-call]


def _session(dsn: str) -> "AbstractContextManager[pymysql.Connection[DictCursor]]":
    return kept.session(_opened, dsn)


@contextmanager
def _opened(dsn: str) -> Iterator["pymysql.Connection[DictCursor]"]:
    """A read-only session with time limits; PyMySQL's errors come out as DatabaseError without the DSN's password."""
    parts, tls = _parts(dsn)
    server = _where(dsn)
    # as bytes: PyMySQL would encode it as Latin 1
    password: Any = unquote(parts.password or "").encode()
    try:
        session = pymysql.connect(
            host=parts.hostname or "localhost",
            port=parts.port or PORT,
            user=unquote(parts.username or ""),
            password=password,
            # not into the database that the address names: the account would need a right in it
            ssl=tls or None,
            autocommit=True,
            cursorclass=DictCursor,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            # the server cuts a statement off before; this is for one that says nothing any more
            read_timeout=STATEMENT_TIMEOUT_SECONDS + 1,
            write_timeout=STATEMENT_TIMEOUT_SECONDS,
            program_name="leasehold",
        )
    except pymysql.Error as error:
        raise _told(server, parts, error) from error
    except (OSError, RuntimeError, UnicodeError) as error:
        # files of the address that cannot be read, a way to log in that needs another package, a name that cannot be one
        raise DatabaseError(
            f"The account's address of {server} cannot be used: {_line(str(error), parts)}",
            "Check its host name and the files that ssl_ca, ssl_cert and ssl_key name; let the account log in with "
            "mysql_native_password or caching_sha2_password.",
        ) from error
    try:
        limit = (
            f"max_statement_time = {STATEMENT_TIMEOUT_SECONDS}"
            if _is_mariadb(session)
            else f"max_execution_time = {STATEMENT_TIMEOUT_SECONDS * 1000}"
        )
        # group_concat_max_len: MariaDB cuts a long JSON_ARRAYAGG off there, without an error
        _ask(
            session,
            f"SET SESSION {limit}, lock_wait_timeout = 2, time_zone = '+00:00', group_concat_max_len = 67108864",
        )
        # uncommitted: in MySQL the list of users would else be older than that of sessions
        _ask(session, "SET SESSION TRANSACTION READ ONLY, ISOLATION LEVEL READ UNCOMMITTED")
        yield session
    except pymysql.Error as error:
        raise (_not_granted(session, server, error) or _told(server, parts, error)) from error
    finally:
        session.close()


def _ask(
    session: "pymysql.Connection[DictCursor]", statement: str, values: list[str] | None = None
) -> list[Mapping[str, Any]]:
    with session.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def _not_granted(session: "pymysql.Connection[DictCursor]", server: str, error: pymysql.Error) -> DatabaseDenied | None:
    """What the account may not do, with the grant for it; None for any other error."""
    code = _code(error)
    if code not in {_NO_PROCESS, _NO_TABLE, _NO_COLUMN, _NOT_ITS_OWNER}:
        return None
    try:
        account = _account(session)
        if code == _NOT_ITS_OWNER:
            return _may_not_end(session, server)
    except pymysql.Error:
        return None
    if code == _NO_PROCESS:
        return SessionsHidden(
            f"The account {account} of {server} may not see other users' sessions, so nobody can say which are there",
            f"Grant it that as an administrator: GRANT PROCESS ON *.* TO {account}.",
        )
    if not str(error.args[1]).endswith(("'user'", "`user`")):
        return DatabaseDenied(
            f"The account {account} of {server} may not read what a sample needs: {error.args[1]}"[:300],
            "Grant it SELECT on that as an administrator (docs/databases.md).",
        )
    return DatabaseDenied(
        f"The account {account} of {server} may not read the names of users",
        f"Grant it that as an administrator: GRANT SELECT (User) ON mysql.user TO {account}.",
    )


def _account(session: "pymysql.Connection[DictCursor]") -> str:
    (row,) = _ask(session, "SELECT CURRENT_USER() AS account")
    name, _, host = str(row["account"]).rpartition("@")
    return f"'{name}'@'{host}'"


def _may_not_end(session: "pymysql.Connection[DictCursor]", server: str) -> MayNotEnd:
    account, right = _account(session), "CONNECTION ADMIN" if _is_mariadb(session) else "CONNECTION_ADMIN"
    return MayNotEnd(
        f"The account {account} of {server} may not end other users' sessions",
        f"Grant it that as an administrator: GRANT PROCESS, {right} ON *.* TO {account}.",
    )


def _no_sample(dsn: str, error: msgspec.MsgspecError) -> DatabaseError:
    # its text names fields and types, never values
    return DatabaseError(
        f"{_where(dsn)} answers what is no sample of sessions ({str(error)[:100]})",
        f"Check that the server itself answers there. {_SUPPORTED}",
    )


def _told(server: str, parts: SplitResult, error: pymysql.Error) -> DatabaseError:
    code = _code(error)
    line = _line(str(error.args[1]) if len(error.args) > 1 else type(error).__name__, parts)
    if code in {_NO_FUNCTION, _NO_JSON}:
        return DatabaseError(f"{server} is too old to be asked: {line}", _SUPPORTED)
    if code in _TOO_SLOW or (code == 2013 and "timed out" in line):
        return DatabaseUnreachable(
            f"{server} did not answer within {STATEMENT_TIMEOUT_SECONDS} s", "Look at the server's load and locks."
        )
    if code in _REFUSALS:
        return DatabaseDenied(
            f"{server} refuses the account: {line}",
            "Check user and password of its address, the hosts that the account may come from, and whether it must use TLS.",
        )
    if code in _AWAY or 2000 <= code < 3000:
        return DatabaseUnreachable(
            f"{server} cannot be reached: {line}", "Check host and port of its address, and that the server runs."
        )
    return DatabaseError(
        f"{server} does not answer the question: {line}",
        f"Check that a MariaDB or MySQL server itself answers there, and look into its log. {_SUPPORTED}",
    )


def _code(error: pymysql.Error) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _line(text: str, parts: SplitResult) -> str:
    """The server's or driver's words: it repeats no password, yet nothing is left to it."""
    for secret in {parts.password or "", unquote(parts.password or "")} - {""}:
        text = text.replace(secret, "[removed]")
    return " ".join(text.split())[:300]


def _where(dsn: str) -> str:
    """The server's name for errors, without user and password."""
    parts, _ = _parts(dsn)
    kind = {"mariadb": "MariaDB", "mysql": "MySQL"}[parts.scheme]
    return f"{kind} at {parts.hostname or 'localhost'}:{parts.port or PORT}"


def _parts(dsn: str) -> tuple[SplitResult, dict[str, Any]]:
    """The address and what it says of TLS. Raises DatabaseError, whose text repeats nothing of it but the name of a parameter."""
    try:
        parts = urlsplit(dsn.strip())
        told = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        good = parts.scheme in {"mariadb", "mysql"} and bool(parts.hostname) and (parts.port or PORT) > 0
    except ValueError:
        good = False
    if not good:
        # outside of the handler, so that nothing is chained: the parser's own text repeats parts of the address
        raise DatabaseError(
            "The account's address is not one of MariaDB or MySQL",
            "Write mariadb://USER:PASSWORD@HOST:PORT/DATABASE or mysql://… into its secret; write what is special in the password as %XX.",
        )
    tls: dict[str, Any] = {key: told.pop(name) for name, key in _TLS.items() if name in told}
    verify = told.pop("ssl_verify_identity", "true")
    if told or verify not in {"true", "false"} or (tls and not tls.get("ca")):
        wrong = next((name for name in told if re.fullmatch(r"[a-z_]{1,40}", name)), "")
        raise DatabaseError(
            "The account's address asks for TLS in a way that is not known" + (f" ({wrong})" if wrong else ""),
            "Known are ssl_ca (needed for the others), ssl_cert, ssl_key, and ssl_verify_identity=false for a certificate without the host's name.",
        )
    if tls and verify == "false":
        tls |= {"check_hostname": False, "verify_mode": True}
    return parts, tls
