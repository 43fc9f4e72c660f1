"""`manage.py retention [--dry-run] [--json]`: makes days ahead, moves and drops what policy says. Exit code 1 on a problem."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit import retention
from leases.turns import turn


class Command(BaseCommand):
    help = "Does at once and to its end what the workers do once an hour. Run it where the archive can be reached."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        if options["dry_run"]:
            result = due(retention.what_is_due(now=now))
        else:
            with turn("house", 0) as mine:
                if not mine:
                    raise CommandError("A worker is keeping the house just now. Try again in a minute.")
                result = done(retention.keep_house(now=now))
        self.stdout.write(json.dumps(result) if options["json"] else "\n".join(lines(result)))
        if result.get("problems"):
            sys.exit(1)


def due(due: retention.Due) -> dict[str, Any]:
    return {
        "dry_run": True,
        "days_made": due.make,
        "events_dropped": [str(day) for day in due.events],
        "lines_dropped": [str(day) for day in due.lines],
        "blocks_moved": due.blocks if due.archive else 0,
        "bytes_moved": due.bytes if due.archive else 0,
        "archive": due.archive,
    }


def done(kept: retention.Kept) -> dict[str, Any]:
    return {
        "days_made": kept.made,
        "events_dropped": [str(day) for day in kept.events],
        "lines_dropped": [str(day) for day in kept.lines],
        "blocks_moved": kept.blocks,
        "bytes_moved": kept.bytes,
        "files_written": kept.files,
        "in_use": kept.busy,
        "problems": [{"cause": problem.cause, "fix": problem.fix} for problem in kept.problems],
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    would = "would be " if result.get("dry_run") else ""
    yield f"{result['days_made']} days {would}made ahead"
    for what, name in [("events", "events_dropped"), ("raw lines", "lines_dropped")]:
        days = result[name]
        yield f"{what} of {len(days)} days {would}dropped" + (f": {days[0]} to {days[-1]}" if days else "")
    yield f"{result['blocks_moved']} blocks ({result['bytes_moved']} bytes) {would}moved to the archive"
    for table in result.get("in_use", []):
        yield f"in use, so it is tried again in an hour: {table}"
    for problem in result.get("problems", []):
        yield f"cause: {problem['cause']}\nfix:   {problem['fix']}"
