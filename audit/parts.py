"""The files of an archive: what they are called, how they are made of blocks and read again. docs/retention.md has the format.

Pure: knows neither the database nor where an archive lies.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from urllib.parse import quote

import msgspec
import zstandard

from audit.models import Moved, RawBlock, Stream

FORMAT = "leasehold archive 1"
# compressed: two copies of it are in memory for a moment, and it has to be sent and read again within minutes
PART = 32 * 1024 * 1024
LONGEST_NAME = 120
README_NAME = "leasehold-archive-1.txt"
README = b"""Raw audit lines of Vault or OpenBao, moved here by Leasehold. Format: leasehold archive 1.

VAULT/DEVICE/NODE/DAY/FIRST-LAST.ndjson.zst     the lines of blocks FIRST to LAST of that day: zstd -dc FILE
VAULT/DEVICE/NODE/DAY/FIRST-LAST.chain.json     their headers, and where in the file each block is

sha256 of the .chain.json is over the whole .ndjson.zst. Each block is one zstd frame: frame_bytes from frame_offset on.
lines_sha256 is over the frame's decompressed bytes. A block's own sha256 is over this text, with a line feed after each part:
previous, VAULT/DEVICE/NODE (as "stream" of the .chain.json has it), sequence, offset_from, offset_to, lines, salt_epoch, lines_sha256.
previous is the sha256 of the block with the sequence before, or empty for the first. A frame that no block names holds only a
line feed. Nothing here is ever changed: every file may be made read-only. In names, %XX stands for a byte.
"""


class Entry(msgspec.Struct):
    """A block's header, and its frame in the file beside."""

    sequence: int
    offset_from: int
    offset_to: int
    lines: int
    size: int
    salt_epoch: int
    lines_sha256: str
    previous: str
    sha256: str
    # of its newest line; when it was stored
    until: datetime
    at: datetime
    frame_offset: int
    frame_bytes: int


class Chain(msgspec.Struct):
    """A .chain.json."""

    format: str
    stream: str
    vault: str
    device: str
    node: str
    day: date
    file: str
    bytes: int
    sha256: str
    blocks: list[Entry]


@dataclass(frozen=True, slots=True)
class Part:
    """A file of lines and the one with their headers, as they are to be kept."""

    name: str
    data: bytes
    sha256: str
    chain: bytes
    first: int
    last: int
    blocks: int

    @property
    def chain_name(self) -> str:
        return chain_name(self.name)

    @property
    def chain_sha256(self) -> str:
        return hashlib.sha256(self.chain).hexdigest()


def build(stream: Stream, day: date, blocks: Sequence[tuple[RawBlock, bytes, bool]]) -> Part:
    """Of blocks in their order: each with its compressed lines, and whether the last of them has its line feed.

    The same blocks give the same bytes.
    """
    frames: list[bytes] = []
    entries, offset = [], 0
    for block, frame, ended in blocks:
        entries.append(_entry(block, frame_offset=offset, frame_bytes=len(frame)))
        # what `zstd -dc` gives must be lines, so that none is glued to the next block's first
        for piece in [frame] if ended else [frame, zstandard.ZstdCompressor().compress(b"\n")]:
            frames.append(piece)
            offset += len(piece)
    data = b"".join(frames)
    first, last = entries[0].sequence, entries[-1].sequence
    name = f"{folder(stream)}/{day}/{first:08}-{last:08}.ndjson.zst"
    sha256 = hashlib.sha256(data).hexdigest()
    device = stream.device
    chain = Chain(
        format=FORMAT,
        stream=str(stream),
        vault=device.vault.name,
        device=device.name,
        node=stream.node,
        day=day,
        file=name.rpartition("/")[2],
        bytes=len(data),
        sha256=sha256,
        blocks=entries,
    )
    text = msgspec.json.format(msgspec.json.encode(chain), indent=1) + b"\n"
    return Part(name, data, sha256, text, first, last, len(entries))


def _entry(block: RawBlock, *, frame_offset: int, frame_bytes: int) -> Entry:
    return Entry(
        sequence=block.sequence,
        offset_from=block.offset_from,
        offset_to=block.offset_to,
        lines=block.lines,
        size=block.size,
        salt_epoch=block.salt_epoch,
        lines_sha256=block.lines_sha256,
        previous=block.previous,
        sha256=block.sha256,
        until=block.until,
        at=block.at,
        frame_offset=frame_offset,
        frame_bytes=frame_bytes,
    )


def folder(stream: Stream) -> str:
    return "/".join(escaped(name) for name in (stream.device.vault.name, stream.device.name, stream.node))


def escaped(name: str) -> str:
    """One part of a path, safe in any folder and bucket; different names stay different."""
    text = quote(name, safe="") or "%"
    if text.startswith("."):
        text = "%2E" + text[1:]
    # no file system takes a name of any length; "%-" cannot come from quoting
    return text if len(text) <= LONGEST_NAME else f"{text[:80]}%-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def chain_name(name: str) -> str:
    return f"{name.removesuffix('.ndjson.zst')}.chain.json"


def read_chain(text: bytes) -> Chain | None:
    """None where it is no such file."""
    try:
        chain = msgspec.json.decode(text, type=Chain)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return chain if chain.format == FORMAT else None


def frame_of(entry: Entry, data: bytes) -> bytes:
    return data[entry.frame_offset : entry.frame_offset + entry.frame_bytes]


def lines_of(block: RawBlock, frame: bytes) -> bytes | None:
    """A block's lines out of its frame; None where they are not the ones that its header tells of."""
    try:
        # asked before anything is unpacked: an altered frame must not fill the memory
        if zstandard.frame_content_size(frame) != block.size:
            return None
        lines = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        return None
    return lines if hashlib.sha256(lines).hexdigest() == block.lines_sha256 else None


def is_as_moved(moved: Moved, data: bytes, chain: bytes) -> bool:
    """Whether both files are, byte for byte, what the record of the move says."""
    return (hashlib.sha256(data).hexdigest(), hashlib.sha256(chain).hexdigest()) == (moved.sha256, moved.chain_sha256)
