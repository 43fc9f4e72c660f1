"""Rights of the application's database role, for migrations: it owns no table, and history it may only add to."""

from typing import Any

from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def _application(schema_editor: BaseDatabaseSchemaEditor) -> str:
    return str(schema_editor.connection.ops.quote_name(settings.DATABASES["default"]["USER"]))


def grant_to_application(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Rights on all that exists and on all that later migrations make. Refuses to run as the application's own role."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        if cursor.fetchone()[0] == settings.DATABASES["default"]["USER"]:
            raise RuntimeError(
                "Migrations must run as the owner role, not as the application's: set LEASEHOLD_OWNER_DATABASE_URL."
            )
        role = _application(schema_editor)
        cursor.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        cursor.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")  # django_migrations
        cursor.execute(
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
        )
        cursor.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {role}")


def append_only(*tables: str) -> migrations.RunPython:
    """An operation after which the application's role can read and add rows of these tables, and nothing else."""

    def revoke(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
        role = _application(schema_editor)
        for table in tables:
            schema_editor.execute(f"REVOKE UPDATE, DELETE, TRUNCATE ON {schema_editor.quote_name(table)} FROM {role}")

    return migrations.RunPython(revoke, migrations.RunPython.noop)
