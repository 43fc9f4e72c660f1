"""Request bodies: received and unpacked within limits, so that nobody can fill the memory. Knows no database."""

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard
from gunicorn.http.errors import NoMoreData, ParseException

ENCODINGS = ("gzip", "zstd", "identity")
# what RFC 9659 allows a sender of `Content-Encoding: zstd`
_ZSTD_WINDOW = 8 * 1024 * 1024
# Bytes that are unpacked at once: a bomb makes 4 MB of the first (1,032 to 1), 8 MB of the second (a block of 128 kB
# from 4 bytes).
_GZIP_STEP, _ZSTD_STEP = 4096, 256
_READ = 64 * 1024
# how many times the limit a sender may send before it is cut off
_HEARD_OUT = 10
# a shipper sends one, or one per flush of its buffer; a million empty ones only cost time
_MOST_FRAMES = 10_000


class Undecodable(Exception):
    """The body is not what its headers say; the message says how and holds nothing of it."""


class TooLarge(Exception):
    """More than the limit; the message says which."""


class Unfinished(Exception):
    """The connection ended, or the time for sending was over, before the body was whole."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Frame(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def receive(source: Readable, *, length: int | None, most: int) -> bytes:
    """The whole body as it was sent; `length` is None where it comes in chunks. Raises TooLarge, Unfinished, Undecodable."""
    body, received = bytearray(), 0
    try:
        while part := source.read(_READ):
            received += len(part)
            if received <= most:
                body += part
            elif received <= _HEARD_OUT * most:
                # thrown away, but read: a sender that is cut off takes it for a broken connection and never hears why
                body.clear()
            else:
                break
    except (NoMoreData, OSError) as error:
        raise Unfinished from error
    except ParseException as error:
        raise Undecodable("the chunked transfer is malformed") from error
    if received > most:
        raise TooLarge(f"the body has more than {megabytes(most)} MB")
    if length is not None and received != length:
        raise Unfinished
    return bytes(body)


def unpack(body: bytes, encoding: str) -> Iterator[bytes]:
    """The decoded body, a few megabytes at a time. Raises Undecodable at the first damage, so read to the end first."""
    if encoding == "gzip":
        return _unpack(body, encoding, lambda: zlib.decompressobj(wbits=31), _GZIP_STEP)
    if encoding == "zstd":
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return _unpack(body, encoding, reader.decompressobj, _ZSTD_STEP)
    return (body[start : start + _READ] for start in range(0, len(body), _READ))


def measure(body: bytes, encoding: str, *, most: int) -> None:
    """Unpacks it all once and keeps nothing. Raises Undecodable or TooLarge: then nothing was taken yet."""
    size = 0
    for block in unpack(body, encoding):
        size += len(block)
        if size > most:
            raise TooLarge(f"the unpacked body has more than {megabytes(most)} MB")


def _unpack(body: bytes, encoding: str, new_frame: Callable[[], _Frame], step: int) -> Iterator[bytes]:
    position = 0
    for _ in range(_MOST_FRAMES):
        frame = new_frame()
        while not frame.eof:
            part = body[position : position + step]
            if not part:
                raise Undecodable(f"the {encoding} data ends early")
            position += len(part)
            try:
                block = frame.decompress(part)
            except (zlib.error, zstandard.ZstdError) as error:
                raise Undecodable(f"the {encoding} data is damaged, or is none") from error
            if block:
                yield block
        # what followed the end of this frame begins the next one
        position -= len(frame.unused_data)
        if position >= len(body):
            return
    raise Undecodable(f"the {encoding} data has more than {_MOST_FRAMES} frames")


def megabytes(size: int) -> int:
    return size // (1024 * 1024)
