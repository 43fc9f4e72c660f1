"""Pod history from a cluster's list and watch, and the stretches of time in which nothing can have been missed."""

import time
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from leases import clients
from leases.kube import KubeClient, KubeGone, PodSeen
from leases.models import Cluster, Pod, PodAddress, WatchPeriod

# A watch that the server ends by itself after this long proves that all before was delivered. Short, so that a new
# lease is tied to its pod soon; the next watch goes on at the same resourceVersion, so nothing falls between two.
# Less than 3 and a server sends no bookmark at the end, so that the version of a quiet cluster would grow too old.
WINDOW_SECONDS = 3


def follow(cluster: Cluster, *, seconds: float, on_change: Callable[[], None]) -> None:
    """Watches for about `seconds`; calls `on_change` after each change and each proven stretch. Raises KubeError."""
    client = clients.kube(cluster)
    deadline = time.monotonic() + seconds
    while True:
        if not cluster.resource_version:
            list_all(cluster, client)
            on_change()
        began_at = timezone.now()
        try:
            for change in client.watch_pods(cluster.resource_version, seconds=WINDOW_SECONDS):
                if change.pod is not None:
                    apply(cluster, change.pod, gone=change.kind == "deleted", now=timezone.now())
                    on_change()
                cluster.resource_version = change.resource_version
        except KubeGone:
            # too old to go on: what happened in between is lost, so a new period begins with a new list
            remember(cluster, "")
            continue
        extend(cluster, from_at=began_at, to_at=timezone.now())
        on_change()
        if time.monotonic() >= deadline:
            return


def list_all(cluster: Cluster, client: KubeClient) -> None:
    """Takes every pod as it is now; pods that are no longer there ended at some time since they were last known."""
    began_at = timezone.now()
    listing = client.list_pods()
    seen = []
    for pod in listing:
        apply(cluster, pod, gone=False, now=began_at)
        seen.append(pod.uid)
    with transaction.atomic():
        for row in Pod.objects.filter(cluster=cluster, ended_at=None).exclude(uid__in=seen):
            end(row, at=began_at)
        WatchPeriod.objects.create(cluster=cluster, from_at=began_at, to_at=began_at)
        remember(cluster, listing.resource_version)


def remember(cluster: Cluster, resource_version: str) -> None:
    cluster.resource_version = resource_version
    Cluster.objects.filter(pk=cluster.pk).update(resource_version=resource_version)


@transaction.atomic
def extend(cluster: Cluster, *, from_at: datetime, to_at: datetime) -> None:
    """Stretches the running period to `to_at`, the moment at which the server ended the watch in good order."""
    remember(cluster, cluster.resource_version)
    running = WatchPeriod.objects.filter(cluster=cluster).order_by("-to_at", "-id").first()
    if running is None:
        WatchPeriod.objects.create(cluster=cluster, from_at=from_at, to_at=to_at)
    else:
        WatchPeriod.objects.filter(pk=running.pk).update(to_at=max(to_at, running.to_at))


@transaction.atomic
def apply(cluster: Cluster, pod: PodSeen, *, gone: bool, now: datetime) -> None:
    """Brings one pod's row and its addresses up to what was seen. Safe to run twice with the same."""
    started_at = pod.started_at or pod.created_at
    seen = {
        "namespace": pod.namespace,
        "name": pod.name,
        "service_account": pod.service_account,
        "node": pod.node,
        "host_network": pod.host_network,
        "phase": pod.phase,
        "owner_kind": pod.owner_kind,
        "owner_name": pod.owner_name,
        "annotations": pod.annotations,
    }
    row, _ = Pod.objects.update_or_create(
        cluster=cluster, uid=pod.uid, defaults=seen, create_defaults={**seen, "started_at": started_at}
    )
    held = {address.address: address for address in row.addresses.filter(to_at=None)}
    if not gone and pod.phase not in {"Succeeded", "Failed"}:
        first = not row.addresses.exists()
        for address in set(pod.addresses) - set(held):
            # Kubernetes does not say since when; the first address came with the pod's start, a later one just now
            PodAddress.objects.create(pod=row, address=address, from_at=started_at if first else now)
        for address in set(held) - set(pod.addresses):
            _close(held[address], at=now)
    if gone or pod.phase in {"Succeeded", "Failed"}:
        end(row, at=now)


def end(row: Pod, *, at: datetime) -> None:
    """The pod is gone: its addresses are free from now on."""
    for address in row.addresses.filter(to_at=None):
        _close(address, at=at)
    Pod.objects.filter(pk=row.pk, ended_at=None).update(ended_at=at)


def _close(address: PodAddress, *, at: datetime) -> None:
    address.to_at = max(at, address.from_at)
    address.save(update_fields=["to_at"])


@dataclass(frozen=True, slots=True)
class Proven:
    """A cluster's watch periods in memory. Both lists run in step, by `from_at`; `to_at` is the latest end up to there."""

    from_at: list[datetime]
    to_at: list[datetime]

    def gapless(self, *, from_at: datetime, to_at: datetime) -> bool:
        """True if one period of the watch covers both moments."""
        begun = bisect_right(self.from_at, from_at)
        return begun > 0 and self.to_at[begun - 1] >= to_at

    def caught_up(self, *, at: datetime, skew: timedelta) -> bool:
        """True if the watch has come past this moment, so that waiting longer brings nothing new."""
        return bool(self.to_at) and self.to_at[-1] >= at + skew


NOTHING_PROVEN = Proven([], [])


def proven(clusters: Collection[int], *, since: datetime) -> dict[int, Proven]:
    """The periods of each of these clusters that had not ended before `since`, in one query; no entry without any."""
    found: dict[int, Proven] = {}
    periods = WatchPeriod.objects.filter(cluster__in=clusters, to_at__gte=since).order_by("cluster", "from_at", "id")
    for cluster_id, from_at, to_at in periods.values_list("cluster_id", "from_at", "to_at"):
        known = found.setdefault(cluster_id, Proven([], []))
        known.from_at.append(from_at)
        known.to_at.append(max(to_at, known.to_at[-1]) if known.to_at else to_at)
    return found
