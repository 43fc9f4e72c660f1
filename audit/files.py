"""One audit file, plain or compressed, as the bytes that Vault wrote. Knows no rotation and no database.

Formats: gzip (RFC 1952, several members) and Zstandard (RFC 8878, several frames), known by their first bytes.
"""

import hashlib
import os
import re
import stat
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec
import zstandard

from leases.errors import SourceError

# A file is known by its whole first entry, which holds a time and a request id: 512 bytes alone may be the same in two
# files, as some versions write the keys in alphabetical order and `auth` of one busy client then stands first. Where no
# entry stands first, it is 512 bytes or the first line, whichever is longer.
FIRST = 512
FIRST_LINE = 64 * 1024
# so little is fed at once that what comes out is bounded, also from a file made to explode: a zstd block of 4 bytes
# gives up to 128 KB, so these give 32 MB at most
_PIECE = 1024
_RAW_BLOCK = 64 * _PIECE

_READABLE = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"} | {
    bytes([0x50 + n]) + b"\x2a\x4d\x18": "zstd" for n in range(16)
}
_OTHERS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip"}


class FileUnavailable(SourceError):
    """The audit file cannot be read; cause and fix are for an operator."""


def unreadable(path: Path, error: OSError) -> FileUnavailable:
    return FileUnavailable(
        f"The audit file {path} cannot be read ({error.strerror})",
        "Check the path in leasehold.toml, that the node writes it, and that the ingest workers' user may read it "
        "(and the rotated files beside it).",
    )


