"""A real `bao agent` in a contained pod: it does not come back, and does once the containment is undone. Figures are printed."""

import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.utils import timezone

from audit import comebacks
from demo import agent, openbao, processes
from demo.openbao import OpenBao
from leases.models import Lease, LeaseState
from leases.models.actions import ContainmentState
from tests import workers
from tests.test_contain import plan, press, said, shop, undo, work
from tests.world import TestPod, World

__all__ = ["shop"]

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.timeout(400)]

# the longest that demo/agent.py lets an agent wait between two tries
BACKOFF = 15.0
LOGS_IN_AGAIN = 90.0


@pytest.fixture
def pod(shop: World) -> Iterator[TestPod]:
    """At the address that whatever runs here has. Its tokens live shortly: an agent notices that one is gone when it would renew it."""
    role = "auth/kubernetes/role/shop-storefront"
    before: Any = shop.admin.read(role)
    shop.admin.write_data(role, data={**before["data"], "token_ttl": "15s"})
    yield shop.pod("storefront", address="127.0.0.1")
    shop.admin.write_data(role, data=before["data"])


@pytest.fixture
def files(pod: TestPod, tmp_path: Path) -> Iterator[agent.Files]:
    """The files of the pod, in which an agent runs."""
    files = agent.Files(tmp_path)
    agent.prepare(files, pod.application, vault_address=pod.world.openbao.address)
    files.service_account_token.write_text(pod.service_account_token())
    with (tmp_path / "agent.log").open("wb") as log:
        running = subprocess.Popen(
            [openbao.binary(), "agent", f"-config={files.config}", "-log-level=info"], stdout=log, stderr=log
        )
    try:
        processes.wait_until(files.credentials.exists, what="the agent's first credentials", seconds=20)
        yield files
    finally:
        running.terminate()
        running.wait(10)


def credentials(files: agent.Files) -> dict[str, str]:
    return dict(line.split("=", 1) for line in files.credentials.read_text().splitlines())


def leases_in(server: OpenBao, world: World, role: str = "my-role") -> set[str]:
    listed: Any = world.admin.list(f"sys/leases/lookup/database/creds/{role}")
    return set(listed["data"]["keys"]) if listed else set()


def opens(world: World, found: dict[str, str]) -> bool:
    """Whether these credentials still open the database."""
    try:
        psycopg.connect(
            host="127.0.0.1",
            port=world.postgres.port,
            dbname="orders",
            user=found["username"],
            password=found["password"],
        ).close()
    except psycopg.OperationalError:
        return False
    return True


def test_an_agent_does_not_come_back_while_contained_and_does_after_undo(
    shop: World, files: agent.Files, capsys: pytest.CaptureFixture[str]
) -> None:
    first = credentials(files)
    workers.read_streams()
    workers.catch_up()
    assert opens(shop, first)
    planned = plan()

    began = time.monotonic()
    containment = work(press(planned))
    took = time.monotonic() - began
    assert containment.state == ContainmentState.CONTAINED, said(containment.action)
    assert leases_in(shop.openbao, shop) == set()
    assert not opens(shop, first)
    assert took < 10

    # it goes on with its dead token until it would renew that, then it logs in again and again
    began = time.monotonic()
    told = comebacks.attempts(containment, now=timezone.now())
    while told.denied_logins < 2:
        assert time.monotonic() - began < LOGS_IN_AGAIN, told
        assert leases_in(shop.openbao, shop) == set()
        time.sleep(2)
        workers.read_streams()
        told = comebacks.attempts(containment, now=timezone.now())
    tried = time.monotonic() - began
    assert credentials(files) == first
    workers.catch_up()
    assert not Lease.objects.filter(service_account="storefront").exclude(state=LeaseState.ENDED).exists()
    assert not told.successes

    undo(containment)
    assert containment.state == ContainmentState.LIFTED
    began = time.monotonic()
    processes.wait_until(lambda: credentials(files) != first, what="new credentials", seconds=4 * BACKOFF)
    back = time.monotonic() - began
    assert opens(shop, credentials(files))
    workers.read_streams()
    # what it does now is no attempt any more
    after = comebacks.attempts(containment, now=timezone.now() + timedelta(minutes=1))
    assert not after.successes
    with capsys.disabled():
        print(  # noqa: T201
            f"\ncontained and verified in {took:.1f} s; {told.denied_logins} log-ins and {told.denied_requests} other requests "
            f"refused in {tried:.0f} s; new credentials {back:.1f} s after it was undone"
        )
