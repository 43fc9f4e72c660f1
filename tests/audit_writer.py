"""An audit device as OpenBao writes it, in files that are rotated while it writes. Knows files, nothing of the product.

Every line that goes into an audit file goes, first, into a truth file beside it that nobody rotates.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

SESSION = (Path(__file__).parent / "data" / "session.ndjson").read_bytes().splitlines(keepends=True)
# this many rotated files are kept, as logrotate's `rotate` says
KEPT = 4
# a writer that waits for the reader gives up after this, writes on and tries again
LONGEST_WAIT = 3.0
ROTATIONS = ("renamed", "renamed, and created empty", "copied and truncated", "truncated")


@dataclass(slots=True)
class AuditFile:
    """One device's file. `began` is the number of lines that were written before its present content."""

    device: str
    path: Path
    truth: Path
    written: int = 0
    began: int = 0
    # rotations before the reader had begun the file, or of a copy's lines before it had read them all
    unread: int = 0
    # lines until the server gets its SIGHUP after a rename; None if there was no rename
    until_hangup: int | None = None
    # how many lines had been written when each rotated file got its last one, newest first
    rotated: list[int] = field(default_factory=list)
    # what was done to the file, and after how many lines
    journal: list[tuple[int, str]] = field(default_factory=list)
    _file: int = field(init=False)
    _truth: int = field(init=False)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._opened(self.path)
        self._truth = self._opened(self.truth)

    @staticmethod
    def _opened(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, line: bytes, *, torn_at: int | None = None) -> None:
        """One line; with `torn_at` in two pieces, so that a reader may meet the first one alone."""
        os.write(self._truth, line)
        if torn_at:
            os.write(self._file, line[:torn_at])
            time.sleep(0.002)
        os.write(self._file, line[torn_at or 0 :])
        self.written += 1
        if self.until_hangup is not None:
            self.until_hangup -= 1
            if self.until_hangup <= 0:
                self.hangup()

    def rename(self, *, create: bool, lines_until_hangup: int, read: int) -> None:
        """logrotate without copytruncate: the server writes on into the renamed file until its SIGHUP."""
        self._make_room(read)
        self.unread += read <= self.began
        self.path.rename(self._numbered(1))
        if create:
            self.path.touch(mode=0o600)
        self.rotated.insert(0, self.written + lines_until_hangup)
        self.until_hangup = lines_until_hangup
        self._note(ROTATIONS[1] if create else ROTATIONS[0])
        if not lines_until_hangup:
            self.hangup()

    def hangup(self) -> None:
        """SIGHUP: the server opens its file anew."""
        os.close(self._file)
        self._file = self._opened(self.path)
        self.until_hangup, self.began = None, self.written
        self._note("SIGHUP")

    def copytruncate(self, *, read: int) -> None:
        """logrotate's copytruncate: a copy is left beside, the file itself is emptied."""
        self._make_room(read)
        self.unread += read < self.written
        shutil.copyfile(self.path, self._numbered(1))
        self.rotated.insert(0, self.written)
        self._empty(ROTATIONS[2])

    def empty(self) -> None:
        """`> audit.log`: what nobody has read is lost, so the caller sees to it that all was read."""
        self._empty(ROTATIONS[3])

    def close(self) -> None:
        os.close(self._file)
        os.close(self._truth)

    def _empty(self, what: str) -> None:
        os.truncate(self.path, 0)
        self.began = self.written
        self._note(what)

    def _make_room(self, read: int) -> None:
        """audit.log.1 becomes audit.log.2 and so on; the oldest goes, if it was read."""
        if len(self.rotated) >= KEPT and self.rotated[-1] < read:
            self._numbered(len(self.rotated)).unlink()
            self.rotated.pop()
        for number in range(len(self.rotated), 0, -1):
            self._numbered(number).rename(self._numbered(number + 1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _note(self, what: str) -> None:
        self.journal.append((self.written, what))


def traffic(random: Random) -> Iterator[tuple[int, bytes]]:
    """Lines of real sessions of a pod, several at once; endless. Yields the session's number and its line as recorded.

    Now and then a line is never written (a server that died in between): a request without its response, or the reverse.
    """
    sessions: list[tuple[int, Iterator[bytes]]] = []
    number = 0
    while True:
        while len(sessions) < 5:
            sessions.append((number, iter(SESSION)))
            number += 1
        place = random.randrange(len(sessions))
        line = next(sessions[place][1], None)
        if line is None:
            del sessions[place]
        elif random.random() > 0.01:
            yield sessions[place][0], line


def as_logged(line: bytes, *, session: int, device: str, at: datetime) -> bytes:
    """The recorded line with ids and a time of its own, and with hashes of the device's own salt (`device`: a to f)."""
    ids, hashes = b"%08x" % session, b"%07x%s" % (session, device.encode())
    line = re.sub(rb'"id":"[0-9a-f]{8}-', b'"id":"' + ids + b"-", line)
    line = re.sub(rb"hmac-sha256:[0-9a-f]{8}", b"hmac-sha256:" + hashes, line)
    line = re.sub(rb'("lease_id":"database/creds/[^/"]+/)', rb"\g<1>" + ids, line)
    written = at.isoformat(timespec="microseconds").replace("+00:00", "").encode()
    return re.sub(rb'"time":"[^"]+"', b'"time":"' + written + b'123Z"', line, count=1)


@dataclass(slots=True)
class Writer:
    """Writes the same traffic to every file, and rotates each of them in turn.

    `lines_read` tells how many lines of each path the reader has taken for good, or None while nobody can tell.
    With `rename_waits` a file is not renamed before the reader has begun it, with `copytruncate_waits` it is not copied and
    truncated before all of it was read: a reader that finds whatever lies beside the file needs neither.
    """

    files: list[AuditFile]
    random: Random
    lines_read: Callable[[], dict[Path, int] | None]
    lines_a_second: int
    longest_backlog: int
    seconds_between_rotations: float
    rename_waits: bool
    copytruncate_waits: bool
    failure: BaseException | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="audit writer", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Stops after a SIGHUP where one is due. Raises what ended the writer before its time."""
        self.stop()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Safe to call twice, and before start()."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            for file in self.files:
                file.close()

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.failure = error

    def _write(self) -> None:
        lines = traffic(self.random)
        next_rotation = time.monotonic() + self.seconds_between_rotations
        next_look = 0.0
        due: list[tuple[AuditFile, str]] = []
        while not self._stopping.is_set():
            burst = self.random.randint(1, 40)
            for _ in range(burst):
                session, line = next(lines)
                torn_at = self.random.randrange(1, len(line)) if self.random.random() < 0.01 else None
                for file in self.files:
                    logged = as_logged(line, session=session, device=file.device, at=datetime.now(UTC))
                    file.write(logged, torn_at=torn_at)
            time.sleep(burst / self.lines_a_second)
            if time.monotonic() > next_rotation:
                due = due or self._every_rotation()
                # what cannot be now waits behind the others
                due = due[1:] if self._rotate(*due[0]) else [*due[1:], due[0]]
                # now and then the next one follows at once
                pause = self.random.choice([0.1, 0.8, 1.2, 1.9]) * self.seconds_between_rotations
                next_rotation = time.monotonic() + pause
            if time.monotonic() > next_look:
                self._wait_until(lambda file, read: file.written - read < self.longest_backlog)
                next_look = time.monotonic() + 0.5
        for file in self.files:
            if file.until_hangup is not None:
                file.hangup()

    def _every_rotation(self) -> list[tuple[AuditFile, str]]:
        """Every way for every file, in any order."""
        ways = [(file, how) for file in self.files for how in ROTATIONS]
        self.random.shuffle(ways)
        return ways

    def _rotate(self, file: AuditFile, how: str) -> bool:
        """Rotates, if that may be now. A file that nobody has begun to read could not be known again."""
        read = self._read(file)
        if not read or file.until_hangup is not None or file.written == file.began:
            return False
        if how.startswith("renamed"):
            if read <= file.began and self.rename_waits:
                return False
            lines = self.random.choice([0, 1, self.random.randint(2, 200)])
            file.rename(create=how == ROTATIONS[1], lines_until_hangup=lines, read=read)
        elif how == "copied and truncated":
            if self.copytruncate_waits and not self._wait_until(_all_is_read, file):
                return False
            file.copytruncate(read=self._read(file))
        else:
            if not self._wait_until(_all_is_read, file):
                return False
            file.empty()
        return True

    def _wait_until(self, condition: Callable[[AuditFile, int], bool], *files: AuditFile) -> bool:
        """Writes nothing until the condition holds for these files (without any: for all); False if it did not in time."""
        deadline = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < deadline and not self._stopping.is_set():
            read = self.lines_read()
            if read is not None and all(condition(file, read.get(file.path, 0)) for file in files or self.files):
                return True
            time.sleep(0.1)
        return False

    def _read(self, file: AuditFile) -> int:
        """Lines of this file that were taken, as far as anybody can tell."""
        return (self.lines_read() or {}).get(file.path, 0)


def _all_is_read(file: AuditFile, read: int) -> bool:
    return read == file.written
