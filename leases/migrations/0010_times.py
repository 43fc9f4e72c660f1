"""What watching costs a vault, lists by role, child namespaces, and the active node."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("leases", "0009_owners_and_syncs")]

    operations = [
        migrations.AddField(
            "vault", "active_address", models.TextField(blank=True, default=""), preserve_default=False
        ),
        migrations.AddField("vault", "audit_bytes_per_hour", models.PositiveBigIntegerField(default=64_000_000)),
        migrations.AddField("vault", "audit_devices", models.PositiveSmallIntegerField(default=1)),
        migrations.AddField("vault", "follow_leader", models.BooleanField(default=True)),
        migrations.AddField("vault", "listing_devices", models.PositiveSmallIntegerField(default=1)),
        migrations.AddField("vault", "lookups_per_second", models.PositiveIntegerField(default=600)),
        migrations.AddField("vault", "namespaces", models.JSONField(default=list)),
        migrations.AddField("vault", "round_at", models.DateTimeField(null=True)),
        migrations.CreateModel(
            name="ApiCost",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hour", models.DateTimeField()),
                (
                    "kind",
                    models.TextField(
                        choices=[
                            ("lookup", "Lookup"),
                            ("list", "List"),
                            ("hash", "Hash"),
                            ("capabilities", "Capabilities"),
                            ("login", "Login"),
                            ("other", "Other"),
                        ]
                    ),
                ),
                ("requests", models.PositiveBigIntegerField()),
                ("audit_bytes", models.PositiveBigIntegerField()),
                ("first_at", models.DateTimeField()),
                (
                    "vault",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="costs",
                        to="leases.vault",
                        db_index=False,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=["vault", "hour", "kind"], name="cost_of_an_hour_is_one_row")
                ]
            },
        ),
        migrations.CreateModel(
            name="RoleList",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("vault_namespace", models.TextField(blank=True)),
                ("mount", models.TextField()),
                ("role", models.TextField(blank=True)),
                ("listed_at", models.DateTimeField(null=True)),
                ("leases", models.PositiveIntegerField(default=0)),
                ("put_off", models.TextField(blank=True)),
                ("tried_at", models.DateTimeField(null=True)),
                (
                    "vault",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="role_lists",
                        to="leases.vault",
                        db_index=False,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=["vault", "vault_namespace", "mount", "role"], name="a_role_is_listed_once"
                    )
                ]
            },
        ),
        migrations.AddIndex(
            "lease",
            models.Index(
                fields=["vault", "vault_namespace", "mount", "role"],
                name="lease_live_of_role",
                condition=~models.Q(state="ended"),
            ),
        ),
    ]
