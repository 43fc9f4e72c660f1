"""Real audit lines, and what disks, shippers, clients and other versions may make of them: strategies for property tests."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DATA = Path(__file__).parent / "data"
REAL = [
    line for name in ("session.ndjson", "requests.ndjson") for line in (DATA / name).read_bytes().splitlines() if line
]
# the fields that ingestion declares, and some around them
FIELDS = [
    ("time",),
    ("type",),
    ("error",),
    ("auth",),
    ("request",),
    ("response",),
    ("auth", "accessor"),
    ("auth", "display_name"),
    ("auth", "policies"),
    ("auth", "metadata"),
    ("auth", "metadata", "role"),
    ("auth", "entity_id"),
    ("auth", "token_type"),
    ("request", "id"),
    ("request", "operation"),
    ("request", "path"),
    ("request", "mount_point"),
    ("request", "mount_type"),
    ("request", "namespace"),
    ("request", "namespace", "path"),
    ("request", "remote_address"),
    ("request", "client_token_accessor"),
    ("request", "data"),
    ("request", "data", "lease_id"),
    ("response", "auth"),
    ("response", "auth", "accessor"),
    ("response", "auth", "metadata"),
    ("response", "secret"),
    ("response", "secret", "lease_id"),
    ("response", "data"),
    ("response", "data", "username"),
]
WRONG = [
    None,
    True,
    0,
    -1.5,
    10**30,
    "",
    "text",
    "\ud800",
    "a\x00b",
    "\\u0000",
    'tab\tnewline\nquote"backslash\\',
    "x" * 3000,
    [],
    ["a", 1, None],
    {},
    {"path": 5},
    {"a": {"b": ["c"]}},
    "☃ \U0001f512 \u2028",
]
TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999999Z",
    "1969-12-31T23:59:59Z",
    "2014-12-31T23:59:59.999999999Z",
    "2016-02-29T12:00:00Z",
    "2024-01-01T00:00:00.123456789Z",
    "2026-11-24T00:31:19.5+01:00",
    "2026-11-24T24:00:00Z",
    "2026-11-24T23:59:60Z",
    "2026-02-30T00:00:00Z",
    "2027-06-01T00:00:00Z",
    "2026-11-24",
    "20261124T003119Z",
    "2026-W48-2T00:00:00.00000000000Z",
    "2026-11-24\t00:31:19.00000000000Z",
    "2026-11-24T00:31:19,00000000000Z",
    "now",
    "",
]
_HASHED = re.compile(rb'"[a-z_]+":"hmac-sha256:')
# where anybody may write, so that token-shaped text is redacted: after each of these a value's text begins
PLACES = [b'"path":"', b'"display_name":"', b'"remote_address":"', b'"operation":"', b'"mount_point":"', b'"type":"']
# fields that a device must hash
DECLARED = [
    ("auth", "client_token"),
    ("request", "client_token"),
    ("request", "data", "jwt"),
    ("request", "data", "password"),
    ("request", "data", "nested", "secret_id"),
    ("response", "data", "password"),
    ("response", "data", "private_key"),
    ("response", "auth", "client_token"),
    ("response", "wrap_info", "token"),
]
# fields of the same names that no device hashes
PLAIN = [("auth", "metadata", "password"), ("auth", "metadata", "token"), ("request", "headers", "token")]


@dataclass
class Made:
    """A text of mutated lines, and the secrets that were put into it."""

    text: bytes = field(default=b"", repr=False)
    secrets: list[bytes] = field(default_factory=list)


def put(line: bytes, path: tuple[str, ...], value: Any) -> bytes:
    """The line with another value there; unchanged where it is no JSON object."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    holder = entry
    for key in path[:-1]:
        if not isinstance(holder.get(key), dict):
            holder[key] = {}
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(entry, separators=(",", ":")).encode()


@st.composite
def _spoilt(draw: st.DrawFn, line: bytes) -> bytes:
    """One line, spoilt in itself; but no hash, since a device that seems to write raw values is refused."""
    hashes = [match.span() for match in _HASHED.finditer(line)]
    places = [place for place in range(len(line)) if not any(begin < place < end for begin, end in hashes)]
    place = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(_SPOILS))
    if kind == "flip":
        spoilt = bytearray(line)
        for _ in range(draw(st.integers(1, 4))):
            spoilt[draw(st.sampled_from(places))] = draw(st.integers(0, 255))
        return bytes(spoilt).replace(b"\n", b" ")
    if kind == "wrong type":
        return put(line, draw(st.sampled_from(FIELDS)), draw(st.sampled_from(WRONG)))
    if kind == "time":
        return put(line, ("time",), draw(st.sampled_from(TIMES)))
    if kind == "id":
        return put(line, ("request", "id"), draw(st.sampled_from(["a", "X" * 36, "\x00", "é" * 40, "z" * 2000])))
    if kind == "insert":
        return line[:place] + draw(st.sampled_from(_INSERTS)) + line[place:]
    if kind == "twice":
        # a key that stands twice
        return re.sub(rb'("request":\{)', rb'\1"path":"first","id":7,', line, count=1)
    if kind == "deep":
        deep = draw(st.sampled_from([b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"[" * 3000]))
        return re.sub(rb'("request":\{)', lambda match: match[1] + b'"deep":' + deep + b",", line, count=1)
    if kind == "prefix":
        return draw(st.sampled_from([b"@cee: ", b"\xef\xbb\xbf", b"<134>Nov 24 vault: ", b"{vault} ", b" "])) + line
    return line


