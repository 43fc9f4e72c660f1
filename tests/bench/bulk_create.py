"""Django's bulk_create of the same rows, into the clone of their table that server_copy() made."""

import time

from django.db import connection, transaction
from psycopg.sql import SQL, Identifier

from demo.postgres import Postgres
from tests.bench import product
from tests.bench.database import superuser
from tests.bench.server_copy import SCHEMA

ROWS, BATCH = 20_000, 1000


def bulk_create(postgres: Postgres) -> float:
    """Rows a second, in one transaction."""
    rows = product.rows_for_bulk_create(ROWS)
    manager = type(rows[0])._default_manager
    table = type(rows[0])._meta.db_table
    with superuser(postgres) as cursor:
        cursor.execute(SQL("TRUNCATE {}").format(Identifier(SCHEMA, table)))
        user = Identifier(str(connection.settings_dict["USER"]))
        cursor.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(SCHEMA), user))
        cursor.execute(SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}").format(Identifier(SCHEMA), user))
        cursor.execute("CHECKPOINT")
    with transaction.atomic():
        with connection.cursor() as own:
            own.execute(f"SET LOCAL search_path TO {SCHEMA}, public")
        began = time.perf_counter()
        manager.bulk_create(rows, batch_size=BATCH)
        return len(rows) / (time.perf_counter() - began)
