"""Many open browsers: real HTTP to gunicorn as the container starts it, each asking as often as its page says.

What is measured is processor time, the web server's and PostgreSQL's together, so that a busy machine tells the same as an idle one.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from random import Random

from django.conf import settings
from django.db import connection
from django.test import Client
from django.utils import timezone

from demo.postgres import Postgres
from demo.processes import free_port
from leases.models import Database, SourceState
from tests import factories, services
from tests.bench.figures import Figure, Void, progress, show
from tests.bench.page_reads import p95

BROWSERS, PEOPLE = 200, 20
WARM_UP, SECONDS = 5.0, 30.0
# how often something changes where something does
EVERY = 5.0
MOST_PERCENT = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
POLL = re.compile(r'hx-get="([^"]+)" hx-trigger="every (\d+)(ms|s)')


@dataclass(slots=True)
class Told:
    """What the browsers saw: milliseconds of each poll, and how many brought something new."""

    took: list[float] = field(default_factory=list)
    new: int = 0
    errors: list[str] = field(default_factory=list)
    # polls a second that the pages ask for
    due: float = 0.0


def paths(dice: Random) -> list[str]:
    """Which page each browser has open: most an overview or the leases, some with a filter of their own."""
    database = Database.objects.order_by("pk").values_list("pk", flat=True)[0]
    return [
        *["/"] * 80,
        *["/leases"] * 40,
        *[f"/leases?service_account=sa-{dice.randrange(200):03}" for _ in range(30)],
        *["/findings"] * 20,
        *["/sources"] * 20,
        *[f"/databases/{database}"] * 10,
    ]


def measure(postgres: Postgres) -> None:
    """Of one core, in percent, with nothing that changes and with a lease every few seconds."""
    factories.watched()
    for _ in range(5):
        factories.finding()
    clients = []
    for number in range(PEOPLE):
        client = Client(SERVER_NAME="127.0.0.1")
        client.force_login(factories.user(f"person-{number}", "responder", password=None))
        clients.append(client)
    cookies = [_cookie(clients[number % PEOPLE]) for number in range(BROWSERS)]
    with serving() as (port, server):
        for name, every in (("nothing changes", None), (f"a lease comes every {EVERY:g} s", EVERY)):
            progress(f"{BROWSERS} browsers, {name}")
            share, told, parts = _one(port, server, postgres, cookies, every=every)
            show(
                [
                    Figure(f"{BROWSERS} browsers, {name}: of one core, %", share, at_most=MOST_PERCENT),
                    Figure("  of it the web server's, %", parts[0]),
                    Figure("  of it PostgreSQL's, %", parts[1]),
                    Figure("  polls a second", len(told.took) / SECONDS),
                    # where the machine is too busy for them, the share above is too small
                    Figure(
                        "  of those that the pages ask for, %", 100 * len(told.took) / SECONDS / told.due, at_least=90
                    ),
                    Figure("  processor time of a poll, ms", 10 * share * SECONDS / len(told.took)),
                    Figure("  of them with something new, %", 100 * told.new / max(1, len(told.took))),
                    Figure("  p95 of a poll, ms", p95(told.took)),
                ]
            )


def _cookie(client: Client) -> str:
    name = settings.SESSION_COOKIE_NAME
    return f"{name}={client.cookies[name].value}"


def _one(
    port: int, server: int, postgres: Postgres, cookies: list[str], *, every: float | None
) -> tuple[float, Told, tuple[float, float]]:
    over = threading.Event()
    living = threading.Thread(target=_live_on, args=(over, every))
    living.start()
    try:
        told, web, database = asyncio.run(_browse(port, server, postgres, cookies))
    finally:
        over.set()
        living.join()
    if told.errors or not told.took:
        raise Void(f"polls failed: {told.errors[:3]}")
    return web + database, told, (web, database)


def _live_on(over: threading.Event, every: float | None) -> None:
    """Each source answers once a second, as it does where workers run; with `every` a lease is read that often, too."""
    due = time.monotonic() + (every or 0)
    try:
        while not over.wait(1 / SourceState.objects.count()):
            now = timezone.now()
            oldest = SourceState.objects.order_by("checked_at").values_list("pk", flat=True)[:1]
            SourceState.objects.filter(pk__in=list(oldest)).update(checked_at=now)
            if every and time.monotonic() >= due:
                due += every
                factories.lease(pod="new")
    finally:
        connection.close()


async def _browse(port: int, server: int, postgres: Postgres, cookies: list[str]) -> tuple[Told, float, float]:
    dice, told = Random("browsers"), Told()  # noqa: S311
    begin, counting = asyncio.Event(), asyncio.Event()
    pages = await asyncio.to_thread(paths, dice)
    dice.shuffle(pages)
    opening = asyncio.Semaphore(4)
    opened: asyncio.Queue[None] = asyncio.Queue()
    asked = [
        asyncio.create_task(browser(port, cookie, path, told, opening, opened, begin, counting, dice.random()))
        for cookie, path in zip(cookies, pages, strict=True)
    ]
    for _ in asked:
        await opened.get()
    begin.set()
    await asyncio.sleep(WARM_UP)
    counting.set()
    web, database = busy(server), busy(_postmaster(postgres))
    began = time.perf_counter()
    await asyncio.sleep(SECONDS)
    took = time.perf_counter() - began
    web, database = busy(server) - web, busy(_postmaster(postgres)) - database
    counting.clear()
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    return told, 100 * web / took, 100 * database / took


async def browser(
    port: int,
    cookie: str,
    path: str,
    told: Told,
    opening: asyncio.Semaphore,
    opened: asyncio.Queue[None],
    begin: asyncio.Event,
    counting: asyncio.Event,
    phase: float,
) -> None:
    """Opens the page, then asks again as often as it says, with what the last answer named."""
    line = Line(port, cookie)
    async with opening:
        status, body = await line.get(path, part=False)
    opened.put_nowait(None)
    await begin.wait()
    if status != 200:
        told.errors.append(f"{path} answers {status}")
        return
    address, seconds = poll_of(body) or ("", 0.0)
    if not address:
        told.errors.append(f"{path} asks for nothing again")
        return
    told.due += 1 / seconds
    due = time.perf_counter() + phase * seconds
    while True:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        status, body = await line.get(address, part=True)
        if counting.is_set():
            told.took.append(1000 * (time.perf_counter() - began))
            told.new += status == 200
            if status not in {200, 204}:
                told.errors.append(f"{address} answers {status}")
        if status == 200:
            address, seconds = poll_of(body) or (address, seconds)
        # as htmx does: the next turn is counted from the last one
        due = max(due + seconds, time.perf_counter())


def poll_of(body: str) -> tuple[str, float] | None:
    """What a page asks for again, and after how many seconds."""
    found = POLL.search(body)
    return (unescape(found[1]), int(found[2]) / (1000 if found[3] == "ms" else 1)) if found else None


class Line:
    """One connection of a browser, kept open as browsers do, made anew where the server has closed it."""

    def __init__(self, port: int, cookie: str) -> None:
        self.port, self.cookie = port, cookie
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def get(self, path: str, *, part: bool) -> tuple[int, str]:
        extra = "HX-Request: true\r\n" if part else ""
        asked = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nCookie: {self.cookie}\r\n{extra}"
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/140\r\nAccept: */*\r\nAccept-Encoding: identity\r\n\r\n"
        )
        for attempt in (1, 2):
            if self.writer is None or self.reader is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                self.writer.write(asked.encode())
                await self.writer.drain()
                return await self._answer(self.reader)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.reader = self.writer = None
                if attempt == 2:
                    raise
        raise AssertionError

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, str]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        length = re.search(r"\r\ncontent-length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length and status not in {204, 304} else b""
        if "\r\nconnection: close" in head and self.writer:
            self.writer.close()
            self.reader = self.writer = None
        return status, body.decode()


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """(port, process) of gunicorn as deploy/Dockerfile starts it."""
    port = free_port()
    command = ["-m", "gunicorn", "dashboard.wsgi", f"--bind=127.0.0.1:{port}", "--workers=2", "--threads=4"]
    command += ["--no-control-socket", f"--worker-tmp-dir={services._FOLDER}", "--access-logfile=-"]
    log = services._FOLDER / "bench-web.log"
    root = Path(__file__).resolve().parent.parent.parent
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=root, stdout=output, stderr=output)
        try:
            _wait(port, process, log)
            yield port, process.pid
        finally:
            # at once, whatever it is at
            process.send_signal(signal.SIGQUIT)
            process.wait(15)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        try:
            status, _body = asyncio.run(Line(port, "").get("/healthz", part=False))
        except OSError:
            status = 0
        if status == 200:
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise Void(f"gunicorn does not answer: {log.read_text()[-500:]}")


def _postmaster(postgres: Postgres) -> int:
    return postgres.process.pid


def busy(parent: int) -> float:
    """Seconds of processor time of a process and all its children, those that have ended too. proc(5)."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            pid, values = folder.name, (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(pid) == parent or int(values[1]) == parent:
            user, system = int(values[11]), int(values[12])
            ended = int(values[13]) + int(values[14]) if int(pid) == parent else 0
            total += (user + system + ended) / TICKS
    return total
