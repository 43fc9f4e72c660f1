"""What is known about where sessions came from, gathered for many of them with a fixed number of queries. Judges nothing.

Rows travel as JSON in both directions, as in evidence.py.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec
from django.db import connection

from audit import evidence
from audit.evidence import ADDRESS_LAG, Held, LoginSeen
from audit.place import NO_HOLDERS, Evidence, Holders, Occupant, fitting, normal
from leases.models import Certainty, Cluster
from leases.watch import NOTHING_PROVEN, proven

# so many pods are named of those that may hold a lease, and of those that had an address
SOME = 3


class SessionSeen(msgspec.Struct, frozen=True, array_like=True):
    """A session as it is stored, with what its database allows."""

    id: int
    lease_id: int | None
    database_user: str
    address: str
    started_at: datetime
    first_seen_at: datetime
    place: str
    place_reason: str
    place_open: bool
    nat: tuple[str, ...]
    poolers: tuple[str, ...]
    # that the user is the lease's is a guess
    guessed: bool
    # how far the clock of its server is off, in seconds
    clock_off: float

    def slack(self, skew: timedelta) -> timedelta:
        """How far its start may be off: the skew, and what its server's clock is known to be off by beyond that."""
        off = timedelta(seconds=self.clock_off)
        return skew + off if off > skew else skew


class Asked(msgspec.Struct):
    """Which pods may hold a session's lease: these uids, and pods of a service account (of a node), and users of Secrets.

    Of the account and of the Secrets those count that lived at any time in [lived_from, lived_to].
    """

    key: int
    cluster_id: int
    address: str | None
    # the session's start, less and more the skew, and the time up to which an address may come late
    earliest: datetime
    latest: datetime
    late: datetime
    uids: list[str] = []
    namespace: str = ""
    service_account: str = ""
    node: str = ""
    lived_from: datetime | None = None
    lived_to: datetime | None = None
    secrets: list[tuple[str, str]] = []


SESSIONS = msgspec.json.Decoder(list[SessionSeen])
THERE = msgspec.json.Decoder(list[tuple[int, tuple[str, str]]])
HOLDERS = msgspec.json.Decoder(list[tuple[int, Holders]])
OCCUPANTS = msgspec.json.Decoder(list[tuple[int, Occupant]])

