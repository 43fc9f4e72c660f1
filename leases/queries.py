"""Reads of the ledger: one function per question that a page, a probe or a metric asks. Nothing here writes.

Lists have an explicit order with a unique tail; long ones are read in keyset pages.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypedDict

from django.db import connection
from django.db.models import Count, Max, Min, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce

from leases import health, meter
from leases.models import (
    AnsweringServer,
    ApiCost,
    AuthMount,
    Certainty,
    Cluster,
    Database,
    Job,
    Lease,
    LeaseState,
    Pod,
    Revocation,
    RoleList,
    SampledPeriod,
    Sampling,
    ServiceAccount,
    SourceState,
    Vault,
    WatchedKind,
)
from leases.models.actions import OPEN_REVOCATION_STATES, JobState
from leases.models.sources import SourceKind

PAGE = 50
# counting goes no further: a page says "500 or more"
MOST_COUNTED = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def these(keys: Collection[int]) -> RawSQL:
    """Primary keys for `__in`, as one array: of thousands one by one a statement takes longer to be read than to be answered."""
    return RawSQL("SELECT unnest(%s::bigint[])", [list(keys)])


# --- sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """How one watched thing is doing. `status`: ok, limited (it answers, but not everything can be learned from it), failing, stale
    or waiting (nobody has asked it yet)."""

    kind: str
    name: str
    status: str
    cause: str = ""
    fix: str = ""
    checked_at: datetime | None = None
    since: datetime | None = None
    retry_at: datetime | None = None

    @property
    def ok(self) -> bool:
        return self.status in {"ok", "limited"}


WORKERS = {
    SourceKind.VAULT: "leases",
    SourceKind.CLUSTER: "watch",
    SourceKind.DATABASE: "leases",
    SourceKind.STREAM: "ingest",
}


def source(kind: SourceKind, name: str, state: SourceState | None, *, now: datetime, stale_after: timedelta) -> Source:
    """The rule: a failure counts first, then age, and what was never asked is neither good nor bad."""
    if state is None:
        return Source(
            kind,
            name,
            "waiting",
            cause="No worker has asked it yet",
            fix=f"Start beat and a worker of the queue {WORKERS[kind]}: celery -A dashboard worker -Q {WORKERS[kind]}.",
        )
    if not state.ok:
        return Source(kind, name, "failing", state.cause, state.fix, state.checked_at, state.since, state.retry_at)
    if now - state.checked_at > stale_after:
        return Source(
            kind,
            name,
            "stale",
            f"Its last answer is older than {stale_after.total_seconds():g} s",
            f"Nobody asks it any more: see that beat and a worker of the queue {WORKERS[kind]} run.",
            state.checked_at,
            state.since,
        )
    status = "limited" if state.cause else "ok"
    return Source(kind, name, status, state.cause, state.fix, state.checked_at, state.since)


def source_states() -> dict[tuple[str, str], SourceState]:
    """Every known state by kind and name."""
    return {(state.kind, state.name): state for state in SourceState.objects.order_by("kind", "name", "id")}


def vaults() -> list[Vault]:
    """Vaults that are watched."""
    return list(Vault.objects.filter(retired=False).order_by("name", "id"))


def all_vaults() -> list[Vault]:
    """Those whose log was only examined, too."""
    return list(Vault.objects.order_by("name", "id"))


def clusters() -> list[Cluster]:
    """Clusters that are watched."""
    return list(Cluster.objects.filter(retired=False).order_by("name", "id"))


@dataclass(frozen=True, slots=True)
class Watched:
    """How far a cluster is watched: until when nothing of its pods can have been missed, and what is not watched at all."""

    cluster: Cluster
    until: datetime | None
    unwatched: int


def watched_clusters() -> list[Watched]:
    """Of each cluster, in two queries."""
    counts = WatchedKind.objects.exclude(cause="").order_by("cluster").values_list("cluster").annotate(n=Count("id"))
    unwatched = dict(counts)
    rows = Cluster.objects.filter(retired=False).annotate(until=Max("watch_periods__to_at")).order_by("name", "id")
    return [Watched(row, row.until, unwatched.get(row.pk, 0)) for row in rows]


def auth_mounts() -> list[AuthMount]:
    """Which auth mount's logins come from which cluster."""
    return list(AuthMount.objects.select_related("vault", "cluster").order_by("vault__name", "path", "id"))


