"""Following one audit file: where to read on, through rotation, truncation and replacement. Knows files, no database.

What is promised: each whole line is given once and in order, and where bytes may have been lost a `Gap` says so. What
cannot be seen: bytes that a process adds to a renamed file after its successor has begun and the old one was found
finished, and lines written between the copy and the cut of copytruncate.
"""

import errno
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from audit import rotated
from audit.files import FIRST_LINE, AuditFile, FileUnavailable, began, inode, proves, unreadable
from audit.rotated import Beside, Moved, expand

__all__ = ["CHUNK", "LONGEST_LINE", "Chunk", "FileUnavailable", "Gap", "Position", "expand", "read"]

# large, so that what a transaction costs by itself is shared by thousands of lines; two are in memory at once
CHUNK = 12 * 1024 * 1024
MOST_LINES = 50_000
# one entry can be many megabytes (a LIST of every lease); past this a line is taken as it is
LONGEST_LINE = 64 * 1024 * 1024
# a file that ends in the middle may still be written, and a counter that is missing may be on its way: after so many
# seconds without a change it is not so
_SETTLED_SECONDS = 60

UNREAD = "bytes unread at rotation"
TRUNCATED = "truncated before the offset"
REPLACED = "replaced"
UNDECODABLE = "cannot be decompressed"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream is read. `inode` is "device:inode", `start` what the file begins with (AuditFile.start).

    `offset` is in bytes; in the decompressed bytes where the file is compressed.
    """

    inode: str = ""
    start: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that were or may have been lost between the last chunk and this one. `lost_bytes` is None if nobody can know.

    `kind` is one of UNREAD, TRUNCATED, REPLACED, UNDECODABLE; `what` a sentence with names and offsets.
    """

    kind: str
    lost_bytes: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines from one file, where they stood, where to go on, and how many bytes are left unread.

    `unread` counts this file and the ones after it (compressed: an estimate). A gap lies before the lines; it comes only
    with lines, so that it is stored in the same transaction as the position behind it.
    """

    lines: bytes
    offset_from: int
    position: Position
    unread: int
    gap: Gap | None = None


def read(path: Path, position: Position, *, size: int = CHUNK, finished: bool = False) -> Chunk:
    """The next whole lines at `position`, about `size` bytes; empty lines where there is nothing new.

    A last line without its newline waits for it, except at the definite end of a file: one that was decompressed to its
    end, one that a later one follows, or one that is `finished` as the caller knows. Raises FileUnavailable.
    """
    for attempt in range(20):
        try:
            with ExitStack() as open_files:
                return _shortened(_read(path, position, size, finished, open_files))
        except Moved:
            time.sleep(0.005 * attempt)
        except OSError as error:
            raise unreadable(path, error) from error
    raise FileUnavailable(
        f"{path} and the files beside it are renamed or cut all the time", "Look what rotates them so often."
    )


def end_of_first(lines: bytes) -> int:
    """Where the first MOST_LINES of these end: what is no entry can be a few bytes long, and no transaction may take long."""
    if lines.count(b"\n") <= MOST_LINES:
        return len(lines)
    return sum(len(line) + 1 for line in lines.split(b"\n", MOST_LINES)[:MOST_LINES])


def _shortened(chunk: Chunk) -> Chunk:
    """The first MOST_LINES of it, see end_of_first()."""
    end = end_of_first(chunk.lines)
    if end == len(chunk.lines):
        return chunk
    return replace(
        chunk,
        lines=chunk.lines[:end],
        position=replace(chunk.position, offset=chunk.offset_from + end),
        unread=chunk.unread + len(chunk.lines) - end,
    )


def _read(path: Path, position: Position, size: int, finished: bool, open_files: ExitStack) -> Chunk:
    try:
        live = open_files.enter_context(AuditFile(path))
    except FileNotFoundError:
        if not position.inode and not position.start:
            raise
        live = None
    if live and _is_live(live, position):
        return _live_lines(live, position, size, ends=finished)
    # the order counts: a later file that has begun, seen before the old one is looked at, proves that the old one is over
    live_start = live.start() if live else ""
    begun = live is not None and _begun(live)
    files = [file for file in rotated.beside(path) if live is None or file.inode != live.inode]
    _check_unmoved(path, live, live_start)
    family = rotated.in_order([file for file in files if file.rank is not None])
    old = _found(files, position)
    if live and old is None and _may_be_live(live, position):
        return _live_lines(live, position, size, ends=finished)
    later = _later(family, old, position, live_start if begun else "")
    if live is None and old is None and not later:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    steps = [(old, position)] if old else []
    steps += later
    gap = None if old else _lost(path, live, position, family)
    gap, chunk = _rotated_lines(steps, family, gap, size, followed=begun)
    if chunk:
        chunk = replace(chunk, unread=chunk.unread + (live.size() if live else 0))
    elif live:
        # if it begins otherwise by now, a copy that was not listed yet holds what it held
        chunk = _live_lines(live, Position(start=live_start), size, ends=finished)
    if chunk and chunk.lines:
        return replace(chunk, gap=gap)
    # nothing yet: the old position stays until there is a whole line to go with the new one
    return Chunk(b"", position.offset, position, chunk.unread if chunk else 0)


def _rotated_lines(
    steps: list[tuple[Beside, Position]], family: list[Beside], gap: Gap | None, size: int, *, followed: bool
) -> tuple[Gap | None, Chunk | None]:
    """The next lines of the first of `steps` that has any, and what was lost before them; no chunk if all are finished.

    `followed` tells that the live file has begun. A chunk without lines means to wait: the file is not over yet.
    """
    for number, (file, here) in enumerate(steps):
        rest = sum(later.size for later, _ in steps[number + 1 :])
        is_over = followed or number + 1 < len(steps)
        with rotated.opened(file) as audit_file:
            if file.inode == here.inode and not _reaches(audit_file, here.offset):
                what = f"{file.path} was cut to {file.size} bytes, but had been read up to byte {here.offset}"
                gap = _and(gap, TRUNCATED, what)
            # without a whole line it may be a copy in the making, whose end is not the end
            torn = not _begun(audit_file)
            settled = not (audit_file.compressed or torn) or _unchanged_since(audit_file.stat.st_mtime)
            chunk = _lines(audit_file, here, size, ends=is_over and settled)
            chunk = replace(chunk, unread=chunk.unread + rest)
            if chunk.lines or not is_over or ((audit_file.damage or torn) and not settled):
                return gap, chunk
            if audit_file.damage:
                what = f"{file.path} cannot be decompressed beyond its byte {chunk.offset_from}: {audit_file.damage}"
                gap = _and(gap, UNDECODABLE, what)
        if missing := rotated.missing(family, file):
            # a rotation in progress looks like that too: all but the live file are renamed already
            if not _unchanged_since(max(file.changed for file in family) / 1e9):
                return gap, chunk
            names = " and ".join(str(number) for number in missing)
            gap = _and(gap, UNREAD, f"What was rotated after {file.path} is missing (counter {names})")
    return gap, None


def _unchanged_since(changed: float) -> bool:
    return time.time() - changed >= _SETTLED_SECONDS


def _is_live(live: AuditFile, position: Position) -> bool:
    """True if the file at the path is without doubt the one that was being read, and still holds what was read of it."""
    if not live.starts_as(position.start) or not _reaches(live, position.offset):
        return False
    # the same file under another inode: restored, or on another host. Few bytes prove little: look around first
    return position.inode in ("", live.inode) or proves(position.start)


def _may_be_live(live: AuditFile, position: Position) -> bool:
    """The same, where few bytes are known of the file that was being read, and it lies nowhere else."""
    if position.inode == live.inode or not (_known_bytes(position) or position.offset == 0):
        return False
    return live.starts_as(position.start) and _reaches(live, position.offset)


def _known_bytes(position: Position) -> int:
    return int(position.start.partition(":")[0] or 0)


def _reaches(file: AuditFile, offset: int) -> bool:
    if file.compressed:
        file.window(offset, 1)
    return file.size() >= offset or bool(file.damage)


def _begun(file: AuditFile) -> bool:
    """True if there is a whole line: less would not tell this file from others, such as its copies."""
    first = file.first(FIRST_LINE)
    return b"\n" in first or len(first) == FIRST_LINE or bool(file.damage)


def _check_unmoved(path: Path, live: AuditFile | None, start: str) -> None:
    """Raises Moved unless what was opened (or missed) at the path stood there uncut while the folder was listed."""
    try:
        now = inode(path.stat())
    except FileNotFoundError:
        now = None
    if now != (live.inode if live else None) or (live and live.start() != start):
        raise Moved


def _live_lines(live: AuditFile, position: Position, size: int, *, ends: bool) -> Chunk:
    chunk = _lines(live, position, size, ends=ends)
    if live.damage and not chunk.lines:
        raise FileUnavailable(
            f"{live.path} cannot be decompressed beyond its byte {chunk.offset_from}: {live.damage}",
            "Restore the file from where it was made; what could be decoded is taken.",
        )
    return chunk


def _lines(file: AuditFile, position: Position, size: int, *, ends: bool) -> Chunk:
    """The next lines of one file. With `ends`, or if it was decompressed to its end, its last one needs no newline.

    Raises Moved if the file was cut while it was read, or is not as it was when it was chosen.
    """
    offset = position.offset
    asked = max(1, min(size, LONGEST_LINE))
    data = file.window(offset, asked)
    while not (end := data.rfind(b"\n") + 1) and len(data) == asked < LONGEST_LINE:
        asked = min(asked * 4, LONGEST_LINE)
        data = file.window(offset, asked)
    if len(data) == asked:
        end = end or asked
    elif ends or (file.compressed and not file.damage):
        end = len(data)
    lines = data[:end]
    start = file.start() if lines or not position.start else position.start
    # a file that is to be begun was chosen by its whole start: a copy in the making is another file when it is complete
    same = file.starts_as(position.start) if position.inode or offset else position.start in ("", file.start())
    if lines and not file.compressed:
        same = same and (offset > 0 or file.first(FIRST_LINE).startswith(data[:FIRST_LINE]))
        same = same and file.size() >= offset + len(data)
    if not same:
        raise Moved
    file.forget(offset + end)
    return Chunk(
        lines=lines,
        offset_from=offset,
        position=Position(inode=file.inode, start=start, offset=offset + end),
        unread=file.left(offset + end),
    )


def _found(files: list[Beside], position: Position) -> Beside | None:
    """Where the file that was being read is now: renamed (its inode tells), or copied or compressed (its start tells)."""
    for file in files:
        if file.inode == position.inode:
            with rotated.opened(file) as audit_file:
                if audit_file.starts_as(position.start):
                    return file
    if not _known_bytes(position):
        return None
    alike: list[tuple[int, Beside]] = []
    closed: FileUnavailable | None = None
    for file in files:
        try:
            if file.kin and _starts_alike(file, position):
                packed = rotated.beginning(file).packed
                # a copy that is shorter than what was read has nothing new, a packed one may be unfinished
                alike.append((1 if packed else 0 if file.size >= position.offset else 2, file))
        except FileUnavailable as error:
            closed = error
    if alike:
        return min(alike, key=lambda pair: pair[0])[1]
    if closed:
        # it may be this one: better to wait for the permission than to go on without it
        raise closed
    return None


def _starts_alike(file: Beside, position: Position) -> bool:
    length, _, rest = rotated.beginning(file).start.partition(":")
    known = _known_bytes(position)
    if int(length) == known:
        return rest.partition(":")[0] == position.start.split(":")[1]
    if int(length) < known:
        return False
    with rotated.opened(file) as audit_file:
        return audit_file.starts_as(position.start)


def _later(
    family: list[Beside], old: Beside | None, position: Position, live_start: str
) -> list[tuple[Beside, Position]]:
    """Those of `family` that were written after the file that was being read; no empty ones, and of copies one.

    Each with where to begin, which tells as what it was chosen.
    """
    if old in family:
        after = family[family.index(old) + 1 :]
    elif not position.start:
        return []
    else:
        earlier = [number for number, file in enumerate(family) if _is_earlier(file, old, position)]
        after = family[max(earlier, default=-1) + 1 :]
    seen = {live_start}
    if old:
        seen.add(rotated.beginning(old).start)
    later = []
    for file in after:
        beginning = rotated.beginning(file)
        if not beginning.empty and (beginning.start not in seen or beginning.start.startswith("0:")):
            later.append((file, Position(start=beginning.start)))
            seen.add(beginning.start)
    return later


def _is_earlier(file: Beside, old: Beside | None, position: Position) -> bool:
    """Was `file` begun before the one that was being read? In doubt not: what is read twice is stored once."""
    here, there = began(position.start), rotated.time_of(file)
    if here and there:
        return there <= here
    return old is not None and file.modified < old.modified


def _lost(path: Path, live: AuditFile | None, position: Position, family: list[Beside]) -> Gap:
    """What to say where the file that was being read is nowhere: whether it had more can be known no longer."""
    until = f"had been read up to byte {position.offset}, and whether more was written to it cannot be known"
    in_place = live is not None and (live.inode == position.inode or live.starts_as(position.start))
    if live and in_place and live.size() < position.offset:
        return Gap(TRUNCATED, None, f"{path} was cut to {live.size()} bytes; it {until}")
    if family and not in_place:
        return Gap(UNREAD, None, f"The file that stood at {path} lies beside it no longer; it {until}")
    return Gap(REPLACED, None, f"{path} is another file now; the one before {until}")


def _and(gap: Gap | None, kind: str, what: str) -> Gap:
    return replace(gap, what=f"{gap.what}; {what}") if gap else Gap(kind, None, what)
