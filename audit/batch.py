"""A chunk of lines, taken apart: halves paired by request id, each other line with its reason, blocks ready to be kept.

Pure but for the threads that compress: no database. One pass over each line; everything that most lines don't need is elsewhere.
"""

import hashlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache

import msgspec
import zstandard

from audit import glue, secrets
from audit.lines import Half, Rejected, decode, half, read, without_nul
from audit.merge import agree, content_of, differing

# lines are kept in blocks of this size: larger ones take less room, smaller ones give one line back sooner
BLOCK = 2 * 1024 * 1024
_LEVEL = 3
# Vault is not older than that; a date from nowhere would also overflow the sums made with it
OLDEST = datetime(2015, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Counts:
    """What became of the lines: each is exactly one of parts … conflicts. Redactions are counted beside."""

    lines: int = 0
    parts: int = 0
    duplicates: int = 0
    rejected: int = 0
    expired: int = 0
    conflicts: int = 0
    redacted: int = 0

    def add(self, other: "Counts") -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def adds_up(self) -> bool:
        return self.lines == self.parts + self.duplicates + self.rejected + self.expired + self.conflicts


@dataclass(frozen=True, slots=True)
class Packed:
    """A block's lines, compressed, and the SHA-256 of the uncompressed ones."""

    data: bytes
    sha256: str


@dataclass(slots=True)
class Block:
    """Some whole lines, secrets redacted, and where they stood in their file."""

    text: bytes
    offset_from: int
    offset_to: int
    lines: int = 0
    # of the newest line so far; OLDEST where there was none with a time
    until: datetime = OLDEST
    packed: "Future[Packed] | None" = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that is no audit entry, and after which of the events' times it stood (None: before the first)."""

    line: bytes
    block: int
    number: int
    reason: str
    after: datetime | None


@dataclass(frozen=True, slots=True)
class Clash:
    """A half that contradicts what is known of its request."""

    half: Half
    fields: str


@dataclass(slots=True)
class Batch:
    # request id -> [request, response]; a half that is not there is None
    rows: dict[str, list[Half | None]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    # lines that count as duplicates or expired, and redactions, by the hour of their time
    duplicates: Counter[datetime] = field(default_factory=Counter)
    expired: Counter[datetime] = field(default_factory=Counter)
    redacted: Counter[datetime] = field(default_factory=Counter)
    blocks: list[Block] = field(default_factory=list)
    lines: int = 0
    # of the halves
    oldest: datetime | None = None
    newest: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Lines older than `oldest` count as expired; a time after `newest` cannot be true."""

    oldest: datetime
    newest: datetime


def take_apart(lines: bytes, *, offset: int, limits: Limits) -> Batch:
    """Raises secrets.RawSecret; nothing of such a batch may be kept."""
    batch = Batch()
    for begin, end in cuts(lines):
        _take_block(batch, lines[begin:end], offset + begin, limits)
    return batch


def cuts(lines: bytes) -> list[tuple[int, int]]:
    """Where to cut, at ends of lines, into blocks of about BLOCK bytes."""
    found, begin = [], 0
    while begin < len(lines):
        end = lines.find(b"\n", begin + BLOCK) + 1 or len(lines)
        found.append((begin, end))
        begin = end
    return found


def _take_block(batch: Batch, text: bytes, offset: int, limits: Limits) -> None:
    lines = text.split(b"\n")
    place = len(batch.blocks)
    redacted, odd = 0, secrets.suspect_lines(text, lines)
    for number in odd:
        lines[number], count = secrets.clean(lines[number])
        redacted += count
    block = Block(b"\n".join(lines) if redacted else text, offset, offset + len(text))
    block.packed = _packers().submit(pack, block.text)
    batch.blocks.append(block)
    rows, oldest, newest = batch.rows, limits.oldest, limits.newest
    top, bottom = batch.newest or OLDEST, batch.oldest or newest
    count = 0
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            one = (
                half(decode(line), line, place, number) if number not in odd else read(without_nul(line), place, number)
            )
            at = one.at
            if at > top:
                if at > newest:
                    raise Rejected("too new")
                top = at
            if at < bottom:
                if at < oldest:
                    raise Rejected("too old")
                bottom = at
        except (Rejected, msgspec.DecodeError, ValueError, RecursionError):
            batch.newest, batch.oldest = top, bottom
            count += _take_odd(batch, line, place, number, limits)
            top, bottom = batch.newest, batch.oldest
            continue
        count += 1
        row = rows.get(one.request_id)
        if row is None:
            rows[one.request_id] = [None, one] if one.is_response else [one, None]
        else:
            other = row[not one.is_response]
            if row[one.is_response] is None and other is not None and agree(one, other):
                row[one.is_response] = one
            else:
                _take_again(batch, row, one)
    if rows:
        batch.newest, batch.oldest = top, bottom
    block.lines, block.until = count, top
    batch.lines += count
    if redacted:
        batch.redacted[hour(top)] += redacted


def _take_again(batch: Batch, row: list[Half | None], one: Half) -> None:
    """A half of a request that this batch knows: its other half, the same again, or a contradiction."""
    for known in row:
        if known is not None and (names := differing(content_of(known), one)):
            batch.clashes.append(Clash(one, ", ".join(names)))
            return
    if row[one.is_response] is None:
        row[one.is_response] = one
    else:
        batch.duplicates[hour(one.at)] += 1


def _take_odd(batch: Batch, line: bytes, place: int, number: int, limits: Limits) -> int:
    """A line that is not simply one entry: glued, torn, rejected, too old. Returns how many lines it counts as."""
    if not line.strip():
        return 0
    found = [piece for piece in glue.pieces(line) if piece.strip()]
    for piece in found:
        try:
            one = read(without_nul(piece), place, number)
            if one.at < OLDEST or one.at > limits.newest:
                raise Rejected(f"no time that can be true: {one.at:%Y-%m-%dT%H:%M:%SZ}")
        except Rejected as error:
            batch.rejects.append(Reject(piece, place, number, str(error)[:500], batch.newest))
            continue
        if one.at < limits.oldest:
            batch.expired[hour(one.at)] += 1
            continue
        batch.newest = max(batch.newest or OLDEST, one.at)
        batch.oldest = min(batch.oldest or one.at, one.at)
        if one.request_id in batch.rows:
            _take_again(batch, batch.rows[one.request_id], one)
        else:
            batch.rows[one.request_id] = [None, one] if one.is_response else [one, None]
    return len(found)


def hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def pack(text: bytes) -> Packed:
    return Packed(zstandard.ZstdCompressor(level=_LEVEL).compress(text), hashlib.sha256(text).hexdigest())


@cache
def _packers() -> ThreadPoolExecutor:
    # zstd and SHA-256 run without the interpreter's lock
    return ThreadPoolExecutor(1, thread_name_prefix="pack")
