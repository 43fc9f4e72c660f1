"""`manage.py verify-chain [--archive] [--json]`: is every raw block as it was written? Exit code 1 if one is not."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit import blocks, retention
from audit.models import Stream
from leases.errors import SourceError


class Command(BaseCommand):
    help = "Checks the chain of raw blocks of every stream and names the first block that was altered, removed or inserted."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--archive", action="store_true", help="read what was moved to the archive too")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        results = []
        for stream in Stream.objects.select_related("device__vault").order_by("id"):
            try:
                archived = retention.examine(stream) if options["archive"] else None
            except SourceError as error:
                raise CommandError(str(error)) from error
            verified = blocks.verify(stream, archived=archived)
            broken = verified.broken
            results.append(
                {
                    "stream": str(stream),
                    "blocks": verified.blocks,
                    "moved": verified.moved,
                    "dropped": verified.dropped,
                    "ok": broken is None,
                    "block": broken.sequence if broken else None,
                    "what": broken.what if broken else "",
                    "head": stream.head,
                }
            )
        if options["json"]:
            self.stdout.write(json.dumps(results, indent=1))
        for result in results if not options["json"] else []:
            if result["ok"]:
                where = (
                    "read in the archive"
                    if options["archive"]
                    else "in the archive (headers checked; --archive reads them)"
                )
                gone = f", {result['moved']} of them {where}" if result["moved"] else ""
                gone += f", {result['dropped']} of them dropped (headers checked)" if result["dropped"] else ""
                self.stdout.write(
                    f"ok      {result['stream']}: {result['blocks']} blocks{gone}, head {result['head'] or 'none'}"
                )
            else:
                self.stdout.write(f"BROKEN  {result['stream']}: block {result['block']} {result['what']}")
        if not all(result["ok"] for result in results):
            sys.exit(1)
