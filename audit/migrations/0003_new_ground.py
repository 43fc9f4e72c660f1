"""Makes way for interned events in daily partitions. Nothing that is evidence is thrown away: with blocks in it, this refuses."""

from typing import Any

from django.db import migrations


def refuse_with_blocks(apps: Any, schema_editor: Any) -> None:
    if apps.get_model("audit", "RawBlock").objects.using(schema_editor.connection.alias).exists():
        raise RuntimeError(
            "This database holds raw blocks of Leasehold 0.1, whose chain this version does not continue. Keep that database "
            "as it is for its evidence, and let this version start with a new one; it can read the audit files again."
        )


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_append_only")]
    operations = [
        migrations.RunPython(refuse_with_blocks, migrations.RunPython.noop),
        # without blocks there is nothing that a position could stand behind
        migrations.RunSQL(
            "UPDATE audit_stream SET file_inode = '', file_start = '', \"offset\" = 0, sequence = 0, head = '', lines = 0,"
            " duplicates = 0, rejected = 0, redacted = 0, conflicts = 0, last_line_at = NULL",
            migrations.RunSQL.noop,
        ),
        migrations.DeleteModel("Sighting"),
        migrations.DeleteModel("LoginKey"),
        migrations.DeleteModel("Event"),
        migrations.DeleteModel("RejectedLine"),
        migrations.DeleteModel("RawBlock"),
    ]
