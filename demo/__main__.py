"""`python -m demo run|up|down|status|check|incident`: the whole stack on this machine, and simulated workloads that use it.

run: in the foreground until Ctrl-C. up: in the background; returns when everything is healthy. down: stops it.
check: does Leasehold say what the pods really did? The exit code is 0 if nothing is wrong.
incident: a pod's credential is stolen and used from another address; the exit code is 0 if Leasehold tells.
PORT chooses the port of the pages (8000), DEMO_STATE the folder (.demo).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo import check, incident, ports, processes, state
from demo.stack import Stack
from demo.supervisor import Supervisor, last_lines

_BUSY = "A demo already runs here ({folder}). See it with `make demo-status`, stop it with `make demo-down`."


class _Stopped(BaseException):
    """SIGTERM or SIGINT came."""


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("command", choices=["run", "up", "down", "status", "check", "incident"])
    parser.add_argument("--without-product", action="store_true", help="only what Leasehold watches, not Leasehold")
    parser.add_argument("--pace", type=float, default=1, help="so many times as fast pods change and leases are ended")
    parser.add_argument("--minutes", type=float, default=0, help="check: look on for so long first")
    parser.add_argument("--seconds", type=float, default=60, help="incident: how long the thief stays")
    parser.add_argument("--json", action="store_true", help="check: as one JSON object")
    parser.add_argument("--lock", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = state.folder()
    try:
        if options.command == "run":
            return _run(folder, options.lock, with_product=not options.without_product, pace=options.pace)
        if options.command == "up":
            return _up(folder, sys.argv[2:])
        if options.command == "check":
            return _check(folder, minutes=options.minutes, as_json=options.json)
        if options.command == "incident":
            return _incident(folder, seconds=options.seconds)
        return _down(folder) if options.command == "down" else _status(folder)
    except state.Busy:
        print(_BUSY.format(folder=folder), file=sys.stderr)
    except _Stopped:
        pass  # before anything was started
    except (ports.PortTaken, processes.NotReady, processes.AlreadyRunning, RuntimeError) as error:
        print(error, file=sys.stderr)
    return 1


def _run(folder: Path, lock: int | None, *, with_product: bool, pace: float) -> int:
    """Supervise everything until a signal comes. `lock`: the folder's, already taken by `up`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    began = time.monotonic()
    if lock is None:
        lock = _take(folder)
    # children must not hold the lock
    os.set_inheritable(lock, False)
    os.environ[state.MARK] = (folder / "mark").read_text()
    chosen = ports.choose()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {line}", flush=True)

    stack = Stack(folder, chosen, Supervisor(say), say, pace)
    me = state.process(os.getpid())
    (folder / "supervisor.json").write_text(json.dumps({"pid": os.getpid(), "started": me.started if me else ""}))
    code = 0
    try:
        stack.start(with_product=with_product)
        _announce(folder, stack, with_product=with_product)
        while True:
            stack.look()
            _write_status(folder, stack)
            time.sleep(1)
    except _Stopped:
        say("stopping")
    except processes.NotReady as error:
        say(f"not started: {error}")
        code = 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        (folder / "ready").unlink(missing_ok=True)
        stack.stop()
        state.end_leftovers(folder)
    say("everything is stopped")
    return code


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Stopped


def _take(folder: Path) -> int:
    """Lock the folder and make it empty, unless the port is taken (then the last run's state stays to be looked at)."""
    lock = state.lock(folder)
    ports.choose()
    state.begin_afresh(folder)
    return lock


