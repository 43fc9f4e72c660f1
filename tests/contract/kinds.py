"""The database servers that the contract of leases/databases is held against. A new kind is one class and one entry in `KINDS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, Protocol

import psycopg
import pymysql
import pytest
from psycopg import sql

from demo import mariadb, postgres
from demo.mariadb import MariaDB
from demo.postgres import Postgres


@dataclass
class Client:
    """An open session; `port` is its own end. It may be closed twice.

    `lives`: whether the server still answers it. `sleep`: a statement of half a minute; returns when the session is ended.
    """

    port: int
    close: Callable[[], None]
    lives: Callable[[], bool]
    sleep: Callable[[], object]


class Subject(Protocol):
    """A running server of one kind, with a monitoring and a responding account as docs/databases.md makes them, and one that may only log in."""

    # of [[databases]] kind, and how addresses of it begin
    word: str
    scheme: str

    @property
    def monitor(self) -> str:
        """Address of the monitoring account."""

    @property
    def responder(self) -> str:
        """Address of the responding account."""

    @property
    def bare(self) -> str:
        """Address of the account that may only log in."""

    def account(self, name: str) -> str:
        """A further monitoring account of that name; gives its address."""

    def make_user(self, name: str) -> None:
        """As Vault does it."""

    def drop_user(self, name: str) -> None:
        """As Vault does it; no error where there is none."""

    def connect(self, name: str, *, database: str = "orders") -> Client:
        """A session of a user or account made here, over TCP from 127.0.0.1; with "" in the database where everybody may be, or in none."""

    def run(self, statements: str) -> None:
        """As an administrator types it."""

    def restart(self) -> None: ...
    def stop(self) -> None: ...


# as docs/databases.md says
RESPONDER_ROLES: LiteralString = "pg_read_all_stats, pg_signal_backend"


class PostgreSQL:
    word = scheme = "postgresql"
    marks: Sequence[pytest.MarkDecorator] = ()

    def __init__(self, folder: Path) -> None:
        self._server: Postgres = postgres.start(folder)
        self._server.create_database("orders")
        self._server.create_role("contract_bare")
        self.account("contract_monitor")
        self._server.create_role("contract_responder")
        self._run(sql.SQL("GRANT {} TO contract_responder").format(sql.SQL(RESPONDER_ROLES)))

    @property
    def monitor(self) -> str:
        return self._server.dsn("contract_monitor")

    @property
    def responder(self) -> str:
        return self._server.dsn("contract_responder")

    @property
    def bare(self) -> str:
        return self._server.dsn("contract_bare")

    def account(self, name: str) -> str:
        self._server.create_role(name)
        self._run(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(name)))
        return self._server.dsn(name)

    def make_user(self, name: str) -> None:
        self._server.create_role(name)

    def drop_user(self, name: str) -> None:
        self._run(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))

    def connect(self, name: str, *, database: str = "orders") -> Client:
        session = psycopg.connect(self._server.dsn(name, database or "postgres"), autocommit=True)
        row = session.execute("SELECT inet_client_port()").fetchone()
        assert row

        def answers(statement: LiteralString) -> bool:
            return _answers(lambda: session.execute(statement), psycopg.OperationalError)

        return Client(row[0], session.close, lambda: answers("SELECT 1"), lambda: answers("SELECT pg_sleep(30)"))

    def run(self, statements: str) -> None:
        self._run(sql.SQL(statements).format())

    def restart(self) -> None:
        self._server.restart()

    def stop(self) -> None:
        self._server.stop()

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True) as session:
            session.execute(statement)


# as docs/databases.md says
MONITOR_GRANTS = ("PROCESS ON *.*", "SELECT (User) ON mysql.user")
RESPONDER_GRANTS = ("PROCESS ON *.*", "CONNECTION ADMIN ON *.*")
NO_MARIADB = pytest.mark.skipif(bool(mariadb.why_not()), reason=mariadb.why_not() or "MariaDB is there")


class MariaDBAndMySQL:
    word = scheme = "mariadb"
    marks: Sequence[pytest.MarkDecorator] = (NO_MARIADB,)

    def __init__(self, folder: Path) -> None:
        self._server: MariaDB = mariadb.start(folder)
        self._server.execute("CREATE DATABASE IF NOT EXISTS orders")
        self._server.create_user("contract_bare")
        self.account("contract_monitor")
        self._server.create_user("contract_responder", *RESPONDER_GRANTS)

    @property
    def monitor(self) -> str:
        return self._server.dsn("contract_monitor")

    @property
    def responder(self) -> str:
        return self._server.dsn("contract_responder")

    @property
    def bare(self) -> str:
        return self._server.dsn("contract_bare")

    def account(self, name: str) -> str:
        self._server.create_user(name, *MONITOR_GRANTS)
        return self._server.dsn(name)

    def make_user(self, name: str) -> None:
        self._server.create_user(name, "SELECT ON orders.*")

    def drop_user(self, name: str) -> None:
        self._server.execute(f"DROP USER IF EXISTS '{name}'@'%'")

    def connect(self, name: str, *, database: str = "orders") -> Client:
        session = self._server.connect(name, database or None)
        return Client(
            port_of(session),
            lambda: session.close() if session.open else None,
            lambda: _answers(lambda: session.ping(reconnect=False), pymysql.Error),
            lambda: _answers(lambda: session.query("SELECT SLEEP(30)"), pymysql.Error),
        )

    def run(self, statements: str) -> None:
        self._server.execute(*filter(None, statements.split(";")))

    def restart(self) -> None:
        self._server.restart()

    def stop(self) -> None:
        self._server.stop()


KINDS = (PostgreSQL, MariaDBAndMySQL)


def _answers(ask: Callable[[], object], ended: type[Exception]) -> bool:
    try:
        ask()
    except ended:
        return False
    return True


def port_of(session: "pymysql.Connection[pymysql.cursors.Cursor]") -> int:
    """The client's own end of a session over TCP."""
    port: int = session._sock.getsockname()[1]  # type: ignore[attr-defined]
    return port


def number_of(session: "pymysql.Connection[pymysql.cursors.Cursor]") -> int:
    """What the server calls the session."""
    number: int = session.thread_id()  # type: ignore[no-untyped-call]
    return number
