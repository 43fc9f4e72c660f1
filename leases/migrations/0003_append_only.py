"""Actions and their steps are history."""

from django.db import migrations

from leases.roles import append_only


class Migration(migrations.Migration):
    dependencies = [("leases", "0002_initial")]
    operations = [append_only("leases_action", "leases_actionstep")]
