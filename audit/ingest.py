"""A chunk of lines -> raw blocks, events, sightings, hourly counts, coverage and ledger, in one transaction with the stream's
new position.

`take_apart` needs no database and can run for the next chunk while this one is being stored; `store` is the transaction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta

from django.db import OperationalError, connection, transaction

from audit import blocks, coverage, intern, ledger, partitions, rollups, tables
from audit.batch import OLDEST, Batch, Counts, Limits, hour, take_apart
from audit.follow import Chunk, Position
from audit.lines import Half
from audit.merge import absorb, agree, content_of
from audit.models import Stream
from audit.plan import Plan, key_of, mark_own, plan_row
from audit.secrets import RawSecret
from leases import health
from leases.models import Policy
from leases.models.sources import SourceKind

__all__ = ["Counts", "Rebuilding", "ingest", "ingest_all", "position_of"]


class Rebuilding(Exception):
    """The vault's events are being made again from its blocks: nothing can be taken in until that is over."""


# a server's clock may be ahead of ours; beyond this a time is absurd
AHEAD = timedelta(days=2)
COUNTED = [item.name for item in fields(Counts)]
# Looking thousands of requests up that are new costs as much as storing them, and nearly always they are new. So a batch of
# this many is first stored as if it were, and looked up when the unique index says that it is not.
MANY = 500
# a request this near to midnight may stand in the partition of the day beside, where no index of its own day shows it
NEAR_MIDNIGHT = timedelta(hours=1)
# SQLSTATE of PostgreSQL
UNIQUE_VIOLATION = "23505"
# lock_not_available, deadlock_detected, serialization_failure
# https://www.postgresql.org/docs/current/errcodes-appendix.html
PASSING = {"55P03", "40P01", "40001"}
# the columns of Stream that ingestion writes; the others are configure's
INGEST_OWNS = [
    "file_inode",
    "file_start",
    "offset",
    "sequence",
    "head",
    *COUNTED,
    "last_line_at",
    "read_at",
    "unread_bytes",
]


def limits(*, now: datetime) -> Limits:
    """Which times are taken. Whole days, so that a day's partition is either kept or gone."""
    days = Policy.current().event_days
    oldest = datetime.combine((now - timedelta(days=days)).date(), datetime.min.time(), UTC) if days else OLDEST
    return Limits(oldest=max(oldest, OLDEST), newest=now + AHEAD)


def ingest(stream_id: int, chunk: Chunk, *, expected: Position | None, now: datetime) -> Counts:
    """Takes one chunk of a stream. With `expected`, does nothing if the stream was moved on by another worker meanwhile.

    A stream whose device writes raw secrets is refused: nothing of the chunk is stored. Raises RawSecret then, and Rebuilding
    while the vault is rebuilt.
    """
    try:
        batch = take_apart(chunk.lines, offset=chunk.offset_from, limits=limits(now=now))
    except RawSecret as error:
        refuse(stream_id, error, now=now)
        raise
    return store(stream_id, batch, chunk, expected=expected, now=now)


def ingest_all(
    stream_id: int,
    chunks: Iterator[Chunk],
    *,
    expected: Position | None,
    clock: Callable[[], datetime],
    moves: bool = True,
    tries: int = 1,
) -> Iterator[tuple[Chunk, Counts]]:
    """As ingest(), chunk by chunk, for a backlog: the next chunk is taken apart while this one is being stored.

    `chunks` is read in another thread. Ends early (without an error) when another worker has moved the stream on. `moves`: the
    stream's position is that of these chunks; it is not for a file that is taken beside the one that is followed. `tries`: how
    often a chunk is stored anew where a lock could not be had (PASSING).
    """
    with ThreadPoolExecutor(1, thread_name_prefix="parse") as parser:

        def next_one() -> tuple[Chunk, Batch, datetime] | None:
            looked_at = clock()
            chunk = next(chunks, None)
            if chunk is None:
                return None
            return chunk, take_apart(chunk.lines, offset=chunk.offset_from, limits=within), looked_at

        within = limits(now=clock())
        waiting = parser.submit(next_one)
        while True:
            try:
                item = waiting.result()
            except RawSecret as error:
                refuse(stream_id, error, now=clock())
                raise
            if item is None:
                return
            chunk, batch, looked_at = item
            within = limits(now=clock())
            waiting = parser.submit(next_one)
            counts = _store_patiently(
                stream_id, batch, chunk, expected=expected, clock=clock, looked_at=looked_at, moves=moves, tries=tries
            )
            if not counts.lines and batch.lines:
                return
            if expected is not None:
                expected = chunk.position
            yield chunk, counts


