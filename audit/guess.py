"""Which lease a database user may be of where no hash can tell: by its name and its time. A guess, and marked so.

Vault's default names are `v-<display name>-<role>-<20 random>-<unix time>`, the first two cut to 8 characters. A name that fits one
lease without a user, and no other name that lease, is taken for that lease's. Names of MySQL and MariaDB bear no time.
"""

from collections import Counter
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, Q

from audit import intern
from audit.models import Hash
from leases.models import Lease, Policy
from leases.models.sessions import TiedBy

# hashes have this long to tell first
AFTER = timedelta(seconds=60)
LOOK_BACK = timedelta(days=7)
# Vault makes the name, then answers; names bear whole seconds
SLACK = timedelta(seconds=2)

_FITS = r"""
    WITH seen AS (
        SELECT session.database_user AS name, session.server_id, session.first_seen_at FROM leases_session session
        WHERE session.lease_id IS NULL AND session.database_user <> '' AND session.last_seen_at > %(since)s
        UNION
        SELECT name, server_id, first_seen_at FROM leases_dynamicuser WHERE last_seen_at > %(since)s
    ), untied AS (
        SELECT name, min(server_id) AS server_id, min(first_seen_at) AS first_seen_at,
            substring(name FROM '^v-(.*)-[A-Za-z0-9]{20}-[0-9]{10}$') AS who,
            to_timestamp(substring(name FROM '[0-9]{10}$')::bigint) AS made_at
        FROM seen
        WHERE name ~ '^v-.*-[A-Za-z0-9]{20}-[0-9]{10}$'
            AND NOT EXISTS (
                SELECT FROM leases_lease lease WHERE lease.database_user = seen.name AND lease.database_user <> ''
            )
        -- the same name on two servers is none of Vault's
        GROUP BY name HAVING count(DISTINCT server_id) = 1
    )
    SELECT DISTINCT untied.name, lease.id, lease.lease_id, GREATEST(untied.first_seen_at, lease.first_seen_at)
    FROM untied
    JOIN LATERAL (
        SELECT sampling.database_id AS id FROM leases_sampling sampling WHERE sampling.server_id = untied.server_id
        UNION
        SELECT session.database_id FROM leases_session session
        WHERE session.database_user = untied.name AND session.lease_id IS NULL AND session.database_id IS NOT NULL
    ) AS its_database ON true
    JOIN leases_lease lease ON lease.database_id = its_database.id AND lease.database_user = ''
        AND coalesce(lease.issued_at, lease.accessed_at) BETWEEN untied.made_at - %(slack)s AND untied.made_at + %(slack)s
    LEFT JOIN leases_login login ON login.id = lease.login_id
    WHERE lease.role <> '' AND CASE
        WHEN login.display_name <> '' THEN untied.who = left(login.display_name, 8) || '-' || left(lease.role, 8)
        ELSE right(untied.who, length(left(lease.role, 8)) + 1) = '-' || left(lease.role, 8)
    END
"""
# pairs of a name and a lease whose user the log has another hash of, under a device that was asked about the name
_DENIED = """
    SELECT asked.name, h.lease_name_id FROM audit_hash h
    JOIN audit_askedname asked ON asked.device_id = h.device_id AND asked.salt_epoch = h.salt_epoch AND asked.hash <> h.hash
    WHERE h.lease_name_id = ANY(%s) AND h.of = %s AND asked.name = ANY(%s)
"""


def guess(*, now: datetime) -> int:
    """Ties what hashes left over, where one name and one lease fit each other alone. Returns how many."""
    values: dict[str, Any] = {
        "since": now - LOOK_BACK,
        "slack": timedelta(seconds=Policy.current().clock_skew_seconds) + SLACK,
    }
    with connection.cursor() as cursor:
        cursor.execute(_FITS, values)
        rows = cursor.fetchall()
    no = denied({(name, lease_id) for name, _, lease_id, _ in rows})
    fits = [(name, key, seen_at) for name, key, lease_id, seen_at in rows if (name, lease_id) not in no]
    names, leases = Counter(name for name, _, _ in fits), Counter(key for _, key, _ in fits)
    done = 0
    for name, key, seen_at in fits:
        # what fits and is too young to be taken still speaks against others
        if names[name] == leases[key] == 1 and seen_at < now - AFTER:
            done += Lease.objects.filter(pk=key, database_user="").update(
                database_user=name, database_user_by=TiedBy.TIME_AND_NAME, sessions_due=True, updated_at=now
            )
    return done


def take_back(*, now: datetime) -> int:
    """Guesses that turned out to be wrong: the name is another lease's, or the lease's user has another hash. Returns how many."""
    guessed = Lease.objects.filter(database_user_by=TiedBy.TIME_AND_NAME)
    pairs = {row[1:]: row[0] for row in guessed.order_by("id").values_list("id", "database_user", "lease_id")}
    if not pairs:
        return 0
    wrong = [pairs[pair] for pair in denied(set(pairs))]
    others = Lease.objects.filter(database_user=OuterRef("database_user")).exclude(pk=OuterRef("pk"))
    return guessed.filter(Q(pk__in=wrong) | Q(Exists(others.exclude(database_user_by=TiedBy.TIME_AND_NAME)))).update(
        database_user="", database_user_by="", sessions_due=True, updated_at=now
    )


def denied(pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Of these names and lease ids, the pairs of which a hash says that they do not belong together."""
    texts = intern.known_texts({lease_id for _, lease_id in pairs}) if pairs else {}
    if not texts:
        return set()
    lease_ids = {number: lease_id for lease_id, number in texts.items()}
    with connection.cursor() as cursor:
        cursor.execute(_DENIED, [list(lease_ids), Hash.Of.DATABASE_USER.value, sorted({name for name, _ in pairs})])
        return {(name, lease_ids[number]) for name, number in cursor} & set(pairs)
