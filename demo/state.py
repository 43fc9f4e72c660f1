"""The demo's folder: who holds it, what an earlier run left running, and starting afresh."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# every child inherits it: what still carries a run's mark after that run is a leftover
MARK = "DEMO_MARK"


class Busy(Exception):
    """A demo already runs in this folder."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for another one: its number and its start time in clock ticks since boot."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """False also for one that has ended and was not yet reaped."""
        return process(self.pid) == self

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to exactly this process; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # the descriptor names one process for good; so look after opening it
                if self.alive:
                    signal.pidfd_send_signal(descriptor, signum)
            finally:
                os.close(descriptor)


def process(pid: int) -> Process | None:
    """The process that has this number now; None if there is none, or if it is a zombie."""
    try:
        # the name in parentheses may hold anything: count after it (state, parent, …, start time is field 22)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else Process(pid, fields[19])


def folder() -> Path:
    """DEMO_STATE, else `.demo` in the checkout."""
    return (ROOT / os.environ.get("DEMO_STATE", ".demo")).resolve()


def lock(state: Path) -> int:
    """Take the folder (made if absent, mode 0700); the lock lives as long as the returned descriptor. Raises Busy."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(str(state)) from None
    return descriptor


def is_locked(state: Path) -> bool:
    """Whether a demo runs in this folder."""
    if not state.is_dir():
        return False
    try:
        os.close(lock(state))
    except Busy:
        return True
    return False


def begin_afresh(state: Path) -> str:
    """End what an earlier run left, empty the folder, and return the new run's mark. The caller holds the lock."""
    end_leftovers(state)
    for entry in state.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    mark = secrets.token_hex(8)
    (state / "mark").write_text(mark)
    return mark


def leftovers(state: Path) -> set[Process]:
    """Processes of the folder's last run that are alive: those with a `.pid` file in it, and those with its mark."""
    return {found for found in {*_recorded(state), *_marked(state)} if found.pid != os.getpid()}


def end_leftovers(state: Path, seconds: float = 5) -> None:
    """SIGTERM, and SIGKILL after `seconds`; returns when none is left."""
    for signum, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        left = leftovers(state)
        for one in left:
            one.send(signum)
        deadline = time.monotonic() + patience
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = {one for one in left if one.alive}
    if left := leftovers(state):
        numbers = ", ".join(str(one.pid) for one in left)
        raise RuntimeError(f"processes of an earlier demo cannot be ended: {numbers}")


def _recorded(state: Path) -> Iterator[Process]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for file in state.rglob("*.pid"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(file.read_text())
            one = Process(int(found["pid"]), str(found["birth"]).removeprefix(f"{boot}/"))
            if one.alive:
                yield one


def _marked(state: Path) -> Iterator[Process]:
    try:
        mark = (state / "mark").read_text().strip()
    except OSError:
        return
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        one = process(int(entry.name))
        with contextlib.suppress(OSError):
            # another user's environment cannot be read, and is not ours
            if one and mark and wanted in (entry / "environ").read_bytes().split(b"\0") and one.alive:
                yield one
