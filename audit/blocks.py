"""Raw lines in a chain of compressed blocks: what a block's hash covers, and how it is written."""

import hashlib
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
