"""Reads of database sessions: one function per question that a page, a metric or an export asks. Nothing here writes."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import Count, Min, Subquery
from django.db.models.functions import Coalesce

from leases import queries
from leases.models import Database, DatabaseRole, Lease, LeaseState, Pod, SampledPeriod, Sampling, Session
from leases.models.sessions import Place
from leases.queries import PAGE, Cursor, Source

# so many leases of a pod are looked through for their sessions
MOST_LEASES = 200
# counting goes no further: a page says "10,000 or more"
MOST_COUNTED = 10_000
DAY = timedelta(days=1)
# what a person writes for the address of a session over a local socket
LOCAL = "local"
ELSEWHERE = "place = 'elsewhere'"


# --- was a lease used --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of a lease's use. `last_at`: when a session of it was last known to be there.

    Of its life up to now, sampling and log cover some (`partly`), all (`wholly`), and the log alone all (`logged`). Whether its
    sessions would have been told as its own (`named`) depends on its database user being known, and no guess.
    """

    sessions: int
    first_at: datetime | None
    last_at: datetime | None
    partly: bool
    wholly: bool
    logged: bool
    named: bool

    @property
    def unused(self) -> bool:
        """Known to have had no session; what is merely not known to have had one is not unused."""
        return not self.sessions and self.wholly and self.named

    @property
    def counted(self) -> int | None:
        """Sessions, if anything can be said of them. Where its life is not covered wholly, there may have been more."""
        return self.sessions if self.sessions or self.unused else None


# A life begins with the credential read and ends with the lease, or now; what began since the last sample but one nobody can know
# yet. `leases` selects rows of leases_lease with LIFE's columns at least. A session was last there when the log says that it ended, else when it was
# last seen.
LIFE = "id, database_id, database_user, database_user_by, accessed_at, issued_at, first_seen_at, ended_at"
USES = """
    WITH life AS MATERIALIZED (
      SELECT l.*, GREATEST(l.begun_at, LEAST(
        COALESCE(l.ended_at, %(now)s), %(now)s - make_interval(secs => 2 * COALESCE(g.interval_seconds, 5) + 5))) AS until_at
      FROM (SELECT *, COALESCE(accessed_at, issued_at, first_seen_at) AS begun_at FROM ({leases}) chosen) l
      LEFT JOIN leases_sampling g ON g.database_id = l.database_id
    ), covered AS MATERIALIZED (
      SELECT database_id, range_agg(tstzrange(from_at, to_at, '[]')) AS times,
        COALESCE(range_agg(tstzrange(from_at, to_at, '[]')) FILTER (WHERE logged), '{{}}') AS logged_times
      FROM leases_sampledperiod
      WHERE database_id IN (SELECT database_id FROM life) AND to_at >= (SELECT min(begun_at) FROM life)
      GROUP BY database_id
    ), uses AS (
      SELECT l.*, s.sessions, s.first_at, s.last_at, COALESCE(c.times && tstzrange(l.begun_at, l.until_at, '[]'), false) AS partly,
        COALESCE(c.times @> tstzrange(l.begun_at, l.until_at, '[]'), false) AS wholly,
        COALESCE(c.logged_times @> tstzrange(l.begun_at, l.until_at, '[]'), false) AS logged, l.database_user <> '' AND l.database_user_by <> 'time and name' AS named
      FROM life l LEFT JOIN covered c ON c.database_id = l.database_id, LATERAL (
        SELECT count(*) AS sessions, min(started_at) AS first_at,
          max(CASE WHEN end_known_by = 'logged' THEN GREATEST(ended_at, last_seen_at) ELSE last_seen_at END) AS last_at
        FROM leases_session WHERE lease_id = l.id
      ) s
    )
"""


