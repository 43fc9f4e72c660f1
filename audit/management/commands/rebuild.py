"""`manage.py rebuild [--vault V] [--progress] [--json]`: events, ledger and hourly counts again from the raw blocks."""

import json
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit.rebuild import Unsound, rebuild
from leases.models import Vault

_MB = 1024 * 1024


class Command(BaseCommand):
    help = (
        "Makes events, logins, leases and hourly counts again from the raw blocks. One transaction for each vault: Ctrl-C leaves "
        "the vault that it is at as it was. Meanwhile nothing is ingested of that vault; what its nodes write waits in their files."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--vault", help="only this one")
        parser.add_argument(
            "--progress", action="store_true", help="say how far it is even where stderr is no terminal"
        )
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        vaults = Vault.objects.order_by("name")
        if options["vault"] is not None:
            vaults = vaults.filter(name=options["vault"])
            if not vaults:
                raise CommandError(f"There is no vault {options['vault']}.")
        results = []
        for vault in vaults:
            began = time.monotonic()
            progress = Progress(self, vault.name, shown=options["progress"] or sys.stderr.isatty())
            try:
                rebuilt = rebuild(vault, now=timezone.now(), on_progress=progress)
            except Unsound as error:
                raise CommandError(
                    f"{error}. Nothing was changed in vault {vault.name}: `manage.py verify-chain` says more."
                ) from error
            except KeyboardInterrupt:
                raise CommandError(f"Stopped; vault {vault.name} is as it was.", returncode=130) from None
            result = asdict(rebuilt) | {
                "since": rebuilt.since.isoformat() if rebuilt.since else None,
                "seconds": round(time.monotonic() - began, 3),
            }
            results.append(result)
            if not options["json"]:
                self.stdout.write(", ".join(f"{name} {value}" for name, value in result.items() if value is not None))
        if options["json"]:
            self.stdout.write(json.dumps(results, indent=1))


class Progress:
    """How far one vault is and how long it will take, on stderr, once a second."""

    def __init__(self, command: BaseCommand, name: str, *, shown: bool) -> None:
        self.command, self.name, self.shown = command, name, shown
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.shown or (now - self.said < 1 and done < total):
            return
        self.said = now
        left = (now - self.began) / done * (total - done) if done else 0
        self.command.stderr.write(
            f"{self.name}: {done / _MB:.0f} of {total / _MB:.0f} MB, about {left:.0f} s left"
            if done < total
            else f"{self.name}: all {total / _MB:.0f} MB are read; comparing leases"
        )
