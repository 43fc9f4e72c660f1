"""Who is told of findings, and which change of a finding was told to whom."""

import uuid

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0013_places"),
    ]

    operations = [
        migrations.CreateModel(
            name="Receiver",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.TextField(unique=True)),
                ("form", models.TextField(choices=[("json", "Json"), ("slack", "Slack")])),
                ("url", models.TextField(blank=True)),
                ("url_reference", models.JSONField(null=True)),
                ("secret", models.JSONField(null=True)),
                (
                    "severity",
                    models.PositiveSmallIntegerField(choices=[(1, "low"), (2, "medium"), (3, "high")], default=3),
                ),
                ("group_seconds", models.FloatField(default=10.0)),
                ("ca_file", models.TextField(blank=True)),
                ("insecure", models.BooleanField(default=False)),
                ("site_url", models.TextField(blank=True)),
                ("retired", models.BooleanField(default=False)),
                ("checked_at", models.DateTimeField(null=True)),
                ("cause", models.TextField(blank=True)),
                ("fix", models.TextField(blank=True)),
                ("failing_since", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("url", ""), ("url_reference__isnull", True), _connector="XOR"),
                        name="a_receiver_has_an_address_plain_or_by_reference",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("failing_since", None), models.Q(("cause", ""), _negated=True), _connector="OR"
                        ),
                        name="a_failing_receiver_names_its_cause",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("form", "json"), _negated=True), ("secret__isnull", False), _connector="OR"
                        ),
                        name="a_json_receiver_has_a_secret",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                (
                    "state",
                    models.TextField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("refused", "Refused"),
                            ("sent", "Sent"),
                            ("given up", "Given Up"),
                        ],
                        default="waiting",
                    ),
                ),
                ("reduced", models.BooleanField(default=False)),
                ("made_at", models.DateTimeField()),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("next_try_at", models.DateTimeField(null=True)),
                ("cause", models.TextField(blank=True)),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "receiver",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="notices", to="audit.receiver"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="NoticeLine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                (
                    "change",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="notice_lines",
                        to="audit.findingchange",
                    ),
                ),
                (
                    "finding",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="notice_lines", to="audit.finding"
                    ),
                ),
                (
                    "notice",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, related_name="lines", to="audit.notice"
                    ),
                ),
                (
                    "receiver",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="lines", to="audit.receiver"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("notice", None)),
                        fields=["receiver", "at", "id"],
                        name="notice_line_that_waits",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("receiver", "change"), name="a_receiver_is_told_of_a_change_once")
                ],
            },
        ),
        migrations.AddIndex(
            model_name="notice",
            index=models.Index(
                condition=models.Q(("ended_at__isnull", False)),
                fields=["receiver", "-ended_at"],
                name="notice_that_ended",
            ),
        ),
        migrations.AddConstraint(
            model_name="notice",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state__in", ["waiting", "refused"])),
                fields=("receiver",),
                name="one_open_notice_of_a_receiver",
            ),
        ),
        migrations.AddConstraint(
            model_name="notice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at", None), ("next_try_at__isnull", False), ("state__in", ["waiting", "refused"])),
                    models.Q(("ended_at__isnull", False), ("next_try_at", None), ("state__in", ["sent", "given up"])),
                    _connector="OR",
                ),
                name="an_open_notice_is_tried_again_and_an_ended_one_is_not",
            ),
        ),
        migrations.AddConstraint(
            model_name="notice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state__in", ["refused", "given up"]), _negated=True),
                    models.Q(("cause", ""), _negated=True),
                    _connector="OR",
                ),
                name="a_notice_that_was_not_taken_says_why",
            ),
        ),
    ]
