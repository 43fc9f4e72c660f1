"""Raw blocks, rejected lines and the history of attribution are evidence."""

from django.db import migrations

from leases.roles import append_only


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial"), ("leases", "0003_append_only")]
    operations = [append_only("audit_rawblock", "audit_rejectedline", "audit_attributionchange")]
