"""`manage.py ingest FILE… --vault V --device D [--node N] [--follow] [--resume] [--progress] [--json]`: takes audit logs.

Files may be globs (also quoted ones), compressed and rotated; they are taken in the order in which they were written.
"""

import json
import signal
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q
from django.utils import timezone

from audit import follow
from audit.files import AuditFile
from audit.ingest import Counts, Rebuilding, ingest_all, position_of
from audit.models import Device, Event, Stream
from audit.rotated import is_live_name
from audit.secrets import RawSecret
from leases.models import Vault


class Command(BaseCommand):
    help = "Takes audit logs. Names that are not known yet are created, so that a foreign log can be examined."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", metavar="FILE", help="a name or a glob; plain, gzip or zstd")
        parser.add_argument("--vault", required=True)
        parser.add_argument("--device", required=True)
        parser.add_argument("--node", default="command-line")
        parser.add_argument("--follow", action="store_true", help="go on with what is added to the last file")
        parser.add_argument("--resume", action="store_true", help="go on where an earlier run with these files stopped")
        parser.add_argument("--progress", action="store_true", help="show progress, also where stderr is no terminal")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        began = time.monotonic()
        try:
            paths = follow.expand(options["files"])
        except follow.FileUnavailable as error:
            raise CommandError(str(error)) from error
        stream = stream_named(options["vault"], options["device"], options["node"])
        events_before = Event.objects.filter(vault=stream.device.vault_id).count()
        counts = Counts()
        first, position = where_it_stopped(stream, paths) if options["resume"] else (0, follow.Position())
        progress = Progress([path.stat().st_size for path in paths], began=began, skipped=(first, position.offset))
        failed = []
        try:
            with stop_asked() as asked:
                for number, path in enumerate(paths):
                    if number < first or asked():
                        continue
                    last = number == len(paths) - 1
                    try:
                        for chunk in take_file(
                            stream,
                            path,
                            counts,
                            position=position,
                            finished=not last or not is_live_name(path.name),
                            keep_on=options["follow"] and last,
                            asked=asked,
                        ):
                            self.tell(chunk, progress, number, path, shown=options["progress"])
                    except follow.FileUnavailable as error:
                        # the other files are no worse for it
                        failed.append(str(error))
                    position = follow.Position()
                if asked():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.stderr.write(
                "Stopped; what was read is kept. The same command with --resume goes on from there, and without it nothing "
                "is counted twice either."
            )
        except Rebuilding as error:
            raise CommandError(f"{error} is being rebuilt; nothing can be taken in until that is over.") from error
        except RawSecret as error:
            raise CommandError(
                f"{error.field} stands in plain text (log_raw?): nothing of this stream is stored."
            ) from error
        events = Event.objects.filter(vault=stream.device.vault_id)
        result = {
            **asdict(counts),
            "events": events.count() - events_before,
            "unpaired": events.filter(Q(has_request=False) | Q(response_at=None)).count(),
            "seconds": round(time.monotonic() - began, 3),
        }
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            self.stdout.write(", ".join(f"{name} {value}" for name, value in result.items()))
        if failed:
            raise CommandError("\n".join(failed))

    def tell(self, chunk: follow.Chunk, progress: "Progress", number: int, path: Path, *, shown: bool) -> None:
        """Gaps always, and progress where somebody sees it, at most once a second."""
        terminal = self.stderr.isatty()
        if chunk.gap:
            self.stderr.write(f"gap ({chunk.gap.kind}): {chunk.gap.what}")
        if not chunk.lines and chunk.unread:
            self.stderr.write(f"{path}: {chunk.unread} bytes of a last line that has no end yet are left unread")
        if shown or terminal:
            progress.reach(number, chunk.position.offset, chunk.unread)
            if progress.due(time.monotonic()) or not chunk.lines:
                line = f"{path.name}: {progress.text(time.monotonic())}"
                self.stderr.write(
                    f"\r{line:<78}" if terminal else line, style_func=str, ending="" if terminal else "\n"
                )


@dataclass(slots=True)
class Progress:
    """How far a backlog is read, measured in bytes on disk. Times are monotonic seconds."""

    sizes: list[int]
    began: float
    skipped: tuple[int, int] = (0, 0)
    done: float = 0
    shown_at: float = 0

    def reach(self, number: int, offset: int, unread: int) -> None:
        """File `number` is read up to `offset`; of a compressed one `unread` is an estimate."""
        share = offset / (offset + unread) if offset + unread else 1
        self.done = sum(self.sizes[:number]) + self.sizes[number] * share

    def due(self, now: float) -> bool:
        if now - self.shown_at < 1:
            return False
        self.shown_at = now
        return True

    def text(self, now: float) -> str:
        total = sum(self.sizes) or 1
        before = sum(self.sizes[: self.skipped[0]]) + self.skipped[1]
        read = self.done - before
        left = (total - self.done) * (now - self.began) / read if read > 0 else None
        until = "" if left is None else f", {_duration(left)} left" if self.done < total else ""
        return f"{100 * self.done / total:.0f} % of {total / 1e6:.1f} MB{until}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Whether somebody pressed Ctrl-C (or sent SIGTERM): the chunk in hand is finished first. A second one stops at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread gets signals
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def where_it_stopped(stream: Stream, paths: list[Path]) -> tuple[int, follow.Position]:
    """Which of `paths` holds the last line that was taken of this stream, and where. Those before it count as taken."""
    position = position_of(stream)
    if not position.start:
        return 0, follow.Position()
    for number, path in enumerate(paths):
        try:
            with AuditFile(path) as file:
                if file.starts_as(position.start):
                    return number, position
        except (OSError, follow.FileUnavailable):
            continue  # reading it says why
    raise CommandError(
        "None of these files is the one that was being read. Leave out --resume: what is known already counts as duplicate."
    )


def stream_named(vault: str, device: str, node: str) -> Stream:
    vault_row, _ = Vault.objects.get_or_create(name=vault, defaults={"retired": True})
    device_row, _ = Device.objects.get_or_create(vault=vault_row, name=device)
    stream, _ = Stream.objects.get_or_create(device=device_row, node=node)
    return stream


def take_file(
    stream: Stream,
    path: Path,
    counts: Counts,
    *,
    position: follow.Position,
    finished: bool,
    keep_on: bool,
    asked: Callable[[], bool],
) -> Iterator[follow.Chunk]:
    """Takes a file from `position` on, and gives each chunk once it is stored, and an empty one at the end.

    Lines that are known already count as duplicates and change nothing. Raises FileUnavailable.
    """
    last = follow.Chunk(b"", position.offset, position, 0)

    def chunks() -> Iterator[follow.Chunk]:
        nonlocal last
        while not asked():
            chunk = follow.read(path, last.position, finished=finished)
            last = chunk
            if chunk.lines:
                yield chunk
            elif not keep_on:
                return
            else:
                time.sleep(0.5)

    for chunk, taken in ingest_all(
        stream.pk,
        chunks(),
        expected=None,
        clock=timezone.now,
        # a stream that is followed or pushed goes on where it is
        moves=not (stream.path or stream.pushed),
        tries=30,
    ):
        counts.add(taken)
        yield chunk
    if not asked():
        yield last
