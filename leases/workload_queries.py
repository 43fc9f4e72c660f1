"""Reads of workloads: which service accounts and pods hold or held leases, and everything of one account. Nothing here writes."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models.functions import Coalesce

from leases.models import Database, Lease, Login, Pod, ServiceAccount, Session
from leases.queries import EPOCH, MICROSECOND, PAGE, Cursor, in_order

# an account with each of its databases counts: past that the list says that it is cut off
MOST_PAIRS = 10_000
# leases that a list of pods looks through for one page
MOST_LOOKED_THROUGH = 5_000
# of one account or pod: so many of the newest leases are looked through for what hangs on them
MOST_LEASES = 200
MOST_LOGINS = 500
# rows of what is shown beside its leases
FEW = 20
# counting goes no further
MOST_COUNTED = 10_000
MOST_PODS = 100

BEGAN = "COALESCE(accessed_at, first_seen_at)"
NAMES = "cluster, service_account_namespace, service_account"
WATCHED = "vault_id IN (SELECT id FROM leases_vault WHERE NOT retired)"


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """A service account of a cluster."""

    cluster: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.cluster}/{self.namespace}/{self.name}"


# --- service accounts --------------------------------------------------------------------------------------------

LAST, LIVE, NAME = "last", "live", "name"
SORTS = (LAST, LIVE, NAME)


@dataclass(frozen=True, slots=True)
class WorkloadFilter:
    """Empty means everything. `since`: what read credentials after that, or holds some now; `holding`: only what holds some now."""

    since: datetime
    cluster: str = ""
    namespace: str = ""
    text: str = ""
    holding: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next page goes on: after this account, which has this value of what the list is sorted by."""

    value: int
    account: Account

    def __str__(self) -> str:
        return f"{self.value}/{self.account}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """None if the text is none."""
        value, _, rest = text.partition("/")
        # names of namespaces and accounts have no slash
        parts = rest.rsplit("/", 2)
        if not (value.isascii() and value.isdigit() and len(value) < 18 and len(parts) == 3 and parts[2]):
            return None
        return cls(int(value), Account(*parts))


@dataclass(frozen=True, slots=True)
class Workload:
    """A service account: leases that it holds, what it opens with them or opened since then, how surely its pods are known."""

    account: Account
    last_at: datetime
    live: int
    databases: Sequence[Database | None]
    certainties: list[str]
    # that run now; MOST_PODS stands for that many or more
    pods: int


@dataclass(frozen=True, slots=True)
class WorkloadPage:
    rows: list[Workload]
    next: Place | None
    # more accounts and databases than are looked at: the list may lack some
    cut_off: bool = False


# Each account with each database that it ever read credentials for, and the newest such lease: one step of the index lease_of_workload for each.
_PAIRS = f"""
    WITH RECURSIVE pair AS (
      (SELECT {NAMES}, COALESCE(database_id, 0) AS database, certainty, {BEGAN} AS began FROM leases_lease
       WHERE service_account <> '' {{of}}
       ORDER BY {NAMES}, COALESCE(database_id, 0), {BEGAN} DESC, id DESC LIMIT 1)
      UNION ALL
      SELECT n.* FROM pair p, LATERAL (
        SELECT {NAMES}, COALESCE(database_id, 0) AS database, certainty, {BEGAN} AS began FROM leases_lease l
        WHERE l.service_account <> '' {{of}} AND (l.cluster, l.service_account_namespace, l.service_account, COALESCE(l.database_id, 0))
          > (p.cluster, p.service_account_namespace, p.service_account, p.database)
        ORDER BY {NAMES}, COALESCE(database_id, 0), {BEGAN} DESC, id DESC LIMIT 1) n
    ), pairs AS MATERIALIZED (SELECT * FROM pair LIMIT {MOST_PAIRS})
