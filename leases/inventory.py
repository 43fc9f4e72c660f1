"""What was seen of a cluster becomes rows: pods with their addresses and workloads, owners, service accounts, synced secrets.

Each verb takes as many objects as there are with a fixed number of statements, and is safe to run twice with the same.
Rows travel as JSON: a page of 500 pods is one parameter.
"""

import re
from collections.abc import Collection, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from django.db import connection, transaction

from leases.kube import OwnerSeen, PodSeen, ServiceAccountSeen, SyncSeen
from leases.models import Cluster

Seen = TypeVar("Seen")


class Sight(NamedTuple, Generic[Seen]):
    """An object, when it was seen so, and whether that was the last of it. In one call each object occurs once."""

    seen: Seen
    gone: bool
    at: datetime


# PostgreSQL has no character 0 in a text, but an annotation may hold one
NO_ZERO = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
# a pod that has come to its end stays an object, without a use of its address
OVER = {"Succeeded", "Failed"}

# uid, key, whether it ever had an address, and the addresses that it has with their keys
HELD_ROWS = msgspec.json.Decoder(list[tuple[str, int, bool, dict[str, int]]])

TAKE_PODS = """
    INSERT INTO leases_pod (
        cluster_id, uid, namespace, name, service_account, node, host_network, phase, owner_kind, owner_name, owner_uid,
        workload_kind, workload_name, annotations, fetcher, secrets, started_at
    )
    SELECT
        %(cluster)s, seen.uid, seen.namespace, seen.name, seen.service_account, seen.node, seen.host_network, seen.phase,
        seen.owner_kind, seen.owner_name, seen.owner_uid,
        coalesce(owner.owner_kind, seen.owner_kind), coalesce(owner.owner_name, seen.owner_name),
        seen.annotations, seen.fetcher, seen.secrets, seen.started_at
    FROM json_to_recordset(%(rows)s) AS seen (
        uid text, namespace text, name text, service_account text, node text, host_network boolean, phase text,
        owner_kind text, owner_name text, owner_uid text, annotations jsonb, fetcher boolean, secrets jsonb,
        started_at timestamptz
    )
    LEFT JOIN LATERAL (
        SELECT owner_kind, owner_name FROM leases_podowner
        WHERE cluster_id = %(cluster)s AND uid = seen.owner_uid AND owner_name <> ''
        OFFSET 0
    ) AS owner ON true
    ON CONFLICT (cluster_id, uid) DO UPDATE SET
        namespace = excluded.namespace, name = excluded.name, service_account = excluded.service_account,
        node = excluded.node, host_network = excluded.host_network, phase = excluded.phase,
        owner_kind = excluded.owner_kind, owner_name = excluded.owner_name, owner_uid = excluded.owner_uid,
        workload_kind = excluded.workload_kind, workload_name = excluded.workload_name,
        annotations = excluded.annotations, fetcher = excluded.fetcher, secrets = excluded.secrets
    WHERE (
        leases_pod.namespace, leases_pod.name, leases_pod.service_account, leases_pod.node, leases_pod.host_network,
        leases_pod.phase, leases_pod.owner_uid, leases_pod.workload_kind, leases_pod.workload_name,
        leases_pod.annotations, leases_pod.fetcher, leases_pod.secrets
    ) IS DISTINCT FROM (
        excluded.namespace, excluded.name, excluded.service_account, excluded.node, excluded.host_network,
        excluded.phase, excluded.owner_uid, excluded.workload_kind, excluded.workload_name,
        excluded.annotations, excluded.fetcher, excluded.secrets
    )
"""
# LATERAL with OFFSET: an index lookup for each pod, never a scan of all history
HELD = """
    SELECT json_agg(json_build_array(
        asked.uid, pod.id,
        EXISTS (SELECT FROM leases_podaddress WHERE pod_id = pod.id),
        coalesce(
            (SELECT json_object_agg(host(address), id) FROM leases_podaddress WHERE pod_id = pod.id AND to_at IS NULL), '{}'
        )
    ))::text
    FROM unnest(%(uids)s::text[]) AS asked (uid)
    CROSS JOIN LATERAL (
        SELECT id FROM leases_pod WHERE cluster_id = %(cluster)s AND uid = asked.uid OFFSET 0
    ) AS pod
"""
OPEN_ADDRESSES = """
    INSERT INTO leases_podaddress (pod_id, address, from_at)
    SELECT pod_id, address, from_at
    FROM json_to_recordset(%(rows)s) AS given (pod_id bigint, address inet, from_at timestamptz)
    ON CONFLICT (pod_id, address, from_at) DO NOTHING
"""
CLOSE_ADDRESSES = """
    UPDATE leases_podaddress held SET to_at = greatest(closed.at, held.from_at)
    FROM json_to_recordset(%(rows)s) AS closed (id bigint, at timestamptz) WHERE held.id = closed.id
"""
END_PODS = """
    UPDATE leases_pod pod SET ended_at = over.at
    FROM json_to_recordset(%(rows)s) AS over (id bigint, at timestamptz)
    WHERE pod.id = over.id AND pod.ended_at IS NULL
"""
END_MISSING_PODS = """
    WITH missing AS (
        UPDATE leases_pod pod SET ended_at = %(at)s
        WHERE pod.cluster_id = %(cluster)s AND pod.ended_at IS NULL
            AND NOT EXISTS (SELECT FROM unnest(%(uids)s::text[]) AS there (uid) WHERE there.uid = pod.uid)
        RETURNING pod.id
    )
    UPDATE leases_podaddress held SET to_at = greatest(%(at)s, held.from_at)
    FROM missing WHERE held.pod_id = missing.id AND held.to_at IS NULL
"""
TAKE_OWNERS = """
    INSERT INTO leases_podowner (cluster_id, uid, kind, namespace, name, owner_kind, owner_name)
    SELECT %(cluster)s, seen.uid, seen.kind, seen.namespace, seen.name, seen.owner_kind, seen.owner_name
    FROM json_to_recordset(%(rows)s) AS seen (
        uid text, kind text, namespace text, name text, owner_kind text, owner_name text
    )
    ON CONFLICT (cluster_id, uid) DO UPDATE SET owner_kind = excluded.owner_kind, owner_name = excluded.owner_name
    -- one that has lost its owner (deleted with --cascade=orphan) still tells whose its pods were
    WHERE excluded.owner_name <> ''
        AND (leases_podowner.owner_kind, leases_podowner.owner_name) <> (excluded.owner_kind, excluded.owner_name)
"""
# pods that were seen before what owns them
UNNAMED_WORKLOADS = """
    SELECT json_agg(json_build_object(
        'id', pod.id, 'owner_kind', seen.owner_kind, 'owner_name', seen.owner_name
    ))::text
    FROM json_to_recordset(%(rows)s) AS seen (uid text, owner_kind text, owner_name text)
    CROSS JOIN LATERAL (
        SELECT id FROM leases_pod
        WHERE cluster_id = %(cluster)s AND owner_uid = seen.uid AND owner_uid <> ''
            AND (workload_kind, workload_name) <> (seen.owner_kind, seen.owner_name)
        OFFSET 0
    ) AS pod
    WHERE seen.owner_name <> ''
"""
NAME_WORKLOADS = """
    UPDATE leases_pod pod SET workload_kind = seen.owner_kind, workload_name = seen.owner_name
    FROM json_to_recordset(%(rows)s) AS seen (id bigint, owner_kind text, owner_name text) WHERE pod.id = seen.id
"""
TAKE_SERVICE_ACCOUNTS = """
    INSERT INTO leases_serviceaccount (cluster_id, uid, namespace, name, created_at, first_seen_at, deleted_at)
    SELECT %(cluster)s, seen.uid, seen.namespace, seen.name, seen.created_at, seen.at,
        CASE WHEN seen.gone THEN seen.at END
    FROM json_to_recordset(%(rows)s) AS seen (
        uid text, namespace text, name text, created_at timestamptz, at timestamptz, gone boolean
    )
    ON CONFLICT (cluster_id, uid) DO UPDATE SET deleted_at = excluded.deleted_at
    WHERE leases_serviceaccount.deleted_at IS NULL AND excluded.deleted_at IS NOT NULL
"""
TAKE_SYNCS = """
    INSERT INTO leases_secretsync (
        cluster_id, uid, kind, namespace, name, paths, generators, secret, created_at, deleted_at
    )
    SELECT %(cluster)s, seen.uid, seen.kind, seen.namespace, seen.name, seen.paths, seen.generators, seen.secret,
        seen.created_at, CASE WHEN seen.gone THEN seen.at END
    FROM json_to_recordset(%(rows)s) AS seen (
        uid text, kind text, namespace text, name text, paths jsonb, generators jsonb, secret text,
        created_at timestamptz, at timestamptz, gone boolean
    )
    ON CONFLICT (cluster_id, uid) DO UPDATE SET
        paths = excluded.paths, generators = excluded.generators, secret = excluded.secret,
        deleted_at = coalesce(leases_secretsync.deleted_at, excluded.deleted_at)
"""
LINK_LEASES = """
    INSERT INTO leases_syncedlease (sync_id, lease_id, seen_at)
    SELECT sync.id, seen.lease_id, seen.at
    FROM json_to_recordset(%(rows)s) AS seen (uid text, lease_id text, at timestamptz)
    JOIN leases_secretsync sync ON sync.cluster_id = %(cluster)s AND sync.uid = seen.uid
    WHERE seen.lease_id <> ''
    ON CONFLICT (sync_id, lease_id) DO NOTHING
"""
# {table}: of objects of which nothing but their end is to be told
DELETE_MISSING = """
    UPDATE {table} SET deleted_at = %(at)s
    WHERE cluster_id = %(cluster)s AND deleted_at IS NULL {also}
        AND NOT EXISTS (SELECT FROM unnest(%(uids)s::text[]) AS there (uid) WHERE there.uid = {table}.uid)
"""