_SESSIONS = """
    SELECT json_agg(json_build_array(
        session.id, session.lease_id, session.database_user, session.address, session.started_at, session.first_seen_at,
        session.place, session.place_reason, session.place_open,
        coalesce(database.nat, '[]'), coalesce(database.poolers, '[]'),
        coalesce(lease.database_user_by = 'time and name', false),
        coalesce((SELECT max(abs(clock_ahead_seconds)) FROM leases_sampling WHERE server_id = session.server_id), 0)
    ) ORDER BY session.id)::text
    FROM leases_session session
    LEFT JOIN leases_lease lease ON lease.id = session.lease_id
    LEFT JOIN leases_database database ON database.id = coalesce(lease.database_id, session.database_id)
    WHERE session.id = ANY(%s)
"""
# how questions are put to PostgreSQL
_ASKED = """
    SELECT * FROM json_to_recordset(%s) AS asked (
        key bigint, cluster_id bigint, address inet, earliest timestamptz, latest timestamptz, late timestamptz,
        uids jsonb, namespace text, service_account text, node text, lived_from timestamptz, lived_to timestamptz,
        secrets jsonb
    )
"""
# Those that had the session's address: from the few that had it, by pod_address_by_address. Where there is one, nothing else is asked.
_THERE = f"""
    SELECT json_agg(json_build_array(asked.key, json_build_array(pod.uid, pod.namespace || '/' || pod.name))
        ORDER BY asked.key, pod.started_at, pod.id)::text
    FROM ({_ASKED}) AS asked
    CROSS JOIN LATERAL (
        SELECT pod_id FROM leases_podaddress WHERE address = asked.address
            AND coalesce(to_at, 'infinity') >= asked.earliest AND from_at <= asked.latest
        OFFSET 0
    ) AS held
    CROSS JOIN LATERAL (SELECT * FROM leases_pod WHERE id = held.pod_id OFFSET 0) AS pod
    WHERE pod.cluster_id = asked.cluster_id AND (
        asked.uids ? pod.uid
        OR coalesce(pod.ended_at, 'infinity') >= asked.lived_from AND pod.started_at <= asked.lived_to AND (
            asked.service_account <> '' AND pod.namespace = asked.namespace
                AND pod.service_account = asked.service_account AND (asked.node = '' OR pod.node = asked.node)
            OR EXISTS (
                SELECT FROM jsonb_array_elements(asked.secrets) AS named (secret)
                WHERE pod.namespace = named.secret ->> 0 AND pod.secrets ? (named.secret ->> 1)
            )
        )
    )
"""  # noqa: S608 (the constant above)
# LATERAL with OFFSET: an index lookup for each question, never a scan of all history
_HOLDERS = f"""
    WITH asked AS ({_ASKED}
    ), holder AS (
        SELECT asked.key, pod.id FROM asked
        CROSS JOIN LATERAL jsonb_array_elements_text(asked.uids) AS one (uid)
        CROSS JOIN LATERAL (
            SELECT id FROM leases_pod WHERE cluster_id = asked.cluster_id AND uid = one.uid OFFSET 0
        ) AS pod
        UNION
        SELECT asked.key, pod.id FROM asked
        CROSS JOIN LATERAL (
            SELECT id FROM leases_pod pod
            WHERE pod.cluster_id = asked.cluster_id
                AND pod.namespace = asked.namespace AND pod.service_account = asked.service_account
                AND coalesce(pod.ended_at, 'infinity') >= asked.lived_from AND pod.started_at <= asked.lived_to
                AND (asked.node = '' OR pod.node = asked.node)
                AND (pod.ended_at IS NOT NULL OR pod.phase NOT IN ('Succeeded', 'Failed'))
            OFFSET 0
        ) AS pod
        WHERE asked.service_account <> ''
        UNION
        SELECT asked.key, pod.id FROM asked
        CROSS JOIN LATERAL jsonb_array_elements(asked.secrets) AS named (secret)
        CROSS JOIN LATERAL (
            SELECT id FROM leases_pod pod
            WHERE pod.cluster_id = asked.cluster_id AND pod.namespace = named.secret ->> 0
                AND pod.secrets ? (named.secret ->> 1)
                AND coalesce(pod.ended_at, 'infinity') >= asked.lived_from AND pod.started_at <= asked.lived_to
            OFFSET 0
        ) AS pod
    ), known AS (
        SELECT asked.key, pod.id, pod.uid, pod.namespace || '/' || pod.name AS name, pod.node, pod.started_at, pod.ended_at,
            pod.started_at <= asked.latest AND coalesce(pod.ended_at, 'infinity') >= asked.earliest AS lived,
            held.*
        FROM asked JOIN holder USING (key) JOIN leases_pod pod ON pod.id = holder.id
        CROSS JOIN LATERAL (
            SELECT
                string_agg(DISTINCT host(a.address), ' and ') FILTER (WHERE then_had) AS had,
                coalesce(bool_or(NOT then_had AND a.address = asked.address
                    AND a.from_at > asked.latest AND a.from_at <= asked.late), false) AS has_it_soon
            FROM (
                SELECT *, from_at <= asked.latest AND coalesce(to_at, 'infinity') >= asked.earliest AS then_had
                FROM leases_podaddress WHERE pod_id = pod.id OFFSET 0
            ) AS a
        ) AS held
    )
    SELECT json_agg(json_build_array(key, json_build_array(
        count, coalesce(soon, '[]'), coalesce(expected, '[]'), coalesce(unplaced, '[]'),
        coalesce(nodes, '[]'), placed
    )))::text
    FROM (
        SELECT key, count(*) AS count,
            to_json((array_agg(name ORDER BY started_at, id) FILTER (WHERE has_it_soon))[1:{SOME}]) AS soon,
            to_json((array_agg(name || CASE
                WHEN had IS NOT NULL THEN ' (' || had || ')'
                WHEN ended_at < now() AND NOT lived THEN
                    ' (ended ' || to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ')'
                ELSE ' (no address known)'
            END ORDER BY had IS NULL, NOT lived, started_at, id))[1:{SOME}]) AS expected,
            to_json((array_agg(name ORDER BY started_at, id) FILTER (
                WHERE lived AND had IS NULL AND node <> ''))[1:{SOME}]) AS unplaced,
            to_json(array_agg(DISTINCT node) FILTER (WHERE lived AND node <> '')) AS nodes,
            count(*) FILTER (WHERE had IS NOT NULL) AS placed
        FROM known GROUP BY key
    ) AS found
"""  # noqa: S608 (the constant above)
# pod_address_by_address serves each question, then leases_pod's primary key
_OCCUPANTS = f"""
    SELECT json_agg(json_build_array(asked.key, json_build_array(
        cluster.name, found.uid, found.namespace, found.name, found.service_account, found.node, found.host_network
    )) ORDER BY asked.key, found.host_network, found.from_at, found.id)::text
    FROM json_to_recordset(%s) AS asked (key bigint, address inet, earliest timestamptz, latest timestamptz)
    CROSS JOIN LATERAL (
        SELECT pod.*, held.from_at
        FROM leases_podaddress held JOIN leases_pod pod ON pod.id = held.pod_id
        WHERE held.address = asked.address
            AND coalesce(held.to_at, 'infinity') >= asked.earliest AND held.from_at <= asked.latest
        ORDER BY pod.host_network, held.from_at, held.id
        LIMIT {2 * SOME}
    ) AS found
    JOIN leases_cluster cluster ON cluster.id = found.cluster_id
"""  # noqa: S608


