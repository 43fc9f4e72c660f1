"""The product as it runs for real, on servers of its own that a drill may kill: PostgreSQL, Valkey, migrated database, workers.

What a drill asks of the product stands in the functions at the end, each by a stable command or one statement.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import kombu.exceptions
import psycopg
import redis.exceptions
from celery import Celery

from demo import postgres, processes, valkey

ROOT = Path(__file__).resolve().parent.parent
VAULT, NODE = "drill", "node-0"
# A commit that lasts: the moment in which a worker does not know yet what the server does. Whatever becomes of the
# transaction is decided after this.
SLOW_COMMIT = """
CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM pg_sleep(0.06 * random()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER UPDATE OF "offset" ON audit_stream
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger();
"""


@dataclass(slots=True)
class Stage:
    """Servers in `folder`, and the environment of the product's processes on them."""

    folder: Path
    database: postgres.Postgres
    broker: valkey.Valkey
    environment: dict[str, str]

    @property
    def dsn(self) -> str:
        return self.database.dsn("leasehold_owner", "leasehold")

    def crash_postgres(self) -> None:
        """`pg_ctl restart -m immediate`: every session is cut off, the server recovers from its log."""
        processes.stop(self.database.process, signum=signal.SIGQUIT)
        self.database.restart()

    def crash_valkey(self, *, seconds: float) -> None:
        """SIGKILL; an empty one comes up in its place after a while."""
        self.broker.kill()
        time.sleep(seconds)
        self.broker = valkey.start(self.broker.folder, port=self.broker.port)

    def stop(self) -> None:
        self.broker.stop()
        self.database.stop()


def build(folder: Path, *, logs: Mapping[str, Path]) -> Stage:
    """Servers, tables and streams; `logs` is the audit file of each device."""
    database, broker = postgres.start(folder / "postgres"), valkey.start(folder / "valkey")
    database.create_role("leasehold_owner")
    database.create_role("leasehold_app")
    database.create_database("leasehold", owner="leasehold_owner")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEASEHOLD_")} | {
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
        "LEASEHOLD_DATABASE_URL": database.dsn("leasehold_app", "leasehold"),
        "LEASEHOLD_OWNER_DATABASE_URL": database.dsn("leasehold_owner", "leasehold"),
        "LEASEHOLD_BROKER_URL": broker.url,
        "LEASEHOLD_SECRET_KEY": "of-a-drill-that-serves-no-page-" + "x" * 32,
        "LEASEHOLD_INSECURE_HTTP": "1",
        "LEASEHOLD_CONFIG": str(folder / "leasehold.toml"),
    }
    stage = Stage(folder, database, broker, environment)
    try:
        manage(stage, "migrate", "--verbosity=0")
        with psycopg.connect(stage.dsn) as connection:
            connection.execute(SLOW_COMMIT)
        if logs:
            (folder / "leasehold.toml").write_text(_configuration(logs))
            manage(stage, "configure")
    except BaseException:
        stage.stop()
        raise
    return stage


def _configuration(logs: Mapping[str, Path]) -> str:
    """leasehold.toml with one vault, which nobody answers for, and one stream a device."""
    lines = ["[[vaults]]", f'name = "{VAULT}"', 'address = "http://127.0.0.1:1"']
    lines += ["[vaults.observe]", 'method = "token"', 'secret = { env = "NO_TOKEN" }']
    for device, log in logs.items():
        node = f"{{ name = {json.dumps(NODE)}, path = {json.dumps(str(log))} }}"
        lines += ["[[vaults.devices]]", f"name = {json.dumps(device)}", f"nodes = [{node}]"]
    return "\n".join(lines) + "\n"


