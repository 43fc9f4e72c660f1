"""What the ledger tells the rules about leases: set-based reads, each bounded by what is live or by a short time.

Of a log that was only examined nothing is known to be live, so vaults that are retired have no part in this.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from audit.findings import rules
from audit.findings.found import Account, Item, Role, span
from audit.findings.rules import Doubled, Group, Growth, OnePod, Outlived, OverTtl
from leases.models import Lease, Policy

# so many leases stand in a finding; the list of leases has all of them
EXAMPLES = 10

_ACCOUNT = "v.name, l.cluster, l.service_account_namespace, l.service_account"
_NAMED_ACCOUNT = "v.name AS vault, l.cluster, l.service_account_namespace AS namespace, l.service_account AS name"
_ROLE = "v.name, l.mount, l.role, COALESCE(d.name, '')"
_LIVE = """
    FROM leases_lease l JOIN leases_vault v ON v.id = l.vault_id AND NOT v.retired
    LEFT JOIN leases_database d ON d.id = l.database_id
    WHERE l.state <> 'ended'
"""
_SOME = f"(array_agg(l.id ORDER BY l.id))[1:{EXAMPLES}]"


def rows_of(sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def _leases(pks: Iterable[int]) -> dict[int, Lease]:
    return Lease.objects.in_bulk(set(pks))


def _item(lease: Lease, text: str = "", at: datetime | None = None, pod: str = "") -> Item:
    return Item(f"{lease.lease_id}{': ' if text else ''}{text}", at, lease=lease.pk, pod=pod)


def growths(*, now: datetime) -> Iterator[Growth]:
    """Of service accounts with enough live leases to be looked at."""
    since = now - rules.GROWTH_WINDOW
    limit = Policy.current().max_live_leases
    fewest = min(limit + 1, rules.FEWEST_LIVE) if limit else rules.FEWEST_LIVE
    # in two steps: counting what is distinct among all of them would sort them all
    live = rows_of(
        f"""
        WITH held AS (
          SELECT {_NAMED_ACCOUNT}, l.mount, l.role, l.pod_uid, l.pod, count(*) AS leases,
                 count(*) FILTER (WHERE l.last_renewal_at >= %(since)s) AS renewed
          {_LIVE} AND l.service_account <> '' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
        ), roles AS (
          SELECT vault, cluster, namespace, name, mount, role, sum(leases) AS leases, sum(renewed) AS renewed
          FROM held GROUP BY 1, 2, 3, 4, 5, 6
        ), pods AS (
          SELECT vault, cluster, namespace, name, count(*) AS pods
          FROM (SELECT DISTINCT vault, cluster, namespace, name, pod_uid FROM held WHERE pod_uid <> '') p GROUP BY 1, 2, 3, 4
        ), fullest AS (
          SELECT DISTINCT ON (vault, cluster, namespace, name) vault, cluster, namespace, name,
                 json_build_array(pod, sum(leases), count(*)) AS fullest
          FROM held WHERE pod_uid <> '' GROUP BY vault, cluster, namespace, name, pod_uid, pod
          HAVING sum(leases) >= {rules.FEWEST_LIVE}
          ORDER BY vault, cluster, namespace, name, sum(leases) / count(*) DESC, pod_uid
        )
        SELECT vault, cluster, namespace, name, sum(leases)::bigint, sum(renewed)::bigint, count(*), COALESCE(max(pods), 0),
               (array_agg(fullest))[1]
        FROM roles LEFT JOIN pods USING (vault, cluster, namespace, name)
        LEFT JOIN fullest USING (vault, cluster, namespace, name)
        GROUP BY 1, 2, 3, 4 HAVING sum(leases) >= %(fewest)s
        """,  # noqa: S608 (the constants above)
        {"since": since, "fewest": fewest},
    )
    accounts = [Account(*row[:4]) for row in live]
    if not accounts:
        return
    issued = _per_account(accounts, "l.accessed_at >= %(since)s", since)
    ended = _per_account(accounts, "l.state = 'ended' AND l.ended_at >= %(since)s AND l.accessed_at IS NOT NULL", since)
    pods = _live_pods(accounts)
    newest = _newest(accounts, since)
    for account, (*_, count, renewed, roles, holders, fullest) in zip(accounts, live, strict=True):
        known = max(pods.get((account.cluster, account.namespace, account.name), 0), holders)
        yield Growth(
            account,
            live=count,
            issued=issued.get(account, 0),
            ended=ended.get(account, 0),
            renewed=renewed,
            roles=roles,
            pods=known or None,
            limit=limit,
            examples=tuple(newest.get(account, [])),
            fullest=OnePod(*fullest) if fullest else None,
        )


def _named(accounts: Iterable[Account]) -> dict[str, Any]:
    columns = zip(*((a.vault, a.cluster, a.namespace, a.name) for a in accounts), strict=True)
    return dict(zip(("vaults", "clusters", "namespaces", "names"), (list(column) for column in columns), strict=True))


_OF_ACCOUNTS = f"({_ACCOUNT}) IN (SELECT * FROM unnest(%(vaults)s::text[], %(clusters)s::text[], %(namespaces)s::text[], %(names)s::text[]))"  # noqa: S608


def _per_account(accounts: list[Account], condition: str, since: datetime) -> dict[Account, int]:
    rows = rows_of(
        f"""
        SELECT {_ACCOUNT}, count(*) FROM leases_lease l JOIN leases_vault v ON v.id = l.vault_id
        WHERE {condition} AND {_OF_ACCOUNTS} GROUP BY {_ACCOUNT}
        """,  # noqa: S608
        {"since": since, **_named(accounts)},
    )
    return {Account(*row[:4]): row[4] for row in rows}


def _live_pods(accounts: list[Account]) -> dict[tuple[str, str, str], int]:
    rows = rows_of(
        """
        SELECT c.name, p.namespace, p.service_account, count(*)
        FROM leases_pod p JOIN leases_cluster c ON c.id = p.cluster_id
        WHERE p.ended_at IS NULL AND (c.name, p.namespace, p.service_account) IN (
          SELECT * FROM unnest(%(clusters)s::text[], %(namespaces)s::text[], %(names)s::text[]))
        GROUP BY 1, 2, 3
        """,
        _named(accounts),
    )
    return {(cluster, namespace, name): count for cluster, namespace, name, count in rows}


def _newest(accounts: list[Account], since: datetime) -> dict[Account, list[Item]]:
    rows = rows_of(
        f"""
        SELECT {_ACCOUNT}, (array_agg(l.id ORDER BY l.accessed_at DESC, l.id DESC))[1:{EXAMPLES}]
        FROM leases_lease l JOIN leases_vault v ON v.id = l.vault_id
        WHERE l.accessed_at >= %(since)s AND l.state <> 'ended' AND {_OF_ACCOUNTS} GROUP BY {_ACCOUNT}
        """,  # noqa: S608
        {"since": since, **_named(accounts)},
    )
    leases = _leases(pk for row in rows for pk in row[4])
    return {Account(*row[:4]): [_item(leases[pk], "issued", leases[pk].accessed_at) for pk in row[4]] for row in rows}


def outlived(*, now: datetime) -> Iterator[Outlived]:
    rows = rows_of(
        f"""
        SELECT {_ACCOUNT}, count(*), count(DISTINCT l.pod_uid), max(l.expires_at), bool_or(l.expires_at IS NULL), {_SOME},
               (array_agg(p.ended_at ORDER BY l.id))[1:{EXAMPLES}], max(greatest(p.ended_at + %(outlives)s, l.first_seen_at))
        FROM leases_pod p
        JOIN leases_cluster c ON c.id = p.cluster_id
        JOIN leases_lease l ON l.pod_uid = p.uid AND l.cluster = c.name AND l.state <> 'ended' AND l.pod_uid <> ''
        JOIN leases_vault v ON v.id = l.vault_id AND NOT v.retired
        WHERE p.ended_at < %(before)s AND (l.expires_at IS NULL OR l.expires_at > %(now)s OR l.state <> 'live')
        GROUP BY {_ACCOUNT} ORDER BY {_ACCOUNT}
        """,  # noqa: S608
        {"before": now - rules.OUTLIVES, "now": now, "outlives": rules.OUTLIVES},
    )
    leases = _leases(pk for row in rows for pk in row[8])
    for *account, count, pods, longest, endless, pks, ends, newest_at in rows:
        yield Outlived(
            Account(*account),
            count,
            pods,
            None if endless else max(longest - now, timedelta(0)),
            tuple(
                _item(lease, f"held by pod {lease.holder}, which ended", at, pod=lease.pod)
                for lease, at in zip((leases[pk] for pk in pks), ends, strict=True)
            ),
            newest_at,
        )


def unknown(*, now: datetime) -> Iterator[Group]:
    rows = rows_of(
        f"""
        SELECT {_ROLE}, count(*), {_SOME}, max(l.first_seen_at) + %(after)s {_LIVE} AND l.certainty = 'unknown' AND l.first_seen_at < %(before)s
          AND (l.expires_at IS NULL OR l.expires_at > %(now)s)
        GROUP BY {_ROLE} ORDER BY {_ROLE}
        """,
        {"before": now - rules.ATTRIBUTION_TIME, "now": now, "after": rules.ATTRIBUTION_TIME},
    )
    yield from _groups(rows, lambda lease: lease.certainty_reason)


def irrevocable() -> Iterator[Group]:
    """Nothing is written to one any more, so that its last change is when it was given up."""
    rows = rows_of(
        f"""
        SELECT {_ROLE}, count(*), {_SOME}, max(l.updated_at) {_LIVE} AND l.state = 'irrevocable' GROUP BY {_ROLE} ORDER BY {_ROLE}
        """,
        {},
    )
    yield from _groups(rows, lambda lease: lease.revoke_error)


def _groups(rows: list[tuple[Any, ...]], say: Any) -> Iterator[Group]:
    leases = _leases(pk for row in rows for pk in row[5])
    for *role, count, pks, newest_at in rows:
        yield Group(Role(*role), count, tuple(_item(leases[pk], say(leases[pk])) for pk in pks), newest_at)


def over_ttl() -> Iterator[OverTtl]:
    """Against the policy's limit, or the database's own."""
    rows = rows_of(
        f"""
        WITH limits AS (
          SELECT COALESCE((SELECT max_lease_ttl_seconds FROM leases_policy WHERE id = 1), 0) AS policy
        )
        SELECT {_ROLE}, COALESCE(d.max_lease_ttl_seconds, policy), count(*), count(*) FILTER (WHERE l.renewals > 0),
               max(l.expires_at - l.issued_at), {_SOME}
        {_LIVE.replace("WHERE", "CROSS JOIN limits WHERE")} AND COALESCE(d.max_lease_ttl_seconds, policy) > 0
          AND l.expires_at - l.issued_at > make_interval(secs => COALESCE(d.max_lease_ttl_seconds, policy)) + %(slack)s
        GROUP BY {_ROLE}, 5 ORDER BY {_ROLE}
        """,  # noqa: S608
        {"slack": rules.TTL_SLACK},
    )
    leases = _leases(pk for row in rows for pk in row[8])
    for *role, limit, count, renewed, longest, pks in rows:
        yield OverTtl(
            Role(*role), timedelta(seconds=limit), count, renewed, longest, tuple(_lives(leases[pk]) for pk in pks)
        )


def _lives(lease: Lease) -> Item:
    whole = (lease.expires_at - lease.issued_at).total_seconds() if lease.expires_at and lease.issued_at else 0
    return _item(lease, f"lives {span(whole)}, ends", lease.expires_at)


def doubled(*, now: datetime) -> Iterator[Doubled]:
    rows = rows_of(
        f"""
        WITH reads AS (
          SELECT l.*, greatest(
            lag(l.accessed_at) OVER (PARTITION BY l.vault_id, l.login_id, l.mount, l.role ORDER BY l.accessed_at, l.id),
            -- an injector's init container and its sidecar log in each for itself
            CASE WHEN l.pod_uid <> '' THEN lag(l.accessed_at) OVER (
              PARTITION BY l.vault_id, l.cluster, l.pod_uid, l.mount, l.role ORDER BY l.accessed_at, l.id) END
          ) AS before_at
          FROM leases_lease l WHERE l.accessed_at >= %(since)s AND l.request_id <> '' AND l.login_id IS NOT NULL
        )
        SELECT {_ACCOUNT}, l.mount, l.role, COALESCE(d.name, ''), count(*),
               (array_agg(l.id ORDER BY l.accessed_at DESC, l.id DESC))[1:{EXAMPLES}]
        FROM reads l JOIN leases_vault v ON v.id = l.vault_id AND NOT v.retired
        LEFT JOIN leases_database d ON d.id = l.database_id
        WHERE l.accessed_at - l.before_at <= %(within)s
        GROUP BY {_ACCOUNT}, l.mount, l.role, d.name ORDER BY {_ACCOUNT}, l.mount, l.role
        """,  # noqa: S608
        {"since": now - rules.DOUBLES_OVER, "within": rules.DOUBLE_WITHIN},
    )
    leases = _leases(pk for row in rows for pk in row[8])
    for vault, cluster, namespace, name, mount, role, database, times, pks in rows:
        yield Doubled(
            Account(vault, cluster, namespace, name),
            Role(vault, mount, role, database),
            times,
            tuple(_item(leases[pk], "the second one, issued", leases[pk].accessed_at) for pk in pks),
        )
