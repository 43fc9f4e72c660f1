"""The demo's own parts, each for itself: pods' network and client, truth, supervision, cleaning up after a crash."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hvac
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from demo import book, client, databases, ports, processes, state, truth, vault_setup
from demo.openbao import OpenBao
from demo.postgres import Postgres
from demo.proxy import PodProxy
from demo.supervisor import Child, Supervisor
from demo.workloads import CREATE, REVOKE

MOUNT = "demo-parts"
POD = truth.Pod(
    cluster="demo",
    namespace="shop",
    service_account="storefront",
    pod="storefront-1",
    pod_uid="0b6e",
    ip="127.21.0.7",
)


class Network(NamedTuple):
    """One pod's proxy in front of the real servers."""

    vault: str
    postgres_port: int
    truth_file: Path
    client: hvac.Client  # with an administrator's token, not through the proxy
    stop: Callable[[], None]

    def log_in(self) -> hvac.Client:
        """A new log-in, through the pod's network."""
        role_id = self.client.auth.approle.read_role_id("demo-parts", mount_point=MOUNT)["data"]["role_id"]
        pod = hvac.Client(url=self.vault)
        pod.auth.approle.login(role_id, mount_point=MOUNT)
        return pod

    def lines(self, event: str | None = None) -> list[truth.Line]:
        """The truth so far."""
        return [line for line in truth.read(self.truth_file) if event in (None, line.event)]


@pytest.fixture(scope="module")
def vault(openbao: OpenBao, postgres: Postgres) -> Iterator[hvac.Client]:
    """A database mount as in the demo, and a log-in for a pod."""
    databases.prepare_target(postgres, "orders")
    administrator = hvac.Client(url=openbao.address, token=openbao.root_token)
    vault_setup.set_up_mount(administrator, postgres, mount=MOUNT, databases=["orders"])
    administrator.sys.enable_auth_method("approle", path=MOUNT)
    administrator.sys.create_or_update_policy(
        "demo-parts",
        f'path "{MOUNT}/creds/my-role" {{ capabilities = ["read"] }}\n'
        'path "auth/token/create" { capabilities = ["update"] }',
    )
    administrator.auth.approle.create_or_update_approle(
        "demo-parts", token_policies=["demo-parts"], bind_secret_id=False, token_bound_cidrs=["127.0.0.0/8"],
        mount_point=MOUNT,
    )  # fmt: skip
    yield administrator
    administrator.sys.disable_auth_method(MOUNT)
    administrator.sys.disable_secrets_engine(MOUNT)