def uses(leases: Collection[int], *, now: datetime) -> dict[int, Use]:
    """Lease key -> its use, of all of them in one statement."""
    with connection.cursor() as cursor:
        chosen = f"SELECT {LIFE} FROM leases_lease WHERE id = ANY(%(leases)s)"  # noqa: S608
        cursor.execute(
            f"{USES.format(leases=chosen)} SELECT id, sessions, first_at, last_at, partly, wholly, logged, named FROM uses",  # noqa: S608
            {"leases": list(leases), "now": now},
        )
        return {pk: Use(*row) for pk, *row in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Sampled:
    """Whether and since when a database's sessions are known at all."""

    monitored: bool
    switched_off: bool
    seconds: float
    from_at: datetime | None


def sampled(database: Database) -> Sampled:
    from_at = SampledPeriod.objects.filter(database=database).aggregate(at=Min("from_at"))["at"]
    return Sampled(bool(database.monitor), not database.sample_seconds, database.sample_seconds, from_at)


def why_none(lease: Lease, use: Use, known: Sampled | None) -> tuple[bool, str]:
    """Of a lease without a session: whether that means that it was not used, and the sentence that says so. Pure."""
    if known is None:
        return False, "Not known: its database is not known, so its sessions are not either."
    if known.from_at is None:
        if not known.monitored:
            return False, (
                "Not known: the database is not sampled. Name a monitoring account as monitor in its [[databases]] entry."
            )
        if known.switched_off:
            return (
                False,
                "Not known: sampling is switched off. Set sample_seconds in the database's [[databases]] entry.",
            )
        return False, "Not known: no sample has been taken yet. The database's page says how its sampling is doing."
    if not use.named:
        told = "only a guess" if lease.database_user else "not known"
        return False, f"Not known: sessions are told apart by their user, and this lease's database user is {told}."
    if not use.partly:
        return (
            False,
            f"Not known: sessions of this database are known from {known.from_at:%Y-%m-%d %H:%M:%S} UTC on, and not of its time.",
        )
    if not use.wholly:
        return False, "None was seen, but sampling does not cover all of its life: whether it was used is not known."
    ended = lease.state == LeaseState.ENDED
    said = "It was never used: issued, and no session in all of its life." if ended else "It has not been used so far."
    if use.logged:
        return True, f"{said} The server's log was read for all of that time, and it shows every connection."
    return True, f"{said} Sampled every {known.seconds:g} s: a session shorter than that can have been missed."


# --- lists -------------------------------------------------------------------------------------------------------


def of_lease(lease: Lease, *, limit: int = PAGE) -> list[Session]:
    """Its sessions, the newest first."""
    rows = Session.objects.filter(lease=lease).select_related("server").order_by("-started_at", "-id")
    return list(rows[:limit])


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """What a database's sessions are narrowed to; empty means everything. `state`: open, ended or empty; `lease`: none or empty."""

    state: str = ""
    place: str = ""
    lease: str = ""
    address: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class SessionPage:
    """`looked_until`: where the looking through stopped before the page was full; the next page goes on from there."""

    rows: Sequence[Session]
    older: Cursor | None
    looked_until: datetime | None = None


def sessions_page(
    database: Database,
    where: SessionFilter,
    *,
    before: Cursor | None = None,
    size: int = PAGE,
    oldest: bool = False,
) -> SessionPage:
    """One page of a database's sessions, the newest first, or the oldest.

    As with queries.leases_page(): one condition finds rows in their order by its index, the others are tried on no more than
    MOST_LOOKED_THROUGH of them.
    """
    narrow, rest = _conditions(where)
    values: dict[str, str | int | datetime] = {"database": database.pk, "place": where.place, "user": where.user}
    values["address"] = "" if where.address == LOCAL else where.address
    if before:
        narrow += f" AND (started_at, id) {'>' if oldest else '<'} (%(at)s, %(pk)s)"
        values |= {"at": before.at, "pk": int(before.pk)}
    most = queries.MOST_LOOKED_THROUGH if rest else size + 1
    way, back = ("ASC", "DESC") if oldest else ("DESC", "ASC")
    candidates = f"FROM leases_session WHERE {narrow} ORDER BY started_at {way}, id {way} LIMIT {most}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id FROM (SELECT * {candidates}) s WHERE {rest or 'true'}"  # noqa: S608
            f" ORDER BY started_at {way}, id {way} LIMIT {size + 1}",
            values,
        )
        keys = [row[0] for row in cursor.fetchall()]
        last = None
        if rest and len(keys) <= size:
            cursor.execute(
                f"SELECT started_at, id FROM (SELECT *, count(*) OVER () AS n FROM (SELECT id, started_at {candidates}) s) s"  # noqa: S608
                f" WHERE n = {most} ORDER BY started_at {back}, id {back} LIMIT 1",
                values,
            )
            last = cursor.fetchone()
    rows = Session.objects.filter(pk__in=keys[:size]).select_related("server", "lease")
    page = list(rows.order_by(*(("started_at", "id") if oldest else ("-started_at", "-id"))))
    if len(keys) > size:
        return SessionPage(page, Cursor(page[-1].started_at, str(page[-1].pk)))
    return SessionPage(page, Cursor(last[0], str(last[1])), last[0]) if last else SessionPage(page, None)


def _conditions(where: SessionFilter) -> tuple[str, str]:
    """(the condition that an index answers in the order of the list, all others), as SQL."""
    # each with the index that has it in the order of the list, the narrowest first
    narrow = []
    if where.place == Place.ELSEWHERE:
        narrow.append(ELSEWHERE)
    if where.lease:
        narrow.append("database_id = %(database)s AND lease_id IS NULL")
    if where.state == "open":
        narrow.append("database_id = %(database)s AND ended_at IS NULL")
    first, *rest = narrow or ["database_id = %(database)s"]
    if first == ELSEWHERE:
        # its index is one for all databases
        rest.append("database_id = %(database)s")
    if where.state == "ended":
        rest.append("ended_at IS NOT NULL")
    if where.place and where.place != Place.ELSEWHERE:
        rest.append("place = %(place)s")
    if where.address:
        rest.append("address = %(address)s")
    if where.user:
        rest.append("strpos(database_user, %(user)s) > 0")
    return first, " AND ".join(rest)


