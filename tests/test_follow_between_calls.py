"""A reader is interrupted at each of its system calls, by a writer that goes on from each of its own.

What two threads meet once in a thousand runs is tried here in full: the writer has done its first n steps, the reader
begins, and before its m-th call the writer does the rest.
"""

import gzip
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audit import rotated
from audit.follow import Position, read
from tests.test_follow import drain, entries

CALLS: list[tuple[ModuleType, str]] = [
    *((os, name) for name in ("open", "fstat", "pread", "stat", "scandir")),
    # stands for the call between two entries of a folder
    (rotated, "place"),
]
MANY = 1000


class Writer:
    """A node and its logrotate; `steps` yields after each call that others can see. `written` is what came into the file."""

    def __init__(self, log: Path) -> None:
        self.log, self.written = log, b""
        self.append()

    def append(self) -> None:
        text = entries(2, size=100)
        self.written += text
        with self.log.open("ab", buffering=0) as file:
            file.write(text)

    def beside(self, number: int) -> Path:
        return self.log.with_name(f"{self.log.name}.{number}")

    def shift(self) -> Iterator[None]:
        for number in (4, 3, 2, 1):
            for suffix in ("", ".gz"):
                name = f"{self.log.name}.{number}{suffix}"
                if (path := self.log.with_name(name)).exists():
                    path.rename(self.log.with_name(f"{self.log.name}.{number + 1}{suffix}"))
                    yield

    def rename(self) -> Iterator[None]:
        yield from self.shift()
        self.log.rename(self.beside(1))
        yield
        self.log.touch()
        yield

    def copytruncate(self) -> Iterator[None]:
        yield from self.shift()
        yield from pieces(self.beside(1), self.log.read_bytes())
        os.truncate(self.log, 0)
        yield

    def compress(self, number: int) -> Iterator[None]:
        plain = self.beside(number)
        yield from pieces(plain.with_name(f"{plain.name}.gz"), gzip.compress(plain.read_bytes()))
        plain.unlink()
        yield

    def steps(self, what: str) -> Iterator[None]:
        for step in what.split():
            if step == "append":
                self.append()
                yield
            elif step == "compress":
                yield from self.compress(2 if self.beside(2).exists() else 1)
            else:
                yield from getattr(self, step)()


def interrupt(patch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Does `act` before the call with that number."""
    numbers = count()

    def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == number:
                act()
            return call(*args, **kwargs)

        return made

    for module, name in CALLS:
        patch.setattr(module, name, interrupted(getattr(module, name)))


def pieces(path: Path, data: bytes) -> Iterator[None]:
    """A file in the making: empty, in the middle of its first entry (of what is packed: nearly all), whole."""
    with path.open("wb", buffering=0) as file:
        yield
        cut = len(data) - 20 if data.startswith(b"\x1f\x8b") else 60
        file.write(data[:cut])
        yield
        file.write(data[cut:])
        yield


@pytest.mark.parametrize(
    "what",
    [
        "append copytruncate append copytruncate append",
        "append compress append",
        "append rename append compress",
        "append copytruncate compress append",
    ],
)
def test_whatever_happens_between_two_calls_of_the_reader_each_line_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for done in range(MANY):
        for call in range(MANY):
            folder = tmp_path / f"{done}-{call}"
            folder.mkdir()
            writer, interrupted = Writer(folder / "audit.log"), False
            first = read(writer.log, Position())
            for _ in writer.rename():
                pass
            steps = writer.steps(what)
            if sum(1 for _ in zip(range(done), steps, strict=False)) < done:
                return

            def go_on(steps: Iterator[None] = steps) -> None:
                nonlocal interrupted
                interrupted = True
                for _ in steps:
                    pass

            with monkeypatch.context() as patch:
                interrupt(patch, call, go_on)
                chunk = read(writer.log, first.position, size=1)
            for _ in steps:
                pass
            rest, _, gaps = drain(writer.log, chunk.position, size=300)
            where = f"the writer's step {done}, the reader's call {call}"
            assert (first.lines + chunk.lines + rest, gaps) == (writer.written, []), where
            assert chunk.gap is None, where
            assert chunk.lines.endswith(b"\n") or not chunk.lines, where
            if not interrupted:
                break
