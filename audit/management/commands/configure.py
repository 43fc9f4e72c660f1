"""`manage.py configure`: checks leasehold.toml and applies it."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from audit import configuration, heads, retention
from audit.notices import receivers
from leases.configuration import ConfigurationError, load


class Command(BaseCommand):
    help = "Checks the file that LEASEHOLD_CONFIG names (leasehold.toml) and applies it. Safe to run again."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            config = load(settings.CONFIG_FILE)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        configuration.apply(config)
        retention.make_ahead(now=timezone.now())
        retention.ask_anew(now=timezone.now())
        heads.ask_anew(now=timezone.now())
        receivers.ask_anew(now=timezone.now())
        streams = sum(len(device.nodes) for vault in config.vaults for device in vault.devices)
        self.stdout.write(
            f"Applied {settings.CONFIG_FILE}: {len(config.vaults)} vaults, {streams} streams, "
            f"{len(config.clusters)} clusters, {len(config.databases)} databases. `manage.py doctor` tries them all."
        )
