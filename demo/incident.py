"""A thief: copies one pod's rendered credential, uses it from an address that is no pod's, and sees how soon Leasehold tells.

What it did stands in `incidents.ndjson` beside the truth: no pod did it.
"""

import asyncio
import random
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import psycopg

from demo import processes, relay, truth
from demo.client import Credentials, read_credentials
from demo.manage import exported
from demo.workloads import ALL_APPLICATIONS, Application

# in no pod's network, and no node's; another address each time, so that one theft is told from another
_NETWORK = "127.66"
KIND = "credential used from elsewhere"
# seconds between the thief's queries, and between looks at what Leasehold says
_QUERY, _LOOK = 1.0, 0.5
_PATIENCE = 30.0


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `incidents.ndjson`: a session that no pod opened."""

    at: str
    lease_id: str
    database: str
    database_user: str
    address: str
    # whose credential it was: namespace/pod
    pod: str


class FindingRow(msgspec.Struct, frozen=True):
    """A line of `manage.py export findings`."""

    kind: str
    summary: str
    first_seen_at: datetime
    closed_at: datetime | None = None


def incidents_file(folder: Path) -> Path:
    """Beside the truth."""
    return folder / "incidents.ndjson"


def read(folder: Path) -> list[Incident]:
    """What thieves did in this demo."""
    file = incidents_file(folder)
    decoder = msgspec.json.Decoder(Incident)
    return [decoder.decode(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def run(folder: Path, *, seconds: float, say: Callable[[str], None] = print) -> float | None:
    """Steal and use for so long; seconds from the first use to the finding, None if there was none. Raises NotReady."""
    address = f"{_NETWORK}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # noqa: S311
    application, pod, credentials = victim(folder)
    server = _server(folder)
    with _network(address, server) as port, _connect(credentials, application, port) as connection:
        began = time.monotonic()
        note = Incident(
            at=truth.now(),
            lease_id=credentials.lease_id,
            database=application.database,
            database_user=credentials.username,
            address=address,
            pod=f"{application.namespace}/{pod}",
        )
        truth.append(incidents_file(folder), msgspec.json.encode(note))
        say(f"{note.at} the credential of {note.pod} ({credentials.username}) is used from {address}.")
        say(f"Look at {environment(folder)['DEMO_URL']}/findings: it appears there by itself.")
        found: list[float] = []
        looker = threading.Thread(target=_wait, args=(folder, note, began, found), daemon=True)
        looker.start()
        while time.monotonic() - began < seconds or (looker.is_alive() and not found):
            try:
                connection.execute(application.query or "SELECT 1").fetchall()
            except psycopg.Error:
                say("The credential has ended, or somebody cut the session off.")
                break
            time.sleep(_QUERY)
        looker.join()
    if found:
        say(f"Leasehold found it after {found[0]:.1f} s.")
        return found[0]
    say(f"Leasehold has not found it within {_PATIENCE:.0f} s.")
    return None


def victim(folder: Path) -> tuple[Application, str, Credentials]:
    """A pod whose credential was rendered just now, so that it works for a while. Raises NotReady."""
    by_account = {
        (one.namespace, one.service_account): one
        for one in ALL_APPLICATIONS
        if one.program == "agent" and one.connects and one.network == "own"
    }
    files = []
    for file in folder.glob("pods/running/*/*/vault/secrets/db-creds"):
        namespace, pod = file.parts[-5:-3]
        # the name of a pod is its ReplicaSet's and five letters, the ReplicaSet's its application's and some more
        application = by_account.get((namespace, pod.rsplit("-", 2)[0]))
        credentials = read_credentials(file)
        if application and credentials:
            files.append((file.stat().st_mtime, application, pod, credentials))
    if not files:
        raise processes.NotReady("No pod holds a credential yet: try again in a few seconds.")
    # one of the newer half: the older ones are soon replaced
    newest = sorted(files, key=lambda one: one[0])[len(files) // 2 :]
    _, application, pod, credentials = random.choice(newest)  # noqa: S311
    return application, pod, credentials


def environment(folder: Path) -> dict[str, str]:
    """The variables of `env`, the demo's shell file."""
    lines = (folder / "env").read_text().splitlines()
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def _server(folder: Path) -> tuple[str, int]:
    host, port = environment(folder)["LEASEHOLD_DATABASE_URL"].rpartition("@")[2].partition("/")[0].split(":")
    return host, int(port)


@contextmanager
def _network(source: str, server: tuple[str, int]) -> Iterator[int]:
    """A port on loopback from which connections reach the server from `source`: libpq cannot choose its own address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: relay.carry(reader, writer, to=server, source=(source, 0)), "127.0.0.1", 0
        )

    listener = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(listener), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _end(listener: asyncio.Server) -> None:
    """Close it; what it carried ends by itself, as the thief has gone."""
    listener.close()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=5)


def _connect(credentials: Credentials, application: Application, port: int) -> psycopg.Connection:
    try:
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            dbname=application.database,
            user=credentials.username,
            password=credentials.password,
            application_name="psql",
            connect_timeout=5,
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        raise processes.NotReady(
            "The credential that was copied works no more: its lease has just ended. Try again."
        ) from error


def _wait(folder: Path, incident: Incident, began: float, found: list[float]) -> None:
    """Look at Leasehold's findings until one names this lease; adds when that was."""
    since = datetime.fromisoformat(incident.at)
    while time.monotonic() - began < _PATIENCE:
        for row in exported(folder, "findings", since=since, row=FindingRow):
            if row.kind == KIND and incident.address in row.summary and not row.closed_at:
                # one that was open before, of an earlier theft, has become worse
                opened = row.first_seen_at >= since
                found.append((row.first_seen_at - since).total_seconds() if opened else time.monotonic() - began)
                return
        time.sleep(_LOOK)
