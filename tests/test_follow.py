"""Following a file: nothing is read twice and nothing is skipped, whatever happens to the file; what was lost is said."""

import gzip
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import files, follow, rotated
from audit.files import AuditFile
from audit.follow import CHUNK, Chunk, FileUnavailable, Position, expand, read

_numbers = count()


def entry(number: int | None = None, *, size: int = 0) -> bytes:
    """An audit entry, unlike every other one; `size` bytes at least."""
    number = next(_numbers) if number is None else number
    at = f"2026-11-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.{number:09}Z"
    text = json.dumps({"time": at, "type": "request", "request": {"id": f"r-{number}", "path": "x" * size}})
    return text.replace(": ", ":").encode() + b"\n"


def entries(many: int, *, size: int = 0) -> bytes:
    return b"".join(entry(size=size) for _ in range(many))


def add(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def pack(path: Path, form: str = "gz", *, name: Path | None = None) -> Path:
    """What logrotate's compress does: a packed copy with the times of the original, which then goes."""
    packed = name or path.with_name(f"{path.name}.{form}")
    status = path.stat()
    data = path.read_bytes()
    packed.write_bytes(gzip.compress(data) if form == "gz" else zstandard.ZstdCompressor().compress(data))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    return packed


def old(path: Path) -> Path:
    """As if nobody had written to it for an hour."""
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def drain(path: Path, position: Position, *, size: int = CHUNK) -> tuple[bytes, Position, list[str]]:
    """All that can be read now: the lines, where they end, and the kinds of gaps on the way."""
    lines: list[bytes] = []
    gaps: list[str] = []
    while True:
        chunk = read(path, position, size=size)
        if chunk.gap:
            assert chunk.lines, "a gap comes with lines"
            gaps.append(chunk.gap.kind)
        if not chunk.lines:
            return b"".join(lines), position, gaps
        lines.append(chunk.lines)
        position = chunk.position


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


# --- lines


def test_only_whole_lines_are_read(log: Path) -> None:
    add(log, b"one\ntw")
    first = read(log, Position())
    assert (first.lines, first.unread, first.gap) == (b"one\n", 2, None)
    add(log, b"o\n")
    assert read(log, first.position).lines == b"two\n"


def test_nothing_new_is_an_empty_chunk(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    again = read(log, position)
    assert (again.lines, again.position, again.gap) == (b"", position, None)


def test_a_line_longer_than_a_chunk_is_read_whole(log: Path) -> None:
    long = b"x" * (16 * 1024 * 1024) + b"\n"
    add(log, long + b"next\n")
    assert drain(log, Position(), size=1024)[0] == long + b"next\n"


def test_a_line_without_end_is_taken_in_parts_and_not_kept_in_memory(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    assert len(read(log, Position()).lines) == 64 * 1024 * 1024


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_chunks_of_any_size_give_the_same_lines(log: Path, size: int) -> None:
    text = entries(50, size=100)
    log.write_bytes(text)
    assert drain(log, Position(), size=size)[0] == text


def test_a_chunk_says_where_its_lines_stood(log: Path) -> None:
    text = entries(100)
    log.write_bytes(text)
    position, seen = Position(), b""
    while (chunk := read(log, position, size=1000)).lines:
        assert chunk.offset_from == len(seen)
        assert text[chunk.offset_from : chunk.position.offset] == chunk.lines
        seen, position = seen + chunk.lines, chunk.position
        assert chunk.unread == len(text) - len(seen)
    assert seen == text


def test_a_file_is_known_by_its_whole_first_entry(log: Path) -> None:
    """Some versions write `auth` first: 512 bytes of a busy client's entries are the same in two files."""
    same = b'{"auth":{"metadata":"' + b"x" * 600 + b'"},"request":{"id":"%d"},"time":"2026-11-01T00:00:0%dZ"}\n'
    log.write_bytes(same % (1, 1))
    position = read(log, Position()).position
    log.write_bytes(same % (2, 2) + same % (3, 3))
    chunk = read(log, position)
    assert chunk.lines == same % (2, 2) + same % (3, 3)
    assert chunk.gap is not None


def test_a_position_stored_by_an_earlier_version_is_understood(log: Path) -> None:
    text = entries(1, size=2000)
    log.write_bytes(text)
    status = log.stat()
    start = f"512:{hashlib.sha256(text[:512]).hexdigest()}"
    position = Position(f"{status.st_dev}:{status.st_ino}", start, len(text))
    log.rename(log.with_name("audit.log.1"))
    more = entries(1)
    add(log, more)
    assert drain(log, position) == (more, read(log, position).position, [])


# --- renamed


def test_a_renamed_file_is_finished_before_its_successor_is_begun(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    add(log, b"two\n")
    log.rename(log.with_name("audit.log.1"))
    add(log, b"three\n")
    rest = read(log, position)
    assert rest.lines == b"two\n"
    assert read(log, rest.position).lines == b"three\n"


def test_a_file_that_still_grows_after_its_rename_is_followed(log: Path) -> None:
    """Nobody told the writer: logrotate's `create` has made an empty file at the path."""
    old_file = log.with_name("audit.log.1")
    add(log, b"one\n")
    position = read(log, Position()).position
    log.rename(old_file)
    log.touch()
    assert read(log, position).lines == b""
    add(old_file, b"two\nthr")
    chunk = read(log, position)
    assert (chunk.lines, chunk.unread) == (b"two\n", 3)
    add(old_file, b"ee\n")
    chunk = read(log, chunk.position)
    assert chunk.lines == b"three\n"
    add(log, b"four\n")
    assert read(log, chunk.position).lines == b"four\n"


def test_between_the_rename_and_the_new_file_nothing_is_wrong(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.1"))
    assert read(log, position).lines == b""


def test_a_renamed_file_is_not_left_for_half_a_line(log: Path) -> None:
    first, second = entries(1), entries(1)
    add(log, first)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.1"))
    add(log, second[:20])
    assert read(log, position) == Chunk(b"", len(first), position, 20)
    add(log, second[20:])
    assert read(log, position).lines == second


def test_the_torn_last_line_of_a_finished_file_is_taken(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    add(log, b"torn")
    log.rename(log.with_name("audit.log.1"))
    assert read(log, position).lines == b""
    add(log, b"two\n")
    torn = read(log, position)
    assert (torn.lines, torn.offset_from, torn.position.offset) == (b"torn", 4, 8)
    assert read(log, torn.position).lines == b"two\n"


@pytest.mark.parametrize("packed", ["", "gz", "zst"])
@pytest.mark.parametrize("dated", [False, True])
def test_files_that_were_rotated_while_nobody_read_are_read_in_order(log: Path, packed: str, dated: bool) -> None:
    """The clock of the names and the counters both tell; twelve, so that sorting by text would be wrong."""
    add(log, entries(3))
    chunk = read(log, Position(), size=1)
    texts = [log.read_bytes()]
    for day in range(1, 13):
        if dated:
            log.rename(log.with_name(f"audit.log-202611{day:02}"))
        else:
            for number in range(day, 0, -1):
                source = log if number == 1 else log.with_name(f"audit.log.{number - 1}")
                for path in (source, source.with_name(f"{source.name}.{packed}")):
                    if path.exists():
                        path.rename(path.with_name(path.name.replace(source.name, f"audit.log.{number}")))
        newest = log.with_name(f"audit.log-202611{day:02}" if dated else "audit.log.1")
        if packed and day % 2:
            pack(newest, packed)
        texts.append(entries(2))
        add(log, texts[-1])
    lines, position, gaps = drain(log, chunk.position, size=300)
    assert chunk.lines + lines == b"".join(texts)
    assert gaps == []
    assert position.offset == log.stat().st_size


def test_an_empty_file_between_is_passed_over(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.with_name("audit.log.1").touch()
    pack(log.with_name("audit.log.1"))
    log.touch()
    add(log.with_name("audit.log.2"), b"two\n")
    chunk = read(log, position)
    assert chunk.lines == b"two\n"
    assert read(log, chunk.position).lines == b""
    add(log.with_name("audit.log.2"), b"three\n")
    chunk = read(log, chunk.position)
    assert chunk.lines == b"three\n"
    add(log, b"four\n")
    assert read(log, chunk.position).lines == b"four\n"


def test_what_waits_in_later_files_counts_as_unread(log: Path) -> None:
    add(log, entries(1))
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.with_name("audit.log.1").write_bytes(entries(2))
    log.write_bytes(entries(3))
    chunk = read(log, position, size=1)
    assert chunk.unread == log.stat().st_size + log.with_name("audit.log.1").stat().st_size - len(chunk.lines)


def test_counters_that_ascend_are_noticed_by_the_times(log: Path) -> None:
    texts = [entries(2) for _ in range(5)]
    for number, text in enumerate(texts[:4], 1):
        log.with_name(f"audit.log.{number}").write_bytes(text)
    log.write_bytes(texts[4])
    third = log.with_name("audit.log.3")
    position = read(third, Position()).position
    assert drain(log, position)[0] == texts[3] + texts[4]


def test_a_clock_that_was_set_back_hides_no_file(log: Path) -> None:
    """With counters the renaming is the order, whatever the entries say."""
    late, early, last = entry(5000), entry(10), entry(20)
    log.write_bytes(late)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.with_name("audit.log.1").write_bytes(early)
    log.write_bytes(last)
    assert drain(log, position)[0] == early + last


def test_a_file_renamed_to_an_odd_name_is_found_and_old_ones_are_not_read_again(log: Path) -> None:
    log.with_name("audit.log.1").write_bytes(entries(2))
    log.write_bytes(entries(1))
    position = read(log, Position()).position
    rest, new = entries(1), entries(1)
    add(log, rest)
    log.rename(log.with_name("kept-for-the-auditor"))
    log.write_bytes(new)
    assert drain(log, position)[::2] == (rest + new, [])


# --- renamed and compressed


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_reading_goes_on_inside_a_file_that_was_compressed_meanwhile(log: Path, form: str) -> None:
    text, new = entries(100), entries(3)
    log.write_bytes(text)
    chunk = read(log, Position(), size=1000)
    log.rename(log.with_name("audit.log.1"))
    pack(log.with_name("audit.log.1"), form)
    add(log, new)
    lines, _, gaps = drain(log, chunk.position, size=1000)
    assert (chunk.lines + lines, gaps) == (text + new, [])


def test_while_it_is_being_compressed_the_original_is_read(log: Path) -> None:
    text, new = entries(100), entries(1)
    log.write_bytes(text)
    chunk = read(log, Position(), size=1000)
    log.rename(log.with_name("audit.log.1"))
    log.with_name("audit.log.1.gz").write_bytes(gzip.compress(text)[:-200])
    add(log, new)
    lines, _, gaps = drain(log, chunk.position)
    assert (chunk.lines + lines, gaps) == (text + new, [])


def test_the_torn_last_line_of_a_compressed_file_is_taken(log: Path) -> None:
    text = entries(2) + b'{"torn'
    log.write_bytes(text)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.1"))
    pack(log.with_name("audit.log.1"))
    assert read(log, position).lines == b'{"torn'


def test_a_compressed_file_cut_off_is_read_as_far_as_it_goes_and_then_a_gap_is_reported(log: Path) -> None:
    text, new = entries(2000), entries(1)
    log.write_bytes(text)
    position = read(log, Position(), size=1000).position
    begun = position.offset
    log.rename(log.with_name("audit.log.1"))
    packed = pack(log.with_name("audit.log.1"))
    packed.write_bytes(packed.read_bytes()[:-3000])
    old(packed)
    lines, position, gaps = drain(log, position, size=1000)
    assert gaps == []
    assert lines
    assert text[begun:].startswith(lines)
    # the end of what can be decoded is no definite end as long as nothing follows
    assert lines.endswith(b"\n")
    add(log, new)
    rest, position, gaps = drain(log, position)
    assert rest.endswith(new)
    assert text[begun:].startswith(lines + rest.removesuffix(new))
    assert gaps == ["cannot be decompressed"]
    assert drain(log, position) == (b"", position, [])


def test_a_compressed_file_that_is_still_being_copied_is_waited_for(log: Path) -> None:
    text, new = entries(2000), entries(1)
    log.write_bytes(text)
    position = read(log, Position(), size=1000).position
    begun = position.offset
    packed = gzip.compress(text)
    log.unlink()
    log.write_bytes(new)
    log.with_name("audit.log.1.gz").write_bytes(packed[:-3000])
    lines, position, gaps = drain(log, position)
    log.with_name("audit.log.1.gz").write_bytes(packed)
    rest, position, more_gaps = drain(log, position)
    assert text[begun:] + new == lines + rest
    assert gaps + more_gaps == []


def test_a_later_file_that_cannot_be_decompressed_at_all_is_a_gap(log: Path) -> None:
    log.write_bytes(entries(1))
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.3"))
    log.with_name("audit.log.2.gz").write_bytes(b"\x1f\x8bnonsense")
    old(log.with_name("audit.log.2.gz"))
    log.with_name("audit.log.1.xz").write_bytes(b"\xfd7zXZ\x00" + b"x" * 100)
    old(log.with_name("audit.log.1.xz"))
    new = entries(1)
    log.write_bytes(new)
    chunk = read(log, position)
    assert chunk.lines == new
    assert chunk.gap
    assert chunk.gap.kind == "cannot be decompressed"
    assert "audit.log.2.gz" in chunk.gap.what
    assert "audit.log.1.xz cannot be decompressed beyond its byte 0: it is compressed with xz" in chunk.gap.what


# --- copytruncate and truncation


def copytruncate(log: Path, *, keep: int = 9) -> None:
    for number in range(keep, 1, -1):
        for form in ("", ".gz", ".zst"):
            earlier = log.with_name(f"{log.name}.{number - 1}{form}")
            if earlier.exists():
                earlier.rename(log.with_name(f"{log.name}.{number}{form}"))
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("regrown", [False, True])
def test_after_copytruncate_the_rest_is_read_from_the_copy(log: Path, packed: bool, regrown: bool) -> None:
    text, new = entries(50), entries(100 if regrown else 2)
    log.write_bytes(text)
    chunk = read(log, Position(), size=500)
    copytruncate(log)
    if packed:
        pack(log.with_name("audit.log.1"))
    add(log, new)
    lines, _, gaps = drain(log, chunk.position, size=500)
    assert (chunk.lines + lines, gaps) == (text + new, [])


def test_two_rounds_of_copytruncate_while_nobody_reads_lose_nothing(log: Path) -> None:
    first, second, third = entries(5), entries(7), entries(2)
    log.write_bytes(first)
    chunk = read(log, Position(), size=1)
    copytruncate(log)
    add(log, second)
    copytruncate(log)
    add(log, third)
    lines, _, gaps = drain(log, chunk.position)
    assert (chunk.lines + lines, gaps) == (first + second + third, [])


def test_a_copy_that_is_shorter_than_what_was_read_has_nothing_new(log: Path) -> None:
    """Lines came between the copy and the cut; they were read in time."""
    text, new = entries(5), entries(1)
    log.write_bytes(text)
    shutil.copyfile(log, log.with_name("audit.log.1"))
    add(log, entries(2))
    position = read(log, Position()).position
    os.truncate(log, 0)
    assert read(log, position).lines == b""
    add(log, new)
    chunk = read(log, position)
    assert (chunk.lines, chunk.gap) == (new, None)


def test_a_copy_still_in_the_making_is_left_alone(log: Path) -> None:
    first, second = entries(2), entries(20)
    log.write_bytes(first)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.write_bytes(second)
    log.with_name("audit.log.1").write_bytes(second[: len(second) // 2])
    lines, position, gaps = drain(log, position)
    assert (lines, gaps) == (second, [])
    copytruncate(log, keep=1)
    new = entries(1)
    add(log, new)
    assert drain(log, position)[::2] == (new, [])


def test_a_truncated_file_without_a_copy_is_read_from_its_beginning_with_a_gap(log: Path) -> None:
    add(log, b"one\ntwo\nthree\n")
    position = read(log, Position()).position
    log.write_bytes(b"four\n")
    chunk = read(log, position)
    assert chunk.lines == b"four\n"
    assert chunk.gap
    assert (chunk.gap.kind, chunk.gap.lost_bytes) == ("truncated before the offset", None)
    assert "was cut to 5 bytes; it had been read up to byte 14" in chunk.gap.what
    assert drain(log, chunk.position)[::2] == (b"", [])


def test_a_file_cut_to_a_part_of_itself_is_a_gap_too(log: Path) -> None:
    text = entries(10)
    log.write_bytes(text)
    position = read(log, Position()).position
    os.truncate(log, len(text) // 2)
    assert read(log, position).gap is not None


def test_a_renamed_file_that_was_cut_is_a_gap(log: Path) -> None:
    text, new = entries(10), entries(1)
    log.write_bytes(text)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.1"))
    os.truncate(log.with_name("audit.log.1"), len(text) // 2)
    log.write_bytes(new)
    assert drain(log, position)[::2] == (new, ["truncated before the offset"])


def test_an_offset_of_an_unknown_file_that_lies_past_its_end_is_a_gap(log: Path) -> None:
    log.write_bytes(b"one\n")
    assert drain(log, Position(offset=4))[::2] == (b"", [])
    assert drain(log, Position(offset=5))[::2] == (b"one\n", ["truncated before the offset"])


def test_a_truncated_file_that_has_grown_past_the_old_end_is_noticed_by_its_beginning(log: Path) -> None:
    add(log, b"one\n")
    position = read(log, Position()).position
    log.write_bytes(b"something longer\n")
    chunk = read(log, position)
    assert chunk.lines == b"something longer\n"
    assert chunk.gap
    assert chunk.gap.kind == "replaced"


def test_a_missing_counter_between_two_files_is_a_gap(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [entries(2) for _ in range(5)]
    log.write_bytes(texts[0])
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.4"))
    for number, text in zip((3, 2, 1), texts[1:4], strict=True):
        log.with_name(f"audit.log.{number}").write_bytes(text)
    log.write_bytes(texts[4])
    log.with_name("audit.log.2").unlink()
    chunk = read(log, position)
    assert (chunk.lines, chunk.gap) == (texts[1], None)
    # while files are being renamed there is a hole too, for a moment
    assert read(log, chunk.position).lines == b""
    monkeypatch.setattr(follow, "_SETTLED_SECONDS", 0)
    chunk = read(log, chunk.position)
    assert chunk.lines == texts[3]
    assert chunk.gap
    assert "is missing (counter 2)" in chunk.gap.what
    assert drain(log, chunk.position)[::2] == (texts[4], [])


# --- deleted, replaced, restored


def test_a_deleted_file_is_missed_and_a_new_one_begins_with_a_gap(log: Path) -> None:
    log.write_bytes(entries(2))
    position = read(log, Position()).position
    keeper = log.open("rb")  # so that the new file gets another inode
    log.unlink()
    with pytest.raises(FileUnavailable, match="No such file"):
        read(log, position)
    new = entries(1)
    log.write_bytes(new)
    keeper.close()
    chunk = read(log, position)
    assert chunk.lines == new
    assert chunk.gap
    assert chunk.gap.kind == "replaced"
    assert f"had been read up to byte {position.offset}" in chunk.gap.what


def test_a_new_file_under_the_same_inode_is_a_new_file(log: Path) -> None:
    log.write_bytes(entries(1))
    position = read(log, Position()).position
    new = entries(5)
    log.write_bytes(new)
    assert drain(log, position)[::2] == (new, ["replaced"])


def test_a_file_that_was_rotated_out_of_the_folder_is_a_gap_and_what_is_there_is_read(log: Path) -> None:
    before, text, middle, new = entries(2), entries(2), entries(3), entries(1)
    log.with_name("audit.log.3").write_bytes(before)
    log.write_bytes(text)
    position = read(log, Position()).position
    (log.parent / "archive").mkdir()
    log.rename(log.parent / "archive" / "audit.log")
    log.with_name("audit.log.1").write_bytes(middle)
    log.write_bytes(new)
    assert drain(log, position)[::2] == (middle + new, ["bytes unread at rotation"])


def test_a_deleted_rotated_file_is_a_gap(log: Path) -> None:
    text, middle, new = entries(2), entries(3), entries(1)
    log.write_bytes(text)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.with_name("audit.log.1").write_bytes(middle)
    pack(log.with_name("audit.log.1"), "zst")
    log.write_bytes(new)
    log.with_name("audit.log.2").unlink()
    assert drain(log, position)[::2] == (middle + new, ["bytes unread at rotation"])


def test_a_copy_on_another_host_goes_on_where_the_original_was(tmp_path: Path, log: Path) -> None:
    copy = tmp_path / "copy" / "audit.log"
    text, more = entries(1, size=600), entries(1)
    add(log, text)
    position = read(log, Position()).position
    copy.parent.mkdir()
    copy.write_bytes(text + more)
    log.unlink()
    chunk = read(copy, position)
    assert (chunk.lines, chunk.gap) == (more, None)
    assert chunk.position.inode != position.inode


def test_a_copy_on_another_host_of_which_little_is_known_goes_on_too(tmp_path: Path, log: Path) -> None:
    copy = tmp_path / "copy" / "audit.log"
    add(log, b"one\n")
    position = read(log, Position()).position
    copy.parent.mkdir()
    copy.write_bytes(log.read_bytes() + b"two\n")
    log.unlink()
    chunk = read(copy, position)
    assert (chunk.lines, chunk.gap) == (b"two\n", None)


def test_a_rotated_copy_on_another_host_goes_on_where_the_original_was(tmp_path: Path, log: Path) -> None:
    copy = tmp_path / "copy" / "audit.log"
    text, more, new = entries(2), entries(2), entries(2)
    add(log, text)
    position = read(log, Position()).position
    copy.parent.mkdir()
    copy.with_name("audit.log.1").write_bytes(text + more)
    copy.write_bytes(new)
    log.unlink()
    assert drain(copy, position)[::2] == (more + new, [])


# --- the path


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.log", tmp_path / "no" / "folder" / "audit.log"):
        with pytest.raises(FileUnavailable, match="Check the path"):
            read(path, Position())
        with pytest.raises(FileUnavailable, match="Check the path"):
            read(path, Position("1:2", "3:abc", 4))


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileUnavailable, match="is a pipe, not a file"):
        read(tmp_path / "pipe", Position())
    with pytest.raises(FileUnavailable, match="is a folder, not a file"):
        read(tmp_path, Position())
    with pytest.raises(FileUnavailable, match="is a device, not a file"):
        read(Path("/dev/null"), Position())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(FileUnavailable, match="cannot be read"):
            read(tmp_path / "s", Position())


def test_a_link_is_followed_through_the_rotation_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "vault.log", tmp_path / "audit.log"
    link.symlink_to(target)
    texts = [entries(2) for _ in range(3)]
    target.write_bytes(texts[0])
    chunk = read(link, Position(), size=1)
    target.rename(target.with_name("vault.log.2"))
    target.with_name("vault.log.1").write_bytes(texts[1])
    target.write_bytes(texts[2])
    lines, _, gaps = drain(link, chunk.position)
    assert (chunk.lines + lines, gaps) == (b"".join(texts), [])


def test_a_link_that_is_set_to_each_new_file_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "current"
    texts = [entries(2) for _ in range(3)]
    for day, text in enumerate(texts, 1):
        (tmp_path / f"audit-2026110{day}.log").write_bytes(text)
    link.symlink_to(tmp_path / "audit-20261101.log")
    chunk = read(link, Position(), size=1)
    link.unlink()
    link.symlink_to(tmp_path / "audit-20261103.log")
    lines, _, gaps = drain(link, chunk.position)
    assert (chunk.lines + lines, gaps) == (b"".join(texts), [])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; the workers are not root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_file_that_may_not_be_read_is_named_and_nothing_is_skipped(open_folder: Path) -> None:
    log = open_folder / "audit.log"
    text, middle, new = entries(2), entries(2), entries(2)
    log.write_bytes(text)
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.2"))
    log.with_name("audit.log.1").write_bytes(middle)
    log.with_name("audit.log.1").chmod(0)
    log.write_bytes(new)
    with as_nobody(), pytest.raises(FileUnavailable, match=r"audit\.log\.1 cannot be read \(Permission denied\)"):
        read(log, position)
    log.with_name("audit.log.1").chmod(0o644)
    with as_nobody():
        assert drain(log, position)[::2] == (middle + new, [])


def test_a_compressed_file_that_may_not_be_read_is_waited_for(open_folder: Path) -> None:
    log = open_folder / "audit.log"
    text, new = entries(20), entries(2)
    log.write_bytes(text)
    chunk = read(log, Position(), size=100)
    log.rename(log.with_name("audit.log.1"))
    packed = pack(log.with_name("audit.log.1"))
    packed.chmod(0)
    log.write_bytes(new)
    with as_nobody(), pytest.raises(FileUnavailable, match=r"audit\.log\.1\.gz cannot be read"):
        read(log, chunk.position)
    packed.chmod(0o444)
    with as_nobody():
        lines, _, gaps = drain(log, chunk.position)
    assert (chunk.lines + lines, gaps) == (text + new, [])


def test_an_idle_poll_looks_at_no_other_file(log: Path) -> None:
    """A thousand files lie beside it; none of them can be opened, and none is asked for."""
    for number in range(1000):
        log.with_name(f"audit.log.{number + 1}").symlink_to("/nowhere")
    log.write_bytes(entries(1))
    position = read(log, Position()).position
    began = time.process_time()
    for _ in range(200):
        read(log, position)
    assert (time.process_time() - began) / 200 < 0.001


def test_waiting_after_a_rotation_reads_no_other_file_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2, 302):
        log.with_name(f"audit.log.{number}").write_bytes(entry(1000 - number))
    monkeypatch.setattr(rotated, "_SETTLED_NS", 0)
    log.write_bytes(entry(2000))
    position = read(log, Position()).position
    log.rename(log.with_name("audit.log.1"))
    log.touch()
    assert read(log, position).lines == b""
    began = time.process_time()
    for _ in range(10):
        assert read(log, position).lines == b""
    assert (time.process_time() - began) / 10 < 0.05


# --- compressed files at the path


def members(text: bytes, form: str, many: int) -> bytes:
    step = len(text) // many + 1
    parts = [text[at : at + step] for at in range(0, len(text), step)]
    return b"".join(
        gzip.compress(part) if form == "gz" else zstandard.ZstdCompressor().compress(part) for part in parts
    )


@pytest.mark.parametrize("form", ["gz", "zst"])
@pytest.mark.parametrize("many", [1, 7])
@pytest.mark.parametrize("name", ["audit.log.1.{}", "without-a-suffix-{}"])
def test_a_compressed_file_is_read_like_a_plain_one(tmp_path: Path, form: str, many: int, name: str) -> None:
    text = entries(3000) + b"torn"
    path = tmp_path / name.format(form)
    path.write_bytes(members(text, form, many))
    lines, position, gaps = drain(path, Position(), size=10_000)
    assert (lines, gaps, position.offset) == (text, [], len(text))
    half = read(path, Position(), size=100_000)
    assert read(path, half.position).lines == text[half.position.offset :]


def test_a_plain_file_with_a_compressed_ones_name_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.log.gz"
    path.write_bytes(b"one\n")
    assert read(path, Position()).lines == b"one\n"


def test_padding_and_skippable_frames_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\n") + b"\0" * 3000 + gzip.compress(b"two\n") + b"\0" * 9)
    skipped = b"\x50\x2a\x4d\x18" + (5000).to_bytes(4, "little") + b"s" * 5000
    (tmp_path / "a.zst").write_bytes(skipped + members(b"one\ntwo\n", "zst", 2) + skipped)
    for path in (tmp_path / "a.gz", tmp_path / "a.zst"):
        assert drain(path, Position())[0] == b"one\ntwo\n"


@pytest.mark.parametrize("form", ["gz", "zst"])
@pytest.mark.parametrize("fault", ["cut off", "overwritten", "followed by nonsense"])
def test_a_damaged_file_gives_what_can_be_decoded_and_then_says_so(tmp_path: Path, form: str, fault: str) -> None:
    first, second = entries(500), entries(500)
    packed = members(first, form, 1), members(second, form, 1)
    path = tmp_path / f"audit.log.1.{form}"
    if fault == "cut off":
        path.write_bytes(packed[0] + packed[1][: len(packed[1]) // 2])
    elif fault == "overwritten":
        path.write_bytes(packed[0] + packed[1][:40] + b"\xff" * 60 + packed[1][100:])
    else:
        path.write_bytes(packed[0] + b"nonsense")
    lines, position = b"", Position()

    def read_all() -> None:
        nonlocal lines, position
        while chunk := read(path, position, size=1000, finished=True):
            assert chunk.lines
            lines, position = lines + chunk.lines, chunk.position

    with pytest.raises(FileUnavailable, match=r"cannot be decompressed beyond its byte \d+") as caught:
        read_all()
    assert lines.startswith(first)
    assert f"byte {len(lines)}:" in caught.value.cause
    assert fault == "overwritten" or (first + second).startswith(lines)
    if (form, fault) == ("gz", "cut off"):
        assert len(lines) > len(first) + 1000


def test_an_explosive_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.log.1.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        for _ in range(50):
            file.write(compressor.compress((b"a" * 9999 + b"\n") * 1000))
        file.write(compressor.flush())
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        position, total = Position(), 0
        while (chunk := read(path, position)).lines:
            total, position = total + len(chunk.lines), chunk.position
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 500_000_000
    assert peak < 150_000_000


def test_a_compressed_file_is_not_decoded_from_the_beginning_for_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = entries(30_000)
    path = tmp_path / "audit.log.1.gz"
    path.write_bytes(gzip.compress(text))
    monkeypatch.setattr(files, "_SETTLED_SECONDS", 0)
    began = time.process_time()
    assert drain(path, Position(), size=10_000)[0] == text
    # 360 chunks: decoding each time from the beginning takes some seconds
    assert time.process_time() - began < 1.5


# --- the order of files


@pytest.mark.parametrize(
    "names",
    [
        ["audit.log.10.gz", "audit.log.9.zst", "audit.log.2", "audit.log.1", "audit.log"],
        ["audit.2.log", "audit.1.log.gz", "audit.log"],
        ["audit.log-20261031.gz", "audit.log-20261101.gz", "audit.log-20261102", "audit.log"],
        ["audit-20261031.log.gz", "audit-20261101.log", "audit.log"],
        ["audit.log-2026110109", "audit.log-2026110110", "audit.log"],
        ["audit.log.2026-10-31", "audit.log.2026-11-01T09", "audit.log"],
        ["audit.log-1793500000.gz", "audit.log-1793600000", "audit.log"],
        ["audit.log.old", "audit.log"],
        ["audit.log.gz", "audit.log"],
        ["part-1.log", "part-2.log", "part-10.log"],
    ],
)
def test_rotated_files_come_in_the_order_of_their_names(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"no entry\n")
    assert [path.name for path in expand([str(tmp_path / "*")])] == names


def test_where_the_entries_have_times_these_are_the_order(tmp_path: Path) -> None:
    """A date with the day first; one file has no time and keeps its place."""
    for name, text in {
        "audit.log-01122026": entry(30),
        "audit.log-02122026": b"no entry\n",
        "audit.log-29112026": entry(10),
        "audit.log-30112026.gz": gzip.compress(entry(20)),
        "audit.log": entry(40),
    }.items():
        (tmp_path / name).write_bytes(text)
    names = [path.name.removeprefix("audit.log") for path in expand([tmp_path / "audit.log", str(tmp_path / "*-*")])]
    assert names == ["-29112026", "-02122026", "-30112026.gz", "-01122026", ""]


@pytest.mark.parametrize(
    "line",
    [
        b'{"time":"2026-11-02T00:00:00+02:00","type":"request"}\n',
        b'some-prefix: {"time":"2026-11-01T22:00:00.000000001Z"}\n',
        b'{"auth":{"time":"2027-01-01T00:00:00Z"},"time":"2026-11-01T22:00:00Z"}\n',
        b'{"time":"2026-11-01T22:00:00Z"}{"time":"2026-11-01T23:00:00Z"}\n',
        b'{"time":"2026-11-01T22:00:00Z","x":"' + b"y" * 100_000 + b'"}\n',
    ],
)
def test_the_time_of_the_first_entry_is_read_in_every_shape(tmp_path: Path, line: bytes) -> None:
    for name, text in {
        "c": b'{"time":"2026-11-01T21:59:59.999999Z"}\n',
        "b": line,
        "a": b'{"time":"2026-11-01T22:00:01Z"}\n',
    }.items():
        (tmp_path / name).write_bytes(text)
    assert [path.name for path in expand([str(tmp_path / "*")])] == ["c", "b", "a"]


@pytest.mark.parametrize("time_text", [b"0001-01-01T00:00:00+23:00", b"9999-99-99T00:00:00Z", b"", b"\xff", b"now"])
def test_an_absurd_time_is_none(tmp_path: Path, time_text: bytes) -> None:
    for name in ("audit.log.1", "audit.log"):
        (tmp_path / name).write_bytes(b'{"time":"' + time_text + b'"}\n')
    assert [path.name for path in expand([str(tmp_path / "a*")])] == ["audit.log.1", "audit.log"]
    read(tmp_path / "audit.log", Position())


def test_a_file_named_twice_comes_once_and_a_name_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a[1].log").touch()
    (tmp_path / "folder.log").mkdir()
    assert expand([tmp_path / "a[1].log", str(tmp_path / "*.log")]) == [tmp_path / "a[1].log"]
    with pytest.raises(FileUnavailable, match="No file is named"):
        expand([str(tmp_path / "*.gz")])


# --- at random


class Writer:
    """What a node and its logrotate do to a file, and which lines were written."""

    def __init__(self, log: Path) -> None:
        self.log, self.file = log, log.open("ab", buffering=0)
        self.written = b""
        self.torn, self.rest = b"", b""

    def append(self, many: int) -> None:
        text = entries(many, size=many * 7)
        self.file.write(text)
        self.written += text

    def half_a_line(self) -> None:
        if not self.torn:
            line = entry()
            self.torn, self.rest = line[: len(line) // 2], line[len(line) // 2 :]
            self.file.write(self.torn)

    def end_line(self) -> None:
        if self.torn:
            self.file.write(self.rest)
            self.written, self.torn = self.written + self.torn + self.rest, b""

    def shift(self) -> None:
        for path, number in sorted(self.rotated(), key=lambda pair: -pair[1]):
            path.rename(path.with_name(path.name.replace(f"log.{number}", f"log.{number + 1}")))

    def rotated(self) -> list[tuple[Path, int]]:
        return [(path, int(path.name.split(".")[2])) for path in self.log.parent.glob("audit.log.*")]

    def rename(self, *, told: bool = True) -> None:
        self.end_line()
        if not self.log.exists() or not self.log.stat().st_size:
            return
        self.shift()
        self.log.rename(self.log.with_name("audit.log.1"))
        if told:
            self.reopen()

    def reopen(self) -> None:
        self.end_line()
        self.file.close()
        self.file = self.log.open("ab", buffering=0)

    def compress(self, form: str) -> None:
        """Everything that is not written to any more."""
        mine = os.fstat(self.file.fileno()).st_ino
        for path, _ in self.rotated():
            if path.name[-1].isdigit() and path.stat().st_ino != mine:
                pack(path, form)

    def copytruncate(self) -> None:
        if not self.log.exists() or os.fstat(self.file.fileno()).st_ino != self.log.stat().st_ino:
            return
        self.end_line()
        if self.log.stat().st_size:
            self.shift()
            shutil.copyfile(self.log, self.log.with_name("audit.log.1"))
            os.truncate(self.log, 0)


STEPS: dict[str, Callable[[Writer], None]] = {
    "append 1": lambda writer: writer.append(1) if not writer.torn else writer.end_line(),
    "append 9": lambda writer: writer.append(9) if not writer.torn else writer.end_line(),
    "half a line": Writer.half_a_line,
    "rename": Writer.rename,
    "rename, not told": lambda writer: writer.rename(told=False),
    "tell": Writer.reopen,
    "compress": lambda writer: writer.compress("gz"),
    "compress with zstd": lambda writer: writer.compress("zst"),
    "copytruncate": Writer.copytruncate,
}
READS = st.integers(1, 5000)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(sorted(STEPS)), READS), max_size=40))
def test_whatever_rotates_whenever_each_line_is_read_once_and_in_order(steps: list[str | int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "audit.log"
        writer, position, seen = Writer(log), Position(), b""
        # a stream is known from its first line on
        writer.append(1)
        chunk = read(log, position)
        seen, position = chunk.lines, chunk.position
        try:
            for step in steps:
                if isinstance(step, str):
                    STEPS[step](writer)
                    continue
                chunk = read(log, position, size=step)
                assert chunk.gap is None
                if chunk.lines:
                    seen, position = seen + chunk.lines, chunk.position
                assert writer.written.startswith(seen)
            writer.reopen()
            writer.append(1)
            lines, _, gaps = drain(log, position, size=700)
            assert gaps == []
            assert seen + lines == writer.written
        finally:
            writer.file.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*sorted(STEPS), "lose the oldest", "lose the newest", "cut"]), READS), max_size=40
    )
)
def test_where_files_are_lost_every_missing_line_lies_at_a_gap(steps: list[str | int]) -> None:
    """Lines are never given out of order or made up; and if one is missing, a gap was reported since the one before it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "audit.log"
        writer, position = Writer(log), Position()
        got: list[bytes | None] = []

        def take(size: int) -> bool:
            nonlocal position
            chunk = read(log, position, size=size)
            if chunk.gap:
                got.append(None)
            got.extend(chunk.lines.splitlines(keepends=True))
            position = chunk.position if chunk.lines else position
            return bool(chunk.lines)

        def lose(number: int) -> None:
            rest = sorted(rotated.beside(log), key=lambda file: file.rank or ())
            if rest:
                rest[number].path.unlink()

        writer.append(1)
        take(1)
        still_written, follow._SETTLED_SECONDS = follow._SETTLED_SECONDS, 0
        try:
            for step in steps:
                if isinstance(step, int):
                    with_nothing_there = not log.exists()
                    try:
                        take(step)
                    except FileUnavailable:
                        assert with_nothing_there
                elif step == "cut":
                    # of a file that the reader never saw nobody can know
                    writer.end_line()
                    if log.exists() and log.stat().st_ino == os.fstat(writer.file.fileno()).st_ino:
                        with AuditFile(log) as file:
                            known = file.size() and file.inode == position.inode and file.starts_as(position.start)
                        os.truncate(log, 0 if known else log.stat().st_size)
                elif step.startswith("lose"):
                    lose(0 if "oldest" in step else -1)
                else:
                    STEPS[step](writer)
            writer.reopen()
            writer.append(1)
            while take(700):
                pass
        finally:
            follow._SETTLED_SECONDS = still_written
            writer.file.close()
        order = {line: number for number, line in enumerate(writer.written.splitlines(keepends=True))}
        expected = 0
        gap = False
        for line in got:
            if line is None:
                gap = True
                continue
            assert order[line] == expected or (gap and order[line] > expected), (line, expected)
            expected, gap = order[line] + 1, False
        assert expected == len(order)


def test_a_reader_beside_a_writer_that_rotates_all_the_time_gets_each_line(log: Path) -> None:
    """Both run at once, so that files are renamed, compressed and cut between any two steps of the reader."""
    writer = Writer(log)
    writer.append(1)
    over = threading.Event()

    def write() -> None:
        for round_number in range(150):
            writer.append(1 + round_number % 7)
            # copytruncate itself loses what is written meanwhile; here nothing is
            (writer.rename, writer.copytruncate, writer.rename, lambda: writer.compress("gz"))[round_number % 4]()
            time.sleep(0.002)
        writer.append(1)
        over.set()

    thread = threading.Thread(target=write)
    position, seen, gaps = Position(), b"", 0
    chunk = read(log, position)
    seen, position = chunk.lines, chunk.position
    thread.start()
    try:
        while True:
            was_over = over.is_set()
            chunk = read(log, position, size=300)
            gaps += chunk.gap is not None
            seen += chunk.lines
            position = chunk.position
            if was_over and not chunk.lines:
                break
    finally:
        thread.join()
        writer.file.close()
    assert (seen, gaps) == (writer.written, 0)


def test_a_chunk_of_very_short_lines_is_cut_and_goes_on_there(log: Path) -> None:
    text = b"".join(b"%d\n" % number for number in range(follow.MOST_LINES + 10))
    log.write_bytes(text)
    first = read(log, Position())
    assert first.lines.count(b"\n") == follow.MOST_LINES
    second = read(log, first.position)
    assert (first.lines + second.lines, first.unread, second.unread) == (text, len(second.lines), 0)
