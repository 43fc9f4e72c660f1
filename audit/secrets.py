"""Secrets in audit lines: one fast scan over a whole chunk, and an exact look at the few lines that it points at. Pure.

Two kinds: token-shaped text, which anybody can put into a path, is redacted; text where the device must have written an HMAC
(`log_raw`, or a key that tuning took out of hashing) refuses the stream.
"""

import re
import threading
from bisect import bisect_right
from typing import Any
from urllib.parse import unquote

import hyperscan

from audit import glue

HMAC = glue.HMAC
REDACTED = b"[redacted]"

# text that looks like a token of Vault or OpenBao, wherever it stands: `hvs.` with 20 characters, or a word `s.` with 24
_TOKEN = re.compile(rb"[sbr]\.[A-Za-z0-9_-]{20,}+")
# what can stand before a word (a JSON or percent escape's last character is a letter or a digit)
_BEFORE_WORD = re.compile(rb"(?:\\u[0-9A-Fa-f]{4}|\\[bfnrt]|%[0-9A-Fa-f]{2}|[^A-Za-z0-9_-]|^)\Z", re.DOTALL)
# a part of a signed JWT
_PART = re.compile(rb"[A-Za-z0-9_-]++")
_SHORTEST_PART = 10
# keys of request and response data, and of auth, whose text is a secret
SECRET_KEYS = frozenset(
    {
        "api_key",
        "bindpass",
        "client_secret",
        "client_token",
        "jwt",
        "otp",
        "passcode",
        "passphrase",
        "password",
        "pem_bundle",
        "private_key",
        "root_token",
        "secret_access_key",
        "secret_id",
        "secret_key",
        "security_token",
        "service_account_jwt",
        "token",
    }
)
# OpenBao leaves text that Go reads as a time as it is, also where it hashes everything else, and a client may choose it
# (https://pkg.go.dev/time#Time.UnmarshalText, which takes more than RFC 3339)
TIME_SHAPED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.,Zz+-]*")

_KEY = rb'"(?:' + b"|".join(key.encode() for key in sorted(SECRET_KEYS)) + rb')"\s*+:\s*+'
# a value that is neither empty nor begins like an HMAC; `[^h"]|h[^m]|hm[^a]|…`, since the scanner has no lookahead
_NO_HMAC = b"|".join(
    re.escape(HMAC[:length].encode()) + (b'[^h"]' if not length else b"[^" + HMAC[length].encode() + b"]")
    for length in range(len(HMAC))
)
_SECRET_KEY = re.compile(_KEY)
# a value, or what stands around values in a list
_VALUE = re.compile(
    rb"""[\s,]*+(?P<value>(?P<open>\[)|(?P<close>\])|(?P<number>-?[0-9][0-9.eE+-]*+)|true|false|null"""
    rb"""|(?P<string>"(?P<text>(?:[^"\\]++|\\.)*+)(?P<end>"?)))""",
    re.DOTALL,
)
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# Vault puts what a client sent into its error where the type is wrong:
# `error converting input map[a:b] for field "data": … unconvertible type 'map[string]interface {}', value: 'map[a:b]'`
_CONVERTING, _FOR_FIELD, _SENT = b"error converting input ", b" for field ", b", value: '"
_EXPRESSIONS = [
    rb"hv[sbr]\.[A-Za-z0-9_-]{20}",
    rb"[sbr]\.[A-Za-z0-9_-]{24}",
    rb"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10}",
    _KEY.replace(b"*+", b"*") + rb'(?:[0-9\[-]|"(?:' + _NO_HMAC + b"))",
    _CONVERTING,
    rb"\\u0000",
]
# with more places than that in one block each of its lines is looked at
_MOST_PLACES = 50_000


# what a field's path may name: other names are a client's own words, and may be anything
_NAMES = SECRET_KEYS | {"auth", "data", "headers", "request", "response", "secret", "wrap_info"}