"""  # noqa: S608
# what each account holds now, from the index lease_open_of_workload alone
_HELD = f"""
    SELECT {NAMES}, sum(n)::bigint AS live, array_agg(database) AS databases, array_agg(DISTINCT certainty) AS certainties FROM (
      SELECT {NAMES}, COALESCE(database_id, 0) AS database, certainty, count(*) AS n FROM leases_lease
      WHERE state <> 'ended' AND service_account <> '' AND {WATCHED} GROUP BY {NAMES}, database_id, certainty) l
    GROUP BY {NAMES}
"""  # noqa: S608
# where the names alone decide, all have one value
_VALUES = {LAST: "last_at", LIVE: "COALESCE(live, 0)", NAME: "0"}


def accounts_page(
    where: WorkloadFilter, *, sort: str = LAST, after: Place | None = None, size: int = PAGE
) -> WorkloadPage:
    """One page of service accounts that read credentials since then or hold some now."""
    values: dict[str, Any] = {"since": where.since, "size": size + 1}
    tests = ["TRUE" if not where.holding else "live > 0"]
    for name, column in (("cluster", "cluster"), ("namespace", "service_account_namespace")):
        if value := getattr(where, name):
            values[name] = value
            tests.append(f"{column} = %({name})s")
    if where.text:
        values["text"] = where.text.upper()
        tests.append("strpos(upper(service_account), %(text)s) > 0")
    if after:
        values["value"] = EPOCH + after.value * MICROSECOND if sort == LAST else after.value
        values |= {"c": after.account.cluster, "ns": after.account.namespace, "sa": after.account.name}
        beyond_names = f"({NAMES}) > (%(c)s, %(ns)s, %(sa)s)"
        tests.append(f"(value < %(value)s OR value = %(value)s AND {beyond_names})")
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            {_PAIRS.format(of="")}, account AS (
              SELECT {NAMES}, max(began) AS last_at, array_agg(database) FILTER (WHERE began >= %(since)s) AS databases,
                array_agg(DISTINCT certainty) FILTER (WHERE began >= %(since)s) AS certainties
              FROM pairs GROUP BY {NAMES}
            ), held AS ({_HELD}), workload AS (
              SELECT {NAMES}, last_at, COALESCE(live, 0) AS live, {_VALUES[sort]} AS value,
                a.databases || h.databases AS databases, a.certainties || h.certainties AS certainties
              FROM account a LEFT JOIN held h USING ({NAMES}) WHERE last_at >= %(since)s OR live > 0
            )
            SELECT {NAMES}, last_at, live, databases, certainties, (SELECT count(*) FROM pairs)
            FROM workload WHERE {" AND ".join(tests)} ORDER BY value DESC, {NAMES} LIMIT %(size)s
            """,  # noqa: S608
            values,
        )
        found = cursor.fetchall()
    rows = [(Account(*row[:3]), *row[3:]) for row in found[:size]]
    pods = running_pods([account for account, *_ in rows])
    known = Database.objects.in_bulk({key for _, _, _, databases, *_ in rows for key in databases})
    shown = [
        Workload(account, last_at, live, named(set(databases), known), in_order(set(certainties)), pods.get(account, 0))
        for account, last_at, live, databases, certainties, _ in rows
    ]
    more = shown[-1] if len(found) > size else None
    cut_off = bool(found) and found[0][7] == MOST_PAIRS
    return WorkloadPage(shown, Place(_value(more, sort), more.account) if more else None, cut_off)


def _value(row: Workload, sort: str) -> int:
    return {LAST: (row.last_at - EPOCH) // MICROSECOND, LIVE: row.live, NAME: 0}[sort]


def named(keys: Collection[int], databases: dict[int, Database]) -> list[Database | None]:
    """By name; None, for a database that is not known, comes last."""
    known = sorted((databases[key] for key in keys if key in databases), key=lambda row: (row.name, row.pk))
    return [*known, *([None] if 0 in keys else [])]


def running_pods(accounts: Collection[Account]) -> dict[Account, int]:
    """Pods that run as these accounts now, where there are any; MOST_PODS stands for that many or more."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT a.cluster, a.namespace, a.name, n.pods
            FROM unnest(%s::text[], %s::text[], %s::text[]) AS a (cluster, namespace, name) JOIN leases_cluster c ON c.name = a.cluster,
            LATERAL (SELECT count(*) AS pods FROM (
              SELECT 1 FROM leases_pod p WHERE p.cluster_id = c.id AND p.namespace = a.namespace AND p.service_account = a.name
                AND COALESCE(p.ended_at, 'infinity'::timestamptz) = 'infinity' LIMIT {MOST_PODS}) p) n
            WHERE n.pods > 0
            """,  # noqa: S608
            _columns(accounts),
        )
        return {Account(*names): pods for *names, pods in cursor.fetchall()}


