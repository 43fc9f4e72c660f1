"""Limits that the rules of audit.findings hold leases to."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0011_reads_at_scale"),
    ]

    operations = [
        migrations.AddField(
            model_name="database",
            name="max_lease_ttl_seconds",
            field=models.PositiveIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="policy",
            name="max_lease_ttl_seconds",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="policy",
            name="max_live_leases",
            field=models.PositiveIntegerField(default=0),
        ),
    ]
