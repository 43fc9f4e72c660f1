"""Reads of what happened: streams, a lease's events and sightings, how its attribution changed. Nothing here writes."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection
from django.db.models import Count, OuterRef, Prefetch, Q, Subquery, Sum

from audit import glue, intern, polls, push
from audit.batch import hour
from audit.blocks import lines_of
from audit.evidence import gather
from audit.hours import HOUR, Hour, Period, hours, periods, unread_since
from audit.models import (
    AttributionChange,
    Conflict,
    Coverage,
    DatabaseLog,
    Event,
    Gap,
    Kind,
    RawBlock,
    RejectedLine,
    Sighting,
    Stream,
    Text,
)
from audit.tables import line_digest
from leases import health
from leases.consumers import Fetched, Sync, consumers
from leases.models import Database, Lease, Policy, Vault
from leases.models.sources import SourceKind
from leases.queries import Source, source, source_states
from leases.queries import sources as other_sources

MOST_EVENTS = 50
MOST_LINES = 50
# rows, of which a minute of missing polls is one
MOST_GAPS = 500


def streams() -> list[Stream]:
    """Streams that are read, or were until lately."""
    return list(
        Stream.objects.filter(retired=False)
        .select_related("device__vault")
        .order_by("device__vault__name", "device__name", "node", "id")
    )


def lag_seconds(stream: Stream | DatabaseLog, *, now: datetime) -> float:
    """How far behind it is: nothing if all of its file is read, else the age of the last line that was."""
    if stream.unread_bytes == 0:
        return 0.0
    last = stream.last_line_at or stream.read_at
    return max(0.0, (now - last).total_seconds()) if last else 0.0


@dataclass(frozen=True, slots=True)
class StreamStatus:
    stream: Stream
    source: Source
    lag_seconds: float


def of_pushed(stream: Stream, status: Source) -> Source:
    """The same in the words of a stream that nobody asks: its shipper comes by itself, or does not."""
    fix = f"See that the log shipper on {stream.node} runs, reaches the push process and has the stream's token."
    if status.status == "waiting":
        made = f"Point a log shipper at {push.address(stream)} (docs/install.md)"
        if not stream.push_token_sha256:
            made += f"; `manage.py push_token {stream.device.vault.name} {stream.device.name} {stream.node}` makes its token"
        return replace(status, cause="No batch has come yet", fix=f"{made}.")
    if status.status == "stale":
        return replace(status, cause="No batch has come lately", fix=fix)
    return status


def stream_statuses(*, now: datetime) -> list[StreamStatus]:
    """Each stream with how it is doing; one that is refused counts as failing whatever its file says."""
    states, stale_after = source_states(), health.stale_after()
    found = []
    for stream in streams():
        name = str(stream)
        status = source(
            SourceKind.STREAM, name, states.get((SourceKind.STREAM, name)), now=now, stale_after=stale_after
        )
        if stream.pushed:
            status = of_pushed(stream, status)
        if stream.refused and status.status != "failing":
            status = Source(
                SourceKind.STREAM,
                name,
                "failing",
                cause=f"Nothing more is taken from it: {stream.refused}",
                fix="Give the device a new path without log_raw and name that one in leasehold.toml.",
                checked_at=stream.read_at,
            )
        found.append(StreamStatus(stream, status, lag_seconds(stream, now=now)))
    return found


@dataclass(frozen=True, slots=True)
class DatabaseLogStatus:
    """A database server's own log, the databases that name it, how it is doing and how far behind it is."""

    log: DatabaseLog
    databases: list[Database]
    source: Source
    lag_seconds: float


def database_logs(*, now: datetime) -> list[DatabaseLogStatus]:
    """Logs of database servers that are followed, by path."""
    rows = DatabaseLog.objects.filter(retired=False).select_related("server").order_by("path", "format", "id")
    by_name = Prefetch("databases", Database.objects.select_related("vault").order_by("name", "id"))
    logs = list(rows.prefetch_related(by_name))
    if not logs:
        return []
    states, stale_after = source_states(), health.stale_after()
    return [
        DatabaseLogStatus(
            log,
            list(log.databases.all()),
            source(
                SourceKind.STREAM,
                str(log),
                states.get((SourceKind.STREAM, str(log))),
                now=now,
                stale_after=stale_after,
            ),
            lag_seconds(log, now=now),
        )
        for log in logs
    ]


def sources(*, now: datetime) -> list[Source]:
    """Everything that is watched: vaults, clusters, databases, streams, logs of database servers."""
    return (
        other_sources(now=now)
        + [status.source for status in stream_statuses(now=now)]
        + [status.source for status in database_logs(now=now)]
    )


# --- how complete a stream is ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completeness:
    """Some hours of one stream, oldest first, and what of them is not as it should be."""

    hours: list[Hour]
    gaps: list[Period]
    # the first hour in which the stream had lines
    first_at: datetime | None

    @property
    def empty(self) -> bool:
        """Nothing is known of any of the hours."""
        return not any(hour.row or hour.gaps or hour.unread for hour in self.hours)

    @property
    def open_gaps(self) -> int:
        return sum(not gap.closed for gap in self.gaps)

    @property
    def unpaired(self) -> int:
        return sum(hour.row.unpaired for hour in self.hours if hour.row)