@transaction.atomic
def take_pods(cluster: Cluster, sights: Sequence[Sight[PodSeen]]) -> None:
    """Brings the pods' rows and their addresses up to what was seen."""
    if not sights:
        return
    rows = [{**_fields(sight.seen), "started_at": _started_at(sight.seen)} for sight in sights]
    by_uid = {sight.seen.uid: sight for sight in sights}
    opened, closed, over = [], [], []
    with connection.cursor() as cursor:
        cursor.execute(TAKE_PODS, {"cluster": cluster.pk, "rows": _json(rows)})
        cursor.execute(HELD, {"cluster": cluster.pk, "uids": list(by_uid)})
        for uid, pod_id, known, found in HELD_ROWS.decode(cursor.fetchone()[0] or "[]"):
            pod, gone, at = by_uid[uid]
            held = {ip_address(address): key for address, key in found.items()}
            is_over = gone or pod.phase in OVER
            has = set() if is_over else {ip_address(address) for address in pod.addresses}
            closed += [{"id": key, "at": at} for address, key in held.items() if address not in has]
            # Kubernetes does not say since when; the first addresses came with the pod's start, a later one just now
            from_at = at if known else _started_at(pod)
            opened += [{"pod_id": pod_id, "address": str(one), "from_at": from_at} for one in has - held.keys()]
            if is_over:
                over.append({"id": pod_id, "at": at})
        for statement, changed in ((CLOSE_ADDRESSES, closed), (OPEN_ADDRESSES, opened), (END_PODS, over)):
            if changed:
                cursor.execute(statement, {"rows": _json(changed)})


