"""`manage.py make_signing_key PATH`: writes a new Ed25519 key and, beside it, PATH.pub. Needs no database."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit import ed25519


class Command(BaseCommand):
    help = "Makes the key that signs the heads of the chains, and prints the fingerprint of its public key."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", type=Path, help="where the private key goes; the public one goes to PATH.pub")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["path"]
        public_path = path.with_name(f"{path.name}.pub")
        if public_path.exists():
            raise CommandError(f"{public_path} is there already; nothing is overwritten.")
        private, public = ed25519.new_pair()
        write(path, private, mode=0o600)
        write(public_path, public, mode=0o644)
        self.stdout.write(ed25519.fingerprint(ed25519.public_key(public)))
        self.stderr.write(
            f"Wrote {path} (for the worker of the queue `reports` alone) and {path.name}.pub. The line above is the public "
            "key's fingerprint. Keep it where those who check find it, and not in the database."
        )


def write(path: Path, data: bytes, *, mode: int) -> None:
    try:
        # O_EXCL: never over another file, nor through a link
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(number, "wb") as file:
            os.fchmod(number, mode)
            file.write(data)
            file.flush()
            os.fsync(number)
    except FileExistsError as error:
        raise CommandError(f"{path} is there already; nothing is overwritten.") from error
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}).") from error
