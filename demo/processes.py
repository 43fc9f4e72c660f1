"""Starting and stopping child processes, so that none of them outlives its parent; knows nothing of what they are."""

import contextlib
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# capability numbers of capability(7) that let an unprivileged server reach a checkout below a 0700 folder;
# the first one that this process holds is used (containers often hold only the second)
_REACHING_CAPABILITIES = {"dac_read_search": 2, "dac_override": 1}


class NotReady(Exception):
    """Something did not come up in time, or died; the text names it and the last lines of its log."""


class AlreadyRunning(Exception):
    """The log's process still runs under a living parent: the same thing was started twice."""


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    unprivileged: bool = False,
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, its output appended to `log` (one log file for each process).

    The kernel sends it `death_signal` when the thread that called spawn() ends, so call it from a thread that lives
    on. `unprivileged`: as root, run it as nobody. Beside the log stands `<log>.pid`; what an earlier, crashed parent
    left there is waited for, then killed. Raises AlreadyRunning.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    pid_file = log.with_name(log.name + ".pid")
    _end_leftover(pid_file)
    # setpriv instead of preexec_fn: nothing of Python runs between fork and exec, so threads are no danger
    command = ["setpriv", f"--pdeathsig={death_signal.name.removeprefix('SIG')}"]
    if unprivileged and os.geteuid() == 0:
        user = nobody()
        command += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        if capability := _reaching_capability():
            command += [f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--", *(os.fspath(word) for word in argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    pid_file.write_text(json.dumps({"pid": process.pid, "parent": os.getpid(), "birth": _birth(process.pid)}))
    return process


def stop(process: subprocess.Popen[bytes], seconds: float = 10, *, signum: signal.Signals = signal.SIGTERM) -> None:
    """Ask the process to end; after `seconds` kill it with everything in its session. Safe to call twice."""
    if process.poll() is not None:
        return
    process.send_signal(signum)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to everything in its process group; returns when the process is gone."""
    if process.poll() is None:
        # before it is reaped: until then its number cannot belong to anybody else
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def nobody() -> pwd.struct_passwd:
    """The account under which a server runs that refuses root."""
    return pwd.getpwnam("nobody")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on, below the kernel's ephemeral range: no outgoing connection takes it."""
    for _ in range(200):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as candidate:
            try:
                candidate.bind((host, port))
            except OSError:
                continue
            return port
    raise NotReady(f"no free TCP port on {host} between 20000 and 32000")


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    log: Path | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Return when `condition()` is true; raise NotReady after `seconds`, or at once when `process` has died."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise NotReady(f"{what}: the process ended with code {process.returncode}{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise NotReady(f"{what}: not after {seconds:g} s{_last_lines(log)}")
        time.sleep(0.05)


def _last_lines(log: Path | None, count: int = 12) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()[-count:]
    return f"; the last lines of {log}:\n" + "\n".join(f"  {line[:300]}" for line in lines)


def _reaching_capability() -> str | None:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    held = int(effective.split()[1], 16)
    return next((name for name, bit in _REACHING_CAPABILITIES.items() if held >> bit & 1), None)


def _state(pid: int) -> tuple[int, str] | None:
    """Parent and birth of a running process; None if there is none, or only one that nobody reaped."""
    try:
        # the name in parentheses may hold anything, so count from its end: state, parent, …, start time (22nd)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), f"{boot}/{fields[19]}")


def _birth(pid: int) -> str | None:
    state = _state(pid)
    return state[1] if state else None


def _end_leftover(pid_file: Path) -> None:
    try:
        left = json.loads(pid_file.read_text())
        pid, parent, birth = int(left["pid"]), int(left["parent"]), left["birth"]
    except (OSError, ValueError, KeyError, TypeError):
        return

    def gone() -> bool:
        return birth is None or _birth(pid) != birth

    if gone():
        return
    state = _state(pid)
    if state and state[0] == parent:
        raise AlreadyRunning(
            f"process {pid} of {pid_file.parent} still runs, started by process {parent}: stop that one first"
        )
    try:
        wait_until(gone, what=f"end of process {pid}", seconds=10)
    except NotReady:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        wait_until(gone, what=f"end of killed process {pid}", seconds=10)