def _columns(accounts: Collection[Account]) -> list[list[str]]:
    return [[a.cluster for a in accounts], [a.namespace for a in accounts], [a.name for a in accounts]]


# --- pods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodRow:
    """A pod by its newest lease; `pod` is None where its cluster has not told of it."""

    newest: Lease
    pod: Pod | None
    live: int
    # by its newest leases
    databases: Sequence[Database | None]
    read_at: datetime


@dataclass(frozen=True, slots=True)
class PodPage:
    """`looked_until`: where the looking through stopped before the page was full; the next page goes on from there."""

    rows: list[PodRow]
    older: Cursor | None
    looked_until: datetime | None = None


def pods_page(where: WorkloadFilter, *, before: Cursor | None = None, size: int = PAGE) -> PodPage:
    """One page of pods that are named with certainty and read credentials since then or hold some now; the last read first."""
    keys: list[tuple[int, datetime]] = []
    stopped: Cursor | None = None
    # what was read since then, and after that what is live from before: one order
    for early in (False, True):
        if early and (stopped or len(keys) > size):
            break
        found, stopped = _newest_of_pods(where, early=early, before=before, size=size + 1 - len(keys))
        keys += found
    rows = pods_by_lease([pk for pk, _ in keys[:size]])
    if len(keys) > size:
        pk, at = keys[size - 1]
        return PodPage(rows, Cursor(at, str(pk)))
    return PodPage(rows, stopped, stopped.at if stopped else None)


def _newest_of_pods(
    where: WorkloadFilter, *, early: bool, before: Cursor | None, size: int
) -> tuple[list[tuple[int, datetime]], Cursor | None]:
    """(leases that are the newest of their pod that counts, where the looking through stopped)."""
    values: dict[str, Any] = {"since": where.since}
    counts = "state <> 'ended'" if where.holding else f"({BEGAN} >= %(since)s OR state <> 'ended')"
    narrow = [f"{BEGAN} < %(since)s", "state <> 'ended'"] if early else [f"{BEGAN} >= %(since)s"]
    if where.holding and not early:
        narrow.append("state <> 'ended'")
    if before:
        values |= {"at": before.at, "pk": int(before.pk)}
        narrow.append(f"({BEGAN}, id) < (%(at)s, %(pk)s)")
    rest = ["pod_uid <> ''"]
    for name, column in (("cluster", "cluster"), ("namespace", "pod_namespace")):
        if value := getattr(where, name):
            values[name] = value
            rest.append(f"{column} = %({name})s")
    if where.text:
        values["text"] = where.text.upper()
        rest.append("strpos(upper(pod), %(text)s) > 0")
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH candidate AS MATERIALIZED (
              SELECT id, {BEGAN} AS began, cluster, pod_uid, pod_namespace, pod, row_number() OVER (ORDER BY {BEGAN} DESC, id DESC) AS place
              FROM leases_lease WHERE {" AND ".join(narrow)} ORDER BY {BEGAN} DESC, id DESC LIMIT {MOST_LOOKED_THROUGH}
            ), found AS (
              SELECT id, began FROM candidate c WHERE {" AND ".join(rest)} AND NOT EXISTS (
                SELECT FROM leases_lease n WHERE n.pod_uid = c.pod_uid AND n.pod_uid <> '' AND n.cluster = c.cluster AND {counts}
                  AND (COALESCE(n.accessed_at, n.first_seen_at), n.id) > (c.began, c.id))
              ORDER BY began DESC, id DESC LIMIT %(size)s
            )
            SELECT false, id, began FROM found UNION ALL SELECT true, id, began FROM candidate WHERE place = {MOST_LOOKED_THROUGH}
            ORDER BY 3 DESC, 2 DESC
            """,  # noqa: S608
            {**values, "size": size},
        )
        told = cursor.fetchall()
    found = [(pk, at) for is_last, pk, at in told if not is_last]
    last = next((Cursor(at, str(pk)) for is_last, pk, at in told if is_last), None)
    return found, last if len(found) < size else None


def pods_by_lease(keys: list[int]) -> list[PodRow]:
    """The pods of these leases, in the leases' order of time, the newest first."""
    began = Coalesce("accessed_at", "first_seen_at")
    leases = list(
        Lease.objects.filter(pk__in=keys)
        .select_related("vault", "database")
        .annotate(began_at=began)
        .order_by("-began_at", "-id")
    )
    uids = {lease.pod_uid for lease in leases}
    pods = {
        (pod.cluster.name, pod.uid): pod
        for pod in Pod.objects.filter(uid__in=uids, cluster__name__in={row.cluster for row in leases}).select_related(
            "cluster"
        )
    }
    holding = _held_by_pods([(lease.cluster, lease.pod_uid) for lease in leases])
    databases = Database.objects.in_bulk({key for _, of, _ in holding.values() for key in of})
    return [
        PodRow(lease, pods.get(key), live, named(of, databases), at)
        for lease in leases
        for key in [(lease.cluster, lease.pod_uid)]
        for live, of, at in [holding[key]]
    ]


