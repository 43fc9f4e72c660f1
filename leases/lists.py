"""LIST reconciles the ledger, slowly and role by role: leases that no event told of, and ends that nobody saw.

A LIST is one line of the audit log with every name in it, so all of them are held to a budget. A round may take several turns.
Source: https://developer.hashicorp.com/vault/api-docs/system/leases#list-leases
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import F, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from leases import clients, meter
from leases.ends import NO_SUCH_LEASE, OUTLIVED
from leases.models import ApiCost, Certainty, Database, DatabaseRole, Lease, LeaseState, RoleList, Vault
from leases.vault import Sent, VaultClient, VaultDenied, VaultError, VaultLoginFailed, VaultSealed, VaultUnreachable

log = logging.getLogger(__name__)

# rows that are written at once: what is issued meanwhile must not wait for all of a large list
AT_ONCE = 2_000


def is_due(vault: Vault, *, now: datetime) -> bool:
    """Whether a round runs, was asked for, or has its time come."""
    if vault.round_at is not None or vault.reconciled_at is None:
        return True
    return now - vault.reconciled_at >= timedelta(seconds=vault.reconcile_seconds)


def reconcile(vault: Vault, *, now: datetime, until: float | None = None) -> dict[str, int]:
    """Compares the ledger with LIST: unknown leases are taken in, missing ones looked up. Goes on with a round that runs.

    Returns {"listed", "new", "missing", "put_off", "left"}; `left` is 1 where the time (`until`, of time.monotonic()) was up
    before the round's end. Raises VaultError.
    """
    client = clients.observer(vault)
    counts = Counter(listed=0, new=0, missing=0, put_off=0, left=0)
    if vault.round_at is None:
        _begin(vault, client, now=now)
    for namespace in namespaces(vault):
        for mount in vault.lease_mounts:
            for row in _waiting(vault, namespace, mount, role=False):
                counts.update(_list_mount(vault, row, client))
            for row in _waiting(vault, namespace, mount, role=True):
                if until is not None and time.monotonic() >= until:
                    return {**counts, "left": 1}
                counts.update(_list_role(vault, row, client))
    Vault.objects.filter(pk=vault.pk).update(round_at=None)
    # where an event has asked for another round meanwhile, that one is due at once
    Vault.objects.filter(pk=vault.pk).exclude(reconciled_at=None).update(reconciled_at=vault.round_at)
    return dict(counts)


def _begin(vault: Vault, client: VaultClient, *, now: datetime) -> None:
    options = client.audit_device_options().values()
    vault.audit_devices = len(options)
    vault.listing_devices = sum(option.get("elide_list_responses", "").lower() != "true" for option in options)
    for namespace in namespaces(vault):
        try:
            take_irrevocable(vault, namespace, client, now=timezone.now())
        except VaultDenied as error:
            # the check of the account says so on the pages
            log.info("irrevocable leases of vault %s cannot be listed: %s", vault, error.cause)
        except VaultError as error:
            _unless_of_this_namespace_alone(vault, namespace, error)
    for namespace in namespaces(vault):
        for mount in vault.lease_mounts:
            RoleList.objects.get_or_create(vault=vault, vault_namespace=namespace, mount=mount, role="")
    vault.round_at = now
    Vault.objects.filter(pk=vault.pk).update(
        round_at=now,
        reconciled_at=Coalesce(F("reconciled_at"), now),
        audit_devices=vault.audit_devices,
        listing_devices=vault.listing_devices,
    )


def own_namespace(vault: Vault) -> str:
    """As events spell it: empty for the root, else with a slash at its end."""
    return f"{vault.namespace.strip('/')}/" if vault.namespace.strip("/") else ""


def namespaces(vault: Vault) -> list[str]:
    """The account's own namespace, the configured ones, and those below it that live leases are in."""
    own = own_namespace(vault)
    configured = [f"{namespace.strip('/')}/" for namespace in vault.namespaces]
    live = Lease.objects.filter(vault=vault).exclude(state=LeaseState.ENDED)
    learned = live.order_by().values_list("vault_namespace", flat=True).distinct()
    return [own, *sorted({name for name in [*configured, *learned] if name.startswith(own)} - {own})]


