"""The lines of one event as they were stored, read back out of their blocks: hashed as Vault wrote them."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import zstandard
from django.db.models import Q

from audit import glue
from audit.blocks import lines_of
from audit.models import Event, Moved, RawBlock, Sighting


class _Request(msgspec.Struct):
    id: str = ""


class _Entry(msgspec.Struct):
    type: object = None
    request: _Request | None = None


_entry = msgspec.json.Decoder(_Entry).decode


@dataclass(frozen=True, slots=True)
class RawLine:
    """`half`: the entry's type (request, response). `number` counts from 0 in its block, `offset` bytes of the file.

    The offset is known only where nothing of the block was redacted.
    """

    half: str
    block: int
    number: int
    offset: int | None
    text: bytes


@dataclass(frozen=True, slots=True)
class Unread:
    """A block whose lines cannot be shown, and why."""

    block: int
    cause: str


@dataclass(frozen=True, slots=True)
class Told:
    """What one stream wrote of an event."""

    sighting: Sighting
    lines: Sequence[RawLine]
    unread: Sequence[Unread]


def told(event: Event, sightings: Sequence[Sighting]) -> list[Told]:
    """The lines of each sighting, in their order. Each block is unpacked once."""
    wanted = {
        (sighting.stream_id, sequence)
        for sighting in sightings
        for sequence in (sighting.request_block, sighting.response_block)
        if sequence is not None
    }
    blocks = {}
    if wanted:
        either = Q()
        for stream, sequence in wanted:
            either |= Q(stream=stream, sequence=sequence)
        blocks = {(block.stream_id, block.sequence): block for block in RawBlock.objects.filter(either)}
    found = []
    for sighting in sightings:
        lines: list[RawLine] = []
        unread: list[Unread] = []
        for sequence in sorted(key[1] for key in wanted if key[0] == sighting.stream_id):
            block = blocks.get((sighting.stream_id, sequence))
            text = _text(block)
            if isinstance(text, Unread):
                unread.append(text)
            elif block is not None and not (of_block := of_request(block, text, event.request_id)):
                unread.append(
                    Unread(
                        block.sequence,
                        "No line of it names this request: `manage.py verify-chain` says whether it is whole.",
                    )
                )
            elif block is not None:
                lines += of_block
        found.append(Told(sighting, lines, unread))
    return found


def _text(block: RawBlock | None) -> bytes | Unread:
    if block is None:
        return Unread(0, "Its block is not in the database: `manage.py verify-chain` says what is missing.")
    try:
        text = lines_of(block)
    except zstandard.ZstdError:
        return Unread(block.sequence, "It cannot be unpacked, so it was altered: `manage.py verify-chain` tells more.")
    if text is not None:
        return text
    moved = Moved.objects.filter(stream=block.stream_id, first__lte=block.sequence, last__gte=block.sequence)
    kept = moved.order_by("-at", "-id").first()
    if kept is None:
        return Unread(block.sequence, "Retention has dropped its lines. Its header stays in the chain.")
    return Unread(block.sequence, f"Its lines were moved to the archive: {kept.name} in {kept.archive}.")


def of_request(block: RawBlock, text: bytes, request_id: str) -> list[RawLine]:
    """Every line of the block that is about this request, also one that was told twice."""
    # a request id that needs an escape in JSON is written by no server
    needle = request_id.encode()
    whole = block.size == block.offset_to - block.offset_from
    found = []
    at = text.find(needle)
    while at >= 0:
        begin, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        line = text[begin : end if end >= 0 else len(text)]
        place = begin
        for piece in glue.pieces(line):
            if (half := _half(piece, request_id)) is not None:
                offset = block.offset_from + place if whole else None
                found.append(RawLine(half, block.sequence, text.count(b"\n", 0, begin), offset, piece))
            place += len(piece)
        at = text.find(needle, begin + len(line))
    return found


def _half(piece: bytes, request_id: str) -> str | None:
    """The entry's type where it is about this request."""
    if request_id.encode() not in piece:
        return None
    start = piece[max(0, piece.find(b"{")) :]
    try:
        try:
            entry = _entry(start)
        except RecursionError:
            entry = _entry(glue.shallow(start))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if entry.request is None or entry.request.id != request_id:
        return None
    return entry.type if isinstance(entry.type, str) and entry.type else "line"
