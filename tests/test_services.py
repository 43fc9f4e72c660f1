"""The servers of demo/: they start, come back after a crash, and leave nothing behind."""

import json
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest
import redis

from demo import openbao as openbao_server
from demo import postgres as postgres_server
from demo import processes
from demo import valkey as valkey_server
from demo.openbao import OpenBao
from demo.postgres import Postgres
from demo.valkey import Valkey

_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(run_folder: Path) -> Path:
    """Below a folder that only its owner may enter, with a space in its name."""
    assert stat.S_IMODE(run_folder.stat().st_mode) == 0o700
    return run_folder / "a folder of servers"


def _runs(pid: int) -> bool:
    return processes._birth(pid) is not None


def test_postgresql_keeps_its_data_over_stop_and_crash(folder: Path) -> None:
    server = postgres_server.start(folder / "postgres")
    server.create_role("someone", "CREATEDB")
    server.create_role("someone")
    server.create_database("orders", owner="someone")
    server.create_database("orders", owner="someone")
    with psycopg.connect(server.dsn("someone", "orders")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS it")
    server.kill()
    server.restart()
    server.stop()
    server = postgres_server.start(folder / "postgres")
    with psycopg.connect(server.dsn("someone", "orders")) as connection:
        assert connection.execute("SELECT it FROM kept").fetchone() == (1,)
    server.stop()
    server.stop()
    assert server.process.returncode == 0


def test_postgresql_is_the_packages_version_18_and_logs_connections_without_passwords(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn()) as connection:
        assert connection.info.server_version // 10000 == 18
    assert "connection authorized: user=postgres" in postgres.log.read_text()
    assert postgres.dsn().split(":")[2].split("@")[0] not in postgres.log.read_text()


def test_postgresql_asks_clients_of_each_loopback_address_for_a_password(postgres: Postgres) -> None:
    options = b"user\0postgres\0database\0postgres\0\0"
    message = struct.pack("!ii", 8 + len(options), 196608) + options  # start-up of protocol 3.0
    for address in ("127.0.0.1", "127.9.8.7"):
        with socket.create_connection(("127.0.0.1", postgres.port), 5, source_address=(address, 0)) as client:
            client.sendall(message)
            answer = client.recv(64)
        assert answer[:1] == b"R"
        assert b"SCRAM-SHA-256" in answer
        assert f"host={address} " in postgres.log.read_text()


def test_secrets_stand_in_files_that_only_their_owner_reads(
    postgres: Postgres, valkey: Valkey, openbao: OpenBao
) -> None:
    secret_files = [
        postgres.folder / "passwords.json",
        valkey.folder / "password",
        valkey.folder / "valkey.conf",
        openbao.folder / "keys.json",
    ]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret_files] == [0o600] * 4
    assert not (postgres.folder / ".initial").exists()


def test_valkey_wants_its_password_and_starts_again_after_a_crash(folder: Path) -> None:
    server = valkey_server.start(folder / "valkey")
    with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    server.kill()
    again = valkey_server.start(folder / "valkey", port=server.port)
    assert again.url == server.url
    with redis.Redis.from_url(again.url) as client:
        assert client.ping()
    again.stop()


def test_openbao_comes_back_after_a_crash_with_the_same_keys(folder: Path) -> None:
    server = openbao_server.start(folder / "openbao")
    port = int(server.address.rpartition(":")[2])
    openbao_server._call(
        server.address,
        "PUT",
        "sys/policies/acl/kept",
        {"policy": 'path "x" { capabilities = ["read"] }'},
        token=server.root_token,
    )
    server.kill()
    again = openbao_server.start(folder / "openbao", port=port)
    assert (again.root_token, again.unseal_key) == (server.root_token, server.unseal_key)
    kept = openbao_server._call(again.address, "GET", "sys/policies/acl/kept", token=again.root_token)
    assert "read" in kept["data"]["policy"]
    for log in again.audit_logs.values():
        assert "sys/policies/acl/kept" in log.read_text()
    again.seal()
    assert openbao_server._health(again.address) == 503
    again.unseal()
    assert openbao_server._health(again.address) == 200
    again.stop()
    assert not processes.accepts(port)


