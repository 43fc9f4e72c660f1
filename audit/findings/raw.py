"""What the raw lines of one event say beyond what is kept of it: for rare events only."""

from collections.abc import Iterable
from uuid import UUID

import msgspec
import zstandard

from audit import glue
from audit.blocks import lines_of
from audit.models import Event, RawBlock


class _Data(msgspec.Struct):
    disabled: object = None


class _Request(msgspec.Struct):
    id: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Entry(msgspec.Struct):
    request: _Request | None = None


_entry = msgspec.json.Decoder(_Entry).decode
_data = msgspec.json.Decoder(_Data).decode


def disabled_by(events: Iterable[Event]) -> dict[UUID, bool | None]:
    """What the request of each event set `disabled` to, None where it did not. An event is missing where no raw line of it is
    in the database any more. Each block is unpacked once."""
    wanted: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        sequence = event.request_block if event.request_block is not None else event.response_block
        if sequence is not None:
            wanted.setdefault((event.stream_id, sequence), []).append(event)
    found: dict[UUID, bool | None] = {}
    for (stream, sequence), of_block in wanted.items():
        block = RawBlock.objects.filter(stream=stream, sequence=sequence).first()
        lines = _lines(block) if block else None
        if lines is None:
            continue
        for event in of_block:
            if (said := _said(lines, event.request_id)) is not None:
                found[event.request] = said.disabled if isinstance(said.disabled, bool) else None
    return found


def _lines(block: RawBlock) -> bytes | None:
    try:
        return lines_of(block)
    except zstandard.ZstdError:
        return None  # an altered block is verify-chain's to tell


def _said(lines: bytes, request_id: str) -> _Data | None:
    at = lines.find(needle := request_id.encode())
    while at >= 0:
        begin, end = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        line = lines[begin : end if end >= 0 else len(lines)]
        for piece in glue.pieces(line):
            try:
                request = _entry(piece[max(0, piece.find(b"{")) :]).request
                if request is not None and request.id == request_id:
                    return _data(request.data) if bytes(request.data)[:1] == b"{" else _Data()
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
        at = lines.find(needle, begin + len(line))
    return None
