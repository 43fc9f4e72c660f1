"""Every page and probe at scale: each SQL statement that it runs is timed, with arguments that differ from run to run.

What a statement takes is the time from its sending to its last row, less the time for which the server's backend or this process
were ready to run and another process had the processor (Linux counts that): so that a busy machine tells the same as an idle one.
"""

import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client

from audit.models import RejectedLine, Stream
from leases import queries
from leases.models import Action, Database, Lease, Revocation
from tests import factories
from tests.bench.figures import Void, progress
from tests.bench.scale import ACCOUNTS, BUSY, DAYS, NAMESPACES, Ground

WARM_UP = 5
FIRST_LEASE = 1_000_000
# milliseconds
MOST_P95, GROWTH, GROWTH_BELOW = 50.0, 1.3, 2.0
# of a whole page as the server makes it, its templates too
MOST_PAGE = 100.0
WHOLE = "the whole page"

# a page, and an address of it that is another each time
Cases = dict[str, Callable[[Random], str]]


@dataclass(frozen=True, slots=True)
class Read:
    """One statement of one page: who asks (module.function), and milliseconds; `wall`: p95 with the waiting for a processor.

    `queries`: of a whole page, how many statements it runs at most.
    """

    page: str
    asked_by: str
    sql: str
    p50: float
    p95: float
    wall: float
    queries: int = 0


