"""Which version a vault says that it is: commands to copy begin with its own client's name."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0023_usage"),
    ]

    operations = [
        migrations.AddField(
            model_name="vault",
            name="version",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
    ]
