"""Requests that end leases or tokens: what each was aimed at, and the leases that it should have ended.

An ending is kept when it is read, and looked for again when a lease, a login or a hash that it was aimed at is told of later.
The earliest that fits counts as the lease's evidence; a lookup decides whether the lease is over.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

from django.db import connection
from django.db.models import Q

from audit.intern import are_near, digest, epoch_of, near
from audit.lines import Half
from audit.logins import own_hash
from audit.models import Ending, Stream, Token
from audit.secrets import HMAC
from leases.ends import NO_SUCH_LEASE, OUTLIVED
from leases.identity import mount_path
from leases.models import ActionKind, EndReason, Policy, Revocation, Vault
from leases.models.actions import Outcome, RevocationState
from leases.revoke import AUDIT_SEEN, note

By = Ending.By

REASONS = {
    By.LEASE_ID: EndReason.REVOKED_IN_VAULT,
    By.HASH: EndReason.REVOKED_IN_VAULT,
    By.PREFIX: EndReason.BY_PREFIX,
    By.FORCE: EndReason.FORCED,
    By.TOKEN: EndReason.TOKEN_REVOKED,
    By.TOKEN_HASH: EndReason.TOKEN_REVOKED,
    By.TOKEN_ALONE: EndReason.TOKEN_REVOKED,
    By.AUTH_MOUNT: EndReason.TOKEN_REVOKED,
}


def aim(half: Half) -> tuple[By, str] | None:
    """What a successful revocation was aimed at; None where its line does not tell."""
    path, answer = half.what[2], half.answer
    if path.startswith(("sys/leases/revoke/", "sys/revoke/")) and answer and answer.data_lease_id:
        # the id in the body counts where there is one in the path, too
        path = "sys/leases/revoke"
    for begin, by in (
        ("sys/leases/revoke-prefix/", By.PREFIX),
        ("sys/revoke-prefix/", By.PREFIX),
        ("sys/leases/revoke-force/", By.FORCE),
        ("sys/revoke-force/", By.FORCE),
        ("sys/leases/revoke/", By.LEASE_ID),
        ("sys/revoke/", By.LEASE_ID),
        # an unmounted engine's leases are revoked by its prefix, and an unmounted auth method's tokens
        ("sys/mounts/", By.PREFIX),
        ("sys/auth/", By.AUTH_MOUNT),
    ):
        if path.startswith(begin):
            target = unquote(path.removeprefix(begin))
            return (by, target if by is By.LEASE_ID else target.rstrip("/")) if target.strip("/") else None
    if path in {"sys/leases/revoke", "sys/revoke"} and answer and answer.data_lease_id:
        return (By.HASH if answer.data_lease_id.startswith(HMAC) else By.LEASE_ID), answer.data_lease_id
    if path == "auth/token/revoke-self" and half.accessor:
        return By.TOKEN, half.accessor
    if path == "auth/token/revoke-accessor" and answer and answer.data_accessor:
        return By.TOKEN, answer.data_accessor
    if path in {"auth/token/revoke", "auth/token/revoke-orphan"} and answer:
        hashed = own_hash(answer.data_token)
        if hashed is not None:
            return (By.TOKEN_HASH if path == "auth/token/revoke" else By.TOKEN_ALONE), str(hashed)
    return None


def take(stream: Stream, halves: list[Half], *, tokens: list[int]) -> list[int]:
    """Keeps what these are aimed at, and ends logins. `tokens`: those whose login is known now. Returns the new endings' keys."""
    new = add(stream, halves)
    if tokens or new:
        with connection.cursor() as cursor:
            cursor.execute(_END_LOGINS, [new, new, new, new, tokens])
    return new


def conclude(
    stream: Stream, *, leases: Iterable[int], tokens: list[int], hashes: list[int], new: list[int], now: datetime
) -> None:
    """Leases that should be over. `leases` (keys), `tokens` (ids), `hashes` (audit_text ids of lease ids) and `new` (endings) are
    what a batch tells of for the first time."""
    affected = set(leases)
    with connection.cursor() as cursor:
        for query in _LEASES_OF_ENDINGS if new else []:
            cursor.execute(query, [new] * query.count("%s"))
            affected |= {row[0] for row in cursor.fetchall()}
        if hashes:
            cursor.execute(
                "SELECT l.id FROM audit_text t JOIN leases_lease l ON l.lease_id = t.text AND l.vault_id = %s WHERE t.id = ANY(%s)",
                [stream.device.vault_id, hashes],
            )
            affected |= {row[0] for row in cursor.fetchall()}
        if tokens:
            # leases that are tied to the login by what another device says of the same token, and those of its children
            cursor.execute(_LEASES_OF_TOKENS, [tokens])
            affected |= {row[0] for row in cursor.fetchall()}
        if affected:
            expect_ends(affected, now=now)
        if new:
            _ask_for_a_list(stream, new, cursor, now=now)