def databases(*, retired: bool = False) -> list[Database]:
    """Connections of the watched vaults' database mounts; with `retired` those of all vaults."""
    rows = Database.objects.all() if retired else Database.objects.filter(vault__retired=False)
    return list(rows.select_related("vault").order_by("vault__name", "mount", "name", "id"))


def database_key(database: Database) -> str:
    """vault/mount/connection, the name of its source."""
    return f"{database.vault.name}/{database.mount}/{database.name}"


def sources(*, now: datetime) -> list[Source]:
    """How vaults, clusters and monitored databases are doing; streams are `audit.queries`' business."""
    states, stale_after = source_states(), health.stale_after()
    names = (
        [(SourceKind.VAULT, vault.name) for vault in vaults()]
        + [(SourceKind.CLUSTER, cluster.name) for cluster in clusters()]
        + [(SourceKind.DATABASE, database_key(row)) for row in databases() if row.monitor]
    )
    return [source(kind, name, states.get((kind, name)), now=now, stale_after=stale_after) for kind, name in names]


def source_of(database: Database, *, now: datetime) -> Source:
    """How one monitored database is doing."""
    state = SourceState.objects.filter(kind=SourceKind.DATABASE, name=database.path).first()
    return source(SourceKind.DATABASE, database.path, state, now=now, stale_after=health.stale_after())


# --- how sessions are sampled -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unseen:
    """A server that answered here once and that nobody asks now: how its sessions ended, and when, is not known."""

    where: str
    seen_at: datetime
    sessions: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """How a database's sessions are sampled. `known_from`: since when without a hole, up to `row.sampled_at`."""

    row: Sampling
    known_from: datetime | None
    unseen: list[Unseen]

    @property
    def share(self) -> float:
        """Of one core of the server, in percent."""
        return self.row.took_ms / self.row.interval_seconds / 10


def sampling_rows() -> QuerySet[Sampling]:
    """Of each database that is sampled and was so at least once, with its vault."""
    rows = (
        Sampling.objects.exclude(sampled_at=None).exclude(database__monitor=None).filter(database__sample_seconds__gt=0)
    )
    rows = rows.filter(database__vault__retired=False).select_related("database__vault")
    return rows.order_by("database__vault__name", "database__mount", "database__name", "id")


def samplings() -> dict[int, Sampled]:
    """Database id -> its sampling, where it was sampled. In two queries."""
    latest = SampledPeriod.objects.filter(database=OuterRef("database"), logged=False).order_by("-to_at", "-id")
    rows = sampling_rows().annotate(known_from=Subquery(latest.values("from_at")[:1]))
    answered = (
        AnsweringServer.objects.filter(server__sampling=None)
        .order_by("server__sampled_at", "id")
        .values_list("database", "server__identity", "server__sampled_at")
        .annotate(n=Count("server__sessions", filter=Q(server__sessions__ended_at=None)))
        .filter(n__gt=0)
    )
    unseen: dict[int, list[Unseen]] = {}
    for database, identity, seen_at, n in answered:
        unseen.setdefault(database, []).append(Unseen(identity.rpartition(" ")[2], seen_at, n))
    return {row.database_id: Sampled(row, row.known_from, unseen.get(row.database_id, [])) for row in rows}


