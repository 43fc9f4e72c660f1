"""What sessions, database users and logins tell the rules: set-based reads, each bounded by what was seen lately."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from audit import whereabouts
from audit.evidence import ADDRESS_LAG, canonical, fetching_accounts
from audit.evidence import Account as SeenAccount
from audit.findings import session_rules
from audit.findings.facts import rows_of
from audit.findings.found import Account, Item, Role
from audit.findings.session_rules import Ghosts, Outliving, StrayLogins, Travelled, Zombies
from audit.place import Occupant, fitting
from leases.models import Database, Lease, Policy, Session
from leases.models.sessions import TiedBy
from leases.watch import NOTHING_PROVEN, proven

EXAMPLES = 10
# so many leases are told of at once, those with the newest sessions; and so many logins are looked at
MOST = 1_000
MOST_LOGINS = 20_000


def _skew() -> timedelta:
    return timedelta(seconds=Policy.current().clock_skew_seconds)


def _account(lease: Lease) -> Account:
    return Account(lease.vault.name, lease.cluster, lease.service_account_namespace, lease.service_account)


def _role(lease: Lease) -> Role:
    return Role(lease.vault.name, lease.mount, lease.role, lease.database.name if lease.database else "")


def _leases(keys: Iterable[int]) -> dict[int, Lease]:
    return Lease.objects.select_related("vault", "database").in_bulk(set(keys))


def _sessions(keys: Iterable[int]) -> dict[int, Session]:
    return Session.objects.select_related("server").in_bulk(set(keys))


def _where(session: Session) -> str:
    port = f", port {session.port}" if session.port else ""
    return f"{session.address or 'a local socket'}{port}"


def travelled(*, now: datetime) -> Iterator[Travelled]:
    """Of leases whose credential was used elsewhere by a session that was seen within SEEN_WITHIN."""
    rows = rows_of(
        f"""
        SELECT s.lease_id, count(*), count(*) FILTER (WHERE s.ended_at IS NULL), max(s.first_seen_at),
               (array_agg(s.id ORDER BY s.started_at DESC, s.id DESC))[1:{EXAMPLES}]
        FROM leases_session s JOIN leases_lease l ON l.id = s.lease_id
        JOIN leases_vault v ON v.id = l.vault_id AND NOT v.retired
        WHERE s.place = 'elsewhere' AND s.last_seen_at >= %(since)s
        GROUP BY s.lease_id ORDER BY 4 DESC, 1 LIMIT {MOST}
        """,  # noqa: S608 (the constants above)
        {"since": now - session_rules.SEEN_WITHIN},
    )
    leases = _leases(row[0] for row in rows)
    sessions = _sessions(key for row in rows for key in row[4])
    occupants = whereabouts.occupants_of(sessions.values(), slack=dict.fromkeys(sessions, _skew()))
    for key, count, going_on, newest_at, some in rows:
        lease, examples = leases[key], [sessions[one] for one in some]
        pods = [next((str(pod) for pod in occupants.get(one, ()) if not pod.host_network), "") for one in some]
        yield Travelled(
            lease.vault.name,
            lease.pk,
            lease.lease_id,
            lease.holder,
            _account(lease),
            _role(lease),
            count,
            going_on,
            newest_at,
            tuple(dict.fromkeys(one.address or "a local socket" for one in examples)),
            pods[0],
            lease.database_user_by == TiedBy.TIME_AND_NAME,
            tuple(
                Item(
                    f"session {one.key} on {one.server}, database {one.database_name}, from {_where(one)}"
                    f"{f', application {one.application[:60]}' if one.application else ''}: {one.place_reason}",
                    one.started_at,
                    lease=lease.pk,
                    pod=pod.rpartition("/")[2],
                )
                for one, pod in zip(examples, pods, strict=True)
            ),
        )


# servers whose users were listed lately, with the databases on them
_LISTED = """
    WITH listed AS (
        SELECT sampling.server_id, max(sampling.users_at) AS users_at, min(v.name) AS vault,
            string_agg(DISTINCT d.name, ', ' ORDER BY d.name) AS names, array_agg(d.id) AS databases,
            array_agg(DISTINCT v.id) AS vaults
        FROM leases_sampling sampling
        JOIN leases_database d ON d.id = sampling.database_id
        JOIN leases_vault v ON v.id = d.vault_id AND NOT v.retired
        WHERE sampling.users_at >= %(listed)s AND sampling.server_id IS NOT NULL
        GROUP BY sampling.server_id
    )
