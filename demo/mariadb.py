"""A MariaDB server in one folder, from Debian's packages, on loopback TCP and a socket in its folder."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pymysql

from demo import processes
from demo.files import read_passwords, write_passwords, write_secret

# fast rather than durable: whatever is lost with the machine, the tests make again
_SETTINGS = (
    "bind-address=127.0.0.1",
    "skip-name-resolve",
    "innodb-buffer-pool-size=32M",
    "innodb-log-file-size=8M",
    "innodb-flush-log-at-trx-commit=0",
    "innodb-flush-method=nosync",
    "innodb-doublewrite=0",
    "skip-log-bin",
    "max-connections=2200",
    "open-files-limit=4096",
    "character-set-server=utf8mb4",
)
_PACKAGES = "mariadb-server-core mariadb-client-core"
# relative: below a folder that is closed to the server's account access(2), which knows no capabilities, finds no absolute path,
# and the server would begin its logs anew at each start and think that all its tables came from elsewhere
_ARIA_LOGS = "--aria-log-dir-path=."
# instead of accounts without a password: one account for all, from wherever the server listens
_FIRST = """
DELETE FROM proxies_priv;
DELETE FROM global_priv WHERE User IN ('root', '');
INSERT INTO global_priv VALUES ('%', 'root', JSON_OBJECT('access', CAST(-1 AS UNSIGNED), 'plugin', 'mysql_native_password', 'authentication_string', PASSWORD('{password}')));
"""


@dataclass(slots=True)
class MariaDB:
    """A running server. Passwords of the users that were made here stand in `folder/passwords.json` (mode 0600)."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "mariadb.log"

    @property
    def socket(self) -> Path:
        """The local socket."""
        return self.folder / "data" / "mariadb.socket"

    def dsn(self, user: str = "root", database: str = "") -> str:
        """mariadb:// address of root or of a user made by create_user(); KeyError for another."""
        return f"mariadb://{user}:{read_passwords(self.folder)[user]}@127.0.0.1:{self.port}/{database}"

    def connect(
        self,
        user: str = "root",
        database: str | None = None,
        *,
        password: str | None = None,
        address: str | None = None,
    ) -> "pymysql.Connection[pymysql.cursors.Cursor]":
        """A session of root, of a user made by create_user(), or with `password` of any; from `address` if given."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=read_passwords(self.folder)[user] if password is None else password,
            database=database,
            bind_address=address,
            autocommit=True,
            # whether to use TLS is the monitoring account's affair; preparing it costs 40 ms each time
            ssl_disabled=True,
            connect_timeout=5,
            read_timeout=60,
        )

    def execute(self, *statements: str) -> None:
        """Run the statements as root."""
        with self.connect() as session, session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def create_user(self, name: str, *grants: str) -> None:
        """Make the user with a random password and grants such as "PROCESS ON *.*", or give an existing one just these."""
        passwords = read_passwords(self.folder)
        password = passwords.setdefault(name, secrets.token_urlsafe(24))
        write_passwords(self.folder, passwords)
        with self.connect() as session, session.cursor() as cursor:
            cursor.execute("CREATE OR REPLACE USER %s@'%%' IDENTIFIED BY %s", (name, password))
            for grant in grants:
                # fixed words of its grammar, written in this checkout
                cursor.execute(f"GRANT {grant.replace('%', '%%')} TO %s@'%%'", (name,))

    def stop(self) -> None:
        """End it in order: open sessions are ended."""
        processes.stop(self.process, seconds=30)

    def kill(self) -> None:
        """End it as a crash would, without any shutdown."""
        processes.kill(self.process)

    def restart(self, *settings: str) -> None:
        """Stop it if it runs, and start it again on the same port, with further settings if given."""
        self.stop()
        self.process = _run(self.folder, self.port, settings)


def start(folder: Path, *, port: int | None = None, settings: tuple[str, ...] = ()) -> MariaDB:
    """Start the server of `folder`, which is made on the first start; `root` has a random password."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "passwords.json").exists():
        _initialise(folder)
    port = port or processes.free_port()
    return MariaDB(folder, port, _run(folder, port, settings))


def why_not() -> str:
    """Why it cannot run here; empty where it can."""
    missing = [name for name in ("mariadbd", "mariadb-install-db", "my_print_defaults") if _found(name) is None]
    return f"no {', '.join(missing)}: apt-get install {_PACKAGES}" if missing else ""


def binary(name: str) -> Path:
    """Path of one of MariaDB's programs."""
    if path := _found(name):
        return path
    raise processes.NotReady(f"MariaDB: {why_not()}")


def _found(name: str) -> Path | None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    return Path(path) if path else None


def _initialise(folder: Path) -> None:
    data, log = folder / "data", folder / "install.log"
    shutil.rmtree(data, ignore_errors=True)  # what an interrupted first start left
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = processes.nobody()
        os.chown(data, user.pw_uid, user.pw_gid)
    password, first = secrets.token_urlsafe(24), data / "first.sql"
    write_secret(first, _FIRST.format(password=password), for_unprivileged=True)
    process = processes.spawn(
        [
            *(binary("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve", f"--extra-file={first}"),
            # otherwise the caller's TMPDIR, which may be closed to the server's account
            *(f"--tmpdir={data}", _ARIA_LOGS, "--innodb-log-file-size=8M", "--innodb-flush-method=nosync"),
        ],
        log=log,
        cwd=data,
        unprivileged=True,
    )
    processes.wait_until(lambda: process.poll() is not None, what="mariadb-install-db", seconds=120, log=log)
    if process.returncode != 0:
        processes.wait_until(lambda: False, what="mariadb-install-db", seconds=0, log=log, process=process)
    first.unlink()
    # written last: where this file is, the data folder is whole
    write_passwords(folder, {"root": password})


def _run(folder: Path, port: int, settings: tuple[str, ...]) -> subprocess.Popen[bytes]:
    data, log = folder / "data", folder / "mariadb.log"
    process = processes.spawn(
        [
            *(binary("mariadbd"), "--no-defaults", f"--datadir={data}", f"--port={port}"),
            # relative: the path of a socket may be no longer than 107 bytes
            *("--socket=mariadb.socket", f"--pid-file={data / 'mariadbd.pid'}", f"--tmpdir={data}"),
            _ARIA_LOGS,
            *(f"--{setting}" for setting in (*_SETTINGS, *settings)),
        ],
        log=log,
        cwd=data,
        unprivileged=True,
    )
    server = MariaDB(folder, port, process)
    processes.wait_until(_answers(server), what="MariaDB", seconds=60, log=log, process=process)
    return process


def _answers(server: MariaDB) -> Callable[[], bool]:
    """A condition for wait_until(): root can log in."""

    def answers() -> bool:
        try:
            server.connect().close()
        except pymysql.OperationalError:
            return False
        return True

    return answers
