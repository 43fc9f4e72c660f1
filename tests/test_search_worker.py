"""The search box with a worker of its own process: what was typed goes to it sealed, by the real broker."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from audit import hashes, search, tasks
from audit.models import Device
from demo import processes
from demo.valkey import Valkey
from leases.models import Lease
from tests import workers
from tests.world import World

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
]


@pytest.fixture
def worker(run_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of the queue that such questions go to."""
    log = run_folder / "search-worker.log"
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "dashboard",
        "worker",
        "-Q",
        "leases",
        "-c",
        "1",
        "-n",
        "search@test",
    ]
    started = processes.spawn(command, log=log, env={**os.environ, "LEASEHOLD_DATABASE_URL": address}, cwd=ROOT)
    try:
        processes.wait_until(lambda: "queues" in log.read_text(), what="worker", seconds=120)
        yield started
    finally:
        processes.stop(started)


def test_a_worker_hashes_what_was_typed_within_the_time_that_a_search_waits(
    configured: World, worker: subprocess.Popen[bytes], valkey: Valkey, run_folder: Path
) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    answer = pod.read_credentials()
    workers.read_streams()
    name = answer["data"]["username"]
    # the worker's first question makes it log in to the vault
    search.find("nobody-knows", send=tasks.ask_a_worker, seconds=20)
    began = time.monotonic()
    found = search.find(name, send=tasks.ask_a_worker)
    took = time.monotonic() - began
    assert [answer.cause for answer in found.answers] == [""] * Device.objects.count()
    assert found.only is not None
    assert found.only.key == (str(Lease.objects.get(lease_id=answer["lease_id"]).pk),)
    assert took < hashes.WAIT_SECONDS
    assert name not in (run_folder / "search-worker.log").read_text()
    print(f"a search with {len(found.answers)} devices took {1000 * took:.0f} ms")  # noqa: T201


def test_without_a_worker_a_search_ends_in_time_and_says_so(configured: World) -> None:
    began = time.monotonic()
    found = search.find("nobody-knows", send=tasks.ask_a_worker)
    assert time.monotonic() - began < hashes.WAIT_SECONDS + 1
    assert all("a worker of the queue leases runs" in answer.cause for answer in found.answers)
    assert found.answers