# --- what watching costs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What this product's own requests cost one vault since `since`, at most a day ago. Bytes of all audit devices together.

    `sweep`: what looking up every lease that is live now, each minute, would have written in that time.
    """

    since: datetime
    kinds: list[tuple[str, int, int]]  # kind, requests, bytes
    requests: int
    audit_bytes: int
    sweep: int

    @property
    def share(self) -> float | None:
        """Of the sweep, in percent."""
        return 100 * self.audit_bytes / self.sweep if self.sweep else None


def costs(*, now: datetime) -> dict[int, Cost]:
    """Vault id -> its cost, where anything was asked."""
    begin = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)
    rows = (
        ApiCost.objects.filter(hour__gte=begin)
        .order_by("vault_id", "kind")
        .values_list("vault_id", "kind", "vault__audit_devices")
        .annotate(n=Sum("requests"), bytes=Sum("audit_bytes"), since=Min("first_at"))
    )
    # not of a column: that would be read from the table, row by row
    live = dict(_live().order_by().values_list("vault_id").annotate(n=Count("*")))
    found: dict[int, list[tuple[str, int, int, int, datetime]]] = {}
    for vault, *row in rows:
        found.setdefault(vault, []).append(tuple(row))
    told = {}
    for vault, kinds in found.items():
        since = min(row[4] for row in kinds)
        # one lookup as it was measured here, where there were any
        lookup = next((size / n for kind, _, n, size, _ in kinds if kind == ApiCost.Kind.LOOKUP), None)
        lookup = lookup or meter.BASE[ApiCost.Kind.LOOKUP] * kinds[0][1]
        sweeps = max((now - since) / timedelta(minutes=1), 1.0)
        told[vault] = Cost(
            since=since,
            kinds=[(kind, n, size) for kind, _, n, size, _ in kinds],
            requests=sum(row[2] for row in kinds),
            audit_bytes=sum(row[3] for row in kinds),
            sweep=round(live.get(vault, 0) * lookup * sweeps),
        )
    return told


def costs_ever() -> list[tuple[str, str, int, int]]:
    """(vault, kind, requests, bytes) since counting began, as counters want it."""
    rows = ApiCost.objects.order_by("vault__name", "kind").values_list("vault__name", "kind")
    return list(rows.annotate(n=Sum("requests"), bytes=Sum("audit_bytes")))


def put_off_lists() -> dict[int, list[RoleList]]:
    """Vault id -> roles whose list was put off, with the reason."""
    found: dict[int, list[RoleList]] = {}
    rows = RoleList.objects.exclude(put_off="").order_by("vault_id", "vault_namespace", "mount", "role", "id")
    for row in rows.select_related("vault"):
        found.setdefault(row.vault_id, []).append(row)
    return found


# --- what is live ------------------------------------------------------------------------------------------------


class LiveCount(TypedDict):
    vault: str
    database: str
    certainty: str
    state: str
    count: int


def _live() -> QuerySet[Lease]:
    # of a log that was only examined nobody asks the vault, so nothing of it is known to be live
    return Lease.objects.filter(vault__retired=False).exclude(state=LeaseState.ENDED)


def live_counts() -> list[LiveCount]:
    """Leases that have not ended, by vault, database, certainty and state. `database` is empty where it is unknown."""
    rows = (
        _live()
        .order_by("vault__name", "database__name", "certainty", "state")
        .values_list("vault__name", "database__name", "certainty", "state")
        # not of a column: that would be read from the table, row by row
        .annotate(count=Count("*"))
    )
    return [
        {"vault": vault, "database": database or "", "certainty": certainty, "state": state, "count": count}
        for vault, database, certainty, state, count in rows
    ]


def ending_next(*, limit: int) -> list[Lease]:
    """Leases that will end, soonest first; those without a known end come last. Irrevocable ones never end by themselves."""
    return list(
        _live()
        .exclude(state=LeaseState.IRREVOCABLE)
        .select_related("vault", "database")
        .order_by("expires_at", "id")[:limit]
    )


def ending_within(*, now: datetime, span: timedelta) -> int:
    """Leases whose time is over by then; MOST_COUNTED stands for that many or more."""
    rows = _live().exclude(state=LeaseState.IRREVOCABLE).filter(expires_at__lte=now + span)
    return rows.order_by("expires_at", "id")[:MOST_COUNTED].count()


def newest(*, limit: int) -> list[Lease]:
    """Leases that have not ended, issued last first."""
    rows = _live().select_related("vault", "database").annotate(began_at=Coalesce("accessed_at", "first_seen_at"))
    return list(rows.order_by("-began_at", "-id")[:limit])


def recent_ends(*, limit: int) -> list[Lease]:
    """Leases that ended, last first."""
    rows = Lease.objects.filter(state=LeaseState.ENDED).select_related("vault", "database")
    return list(rows.order_by("-ended_at", "-id")[:limit])


def running_revocations(*, limit: int) -> list[Revocation]:
    """Revocations whose outcome is still open, oldest first."""
    rows = Revocation.objects.filter(state__in=OPEN_REVOCATION_STATES).select_related("action", "lease")
    # one action may name thousands
    rows = rows.defer("action__targets")
    return list(rows.order_by("requested_at", "id")[:limit])


def ledger_version(*, now: datetime, ages: bool = True) -> str:
    """A short hash that changes when anything on a live page would. Reads ends of indexes and small tables only.

    Ages of sources count in steps of five seconds, all at once and by the one that answered last: so "checked 4 s ago" does not run
    away in the browser, and many sources make a page come again no more often than one. A page that shows no ages is without them.
    """
    stale_after = health.stale_after()
    parts: list[object] = [
        Lease.objects.order_by("-updated_at").values_list("updated_at", flat=True).first(),
        _live().count(),
        Revocation.objects.filter(state__in=OPEN_REVOCATION_STATES).aggregate(n=Count("id"), at=Max("updated_at")),
    ]
    step = 0
    for state in SourceState.objects.order_by("kind", "name", "id"):
        step = max(step, int(state.checked_at.timestamp() // 5))
        parts.append((state.kind, state.name, state.ok, state.cause, now - state.checked_at > stale_after))
    parts.append(step if ages else 0)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# --- lists -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseFilter:
    """What a list of leases is narrowed to; empty means everything. `state` is a lease state, `open` or empty."""

    state: str = "open"
    database: str = ""
    certainty: str = ""
    service_account: str = ""
    namespace: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of the page before: its time and its key."""

    at: datetime
    pk: str

    def __str__(self) -> str:
        return f"{(self.at - EPOCH) // MICROSECOND}-{self.pk}"

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """None if the text is no cursor."""
        moment, _, pk = text.partition("-")
        if not (moment.isascii() and moment.isdigit() and len(moment) < 18 and pk):
            return None
        return cls(EPOCH + int(moment) * MICROSECOND, pk)