def refuse(stream_id: int, error: RawSecret, *, now: datetime) -> None:
    """Nothing more is taken from the stream; its state names the field, never what stands there."""
    stream = Stream.objects.select_related("device__vault").get(pk=stream_id)
    Stream.objects.filter(pk=stream_id).update(
        refused=f"{error.field} stands in plain text; the device runs with log_raw or the field is not HMAC'd",
        read_at=now,
    )
    health.report_failure(
        SourceKind.STREAM,
        str(stream),
        cause=f"The device {stream.device.name} writes {error.field} in plain text; nothing of it is stored",
        fix="Enable the device without log_raw under a new path (and treat what it has written as leaked), then "
        "name the new path in leasehold.toml.",
        now=now,
    )


def store(
    stream_id: int,
    batch: Batch,
    chunk: Chunk,
    *,
    expected: Position | None,
    now: datetime,
    looked_at: datetime | None = None,
    moves: bool = True,
) -> Counts:
    """The transaction: all of it, or nothing. `looked_at`: when the file was read, where that was not just now; what the
    stream says of its position must be true of that time (audit.polls). `moves`: see ingest_all(). Raises RawSecret where the
    stream has been refused meanwhile."""
    stream = Stream.objects.select_related("device__vault").get(pk=stream_id)
    intern.check()
    intern_all(stream, batch)
    all_new = len(batch.rows) >= MANY and stream_id not in _told_again
    try:
        return _store_alone(
            stream, batch, chunk, expected=expected, now=now, looked_at=looked_at or now, all_new=all_new, moves=moves
        )
    except BaseException as error:
        # ids that were made inside the transaction are gone with it
        intern.forget()
        if not (all_new and getattr(error.__cause__, "sqlstate", "") == UNIQUE_VIOLATION):
            raise
    _told_again.add(stream_id)
    return store(stream_id, batch, chunk, expected=expected, now=now, looked_at=looked_at, moves=moves)


def _store_patiently(
    stream_id: int,
    batch: Batch,
    chunk: Chunk,
    *,
    expected: Position | None,
    clock: Callable[[], datetime],
    looked_at: datetime,
    moves: bool,
    tries: int,
) -> Counts:
    for left in range(tries - 1, -1, -1):
        try:
            return store(stream_id, batch, chunk, expected=expected, now=clock(), looked_at=looked_at, moves=moves)
        except OperationalError as error:
            if not left or not is_passing(error):
                raise
    raise AssertionError("a batch is tried at least once")


def is_passing(error: OperationalError) -> bool:
    """Something else held a lock for too long, or both held what the other wanted: it may be tried again."""
    return getattr(error.__cause__, "sqlstate", "") in PASSING


# streams whose last large batch held something that was known
_told_again: set[int] = set()


def _store_alone(
    stream: Stream,
    batch: Batch,
    chunk: Chunk,
    *,
    expected: Position | None,
    now: datetime,
    looked_at: datetime,
    all_new: bool,
    moves: bool,
) -> Counts:
    with transaction.atomic():
        with connection.cursor() as cursor:
            # one writer a vault: whoever tells of an event first, the others find it
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtext('ingest'), %s)"
                " WHERE pg_try_advisory_xact_lock_shared(hashtext('rebuild'), %s)",
                [stream.device.vault_id, stream.device.vault_id],
            )
            if cursor.fetchone() is None:
                raise Rebuilding(stream.device.vault.name)
        epoch = stream.device.salt_epoch
        stream = Stream.objects.select_related("device__vault").get(pk=stream.pk)
        # tokens were interned under that one; a device that was enabled anew meanwhile is so for the next batch
        stream.device.salt_epoch = epoch
        if stream.refused:
            raise RawSecret(stream.refused.partition(" ")[0])
        if expected is not None and position_of(stream) != expected:
            return Counts()
        partitions.make_for(days(batch, now=now))
        return _store(stream, batch, chunk, now=now, looked_at=looked_at, all_new=all_new, moves=moves)


