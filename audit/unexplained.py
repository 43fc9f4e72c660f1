"""Revocations whose line has only a lease id's hash, which nothing else told: what went then is hashed as the device does it.

A renewal tells a lease id's hash. Of a lease that was never renewed only Vault's audit-hash API can tell it.
"""

from datetime import datetime, timedelta

from django.db import connection

from audit import endings, intern
from audit.models import Device, Ending, Hash
from leases import clients
from leases.models import EndReason

# so long after a revocation a lookup may find its lease gone; one that seems to have expired by then, sooner
AFTER, EXPIRED_AFTER = timedelta(minutes=15), timedelta(minutes=1)
# so many of the newest endings are looked at, by primary key
RECENT = 2_000
# so many leases are asked about in one turn: each costs Vault about 4 ms and 3 KB of audit log
MOST = 50

GONE = f"""
    WITH unexplained AS (
        SELECT e.at FROM (SELECT * FROM audit_ending ORDER BY id DESC LIMIT %(recent)s) AS e
        WHERE e.device_id = %(device)s AND e.salt_epoch >= %(epoch)s - 1 AND e.by = %(by)s AND e.at > %(since)s
        -- told neither by this device nor by another one that logged the same request
        AND NOT EXISTS (
            SELECT FROM audit_ending told
            JOIN audit_hash h ON h.device_id = told.device_id AND {intern.are_near("h", "told")}
                AND h.of = %(of)s AND h.hash = told.target
            WHERE told.device_id IN (SELECT id FROM audit_device WHERE vault_id = %(vault)s)
                AND told.request_id = e.request_id
        )
    )
    SELECT l.id, l.lease_id FROM leases_lease l
    WHERE l.vault_id = %(vault)s AND l.state = 'ended' AND l.ended_at > %(since)s AND EXISTS (
        SELECT FROM unexplained u
        WHERE COALESCE(l.accessed_at, l.issued_at) <= u.at AND l.ended_at >= u.at AND (
            l.end_reason = %(unknown)s OR l.end_reason = %(expired)s AND l.ended_at <= u.at + make_interval(secs => %(expired_after)s)
        )
    )
    ORDER BY l.ended_at DESC, l.id DESC
    LIMIT %(recent)s
"""  # noqa: S608 (aliases alone)


def explain(device: Device, *, now: datetime) -> int:
    """Asks about leases that went when this device told of such a revocation; returns about how many. Raises VaultError."""
    asked = _not_asked(device, _gone(device, since=now - AFTER))[:MOST]
    if not asked:
        return 0
    client = clients.observer(device.vault)
    Hash.objects.bulk_create(
        (
            Hash(
                device=device,
                salt_epoch=device.salt_epoch,
                of=Hash.Of.LEASE_ID,
                hash=client.audit_hash(device.name, lease_id),
                lease_name_id=name,
            )
            for _, lease_id, name in asked
        ),
        ignore_conflicts=True,
    )
    endings.expect_ends([key for key, _, _ in asked], now=now)
    return len(asked)


def _gone(device: Device, *, since: datetime) -> list[tuple[int, str]]:
    """Keys and ids of the leases that such a revocation may have ended, newest end first."""
    with connection.cursor() as cursor:
        cursor.execute(
            GONE,
            {
                "device": device.pk,
                "epoch": device.salt_epoch,
                "vault": device.vault_id,
                "by": Ending.By.HASH,
                "of": Hash.Of.LEASE_ID,
                "since": since,
                "recent": RECENT,
                "unknown": EndReason.UNKNOWN,
                "expired": EndReason.EXPIRED,
                "expired_after": EXPIRED_AFTER.total_seconds(),
            },
        )
        return list(cursor.fetchall())


def _not_asked(device: Device, leases: list[tuple[int, str]]) -> list[tuple[int, str, int]]:
    """Those whose hash is not known, each with its name's id. What the log never named has none, and is left out."""
    names = intern.known_texts([lease_id for _, lease_id in leases]) if leases else {}
    known = set(
        Hash.objects.filter(
            device=device, salt_epoch=device.salt_epoch, of=Hash.Of.LEASE_ID, lease_name__in=names.values()
        ).values_list("lease_name_id", flat=True)
    )
    found = ((key, lease_id, names.get(lease_id)) for key, lease_id in leases)
    return [(key, lease_id, name) for key, lease_id, name in found if name is not None and name not in known]
