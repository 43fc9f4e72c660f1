"""Reads of how completely clusters and databases were watched lately: how far behind, what share of a day, how many holes."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Min, QuerySet

from leases.models import SampledPeriod, WatchedKind, WatchPeriod

DAY = timedelta(days=1)
# a watch ends in good order every three seconds; samples are at most a minute apart
WATCH_LATE = timedelta(seconds=30)
SAMPLE_LATE = timedelta(minutes=2)
# two periods that are no further apart than this are one: each notes its end a moment before the next one begins
TOUCHING = timedelta(milliseconds=1)

Period = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Covered:
    """What of a day is known: since when (the beginning of the day, or later), up to when, and the holes between."""

    from_at: datetime | None = None
    until: datetime | None = None
    holes: int = 0
    missing: timedelta = timedelta()
    whole: timedelta = DAY
    # seconds since `until`
    behind: float = 0.0

    @property
    def young(self) -> bool:
        """Watched for less than a day."""
        return self.whole < DAY

    @property
    def share(self) -> float:
        """In percent of the time since it is watched at all, at most a day. Never rounded up to the whole."""
        percent = 100 * (1 - self.missing / self.whole) if self.whole else 100.0
        return min(percent, 99.99) if self.missing else percent


def covered(periods: Iterable[Period], *, now: datetime, late: timedelta) -> Covered:
    """What periods say of the last day, the very first one of all among them. Pure. `late`: how old the last end may be."""
    order = sorted(periods)
    if not order:
        return Covered()
    begin = max(now - DAY, order[0][0])
    at, holes, missing = begin, 0, timedelta()
    for from_at, to_at in order:
        if from_at - at > TOUCHING:
            holes += 1
            missing += from_at - at
        at = max(at, to_at)
    if now - at > late:
        holes += 1
        missing += now - at
    until = at if at > begin else None
    return Covered(begin, until, holes, missing, now - begin, max(0.0, (now - at).total_seconds()))


@dataclass(frozen=True, slots=True)
class ClusterWatch:
    """How a cluster is watched: its pods over the last day, the kinds that are, and those that are not, each with the reason."""

    pods: Covered = field(default_factory=Covered)
    kinds: list[str] = field(default_factory=list)
    without: list[tuple[str, str]] = field(default_factory=list)


def cluster_watches(clusters: Collection[int], *, now: datetime) -> dict[int, ClusterWatch]:
    """Cluster key -> how it is watched. In two queries."""
    periods = _lately(WatchPeriod.objects.filter(cluster__in=clusters), "cluster", now=now)
    kinds: dict[int, list[str]] = defaultdict(list)
    without: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for row in WatchedKind.objects.filter(cluster__in=clusters).order_by("cluster", "kind", "id"):
        name = row.kind.partition(" ")[0]
        if row.cause:
            without[row.cluster_id].append((name, row.cause))
        else:
            kinds[row.cluster_id].append(name)
    return {
        key: ClusterWatch(covered(periods[key], now=now, late=WATCH_LATE), kinds[key], without[key]) for key in clusters
    }


def database_samplings(databases: Collection[int], *, now: datetime) -> dict[int, Covered]:
    """Database key -> what of its sessions is known of the last day, by samples or by its log. In one query."""
    periods = _lately(SampledPeriod.objects.filter(database__in=databases), "database", now=now)
    return {key: covered(periods[key], now=now, late=SAMPLE_LATE) for key in databases}


def _lately(rows: QuerySet[Any], of: str, *, now: datetime) -> dict[int, list[Period]]:
    """The periods of the last day, and of each key the beginning of the very first, which says since when it is watched at all."""
    first = rows.order_by().values(of).annotate(at=Min("from_at"), until=Min("from_at")).values_list(of, "at", "until")
    lately = rows.filter(to_at__gte=now - DAY).order_by().values_list(of, "from_at", "to_at")
    grouped: dict[int, list[Period]] = defaultdict(list)
    for key, from_at, to_at in lately.union(first, all=True):
        grouped[key].append((from_at, to_at))
    return grouped
