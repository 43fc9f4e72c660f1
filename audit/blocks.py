"""Raw lines in a chain of compressed blocks: what a block's hash covers, and how it is written."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

import zstandard

from audit.models import RawBlock, Stream

_LEVEL = 3


def digest(*, previous: str, stream: str, sequence: int, offset_from: int, offset_to: int, lines: bytes) -> str:
    """SHA-256 in hex over the previous head, the stream's name, the place and the uncompressed lines."""
    header = f"{previous}\n{stream}\n{sequence}\n{offset_from}\n{offset_to}\n{len(lines)}\n"
    return hashlib.sha256(header.encode() + lines).hexdigest()


def append(stream: Stream, lines: bytes, *, count: int, offset_from: int, offset_to: int, now: datetime) -> RawBlock:
    """Adds a block to the stream's chain and moves the stream's head (the caller saves the stream)."""
    sequence = stream.sequence + 1
    sha256 = digest(
        previous=stream.head,
        stream=str(stream),
        sequence=sequence,
        offset_from=offset_from,
        offset_to=offset_to,
        lines=lines,
    )
    block = RawBlock.objects.create(
        stream=stream,
        sequence=sequence,
        offset_from=offset_from,
        offset_to=offset_to,
        lines=count,
        previous=stream.head,
        sha256=sha256,
        at=now,
        data=zstandard.ZstdCompressor(level=_LEVEL).compress(lines),
    )
    stream.sequence, stream.head = sequence, sha256
    return block


def lines_of(block: RawBlock) -> bytes:
    """The block's lines as they were stored: redacted where they had to be."""
    return zstandard.ZstdDecompressor().decompress(bytes(block.data))


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a stream's chain does not hold, and what is wrong there."""

    sequence: int
    what: str


def verify(stream: Stream) -> Break | None:
    """Walks the whole chain of one stream; None if every block is as it was written and none is missing or added."""
    head, expected = "", 1
    for block in RawBlock.objects.filter(stream=stream).order_by("sequence").iterator(chunk_size=16):
        if block.sequence != expected:
            return Break(expected, f"removed: the next block there is {block.sequence}")
        if block.previous != head:
            return Break(block.sequence, "inserted or altered: it does not follow the block before it")
        try:
            lines = lines_of(block)
        except zstandard.ZstdError:
            return Break(block.sequence, "altered: its lines cannot be decompressed")
        sha256 = digest(
            previous=block.previous,
            stream=str(stream),
            sequence=block.sequence,
            offset_from=block.offset_from,
            offset_to=block.offset_to,
            lines=lines,
        )
        if sha256 != block.sha256:
            return Break(block.sequence, "altered: its hash is another one")
        head, expected = block.sha256, block.sequence + 1
    if (stream.sequence, stream.head) != (expected - 1, head):
        return Break(expected, f"removed: the stream's head is block {stream.sequence}")
    return None
