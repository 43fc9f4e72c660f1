"""`make bench`: speed as ratios against references that are measured in the same run.

Now: how much of bare msgspec decoding the whole ingest reaches (block, events, sightings, ledger, position, one commit a
chunk). The log is one real session of a pod (tests/data/session.ndjson), repeated with ids, hashes and times of its own.
"""

import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

SESSION = Path(__file__).parent / "data" / "session.ndjson"
LINES = int(os.environ.get("BENCH_LINES", "20000"))
PAIRS = 3
CHUNK = 4 * 1024 * 1024
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def log(lines: int, *, run: int) -> Iterator[bytes]:
    """At least `lines` lines; no two sessions, and no two runs, share an id."""
    session = SESSION.read_bytes().splitlines()
    for number in range(lines // len(session) + 1):
        mark = b"%02x%06x" % (run, number)
        at = (BEGIN + timedelta(seconds=number)).isoformat().replace("+00:00", ".5Z").encode()
        for line in session:
            line = re.sub(rb'"id":"[0-9a-f]{8}-', b'"id":"' + mark + b"-", line)
            line = re.sub(rb"hmac-sha256:[0-9a-f]{8}", b"hmac-sha256:" + mark, line)
            line = re.sub(rb'("lease_id":"database/creds/[^/"]+/)', rb"\g<1>" + mark, line)
            yield re.sub(rb'"time":"[^"]+"', b'"time":"' + at + b'"', line)


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Pieces of whole lines, with the place where each begins."""
    position = 0
    while position < len(data):
        end = data.rfind(b"\n", position, position + CHUNK) + 1
        yield position, data[position:end]
        position = end


def decode_alone(data: bytes) -> float:
    """Lines a second of msgspec decoding the same typed fields, and nothing else."""
    from audit.lines import _decode

    began = time.perf_counter()
    lines = data.splitlines()
    for line in lines:
        _decode(line)
    return len(lines) / (time.perf_counter() - began)


def pipeline(data: bytes, *, run: int) -> float:
    """Lines a second of the whole ingest into an indexed database."""
    from django.utils import timezone

    from audit.follow import Chunk, Position
    from audit.ingest import ingest
    from audit.management.commands.ingest import stream_named

    stream = stream_named("bench", f"device-{run}", "node")
    began = time.perf_counter()
    lines = 0
    for position, piece in chunks(data):
        chunk = Chunk(piece, position, Position(offset=position + len(piece)), 0)
        lines += ingest(stream.pk, chunk, expected=None, now=timezone.now()).parts
    seconds = time.perf_counter() - began
    if lines != data.count(b"\n"):
        sys.exit(f"bench: {lines} of {data.count(chr(10).encode())} lines were taken; the measurement is void")
    return lines / seconds


def stored_bytes() -> int:
    """What the audit and lease tables take on disk, indexes and raw blocks included."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
            " WHERE relkind = 'r' AND (relname LIKE 'audit\\_%' OR relname LIKE 'leases\\_%')"
        )
        return int(cursor.fetchone()[0])


def main() -> None:
    from tests import services

    services._start()
    try:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        ratios, speeds = [], []
        empty = stored_bytes()
        requests = 0
        for run in range(PAIRS):
            data = b"\n".join(log(LINES, run=run)) + b"\n"
            requests += data.count(b"\n") // 2
            alone, whole = decode_alone(data), pipeline(data, run=run)
            speeds.append(whole)
            ratios.append(whole / alone)
            print(f"run {run + 1}: msgspec alone {alone:9,.0f} lines/s   pipeline {whole:9,.0f} lines/s")
        verdict("pipeline / msgspec decode alone", statistics.median(ratios), at_least=0.40)
        verdict("bytes stored per request", (stored_bytes() - empty) / requests, at_most=500)
    finally:
        services._end()


def verdict(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """One line: the figure, its bound, and `falls short` where it misses it."""
    bound = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    good = value >= at_least if at_least is not None else value <= (at_most or 0)
    print(f"{what}: {value:.3g} (bound: {bound}){'' if good else '   falls short'}")


if __name__ == "__main__":
    main()