def completeness(
    streams: Collection[Stream], *, from_at: datetime, to_at: datetime, now: datetime
) -> dict[int, Completeness]:
    """Each stream's hours that begin in [from, to), and its gaps of that time."""
    late = health.stale_after()
    rows: dict[int, dict[datetime, Coverage]] = defaultdict(dict)
    for row in Coverage.objects.filter(stream__in=streams, hour__gte=hour(from_at), hour__lt=to_at):
        rows[row.stream_id][row.hour] = row
    gaps: dict[int, list[Gap]] = defaultdict(list)
    begun = Q(from_at__lt=to_at) | Q(from_at=None, to_at__lt=to_at)
    known = list(
        Gap.objects.filter(begun, stream__in=streams, to_at__gte=hour(from_at))
        .select_related("stream")
        .order_by("to_at", "id")
    )
    closed = polls.turned_up(known)
    for gap in known:
        gaps[gap.stream_id].append(gap)
    earliest = Coverage.objects.filter(stream=OuterRef("pk")).order_by("hour").values("hour")[:1]
    first = dict(
        Stream.objects.filter(pk__in=[stream.pk for stream in streams])
        .annotate(first_hour=Subquery(earliest))
        .values_list("pk", "first_hour")
    )
    found = {}
    for stream in streams:
        of_stream = periods(gaps[stream.pk], closed=closed)
        within = hours(
            from_at=hour(from_at),
            to_at=to_at,
            rows=rows[stream.pk],
            gaps=of_stream,
            first_at=first.get(stream.pk),
            unread_since=unread_since(
                followed=bool(stream.path) and not stream.retired,
                refused=bool(stream.refused) and not stream.retired,
                read_at=stream.read_at,
                last_line_at=stream.last_line_at,
                unread_bytes=stream.unread_bytes,
                late=late,
                now=now,
            ),
            late_after=late.total_seconds(),
        )
        found[stream.pk] = Completeness(within, of_stream, first.get(stream.pk))
    return found


def last_day(streams: Collection[Stream], *, now: datetime) -> dict[int, Completeness]:
    """The last 24 hours, of which the present one is the last."""
    return completeness(streams, from_at=hour(now) - 23 * HOUR, to_at=now, now=now)


def stream(pk: int) -> Stream | None:
    return Stream.objects.select_related("device__vault").filter(pk=pk).first()


@dataclass(frozen=True, slots=True)
class Paired:
    """Events of which a stream has both halves, and one half; over all of its hours."""

    pairs: int
    unpaired: int


def paired(stream: Stream) -> Paired:
    sums = Coverage.objects.filter(stream=stream).aggregate(pairs=Sum("pairs"), unpaired=Sum("unpaired"))
    return Paired(sums["pairs"] or 0, sums["unpaired"] or 0)


def newest_gaps(stream: Stream, *, limit: int = MOST_LINES) -> list[Period]:
    """Gaps of a stream, newest first, of all that are known."""
    newest = Gap.objects.filter(stream=stream).select_related("stream").order_by("-to_at", "-id")[:MOST_GAPS]
    gaps = list(reversed(newest))
    return periods(gaps, closed=polls.turned_up(gaps))[: -limit - 1 : -1]


def gaps_by_stream() -> dict[int, int]:
    """How many gaps were ever recorded for each stream that has any."""
    return {row["stream"]: row["n"] for row in Gap.objects.order_by().values("stream").annotate(n=Count("id"))}


def newest_rejected(stream: Stream) -> list[RejectedLine]:
    return list(RejectedLine.objects.filter(stream=stream).order_by("-id")[:MOST_LINES])


def newest_conflicts(stream: Stream) -> list[Conflict]:
    return list(Conflict.objects.filter(stream=stream).order_by("-id")[:MOST_LINES])


def rejected_line(stream_pk: int, pk: int) -> RejectedLine | None:
    return RejectedLine.objects.filter(stream=stream_pk, pk=pk).select_related("stream__device__vault").first()


def rejected_bytes(rejected: RejectedLine) -> bytes | None:
    """What the line says, out of its block; only the rejected piece of a line with several. None if the block was moved."""
    block = RawBlock.objects.filter(stream=rejected.stream_id, sequence=rejected.block_sequence).first()
    lines = lines_of(block) if block is not None else None
    if lines is None:
        return None
    line = (lines.split(b"\n")[rejected.line_number : rejected.line_number + 1] or [b""])[0]
    return next((piece for piece in glue.pieces(line) if line_digest(piece) == rejected.digest), line)


# --- one lease ---------------------------------------------------------------------------------------------------