def gather(keys: Collection[int], *, skew: timedelta, now: datetime) -> list[tuple[SessionSeen, Evidence]]:
    """These sessions by id, each with its evidence. Thirteen queries at most, however many they are."""
    sessions: list[SessionSeen] = _read(_SESSIONS, SESSIONS, list(keys))
    slack = {one.id: one.slack(skew) for one in sessions}
    leases = {
        lease.id: (lease, login, proof)
        for lease, login, proof in _leases({one.lease_id for one in sessions}, skew=skew)
    }
    clusters = dict(
        Cluster.objects.filter(name__in={one.cluster for one, _, _ in leases.values()}).values_list("name", "id")
    )
    # before the pods: what a period proves was stored before it, so that no pod of then is missing from what is read next
    since = min((one.started_at - slack[one.id] for one in sessions), default=now)
    periods = proven(set(clusters.values()), since=since)
    asked = [
        question(one, *leases[one.lease_id], cluster_id=clusters[leases[one.lease_id][0].cluster], skew=slack[one.id])
        for one in sessions
        if one.lease_id in leases and leases[one.lease_id][0].cluster in clusters
    ]
    holders = holders_of(asked, {one.id: one for one in sessions})
    occupants = occupants_of(sessions, slack=slack)
    return [
        (
            one,
            _evidence(
                one,
                leases.get(one.lease_id or 0),
                watch=periods.get(clusters.get(leases[one.lease_id][0].cluster, 0), NOTHING_PROVEN)
                if one.lease_id in leases
                else NOTHING_PROVEN,
                holders=holders.get(one.id, NO_HOLDERS),
                occupants=occupants.get(one.id, ()),
                skew=slack[one.id],
                now=now,
            ),
        )
        for one in sessions
    ]


def holders_of(asked: list[Asked], sessions: dict[int, SessionSeen]) -> dict[int, Holders]:
    """By session. Where one of them had the address, or the database allows it, the others do not matter and are not read."""
    there: dict[int, tuple[tuple[str, str], ...]] = {}
    for key, pod in _read(_THERE, THERE, _json(asked)) if asked else []:
        there[key] = (*there.get(key, ()), pod)[:SOME]
    found = {key: Holders(there=pods) for key, pods in there.items()}
    left = [one for one in asked if one.key not in there and not allowed(sessions[one.key])]
    return found | (dict(_read(_HOLDERS, HOLDERS, _json(left))) if left else {})


def allowed(one: SessionSeen) -> bool:
    """Whether the configuration allows its address."""
    address = normal(one.address)
    return bool((address or not one.address) and fitting(address, (*one.nat, *one.poolers)))


