"""The table behind the log-in throttle."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    # the application's rights on new tables are granted there
    dependencies = [("leases", "0001_roles")]
    operations = [
        migrations.CreateModel(
            name="FailedLogin",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("who", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={"indexes": [models.Index(fields=["who", "at"], name="failed_login_by_who")]},
        ),
    ]
