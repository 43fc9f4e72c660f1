"""Two OpenBao nodes in one raft cluster: which of them is asked, and what is said where it can only be the standby."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.utils import timezone

from demo import openbao as openbao_server
from demo import processes
from demo.postgres import Postgres
from leases import checks, clients, lookups, queries
from leases.models import Lease, SourceState, Vault
from leases.tasks import check_vaults
from tests import observed
from tests.observed import Observed

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@dataclass(slots=True)
class Pair:
    """`active`, and a standby that joined it. Both name their audit files alike, so the standby answers reads itself."""

    active: Observed
    standby: str
    process: subprocess.Popen[bytes]
    folder: Path


def _lines(folder: Path) -> int:
    file = folder / "audit-a.log"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.fixture(scope="module")
def pair(run_folder: Path, postgres: Postgres) -> Iterator[Pair]:
    first, second = run_folder / "raft-1", run_folder / "raft-2"
    server = openbao_server.start(first, audit_files_are_relative=True)
    (second / "raft").mkdir(parents=True)
    port, cluster = processes.free_port(), processes.free_port()
    address = f"http://127.0.0.1:{port}"
    (second / "server.hcl").write_text(
        f'storage "raft" {{\n  path = "{second}/raft"\n  node_id = "bao-1"\n  performance_multiplier = "1"\n'
        f'  retry_join {{ leader_api_addr = "{server.address}" }}\n}}\n'
        f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  cluster_address = "127.0.0.1:{cluster}"\n'
        "  tls_disable = true\n}\n"
        f'api_addr = "{address}"\ncluster_addr = "https://127.0.0.1:{cluster}"\nui = false\ndisable_mlock = true\n'
        + "".join(
            f'audit "file" "{name}" {{ options {{ file_path = "{path.name}" }} }}\n'
            for name, path in server.audit_logs.items()
        )
    )
    process = processes.spawn(
        [openbao_server.packaged(), "server", f"-config={second}/server.hcl"],
        log=second / "server.log",
        env={"PATH": "/usr/bin:/bin", "HOME": str(second)},
        cwd=second,
    )
    made = Pair(observed.prepare(server, postgres, run_folder / "raft-config"), address, process, second)

    def unsealed() -> bool:
        if openbao_server._health(address) == 503:
            openbao_server._send(address, "PUT", "sys/unseal", {"key": server.unseal_key})
        return openbao_server._health(address) == 429

    processes.wait_until(unsealed, what="the standby", seconds=60, log=second / "server.log", process=process)
    # it serves reads by itself from some moment after it has joined
    reader = observed.Observed(server, postgres, made.active.admin, made.folder)

    def serves() -> bool:
        before = _lines(second)
        openbao_server._send(address, "GET", "sys/audit", token=reader.server.root_token)
        return _lines(second) > before

    processes.wait_until(serves, what="the standby's own answers", seconds=60, log=second / "server.log")
    yield made
    processes.stop(process)
    server.stop()


def test_behind_a_standbys_address_the_active_node_is_asked(pair: Pair) -> None:
    vault = pair.active.configure(address=pair.standby)
    check_vaults()
    vault.refresh_from_db()
    assert vault.active_address == pair.active.server.address
    state = SourceState.objects.get()
    assert (state.ok, state.cause) == (True, "")
    lease_id = pair.active.issue("few")
    pair.active.read()
    on_standby, on_active = _lines(pair.folder), _lines(pair.active.server.folder)
    lookups.look_up_due(vault, now=timezone.now())
    assert Lease.objects.get(lease_id=lease_id).expires_at is not None
    assert (_lines(pair.folder) - on_standby, _lines(pair.active.server.folder) - on_active) == (0, 2)


def test_where_the_active_node_may_not_be_asked_the_standby_answers_and_the_page_says_so(pair: Pair) -> None:
    vault = pair.active.configure(address=pair.standby, more="follow_leader = false")
    check_vaults()
    vault.refresh_from_db()
    assert vault.active_address == ""
    (source,) = queries.sources(now=timezone.now())
    assert (source.status, source.ok) == ("limited", True)
    assert "is a standby, so times of leases may be old; follow_leader is off" in source.cause
    assert "leasehold.toml" in source.fix
    before = _lines(pair.folder)
    assert clients.observer(vault).lookup_lease(pair.active.issue("few")) is not None
    assert _lines(pair.folder) == before + 2


def test_a_leader_of_another_scheme_or_cluster_gets_no_token(pair: Pair, openbao: openbao_server.OpenBao) -> None:
    vault = pair.active.configure(address=pair.standby)
    # what a standby names is believed only if it proves to be of the same cluster
    real = clients.observer_at(vault, pair.standby).health()
    assert clients.observer_at(vault, openbao.address).health().cluster_name != real.cluster_name
    vault.address = pair.standby.replace("http:", "https:")
    assert checks.refused_leader(vault, pair.active.server.address, real) == (
        f"the active node's address {pair.active.server.address} has another scheme"
    )
    vault.address = pair.standby
    assert "no active node of the same cluster" in checks.refused_leader(vault, openbao.address, real)
    assert "no active node of the same cluster" in checks.refused_leader(vault, pair.standby, real)
    assert "cannot be asked" in checks.refused_leader(vault, "http://127.0.0.1:9", real)
    assert checks.refused_leader(vault, "", real) == "it names no active node"
    assert checks.refused_leader(vault, pair.active.server.address, real) == ""


def test_an_address_that_leads_to_the_active_node_is_asked_itself(pair: Pair) -> None:
    vault = pair.active.configure()
    Vault.objects.update(active_address="http://127.0.0.1:9")
    check_vaults()
    vault.refresh_from_db()
    assert vault.active_address == ""