def cases(ground: Ground) -> Cases:
    """Every page that lists or shows something, as people come to it: first, deep in the list, filtered, without a hit."""
    databases = [queries.database_key(row) for row in queries.databases()]
    keys = [*Database.objects.values_list("pk", flat=True), "unknown"]
    streams = list(Stream.objects.values_list("pk", flat=True))
    rejected = RejectedLine.objects.values_list("stream_id", "pk")[0]
    irrevocable = list(Lease.objects.filter(state="irrevocable").values_list("pk", flat=True))
    running = list(Revocation.objects.filter(state="verifying").values_list("action_id", flat=True))
    named = Lease.objects.exclude(service_account="").exclude(cluster="").order_by()
    holders = list(named.values_list("cluster", "service_account_namespace", "service_account").distinct())
    pods = list(Lease.objects.exclude(pod_uid="").order_by("-id").values_list("cluster", "pod_uid")[:1000])
    requests = list(Lease.objects.exclude(request_id="").order_by("-id").values_list("request_id", flat=True)[:1000])
    actions = list(Action.objects.order_by("at").values_list("pk", "at"))

    def lease(dice: Random) -> int:
        return FIRST_LEASE + dice.randrange(BUSY, ground.leases)

    def before(dice: Random) -> str:
        at = ground.from_at + timedelta(days=DAYS) * dice.random()
        return str(queries.Cursor(at, str(FIRST_LEASE + ground.leases)))

    def before_end(dice: Random) -> str:
        return str(queries.Cursor(ground.to_at + timedelta(days=dice.random()), str(FIRST_LEASE)))

    def session_before(dice: Random) -> str:
        at = ground.from_at + timedelta(days=DAYS) * dice.random()
        return str(queries.Cursor(at, "1000000000"))

    def event_before(dice: Random) -> str:
        at = ground.from_at + timedelta(days=DAYS) * dice.random()
        return str(queries.Cursor(at, f"{'8' * 32}1"))

    def moment(dice: Random) -> str:
        return f"{ground.from_at + timedelta(days=DAYS) * dice.random():%Y-%m-%dT%H:%M:%S}"

    def stretch(dice: Random) -> str:
        first, last = sorted(moment(dice) for _ in range(2))
        return f"from={first}&to={last}"

    def account(dice: Random) -> int:
        return dice.randrange(ACCOUNTS)

    def database(dice: Random) -> str:
        return dice.choice(databases)

    def action_before(dice: Random) -> str:
        pk, at = dice.choice(actions)
        return str(queries.Cursor(at, pk.hex))

    def namespaced(dice: Random) -> str:
        number = account(dice)
        return f"namespace=ns-{number % NAMESPACES:02}&service_account=sa-{number:03}"

    def workload(dice: Random) -> str:
        return f"/workloads/{'/'.join(dice.choice(holders))}"

    return {
        "/": lambda _: "/",
        "/leases": lambda _: "/leases",
        "/leases deep": lambda d: f"/leases?state=any&before={before(d)}",
        "/leases open, deep": lambda d: f"/leases?before={before(d)}",
        "/leases ended, deep": lambda d: f"/leases?state=ended&before={before(d)}",
        "/leases oldest first": lambda d: f"/leases?sort=oldest&state={d.choice(('open', 'any'))}",
        "/leases oldest first, of a database": lambda d: f"/leases?sort=oldest&state=any&database={database(d)}",
        "/leases, what ends next": lambda _: "/leases?sort=ending",
        "/leases, what ends next, deep": lambda d: f"/leases?sort=ending&before={before_end(d)}",
        "/leases, what ends next of a database": lambda d: f"/leases?sort=ending&database={database(d)}",
        "/leases irrevocable": lambda _: "/leases?state=irrevocable",
        "/leases revoking": lambda _: "/leases?state=revoking",
        "/leases of a database": lambda d: f"/leases?state={d.choice(('open', 'any'))}&database={database(d)}",
        "/leases of a database, deep": lambda d: f"/leases?state=any&database={database(d)}&before={before(d)}",
        "/leases of no known database": lambda d: f"/leases?state={d.choice(('open', 'any'))}&database=unknown",
        "/leases by certainty": lambda d: (
            f"/leases?state={d.choice(('open', 'any'))}&certainty={d.choice(('exact', 'inferred', 'ambiguous', 'unknown'))}"
        ),
        "/leases of a service account": lambda d: f"/leases?state={d.choice(('open', 'any'))}&{namespaced(d)}",
        "/leases of a rare service account": lambda d: f"/leases?state=any&service_account=sa-{197 + d.randrange(3)}",
        "/leases of a namespace": lambda d: f"/leases?state=any&namespace=ns-{account(d) % NAMESPACES:02}",
        "/leases of a namespace that is none": lambda d: f"/leases?state=any&namespace=nowhere-{d.random()}",
        "/leases, account and database that do not meet": lambda d: (
            f"/leases?state=any&service_account=sa-000&database={database(d)}"
        ),
        "/leases, text in pods": lambda d: f"/leases?state={d.choice(('open', 'any'))}&pod=sa-{account(d):03}",
        "/leases, text without a hit": lambda d: f"/leases?state={d.choice(('open', 'any'))}&pod=nobody-{d.random()}",
        "/leases/N": lambda d: f"/leases/{lease(d)}",
        "/leases/N renewed 5,000 times": lambda d: f"/leases/{FIRST_LEASE + d.randrange(BUSY)}",
        "/leases/N/revoke": lambda d: f"/leases/{d.choice(irrevocable)}/revoke",
        "/databases 1 h": lambda _: "/databases?period=1h",
        "/databases 24 h": lambda _: "/databases",
        "/databases 7 d": lambda _: "/databases?period=7d",
        "/databases 30 d": lambda _: "/databases?period=30d",
        "/databases from, to": lambda d: f"/databases?{stretch(d)}",
        "/databases by pod": lambda d: f"/databases?by=pod&period={d.choice(('24h', '30d'))}",
        "/databases by pod from, to": lambda d: f"/databases?by=pod&{stretch(d)}",
        "/databases, holders of one, 7 d": lambda d: f"/databases?period=7d&by=pod&database={d.choice(keys)}",
        "/databases, pods of a service account": lambda d: f"/databases?period=30d&by=pod&{namespaced(d)}",
        "/databases/N": lambda d: f"/databases/{d.choice(keys[:-1])}",
        "/databases/N deep": lambda d: f"/databases/{d.choice(keys[:-1])}?before={session_before(d)}",
        "/databases/N oldest first": lambda d: f"/databases/{d.choice(keys[:-1])}?sort=oldest",
        "/databases/N open": lambda d: f"/databases/{d.choice(keys[:-1])}?state=open&before={session_before(d)}",
        "/databases/N ended": lambda d: f"/databases/{d.choice(keys[:-1])}?state=ended",
        "/databases/N from elsewhere": lambda d: f"/databases/{d.choice(keys[:-1])}?place=elsewhere",
        "/databases/N not judged": lambda d: f"/databases/{d.choice(keys[:-1])}?place=not+judged",
        "/databases/N without a lease": lambda d: (
            f"/databases/{d.choice(keys[:-1])}?lease=none&before={session_before(d)}"
        ),
        "/databases/N of an address": lambda d: f"/databases/{d.choice(keys[:-1])}?address=10.0.0.{d.randrange(250)}",
        "/databases/N without a hit": lambda d: f"/databases/{d.choice(keys[:-1])}?user=nobody-{d.random()}",
        "/workloads": lambda d: f"/workloads?period={d.choice(('1h', '24h', '7d', '30d'))}",
        "/workloads by live leases": lambda d: f"/workloads?sort=live&period={d.choice(('24h', '30d'))}",
        "/workloads by name, later": lambda d: (
            f"/workloads?sort=name&period=30d&before=0/cluster-1/ns-{account(d) % NAMESPACES:02}/sa"
        ),
        "/workloads holding now": lambda d: f"/workloads?holding=now&cluster=cluster-{1 + d.randrange(2)}",
        "/workloads, text without a hit": lambda d: f"/workloads?period=30d&text=nobody-{d.random()}",
        "/workloads, pods": lambda d: f"/workloads?by=pod&period={d.choice(('24h', '30d'))}",
        "/workloads, pods deep": lambda d: f"/workloads?by=pod&period=30d&before={before(d)}",
        "/workloads, pods holding now": lambda _: "/workloads?by=pod&holding=now",
        "/workloads, text in pods": lambda d: f"/workloads?by=pod&period=30d&text=sa-{account(d):03}",
        "/workloads, text in pods without a hit": lambda d: f"/workloads?by=pod&period=30d&text=nobody-{d.random()}",
        "/workloads/C/NS/SA": lambda d: workload(d),
        "/workloads/C/NS/SA holds now": lambda d: f"{workload(d)}?show=now",
        "/workloads/C/NS/SA deep": lambda d: f"{workload(d)}?before={before(d)}",
        "/workloads/C/NS/SA, the busiest": lambda d: f"/workloads/cluster-{1 + d.randrange(2)}/ns-00/sa-000",
        "/pods/C/U": lambda d: "/pods/{}/{}".format(*d.choice(pods)),
        "/events": lambda _: "/events",
        "/events deep": lambda d: f"/events?before={event_before(d)}",
        "/events of an account": lambda d: f"/events?identity=sa-{account(d):03}",
        "/events of an address": lambda d: f"/events?address=10.0.{d.randrange(10)}.{d.randrange(250)}",
        "/events of a path": lambda d: f"/events?path=secret/data/team-{d.randrange(200)}",
        "/events of an account and a path": lambda d: f"/events?identity=sa-{account(d):03}&path=secret/",
        "/events with an error": lambda _: "/events?errors_only=on",
        "/events of a period": lambda d: f"/events?from={moment(d)}",
        "/events without a hit": lambda d: f"/events?operation=delete&identity=sa-{account(d):03}",
        "/events/V/R": lambda d: f"/events/bench/{d.choice(requests)}",
        "/findings": lambda d: f"/findings?state={d.choice(('open', 'any'))}",
        "/access-review 7 days": lambda d: f"/access-review?database={database(d)}&days=7",
        "/access-review 30 days": lambda d: f"/access-review?database={database(d)}",
        "/access-review 90 days": lambda d: f"/access-review?database={database(d)}&days=90",
        "/access": lambda d: f"/access?database={database(d)}&at={moment(d)}",
        "/access now": lambda d: f"/access?database={database(d)}",
        "/access of no known database": lambda d: f"/access?database=unknown&at={moment(d)}",
        "/access, next page": lambda d: f"/access?database={database(d)}&at={moment(d)}&after={lease(d)}",
        "/access compared": lambda d: (
            f"/access?database={database(d)}&at={moment(d)}&to={moment(d)}&show={d.choice(('gained', 'lost', 'kept'))}"
        ),
        "/actions": lambda _: "/actions",
        "/actions oldest first": lambda _: "/actions?sort=oldest",
        "/actions deep": lambda d: f"/actions?before={action_before(d)}",
        "/actions/N": lambda d: f"/actions/{d.choice(running) if d.random() < 0.2 else d.choice(actions)[0]}",
        "/sources": lambda _: "/sources",
        "/sources/streams/N": lambda d: f"/sources/streams/{d.choice(streams)}/?day={moment(d)[:10]}",
        "/sources/streams/N/rejected/N": lambda _: f"/sources/streams/{rejected[0]}/rejected/{rejected[1]}/",
        "/metrics": lambda _: "/metrics",
        "/readyz": lambda _: "/readyz",
    }


