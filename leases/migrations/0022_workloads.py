"""Indexes of the workload pages."""

import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0021_containing"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(
                models.F("cluster"),
                models.F("service_account_namespace"),
                models.F("service_account"),
                django.db.models.functions.comparison.Coalesce("database", 0),
                models.OrderBy(
                    django.db.models.functions.comparison.Coalesce("accessed_at", "first_seen_at"), descending=True
                ),
                models.OrderBy(models.F("id"), descending=True),
                condition=models.Q(("service_account", ""), _negated=True),
                name="lease_of_workload",
            ),
        ),
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(
                condition=models.Q(
                    models.Q(("state", "ended"), _negated=True), models.Q(("service_account", ""), _negated=True)
                ),
                fields=["cluster", "service_account_namespace", "service_account", "vault", "database", "certainty"],
                name="lease_open_of_workload",
            ),
        ),
        migrations.AddIndex(
            model_name="login",
            index=models.Index(
                condition=models.Q(
                    models.Q(("auth_mount", None), _negated=True), models.Q(("service_account", ""), _negated=True)
                ),
                fields=["service_account_namespace", "service_account", "-logged_in_at", "-id"],
                name="login_of_account",
            ),
        ),
    ]
