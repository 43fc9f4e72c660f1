"""One worker, in a process of its own: `python -m tests.bench.worker FILE VAULT [--profile]`.

Says `ready` on stdout, waits for a line on stdin, runs the product's pipeline, prints what came of it as JSON.
"""

import cProfile
import io
import json
import pstats
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.figures import Void
from tests.bench.log import Log

ROOT = Path(__file__).resolve().parent.parent.parent
TOP = 15


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` from the first worker's begin to the last one's end; `timings` of the writers' steps, added up."""

    lines: int
    seconds: float
    timings: dict[str, float]
    profile: str

    @property
    def speed(self) -> float:
        """Lines a second."""
        return self.lines / self.seconds


def ingest(logs: dict[str, Log], *, profile: bool = False) -> Run:
    """Vault -> log: a worker for each, all at once. Raises Void where lines or requests are missing."""
    command = [sys.executable, "-m", __name__, *(["--profile"] if profile else [])]
    workers = [
        subprocess.Popen(
            [*command, str(log.path), vault], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for vault, log in logs.items()
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise Void("a worker did not start")
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        said = [_result(worker, log) for worker, log in zip(workers, logs.values(), strict=True)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    timings: dict[str, float] = {}
    for one in said:
        for step, seconds in one["timings"].items():
            timings[step] = timings.get(step, 0) + seconds
    return Run(
        lines=sum(one["lines"] for one in said),
        seconds=max(one["ended"] for one in said) - min(one["began"] for one in said),
        timings=timings,
        profile="\n".join(one["profile"] for one in said),
    )


def _result(worker: "subprocess.Popen[str]", log: Log) -> dict[str, Any]:
    said, _ = worker.communicate()
    if worker.returncode:
        raise Void(f"a worker failed ({worker.returncode})")
    result: dict[str, Any] = json.loads(said)
    if (result["lines"], result["requests"]) != (log.lines, log.requests):
        raise Void(
            f"{result['lines']} of {log.lines} lines were taken, {result['requests']} of {log.requests} requests are whole"
        )
    return result


def main() -> None:
    import django

    django.setup()
    from django.db import connection

    from tests.bench import product

    arguments = [word for word in sys.argv[1:] if word != "--profile"]
    path, vault = Path(arguments[0]), arguments[1]
    connection.ensure_connection()
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("the bench is gone")
    profiler = cProfile.Profile() if "--profile" in sys.argv else None
    # one clock for all processes of the machine
    began = time.monotonic()
    run = partial(product.pipeline, path, vault=vault)
    lines = profiler.runcall(run) if profiler else run()
    ended = time.monotonic()
    text = io.StringIO()
    if profiler:
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(TOP)
    result = {
        "lines": lines,
        "requests": product.requests(vault=vault),
        "began": began,
        "ended": ended,
        "timings": product.timings(),
        "profile": text.getvalue(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
