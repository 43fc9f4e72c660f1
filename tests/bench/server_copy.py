"""PostgreSQL's own COPY FROM of the rows that the pipeline made, into empty tables with the same partitions and indexes.

The least that storing these rows can cost. The clones have every index, check and unique key, but no foreign key and no
trigger. They stay in SCHEMA until the next call.
"""

import os
import shutil
import time
from pathlib import Path

from psycopg import Cursor
from psycopg.sql import SQL, Identifier, Literal

from demo.postgres import Postgres
from tests.bench.database import superuser
from tests.bench.figures import Void

SCHEMA = "bench_copy"
_Cursor = Cursor[tuple[object, ...]]


def server_copy(postgres: Postgres, tables: list[str]) -> dict[str, float]:
    """Seconds for each of these tables of the schema public; a checkpoint before each, one transaction each."""
    folder = _folder(postgres)
    seconds = {}
    try:
        with superuser(postgres) as cursor:
            cursor.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(SCHEMA)))
            cursor.execute(SQL("CREATE SCHEMA {}").format(Identifier(SCHEMA)))
            for table in tables:
                seconds[table] = _copy(cursor, table, folder / "rows")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return seconds


def _copy(cursor: _Cursor, table: str, file: Path) -> float:
    columns = SQL(", ").join(map(Identifier, _columns(cursor, table)))
    # a query, because a partitioned table cannot be copied from
    cursor.execute(
        SQL("COPY (SELECT {} FROM {}) TO {}").format(columns, Identifier("public", table), Literal(str(file)))
    )
    written = cursor.rowcount
    clone(cursor, table)
    cursor.execute("CHECKPOINT")
    began = time.perf_counter()
    # the table was made in a transaction before this one: the rows go through the write-ahead log, as the pipeline's do
    cursor.execute(SQL("COPY {} ({}) FROM {}").format(Identifier(SCHEMA, table), columns, Literal(str(file))))
    seconds = time.perf_counter() - began
    if cursor.rowcount != written:
        raise Void(f"COPY wrote {written} rows of {table} and read {cursor.rowcount}")
    return seconds


def clone(cursor: _Cursor, table: str) -> None:
    """An empty SCHEMA.table like public.table, partitions of any depth included. Raises Void if an index is missing."""
    key = _one(cursor, "SELECT pg_get_partkeydef(%s::regclass)", _public(table))
    made = SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY)").format(
        Identifier(SCHEMA, table), Identifier("public", table)
    )
    cursor.execute(made if key is None else made + SQL(" PARTITION BY " + str(key)))
    _same_options(cursor, table)
    cursor.execute(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = %s::regclass ORDER BY 1",
        [_public(table)],
    )
    for partition, bound in cursor.fetchall():
        clone(cursor, str(partition))
        # its own indexes are there already, and become the parent's
        cursor.execute(
            SQL("ALTER TABLE {} ATTACH PARTITION {} " + str(bound)).format(
                Identifier(SCHEMA, table), Identifier(SCHEMA, str(partition))
            )
        )
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
    original, copied = _one(cursor, indexes, _public(table)), _one(cursor, indexes, f'"{SCHEMA}"."{table}"')
    if original != copied:
        raise Void(f"{table} has {original} indexes and its clone {copied}")


def _same_options(cursor: _Cursor, table: str) -> None:
    """Storage parameters (fillfactor, autovacuum_…), which LIKE leaves out."""
    options = _one(
        cursor, "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = %s::regclass", _public(table)
    )
    if options:
        cursor.execute(SQL("ALTER TABLE {} SET (" + str(options) + ")").format(Identifier(SCHEMA, table)))


def _columns(cursor: _Cursor, table: str) -> list[str]:
    """Without generated ones, which COPY makes."""
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum",
        [_public(table)],
    )
    return [str(name) for (name,) in cursor.fetchall()]


def _one(cursor: _Cursor, query: str, table: str) -> object:
    row = cursor.execute(query, [table]).fetchone()
    assert row is not None
    return row[0]


def _public(table: str) -> str:
    return f'public."{table}"'


def _folder(postgres: Postgres) -> Path:
    """Beside the server's data, where the server reaches it under whatever account it runs."""
    folder = postgres.folder / "copy"
    folder.mkdir(exist_ok=True)
    owner = (postgres.folder / "data").stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    return folder
