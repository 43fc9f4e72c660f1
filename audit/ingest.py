"""Lines -> raw block, events, sightings and ledger, in one transaction with the stream's new position."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from django.db import connection, transaction

from audit import blocks, ledger
from audit.follow import Chunk, Position
from audit.lines import Half, RawSecret, Rejected, read, redact
from audit.models import RejectedLine, Sighting, Stream

EVENT_COLUMNS = (
    "vault_id, request_id, at, request_at, response_at, operation, path, mount_point, mount_type, namespace_path, "
    "address, display_name, entity_id, token_type, policies, metadata, lease_id, error, own"
)


# the columns of Stream that ingestion writes; the others are configure's
INGEST_OWNS = [
    "file_inode",
    "file_start",
    "offset",
    "sequence",
    "head",
    "lines",
    "duplicates",
    "rejected",
    "redacted",
    "last_line_at",
    "read_at",
    "unread_bytes",
]


@dataclass(slots=True)
class Counts:
    """What became of the lines. lines = parts + duplicates + rejected; redacted and conflicts are counted beside."""

    lines: int = 0
    parts: int = 0
    duplicates: int = 0
    rejected: int = 0
    redacted: int = 0
    conflicts: int = 0

    def add(self, other: "Counts") -> None:
        for name in ("lines", "parts", "duplicates", "rejected", "redacted", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Batch:
    """A chunk of lines, taken apart."""

    halves: list[Half] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    text: bytes = b""
    counts: Counts = field(default_factory=Counts)


def take_apart(lines: bytes) -> Batch:
    """Redacts, reads and counts. Raises RawSecret; nothing of such a batch may be kept."""
    batch = Batch()
    kept = []
    for number, raw in enumerate(lines.split(b"\n")):
        if not raw.strip():
            continue
        line, redactions = redact(raw)
        kept.append(line)
        batch.counts.lines += 1
        batch.counts.redacted += redactions
        try:
            batch.halves.append(read(line))
        except Rejected as error:
            batch.rejected.append((number, str(error)[:500]))
            batch.counts.rejected += 1
    batch.text = b"\n".join(kept) + b"\n" if kept else b""
    return batch


def ingest(stream_id: int, chunk: Chunk, *, expected: Position | None, now: datetime) -> Counts:
    """Takes one chunk of a stream. With `expected`, does nothing if the stream was moved on by another worker meanwhile.

    A stream whose device writes raw secrets is refused: nothing of the chunk is stored. Raises RawSecret then.
    """
    try:
        batch = take_apart(chunk.lines)
    except RawSecret as error:
        Stream.objects.filter(pk=stream_id).update(
            refused=f"{error.field} stands in plain text; the device runs with log_raw or the field is not HMAC'd",
            read_at=now,
        )
        raise
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('ingest'), %s)", [stream_id])
        stream = Stream.objects.select_related("device__vault").get(pk=stream_id)
        if expected is not None and position_of(stream) != expected:
            return Counts()
        return _store(stream, batch, chunk, followed=expected is not None, now=now)


def _store(stream: Stream, batch: Batch, chunk: Chunk, *, followed: bool, now: datetime) -> Counts:
    counts = batch.counts
    known = {
        sighting.event.request_id: sighting
        for sighting in Sighting.objects.filter(
            stream=stream,
            event__vault=stream.device.vault_id,
            event__request_id__in={half.request_id for half in batch.halves},
        ).select_related("event")
    }
    fresh = []
    seen: set[tuple[str, str]] = set()
    for half in batch.halves:
        before = known.get(half.request_id)
        had = before and (before.request_block if half.kind == "request" else before.response_block) is not None
        if had or (half.request_id, half.kind) in seen:
            counts.duplicates += 1
            continue
        seen.add((half.request_id, half.kind))
        fresh.append(half)
    counts.parts = len(fresh)
    # a followed file gives each line once; on the command line a file may be taken again
    new_rejects = batch.rejected and (followed or chunk.offset_from >= stream.offset)
    if fresh or new_rejects:
        block = blocks.append(
            stream,
            batch.text,
            count=counts.lines,
            offset_from=chunk.offset_from,
            offset_to=chunk.position.offset,
            now=now,
        )
        RejectedLine.objects.bulk_create(
            [
                RejectedLine(stream=stream, block_sequence=block.sequence, line_number=number, reason=reason, at=now)
                for number, reason in batch.rejected
            ]
        )
        write_events(stream, fresh, own_accessors=ledger.own_accessors(stream, {half.accessor for half in fresh}))
        write_sightings(stream, fresh, block.sequence)
        with connection.cursor() as cursor:
            # one at a time: two streams that tell of a login and of its lease at once would each miss the other's half
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('ledger'), %s)", [stream.device.vault_id])
        ledger.apply(stream, fresh, now=now)
        stream.last_line_at = max((half.at for half in fresh), default=stream.last_line_at)
    stream.file_inode, stream.file_start = chunk.position.inode, chunk.position.start
    stream.offset, stream.unread_bytes, stream.read_at = chunk.position.offset, chunk.unread, now
    stream.lines += counts.lines
    stream.duplicates += counts.duplicates
    stream.rejected += counts.rejected
    stream.redacted += counts.redacted
    stream.save(update_fields=INGEST_OWNS)
    return counts


def position_of(stream: Stream) -> Position:
    return Position(inode=stream.file_inode, start=stream.file_start, offset=stream.offset)


def merge(halves: Iterable[Half]) -> dict[str, dict[str, Any]]:
    """Halves -> one row per request. The request's own words win; what only the response knows is added."""
    rows: dict[str, dict[str, Any]] = {}
    for half in sorted(halves, key=lambda half: half.kind):  # "request" before "response"
        row = rows.setdefault(half.request_id, {"request_at": None, "response_at": None, "at": half.at})
        row[f"{half.kind}_at"] = half.at
        row["accessors"] = row.get("accessors", set()) | {half.accessor}
        for name in (
            "operation",
            "path",
            "mount_point",
            "mount_type",
            "namespace_path",
            "address",
            "display_name",
            "entity_id",
            "token_type",
            "policies",
            "metadata",
            "lease_id",
            "error",
        ):
            row[name] = row.get(name) or getattr(half, name)
    return rows