def manage(stage: Stage, *words: str) -> str:
    """Standard output of `manage.py …`; fails with its last lines."""
    done = subprocess.run(
        [sys.executable, "manage.py", *words],
        env=stage.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"manage.py {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@dataclass(slots=True)
class Worker:
    """A Celery worker of the queue `ingest` with one process in its pool."""

    log: Path
    process: subprocess.Popen[bytes]

    def pool(self) -> list[int]:
        """Process ids of the pool; empty while it starts."""
        return children(self.process.pid)


def start_worker(stage: Stage, number: int) -> Worker:
    log = stage.folder / f"worker-{number}.log"
    words = ["-Q", "ingest", "-c", "1", "-n", f"drill-{number}@drill", "--without-gossip", "--without-mingle"]
    command = [sys.executable, "-m", "celery", "-A", "dashboard", "worker", *words, "--loglevel=WARNING"]
    # asked politely, it would first finish what it does
    return Worker(log, processes.spawn(command, log=log, env=stage.environment, cwd=ROOT, death_signal=signal.SIGKILL))


@dataclass(slots=True)
class Clock:
    """beat's part in ingestion: asks again and again that every stream be read. Outlives its broker."""

    url: str
    seconds: float = 0.3
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice, and before start()."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with Celery("clock", broker=self.url, set_as_current=False) as app:
            app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
            while not self._stopping.wait(self.seconds):
                try:
                    app.send_task(
                        "audit.tasks.follow_streams", queue="ingest", expires=2, retry=False, ignore_result=True
                    )
                except (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError):
                    continue


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Session:
    """A connection of the product that holds an advisory lock: its process has the turn at a stream."""

    port: int
    busy: bool
    committing: bool


def readers(connection: psycopg.Connection[Any]) -> list[Session]:
    rows = connection.execute(
        "SELECT client_port, state <> 'idle', state = 'active' AND query = 'COMMIT' FROM pg_stat_activity a"
        " WHERE usename = 'leasehold_app' AND client_port IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted)"
    ).fetchall()
    return [Session(port, busy, committing) for port, busy, committing in rows]


def holds_port(pid: int, port: int) -> bool:
    """Whether the process has this end of a TCP connection over loopback."""
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = [f"socket:[{row[9]}]" for row in rows if int(row[1].partition(":")[2], 16) == port]
        files = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for file in files:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(f"/proc/{pid}/fd/{file}") in sockets:
                return True
    return False


# What the product says it has.


def lines_read(stage: Stage) -> dict[Path, int] | None:
    """Lines that were taken for good, each once, by the stream's path; None while the database is away."""
    try:
        with psycopg.connect(stage.dsn, connect_timeout=2) as connection:
            rows = connection.execute("SELECT path, lines - duplicates FROM audit_stream").fetchall()
    except psycopg.OperationalError:
        return None
    return {Path(path): lines for path, lines in rows}


def streams(stage: Stage) -> dict[str, dict[str, Any]]:
    """Every column of each stream, by its device's name."""
    with psycopg.connect(stage.dsn) as connection:
        rows = connection.execute(
            "SELECT d.name, to_jsonb(s) FROM audit_stream s JOIN audit_device d ON d.id = s.device_id ORDER BY s.id"
        ).fetchall()
    return dict(rows)


def exported(stage: Stage, kind: str, *, from_at: datetime) -> list[dict[str, Any]]:
    """Rows of `manage.py export KIND` from then to tomorrow."""
    output = stage.folder / f"{kind}.ndjson"
    until = (datetime.now(from_at.tzinfo) + timedelta(days=1)).isoformat()
    period = ["--from", from_at.isoformat(), "--to", until]
    manage(stage, "export", kind, *period, "--format", "ndjson", "--output", str(output))
    return [json.loads(line) for line in output.read_text().splitlines()]


def stored_lines(stage: Stage, *devices: str) -> dict[str, Path]:
    """For each device a file with every line of its stream's raw blocks, in the order of the chain."""
    outputs = {device: stage.folder / f"{device}.lines" for device in devices}
    code = (
        "from audit import blocks; from audit.models import RawBlock\n"
        f"for device, output in { {device: str(path) for device, path in outputs.items()} }.items():\n"
        "    with open(output, 'wb') as file:\n"
        "        chain = RawBlock.objects.filter(stream__device__name=device).order_by('sequence')\n"
        "        for block in chain.iterator(chunk_size=10):\n"
        "            file.write(blocks.lines_of(block))\n"
    )
    manage(stage, "shell", "--verbosity=0", "-c", code)
    return outputs