def position_of(stream: Stream) -> Position:
    return Position(inode=stream.file_inode, start=stream.file_start, offset=stream.offset)


def intern_all(stream: Stream, batch: Batch) -> None:
    """Outside of the transaction, see audit.intern."""
    whats, whos, texts, accessors = set(), set(), set(), set()
    for request, response in batch.rows.values():
        # nearly always the two say the same, as the same object
        if request is not None:
            whats.add(request.what)
            whos.add(request.who)
            texts.add(request.address)
            accessors.add(request.accessor)
            if request.lease_id or request.error:
                texts.update((request.lease_id, request.error))
        if response is not None:
            if request is None or response.what is not request.what:
                whats.add(response.what)
            if request is None or response.who is not request.who:
                whos.add(response.who)
            if request is None or response.address != request.address:
                texts.add(response.address)
            if request is None or response.accessor != request.accessor:
                accessors.add(response.accessor)
            if response.lease_id or response.error:
                texts.update((response.lease_id, response.error))
            if (answer := response.answer) is not None and answer.new_accessor:
                accessors.add(answer.new_accessor)
                whos.add(answer.new_who)
            if request is not None and not agree(request, response):
                # what one half leaves empty the other fills: the two together are another text
                content = absorb(content_of(request), response)
                whats.add(content.what)
                whos.add(content.who)
    for halves in batch.again.values():
        for half in halves:
            whats.add(half.what)
            whos.add(half.who)
            texts.update((half.address, half.lease_id, half.error))
            accessors.add(half.accessor)
            if half.answer is not None and half.answer.new_accessor:
                accessors.add(half.answer.new_accessor)
                whos.add(half.answer.new_who)
    texts.update(rollups.targets(whats))
    accessors.discard("")
    intern.whats(whats)
    intern.whos(whos)
    intern.texts(texts)
    device, epoch = stream.device_id, stream.device.salt_epoch
    intern.tokens([(device, epoch, accessor) for accessor in accessors])


def intern_changed(plan: Plan) -> None:
    """What known events were and become. Inside of the transaction: what two halves make together may be new."""
    contents = [*plan.patched, *(content for pair in plan.changed.values() for content in pair)]
    whats = {content.what for content in contents}
    intern.whats(whats)
    intern.whos({content.who for content in contents})
    texts = {text for c in contents for text in (c.address, c.lease_id, c.error)} - {""}
    intern.texts(texts | {content.address for content in contents} | rollups.targets(whats))


def days(batch: Batch, *, now: datetime) -> set[date]:
    """Days whose partitions this batch needs: those of its lines, and today for lines without any time."""
    found = {now.date()}
    if batch.oldest is None or batch.newest is None:
        return found
    # a chunk is nearly always of one day or two
    if batch.newest - batch.oldest < timedelta(days=3):
        first, last = batch.oldest.date(), batch.newest.date()
        return found | {first + timedelta(days=number) for number in range((last - first).days + 1)}
    found |= {half.at.date() for half in batch.halves()}
    return found | {block.until.date() for block in batch.blocks if block.until != OLDEST}