_SPOILS = ["flip", "wrong type", "time", "id", "insert", "twice", "deep", "prefix", "none"]
_INSERTS = [
    b"\x00",
    b"\x00" * 500,
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b'"',
    b"{",
    b"}",
    b'{"time":"',
    b"\r",
]


@st.composite
def _token(draw: st.DrawFn, made: Made) -> bytes:
    """Something token-shaped that stands nowhere else."""
    number = b"%06d" % len(made.secrets)
    token = draw(
        st.sampled_from(
            [
                b"hvs.CAESIJ" + number * 4,
                b"hvb.AAAAAQ" + number * 12,
                b"s." + number * 4,
                b"s." + number * 4 + b".ns1Ab",
                b"b." + number * 16,
                b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIi" + number * 3 + b"." + number * 5,
            ]
        )
    )
    # a namespace's id is no part of what must be hidden
    made.secrets.append(token.removesuffix(b".ns1Ab"))
    return token


@st.composite
def _with_token(draw: st.DrawFn, made: Made, line: bytes) -> bytes:
    place = draw(st.sampled_from(PLACES))
    at = line.find(place)
    if at < 0:
        return line
    at += len(place)
    around = draw(st.sampled_from([(b"", b""), (b"x/", b"/y"), (b"\\n", b"\\n"), (b"%22", b""), (b"=", b" ")]))
    return line[:at] + around[0] + draw(_token(made)) + around[1] + line[at:]


@st.composite
def _with_plain(draw: st.DrawFn, made: Made, line: bytes) -> bytes:
    """A secret's name where no device hashes, or a secret that no device can hash."""
    if draw(st.booleans()):
        # no part of any number that a mutation puts somewhere
        number = 314_159_265_358_979 + len(made.secrets)
        changed = put(line, ("request", "data", "passcode"), number)
        secret = b"%d" % number
    else:
        path = draw(st.sampled_from(PLAIN))
        text = f'pla"in-{len(made.secrets):09d}'
        changed = put(line, path, [text] if path[1] == "headers" else text)
        secret = text.partition('"')[2].encode()
    if changed != line:
        made.secrets.append(secret)
    return changed


@st.composite
def _with_raw(draw: st.DrawFn, made: Made, line: bytes) -> bytes:
    """As a device with log_raw writes it."""
    value = f'ra"w\\-{len(made.secrets):09d}'
    changed = put(line, draw(st.sampled_from(DECLARED)), draw(st.sampled_from([value, [value], ["", [value]]])))
    assert changed != line
    made.secrets.append(value.partition("\\")[2].encode())
    return changed


@st.composite
def _torn_raw(draw: st.DrawFn, made: Made, line: bytes) -> bytes:
    """As a device with log_raw wrote it when its disk was full: the end is missing."""
    changed = draw(_with_raw(made, line))
    begin = changed.index(made.secrets[-1])
    return changed[: draw(st.integers(begin, len(changed) - 1))]


@st.composite
def _arranged(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    """Lines that were glued, torn, doubled, swapped or lost."""
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["glue", "tear", "tear and glue", "double", "swap", "lose", "empty"]))
        torn = lines[at][: draw(st.integers(0, len(lines[at])))]
        if kind == "glue":
            lines[at : at + 2] = [b"".join(lines[at : at + 2])]
        elif kind == "tear":
            lines[at] = torn
        elif kind == "tear and glue":
            lines[at : at + 2] = [torn + b"".join(lines[at + 1 : at + 2])]
        elif kind == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "lose" and len(lines) > 1:
            del lines[at]
        elif kind == "empty":
            lines.insert(at, draw(st.sampled_from([b"", b" ", b"\r", b"\x00"])))
    return lines


@st.composite
def texts(draw: st.DrawFn, *, raw: bool = False) -> Made:
    """Mutated lines with secrets that must be redacted; `raw`: one whole line shows that its device writes raw values."""
    made = Made()
    first = draw(st.integers(0, len(REAL) - 2))
    lines = REAL[first : first + draw(st.integers(1, 8))]
    inject: list[Callable[..., st.SearchStrategy[bytes]]] = [_with_token, _with_plain, _torn_raw]
    for number, line in enumerate(lines):
        if draw(st.booleans()):
            line = draw(_spoilt(line))
        if draw(st.integers(0, 3)) == 0:
            # what is put into a line that says more in Python than in JSON would be another one
            line = draw(draw(st.sampled_from(inject))(made, line)) if _is_plain(line) else line
        lines[number] = line
    lines = draw(_arranged(lines))
    if raw:
        lines.insert(draw(st.integers(0, len(lines))), draw(_with_raw(made, draw(st.sampled_from(REAL)))))
    end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n"]))
    made.text = end.join(lines) + draw(st.sampled_from([end, b""]))
    if not raw and draw(st.integers(0, 15)) == 0:
        made.text = made.text.decode("latin-1").encode(draw(st.sampled_from(["utf-16", "utf-16-be"])))
    return made


def _is_plain(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and line in REAL
