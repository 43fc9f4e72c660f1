"""Against a real server: what anybody can write into its audit log without a login stops no stream, hides no request and leaves no
secret; and a device that writes raw values is refused."""

import http.client
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from audit import follow
from audit.batch import Counts
from audit.ingest import ingest
from audit.management.commands.ingest import stream_named
from audit.models import Event, RawBlock, RejectedLine, Sighting, Stream
from audit.secrets import SECRET_KEYS, RawSecret
from demo import openbao as openbao_server
from demo.kube import Cluster
from demo.openbao import OpenBao
from demo.postgres import Postgres
from tests.test_batch import assert_hidden, everything
from tests.world import World, build

pytestmark = pytest.mark.django_db

LOGINS = ["auth/kubernetes/login", "auth/jwt/login"]
TOKEN = "hvs." + "CAESIJ" * 8
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0x.c2lnbmF0dXJlLTEyMw"
# what Go's time.UnmarshalText takes, and what it nearly takes
TIMES = [
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00,5Z",
    "2026-01-01t00:00:00z",
    "2026-01-01T24:00:00Z",
    "2026-01-01T23:59:60Z",
    "2026-01-01T0:00:00Z",
    "2026-01-01T00:00:00.123456789123+01:00",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00-00:00",
    "2026-01-01 00:00:00Z",
    "2026-01-01T00:00:00." + "1" * 200 + "Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "20260101T000000Z",
    "2026-01-01",
]
VALUES: list[Any] = [
    "hunter2",
    "",
    123456,
    -1.5e300,
    True,
    None,
    ["hunter2", ["hunter3"], {"token": "hunter4", "x": [5]}],
    {"password": {"jwt": "hunter2"}, "role": ["x"], "hvs": 1},
    [[[1]], "x", {"otp": 99}],
    "hmac-sha256:not",
    "a" * 1_000_000,
    '☃\U0001f512\u2028\x7f\x00\x1f"\\/<>&',
    '{"time":"2026-01-01T00:00:00Z","type":"request"}\n{"time":"',
]
KEYS = [
    TOKEN,
    JWT,
    'x"token',
    'a\\"password":"q',
    '"jwt":"hunter2',
    "new\nline",
    "\x00\u2028<>&",
    "\ud800",
    "error converting input hunter2 for field ",
    '{"time":"',
    "",
    "eyJ" * 100_000,
]