def write_events(stream: Stream, halves: list[Half], *, own_accessors: set[str]) -> None:
    """Inserts or completes. Sorted by request id, so that two streams of one vault never wait for each other in a ring."""
    rows = sorted(merge(halves).items())
    encode = msgspec.json.encode
    with connection.cursor() as cursor:
        cursor.executemany(
            f"""
            INSERT INTO audit_event AS e ({EVENT_COLUMNS})
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, %s, %s, %s)
            ON CONFLICT (vault_id, request_id) DO UPDATE SET
              request_at = COALESCE(e.request_at, excluded.request_at),
              response_at = COALESCE(e.response_at, excluded.response_at),
              at = COALESCE(e.request_at, excluded.request_at, e.at),
              operation = COALESCE(NULLIF(e.operation, ''), excluded.operation),
              path = COALESCE(NULLIF(e.path, ''), excluded.path),
              mount_point = COALESCE(NULLIF(e.mount_point, ''), excluded.mount_point),
              mount_type = COALESCE(NULLIF(e.mount_type, ''), excluded.mount_type),
              namespace_path = COALESCE(NULLIF(e.namespace_path, ''), excluded.namespace_path),
              address = COALESCE(NULLIF(e.address, ''), excluded.address),
              display_name = COALESCE(NULLIF(e.display_name, ''), excluded.display_name),
              entity_id = COALESCE(NULLIF(e.entity_id, ''), excluded.entity_id),
              token_type = COALESCE(NULLIF(e.token_type, ''), excluded.token_type),
              policies = CASE WHEN e.policies = '[]'::jsonb THEN excluded.policies ELSE e.policies END,
              metadata = CASE WHEN e.metadata = '{{}}'::jsonb THEN excluded.metadata ELSE e.metadata END,
              lease_id = COALESCE(NULLIF(e.lease_id, ''), excluded.lease_id),
              error = COALESCE(NULLIF(e.error, ''), excluded.error),
              own = e.own OR excluded.own
            """,  # noqa: S608 (column names are the constant above)
            [
                (
                    stream.device.vault_id,
                    request_id,
                    row["request_at"] or row["response_at"],
                    row["request_at"],
                    row["response_at"],
                    row["operation"],
                    row["path"],
                    row["mount_point"],
                    row["mount_type"],
                    row["namespace_path"],
                    row["address"],
                    row["display_name"],
                    row["entity_id"],
                    row["token_type"],
                    encode(row["policies"]).decode(),
                    encode(row["metadata"]).decode(),
                    row["lease_id"],
                    row["error"],
                    bool(row["accessors"] & own_accessors),
                )
                for request_id, row in rows
            ],
        )


def write_sightings(stream: Stream, halves: list[Half], sequence: int) -> None:
    """This stream's record of each event, with this device's HMACs."""
    rows: dict[str, dict[str, Any]] = {}
    for half in halves:
        row = rows.setdefault(half.request_id, {"request_block": None, "response_block": None})
        row[f"{half.kind}_block"] = sequence
        for name in ("accessor", "new_accessor", "username", "data_lease_id", "data_accessor"):
            row[name] = row.get(name) or getattr(half, name)
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO audit_sighting AS s (event_id, stream_id, device_id, salt_epoch, request_block, response_block,
                                             accessor, new_accessor, username, data_lease_id, data_accessor)
            SELECT e.id, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM audit_event e
            WHERE e.vault_id = %s AND e.request_id = %s
            ON CONFLICT (event_id, stream_id) DO UPDATE SET
              request_block = COALESCE(s.request_block, excluded.request_block),
              response_block = COALESCE(s.response_block, excluded.response_block),
              accessor = COALESCE(NULLIF(s.accessor, ''), excluded.accessor),
              new_accessor = COALESCE(NULLIF(s.new_accessor, ''), excluded.new_accessor),
              username = COALESCE(NULLIF(s.username, ''), excluded.username),
              data_lease_id = COALESCE(NULLIF(s.data_lease_id, ''), excluded.data_lease_id),
              data_accessor = COALESCE(NULLIF(s.data_accessor, ''), excluded.data_accessor)
            """,
            [
                (
                    stream.pk,
                    stream.device_id,
                    stream.device.salt_epoch,
                    row["request_block"],
                    row["response_block"],
                    row["accessor"],
                    row["new_accessor"],
                    row["username"],
                    row["data_lease_id"],
                    row["data_accessor"],
                    stream.device.vault_id,
                    request_id,
                )
                for request_id, row in sorted(rows.items())
            ],
        )
