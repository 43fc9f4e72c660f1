"""`manage.py report --from T --to T --output DIR [--by NAME] [--reason TEXT] [--events] [--json]`: an evidence pack of [from, to).

Exit code 2: it was made, but nobody has signed it.
"""

import json
import sys
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit.machine import user
from audit.management.commands.export import moment
from audit.pack.write import Made, make
from leases.errors import SourceError

UNSIGNED = 2
# before it there is no Vault, after it no date that a zip can hold
EARLIEST, LATEST = datetime(2015, 1, 1, tzinfo=UTC), datetime(2107, 1, 1, tzinfo=UTC)


class Command(BaseCommand):
    help = (
        "Makes an evidence pack: what happened in a period [from, to), how complete and how sure that is, signed, in a zip that "
        "anybody can check. Run it where the signing key is. Exit code 2: made, but not signed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--from", dest="from_at", type=moment, required=True, help="RFC 3339, e.g. 2026-11-01T00:00Z"
        )
        parser.add_argument("--to", dest="to_at", type=moment, required=True)
        parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="a folder that is there")
        parser.add_argument("--by", help="who wants it; without it, the user of this machine")
        parser.add_argument("--reason", default="evidence pack, from the command line", help="what for")
        parser.add_argument("--events", action="store_true", help="each request to a vault too: may be many gigabytes")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        period = {"from_at": options["from_at"], "to_at": options["to_at"]}
        if not EARLIEST <= period["from_at"] < period["to_at"] <= LATEST:
            raise CommandError(f"--from must be before --to, and both from {EARLIEST:%Y} to {LATEST:%Y}")
        if not options["reason"].strip():
            raise CommandError("--reason must say something")
        try:
            made = make(
                **period,
                folder=options["output"],
                by=options["by"] or user(),
                reason=options["reason"],
                with_events=options["events"],
                now=timezone.now(),
            )
        except SourceError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(as_json(made)) if options["json"] else "\n".join(about(made)))
        if not made.fingerprint:
            self.stderr.write(
                "NOT SIGNED: anybody can make or alter such a pack. Name a key in leasehold.toml ([heads] key, docs/integrity.md), "
                "run `manage.py configure`, and make the pack again."
            )
            sys.exit(UNSIGNED)


def as_json(made: Made) -> dict[str, Any]:
    told = made.manifest
    return {
        "pack": str(made.path),
        "report": str(made.report_id),
        "bytes": made.size,
        "sha256": made.sha256,
        "signed_by": made.fingerprint or None,
        "complete": told.completeness.complete,
        "reasons": told.completeness.reasons,
        "rows": {file.name: file.rows for file in told.files if file.rows is not None},
    }


def about(made: Made) -> list[str]:
    told = made.manifest
    rows = ", ".join(f"{file.name} {file.rows}" for file in told.files if file.rows is not None)
    lines = [
        f"{made.path} ({made.size} bytes)",
        f"SHA-256 {made.sha256}",
        f"signed by {made.fingerprint}" if made.fingerprint else "not signed",
        f"rows: {rows}",
        told.certainty.word,
        told.completeness.word,
    ]
    return lines + [f"  {reason}" for reason in told.completeness.reasons[:10]]