def _started_at(pod: PodSeen) -> datetime:
    return pod.started_at or pod.created_at


def end_missing_pods(cluster: Cluster, there: Collection[str], at: datetime) -> None:
    """Pods that a whole list no longer had ended at some time since they were last known; their addresses are free."""
    _execute_missing(END_MISSING_PODS, cluster, there, at)


def take_owners(cluster: Cluster, sights: Sequence[Sight[OwnerSeen]]) -> None:
    """Remembers what controls a ReplicaSet or Job, and names the workload of its pods; also when that comes second."""
    values: dict[str, Any] = {"cluster": cluster.pk, "rows": _json([_fields(sight.seen) for sight in sights])}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(TAKE_OWNERS, values)
        cursor.execute(UNNAMED_WORKLOADS, values)
        if rows := cursor.fetchone()[0]:
            cursor.execute(NAME_WORKLOADS, {"rows": rows})


def take_service_accounts(cluster: Cluster, sights: Sequence[Sight[ServiceAccountSeen]]) -> None:
    rows = [{**_fields(account), "gone": gone, "at": at} for account, gone, at in sights]
    _execute([TAKE_SERVICE_ACCOUNTS], cluster, rows)


def end_missing_service_accounts(cluster: Cluster, there: Collection[str], at: datetime) -> None:
    _execute_missing(DELETE_MISSING.format(table="leases_serviceaccount", also=""), cluster, there, at)


def take_syncs(cluster: Cluster, sights: Sequence[Sight[SyncSeen]]) -> None:
    rows = [{**_fields(sync), "gone": gone, "at": at} for sync, gone, at in sights]
    _execute([TAKE_SYNCS, LINK_LEASES], cluster, rows)


def end_missing_syncs(kind: str, cluster: Cluster, there: Collection[str], at: datetime) -> None:
    """Of one kind, since each kind is listed by itself."""
    _execute_missing(
        DELETE_MISSING.format(table="leases_secretsync", also="AND kind = %(kind)s"), cluster, there, at, kind=kind
    )


def forget_nothing(cluster: Cluster, there: Collection[str], at: datetime) -> None:
    """An owner that is gone still tells whose its pods were."""


def _json(rows: list[dict[str, Any]]) -> str:
    return NO_ZERO.sub(r"\1", msgspec.json.encode(rows).decode())


def _fields(seen: Any) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in seen.__slots__}


@transaction.atomic
def _execute(statements: Sequence[str], cluster: Cluster, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    values: dict[str, Any] = {"cluster": cluster.pk, "rows": _json(rows)}
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement, values)


def _execute_missing(statement: str, cluster: Cluster, there: Collection[str], at: datetime, **values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, {"cluster": cluster.pk, "uids": list(there), "at": at, **values})