def _waiting(vault: Vault, namespace: str, mount: str, *, role: bool) -> list[RoleList]:
    """What this round has not come to yet, listed longest ago first. `role`: the roles of a mount, or the mount itself."""
    rows = RoleList.objects.filter(vault=vault, vault_namespace=namespace, mount=mount)
    rows = rows.exclude(role="") if role else rows.filter(role="")
    waiting = rows.filter(Q(tried_at=None) | Q(tried_at__lt=vault.round_at))
    return list(waiting.order_by(F("listed_at").asc(nulls_first=True), "id"))


def _list_mount(vault: Vault, row: RoleList, client: VaultClient) -> Counter[str]:
    """Which roles of a mount have leases. What the ledger holds of others is missing."""
    namespace, mount, began = row.vault_namespace, row.mount, timezone.now()
    try:
        if namespace == own_namespace(vault):
            read_roles(vault, mount, client)
        names = client.list_leases(f"{mount}/creds/", namespace=namespace)
    except VaultError as error:
        _unless_of_this_namespace_alone(vault, namespace, error)
        _put_off(row, f"{error.cause}. {error.fix}")
        return Counter(put_off=1)
    roles = sorted({name.rstrip("/") for name in names if name.endswith("/")})
    rows = RoleList.objects.filter(vault=vault, vault_namespace=namespace, mount=mount).exclude(role="")
    RoleList.objects.bulk_create(
        [RoleList(vault=vault, vault_namespace=namespace, mount=mount, role=role) for role in roles],
        ignore_conflicts=True,
    )
    rows.exclude(role__in=roles).delete()
    RoleList.objects.filter(pk=row.pk).update(listed_at=began, tried_at=timezone.now(), leases=len(roles), put_off="")
    live = Lease.objects.filter(vault=vault, vault_namespace=namespace, mount=mount).exclude(state=LeaseState.ENDED)
    missing = live.exclude(role__in=roles).filter(first_seen_at__lt=began)
    return Counter(missing=missing.update(lookup_due_at=timezone.now()))


def _list_role(vault: Vault, row: RoleList, client: VaultClient) -> Counter[str]:
    namespace, mount, role, began = row.vault_namespace, row.mount, row.role, timezone.now()
    if why_not := over_budget(vault, row, now=began):
        _put_off(row, why_not)
        return Counter(put_off=1)
    try:
        names = client.list_leases(f"{mount}/creds/{role}/", namespace=namespace)
    except VaultError as error:
        _unless_of_this_namespace_alone(vault, namespace, error)
        _put_off(row, f"{error.cause}. {error.fix}")
        return Counter(put_off=1)
    ids = [f"{mount}/creds/{role}/{name}" for name in names if not name.endswith("/")]
    new = take_in_all(vault, ids, namespace=namespace, began=began)
    missing = _ask_for_missing(vault, row, ids, began=began, now=timezone.now())
    RoleList.objects.filter(pk=row.pk).update(listed_at=began, tried_at=timezone.now(), leases=len(ids), put_off="")
    return Counter(listed=len(ids), new=new, missing=missing)


def _unless_of_this_namespace_alone(vault: Vault, namespace: str, error: VaultError) -> None:
    """Raises the error unless it is of a child namespace, which must not hold the others back."""
    of_the_vault = isinstance(error, VaultUnreachable | VaultSealed | VaultLoginFailed)
    if of_the_vault or namespace == own_namespace(vault):
        raise error


def _put_off(row: RoleList, why: str) -> None:
    RoleList.objects.filter(pk=row.pk).update(tried_at=timezone.now(), put_off=why[:500])


# --- the budget --------------------------------------------------------------------------------------------------


def over_budget(vault: Vault, row: RoleList, *, now: datetime) -> str:
    """Why this role cannot be listed now, and what to do; empty where it can."""
    live = Lease.objects.filter(vault=vault, vault_namespace=row.vault_namespace, mount=row.mount, role=row.role)
    names = max(row.leases, live.exclude(state=LeaseState.ENDED).count())
    devices = meter.Devices(vault.audit_devices, vault.listing_devices)
    cost = meter.audit_bytes(Sent("list", "sys/leases/lookup/", 0, names), devices)
    budget = vault.audit_bytes_per_hour
    if cost > budget:
        return (
            f"A list of role {row.role} would write {megabytes(cost)} of audit log, and audit_bytes_per_hour allows "
            f"{megabytes(budget)}. Raise it in leasehold.toml to {cost} or more, or let the devices elide_list_responses."
        )
    if spent(vault, now=now) + cost > budget:
        again = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        return (
            f"Lists may write {megabytes(budget)} of audit log within an hour, which are used up. Role {row.role} is listed "
            f"after {again:%H:%M} UTC; raise audit_bytes_per_hour in leasehold.toml if that is too late."
        )
    return ""


