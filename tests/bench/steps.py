"""Where a pipeline's processor time goes: its functions measured by the threads that run them, and PostgreSQL's backend.

Wrapping a function that is called once or twice a batch costs nothing that could be seen.
"""

import os
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import Any

from django.db import connection

from audit import blocks, coverage, ingest, ledger, rollups, tables

seconds: dict[str, float] = defaultdict(float)

_STEPS: list[tuple[Any, str, str]] = [
    (ingest, "take_apart", "parsing thread: split, scan for secrets, decode, pair"),
    (ingest, "intern_all", "writing thread: ids of texts that repeat"),
    (ingest, "make_plan", "writing thread: what is known, what is new"),
    (tables, "add_events", "writing thread: rendering rows, COPY"),
    (rollups, "count", "writing thread: hourly counts"),
    (coverage, "count", "writing thread: coverage"),
    (blocks, "append", "writing thread: blocks"),
    (ledger, "take", "writing thread: ledger"),
    (ledger, "conclude", "writing thread: ends and holders of leases"),
]
BACKEND = "PostgreSQL: all of it"
OTHER = "zstd, SHA-256 and all else of this process"


def watch() -> tuple[int, float, float]:
    """Begins to measure this process, whose database connection is made by now."""
    if not seconds:
        for module, name, step in _STEPS:
            setattr(module, name, _measured(getattr(module, name), step))
    connection.ensure_connection()
    backend = connection.connection.info.backend_pid
    return backend, _backend_seconds(backend), time.process_time()


def end(begun: tuple[int, float, float]) -> None:
    backend, before, process = begun
    named = sum(seconds.values())
    seconds[BACKEND] += _backend_seconds(backend) - before
    seconds[OTHER] += time.process_time() - process - named


def _measured(function: Any, step: str) -> Any:
    seconds[step] = 0.0

    @wraps(function)
    def measured(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            seconds[step] += time.thread_time() - began

    return measured


def _backend_seconds(pid: int) -> float:
    """Processor time of a process on this machine (proc(5): fields 14 and 15 of stat, in ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
