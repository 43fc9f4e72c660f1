"""Responses that make or renew tokens -> logins, and which login each token is of, as the devices show it.

A token that another token made is a login of its own, with that one's login as its parent: it inherits who that is, and it ends
with it unless it is an orphan. Metadata that was given to it is kept and is nobody's identity.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import connection

from audit import intern, rollups
from audit.lines import Half
from audit.models import Kind, Stream
from leases.identity import TOKEN_STORE, identity, mount_path
from leases.models import AuthMount, Vault

_IS_HMAC = re.compile(r"hmac-sha256:[0-9a-f]{64}").fullmatch
# a token's login is told of at most this long after the token was first used, by the times in the log
_EARLY = timedelta(hours=1)
# and a token lives at most that long, by Vault's default max_lease_ttl of 32 days and a bit
LIFE = timedelta(days=40)
# what a login's response says, and what the registered mounts make of it
_SAID = (
    "mount_path",
    "auth_mount_id",
    "address",
    "display_name",
    "entity_id",
    "token_type",
    "policies",
    "metadata",
    "own",
    "service_account_namespace",
    "service_account",
    "claimed_pod",
    "claimed_pod_uid",
    "claimed_node",
    "is_orphan",
    "was_wrapped",
)


# token -> its last renewal, and when it then ends
Renewals = dict[int, tuple[datetime, datetime]]


def take(stream: Stream, answers: list[Half]) -> list[int]:
    """The logins that these responses made, and how long their tokens live. Returns the ids of the tokens whose login is new."""
    made = [half for half in answers if half.kind in (Kind.LOGIN, Kind.TOKEN)]
    renewed = last_renewals(stream, [half for half in answers if half.kind == Kind.TOKEN_RENEW])
    linked = take_logins(stream, made, renewed) if made else []
    take_ends({token: renewed[token] for token in renewed.keys() - set(linked)}, linked)
    return linked


def last_renewals(stream: Stream, halves: list[Half]) -> Renewals:
    ids, device, epoch = intern.memory().tokens, stream.device_id, stream.device.salt_epoch
    found: Renewals = {}
    for half in halves:
        if half.answer and half.answer.ttl_seconds:
            token = ids[device, epoch, half.answer.new_accessor]
            told = (half.at, half.at + timedelta(seconds=half.answer.ttl_seconds))
            found[token] = max(told, found.get(token, told))
    return found


def take_logins(stream: Stream, halves: list[Half], renewed: Renewals) -> list[int]:
    """The logins that these responses created, tied to how their tokens show on this device. Returns the tokens' ids.

    `renewed`: renewals in the same batch, so that a row is written once.
    """
    vault = stream.device.vault
    mounts = {mount.path: mount for mount in AuthMount.objects.filter(vault=vault)}
    tokens = _tokens(stream, halves, renewed)
    until = {request_id: ends_at for _, request_id, _, _, _, ends_at in tokens}
    rows = {half.request_id: _login(vault, mounts, half, until.get(half.request_id)) for half in halves}
    columns = [list(column) for column in zip(*(rows[request_id] for request_id in sorted(rows)), strict=True)]
    said, stored, excluded = (", ".join(f"{of}{name}" for name in _SAID) for of in ("", "l.", "excluded."))
    with connection.cursor() as cursor:
        # the other devices of this vault tell of the same logins, each at its own microsecond
        cursor.execute(
            f"""
            INSERT INTO leases_login AS l (vault_id, request_id, logged_in_at, expires_at, {said}, end_reason)
            SELECT %s, *, '' FROM unnest(
              %s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[],
              %s::text[], %s::jsonb[], %s::jsonb[], %s::bool[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
              %s::bool[], %s::bool[])
            ON CONFLICT (vault_id, request_id) DO UPDATE SET
              logged_in_at = LEAST(l.logged_in_at, excluded.logged_in_at),
              expires_at = COALESCE(l.expires_at, excluded.expires_at),
              ({said}) = (SELECT {excluded})
            WHERE l.logged_in_at > excluded.logged_in_at
              OR (l.expires_at IS NULL AND excluded.expires_at IS NOT NULL) OR ({stored}) IS DISTINCT FROM ({excluded})
            """,  # noqa: S608 (the constant above)
            [vault.pk, *columns],
        )
        if not tokens:
            return []
        cursor.execute(
            """
            UPDATE audit_token t SET login_id = l.id, parent_id = u.parent, own_hash = u.own_hash,
              renewed_at = GREATEST(t.renewed_at, u.renewed_at),
              ends_at = CASE WHEN t.renewed_at > u.renewed_at THEN t.ends_at ELSE COALESCE(u.ends_at, t.ends_at) END
            FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
              AS u (token, request_id, parent, own_hash, renewed_at, ends_at)
            JOIN leases_login l ON l.vault_id = %s AND l.request_id = u.request_id
            WHERE t.id = u.token AND t.login_id IS NULL
            RETURNING t.id, l.own, l.logged_in_at
            """,
            [*[list(column) for column in zip(*tokens, strict=True)], vault.pk],
        )
        linked = cursor.fetchall()
    if own := [(token, at) for token, is_own, at in linked if is_own]:
        times = [at for _, at in own]
        mark_own(vault.pk, [token for token, _ in own], since=min(times) - _EARLY, until=max(times) + LIFE)
    return [row[0] for row in linked]


def _tokens(
    stream: Stream, halves: list[Half], renewed: Renewals
) -> list[tuple[int, str, int | None, int | None, datetime | None, datetime | None]]:
    """(the new token, the request that made it, the token that made it, the new token's own hash, its last renewal, its end)."""
    ids, device, epoch = intern.memory().tokens, stream.device_id, stream.device.salt_epoch
    found = {}
    # a token is made once; should lines contradict each other, a login counts
    for half in sorted(halves, key=lambda half: half.kind == Kind.LOGIN):
        answer = half.answer
        if answer is None or not answer.new_accessor:
            continue
        by = half.accessor if half.kind == Kind.TOKEN else ""
        token = ids[device, epoch, answer.new_accessor]
        found[token] = (
            token,
            half.request_id,
            ids[device, epoch, by] if by and by != answer.new_accessor else None,
            own_hash(answer.new_token) if answer.new_token != answer.new_accessor else None,
            *renewed.get(token, (None, None)),
        )
    return list(found.values())


def own_hash(token: str) -> int | None:
    """The first 64 bits of a token's HMAC, as a signed integer; None of what is no HMAC."""
    return int.from_bytes(bytes.fromhex(token[12:28]), signed=True) if _IS_HMAC(token) else None


def take_ends(ends: Renewals, linked: list[int]) -> None:
    """How long tokens live by their last renewal (it may shorten their time), whichever of login and renewal is told first."""
    if not ends and not linked:
        return
    with connection.cursor() as cursor:
        if ends:
            cursor.execute(
                """
                UPDATE audit_token t SET renewed_at = u.renewed_at, ends_at = u.ends_at
                FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[]) AS u (id, renewed_at, ends_at)
                WHERE t.id = u.id AND COALESCE(t.renewed_at < u.renewed_at, true)
                """,
                [sorted(ends), *[[ends[token][place] for token in sorted(ends)] for place in (0, 1)]],
            )
        cursor.execute(
            """
            UPDATE leases_login g SET expires_at = u.ends_at
            FROM (
              SELECT DISTINCT ON (k.login_id) k.login_id, k.ends_at FROM audit_token named
              JOIN audit_token k ON k.login_id = named.login_id
              WHERE named.id = ANY(%s) AND k.ends_at IS NOT NULL ORDER BY k.login_id, k.renewed_at DESC
            ) u
            WHERE g.id = u.login_id AND g.expires_at IS DISTINCT FROM u.ends_at
            """,
            [sorted({*ends, *linked})],
        )


def inherit(tokens: Iterable[int]) -> set[int]:
    """Ties logins to the login whose token made theirs, whichever of the two came first. `tokens`: whose login is known now.

    Returns the keys of the leases whose holder may be another by that.
    """
    tokens = sorted(tokens)
    if not tokens:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_login c SET parent_id = p.login_id FROM audit_token k JOIN audit_token p ON p.id = k.parent_id
            WHERE c.id = k.login_id AND c.parent_id IS NULL AND p.login_id IS NOT NULL AND p.login_id <> c.id
              AND (k.id = ANY(%s) AND k.parent_id IS NOT NULL OR k.parent_id = ANY(%s))
            RETURNING c.id
            """,
            [tokens, tokens],
        )
        children = [row[0] for row in cursor.fetchall()]
        if not children:
            return set()
        cursor.execute(_ORIGINS, [children])
        changed = [row[0] for row in cursor.fetchall()]
        cursor.execute(
            "UPDATE leases_lease SET attribution_open = true WHERE login_id = ANY(%s) RETURNING id", [changed]
        )
        return {row[0] for row in cursor.fetchall()}


# by ids alone, so that lines which contradict each other go round only once
_ORIGINS = """
    WITH RECURSIVE down (id) AS (
      SELECT unnest(%s::bigint[])
      UNION
      SELECT c.id FROM down d JOIN leases_login c ON c.parent_id = d.id
    ), up (id, at) AS (
      SELECT id, id FROM down
      UNION
      SELECT u.id, g.parent_id FROM up u JOIN leases_login g ON g.id = u.at WHERE g.parent_id IS NOT NULL
    ), top AS (
      SELECT u.id, COALESCE(g.origin_id, g.id) AS at FROM up u JOIN leases_login g ON g.id = u.at WHERE g.parent_id IS NULL
    )
    UPDATE leases_login g SET origin_id = top.at FROM top WHERE g.id = top.id AND top.at <> top.id
      AND g.origin_id IS DISTINCT FROM top.at
    RETURNING g.id
"""


def _login(vault: Vault, mounts: dict[str, AuthMount], half: Half, until: datetime | None) -> tuple[Any, ...]:
    assert half.answer is not None  # noqa: S101 (a login is an answer)
    display_name, entity_id, token_type, policies, metadata_text = half.answer.new_who
    metadata = msgspec.json.decode(metadata_text or "{}", type=dict[str, str])
    path, ttl = half.what[2], half.answer.ttl_seconds
    where = mount_path(vault, half.what[5], half.what[3] or path.rpartition("/")[0])
    # the metadata of a token that was made by another is whatever its maker wrote there
    mount = mounts.get(where) if half.kind == Kind.LOGIN else None
    who = identity(mount, metadata)
    return (
        half.request_id,
        half.at,
        until or (half.at + timedelta(seconds=ttl) if ttl else None),
        where if half.kind == Kind.LOGIN else TOKEN_STORE,
        mount.pk if mount else None,
        half.address,
        display_name,
        entity_id,
        token_type,
        policies or "[]",
        metadata_text or "{}",
        half.kind == Kind.LOGIN and is_own(vault, where, metadata),
        *(
            who.get(name, "")
            for name in (
                "service_account_namespace",
                "service_account",
                "claimed_pod",
                "claimed_pod_uid",
                "claimed_node",
            )
        ),
        half.answer.is_orphan,
        bool(half.answer.wrapped_in),
    )


def is_own(vault: Vault, mount_path: str, metadata: dict[str, str]) -> bool:
    """Whether this product's own accounts logged in: by the role that the login response itself names."""
    own = {(account["mount"].strip("/"), account["role"]) for account in (vault.observe, vault.respond) if account}
    role = metadata.get("role") or metadata.get("role_name") or ""
    return bool(role) and (mount_path, role) in own


def mark_own(vault: int, tokens: list[int], *, since: datetime, until: datetime) -> None:
    """Requests of own tokens that came in with, or before, their login."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE audit_event e SET own = true
            FROM (SELECT DISTINCT request, at FROM audit_sighting WHERE token_id = ANY(%s) AND at BETWEEN %s AND %s) s,
              audit_what w
            WHERE e.vault_id = %s AND e.request = s.request AND e.at BETWEEN s.at - interval '1 day' AND s.at + interval '1 day'
              AND e.at BETWEEN %s AND %s AND NOT e.own AND w.id = e.what_id
            RETURNING date_trunc('hour', e.at), e.kind, w.path, w.mount_point, e.who_id
            """,
            [tokens, since, until, vault, since - timedelta(days=1), until + timedelta(days=1)],
        )
        marked = cursor.fetchall()
    if not marked:
        return
    names = [rollups.target(("", "", path, mount, "", ""), kind) for _, kind, path, mount, _ in marked]
    ids = intern.known_texts(set(names))
    rollups.count(
        vault,
        (
            rollups.Delta(hour, kind, ids[name], who, 0, 0, 1)
            for (hour, kind, _, _, who), name in zip(marked, names, strict=True)
        ),
    )