# leases that a filter without an index of its own looks through at most before a page shows what it has found so far
MOST_LOOKED_THROUGH = 10_000


@dataclass(frozen=True, slots=True)
class LeasePage:
    """`looked_until`: where the looking through stopped before the page was full; the next page goes on from there."""

    rows: Sequence[Lease]
    older: Cursor | None
    looked_until: datetime | None = None


# orders that an index has: newest first, oldest first, and of those that have not ended the one that ends next first
ORDERS = ("", "oldest", "ending")
# the place of a lease whose end is not known: behind all others
NEVER = datetime(3000, 1, 1, tzinfo=UTC)


def leases_page(where: LeaseFilter, *, before: Cursor | None = None, size: int = PAGE, order: str = "") -> LeasePage:
    """One page of leases in one of ORDERS. Raises ValueError for a foreign cursor. `ending` is of leases that have not ended.

    One condition, the narrowest that has an index, finds rows in their order; the others are tried on them, on no more than
    MOST_LOOKED_THROUGH: so that a rare hit, or none, takes no longer than that.
    """
    narrow, rest, values = _conditions(where)
    if order == "ending":
        # the one index that has this order; what narrows otherwise is tried on its rows
        narrow, rest = "state <> 'ended'", " AND ".join(text for text in (narrow, rest) if text not in {"", "true"})
    most = MOST_LOOKED_THROUGH if rest else size + 1
    way = "DESC" if order == "" else "ASC"
    candidates = _candidates(narrow, order, after=before is not None, most=most)
    values |= {"never": NEVER, "at": before.at if before else EPOCH, "pk": int(before.pk) if before else 0}
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, place FROM ({candidates}) l WHERE {rest or 'true'} ORDER BY place {way}, id {way} LIMIT {size + 1}",  # noqa: S608
            values,
        )
        found = cursor.fetchall()
        last = None
        if rest and len(found) <= size:
            other = "ASC" if way == "DESC" else "DESC"
            cursor.execute(
                f"SELECT place, id FROM (SELECT id, place, count(*) OVER () AS n FROM ({candidates}) l) l"  # noqa: S608
                f" WHERE n = {most} ORDER BY place {other}, id {other} LIMIT 1",
                values,
            )
            last = cursor.fetchone()
    keys = [pk for pk, _ in found[:size]]
    rows = Lease.objects.select_related("vault", "database").annotate(began_at=Coalesce("accessed_at", "first_seen_at"))
    by_key = rows.in_bulk(keys)
    # one that was dropped meanwhile is known no longer
    page = [by_key[pk] for pk in keys if pk in by_key]
    if len(found) > size:
        pk, place = found[size - 1]
        return LeasePage(page, Cursor(place, str(pk)))
    return LeasePage(page, Cursor(last[0], str(last[1])), last[0]) if last else LeasePage(page, None)


