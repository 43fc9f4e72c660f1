"""One evening at a real OpenBao with two audit devices, as both wrote it: everything that the ledger knows how to read.

Its clock is set so that midnight falls between the request and the response of a credential read: days' borders are in it.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from audit import configuration, intern
from audit.follow import Chunk, Position
from audit.ingest import ingest
from audit.lines import moment
from audit.models import Stream
from demo.kube import driver
from leases.configuration import load
from leases.models import Cluster, Pod, PodAddress, Vault, WatchPeriod
from tests.world import AUDIENCE, TestPod, World

DEVICES = ("file-a", "file-b")


@dataclass(frozen=True, slots=True)
class Scene:
    """The lines of each device, the pods of the evening, and a moment after it."""

    lines: dict[str, list[bytes]]
    pods: list[TestPod]
    begin: datetime
    now: datetime
    toml: str


def play(world: World) -> Scene:
    """Lets it happen, and gives what both devices wrote."""
    before = {name: Path(path).stat().st_size for name, path in world.openbao.audit_logs.items()}
    pods = list(_happen(world))
    written = {
        name: Path(path).read_bytes()[before[name] :].splitlines(keepends=True)
        for name, path in world.openbao.audit_logs.items()
    }
    lines = {device: written[name] for device, name in zip(DEVICES, sorted(written), strict=True)}
    entries = [json.loads(line) for line in lines[DEVICES[0]]]
    # the third credential read
    read = [entry for entry in entries if entry["request"]["path"].startswith("database/creds/my-role")][4]
    pair = sorted(moment(entry["time"]) for entry in entries if entry["request"]["id"] == read["request"]["id"])
    middle = pair[0] + (pair[1] - pair[0]) / 2
    shift = middle.replace(hour=0, minute=0, second=0, microsecond=0) - middle
    moved = {device: [_moved(line, shift) for line in found] for device, found in lines.items()}
    times = [moment(json.loads(line)["time"]) for found in moved.values() for line in found]
    return Scene(
        lines=moved,
        pods=pods,
        begin=min(times) - timedelta(minutes=5),
        now=max(times) + timedelta(minutes=1),
        toml=world.toml(),
    )


def _moved(line: bytes, shift: timedelta) -> bytes:
    entry = json.loads(line)
    was = entry["time"].encode()
    return line.replace(was, f"{moment(entry['time']) + shift:%Y-%m-%dT%H:%M:%S.%fZ}".encode(), 1)


def _happen(world: World) -> Iterator[TestPod]:
    admin = world.admin
    own = _own(world)
    by_url, by_body, by_prefix, by_self, by_accessor, one_more = (world.pod("storefront") for _ in range(6))
    exact, other, forced = world.pod("invoicing"), world.pod("billing-api"), world.pod("reporting")
    for pod in (by_url, by_body, by_self, exact, other):
        pod.log_in()
    first = by_url.read_credentials()["lease_id"]
    own.call("PUT", "sys/leases/lookup", {"lease_id": first})
    second, third = by_body.read_credentials()["lease_id"], by_self.read_credentials()["lease_id"]
    by_self.read_credentials()
    for lease_id in (second, first, second, third):
        by_body.renew(lease_id)
    own.call("PUT", "sys/leases/lookup", {"lease_id": second})
    exact.renew(exact.read_credentials()["lease_id"])
    kept = other.read_credentials()["lease_id"]
    other.renew(kept)
    # what fails: without a token, not allowed, an unknown role, credentials of another
    for pod, path in (
        (TestPod(world, other.application, "", "", other.address), "database/creds/my-role"),
        (other, "database/creds/my-role"),
        (other, "secret/nothing"),
    ):
        with contextlib.suppress(AssertionError):
            pod.call("GET", path)
    with contextlib.suppress(Exception):
        admin.adapter.get("/v1/database/creds/no-such-role")
    with contextlib.suppress(AssertionError):
        other.call("POST", "auth/kubernetes/login", {"role": "no-such-role", "jwt": "no.jwt.atall"})
    admin.adapter.put(f"/v1/sys/leases/revoke/{first}", json={"sync": True})
    admin.adapter.put("/v1/sys/leases/revoke", json={"lease_id": second, "sync": True})
    by_self.call("POST", "auth/token/revoke-self")
    by_prefix.log_in()
    by_prefix.read_credentials()
    admin.adapter.put("/v1/sys/leases/revoke-prefix/database/creds/my-role", json={"sync": True})
    # the prefix was revoked before these were read
    one_more.log_in()
    one_more.read_credentials()
    accessor = _log_in(by_accessor)["accessor"]
    by_accessor.read_credentials()
    admin.adapter.post("/v1/auth/token/revoke-accessor", json={"accessor": accessor})
    forced.log_in()
    forced.read_credentials()
    admin.adapter.put(f"/v1/sys/leases/revoke-force/{forced.application.credentials_path}", json={})
    child = admin.auth.token.create(ttl="60s", meta={"service_account_name": "nobody"})["auth"]["client_token"]
    TestPod(world, other.application, "", "", other.address, child).call("POST", "auth/token/revoke-self")
    own.call("POST", "auth/token/revoke-self")
    yield from (by_url, by_body, by_prefix, by_self, by_accessor, one_more, exact, other, forced)
    yield from _tokens_of_tokens(world)
    yield from _wrapped(world)


def _tokens_of_tokens(world: World) -> Iterator[TestPod]:
    """Three parents: one revoked with child and grandchild, one that leaves an orphan, one revoked alone. And a batch token."""
    world.let_make_tokens("storefront", role="maker")
    world.let_make_tokens("storefront", role="batch", token_type="batch", token_policies=["shop-storefront"])
    parent, orphaned, alone, batch = (world.pod("storefront") for _ in range(4))
    for pod in (parent, orphaned, alone):
        pod.log_in("maker")
    child = parent.make_token(policies=["shop-storefront", "makes-tokens"], meta={"pod_name": "somebody-else"})
    child.read_credentials()
    child.call("POST", "auth/token/renew-self")
    child.make_token().read_credentials()
    orphaned.make_token("auth/token/create-orphan").read_credentials()
    orphaned.make_token(no_parent=True).read_credentials()
    alone.make_token().read_credentials()
    batch.log_in("batch")
    lease_id = batch.read_credentials()["lease_id"]
    batch.renew(lease_id)
    world.admin.adapter.post("/v1/auth/token/revoke", json={"token": parent.token})
    world.admin.adapter.post("/v1/auth/token/revoke", json={"token": orphaned.token})
    world.admin.adapter.post("/v1/auth/token/revoke-orphan", json={"token": alone.token})
    # a login that is sent with an older token, of other policies
    twice = world.pod("storefront")
    twice.log_in()
    twice.log_in("maker")
    twice.read_credentials()
    yield from (parent, orphaned, alone, batch, twice)


def _wrapped(world: World) -> Iterator[TestPod]:
    """Credentials and a token that are handed over wrapped."""
    reader, other = world.pod("storefront"), world.pod("fulfilment")
    reader.log_in("maker")
    replace(reader, token=reader.read_wrapped()).call("POST", "sys/wrapping/unwrap")
    replace(other, token=reader.read_wrapped()).call("POST", "sys/wrapping/unwrap")
    other.log_in()
    other.call("POST", "sys/wrapping/unwrap", {"token": reader.read_wrapped()})
    again = world.admin.adapter.post("/v1/sys/wrapping/rewrap", json={"token": reader.read_wrapped()})
    replace(reader, token=again["wrap_info"]["token"]).call("POST", "sys/wrapping/unwrap")
    body = {"policies": [reader.application.vault_role]}
    made = reader.call("POST", "auth/token/create", body, wrap_seconds=60)["wrap_info"]["token"]
    inside = replace(other, token=made).call("POST", "sys/wrapping/unwrap")["auth"]["client_token"]
    replace(reader, token=inside).read_credentials()
    yield from (reader, other)


def _own(world: World) -> TestPod:
    """This product's own account, as its observer logs in."""
    jwt = driver.request_token(world.api, "leasehold", "leasehold", audiences=[AUDIENCE])
    own = TestPod(world, world.pod("storefront").application, "", "", "127.0.0.1")
    own.token = own.call("POST", "auth/kubernetes/login", {"role": "leasehold-observe", "jwt": jwt})["auth"][
        "client_token"
    ]
    return own


