"""Indexes for the graph of which service account used which database. Each names the query it serves."""

from django.db import migrations, models
from django.db.models import Q

WHO = ["vault", "database", "cluster", "service_account_namespace", "service_account", "certainty"]


class Migration(migrations.Migration):
    dependencies = [("leases", "0022_workloads")]
    operations = [
        # usage.by_account(): every read of a period, by nothing but this index
        migrations.AddIndex(
            "lease",
            models.Index(fields=["accessed_at"], name="lease_reads", include=WHO, condition=~Q(accessed_at=None)),
        ),
        # usage.by_account(): what is live, by nothing but this index and already in groups
        migrations.AddIndex("lease", models.Index(fields=WHO, name="lease_open_holders", condition=~Q(state="ended"))),
    ]
