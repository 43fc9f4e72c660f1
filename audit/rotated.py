"""Rotated audit files: which belong together, and in which order they were written. Knows names and first entries only.

Names: logrotate's counters (audit.log.2.gz, audit.2.log) and `dateext` (audit.log-20261101.gz, audit-20261101.log), the
like of savelog, and hand-made ones such as audit.log.old.
"""

import glob
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from audit.files import AuditFile, FileUnavailable, began, inode, unreadable

Rank = tuple[int, ...]
T = TypeVar("T")

_ZIPPED = re.compile(r"\.(gz|zst|zstd|xz|bz2|lz4|zip)$")
_SUFFIX = re.compile(r"^(?P<base>.+?)(?P<sep>[.\-_])(?P<mark>\d[\d.\-_:TZ+]*|old|bak|prev)$")
_INFIX = re.compile(r"^(?P<stem>.+?)(?P<sep>[.\-_])(?P<mark>\d[\d\-_:TZ+]*)(?P<ext>\.[A-Za-z]\w*)$")
_COUNTED, _DATED, _PACKED, _LIVE = range(4)
_COUNTER_DIGITS = 5


def place(name: str) -> tuple[str, Rank]:
    """The live file's name that `name` was rotated from, and its rank: it ascends in the order of writing."""
    plain = _ZIPPED.sub("", name)
    packed = int(plain != name)  # where both stand there, the packed one is a copy
    if found := _SUFFIX.match(plain):
        return found["base"], (*_rank(found["mark"]), packed)
    # a counter within a name is only taken for one after a dot: node-1.log and node-2.log are two nodes
    if (found := _INFIX.match(plain)) and (found["sep"] == "." or len(_digits(found["mark"])) > _COUNTER_DIGITS):
        return found["stem"] + found["ext"], (*_rank(found["mark"]), packed)
    return plain, (_PACKED,) if packed else (_LIVE,)


def is_live_name(name: str) -> bool:
    """True if nothing in the name tells that the file was rotated."""
    return place(name)[1] == (_LIVE,)


def _rank(mark: str) -> Rank:
    if not mark[0].isdigit():
        return _COUNTED, 0
    if mark.isdigit() and len(mark) <= _COUNTER_DIGITS:
        return _COUNTED, -int(mark)
    return _DATED, *(int(number) for number in re.findall(r"\d+", mark))


def _digits(mark: str) -> str:
    return "".join(filter(str.isdigit, mark))


class Moved(Exception):
    """The files were renamed or cut while they were looked at: look again."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A file in the folder of the live one. `rank` is None where its name says nothing; `inode` is "device:inode"; times are in ns."""

    path: Path
    inode: str
    size: int
    changed: int
    modified: int
    rank: Rank | None
    kin: bool


def beside(path: Path) -> list[Beside]:
    """The regular files in the folder(s) of `path` that are not it, as one moment saw them, in the order of their names."""
    before: set[tuple[Path, str]] | None = None
    # a folder is not listed in one moment: while files are renamed one may be missed, which two equal listings rule out
    for attempt in range(50):
        files = _listed(path)
        # where strangers come and go all the time, only the files of that name count
        now = {(file.path, file.inode) for file in files if file.kin or attempt < 10}
        if now == before:
            return files
        before = now
    raise FileUnavailable(f"The files beside {path} change all the time", "Look what renames files there so often.")


