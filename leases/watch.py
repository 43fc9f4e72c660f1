"""Follows a cluster: lists each kind of object, then watches all of them at once, and notes when nothing can have been missed.

What a kind's objects become is in inventory.py. Pods are what attribution rests on: the rest may be denied or absent.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any

from django.db import transaction
from django.utils import timezone

from leases import clients, inventory, kube
from leases.errors import Doubt
from leases.inventory import Sight
from leases.kube import Change, Kind, KubeClient, KubeDenied, KubeError, KubeGone, KubeNotServed
from leases.models import Cluster, WatchedKind, WatchPeriod

# A watch that the server ends by itself after this long proves that all before was delivered. Short, so that a new
# lease is tied to its pod soon; the next watch goes on at the same resourceVersion, so nothing falls between two.
# Less than 3 and a server sends no bookmark at the end, so that the version of a quiet cluster would grow too old.
WINDOW_SECONDS = 3
# a kind that is denied or not installed is asked for again after this long
RETRY = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of object, what is done with those that are seen, and with those that a whole list no longer has."""

    kind: Kind[Any]
    take: Callable[[Cluster, list[Sight[Any]]], None]
    end_missing: Callable[[Cluster, Collection[str], datetime], None]
    # an operator's own kind, which most clusters do not have
    custom: bool = False
    # served by some clusters under an older version only
    unless: Kind[Any] | None = None

    @property
    def key(self) -> str:
        return key_of(self.kind)


def key_of(kind: Kind[Any]) -> str:
    return f"{kind.resource} {kind.version}"


PODS = Part(kube.PODS, inventory.take_pods, inventory.end_missing_pods)
NEEDED = (
    PODS,
    Part(kube.SERVICE_ACCOUNTS, inventory.take_service_accounts, inventory.end_missing_service_accounts),
    Part(kube.REPLICA_SETS, inventory.take_owners, inventory.forget_nothing),
    Part(kube.JOBS, inventory.take_owners, inventory.forget_nothing),
)
CUSTOM = tuple(
    Part(kind, inventory.take_syncs, partial(inventory.end_missing_syncs, name), custom=True, unless=unless)
    for kind, name, unless in (
        (kube.VAULT_DYNAMIC_SECRETS, "VaultDynamicSecret", None),
        (kube.GENERATORS, "generator", None),
        (kube.EXTERNAL_SECRETS, "ExternalSecret", None),
        (kube.OLD_EXTERNAL_SECRETS, "ExternalSecret", kube.EXTERNAL_SECRETS),
    )
)


def follow(cluster: Cluster, *, seconds: float, on_change: Callable[[], None], window: int = WINDOW_SECONDS) -> None:
    """Watches for about `seconds`; calls `on_change` after each change and each proven stretch.

    Raises KubeError where pods cannot be watched; what else is denied is noted and asked for again later.
    """
    client = clients.kube(cluster)
    deadline = time.monotonic() + seconds
    while True:
        states = {state.kind: state for state in WatchedKind.objects.filter(cluster=cluster)}
        watched = [part for part in (*NEEDED, *CUSTOM) if listed(cluster, part, client, states)]
        on_change()
        watch_once(cluster, watched, client, on_change=on_change, window=window)
        on_change()
        if time.monotonic() >= deadline:
            return


def listed(cluster: Cluster, part: Part, client: KubeClient, states: dict[str, WatchedKind]) -> bool:
    """Whether there is a version to watch this kind from, which is got by a list where there is none."""
    state = states.get(part.key)
    if state and state.resource_version:
        return True
    if part is PODS:
        list_all(cluster, client)
        return True
    if state and state.retry_at and state.retry_at > timezone.now():
        return False
    newer = states.get(key_of(part.unless)) if part.unless else None
    if newer and newer.resource_version:
        return False
    try:
        version = list_kind(cluster, part, client, now=timezone.now())
    except KubeError as error:
        set_aside(cluster, part, error)
        return False
    remember(cluster, part, version)
    return True


def missing_rules(cluster: Cluster) -> Doubt | None:
    """What of a cluster is not watched and why, and how to mend it; None where all is."""
    states = list(WatchedKind.objects.filter(cluster=cluster).exclude(cause="").order_by("kind"))
    causes, fixes = [state.cause for state in states], dict.fromkeys(state.fix for state in states)
    return Doubt(". ".join(causes), " ".join(fixes)) if states else None


def list_all(cluster: Cluster, client: KubeClient) -> None:
    """Takes every pod as it is now; pods that are no longer there ended at some time since they were last known."""
    began_at = timezone.now()
    version = list_kind(cluster, PODS, client, now=began_at)
    with transaction.atomic():
        WatchPeriod.objects.create(cluster=cluster, from_at=began_at, to_at=began_at)
        remember(cluster, PODS, version)