def page_version(page: SessionPage, watching: "Watching", source: Source | None) -> str:
    """Changes when anything that a database's page shows of its sessions and their sampling would."""
    sampling = watching.sampling
    parts: list[object] = [
        (
            row.pk,
            row.lease_id,
            row.place,
            row.last_seen_at,
            row.ended_at,
            row.state,
            row.sampled,
            row.logged,
            row.user_vanished_at,
        )
        for row in page.rows
    ]
    parts += [watching.open, watching.elsewhere, watching.untied, page.looked_until]
    parts += [(period.pk, period.to_at) for period in watching.periods]
    parts += [(sampling.samples, sampling.sampled_at, sampling.interval_seconds)] if sampling else []
    if source:
        step = int(source.checked_at.timestamp() // 5) if source.checked_at else 0
        parts.append((source.status, source.cause, step))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# --- one database ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watching:
    """How a database's sessions are watched. `periods`: when it was, the last ones, the newest first."""

    sampling: Sampling | None
    periods: Sequence[SampledPeriod]
    first_at: datetime | None
    open: int
    elsewhere: int
    untied: int

    @property
    def average_ms(self) -> float | None:
        return self.sampling.total_ms / self.sampling.samples if self.sampling and self.sampling.samples else None


def database(pk: int) -> Database | None:
    return Database.objects.select_related("vault", "sampling__server").filter(pk=pk).first()


def roles(database: Database) -> list[str]:
    rows = DatabaseRole.objects.filter(database=database)
    return list(rows.order_by("name", "id").values_list("name", flat=True))


def live_leases(database: Database) -> int:
    return Lease.objects.filter(database=database).exclude(state=LeaseState.ENDED).count()


def watching(database: Database, *, few: int = 5) -> Watching:
    """Sampling, its periods, and how many sessions there are now (MOST_COUNTED stands for that many or more)."""
    periods = SampledPeriod.objects.filter(database=database)
    earliest = Subquery(periods.order_by().values("database").annotate(at=Min("from_at")).values("at"))
    newest = list(periods.order_by("-to_at", "-id").annotate(first_at=earliest)[:few])
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT count(*), count(*) FILTER (WHERE {ELSEWHERE}), count(*) FILTER (WHERE lease_id IS NULL) FROM (
              SELECT place, lease_id FROM leases_session WHERE database_id = %s AND ended_at IS NULL
              ORDER BY started_at DESC, id DESC LIMIT {MOST_COUNTED}) s
            """,  # noqa: S608
            [database.pk],
        )
        counts = cursor.fetchone()
    return Watching(getattr(database, "sampling", None), newest, newest[0].first_at if newest else None, *counts)


# --- one pod -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodHoldings:
    """A pod, where its cluster told of it, with its addresses in time, leases and sessions: of these the newest PAGE."""

    pod: Pod | None
    leases: Sequence[Lease]
    sessions: list[Session]


def pod_holdings(*, cluster: str, uid: str) -> PodHoldings | None:
    """None where neither the cluster nor a lease tells of such a pod."""
    pods = Pod.objects.filter(cluster__name=cluster, uid=uid).select_related("cluster").prefetch_related("addresses")
    pod = pods.first()
    held = Lease.objects.filter(pod_uid=uid, cluster=cluster).annotate(
        began_at=Coalesce("accessed_at", "first_seen_at")
    )
    newest = list(held.select_related("vault", "database").order_by("-began_at", "-id")[:MOST_LEASES])
    if pod is None and not newest:
        return None
    rows = Session.objects.filter(lease__in=[lease.pk for lease in newest]).select_related(
        "server", "lease", "database"
    )
    return PodHoldings(pod, newest, list(rows.order_by("-started_at", "-id")[:PAGE]))


# --- counts ------------------------------------------------------------------------------------------------------


def open_by_database() -> dict[int, int]:
    """Database key -> sessions that have not ended, where there are any."""
    rows = Session.objects.filter(ended_at=None).exclude(database=None).order_by().values_list("database")
    return dict(rows.annotate(n=Count("*")))


def elsewhere_by_database(*, now: datetime) -> dict[int, int]:
    """Database key -> sessions of the last 24 h that came from elsewhere, of the newest MOST_COUNTED of all."""
    newest = Session.objects.filter(place=Place.ELSEWHERE, started_at__gte=now - DAY).exclude(database=None)
    keys = newest.order_by("-started_at", "-id").values("pk")[:MOST_COUNTED]
    return dict(Session.objects.filter(pk__in=keys).order_by().values_list("database").annotate(n=Count("*")))
