"""Following one audit file: where to read on, through rotation, truncation and replacement. Knows files, no database."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leases.errors import SourceError

CHUNK = 16 * 1024 * 1024
# one entry can be many megabytes (a LIST of every lease); past this a line is taken as it is
LONGEST_LINE = 64 * 1024 * 1024
_START = 512


class FileUnavailable(SourceError):
    """The audit file cannot be read; cause and fix are for an operator."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream is read. `inode` is "device:inode", `start` the SHA-256 of the file's first bytes and their count."""

    inode: str = ""
    start: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines from one file, where they stood, where to go on, and how many bytes are left unread."""

    lines: bytes
    offset_from: int
    position: Position
    unread: int


def read(path: Path, position: Position) -> Chunk:
    """The next whole lines at `position`; empty lines where there is nothing new. Raises FileUnavailable."""
    try:
        rotated = _rotated_away(path, position)
        if rotated is not None:
            chunk = _read_on(rotated, position)
            if chunk.lines:
                return chunk
            # the renamed file is finished: begin with its successor
            position = Position()
        return _read_on(path, position)
    except OSError as error:
        raise FileUnavailable(
            f"The audit file {path} cannot be read ({error.strerror})",
            "Check the path in leasehold.toml, that the node writes it, and that the ingest workers' user may read it.",
        ) from error


def _read_on(path: Path, position: Position) -> Chunk:
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        inode = f"{stat.st_dev}:{stat.st_ino}"
        offset = position.offset
        if position.inode != inode and not _same_start(file, position.start):
            offset = 0
        elif stat.st_size < offset or not _same_start(file, position.start):
            # truncated in place (copytruncate) or written anew
            offset = 0
        file.seek(offset)
        size = CHUNK
        while True:
            data = file.read(size)
            end = data.rfind(b"\n") + 1
            if end or len(data) < size or size >= LONGEST_LINE:
                break
            file.seek(offset)
            size *= 4
        if not end and len(data) >= LONGEST_LINE:
            end = len(data)
        return Chunk(
            lines=data[:end],
            offset_from=offset,
            position=Position(inode=inode, start=_start(file), offset=offset + end),
            unread=max(stat.st_size - offset - end, 0),
        )


def _start(file: BinaryIO) -> str:
    file.seek(0)
    first = file.read(_START)
    return f"{len(first)}:{hashlib.sha256(first).hexdigest()}"


def _same_start(file: BinaryIO, start: str) -> bool:
    """True if the file still begins with the bytes that it began with; a file known by no byte is the same."""
    length, _, digest = start.partition(":")
    if not length or length == "0":
        return True
    file.seek(0)
    first = file.read(int(length))
    return len(first) == int(length) and hashlib.sha256(first).hexdigest() == digest


def _rotated_away(path: Path, position: Position) -> Path | None:
    """Where the file that was being read is now, if it was renamed within its folder and another stands in its place."""
    if not position.inode:
        return None
    try:
        stat = path.stat()
        if f"{stat.st_dev}:{stat.st_ino}" == position.inode:
            return None
    except FileNotFoundError:
        pass
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name != path.name and entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                if f"{stat.st_dev}:{stat.st_ino}" == position.inode and _is_start_of(Path(entry.path), position.start):
                    return Path(entry.path)
    return None


def _is_start_of(path: Path, start: str) -> bool:
    with path.open("rb") as file:
        return _same_start(file, start)
