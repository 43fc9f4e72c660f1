"""The own logs of database servers, as they are followed."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0011_newest_events_of_a_lease"),
        ("leases", "0014_database_sessions"),
    ]

    operations = [
        migrations.CreateModel(
            name="DatabaseLog",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("path", models.TextField()),
                ("format", models.TextField(choices=[("jsonlog", "Json"), ("csvlog", "Csv")])),
                ("retired", models.BooleanField(default=False)),
                ("file", models.TextField(blank=True)),
                ("file_began", models.DateTimeField(null=True)),
                ("file_inode", models.TextField(blank=True)),
                ("file_start", models.TextField(blank=True)),
                ("offset", models.BigIntegerField(default=0)),
                ("read_at", models.DateTimeField(null=True)),
                ("unread_bytes", models.BigIntegerField(default=0)),
                ("lines", models.BigIntegerField(default=0)),
                ("invalid", models.BigIntegerField(default=0)),
                ("connections", models.BigIntegerField(default=0)),
                ("disconnections", models.BigIntegerField(default=0)),
                ("rejected", models.BigIntegerField(default=0)),
                ("first_line_at", models.DateTimeField(null=True)),
                ("last_line_at", models.DateTimeField(null=True)),
                ("connected_at", models.DateTimeField(null=True)),
                ("complete_since", models.DateTimeField(null=True)),
                ("hole", models.TextField(blank=True)),
                ("hole_at", models.DateTimeField(null=True)),
                ("databases", models.ManyToManyField(related_name="logs", to="leases.database")),
                (
                    "server",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, to="leases.databaseserver"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ServerStart",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "log",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="starts", to="audit.databaselog"
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="databaselog",
            constraint=models.UniqueConstraint(fields=("path", "format"), name="a_log_is_followed_once"),
        ),
        migrations.AddConstraint(
            model_name="serverstart",
            constraint=models.UniqueConstraint(fields=("log", "at"), name="a_server_starts_once_at_a_time"),
        ),
    ]
