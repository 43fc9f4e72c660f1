"""Reads of what happened: streams, a lease's events and sightings, how its attribution changed. Nothing here writes."""

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection

from audit import intern, push
from audit.models import AttributionChange, Event, Sighting, Stream, Text
from leases import health
from leases.models import Lease, Vault
from leases.models.sources import SourceKind
from leases.queries import Source, source, source_states
from leases.queries import sources as other_sources

MOST_EVENTS = 50


def streams() -> list[Stream]:
    """Streams that are read, or were until lately."""
    return list(
        Stream.objects.filter(retired=False)
        .select_related("device__vault")
        .order_by("device__vault__name", "device__name", "node", "id")
    )


def lag_seconds(stream: Stream, *, now: datetime) -> float:
    """How far behind the stream is: nothing if all of its file is read, else the age of the last line that was."""
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


def sources(*, now: datetime) -> list[Source]:
    """Everything that is watched: vaults, clusters, databases, streams."""
    return other_sources(now=now) + [status.source for status in stream_statuses(now=now)]


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
    sightings: dict[UUID, list[Sighting]] = defaultdict(list)
    for sighting in (
        Sighting.objects.filter(
            request__in=[event.request for event in found],
            at__gte=begin - timedelta(days=1),
            at__lte=end + timedelta(days=1),
            stream__device__vault=lease.vault_id,
        )
        .select_related("stream__device")
        .order_by("stream__device__name", "stream__node", "stream_id")
    ):
        sightings[sighting.request].append(sighting)
    return [LeaseEvent(event, sightings[event.request]) for event in reversed(found)]


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
              WHERE e.vault_id = %(vault)s AND e.kind = 2 AND (
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
