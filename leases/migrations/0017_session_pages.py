"""Indexes of pages about sessions."""

from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.functions import Coalesce


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0016_places"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="session",
            index=models.Index(
                F("database"),
                F("started_at").desc(),
                F("id").desc(),
                name="session_open_of_database",
                condition=Q(ended_at=None),
            ),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(
                F("database"),
                F("started_at").desc(),
                F("id").desc(),
                name="session_untied_of_database",
                condition=Q(lease=None),
            ),
        ),
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(
                F("pod_uid"),
                Coalesce("accessed_at", "first_seen_at").desc(),
                F("id").desc(),
                name="lease_of_pod",
                condition=~Q(pod_uid=""),
            ),
        ),
    ]