@pytest.fixture
def network(
    vault: hvac.Client, openbao: OpenBao, postgres: Postgres, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Network]:
    """At the pod's own address, or leaving from the one that a test names."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    vault_port, postgres_port = processes.free_port(POD.ip), processes.free_port(POD.ip)
    proxy = PodProxy(
        POD,
        book=book.Book(tmp_path / "truth.ndjson"),
        databases={f"{MOUNT}/creds/my-role": "orders"},
        vault=openbao.address,
        vault_port=vault_port,
        postgres=("127.0.0.1", postgres.port),
        postgres_port=postgres_port,
        source=getattr(request, "param", ""),
    )
    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(20)

        yield Network(proxy.vault_address, postgres_port, tmp_path / "truth.ndjson", vault, stop)
        stop()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def read_credentials(pod: hvac.Client) -> dict[str, Any]:
    answer: dict[str, Any] = pod.secrets.database.generate_credentials("my-role", mount_point=MOUNT)
    return answer


def has_role(postgres: Postgres, name: str) -> bool:
    with psycopg.connect(postgres.dsn()) as connection:
        return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None


def test_what_a_pod_asked_for_just_before_it_went_is_in_the_truth(network: Network) -> None:
    # Vault answers after a second, when the pod's process is gone and its network is about to be
    network.client.secrets.database.create_role(
        "my-role", "orders", ["SELECT pg_sleep(1)", *CREATE], revocation_statements=list(REVOKE), mount_point=MOUNT
    )
    pod = network.log_in()
    host, port = network.vault.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(
            f"GET /v1/{MOUNT}/creds/my-role HTTP/1.1\r\nHost: vault\r\nX-Vault-Token: {pod.token}\r\n\r\n".encode()
        )
        time.sleep(0.3)
    network.stop()
    assert [line.database for line in network.lines("issue")] == ["orders"]
    network.client.secrets.database.create_role(
        "my-role", "orders", list(CREATE), revocation_statements=list(REVOKE), mount_point=MOUNT
    )


@pytest.mark.parametrize(("network", "seen_at"), [("", POD.ip), ("127.21.9.9", "127.21.9.9")], indirect=["network"])
def test_openbao_and_postgresql_see_the_pods_own_address_or_its_gateways(
    network: Network, openbao: OpenBao, seen_at: str
) -> None:
    answer = read_credentials(network.log_in())
    with psycopg.connect(
        host=POD.ip,
        port=network.postgres_port,
        dbname="orders",
        user=answer["data"]["username"],
        password=answer["data"]["password"],
    ) as connection:
        row = connection.execute("SELECT host(inet_client_addr())").fetchone()
    audit = [json.loads(line) for line in openbao.audit_logs["file-a"].read_text().splitlines()]
    seen = {line["request"]["remote_address"] for line in audit if line["request"]["id"] == answer["request_id"]}
    assert row == (seen_at,)
    assert seen == {seen_at}
    assert {line.ip for line in network.lines()} == {POD.ip}


def test_the_truth_holds_what_passed_with_its_lease_and_user_and_no_secret(network: Network) -> None:
    pod = network.log_in()
    answer = read_credentials(pod)
    pod.sys.renew_lease(answer["lease_id"])
    pod.auth.token.revoke_self()
    lines = network.lines()
    lease = (answer["lease_id"], "orders", answer["data"]["username"])
    assert [(line.event, line.lease_id, line.database, line.database_user, line.reason) for line in lines] == [
        ("login", None, None, None, None),
        ("issue", *lease, None),
        ("renew", *lease, None),
        ("end", *lease, "token revoked"),
    ]
    assert {(line.pod, line.pod_uid, line.ip) for line in lines} == {(POD.pod, POD.pod_uid, POD.ip)}
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    written = network.truth_file.read_text()
    assert str(pod.token) not in written
    assert answer["data"]["password"] not in written
    assert list(json.loads(written.splitlines()[0])) == [
        *("at", "event", "cluster", "namespace", "service_account", "pod", "pod_uid", "ip"),
        *("lease_id", "database", "database_user", "reason"),
    ]


def test_a_wrapped_credential_is_the_readers_from_when_it_is_opened(network: Network) -> None:
    wrapped = network.log_in().read(f"{MOUNT}/creds/my-role", wrap_ttl="60s")
    assert [line.event for line in network.lines()] == ["login"]
    opened = hvac.Client(url=network.vault, token=wrapped["wrap_info"]["token"]).sys.unwrap()
    issued = network.lines()[-1]
    assert (issued.event, issued.lease_id, issued.pod) == ("issue", opened["lease_id"], POD.pod)
    assert issued.database_user == opened["data"]["username"]


def test_the_leases_of_a_child_end_with_its_parent(network: Network) -> None:
    read_credentials(network.log_in())
    parent = network.log_in()
    child = hvac.Client(url=network.vault, token=parent.auth.token.create(ttl="60s")["auth"]["client_token"])
    lease_id = read_credentials(child)["lease_id"]
    parent.auth.token.revoke_self()
    last = network.lines()[-1]
    assert (last.event, last.lease_id, last.reason) == ("end", lease_id, "token revoked")
    with pytest.raises(hvac.exceptions.Forbidden):
        read_credentials(child)


def test_what_may_have_run_out_by_itself_gets_no_end(tmp_path: Path) -> None:
    kept = book.Book(tmp_path / "truth.ndjson")
    for lease_id, seconds in (("running-out", 1.0), ("live", 60.0)):
        kept.issue(POD, lease_id, "orders", "user", b"token", seconds)
        kept.end(lease_id, book.REVOKED, deed="by path")
        kept.end(lease_id, book.REVOKED, deed="by path")
    ends = [line for line in truth.read(tmp_path / "truth.ndjson") if line.event == "end"]
    assert [(line.lease_id, line.reason) for line in ends] == [("live", "revoked in Vault")]


def test_what_openbao_refuses_is_passed_on_and_not_recorded(network: Network) -> None:
    stranger = hvac.Client(url=network.vault, token="s.not-a-token")
    with pytest.raises(hvac.exceptions.Forbidden):
        read_credentials(stranger)
    with pytest.raises(hvac.exceptions.InvalidRequest):
        stranger.auth.approle.login("no-such-role", mount_point=MOUNT)
    assert network.lines() == []


def test_revoking_a_lease_really_drops_the_database_user(network: Network, postgres: Postgres) -> None:
    answer = read_credentials(network.log_in())
    user = answer["data"]["username"]
    assert has_role(postgres, user)
    network.client.adapter.put(f"/v1/sys/leases/revoke/{answer['lease_id']}", json={"sync": True})
    assert not has_role(postgres, user)


# -- the pod's client ----------------------------------------------------------------------------------------


class RunningClient(NamedTuple):
    """demo.client in a thread, directly in front of the server."""

    file: Path
    truth_file: Path
    postgres: Postgres

    def give(self, user: str, lease_id: str) -> None:
        """What the agent's template would render."""
        password = conninfo_to_dict(self.postgres.dsn(user))["password"]
        self.file.with_suffix(".new").write_text(f"username={user}\npassword={password}\nlease_id={lease_id}\n")
        self.file.with_suffix(".new").replace(self.file)

    def events(self) -> list[tuple[str, str | None, str | None]]:
        """Event, lease id and reason of each line."""
        return [(line.event, line.lease_id, line.reason) for line in truth.read(self.truth_file)]

    def wait_for(self, *last: tuple[str, str | None, str | None]) -> None:
        """Until the newest lines are these."""
        wait_until(lambda: self.events()[-len(last) :] == list(last), "these lines")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    processes.wait_until(condition, what=what, seconds=15)