def _candidates(narrow: str, order: str, *, after: bool, most: int) -> str:
    """SQL of the next rows in their order, each with its `place` in it."""
    if order != "ending":
        began, way, beyond = "COALESCE(accessed_at, first_seen_at)", *(("ASC", ">") if order else ("DESC", "<"))
        key = f" AND ({began}, id) {beyond} (%(at)s, %(pk)s)" if after else ""
        return f"SELECT *, {began} AS place FROM leases_lease WHERE {narrow}{key} ORDER BY {began} {way}, id {way} LIMIT {most}"  # noqa: S608
    key = " AND (expires_at, id) > (%(at)s, %(pk)s)" if after else ""
    late = " AND (%(at)s < %(never)s OR id > %(pk)s)" if after else ""
    return (
        f"SELECT * FROM ((SELECT *, expires_at AS place FROM leases_lease WHERE {narrow} AND expires_at IS NOT NULL{key}"  # noqa: S608
        f" ORDER BY expires_at, id LIMIT {most}) UNION ALL (SELECT *, %(never)s::timestamptz AS place FROM leases_lease"
        f" WHERE {narrow} AND expires_at IS NULL{late} ORDER BY expires_at, id LIMIT {most})) l ORDER BY place, id LIMIT {most}"
    )


def _conditions(where: LeaseFilter) -> tuple[str, str, dict[str, str | int | datetime]]:
    """(the condition that an index answers, all others, their values), as SQL."""
    values: dict[str, str | int | datetime] = {}
    # each with the index that has it in the order of the list, the narrowest first
    narrow, rest = [], []
    if where.service_account:
        values["account"] = where.service_account
        narrow.append("service_account = %(account)s")
    if where.database == "unknown":
        narrow.append("database_id IS NULL")
    elif where.database:
        vault, _, path = where.database.partition("/")
        mount, _, name = path.rpartition("/")
        found = Database.objects.filter(vault__name=vault, mount=mount, name=name).values_list("pk", flat=True).first()
        values["database"] = found or 0
        narrow.append("database_id = %(database)s")
    if where.state in (LeaseState.REVOKING, LeaseState.IRREVOCABLE):
        values["state"] = where.state
        narrow.append("state IN ('revoking', 'irrevocable')")
        rest.append("state = %(state)s")
    elif where.state == "open":
        narrow.append("state <> 'ended'")
    elif where.state:
        values["state"] = where.state
        rest.append("state = %(state)s")
    if where.certainty:
        values["certainty"] = where.certainty
        rest.append("certainty = %(certainty)s")
    if where.namespace:
        values["namespace"] = where.namespace
        rest.append("(service_account_namespace = %(namespace)s OR pod_namespace = %(namespace)s)")
    if where.pod:
        values["pod"] = where.pod.upper()
        rest.append("strpos(upper(pod), %(pod)s) > 0")
    return (narrow[0] if narrow else "true"), " AND ".join(narrow[1:] + rest), values


def lease(pk: int) -> Lease | None:
    return Lease.objects.select_related("vault", "database", "login__auth_mount__cluster").filter(pk=pk).first()


def pod_of(lease: Lease) -> Pod | None:
    """The pod that holds it, where one is named and known."""
    if not lease.pod_uid:
        return None
    return Pod.objects.filter(cluster__name=lease.cluster, uid=lease.pod_uid).first()


def account_deleted_at(lease: Lease) -> datetime | None:
    """When the service account that logged in was deleted. One made anew under its name is another one."""
    uid = lease.login.metadata.get("service_account_uid") if lease.login else None
    mount = lease.login.auth_mount if lease.login else None
    if not uid or mount is None:
        return None
    accounts = ServiceAccount.objects.filter(cluster=mount.cluster_id, uid=uid)
    return accounts.values_list("deleted_at", flat=True).first()


def revocations_of(lease: Lease) -> list[Revocation]:
    """Everything that people here did to end this lease, last first."""
    rows = lease.revocations.select_related("action").defer("action__targets")
    return list(rows.order_by("-requested_at", "-id"))


# --- revocations (all that people do is read in action_queries) ---------------------------------------------------


class RevocationCount(TypedDict):
    state: str
    count: int


def revocations_by_state() -> list[RevocationCount]:
    rows = Revocation.objects.order_by("state").values_list("state").annotate(count=Count("id"))
    return [{"state": state, "count": count} for state, count in rows]


def jobs_by_state() -> list[RevocationCount]:
    rows = Job.objects.order_by("state").values_list("state").annotate(count=Count("id"))
    return [{"state": state, "count": count} for state, count in rows]


def waiting_jobs(*, limit: int = PAGE) -> list[Job]:
    """Jobs that wait for another responder's word, oldest first."""
    rows = Job.objects.filter(state=JobState.WAITING).select_related("action").defer("action__targets")
    return list(rows.order_by("id")[:limit])


# --- words -------------------------------------------------------------------------------------------------------


def in_order(present: Collection[str]) -> list[str]:
    return [certainty for certainty in Certainty.values if certainty in present]
