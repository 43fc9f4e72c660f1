"""What owns pods, service accounts, and what operators fetch for others."""

import django.db.models.deletion
import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0008_tokens_of_tokens"),
    ]

    operations = [
        migrations.CreateModel(
            name="PodOwner",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("uid", models.TextField()),
                ("kind", models.TextField()),
                ("namespace", models.TextField()),
                ("name", models.TextField()),
                ("owner_kind", models.TextField(blank=True)),
                ("owner_name", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="SecretSync",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("uid", models.TextField()),
                ("kind", models.TextField()),
                ("namespace", models.TextField()),
                ("name", models.TextField()),
                ("paths", models.JSONField(default=list)),
                ("generators", models.JSONField(default=list)),
                ("secret", models.TextField(blank=True)),
                ("created_at", models.DateTimeField()),
                ("deleted_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="ServiceAccount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("uid", models.TextField()),
                ("namespace", models.TextField()),
                ("name", models.TextField()),
                ("created_at", models.DateTimeField()),
                ("first_seen_at", models.DateTimeField()),
                ("deleted_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="SyncedLease",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("lease_id", models.TextField()),
                ("seen_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="WatchedKind",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.TextField()),
                ("resource_version", models.TextField(blank=True)),
                ("cause", models.TextField(blank=True)),
                ("fix", models.TextField(blank=True)),
                ("retry_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.AddField(
            model_name="cluster",
            name="fetchers",
            field=models.JSONField(default=list),
        ),
        migrations.AddField(
            model_name="pod",
            name="fetcher",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="pod",
            name="owner_uid",
            field=models.TextField(blank=True),
        ),
        migrations.AddField(
            model_name="pod",
            name="secrets",
            field=models.JSONField(default=list),
        ),
        migrations.AddField(
            model_name="pod",
            name="workload_kind",
            field=models.TextField(blank=True),
        ),
        migrations.AddField(
            model_name="pod",
            name="workload_name",
            field=models.TextField(blank=True),
        ),
        migrations.AddIndex(
            model_name="pod",
            index=models.Index(
                models.F("cluster"),
                models.F("namespace"),
                models.F("service_account"),
                django.db.models.functions.comparison.Coalesce(
                    "ended_at", models.Value("infinity"), output_field=models.DateTimeField()
                ),
                models.F("started_at"),
                name="pod_living",
            ),
        ),
        migrations.AddIndex(
            model_name="pod",
            index=models.Index(
                condition=models.Q(("owner_uid", ""), _negated=True),
                fields=["cluster", "owner_uid"],
                name="pod_by_owner",
            ),
        ),
        migrations.AddIndex(
            model_name="pod",
            index=models.Index(condition=models.Q(("ended_at", None)), fields=["cluster", "uid"], name="pod_not_ended"),
        ),
        migrations.AddIndex(
            model_name="pod",
            index=models.Index(
                condition=models.Q(("fetcher", True)),
                fields=["cluster", "namespace", "service_account"],
                name="pod_fetcher",
            ),
        ),
        migrations.AddField(
            model_name="podowner",
            name="cluster",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="pod_owners", to="leases.cluster"
            ),
        ),
        migrations.AddField(
            model_name="secretsync",
            name="cluster",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="secret_syncs", to="leases.cluster"
            ),
        ),
        migrations.AddField(
            model_name="serviceaccount",
            name="cluster",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="service_accounts", to="leases.cluster"
            ),
        ),
        migrations.AddField(
            model_name="syncedlease",
            name="sync",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="leases", to="leases.secretsync"
            ),
        ),
        migrations.AddField(
            model_name="watchedkind",
            name="cluster",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="watched_kinds", to="leases.cluster"
            ),
        ),
        migrations.AddConstraint(
            model_name="podowner",
            constraint=models.UniqueConstraint(fields=("cluster", "uid"), name="owner_uid_is_unique_in_its_cluster"),
        ),
        migrations.AddConstraint(
            model_name="secretsync",
            constraint=models.UniqueConstraint(fields=("cluster", "uid"), name="sync_uid_is_unique_in_its_cluster"),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.UniqueConstraint(
                fields=("cluster", "uid"), name="service_account_uid_is_unique_in_its_cluster"
            ),
        ),
        migrations.AddIndex(
            model_name="syncedlease",
            index=models.Index(fields=["lease_id"], name="synced_lease_by_id"),
        ),
        migrations.AddConstraint(
            model_name="syncedlease",
            constraint=models.UniqueConstraint(fields=("sync", "lease_id"), name="sync_names_a_lease_once"),
        ),
        migrations.AddConstraint(
            model_name="watchedkind",
            constraint=models.UniqueConstraint(
                fields=("cluster", "kind"), name="a_kind_is_watched_once_in_its_cluster"
            ),
        ),
        # the watch of pods goes on where it was
        migrations.RunSQL(
            "INSERT INTO leases_watchedkind (cluster_id, kind, resource_version, cause, fix) "
            "SELECT id, 'pods v1', resource_version, '', '' FROM leases_cluster WHERE resource_version <> ''",
            migrations.RunSQL.noop,
        ),
        migrations.RemoveField(
            model_name="cluster",
            name="resource_version",
        ),
    ]