def measure(ground: Ground, *, times: int) -> dict[tuple[str, str, str], Read]:
    """Each read of each page by page, asker and statement. Raises Void where a page does not answer."""
    Group.objects.get_or_create(name="responder")
    user = User.objects.filter(username="bench").first() or factories.user("bench", "responder", password=None)
    client = Client(SERVER_NAME="localhost")
    client.force_login(user)
    found = {}
    for name, address in cases(ground).items():
        progress(name)
        dice = Random(name)  # noqa: S311
        seconds: dict[tuple[str, str], list[Took]] = defaultdict(list)
        whole, most = [], 0
        for number in range(WARM_UP + times):
            began = Clock.now()
            with timed() as statements:
                get(client, address(dice))
            if number >= WARM_UP:
                whole.append(began.until(Clock.now()))
                most = max(most, len(statements))
                for asked_by, sql, one in statements:
                    seconds[asked_by, sql].append(one)
        seconds[WHOLE, ""] = whole
        for (asked_by, sql), took in seconds.items():
            if len(took) < times / 4:
                continue  # of one branch that is hardly ever taken nothing can be said
            alone = [one.alone * 1000 for one in took]
            wall = p95([one.wall * 1000 for one in took])
            found[name, asked_by, sql] = Read(
                name, asked_by, sql, statistics.median(alone), p95(alone), wall, 0 if sql else most
            )
    return found


