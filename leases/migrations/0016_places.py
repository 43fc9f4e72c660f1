"""Which sessions are still to be tied or judged, whose leases have changed for them, and the reads of both."""

import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("leases", "0015_sampling"),
    ]

    operations = [
        migrations.AddField(
            model_name="lease",
            name="sessions_due",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name="session",
            name="place_open",
            field=models.BooleanField(db_default=True, default=True),
        ),
        migrations.AddIndex(
            model_name="dynamicuser",
            index=models.Index(fields=["first_seen_at"], name="dynamic_user_new"),
        ),
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(condition=models.Q(("sessions_due", True)), fields=["id"], name="lease_sessions_due"),
        ),
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(
                models.F("database"),
                django.db.models.functions.comparison.Coalesce("issued_at", "accessed_at"),
                condition=models.Q(("database_user", "")),
                name="lease_without_user",
            ),
        ),
        migrations.AddIndex(
            model_name="lease",
            index=models.Index(
                condition=models.Q(("database_user_by", "time and name")), fields=["id"], name="lease_user_guessed"
            ),
        ),
        migrations.AddIndex(
            model_name="login",
            index=models.Index(
                condition=models.Q(("auth_mount", None), _negated=True), fields=["logged_in_at"], name="login_newest"
            ),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(condition=models.Q(("place_open", True)), fields=["id"], name="session_place_open"),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(
                condition=models.Q(("place", "elsewhere")), fields=["last_seen_at"], name="session_elsewhere_seen"
            ),
        ),
    ]
