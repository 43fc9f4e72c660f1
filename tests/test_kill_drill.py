"""Ingestion as evidence under kills: nothing is lost and nothing is there twice, by a reader that shares no code with it.

`DRILL_SEED` repeats a run's decisions, though not its timing; the seed of a failed run stands in its output.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from demo import processes
from tests import drill
from tests.audit_writer import ROTATIONS, AuditFile, Writer, as_logged, traffic
from tests.drill import Clock, Session, Stage, Worker
from tests.evidence import (
    SET_ASIDE,
    Events,
    Request,
    account_problems,
    event_problems,
    halves,
    line_problems,
    reference,
)

# both devices log every request, each with its own hashes: two workers write to the same events
DEVICES = ("a", "b")
LONGEST_MOMENT = 1.2
# Whether rotation waits for the reader (see Writer). One that finds every file beside the log needs no waiting.
WAITS = False


@dataclass(slots=True)
class Tally:
    """What the drill did. A kill counts only if it hit a process that had the turn at a stream."""

    workers: int = 0
    pool_processes: int = 0
    in_a_transaction: int = 0
    in_a_commit: int = 0
    orphaned: int = 0
    postgres: int = 0
    valkey: int = 0
    rotations_before_reading: int = 0
    rotations: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return self.workers + self.pool_processes


@dataclass(slots=True)
class Crew:
    """The workers that run now. Orphans are pool processes whose worker was killed alone: they may read on for a turn."""

    stage: Stage
    size: int
    workers: list[Worker] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    started: int = 0

    def fill(self) -> None:
        while len(self.workers) < self.size:
            self.started += 1
            self.workers.append(drill.start_worker(self.stage, self.started))

    def stop(self) -> None:
        for worker in self.workers:
            processes.kill(worker.process)
        for orphan in self.orphans:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(orphan, signal.SIGKILL)
            os.close(orphan)
        self.orphans.clear()


@pytest.fixture
def random() -> Random:
    seed = int(os.environ.get("DRILL_SEED") or secrets.randbelow(1_000_000))
    sys.stdout.write(f"DRILL_SEED={seed}\n")
    return Random(seed)  # noqa: S311 (chooses moments, not secrets)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_few_kills_and_a_crash_of_each_server_lose_nothing_and_double_nothing(
    run_folder: Path, random: Random
) -> None:
    tally = run(run_folder / "short-drill", random=random, workers=2, kills=6, crashes=1, seconds_between_rotations=0.5)
    assert (tally.kills, tally.postgres, tally.valkey) == (6, 1, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_lose_nothing_and_double_nothing(run_folder: Path, random: Random) -> None:
    tally = run(run_folder / "drill", random=random, workers=3, kills=50, crashes=3, seconds_between_rotations=1.0)
    assert (tally.kills, tally.postgres, tally.valkey) == (50, 3, 3)
    assert tally.in_a_commit >= 5
    assert tally.in_a_transaction >= 10
    assert all(tally.rotations[how] >= 2 for how in ROTATIONS)
    assert WAITS or tally.rotations_before_reading >= 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_command_line_ingest_that_is_started_again_ends_with_everything_once(
    run_folder: Path, random: Random
) -> None:
    folder = run_folder / "command-line-drill"
    folder.mkdir()
    began_at = datetime.now(UTC)
    log = folder / "audit.log"
    write_log(log, random=random, lines=30_000)
    stage = drill.build(folder, logs={})
    try:
        kill_command_line(stage, log, random=random, kills=10)
        before = halves(stored_events(stage, from_at=began_at))
        counts = json.loads(drill.manage(stage, *command_line(log)))
        found = stored_events(stage, from_at=began_at)
        lines = log.read_bytes().splitlines(keepends=True)
        problems = [
            *event_problems(found, reference(lines)),
            *line_problems(drill.stored_lines(stage, "a")["a"], lines),
            *chain_problems(stage),
            *account_problems(drill.streams(stage)["a"], parts=len(lines)),
        ]
        taken = counts["lines"] - sum(counts[name] for name in SET_ASIDE)
        known = {request_id for request_id, _ in before}
        assert problems == []
        assert counts["lines"] == len(lines)
        assert (taken, counts["events"]) == (len(lines) - len(before), len(found) - len(known))
        assert counts["unpaired"] == 2 * len(found) - len(lines)
    finally:
        stage.stop()


def run(
    folder: Path, *, random: Random, workers: int, kills: int, crashes: int, seconds_between_rotations: float
) -> Tally:
    """Kills, crashes and rotations while lines are written; then everything is compared.

    `workers` run at any time: two read, one for each device, and a third one takes over at once.
    """
    began_at = datetime.now(UTC)
    files = [AuditFile(d, folder / "log" / d / "audit.log", folder / f"{d}.truth") for d in DEVICES]
    stage = drill.build(folder, logs={file.device: file.path for file in files})
    tally, crew, clock = Tally(), Crew(stage, workers), Clock(stage.broker.url)
    writer = Writer(
        files,
        Random(random.random()),  # noqa: S311 (its own: threads decide in no fixed order)
        lambda: drill.lines_read(stage),
        lines_a_second=400,
        longest_backlog=8_000,
        seconds_between_rotations=seconds_between_rotations,
        rename_waits=WAITS,
        copytruncate_waits=WAITS,
    )
    try:
        crew.fill()
        clock.start()
        writer.start()
        strike_until(crew, random=random, kills=kills, crashes=crashes, tally=tally)
        writer.finish()
        behind = wait_for_readers(stage, files, seconds=60)
        clock.stop()
        crew.stop()
        tally.rotations.update(what for file in files for _, what in file.journal)
        tally.rotations_before_reading = sum(file.unread for file in files)
        sys.stdout.write(f"{sum(file.written for file in files)} lines; {tally}\n")
        problems = behind + all_problems(stage, files, from_at=began_at)
        assert problems == [], "\n".join([*problems, *logs_of(crew)])
    finally:
        writer.stop()
        clock.stop()
        crew.stop()
        stage.stop()
    return tally


def strike_until(crew: Crew, *, random: Random, kills: int, crashes: int, tally: Tally) -> None:
    """Kills until `kills` have counted; each server crashes `crashes` times in between."""
    places = random.sample(range(1, kills), 2 * crashes) if kills > 2 * crashes else []
    crash_postgres, crash_valkey = set(places[:crashes]), set(places[crashes:])
    while tally.kills < kills:
        strike(crew, random=random, tally=tally)
        crew.fill()
        if tally.kills in crash_postgres:
            crash_postgres.discard(tally.kills)
            time.sleep(random.uniform(0, LONGEST_MOMENT))
            crew.stage.crash_postgres()
            tally.postgres += 1
        if tally.kills in crash_valkey:
            crash_valkey.discard(tally.kills)
            crew.stage.crash_valkey(seconds=random.uniform(0, LONGEST_MOMENT))
            tally.valkey += 1


def strike(crew: Crew, *, random: Random, tally: Tally) -> None:
    """Kills one process that reads: a while after one was seen to read, or in the middle of its commit."""
    in_a_commit = random.random() < 0.3
    moment = random.uniform(0, LONGEST_MOMENT)
    how = random.choices(["worker", "pool process", "worker alone"], [5, 4, 1])[0]
    with psycopg.connect(crew.stage.database.dsn(database="leasehold"), autocommit=True) as connection:
        reading: list[tuple[Worker, int, Session]] = []

        def any_reads(*, committing: bool = False) -> bool:
            reading[:] = who_reads(crew, connection, committing=committing)
            return bool(reading)

        processes.wait_until(any_reads, what="a worker that reads", seconds=60, log=crew.workers[0].log)
        if in_a_commit:
            in_a_commit = soon(lambda: any_reads(committing=True), seconds=4)
        else:
            time.sleep(moment)
        if not in_a_commit and not any_reads():
            return
        worker, pool_process, session = random.choice(reading)
        if how == "pool process":
            os.kill(pool_process, signal.SIGKILL)
            tally.pool_processes += 1
        elif how == "worker":
            processes.kill(worker.process)
            crew.workers.remove(worker)
            tally.workers += 1
        else:
            crew.orphans.append(os.pidfd_open(pool_process))
            worker.process.kill()
            worker.process.wait()
            crew.workers.remove(worker)
            tally.orphaned += 1
            return
        tally.in_a_transaction += session.busy
        tally.in_a_commit += session.committing


def who_reads(
    crew: Crew, connection: psycopg.Connection[Any], *, committing: bool
) -> list[tuple[Worker, int, Session]]:
    """Workers that have the turn at a stream now, each with its pool process and that one's connection."""
    return [
        (worker, pool_process, session)
        for session in drill.readers(connection)
        if session.committing or not committing
        for worker in crew.workers
        for pool_process in worker.pool()
        if drill.holds_port(pool_process, session.port)
    ]


