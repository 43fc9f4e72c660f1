"""Celery's workers as they run for real: they outlive their broker."""

import os
import sys
import time
from pathlib import Path

import pytest

from demo import processes, valkey

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_worker_outlives_its_broker_in_the_middle_of_its_tasks(run_folder: Path) -> None:
    from django.db import connection

    folder = run_folder / "workers"
    broker = valkey.start(folder / "valkey")
    port = int(broker.url.rsplit(":", 1)[1].split("/")[0])
    settings = connection.settings_dict
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)
    env = {**os.environ, "LEASEHOLD_BROKER_URL": broker.url, "LEASEHOLD_DATABASE_URL": address}
    command = [sys.executable, "-m", "celery", "-A", "dashboard"]
    queues = [*command, "worker", "-Q", "ingest,watch,leases,actions,reports", "-c", "4", "-n", "test@test"]
    worker = processes.spawn(queues, log=folder / "worker.log", env=env, cwd=ROOT)
    beat = processes.spawn([*command, "beat", "-s", folder / "schedule"], log=folder / "beat.log", env=env, cwd=ROOT)
    try:
        log = folder / "worker.log"
        processes.wait_until(
            lambda: "celery@" in log.read_text() or "queues" in log.read_text(), what="worker", seconds=60
        )
        for _ in range(5):
            time.sleep(4)
            broker.stop()
            time.sleep(2)
            broker = valkey.start(folder / "valkey", port=port)
        time.sleep(8)
        assert (worker.poll(), beat.poll()) == (None, None)
    finally:
        processes.stop(beat)
        processes.stop(worker)
        broker.stop()