def list_kind(cluster: Cluster, part: Part, client: KubeClient, *, now: datetime) -> str:
    """Takes every object of one kind, page by page; returns the version from which a watch misses nothing."""
    listing = client.list(part.kind)
    there = []
    for page in listing.pages():
        part.take(cluster, [Sight(seen, False, now) for seen in page])
        there += [seen.uid for seen in page]
    part.end_missing(cluster, there, now)
    return listing.resource_version


def set_aside(cluster: Cluster, part: Part, error: KubeError, *, version: str = "") -> None:
    """One of the kinds that attribution can do without: why it is not watched now, and when it is asked for again.

    An operator's kind is not missed where it is denied or unknown: most clusters have no such operator.
    """
    denied = isinstance(error, KubeDenied | KubeNotServed)
    quiet = part.custom and denied
    remember(
        cluster,
        part,
        "" if denied else version,
        cause="" if quiet else error.cause,
        fix="" if quiet else error.fix,
        retry=RETRY if denied else None,
    )


def remember(
    cluster: Cluster, part: Part, version: str, *, cause: str = "", fix: str = "", retry: timedelta | None = None
) -> None:
    values = {"resource_version": version, "cause": cause, "fix": fix, "retry_at": retry and timezone.now() + retry}
    WatchedKind.objects.update_or_create(cluster=cluster, kind=part.key, defaults=values)


@dataclass(frozen=True, slots=True)
class End:
    """How and when the watch of one part ended: in good order, or with an error."""

    part: Part
    at: datetime
    error: Exception | None = None


def watch_once(
    cluster: Cluster, parts: list[Part], client: KubeClient, *, on_change: Callable[[], None], window: int
) -> None:
    """Watches these kinds at once, until the server has ended each watch. Raises KubeError for pods, and what is a fault."""
    began_at = timezone.now()
    versions = {state.kind: state.resource_version for state in WatchedKind.objects.filter(cluster=cluster)}
    failed: Exception | None = None
    for told in arrivals(client, parts, versions, window):
        if not isinstance(told, End):
            part = told[0].part
            part.take(
                cluster,
                [Sight(one.change.seen, one.change.kind == "deleted", one.at) for one in told if one.change.seen],
            )
            versions[part.key] = told[-1].change.resource_version
            on_change()
            continue
        part, error = told.part, told.error
        if error is None and part is PODS:
            extend(cluster, from_at=began_at, to_at=told.at, version=versions[part.key])
        elif error is None:
            remember(cluster, part, versions[part.key])
        elif isinstance(error, KubeGone):
            # too old to go on: what happened in between is lost, so a new period begins with a new list
            remember(cluster, part, "")
        elif isinstance(error, KubeError) and part is not PODS:
            set_aside(cluster, part, error, version=versions[part.key])
        else:
            if isinstance(error, KubeError):
                # what was delivered is good, so the watch goes on behind it; only the proof is missing
                remember(cluster, part, versions[part.key])
            failed = error
    if failed:
        raise failed


@dataclass(frozen=True, slots=True)
class Arrived:
    """One change of one part, and when it came."""

    part: Part
    change: Change[Any]
    at: datetime

    @property
    def uid(self) -> str:
        return self.change.seen.uid if self.change.seen else ""


def arrivals(
    client: KubeClient, parts: list[Part], versions: dict[str, str], window: int
) -> Iterator[list[Arrived] | End]:
    """What the watches of these parts tell, as it comes, until all have ended; only reading is done beside.

    Changes of one part that came meanwhile are given together, each object once, so that a burst needs few statements.
    """
    told: SimpleQueue[Arrived | End] = SimpleQueue()

    def read(part: Part) -> None:
        try:
            for change in client.watch(part.kind, versions[part.key], seconds=window):
                told.put(Arrived(part, change, timezone.now()))
        except Exception as error:
            told.put(End(part, timezone.now(), error))
        else:
            told.put(End(part, timezone.now()))

    with ThreadPoolExecutor(max_workers=len(parts)) as readers:
        for part in parts:
            readers.submit(read, part)
        left = len(parts)
        together: list[Arrived] = []
        while left:
            one = told.get()
            if together and not (isinstance(one, Arrived) and fits(one, together)):
                yield together
                together = []
            if isinstance(one, End):
                left -= 1
                yield one
                continue
            together.append(one)
            if told.empty():
                yield together
                together = []


def fits(one: Arrived, together: list[Arrived]) -> bool:
    """Whether it can be stored in one go with these."""
    return (
        one.part is together[0].part
        and len(together) < kube.PAGE
        and not (one.uid and any(one.uid == other.uid for other in together))
    )


@transaction.atomic
def extend(cluster: Cluster, *, from_at: datetime, to_at: datetime, version: str) -> None:
    """Stretches the running period to `to_at`, the moment at which the server ended the watch in good order."""
    remember(cluster, PODS, version)
    running = WatchPeriod.objects.filter(cluster=cluster).order_by("-to_at", "-id").first()
    if running is None:
        WatchPeriod.objects.create(cluster=cluster, from_at=from_at, to_at=to_at)
    else:
        WatchPeriod.objects.filter(pk=running.pk).update(to_at=max(to_at, running.to_at))


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
