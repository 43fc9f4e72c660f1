"""Indexes for reads that stay quick at hundreds of thousands of leases. Each names the query it serves."""

import django.db.models.functions.comparison
from django.db import migrations, models
from django.db.models import F, OrderBy, Q

NEWEST_FIRST = (
    OrderBy(django.db.models.functions.comparison.Coalesce("accessed_at", "first_seen_at"), descending=True),
    OrderBy(F("id"), descending=True),
)

# Ranges of integers and of times both have GiST support built in: no extension is needed.
# A lease is live in [credential read, end); one that is told to have ended before it began never was.
SPAN = """
-- audit/timemachine.py: leases of one database that were live at an instant (0: the database is not known)
CREATE INDEX lease_lived ON leases_lease USING gist (
  int8range(COALESCE(database_id, 0), COALESCE(database_id, 0), '[]'),
  tstzrange(
    COALESCE(accessed_at, issued_at, first_seen_at),
    CASE WHEN ended_at < COALESCE(accessed_at, issued_at, first_seen_at)
      THEN COALESCE(accessed_at, issued_at, first_seen_at) ELSE ended_at END
  )
);
-- timemachine.older_than_seen()
CREATE INDEX lease_issue_unknown ON leases_lease (database_id, first_seen_at) WHERE accessed_at IS NULL AND issued_at IS NULL;
-- timemachine.forced_before()
CREATE INDEX lease_forced ON leases_lease (database_id, ended_at, id) WHERE end_reason = 'forced (database user may live)';
"""


class Migration(migrations.Migration):
    dependencies = [("leases", "0010_times")]
    operations = [
        migrations.AddIndex(
            "lease", models.Index(*NEWEST_FIRST, name="lease_open_newest", condition=~Q(state="ended"))
        ),
        migrations.AddIndex(
            "lease",
            models.Index(*NEWEST_FIRST, name="lease_stuck_newest", condition=Q(state__in=["revoking", "irrevocable"])),
        ),
        migrations.AddIndex(
            "lease",
            models.Index(
                F("database"), *NEWEST_FIRST, name="lease_of_database", include=["accessed_at", "first_seen_at"]
            ),
        ),
        migrations.AddIndex(
            "lease", models.Index(*NEWEST_FIRST, name="lease_of_no_database", condition=Q(database=None))
        ),
        migrations.AddIndex("lease", models.Index(F("service_account"), *NEWEST_FIRST, name="lease_of_account")),
        migrations.AddIndex(
            "lease",
            models.Index(
                fields=["vault", "database", "certainty", "state"],
                name="lease_open_counts",
                condition=~Q(state="ended"),
            ),
        ),
        migrations.RunSQL(SPAN, "DROP INDEX lease_lived, lease_issue_unknown, lease_forced"),
    ]
