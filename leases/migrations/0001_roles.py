"""Before any table: what the application's role may do with those to come."""

from django.db import migrations

from leases.roles import grant_to_application


class Migration(migrations.Migration):
    initial = True
    dependencies: list[tuple[str, str]] = []
    run_before = [("contenttypes", "0001_initial"), ("auth", "0001_initial"), ("sessions", "0001_initial")]
    operations = [migrations.RunPython(grant_to_application, migrations.RunPython.noop)]