def spent(vault: Vault, *, now: datetime) -> int:
    """Bytes of audit log that lists have caused in this hour."""
    meter.flush(now=now)
    hour = now.replace(minute=0, second=0, microsecond=0)
    found = ApiCost.objects.filter(vault=vault, hour=hour, kind=ApiCost.Kind.LIST).aggregate(n=Sum("audit_bytes"))["n"]
    return int(found or 0)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


# --- what a list says --------------------------------------------------------------------------------------------


def take_in(vault: Vault, lease_id: str, *, now: datetime) -> Lease | None:
    """A lease for which no event was seen (yet): known by its id alone. None if it is known after all."""
    if not take_in_all(vault, [lease_id], namespace=own_namespace(vault), now=now):
        return None
    return Lease.objects.get(vault=vault, lease_id=lease_id)


def take_in_all(
    vault: Vault,
    lease_ids: Sequence[str],
    *,
    namespace: str,
    now: datetime | None = None,
    began: datetime | None = None,
) -> int:
    """The same for many, of one namespace; those that live stay as they are. Returns how many were new.

    `began`: when Vault was asked. What had ended well before that has not ended after all.
    """
    new = _strangers(vault, lease_ids)
    _take_back(vault, lease_ids, began=began or timezone.now(), now=now or timezone.now())
    roles: dict[tuple[str, str], int] = {}
    if namespace == own_namespace(vault):
        known = DatabaseRole.objects.filter(vault=vault).values_list("mount", "name", "database_id")
        roles = {(mount, name): database for mount, name, database in known}
    for begin in range(0, len(new), AT_ONCE):
        _add(vault, namespace, new[begin : begin + AT_ONCE], roles, now=now or timezone.now())
    return len(new)


# What is told of the end that was none stands in the evidence, also once the lease has ended again; a lookup that finds the lease
# gone nevertheless (a stale list) ends it as before.
_TAKE_BACK = """
    UPDATE leases_lease l SET
      state = 'live', ended_at = NULL, end_reason = '', lookup_due_at = %(now)s, updated_at = %(now)s,
      end_seen_at = l.ended_at, end_seen_reason = l.end_reason,
      end_seen_evidence = split_part(l.end_evidence, %(no_such_lease)s, 1),
      end_evidence = left(
        'taken for ended at ' || to_char(l.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' (' || l.end_reason
        || ': ' || l.end_evidence || '), but a list of ' || %(began)s || ' has it', 2000)
    FROM unnest(%(ids)s::text[]) AS u (id)
    WHERE l.vault_id = %(vault)s AND l.lease_id = u.id AND l.state = 'ended'
      -- by the clocks of others; and what ended it was known before the list was asked for
      AND l.ended_at < %(began_at)s - %(outlived)s AND l.updated_at < %(began_at)s
    RETURNING l.lease_id
"""


def _take_back(vault: Vault, lease_ids: Sequence[str], *, began: datetime, now: datetime) -> None:
    """Leases that were taken for ended, by a false answer or before Vault was restored from a snapshot: a lookup says what they are."""
    values: dict[str, Any] = {
        "now": now,
        "no_such_lease": NO_SUCH_LEASE,
        "began": f"{began:%FT%TZ}",
        "ids": list(lease_ids),
        "vault": vault.pk,
        "began_at": began,
        "outlived": OUTLIVED,
    }
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_BACK, values)
        for (lease_id,) in cursor.fetchall():
            log.warning("lease %s was taken for ended, and a list of vault %s has it", lease_id, vault)


