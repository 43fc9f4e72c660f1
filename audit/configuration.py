"""The streams of leasehold.toml, and the whole file applied in one transaction."""

from django.db import transaction

from audit.models import Device, Stream
from leases import configuration, health
from leases.configuration import Configuration
from leases.models import Vault
from leases.models.sources import SourceKind


@transaction.atomic
def apply(config: Configuration) -> None:
    """Writes everything. A stream that is gone from the file is retired: its events, blocks and position stay."""
    configuration.apply(config)
    Stream.objects.update(retired=True)
    names = []
    for vault_config in config.vaults:
        vault = Vault.objects.get(name=vault_config.name)
        for device_config in vault_config.devices:
            device, _ = Device.objects.get_or_create(vault=vault, name=device_config.name)
            for node in device_config.nodes:
                stream, _ = Stream.objects.update_or_create(
                    device=device, node=node.name, defaults={"path": node.path, "retired": False}
                )
                names.append(str(stream))
    health.forget(SourceKind.STREAM, names)
