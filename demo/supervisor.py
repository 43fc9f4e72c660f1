"""Keeps the demo's processes running: says which one died and why, and starts it again with a growing delay."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from demo import processes

# seconds before the first restart; doubled with each failure up to the second; forgotten after a quiet minute
_BACKOFF, _BACKOFF_MAX, _QUIET = 1.0, 30.0, 60.0


@dataclass(slots=True)
class Child:
    """One supervised part. `start` returns its running process, for a restart too."""

    name: str
    log: Path
    start: Callable[[], subprocess.Popen[bytes]]
    stop: Callable[[subprocess.Popen[bytes]], None] = processes.stop
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = 0
    again_at: float = 0

    @property
    def state(self) -> str:
        """For people: running with its pid, or waiting."""
        if self.process is not None and self.process.poll() is None:
            return f"running (pid {self.process.pid})"
        return "waits for its restart"

    def begin(self) -> None:
        """Start it; raises what `start` raises."""
        self.process = self.start()
        self.started_at = time.monotonic()

    def end(self) -> None:
        """Stop it; safe to call twice."""
        if self.process is not None:
            self.stop(self.process)


@dataclass(slots=True)
class Supervisor:
    """All parts in the order of their start; `say` prints one line."""

    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)

    def begin(self, child: Child) -> None:
        """Start a part and keep it from now on, even if the start fails half-way."""
        self.children.append(child)
        child.begin()

    def look(self) -> None:
        """One round: notice what died, restart what is due."""
        now = time.monotonic()
        for child in self.children:
            if child.process is None:
                if now >= child.again_at:
                    self._restart(child)
            elif (code := child.process.poll()) is not None:
                if now - child.started_at > _QUIET:
                    child.failures = 0
                self._note_failure(child, f"{child.name} ended with code {code}")
            elif child.failures and now - child.started_at > _QUIET:
                child.failures = 0

    def _restart(self, child: Child) -> None:
        try:
            child.begin()
        except Exception as error:
            self._note_failure(child, f"{child.name} did not start again: {error}")
        else:
            self.say(f"{child.name} runs again")

    def _note_failure(self, child: Child, what: str) -> None:
        pause = min(_BACKOFF * 2**child.failures, _BACKOFF_MAX)
        child.failures += 1
        child.process, child.again_at = None, time.monotonic() + pause
        self.say(f"{what}; starting it again in {pause:g} s. The last lines of {child.log}:\n{last_lines(child.log)}")

    def stop(self, *names: str) -> None:
        """Stop these parts at the same time, or with no names everything that is left, last started first."""
        if names:
            chosen = [child for child in self.children if child.name in names]
            self.children = [child for child in self.children if child.name not in names]
            if chosen:
                with ThreadPoolExecutor(len(chosen)) as pool:
                    list(pool.map(Child.end, chosen))
            return
        while self.children:
            self.children.pop().end()


def last_lines(log: Path, count: int = 8) -> str:
    """The end of a log, indented; at most 300 characters of each line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return "    (nothing)"
    return "\n".join(f"    {line[:300]}" for line in lines) or "    (nothing)"
