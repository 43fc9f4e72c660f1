"""One pace for all revocations of a vault."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0018_acting"),
    ]

    operations = [
        migrations.CreateModel(
            name="Pace",
            fields=[
                (
                    "vault",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="leases.vault",
                    ),
                ),
                ("free_at", models.DateTimeField()),
            ],
        ),
    ]
