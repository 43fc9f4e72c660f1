"""`manage.py verify-chain [--json]`: is every raw block as it was written? Exit code 1 if one is not."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from audit import blocks
from audit.models import Stream


class Command(BaseCommand):
    help = "Checks the chain of raw blocks of every stream and names the first block that was altered, removed or inserted."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        results = []
        for stream in Stream.objects.select_related("device__vault").order_by("id"):
            verified = blocks.verify(stream)
            broken = verified.broken
            results.append(
                {
                    "stream": str(stream),
                    "blocks": verified.blocks,
                    "moved": verified.moved,
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
                moved = f", {result['moved']} of them by their headers alone" if result["moved"] else ""
                self.stdout.write(
                    f"ok      {result['stream']}: {result['blocks']} blocks{moved}, head {result['head'] or 'none'}"
                )
            else:
                self.stdout.write(f"BROKEN  {result['stream']}: block {result['block']} {result['what']}")
        if not all(result["ok"] for result in results):
            sys.exit(1)