class RawSecret(Exception):
    """A field that an HMAC must cover stands in plain text: nothing of this stream may be stored."""

    def __init__(self, field: str) -> None:
        self.field = ".".join(name if name in _NAMES else "…" for name in field.split("."))
        super().__init__(self.field)


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


def suspects(block: bytes) -> list[int] | None:
    """Places in `block` near which a line must be looked at (ends of matches, ascending); None where there are too many."""
    ends: list[int] = []

    def found(number: int, begin: int, end: int, flags: int, context: object) -> bool:
        ends.append(end)
        return len(ends) > _MOST_PLACES

    try:
        _scanner().scan(block, match_event_handler=found)
    except hyperscan.ScanTerminated:
        return None
    return sorted(ends)


def suspect_lines(block: bytes, lines: list[bytes]) -> set[int]:
    """Which of `lines` (the block split at newlines) must be looked at."""
    # NULs come in thousands, where a file was truncated under its writer
    numbers = {number for number, line in enumerate(lines) if b"\x00" in line} if b"\x00" in block else set()
    ends = suspects(block)
    if ends is None:
        return set(range(len(lines)))
    if not ends:
        return numbers
    starts, at = [], 0
    for line in lines:
        starts.append(at)
        at += len(line) + 1
    return numbers | {bisect_right(starts, end - 1) - 1 for end in ends}


def clean(line: bytes) -> tuple[bytes, int]:
    """The line without secrets, and how many were taken out. Raises RawSecret."""
    line, count = _clean_pieces(line)
    if b"\x00" in line:
        # text in UTF-16, or with a hole in it: what it says without its NULs counts too
        bare, more = _clean_pieces(line.replace(b"\x00", b""))
        if more:
            return bare, count + more
    return line, count


# a token that was not copied whole is one, too: nothing else that is known here begins so
_BEGINNING_OF_TOKEN = re.compile(rb"(?<![A-Za-z0-9_-])(?:hv[sbr]\.|eyJ[A-Za-z0-9_-]{10})")


def looks_like_a_secret(text: str) -> bool:
    """Whether what a person typed or pasted has a token, a JWT, a part of one, or a secret under its name in it."""
    # a copied line may be broken anywhere; a copied address has escapes
    for written in (text, unquote(text)):
        for variant in (written, re.sub(r"\s+", "", written)):
            seen = variant.encode(errors="replace").replace(b"\x00", b"")
            if _BEGINNING_OF_TOKEN.search(seen) or _clean(seen)[1]:
                return True
    return False


def _clean_pieces(line: bytes) -> tuple[bytes, int]:
    found = []
    for piece, entry in glue.entries(line):
        # of a torn one it cannot be told whether the device writes raw values: what looks like one does not stay
        if field := raw_field(entry):
            raise RawSecret(field)
        found.append(_clean(piece))
    return b"".join(piece for piece, _ in found), sum(redactions for _, redactions in found)


def _clean(piece: bytes) -> tuple[bytes, int]:
    count = 0
    for look in (_tokens, _jwts, _inputs, _values):
        if places := look(piece):
            kept, at = [], 0
            for begin, end, instead in places:
                kept += [piece[at:begin], instead]
                at = end
            piece = b"".join([*kept, piece[at:]])
            count += len(places)
    return piece, count


# ascending: from, to, and what stands there instead
_Cuts = list[tuple[int, int, bytes]]


def _tokens(text: bytes) -> _Cuts:
    cuts: _Cuts = []
    for match in _TOKEN.finditer(text):
        begin, end = match.span()
        if text[begin - 2 : begin] == b"hv":
            cuts.append((begin - 2, end, REDACTED))
        elif end - begin >= 26 and _BEFORE_WORD.search(text[max(begin - 6, 0) : begin]):
            cuts.append((begin, end, REDACTED))
    return cuts