"""


def ghosts(*, now: datetime) -> Iterator[Ghosts]:
    """Of servers whose users were listed lately, the users that have been there for JOINING and bear no live lease."""
    rows = rows_of(
        f"""
        {_LISTED}
        , there AS (
            SELECT u.*, listed.vault, listed.names, listed.databases, listed.vaults, listed.users_at,
                to_timestamp(substring(u.name FROM '-([0-9]{{10}})$')::bigint) AS made_at
            FROM leases_dynamicuser u JOIN listed ON listed.server_id = u.server_id
            WHERE u.gone_at IS NULL AND u.first_seen_at < %(before)s
                -- of two servers behind one address each is listed in its turn
                AND u.last_seen_at >= %(listed)s
        ), ghost AS (
            SELECT there.*, l.id AS lease_id, l.ended_at, l.id IS NOT NULL AS sure
            FROM there LEFT JOIN leases_lease l ON l.database_user = there.name AND l.database_user <> ''
            WHERE l.id IS NULL OR (l.state = 'ended' AND l.ended_at < %(before)s AND l.ended_at < there.users_at)
        ), weighed AS (
            SELECT ghost.*, sure OR (
                -- a lease without a user may be its lease
                NOT EXISTS (
                    SELECT FROM leases_lease l WHERE l.database_user = '' AND l.vault_id = ANY(ghost.vaults)
                        AND (l.database_id IS NULL OR l.database_id = ANY(ghost.databases))
                        AND (l.state <> 'ended' OR l.ended_at > %(before)s)
                        AND (l.role = '' OR strpos(ghost.name, '-' || left(l.role, 8)) > 0)
                        AND (ghost.made_at IS NULL OR COALESCE(l.issued_at, l.accessed_at) IS NULL
                            OR COALESCE(l.issued_at, l.accessed_at) BETWEEN ghost.made_at - %(slack)s AND ghost.made_at + %(slack)s)
                ) AND (
                    -- all leases that live were listed since
                    NOT EXISTS (
                        SELECT FROM leases_vault v WHERE v.id = ANY(ghost.vaults)
                            AND (v.reconciled_at IS NULL OR v.reconciled_at < ghost.first_seen_at)
                    )
                    -- or the audit log was read when it was made, without a gap
                    OR ghost.made_at IS NOT NULL AND NOT EXISTS (
                        SELECT FROM leases_vault v WHERE v.id = ANY(ghost.vaults) AND NOT EXISTS (
                            SELECT FROM audit_stream m JOIN audit_device d ON d.id = m.device_id
                            WHERE d.vault_id = v.id AND NOT m.retired
                                AND EXISTS (SELECT FROM audit_coverage c WHERE c.stream_id = m.id
                                    AND c.hour < date_trunc('hour', ghost.made_at) AND c.pairs > 0)
                                AND EXISTS (SELECT FROM audit_coverage c WHERE c.stream_id = m.id
                                    AND c.hour >= date_trunc('hour', ghost.made_at) AND c.pairs > 0)
                                AND NOT EXISTS (SELECT FROM audit_gap g WHERE g.stream_id = m.id
                                    AND g.to_at >= ghost.made_at - %(slack)s
                                    AND COALESCE(g.from_at, g.to_at) <= ghost.made_at + %(slack)s)
                        )
                    )
                )
            ) AS told,
            EXISTS (
                SELECT FROM leases_session s WHERE s.server_id = ghost.server_id AND s.ended_at IS NULL
                    AND s.database_user = ghost.name
            ) AS has_sessions
            FROM ghost
        )
        SELECT server_id, vault, names, count(*) FILTER (WHERE told), count(*) FILTER (WHERE told AND has_sessions),
            count(*) FILTER (WHERE NOT told), max(first_seen_at) FILTER (WHERE told),
            (array_agg(json_build_array(name, has_sessions, lease_id, first_seen_at)
                ORDER BY has_sessions DESC, first_seen_at DESC, id) FILTER (WHERE told))[1:{EXAMPLES}]
        FROM weighed GROUP BY server_id, vault, names ORDER BY server_id
        """,  # noqa: S608
        {
            "listed": now - session_rules.LISTED_WITHIN,
            "before": now - session_rules.JOINING,
            "slack": timedelta(minutes=1),
        },
    )
    servers = dict(rows_of("SELECT id, identity FROM leases_databaseserver", {}))
    leases = _leases(one[2] for row in rows for one in row[7] or () if one[2])
    for server, vault, names, users, with_sessions, unsure, newest_at, some in rows:
        yield Ghosts(
            vault,
            servers[server],
            names,
            users,
            with_sessions,
            unsure,
            newest_at,
            tuple(
                Item(
                    f"{name}: {_lost(leases.get(lease))}{', and has open sessions' if has_sessions else ''}, there since",
                    datetime.fromisoformat(at),
                    lease=lease,
                )
                for name, has_sessions, lease, at in some or ()
            ),
        )


def _lost(lease: Lease | None) -> str:
    if lease is None:
        return "no lease bears its name"
    return f"its lease {lease.lease_id} has ended ({lease.end_reason})"


def zombies(*, now: datetime) -> Iterator[Zombies]:
    """Live leases whose user was on the server that their database is on now, and is gone, though a lookup found the lease since."""
    rows = rows_of(
        f"""
        SELECT v.name, l.mount, l.role, d.name, count(*), max(l.expires_at), bool_or(l.expires_at IS NULL),
               (array_agg(l.id ORDER BY u.gone_at DESC, l.id))[1:{EXAMPLES}],
               (array_agg(u.gone_at ORDER BY u.gone_at DESC, l.id))[1:{EXAMPLES}]
        FROM leases_dynamicuser u
        JOIN leases_sampling sampling ON sampling.server_id = u.server_id
        JOIN leases_database d ON d.id = sampling.database_id
        JOIN leases_vault v ON v.id = d.vault_id AND NOT v.retired
        JOIN leases_lease l ON l.database_user = u.name AND l.database_user <> '' AND l.database_id = d.id
        WHERE u.gone_at < %(before)s AND u.gone_at >= %(since)s AND sampling.users_at >= %(listed)s
            AND l.state = 'live' AND (l.expires_at IS NULL OR l.expires_at > %(now)s) AND l.looked_up_at > u.gone_at
            AND NOT EXISTS (SELECT FROM leases_dynamicuser other WHERE other.name = u.name AND other.gone_at IS NULL)
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        """,  # noqa: S608
        {
            "now": now,
            "before": now - session_rules.LETTING_GO,
            # leases live no longer than that, by Vault's default max_lease_ttl of 32 days and a bit
            "since": now - timedelta(days=40),
            "listed": now - session_rules.LISTED_WITHIN,
        },
    )
    leases = _leases(key for row in rows for key in row[7])
    for *role, count, longest, endless, keys, gone in rows:
        yield Zombies(
            Role(*role),
            count,
            None if endless else max(longest - now, timedelta(0)),
            tuple(
                Item(f"{leases[key].lease_id}: its user {leases[key].database_user} is gone since", at, lease=key)
                for key, at in zip(keys, gone, strict=True)
            ),
        )


def outliving(*, now: datetime) -> Iterator[Outliving]:
    """Open sessions that were seen well after their user was dropped or their lease had ended."""
    rows = rows_of(
        f"""
        WITH over AS (
            SELECT s.id, s.lease_id, s.server_id, s.last_seen_at,
                LEAST(s.user_vanished_at, CASE WHEN l.state = 'ended' THEN l.ended_at END) AS over_at
            FROM leases_session s LEFT JOIN leases_lease l ON l.id = s.lease_id
            WHERE s.ended_at IS NULL AND s.last_seen_at >= %(since)s
        )
        SELECT lease_id, CASE WHEN lease_id IS NULL THEN server_id END, count(*), max(over_at),
               (array_agg(id ORDER BY over_at, id))[1:{EXAMPLES}],
               (array_agg(over_at ORDER BY over_at, id))[1:{EXAMPLES}]
        FROM over WHERE last_seen_at - over_at > %(letting_go)s
        GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2 LIMIT {MOST}
        """,  # noqa: S608
        {"since": now - session_rules.OPEN_WITHIN, "letting_go": session_rules.LETTING_GO},
    )
    leases, sessions = _leases(row[0] for row in rows if row[0]), _sessions(key for row in rows for key in row[4])
    for lease_key, _, count, newest_at, keys, times in rows:
        lease = leases.get(lease_key)
        server = sessions[keys[0]].server
        account = _account(lease) if lease and lease.service_account else None
        yield Outliving(
            lease.vault.name if lease else "",
            f"lease {lease.vault.name} {lease.lease_id}" if lease else f"server {server}",
            f"{lease.holder or 'an unknown holder'} on {_role(lease)}" if lease else f"unknown holders on {server}",
            account,
            count,
            bool(lease and lease.end_reason == "revoked here"),
            newest_at,
            tuple(
                Item(
                    f"session {sessions[key].key} of {sessions[key].database_user or 'a dropped user'} from "
                    f"{_where(sessions[key])}, over since",
                    at,
                    lease=lease_key,
                )
                for key, at in zip(keys, times, strict=True)
            ),
        )


class _Login(msgspec.Struct, frozen=True, array_like=True):
    id: int
    vault: str
    vault_id: int
    cluster: str
    cluster_id: int
    namespace: str
    name: str
    address: str
    logged_in_at: datetime

    @property
    def account(self) -> Account:
        return Account(self.vault, self.cluster, self.namespace, self.name)


class _Had(msgspec.Struct, frozen=True, array_like=True):
    """Of a login: whether a pod of its account had the address, or runs on the node that had it; and which others had it."""

    own: bool
    on_node: bool
    fetcher: bool
    pods: tuple[Occupant, ...]


_LOGINS = msgspec.json.Decoder(list[_Login])
_HADS = msgspec.json.Decoder(list[tuple[int, _Had]])
# LATERAL with OFFSET: an index lookup for each question, as in evidence.py
_HAD = """
    SELECT json_agg(json_build_array(asked.key, json_build_array(
        found.own, found.on_node, found.fetcher, found.pods
    )))::text
    FROM json_to_recordset(%(asked)s) AS asked (
        key bigint, cluster_id bigint, namespace text, service_account text, address inet, earliest timestamptz,
        latest timestamptz, late timestamptz
    )
    CROSS JOIN LATERAL (
        SELECT
            coalesce(bool_or(pod.is_own), false) AS own,
            coalesce(bool_or(pod.host_network AND EXISTS (
                SELECT FROM leases_pod mate
                WHERE mate.cluster_id = asked.cluster_id AND mate.namespace = asked.namespace
                    AND mate.service_account = asked.service_account AND mate.node = pod.node
                    AND coalesce(mate.ended_at, 'infinity') >= asked.earliest AND mate.started_at <= asked.latest
            )), false) AS on_node,
            coalesce(bool_or(pod.fetcher), false) AS fetcher,
            coalesce(json_agg(json_build_array(
                '', pod.uid, pod.namespace, pod.name, pod.service_account, pod.node, pod.host_network
            ) ORDER BY pod.host_network, held.id), '[]') AS pods
        FROM (
            SELECT * FROM leases_podaddress WHERE address = asked.address
                AND coalesce(to_at, 'infinity') >= asked.earliest AND from_at <= asked.late
            OFFSET 0
        ) AS held
        CROSS JOIN LATERAL (
            SELECT *, namespace = asked.namespace AND service_account = asked.service_account AS is_own
            FROM leases_pod WHERE id = held.pod_id OFFSET 0
        ) AS pod
        WHERE pod.cluster_id = asked.cluster_id AND (pod.is_own OR held.from_at <= asked.latest)
    ) AS found
