"""Response-wrapped credentials: the read of them names no lease, and what names their lease is no read. Joined here.

The read's response bears the wrapping token (accessor and HMAC); the lease stands in the response that unwraps it, which the
wrapping token itself asked for, or somebody who named it in the request. A rewrapping lies between two wrapping tokens.
"""

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db import connection

from audit import intern
from audit.lines import NOBODY, Answer, Half
from audit.models import Kind, Stream


class Unwrapped(NamedTuple):
    """Credentials of which both are known: their read, as if its own response had named the lease, and the unwrapping."""

    read: Half
    unwrap: Half


def take(stream: Stream, answers: list[Half]) -> list[Unwrapped]:
    """Keeps wrappings and unwrappings; returns what is known of both since this batch, whichever of the two came first."""
    wraps = [
        half for half in answers if half.kind in (Kind.READ, Kind.REWRAP) and half.answer and half.answer.wrapped_in
    ]
    unwraps = [half for half in answers if half.kind == Kind.UNWRAP]
    if not wraps and not unwraps:
        return []
    here = [stream.device_id, stream.device.salt_epoch]
    with connection.cursor() as cursor:
        keys = _add_wraps(cursor, here, wraps) if wraps else []
        keys += _add_unwraps(cursor, here, unwraps) if unwraps else []
        near: list[Any] = [here[0], intern.near(here[1])]
        cursor.execute(_KNOWN, [*near, keys, *near, *near, *near])
        found = [_unwrapped(*row) for row in cursor.fetchall()]
    intern.tokens([(here[0], here[1], one.read.accessor) for one in found if one.read.accessor])
    intern.texts({one.read.lease_id for one in found})
    return found


def _add_wraps(cursor: Any, here: list[int], wraps: list[Half]) -> list[str]:
    rows = {
        key: (
            key,
            half.request_id,
            half.at,
            half.what[2],
            half.what[3],
            half.what[5],
            half.address,
            half.accessor,
            (half.answer.data_token or half.accessor) if half.kind == Kind.REWRAP else "",
        )
        for half in wraps
        if half.answer
        for key in half.answer.wrapped_in
    }
    cursor.execute(
        """
        INSERT INTO audit_wrapping AS w (
          device_id, salt_epoch, key, request_id, at, path, mount_point, namespace_path, address, accessor, rewraps)
        SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[],
                                     %s::text[], %s::text[])
        ON CONFLICT (device_id, salt_epoch, key) DO UPDATE SET at = excluded.at WHERE w.at > excluded.at
        """,
        [*here, *_columns(rows)],
    )
    return list(rows)


def _add_unwraps(cursor: Any, here: list[int], unwraps: list[Half]) -> list[str]:
    rows = {
        key: (key, half.request_id, half.at, half.lease_id, half.answer.username, half.address)
        for half in unwraps
        if half.answer and (key := half.answer.data_token or half.accessor)
    }
    if rows:
        cursor.execute(
            """
            INSERT INTO audit_unwrapping AS u (device_id, salt_epoch, key, request_id, at, lease_id, username, address)
            SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::text[])
            ON CONFLICT (device_id, salt_epoch, key) DO UPDATE SET at = excluded.at WHERE u.at > excluded.at
            """,
            [*here, *_columns(rows)],
        )
    return list(rows)


def _columns(rows: dict[str, tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*(rows[key] for key in sorted(rows)), strict=True)]


# from any wrapping token that was told of just now, through rewrappings down to the unwrapping and up to the read
_KNOWN = f"""
    WITH RECURSIVE down (key) AS (
      SELECT other.key FROM audit_wrapping w
      JOIN audit_wrapping other ON other.device_id = w.device_id AND other.salt_epoch = w.salt_epoch
        AND other.request_id = w.request_id
      WHERE w.device_id = %s AND w.salt_epoch = ANY(%s::int[]) AND w.key = ANY(%s::text[])
      UNION
      SELECT other.key FROM down d
      JOIN audit_wrapping w ON w.device_id = %s AND w.salt_epoch = ANY(%s::int[]) AND w.rewraps <> '' AND w.rewraps = d.key
      JOIN audit_wrapping other ON other.device_id = w.device_id AND other.salt_epoch = w.salt_epoch
        AND other.request_id = w.request_id AND other.rewraps = w.rewraps
    ), out AS (
      SELECT u.* FROM down d JOIN audit_unwrapping u ON u.device_id = %s AND u.salt_epoch = ANY(%s::int[]) AND u.key = d.key
    ), up (unwrap, key) AS (
      SELECT id, key FROM out
      UNION
      SELECT p.unwrap, w.rewraps FROM up p
      JOIN audit_wrapping w ON w.device_id = %s AND w.salt_epoch = ANY(%s::int[]) AND w.key = p.key AND w.rewraps <> ''
    )
    SELECT w.request_id, w.at, w.path, w.mount_point, w.namespace_path, w.address, w.accessor,
           o.request_id, o.at, o.lease_id, o.username, o.address
    FROM up p JOIN out o ON o.id = p.unwrap
    JOIN audit_wrapping w ON w.device_id = o.device_id AND {intern.are_near("w", "o")} AND w.key = p.key AND w.rewraps = ''
    ORDER BY w.at DESC
"""  # noqa: S608 (names of tables)


def _unwrapped(
    request_id: str,
    at: datetime,
    path: str,
    mount_point: str,
    namespace_path: str,
    address: str,
    accessor: str,
    unwrap_id: str,
    unwrapped_at: datetime,
    lease_id: str,
    username: str,
    unwrapped_from: str,
) -> Unwrapped:
    what = ("", "read", path, mount_point, "", namespace_path)
    answer = Answer(username=username)
    read = Half(
        request_id, True, at, at.isoformat(), what, NOBODY, address, lease_id, "", accessor, Kind.READ, answer, -1, -1
    )
    unwrap = msgspec.structs.replace(
        read, request_id=unwrap_id, at=unwrapped_at, address=unwrapped_from, kind=Kind.UNWRAP
    )
    return Unwrapped(read, unwrap)


def note_unwrapped(stream: Stream, unwrapped: list[Unwrapped], *, now: datetime) -> set[int]:
    """Who took a lease's credentials out of their wrapping may be another than who read them. Returns the leases' keys."""
    if not unwrapped:
        return set()
    addresses = {one.unwrap.lease_id: one.unwrap.address for one in unwrapped}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease l SET unwrapped_from = u.address, attribution_open = true, updated_at = %s
            FROM unnest(%s::text[], %s::text[]) AS u (lease_id, address)
            WHERE l.vault_id = %s AND l.lease_id = u.lease_id AND l.unwrapped_from <> u.address
            RETURNING l.id
            """,
            [now, list(addresses), list(addresses.values()), stream.device.vault_id],
        )
        return {row[0] for row in cursor.fetchall()}
