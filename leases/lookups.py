"""Lease times from the lease API: what is new, renewed or due is looked up; LIST per role reconciles slowly.

Source: https://developer.hashicorp.com/vault/api-docs/system/leases
"""

import logging
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from leases import clients
from leases.models import Certainty, Database, DatabaseRole, EndReason, Lease, LeaseState, Vault
from leases.models.actions import RevocationState
from leases.vault import LeaseTimes, VaultClient, VaultDenied

log = logging.getLogger(__name__)

BATCH = 200
# Vault needs a moment after the expiry until the lease is gone; asking earlier would only have to ask again
AFTER_EXPIRY = timedelta(milliseconds=700)
LOOK_AGAIN = timedelta(seconds=2)
DENIED = timedelta(minutes=1)


def due(vault: Vault, *, now: datetime) -> list[Lease]:
    """Leases whose lookup is due, longest due first, at most BATCH."""
    return list(
        Lease.objects.filter(vault=vault, lookup_due_at__lte=now)
        .exclude(state=LeaseState.ENDED)
        .order_by("lookup_due_at", "id")[:BATCH]
    )


def look_up_due(vault: Vault, *, now: datetime) -> int:
    """Looks up what is due; returns how many. Raises VaultError; what was done before it is kept."""
    client = clients.observer(vault)
    leases = due(vault, now=now)
    for lease in leases:
        try:
            look_up(lease, client, now=timezone.now())
        except VaultDenied as error:
            # of this lease alone (another namespace, say): the others must not wait behind it
            log.warning("lease %s cannot be looked up: %s", lease.lease_id, error.cause)
            Lease.objects.filter(pk=lease.pk).update(lookup_due_at=timezone.now() + DENIED)
    return len(leases)


def look_up(lease: Lease, client: VaultClient, *, now: datetime) -> None:
    """Asks Vault for one lease and writes down what it says: its times, or that it is gone."""
    times = client.lookup_lease(lease.lease_id)
    if times is None:
        end_gone(lease, now=now)
    else:
        take_times(lease, times, now=now)


def take_times(lease: Lease, times: LeaseTimes, *, now: datetime) -> None:
    irrevocable = bool(times.revoke_error) and times.ttl_seconds <= 0
    changes: dict[str, object] = {
        "issued_at": times.issued_at,
        "expires_at": times.expires_at,
        "last_renewal_at": times.last_renewal_at,
        "renewable": times.renewable,
        "revoke_error": times.revoke_error or "",
        "looked_up_at": now,
        "lookup_due_at": next_lookup(times, now=now),
        "updated_at": now,
    }
    if irrevocable:
        changes["state"] = LeaseState.IRREVOCABLE
    # a renewal that came in while this answer was on its way has asked for a lookup of its own: leave that standing
    Lease.objects.filter(pk=lease.pk).filter(Q(lookup_due_at=lease.lookup_due_at) | Q(lookup_due_at=None)).exclude(
        state=LeaseState.ENDED
    ).update(**changes)


def next_lookup(times: LeaseTimes, *, now: datetime) -> datetime | None:
    """Just after the expiry; again and again, slowly, while an expired lease is still there."""
    if times.expires_at is None:
        return None
    return max(times.expires_at + AFTER_EXPIRY, now + LOOK_AGAIN)


def end_gone(lease: Lease, *, now: datetime) -> None:
    """The lease API no longer knows the lease: it ended, for the best reason that there is evidence for."""
    lease.refresh_from_db()
    # one that Vault was not told of yet has ended nothing
    told = lease.revocations.exclude(state__in=[RevocationState.REQUESTED, RevocationState.FAILED])
    revocation = told.order_by("-id").first()
    if revocation is not None:
        at, reason, evidence = now, EndReason.REVOKED_HERE, f"action {revocation.action_id}"
    elif lease.end_seen_at is not None:
        at, reason, evidence = lease.end_seen_at, EndReason(lease.end_seen_reason), lease.end_seen_evidence
    elif lease.expires_at is not None and lease.expires_at <= now:
        at, reason, evidence = lease.expires_at, EndReason.EXPIRED, f"its time had come at {lease.expires_at:%FT%TZ}"
    else:
        at, reason, evidence = now, EndReason.UNKNOWN, "it was gone before its time, and no event says why"
    end(lease, at=at, reason=reason, evidence=f"{evidence}; a lookup finds no such lease", now=now)