@pytest.fixture
def running_client(postgres: Postgres, tmp_path: Path) -> Iterator[RunningClient]:
    for user in ("demo-user-1", "demo-user-2"):
        postgres.create_role(user)
    file, truth_file, stop = tmp_path / "db-creds", tmp_path / "truth.ndjson", threading.Event()
    place = client.Place("127.0.0.1", postgres.port, "postgres", "SELECT 1", 0.2)
    thread = threading.Thread(
        target=client.run, kwargs={"file": file, "place": place, "pod": POD, "truth_file": truth_file, "stop": stop}
    )
    thread.start()
    yield RunningClient(file, truth_file, postgres)
    stop.set()
    thread.join()


def test_the_client_reconnects_when_its_credentials_change(running_client: RunningClient) -> None:
    running_client.give("demo-user-1", "lease-1")
    running_client.wait_for(("connect", "lease-1", None))
    running_client.give("demo-user-2", "lease-2")
    running_client.wait_for(("disconnect", "lease-1", "new credentials"), ("connect", "lease-2", None))


def test_the_client_says_that_it_was_cut_off_and_tries_again(running_client: RunningClient) -> None:
    running_client.give("demo-user-1", "lease-1")
    running_client.wait_for(("connect", "lease-1", None))
    with psycopg.connect(running_client.postgres.dsn()) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'demo-user-1'")
    running_client.wait_for(("disconnect", "lease-1", "connection lost"), ("connect", "lease-1", None))


def test_the_client_waits_for_new_credentials_when_the_old_ones_fail(running_client: RunningClient) -> None:
    with psycopg.connect(running_client.postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier("demo-user-1")))
    running_client.give("demo-user-1", "lease-1")
    time.sleep(1)
    running_client.give("demo-user-2", "lease-2")
    running_client.wait_for(("connect", "lease-2", None))
    assert not any(lease_id == "lease-1" for _, lease_id, _ in running_client.events())


# -- supervision and crashes ---------------------------------------------------------------------------------


def test_a_part_that_dies_is_named_with_its_log_and_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    log = tmp_path / "part.log"

    def start() -> subprocess.Popen[bytes]:
        script = f"echo starts; [ -e {tmp_path}/second ] && exec sleep 60; touch {tmp_path}/second; echo broken; exit 3"
        return processes.spawn(["sh", "-c", script], log=log)

    child = Child("the part", log, start)
    supervisor.begin(child)

    def runs_again() -> bool:
        supervisor.look()
        return any("runs again" in line for line in said)

    try:
        wait_until(runs_again, "the second start")
    finally:
        supervisor.stop()
    assert said[0].startswith("the part ended with code 3; starting it again in 1 s.")
    assert "broken" in said[0]
    assert child.process is not None
    assert child.process.poll() is not None


def test_a_start_ends_what_a_crashed_run_left_and_empties_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    # a run that dies without stopping anything: a child in a session of its own, and that one's child
    script = """
import os, signal, subprocess, sys
from pathlib import Path
from demo import state
folder = Path(sys.argv[1])
state.lock(folder)
os.environ[state.MARK] = state.begin_afresh(folder)
(folder / "old").mkdir()
left = subprocess.Popen(["sh", "-c", "setsid sleep 300 & exec sleep 300"], start_new_session=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(left.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    crashed = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=state.ROOT, capture_output=True, text=True, check=False
    )
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    wait_until(lambda: len(state.leftovers(folder)) == 2, "both leftovers")
    left = state.leftovers(folder)
    assert int(crashed.stdout) in {one.pid for one in left}
    os.close(state.lock(folder))
    state.begin_afresh(folder)
    assert not any(one.alive for one in left)
    assert [entry.name for entry in folder.iterdir()] == ["mark"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_process_that_only_got_the_number_of_an_old_one_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(_Sleeping()) as other:
        birth = {"pid": other.process.pid, "parent": 1, "birth": "another-boot/1"}
        (tmp_path / "server.log.pid").write_text(json.dumps(birth))
        (tmp_path / "mark").write_text("0123456789abcdef")
        state.end_leftovers(tmp_path)
        assert other.process.poll() is None


class _Sleeping:
    """A process that has nothing to do with a demo."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "300"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    lock = state.lock(tmp_path)
    try:
        with pytest.raises(state.Busy):
            state.lock(tmp_path)
        run = subprocess.run(
            [sys.executable, "-m", "demo", "up"],
            cwd=state.ROOT,
            env={**os.environ, "DEMO_STATE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(lock)
    assert run.returncode == 1
    assert "A demo already runs here" in run.stderr


def test_a_taken_port_is_said_with_the_way_to_choose_another(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "demo", "run"],
            cwd=state.ROOT,
            env={**os.environ, "DEMO_STATE": str(tmp_path / "state"), "PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 1
    assert f"Port {port} is in use by another program." in run.stderr
    assert "PORT=" in run.stderr


def test_chosen_ports_are_free_and_different(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setenv("PORT", str(processes.free_port()))
        chosen = ports.choose()
    numbers = [getattr(chosen, name) for name in chosen.__slots__]
    assert len(set(numbers)) == len(numbers)
    assert taken not in numbers