def get(client: Client, path: str) -> None:
    """Raises Void unless the page answers (a probe may say that it is not ready)."""
    response = client.get(path)
    if response.status_code != 200 and not (path == "/readyz" and response.status_code == 503):
        raise Void(f"{path} answers {response.status_code}")


def p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.95))]


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds: all that passed, and without the waiting for a processor."""

    wall: float
    alone: float


@dataclass(frozen=True, slots=True)
class Clock:
    """A moment; how long this process and the server's backend have waited for a processor until then; how long that one ran."""

    at: float
    waited: float
    ran: float

    @classmethod
    def now(cls) -> "Clock":
        ran, waited = _scheduled(connection.connection.info.backend_pid)
        return cls(time.perf_counter(), waited + _scheduled("self")[1], ran)

    def until(self, later: "Clock") -> Took:
        wall = later.at - self.at
        # this process may wait while the backend works: then that is what it takes
        return Took(wall, max(later.ran - self.ran, wall - (later.waited - self.waited)))


def _scheduled(pid: int | str) -> tuple[float, float]:
    """(ran, waited). https://docs.kernel.org/scheduler/sched-stats.html; nothing where there is no such file."""
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9
    except OSError:
        return 0.0, 0.0


Statements = list[tuple[str, str, Took]]


@contextmanager
def timed() -> Iterator[Statements]:
    """(who asks, statement, seconds) of everything that the connection runs; rows have arrived when execute() returns."""
    found: Statements = []

    def wrapper(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        began = Clock.now()
        try:
            return execute(sql, params, many, context)
        finally:
            found.append((asker(), shape(sql), began.until(Clock.now())))

    with connection.execute_wrapper(wrapper):
        yield found


def asker() -> str:
    """The read of the product's that runs a statement; the outermost one of the same module."""
    frame = sys._getframe(1)
    found = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("leases.", "audit.")):
            name = f"{module}.{frame.f_code.co_name}"
            if found and found.rpartition(".")[0] != module:
                break
            found = name
        elif not found and module.startswith("dashboard.") and frame.f_code.co_name != "guarded":
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return found or "django"