def add(stream: Stream, halves: list[Half]) -> list[int]:
    """Keeps what these are aimed at; returns the keys of those that are new, or told of earlier than before."""
    rows = {
        (half.request_id, aimed[1]): (
            half.request_id,
            half.at,
            *_there(stream, half, *aimed),
            half.who[0],
            epoch_of(aimed[1], stream.device.salt_epoch) if aimed[0] is By.TOKEN else stream.device.salt_epoch,
        )
        for half in sorted(halves, key=lambda half: half.at, reverse=True)
        if (aimed := aim(half)) is not None
    }
    if not rows:
        return []
    columns: list[Any] = [list(column) for column in zip(*rows.values(), strict=True)]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO audit_ending AS e (
              vault_id, device_id, request_id, at, by, target, path, namespace_path, display_name, salt_epoch)
            SELECT %s, %s, * FROM unnest(
              %s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[])
            ON CONFLICT (device_id, request_id, target) DO UPDATE SET at = excluded.at WHERE e.at > excluded.at
            RETURNING id
            """,
            [stream.device.vault_id, stream.device_id, *columns],
        )
        return [row[0] for row in cursor.fetchall()]


def _there(stream: Stream, half: Half, by: By, target: str) -> tuple[str, str, str, str]:
    """by, target, path and namespace: an auth mount is named as logins name it."""
    namespace = half.what[5]
    if by is By.AUTH_MOUNT:
        target = mount_path(stream.device.vault, namespace, target)
    return by, target, half.what[2], namespace


# from logins down to those of the tokens that theirs made
_DOWN = """
    down (login_id) AS (
      SELECT login_id FROM theirs WHERE login_id IS NOT NULL
      UNION
      SELECT g.id FROM down d JOIN leases_login g ON g.parent_id = d.login_id WHERE NOT g.is_orphan
    )
"""
# from a leaf's login up to those with whose tokens it ends: of one that was revoked alone, only what was before that
_UP = """
    up (leaf, login_id, is_leaf, until) AS (
      SELECT leaf, login_id, true, 'infinity'::timestamptz FROM leaves WHERE login_id IS NOT NULL
      UNION
      SELECT u.leaf, g.parent_id, false, LEAST(u.until, (
        SELECT min(e.at) FROM audit_token k
        JOIN audit_ending e ON e.vault_id = g.vault_id AND e.by = 'token alone' AND e.target = k.own_hash::text
          AND e.device_id = k.device_id
        WHERE k.login_id = g.parent_id))
      FROM up u JOIN leases_login g ON g.id = u.login_id
      WHERE g.parent_id IS NOT NULL AND NOT g.is_orphan
    )
"""
# the endings of those tokens, and of a parent whose own login was not seen
_TOKEN_ENDINGS = f"""
    SELECT n.leaf, e.at, e.request_id, e.by, e.path, e.display_name FROM up n
    JOIN leases_login g ON g.id = n.login_id
    JOIN audit_token k ON k.login_id = n.login_id
    JOIN audit_ending e ON e.vault_id = g.vault_id AND e.by = 'token' AND e.target = k.accessor
      AND e.device_id = k.device_id AND {are_near("e", "k")} AND e.at <= n.until
    UNION ALL
    SELECT n.leaf, e.at, e.request_id, e.by, e.path, e.display_name FROM up n
    JOIN leases_login g ON g.id = n.login_id
    JOIN audit_token k ON k.login_id = n.login_id AND k.own_hash IS NOT NULL
    JOIN audit_ending e ON e.vault_id = g.vault_id AND (e.by = 'hash of a token' OR (e.by = 'token alone' AND n.is_leaf))
      AND e.target = k.own_hash::text AND e.device_id = k.device_id AND e.at <= n.until
    UNION ALL
    SELECT n.leaf, e.at, e.request_id, e.by, e.path, e.display_name FROM up n
    JOIN leases_login g ON g.id = n.login_id AND g.parent_id IS NULL AND NOT g.is_orphan
    JOIN audit_token k ON k.login_id = n.login_id JOIN audit_token p ON p.id = k.parent_id
    JOIN audit_ending e ON e.vault_id = g.vault_id AND e.by = 'token' AND e.target = p.accessor
      AND e.device_id = p.device_id AND {are_near("e", "p")} AND e.at <= n.until
    UNION ALL
    SELECT n.leaf, e.at, e.request_id, e.by, e.path, e.display_name FROM up n
    JOIN leases_login g ON g.id = n.login_id
    JOIN audit_ending e ON e.vault_id = g.vault_id AND e.by = 'auth mount' AND e.target = g.mount_path
      AND e.at BETWEEN g.logged_in_at AND n.until AND COALESCE(e.at <= g.expires_at, true)
