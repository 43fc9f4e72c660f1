"""Thousands of leases of one service account ended as one job, by Celery's workers on real servers, while people do other things.

`BIG_JOB_LEASES` and `BIG_JOB_RATE` make it smaller or larger than 5,000 leases at 40 a second.
"""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from audit import targets
from demo import databases, openbao, processes, workloads
from demo.postgres import Postgres
from demo.valkey import Valkey
from leases import clients, jobs, lists, lookups, plans, queries, revoke
from leases.models import ActionKind, Lease, LeaseState, Revocation, Vault
from leases.models.actions import JobState
from tests import observed
from tests.observed import POLICIES, Observed

ROOT = Path(__file__).resolve().parent.parent
LEASES = int(os.environ.get("BIG_JOB_LEASES", "5000"))
RATE = int(os.environ.get("BIG_JOB_RATE", "40"))
ACCOUNT = "leasehold-respond"
PAGE_SECONDS = 0.2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


@pytest.fixture(scope="module")
def vault_of_many(run_folder: Path, postgres: Postgres) -> Iterator[Observed]:
    server = openbao.start(run_folder / "big-job")
    yield observed.prepare(server, postgres, run_folder / "big-job-config")
    server.stop()


def configured(world: Observed) -> Vault:
    """A role with real users, the responding account under the delivered policy, and the monitoring account."""
    admin, folder = world.admin, world.folder
    admin.secrets.database.create_role(
        name="many",
        db_name="orders",
        # without grants on tables: a table's row cannot hold those of thousands
        creation_statements=[workloads.CREATE[0]],
        revocation_statements=[workloads.REVOKE[-1]],
        default_ttl="2h",
        max_ttl="3h",
    )
    admin.sys.create_or_update_policy(ACCOUNT, (POLICIES / f"{ACCOUNT}.hcl").read_text())
    role: dict[str, Any] = {"token_policies": [ACCOUNT], "token_no_default_policy": True}
    admin.write_data(f"auth/approle/role/{ACCOUNT}", data=role)
    admin.write_data(f"auth/approle/role/{ACCOUNT}/role-id", data={"role_id": ACCOUNT})
    made: Any = admin.write_data(f"auth/approle/role/{ACCOUNT}/secret-id")
    (folder / "respond-secret-id").write_text(made["data"]["secret_id"])
    (folder / "orders.dsn").write_text(world.postgres.dsn(databases.MONITOR, "orders"))
    return world.configure(
        more=f"""revocations_per_second = {RATE}
[vaults.respond]
method = "approle"
mount = "approle"
role = "{ACCOUNT}"
secret = {{ file = "{folder / "respond-secret-id"}" }}
[[databases]]
vault = "demo"
mount = "database"
name = "orders"
kind = "postgresql"
monitor = {{ file = "{folder / "orders.dsn"}" }}"""
    )


def held_by_one_account(world: Observed, vault: Vault, count: int) -> None:
    """So many leases in the ledger, all of shop/storefront, each with its user: as events and audit hashes would have told."""
    issued = world.issue_many("many", count, connections=8)
    client = clients.observer(vault)
    lists.read_roles(vault, "database", client)
    lists.reconcile(vault, now=timezone.now())
    while lookups.due(vault, now=timezone.now(), limit=1):
        lookups.look_up_due(vault, now=timezone.now(), seconds=10)
    Lease.objects.update(cluster="demo", service_account_namespace="shop", service_account="storefront")
    rows = list(Lease.objects.order_by("id"))
    assert len(rows) == count
    for row in rows:
        row.database_user, row.database_user_by = issued[row.lease_id], "audit hash"
    Lease.objects.bulk_update(rows, ["database_user", "database_user_by"], batch_size=1000)


def users(world: Observed) -> set[str]:
    with psycopg.connect(world.postgres.dsn()) as server:
        rows = server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%%-many-%%'").fetchall()
    return {row[0] for row in rows}


def in_vault(world: Observed) -> int:
    found = world.admin.list("sys/leases/lookup/database/creds/many")
    return len(found["data"]["keys"]) if found else 0


