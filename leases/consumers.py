"""Who uses what an operator fetched: from a lease, by the operators' resources, to the Secret and the pods that refer to it.

A lease that a resource's status names is linked exactly; else every resource that reads the lease's path may be meant.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from django.db import connection


class Sync(msgspec.Struct, frozen=True, array_like=True):
    """A resource that copies into a Secret, and the pods that referred to that Secret (by name, at most MOST of them)."""

    kind: str
    namespace: str
    name: str
    secret: str
    # the resource's status named this very lease
    exact: bool
    pods: tuple[str, ...]
    # how many they are in all
    count: int

    @property
    def named(self) -> str:
        return listed(self.pods, self.count)


class Fetched(msgspec.Struct):
    """A lease that was fetched for others, and the time in which its users must have lived."""

    key: int
    cluster_id: int
    from_at: datetime
    to_at: datetime


MOST = 20
SYNCS = """
    WITH asked AS (
        SELECT asked.*, lease.lease_id, lease.mount || '/creds/' || lease.role AS path
        FROM json_to_recordset(%(asked)s) AS asked (key bigint, cluster_id bigint, from_at timestamptz, to_at timestamptz)
        JOIN leases_lease lease ON lease.id = asked.key
    ), named AS (
        SELECT asked.key, link.sync_id AS id
        FROM asked JOIN leases_syncedlease link USING (lease_id)
        JOIN leases_secretsync sync ON sync.id = link.sync_id AND sync.cluster_id = asked.cluster_id
    ), reading AS (
        SELECT asked.key, sync.id
        FROM asked
        -- resources of one cluster are few; of those that are gone only the ones that could have read it count
        JOIN leases_secretsync sync ON sync.cluster_id = asked.cluster_id AND sync.secret <> ''
            AND sync.created_at <= asked.to_at AND coalesce(sync.deleted_at, 'infinity') >= asked.from_at
        WHERE NOT EXISTS (SELECT FROM named WHERE named.key = asked.key) AND (
            EXISTS (
                SELECT FROM jsonb_array_elements_text(sync.paths) AS read (path)
                WHERE read.path = asked.path
                    -- a store's own path is the mount, then
                    OR read.path LIKE 'creds/%%' AND right(asked.path, length(read.path) + 1) = '/' || read.path
            )
            OR EXISTS (
                SELECT FROM leases_secretsync generator
                WHERE generator.cluster_id = sync.cluster_id AND generator.namespace = sync.namespace
                    AND generator.kind = 'generator' AND sync.generators ? generator.name
                    AND generator.paths ? asked.path
            )
        )
    )
    SELECT json_agg(json_build_array(
        asked.key,
        json_build_array(
            sync.kind, sync.namespace, sync.name, sync.secret, found.exact, coalesce(pods.names, '[]'), coalesce(pods.count, 0)
        )
    ) ORDER BY asked.key, sync.namespace, sync.name, sync.id)::text
    FROM asked
    JOIN (SELECT *, true AS exact FROM named UNION ALL SELECT *, false FROM reading) AS found USING (key)
    JOIN leases_secretsync sync ON sync.id = found.id
    LEFT JOIN LATERAL (
        SELECT json_agg(first.name ORDER BY first.started_at, first.id) AS names, max(first.count) AS count
        FROM (
            SELECT pod.id, pod.started_at, pod.namespace || '/' || pod.name AS name, count(*) OVER () AS count
            FROM leases_pod pod
            WHERE pod.cluster_id = sync.cluster_id AND pod.namespace = sync.namespace AND pod.secrets ? sync.secret
                AND pod.started_at <= asked.to_at AND coalesce(pod.ended_at, 'infinity') >= asked.from_at
            ORDER BY pod.started_at, pod.id
            LIMIT %(most)s
        ) AS first
    ) AS pods ON true
"""
ANSWER = msgspec.json.Decoder(list[tuple[int, Sync]])


def consumers(asked: Sequence[Fetched]) -> dict[int, tuple[Sync, ...]]:
    """By lease, in one query."""
    if not asked:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(SYNCS, {"asked": msgspec.json.encode(list(asked)).decode(), "most": MOST})
        rows = ANSWER.decode(cursor.fetchone()[0] or "[]")
    found: dict[int, tuple[Sync, ...]] = {}
    for key, sync in rows:
        found[key] = (*found.get(key, ()), sync)
    return found


def listed(names: Sequence[str], count: int) -> str:
    """Some names, and how many more there are."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