def shape(sql: str) -> str:
    """A statement whatever the number of its values."""
    return re.sub(r"%s(?:, %s)+", "%s, …", " ".join(sql.split()))


def falls_short(small: float, read: Read) -> bool:
    """`small`: the median with fewer events. A whole page renders, too: it has a bound of its own."""
    if read.asked_by == WHOLE:
        return read.p95 >= MOST_PAGE
    return read.p95 >= MOST_P95 or (read.p50 > small * GROWTH and read.p50 - small >= GROWTH_BELOW)


def table(
    few: dict[tuple[str, str, str], Read], many: dict[tuple[str, str, str], Read], *, sizes: tuple[int, int]
) -> str:
    """For each page the whole of it, its slowest read, and every further one that falls short."""
    head = f"{'page':<48}{'slowest read':<46}" + "".join(f"{f'{n // 1000:,} k p50/p95':>19}" for n in sizes)
    lines = [f"{head}{'growth':>9}{'p95 here':>10}"]
    for page in dict.fromkeys(key[0] for key in many):
        of_page = sorted((read for read in many.values() if read.page == page), key=lambda read: -read.p95)
        reads = [read for read in of_page if read.sql]
        shown = [*reads[:1], *(read for read in reads[1:] if _short(few, read))]
        for read in [*shown, *(read for read in of_page if not read.sql)]:
            before = few.get((read.page, read.asked_by, read.sql))
            small = f"{before.p50:.1f}/{before.p95:.1f}" if before else "-"
            growth = f"{read.p50 / before.p50:.2f}" if before else "-"
            name = read.asked_by if read.sql else f"({read.asked_by})"
            said = "falls short" if _short(few, read) else "holds"
            said += "" if read.sql else f"  {read.queries} queries"
            lines.append(
                f"{page:<48}{name:<46}{small:>19}{f'{read.p50:.1f}/{read.p95:.1f}':>19}{growth:>9}{read.wall:>10.1f}  {said}".rstrip()
            )
    whole = [read for read in many.values() if not read.sql]
    short = sum(_short(few, read) for read in many.values())
    lines.append(
        f"{sum(bool(read.sql) for read in many.values())} reads of {len({key[0] for key in many})} pages, {short} fall short"
    )
    if whole:
        slowest = max(whole, key=lambda read: read.p95)
        lines.append(
            f"whole pages: the slowest p95 {slowest.p95:.1f} ms ({slowest.page}), at most {MOST_PAGE:g}; "
            f"the most queries {max(read.queries for read in whole)}"
        )
    return "\n".join(lines)


def _short(few: dict[tuple[str, str, str], Read], read: Read) -> bool:
    before = few.get((read.page, read.asked_by, read.sql))
    return falls_short(before.p50 if before else read.p50, read)
