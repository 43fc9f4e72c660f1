"""The measurements, after django.setup(): each side by side with its reference, in rounds, medians of their ratios."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path

from demo.postgres import Postgres
from tests.bench import browsers as many_browsers
from tests.bench import database, memory, page_reads, product, reads, scale, stored, taken_out
from tests.bench import sessions as many_sessions
from tests.bench.bulk_create import bulk_create
from tests.bench.decode import decode_alone
from tests.bench.figures import Figure, number, progress, show
from tests.bench.log import Log
from tests.bench.server_copy import server_copy
from tests.bench.worker import Run, ingest

ROUNDS = 3
READS = 5
PAGES = 60

# (lines, run) -> a log, written once
Logs = Callable[[int, int], Log]


def one_stream(postgres: Postgres, logs: Logs, *, lines: int, only: list[str], profile: bool, keep: list[str]) -> None:
    """The pipeline on one worker against msgspec alone and COPY, then what it stored and how it is read."""
    log = logs(lines, 0)
    vault = "bench"
    measured: list[tuple[float, Run, dict[str, float]]] = []
    before = after = {}
    for number_of in range(ROUNDS if {"pipeline", "copy"} & set(only) else 1):
        progress(f"one worker, round {number_of + 1}: msgspec alone, the pipeline, COPY")
        database.empty(postgres, keep=keep)
        before = database.sizes(postgres)
        alone = decode_alone(log.path, lines=log.lines) if "pipeline" in only else 0.0
        run = ingest({vault: log})
        after = database.sizes(postgres)
        copied = server_copy(postgres, database.with_rows(postgres)) if "copy" in only else {}
        measured.append((alone, run, copied))
        progress(f"  alone {alone:,.0f} lines/s, pipeline {run.speed:,.0f} lines/s, COPY {sum(copied.values()):.2f} s")
    if "pipeline" in only:
        show(against_msgspec(measured))
        show(where_the_time_goes(measured[-1][1], lines=log.lines))
    if "copy" in only:
        show(against_copy(measured, events=product.EVENTS))
        show(against_bulk_create(postgres, after[product.EVENTS].rows / measured[-1][1].seconds))
    if "bytes" in only:
        show([stored.figure(before, after, requests=log.requests)])
        print(stored.table(after, requests=log.requests), flush=True)
    if "read" in only:
        progress("the same question to the database and to the file")
        database.analyze(postgres)
        show(reads.figures(log, vault=vault, times=READS))
    if profile:
        profiled(postgres, log, measured[-1][1], keep=keep)


def against_msgspec(measured: list[tuple[float, Run, dict[str, float]]]) -> list[Figure]:
    median = statistics.median
    return [
        Figure("msgspec decode alone, lines/s", median(alone for alone, _, _ in measured)),
        Figure("the pipeline on one worker, lines/s", median(run.speed for _, run, _ in measured)),
        Figure(
            "the pipeline / msgspec decode alone (lines/s)",
            median(run.speed / alone for alone, run, _ in measured),
            at_least=0.40,
        ),
    ]


def against_copy(measured: list[tuple[float, Run, dict[str, float]]], *, events: str) -> list[Figure]:
    """Against all finished rows, raw blocks included; the table of events alone is said beside it."""
    median = statistics.median
    return [
        Figure("COPY FROM of all finished rows, s", median(sum(copied.values()) for _, _, copied in measured)),
        Figure(f"  of it {events}, s", median(copied[events] for _, _, copied in measured)),
        Figure(
            "the pipeline / COPY FROM of all finished rows (time)",
            median(run.seconds / sum(copied.values()) for _, run, copied in measured),
            at_most=2,
        ),
        Figure(
            f"the pipeline / COPY FROM of {events} alone (time)",
            median(run.seconds / copied[events] for _, run, copied in measured),
        ),
    ]


def against_bulk_create(postgres: Postgres, pipeline: float) -> list[Figure]:
    """`pipeline`: events a second."""
    progress("bulk_create")
    speed = statistics.median(bulk_create(postgres) for _ in range(ROUNDS))
    return [
        Figure("Django's bulk_create of events alone, rows/s", speed),
        Figure("the pipeline / bulk_create (events/s)", pipeline / speed),
    ]


def where_the_time_goes(run: Run, *, lines: int) -> list[Figure]:
    """Processor time by step: what says why a bound is missed. On two cores the sum, halved, is the best that can be."""
    parts = [Figure(f"  {step}, µs a line", seconds / lines * 1e6) for step, seconds in run.timings.items()]
    return [*parts, Figure("  sum, µs of processor time a line", sum(run.timings.values()) / lines * 1e6)]


def profiled(postgres: Postgres, log: Log, plain: Run, *, keep: list[str]) -> None:
    """The reading side of one more run under cProfile."""
    progress("one more run under cProfile, which slows it down")
    database.empty(postgres, keep=keep)
    run = ingest({"bench": log}, profile=True)
    print(f"  under cProfile {run.seconds:.2f} s, plain {plain.seconds:.2f} s; shares count, seconds do not")
    print(run.profile, flush=True)


def two_streams(postgres: Postgres, logs: Logs, *, lines: int, keep: list[str]) -> None:
    """Two workers, each with half of the lines for a vault of its own, against one worker with all of them."""
    whole, halves = logs(lines, 0), [logs(lines // 2, run) for run in (1, 2)]
    one, two = [], []
    for number_of in range(ROUNDS):
        progress(f"one worker, then two, round {number_of + 1}")
        database.empty(postgres, keep=keep)
        one.append(ingest({"bench": whole}))
        database.empty(postgres, keep=keep)
        two.append(ingest({f"bench-{number}": half for number, half in enumerate(halves)}))
        progress(f"  one {one[-1].speed:,.0f} lines/s, two {two[-1].speed:,.0f} lines/s")
    ratio = statistics.median(both.speed / single.speed for single, both in zip(one, two, strict=True))
    show(
        [
            Figure("two streams on two workers, lines/s", statistics.median(run.speed for run in two)),
            Figure("two workers / one worker (lines/s)", ratio, at_least=1.0),
        ]
    )


def flat_memory(postgres: Postgres, logs: Logs, *, lines: int, keep: list[str]) -> None:
    """`manage.py ingest` on a log and on one five times as long."""
    small, large = (lines, lines * 5) if os.environ.get("BENCH_MEMORY") == "1" else (lines // 5, lines)
    peaks = []
    for log in (logs(small, 0), logs(large, 0)):
        progress(f"memory of manage.py ingest, {log.lines:,} lines")
        database.empty(postgres, keep=keep)
        peaks.append(memory.peak(log, vault="bench"))
        progress(f"  {number(peaks[-1] / memory.MEGABYTE)} MB")
    show(memory.figures(logs(small, 0), logs(large, 0), peaks=(peaks[0], peaks[1])))


def pages(postgres: Postgres, *, leases: int, events: list[int], keep: list[str]) -> None:
    """Each read of each page, with fewer and with more events; the leases stay the same."""
    database.empty(postgres, keep=keep)
    ground = scale.lay(leases=leases)
    measured = []
    for count in events:
        database.truncate(postgres, scale.TABLES)
        scale.fill(ground, events=count)
        progress("VACUUM ANALYZE, as autovacuum would")
        database.vacuum(postgres)
        measured.append(page_reads.measure(ground, times=PAGES))
    print(page_reads.table(measured[0], measured[-1], sizes=(events[0], events[-1])), flush=True)


def browsers(postgres: Postgres, *, leases: int, keep: list[str]) -> None:
    """Open pages of many people, over HTTP, with the leases of production."""
    database.empty(postgres, keep=keep)
    scale.lay(leases=leases)
    database.vacuum(postgres)
    many_browsers.measure(postgres)


def sessions(postgres: Postgres, *, keep: list[str]) -> None:
    """One sample of many real sessions, on a server of their own."""
    database.empty(postgres, keep=keep)
    show(many_sessions.measure())


def exports(postgres: Postgres, *, leases: int, keep: list[str], folder: Path) -> None:
    """Accesses of a month, taken out by the command."""
    database.empty(postgres, keep=keep)
    ground = scale.lay(leases=leases)
    progress("VACUUM ANALYZE, as autovacuum would")
    database.vacuum(postgres)
    show(taken_out.figures(ground, folder))
