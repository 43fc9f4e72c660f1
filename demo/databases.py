"""The databases inside the demo's PostgreSQL server: the product's own, and the two that the applications use."""

from typing import LiteralString

import psycopg
from psycopg import sql

from demo.postgres import Postgres
from demo.workloads import DATABASES

MONITOR, RESPONDER = "leasehold_monitor", "leasehold_responder"

_TABLES: dict[str, LiteralString] = {
    "orders": """
        CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, city text NOT NULL);
        CREATE TABLE products (id bigint PRIMARY KEY, name text NOT NULL, price numeric(10, 2) NOT NULL);
        CREATE TABLE orders (
            id bigint PRIMARY KEY,
            customer_id bigint NOT NULL REFERENCES customers,
            status text NOT NULL,
            ordered_at timestamptz NOT NULL
        );
        INSERT INTO customers SELECT n, 'Customer ' || n, (ARRAY['Oslo', 'Porto', 'Gdańsk', 'Kobe'])[1 + n % 4]
            FROM generate_series(1, 200) AS n;
        INSERT INTO products SELECT n, 'Product ' || n, 5 + n * 1.5 FROM generate_series(1, 60) AS n;
        INSERT INTO orders SELECT n, 1 + n * 7 % 200, (ARRAY['new', 'paid', 'sent', 'returned'])[1 + n % 4],
            now() - n * interval '7 minutes' FROM generate_series(1, 2000) AS n;
    """,
    "billing": """
        CREATE TABLE accounts (id bigint PRIMARY KEY, holder text NOT NULL);
        CREATE TABLE invoices (
            id bigint PRIMARY KEY,
            account_id bigint NOT NULL REFERENCES accounts,
            amount numeric(12, 2) NOT NULL,
            issued_at timestamptz NOT NULL,
            paid_at timestamptz
        );
        INSERT INTO accounts SELECT n, 'Account ' || n FROM generate_series(1, 80) AS n;
        INSERT INTO invoices SELECT n, 1 + n * 3 % 80, 10 + n % 90, now() - n * interval '1 hour',
            CASE WHEN n % 3 > 0 THEN now() - n * interval '20 minutes' END FROM generate_series(1, 900) AS n;
    """,
}


def prepare(postgres: Postgres) -> None:
    """Make every role and database. Passwords are random and kept by `postgres` (see Postgres.dsn)."""
    _prepare_product(postgres)
    postgres.create_role(MONITOR, "NOSUPERUSER")
    postgres.create_role(RESPONDER, "NOSUPERUSER")
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(MONITOR)))
        connection.execute(
            sql.SQL("GRANT pg_read_all_stats, pg_signal_backend TO {}").format(sql.Identifier(RESPONDER))
        )
    for database in DATABASES:
        prepare_target(postgres, database)


def connection_account(database: str) -> str:
    """The account that Vault's database mount connects with."""
    return f"openbao_{database}"


def _prepare_product(postgres: Postgres) -> None:
    postgres.create_role("leasehold_owner", "NOSUPERUSER")
    postgres.create_role("leasehold_app", "NOSUPERUSER")
    postgres.create_database("leasehold", owner="leasehold_owner")
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        # otherwise every dynamic user of this server may connect to the product's database
        connection.execute("REVOKE ALL ON DATABASE leasehold FROM PUBLIC")
        connection.execute("GRANT CONNECT ON DATABASE leasehold TO leasehold_app")


def prepare_target(postgres: Postgres, database: str) -> None:
    """One of DATABASES: its tables, their owner, and the account for Vault, which is no superuser."""
    owner, account = f"{database}_owner", connection_account(database)
    postgres.create_role(owner, "NOSUPERUSER")
    postgres.create_role(account, "NOSUPERUSER", "CREATEROLE")
    postgres.create_database(database, owner=owner)
    with psycopg.connect(postgres.dsn(owner, database)) as connection:
        if connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'").fetchone():
            return
        connection.execute(_TABLES[database])
        connection.execute(
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {} WITH GRANT OPTION").format(
                sql.Identifier(account)
            )
        )
