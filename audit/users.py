"""Which database user belongs to which lease: by the audit hash of the user's name, which only its own read can have logged.

A name is asked about once for each device and salt (AskedName), and compared with what the log tells until its lease is known.
Where no hash can tell, guess.py may.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from audit import guess, intern
from audit.models import AskedName, Device, Hash, Stream
from leases import clients
from leases.models import Database, Lease, LeaseState, Sampling, Vault
from leases.models.sessions import TiedBy
from leases.vault import VaultClient, VaultDenied

# so long a turn of asking lasts at most: each name costs Vault about 4 ms and 3 KB of audit log
ASK_SECONDS = 1.5
# and so many names are asked about in one
MOST = 500
# vaults that have no database on a user's server are asked about it only after this time
OTHERS_AFTER = timedelta(seconds=30)
# samples list users so often that nobody else needs to
LISTED_LATELY = timedelta(seconds=60)
# users and sessions that were seen last before that are not asked about any more
LOOK_BACK = timedelta(days=7)
# a hash that nothing tells of is forgotten after this time, and asked for again where its user is still there
FORGET_AFTER = timedelta(days=30)

# {sessions}, {users}: which of them. A name, when it was first seen, and the vaults with a database on its server.
_NAMES = """
    WITH names AS (
        SELECT session.database_user AS name, session.server_id, session.first_seen_at
        FROM leases_session session
        WHERE session.lease_id IS NULL AND session.database_user <> '' AND {sessions}
        UNION ALL
        SELECT dynamic.name, dynamic.server_id, dynamic.first_seen_at
        FROM leases_dynamicuser dynamic
        WHERE {users} AND NOT EXISTS (
            SELECT FROM leases_lease lease WHERE lease.database_user = dynamic.name AND lease.database_user <> ''
        )
        UNION ALL
        SELECT lease.database_user, NULL, lease.first_seen_at FROM leases_lease lease
        WHERE lease.database_user_by = 'time and name' AND lease.vault_id = %(vault)s
    )
    SELECT name FROM names
    GROUP BY name
    HAVING min(first_seen_at) < %(others)s OR bool_or(server_id IS NULL OR EXISTS (
        SELECT FROM leases_sampling sampling JOIN leases_database d ON d.id = sampling.database_id
        WHERE sampling.server_id = names.server_id AND d.vault_id = %(vault)s
    ) OR NOT EXISTS (SELECT FROM leases_sampling sampling WHERE sampling.server_id = names.server_id))
    ORDER BY max(first_seen_at) DESC, name
"""
_TIE = f"""
    WITH told AS (
        SELECT DISTINCT ON (lease.id) lease.id, asked.name
        FROM audit_askedname asked
        JOIN audit_hash h ON h.device_id = asked.device_id AND {intern.are_near("h", "asked")}
            AND h.of = %(of)s AND h.hash = asked.hash
        JOIN audit_device device ON device.id = asked.device_id
        JOIN audit_text text ON text.id = h.lease_name_id
        JOIN leases_lease lease ON lease.vault_id = device.vault_id AND lease.lease_id = text.text
        WHERE asked.due_at <= %(now)s AND (lease.database_user = '' OR lease.database_user_by = %(guess)s)
        ORDER BY lease.id, asked.id
    )
    UPDATE leases_lease lease
    SET database_user = told.name, database_user_by = %(hash)s, sessions_due = true, updated_at = %(now)s
    FROM told WHERE lease.id = told.id
    RETURNING lease.id, lease.database_user
"""  # noqa: S608 (aliases alone)
# the younger a name, the sooner its line may come
_WAIT = """
    UPDATE audit_askedname
    SET due_at = %(now)s + LEAST(GREATEST((%(now)s - asked_at) / 5, interval '1 second'), interval '10 minutes')
    WHERE due_at <= %(now)s
