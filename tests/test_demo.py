"""The whole demo, as `make demo-up` and `make demo-down` run it: what it shows is what its pods really did."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from demo import processes, state, truth
from demo.workloads import ALL_APPLICATIONS, APPLICATIONS, CLUSTER

pytestmark = [pytest.mark.demo, pytest.mark.timeout(400)]

NAMED = {"exact", "inferred"}
# those whose log-ins and addresses are their own
PLAIN = {(CLUSTER, one.namespace, one.service_account) for one in APPLICATIONS if one.program == "agent"}


class Demo(NamedTuple):
    """A demo with a folder and a port of its own."""

    folder: Path
    port: int

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`python -m demo …`"""
        return subprocess.run(
            [sys.executable, "-m", "demo", *arguments],
            cwd=state.ROOT,
            env={**os.environ, "DEMO_STATE": str(self.folder), "PORT": str(self.port)},
            capture_output=True,
            text=True,
            check=False,
        )

    def manage(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`manage.py …` as a person runs it, with the demo's shell file."""
        return subprocess.run(
            ["sh", "-c", 'set -a; . "$0"; exec "$@"', self.folder / "env", sys.executable, "manage.py", *arguments],
            cwd=state.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def accesses(self, since: datetime) -> dict[str, dict[str, Any]]:
        """`manage.py export accesses`, by lease id."""
        period = [f"--from={since.isoformat()}", f"--to={datetime.now(UTC).isoformat()}"]
        done = self.manage("export", "accesses", *period, "--format=ndjson")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {row["lease_id"]: row for row in rows}

    def issued(self) -> dict[str, truth.Line]:
        """Every lease that a pod got, by its id."""
        return {str(line.lease_id): line for line in truth.read(self.folder / "truth.ndjson") if line.event == "issue"}

    def processes(self) -> set[state.Process]:
        """What runs of it."""
        return state.leftovers(self.folder)


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[Demo, str]]:
    """A demo that is up, and what it printed; afterwards it is down and nothing of it is left."""
    demo = Demo(folder, processes.free_port())
    up = demo.run("up", *arguments)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield demo, up.stdout
    finally:
        down = demo.run("down")
    assert down.returncode == 0, down.stderr
    assert demo.processes() == set()


@pytest.fixture(scope="module")
def up(run_folder: Path) -> Iterator[tuple[Demo, str]]:
    """The demo with everything, its pods changing twice as fast, for the tests that only look at it."""
    with running(run_folder / "demo", "--pace=2") as found:
        yield found


def test_the_access_report_lists_every_lease_with_its_true_pod(up: tuple[Demo, str]) -> None:
    demo, began = up[0], datetime.now(UTC)

    def pods_have_changed() -> bool:
        """Long enough for a pod to have been replaced and for a jwt and a Kubernetes log-in of several pods."""
        pods = {line.pod_uid for line in demo.issued().values()}
        return len(pods) >= sum(application.replicas for application in ALL_APPLICATIONS if application.logs_in) + 2

    processes.wait_until(pods_have_changed, what="two replaced pods", seconds=100)
    holders = {(line.cluster, line.namespace, line.service_account) for line in demo.issued().values()}
    assert holders == {(one.cluster, one.namespace, one.service_account) for one in ALL_APPLICATIONS if one.logs_in}
    wanted = {
        lease_id
        for lease_id, line in demo.issued().items()
        if (line.cluster, line.namespace, line.service_account) in PLAIN
    }
    rows: dict[str, dict[str, Any]] = {}

    def all_known() -> bool:
        """Every lease so far is there with its pod, or two that had one address within seconds; the newest pods only when
        the watch has come that far."""
        rows.update(demo.accesses(began - timedelta(minutes=10)))
        return all(lease_id in rows and rows[lease_id]["certainty"] in NAMED | {"ambiguous"} for lease_id in wanted)

    processes.wait_until(all_known, what="a row with its pod for every lease", seconds=20)
    assert datetime.now(UTC) - began < timedelta(minutes=2)
    known = demo.issued()
    assert rows.keys() - known.keys() == set(), "leases that no pod ever got"
    wrong = [
        (row["certainty"], row["certainty_reason"], row["pod"], known[lease_id].pod)
        for lease_id, row in rows.items()
        if (row["pod"] or row["certainty"] in NAMED)
        and (row["cluster"], row["pod"], row["pod_uid"])
        != (known[lease_id].cluster, known[lease_id].pod, known[lease_id].pod_uid)
    ]
    assert wrong == []
    facts = {
        lease_id: (rows[lease_id]["database"], rows[lease_id]["source_ip"], rows[lease_id]["pod_namespace"])
        for lease_id in wanted
        if (rows[lease_id]["database"], rows[lease_id]["source_ip"], rows[lease_id]["pod_namespace"])
        != (known[lease_id].database, known[lease_id].ip, known[lease_id].namespace)
    }
    assert facts == {}
    # the jwt log-ins name their pod; the others are known by their address, as the watch saw them all
    assert {rows[lease_id]["certainty"] for lease_id in wanted} >= NAMED


def test_only_the_printed_ports_are_listened_on_and_only_on_loopback(up: tuple[Demo, str]) -> None:
    demo, printed = up
    sockets = {socket for one in demo.processes() for socket in sockets_of(one.pid)}
    listening = {address for inode, address in listeners().items() if inode in sockets}
    assert listening
    for host, port in listening:
        shown = host if host == "127.0.0.1" else "127.21.x.y"
        assert host.startswith("127."), f"{host}:{port}"
        assert f"{shown}:{port} " in printed, f"{host}:{port}"


def test_the_demo_says_that_it_already_runs(up: tuple[Demo, str]) -> None:
    again = up[0].run("up")
    assert again.returncode == 1
    assert "A demo already runs here" in again.stderr


def test_the_status_names_every_part_and_the_product_finds_nothing_missing(up: tuple[Demo, str]) -> None:
    status = up[0].run("status")
    assert status.returncode == 0, status.stdout
    for part in (
        "PostgreSQL",
        "Valkey",
        "OpenBao",
        "Kubernetes API",
        "Kubernetes API 2",
        "pods",
        "web",
        "push",
        "worker actions",
        "beat",
    ):
        assert part in status.stdout
    doctor = up[0].manage("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def test_no_secret_is_written_where_it_does_not_belong(up: tuple[Demo, str]) -> None:
    """Passwords of dynamic users, tokens and keys of this run, in logs and in the truth."""
    folder = up[0].folder
    secrets = {
        line.partition("=")[2]
        for file in folder.glob("pods/running/*/*/vault/secrets/db-creds")
        for line in file.read_text().splitlines()
        if line.startswith("password=")
    }
    secrets |= {file.read_text() for file in folder.glob("pods/running/*/*/var/run/secrets/openbao/token")}
    secrets |= {str(text) for text in json.loads((folder / "postgres/passwords.json").read_text()).values()}
    secrets |= {str(text) for text in json.loads((folder / "openbao/keys.json").read_text()).values()}
    for file in ("kube/admin-token", "kube-2/admin-token", "openbao/administrator-token"):
        secrets.add((folder / file).read_text())
    assert len(secrets) > 20
    records = [folder / name for name in ("truth.ndjson", "deeds.ndjson", "status.json") if (folder / name).exists()]
    for log in [*folder.rglob("*.log"), *records]:
        text = log.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], log.name


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--without-product"], []], ids=["servers-and-pods", "all"])
def test_a_killed_demo_leaves_nothing_running_and_starts_again(run_folder: Path, arguments: list[str]) -> None:
    folder = run_folder / "killed"
    with running(folder, *arguments) as (demo, _):
        supervisor = json.loads((folder / "supervisor.json").read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)
        processes.wait_until(lambda: demo.processes() == set(), what="end of every process", seconds=15)
    with running(folder, "--without-product") as (demo, _):
        assert demo.run("status").returncode == 0


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that the process holds."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def listeners() -> dict[str, tuple[str, int]]:
    """Inode → address and port of every TCP socket that listens (proc_pid_net(5))."""
    found = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if fields[3] == "0A":
                    raw = bytes.fromhex(address)
                    host = ".".join(str(byte) for byte in reversed(raw)) if len(raw) == 4 else f"[{address}]"
                    found[fields[9]] = (host, int(port, 16))
    return found