def _held_by_pods(pods: Collection[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, list[int], datetime]]:
    """(cluster, uid) -> live leases, databases and the last read, by the newest MOST_LEASES leases of each."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT a.cluster, a.uid, count(*) FILTER (WHERE l.state <> 'ended'), array_agg(DISTINCT COALESCE(l.database_id, 0)), max(l.began)
            FROM unnest(%s::text[], %s::text[]) AS a (cluster, uid), LATERAL (
              SELECT state, database_id, {BEGAN} AS began FROM leases_lease
              WHERE pod_uid = a.uid AND pod_uid <> '' AND cluster = a.cluster ORDER BY {BEGAN} DESC, id DESC LIMIT {MOST_LEASES}) l
            GROUP BY 1, 2
            """,  # noqa: S608
            [[cluster for cluster, _ in pods], [uid for _, uid in pods]],
        )
        return {(cluster, uid): (live, of, at) for cluster, uid, live, of, at in cursor.fetchall()}


# --- one service account -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """One database that an account ever read credentials for: live leases, and the newest."""

    database: Database | None
    live: int
    certainty: str
    last_at: datetime


def opened(account: Account) -> list[Opened]:
    """Every database that it read credentials for, the last read first; that of no known database among them."""
    with connection.cursor() as cursor:
        of = "AND cluster = %(c)s AND service_account_namespace = %(ns)s AND service_account = %(sa)s"
        cursor.execute(f"{_PAIRS.format(of=of)} SELECT database, certainty, began FROM pairs", _names(account))  # noqa: S608
        rows = cursor.fetchall()
        cursor.execute(
            f"SELECT COALESCE(database_id, 0), count(*) FROM leases_lease WHERE state <> 'ended' AND service_account <> '' {of}"  # noqa: S608
            f" AND {WATCHED} GROUP BY database_id",
            _names(account),
        )
        live = dict(cursor.fetchall())
    known = Database.objects.select_related("vault").in_bulk([key for key, _, _ in rows])
    found = [Opened(known.get(key), live.get(key, 0), certainty, began) for key, certainty, began in rows]
    return sorted(found, key=lambda row: row.last_at, reverse=True)


@dataclass(frozen=True, slots=True)
class LeasePage:
    rows: Sequence[Lease]
    older: Cursor | None


