"""Daily partitions. The application's role owns no table: two functions of the owner's make days and drop old ones (migrations/0005)."""

from collections.abc import Collection
from datetime import date

from django.db import OperationalError, connection, transaction

EVENTS = ("audit_event", "audit_furthersighting")
LINES = "audit_blocklines"
LOCK_WAIT = "1s"
# lock_not_available; object_not_in_prerequisite_state, which leasehold_drop_day() raises for lines that came in meanwhile
NOT_NOW = {"55P03", "55000"}


class Busy(Exception):
    """A partition cannot be dropped now: its table is in use, or lines came in that are not in the archive yet."""


def make_for(days: Collection[date]) -> int:
    """The days' partitions of events, sightings and raw lines, where they are not there yet. Returns how many days were made."""
    if not days:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FILTER (WHERE leasehold_make_day(d)) FROM unnest(%s::date[]) AS d",
            [sorted(days)],
        )
        return int(cursor.fetchone()[0])


def drop_day(day: date, table: str) -> bool:
    """Drops one of EVENTS or LINES of a day and leaves a record of it; False if there was none.

    The database refuses a day that is too young, and lines that are not in the archive where one is configured.
    Raises Busy where somebody has been reading or writing the table for longer than LOCK_WAIT.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            # all others queue up behind us meanwhile, so we'd rather come back later
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_WAIT])
            cursor.execute("SELECT leasehold_drop_day(%s, %s)", [day, table])
            return bool(cursor.fetchone()[0])
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) in NOT_NOW:
            raise Busy(f"{table} of {day}") from error
        raise


def days(table: str) -> list[date]:
    """The days for which a partitioned table has a partition, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_date(right(c.relname, 8), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = %s::regclass ORDER BY 1",
            [table],
        )
        return [row[0] for row in cursor.fetchall()]
