"""The access review of a database: who was issued credentials, whether they were used, and how their time fits their use."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from leases.models import Database, DatabaseRole
from leases.session_queries import LIFE, USES

# leases of a period that are reviewed at most, the newest
MOST_REVIEWED = 5_000
MOST_ROWS = 500
# a use that takes less than this share of the issued time leaves room for a shorter TTL
FITS = 0.25


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Leases of one service account and role. Seconds, where they are known; `use`: from the first session's start to the last sight."""

    cluster: str
    namespace: str
    service_account: str
    role: str
    issued: int
    live: int
    used: int
    unused: int
    sessions: int
    last_at: datetime | None
    ttl_median: float | None
    ttl_most: float | None
    use_median: float | None
    use_most: float | None

    @property
    def not_known(self) -> int:
        """Leases of which nobody can say whether they were used."""
        return self.issued - self.used - self.unused

    @property
    def long(self) -> bool:
        """Even the longest use took but a small part of the time that was issued."""
        return bool(self.ttl_median and self.use_most is not None and self.use_most < FITS * self.ttl_median)

    @property
    def fit(self) -> str:
        return fit(self)


@dataclass(frozen=True, slots=True)
class Review:
    """`back_to`: where the looking through stopped, if the period has more leases than are reviewed. `without`: roles that nobody
    was issued a lease of."""

    rows: list[Reviewed]
    without: list[str]
    back_to: datetime | None
    cut_off: bool

    def total(self, name: str) -> int:
        return sum(getattr(row, name) for row in self.rows)


_ITS = "state, cluster, service_account_namespace, service_account, role, expires_at, last_renewal_at, looked_up_at"
# the TTL: what Vault gave last, at the issue or the last renewal. An end that was looked up before the last renewal tells nothing.
# OFFSET 0: what is sorted below is narrow, and does not carry the periods of the database along.
_ROWS = """
    SELECT cluster, service_account_namespace, service_account, role, count(*), count(*) FILTER (WHERE state <> 'ended'),
      count(*) FILTER (WHERE sessions > 0), count(*) FILTER (WHERE unused),
      sum(sessions)::bigint, max(last_at), percentile_disc(0.5) WITHIN GROUP (ORDER BY ttl), max(ttl),
      percentile_disc(0.5) WITHIN GROUP (ORDER BY used), max(used)
    FROM (
      SELECT cluster, service_account_namespace, service_account, role, state, sessions, last_at,
        sessions = 0 AND wholly AND named AS unused, CASE WHEN sessions > 0 THEN GREATEST(0, EXTRACT(EPOCH FROM last_at - first_at))::float8 END AS used,
        CASE WHEN last_renewal_at IS NULL OR looked_up_at >= last_renewal_at
          THEN GREATEST(0, round(EXTRACT(EPOCH FROM expires_at - COALESCE(last_renewal_at, issued_at))))::float8 END AS ttl
      FROM uses WHERE begun_at >= %(since)s OFFSET 0
    ) u
    GROUP BY 1, 2, 3, 4
"""


def review(database: Database, *, since: datetime, now: datetime) -> Review:
    """Leases of a database that were issued since then, by service account and role, the most issued first."""
    began = "COALESCE(accessed_at, first_seen_at)"
    newest = f"""
        SELECT {LIFE}, {_ITS} FROM leases_lease WHERE database_id = %(database)s AND {began} >= %(since)s
        ORDER BY {began} DESC, id DESC LIMIT {MOST_REVIEWED}
    """  # noqa: S608
    values: dict[str, int | datetime] = {"database": database.pk, "since": since, "now": now}
    with connection.cursor() as cursor:
        cursor.execute(
            f"{USES.format(leases=newest)} {_ROWS} ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT {MOST_ROWS + 1}",
            values,
        )
        rows = [Reviewed(*row) for row in cursor.fetchall()]
        cursor.execute(
            f"SELECT {began} FROM leases_lease WHERE database_id = %(database)s AND {began} >= %(since)s"  # noqa: S608
            f" ORDER BY {began} DESC, id DESC OFFSET {MOST_REVIEWED} LIMIT 1",
            values,
        )
        more = cursor.fetchone()
    issued = {row.role for row in rows}
    named = DatabaseRole.objects.filter(database=database).order_by("name").values_list("name", flat=True)
    without = [] if more else [name for name in named if name not in issued]
    return Review(rows[:MOST_ROWS], without, more[0] if more else None, len(rows) > MOST_ROWS)


def fit(row: Reviewed) -> str:
    """How the issued time fits the observed use, as a sentence without its full stop. Pure."""
    issued = f"issued for {length(row.ttl_median)}" if row.ttl_median is not None else "for how long is not known"
    if row.used:
        used = length(row.use_median or 0)
        most = row.use_most or 0
        at_most = f" (at most {length(most)})" if length(most) != used else ""
        longer = ", longer than issued" if row.ttl_median is not None and most > row.ttl_median else ""
        return f"{issued}, used for {used}{at_most}{longer}"
    if row.unused == row.issued:
        return f"{issued}, never used"
    if row.unused:
        return f"{issued}; {row.unused} never used, of the others it is not known"
    return f"{issued}; whether it was used is not known"


_UNITS: Sequence[tuple[str, int]] = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def length(seconds: float) -> str:
    """A length of time in its two largest units: 1 h, 1 h 30 min, 4 min, less than 1 s. Pure."""
    left = int(seconds)
    if left < 1:
        return "less than 1 s"
    parts = []
    for name, size in _UNITS:
        if left >= size:
            parts.append((left // size, name, size))
            left %= size
    first, *others = parts
    # 1 h 3 s is 1 h
    second = [one for one in others[:1] if one[2] * 60 >= first[2]]
    return " ".join(f"{count} {name}" for count, name, _ in [first, *second])
