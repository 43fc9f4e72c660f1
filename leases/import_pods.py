"""Pod history from a file: `kubectl get pods -A -o json`, or NDJSON rows. For examining old logs without a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from django.db import transaction

from leases.identity import KUBERNETES_CLAIMS, identify_again
from leases.models import AuthMount, Cluster, Pod, PodAddress, Vault, WatchPeriod


class ImportFailed(Exception):
    """The file cannot be used; the message says which row and why."""


class _Row(msgspec.Struct):
    namespace: str
    name: str
    uid: str
    service_account: str
    ips: list[str]
    started_at: datetime
    ended_at: datetime | None = None
    node: str = ""
    host_network: bool = False


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str
    uid: str
    creation_timestamp: datetime


class _Spec(msgspec.Struct, rename="camel"):
    service_account_name: str = "default"
    node_name: str = ""
    host_network: bool = False


class _Address(msgspec.Struct):
    ip: str


class _Terminated(msgspec.Struct, rename="camel"):
    finished_at: datetime | None = None


class _State(msgspec.Struct):
    terminated: _Terminated | None = None


class _Container(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    container_statuses: list[_Container] = msgspec.field(default_factory=list)
    start_time: datetime | None = None
    pod_ips: list[_Address] = msgspec.field(default_factory=list, name="podIPs")


class _Item(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _Status


class _List(msgspec.Struct):
    items: list[_Item]


@dataclass(frozen=True, slots=True)
class Imported:
    """How many rows were read, between which times the history counts as gapless, and whose leases it may name."""

    pods: int
    new: int
    from_at: datetime
    to_at: datetime
    cluster: str


def rows(data: bytes) -> Iterator[_Row]:
    """Rows of either form. Raises ImportFailed naming the line."""
    try:
        listed = msgspec.json.decode(data, type=_List)
    except msgspec.DecodeError:
        listed = None
    if listed is not None:
        for item in listed.items:
            ended_at = _ended_at(item.status)
            over = item.status.phase in {"Succeeded", "Failed"}
            yield _Row(
                namespace=item.metadata.namespace,
                name=item.metadata.name,
                uid=item.metadata.uid,
                service_account=item.spec.service_account_name,
                # a finished pod has given its address back; if nobody says when, it is no evidence for any time
                ips=[] if over and ended_at is None else [address.ip for address in item.status.pod_ips],
                started_at=item.status.start_time or item.metadata.creation_timestamp,
                ended_at=ended_at if over else None,
                node=item.spec.node_name,
                host_network=item.spec.host_network,
            )
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=_Row)
            except msgspec.DecodeError as error:
                raise ImportFailed(f"line {number}: {error}") from error


def _ended_at(status: _Status) -> datetime | None:
    """When the last container of a finished pod ended."""
    times = [container.state.terminated for container in status.container_statuses]
    return max((ended.finished_at for ended in times if ended and ended.finished_at), default=None)


@transaction.atomic
def import_pods(path: Path, *, cluster: str, auth_mount: str, vault: str) -> Imported:
    """Takes the file's pods as the gapless history of `cluster` between its first and last time."""
    try:
        found = list(rows(path.read_bytes()))
    except OSError as error:
        raise ImportFailed(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise ImportFailed(f"{path} has no pods")
    for row in found:
        if row.started_at.tzinfo is None or (row.ended_at and row.ended_at.tzinfo is None):
            raise ImportFailed(f"pod {row.namespace}/{row.name}: times need an offset, such as Z")
        if row.ended_at and row.ended_at < row.started_at:
            raise ImportFailed(f"pod {row.namespace}/{row.name} ended before it started")
    cluster_row, _ = Cluster.objects.get_or_create(name=cluster, defaults={"retired": True})
    vault_row, _ = Vault.objects.get_or_create(name=vault, defaults={"retired": True})
    mount, _ = AuthMount.objects.get_or_create(
        vault=vault_row,
        path=auth_mount.strip("/"),
        defaults={"cluster": cluster_row, "claims": KUBERNETES_CLAIMS},
    )
    if mount.cluster_id != cluster_row.pk:
        raise ImportFailed(f"auth mount {mount.path} of vault {vault} belongs to another cluster")
    identify_again(mount)
    new = sum(_take(cluster_row, row) for row in found)
    from_at = min(row.started_at for row in found)
    to_at = max(row.ended_at or row.started_at for row in found)
    WatchPeriod.objects.get_or_create(cluster=cluster_row, from_at=from_at, to_at=to_at)
    return Imported(len(found), new, from_at, to_at, cluster)


def _take(cluster: Cluster, row: _Row) -> bool:
    pod, created = Pod.objects.update_or_create(
        cluster=cluster,
        uid=row.uid,
        defaults={
            "namespace": row.namespace,
            "name": row.name,
            "service_account": row.service_account,
            "node": row.node,
            "host_network": row.host_network,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
        },
    )
    for address in row.ips:
        PodAddress.objects.update_or_create(
            pod=pod, address=address, from_at=row.started_at, defaults={"to_at": row.ended_at}
        )
    return created
