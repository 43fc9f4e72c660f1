"""`manage.py export accesses --from T --to T [--format csv|ndjson] [--output F]`."""

import sys
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit import exports


def moment(text: str) -> datetime:
    """A day or a time of RFC 3339; without an offset it is UTC."""
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


class Command(BaseCommand):
    help = "Writes the rows of a period [from, to) as CSV or NDJSON."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("kind", choices=exports.KINDS)
        parser.add_argument(
            "--from", dest="from_at", type=moment, required=True, help="RFC 3339, e.g. 2026-11-01T00:00Z"
        )
        parser.add_argument("--to", dest="to_at", type=moment, required=True)
        parser.add_argument("--format", dest="form", choices=["csv", "ndjson"], default="csv")
        parser.add_argument("--output", type=Path, help="a file; without it, standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        period = {"from_at": options["from_at"], "to_at": options["to_at"]}
        if period["from_at"] >= period["to_at"]:
            raise CommandError("--from must be before --to")
        if options["output"] is None:
            exports.write(options["kind"], sys.stdout, form=options["form"], **period)
            return
        try:
            with options["output"].open("w", encoding="utf-8", newline="") as file:
                count = exports.write(options["kind"], file, form=options["form"], **period)
        except OSError as error:
            raise CommandError(f"{options['output']} cannot be written: {error.strerror}") from error
        self.stderr.write(f"{count} rows written to {options['output']}")
