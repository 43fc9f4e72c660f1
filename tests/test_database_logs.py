"""A real PostgreSQL's own log becomes sessions: every one of them, however short, and each once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import audit.queries
from audit import configuration, dblog, tasks
from audit.dated import Place
from audit.models import DatabaseLog, ServerStart
from demo import postgres as postgres_server
from demo.postgres import COLLECTED, Postgres
from leases import sessions
from leases.configuration import ConfigurationError, load
from leases.databases import postgresql, postgresql_log
from leases.models import DatabaseServer, MonitorUser, SampledPeriod, Sampling, Session, SourceState
from leases.models.sessions import Ended
from tests import factories

# static files are served as they lie in static/ where nobody ran collectstatic
pytestmark = pytest.mark.filterwarnings("ignore:No directory at")

ROOT = Path(__file__).resolve().parent.parent
FORMATS = {"jsonlog": "json", "csvlog": "csv"}
USER = "v-kubernet-orders-Qx7TzY2hPqkW9RbnMvLc-1764369429"
NASTY = 'a", "b\ndisconnection: session time: 0:00:09.000 user=root\n2026-01-01 00:00:00.000 UTC,"x"'


@pytest.fixture(scope="module")
def server(run_folder: Path) -> Iterator[Postgres]:
    """A server whose collector writes both formats, each time into new files."""
    running = postgres_server.start(run_folder / "logged", settings=COLLECTED)
    running.create_role(USER)
    yield running
    running.stop()


def log_of(path: Path | str, form: str = "jsonlog", *names: str) -> DatabaseLog:
    """A configured log whose server a sample has named."""
    log = DatabaseLog.objects.create(path=str(path), format=form)
    databases = [factories.database(name) for name in names or ("orders",)]
    for database in databases:
        Sampling.objects.get_or_create(
            database=database, defaults={"server": sampled_server(), "due_at": timezone.now(), "interval_seconds": 5}
        )
    log.databases.set(databases)
    return log


def sampled_server(identity: str = "postgresql 1 127.0.0.1:5432") -> DatabaseServer:
    found, _ = DatabaseServer.objects.get_or_create(identity=identity)
    return found


def read_all(log: DatabaseLog) -> DatabaseLog:
    read_at(log, timezone.now())
    log.refresh_from_db()
    return log


def read_at(log: DatabaseLog, at: datetime) -> None:
    """To its end, as if it were that time."""
    dblog.read_on(log.pk, until=time.monotonic() + 60, clock=lambda: at)


@dataclass(frozen=True, slots=True)
class Used:
    """What the server itself said of a session while it was there."""

    key: str
    pid: int
    started_at: datetime
    address: str
    port: int


def use(server: Postgres, *, application: str = "psql", statement: str = "SELECT 1", close: bool = True) -> Used:
    """A short session of the dynamic user, from an address of its own."""
    with psycopg.connect(server.dsn(USER), application_name=application) as session:
        session.execute("SELECT set_config('application_name', %s, false)", [application])
        found = session.execute(
            "SELECT to_hex(floor(extract(epoch FROM backend_start))::bigint) || '.' || to_hex(pid), pid, backend_start,"
            " host(client_addr), client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchone()
        session.execute(statement)
    assert found is not None
    return Used(*found)


def written(server: Postgres, form: str, text: str, *, since: Path | None = None) -> Path:
    """The newest file of that format, once `text` stands in it: the collector writes a moment later."""
    for _ in range(200):
        files = sorted(server.collected.glob(f"*.{FORMATS[form]}"))
        if files and text in files[-1].read_text():
            return files[-1]
        time.sleep(0.02)
    raise AssertionError(f"{text} was not logged")


def ended(server: Postgres, form: str, used: Used) -> Path:
    """The file in which the end of that session stands."""
    for _ in range(200):
        for file in server.collected.glob(f"*.{FORMATS[form]}"):
            if any("disconnection:" in line and used.key in line for line in file.read_text().splitlines()):
                return file
        time.sleep(0.02)
    raise AssertionError(f"the end of {used.key} was not logged")


def rotate(server: Postgres) -> None:
    """A new file, as pg_ctl logrotate makes it: its name has whole seconds."""
    names = set(server.collected.iterdir())
    time.sleep(1.05)
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute("SELECT pg_rotate_logfile()")
        session.execute("SELECT 1")
    for _ in range(200):
        if set(server.collected.iterdir()) - names:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was rotated")


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_session_of_a_few_milliseconds_is_there_with_user_address_port_and_times(server: Postgres, form: str) -> None:
    before = timezone.now()
    used = use(server, application="report-worker")
    ended(server, form, used)
    log = read_all(log_of(server.collected / f"postgresql-*.{FORMATS[form]}", form))
    found = Session.objects.get(key=used.key)
    assert (found.database_user, found.database_name, found.application) == (USER, "postgres", "report-worker")
    assert (found.address, found.port, found.pid) == (used.address, used.port, used.pid)
    assert (found.logged, found.sampled, found.end_known_by) == (True, False, Ended.LOGGED)
    # milliseconds are all that the log has
    assert abs(found.started_at - used.started_at) < timedelta(milliseconds=3)
    assert found.ended_at is not None
    # the log cuts its times to milliseconds
    assert before - timedelta(milliseconds=1) < found.started_at < found.ended_at < timezone.now()
    assert (found.server, found.database) == (log.server, factories.database())
    assert log.invalid == 0
    assert log.lines > log.connections >= log.disconnections >= 1


@pytest.mark.django_db
@pytest.mark.parametrize("sample_comes_first", [True, False])
def test_what_samples_and_log_tell_of_one_session_is_one_row(server: Postgres, sample_comes_first: bool) -> None:
    used = use(server)
    file = ended(server, "jsonlog", used)
    log = log_of(file)
    values: dict[str, Any] = {
        "sampled": True,
        "started_at": used.started_at,
        "user_oid": 16_400,
        "first_seen_at": used.started_at,
        "last_seen_at": used.started_at + timedelta(milliseconds=1),
    }
    fresh = {
        "pid": used.pid,
        "database_user": USER,
        "address": used.address,
        "port": used.port,
        "database_name": "postgres",
    }
    if not sample_comes_first:
        read_all(log)
    else:
        # and a later one did not show it any more
        fresh |= {"ended_at": used.started_at + timedelta(seconds=4), "end_known_by": Ended.SAMPLED}
    Session.objects.update_or_create(
        server=sampled_server(), key=used.key, defaults=values, create_defaults={**values, **fresh}
    )
    read_all(log)
    found = Session.objects.get(key=used.key)
    assert (found.sampled, found.logged, found.end_known_by) == (True, True, Ended.LOGGED)
    assert found.started_at == used.started_at
    assert found.user_oid == 16_400
    assert found.ended_at is not None
    assert found.ended_at < used.started_at + timedelta(seconds=4)


@pytest.mark.django_db
def test_a_real_sample_and_the_log_meet(server: Postgres) -> None:
    log = log_of(server.collected / "postgresql-*.json")
    Sampling.objects.all().delete()
    database = factories.database()
    with psycopg.connect(server.dsn(USER), application_name="app") as session:
        sample = postgresql.sample(server.dsn(), with_users=True)
        sessions.take_sample(database, sample, now=timezone.now())
        pid = session.info.backend_pid
    used = use(server)
    ended(server, "jsonlog", used)
    sessions.take_sample(database, postgresql.sample(server.dsn(), with_users=True), now=timezone.now())
    assert Session.objects.get(pid=pid).end_known_by == Ended.SAMPLED
    read_all(log)
    both, short = Session.objects.get(pid=pid), Session.objects.get(key=used.key)
    assert (both.sampled, both.logged, both.end_known_by) == (True, True, Ended.LOGGED)
    assert (short.sampled, short.logged) == (False, True)
    assert Session.objects.filter(pid=pid).count() == 1
    assert short.server == both.server
    sessions.take_sample(database, postgresql.sample(server.dsn(), with_users=True), now=timezone.now())
    both.refresh_from_db()
    assert both.end_known_by == Ended.LOGGED
    assert SourceState.objects.get(name=str(log)).cause == ""


@pytest.mark.django_db
def test_a_monitoring_account_of_vaults_own_is_nobodys_session(tmp_path: Path) -> None:
    database = factories.database()
    MonitorUser.objects.create(database=database, name="v-monitor", read_at=timezone.now())
    message = "connection authorized: user=v-monitor database=orders"
    (tmp_path / "log").write_bytes(Record(user="v-monitor", message=message).json())
    log = read_all(log_of(tmp_path / "log"))
    assert (log.lines, log.connections, Session.objects.count()) == (1, 0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_files_that_the_server_begins_anew_are_read_one_after_the_other(server: Postgres, form: str) -> None:
    pattern = server.collected / f"postgresql-%Y-%m-%d_%H%M%S.{FORMATS[form]}"
    log = log_of(pattern, form)
    wanted = {use(server).key}
    read_all(log)
    for _ in range(2):
        wanted.add(use(server).key)
        rotate(server)
        last = use(server)
        wanted.add(last.key)
        ended(server, form, last)
        read_all(log)
    rotate(server)
    rotate(server)
    last = use(server)
    ended(server, form, last)
    read_all(log)
    files = list(server.collected.glob(f"*.{FORMATS[form]}"))
    told = [postgresql_log.read(file.read_bytes(), form) for file in files]
    assert wanted <= set(Session.objects.values_list("key", flat=True))
    assert Session.objects.exclude(end_known_by=Ended.LOGGED).count() == 0
    # each record once
    assert log.lines == sum(piece.records for piece in told)
    assert log.connections == sum(s.user == USER for piece in told for s in piece.sessions.values())
    assert (log.hole, log.unread_bytes, log.invalid) == ("", 0, 0)
    assert Path(log.file) == max(files)


@pytest.mark.django_db
def test_a_file_that_is_renamed_and_begun_anew_is_read_to_its_end(tmp_path: Path, server: Postgres) -> None:
    first, second = use(server), use(server)
    text = ended(server, "jsonlog", first).read_bytes()
    lines = [line for line in text.splitlines(keepends=True) if first.key.encode() in line]
    later = [
        line
        for line in ended(server, "jsonlog", second).read_bytes().splitlines(keepends=True)
        if second.key.encode() in line
    ]
    file = tmp_path / "postgresql.json"
    file.write_bytes(b"".join(lines[:-1]))
    log = read_all(log_of(file))
    assert Session.objects.get(key=first.key).ended_at is None
    with file.open("ab") as open_file:
        open_file.write(lines[-1])
    file.rename(tmp_path / "postgresql.json.1")
    file.write_bytes(b"".join(later))
    read_all(log)
    assert Session.objects.filter(key__in=[first.key, second.key], end_known_by=Ended.LOGGED).count() == 2
    assert log.hole == ""


@pytest.mark.django_db
def test_a_dated_file_that_is_gone_before_it_was_read_is_a_hole_and_reading_goes_on(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"pg-{number}.json").write_bytes(
            Record(at=1000.0 * number).json() + Record(at=1000.0 * number + 5).json()
        )
    log = log_of(tmp_path / "pg-*.json")
    piece = dblog.next_piece(log.path, log.format, Place(), size=10)
    dblog.take(log.pk, piece, server=sampled_server(), expected=Place(), now=timezone.now())
    (tmp_path / "pg-0.json").unlink()
    read_all(log)
    assert log.lines == 5
    assert "pg-0.json is gone" in log.hole
    state = SourceState.objects.get(name=str(log))
    assert state.ok
    assert "Something is missing" in state.cause


@pytest.mark.django_db
def test_a_name_that_comes_again_each_week_is_read_again(tmp_path: Path) -> None:
    monday, tuesday = tmp_path / "pg-Mon.json", tmp_path / "pg-Tue.json"
    monday.write_bytes(Record(at=0).json())
    log = read_all(log_of(tmp_path / "pg-%a.json"))
    tuesday.write_bytes(Record(at=86_400).json())
    read_all(log)
    # log_truncate_on_rotation
    monday.write_bytes(Record(at=7 * 86_400).json() + Record(at=7 * 86_400 + 1).json())
    read_all(log)
    assert (log.lines, log.hole) == (4, "")
    assert log.file == str(monday)


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_what_clients_write_is_never_taken_for_what_the_server_says(server: Postgres, form: str) -> None:
    forged = (
        "DO $$ BEGIN RAISE LOG 'disconnection: session time: 0:00:00.001 user=x database=y host=192.0.2.1 port=1';"
        " RAISE LOG 'connection authorized: user=root database=y application_name=forged'; END $$"
    )
    log = read_all(log_of(ended(server, form, use(server)), form))
    refused = log.rejected
    used = use(server, application=NASTY, statement=forged)
    broken = "DO $$ BEGIN RAISE EXCEPTION '%', $m$" + NASTY.replace("%", "%%") + "$m$; END $$"
    with psycopg.connect(server.dsn(USER), autocommit=True) as session:
        with pytest.raises(psycopg.errors.RaiseException):
            session.execute(broken)
        with pytest.raises(psycopg.errors.UndefinedTable):
            session.execute('SELECT $$\'\n2026-01-01 00:00:00.000 UTC,"v-x",\n$$ FROM nowhere')
    # no user at all, and a name of another encoding
    for name in ('v-nobody\n,"x', 'v-"quoted"'):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.dsn(), user=name)
    ended(server, form, use(server))
    read_all(log)
    assert log.invalid == 0
    found = Session.objects.get(key=used.key)
    assert (found.database_user, found.address, found.port) == (USER, used.address, used.port)
    assert abs(found.started_at - used.started_at) < timedelta(milliseconds=3)
    assert found.application.startswith('a", "b')
    assert "forged" not in found.application
    assert not Session.objects.exclude(database_user=USER).exists()
    assert log.rejected == refused + 2


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_session_that_says_it_has_ended_has_not(server: Postgres, form: str) -> None:
    with psycopg.connect(server.dsn(USER), autocommit=True) as session:
        session.execute("DO $$ BEGIN RAISE LOG 'disconnection: session time: 0:00:00.001 user=x '; END $$")
        file = written(server, form, "session time: 0:00:00.001 user=x ")
        read_all(log_of(file, form))
        found = Session.objects.get(pid=session.info.backend_pid)
    assert (found.logged, found.ended_at) == (True, None)


@pytest.mark.django_db
def test_no_statement_and_no_message_is_kept(server: Postgres) -> None:
    used = use(server, statement="DO $$ BEGIN RAISE LOG 'hunter2-in-a-message'; END $$ /* hunter2-in-a-statement */")
    read_all(log_of(ended(server, "jsonlog", used)))
    for model in (Session, DatabaseLog, SourceState):
        assert "hunter2" not in str(list(model.objects.values()))


@pytest.mark.django_db
def test_a_log_in_that_gets_no_further_than_its_password_has_an_end(server: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(server.dsn(USER, "no_such_database"))
    file = written(server, "csvlog", 'database ""no_such_database"" does not exist')
    read_all(log_of(file, "csvlog"))
    found = Session.objects.get(database_name="no_such_database")
    assert found.end_known_by == Ended.LOGGED
    assert found.ended_at is not None
    assert found.ended_at - found.started_at < timedelta(seconds=1)


@pytest.mark.django_db
def test_sessions_that_were_open_when_the_server_came_up_again_have_ended(run_folder: Path) -> None:
    folder = run_folder / "crashing"
    running = postgres_server.start(folder, settings=COLLECTED)
    try:
        running.create_role(USER)
        session = psycopg.connect(running.dsn(USER), autocommit=True)
        key = Session(pid=session.info.backend_pid).pid
        log = log_of(running.collected / "postgresql-*.json")
        written(running, "jsonlog", f'"pid":{key}')
        read_all(log)
        found = Session.objects.get(pid=key)
        assert found.ended_at is None
        # so that the postmaster starts everything anew, and the session has no time for a line
        os.kill(key, signal.SIGKILL)
        session.close()
        written(running, "jsonlog", "automatic recovery in progress")
        read_all(log)
    finally:
        running.stop()
    found.refresh_from_db()
    assert found.end_known_by == Ended.RESTARTED
    assert found.ended_at in set(ServerStart.objects.values_list("at", flat=True))


@pytest.mark.django_db
def test_a_session_over_a_local_socket_has_no_address(run_folder: Path) -> None:
    sockets = Path("/tmp")  # the server runs as another user, and a path may have 107 bytes
    running = postgres_server.start(
        run_folder / "local", settings={**COLLECTED, "unix_socket_directories": str(sockets)}
    )
    try:
        (running.folder / "data" / "pg_hba.conf").write_text(
            "host all all 127.0.0.0/8 scram-sha-256\nlocal all all trust\n"
        )
        running.create_role(USER)
        with psycopg.connect(running.dsn(), autocommit=True) as session:
            session.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)
        psycopg.connect(host=str(sockets), port=running.port, user=USER, dbname="postgres").close()
        for form in FORMATS:
            file = written(running, form, "host=[local]")
            Session.objects.all().delete()
            log = read_all(log_of(file, form))
            found = Session.objects.get()
            assert (found.address, found.port, found.end_known_by) == ("", None, Ended.LOGGED)
            assert log.invalid == 0
    finally:
        running.stop()


# --- written by hand: what a real server cannot be made to do at will ---------------------------------------------


@dataclass(slots=True)
class Record:
    """A record as PostgreSQL 18 writes it. `at`: seconds after a fixed time; `zone` ahead of UTC by `ahead` hours."""

    at: float = 0.0
    start: int | None = None
    pid: int = 4242
    user: str = USER
    message: str = "statement: SELECT 1"
    severity: str = "LOG"
    code: str = "00000"
    host: str = "10.0.0.7"
    port: int = 40_000
    vxid: str = ""
    application: str = ""
    backend: str = "client backend"
    statement: str = ""
    zone: str = "UTC"
    ahead: float = 0.0

    EPOCH = 1_790_000_000

    @property
    def began(self) -> int:
        return self.EPOCH + int(self.at if self.start is None else self.start)

    @property
    def key(self) -> str:
        return f"{self.began:x}.{self.pid:x}"

    def clock(self, seconds: float, *, whole: bool = False) -> str:
        at = datetime.fromtimestamp(seconds, UTC) + timedelta(hours=self.ahead)
        return at.strftime("%Y-%m-%d %H:%M:%S") + ("" if whole else f".{at.microsecond // 1000:03d}") + f" {self.zone}"

    def json(self) -> bytes:
        fields = {
            "timestamp": self.clock(self.EPOCH + self.at),
            "user": self.user,
            "dbname": "orders" if self.user else "",
            "pid": self.pid,
            "remote_host": self.host,
            "remote_port": self.port,
            "session_id": self.key,
            "line_num": 1,
            "ps": "idle",
            "session_start": self.clock(self.began, whole=True),
            "vxid": self.vxid,
            "error_severity": self.severity,
            "state_code": self.code,
            "message": self.message,
            "statement": self.statement,
            "application_name": self.application,
            "backend_type": self.backend,
        }
        kept = {name: value for name, value in fields.items() if value != ""}
        return json.dumps(kept, separators=(",", ":")).encode() + b"\n"

    def csv(self) -> bytes:
        def quoted(text: str) -> str:
            return '"' + text.replace('"', '""') + '"' if text else ""

        empty = '""'
        return (
            f"{self.clock(self.EPOCH + self.at)},{quoted(self.user)},{quoted('orders' if self.user else '')},{self.pid},"
            f'"{self.host}:{self.port}",{self.key},1,"idle",{self.clock(self.began, whole=True)},{self.vxid},0,'
            f"{self.severity},{self.code},{quoted(self.message)},,,,,,{quoted(self.statement)},,,{quoted(self.application) or empty},"
            f"{quoted(self.backend)},,0\n"
        ).encode()

    def written(self, form: str) -> bytes:
        return self.json() if form == "jsonlog" else self.csv()


def session_records(random: Random, number: int) -> list[Record]:
    """A session: its connection, what it does, its end. Sometimes one of the lines is missing."""
    start, length = random.randrange(5_000), random.choice([0.004, 0.25, 3.5, 4000.0])
    begin = start + random.randrange(1, 400) / 1000
    user = USER if random.random() < 0.7 else random.choice(["postgres", "v-other", 'v-"q\n'])
    of: dict[str, Any] = {"start": start, "pid": 1000 + number, "user": user, "port": 30_000 + number}
    name = random.choice(["", "psql", NASTY, "Ünï\u2028code"])
    authorized = f"connection authorized: user={user} database=orders" + (f" application_name={name}" if name else "")
    spoken = [
        Record(
            at=begin + length * random.random(), severity="ERROR", vxid="3/7", message=NASTY, statement=NASTY * 3, **of
        )
        for _ in range(random.randrange(3))
    ]
    seconds = int(length)
    ended = (
        f"disconnection: session time: {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{int(length * 1000) % 1000:03d}"
        f" user={user} database=orders host=10.0.0.7 port=1"
    )
    lines = [
        Record(at=begin + 0.002, vxid="3/1", message=authorized, **of),
        *spoken,
        Record(at=begin + length, message=ended, application=random.choice(["", name]), **of),
    ]
    if random.random() < 0.2:
        lines.pop(random.choice([0, -1]))
    return lines


def a_log(seed: int, form: str, *, sessions: int = 40) -> bytes:
    random = Random(seed)  # noqa: S311 (not for secrets)
    records = [record for number in range(sessions) for record in session_records(random, number)]
    records.sort(key=lambda record: record.at)
    return b"".join(record.written(form) for record in records)


def rows() -> list[dict[str, Any]]:
    columns = [field.attname for field in Session._meta.fields if field.attname not in {"id", "server_id"}]
    return list(Session.objects.order_by("key").values(*columns))


def counts(log: DatabaseLog) -> tuple[int, ...]:
    return log.lines, log.invalid, log.connections, log.disconnections, log.rejected


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_however_a_log_is_cut_into_pieces_it_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    data = a_log(1, form)
    whole = tmp_path / "whole"
    whole.write_bytes(data)
    log = read_all(log_of(whole, form))
    wanted, counted = rows(), counts(log)
    assert len(wanted) > 20
    assert log.invalid == 0
    random = Random(2)  # noqa: S311 (not for secrets)
    for number in range(8):
        Session.objects.all().delete()
        file = tmp_path / f"growing-{number}"
        file.touch()
        growing = log_of(file, form)
        written = 0
        while written < len(data):
            step = random.choice([1, 17, 300, 5_000, 40_000]) + random.randrange(100)
            with file.open("ab") as open_file:
                open_file.write(data[written : written + step])
            written += step
            while True:
                place = dblog.place_of(DatabaseLog.objects.get(pk=growing.pk))
                piece = dblog.next_piece(str(file), form, place, size=random.choice([1, 100, 4_000, 1_000_000]))
                if not piece.told.size:
                    break
                assert dblog.take(growing.pk, piece, server=sampled_server(), expected=place, now=timezone.now())
        growing.refresh_from_db()
        assert rows() == wanted
        assert counts(growing) == counted


@pytest.mark.django_db
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_lines_in_any_order_and_told_twice_give_the_same_rows(tmp_path: Path, form: str) -> None:
    random = Random(3)  # noqa: S311 (not for secrets)
    records = [record for number in range(30) for record in session_records(random, number)]
    records.append(
        Record(at=2_000.5, user="", backend="startup", message="database system was interrupted; last known")
    )
    records.append(Record(at=9_000.5, user="", backend="startup", message="database system was shut down at"))
    file = tmp_path / "log"
    seen = []
    for _ in range(4):
        Session.objects.all().delete()
        DatabaseLog.objects.all().delete()
        lines = [record.written(form) for record in records]
        file.write_bytes(b"".join(lines))
        log = log_of(file, form)
        for _ in range(2):
            DatabaseLog.objects.filter(pk=log.pk).update(offset=0, file_inode="", file_start="")
            while True:
                place = dblog.place_of(DatabaseLog.objects.get(pk=log.pk))
                piece = dblog.next_piece(str(file), form, place, size=8_000)
                if not piece.told.size:
                    break
                dblog.take(log.pk, piece, server=sampled_server(), expected=place, now=timezone.now())
        seen.append([{k: v for k, v in row.items() if k not in {"last_seen_at"}} for row in rows()])
        random.shuffle(records)
    assert any(row["end_known_by"] == Ended.RESTARTED for row in seen[0])
    for one in seen[1:]:
        for a, b in zip(one, seen[0], strict=True):
            assert {k: (a[k], b[k]) for k in a if a[k] != b[k]} == {}


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("glued", [True, False])
def test_after_a_torn_record_the_next_one_counts(form: str, glued: bool) -> None:
    torn = Record(statement=NASTY, message="duration: 1 ms").written(form)
    message = "connection authorized: user=v-x database=orders"
    good = [Record(at=5 + n, pid=n + 1, user="v-x", message=message, statement="a\nb").written(form) for n in range(3)]
    for end in range(60, len(torn) - 30, 7):
        rest = b"" if glued else b"\n"
        data = good[0] + torn[:end] + rest + good[1] + good[2]
        told = postgresql_log.read(data, form)
        assert len(told.sessions) == 3, end
        assert told.invalid >= 1


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_statement_that_looks_like_the_log_is_no_torn_record(form: str) -> None:
    message = "disconnection: session time: 0:00:01.000 user=v-x database=orders host=10.0.0.7 port=1"
    forged = Record(at=9, pid=7, user="v-forged", message=message).written(form).decode()
    without_quotes = forged.replace('"', "")
    texts = [forged, without_quotes, "\n" + forged, f'x"\n{forged}', f'""\n{forged}"', f"\n{without_quotes}\n{forged}"]
    for text in texts:
        record = Record(severity="ERROR", message=f"syntax error at {text}", statement=text, vxid="3/7").written(form)
        honest = Record(at=20, user="v-x", message="connection authorized: user=v-x").written(form)
        for data in (record + honest, record + record + honest):
            told = postgresql_log.read(data, form)
            assert told.size == len(data)
            assert [session.user for session in told.sessions.values()] == ["v-x"]
            assert told.invalid == 0


def test_times_are_utc_whatever_the_zone_of_the_log() -> None:
    message = "disconnection: session time: 0:00:10.250 user=v-x database=orders host=10.0.0.7 port=1"
    for zone, ahead in [("UTC", 0), ("CEST", 2), ("IST", 5.5), ("-03", -3), ("PDT", -7)]:
        record = Record(at=110.5, start=100, user="v-x", message=message, zone=zone, ahead=ahead)
        [session] = postgresql_log.read(record.json(), "jsonlog").sessions.values()
        assert session.disconnected_at == datetime.fromtimestamp(Record.EPOCH + 110.5, UTC)
        assert session.started_at == datetime.fromtimestamp(Record.EPOCH + 100.25, UTC)


def test_a_session_over_the_change_of_clocks_is_as_long_as_it_was() -> None:
    message = "disconnection: session time: 5:00:00.000 user=v-x database=orders host=10.0.0.7 port=1"
    before = Record(at=18_000.4, start=0, user="v-x", message=message, zone="CEST", ahead=2)
    text = before.json().decode().replace(before.clock(before.EPOCH + before.at), "2026-09-21 17:13:20.400 CET")
    [session] = postgresql_log.read(text.encode(), "jsonlog").sessions.values()
    assert session.disconnected_at is not None
    assert abs(session.disconnected_at.timestamp() - (Record.EPOCH + 18_000.4)) < 1
    assert abs(session.started_at.timestamp() - Record.EPOCH) < 1


@pytest.mark.django_db
def test_a_record_of_another_encoding_is_read() -> None:
    record = Record(user="v-x", message="connection authorized: user=v-x database=orders application_name=caf~")
    for form in FORMATS:
        data = record.written(form).replace(b"~", b"\xe9")
        told = postgresql_log.read(data, form)
        assert (told.invalid, [s.application for s in told.sessions.values()]) == (0, ["caf\ufffd"])


@pytest.mark.django_db
def test_a_user_that_only_a_lease_bears_is_dynamic_too(tmp_path: Path) -> None:
    lease = factories.lease(database=factories.database("billing"))
    type(lease).objects.filter(pk=lease.pk).update(database_user="billing_4711")
    file = tmp_path / "log"
    file.write_bytes(
        b"".join(
            Record(pid=pid, user=user, message=f"connection authorized: user={user} database=orders").json()
            for pid, user in enumerate(["billing_4711", "administrator", USER], start=1)
        )
    )
    read_all(log_of(file, "jsonlog", "orders", "billing"))
    found = {session.database_user: session.database for session in Session.objects.all()}
    assert found == {"billing_4711": factories.database("billing"), USER: factories.database("orders")}


@pytest.mark.django_db
def test_a_session_whose_name_only_the_log_tells_late_is_looked_at_again(tmp_path: Path) -> None:
    file, record = tmp_path / "log", Record(message=f"connection authorized: user={USER} database=orders")
    file.write_bytes(record.json())
    at = datetime.fromtimestamp(Record.EPOCH, UTC)
    # its role was dropped before a sample saw it, and nobody could say whose it was
    given_up = {"place": "not judged", "place_reason": "its user was dropped", "place_open": False}
    row = {
        "server": sampled_server(),
        "key": record.key,
        "pid": record.pid,
        "started_at": at,
        "sampled": True,
        **given_up,
    }
    Session.objects.create(first_seen_at=at, last_seen_at=at, **row)
    read_all(log_of(file))
    found = Session.objects.get()
    assert (found.database_user, found.place_open) == (USER, True)


@pytest.mark.django_db
def test_a_role_that_may_no_longer_log_in_is_refused_and_leaves_no_open_session(server: Postgres) -> None:
    name = "v-kubernet-orders-NoLoginAnyMoreAtAll0-1764369429"
    server.create_role(name)
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f'ALTER ROLE "{name}" NOLOGIN')
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(server.dsn(name))
    log = read_all(log_of(written(server, "jsonlog", "not permitted to log in")))
    assert log.rejected
    assert not Session.objects.filter(database_user=name, ended_at=None).exists()


@pytest.mark.django_db
def test_a_log_waits_until_a_sample_has_named_its_server(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(Record(message=f"connection authorized: user={USER} database=orders").json())
    log = log_of(file)
    Sampling.objects.update(server=None)
    assert dblog.read_on(log.pk, clock=timezone.now) is None
    state = SourceState.objects.get(name=str(log))
    assert "which server writes it" in state.cause
    assert (Session.objects.count(), DatabaseLog.objects.get().offset) == (0, 0)
    Sampling.objects.update(server=sampled_server())
    read_all(log)
    assert Session.objects.get().server == sampled_server()


@pytest.mark.django_db
def test_databases_on_two_servers_cannot_share_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(Record().json())
    log = log_of(tmp_path / "log", "jsonlog", "orders", "billing")
    Sampling.objects.filter(database__name="billing").update(server=sampled_server("another"))
    assert dblog.read_on(log.pk, clock=timezone.now) is None
    assert "on different servers" in SourceState.objects.get(name=str(log)).cause
    assert Session.objects.count() == 0


@pytest.mark.django_db
def test_a_log_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    log = log_of(tmp_path / "none.json")
    assert dblog.read_on(log.pk, clock=timezone.now) is None
    state = SourceState.objects.get(name=str(log))
    assert "cannot be read (No such file or directory)" in state.cause
    assert "log_file_mode" in state.fix
    pattern = log_of(tmp_path / "none-*.json")
    assert dblog.read_on(pattern.pk, clock=timezone.now) is None
    assert "No file is named" in SourceState.objects.get(name=str(pattern)).cause


@pytest.mark.django_db
def test_a_sampled_session_that_the_log_never_named_is_told(tmp_path: Path) -> None:
    now = timezone.now()
    record = Record(at=now.timestamp() - Record.EPOCH - 300)
    (tmp_path / "log").write_bytes(record.json())
    log = read_all(log_of(tmp_path / "log"))
    assert SourceState.objects.get(name=str(log)).cause == ""
    assert SampledPeriod.objects.get(logged=True).database == factories.database()
    Session.objects.create(
        server=sampled_server(),
        key="1.1",
        pid=1,
        sampled=True,
        database_user=USER,
        started_at=now - timedelta(seconds=60),
        first_seen_at=now,
        last_seen_at=now,
    )
    later = timezone.now() + timedelta(seconds=3)
    read_at(log, later)
    state = SourceState.objects.get(name=str(log))
    assert (state.ok, "log_connections" in state.fix) == (True, True)
    assert DatabaseLog.objects.get().complete_since is None
    assert [status.source.status for status in audit.queries.database_logs(now=later)] == ["limited"]


@pytest.mark.django_db
def test_a_log_that_does_not_even_tell_of_the_samples_themselves_is_told(tmp_path: Path) -> None:
    now = timezone.now()
    file = tmp_path / "log"
    file.write_bytes(Record(at=now.timestamp() - Record.EPOCH - 300).json())
    log = log_of(file)
    DatabaseServer.objects.update(sampled_at=now - timedelta(seconds=1))
    read_at(log, now)
    state = SourceState.objects.get(name=str(log))
    assert "tells of no connection" in state.cause
    assert not SampledPeriod.objects.filter(logged=True).exists()
    message = "connection authorized: user=leasehold_monitor database=orders"
    with file.open("ab") as open_file:
        open_file.write(Record(at=now.timestamp() - Record.EPOCH - 1, user="leasehold_monitor", message=message).json())
    read_at(log, now + timedelta(seconds=5))
    read_at(log, now + timedelta(seconds=60))
    assert SourceState.objects.get(name=str(log)).cause == ""
    assert SampledPeriod.objects.filter(logged=True).get().from_at > now


@pytest.mark.django_db
def test_sessions_whose_lines_are_not_read_yet_are_not_missing(tmp_path: Path) -> None:
    now = timezone.now()
    at = now.timestamp() - Record.EPOCH - 300
    file = tmp_path / "log"
    file.write_bytes(Record(at=at).json() + Record(at=at + 1).json())
    log = log_of(file)
    Session.objects.create(
        server=sampled_server(),
        key="1.1",
        pid=1,
        sampled=True,
        database_user=USER,
        started_at=now - timedelta(seconds=100),
        first_seen_at=now,
        last_seen_at=now,
    )
    piece = dblog.next_piece(log.path, log.format, Place(), size=10)
    dblog.take(log.pk, piece, server=sampled_server(), expected=Place(), now=now)
    log.refresh_from_db()
    assert log.unread_bytes > 0
    assert dblog.doubt(log, sampled_server(), now=now) is None


@pytest.mark.django_db
def test_the_time_that_is_known_ends_at_a_hole_and_begins_again_after_it(tmp_path: Path) -> None:
    start = timezone.now() - timedelta(seconds=600)
    file = tmp_path / "log"
    file.write_bytes(Record(at=start.timestamp() - Record.EPOCH).json())
    log = log_of(file)
    clock = start + timedelta(seconds=100)
    read_at(log, clock)
    [known] = SampledPeriod.objects.filter(logged=True)
    assert abs(known.from_at - start) < timedelta(milliseconds=2)
    assert known.to_at == clock - dblog.LATE
    with file.open("ab") as open_file:
        open_file.write(b"what is this\n" + Record(at=clock.timestamp() - Record.EPOCH).json())
    clock += timedelta(seconds=50)
    read_at(log, clock)
    hole = clock
    clock += timedelta(seconds=50)
    read_at(log, clock)
    first, second = SampledPeriod.objects.filter(logged=True).order_by("from_at")
    assert first.from_at == known.from_at
    assert first.to_at < hole <= second.from_at
    assert second.to_at == clock - dblog.LATE


@pytest.mark.django_db
def test_ends_that_are_not_logged_are_told(tmp_path: Path) -> None:
    now = timezone.now()
    at = now.timestamp() - Record.EPOCH - 200
    message = f"connection authorized: user={USER} database=orders"
    (tmp_path / "log").write_bytes(Record(at=at - 50).json() + Record(at=at, message=message).json())
    log = read_all(log_of(tmp_path / "log"))
    Session.objects.update(ended_at=now - timedelta(seconds=100), end_known_by=Ended.SAMPLED)
    read_at(log, now + timedelta(seconds=5))
    assert "log_disconnections" in SourceState.objects.get(name=str(log)).fix


@pytest.mark.django_db
def test_clients_that_are_named_by_their_host_are_told_and_not_stored(tmp_path: Path) -> None:
    message = f"connection authorized: user={USER} database=orders"
    (tmp_path / "log").write_bytes(Record(host="pod-7.example.com", message=message).json())
    log = read_all(log_of(tmp_path / "log"))
    assert Session.objects.count() == 0
    assert "log_hostname" in SourceState.objects.get(name=str(log)).fix


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_reader_that_is_killed_within_its_transaction_has_done_nothing(tmp_path: Path) -> None:
    file = tmp_path / "log"
    start = Record(user="", backend="startup", message="database system was shut down at").json()
    file.write_bytes(start + a_log(5, "jsonlog"))
    log = log_of(file)
    settings = connection.settings_dict
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)
    script = (
        "import django; django.setup()\n"
        "from django.utils import timezone\nfrom audit import dblog\n"
        f"print(dblog.read_on({log.pk}, clock=timezone.now))"
    )
    env = {**os.environ, "LEASEHOLD_DATABASE_URL": address, "DJANGO_SETTINGS_MODULE": "dashboard.settings"}
    with psycopg.connect(address) as holder:
        # it gets as far as this table, with its sessions written
        holder.execute("LOCK TABLE audit_serverstart IN SHARE MODE")
        reader = subprocess.Popen([sys.executable, "-c", script], env=env, cwd=ROOT)
        try:
            _wait(lambda: _waiting() == 1)
        finally:
            reader.kill()
            reader.wait()
    _wait(lambda: _waiting() == 0)
    assert (Session.objects.count(), DatabaseLog.objects.get().lines, DatabaseLog.objects.get().offset) == (0, 0, 0)
    tasks.follow_database_log(log.pk)
    log.refresh_from_db()
    assert log.offset == file.stat().st_size
    assert log.connections + log.disconnections > Session.objects.count() > 20
    counted = counts(log)
    tasks.follow_database_log(log.pk)
    log.refresh_from_db()
    assert counts(log) == counted


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_log_that_is_read_while_a_sample_is_taken_waits_for_it_and_holds_nothing_that_it_needs(
    tmp_path: Path,
) -> None:
    file = tmp_path / "log"
    file.write_bytes(Record(message=f"connection authorized: user={USER} database=orders").json())
    log = read_all(log_of(file))
    known = Session.objects.get()
    with file.open("ab") as more:
        more.write(Record(message=f"disconnection: session time: 0:00:01.000 user={USER}", at=1, start=0).json())
        more.write(Record(message=f"connection authorized: user={USER} database=orders", at=2, pid=4243).json())

    def read() -> None:
        try:
            dblog.read_on(log.pk, clock=timezone.now)
        finally:
            connection.close()

    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
    reader = threading.Thread(target=read)
    # as a sample does: its server, then the sessions that it does not show any more
    with psycopg.connect(address) as taker:
        taker.execute("SELECT FROM leases_databaseserver FOR UPDATE")
        reader.start()
        _wait(lambda: _held_up() == 1)
        taker.execute("UPDATE leases_session SET state = '' WHERE id = %s", [known.pk])
    reader.join()
    log.refresh_from_db()
    assert (log.connections, log.disconnections, log.unread_bytes) == (2, 1, 0)
    assert Session.objects.filter(end_known_by=Ended.LOGGED).get() == known


def _held_up() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


def _waiting() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND query LIKE '%%audit_serverstart%%' AND state <> 'idle'"
        )
        return int(cursor.fetchone()[0])


def _wait(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")


@pytest.mark.django_db
def test_a_log_that_two_databases_name_is_one(tmp_path: Path) -> None:
    text = VAULT + "".join(
        DATABASE.format(name=name, log=f'path = "{tmp_path}/log", format = "csvlog"') for name in "ab"
    )
    configure(tmp_path, text)
    [log] = DatabaseLog.objects.all()
    assert sorted(database.name for database in log.databases.all()) == ["a", "b"]
    configure(tmp_path, VAULT)
    assert DatabaseLog.objects.get().retired
    assert audit.queries.database_logs(now=timezone.now()) == []


VAULT = """
[[vaults]]
name = "main"
address = "http://127.0.0.1:8200"
[vaults.observe]
method = "token"
secret = { env = "T" }
"""
DATABASE = """
[[databases]]
vault = "main"
mount = "database"
name = "{name}"
kind = "postgresql"
log = {{ {log} }}
"""


def configure(folder: Path, text: str) -> None:
    (folder / "leasehold.toml").write_text(text)
    configuration.apply(load(folder / "leasehold.toml"))


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ('path = "log.json", format = "jsonlog"', "write the whole path"),
        ('path = "/var/*/log.json", format = "jsonlog"', "only the file's name"),
        ('path = "/var/log.json", format = "stderr"', "Invalid enum value"),
        ('path = "/var/log.json"', "missing required field"),
        ('path = "/var/log.json", format = "jsonlog", server = "a"', "unknown field"),
    ],
)
def test_a_wrong_log_is_refused_with_the_reason(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "leasehold.toml").write_text(VAULT + DATABASE.format(name="orders", log=log))
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path / "leasehold.toml")


def test_one_path_cannot_be_of_two_formats(tmp_path: Path) -> None:
    logs = [f'path = "/var/log/pg.json", format = "{form}"' for form in FORMATS]
    text = VAULT + "".join(DATABASE.format(name=f"d{number}", log=log) for number, log in enumerate(logs))
    (tmp_path / "leasehold.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="another format"):
        load(tmp_path / "leasehold.toml")


@pytest.mark.django_db
def test_logs_are_read_by_as_many_queries_for_five_as_for_one() -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            audit.queries.database_logs(now=timezone.now())
        return len(captured)

    log_of("/var/log/0.json", "jsonlog", "orders", "billing")
    once = asked()
    for number in range(1, 5):
        log_of(f"/var/log/{number}.json", "jsonlog", "orders", f"database-{number}")
    assert asked() == once


@pytest.mark.django_db
def test_metrics_tell_of_logs(tmp_path: Path, client: Any) -> None:
    (tmp_path / "log").write_bytes(a_log(6, "jsonlog"))
    log = read_all(log_of(tmp_path / "log"))
    text = client.get("/metrics").content.decode()
    assert f'leasehold_database_log_lines_total{{path="{log.path}"}} {float(log.lines)}' in text
    assert f'leasehold_database_log_lag_bytes{{path="{log.path}"}} 0.0' in text


@pytest.mark.django_db
def test_the_sources_page_shows_logs(tmp_path: Path, viewer: Any) -> None:
    log = log_of(tmp_path / "none.json")
    dblog.read_on(log.pk, clock=timezone.now)
    page = viewer.get("/sources").content.decode()
    assert str(log.path) in page
    assert "log_file_mode" in page
