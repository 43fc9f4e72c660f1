"""Peak memory of `manage.py ingest` on two lengths of log: it must be small, and the same."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure, Void
from tests.bench.log import Log
from tests.bench.worker import ROOT

MEGABYTE = 1024 * 1024
_EVERY = 0.05


def figures(small: Log, large: Log, *, peaks: tuple[int, int]) -> list[Figure]:
    return [
        Figure(f"peak memory, {small.lines:,} lines, MB", peaks[0] / MEGABYTE, at_most=300),
        Figure(f"peak memory, {large.lines:,} lines, MB", peaks[1] / MEGABYTE, at_most=300),
        Figure(f"peak memory, {large.lines:,} / {small.lines:,} lines", peaks[1] / peaks[0], at_most=1.15),
    ]


def peak(log: Log, *, vault: str) -> int:
    """Bytes that the command and its children had resident at most. Raises Void where lines are missing."""
    command = [sys.executable, "manage.py", "ingest", str(log.path), "--vault", vault, "--device", "file", "--json"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, cwd=ROOT)
        highest: dict[int, int] = {}
        try:
            while process.poll() is None:
                for pid in _family(process.pid):
                    highest[pid] = max(highest.get(pid, 0), _high_water(pid))
                time.sleep(_EVERY)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise Void(f"manage.py ingest failed ({process.returncode})")
    result = json.loads(said)
    if (result["lines"], result["events"]) != (log.lines, log.requests):
        raise Void(f"manage.py ingest took {result['lines']} of {log.lines} lines, {result['events']} events")
    return sum(highest.values())


def _family(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in _family(child))]


def _high_water(pid: int) -> int:
    """VmHWM, which rusage would mix with that of the process that forked this one."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