"""


def unknown_names(database: Database, *, now: datetime | None = None) -> list[str]:
    """Dynamic users that `database` has now and that no lease bears yet; empty while no live lease waits for one, or where
    samples of it list its users.

    Raises SourceError.
    """
    lately = (now or timezone.now()) - LISTED_LATELY
    if Sampling.objects.filter(database=database, users_at__gte=lately).exists():
        return []
    waiting = Lease.objects.filter(vault=database.vault_id, database_user="").exclude(request_id="")
    if not waiting.exclude(state=LeaseState.ENDED).exists():
        return []
    names = {user.name for user in clients.ask_monitor(database, lambda kind, dsn: kind.dynamic_users(dsn))}
    known = Lease.objects.filter(vault=database.vault_id, database_user__in=names)
    return sorted(names - set(known.values_list("database_user", flat=True)))


def names_for(vault: Vault, *, now: datetime, all_of_them: bool = False) -> list[str]:
    """Users of sessions and servers whose lease is not known, newest first: those that came in lately, or all that are left.

    Those that are gone are among them: their sessions, or their leases, may have ended too.
    """
    recent = "session.last_seen_at > %(since)s" if all_of_them else "session.place_open"
    query = _NAMES.format(
        sessions=recent,
        users="dynamic.last_seen_at > %(since)s" if all_of_them else "dynamic.first_seen_at > %(new)s",
    )
    with connection.cursor() as cursor:
        cursor.execute(
            query,
            {
                "vault": vault.pk,
                "others": now - OTHERS_AFTER,
                "since": now - LOOK_BACK,
                "new": now - timedelta(minutes=5),
            },
        )
        return [name for (name,) in cursor]


def match(database: Database, names: Sequence[str] | None, *, now: datetime) -> int:
    """Ties these users to their leases; returns how many were tied. Raises VaultError."""
    return ask(database.vault, names or [], now=now)


def ask(vault: Vault, names: Sequence[str], *, now: datetime, seconds: float = ASK_SECONDS) -> int:
    """Asks each of the vault's devices in turn about the names that it was not asked about, and ties what it tells.

    Returns how many were tied. Raises VaultError.
    """
    if not names:
        return 0
    deadline = time.monotonic() + seconds
    devices = followed(Device.objects.filter(vault=vault, missing_since=None))
    tied = 0
    left = list(names)
    for device in devices:
        known = AskedName.objects.filter(device=device, salt_epoch=device.salt_epoch, name__in=left)
        asked = set(known.values_list("name", flat=True))
        rows: list[AskedName] = []
        client = clients.observer(vault)
        try:
            for name in [name for name in left if name not in asked][:MOST]:
                if time.monotonic() > deadline:
                    break
                hashed = client.audit_hash(device.name, name)
                values = {"salt_epoch": device.salt_epoch, "name": name, "hash": hashed}
                rows.append(AskedName(device=device, asked_at=now, due_at=now, **values))
        finally:
            AskedName.objects.bulk_create(rows, ignore_conflicts=True)
        tied += tie(now=now, wait=False)
        known_now = set(Lease.objects.filter(database_user__in=left).values_list("database_user", flat=True))
        left = [name for name in left if name not in known_now]
    return tied


def tie(*, now: datetime, wait: bool = True) -> int:
    """Each name whose turn it is, to the lease whose read logged its hash. Returns how many were tied.

    With `wait` those that nothing tells of yet wait for their next turn.
    """
    values: dict[str, Any] = {
        "now": now,
        "of": Hash.Of.DATABASE_USER.value,
        "hash": TiedBy.HASH.value,
        "guess": TiedBy.TIME_AND_NAME.value,
    }
    with connection.cursor() as cursor:
        cursor.execute(_TIE, values)
        tied = cursor.fetchall()
        if tied:
            cursor.execute("DELETE FROM audit_askedname WHERE name = ANY(%s)", [[name for _, name in tied]])
        if wait:
            cursor.execute(_WAIT, values)
    guess.take_back(now=now)
    return len(tied)


def forget(*, now: datetime) -> None:
    """Names whose lease is known by other ways, and those of which nothing has told for long."""
    known = Lease.objects.filter(database_user=OuterRef("name"), database_user_by__in=[TiedBy.PLAIN, TiedBy.HASH])
    AskedName.objects.filter(Q(Exists(known)) | Q(asked_at__lt=now - FORGET_AFTER)).delete()


def look_up_leases_of_gone(*, now: datetime) -> int:
    """Asks Vault again about live leases whose user the database has no more: most have been revoked where no line told of it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease lease SET lookup_due_at = %(now)s
            FROM leases_dynamicuser gone
            WHERE gone.gone_at > %(since)s AND lease.database_user = gone.name AND lease.database_user <> ''
                AND lease.state = 'live' AND (lease.looked_up_at IS NULL OR lease.looked_up_at <= gone.gone_at)
                AND (lease.lookup_due_at IS NULL OR lease.lookup_due_at > %(now)s)
            """,
            {"now": now, "since": now - timedelta(days=1)},
        )
        return int(cursor.rowcount)


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
