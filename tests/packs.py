"""A vault's log of some hours, taken in for real, and the evidence pack of it; what people do to packs; the verifier as others run it."""

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from django.core.management import call_command

from audit import partitions
from audit.follow import Chunk, Position
from audit.ingest import ingest
from audit.models import Stream
from audit.pack import verifier
from audit.pack.write import Made, make
from leases.models import AuthMount, DatabaseRole, Policy, WatchPeriod
from tests import factories

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOURS = 3
END = START + HOURS * HOUR
# of each hour
MINUTES = (5, 20, 35, 50)
DEVICES = ("file-a", "file-b")
CLAIMS = {
    "namespace": "service_account_namespace",
    "service_account": "service_account_name",
    "pod": "pod_name",
    "pod_uid": "pod_uid",
}

Files = list[tuple[str, bytes]]


def watched() -> list[Stream]:
    """A vault with two devices whose log was read from an hour before START to an hour after END, without a fault."""
    partitions.make_for([START.date()])
    vault = factories.vault()
    cluster = factories.cluster()
    AuthMount.objects.create(vault=vault, path="jwt", cluster=cluster, claims=CLAIMS)
    DatabaseRole.objects.create(vault=vault, mount="database", name="orders-rw", database=factories.database("orders"))
    WatchPeriod.objects.create(cluster=cluster, from_at=START - HOUR, to_at=END + HOUR)
    streams = [factories.stream(device) for device in DEVICES]
    first, second = streams
    hours = [START + hour * HOUR for hour in range(-1, HOURS + 1)]
    # a block for each hour, and one for all of them
    for hour in hours:
        take(first, b"".join(hour_of_lines(hour, first.device.name)), now=hour + HOUR)
    take(second, b"".join(line for hour in hours for line in hour_of_lines(hour, second.device.name)), now=END + HOUR)
    Stream.objects.update(read_at=END + HOUR, unread_bytes=0)
    return streams


def take(stream: Stream, lines: bytes, *, now: datetime) -> None:
    offset = Stream.objects.get(pk=stream.pk).offset
    ingest(stream.pk, Chunk(lines, offset, Position(offset=offset + len(lines)), 0), expected=None, now=now)


def hour_of_lines(at: datetime, device: str) -> Iterator[bytes]:
    for minute in MINUTES:
        yield from access(at + timedelta(minutes=minute), device)


def access(at: datetime, device: str, *, account: str = "web", address: str = "10.1.2.3") -> Iterator[bytes]:
    """A pod logs in and reads credentials, as one device tells of it."""
    name = f"{at:%H%M}"
    token = hmac(device, f"token {name}")
    metadata = {
        "service_account_name": account,
        "service_account_namespace": "shop",
        "pod_name": f"{account}-{name}",
        "pod_uid": f"uid-{name}",
    }
    auth = {"client_token": token, "accessor": token, "metadata": metadata, "display_name": f"jwt-shop-{account}"}
    login = {
        "id": f"login-{name}",
        "operation": "update",
        "path": "auth/jwt/login",
        "mount_point": "auth/jwt/",
        "mount_type": "jwt",
    }
    read = {
        "id": f"read-{name}",
        "operation": "read",
        "path": "database/creds/orders-rw",
        "mount_point": "database/",
        "mount_type": "database",
        "client_token": token,
        "client_token_accessor": token,
    }
    secret = {
        "secret": {"lease_id": f"database/creds/orders-rw/{name}"},
        "data": {"username": hmac(device, name), "password": hmac(device, "pw")},
    }
    for seconds, request, before, response in ((0, login, {}, {"auth": auth}), (1, read, auth, secret)):
        asked = request | {"remote_address": address}
        for kind, more in (("request", {}), ("response", {"response": response})):
            time = (at + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
            yield json.dumps({"time": time, "type": kind, "auth": before, "request": asked, **more}).encode() + b"\n"


def hmac(device: str, text: str) -> str:
    return "hmac-sha256:" + hashlib.sha256(f"{device} {text}".encode()).hexdigest()


def signing_key(folder: Path, name: str = "key") -> str:
    """A new key, configured as the one that signs. Returns its fingerprint."""
    said = io.StringIO()
    call_command("make_signing_key", str(folder / name), stdout=said, stderr=io.StringIO())
    Policy.objects.update_or_create(pk=1, defaults={"heads_key": {"file": str(folder / name)}})
    return said.getvalue().strip()


def report(
    folder: Path,
    *,
    from_at: datetime = START,
    to_at: datetime = END,
    now: datetime = END + HOUR,
    with_events: bool = True,
) -> Made:
    folder.mkdir(exist_ok=True)
    return make(from_at=from_at, to_at=to_at, folder=folder, by="ann", reason="audit", now=now, with_events=with_events)


# what people do to packs


def files_of(pack: Path) -> Files:
    with zipfile.ZipFile(pack) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def written(path: Path, files: Files) -> Path:
    """The files packed anew, as any program would; names may stand twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
            for name, data in files:
                pack.writestr(name, data)
    return path


def changed(files: Files, name: str, change: Callable[[bytes], bytes]) -> Files:
    assert name in dict(files)
    return [(other, change(data) if other == name else data) for other, data in files]


def without(files: Files, name: str) -> Files:
    return [(other, data) for other, data in files if other != name]


# the verifier as others run it

_RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_path(sys.argv[0], run_name='__main__')"


def run_verifier(folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """In an empty folder, by a Python that has nothing but its standard library and cryptography. Returns exit code and output."""
    alone = folder / "alone"
    if not alone.exists():
        (alone / "packages").mkdir(parents=True)
        for name in ("cryptography", "cffi", "_cffi_backend"):
            spec = find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            path = Path(spec.origin)
            path = path.parent if path.name == "__init__.py" else path
            (alone / "packages" / path.name).symlink_to(path)
        (alone / "verify.py").write_bytes(Path(verifier.__file__).read_bytes())
    ran = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; sys.argv.pop(0); " + _RUN,
            "verify.py",
            "packages",
            *map(str, arguments),
        ],
        cwd=alone,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stderr == "", ran.stderr
    return ran.returncode, ran.stdout
