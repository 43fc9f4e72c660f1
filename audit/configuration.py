"""The streams and databases' logs of leasehold.toml, and the whole file applied in one transaction."""

from django.db import transaction

from audit import push
from audit.models import DatabaseLog, Device, Stream
from audit.notices import receivers
from leases import configuration, health
from leases.configuration import Configuration
from leases.models import Database, Vault
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
                fields = {"path": node.path, "pushed": node.push, "retired": False}
                stream, _ = Stream.objects.update_or_create(
                    device=device, node=node.name, defaults=fields if node.push else fields | push.NO_TOKEN
                )
                names.append(str(stream))
    # what is gone from the file may push no more, nor with its old token if it comes back
    Stream.objects.filter(retired=True).update(pushed=False, **push.NO_TOKEN)
    receivers.apply(config)
    health.forget(SourceKind.STREAM, names + [str(log) for log in apply_logs(config)])


def apply_logs(config: Configuration) -> list[DatabaseLog]:
    """The logs of database servers: each once, however many databases name it. One that is gone from the file is retired."""
    DatabaseLog.objects.update(retired=True)
    named: dict[DatabaseLog, list[Database]] = {}
    for item in config.databases:
        if item.log is not None:
            log, _ = DatabaseLog.objects.update_or_create(
                path=item.log.path, format=item.log.format, defaults={"retired": False}
            )
            database = Database.objects.get(vault__name=item.vault, mount=item.mount.strip("/"), name=item.name)
            named.setdefault(log, []).append(database)
    for log, databases in named.items():
        log.databases.set(databases)
    return list(named)
