"""Keeps the house: partitions made ahead, old ones dropped by policy, raw lines moved to the archive before.

Hourly counts, coverage, leases, headers of blocks and all history stay; sessions go with the events. Every step can be done again after a crash: a file
of the archive is the same each time, and the database drops nothing of which it has no record.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from django.db.models import Q

from audit import partitions, parts
from audit.archive import Archive, ArchiveUnavailable, keep, named
from audit.blocks import day_of, header_holds
from audit.models import (
    BlockLines,
    DatabaseLog,
    Ending,
    Housekeeping,
    Moved,
    RawBlock,
    ServerStart,
    Stream,
    Unwrapping,
    Wrapping,
)
from leases.errors import SourceError
from leases.models import DynamicUser, Policy, SampledPeriod, Session

DAYS_AHEAD = 14
EVERY = timedelta(hours=1)


class NotAsWritten(SourceError):
    """Lines that are not what their header says must not be moved, and still less be dropped."""

    def __init__(self, what: str, day: date) -> None:
        super().__init__(
            f"{what}; nothing of {day} is moved or dropped",
            "Run `manage.py verify-chain`: it names the block. Keep a copy of the database before anything else is done.",
        )


@dataclass(slots=True)
class Kept:
    """What one run did. `complete`: nothing that is due is left, but for what `busy` and `problems` tell of."""

    made: int = 0
    events: list[date] = field(default_factory=list)
    lines: list[date] = field(default_factory=list)
    files: int = 0
    blocks: int = 0
    bytes: int = 0
    busy: list[str] = field(default_factory=list)
    problems: list[SourceError] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Due:
    """What a run would do now. `blocks` and `bytes`: compressed raw lines that would be moved (archive) or just dropped."""

    make: int
    events: list[date]
    lines: list[date]
    blocks: int
    bytes: int
    archive: str


def is_due(*, now: datetime) -> bool:
    return not Housekeeping.objects.filter(pk=1, tried_at__gt=now - EVERY).exists()


def keep_house(*, now: datetime, until: float = float("inf"), archive: Archive | None = None) -> Kept:
    """Does what is due. After `until` (of time.monotonic()) it stops between two files; a later run goes on.

    `archive`: instead of the one that the policy names.
    """
    policy, kept = Policy.current(), Kept()
    kept.made = make_ahead(now=now)
    drop_events(policy, kept, now=now)
    if policy.raw_days:
        try:
            if policy.archive:
                archive = archive or named(policy.archive, policy)
                leave_readme(archive)
            keep_lines(policy, archive if policy.archive else None, kept, now=now, until=until)
        except ArchiveUnavailable as error:
            kept.problems.append(error)
    write_down(kept, now=now)
    return kept


def what_is_due(*, now: datetime) -> Due:
    policy = Policy.current()
    days = set(_ahead(now))
    missing = max(len(days - set(partitions.days(table))) for table in (*partitions.EVENTS, partitions.LINES))
    lines = _old(partitions.LINES, policy.raw_days, now=now)
    sizes = [size for day in lines for _, _, size in _not_moved(day)]
    events = sorted({day for table in partitions.EVENTS for day in _old(table, policy.event_days, now=now)})
    return Due(missing, events, lines, len(sizes), sum(sizes), policy.archive)


def make_ahead(*, now: datetime) -> int:
    """Partitions of today and the next days, so that no reader and no writer has to wait for one at midnight."""
    return partitions.make_for(_ahead(now))


def _ahead(now: datetime) -> list[date]:
    today = now.astimezone(UTC).date()
    return [today + timedelta(days=number) for number in range(DAYS_AHEAD + 1)]


def days_ahead(*, now: datetime) -> int:
    """For how many days after today there are partitions, of the table that has the fewest. Negative: not even for today."""
    today = now.astimezone(UTC).date()
    newest = [max(partitions.days(table), default=None) for table in (*partitions.EVENTS, partitions.LINES)]
    return min((day - today).days if day else -1 for day in newest)


def _old(table: str, days: int, *, now: datetime) -> list[date]:
    """Days that the policy keeps no longer; the very days whose lines ingest counts as expired."""
    oldest = (now.astimezone(UTC) - timedelta(days=days)).date()
    return [day for day in partitions.days(table) if day < oldest] if days else []


def drop_events(policy: Policy, kept: Kept, *, now: datetime) -> None:
    for table in partitions.EVENTS:
        for day in _old(table, policy.event_days, now=now):
            if not _drop(day, table, kept):
                break
            if day not in kept.events:
                kept.events.append(day)
    if policy.event_days:
        drop_facts(oldest=now - timedelta(days=policy.event_days))
        drop_sessions(oldest=now - timedelta(days=policy.event_days))


def drop_facts(*, oldest: datetime) -> None:
    """What events told of wrappings and ends: of use for leases that are no older, and made again by `rebuild` from the same lines."""
    for table in (Wrapping, Unwrapping, Ending):
        table.objects.filter(at__lt=oldest).delete()


@transaction.atomic
def drop_sessions(*, oldest: datetime) -> None:
    """Sessions that were over by then, and users and starts of servers; nothing of that time is said to be known any more.

    The time that is known goes first: where a session was dropped, that there was none must never be read.
    """
    # this first, so that no reader of a log goes on with a period that began before
    DatabaseLog.objects.filter(complete_since__lt=oldest).update(complete_since=oldest)
    SampledPeriod.objects.filter(to_at__lt=oldest).delete()
    SampledPeriod.objects.filter(from_at__lt=oldest).update(from_at=oldest)
    old = Session.objects.filter(started_at__lt=oldest, last_seen_at__lt=oldest)
    # one that has no end is of a server that answers no more, or goes on
    silent = Q(ended_at=None) & (Q(server__sampled_at=None) | Q(server__sampled_at__lt=oldest))
    old.filter(Q(ended_at__lt=oldest) | silent).delete()
    DynamicUser.objects.filter(last_seen_at__lt=oldest).delete()
    ServerStart.objects.filter(at__lt=oldest).delete()


def keep_lines(policy: Policy, archive: Archive | None, kept: Kept, *, now: datetime, until: float) -> None:
    """Raises ArchiveUnavailable; what was moved until then stays moved."""
    for day in _old(partitions.LINES, policy.raw_days, now=now):
        try:
            nothing_is_missing(day)
            if archive is not None and not move_day(day, policy, archive, kept, now=now, until=until):
                kept.complete = False
                return
        except NotAsWritten as error:
            kept.problems.append(error)
            continue
        if not _drop(day, partitions.LINES, kept):
            return
        kept.lines.append(day)
        if time.monotonic() > until:
            kept.complete = False
            return


def _drop(day: date, table: str, kept: Kept) -> bool:
    try:
        partitions.drop_day(day, table)
    except partitions.Busy as error:
        # each try makes all others wait: the next run tries again
        kept.busy.append(str(error))
        return False
    return True


def nothing_is_missing(day: date) -> None:
    """Dropping must not cover up that lines went before. Raises NotAsWritten."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT h.stream_id, h.sequence FROM audit_rawblock h WHERE h.until >= %(from)s AND h.until < %(to)s"
            " AND NOT EXISTS (SELECT FROM audit_blocklines b WHERE b.until >= %(from)s AND b.until < %(to)s"
            " AND b.stream_id = h.stream_id AND b.sequence = h.sequence)"
            " AND NOT EXISTS (SELECT FROM audit_dropped d WHERE d.stream_id = h.stream_id AND d.day = %(day)s"
            " AND h.sequence BETWEEN d.first AND d.last) ORDER BY 1, 2 LIMIT 1",
            _bounds(day),
        )
        if row := cursor.fetchone():
            raise NotAsWritten(f"The lines of block {row[1]} of {_stream(row[0])} are gone", day)