def _strangers(vault: Vault, lease_ids: Sequence[str]) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT u.id FROM unnest(%s::text[]) AS u (id)
            WHERE NOT EXISTS (SELECT 1 FROM leases_lease l WHERE l.vault_id = %s AND l.lease_id = u.id) ORDER BY 1
            """,
            [list(lease_ids), vault.pk],
        )
        return [row[0] for row in cursor.fetchall()]


def _add(
    vault: Vault, namespace: str, lease_ids: Sequence[str], roles: dict[tuple[str, str], int], *, now: datetime
) -> None:
    """One statement for all: bulk_create would spend three times as long on rows that differ in four columns."""
    same = Lease(
        vault=vault,
        vault_namespace=namespace,
        certainty=Certainty.UNKNOWN,
        certainty_reason="the audit log has shown no read that issued this lease",
        lookup_due_at=now,
        first_seen_at=now,
        updated_at=now,
        attribution_open=False,
    )
    parts = [(lease_id, *lease_id.rpartition("/")[0].partition("/creds/")) for lease_id in lease_ids]
    rows = [(lease_id, mount, role, roles.get((mount, role))) for lease_id, mount, _, role in parts]
    own = ("lease_id", "mount", "role", "database_id")
    fields = [field for field in Lease._meta.concrete_fields if not field.primary_key and field.attname not in own]
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO leases_lease ({", ".join([*own, *(str(field.column) for field in fields)])})
            SELECT u.*, {", ".join(["%s"] * len(fields))}
            FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[]) AS u
            -- its own read may be taken in at this moment
            ON CONFLICT (vault_id, lease_id) DO NOTHING
            """,  # noqa: S608 (names of the model's own columns)
            [
                *(field.get_db_prep_save(getattr(same, field.attname), connection) for field in fields),
                *[list(column) for column in zip(*rows, strict=True)],
            ],
        )


def _ask_for_missing(vault: Vault, row: RoleList, listed: Iterable[str], *, began: datetime, now: datetime) -> int:
    """Leases that the role should still have and the list lacks: a lookup decides. Returns how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease l SET lookup_due_at = LEAST(l.lookup_due_at, %s)
            WHERE l.vault_id = %s AND l.vault_namespace = %s AND l.mount = %s AND l.role = %s AND l.state <> 'ended'
              -- what was issued while the list was on its way is not missing
              AND l.first_seen_at < %s
              AND NOT EXISTS (SELECT 1 FROM unnest(%s::text[]) AS u (id) WHERE u.id = l.lease_id)
            """,
            [now, vault.pk, row.vault_namespace, row.mount, row.role, began, list(listed)],
        )
        return int(cursor.rowcount)


def take_irrevocable(vault: Vault, namespace: str, client: VaultClient, *, now: datetime) -> int:
    """Leases that Vault has given up to revoke, each with its error; one that is none any more is looked up. Returns how many.

    Only those of the watched mounts. Raises VaultError.
    """
    mounts = tuple(f"{mount}/creds/" for mount in vault.lease_mounts)
    began = timezone.now()
    found = {
        lease.lease_id: lease.error
        for lease in client.irrevocable_leases(namespace=namespace)
        if lease.lease_id.startswith(mounts)
    }
    take_in_all(vault, list(found), namespace=namespace, began=began)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease l SET state = 'irrevocable', revoke_error = u.error, updated_at = %s
            FROM unnest(%s::text[], %s::text[]) AS u (id, error)
            WHERE l.vault_id = %s AND l.lease_id = u.id AND l.state <> 'ended'
              AND (l.state, l.revoke_error) IS DISTINCT FROM ('irrevocable', u.error)
            """,
            [now, list(found), list(found.values()), vault.pk],
        )
    mended = Lease.objects.filter(vault=vault, vault_namespace=namespace, state=LeaseState.IRREVOCABLE)
    mended.exclude(lease_id__in=list(found)).update(lookup_due_at=now)
    return len(found)


# --- what a mount's configuration says ---------------------------------------------------------------------------


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
    """Fills in the database of leases that came before their role was known. A child namespace's mount is another one."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease SET database_id = role.database_id, updated_at = now()
            FROM leases_databaserole role
            WHERE leases_lease.vault_id = %s AND leases_lease.mount = %s AND leases_lease.database_id IS NULL
              AND leases_lease.vault_namespace IN ('', %s)
              AND role.vault_id = leases_lease.vault_id AND role.mount = leases_lease.mount
              AND role.name = leases_lease.role
            """,
            [vault.pk, mount, own_namespace(vault)],
        )
