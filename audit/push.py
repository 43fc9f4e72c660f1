"""Batches that a log shipper pushes: whose they are, and how they are taken. Knows no HTTP."""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import quote

import msgspec
from django.db import DataError, OperationalError

from audit.follow import Chunk, Position, end_of_first
from audit.ingest import Counts, ingest, is_passing
from audit.models import Stream
from leases import health
from leases.models.sources import SourceKind
from leases.turns import turn

log = logging.getLogger(__name__)

# bytes of lines that are taken in one transaction
PIECE = 8 * 1024 * 1024
# seconds that a batch waits for another one of its stream
PATIENCE = 2.0
SHORTEST_TOKEN = 32
NO_TOKEN = {"push_token_sha256": "", "push_token_before_sha256": ""}

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Busy(Exception):
    """The stream, or what it shares with others, is being written; the batch may come again in a moment."""


class Unusable(Exception):
    """The lines meet a fault of ours. Nothing of the piece that they are in is kept; the stream's state says so."""


# --- tokens ------------------------------------------------------------------------------------------------------


def new_token() -> str:
    """256 random bits, with a beginning by which scanners for leaked secrets can know it."""
    return f"lhp_{secrets.token_urlsafe(32)}"


def digest(token: str) -> str:
    """SHA-256 in hex. No slow hash: a token is random and long, so it cannot be guessed from its hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def set_token(stream: Stream, token: str, *, at_once: bool = False) -> None:
    """Lets the token push. The one before it goes on until the new one is first used, or with `at_once` ends now."""
    fresh = digest(token)
    if fresh == stream.push_token_sha256 and not at_once:
        return
    # the one that is in use, which a token that was never used must not push out
    before = "" if at_once else stream.push_token_before_sha256 or stream.push_token_sha256
    Stream.objects.filter(pk=stream.pk).update(push_token_sha256=fresh, push_token_before_sha256=before)


def stream_of(token: str, *, vault: str, device: str, node: str) -> Stream | None:
    """The pushed stream of that name whose token this is; None alike for an unknown name and for a wrong token."""
    stream = None
    # PostgreSQL's text holds no NUL; no stream's name does
    if "\0" not in f"{vault}{device}{node}":
        stream = (
            Stream.objects.filter(device__vault__name=vault, device__name=device, node=node)
            .filter(pushed=True, retired=False, device__vault__retired=False)
            .select_related("device__vault")
            .first()
        )
    given = digest(token)
    # both are compared in any case, so that the time tells nothing
    current = hmac.compare_digest(given, stream.push_token_sha256 if stream else "")
    before = hmac.compare_digest(given, stream.push_token_before_sha256 if stream else "")
    if stream is None or not (current or before):
        log.warning("a push was refused: %s", f"wrong token for {stream}" if stream else "no such pushed stream")
        return None
    if current and stream.push_token_before_sha256:
        Stream.objects.filter(pk=stream.pk, push_token_sha256=given).update(push_token_before_sha256="")
    return stream


def address(stream: Stream) -> str:
    """The path that its batches are sent to."""
    device = stream.device
    return f"/ingest/{quote(device.vault.name, safe='')}/{quote(device.name)}/{quote(stream.node, safe='')}"


# --- batches -----------------------------------------------------------------------------------------------------


def take(stream: Stream, blocks: Iterable[bytes], *, now: datetime, line_key: str = "") -> Counts:
    """Takes a batch of lines, given in blocks that end anywhere, piece by piece: each is committed before the next.

    A batch that comes again changes nothing, so after an error the shipper sends all of it again. With `line_key` each
    line is a JSON object that holds the audit line as text under this key. Raises Busy; RawSecret, after which the
    stream is refused; Unusable; Django's OperationalError or InterfaceError where the database is away.
    """
    counts = Counts()
    try:
        with _turn(stream):
            for lines in pieces(blocks):
                counts.add(_take_piece(stream.pk, unwrap(lines, line_key) if line_key else lines, now=now))
            Stream.objects.filter(pk=stream.pk).update(read_at=now)
            health.report_ok(SourceKind.STREAM, str(stream), now=now)
    except OperationalError as error:
        if is_passing(error):
            raise Busy from error
        raise
    except (ValueError, TypeError, LookupError, RecursionError, DataError) as error:
        log.exception("a batch for %s cannot be taken", stream)
        health.report_failure(
            SourceKind.STREAM,
            str(stream),
            cause=f"A batch cannot be taken ({type(error).__name__})",
            fix="This is a fault of Leasehold: report it with the log of the push process. The shipper must keep the "
            "lines meanwhile.",
            now=now,
        )
        raise Unusable from error
    return counts


def pieces(blocks: Iterable[bytes], *, size: int = PIECE) -> Iterator[bytes]:
    """Whole lines, about `size` bytes at a time; one line may be longer. A last line without its newline gets one."""
    rest = bytearray()
    for block in blocks:
        rest += block
        if len(rest) >= size and (end := rest.rfind(b"\n") + 1):
            yield from _few_lines(bytes(rest[:end]))
            del rest[:end]
    if rest:
        yield from _few_lines(bytes(rest) if rest.endswith(b"\n") else bytes(rest + b"\n"))


def _few_lines(lines: bytes) -> Iterator[bytes]:
    while lines:
        end = end_of_first(lines)
        yield lines[:end]
        lines = lines[end:]


def unwrap(lines: bytes, key: str) -> bytes:
    """The audit lines inside of the shipper's own JSON objects; what is no such object stays as it is."""
    return b"".join(_unwrapped(line, key) + b"\n" for line in lines.split(b"\n") if line.strip())


def _unwrapped(line: bytes, key: str) -> bytes:
    try:
        return msgspec.json.decode(_decode(line)[key], type=str).encode()
    except (msgspec.DecodeError, UnicodeError, KeyError, RecursionError):
        return line


def _take_piece(stream_id: int, lines: bytes, *, now: datetime) -> Counts:
    # a stream of pushes has no file: its offset counts the bytes that were taken
    offset = Stream.objects.values_list("offset", flat=True).get(pk=stream_id)
    chunk = Chunk(lines=lines, offset_from=offset, position=Position(offset=offset + len(lines)), unread=0)
    return ingest(stream_id, chunk, expected=None, now=now)


@contextmanager
def _turn(stream: Stream) -> Iterator[None]:
    """One batch of a stream at a time: its offset is read, then moved. Raises Busy after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with turn("push", stream.pk) as mine:
            if mine:
                yield
                return
        if time.monotonic() > deadline:
            raise Busy
        time.sleep(0.05)