"""


def stray_logins(*, now: datetime) -> Iterator[tuple[StrayLogins, ...]]:
    """Logins of LOGINS_OVER through registered mounts, from addresses that no pod of their service account had then."""
    skew = _skew()
    ((answer,),) = rows_of(
        f"""
        SELECT json_agg(json_build_array(id, vault, vault_id, cluster, cluster_id, namespace, name, address, at) ORDER BY at DESC, id DESC)::text FROM (
            SELECT g.id, v.name AS vault, v.id AS vault_id, c.name AS cluster, c.id AS cluster_id,
                g.service_account_namespace AS namespace, g.service_account AS name, g.address, g.logged_in_at AS at
            FROM leases_login g JOIN leases_authmount m ON m.id = g.auth_mount_id
            JOIN leases_cluster c ON c.id = m.cluster_id AND NOT c.retired
            JOIN leases_vault v ON v.id = g.vault_id AND NOT v.retired
            WHERE g.logged_in_at >= %(since)s AND g.auth_mount_id IS NOT NULL AND g.service_account <> '' AND NOT g.own
            ORDER BY g.logged_in_at DESC, g.id DESC LIMIT {MOST_LOGINS}
        ) AS found
        """,  # noqa: S608
        {"since": now - session_rules.LOGINS_OVER},
    )
    logins = [one for one in _LOGINS.decode(answer or "[]") if canonical(one.address)]
    if not logins:
        return
    clusters = {one.cluster_id for one in logins}
    periods = proven(clusters, since=min(one.logged_in_at for one in logins) - skew)
    had = _had(logins, skew=skew)
    fetchers = fetching_accounts(clusters)
    allowed: dict[int, tuple[str, ...]] = defaultdict(tuple)
    for vault, nat, poolers in Database.objects.order_by("id").values_list("vault_id", "nat", "poolers"):
        allowed[vault] = (*allowed[vault], *nat, *poolers)
    directly = {one.account for one in logins if had[one.id].own}
    users: dict[tuple[int, str], set[Account]] = defaultdict(set)
    strays: dict[tuple[Account, str], list[_Login]] = defaultdict(list)
    for one in logins:
        seen, address = had[one.id], canonical(one.address)
        if seen.own or seen.on_node:
            continue
        users[one.cluster_id, address].add(one.account)
        watch = periods.get(one.cluster_id, NOTHING_PROVEN)
        at = one.logged_in_at
        if (
            watch.gapless(from_at=at - skew, to_at=at + skew)
            and watch.caught_up(at=at, skew=skew + ADDRESS_LAG)
            and not seen.fetcher
            and SeenAccount(one.cluster_id, one.namespace, one.name) not in fetchers
            and not fitting(address, allowed[one.vault_id])
        ):
            strays[one.account, address].append(one)
    read = _reads(one.id for found in strays.values() for one in found[:EXAMPLES])
    told: dict[Account, list[StrayLogins]] = defaultdict(list)
    for (account, address), found in strays.items():
        newest = found[0]
        pods = [pod for pod in had[newest.id].pods if not pod.host_network]
        told[account].append(
            StrayLogins(
                account,
                address,
                str(pods[0]) if pods else "",
                len(found),
                newest.logged_in_at,
                account in directly,
                len(users[newest.cluster_id, address] - {account}),
                tuple(_stray(one, read.get(one.id), pods) for one in found[:EXAMPLES]),
            )
        )
    yield from (tuple(told[account]) for account in sorted(told, key=lambda account: account.key))


def _reads(logins: Iterable[int]) -> dict[int, Lease]:
    """The newest lease that each of these logins read."""
    leases = Lease.objects.filter(login__in=list(logins)).order_by("login", "-accessed_at", "-id").distinct("login")
    return {lease.login_id: lease for lease in leases if lease.login_id}


def _stray(one: _Login, lease: Lease | None, pods: list[Occupant]) -> Item:
    read = f", which read {lease.lease_id}" if lease else ""
    return Item(
        f"login from {one.address}{read}",
        one.logged_in_at,
        lease=lease.pk if lease else None,
        pod=pods[0].name if pods else "",
    )


def _had(logins: list[_Login], *, skew: timedelta) -> dict[int, _Had]:
    asked: list[dict[str, Any]] = [
        {
            "key": one.id,
            "cluster_id": one.cluster_id,
            "namespace": one.namespace,
            "service_account": one.name,
            "address": canonical(one.address),
            "earliest": one.logged_in_at - skew,
            "latest": one.logged_in_at + skew,
            # its address may come to be known a while after it began to use it
            "late": one.logged_in_at + ADDRESS_LAG,
        }
        for one in logins
    ]
    ((told,),) = rows_of(_HAD, {"asked": msgspec.json.encode(asked).decode()})
    return dict(_HADS.decode(told or "[]"))
