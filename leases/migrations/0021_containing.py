"""Containing a service account: how far its worker has come, what was found in the vaults before, and who logs in as an entity."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0019_pace"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="containment",
            name="one_containment_of_a_service_account",
        ),
        migrations.AddField(
            model_name="containment",
            name="begun_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="containment",
            name="disabled_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="containment",
            name="stage",
            field=models.TextField(
                choices=[("identities", "Identities"), ("leases", "Leases"), ("tokens", "Tokens"), ("check", "Check")],
                db_default="identities",
                default="identities",
            ),
        ),
        migrations.AddField(
            model_name="containment",
            name="tokens",
            field=models.JSONField(db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddField(
            model_name="plan",
            name="found",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="plan",
            name="found_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AlterField(
            model_name="containment",
            name="state",
            field=models.TextField(
                choices=[
                    ("containing", "Containing"),
                    ("contained", "Contained"),
                    ("failed", "Failed"),
                    ("lifting", "Lifting"),
                    ("lifted", "Lifted"),
                    ("refused", "Refused"),
                ],
                default="containing",
            ),
        ),
        migrations.AddIndex(
            model_name="containment",
            index=models.Index(
                condition=models.Q(("state__in", ["containing", "lifting"])),
                fields=["claimed_until"],
                name="containment_under_way",
            ),
        ),
        migrations.AddIndex(
            model_name="login",
            index=models.Index(
                condition=models.Q(("entity_id", ""), _negated=True),
                fields=["entity_id", "service_account_namespace", "service_account"],
                name="login_of_entity",
            ),
        ),
        migrations.AddConstraint(
            model_name="containment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state__in", ["containing", "contained", "failed", "lifting"])),
                fields=("cluster", "namespace", "service_account"),
                name="one_containment_of_a_service_account",
            ),
        ),
    ]
