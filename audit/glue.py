"""Two entries on one line, and torn ones: after a full disk a part of an entry stands before the next whole one. Pure."""

import json
import re
from typing import Any

import msgspec

HMAC = "hmac-sha256:"

# how an entry can begin: Vault writes the keys in the order of its structs (`time` first) or of the alphabet
_BEGINNING = re.compile(r'\{"(?:time":"|auth":|error":"|forwarded_from":"|request":|response":|type":")')
# an entry may hold text like its own beginning, and each such place is tried: at most so many characters are read for
# each of the line's, then what is left counts as torn
_READ_AT_MOST = 16
# what a try that finds no end for depth costs: so many characters for each that is left
_DEEP = _READ_AT_MOST
_WINDOW = 4096
# json's own decoder gives up where Python's stack ends; no part of an entry that is read stands that deep
_DEEPEST = 200

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]++|[\]}]++', re.DOTALL)
_SPACE = re.compile(r"\s*+")


def _no_number(_digits: str) -> None:
    """None is read, and one may have more digits than Python takes."""


_decoder = json.JSONDecoder(strict=False, parse_int=_no_number, parse_float=_no_number)


def pieces(line: bytes) -> list[bytes]:
    """The line cut into entries and what stands between them; joined they are the line. One piece where nothing is glued."""
    return [piece for piece, _ in entries(line)]


def entries(line: bytes) -> list[tuple[bytes, object]]:
    """The pieces, each with its JSON value; None for what is torn."""
    start = line.find(b"{")
    if start < 0:
        return [(line, None)]
    try:
        return [(line, msgspec.json.decode(line[start:]))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _apart(line)


def _apart(line: bytes) -> list[tuple[bytes, object]]:
    # latin-1: one character a byte, so that places in the text are places in the line
    text = line.decode("latin-1")
    found: list[tuple[bytes, object]] = []
    first = text.find("{")
    begin, place, left = 0, first, _READ_AT_MOST * len(text)
    while place >= 0 and left >= 0:
        entry, end = _object(text, place)
        left -= end - place
        whole = entry is not None and place == first and _ends(text, end)
        if not whole and not _is_entry(entry):
            match = _BEGINNING.search(text, place + 1)
            place = match.start() if match else -1
            continue
        # text without a brace before an entry is a device's prefix, else something is torn
        if text.find("{", begin, place) >= 0:
            found.append((line[begin:place], None))
            begin = place
        if _ends(text, end):
            end = len(text)
        found.append((line[begin:end], entry))
        begin, place = end, text.find("{", end)
    if begin < len(line):
        found.append((line[begin:], None))
    return found


def _is_entry(value: object) -> bool:
    # in an entry whose end is torn off, a client's own map may look like one, but for its hashed strings
    return isinstance(value, dict) and "time" in value and not str(value.get("type", HMAC)).startswith(HMAC)


def _ends(text: str, end: int) -> bool:
    match = _SPACE.match(text, end)
    return match is not None and match.end() == len(text)


def _object(text: str, place: int) -> tuple[Any, int]:
    """The JSON object that begins there and where it ends; None, and how far it was read, where there is none."""
    size = _WINDOW
    while True:
        # by the piece: json tells the line and column of an error, and counts all that stands before it
        part = text[place : place + size]
        try:
            value, end = _decoder.raw_decode(part)
            return value, place + end
        except json.JSONDecodeError as error:
            if len(part) < size or not (error.msg.startswith("Unterminated") or error.pos > size - 10):
                return None, place + error.pos + 1
        except RecursionError:
            return _deep_object(text, place)
        size *= 8


def _deep_object(text: str, place: int) -> tuple[Any, int]:
    depth = 0
    for match in _TOKEN.finditer(text, place):
        kind = match[0][0]
        if kind in "{[":
            depth += len(match[0])
        elif kind in "}]":
            depth -= len(match[0])
            if depth <= 0:
                end = match.end() + depth
                try:
                    return _decoder.decode(_shallow(text[place:end])), end
                except (ValueError, RecursionError):
                    return None, end
    # nothing that begins so deep is worth many tries
    return None, place + _DEEP * len(text)


def shallow(line: bytes) -> bytes:
    """The line without what is nested so deep that no reader would take it. A client may nest its request's data as it likes."""
    return _shallow(line.decode("latin-1")).encode("latin-1")


def _shallow(text: str) -> str:
    kept, depth, begin = [], 0, 0
    for match in _TOKEN.finditer(text):
        kind, count = match[0][0], len(match[0])
        if kind in "{[":
            if depth <= _DEEPEST < depth + count:
                kept.append(text[begin : match.start() + _DEEPEST - depth] + "0")
            depth += count
        elif kind in "}]":
            depth -= count
            if depth <= _DEEPEST < depth + count:
                begin = match.end() - (_DEEPEST - depth)
    if depth <= _DEEPEST:
        kept.append(text[begin:])
    return "".join(kept)
