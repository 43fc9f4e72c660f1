"""What a pack says of itself: how complete its period is known, and how surely its accesses are tied to pods. Reads only."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from django.db import connection
from django.db.models import Count, QuerySet

from audit.pack import coverage, holes
from audit.pack.not_covered import NOT_COVERED
from audit.pack.reasons import kind_of
from audit.pack.values import (
    MOST,
    Certainties,
    Completeness,
    Hole,
    PodWatch,
    Reason,
    SampledDatabase,
    Share,
    StreamCoverage,
    Stretch,
)
from leases.models import Certainty, Cluster, Database, Lease, SampledPeriod, Vault, WatchPeriod

# of one stream, in words; the manifest's list of its holes goes on
MOST_REASONS = 20
MOST_KINDS = 50

MEANINGS = {
    Certainty.EXACT: "the login itself names the pod",
    Certainty.INFERRED: "exactly one pod fits address, service account and time",
    Certainty.AMBIGUOUS: "several pods fit; all are listed in the reason",
    Certainty.SERVICE_ACCOUNT: "the service account is known, no pod can be named",
    Certainty.UNKNOWN: "neither pod nor service account is known",
}


def accesses(*, from_at: datetime, to_at: datetime) -> QuerySet[Lease]:
    """Those of exports.accesses()."""
    return Lease.objects.filter(accessed_at__gte=from_at, accessed_at__lt=to_at).exclude(request_id="")


# --- completeness ------------------------------------------------------------------------------------------------


def completeness(*, from_at: datetime, to_at: datetime, with_events: bool, now: datetime) -> Completeness:
    until = max(from_at, min(to_at, now))
    logged = coverage.logged_hours(from_at=from_at, until=until)
    gone = coverage.dropped(from_at=from_at, until=until)
    streams: list[StreamCoverage] = []
    lines: dict[str, set[datetime]] = {}
    for read in coverage.streams(from_at=from_at, until=until, now=now):
        streams.append(
            coverage.told(
                read,
                logged=logged.get(read.stream.device_id, set()),
                gone=gone.get(read.stream.pk, (0, 0)),
                from_at=from_at,
                until=until,
            )
        )
        lines[streams[-1].stream] = {one.at for one in read.hours if one.row and one.row.lines}
    streams = holes.told_elsewhere(streams, lines)
    streams.sort(key=lambda one: (one.vault, one.device, one.node))
    unwatched = unwatched_vaults(streams)
    unanswered = unanswered_reads(from_at=from_at, to_at=to_at)
    without_events = coverage.days_without_events(from_at=from_at, until=until)
    reasons = [
        *of_the_whole(streams, unwatched, unanswered, without_events if with_events else [], to_at=to_at, now=now),
        *(reason for one in streams for reason in reasons_of(one)),
    ]
    return Completeness(
        complete=not reasons,
        word=word_of(reasons, streams),
        reasons=reasons[:MOST],
        more_reasons=len(reasons[MOST:]),
        judged_until=until.astimezone(UTC),
        streams=[cut(one) for one in streams],
        unwatched_vaults=unwatched,
        unanswered_reads=unanswered,
        events_dropped=without_events,
        pods=list(pod_watches(from_at=from_at, until=until)),
        sessions=list(sampled(from_at=from_at, until=until)),
        not_covered=NOT_COVERED,
    )


def word_of(reasons: list[str], streams: list[StreamCoverage]) -> str:
    """The word "complete" is said only where nothing is known to be missing. Pure."""
    if reasons:
        number = "1 reason" if len(reasons) == 1 else f"{len(reasons)} reasons"
        return f"This pack does not call itself complete, for {number} that it names."
    judged = sum(one.counts for one in streams)
    number = "the one stream" if judged == 1 else f"each of {judged} streams"
    return (
        f"Complete: every hour of {number} was read, without a known gap, without a line that could not be read, and without "
        "a read of credentials whose answer is missing."
    )


def of_the_whole(
    streams: list[StreamCoverage],
    unwatched: list[str],
    unanswered: int,
    without_events: list[str],
    *,
    to_at: datetime,
    now: datetime,
) -> Iterator[str]:
    """Holes that are no single stream's. Pure."""
    if to_at > now:
        yield f"The period was not over when this was made: {_utc(now)} to {_utc(to_at)} is yet to come."
    if not any(one.counts for one in streams):
        yield "No stream was read in this period."
    for name in unwatched:
        yield f"No stream of vault {name} is read: nothing of its audit log is known."
    if unanswered:
        yield (
            f"{unanswered} reads of database credentials have no answer in the log: whether they issued a lease is not known."
        )
    if without_events:
        yield (
            f"Events of {len(without_events)} days were dropped as the policy says ({without_events[0]} to "
            f"{without_events[-1]}): the table of events lacks them. Accesses and leases are kept."
        )


