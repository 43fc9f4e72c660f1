"""Which database user belongs to which lease: by the audit hash of the user's name, which only its own read can have logged."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from django.db.models import Exists, OuterRef, Q, QuerySet

from audit.models import Device, Hash, Stream
from leases import clients
from leases.models import Database, Lease, LeaseState
from leases.vault import VaultClient, VaultDenied


def unknown_names(database: Database) -> list[str]:
    """Dynamic users that `database` has now and that no lease bears yet; empty while no live lease waits for one.

    Raises SourceError.
    """
    waiting = Lease.objects.filter(vault=database.vault_id, database_user="").exclude(request_id="")
    if not waiting.exclude(state=LeaseState.ENDED).exists():
        return []
    names = {user.name for user in clients.ask_monitor(database, lambda kind, dsn: kind.dynamic_users(dsn))}
    known = Lease.objects.filter(vault=database.vault_id, database_user__in=names)
    return sorted(names - set(known.values_list("database_user", flat=True)))


def match(database: Database, names: Iterable[str] | None, *, now: datetime) -> int:
    """Ties these users to their leases; returns how many were tied. Raises VaultError."""
    devices = list(followed(Device.objects.filter(vault=database.vault_id)))
    client = clients.observer(database.vault)
    return sum(tie(name, devices, client, now=now) for name in names or [])


def tie(name: str, devices: Iterable[Device], client: VaultClient, *, now: datetime) -> int:
    """One user's name to the lease whose read logged its hash on one of the devices."""
    for device in devices:
        hashed = _hash(client, device.name, device.salt_epoch, name)
        found = Hash.objects.filter(
            device=device, salt_epoch=device.salt_epoch, of=Hash.Of.DATABASE_USER, hash=hashed
        ).select_related("lease_name")
        if row := found.first():
            return Lease.objects.filter(vault=device.vault_id, lease_id=row.lease_name.text, database_user="").update(
                database_user=name, updated_at=now
            )
    return 0


@lru_cache(maxsize=20_000)
def _hash(client: VaultClient, device: str, salt_epoch: int, name: str) -> str:
    # the answer never changes within one salt, so each name is asked for once per worker
    return client.audit_hash(device, name)


def followed(devices: QuerySet[Device]) -> QuerySet[Device]:
    """Those that the vault has: a log of another device may have been taken from the command line."""
    configured = Stream.objects.filter(~Q(path="") | Q(pushed=True), device=OuterRef("pk"), retired=False)
    return devices.filter(Exists(configured)).order_by("id")


def check_device(device: Device, *, now: datetime) -> None:
    """Notices that the vault lists a device no longer, and that it was enabled anew: its salt, and with it every hash, is another.

    Raises VaultError.
    """
    client = clients.observer(device.vault)
    if is_missing(device, client):
        Device.objects.filter(pk=device.pk, missing_since=None).update(missing_since=now)
        return
    if device.missing_since:
        Device.objects.filter(pk=device.pk).update(missing_since=None)
    probe = client.audit_hash(device.name, "leasehold salt probe")
    if device.salt_probe == probe:
        return
    changed = {"salt_epoch": device.salt_epoch + 1, "salt_changed_at": now} if device.salt_probe else {}
    Device.objects.filter(pk=device.pk, salt_probe=device.salt_probe).update(salt_probe=probe, **changed)


def is_missing(device: Device, client: VaultClient) -> bool:
    """False also where the account may not list devices: it never could, and the rest goes on."""
    try:
        return device.name not in client.audit_devices()
    except VaultDenied:
        return False