def _jwts(text: bytes) -> _Cuts:
    """Signed JWTs. By hand, since an expression would try each `eyJ` of a long word anew."""
    cuts: _Cuts = []
    begin = text.find(b"eyJ")
    while begin >= 0:
        end = first = _end_of_part(text, begin)
        if first - begin >= 3 + _SHORTEST_PART and text[first : first + 1] == b".":
            second = _end_of_part(text, first + 1)
            if second - first > _SHORTEST_PART and text[second : second + 1] == b".":
                third = _end_of_part(text, second + 1)
                if third - second > _SHORTEST_PART:
                    end = third
                    cuts.append((begin, end, REDACTED))
        begin = text.find(b"eyJ", end)
    return cuts


def _end_of_part(text: bytes, begin: int) -> int:
    match = _PART.match(text, begin)
    return match.end() if match else begin


def _inputs(text: bytes) -> _Cuts:
    """What a client sent, in the text of an error."""
    cuts: _Cuts = []
    begin = text.find(_CONVERTING)
    while begin >= 0:
        begin += len(_CONVERTING)
        rest = _REST_OF_STRING.match(text, begin)
        # of the string in which it stands
        last = rest.end() if rest else begin
        end = text.find(_FOR_FIELD, begin, last)
        if end > begin and text[begin:end] != REDACTED:
            cuts.append((begin, end, REDACTED))
        value = text.find(_SENT, end, last) + len(_SENT) if end >= 0 else 0
        if value > len(_SENT) and text[value:last] != REDACTED:
            cuts.append((value, last, REDACTED))
        begin = text.find(_CONVERTING, last)
    return cuts


def _values(text: bytes) -> _Cuts:
    """What stands in plain text under a secret's name where no device would hash it (metadata, headers, numbers), or in a torn entry."""
    cuts: _Cuts = []
    at = 0
    while match := _SECRET_KEY.search(text, at):
        depth, at = 0, match.end()
        # the value, or those of a list (a map inside has keys of its own)
        while value := _VALUE.match(text, at):
            at = value.end()
            if value["open"]:
                depth += 1
            elif value["close"]:
                depth -= 1
            elif value["number"] or (value["string"] and _is_raw_text(value)):
                cuts.append((*value.span("value"), b'"' + REDACTED + b'"'))
            if depth <= 0:
                break
    return cuts


def _is_raw_text(match: re.Match[bytes]) -> bool:
    value = match["text"].decode("latin-1")
    # a hash may be torn, too
    return is_raw(value) and bool(match["end"] or not HMAC.startswith(value))


def raw_field(entry: object) -> str:
    """The path of the first place where an entry's device must have written an HMAC and has not; empty where there is none.

    Metadata and headers are plain in every log: what somebody writes there says nothing of the device.
    """
    for where, holder, key in (
        ("auth", _at(entry, "auth"), "client_token"),
        ("request", _at(entry, "request"), "client_token"),
        ("response.auth", _at(entry, "response", "auth"), "client_token"),
        ("response.wrap_info", _at(entry, "response", "wrap_info"), "token"),
    ):
        if _is_raw(_at(holder, key)):
            return f"{where}.{key}"
    return _raw_key("request.data", _at(entry, "request", "data")) or _raw_key(
        "response.data", _at(entry, "response", "data")
    )


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _raw_key(path: str, data: object) -> str:
    waiting = [(path, data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if key in SECRET_KEYS and _is_raw(item):
                    return f"{path}.{key}"[:200]
            waiting += [(f"{path}.{key}"[:200], item) for key, item in value.items() if isinstance(item, (dict, list))]
        elif isinstance(value, list):
            waiting += [(path, item) for item in value if isinstance(item, (dict, list))]
    return ""


def _is_raw(value: object) -> bool:
    """A map inside has keys of its own: by the last key a device decides whether to hash, and a client may choose the others."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and is_raw(value):
            return True
    return False


def is_raw(value: str) -> bool:
    """Text where the device should have written a hash. A client can choose a time, which is left as it is."""
    return value not in ("", "[redacted]") and not value.startswith(HMAC) and not TIME_SHAPED.fullmatch(value)
