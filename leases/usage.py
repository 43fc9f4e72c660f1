"""Which pod, or which service account, used which database over a period: what was read, and what is live. Nothing here writes.

Of service accounts every read of the period counts, by an index that has all that is asked for. Of pods, which are many more,
the newest reads count, and the answer says how far back they reach.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count

from leases.models import Lease, LeaseState, Vault
from leases.queries import databases

# reads of a period that are counted for service accounts: the newest
MOST_READS = 250_000
# reads of a period that are counted for pods, and live leases from before it: the newest
MOST_READS_OF_PODS = 1000
MOST_OLDER_OF_PODS = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """From one moment (included) to another. Without `to_at` up to now: then what is live belongs to it, however old."""

    from_at: datetime
    to_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A database that credentials open; without key and name one that is not known, in its vault."""

    key: int | None
    vault: str
    mount: str
    name: str

    @property
    def path(self) -> str:
        """As queries.database_key(); `unknown` where it is not known."""
        return f"{self.vault}/{self.mount}/{self.name}" if self.name else "unknown"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who read: a service account, or one pod's name (`pods` uids behind it); empty names where nobody is known."""

    cluster: str
    account_namespace: str
    service_account: str
    namespace: str = ""
    pod: str = ""

    @property
    def name(self) -> str:
        """Namespace and name of the pod, else of the service account; empty where neither is known."""
        if self.pod:
            return f"{self.namespace}/{self.pod}"
        return f"{self.account_namespace}/{self.service_account}" if self.service_account else ""


@dataclass(frozen=True, slots=True)
class Use:
    """What one holder read for one database, as surely as `certainty` says, and what of it is live."""

    place: Place
    holder: Holder
    certainty: str
    reads: int
    live: int
    first_at: datetime | None = None
    last_at: datetime | None = None
    pods: int = 0


@dataclass(frozen=True, slots=True)
class Uses:
    """`counted_from`: where the reads were more than are counted, the oldest that was. `older_left`: so were older live leases."""

    rows: list[Use]
    counted_from: datetime | None = None
    older_left: bool = False


@dataclass(frozen=True, slots=True)
class UseFilter:
    """What uses are narrowed to; empty means everything. `database` is a key, `unknown`, or None for all."""

    database: int | str | None = None
    namespace: str = ""
    service_account: str = ""

    @property
    def looked_through(self) -> "UseFilter":
        """What by_pod() finds by an index; the rest of the filter is tried on that."""
        return UseFilter(None if self.service_account else self.database, "", self.service_account)

    def fits(self, use: Use) -> bool:
        holder = use.holder
        return (
            (self.database is None or (use.place.key or "unknown") == self.database)
            and (not self.namespace or self.namespace in (holder.namespace, holder.account_namespace))
            and (not self.service_account or holder.service_account == self.service_account)
        )


def places() -> dict[int, Place]:
    """Every database that was ever configured, by its key."""
    return {row.pk: Place(row.pk, row.vault.name, row.mount, row.name) for row in databases(retired=True)}


_WHO = "vault_id, database_id, cluster, service_account_namespace, service_account, certainty"


def by_account(span: Span) -> Uses:
    """By service account, database and certainty: every read of the period, up to MOST_READS, and with an open end what is live."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT {_WHO}, count(*), date_part('epoch', max(accessed_at)) FROM (
              SELECT {_WHO}, accessed_at FROM leases_lease
              WHERE accessed_at >= %(from)s AND accessed_at < COALESCE(%(to)s::timestamptz, 'infinity')
              ORDER BY accessed_at DESC LIMIT {MOST_READS}
            ) l GROUP BY {_WHO}
            """,  # noqa: S608
            {"from": span.from_at, "to": span.to_at},
        )
        reads = cursor.fetchall()
        live: list[tuple[Any, ...]] = []
        if span.to_at is None:
            cursor.execute(f"SELECT {_WHO}, count(*) FROM leases_lease WHERE state <> 'ended' GROUP BY {_WHO}")  # noqa: S608
            live = cursor.fetchall()
    known, vaults = places(), dict(Vault.objects.values_list("pk", "name"))
    watched = set(Vault.objects.filter(retired=False).values_list("pk", flat=True))
    # of a vault that nobody asks nothing is known to be live
    held = {tuple(row[:6]): row[6] for row in live if row[0] in watched}
    read = {tuple(row[:6]): (row[6], _at(row[7])) for row in reads}
    rows = []
    for key in read.keys() | held.keys():
        vault, database, cluster, namespace, account, certainty = key
        times, last_at = read.get(key, (0, None))
        place = known.get(database) or Place(None, vaults[vault], "", "")
        holder = Holder(cluster, namespace, account)
        rows.append(Use(place, holder, certainty, times, held.get(key, 0), None, last_at))
    cut = sum(row[6] for row in reads) == MOST_READS
    return Uses(in_order(rows), _counted_from(span) if cut else None)


