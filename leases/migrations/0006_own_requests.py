"""Own polls, noted until the audit log was searched for them."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("leases", "0005_pod_lookups")]
    operations = [
        migrations.CreateModel(
            name="OwnRequest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("request_id", models.TextField()),
                ("at", models.DateTimeField()),
                (
                    "vault",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="own_requests", to="leases.vault"
                    ),
                ),
            ],
            options={"indexes": [models.Index(fields=["vault", "at"], name="own_request_by_time")]},
        ),
    ]