def test_an_interrupted_first_start_does_not_spoil_the_next(folder: Path) -> None:
    for name in ("data", "raft"):
        (folder / "half" / name).mkdir(parents=True)
        (folder / "half" / name / "rubbish").write_text("x")
    postgres_server.start(folder / "half").stop()
    openbao_server.start(folder / "half").stop()


def test_when_the_parent_is_killed_every_server_ends_and_the_next_start_works(folder: Path) -> None:
    script = textwrap.dedent(
        """
        import json, os, signal, sys
        from pathlib import Path
        from demo import openbao, postgres, valkey
        folder = Path(sys.argv[1])
        servers = [postgres.start(folder / "p"), valkey.start(folder / "v"), openbao.start(folder / "o")]
        print(json.dumps([server.process.pid for server in servers]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    crashed = subprocess.run(
        [sys.executable, "-c", script, str(folder / "crashed")], cwd=_ROOT, capture_output=True, timeout=60
    )
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr.decode()
    # at once: the servers may be on their way out still
    servers: list[Postgres | Valkey | OpenBao] = [
        postgres_server.start(folder / "crashed" / "p"),
        valkey_server.start(folder / "crashed" / "v"),
        openbao_server.start(folder / "crashed" / "o"),
    ]
    pids = json.loads(crashed.stdout)
    processes.wait_until(lambda: not any(map(_runs, pids)), what="end of the crashed servers", seconds=10)
    for server in servers:
        server.stop()


def test_the_same_thing_started_twice_is_told(folder: Path) -> None:
    log = folder / "sleep.log"
    first = processes.spawn(["sleep", "60"], log=log)
    with pytest.raises(processes.AlreadyRunning, match=f"process {first.pid} "):
        processes.spawn(["sleep", "60"], log=log)
    processes.stop(first)
    processes.stop(processes.spawn(["sleep", "60"], log=log))


def test_what_does_not_stop_is_killed_with_all_its_children(folder: Path) -> None:
    log = folder / "stubborn.log"
    stubborn = processes.spawn(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; while :; do wait; done"], log=log)
    processes.wait_until(lambda: log.read_text().endswith("\n"), what="its child", seconds=5, log=log)
    child = int(log.read_text())
    processes.stop(stubborn, seconds=0.2)
    assert stubborn.returncode == -signal.SIGKILL
    processes.wait_until(lambda: not _runs(child), what="end of its child", seconds=5)


def test_what_does_not_come_up_is_told_with_the_end_of_its_log(folder: Path) -> None:
    log = folder / "failing.log"
    failing = processes.spawn(["sh", "-c", "echo the disk is full; exit 3"], log=log)
    with pytest.raises(processes.NotReady, match=r"(?s)the thing: the process ended with code 3.*the disk is full"):
        processes.wait_until(lambda: False, what="the thing", seconds=5, log=log, process=failing)
    with pytest.raises(processes.NotReady, match="the thing: not after 0 s"):
        processes.wait_until(lambda: False, what="the thing", seconds=0)


def test_a_run_of_the_tests_leaves_no_process_and_no_folder() -> None:
    """A run of pytest inside this one: its servers and its folder are gone afterwards."""
    (_ROOT / ".test").mkdir(exist_ok=True)
    stale = _ROOT / ".test" / "4194305"  # above any process id that Linux gives
    stale.mkdir(exist_ok=True)
    script = textwrap.dedent(
        """
        import os, sys
        import pytest
        print("run", os.getpid(), flush=True)
        sys.exit(pytest.main(sys.argv[1:]))
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "tests/contract/test_postgresql.py", "-q", "-p", "no:cacheprovider"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert not stale.exists()
    folder = _ROOT / ".test" / run.stdout.split()[1]
    assert not folder.exists()
    assert not [line for line in _command_lines() if str(folder) in line]


def _command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return lines
