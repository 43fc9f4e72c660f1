"""`manage.py export accesses --from T --to T [--format csv|ndjson] [--output F] [--where NAME=VALUE …] [--by NAME] [--reason TEXT]`."""

import sys
import time
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit import exports
from audit.exports.recorded import recorded
from audit.machine import user


def moment(text: str) -> datetime:
    """A day or a time of RFC 3339; without an offset it is UTC."""
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


class Command(BaseCommand):
    help = "Writes the rows of a period [from, to) as CSV or NDJSON. That it was done is an action."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", choices=exports.KINDS)
        parser.add_argument(
            "--from", dest="from_at", type=moment, required=True, help="RFC 3339, e.g. 2026-11-01T00:00Z"
        )
        parser.add_argument("--to", dest="to_at", type=moment, required=True)
        parser.add_argument("--format", dest="form", choices=["csv", "ndjson"], default="csv")
        parser.add_argument("--output", type=Path, help="a file; without it, standard output")
        parser.add_argument(
            "--where", action="append", default=[], metavar="NAME=VALUE", help="only these rows; may be repeated"
        )
        parser.add_argument("--by", help="who wants it; without it, the user of this machine")
        parser.add_argument("--reason", default="from the command line", help="what for")

    def handle(self, *args: Any, **options: Any) -> None:
        kind, form = options["kind"], options["form"]
        period = {"from_at": options["from_at"], "to_at": options["to_at"]}
        if period["from_at"] >= period["to_at"]:
            raise CommandError("--from must be before --to")
        where = dict(_pair(text) for text in options["where"])
        if unknown := sorted(where.keys() - set(exports.filters(kind))):
            raise CommandError(
                f"{kind} cannot be narrowed by {', '.join(unknown)}, only by {', '.join(exports.filters(kind))}"
            )
        if not options["reason"].strip():
            raise CommandError("--reason must say something")
        recording = {"by": options["by"] or user(), "reason": options["reason"], "now": timezone.now()}

        def write(output: IO[bytes]) -> exports.Written:
            with recorded(kind, form=form, where=where, **period, **recording) as written:
                for chunk in exports.stream(kind, form=form, where=where, **period, written=written):
                    output.write(chunk)
                    self._tell(written)
                output.flush()
            return written

        if options["output"] is None:
            write(sys.stdout.buffer)
            return
        try:
            with options["output"].open("wb") as file:
                done = write(file)
        except OSError as error:
            raise CommandError(f"{options['output']} cannot be written: {error.strerror}") from error
        self.stderr.write(f"{done.rows} rows written to {options['output']}")

    _told_at = 0.0

    def _tell(self, written: exports.Written) -> None:
        """How far it is, to a person who waits."""
        if self.stderr.isatty() and time.monotonic() - self._told_at > 1:
            self._told_at = time.monotonic()
            self.stderr.write(f"{written.rows:,} rows, {written.bytes / 1e6:,.0f} MB", ending="\r")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise CommandError(f"--where {text}: it is written NAME=VALUE")
    return name, value
