"""A real log shipper, Debian's syslog-ng on deploy/shippers/syslog-ng.conf, sends a real audit file to a real push process."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from audit import push
from audit.blocks import lines_of, verify
from audit.models import Event, RawBlock, Sighting, Stream
from demo import processes
from tests import factories, pushing
from tests.pushing import Push, ids, requests

CONFIGURATION = pushing.ROOT / "deploy" / "shippers" / "syslog-ng.conf"
# Debian puts it where an ordinary user's PATH does not look
SYSLOG_NG = shutil.which("syslog-ng", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
HTTP_MODULE = any(Path("/usr/lib").glob("**/syslog-ng/*/libhttp.so"))

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.skipif(
        SYSLOG_NG is None or not HTTP_MODULE,
        reason="syslog-ng is not installed: apt-get install syslog-ng-core syslog-ng-mod-http",
    ),
]


class Node:
    """What a node writes: an audit file that it is rotated away from now and then."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "audit.log"
        self.written: list[str] = []
        self._rotations = 0

    def write(self, lines: list[str]) -> None:
        with self.path.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        self.written += lines

    def rotate(self) -> None:
        """By rename, as logrotate does; the next line begins a new file."""
        self._rotations += 1
        self.path.rename(self.path.with_name(f"audit.log.{self._rotations}"))


def ship(folder: Path, node: Node, address: str, token: str) -> "Popen[bytes]":
    """Starts syslog-ng with everything that it keeps in `folder`."""
    (folder / "buffer").mkdir(exist_ok=True)
    return processes.spawn(
        [
            *(str(SYSLOG_NG), "--foreground", "--no-caps", f"--cfgfile={CONFIGURATION}"),
            *(f"--persist-file={folder}/persist", f"--control={folder}/control", f"--pidfile={folder}/syslog-ng.pid"),
        ],
        log=folder / "syslog-ng.log",
        env={
            "PATH": os.environ["PATH"],
            "AUDIT_FILE": str(node.path),
            "BUFFER_FOLDER": str(folder / "buffer"),
            "LEASEHOLD_PUSH_ADDRESS": address,
            "LEASEHOLD_PUSH_TOKEN": token,
        },
        cwd=folder,
    )


def long_request(size: int) -> list[str]:
    """A request whose response line has `size` bytes, as a LIST of many leases."""
    request, response = (json.loads(line) for line in requests(1))
    response["response"] = {"data": {"keys": ["NvKsW0dV9tq1hLkR3bXzYcQe"] * (size // 28)}}
    return [json.dumps(request), json.dumps(response)]


def wait_for(condition: Callable[[], bool], folder: Path, what: str, seconds: float = 90) -> None:
    processes.wait_until(condition, what=what, seconds=seconds, log=folder / "syslog-ng.log")


@pytest.mark.timeout(300)
def test_a_shipper_loses_nothing_and_brings_nothing_twice(tmp_path: Path) -> None:
    stream = factories.stream(path="", pushed=True)
    token = push.new_token()
    push.set_token(stream, token)
    node = Node(tmp_path)
    node.write(requests(200))
    server = pushing.start(tmp_path)
    shipper = ship(tmp_path, node, f"http://127.0.0.1:{server.port}{push.address(stream)}", token)
    try:
        wait_for(lambda: Event.objects.count() >= 200, tmp_path, "the first requests")
        stop = threading.Event()
        writer = threading.Thread(target=keep_writing, args=(node, stop))
        writer.start()
        for _ in range(2):
            seen = Event.objects.count()
            wait_for(lambda seen=seen: Event.objects.count() > seen, tmp_path, "more requests")  # type: ignore[misc]
            kill(server)
            time.sleep(1)
            server = pushing.start(tmp_path, port=server.port)
        stop.set()
        writer.join()
        node.write(long_request(1024 * 1024) + long_request(15 * 1024 * 1024) + requests(10))
        expected = ids(node.written)
        wait_for(lambda: Event.objects.count() >= len(expected), tmp_path, f"all {len(expected)} requests")
        # the shipper is killed and starts again: it knows how far it was, and sends again what it does not
        processes.kill(shipper)
        node.write(requests(5))
        shipper = ship(tmp_path, node, f"http://127.0.0.1:{server.port}{push.address(stream)}", token)
        expected = ids(node.written)
        wait_for(lambda: Event.objects.count() >= len(expected), tmp_path, "the last requests")
    finally:
        processes.stop(shipper)
        processes.stop(server.process)
    stream = Stream.objects.get()
    assert factories.request_ids() == expected
    assert Event.objects.count() == Sighting.objects.count() == len(expected)
    assert not Event.objects.filter(has_request=False).exists()
    assert not Event.objects.filter(response_at=None).exists()
    assert (stream.rejected, stream.refused) == (0, "")
    assert stream.lines - stream.duplicates == len(node.written)
    assert set(raw_lines()) == set(node.written), "each line is stored just as the node wrote it"
    assert verify(stream).broken is None
    assert token not in (tmp_path / "push.log").read_text() + (tmp_path / "syslog-ng.log").read_text()


def keep_writing(node: Node, stop: threading.Event) -> None:
    rounds = 0
    while not stop.wait(0.1):
        node.write(requests(40))
        rounds += 1
        if rounds % 25 == 0:
            node.rotate()


def kill(server: Push) -> None:
    """Like a machine that goes away: the whole process group, with requests in the middle."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def raw_lines() -> Counter[str]:
    found: Counter[str] = Counter()
    for block in RawBlock.objects.order_by("sequence"):
        found.update((lines_of(block) or b"").decode().splitlines())
    return found


@pytest.mark.timeout(120)
def test_a_shipper_with_a_wrong_token_keeps_its_lines_until_it_is_right(tmp_path: Path) -> None:
    stream = factories.stream(path="", pushed=True)
    node = Node(tmp_path)
    node.write(requests(20))
    server = pushing.start(tmp_path)
    shipper = ship(tmp_path, node, f"http://127.0.0.1:{server.port}{push.address(stream)}", "x" * 40)
    try:
        wait_for(lambda: "wrong token for" in server.log.read_text(), tmp_path, "a refusal")
        push.set_token(stream, "x" * 40)
        wait_for(lambda: Event.objects.count() >= 20, tmp_path, "the requests")
    finally:
        processes.stop(shipper)
        processes.stop(server.process)
    assert factories.request_ids() == ids(node.written)
