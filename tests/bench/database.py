"""The bench's PostgreSQL server as its superuser sees it: emptied tables, checkpoints, sizes. Knows no table by name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from demo.postgres import Postgres

DATABASE = "leasehold"
FAMILIES = ("audit_", "leases_")


@dataclass(frozen=True, slots=True)
class Size:
    """One table with its partitions: rows, and bytes of rows, indexes and TOAST."""

    table: str
    rows: int
    heap: int
    indexes: int
    toast: int

    @property
    def total(self) -> int:
        return self.heap + self.indexes + self.toast


@contextmanager
def superuser(postgres: Postgres) -> Iterator[psycopg.Cursor[tuple[object, ...]]]:
    """A cursor that commits each statement."""
    with psycopg.connect(postgres.dsn(database=DATABASE), autocommit=True) as connection:
        yield connection.cursor()


def sizes(postgres: Postgres) -> dict[str, Size]:
    """Each of the product's tables, partitions added up."""
    with superuser(postgres) as cursor:
        cursor.execute(
            """
            SELECT coalesce(pg_partition_root(c.oid), c.oid)::regclass::text,
                   sum(pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint,
                   sum(pg_indexes_size(c.oid))::bigint,
                   coalesce(sum(pg_total_relation_size(nullif(c.reltoastrelid, 0))), 0)::bigint
            FROM pg_class c
            WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
            GROUP BY 1 ORDER BY 1
            """
        )
        found = [row for row in cursor.fetchall() if str(row[0]).startswith(FAMILIES)]
        return {str(name): Size(str(name), _count(cursor, str(name)), *sizes) for name, *sizes in found}  # type: ignore[arg-type]


def with_rows(postgres: Postgres) -> list[str]:
    """The product's tables (of partitioned ones the root) that are not empty."""
    return [size.table for size in sizes(postgres).values() if size.rows]


def empty(postgres: Postgres, *, keep: list[str]) -> None:
    """Every one of the product's tables is empty, but those of `keep`, and nothing waits to be written."""
    with superuser(postgres) as cursor:
        tables = [table for table in sizes(postgres) if table not in keep]
        names = sql.SQL(", ").join(sql.Identifier(table) for table in tables)
        # history may be guarded by triggers, too
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(names))
        cursor.execute("CHECKPOINT")


def truncate(postgres: Postgres, tables: Iterable[str]) -> None:
    with superuser(postgres) as cursor:
        cursor.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(sql.Identifier(table) for table in tables)))


def vacuum(postgres: Postgres) -> None:
    """What autovacuum would do for a table that was just filled."""
    with superuser(postgres) as cursor:
        cursor.execute("VACUUM (ANALYZE)")


def analyze(postgres: Postgres) -> None:
    """What autovacuum would do within a minute."""
    with superuser(postgres) as cursor:
        cursor.execute("ANALYZE")


def _count(cursor: psycopg.Cursor[tuple[object, ...]], table: str) -> int:
    row = cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    assert row is not None
    return int(str(row[0]))