def _log_in(pod: TestPod) -> dict[str, Any]:
    jwt = driver.request_token(
        pod.world.api,
        pod.application.namespace,
        pod.application.service_account,
        pod=pod.name,
        pod_uid=pod.uid,
        audiences=[AUDIENCE],
    )
    answer = pod.call("POST", f"auth/{pod.application.method}/login", {"role": pod.application.vault_role, "jwt": jwt})
    pod.token = answer["auth"]["client_token"]
    return dict(answer["auth"])


def prepare(scene: Scene, folder: Path) -> Vault:
    """Configured as its leasehold.toml says, every pod known, and the watch without a gap: nothing but the log is missing."""
    file = folder / "leasehold.toml"
    file.write_text(scene.toml)
    configuration.apply(load(file))
    cluster = Cluster.objects.get()
    WatchPeriod.objects.create(cluster=cluster, from_at=scene.begin, to_at=scene.now + timedelta(hours=1))
    for pod in scene.pods:
        row = Pod.objects.create(
            cluster=cluster,
            uid=pod.uid,
            namespace=pod.application.namespace,
            name=pod.name,
            service_account=pod.application.service_account,
            node="node-1",
            started_at=scene.begin,
        )
        PodAddress.objects.create(pod=row, address=pod.address, from_at=scene.begin)
    intern.forget()
    return Vault.objects.get()


def take(device: str, lines: list[bytes], *, now: datetime, at_once: int | None = None) -> None:
    """Takes these lines, so many at a time (all of them where it is None)."""
    stream = Stream.objects.get(device__name=device)
    size = at_once or max(1, len(lines))
    for begin in range(0, len(lines), size):
        text = b"".join(lines[begin : begin + size])
        offset = stream.offset
        ingest(stream.pk, Chunk(text, offset, Position(offset=offset + len(text)), 0), expected=None, now=now)
        stream.offset = offset + len(text)


def without_midnight(scene: Scene) -> Scene:
    """The same evening some hours earlier: for what may differ where two devices tell one request on both sides of a border."""
    shift = timedelta(hours=-6, minutes=-30)
    return replace(
        scene,
        lines={device: [_moved(line, shift) for line in lines] for device, lines in scene.lines.items()},
        begin=scene.begin + shift,
    )
