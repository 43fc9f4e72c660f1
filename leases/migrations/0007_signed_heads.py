"""Which key signs the heads of the chains, and where they are delivered to."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0006_own_requests"),
    ]

    operations = [
        migrations.AddField(
            model_name="policy",
            name="heads_deliver_to",
            field=models.JSONField(default=list),
        ),
        migrations.AddField(
            model_name="policy",
            name="heads_key",
            field=models.JSONField(null=True),
        ),
    ]
