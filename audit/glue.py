"""Two entries on one line, and torn ones: after a full disk a part of an entry stands before the next whole one. Pure."""

import json

# how an entry can begin: Vault writes the keys in the order of its structs (`time` first) or of the alphabet
_BEGINNINGS = (b'{"time":"', b'{"auth":', b'{"error":"', b'{"request":', b'{"response":', b'{"type":"')
# an entry can hold text like its own beginning; a line with more such places than this is taken as one torn piece
_MOST_PLACES = 200

_decoder = json.JSONDecoder()


def pieces(line: bytes) -> list[bytes]:
    """The line cut into entries and what stands between them; joined they are the line. One piece where nothing is glued."""
    found: list[bytes] = []
    begin = 0
    while begin < len(line):
        start = line.find(b"{", begin)
        end = _end_of_object(line, start) if start >= 0 else 0
        if not end:
            # torn: what follows is good again from the next place at which a whole entry stands
            end = _next_entry(line, begin + 1) or len(line)
        elif not line[end:].strip():
            end = len(line)
        found.append(line[begin:end])
        begin = end
    return found


def _end_of_object(line: bytes, start: int) -> int:
    """Where the JSON object that begins at `start` ends; 0 if none does."""
    # latin-1: one character a byte, so that places in the text are places in the line
    try:
        return _decoder.raw_decode(line[start:].decode("latin-1"))[1] + start
    except (ValueError, RecursionError):
        return 0


def _next_entry(line: bytes, begin: int) -> int:
    places = sorted({place for text in _BEGINNINGS for place in _places(line, text, begin)})
    for place in places[:_MOST_PLACES]:
        try:
            entry, _ = _decoder.raw_decode(line[place:].decode("latin-1"))
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and "time" in entry and "type" in entry:
            return place
    return 0


def _places(line: bytes, text: bytes, begin: int) -> list[int]:
    found: list[int] = []
    place = line.find(text, begin)
    while place >= 0 and len(found) < _MOST_PLACES:
        found.append(place)
        place = line.find(text, place + 1)
    return found
