"""Who had an address, and which pods had just started, stay cheap to ask however long the history of pods grows."""

import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0004_retention_policy"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="podaddress",
            name="pod_address_by_address",
        ),
        migrations.AddIndex(
            model_name="pod",
            index=models.Index(
                fields=["cluster", "namespace", "service_account", "started_at"], name="pod_by_service_account"
            ),
        ),
        migrations.AddIndex(
            model_name="podaddress",
            index=models.Index(
                models.F("address"),
                django.db.models.functions.comparison.Coalesce(
                    "to_at", models.Value("infinity"), output_field=models.DateTimeField()
                ),
                models.F("from_at"),
                name="pod_address_by_address",
            ),
        ),
    ]
