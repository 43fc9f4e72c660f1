"""Indexes of the search box and of the audit search page.

Of events they are by one number each, in daily partitions: PostgreSQL keeps equal keys together, so that each takes some 7 bytes
a row. With the time beside the number they would take 31. Texts that a client chooses are in an index only up to a length.
"""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

FORWARD = """
-- event_queries.events_page(): by service account or identity, by path, by address, with an error only
CREATE INDEX event_by_who ON audit_event (who_id);
CREATE INDEX event_by_what ON audit_event (what_id);
CREATE INDEX event_by_address ON audit_event (address_id);
CREATE INDEX event_with_error ON audit_event (at) WHERE error_text_id IS NOT NULL;
-- event_queries: a path or its beginning, a service account, a display name, an entity
CREATE INDEX what_by_path ON audit_what (left(path, 200) text_pattern_ops);
CREATE INDEX who_by_account ON audit_who (left(metadata->>'service_account_name', 253));
CREATE INDEX who_by_name ON audit_who (left(display_name, 200));
CREATE INDEX who_by_entity ON audit_who (left(entity_id, 200));
-- search_reads: identities with a policy
CREATE INDEX who_by_policy ON audit_who USING gin (policies jsonb_path_ops);
-- event_queries.conflicts_of()
CREATE INDEX conflict_by_request ON audit_conflict (left(request_id, 200));
-- search_reads: a login by its entity or display name
CREATE INDEX login_by_entity ON leases_login (left(entity_id, 200), id) WHERE entity_id <> '';
CREATE INDEX login_by_name ON leases_login (left(display_name, 200), id) WHERE display_name <> '';
-- search_reads: the beginning of a lease id, and of its last part
CREATE INDEX lease_by_start ON leases_lease (left(lease_id, 200) text_pattern_ops);
CREATE INDEX lease_by_last_part ON leases_lease (left(substring(lease_id from '[^/]*$'), 200) text_pattern_ops);
-- search_reads: a pod's uid, the beginning of a pod's or an account's name
CREATE INDEX lease_by_pod_name ON leases_lease (left(pod, 253) text_pattern_ops) WHERE pod <> '';
CREATE INDEX lease_by_account_name ON leases_lease (left(service_account, 253) text_pattern_ops) WHERE service_account <> '';
CREATE INDEX pod_by_uid ON leases_pod (left(uid, 253));
CREATE INDEX pod_by_name ON leases_pod (left(name, 253) text_pattern_ops);
-- search_reads: what was done from an address
CREATE INDEX lease_by_address ON leases_lease (left(source_ip, 100), id) WHERE source_ip <> '';
CREATE INDEX service_account_by_name ON leases_serviceaccount (left(name, 253) text_pattern_ops);
CREATE INDEX session_by_address ON leases_session (left(address, 100), started_at) WHERE address <> '';
"""
NAMES = [line.split()[2] for line in FORWARD.splitlines() if line.startswith("CREATE INDEX")]
BACK = "DROP INDEX " + ", ".join(NAMES) + ";"


class Migration(migrations.Migration):
    dependencies = [("audit", "0015_comebacks"), ("leases", "0018_acting")]
    operations = [
        migrations.CreateModel(
            name="AskedHash",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("question", models.UUIDField()),
                ("hash", models.TextField(blank=True)),
                ("cause", models.TextField(blank=True)),
                ("at", models.DateTimeField()),
                (
                    "device",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="audit.device"),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("question", "device"), name="a_device_answers_a_question_once"),
                    models.CheckConstraint(
                        condition=Q(
                            Q(("hash", ""), ~Q(("cause", ""))), Q(~Q(("hash", "")), ("cause", "")), _connector="OR"
                        ),
                        name="an_answer_is_a_hash_or_a_cause",
                    ),
                ],
            },
        ),
        migrations.RunSQL(FORWARD, BACK),
    ]