"""  # noqa: S608 (aliases alone)
# the logins whose tokens these endings name
_NAMED = f"""
    SELECT k.login_id FROM audit_ending e
    JOIN audit_token k ON k.device_id = e.device_id AND {are_near("k", "e")} AND k.accessor = e.target
    WHERE e.id = ANY(%s) AND e.by = 'token'
    UNION
    SELECT c.login_id FROM audit_ending e
    JOIN audit_token k ON k.device_id = e.device_id AND {are_near("k", "e")} AND k.accessor = e.target
    JOIN audit_token c ON c.parent_id = k.id
    WHERE e.id = ANY(%s) AND e.by = 'token' AND k.login_id IS NULL
    UNION
    SELECT k.login_id FROM audit_ending e
    JOIN audit_token k ON k.own_hash = CASE WHEN e.by IN ('hash of a token', 'token alone') THEN e.target::bigint END
      AND k.device_id = e.device_id
    WHERE e.id = ANY(%s)
    UNION
    SELECT g.id FROM audit_ending e
    JOIN leases_login g ON g.vault_id = e.vault_id AND g.mount_path = e.target AND g.logged_in_at <= e.at
      AND g.expires_at >= e.at
    WHERE e.id = ANY(%s) AND e.by = 'auth mount'
"""  # noqa: S608 (aliases alone)

# from an ending to the leases that it was aimed at
_LEASES_OF_ENDINGS = [
    """
    SELECT l.id FROM audit_ending e JOIN leases_lease l ON l.vault_id = e.vault_id AND l.lease_id = e.target
    WHERE e.id = ANY(%s) AND e.by IN ('lease id', 'prefix', 'force')
    """,
    f"""
    SELECT l.id FROM audit_ending e
    JOIN audit_hash h ON h.device_id = e.device_id AND {are_near("h", "e")} AND h.of = 'lease id' AND h.hash = e.target
    JOIN audit_text t ON t.id = h.lease_name_id
    JOIN leases_lease l ON l.vault_id = e.vault_id AND l.lease_id = t.text
    WHERE e.id = ANY(%s) AND e.by = 'hash of a lease id'
    """,  # noqa: S608 (aliases alone)
    """
    SELECT l.id FROM audit_ending e
    JOIN leases_lease l ON l.vault_id = e.vault_id AND starts_with(l.lease_id, e.target || '/')
      AND l.vault_namespace = e.namespace_path
    WHERE e.id = ANY(%s) AND e.by IN ('prefix', 'force')
    """,
    f"""
    WITH RECURSIVE theirs (login_id) AS ({_NAMED}), {_DOWN}
    SELECT l.id FROM down d JOIN leases_lease l ON l.login_id = d.login_id
    """,  # noqa: S608 (the constants above)
    # of a token whose login was not seen
    f"""
    SELECT j.lease_id FROM audit_ending e
    JOIN audit_token k ON k.device_id = e.device_id AND {are_near("k", "e")} AND k.accessor = e.target
    JOIN audit_leasetoken j ON j.token_id = k.id
    WHERE e.id = ANY(%s) AND e.by = 'token' AND k.login_id IS NULL
    """,  # noqa: S608 (aliases alone)
]

_LEASES_OF_TOKENS = f"""
    WITH RECURSIVE theirs (login_id) AS (SELECT login_id FROM audit_token WHERE id = ANY(%s)), {_DOWN}
    SELECT l.id FROM down d JOIN leases_lease l ON l.login_id = d.login_id