def reasons_of(one: StreamCoverage) -> Iterator[str]:
    for hole in one.holes[:MOST_REASONS]:
        yield sentence(one.stream, hole)
    if more := len(one.holes[MOST_REASONS:]):
        yield f"{one.stream}: {more} more holes, up to {_utc(one.holes[-1].to_at)}."


def sentence(stream: str, hole: Hole) -> str:
    also = f" {', '.join(hole.also_in)} of the same node lacks nothing then." if hole.also_in else ""
    return f"{stream}, {_utc(hole.from_at)} to {_utc(hole.to_at)}: {hole.what}.{also}"


def cut(one: StreamCoverage) -> StreamCoverage:
    return msgspec.structs.replace(one, holes=one.holes[:MOST], more_holes=len(one.holes[MOST:]))


def unwatched_vaults(streams: Iterable[StreamCoverage]) -> list[str]:
    watched = {one.vault for one in streams if one.counts}
    return sorted(
        name for name in Vault.objects.filter(retired=False).values_list("name", flat=True) if name not in watched
    )


def unanswered_reads(*, from_at: datetime, to_at: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*) FROM audit_event e JOIN audit_what w ON w.id = e.what_id
            WHERE e.at >= %s AND e.at < %s AND e.response_at IS NULL
              AND w.mount_type = 'database' AND w.operation = 'read' AND w.path LIKE '%%/creds/%%'
            """,
            [from_at, to_at],
        )
        return int(cursor.fetchone()[0])


def pod_watches(*, from_at: datetime, until: datetime) -> Iterator[PodWatch]:
    """Of the clusters that an auth mount belongs to, and were watched then or are meant to be."""
    periods: dict[int, list[tuple[datetime, datetime]]] = defaultdict(list)
    rows = WatchPeriod.objects.filter(to_at__gte=from_at, from_at__lt=until).order_by("from_at", "id")
    for cluster, begin, end in rows.values_list("cluster", "from_at", "to_at"):
        periods[cluster].append((begin, end))
    for row in Cluster.objects.filter(auth_mounts__isnull=False).distinct().order_by("name"):
        if row.pk in periods or not row.retired:
            gaps = holes.uncovered(periods[row.pk], from_at=from_at, until=until)
            yield PodWatch(row.name, gaps[:MOST], len(gaps[MOST:]), round(holes.seconds(gaps), 3))


def sampled(*, from_at: datetime, until: datetime) -> Iterator[SampledDatabase]:
    periods: dict[int, list[tuple[bool, datetime, datetime]]] = defaultdict(list)
    rows = SampledPeriod.objects.filter(to_at__gte=from_at, from_at__lt=until).order_by("from_at", "id")
    for database, logged, begin, end in rows.values_list("database", "logged", "from_at", "to_at"):
        periods[database].append((logged, begin, end))
    whole = (until - from_at).total_seconds()
    for row in Database.objects.select_related("vault").order_by("vault__name", "mount", "name"):

        def missing(*kinds: bool, of: int = row.pk) -> list[Stretch]:
            known = [(begin, end) for logged, begin, end in periods[of] if logged in kinds]
            return holes.uncovered(known, from_at=from_at, until=until)

        gaps = missing(False, True)
        yield SampledDatabase(
            row.path,
            round(whole - holes.seconds(missing(False)), 3),
            round(whole - holes.seconds(missing(True)), 3),
            gaps[:MOST],
            len(gaps[MOST:]),
        )


# --- certainty -----------------------------------------------------------------------------------------------------


def certainty(*, from_at: datetime, to_at: datetime) -> Certainties:
    counts: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    rows = accesses(from_at=from_at, to_at=to_at).order_by().values_list("certainty", "certainty_reason")
    for name, reason, number in rows.annotate(n=Count("id")).iterator(chunk_size=2000):
        counts[name] += number
        reasons[name][kind_of(reason)] += number
    return shares_of(counts, reasons)


def shares_of(counts: Counter[str], reasons: dict[str, Counter[str]]) -> Certainties:
    """Pure."""
    total = counts.total()
    shares = [
        Share(
            str(name),
            meaning,
            counts[name],
            round(100 * counts[name] / total, 2) if total else 0.0,
            [
                Reason(*item)
                for item in sorted(reasons[name].items(), key=lambda item: (-item[1], item[0]))[:MOST_KINDS]
            ],
        )
        for name, meaning in MEANINGS.items()
    ]
    named = counts[Certainty.EXACT] + counts[Certainty.INFERRED]
    word = (
        f"Of {total} accesses {named} are tied to exactly one pod, {total - named} are not." if total else "No access."
    )
    return Certainties(word, total, shares)


def _utc(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text.replace(".000Z", "Z")
