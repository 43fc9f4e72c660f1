"""What the log tells the rules, and how well it is read: set-based reads.

Hourly counts say which hours and identities are worth a look; only those hours' events are read. Own requests never count.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from django.db.models import Q

import audit.queries
from audit import intern, polls, rollups
from audit.batch import hour
from audit.findings import log_rules, raw
from audit.findings.facts import rows_of
from audit.findings.found import Item
from audit.findings.log_rules import (
    Contradictions,
    Denials,
    Device,
    DeviceDisabled,
    EditsLeftOut,
    EntityChange,
    FailedRevocation,
    Identity,
    Missing,
    RootUse,
    StaticReads,
    StreamFact,
    Watched,
)
from audit.models import Conflict, Event, Kind
from audit.models import Device as DeviceRow
from audit.models import Stream as StreamRow
from leases.models import Cluster, LeaseState, Revocation, Vault, WatchPeriod

EXAMPLES = 10
# changes of entities whose raw lines are read at each look, and requests that disabled devices
MOST_RARE = 200
# identities and their paths that one look names
MOST_DENIED = 2000
# a path may be as long as its sender likes
LONGEST_PATH = 200


def _vaults() -> list[int]:
    # so that the index of hourly counts, which begins with the vault, serves
    return list(Vault.objects.order_by("id").values_list("pk", flat=True))


def root_uses(*, now: datetime) -> Iterator[RootUse]:
    rows = rows_of(
        """
        SELECT v.id, v.name, p.display_name, p.entity_id, sum(h.events - h.own), max(h.hour), array_agg(DISTINCT p.id)
        FROM audit_hourly h JOIN audit_who p ON p.id = h.who_id JOIN leases_vault v ON v.id = h.vault_id
        WHERE h.vault_id = ANY(%(vaults)s) AND h.hour >= %(since)s AND h.events > h.own AND p.policies @> '["root"]'
        GROUP BY 1, 2, 3, 4 ORDER BY 2, 3, 4
        """,
        {"vaults": _vaults(), "since": hour(now - log_rules.LOOK_BACK)},
    )
    if not rows:
        return
    # of each one's last hour
    keys = rows_of(
        f"""
        SELECT u.n, e.at, e.request FROM unnest(%(vaults)s::int[], %(hours)s::timestamptz[]) WITH ORDINALITY AS u (vault, hour, n)
        CROSS JOIN LATERAL (
          SELECT e.at, e.request FROM audit_event e
          WHERE e.vault_id = u.vault AND e.at >= u.hour AND e.at < u.hour + interval '1 hour' AND NOT e.own
            AND e.who_id IN (SELECT w.who FROM unnest(%(of)s::int[], %(whos)s::int[]) AS w (of, who) WHERE w.of = u.n)
          ORDER BY e.at DESC, e.request DESC LIMIT {EXAMPLES}
        ) e ORDER BY u.n, e.at DESC, e.request DESC
        """,  # noqa: S608
        {
            "vaults": [row[0] for row in rows],
            "hours": [row[5] for row in rows],
            "of": [number for number, row in enumerate(rows, 1) for _ in row[6]],
            "whos": [who for row in rows for who in row[6]],
        },
    )
    events = _events([(at, request) for _, at, request in keys])
    newest: dict[int, list[Event]] = defaultdict(list)
    for number, _, request in keys:
        newest[number].append(events[request])
    for number, (_, name, display_name, entity_id, requests, _, _) in enumerate(rows, 1):
        if of_one := newest[number]:
            yield RootUse(
                Identity(name, display_name, entity_id),
                int(requests),
                of_one[0].at,
                tuple(Item(_asked(event), event.at) for event in of_one),
            )


def _events(keys: list[tuple[datetime, UUID]]) -> dict[UUID, Event]:
    if not keys:
        return {}
    times = [at for at, _ in keys]
    found = Event.objects.filter(
        request__in=[request for _, request in keys], at__gte=min(times), at__lte=max(times), own=False
    )
    return {event.request: event for event in found.select_related(*Event.SPELLED_OUT)}


def _asked(event: Event) -> str:
    where = f" from {event.address.text}" if event.address.text else ""
    return f"{event.operation} {event.path[:LONGEST_PATH]}{where}, request {event.request_id}"


def static_reads(*, now: datetime) -> Iterator[StaticReads]:
    rows = rows_of(
        """
        SELECT v.name, p.display_name, p.entity_id, t.text, sum(h.events - h.own), max(h.hour)
        FROM audit_hourly h JOIN audit_who p ON p.id = h.who_id JOIN leases_vault v ON v.id = h.vault_id
        JOIN audit_text t ON t.id = h.target_id
        WHERE h.vault_id = ANY(%(vaults)s) AND h.hour >= %(since)s AND h.kind = %(kind)s AND h.events > h.own
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        """,
        {"vaults": _vaults(), "since": hour(now - log_rules.LOOK_BACK), "kind": int(Kind.STATIC_READ)},
    )
    for vault, display_name, entity_id, path, reads, last in rows:
        yield StaticReads(Identity(vault, display_name, entity_id), path, int(reads), last)


_NOBODY = "p.display_name = '' AND p.entity_id = ''"


def denials(*, now: datetime) -> Iterator[Denials]:
    since = now - log_rules.DENIALS_WITHIN
    # errors of all kinds, in whole hours: whoever has fewer cannot have enough
    whos = rows_of(
        """
        SELECT unnest(array_agg(DISTINCT h.who_id)) FROM audit_hourly h JOIN audit_who p ON p.id = h.who_id
        WHERE h.vault_id = ANY(%(vaults)s) AND h.hour >= %(since)s AND h.errors > 0
        -- one identity, whatever else its tokens bear
        GROUP BY h.vault_id, p.display_name, p.entity_id HAVING sum(h.errors) >= %(enough)s
        """,
        {"vaults": _vaults(), "since": hour(since), "enough": log_rules.DENIALS},
    )
    if not whos:
        return
    rows = rows_of(
        f"""
        WITH denied AS (
          SELECT v.name AS vault, p.display_name, p.entity_id, CASE WHEN {_NOBODY} THEN a.text ELSE '' END AS address,
                 a.text AS seen_at, w.operation || ' ' || left(w.path, {LONGEST_PATH}) AS asked
          FROM audit_event e
          JOIN leases_vault v ON v.id = e.vault_id
          JOIN audit_who p ON p.id = e.who_id
          JOIN audit_text a ON a.id = e.address_id
          JOIN audit_what w ON w.id = e.what_id
          JOIN audit_text x ON x.id = e.error_text_id
          WHERE e.at > %(since)s AND e.at <= %(now)s AND e.error_text_id IS NOT NULL AND NOT e.own
            AND e.who_id = ANY(%(whos)s) AND x.text LIKE '%%permission denied%%'
        ), paths AS (
          SELECT vault, display_name, entity_id, address, asked, count(*) AS times,
                 (array_agg(DISTINCT seen_at))[1:3] AS seen_at,
                 sum(count(*)) OVER who AS in_all, row_number() OVER (who ORDER BY count(*) DESC, asked) AS place
          FROM denied GROUP BY vault, display_name, entity_id, address, asked
          WINDOW who AS (PARTITION BY vault, display_name, entity_id, address)
        )
        SELECT vault, display_name, entity_id, address, in_all, asked, times, seen_at FROM paths
        WHERE in_all >= %(enough)s AND place <= {EXAMPLES}
        ORDER BY in_all DESC, vault, display_name, entity_id, address, place LIMIT {MOST_DENIED}
        """,  # noqa: S608 (the constants above)
        {"since": since, "now": now, "whos": [row[0] for row in whos], "enough": log_rules.DENIALS},
    )
    for (vault, display_name, entity_id, address, times), group in groupby(rows, key=lambda row: row[:5]):
        of_one = list(group)
        yield Denials(
            Identity(vault, display_name, entity_id, address),
            int(times),
            tuple((row[5], row[6]) for row in of_one),
            tuple(sorted({seen for row in of_one for seen in row[7] if seen})[:3]),
        )


def rare_events(*, now: datetime) -> list[Event]:
    """Requests of LOOK_BACK to the paths of rollups.RARE that a rule looks at, newest first: what disabled a device, answered or (as
    where no device is left to log it) not, and what edited an entity; of each at most MOST_RARE, and one more where there are more."""
    targets = list(intern.known_texts(set(rollups.RARE)).values())
    hours = rows_of(
        """
        SELECT DISTINCT h.vault_id, h.hour FROM audit_hourly h
        WHERE h.vault_id = ANY(%(vaults)s) AND h.hour >= %(since)s AND h.target_id = ANY(%(targets)s)
          AND h.events > h.own AND h.events > h.errors
        """,
        {"vaults": _vaults(), "since": hour(now - log_rules.LOOK_BACK), "targets": targets},
    )
    if not hours:
        return []
    asked = rows_of(
        """
        SELECT id, path LIKE 'sys/audit/%%' FROM audit_what
        WHERE path LIKE 'sys/audit/%%' AND operation = 'delete'
          OR path LIKE 'identity/entity%%' AND operation IN ('update', 'create', 'patch')
        """,
        {},
    )
    keys = []
    # apart, so that many edits of entities hide no device
    for of_devices in (True, False):
        keys += rows_of(
            f"""
            SELECT e.at, e.request
            FROM unnest(%(vaults)s::int[], %(hours)s::timestamptz[]) AS u (vault, hour)
            CROSS JOIN LATERAL (
              SELECT e.at, e.request FROM audit_event e
              WHERE e.vault_id = u.vault AND e.at >= u.hour AND e.at < u.hour + interval '1 hour'
                AND NOT e.own AND e.error_text_id IS NULL
                AND (e.response_at IS NOT NULL OR %(of_devices)s AND e.at < %(late)s)
                AND e.what_id = ANY(%(asked)s)
            ) e
            ORDER BY e.at DESC, e.request LIMIT {MOST_RARE + 1}
            """,  # noqa: S608
            {
                "vaults": [row[0] for row in hours],
                "hours": [row[1] for row in hours],
                "of_devices": of_devices,
                "late": now - log_rules.UNANSWERED,
                "asked": [what for what, is_device in asked if is_device == of_devices],
            },
        )
    return sorted(_events(keys).values(), key=lambda e: (e.at, e.request), reverse=True)


def _by(event: Event) -> Identity:
    address = "" if event.who.display_name else event.address.text
    return Identity(event.vault.name, event.who.display_name, event.who.entity_id, address)


def devices_disabled(rare: list[Event]) -> Iterator[DeviceDisabled]:
    """Oldest first, so that of two of one device the newer one stands."""
    for event in reversed(rare):
        name = event.path.removeprefix("sys/audit/").strip("/")
        if event.operation == "delete" and event.path.startswith("sys/audit/") and name:
            answered = event.response_at is not None
            yield DeviceDisabled(_by(event), name, event.at, event.request_id, event.address.text, answered)


def _edits(rare: list[Event]) -> list[Event]:
    return [
        event
        for event in rare
        if event.operation != "delete" and (event.path == log_rules.UNNAMED_ENTITY or event.path.startswith(_ENTITY))
    ]


def edits_left_out(rare: list[Event]) -> Iterator[EditsLeftOut]:
    edits = _edits(rare)
    if len(edits) > MOST_RARE:
        yield EditsLeftOut(MOST_RARE, edits[MOST_RARE - 1].at)


def entity_changes(rare: list[Event]) -> Iterator[tuple[EntityChange, ...]]:
    """Of the newest MOST_RARE edits."""
    updates = _edits(rare)[:MOST_RARE]
    said = raw.disabled_by(updates)
    changes: dict[tuple[int, str, str], list[EntityChange]] = defaultdict(list)
    for event in updates:
        # which one it is stands in the request's body, which is hashed: two requests need not mean the same
        which = event.request_id if event.path == log_rules.UNNAMED_ENTITY else ""
        changes[event.vault_id, event.path, which].append(
            EntityChange(
                _by(event), event.path, event.at, event.request_id, said.get(event.request), event.request in said
            )
        )
    yield from (tuple(of_one) for of_one in changes.values())


_ENTITY = ("identity/entity/id/", "identity/entity/name/")


def devices(*, now: datetime) -> Iterator[Device]:
    """Those that are followed of vaults that are watched."""
    since = now - log_rules.LOOK_BACK
    rows = DeviceRow.objects.filter(
        Q(missing_since__isnull=False) | Q(salt_changed_at__gte=since), vault__retired=False, streams__retired=False
    )
    for row in rows.select_related("vault").distinct().order_by("id"):
        recent = row.salt_changed_at if row.salt_changed_at and row.salt_changed_at >= since else None
        yield Device(row.vault.name, row.name, row.missing_since, recent)


def streams(*, now: datetime) -> list[tuple[StreamRow, StreamFact]]:
    found = []
    for row in audit.queries.streams():
        lag = timedelta(seconds=audit.queries.lag_seconds(row, now=now))
        found.append((row, StreamFact(row.pk, row.device.vault.name, str(row), row.refused, lag, row.last_line_at)))
    return found


def missing(
    rows: list[tuple[StreamRow, StreamFact]], *, now: datetime
) -> Iterator[tuple[StreamFact, tuple[Missing, ...]]]:
    """Gaps of the last LOOK_BACK that nothing has closed since, as periods."""
    known = audit.queries.last_day([row for row, _ in rows], now=now)
    since = now - log_rules.LOOK_BACK
    for row, fact in rows:
        gaps = [gap for gap in known[row.pk].gaps if not gap.closed and gap.to_at >= since]
        if gaps:
            yield fact, tuple(Missing(_gap(gap), gap.from_at, gap.to_at) for gap in gaps)


def _gap(gap: Any) -> str:
    # a gap of polls names every request: the stream's page shows them
    what = "no line of Leasehold's own requests came" if gap.kind == polls.KIND else gap.what
    return f"{gap.kind}: {what}, until"


def contradictions(
    rows: list[tuple[StreamRow, StreamFact]], *, now: datetime
) -> Iterator[tuple[StreamFact, Contradictions]]:
    facts = {row.pk: fact for row, fact in rows if row.conflicts}
    if not facts:
        return
    found = Conflict.objects.filter(stream__in=list(facts), at__gte=now - log_rules.LOOK_BACK).order_by("stream", "-id")
    for stream, group in groupby(found[:MOST_DENIED], key=lambda row: row.stream_id):
        lines = list(group)
        examples = tuple(
            Item(f"request {line.request_id} differs in {line.fields}", line.at, stream=stream)
            for line in lines[:EXAMPLES]
        )
        yield facts[stream], Contradictions(len(lines), lines[0].at, examples)


def watched(*, now: datetime) -> Iterator[Watched]:
    since = now - log_rules.LOOK_BACK
    periods: dict[int, list[tuple[datetime, datetime]]] = defaultdict(list)
    rows = WatchPeriod.objects.filter(to_at__gte=since, cluster__retired=False).order_by("cluster", "from_at", "id")
    for cluster, from_at, to_at in rows.values_list("cluster", "from_at", "to_at"):
        periods[cluster].append((from_at, to_at))
    for row in Cluster.objects.filter(retired=False).order_by("name"):
        if row.pk not in periods:
            # silent for longer than that, or never watched at all
            last = WatchPeriod.objects.filter(cluster=row).order_by("-to_at").values_list("from_at", "to_at").first()
            periods[row.pk] = [last] if last else []
        yield Watched(row.name, tuple(periods[row.pk]), now)


def failed_revocations(*, now: datetime) -> Iterator[FailedRevocation]:
    """The last one of each lease, if it is of the last LOOK_BACK and did not come to a good end."""
    rows = (
        Revocation.objects.filter(updated_at__gte=now - log_rules.LOOK_BACK)
        .select_related("action", "lease__vault")
        .order_by("lease", "-requested_at", "-id")
        .distinct("lease")
    )
    for row in rows:
        if row.state == "unverified" or (row.state == "failed" and row.lease.state != LeaseState.ENDED):
            lease = row.lease
            yield FailedRevocation(
                row.pk,
                str(row.action.pk),
                lease.vault.name,
                lease.pk,
                lease.lease_id,
                row.state,
                row.action.by,
                row.requested_at,
            )
