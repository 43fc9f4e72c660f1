"""`manage.py sync_leases --vault V [--json]`: reconciles the ledger with the lease API now."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from leases import clients, lists, lookups, meter
from leases.models import Vault
from leases.vault import VaultError


class Command(BaseCommand):
    help = "Compares the ledger with LIST and looks up what is due."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--vault", required=True)
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        vault = Vault.objects.filter(name=options["vault"], retired=False).first()
        if vault is None:
            names = ", ".join(Vault.objects.filter(retired=False).order_by("name").values_list("name", flat=True))
            raise CommandError(f"No vault is named {options['vault']!r}; there are: {names or 'none. Run configure.'}")
        try:
            # from its beginning, wherever a worker is with its own
            vault.round_at = None
            counts = lists.reconcile(vault, now=timezone.now())
            counts["looked_up"] = lookups.look_up_due(vault, now=timezone.now(), seconds=float("inf"))
        except (VaultError, clients.NotConfigured) as error:
            raise CommandError(str(error)) from error
        finally:
            meter.flush(now=timezone.now())
        if options["json"]:
            self.stdout.write(json.dumps(counts))
        else:
            self.stdout.write(
                "{listed} leases listed, {new} of them new, {missing} no longer there, {looked_up} looked up, "
                "lists of {put_off} roles put off (the sources page says why)".format(**counts)
            )
