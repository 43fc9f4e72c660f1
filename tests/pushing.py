"""A real push process on loopback for tests, and what is sent to it."""

import contextlib
import http.client
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from demo import processes

ROOT = Path(__file__).resolve().parent.parent
SESSION = [json.loads(line) for line in (ROOT / "tests/data/session.ndjson").read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(slots=True)
class Push:
    """The process, and where it listens."""

    port: int
    log: Path
    process: "Popen[bytes]" = field(repr=False)

    def post(
        self,
        path: str,
        body: bytes | Iterator[bytes] = b"",
        *,
        token: str = "",
        method: str = "POST",
        **headers: str,
    ) -> Answer:
        """`body` as an iterator is sent in chunks. Names of headers with underscores for dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            named["Authorization"] = f"Bearer {token}"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read())


def start(
    folder: Path,
    *,
    port: int | None = None,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Push:
    """gunicorn as it is installed, on Django's test database; its log is appended to `push.log` in `folder`."""
    from django.db import connection

    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
    port = port or processes.free_port()
    log = folder / "push.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEASEHOLD_")}
    process = processes.spawn(
        [
            *(sys.executable, "-m", "gunicorn", "-c", "python:dashboard.push.server", "dashboard.push.wsgi"),
            *(f"--bind=127.0.0.1:{port}", f"--worker-tmp-dir={folder}", *options),
        ],
        log=log,
        # just what the process is given in deploy/: neither the site's key nor the broker
        env={**kept, "LEASEHOLD_DATABASE_URL": address, **(environment or {})},
        cwd=ROOT,
    )
    server = Push(port, log, process)
    processes.wait_until(lambda: healthy(server), what="the push process", seconds=60, log=log, process=process)
    return server


def healthy(server: Push) -> bool:
    try:
        return server.post("/healthz", method="GET").status == 200
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def running(folder: Path, *, options: tuple[str, ...] = (), **environment: str) -> Iterator[Push]:
    server = start(folder, options=options, environment=environment)
    try:
        yield server
    finally:
        processes.stop(server.process)


def requests(count: int) -> list[str]:
    """`count` requests of a real session with ids of their own, two lines each."""
    pair = [entry for entry in SESSION if entry["request"]["id"] == SESSION[2]["request"]["id"]]
    fresh = [{"id": str(uuid.uuid4()), "n": number} for number in range(count)]
    return [json.dumps(entry | {"request": entry["request"] | own}) for own in fresh for entry in pair]


def ids(lines: list[str]) -> set[str]:
    return {json.loads(line)["request"]["id"] for line in lines}
