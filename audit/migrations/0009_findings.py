"""Findings and their history, which is append-only; when a device was last seen to be gone or enabled anew."""

import django.db.models.deletion
from django.db import migrations, models

from leases.roles import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0008_tokens_of_tokens"),
    ]

    operations = [
        migrations.CreateModel(
            name="Look",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                ("seconds", models.FloatField()),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("pk", 1)), name="there_is_one_look")],
            },
        ),
        migrations.CreateModel(
            name="Finding",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.TextField(
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
                        ]
                    ),
                ),
                ("key", models.TextField()),
                ("severity", models.PositiveSmallIntegerField(choices=[(1, "low"), (2, "medium"), (3, "high")])),
                ("vault", models.TextField(blank=True)),
                ("summary", models.TextField()),
                ("culprit", models.TextField(blank=True)),
                ("service_account_namespace", models.TextField(blank=True)),
                ("service_account", models.TextField(blank=True)),
                ("evidence", models.JSONField(default=list)),
                ("weight", models.BigIntegerField(default=1)),
                ("newest_at", models.DateTimeField(null=True)),
                ("first_seen_at", models.DateTimeField()),
                ("last_seen_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
                ("closed_why", models.TextField(blank=True)),
                ("closed_by", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="FindingChange",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "change",
                    models.TextField(
                        choices=[
                            ("opened", "Opened"),
                            ("worsened", "Worsened"),
                            ("reopened", "Reopened"),
                            ("closed", "Closed"),
                        ]
                    ),
                ),
                ("severity", models.PositiveSmallIntegerField(choices=[(1, "low"), (2, "medium"), (3, "high")])),
                ("why", models.TextField()),
                ("by", models.TextField(blank=True)),
            ],
        ),
        migrations.AddField(
            model_name="device",
            name="missing_since",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="device",
            name="salt_changed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddIndex(
            model_name="what",
            index=models.Index(
                condition=models.Q(
                    ("path__startswith", "sys/audit/"), ("path__startswith", "identity/entity"), _connector="OR"
                ),
                fields=["path"],
                name="what_is_rare",
            ),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(
                condition=models.Q(("closed_at", None)),
                fields=["-severity", "-first_seen_at", "-id"],
                name="finding_open",
            ),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", False)), fields=["-closed_at", "-id"], name="finding_closed"
            ),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(fields=["key", "-last_seen_at"], name="finding_by_key"),
        ),
        migrations.AddIndex(
            model_name="finding",
            index=models.Index(fields=["last_seen_at"], name="finding_seen"),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.UniqueConstraint(
                condition=models.Q(("closed_at", None)), fields=("kind", "key"), name="one_open_finding_of_a_thing"
            ),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("closed_at", None), ("closed_by", ""), ("closed_why", "")),
                    models.Q(("closed_at__isnull", False), models.Q(("closed_why", ""), _negated=True)),
                    _connector="OR",
                ),
                name="a_closed_finding_says_why",
            ),
        ),
        migrations.AddConstraint(
            model_name="finding",
            constraint=models.CheckConstraint(
                condition=models.Q(("last_seen_at__gte", models.F("first_seen_at"))),
                name="a_finding_is_seen_first_before_last",
            ),
        ),
        migrations.AddField(
            model_name="findingchange",
            name="finding",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="changes", to="audit.finding"
            ),
        ),
        migrations.AddIndex(
            model_name="findingchange",
            index=models.Index(fields=["finding", "at", "id"], name="changes_of_finding"),
        ),
        append_only("audit_findingchange"),
    ]