def _at(seconds: float | None) -> datetime | None:
    """Of thousands of rows, read as numbers: as times they would take longer to be parsed than all else."""
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None


def _counted_from(span: Span) -> datetime | None:
    reads = Lease.objects.filter(accessed_at__gte=span.from_at)
    if span.to_at:
        reads = reads.filter(accessed_at__lt=span.to_at)
    return reads.order_by("-accessed_at").values_list("accessed_at", flat=True)[MOST_READS - 1 : MOST_READS].first()


_BEGAN = "COALESCE(l.accessed_at, l.first_seen_at)"
_COLUMNS = f"""l.vault_id, l.database_id, l.cluster, l.service_account_namespace, l.service_account, l.pod_namespace, l.pod, l.pod_uid,
  l.certainty, l.state, l.accessed_at, {_BEGAN} AS began_at"""


def by_pod(span: Span, where: UseFilter) -> Uses:
    """By pod, database and certainty: of what the filter's narrowest index has, the newest reads of the period, and with an open end
    the newest live leases from before it."""
    narrow, rest = _conditions(where)
    older = f"""
        UNION ALL
        (SELECT {_COLUMNS}, true AS older FROM leases_lease l
         WHERE {narrow} AND l.state <> 'ended' AND {_BEGAN} < %(from)s
         ORDER BY {_BEGAN} DESC, l.id DESC LIMIT {MOST_OLDER_OF_PODS})
    """  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH l AS MATERIALIZED (
              (SELECT {_COLUMNS}, false AS older FROM leases_lease l
               WHERE {narrow} AND {_BEGAN} >= %(from)s AND {_BEGAN} < COALESCE(%(to)s::timestamptz, 'infinity')
               ORDER BY {_BEGAN} DESC, l.id DESC LIMIT {MOST_READS_OF_PODS})
              {older if span.to_at is None else ""}
            ), looked AS (
              SELECT count(*) FILTER (WHERE older) AS older, count(*) FILTER (WHERE NOT older) AS newer,
                min(began_at) FILTER (WHERE NOT older) AS from_at FROM l
            )
            SELECT v.name, v.retired, l.database_id, l.cluster, l.service_account_namespace, l.service_account, l.pod_namespace, l.pod,
              l.certainty, count(l.accessed_at) FILTER (WHERE NOT l.older), count(*) FILTER (WHERE l.state <> 'ended'),
              date_part('epoch', min(l.accessed_at)), date_part('epoch', max(l.accessed_at)), count(DISTINCT l.pod_uid),
              looked.older, looked.newer, date_part('epoch', looked.from_at)
            -- one row at least, which says how far back it was looked
            FROM looked LEFT JOIN (l JOIN leases_vault v ON v.id = l.vault_id) ON {rest}
            GROUP BY v.name, v.retired, l.database_id, l.cluster, l.service_account_namespace, l.service_account, l.pod_namespace,
              l.pod, l.certainty, looked.older, looked.newer, looked.from_at
            """,  # noqa: S608
            {
                "from": span.from_at,
                "to": span.to_at,
                "database": where.database,
                "namespace": where.namespace,
                "account": where.service_account,
            },
        )
        found = cursor.fetchall()
    known = places()
    rows = []
    for vault, retired, database, *holder, certainty, reads, live, first_at, last_at, pods, _, _, _ in found:
        if vault is None:
            continue
        # of a vault that nobody asks nothing is known to be live; nor is it asked of a period that is over
        live = 0 if retired or span.to_at else live
        place = known.get(database) or Place(None, vault, "", "")
        rows.append(Use(place, Holder(*holder), certainty, reads, live, _at(first_at), _at(last_at), pods))
    older_ones, newer_ones, oldest = found[0][-3:]
    return Uses(
        in_order(row for row in rows if row.reads or row.live),
        _at(oldest) if newer_ones == MOST_READS_OF_PODS else None,
        older_ones == MOST_OLDER_OF_PODS,
    )


def _conditions(where: UseFilter) -> tuple[str, str]:
    """(the condition that an index answers in the order of time, all others), as SQL about `l`."""
    narrow = []
    if where.service_account:
        narrow.append("l.service_account = %(account)s")
    if where.database == "unknown":
        narrow.append("l.database_id IS NULL")
    elif where.database is not None:
        narrow.append("l.database_id = %(database)s")
    rest = narrow[1:]
    if where.namespace:
        rest.append("%(namespace)s IN (l.service_account_namespace, l.pod_namespace)")
    return (narrow[0] if narrow else "true"), (" AND ".join(rest) or "true")


def in_order(rows: Iterable[Use]) -> list[Use]:
    """The most reads first, then the most live ones, then by name."""
    return sorted(rows, key=lambda row: (-row.reads, -row.live, row.place.path, _names(row.holder), row.certainty))


def _names(holder: Holder) -> tuple[str, ...]:
    return holder.cluster, holder.name, holder.account_namespace, holder.service_account


@dataclass(frozen=True, slots=True)
class Live:
    """So many leases of one database that have not ended, by their state and by how surely the pod is known."""

    place: Place
    state: str
    certainty: str
    count: int


def live() -> list[Live]:
    """Every lease that has not ended, of the vaults that are watched."""
    known, vaults = places(), dict(Vault.objects.filter(retired=False).values_list("pk", "name"))
    rows = (
        Lease.objects.filter(vault__in=vaults)
        .exclude(state=LeaseState.ENDED)
        .order_by()
        .values_list("vault", "database", "state", "certainty")
        # not of a column: that would be read from the table, row by row
        .annotate(n=Count("*"))
    )
    return [
        Live(known.get(database or 0) or Place(None, vaults[vault], "", ""), state, certainty, n)
        for vault, database, state, certainty, n in rows
    ]


MINUTE = timedelta(minutes=1)


def reads_by_minute(*, now: datetime, minutes: int = 60) -> list[tuple[datetime, int]]:
    """Minutes up to the present one, oldest first, and how many credentials were read in each, of the vaults that are watched."""
    last = now.replace(second=0, microsecond=0)
    begin = last - (minutes - 1) * MINUTE
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT floor(date_part('epoch', accessed_at - %(from)s) / 60)::int AS minute, count(*) FROM leases_lease
            WHERE accessed_at >= %(from)s AND accessed_at < %(to)s
              AND vault_id = ANY(ARRAY(SELECT id FROM leases_vault WHERE NOT retired))
            GROUP BY minute
            """,
            {"from": begin, "to": last + MINUTE},
        )
        counts = dict(cursor.fetchall())
    return [(begin + number * MINUTE, counts.get(number, 0)) for number in range(minutes)]


@dataclass(frozen=True, slots=True)
class Used:
    """How much a database was used, by all of its holders together."""

    place: Place
    reads: int
    live: int
    holders: int


def by_database(rows: Iterable[Use], known: Mapping[int, Place], *, watched: Iterable[int]) -> list[Used]:
    """Every database of `watched`, and others that were used; those that are not known come last. Pure."""
    sums: dict[Place, list[int]] = {known[key]: [0, 0] for key in watched}
    holders: dict[Place, set[Holder]] = {}
    for row in rows:
        both = sums.setdefault(row.place, [0, 0])
        both[0] += row.reads
        both[1] += row.live
        if row.holder.name:
            holders.setdefault(row.place, set()).add(row.holder)
    order = sorted(sums, key=lambda place: (place.name == "", place.path))
    return [Used(place, sums[place][0], sums[place][1], len(holders.get(place, ()))) for place in order]