"""  # noqa: S608

# from leases to the earliest ending that fits each: one that a lookup has outlived has not ended the lease
_ENDINGS_OF_LEASES = f"""
    WITH RECURSIVE ended AS (
      SELECT id, vault_id, lease_id, vault_namespace, login_id, COALESCE(accessed_at, issued_at, '-infinity') AS begun_at,
        CASE WHEN expires_at > looked_up_at THEN looked_up_at - interval '{OUTLIVED.total_seconds()} s' END AS alive_at
      FROM leases_lease WHERE id = ANY(%s)
    ), leaves AS (SELECT id AS leaf, login_id FROM ended), {_UP}, fitting (id, at, request_id, by, path, display_name) AS (
      SELECT s.id, e.at, e.request_id, e.by, e.path, e.display_name FROM ended s
      JOIN audit_ending e ON e.vault_id = s.vault_id AND e.by = 'lease id' AND e.target = s.lease_id
        AND starts_with(s.vault_namespace, e.namespace_path)
      UNION ALL
      SELECT s.id, e.at, e.request_id, e.by, e.path, e.display_name FROM ended s
      JOIN audit_text t ON t.text = s.lease_id AND t.digest = ANY(%s)
      JOIN audit_hash h ON h.lease_name_id = t.id AND h.of = 'lease id'
      JOIN audit_ending e ON e.vault_id = s.vault_id AND e.by = 'hash of a lease id' AND e.target = h.hash
        AND e.device_id = h.device_id AND {are_near("e", "h")}
      UNION ALL
      -- a prefix that is a whole id revokes that lease
      SELECT s.id, e.at, e.request_id, e.by, e.path, e.display_name FROM ended s
      CROSS JOIN LATERAL (
        SELECT array_to_string(parts[:number], '/') AS prefix
        FROM string_to_array(s.lease_id, '/') parts, generate_series(1, cardinality(parts)) number
      ) p
      JOIN audit_ending e ON e.vault_id = s.vault_id AND e.by IN ('prefix', 'force') AND e.target = p.prefix
        AND e.namespace_path = s.vault_namespace AND e.at >= s.begun_at
      UNION ALL
      SELECT s.id, e.at, e.request_id, e.by, e.path, e.display_name FROM ({_TOKEN_ENDINGS}) e JOIN ended s ON s.id = e.leaf
      WHERE e.at >= s.begun_at
      UNION ALL
      SELECT s.id, e.at, e.request_id, e.by, e.path, e.display_name FROM ended s
      JOIN audit_leasetoken j ON j.lease_id = s.id JOIN audit_token k ON k.id = j.token_id AND k.login_id IS NULL
      JOIN audit_ending e ON e.vault_id = s.vault_id AND e.by = 'token' AND e.target = k.accessor
        AND e.device_id = k.device_id AND {are_near("e", "k")} AND e.at >= s.begun_at
    )
    SELECT DISTINCT ON (f.id) f.id, f.at, f.request_id, f.by, f.path, f.display_name
    FROM fitting f JOIN ended s ON s.id = f.id
    WHERE s.alive_at IS NULL OR f.at >= s.alive_at
    ORDER BY f.id, f.at, f.request_id
"""  # noqa: S608

_END_LOGINS = f"""
    WITH RECURSIVE theirs (login_id) AS ({_NAMED} UNION SELECT login_id FROM audit_token WHERE id = ANY(%s)), {_DOWN},
    leaves (leaf, login_id) AS (SELECT DISTINCT login_id, login_id FROM down), {_UP},
    told AS (
      SELECT l.leaf, min(e.at) AS at FROM leaves l LEFT JOIN ({_TOKEN_ENDINGS}) e ON e.leaf = l.leaf GROUP BY l.leaf
    )
    UPDATE leases_login g SET ended_at = told.at, end_reason = CASE WHEN told.at IS NULL THEN '' ELSE 'revoked' END FROM told
    WHERE g.id = told.leaf AND g.ended_at IS DISTINCT FROM told.at
"""  # noqa: S608


def expect_ends(keys: Iterable[int], *, now: datetime) -> None:
    """Which of these leases should be over, by the earliest ending that fits: that event is their evidence, and a lookup decides.

    Says what is true of all endings that are known, whatever was said before: the lease's own read may have come later.
    """
    keys = sorted(keys)
    with connection.cursor() as cursor:
        cursor.execute("SELECT lease_id FROM leases_lease WHERE id = ANY(%s)", [keys])
        digests = [digest(row[0]) for row in cursor.fetchall()]
        cursor.execute(_ENDINGS_OF_LEASES, [keys, digests])
        rows = [
            (key, at, REASONS[By(by)].value, f"{path} by {name or 'somebody'}, request {request_id}")
            for key, at, request_id, by, path, name in cursor.fetchall()
        ]
        columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        cursor.execute(_FORGET, [keys, columns[0]])
        if rows:
            # found gone, it had ended by then, as far as clocks agree
            skew = Policy.current().clock_skew_seconds
            cursor.execute(_EXPLAIN, [now, NO_SUCH_LEASE, *columns, EndReason.UNKNOWN, skew, EndReason.EXPIRED])
            cursor.execute(_EXPECT, [now, *columns])


_FORGET = """
    UPDATE leases_lease SET end_seen_at = NULL, end_seen_reason = '', end_seen_evidence = ''
    WHERE id = ANY(%s) AND id <> ALL(%s::bigint[]) AND state <> 'ended' AND end_seen_at IS NOT NULL
