"""Pod history from a file: `kubectl get pods -A -o json`, or NDJSON rows. For examining old logs without a cluster.

With `kubectl get pods,replicasets,jobs -A -o json` the pods' Deployments and CronJobs are named, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from django.db import transaction
from django.utils import timezone

from leases import inventory, kube
from leases.identity import KUBERNETES_CLAIMS, identify_again
from leases.inventory import Sight
from leases.kube import OwnerSeen
from leases.models import AuthMount, Cluster, Pod, PodAddress, PodOwner, Vault, WatchPeriod

OWNERS = {"ReplicaSet": kube.REPLICA_SETS, "Job": kube.JOBS}


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
    phase: str = ""
    owner_kind: str = ""
    owner_name: str = ""
    owner_uid: str = ""
    fetcher: bool = False
    secrets: list[str] = []


class _Terminated(msgspec.Struct, rename="camel"):
    finished_at: datetime | None = None


class _State(msgspec.Struct):
    terminated: _Terminated | None = None


class _Container(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _Status(msgspec.Struct, rename="camel"):
    container_statuses: list[_Container] = msgspec.field(default_factory=list)


class _Finished(msgspec.Struct):
    """What tells when a pod ended, beside what the watch reads of it."""

    status: _Status


class _Kind(msgspec.Struct):
    # kubectl names it in a list of several kinds
    kind: str = "Pod"


class _List(msgspec.Struct):
    items: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Imported:
    """How many rows were read, between which times the history counts as gapless, and whose leases it may name."""

    pods: int
    new: int
    from_at: datetime
    to_at: datetime
    cluster: str


def rows(data: bytes) -> Iterator[_Row | OwnerSeen]:
    """Rows of either form. Raises ImportFailed naming the line or the item."""
    try:
        listed = msgspec.json.decode(data, type=_List)
    except msgspec.DecodeError:
        listed = None
    if listed is not None:
        for number, item in enumerate(listed.items, start=1):
            try:
                if row := _of_item(item):
                    yield row
            except msgspec.DecodeError as error:
                raise ImportFailed(f"item {number}: {error}") from error
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=_Row)
            except msgspec.DecodeError as error:
                raise ImportFailed(f"line {number}: {error}") from error


def _of_item(item: msgspec.Raw) -> _Row | OwnerSeen | None:
    """What an object of the API tells; None for a kind that is of no use here."""
    kind = msgspec.json.decode(item, type=_Kind).kind
    if kind in OWNERS:
        owner: OwnerSeen = OWNERS[kind].see(msgspec.json.decode(item, type=OWNERS[kind].item))
        return owner
    if kind != "Pod":
        return None
    pod = kube.PODS.see(msgspec.json.decode(item, type=kube.PODS.item))
    over = pod.phase in inventory.OVER
    ended_at = _ended_at(msgspec.json.decode(item, type=_Finished).status) if over else None
    return _Row(
        namespace=pod.namespace,
        name=pod.name,
        uid=pod.uid,
        service_account=pod.service_account or "default",
        # a finished pod has given its address back; if nobody says when, it is no evidence for any time
        ips=[] if over and ended_at is None else list(pod.addresses),
        started_at=pod.started_at or pod.created_at,
        ended_at=ended_at,
        node=pod.node,
        host_network=pod.host_network,
        phase=pod.phase,
        owner_kind=pod.owner_kind,
        owner_name=pod.owner_name,
        owner_uid=pod.owner_uid,
        fetcher=pod.fetcher,
        secrets=list(pod.secrets),
    )


def _ended_at(status: _Status) -> datetime | None:
    """When the last container of a finished pod ended."""
    times = [container.state.terminated for container in status.container_statuses]
    return max((ended.finished_at for ended in times if ended and ended.finished_at), default=None)


@transaction.atomic
def import_pods(path: Path, *, cluster: str, auth_mount: str, vault: str) -> Imported:
    """Takes the file's pods as the gapless history of `cluster` between its first and last time."""
    try:
        told = list(rows(path.read_bytes()))
    except OSError as error:
        raise ImportFailed(f"{path} cannot be read: {error.strerror}") from error
    found = [row for row in told if isinstance(row, _Row)]
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
    now = timezone.now()
    inventory.take_owners(cluster_row, [Sight(one, False, now) for one in told if isinstance(one, OwnerSeen)])
    known = PodOwner.objects.filter(cluster=cluster_row, uid__in={row.owner_uid for row in found}).exclude(
        owner_name=""
    )
    owners = {uid: (kind, name) for uid, kind, name in known.values_list("uid", "owner_kind", "owner_name")}
    new = sum(_take(cluster_row, row, owners) for row in found)
    from_at = min(row.started_at for row in found)
    to_at = max(row.ended_at or row.started_at for row in found)
    WatchPeriod.objects.get_or_create(cluster=cluster_row, from_at=from_at, to_at=to_at)
    return Imported(len(found), new, from_at, to_at, cluster)


def _take(cluster: Cluster, row: _Row, owners: dict[str, tuple[str, str]]) -> bool:
    kind, name = owners.get(row.owner_uid, (row.owner_kind, row.owner_name))
    optional = {
        "phase": row.phase,
        "owner_kind": row.owner_kind,
        "owner_name": row.owner_name,
        "owner_uid": row.owner_uid,
        "workload_kind": kind,
        "workload_name": name,
        "fetcher": row.fetcher,
        "secrets": row.secrets,
    }
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
            # what the file does not tell takes nothing away from what is known
            **{field: value for field, value in optional.items() if value},
        },
    )
    for address in row.ips:
        PodAddress.objects.update_or_create(
            pod=pod, address=address, from_at=row.started_at, defaults={"to_at": row.ended_at}
        )
    return created