def move_day(day: date, policy: Policy, archive: Archive, kept: Kept, *, now: datetime, until: float) -> bool:
    """Moves what is not in the archive yet; False where time ran out before the end. Raises ArchiveUnavailable, NotAsWritten."""
    for part, stream in day_in_parts(day):
        keep(archive, part.name, part.data)
        keep(archive, part.chain_name, part.chain)
        Moved.objects.create(
            stream=stream,
            day=day,
            first=part.first,
            last=part.last,
            blocks=part.blocks,
            archive=policy.archive,
            name=part.name,
            size=len(part.data),
            sha256=part.sha256,
            chain_sha256=part.chain_sha256,
            at=now,
        )
        kept.files += 1
        kept.blocks += part.blocks
        kept.bytes += len(part.data)
        if time.monotonic() > until:
            return False
    return True


def day_in_parts(day: date, *, most: int = parts.PART) -> Iterator[tuple[parts.Part, Stream]]:
    """What of a day is not moved yet, in files of at most that many bytes (or of one block). Raises NotAsWritten."""
    taken: list[int] = []
    stream_id, size = 0, 0
    for stream, sequence, length in [*_not_moved(day), (0, 0, 0)]:
        if taken and (stream != stream_id or size + length > most):
            of = _stream(stream_id)
            yield part_of(day, of, taken), of
            taken, size = [], 0
        stream_id, size = stream, size + length
        taken.append(sequence)