def leases_of(
    account: Account,
    *,
    databases: Collection[int],
    holding: bool = False,
    before: Cursor | None = None,
    size: int = PAGE,
) -> LeasePage:
    """One page of its leases for these databases (0: not known), or of those that it holds now, the newest first."""
    if holding:
        query, values = _open(account, databases=databases, before=before, size=size + 1)
    else:
        query, values = _newest(account, databases=databases, before=before, size=size + 1)
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        keys = [pk for (pk,) in cursor.fetchall()]
    rows = Lease.objects.filter(pk__in=keys[:size]).select_related("vault", "database")
    page = list(rows.annotate(began_at=Coalesce("accessed_at", "first_seen_at")).order_by("-began_at", "-id"))
    return LeasePage(page, Cursor(page[-1].began_at, str(page[-1].pk)) if len(keys) > size else None)


_MINE = "service_account <> '' AND cluster = %(c)s AND service_account_namespace = %(ns)s AND service_account = %(sa)s"
_OLDER = f"AND ({BEGAN}, id) < (%(at)s, %(pk)s)"
_NEWEST_FIRST = f"ORDER BY {BEGAN} DESC, id DESC LIMIT %(size)s"


def _newest(
    account: Account, *, databases: Collection[int], size: int, before: Cursor | None = None
) -> tuple[str, dict[str, Any]]:
    """Keys of its newest leases: of each database the newest, by the index lease_of_workload; of these the newest."""
    query = f"""
        SELECT l.id FROM unnest(%(databases)s::bigint[]) AS d, LATERAL (
          SELECT id, accessed_at, first_seen_at FROM leases_lease
          WHERE {_MINE} AND COALESCE(database_id, 0) = d {_OLDER if before else ""} {_NEWEST_FIRST}) l
        {_NEWEST_FIRST}
    """  # noqa: S608
    return query, _values(account, databases=databases, size=size, before=before)


def _open(
    account: Account, *, databases: Collection[int], size: int, before: Cursor | None = None
) -> tuple[str, dict[str, Any]]:
    """Keys of its newest leases that have not ended, of all these, by the index lease_open_of_workload."""
    query = f"""
        SELECT id FROM leases_lease WHERE {_MINE} AND state <> 'ended' AND COALESCE(database_id, 0) = ANY(%(databases)s)
          {_OLDER if before else ""} {_NEWEST_FIRST}
    """  # noqa: S608
    return query, _values(account, databases=databases, size=size, before=before)


def _values(account: Account, *, databases: Collection[int], size: int, before: Cursor | None) -> dict[str, Any]:
    place = {"at": before.at, "pk": int(before.pk)} if before else {}
    return {**_names(account), "databases": list(databases), "size": size, **place}


def _names(account: Account) -> dict[str, str]:
    return {"c": account.cluster, "ns": account.namespace, "sa": account.name}


@dataclass(frozen=True, slots=True)
class Newest:
    """A lease of an account, as far as what hangs on it is looked for."""

    pk: int
    pod_uid: str
    pod_namespace: str
    pod: str


