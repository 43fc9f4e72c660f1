"""Following files that a server begins anew under new names (PostgreSQL's `log_filename`). Knows files, no database.

Each file is read to its end, then the one that was begun after it. A later one that has begun, seen before the last look at the old
one, proves that the old one is over: the server writes to one at a time (docs/decisions/0007-leaving-a-rotated-file.md).
"""

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from audit import follow
from audit.files import FIRST_LINE, AuditFile, FileUnavailable, unreadable
from audit.follow import CHUNK, Chunk, Gap, Position

_A_FEW_LINES = 4096
# The time that a file's first bytes tell; None for what has not begun: without a whole record it may be another one in a moment.
# The second argument: no more bytes can be had, be the first record whole or not.
Began = Callable[[bytes, bool], datetime | None]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a pattern's files are read: which one is being read, when it began, and how far in it."""

    file: str = ""
    began: datetime | None = None
    position: Position = field(default_factory=Position)


def is_pattern(path: str) -> bool:
    """Whether `path` means files with changing names: a glob, or what strftime fills in."""
    return any(mark in path for mark in "*?[%")


def as_glob(path: str) -> str:
    """The same with what strftime fills in (%Y, %H …) left open."""
    return re.sub(r"%(.)", lambda found: "%" if found[1] == "%" else "*", path)


def read(path: str, place: Place, *, began: Began, size: int = CHUNK) -> tuple[Chunk, Place]:
    """The next whole lines at `place`, and the place after them; no lines where there is nothing new. Raises FileUnavailable."""
    if not is_pattern(path):
        chunk = follow.read(Path(path), place.position, size=size)
        return chunk, replace(place, position=chunk.position)
    files = _begun(path, began)
    if not place.file:
        if not files:
            if glob.glob(as_glob(path)):
                return Chunk(b"", 0, Position(), 0), place
            raise FileUnavailable(f"No file is named {path}", "Check the pattern, and that its folder may be read.")
        place = Place(files[0].name, files[0].began)
    # the order counts, see above
    later = [file for file in files if place.began is None or (file.began, file.name) > (place.began, place.file)]
    gap = None
    if any(file.name == place.file and file.began != place.began for file in files):
        gap = _gone(place, "was begun anew")
    else:
        try:
            chunk = follow.read(Path(place.file), place.position, size=size, finished=bool(later))
        except FileUnavailable as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            gap = _gone(place, "is gone")
        else:
            if chunk.lines or not later:
                unread = chunk.unread + sum(file.size for file in later)
                return replace(chunk, unread=unread), replace(place, position=chunk.position)
    if not later:
        raise FileUnavailable(
            f"{place.file} is gone, and no later file of {path} has begun",
            "See where the server writes now (pg_current_logfile), and that nothing removes the file it writes to.",
        )
    chunk = follow.read(Path(later[0].name), Position(), size=size, finished=len(later) > 1)
    if not chunk.lines:
        # it was begun when it was listed: gone or cut within this moment
        return Chunk(b"", place.position.offset, place.position, 0), place
    unread = chunk.unread + sum(file.size for file in later[1:])
    return replace(chunk, gap=gap, unread=unread), Place(later[0].name, later[0].began, chunk.position)


def _gone(place: Place, what: str) -> Gap:
    read_to = f"it had been read up to byte {place.position.offset}, and whether it had more cannot be known"
    return Gap(follow.UNREAD, None, f"{place.file} {what}; {read_to}")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    began: datetime
    size: int


def _begun(path: str, began: Began) -> list[_File]:
    """The files that the pattern means and that have begun, in the order of their beginnings."""
    found = []
    for name in glob.glob(as_glob(path)):
        try:
            with AuditFile(Path(name)) as file:
                at, size = began(file.first(_A_FEW_LINES), False), file.size()
                if at is None and size > _A_FEW_LINES:
                    first = file.first(FIRST_LINE)
                    at = began(first, len(first) == FIRST_LINE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(Path(name), error) from error
        if at is not None:
            found.append(_File(name, at, size))
    return sorted(found, key=lambda file: (file.began, file.name))