def _announce(folder: Path, stack: Stack, *, with_product: bool) -> None:
    variables = stack.variables
    lines = ["", "Listening, on this machine only:"]
    lines += [
        f"  {address:24} {what}"
        for what, address in stack.listeners()
        if with_product or not what.startswith("Leasehold")
    ]
    lines += ["", f"  {folder / 'env'}  holds everything for a shell: set -a; . {folder / 'env'}"]
    lines += [f"  {folder / 'truth.ndjson'}  what the simulated pods really did"]
    if with_product:
        lines += [
            "",
            f"  Leasehold: {variables['DEMO_URL']}",
            f"  user {variables['DEMO_USER']}, password {variables['DEMO_PASSWORD']} (may revoke)",
            f"  user {variables['DEMO_VIEWER']}, password {variables['DEMO_VIEWER_PASSWORD']} (may look)",
        ]
    print("\n".join([*lines, ""]), flush=True)
    (folder / "ready").touch()


def _write_status(folder: Path, stack: Stack) -> None:
    fresh = folder / "status.new"
    fresh.write_text(json.dumps({child.name: child.state for child in stack.supervisor.children}))
    fresh.replace(folder / "status.json")


def _up(folder: Path, arguments: list[str]) -> int:
    """Start `run` in the background, show its progress, and return when it is ready or has failed."""
    lock = _take(folder)
    log = folder / "supervisor.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", "run", *arguments, f"--lock={lock}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=state.ROOT,
            start_new_session=True,
            pass_fds=[lock],
        )
    os.close(lock)
    with log.open() as progress:
        try:
            while True:
                ended, ready = process.poll() is not None, (folder / "ready").exists()
                print(progress.read(), end="", flush=True)
                if ended:
                    return 1
                if ready:
                    print("Stop it with `make demo-down`.")
                    return 0
                time.sleep(0.1)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            print(progress.read(), end="", flush=True)
            return 1


def _supervisor(folder: Path) -> state.Process | None:
    try:
        found = json.loads((folder / "supervisor.json").read_text())
        one = state.Process(int(found["pid"]), str(found["started"]))
    except (OSError, ValueError, KeyError):
        return None
    return one if one.alive else None


def _down(folder: Path) -> int:
    """Stop the demo that runs in this folder, in the foreground or not; nothing is left of it afterwards."""
    if not folder.is_dir():
        print("No demo runs.")
        return 0
    one = _supervisor(folder)
    if one is None and state.is_locked(folder):
        print("A demo is just starting; try again in a moment.", file=sys.stderr)
        return 1
    if one:
        print("Stopping the demo …", flush=True)
        one.send(signal.SIGTERM)
        try:
            processes.wait_until(lambda: not one.alive, what="end of the demo", seconds=60)
        except processes.NotReady:
            one.send(signal.SIGKILL)
    left = state.leftovers(folder)
    state.end_leftovers(folder)
    print("Everything is stopped." if one or left else "No demo runs.")
    return 0


def _check(folder: Path, *, minutes: float, as_json: bool) -> int:
    """The truth beside what Leasehold says."""
    if not (folder / "ready").exists():
        print("No demo runs. Start one with `make demo-up`.", file=sys.stderr)
        return 1
    report = check.watch(folder, minutes=minutes)
    print(json.dumps(report.as_json()) if as_json else check.table(report))
    return 1 if report.problems else 0


def _incident(folder: Path, *, seconds: float) -> int:
    """Steal a pod's credential and use it."""
    if not (folder / "ready").exists():
        print("No demo runs. Start one with `make demo-up`.", file=sys.stderr)
        return 1
    return 1 if incident.run(folder, seconds=seconds) is None else 0


def _status(folder: Path) -> int:
    """What runs; the exit code is 0 only for a demo that is ready."""
    if _supervisor(folder) is None:
        print("No demo runs.")
        return 1
    if not (folder / "ready").exists():
        print(f"The demo is starting:\n{last_lines(folder / 'supervisor.log')}")
        return 1
    parts: dict[str, str] = json.loads((folder / "status.json").read_text())
    for name, text in parts.items():
        print(f"  {name:18} {text}")
    credentials = list(folder.glob("pods/running/*/*/vault/secrets/db-creds"))
    print(f"  {len(credentials)} pods hold database credentials")
    return 0


if __name__ == "__main__":
    sys.exit(main())