class Begun(Protocol):
    """Of a session, all that its address is asked by."""

    @property
    def id(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...


def occupants_of(sessions: Iterable[Begun], *, slack: Mapping[int, timedelta]) -> dict[int, tuple[Occupant, ...]]:
    """By session, which pods of any cluster had its address when it began, give or take its slack."""
    asked = [
        {"key": one.id, "address": address, "earliest": at - slack[one.id], "latest": at + slack[one.id]}
        for one, at in ((one, one.started_at) for one in sessions)
        if (address := normal(one.address))
    ]
    found: dict[int, tuple[Occupant, ...]] = {}
    for key, pod in _read(_OCCUPANTS, OCCUPANTS, _json(asked)) if asked else []:
        found[key] = (*found.get(key, ()), pod)
    return found


def _leases(keys: Collection[int | None], *, skew: timedelta) -> list[tuple[Held, LoginSeen | None, evidence.Evidence]]:
    known = [key for key in keys if key is not None]
    found = evidence.gather(known, skew=skew) if known else []
    return [(lease, proof.login, proof) for lease, proof in found]


def question(
    one: SessionSeen,
    lease: Held,
    login: LoginSeen | None,
    proof: evidence.Evidence,
    *,
    cluster_id: int,
    skew: timedelta,
) -> Asked:
    """Which pods may hold this session's lease: those that the attribution rule saw."""
    at = one.started_at
    asked = Asked(one.id, cluster_id, normal(one.address) or None, at - skew, at + skew, at + ADDRESS_LAG)
    asked.lived_from, asked.lived_to = asked.earliest, asked.latest
    if lease.pod_uid:
        asked.uids = [lease.pod_uid]
        return asked
    if lease.certainty == Certainty.SERVICE_ACCOUNT:
        asked.namespace, asked.service_account = lease.service_account_namespace, lease.service_account
        return asked
    asked.uids = [pod.uid for pod in proof.candidates]
    if proof.fetched:
        asked.uids += [pod.uid for pod in proof.others]
        asked.namespace, asked.service_account = lease.service_account_namespace, lease.service_account
        asked.secrets = [(sync.namespace, sync.secret) for sync in proof.syncs]
        return asked
    if login is not None and login.inherited:
        # a token that was handed over is with whoever read with it
        asked.uids += [pod.uid for pod in proof.others]
    if login is not None and login.claimed_pod_uid:
        asked.uids.append(login.claimed_pod_uid)
        return asked
    node = next((pod.node for pod in (*proof.candidates, *proof.others) if pod.host_network), "")
    if node or not proof.candidates:
        # those that lived when it was read; on that node where its pods share the address
        asked.namespace, asked.service_account, asked.node = (
            lease.service_account_namespace,
            lease.service_account,
            node,
        )
        read_at = lease.accessed_at or at
        asked.lived_from, asked.lived_to = read_at - skew, read_at + skew
    return asked


def _evidence(
    one: SessionSeen,
    held: tuple[Held, LoginSeen | None, evidence.Evidence] | None,
    *,
    watch: Any,
    holders: Holders,
    occupants: tuple[Occupant, ...],
    skew: timedelta,
    now: datetime,
) -> Evidence:
    at, address = one.started_at, normal(one.address)
    unreadable = one.address if one.address and not address else ""
    told: dict[str, Any] = {
        "address": address,
        "unreadable": unreadable,
        "user": one.database_user,
        "at": at,
        "waited": now - one.first_seen_at,
        "nat": one.nat,
        "poolers": one.poolers,
        "guessed": one.guessed,
        "holders": holders,
        "occupants": occupants,
    }
    if held is None:
        return Evidence(**told, lease_known=False)
    lease, login, proof = held
    account = f"service account {lease.service_account_namespace}/{lease.service_account}"
    # a login from the pod's own address says so, too, unless its token was handed on
    direct = () if login is None or login.inherited else proof.logged_in
    read_by = (*proof.candidates, *proof.others, *direct)
    return Evidence(
        **told,
        certainty=Certainty(lease.certainty),
        certainty_reason=lease.certainty_reason,
        cluster=lease.cluster,
        holder=f"{lease.pod_namespace}/{lease.pod}" if lease.pod else account,
        for_unknown_others=proof.fetched and not any(sync.count for sync in proof.syncs),
        read_from=normal(lease.source_ip),
        unwrapped_from=normal(lease.unwrapped_from),
        read_at_a_pod=any(not pod.host_network for pod in read_by),
        gapless=watch.gapless(from_at=at - skew, to_at=at + skew),
        caught_up=watch.caught_up(at=at, skew=skew),
        settled=watch.caught_up(at=at, skew=skew + ADDRESS_LAG),
    )


def _json(rows: list[Any]) -> str:
    return msgspec.json.encode(rows).decode()


def _read(query: str, decoder: Any, value: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, [value])
        return decoder.decode(cursor.fetchone()[0] or "[]")