def consumers_of(lease: Lease, *, now: datetime) -> tuple[Sync, ...]:
    """For whom an operator fetched it: resources, their Secrets and the pods that used those while the lease lived."""
    skew = timedelta(seconds=Policy.current().clock_skew_seconds)
    mount = lease.login.auth_mount if lease.login else None
    if mount is None or lease.accessed_at is None or not any(one.fetched for _, one in gather([lease.pk], skew=skew)):
        return ()
    until = max(lease.ended_at or now, lease.accessed_at)
    found = consumers([Fetched(lease.pk, mount.cluster_id, lease.accessed_at, until)])
    return found.get(lease.pk, ())


def lease_history(lease: Lease) -> list[AttributionChange]:
    """How the holder of a lease became known, first to last."""
    rows = AttributionChange.objects.filter(vault=lease.vault.name, lease_id=lease.lease_id)
    return list(rows.order_by("at", "id"))


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """One request that named the lease, and the streams that logged it."""

    event: Event
    sightings: list[Sighting]


def lease_events(lease: Lease, *, now: datetime) -> list[LeaseEvent]:
    """The requests that named this lease (issue, renewals, revocation), first to last; the last MOST_EVENTS of them."""
    name = Text.objects.filter(digest=intern.digest(lease.lease_id)).first()
    if name is None:
        return []
    # the days in which the lease can have been named: the others' partitions are left alone
    begin = (lease.accessed_at or lease.issued_at or lease.first_seen_at) - timedelta(days=1)
    end = (lease.ended_at or now) + timedelta(days=1)
    found = list(
        Event.objects.filter(vault=lease.vault_id, lease_name=name, at__gte=begin, at__lte=end)
        .select_related(*Event.SPELLED_OUT)
        .order_by("-at", "-request")[:MOST_EVENTS]
    )
    if not found:
        return []
    sightings: dict[UUID, list[Sighting]] = defaultdict(list)
    # another device may have logged it on the other side of midnight; the lease may have lived for months
    for sighting in (
        Sighting.objects.filter(
            request__in=[event.request for event in found],
            at__gte=found[-1].at - timedelta(days=1),
            at__lte=found[0].at + timedelta(days=1),
            stream__device__vault=lease.vault_id,
        )
        .select_related("stream__device")
        .order_by("stream__device__name", "stream__node", "stream_id")
    ):
        sightings[sighting.request].append(sighting)
    return [LeaseEvent(event, sightings[event.request]) for event in reversed(found)]


def reads_by_hour(*, now: datetime, hours: int = 24) -> list[tuple[datetime, int]]:
    """Hours up to the present one, oldest first, and how many dynamic credentials were read in each, of the vaults that are
    watched. From the hourly counts."""
    begin = hour(now) - (hours - 1) * HOUR
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT h.hour, sum(h.events - h.own)::bigint
            FROM leases_vault v, generate_series(%(from)s::timestamptz, %(to)s::timestamptz, interval '1 hour') AS t (hour),
              LATERAL (
                SELECT hour, events, own FROM audit_hourly
                WHERE vault_id = v.id AND hour = t.hour AND kind = %(kind)s
              ) h
            WHERE NOT v.retired GROUP BY h.hour
            """,
            {"from": begin, "to": hour(now), "kind": int(Kind.READ)},
        )
        counts = dict(cursor.fetchall())
    return [(begin + number * HOUR, counts.get(begin + number * HOUR, 0)) for number in range(hours)]


def accesses_by_service_account(*, vault: str, from_at: datetime, to_at: datetime) -> list[tuple[str, str, int]]:
    """(namespace/service account, path, reads of dynamic credentials in [from, to)), sorted. Whole hours come from the hourly
    counts; the parts of an hour at both ends are counted from the events themselves."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH bounds AS (
              SELECT %(from)s::timestamptz AS from_at, %(to)s::timestamptz AS to_at,
                     date_trunc('hour', %(from)s::timestamptz + interval '1 hour' - interval '1 microsecond') AS first_hour,
                     date_trunc('hour', %(to)s::timestamptz) AS last_hour
            ), counted AS (
              SELECT h.who_id, t.text AS path, h.events AS times
              FROM bounds, audit_hourly h JOIN audit_text t ON t.id = h.target_id
              WHERE h.vault_id = %(vault)s AND h.kind = 2 AND h.hour >= first_hour AND h.hour < last_hour
              UNION ALL
              SELECT e.who_id, w.path, 1
              FROM bounds, audit_event e JOIN audit_what w ON w.id = e.what_id
              WHERE e.vault_id = %(vault)s AND e.kind = 2 AND e.at >= %(from)s AND e.at < %(to)s AND (
                e.at >= %(from)s AND e.at < LEAST(first_hour, to_at) OR e.at >= GREATEST(last_hour, first_hour) AND e.at < %(to)s)
            )
            SELECT (p.metadata->>'service_account_namespace') || '/' || (p.metadata->>'service_account_name') AS account,
                   path, sum(times)::bigint
            FROM counted JOIN audit_who p ON p.id = counted.who_id
            WHERE p.metadata ? 'service_account_name'
            GROUP BY account, path ORDER BY account, path
            """,
            {"vault": Vault.objects.get(name=vault).pk, "from": from_at, "to": to_at},
        )
        return list(cursor.fetchall())
