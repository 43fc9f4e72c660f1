"""Findings about where credentials are used, and names of database users that a vault was asked to hash."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0012_database_logs"),
    ]

    operations = [
        migrations.AlterField(
            model_name="finding",
            name="kind",
            field=models.TextField(
                choices=[
                    ("lease explosion", "Explosion"),
                    ("lease outlives its pod", "Outlives Pod"),
                    ("holder unknown", "Holder Unknown"),
                    ("TTL over policy", "Over Ttl"),
                    ("irrevocable lease", "Irrevocable"),
                    ("issued twice at start", "Issued Twice"),
                    ("root token used", "Root Token"),
                    ("static database role read", "Static Role"),
                    ("repeated denials", "Denials"),
                    ("entity disabled or re-enabled", "Entity Changed"),
                    ("audit device disabled", "Device Disabled"),
                    ("audit device enabled anew", "Device Anew"),
                    ("audit device logs raw secrets", "Raw Device"),
                    ("audit lines missing", "Gap"),
                    ("stream behind", "Lag"),
                    ("pod watch gap", "Watch Gap"),
                    ("contradicting lines", "Conflict"),
                    ("revocation failed", "Revocation Failed"),
                    ("credential used from elsewhere", "Elsewhere"),
                    ("login from elsewhere", "Login Elsewhere"),
                    ("database user without a lease", "Ghost User"),
                    ("lease without a database user", "No User"),
                    ("session outlives its user", "User Vanished"),
                ]
            ),
        ),
        migrations.CreateModel(
            name="AskedName",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("salt_epoch", models.PositiveIntegerField()),
                ("name", models.TextField()),
                ("hash", models.TextField()),
                ("asked_at", models.DateTimeField()),
                ("due_at", models.DateTimeField()),
                ("device", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="audit.device")),
            ],
            options={
                "indexes": [models.Index(fields=["due_at"], name="asked_name_due")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("name", "device", "salt_epoch"), name="a_name_is_asked_once_for_each_salt"
                    )
                ],
            },
        ),
    ]
