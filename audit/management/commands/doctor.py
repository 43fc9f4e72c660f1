"""`manage.py doctor [--json]`: what is missing, with the exact fix. Exit code 1 if anything is."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from audit import doctor


class Command(BaseCommand):
    help = "Tries everything that Leasehold needs and names the cause and the fix of what does not work."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = []
        for finding in doctor.examine():
            findings.append(finding)
            if not options["json"]:
                self.stdout.write(f"{'ok     ' if finding.ok else 'WRONG  '}{finding.what}")
                if not finding.ok:
                    self.stdout.write(f"       cause: {finding.cause}\n       fix:   {finding.fix}")
                if finding.hint:
                    self.stdout.write(f"       hint:  {finding.hint}")
                self.stdout.flush()
        if options["json"]:
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1))
        if not all(finding.ok for finding in findings):
            sys.exit(1)