def _not_moved(day: date) -> list[tuple[int, int, int]]:
    """(stream, sequence, compressed size) of each block of the day that no file of the archive holds, in order."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT b.stream_id, b.sequence, octet_length(b.data) FROM audit_blocklines b"
            " WHERE b.until >= %(from)s AND b.until < %(to)s AND NOT EXISTS (SELECT FROM audit_moved m"
            " WHERE m.stream_id = b.stream_id AND m.day = %(day)s AND b.sequence BETWEEN m.first AND m.last) ORDER BY 1, 2",
            _bounds(day),
        )
        return list(cursor.fetchall())


def part_of(day: date, stream: Stream, sequences: list[int]) -> parts.Part:
    """Raises NotAsWritten where a block is not what its header says."""
    bounds = _bounds(day)
    headers = {block.sequence: block for block in RawBlock.objects.filter(stream=stream, sequence__in=sequences)}
    rows = BlockLines.objects.filter(
        stream=stream, sequence__in=sequences, until__gte=bounds["from"], until__lt=bounds["to"]
    ).order_by("sequence")
    blocks = []
    for row in rows:
        header, frame = headers.get(row.sequence), bytes(row.data)
        lines = parts.lines_of(header, frame) if header else None
        if header is None or lines is None or day_of(header) != day or not header_holds(stream, header):
            raise NotAsWritten(f"Block {row.sequence} of {stream} is not as it was written", day)
        blocks.append((header, frame, lines.endswith(b"\n")))
    return parts.build(stream, day, blocks)


def _bounds(day: date) -> dict[str, date | datetime]:
    start = datetime.combine(day, datetime.min.time(), UTC)
    return {"day": day, "from": start, "to": start + timedelta(days=1)}


def _stream(stream_id: int) -> Stream:
    return Stream.objects.select_related("device__vault").get(pk=stream_id)


def leave_readme(archive: Archive) -> None:
    """The archive says itself what it is; and an archive that cannot be written is noticed before the first day is old."""
    if archive.read(parts.README_NAME) is None:
        archive.write(parts.README_NAME, parts.README)


def write_down(kept: Kept, *, now: datetime) -> None:
    problem = kept.problems[0] if kept.problems else None
    done = kept.complete and not kept.busy and not problem
    defaults: dict[str, object] = {
        "cause": problem.cause[:500] if problem else "",
        "fix": problem.fix[:500] if problem else "",
    }
    if kept.complete:
        defaults["tried_at"] = now
    if done:
        defaults["kept_at"] = now
    Housekeeping.objects.update_or_create(pk=1, defaults=defaults, create_defaults={"kept_at": now, **defaults})


def ask_anew(*, now: datetime) -> None:
    """After the policies were written: the next round tries them, and what is late is counted from the first time on."""
    Housekeeping.objects.update_or_create(pk=1, defaults={"tried_at": None}, create_defaults={"kept_at": now})


def archived_lines(block: RawBlock, *, archive: Archive | None = None) -> bytes | None:
    """A block's lines out of the archive; None where no record says that they were moved there.

    Raises ArchiveUnavailable, also where the archive gives other lines than those that the header tells of.
    """
    moved = Moved.objects.filter(
        stream=block.stream_id, day=day_of(block), first__lte=block.sequence, last__gte=block.sequence
    ).first()
    if moved is None:
        return None
    archive = archive or where_now(moved)
    chain = parts.read_chain(archive.read(parts.chain_name(moved.name)) or b"")
    entry = next((entry for entry in chain.blocks if entry.sequence == block.sequence), None) if chain else None
    if entry:
        frame = archive.read(moved.name, start=entry.frame_offset, length=entry.frame_bytes)
        if frame and (lines := parts.lines_of(block, frame)) is not None:
            return lines
    raise ArchiveUnavailable(
        f"The archive does not give back block {block.sequence} of {moved.name} as it was moved there",
        "Run `manage.py verify-chain --archive`, and bring the file back from a copy of the archive.",
    )


def where_now(moved: Moved) -> Archive:
    """Where the policy says that the archive is: a folder or bucket may get another name. Without one, where it was."""
    policy = Policy.current()
    return named(policy.archive or moved.archive, policy)


def examine(stream: Stream, *, archive: Archive | None = None) -> dict[int, str]:
    """Reads all that was moved of a stream: by sequence, what is wrong with the block in the archive ("" if nothing is).

    Raises ArchiveUnavailable where the archive itself does not answer.
    """
    found: dict[int, str] = {}
    for moved in Moved.objects.filter(stream=stream).order_by("day", "first"):
        store, beside = archive or where_now(moved), parts.chain_name(moved.name)
        data, text = store.read(moved.name), store.read(beside)
        chain = parts.read_chain(text or b"")
        entries = {entry.sequence: entry for entry in chain.blocks} if chain else {}
        headers = RawBlock.objects.filter(stream=stream, sequence__range=(moved.first, moved.last)).order_by("sequence")
        here: dict[int, str] = {}
        for block in headers:
            if day_of(block) != moved.day:
                continue
            entry, here[block.sequence] = entries.get(block.sequence), ""
            if data is None or text is None:
                here[block.sequence] = f"{moved.name if data is None else beside} is not there"
            elif entry is None or entry.sha256 != block.sha256:
                here[block.sequence] = f"{beside} does not have its header"
            elif parts.lines_of(block, parts.frame_of(entry, data)) is None:
                here[block.sequence] = f"{moved.name} does not hold its lines"
        if not any(here.values()) and not parts.is_as_moved(moved, data or b"", text or b""):
            here = dict.fromkeys(here, f"{moved.name} or its headers are not the files that were moved")
        found |= here
    return found
