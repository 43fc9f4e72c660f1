"""Following a file: nothing is read twice and nothing is skipped, whatever happens to the file."""

from pathlib import Path

import pytest

from audit.follow import FileUnavailable, Position, read


def add(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    add(log, b"one\ntw")
    first = read(log, Position())
    assert (first.lines, first.unread) == (b"one\n", 2)
    add(log, b"o\n")
    assert read(log, first.position).lines == b"two\n"


def test_nothing_new_is_an_empty_chunk(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    add(log, b"one\n")
    position = read(log, Position()).position
    assert read(log, position).lines == b""


def test_a_renamed_file_is_finished_before_its_successor_is_begun(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    add(log, b"one\n")
    position = read(log, Position()).position
    add(log, b"two\n")
    log.rename(tmp_path / "audit.log.1")
    add(log, b"three\n")
    rest = read(log, position)
    assert rest.lines == b"two\n"
    assert read(log, rest.position).lines == b"three\n"


def test_a_file_that_still_grows_after_its_rename_is_followed(tmp_path: Path) -> None:
    log, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    add(log, b"one\n")
    position = read(log, Position()).position
    log.rename(old)
    add(old, b"two\n")
    assert read(log, position).lines == b"two\n"


def test_a_truncated_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    add(log, b"one\ntwo\nthree\n")
    position = read(log, Position()).position
    log.write_bytes(b"four\n")
    assert read(log, position).lines == b"four\n"


def test_a_truncated_file_that_has_grown_past_the_old_end_is_noticed_by_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    add(log, b"one\n")
    position = read(log, Position()).position
    log.write_bytes(b"something longer\n")
    assert read(log, position).lines == b"something longer\n"


def test_a_copy_on_another_host_goes_on_where_the_original_was(tmp_path: Path) -> None:
    log, copy = tmp_path / "audit.log", tmp_path / "copy" / "audit.log"
    add(log, b"one\n")
    position = read(log, Position()).position
    copy.parent.mkdir()
    copy.write_bytes(log.read_bytes() + b"two\n")
    log.unlink()
    assert read(copy, position).lines == b"two\n"


def test_a_line_longer_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    long = b"x" * (9 * 1024 * 1024) + b"\n"
    add(log, long + b"next\n")
    chunk = read(log, Position())
    assert chunk.lines.startswith(long)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailable, match="Check the path"):
        read(tmp_path / "nowhere.log", Position())