def _store(
    stream: Stream, batch: Batch, chunk: Chunk, *, now: datetime, looked_at: datetime, all_new: bool, moves: bool
) -> Counts:
    plan = make_plan(stream, batch, all_new=all_new)
    if len(batch.rows) >= MANY and not all_new and len(plan.new) == len(batch.rows):
        _told_again.discard(stream.pk)
    used = {half.block for half in plan.fresh} | {r.block for r in plan.rejects} | {c.half.block for c in plan.clashes}
    sequences = blocks.append(stream, [(number, batch.blocks[number]) for number in sorted(used)], now=now)
    if chunk.gap and moves:
        coverage.add_gap(stream, chunk.gap, now=now)
    counts, touched = derive(stream, batch, plan, sequences, stored_at=[now] * len(batch.blocks))
    ledger.conclude(stream, plan, touched, now=now)
    if moves:
        stream.file_inode, stream.file_start = chunk.position.inode, chunk.position.start
        stream.offset, stream.unread_bytes, stream.read_at = chunk.position.offset, chunk.unread, looked_at
    for name in COUNTED:
        setattr(stream, name, getattr(stream, name) + getattr(counts, name))
    stream.save(update_fields=INGEST_OWNS)
    return counts


def derive(
    stream: Stream, batch: Batch, plan: Plan, sequences: Mapping[int, int], *, stored_at: Sequence[datetime]
) -> tuple[Counts, ledger.Touched]:
    """All that follows from lines which stand in these blocks, whether they come in now or are read again (audit.rebuild).

    `sequences`, `stored_at`: of the batch's blocks. Moves the stream's last_line_at (the caller saves the stream).
    """
    if not stored_at:
        # a chunk can tell of a gap alone
        return Counts(), ledger.Touched(set(), [], [], [])
    now = stored_at[-1]
    intern_changed(plan)
    tables.add_rejects(stream, plan.rejects, sequences, now=now)
    tables.add_clashes(stream, plan.clashes, sequences, now=now)
    tables.add_events(stream, plan, sequences)
    rollups.count(stream.device.vault_id, tables.deltas(plan))
    coverage.count(stream, batch, plan, stored_at)
    touched = ledger.take(stream, plan, now=now)
    if plan.fresh:
        newest = batch.newest or now
        stream.last_line_at = max(stream.last_line_at or newest, newest)
    counts = Counts(
        lines=batch.lines,
        parts=len(plan.fresh),
        duplicates=plan.duplicates.total(),
        rejected=len(plan.rejects),
        expired=batch.expired.total(),
        conflicts=len(plan.clashes),
        redacted=batch.redacted.total(),
    )
    return counts, touched


def make_plan(stream: Stream, batch: Batch, stored: Mapping[int, int] | None = None, *, all_new: bool = False) -> Plan:
    """Which of these halves are new, and what they add to what is known. `stored`: the blocks that they are read out of again.

    With `all_new` only those are looked for whose being known the day's unique index would not show.
    """
    keys = {key_of(request_id): request_id for request_id in batch.rows}
    known = tables.known(stream, _may_hide(batch, keys) if all_new else keys, batch)
    plan = Plan(again=stored is not None)
    for key, request_id in keys.items():
        plan_row(plan, key, request_id, batch.rows[request_id], batch.again.get(request_id), known.get(key))
    plan.rejects, again = tables.only_new_rejects(stream, batch.rejects, stored)
    for reject in again:
        plan.duplicates[hour(reject.after or OLDEST)] += 1
    plan.clashes, told = tables.only_new_clashes(stream, plan.clashes, stored)
    for clash in told:
        plan.duplicates[hour(clash.half.at)] += 1
    for key in tables.own_keys(stream, plan):
        mark_own(plan, key)
    return plan


def _may_hide(batch: Batch, keys: Mapping[str, str]) -> list[str]:
    """Which of these could be known without the unique index of their own day's partition telling? Keys -> request ids."""
    found = [key for key, request_id in keys.items() if request_id in batch.again or _is_apart(*batch.rows[request_id])]
    if batch.oldest and batch.newest and (batch.oldest - NEAR_MIDNIGHT).date() != (batch.newest + NEAR_MIDNIGHT).date():
        found += [key for key, request_id in keys.items() if _is_near_midnight(batch.rows[request_id])]
    return found


def _is_apart(request: Half | None, response: Half | None) -> bool:
    """One half is not here, or the two are of different days."""
    return request is None or response is None or request.at.date() != response.at.date()


def _is_near_midnight(row: list[Half | None]) -> bool:
    return any(
        half is not None and (half.at - NEAR_MIDNIGHT).date() != (half.at + NEAR_MIDNIGHT).date() for half in row
    )
