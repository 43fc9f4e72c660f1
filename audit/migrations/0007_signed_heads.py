"""Signed documents about the heads of the chains, and how their delivery is doing."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0006_push_token"),
    ]

    operations = [
        migrations.CreateModel(
            name="HeadsDocument",
            fields=[
                ("number", models.PositiveIntegerField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
                ("name", models.TextField()),
                ("sha256", models.TextField()),
                ("document", models.TextField(blank=True)),
                ("delivered_to", models.JSONField(default=list)),
                ("delivered_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("delivered_at", None)), fields=["number"], name="document_that_waits"
                    )
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("delivered_at", None), ("document", ""), _connector="XOR"),
                        name="a_document_is_kept_until_it_is_delivered",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Signing",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("since", models.DateTimeField()),
                ("tried_at", models.DateTimeField(null=True)),
                ("cause", models.TextField(blank=True)),
                ("fix", models.TextField(blank=True)),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("pk", 1)), name="there_is_one_signing")],
            },
        ),
    ]