"""

# a lookup may have found a lease gone before the line that says why was read, or before the first of several that do
_EXPLAIN = """
    UPDATE leases_lease l SET
      ended_at = u.at, end_reason = u.reason, updated_at = %s,
      -- what is said of an end that was none stays
      end_evidence = u.evidence || %s || COALESCE(substring(l.end_evidence from '; taken for ended at .*'), '')
    FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[]) AS u (id, at, reason, evidence)
    WHERE l.id = u.id AND l.state = 'ended' AND (
      (l.issued_at <= u.at AND ((l.end_reason = %s AND u.at <= l.ended_at + make_interval(secs => %s)) OR (l.end_reason = %s AND l.ended_at > u.at)))
      OR (l.end_reason = l.end_seen_reason AND l.ended_at = l.end_seen_at AND l.end_seen_at > u.at)
    )
"""

_EXPECT = """
    UPDATE leases_lease l SET
      end_seen_at = u.at, end_seen_reason = u.reason, end_seen_evidence = u.evidence,
      lookup_due_at = CASE WHEN l.state = 'ended' THEN l.lookup_due_at ELSE LEAST(l.lookup_due_at, %s) END
    FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[]) AS u (id, at, reason, evidence)
    WHERE l.id = u.id
      AND (l.end_seen_at, l.end_seen_reason, l.end_seen_evidence) IS DISTINCT FROM (u.at, u.reason, u.evidence)
"""


def _ask_for_a_list(stream: Stream, new: list[int], cursor: Any, *, now: datetime) -> None:
    """A revocation by a hash that nothing explains (yet): a list will show which lease is missing."""
    cursor.execute(
        f"""
        SELECT EXISTS (
          SELECT 1 FROM audit_ending e WHERE e.id = ANY(%s) AND e.by = 'hash of a lease id' AND NOT EXISTS (
            SELECT 1 FROM audit_hash h WHERE h.device_id = e.device_id AND {are_near("h", "e")}
              AND h.of = 'lease id' AND h.hash = e.target))
        """,  # noqa: S608 (aliases alone)
        [new],
    )
    if cursor.fetchone()[0]:
        # not more often than each minute: a list of many leases is a long line
        vault = Vault.objects.get(pk=stream.device.vault_id)
        soon = now - timedelta(seconds=max(0, vault.reconcile_seconds - 60))
        Vault.objects.filter(pk=vault.pk, reconciled_at__gt=soon).update(reconciled_at=soon)


def confirm_revocations(stream: Stream, halves: list[Half], *, now: datetime) -> None:
    """Vault's own audit lines of revocations that were asked for here, as the last step of their receipts."""
    for half in halves:
        aimed = aim(half)
        if aimed is None or aimed[0] not in {By.LEASE_ID, By.FORCE} or not half.what[2].startswith("sys/"):
            continue
        if half.what[2].startswith(("sys/leases/revoke/", "sys/leases/revoke-force/")) and _by_our_own(stream, half):
            confirm_revocation(stream, aimed[1], half, now, forced=aimed[0] is By.FORCE)


def _by_our_own(stream: Stream, half: Half) -> bool:
    respond = stream.device.vault.respond or {}
    if respond.get("method") == "token":
        return True  # a token that was given has no login to know it by
    return Token.objects.filter(
        device=stream.device,
        salt_epoch__in=near(epoch_of(half.accessor, stream.device.salt_epoch)),
        accessor=half.accessor,
        login__own=True,
    ).exists()


def confirm_revocation(stream: Stream, lease_id: str, half: Half, now: datetime, *, forced: bool = False) -> None:
    of_the_kind = Q(action__kind=ActionKind.FORCE)
    revocation = (
        Revocation.objects.filter(
            lease__vault=stream.device.vault_id,
            lease__lease_id=lease_id,
            audit_request_id="",
        )
        .filter(of_the_kind if forced else ~of_the_kind)
        .exclude(state__in=[RevocationState.REQUESTED, RevocationState.FAILED, RevocationState.STOPPED])
        .select_related("lease")
        .order_by("-id")
        .first()
    )
    if revocation is None:
        return
    updated = Revocation.objects.filter(pk=revocation.pk, audit_request_id="").update(
        audit_request_id=half.request_id, updated_at=now
    )
    if updated:
        note(
            revocation,
            AUDIT_SEEN,
            Outcome.OK,
            f"request {half.request_id} by {half.who[0]} on {stream}",
            now=now,
        )
