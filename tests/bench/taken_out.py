"""Exports: rows a second of `manage.py export accesses` against the same columns copied as they lie, and its memory."""

import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from django.db import connection

from audit.exports.statements import STATEMENTS
from tests.bench.figures import Figure, Void, progress
from tests.bench.memory import MEGABYTE, _family, _high_water
from tests.bench.scale import Ground
from tests.bench.worker import ROOT

PAIRS = 3
# enough that memory would show if it grew with them
FEW_SHARE = 10


def figures(ground: Ground, folder: Path) -> list[Figure]:
    """Raises Void where rows are missing."""
    rates, references, peaks = [], [], []
    for _ in range(PAIRS):
        rows, seconds, peak = exported(ground, folder, share=1)
        rates.append(rows / seconds)
        peaks.append(peak)
        references.append(copied(ground))
        progress(f"{rows:,} accesses in {seconds:.1f} s, copied as they lie {references[-1]:,.0f} rows/s")
    few = exported(ground, folder, share=FEW_SHARE)[2]
    rate, reference = statistics.median(rates), statistics.median(references)
    return [
        Figure(f"export of {rows:,} accesses, rows/s, with the command's start", rate, at_least=100_000),
        Figure("the same rows copied as they lie, rows/s", reference),
        Figure("export / copied as they lie", rate / reference),
        Figure("peak memory of the export, MB", max(peaks) / MEGABYTE, at_most=200),
        Figure(f"peak memory / that of a {FEW_SHARE}th of the rows", max(peaks) / few, at_most=1.15),
    ]


def exported(ground: Ground, folder: Path, *, share: int) -> tuple[int, float, int]:
    """Rows, seconds and peak bytes of the command, of the last part of the period."""
    begin = ground.to_at - (ground.to_at - ground.from_at + timedelta(days=1)) / share
    file = folder / "accesses.csv"
    command = [
        *(sys.executable, "manage.py", "export", "accesses", "--from", begin.isoformat()),
        *("--to", (ground.to_at + timedelta(days=1)).isoformat(), "--output", str(file)),
    ]
    at = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_high_water(pid) for pid in _family(process.pid)))
        time.sleep(0.05)
    seconds = time.monotonic() - at
    said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise Void(f"manage.py export failed: {said[-300:]}")
    with file.open("rb") as lines:
        rows = sum(1 for _ in lines) - 1
    file.unlink()
    if f"{rows} rows written" not in said:
        raise Void(f"the export has {rows} rows and says: {said[-200:]}")
    return rows, seconds, peak


def copied(ground: Ground) -> float:
    """Rows a second of the ledger's own columns, in the same order, without a join or a word of ours."""
    columns = ", ".join(column.sql for column in STATEMENTS["accesses"].columns if column.sql.startswith("l."))
    at, rows = time.monotonic(), 0
    with connection.cursor() as cursor:
        query = f"SELECT {columns} FROM leases_lease l WHERE request_id <> '' AND accessed_at IS NOT NULL ORDER BY accessed_at, id"
        with cursor.cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv)") as copy:
            for _ in copy:
                rows += 1
    return rows / (time.monotonic() - at)
