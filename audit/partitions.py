"""Daily partitions. The application's role owns no table: two functions of the owner's make days and drop old ones (migrations/0003)."""

from collections.abc import Collection
from datetime import date

from django.db import connection


def make_for(days: Collection[date]) -> None:
    """The days' partitions of events, sightings and raw lines, where they are not there yet."""
    if days:
        with connection.cursor() as cursor:
            cursor.execute("SELECT leasehold_make_day(d) FROM unnest(%s::date[]) AS d", [sorted(days)])


def drop_day(day: date, *, raw: bool) -> bool:
    """Drops a day's events and sightings, or its raw lines; False if there were none. The database refuses a day that is too young."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT leasehold_drop_day(%s, %s)", [day, raw])
        return bool(cursor.fetchone()[0])


def days(table: str) -> list[date]:
    """The days for which a partitioned table has a partition, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_date(right(c.relname, 8), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = %s::regclass ORDER BY 1",
            [table],
        )
        return [row[0] for row in cursor.fetchall()]
