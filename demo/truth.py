"""What the simulated pods really did, one JSON line per thing: the demo's own record, never read by the product.

A lease's `end` is written only where it is really known, with its reason in Leasehold's words: a pod revoked its own
token, the demo's administrator ended the lease or its token, or he saw that it was there just before it ran out and gone
just after. What a pod that goes away leaves behind ends some time, and nobody here knows when: no `end` line for those.

An `issue` line's pod is the one whose token read the credential, also where it was handed on (by an operator, or wrapped).
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["login", "issue", "renew", "connect", "disconnect", "end"]


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated pod, as Kubernetes knows it."""

    cluster: str
    namespace: str
    service_account: str
    pod: str
    pod_uid: str
    ip: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `truth.ndjson`; what is not known or does not apply is null."""

    at: str
    event: Kind
    cluster: str
    namespace: str
    service_account: str
    pod: str
    pod_uid: str
    ip: str
    lease_id: str | None = None
    database: str | None = None
    database_user: str | None = None
    reason: str | None = None


def now() -> str:
    """RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def record(
    file: Path,
    event: Kind,
    pod: Pod,
    *,
    lease_id: str | None = None,
    database: str | None = None,
    database_user: str | None = None,
    reason: str | None = None,
) -> None:
    """Append one line."""
    line = Line(
        at=now(),
        event=event,
        cluster=pod.cluster,
        namespace=pod.namespace,
        service_account=pod.service_account,
        pod=pod.pod,
        pod_uid=pod.pod_uid,
        ip=pod.ip,
        lease_id=lease_id,
        database=database,
        database_user=database_user,
        reason=reason,
    )
    append(file, msgspec.json.encode(line))


def append(file: Path, line: bytes) -> None:
    """Several processes write the same file: one write each to a file opened for appending."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line + b"\n")
    finally:
        os.close(descriptor)


def read(file: Path) -> list[Line]:
    """All complete lines of the file, in the order they were written; an absent file has none."""
    if not file.exists():
        return []
    decoder = msgspec.json.Decoder(Line)
    return [decoder.decode(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