class AuditFile:
    """An open audit file. All offsets are in the decompressed bytes. Close it, or use it in a `with`.

    Raises OSError, and FileUnavailable for what is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # without O_NONBLOCK a pipe would hold the worker until somebody writes into it
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            self.stat = os.fstat(self._fd)
            if not stat.S_ISREG(self.stat.st_mode):
                raise FileUnavailable(
                    f"{path} is {_kind(self.stat.st_mode)}, not a file",
                    "Name the regular file that the audit device writes.",
                )
            self.inode = inode(self.stat)
            self._unpacked = _taken_up(self._fd, path, self.stat)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)
        if self._unpacked is not None:
            _lay_aside(self.stat, self._unpacked)

    @property
    def compressed(self) -> bool:
        return self._unpacked is not None

    @property
    def damage(self) -> str:
        """Why nothing can be decoded after what was read so far; empty as long as nothing is wrong."""
        return self._unpacked.damage if self._unpacked else ""

    def window(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer where the file ends. Compressed files are read forwards only, cheaply."""
        if self._unpacked:
            if offset < self._unpacked.at:
                self._unpacked = _Unpacked(self._unpacked.form)
            return self._unpacked.window(self._fd, offset, size)
        parts = []
        while size > 0 and (part := os.pread(self._fd, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget(self, offset: int) -> None:
        """Nothing before `offset` will be asked for again."""
        if self._unpacked:
            self._unpacked.skip_to(offset)

    def first(self, size: int) -> bytes:
        """Up to `size` bytes from the beginning, at most FIRST_LINE."""
        return self._unpacked.first(self._fd, size) if self._unpacked else self.window(0, size)

    def size(self) -> int:
        """How many bytes there are now; of a compressed file, how many are known to be there."""
        return self._unpacked.decoded if self._unpacked else os.fstat(self._fd).st_size

    def left(self, offset: int) -> int:
        """How many bytes follow `offset`; of a compressed file an estimate, as good as its ratio so far."""
        if not self._unpacked:
            return max(self.size() - offset, 0)
        here = self._unpacked
        ratio = here.decoded / here.raw if here.raw else 1
        return max(here.decoded - offset, 0) + (0 if here.over else int(max(self.stat.st_size - here.raw, 0) * ratio))

    def start(self) -> str:
        """What the file is known by: "length:SHA-256" of its first bytes, and ":time" of its first entry where it has one."""
        first = self.first(FIRST_LINE)
        line_end = first.find(b"\n") + 1 or len(first)
        at = _time_of(first[:line_end])
        # no more than the entry where there is one, so that a copy with less behind it is known too
        known = first[: line_end if at else max(FIRST, line_end)]
        return f"{len(known)}:{hashlib.sha256(known).hexdigest()}" + (f":{at}" if at else "")

    def starts_as(self, start: str) -> bool:
        """True if the file still begins with the bytes of `start`; where that knows no byte, any file does."""
        length, _, rest = start.partition(":")
        if not length or length == "0":
            return True
        first = self.first(int(length))
        return len(first) == int(length) and hashlib.sha256(first).hexdigest() == rest.partition(":")[0]


def inode(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"


def proves(start: str) -> bool:
    """True if no two files have this `start`, as far as that can be: it holds an entry, or enough bytes."""
    return began(start) is not None or int(start.partition(":")[0] or 0) >= FIRST


def began(start: str) -> datetime | None:
    """The time of the first entry of a file with this `start`, where it is known."""
    written = start.split(":", 2)[2:]
    return _at(written[0]) if written else None


class _Entry(msgspec.Struct):
    time: str = ""


_TIME_FIRST = re.compile(rb'\{\s*"time"\s*:\s*"([^"\\]{10,40})"')


def _time_of(line: bytes) -> str:
    """The time of an entry as it is written there, or "". Text may stand before the entry (the device's `prefix`)."""
    try:
        written = msgspec.json.decode(line[max(line.find(b"{"), 0) :], type=_Entry).time
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # longer than what was read, or another entry is glued to it
        found = _TIME_FIRST.search(line)
        written = found[1].decode(errors="replace") if found else ""
    return written if _at(written) else ""


def _at(written: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(written)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a socket"


class _Decoder(Protocol):
    """What zlib's and zstandard's decoders have in common: one member or frame, fed piece by piece."""

    def decompress(self, data: bytes, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def _decoder(form: str) -> _Decoder:
    if form == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor().decompressobj()


def _form(first: bytes, name: str) -> str:
    """gzip, zstd, a format that is not read here, or "" for plain text."""
    for magic, form in (_READABLE | _OTHERS).items():
        if first.startswith(magic):
            return form
    # cut off within its first bytes
    if len(first) < 4 and name.endswith((".gz", ".zst")):
        return "gzip" if name.endswith(".gz") else "zstd"
    return ""


class _Unpacked:
    """The decoded bytes of one compressed file, read forwards in bounded memory."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.at = 0  # where `buffer` begins, in decoded bytes
        self.buffer = bytearray()
        self.head = bytearray()
        self.raw = 0  # how many compressed bytes were fed
        self.over = False
        self.damage = ""
        self._decoder: _Decoder | None = None
        self._frame_at = 0
        self._block = (0, b"")
        if form in _OTHERS.values():
            self.over = True
            self.damage = f"it is compressed with {form}, which is not read here: decompress it, or use gzip or zstd"

    @property
    def decoded(self) -> int:
        return self.at + len(self.buffer)

    def first(self, fd: int, size: int) -> bytes:
        while len(self.head) < size and not self.over:
            self._feed(fd)
        return bytes(self.head[:size])

    def window(self, fd: int, offset: int, size: int) -> bytes:
        self.skip_to(offset)
        while not self.over and self.decoded < offset + size:
            self._feed(fd)
            self.skip_to(offset)
        return bytes(self.buffer[:size]) if self.at == offset else b""

    def skip_to(self, offset: int) -> None:
        if (skipped := min(offset - self.at, len(self.buffer))) > 0:
            del self.buffer[:skipped]
            self.at += skipped

    def rest(self) -> None:
        """Forgets what can be had again cheaply."""
        self._block = (0, b"")
        if self.over:
            self._decoder = None

    def _feed(self, fd: int) -> None:
        piece = self._piece(fd, self.raw)
        if not piece:
            if self._decoder is not None or not self.raw:
                self.damage = f"it ends in the middle, after {self.raw} compressed bytes"
            self.over = True
            return
        if self._decoder is None:
            if self.raw and piece.startswith(b"\0"):
                # gzip files may be padded with zeros
                self.raw += len(piece) - len(piece.lstrip(b"\0"))
                return
            form = _form(piece, ".gz" if self.form == "gzip" else ".zst")
            if form not in _READABLE.values():
                self.damage = f"what follows its first {self.raw} compressed bytes is not compressed"
                self.over = True
                return
            self.form = form
            self._decoder, self._frame_at = _decoder(form), self.raw
        try:
            out = self._decoder.decompress(piece)
        except (zlib.error, zstandard.ZstdError) as error:
            out = self._rescued(fd, piece)
            self.damage = f"it is damaged near its compressed byte {self.raw} ({error})"
            self.over = True
        self.buffer += out
        if len(self.head) < FIRST_LINE:
            self.head += out[: FIRST_LINE - len(self.head)]
        self.raw += len(piece)
        if not self.over and self._decoder.eof:
            self.raw -= len(self._decoder.unused_data)
            self._decoder = None

    def _rescued(self, fd: int, piece: bytes) -> bytes:
        """What `piece` gives before its fault: the decoders throw that away, so go there again and then byte by byte."""
        decoder, raw = _decoder(self.form), self._frame_at
        out = bytearray()
        try:
            while raw < self.raw:
                before = self._piece(fd, raw)[: self.raw - raw]
                decoder.decompress(before)
                raw += len(before)
            for number in range(len(piece)):
                out += decoder.decompress(piece[number : number + 1])
        except (zlib.error, zstandard.ZstdError):
            pass
        return bytes(out)

    def _piece(self, fd: int, raw: int) -> bytes:
        begin, block = self._block
        if not begin <= raw < begin + len(block):
            begin, block = self._block = raw, os.pread(fd, _RAW_BLOCK, raw)
        return block[raw - begin : raw - begin + _PIECE]


# Where reading of a compressed file stopped, so that its next chunk needs no decoding from the beginning. Only a
# shortcut: without it (another process, a restart) the file is decoded again up to the offset.
_ASIDE = 4
# a file that was changed this moment may change again without its times showing it
_SETTLED_SECONDS = 2
_aside: dict[tuple[str, int, int], _Unpacked] = {}


def _taken_up(fd: int, path: Path, status: os.stat_result) -> _Unpacked | None:
    form = _form(os.pread(fd, 6, 0), path.name)
    if not form:
        return None
    return _aside.pop(_key(status), None) or _Unpacked(form)


def _lay_aside(status: os.stat_result, unpacked: _Unpacked) -> None:
    if time.time() - status.st_ctime < _SETTLED_SECONDS:
        return
    unpacked.rest()
    _aside[_key(status)] = unpacked
    while len(_aside) > _ASIDE:
        _aside.pop(next(iter(_aside)), None)


def _key(status: os.stat_result) -> tuple[str, int, int]:
    return inode(status), status.st_size, status.st_ctime_ns
