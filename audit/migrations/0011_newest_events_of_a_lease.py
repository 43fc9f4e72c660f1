"""The newest events of a lease come out of the index in their order, however often it was renewed."""

from django.db import migrations

FORWARD = """
-- queries.lease_events()
CREATE INDEX event_newest_of_lease ON audit_event (lease_name_id, at) WHERE lease_name_id IS NOT NULL;
DROP INDEX event_by_lease;
"""
BACK = """
CREATE INDEX event_by_lease ON audit_event (lease_name_id) WHERE lease_name_id IS NOT NULL;
DROP INDEX event_newest_of_lease;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0010_token_ends")]
    operations = [migrations.RunSQL(FORWARD, BACK)]