def newest_leases(account: Account, *, databases: Collection[int]) -> list[Newest]:
    """Its newest MOST_LEASES leases."""
    query, values = _newest(account, databases=databases, size=MOST_LEASES)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT l.id, l.pod_uid, l.pod_namespace, l.pod FROM ({query}) n JOIN leases_lease l USING (id)"  # noqa: S608
            " ORDER BY COALESCE(l.accessed_at, l.first_seen_at) DESC, l.id DESC",
            values,
        )
        return [Newest(*row) for row in cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class AccountPod:
    """A pod of an account and what it holds; `pod` is None where its cluster has not told of it, `name` is then its claims'."""

    uid: str
    namespace: str
    name: str
    pod: Pod | None
    live: int
    databases: Sequence[Database | None]
    read_at: datetime | None


def pods_of(account: Account, newest: Sequence[Newest], *, limit: int = FEW) -> list[AccountPod]:
    """Its pods: those that run, then those that ended, the last first; and those that only its newest leases name."""
    endless = "COALESCE(p.ended_at, 'infinity'::timestamptz)"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT p.id FROM leases_pod p
            WHERE p.cluster_id = (SELECT id FROM leases_cluster WHERE name = %(c)s) AND p.namespace = %(ns)s AND p.service_account = %(sa)s
            ORDER BY {endless} DESC, p.started_at DESC, p.id DESC LIMIT {limit:d}
            """,  # noqa: S608
            _names(account),
        )
        order = [pk for (pk,) in cursor.fetchall()]
    claimed = {lease.pod_uid: (lease.pod_namespace, lease.pod) for lease in newest if lease.pod_uid}
    found = {pod.uid: pod for pod in Pod.objects.filter(pk__in=order)}
    # by themselves: in one condition with the others they would be looked for among all pods
    if rest := claimed.keys() - found.keys():
        found |= {pod.uid: pod for pod in Pod.objects.filter(cluster__name=account.cluster, uid__in=list(rest))}
    place = {pk: number for number, pk in enumerate(order)}
    told = sorted(found.values(), key=lambda pod: (place.get(pod.pk, len(order)), -pod.pk))
    names = {pod.uid: (pod.namespace, pod.name) for pod in told} | {
        uid: name for uid, name in claimed.items() if uid not in found
    }
    holding = _held_by_pods([(account.cluster, uid) for uid in names])
    databases = Database.objects.in_bulk({key for _, of, _ in holding.values() for key in of})
    rows = []
    for uid, (namespace, name) in names.items():
        live, of, read_at = holding.get((account.cluster, uid), (0, [], None))
        rows.append(AccountPod(uid, namespace, name, found.get(uid), live, named(of, databases), read_at))
    return rows


def logins_of(account: Account, *, limit: int = FEW) -> list[Login]:
    """Its logins through mounts of its cluster, the newest first."""
    rows = Login.objects.filter(
        service_account_namespace=account.namespace,
        service_account=account.name,
        auth_mount__cluster__name=account.cluster,
    ).exclude(auth_mount=None)
    return list(rows.exclude(service_account="").select_related("vault").order_by("-logged_in_at", "-id")[:limit])


@dataclass(frozen=True, slots=True)
class Entity:
    """An identity in a vault that an account's logins had, by what the audit log tells of them; policies: of the newest."""

    vault: str
    entity_id: str
    mounts: list[str]
    logins: int
    last_at: datetime
    policies: list[str]


def entities_of(account: Account) -> list[Entity]:
    """By its newest MOST_LOGINS logins, the last used first."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT v.name, n.entity_id, array_agg(DISTINCT n.mount_path), count(*), max(n.logged_in_at),
              (array_agg(n.policies ORDER BY n.logged_in_at DESC, n.id DESC))[1]::text
            FROM (
              SELECT l.* FROM leases_login l
              WHERE l.service_account_namespace = %(ns)s AND l.service_account = %(sa)s AND l.service_account <> '' AND l.auth_mount_id IN (
                SELECT m.id FROM leases_authmount m JOIN leases_cluster c ON c.id = m.cluster_id WHERE c.name = %(c)s)
              ORDER BY l.logged_in_at DESC, l.id DESC LIMIT {MOST_LOGINS}) n JOIN leases_vault v ON v.id = n.vault_id
            WHERE n.entity_id <> '' GROUP BY 1, 2 ORDER BY 5 DESC, 2
            """,  # noqa: S608
            _names(account),
        )
        return [
            Entity(vault, entity_id, mounts, logins, last_at, json.loads(policies))
            for vault, entity_id, mounts, logins, last_at, policies in cursor.fetchall()
        ]


def sessions_of(newest: Sequence[Newest], *, limit: int = FEW) -> list[Session]:
    """Sessions under these leases, the newest first."""
    rows = Session.objects.filter(lease__in=[lease.pk for lease in newest]).select_related(
        "server", "lease", "database"
    )
    return list(rows.order_by("-started_at", "-id")[:limit])


def kubernetes_accounts(account: Account) -> list[ServiceAccount]:
    """The service accounts that had this name in the cluster, as it told of them, the last made first."""
    rows = ServiceAccount.objects.filter(cluster__name=account.cluster, namespace=account.namespace, name=account.name)
    return list(rows.order_by("-created_at", "-id")[:PAGE])