def end(lease: Lease, *, at: datetime, reason: EndReason, evidence: str, now: datetime) -> bool:
    """Ends a lease once: the first cause that was proven stays. Returns whether this call ended it."""
    ended = (
        Lease.objects.filter(pk=lease.pk)
        .exclude(state=LeaseState.ENDED)
        .update(
            state=LeaseState.ENDED,
            ended_at=at,
            end_reason=reason,
            end_evidence=evidence,
            lookup_due_at=None,
            updated_at=now,
        )
    )
    return bool(ended)


def ask_again(lease_ids: list[int], *, at: datetime) -> None:
    """Something happened to these leases: look them up at `at`, or earlier if that was due anyway."""
    Lease.objects.filter(pk__in=lease_ids).exclude(state=LeaseState.ENDED).filter(
        Q(lookup_due_at=None) | Q(lookup_due_at__gt=at)
    ).update(lookup_due_at=at)


def reconcile(vault: Vault, *, now: datetime) -> dict[str, int]:
    """Compares the ledger with LIST: unknown leases are taken in, missing ones looked up.

    Returns {"listed", "new", "missing"} counts. Raises VaultError.
    """
    client = clients.observer(vault)
    listed: set[str] = set()
    new = 0
    for mount in vault.lease_mounts:
        read_roles(vault, mount, client)
        for lease_id in client.walk_leases(f"{mount}/creds/"):
            listed.add(lease_id)
    known = dict(Lease.objects.filter(vault=vault).exclude(state=LeaseState.ENDED).values_list("lease_id", "id"))
    strangers = listed - known.keys()
    if strangers:
        ended = set(Lease.objects.filter(vault=vault, lease_id__in=strangers).values_list("lease_id", flat=True))
        for lease_id in sorted(strangers - ended):
            with transaction.atomic():
                new += take_in(vault, lease_id, now=timezone.now()) is not None
    # what was issued while the list was on its way is not missing
    missing = list(
        Lease.objects.filter(vault=vault, first_seen_at__lt=now)
        .exclude(state=LeaseState.ENDED)
        .exclude(lease_id__in=listed)
        .values_list("id", flat=True)
    )
    ask_again(missing, at=now)
    Vault.objects.filter(pk=vault.pk).update(reconciled_at=now)
    return {"listed": len(listed), "new": new, "missing": len(missing)}


def read_roles(vault: Vault, mount: str, client: VaultClient) -> None:
    """Which connection each role of a database mount opens, as the mount says."""
    databases = {}
    for connection_ in client.database_connections(mount):
        databases[connection_.name], _ = Database.objects.get_or_create(
            vault=vault, mount=mount, name=connection_.name, defaults={"kind": ""}
        )
    for role in client.database_roles(mount):
        if role.connection in databases:
            DatabaseRole.objects.update_or_create(
                vault=vault, mount=mount, name=role.name, defaults={"database": databases[role.connection]}
            )
    name_databases(vault, mount)


def name_databases(vault: Vault, mount: str) -> None:
    """Fills in the database of leases that came before their role was known."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease SET database_id = role.database_id, updated_at = now()
            FROM leases_databaserole role
            WHERE leases_lease.vault_id = %s AND leases_lease.mount = %s AND leases_lease.database_id IS NULL
              AND role.vault_id = leases_lease.vault_id AND role.mount = leases_lease.mount
              AND role.name = leases_lease.role
            """,
            [vault.pk, mount],
        )


def take_in(vault: Vault, lease_id: str, *, now: datetime) -> Lease | None:
    """A lease for which no event was seen (yet): known by its id alone. None if it is known after all."""
    mount, _, rest = lease_id.partition("/creds/")
    role = rest.rpartition("/")[0]
    lease, created = Lease.objects.get_or_create(
        vault=vault,
        lease_id=lease_id,
        defaults={
            "mount": mount,
            "role": role,
            "database": database_of(vault, mount, role),
            "certainty": Certainty.UNKNOWN,
            "certainty_reason": "the audit log has shown no read that issued this lease",
            "lookup_due_at": now,
            "first_seen_at": now,
            "updated_at": now,
            "attribution_open": False,
        },
    )
    return lease if created else None


def database_of(vault: Vault, mount: str, role: str) -> Database | None:
    found = DatabaseRole.objects.filter(vault=vault, mount=mount, name=role).select_related("database").first()
    return found.database if found else None
