"""Secrets in audit lines: one fast scan over a whole chunk, and an exact look at the few lines that it points at. Pure.

Two kinds: token-shaped text, which anybody can put into a path, is redacted; text where the device must have written an HMAC
(`log_raw`, or a key that tuning took out of hashing) refuses the stream.
"""

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import hyperscan
import msgspec

from audit import glue

HMAC = "hmac-sha256:"
REDACTED = b"[redacted]"

# text that looks like a token of Vault or OpenBao, or like a signed JWT, wherever it stands
# (what precedes it may be a JSON or percent escape, whose last character is a letter or a digit)
TOKEN_SHAPED = re.compile(
    rb"hv[sbr]\.[A-Za-z0-9_-]{20,}"
    rb"|(?:(?<![A-Za-z0-9_-])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))[sbr]\.[A-Za-z0-9_-]{24,}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
# keys of request and response data, and of auth, whose text is a secret
SECRET_KEYS = frozenset(
    {
        "client_token",
        "jwt",
        "otp",
        "passcode",
        "password",
        "private_key",
        "secret_access_key",
        "secret_id",
        "secret_key",
        "security_token",
        "token",
    }
)
# Vault leaves text that looks like a time as it is, also where it hashes everything else, and a client may choose it
TIME_SHAPED = re.compile(r"\d{4}-\d\d-\d\d[Tt ][0-9:.,Zz+-]*")

_KEY = rb'"(?:' + b"|".join(key.encode() for key in sorted(SECRET_KEYS)) + rb')"\s*:\s*"'
# a value that is neither empty nor begins like an HMAC; `[^h"]|h[^m]|hm[^a]|…`, since the scanner has no lookahead
_NO_HMAC = b"|".join(
    re.escape(HMAC[:length].encode()) + (b'[^h"]' if not length else b"[^" + HMAC[length].encode() + b"]")
    for length in range(len(HMAC))
)
# the same for text that is no JSON: what stands there is cut out up to the next quote
RAW_VALUE = re.compile(b"(" + _KEY + rb")((?!hmac-sha256:)[^\"]+)")
_EXPRESSIONS = [
    rb"hv[sbr]\.[A-Za-z0-9_-]{20}",
    rb"[sbr]\.[A-Za-z0-9_-]{24}",
    rb"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10}",
    _KEY + b"(?:" + _NO_HMAC + b")",
    rb"\\u0000|\x00",
]


class RawSecret(Exception):
    """A field that an HMAC must cover stands in plain text: nothing of this stream may be stored."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


_of_thread = threading.local()


def _scanner() -> Any:
    """Hyperscan: one pass at gigabytes a second, where Python's re would take longer than all the rest of ingestion."""
    if found := getattr(_of_thread, "scanner", None):
        return found
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=_EXPRESSIONS,
        ids=list(range(len(_EXPRESSIONS))),
        flags=[hyperscan.HS_FLAG_DOTALL] * len(_EXPRESSIONS),
    )
    # a database's scratch space serves one scan at a time
    _of_thread.scanner = database
    return database


def suspects(block: bytes) -> list[int]:
    """Places in `block` near which a line must be looked at (ends of matches, ascending); empty for a clean block."""
    ends: list[int] = []

    def found(number: int, begin: int, end: int, flags: int, context: object) -> None:
        ends.append(end)

    _scanner().scan(block, match_event_handler=found)
    return sorted(ends)


def suspect_lines(block: bytes, lines: list[bytes]) -> Iterator[int]:
    """Which of `lines` (the block split at newlines) must be looked at, ascending, each once."""
    ends = suspects(block)
    if not ends:
        return
    starts, at = [], 0
    for line in lines:
        starts.append(at)
        at += len(line) + 1
    last = -1
    for end in ends:
        number = bisect_right(starts, end - 1) - 1
        if number != last:
            yield number
            last = number


def clean(line: bytes) -> tuple[bytes, int]:
    """The line without token-shaped text, and how often some was taken out. Raises RawSecret."""
    found = [_clean(piece) for piece in glue.pieces(line)]
    return b"".join(piece for piece, _ in found), sum(redactions for _, redactions in found)


def _clean(piece: bytes) -> tuple[bytes, int]:
    piece, redactions = TOKEN_SHAPED.subn(REDACTED, piece)
    start = piece.find(b"{")
    try:
        field = raw_field(msgspec.json.decode(piece[start:]), "") if start >= 0 else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # torn: whether the device writes raw values cannot be told from it, so what looks like one does not stay
        cut = list(RAW_VALUE.finditer(piece))
        for match in reversed([match for match in cut if not HMAC.startswith(match[2].decode("latin-1"))]):
            piece = piece[: match.start(2)] + REDACTED + piece[match.end(2) :]
            redactions += 1
        return piece, redactions
    if field:
        raise RawSecret(field)
    return piece, redactions


def raw_field(value: object, path: str) -> str:
    """The path of the first key whose text should be an HMAC and is none; empty where there is none."""
    if isinstance(value, dict):
        for key, item in value.items():
            where = f"{path}.{key}" if path else key
            if key in SECRET_KEYS and is_raw(item):
                return where[:200]
            if found := raw_field(item, where):
                return found
    elif isinstance(value, list):
        for item in value:
            if found := raw_field(item, path):
                return found
    return ""


def is_raw(value: object) -> bool:
    """Text where the device should have written a hash. A client can choose a time, which is left as it is."""
    return isinstance(value, str) and bool(value) and not value.startswith(HMAC) and not TIME_SHAPED.fullmatch(value)