def send(
    openbao: OpenBao, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One request; a body that is text is sent as it is."""
    connection = http.client.HTTPConnection(openbao.address.removeprefix("http://"), timeout=30)
    text = body if isinstance(body, str | None) else json.dumps(body)
    connection.request(method, f"/v1/{path}", text, headers or {})
    answer = connection.getresponse()
    result = answer.status, answer.read()
    connection.close()
    return result


class Log:
    """One device's file from here on, as its stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = stream_named("hostile", path.name, "n")
        self.position = follow.read(path, follow.Position(offset=path.stat().st_size)).position

    def lines(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.position.offset)
            return file.read().splitlines()

    def take(self) -> Counts:
        """Ingests what is new: none of it may be lost."""
        lines, counts = self.lines(), Counts()
        position = self.position
        while (chunk := follow.read(self.path, position)).lines:
            counts.add(ingest(self.stream.pk, chunk, expected=None, now=timezone.now()))
            position = chunk.position
        assert counts.adds_up
        assert (counts.lines, counts.rejected, counts.conflicts) == (len(lines), 0, 0), RejectedLine.objects.values()
        assert counts.parts + counts.duplicates == len(lines)
        # no json.loads: some are nested deeper than it goes
        sent = {
            match[1].decode() for line in lines if (match := re.search(rb'"request":\{"id":"([0-9a-f-]{36})"', line))
        }
        assert sent == {event.request_id for event in Event.objects.all()}
        self.stream.refresh_from_db()
        assert self.stream.refused == ""
        return counts


@pytest.fixture(scope="module")
def world(postgres: Postgres, kubernetes_api: Cluster, run_folder: Path) -> Iterator[World]:
    """A server of its own: other tests read the shared one's log, and what is sent here is more than they can."""
    server = openbao_server.start(run_folder / "hostile")
    yield build(server, postgres, kubernetes_api, run_folder / "hostile-world")
    server.stop()


@pytest.fixture
def log(world: World) -> Log:
    return Log(world.openbao.audit_logs["file-a"])


def refused(log: Log, *secrets: str) -> None:
    """The stream is refused, and nothing of it is stored."""
    lines = b"\n".join(log.lines())
    for secret in secrets:
        assert secret.encode() in lines
    chunk = follow.read(log.path, log.position)
    with pytest.raises(RawSecret):
        ingest(log.stream.pk, chunk, expected=None, now=timezone.now())
    log.stream.refresh_from_db()
    assert "plain text" in log.stream.refused
    assert (log.stream.lines, RawBlock.objects.count(), Event.objects.count(), Sighting.objects.count()) == (0, 0, 0, 0)
    assert_hidden([secret.encode() for secret in secrets], *everything(log.stream))


@pytest.mark.parametrize("path", [*LOGINS, "sys/wrapping/unwrap", "sys/wrapping/lookup", "nowhere/at/all"])
def test_no_value_that_a_client_puts_under_a_secrets_name_stops_the_stream(world: World, log: Log, path: str) -> None:
    for value in [*VALUES, *TIMES, TIMES]:
        send(world.openbao, "POST", path, {"role": "r", **dict.fromkeys(sorted(SECRET_KEYS), value)})
    log.take()
    assert log.stream.parts >= 2 * len(VALUES)
    assert_hidden([b"123456,", b":99}"], *everything(log.stream))


@pytest.mark.parametrize("path", LOGINS)
def test_no_name_that_a_client_gives_to_a_field_stops_the_stream(world: World, log: Log, path: str) -> None:
    for key in KEYS:
        for value in ("x", 5, {key: {key: 1}}, [key], "2026-01-01T00:00:00Z"):
            send(world.openbao, "POST", path, {"role": "r", "jwt": "x", key: value})
    log.take()
    assert log.stream.redacted
    assert_hidden([TOKEN.encode(), JWT.encode()], *everything(log.stream))


def test_no_path_and_no_header_stops_the_stream(world: World, log: Log) -> None:
    bao = world.openbao
    for text in (
        TOKEN,
        JWT,
        f"a/{TOKEN}/b/{JWT}",
        "%22token%22:%22hunter2%22",
        "%5c%22jwt%5c%22",
        "%ff%fe%ed%a0%80",
        "%e2%80%a8%f0%9f%94%92",
        "%7b%22time%22:%222026-01-01T00:00:00Z%22",
        "x" * 20_000,
        "%2522" * 500,
    ):
        for method in ("GET", "POST", "LIST", "DELETE"):
            send(bao, method, f"nowhere/{text}", {} if method == "POST" else None)
        send(bao, "GET", f"sys/mounts/{text}")
        send(bao, "GET", f"auth/kubernetes/{text}")
    for headers in (
        {"X-Vault-Token": TOKEN},
        {"X-Vault-Token": "hunter2"},
        {"Authorization": f"Bearer {JWT}"},
        {"X-Vault-Namespace": TOKEN},
        {"X-Vault-Namespace": "../../root"},
        {"X-Vault-Request": "no"},
        {"X-Vault-Wrap-TTL": "999h"},
        {"X-Vault-MFA": "a:hunter2"},
        {"X-Forwarded-For": "hunter2, 10.0.0.1"},
    ):
        send(bao, "POST", LOGINS[0], {"role": "r", "jwt": "x"}, headers)
        send(bao, "GET", "sys/mounts", headers=headers)
    log.take()
    assert log.stream.redacted
    assert_hidden([TOKEN.encode(), JWT.encode()], *everything(log.stream))


@pytest.mark.parametrize(
    "body",
    [
        '{"jwt":"hunter2',
        '{"jwt":"a","jwt":"2026-01-01T00:00:00Z","role":"r"}',
        '{"role":"r","jwt":"x","d":' + "[" * 9000 + "]" * 9000 + "}",
        '{"role":"r","jwt":"x","d":' + '{"token":' * 4000 + '"hunter2"' + "}" * 4000 + "}",
        '{"role":"r","jwt":"x","d":' + '[{"password":' * 400 + "77" + "}]" * 400 + "}",
        '{"role":"r","jwt":"x","n":' + "1" * 300 + "}",
        '{"x":{"time":"2026-01-01T00:00:00Z","type":"request","request":{"id":"q"}},"role":"r","jwt":"y"}',
    ],
)
def test_no_body_stops_the_stream_or_hides_its_request(world: World, log: Log, body: str) -> None:
    send(world.openbao, "POST", LOGINS[0], body)
    send(world.openbao, "POST", LOGINS[0], {"role": "r", "jwt": "after"})
    assert log.take().parts >= 2


def test_headers_that_are_logged_in_plain_text_stop_no_stream_whatever_their_names(world: World, log: Log) -> None:
    names = ["token", "password", "jwt", "user-agent", "x-pod-name"]
    for name in names:
        world.admin.adapter.post(f"/v1/sys/config/auditing/request-headers/{name}", json={"hmac": False})
    try:
        send(world.openbao, "POST", LOGINS[0], {"role": "r", "jwt": "x"}, dict.fromkeys(names, "hunter2"))
        send(world.openbao, "POST", LOGINS[0], {"role": "r", "jwt": "x"}, dict.fromkeys(names, TOKEN))
        send(world.openbao, "POST", LOGINS[0], {"role": "r", "jwt": "x"}, dict.fromkeys(names, 'a"b\\c, "token":"d"'))
    finally:
        for name in names:
            world.admin.adapter.delete(f"/v1/sys/config/auditing/request-headers/{name}")
    assert b'"token":["hunter2"]' in b"".join(log.lines())
    log.take()
    kept = everything(log.stream)
    assert_hidden([TOKEN.encode(), b'"token":["hunter2"]', b'"password":["hunter2"]'], *kept)
    assert any(b'"x-pod-name":["hunter2"]' in text for text in kept)


def test_a_field_that_is_tuned_out_of_hashing_stops_no_stream_unless_a_secret_sits_in_it(
    world: World, log: Log
) -> None:
    world.admin.adapter.post("/v1/sys/auth/kubernetes/tune", json={"audit_non_hmac_request_keys": ["role"]})
    try:
        # a client chooses what is nested in what
        send(world.openbao, "POST", LOGINS[0], {"jwt": {"role": "r"}, "password": [{"role": ["r"]}], "role": "shop"})
    finally:
        world.admin.adapter.post("/v1/sys/auth/kubernetes/tune", json={"audit_non_hmac_request_keys": []})
    assert b'"jwt":{"role":"r"}' in b"".join(log.lines())
    log.take()


def test_a_mount_that_is_tuned_to_log_its_log_ins_in_plain_text_refuses_the_stream(world: World, log: Log) -> None:
    world.admin.adapter.post("/v1/sys/auth/kubernetes/tune", json={"audit_non_hmac_request_keys": ["jwt"]})
    try:
        send(world.openbao, "POST", LOGINS[0], {"jwt": "hunter2-raw", "role": "r"})
    finally:
        world.admin.adapter.post("/v1/sys/auth/kubernetes/tune", json={"audit_non_hmac_request_keys": []})
    refused(log, "hunter2-raw")


def test_a_mount_that_is_tuned_to_log_its_passwords_in_plain_text_refuses_the_stream(world: World, log: Log) -> None:
    world.admin.adapter.post("/v1/sys/mounts/database/tune", json={"audit_non_hmac_response_keys": ["password"]})
    try:
        pod = world.pod("storefront")
        pod.log_in()
        password = pod.read_credentials()["data"]["password"]
    finally:
        world.admin.adapter.post("/v1/sys/mounts/database/tune", json={"audit_non_hmac_response_keys": []})
    refused(log, password, pod.token) if pod.token in log.path.read_text() else refused(log, password)


@contextmanager
def device(openbao: OpenBao, name: str, path: Path, **options: str) -> Iterator[Path]:
    """One more file device, as long as this lasts."""
    options["file_path"] = str(path)
    if openbao_server.binary() != openbao_server.packaged():
        from hvac import Client

        client = Client(url=openbao.address, token=openbao.root_token)
        client.sys.enable_audit_device("file", options=options, path=name)
        yield path
        client.sys.disable_audit_device(name)
        return
    config = openbao.folder / "server.hcl"
    before = config.read_text()
    pairs = ", ".join(f'{key} = "{value}"' for key, value in options.items())
    config.write_text(f'{before}audit "file" "{name}" {{ options {{ {pairs} }} }}\n')
    openbao.process.send_signal(signal.SIGHUP)
    _until(openbao, name, there=True)
    yield path
    config.write_text(before)
    openbao.process.send_signal(signal.SIGHUP)
    _until(openbao, name, there=False)


def _until(openbao: OpenBao, name: str, *, there: bool) -> None:
    for _ in range(100):
        _, text = send(openbao, "GET", "sys/audit", headers={"X-Vault-Token": openbao.root_token})
        if (f"{name}/" in json.loads(text)["data"]) == there:
            return
        time.sleep(0.1)
    raise AssertionError(f"device {name}: {there}")


def test_a_device_that_writes_raw_values_refuses_its_stream_and_no_other(
    world: World, log: Log, tmp_path: Path
) -> None:
    with device(world.openbao, "raw", tmp_path / "raw.log", log_raw="true") as path:
        raw = Log(path)
        pod = world.pod("storefront")
        pod.log_in()
        password = pod.read_credentials()["data"]["password"]
    refused(raw, password, pod.token)
    log.take()


def test_the_first_raw_line_alone_refuses_a_stream(world: World, tmp_path: Path) -> None:
    with device(world.openbao, "raw", tmp_path / "raw.log", log_raw="true") as path:
        raw = Log(path)
        send(world.openbao, "POST", LOGINS[0], {"jwt": "hunter2-raw", "role": "r"})
    refused(raw, "hunter2-raw")


def test_two_devices_on_one_path_tell_each_event_once(world: World, log: Log) -> None:
    with device(world.openbao, "same", log.path):
        pod = world.pod("storefront")
        pod.log_in()
        lease_id = pod.read_credentials()["lease_id"]
        pod.renew(lease_id)
    ids = [json.loads(line)["request"]["id"] for line in log.lines() if lease_id.encode() in line]
    assert len(ids) == 4
    counts = log.take()
    assert counts.duplicates >= 6
    event = Event.objects.get(lease_name__text=lease_id, kind=2)
    assert (event.has_request, event.response_at is not None) == (True, True)


def test_a_denied_read_is_worded_in_two_ways_and_told_in_one(world: World) -> None:
    log = Log(world.openbao.audit_logs["file-a"])
    send(world.openbao, "GET", "secret/data/x", headers={"X-Vault-Token": "hvs.nobodys"})
    request, response = (json.loads(line) for line in log.lines())
    assert (request["error"], response["error"]) == (
        "permission denied",
        "1 error occurred:\n\t* permission denied\n\n",
    )
    lines = log.lines()
    for number, order in enumerate([lines, lines[::-1]]):
        stream = stream_named(f"denied-{number}", "d", "n")
        for line in order:
            chunk = follow.Chunk(line + b"\n", 0, follow.Position(), 0)
            assert ingest(stream.pk, chunk, expected=None, now=timezone.now()).parts == 1
        event = Event.objects.select_related(*Event.SPELLED_OUT).get(vault=stream.device.vault)
        assert event.error == response["error"]
        assert Stream.objects.get(pk=stream.pk).conflicts == 0
