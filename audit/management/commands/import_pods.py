"""`manage.py import_pods FILE --cluster C --auth-mount M [--vault V] [--json]`."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit import attribute
from leases.import_pods import ImportFailed, import_pods
from leases.models import Vault


class Command(BaseCommand):
    help = "Takes pods from `kubectl get pods -A -o json` or from NDJSON rows as the history of a cluster."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--cluster", required=True)
        parser.add_argument("--auth-mount", required=True)
        parser.add_argument("--vault", help="needed where there is more than one vault")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        vault = options["vault"]
        if vault is None:
            names = list(Vault.objects.order_by("name").values_list("name", flat=True))
            if len(names) != 1:
                raise CommandError(f"Name the vault with --vault; there are: {', '.join(names) or 'none yet'}")
            vault = names[0]
        try:
            imported = import_pods(
                options["file"], cluster=options["cluster"], auth_mount=options["auth_mount"], vault=vault
            )
        except ImportFailed as error:
            raise CommandError(str(error)) from error
        attributed = attribute.attribute_period(
            cluster=imported.cluster, from_at=imported.from_at, to_at=imported.to_at, now=timezone.now()
        )
        result = {
            "attributed": attributed,
            "pods": imported.pods,
            "new": imported.new,
            "from": imported.from_at.isoformat(),
            "to": imported.to_at.isoformat(),
        }
        self.stdout.write(
            json.dumps(result)
            if options["json"]
            else f"{imported.pods} pods, {imported.new} of them new; gapless from {result['from']} to {result['to']}; "
            f"{attributed} leases have a better known holder"
        )
