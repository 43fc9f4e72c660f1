"""Events -> logins and leases, inside the transaction that stores the events, in whatever order they come.

Each step is one statement for the whole batch, and each says what is true, not what has changed: a login, a read, a renewal or an
ending that is told of twice, by two devices or in the wrong order, leaves the same rows.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection

from audit import attribute, endings, intern, logins, wrapping
from audit.lines import Half
from audit.models import Kind, Stream
from audit.plan import Plan
from audit.secrets import HMAC
from leases.models import DatabaseRole
from leases.models.sessions import TiedBy


class Touched(NamedTuple):
    """What a batch tells of for the first time: keys of leases, ids of tokens, of lease ids' texts and of endings."""

    leases: set[int]
    tokens: list[int]
    hashes: list[int]
    endings: list[int]


def take(stream: Stream, plan: Plan, *, now: datetime) -> Touched:
    """Brings logins and leases up to what this batch adds. Only successful responses change them."""
    answers = [half for half in plan.fresh if half.kind] + plan.echoes
    # the earliest last: it is the one that counts where a request is told twice
    answers.sort(key=lambda half: half.at, reverse=True)
    reads = [half for half in answers if half.kind == Kind.READ and half.lease_id]
    renewals = [half for half in answers if half.kind == Kind.RENEW]
    unwrapped = wrapping.take(stream, answers)
    linked = logins.take(stream, answers)
    leases = take_reads(stream, reads + [one.read for one in unwrapped], now=now)
    leases |= wrapping.note_unwrapped(stream, unwrapped, now=now)
    hashes = take_hashes(stream, reads + [one.unwrap for one in unwrapped], renewals)
    take_renewals(stream, plan, [half.lease_id for half in reads] + [one.read.lease_id for one in unwrapped], now=now)
    leases |= link_leases(leases=leases, tokens=linked) | logins.inherit(linked)
    ended = endings.take(stream, [half for half in answers if half.kind == Kind.END], tokens=linked)
    return Touched(leases, linked, hashes, ended)


def conclude(stream: Stream, plan: Plan, touched: Touched, *, now: datetime) -> None:
    """What follows for these leases: should they be over, and who holds them."""
    # after the links: the end of a token is the end of the leases that are known to be its
    endings.conclude(
        stream,
        leases=touched.leases,
        tokens=touched.tokens,
        hashes=touched.hashes,
        new=touched.endings,
        now=now,
    )
    endings.confirm_revocations(stream, [half for half in plan.fresh if half.kind == Kind.END], now=now)
    attribute.attribute(sorted(touched.leases), now=now)


def take_reads(stream: Stream, halves: list[Half], *, now: datetime) -> set[int]:
    """The leases that these credential reads issued; completes those that a LIST had shown before. Returns their keys."""
    if not halves:
        return set()
    vault = stream.device.vault
    roles = {(role.mount, role.name): role.database_id for role in DatabaseRole.objects.filter(vault=vault)}
    ids, device, epoch = intern.memory().tokens, stream.device_id, stream.device.salt_epoch
    rows = {
        half.lease_id: (*_lease(half, roles, vault.namespace.strip("/")), ids.get((device, epoch, half.accessor)))
        for half in halves
    }
    columns = [list(column) for column in zip(*(rows[lease_id] for lease_id in sorted(rows)), strict=True)]
    guess = TiedBy.TIME_AND_NAME
    read_by = [(half.lease_id, ids[device, epoch, half.accessor]) for half in halves if half.accessor]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO leases_lease AS l (
              vault_id, first_seen_at, updated_at, lookup_due_at, lease_id, vault_namespace, mount, role, database_id,
              database_user, database_user_by, sessions_due, request_id, accessed_at, issued_at, source_ip, login_id,
              state, renewals, renewable, revoke_error, end_reason, end_evidence, end_seen_reason, end_seen_evidence,
              certainty, certainty_reason, cluster, service_account_namespace, service_account, pod_namespace, pod, pod_uid,
              attribution_open)
            SELECT %s, %s, %s, %s, u.lease_id, u.vault_namespace, u.mount, u.role, u.database, u.database_user,
              CASE WHEN u.database_user <> '' THEN %s ELSE '' END, u.database_user <> '', u.request_id,
              u.at, u.at, u.source_ip, k.login_id,
              'live', 0, false, '', '', '', '', '', 'unknown', '', '', '', '', '', '', '', true
            FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[],
                        %s::timestamptz[], %s::text[], %s::bigint[])
              AS u (lease_id, vault_namespace, mount, role, database, database_user, request_id, at, source_ip, token)
            LEFT JOIN audit_token k ON k.id = u.token
            ON CONFLICT (vault_id, lease_id) DO UPDATE SET
              request_id = excluded.request_id,
              vault_namespace = COALESCE(NULLIF(excluded.vault_namespace, ''), l.vault_namespace),
              source_ip = excluded.source_ip,
              accessed_at = LEAST(l.accessed_at, excluded.accessed_at),
              -- the lease API knows it better, where it was asked
              issued_at = CASE WHEN l.looked_up_at IS NULL THEN LEAST(l.issued_at, excluded.issued_at)
                               ELSE COALESCE(l.issued_at, excluded.issued_at) END,
              -- what was guessed gives way
              (database_user, database_user_by, sessions_due) = (
                SELECT excluded.database_user, excluded.database_user_by, true
                WHERE excluded.database_user <> '' AND l.database_user_by IN ('', %s)
                UNION ALL
                SELECT l.database_user, l.database_user_by, l.sessions_due
                WHERE excluded.database_user = '' OR l.database_user_by NOT IN ('', %s)
              ),
              attribution_open = true,
              updated_at = excluded.updated_at
            WHERE l.request_id = '' OR l.accessed_at > excluded.accessed_at
              OR (l.database_user_by IN ('', %s) AND excluded.database_user <> '')
            """,
            [vault.pk, now, now, now, TiedBy.PLAIN, *columns, guess, guess, guess],
        )
        cursor.execute("SELECT id FROM leases_lease WHERE vault_id = %s AND lease_id = ANY(%s)", [vault.pk, columns[0]])
        found = {row[0] for row in cursor.fetchall()}
        if read_by:
            cursor.execute(
                """
                INSERT INTO audit_leasetoken (lease_id, token_id)
                SELECT l.id, u.token FROM unnest(%s::text[], %s::bigint[]) AS u (lease_id, token)
                JOIN leases_lease l ON l.vault_id = %s AND l.lease_id = u.lease_id
                ON CONFLICT DO NOTHING
                """,
                [*[list(column) for column in zip(*read_by, strict=True)], vault.pk],
            )
    return found


def _lease(half: Half, roles: dict[tuple[str, str], int], own_namespace: str) -> tuple[Any, ...]:
    path = half.what[2]
    namespace = half.what[5]
    # the log gives the mount point with its namespace, a path without it
    mount = half.what[3].removeprefix(namespace).strip("/") or path.partition("/creds/")[0]
    role = path.partition("/creds/")[2].strip("/")
    username = half.answer.username if half.answer else ""
    return (
        half.lease_id,
        namespace,
        mount,
        role,
        # the mount of the same name in another namespace opens other databases
        roles.get((mount, role)) if namespace.strip("/") == own_namespace else None,
        # plain only where the mount is tuned so
        "" if username.startswith(HMAC) else username,
        half.request_id,
        half.at,
        half.address,
    )


def take_hashes(stream: Stream, reads: list[Half], renewals: list[Half]) -> list[int]:
    """What the log tells of its own HMACs. Returns the names (audit_text ids) of leases whose hash is new."""
    texts = intern.memory().texts
    rows = {
        ("database user", half.answer.username, texts[half.lease_id])
        for half in reads
        if half.answer and half.answer.username
    } | {
        ("lease id", half.answer.data_lease_id, texts[half.lease_id])
        for half in renewals
        if half.answer and half.answer.data_lease_id
    }
    if not rows:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO audit_hash (device_id, salt_epoch, of, hash, lease_name_id)
            SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::int[])
            ON CONFLICT (device_id, salt_epoch, of, hash) DO NOTHING
            RETURNING of, lease_name_id
            """,
            [
                stream.device_id,
                stream.device.salt_epoch,
                *[list(column) for column in zip(*sorted(rows), strict=True)],
            ],
        )
        return [name for of, name in cursor.fetchall() if of == "lease id"]