def _listed(path: Path) -> list[Beside]:
    real = Path(os.path.realpath(path))
    bases = {path.name, real.name} | ({place(real.name)[0]} if path.is_symlink() else set())
    stems = tuple(place(name)[0].rsplit(".", 1)[0] for name in bases)
    found = []
    for folder in dict.fromkeys((path.parent, real.parent)):
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        for entry in entries:
            if (entry.name == path.name and folder == path.parent) or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError as error:
                raise Moved from error
            base, rank = place(entry.name)
            found.append(
                Beside(
                    path=folder / entry.name,
                    inode=inode(status),
                    size=status.st_size,
                    changed=status.st_ctime_ns,
                    modified=status.st_mtime_ns,
                    rank=rank if base in bases else None,
                    kin=entry.name.startswith(stems),
                )
            )
    return sorted(found, key=lambda file: (file.rank is None, file.rank or (), file.path))


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a file begins: its `start` (see AuditFile.start), and whether there is anything in it."""

    start: str
    empty: bool
    packed: bool

    @property
    def at(self) -> datetime | None:
        return began(self.start)


_SETTLED_NS = 2_000_000_000
_KNOWN = 4096
_known: dict[tuple[str, int, int], Beginning] = {}


def beginning(file: Beside) -> Beginning:
    """How `file` begins. Remembered for files that have settled, so that a full folder is not read at each poll."""
    key = (file.inode, file.size, file.changed)
    if key in _known:
        return _known[key]
    with opened(file) as audit_file:
        start = audit_file.start()
        found = Beginning(start, empty=start.startswith("0:") and not audit_file.damage, packed=audit_file.compressed)
    if time.time_ns() - file.changed > _SETTLED_NS:
        while len(_known) >= _KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[key] = found
    return found


def opened(file: Beside) -> AuditFile:
    """Opens what was listed. Raises Moved if another file stands there by now, FileUnavailable if it cannot be opened."""
    try:
        audit_file = AuditFile(file.path)
    except FileNotFoundError as error:
        raise Moved from error
    except OSError as error:
        raise unreadable(file.path, error) from error
    if audit_file.inode != file.inode:
        audit_file.close()
        raise Moved
    return audit_file


def by_time(files: Iterable[T], at: Callable[[T], datetime | None]) -> list[T]:
    """The same files, those with a first entry's time in the order of it; the others keep their places."""
    placed = [(file, at(file)) for file in files]
    timed = iter(sorted(((known, number) for number, (_, known) in enumerate(placed) if known)))
    return [placed[next(timed)[1]][0] if known else file for file, known in placed]


def in_order(files: list[Beside]) -> list[Beside]:
    """Rotated files of one live file, oldest first.

    Where all have counters the renaming itself is the order, and a clock that was set back cannot mislead; unless the
    times say without exception that here the counters ascend.
    """
    if all(file.rank and file.rank[0] in (_COUNTED, _PACKED) for file in files):
        times = [at for file in files if (at := time_of(file))]
        if len(times) < 3 or any(earlier <= later for earlier, later in pairwise(times)):
            return files
    return by_time(files, time_of)


def time_of(file: Beside) -> datetime | None:
    try:
        return beginning(file).at
    except FileUnavailable:
        return None  # if it is needed, reading it says why


def missing(family: list[Beside], file: Beside) -> list[int]:
    """The counters between `file` and the one after it in `family` (or the live file) that no file has; empty if unsure."""
    if file not in family or not (counter := _counter(file)):
        return []
    place = family.index(file)
    if any(_counter(other) < counter for other in family[:place] if _counter(other)):
        return []  # here the counters ascend
    present = {_counter(other) for other in family[place:]}
    lower = max((number for number in present if number and number < counter), default=0)
    return sorted(set(range(lower + 1, counter)))


def _counter(file: Beside) -> int:
    """2 for audit.log.2.gz; 0 where the name has none (or is audit.log.0, which nothing can be missing after)."""
    return -file.rank[1] if file.rank and file.rank[0] == _COUNTED else 0


def expand(patterns: Iterable[str | Path]) -> list[Path]:
    """Files that `patterns` (names or globs) mean, each once, in the order in which they were written.

    The first entry's time tells, else the name. Raises FileUnavailable for a pattern that means no file.
    """
    found: dict[str, Path] = {}
    for pattern in map(str, patterns):
        names = [pattern] if os.path.lexists(pattern) else glob.glob(pattern)
        files = [name for name in names if name == pattern or not os.path.isdir(name)]
        if not files:
            raise FileUnavailable(
                f"No file is named {pattern}", "Check the name; quote a glob to have it expanded here."
            )
        for name in files:
            found.setdefault(os.path.realpath(name), Path(name))
    named = sorted(found.values(), key=_by_name)
    times = {path: _began(path) for path in named}
    return by_time(named, times.__getitem__)


def _by_name(path: Path) -> tuple[str, list[tuple[int, str]], Rank, list[tuple[int, str]]]:
    base, rank = place(path.name)
    return str(path.parent), natural(base), rank, natural(path.name)


def natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name) if part]


def _began(path: Path) -> datetime | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with AuditFile(path) as file:
            return began(file.start())
    except (OSError, FileUnavailable):
        return None  # whoever reads it says why
