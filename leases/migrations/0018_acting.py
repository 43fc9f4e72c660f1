"""What acting needs: plans, jobs, containments, and the accounts and limits for them."""

import uuid

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0017_session_pages"),
    ]

    operations = [
        migrations.CreateModel(
            name="ContainedEntity",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("vault_namespace", models.TextField(blank=True)),
                ("entity_id", models.TextField()),
                ("name", models.TextField(blank=True)),
                ("aliases", models.JSONField(default=list)),
                ("was_disabled", models.BooleanField(default=False)),
                ("disabled_at", models.DateTimeField(null=True)),
                ("restored_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Containment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("cluster", models.TextField()),
                ("namespace", models.TextField()),
                ("service_account", models.TextField()),
                (
                    "state",
                    models.TextField(
                        choices=[
                            ("containing", "Containing"),
                            ("contained", "Contained"),
                            ("failed", "Failed"),
                            ("lifting", "Lifting"),
                            ("lifted", "Lifted"),
                        ],
                        default="containing",
                    ),
                ),
                ("at", models.DateTimeField()),
                ("lifted_at", models.DateTimeField(null=True)),
                ("claimed_until", models.DateTimeField(null=True)),
                ("updated_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.TextField(
                        choices=[
                            ("waiting for approval", "Waiting"),
                            ("refused", "Refused"),
                            ("running", "Running"),
                            ("stopped", "Stopped"),
                            ("done", "Done"),
                        ],
                        default="running",
                    ),
                ),
                ("needs_approval", models.BooleanField(default=False)),
                ("decided_by", models.TextField(blank=True)),
                ("decided_at", models.DateTimeField(null=True)),
                ("stopped_by", models.TextField(blank=True)),
                ("stopped_at", models.DateTimeField(null=True)),
                ("claimed_until", models.DateTimeField(null=True)),
                ("updated_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Plan",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.TextField(
                        choices=[
                            ("revoke", "Revoke"),
                            ("force revoke", "Force"),
                            ("contain", "Contain"),
                            ("undo containment", "Undo"),
                        ]
                    ),
                ),
                ("scope", models.JSONField(default=dict)),
                ("leases", models.JSONField(default=list)),
                ("by", models.TextField()),
                ("at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="action",
            name="scope",
            field=models.JSONField(db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddField(
            model_name="action",
            name="ticket",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
        migrations.AddField(
            model_name="database",
            name="respond",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="policy",
            name="approval_above",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="policy",
            name="confirm_above",
            field=models.PositiveIntegerField(db_default=5, default=5),
        ),
        migrations.AddField(
            model_name="revocation",
            name="sessions",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="vault",
            name="revocations_per_second",
            field=models.PositiveIntegerField(db_default=20, default=20),
        ),
        migrations.AlterField(
            model_name="revocation",
            name="state",
            field=models.TextField(
                choices=[
                    ("requested", "Requested"),
                    ("revoking", "Revoking"),
                    ("verifying", "Verifying"),
                    ("verified", "Verified"),
                    ("unverified", "Unverified"),
                    ("failed", "Failed"),
                    ("stopped", "Stopped"),
                ],
                default="requested",
            ),
        ),
        migrations.AddIndex(
            model_name="revocation",
            index=models.Index(fields=["action", "state", "id"], name="revocation_of_action"),
        ),
        migrations.AddField(
            model_name="containedentity",
            name="vault",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="leases.vault"),
        ),
        migrations.AddField(
            model_name="containment",
            name="action",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="containment", to="leases.action"
            ),
        ),
        migrations.AddField(
            model_name="containment",
            name="undo",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="undone_containment",
                to="leases.action",
            ),
        ),
        migrations.AddField(
            model_name="containedentity",
            name="containment",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="entities", to="leases.containment"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="action",
            field=models.OneToOneField(
                on_delete=django.db.models.deletion.PROTECT, related_name="job", to="leases.action"
            ),
        ),
        migrations.AddField(
            model_name="plan",
            name="action",
            field=models.OneToOneField(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="plan", to="leases.action"
            ),
        ),
        migrations.AddConstraint(
            model_name="containment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "lifted"), _negated=True),
                fields=("cluster", "namespace", "service_account"),
                name="one_containment_of_a_service_account",
            ),
        ),
        migrations.AddConstraint(
            model_name="containment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "lifted"), _negated=True),
                    models.Q(("lifted_at__isnull", False), ("undo__isnull", False)),
                    _connector="OR",
                ),
                name="what_is_lifted_was_undone_by_somebody",
            ),
        ),
        migrations.AddConstraint(
            model_name="containedentity",
            constraint=models.UniqueConstraint(
                fields=("containment", "vault", "entity_id"), name="entity_is_contained_once"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(condition=models.Q(("state", "running")), fields=["claimed_until"], name="job_running"),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("state", "waiting for approval")), fields=["id"], name="job_waiting"
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("needs_approval", False),
                    ("state", "waiting for approval"),
                    models.Q(("decided_by", ""), _negated=True),
                    _connector="OR",
                ),
                name="what_needs_approval_runs_only_when_somebody_decided",
            ),
        ),
    ]
