"""Raw lines in a chain of compressed blocks: what a block's hash covers, and how it is written and checked."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

import zstandard
from django.db import connection

from audit.batch import OLDEST, Block
from audit.models import BlockLines, Dropped, Moved, RawBlock, Stream


def digest(
    *,
    previous: str,
    stream: str,
    sequence: int,
    offset_from: int,
    offset_to: int,
    lines: int,
    salt_epoch: int,
    lines_sha256: str,
) -> str:
    """SHA-256 in hex over the previous head, the stream's name, the place, the salt epoch and the hash of the uncompressed lines."""
    header = f"{previous}\n{stream}\n{sequence}\n{offset_from}\n{offset_to}\n{lines}\n{salt_epoch}\n{lines_sha256}\n"
    return hashlib.sha256(header.encode()).hexdigest()


def append(stream: Stream, taken: list[tuple[int, Block]], *, now: datetime) -> dict[int, int]:
    """Adds blocks to the stream's chain and moves its head (the caller saves the stream).

    `taken`: each block with its number in the batch. Returns the sequence number of each.
    """
    rows, data, sequences = [], [], {}
    name = str(stream)
    for number, block in taken:
        assert block.packed is not None  # noqa: S101 (take_apart packs each)
        packed = block.packed.result()
        sequence = stream.sequence + 1
        place = {
            "sequence": sequence,
            "offset_from": block.offset_from,
            "offset_to": block.offset_to,
            "lines": block.lines,
            "salt_epoch": stream.device.salt_epoch,
            "lines_sha256": packed.sha256,
        }
        sha256 = digest(previous=stream.head, stream=name, **place)  # type: ignore[arg-type]
        # lines without any time are kept as long as those of today
        until = now if block.until == OLDEST else block.until
        rows.append(
            RawBlock(
                stream=stream, previous=stream.head, sha256=sha256, at=now, until=until, size=len(block.text), **place
            )
        )
        data.append((until, stream.pk, sequence, packed.data))
        stream.sequence, stream.head = sequence, sha256
        sequences[number] = sequence
    if rows:
        RawBlock.objects.bulk_create(rows)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO audit_blocklines (until, stream_id, sequence, data) VALUES (%s, %s, %s, %s)", data
            )
    return sequences


def lines_of(block: RawBlock, *, elsewhere: Callable[[RawBlock], bytes | None] | None = None) -> bytes | None:
    """The block's lines as they were stored: redacted where they had to be. None where they are in the database no longer.

    `elsewhere` is asked then, such as `retention.archived_lines`.
    """
    found = BlockLines.objects.filter(stream=block.stream_id, sequence=block.sequence, until=block.until).first()
    if found is not None:
        return zstandard.ZstdDecompressor().decompress(bytes(found.data))
    return elsewhere(block) if elsewhere else None


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a stream's chain does not hold, and what is wrong there."""

    sequence: int
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A walk over one stream's chain. `moved`, `dropped`: blocks whose lines are in the archive, and nowhere any more."""

    broken: Break | None
    blocks: int
    moved: int
    dropped: int = 0


def verify(
    stream: Stream,
    *,
    archived: Mapping[int, str] | None = None,
    headers_only: bool = False,
    after: tuple[int, str] = (0, ""),
    up_to: int | None = None,
) -> Verified:
    """Walks the whole chain of one stream: is every block as it was written, and none missing or added?

    Of lines that were moved or dropped only headers are checked. `archived` tells what is in the archive: by sequence, what
    is wrong with a block there ("" if nothing is). Only what follows a block (its sequence and hash), and only `up_to` one,
    where these are given.
    """
    head, expected, records, gone = after[1], after[0] + 1, records_of(stream), Counter[str]()

    def walked(broken: Break | None) -> Verified:
        return Verified(broken, expected - 1 - after[0], gone["moved"], gone["dropped"])

    for block in chain(stream, after=after[0], up_to=up_to):
        if found := _break(stream, block, head=head, expected=expected):
            return walked(found)
        if headers_only:
            head, expected = block.sha256, block.sequence + 1
            continue
        lines = lines_if_whole(block)
        if isinstance(lines, Break):
            return walked(lines)
        if lines is None:
            if not (what := records.what_became_of(block)):
                return walked(Break(block.sequence, "removed: its lines are gone and nothing says where to"))
            wrong = archived.get(block.sequence, "it is not there") if what == "moved" and archived is not None else ""
            if wrong:
                return walked(Break(block.sequence, f"altered in the archive: {wrong}"))
            gone[what] += 1
        head, expected = block.sha256, block.sequence + 1
    broken = None
    if up_to is not None:
        broken = Break(expected, "removed: no block follows") if expected <= up_to else None
    elif (stream.sequence, stream.head) != (expected - 1, head):
        broken = Break(expected, f"removed: the stream's head is block {stream.sequence}")
    return walked(broken)


@dataclass(frozen=True, slots=True)
class Records:
    """What is written down of one stream's lines that are gone: ranges of sequences by the day of their partition."""

    moved: Mapping[date, list[range]]
    dropped: Mapping[date, list[range]]

    def what_became_of(self, block: RawBlock) -> str:
        """ "moved" or "dropped"; "" where nothing says so."""
        day = day_of(block)
        if not any(block.sequence in found for found in self.dropped[day]):
            return ""
        return "moved" if any(block.sequence in found for found in self.moved[day]) else "dropped"


def records_of(stream: Stream) -> Records:
    moved, dropped = defaultdict(list), defaultdict(list)
    for day, first, last in Moved.objects.filter(stream=stream).values_list("day", "first", "last"):
        moved[day].append(range(first, last + 1))
    rows = Dropped.objects.filter(stream=stream, first__isnull=False, last__isnull=False)
    for day, start, end in rows.values_list("day", "first", "last"):
        dropped[day].append(range(start or 0, (end or 0) + 1))
    return Records(moved, dropped)


def day_of(block: RawBlock) -> date:
    """The day of the partition that holds the block's lines."""
    return block.until.astimezone(UTC).date()


def chain(stream: Stream, *, after: int = 0, up_to: int | None = None) -> Iterator[RawBlock]:
    """The headers in their order."""
    rows = RawBlock.objects.filter(stream=stream)
    if after:
        rows = rows.filter(sequence__gt=after)
    if up_to is not None:
        rows = rows.filter(sequence__lte=up_to)
    return rows.order_by("sequence").iterator(chunk_size=500)


def _break(stream: Stream, block: RawBlock, *, head: str, expected: int) -> Break | None:
    if block.sequence != expected:
        return Break(expected, f"removed: the next block there is {block.sequence}")
    if block.previous != head:
        return Break(block.sequence, "inserted or altered: it does not follow the block before it")
    return None if header_holds(stream, block) else Break(block.sequence, "altered: its header's hash is another one")


def header_holds(stream: Stream, block: RawBlock) -> bool:
    return block.sha256 == digest(
        previous=block.previous,
        stream=str(stream),
        sequence=block.sequence,
        offset_from=block.offset_from,
        offset_to=block.offset_to,
        lines=block.lines,
        salt_epoch=block.salt_epoch,
        lines_sha256=block.lines_sha256,
    )


def lines_if_whole(block: RawBlock) -> bytes | Break | None:
    """The lines, None where they were moved away, or what is wrong with them."""
    try:
        lines = lines_of(block)
    except zstandard.ZstdError:
        return Break(block.sequence, "altered: its lines cannot be decompressed")
    if lines is not None and hashlib.sha256(lines).hexdigest() != block.lines_sha256:
        return Break(block.sequence, "altered: its lines' hash is another one")
    return lines
