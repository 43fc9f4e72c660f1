"""Raw lines in a chain of compressed blocks: what a block's hash covers, and how it is written and checked."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import zstandard
from django.db import connection

from audit.batch import OLDEST, Block
from audit.models import BlockLines, RawBlock, Stream


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


def lines_of(block: RawBlock) -> bytes | None:
    """The block's lines as they were stored: redacted where they had to be. None where they are in the database no longer."""
    found = BlockLines.objects.filter(stream=block.stream_id, sequence=block.sequence, until=block.until).first()
    return None if found is None else zstandard.ZstdDecompressor().decompress(bytes(found.data))


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a stream's chain does not hold, and what is wrong there."""

    sequence: int
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A walk over one stream's chain. `moved`: blocks whose lines are not in the database, so that only headers were checked."""

    broken: Break | None
    blocks: int
    moved: int


def verify(stream: Stream, *, headers_only: bool = False) -> Verified:
    """Walks the whole chain of one stream: is every block as it was written, and none missing or added?"""
    head, expected, moved = "", 1, 0
    for block in chain(stream):
        if found := _break(stream, block, head=head, expected=expected):
            return Verified(found, expected - 1, moved)
        lines = None if headers_only else lines_if_whole(block)
        if isinstance(lines, Break):
            return Verified(lines, expected - 1, moved)
        moved += lines is None
        head, expected = block.sha256, block.sequence + 1
    broken = None
    if (stream.sequence, stream.head) != (expected - 1, head):
        broken = Break(expected, f"removed: the stream's head is block {stream.sequence}")
    return Verified(broken, expected - 1, moved)


def chain(stream: Stream) -> Iterator[RawBlock]:
    """The headers in their order."""
    return RawBlock.objects.filter(stream=stream).order_by("sequence").iterator(chunk_size=500)


def _break(stream: Stream, block: RawBlock, *, head: str, expected: int) -> Break | None:
    if block.sequence != expected:
        return Break(expected, f"removed: the next block there is {block.sequence}")
    if block.previous != head:
        return Break(block.sequence, "inserted or altered: it does not follow the block before it")
    sha256 = digest(
        previous=block.previous,
        stream=str(stream),
        sequence=block.sequence,
        offset_from=block.offset_from,
        offset_to=block.offset_to,
        lines=block.lines,
        salt_epoch=block.salt_epoch,
        lines_sha256=block.lines_sha256,
    )
    return None if sha256 == block.sha256 else Break(block.sequence, "altered: its header's hash is another one")


def lines_if_whole(block: RawBlock) -> bytes | Break | None:
    """The lines, None where they were moved away, or what is wrong with them."""
    try:
        lines = lines_of(block)
    except zstandard.ZstdError:
        return Break(block.sequence, "altered: its lines cannot be decompressed")
    if lines is not None and hashlib.sha256(lines).hexdigest() != block.lines_sha256:
        return Break(block.sequence, "altered: its lines' hash is another one")
    return lines