def soon(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether it comes true in time; looks often."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.003)
    return False


def wait_for_readers(stage: Stage, files: list[AuditFile], *, seconds: float) -> list[str]:
    """Until every line was taken; what is still missing then, in words."""

    def behind() -> list[str]:
        read = drill.lines_read(stage) or {}
        return [
            f"device {file.device}: {read.get(file.path, 0)} of {file.written} lines were taken after {seconds:g} s more"
            for file in files
            if read.get(file.path, 0) != file.written
        ]

    soon(lambda: not behind(), seconds=seconds)
    return behind()


def command_line(log: Path) -> list[str]:
    return ["ingest", str(log), "--vault", drill.VAULT, "--device", "a", "--json"]


def kill_command_line(stage: Stage, log: Path, *, random: Random, kills: int) -> None:
    """Starts `manage.py ingest` and kills it, again and again, at any moment from its first transaction on."""
    command = [sys.executable, "manage.py", *command_line(log)]
    killed = 0
    with psycopg.connect(stage.database.dsn(database="leasehold"), autocommit=True) as connection:
        while killed < kills:
            process = processes.spawn(command, log=stage.folder / "ingest.log", env=stage.environment, cwd=drill.ROOT)
            processes.wait_until(
                lambda process=process: process.poll() is not None or bool(drill.readers(connection)),  # type: ignore[misc]
                what="manage.py ingest",
                seconds=60,
                log=stage.folder / "ingest.log",
            )
            if random.random() < 0.3:
                soon(lambda: any(session.committing for session in drill.readers(connection)), seconds=4)
            else:
                time.sleep(random.uniform(0, 2 * LONGEST_MOMENT))
            if process.poll() is None:
                processes.kill(process)
                killed += 1


def write_log(path: Path, *, random: Random, lines: int) -> None:
    entries = traffic(random)
    with path.open("wb") as file:
        for _ in range(lines):
            session, line = next(entries)
            file.write(as_logged(line, session=session, device="a", at=datetime.now(UTC)))


def stored_events(stage: Stage, *, from_at: datetime) -> Events:
    """What the product says happened; a request id that stands twice is here twice."""
    return [
        (
            row["request_id"],
            Request(bool(row["request_at"]), bool(row["response_at"]), row["path"] or "", row["lease_id"] or ""),
        )
        for row in drill.exported(stage, "events", from_at=from_at - timedelta(hours=1))
    ]


def all_problems(stage: Stage, files: list[AuditFile], *, from_at: datetime) -> list[str]:
    """Everything in which the product differs from what was written."""
    truths = {file.device: file.truth.read_bytes().splitlines(keepends=True) for file in files}
    expected = reference(line for lines in truths.values() for line in lines)
    with ThreadPoolExecutor() as pool:
        events = pool.submit(stored_events, stage, from_at=from_at)
        chain = pool.submit(chain_problems, stage)
        leases = pool.submit(lease_problems, stage, expected, from_at=from_at)
        kept = pool.submit(drill.stored_lines, stage, *truths)
        rows = drill.streams(stage)
    problems = event_problems(events.result(), expected) + chain.result() + leases.result()
    for file in files:
        problems += account_problems(rows[file.device], parts=file.written)
        found = line_problems(kept.result()[file.device], truths[file.device])
        problems += [f"device {file.device}: {problem}{around(file, problem)}" for problem in found]
    return problems


def lease_problems(stage: Stage, expected: dict[str, Request], *, from_at: datetime) -> list[str]:
    """Each credential read that was answered is one row of the ledger."""
    rows = drill.exported(stage, "accesses", from_at=from_at - timedelta(hours=1))
    found = Counter((row["request_id"], row["lease_id"]) for row in rows)
    reads = Counter((i, r.lease_id) for i, r in expected.items() if r.lease_id and "/creds/" in r.path)
    return (
        [] if found == reads else [f"accesses: {(reads - found).total()} missing, {(found - reads).total()} too many"]
    )


def around(file: AuditFile, problem: str) -> str:
    """What was done to the file about when that line was written."""
    number = problem.split()[1]
    near = [f"{what} after {at}" for at, what in file.journal if number.isdigit() and abs(at - int(number)) < 4_000]
    return f"; {', '.join(near) or 'nothing was done to the file then'}"


def chain_problems(stage: Stage) -> list[str]:
    results = json.loads(drill.manage(stage, "verify-chain", "--json"))
    return [f"chain of {result['stream']}: {result['what']}" for result in results if not result["ok"]]


def logs_of(crew: Crew) -> list[str]:
    """The last words of the workers that were there at the end."""
    return [f"{w.log.name}: {w.log.read_bytes()[-1500:].decode(errors='replace')}" for w in crew.workers]
