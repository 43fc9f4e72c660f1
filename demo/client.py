"""One pod's application: reads the credentials that the agent rendered, and uses them for as long as they work.

`python -m demo.client --credentials FILE --host IP --port N --database D --query SQL --truth FILE --pod JSON`.
It knows nothing of Vault, as a real application behind an agent does not.
"""

import argparse
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec
import psycopg

from demo import truth

# seconds between looks at the file; a new file is used after at most this long
_LOOK = 1.0
_BACKOFF_MAX = 15.0


class Credentials(NamedTuple):
    """What the agent's template wrote."""

    username: str
    password: str
    lease_id: str

    def __repr__(self) -> str:
        return f"Credentials(lease_id={self.lease_id!r})"


class Place(NamedTuple):
    """Where the database is, as the pod sees it, and what it asks there every `interval` seconds."""

    host: str
    port: int
    database: str
    query: str
    interval: float


def read_credentials(file: Path) -> Credentials | None:
    """The `name=value` lines of the rendered file; None while it is not there or not whole."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        return Credentials(values["username"], values["password"], values["lease_id"])
    except KeyError:
        return None


def run(*, file: Path, place: Place, pod: truth.Pod, truth_file: Path, stop: threading.Event) -> None:
    """Use the database until `stop` is set: one connection at a time, a new one when the file changes."""
    backoff = 1.0
    while not stop.is_set():
        credentials = read_credentials(file)
        if credentials is None:
            stop.wait(_LOOK)
            continue
        try:
            connection = _connect(credentials, place, pod)
        except psycopg.Error as error:
            print(f"{truth.now()} cannot connect: {_in_short(error)}", flush=True)
            # not longer than until new credentials are there
            _wait(stop, backoff, _changed(file, credentials))
            backoff = min(backoff * 2, _BACKOFF_MAX)
            continue
        backoff = 1.0
        _note(truth_file, "connect", pod, credentials, place)
        with connection:
            reason = _use(connection, credentials, file=file, place=place, stop=stop)
        _note(truth_file, "disconnect", pod, credentials, place, reason)
        if reason in ("connection lost", "query refused"):
            stop.wait(_LOOK)


def _connect(credentials: Credentials, place: Place, pod: truth.Pod) -> psycopg.Connection:
    return psycopg.connect(
        host=place.host,
        port=place.port,
        dbname=place.database,
        user=credentials.username,
        password=credentials.password,
        application_name=pod.service_account,
        connect_timeout=5,
        autocommit=True,
    )


def _use(
    connection: psycopg.Connection,
    credentials: Credentials,
    *,
    file: Path,
    place: Place,
    stop: threading.Event,
) -> str:
    """Query until something ends it; returns what did."""
    while not stop.is_set():
        try:
            connection.execute(place.query).fetchall()
        except psycopg.Error as error:
            print(f"{truth.now()} query failed: {_in_short(error)}", flush=True)
            # an open session outlives its dropped user, but may no longer read the tables
            return "connection lost" if isinstance(error, psycopg.OperationalError) else "query refused"
        pause = place.interval * random.uniform(0.7, 1.3)  # noqa: S311 (not a secret)
        if _wait(stop, pause, _changed(file, credentials)):
            return "new credentials"
    return "pod ended"


def _changed(file: Path, credentials: Credentials) -> Callable[[], bool]:
    return lambda: read_credentials(file) not in (None, credentials)


def _wait(stop: threading.Event, seconds: float, changed: Callable[[], bool]) -> bool:
    """Wait so long, or until stopped, or until `changed()`: then True at once."""
    while seconds > 0 and not stop.wait(min(_LOOK, seconds)):
        if changed():
            return True
        seconds -= _LOOK
    return False


def _note(
    truth_file: Path,
    event: truth.Kind,
    pod: truth.Pod,
    credentials: Credentials,
    place: Place,
    reason: str | None = None,
) -> None:
    truth.record(
        truth_file,
        event,
        pod,
        lease_id=credentials.lease_id,
        database=place.database,
        database_user=credentials.username,
        reason=reason,
    )


def _in_short(error: psycopg.Error) -> str:
    """The first line of the error: PostgreSQL's messages name the user, never the password."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def main(arguments: list[str] | None = None) -> None:
    """The command line; SIGTERM ends it in order."""
    parser = argparse.ArgumentParser(prog="demo.client", description=__doc__)
    parser.add_argument("--credentials", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--interval", type=float, default=4.0)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--pod", required=True, help="the pod as JSON")
    options = parser.parse_args(arguments)
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    run(
        file=options.credentials,
        place=Place(options.host, options.port, options.database, options.query, options.interval),
        pod=msgspec.json.decode(options.pod, type=truth.Pod),
        truth_file=options.truth,
        stop=stop,
    )


if __name__ == "__main__":
    main()
