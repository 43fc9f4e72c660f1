"""How long one sample of many sessions takes on the server: real sessions of dynamic users on a server of their own."""

import statistics
import subprocess
import sys
import time

import psycopg
from django.utils import timezone

from demo import postgres as postgres_server
from leases import sessions as taking
from leases.databases import postgresql
from leases.models import Database, Vault
from tests import services
from tests.bench.figures import Figure, Void, progress

SESSIONS, OPENERS, TIMES = 2000, 4, 15
# of each user
EACH = 10
# the issue's: milliseconds on the database's side
BOUND = 200.0
# what every reader of sessions has to do at least; and how long it took, by the server's clock
REFERENCE = """
    SELECT n, extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000
    FROM (SELECT count(*) AS n FROM pg_stat_activity WHERE backend_type = 'client backend' OFFSET 0) AS counted
"""
# opens sessions as they are named on its standard input, says so, and holds them until that ends
OPENER = """
import sys, psycopg
held = [psycopg.connect(line.strip(), application_name=f"shop-{n % 40}") for n, line in enumerate(iter(sys.stdin.readline, "\\n"))]
print("open", flush=True)
sys.stdin.read()
"""


def measure(*, sessions: int = SESSIONS) -> list[Figure]:
    """Opens the sessions and samples them, in turns with the reference; then takes the samples into the product's tables."""
    progress(f"a server with {sessions:,} sessions")
    server = postgres_server.start(services._FOLDER / "sessions", settings={"max_connections": str(sessions + 50)})
    openers: list[subprocess.Popen[str]] = []
    try:
        users = [f"v-kubernet-orders-r-{n:020}-1795478400" for n in range(max(sessions // EACH, 1))]
        for user in users:
            server.create_role(user, "VALID UNTIL '2030-01-01'")
        server.create_role("monitor", "IN ROLE pg_monitor")
        dsns = [server.dsn(users[n % len(users)]) for n in range(sessions)]
        openers = [_opener(dsns[n::OPENERS]) for n in range(OPENERS)]
        for opener in openers:
            assert opener.stdout is not None
            if opener.stdout.readline().strip() != "open":
                raise Void("not all sessions could be opened")
        return _measure(server.dsn("monitor"), sessions=sessions, users=len(users))
    finally:
        for opener in openers:
            opener.communicate()
        server.stop()


def _opener(dsns: list[str]) -> subprocess.Popen[str]:
    opener = subprocess.Popen([sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert opener.stdin is not None
    # an empty line ends the list
    opener.stdin.write("\n".join(dsns) + "\n\n")
    opener.stdin.flush()
    return opener


def _measure(dsn: str, *, sessions: int, users: int) -> list[Figure]:
    progress(f"{TIMES} samples, in turns with the reference")
    reference: list[float] = []
    alone: list[float] = []
    with_users: list[float] = []
    whole: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as other:
        for _ in range(TIMES):
            reference.append(_reference(other, sessions=sessions))
            for listed, times in ((False, alone), (True, with_users)):
                began = time.perf_counter()
                sample = postgresql.sample(dsn, with_users=listed)
                whole.append((time.perf_counter() - began) * 1000)
                times.append(sample.took_ms)
                if len(sample.sessions) != sessions or (listed and len(sample.users or ()) != users):
                    raise Void(f"a sample showed {len(sample.sessions)} sessions of {sessions}")
    taken = _taken(dsn)
    median = statistics.median
    return [
        Figure("SELECT count(*) FROM pg_stat_activity, ms on the server", median(reference)),
        Figure(f"one sample of {sessions:,} sessions, ms on the server", median(alone), at_most=BOUND),
        Figure("  the slowest", max(alone)),
        Figure(f"  with {users} users listed, ms on the server", median(with_users), at_most=BOUND),
        Figure("one sample / the reference (time)", median(alone) / median(reference)),
        Figure("a sample with log-in, transfer and decoding, ms", median(whole)),
        Figure("writing it into Leasehold's tables, ms", median(taken)),
    ]


def _reference(connection: psycopg.Connection, *, sessions: int) -> float:
    """Milliseconds by the server's own clock, as a sample counts them."""
    row = connection.execute(REFERENCE).fetchone()
    assert row is not None
    if row[0] < sessions:
        raise Void(f"the server has {row[0]} sessions, not {sessions}")
    return float(row[1])


def _taken(dsn: str) -> list[float]:
    """Milliseconds that take_sample() needs once the sessions are known."""
    vault = Vault.objects.create(name="sessions")
    database = Database.objects.create(vault=vault, mount="database", name="orders", kind="postgresql")
    times = []
    for _ in range(TIMES):
        sample = postgresql.sample(dsn, with_users=False)
        began = time.perf_counter()
        taking.take_sample(database, sample, now=timezone.now())
        times.append((time.perf_counter() - began) * 1000)
    return times[1:]