def take_renewals(stream: Stream, plan: Plan, read: Iterable[str], *, now: datetime) -> None:
    """Counts renewals by their events, so that two devices count one, and asks Vault for the new times.

    `read`: lease ids that this batch brought in, whose renewals may have been counted before.
    """
    texts = intern.memory().texts
    counts: dict[int, list[Any]] = {}
    became = [event.content for event in plan.new.values() if event.content.kind == Kind.RENEW]
    became += [
        after for before, after in plan.changed.values() if after.kind == Kind.RENEW and before.kind != Kind.RENEW
    ]
    for content in became:
        # of the response: whether its request was told before it cannot matter
        at = content.response_at or content.at
        row = counts.setdefault(texts[content.lease_id], [0, at])
        row[0] += 1
        row[1] = max(row[1], at)
    vault = stream.device.vault_id
    names = sorted(set(counts) | {texts[lease_id] for lease_id in read})
    if not names:
        return
    with connection.cursor() as cursor:
        if counts:
            ordered = sorted(counts)
            cursor.execute(
                """
                INSERT INTO audit_renewals AS r (vault_id, lease_name_id, count, last_at)
                SELECT %s, * FROM unnest(%s::int[], %s::int[], %s::timestamptz[])
                ON CONFLICT (vault_id, lease_name_id) DO UPDATE SET
                  count = r.count + excluded.count, last_at = GREATEST(r.last_at, excluded.last_at)
                """,
                [vault, ordered, [counts[name][0] for name in ordered], [counts[name][1] for name in ordered]],
            )
        cursor.execute(
            """
            UPDATE leases_lease l SET
              renewals = r.count,
              last_renewal_at = GREATEST(l.last_renewal_at, r.last_at),
              lookup_due_at = CASE WHEN l.state = 'ended' THEN NULL ELSE %s END,
              updated_at = %s
            FROM audit_renewals r JOIN audit_text t ON t.id = r.lease_name_id
            WHERE r.vault_id = %s AND r.lease_name_id = ANY(%s) AND l.vault_id = r.vault_id AND l.lease_id = t.text
              AND l.renewals <> r.count
            """,
            [now, now, vault, names],
        )


def link_leases(*, leases: Iterable[int], tokens: Iterable[int]) -> set[int]:
    """Ties leases to the login whose token read them, whichever of the two came first. Returns the leases' keys."""
    link = """
        UPDATE leases_lease l SET login_id = t.login_id, attribution_open = true
        FROM audit_leasetoken k JOIN audit_token t ON t.id = k.token_id
        WHERE l.id = k.lease_id AND l.login_id IS NULL AND t.login_id IS NOT NULL AND k.{which} = ANY(%s)
        RETURNING l.id
    """
    keys: set[int] = set()
    with connection.cursor() as cursor:
        for which, values in (("lease_id", sorted(leases)), ("token_id", sorted(tokens))):
            if values:
                cursor.execute(link.format(which=which), [values])
                keys |= {row[0] for row in cursor.fetchall()}
    return keys