def told(world: Observed) -> list[tuple[datetime, str]]:
    """When Vault was told to revoke which lease, as its own log says."""
    found = []
    with Path(world.server.audit_logs["file-a"]).open() as log:
        for line in log:
            if '"path":"sys/leases/revoke/' in line and '"type":"request"' in line:
                entry = json.loads(line)
                at = datetime.strptime(entry["time"][:26].rstrip("Z"), "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=UTC)
                found.append((at, entry["request"]["path"].removeprefix("sys/leases/revoke/")))
    return sorted(found)


def fastest_second(moments: list[datetime]) -> int:
    """The most within any second."""
    most, first = 0, 0
    for last, moment in enumerate(moments):
        while (moment - moments[first]).total_seconds() >= 1:
            first += 1
        most = max(most, last - first + 1)
    return most


class Workers:
    """A worker of the queue `actions`, and beat."""

    def __init__(self, folder: Path, broker: Valkey) -> None:
        address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
        self.folder = folder
        self.env = {**os.environ, "LEASEHOLD_DATABASE_URL": address, "LEASEHOLD_BROKER_URL": broker.url}
        self.command: list[str | Path] = [sys.executable, "-m", "celery", "-A", "dashboard"]
        self.count = 0
        self.start()
        beat = [*self.command, "beat", "-s", folder / "schedule"]
        self.beat = processes.spawn(beat, log=folder / "beat.log", env=self.env, cwd=ROOT)

    def start(self) -> None:
        self.count += 1
        log = self.folder / f"worker-{self.count}.log"
        queue = [*self.command, "worker", "-Q", "actions", "-c", "4", "-n", f"actions{self.count}@test"]
        self.worker = processes.spawn(queue, log=log, env=self.env, cwd=ROOT)

    def kill(self) -> None:
        """As a machine that is gone: nothing says goodbye."""
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()

    def stop(self) -> None:
        processes.stop(self.beat)
        processes.stop(self.worker)


@pytest.fixture
def workers(run_folder: Path, valkey: Valkey) -> Iterator[Workers]:
    made = Workers(run_folder / "big-job-workers", valkey)
    yield made
    made.stop()


def until(what: str, so: Any, *, seconds: float) -> float:
    began = time.monotonic()
    while not so():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


def test_thousands_of_leases_are_ended_as_one_job_that_is_stopped_and_loses_its_worker_on_the_way(
    vault_of_many: Observed, workers: Workers, viewer: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    world = vault_of_many
    vault = configured(world)
    held_by_one_account(world, vault, LEASES + 1)
    single = Lease.objects.order_by("-id")[0]

    def page() -> float:
        at = time.monotonic()
        assert viewer.get("/leases").status_code == 200
        return time.monotonic() - at

    before = sorted(page() for _ in range(20))
    scope = targets.Scope.parse("service account", "demo/shop/storefront")
    keys = list(targets.open_leases(scope).exclude(pk=single.pk).values_list("pk", flat=True))
    plan = plans.plan(kind=ActionKind.REVOKE, scope=scope.as_json(), leases=keys, by="ada", now=timezone.now())
    began = time.monotonic()
    action = revoke.confirm(plan, by="ada", reason="INC-1", now=timezone.now())
    confirming = time.monotonic() - began
    job = action.job

    pages, over = [], threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            pages.append(page())
        connection.close()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        # a single revocation, asked for while the big job runs
        until("the job has begun", lambda: jobs.progress(action).finished > LEASES / 10, seconds=600)
        began = time.monotonic()
        small = revoke.request(leases=[single], by="bob", reason="just this one", now=timezone.now())
        until("the single revocation", lambda: not small.revocations.get().open, seconds=60)
        single_seconds = time.monotonic() - began

        # the worker is lost in its middle
        until("a third", lambda: jobs.progress(action).finished > LEASES / 3, seconds=900)
        workers.kill()
        left_at = jobs.progress(action)
        assert 0 < left_at.waiting < LEASES
        workers.start()
        resumed = until(
            "it goes on without anybody", lambda: jobs.progress(action).finished > left_at.finished + 20, seconds=90
        )

        # somebody stops it
        until("half", lambda: jobs.progress(action).finished > LEASES / 2, seconds=900)
        jobs.stop(job, by="bob", now=timezone.now())
        until("what had begun is at its end", lambda: jobs.progress(action).working == 0, seconds=60)
        stopped, calls = jobs.progress(action), len(told(world))
        assert stopped.stopped > 0
        assert stopped.waiting == 0
        time.sleep(3)
        assert jobs.progress(action) == stopped
        assert len(told(world)) == calls
        # exactly those that were not begun are there still
        assert in_vault(world) == stopped.stopped == len(users(world))
        assert Lease.objects.filter(state=LeaseState.LIVE).count() == stopped.stopped

        job.refresh_from_db()
        assert jobs.retry(job, by="ada", now=timezone.now()) >= stopped.stopped
        until("all of it", lambda: _state(job) == JobState.DONE, seconds=1800)
    finally:
        over.set()
        looking.join()
    done = jobs.progress(action)
    moments = told(world)
    seconds = (moments[-1][0] - moments[0][0]).total_seconds()
    most = fastest_second([at for at, _ in moments])
    pages.sort()
    times = Counter(name for _, name in moments)
    with capsys.disabled():
        print(  # noqa: T201 (the figures are the point)
            f"\n{LEASES:,} leases, at most {RATE} a second: confirmed in {confirming:.2f} s; {len(moments):,} calls in {seconds:.0f} s, "
            f"at most {most} within a second; told twice: {sum(1 for count in times.values() if count > 1)}; a single one in the "
            f"middle {single_seconds:.1f} s; went on {resumed:.1f} s after its worker was killed; stopped with {stopped.stopped:,} left; "
            f"/leases meanwhile p50 {pages[len(pages) // 2] * 1000:.0f} ms, p95 {pages[len(pages) * 95 // 100] * 1000:.0f} ms (before p50 "
            f"{before[len(before) // 2] * 1000:.0f} ms); {done}"
        )

    # the truth of each, against the servers
    assert (in_vault(world), users(world)) == (0, set())
    assert done.verified == done.total == LEASES
    assert set(Lease.objects.values_list("state", "end_reason")) == {(LeaseState.ENDED, "revoked here")}
    assert set(times) == set(Lease.objects.values_list("lease_id", flat=True))
    # what a lost worker had begun was looked at before anything was told again: at most what it had under way
    assert sum(times.values()) - len(times) <= 4
    # three lanes and a single one may be late with their moments
    assert most <= RATE + 4
    assert not Revocation.objects.exclude(state="verified").exists()
    assert [row.pk for row in queries.waiting_jobs()] == []
    # on a machine that does other things too, against what the page took before the workers had begun
    assert pages[len(pages) * 95 // 100] < max(PAGE_SECONDS, 3 * before[len(before) // 2])


def _state(job: Any) -> str:
    job.refresh_from_db()
    return str(job.state)
