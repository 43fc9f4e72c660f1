"""Events, sightings and raw lines in daily partitions; what the application's role may do with them.

The application's role owns nothing, so two functions of the owner's make days and drop old ones. Dropping is refused for any
day of the last 30, whatever the policy says: who takes over the application must not be able to wipe out what it did.
"""

from typing import Any

from django.conf import settings
from django.db import migrations

from leases.roles import append_only

TABLES = """
-- the widest columns first: no padding
CREATE TABLE audit_event (
  at timestamptz NOT NULL,
  request uuid NOT NULL,
  response_at timestamptz,
  vault_id integer NOT NULL,
  what_id integer NOT NULL,
  who_id integer NOT NULL,
  address_id integer NOT NULL,
  lease_name_id integer,
  error_text_id integer,
  stream_id integer NOT NULL,
  request_block integer,
  response_block integer,
  token_id integer,
  kind smallint NOT NULL,
  has_request boolean NOT NULL,
  own boolean NOT NULL,
  request_text text,
  CONSTRAINT an_event_has_a_half CHECK (has_request OR response_at IS NOT NULL)
) PARTITION BY RANGE (at);
-- queries.events_page(), exports.events()
CREATE INDEX event_newest ON audit_event (at);
-- queries.lease_events()
CREATE INDEX event_by_lease ON audit_event (lease_name_id) WHERE lease_name_id IS NOT NULL;

-- ledger.mark_own()
CREATE INDEX event_by_token ON audit_event (token_id) WHERE token_id IS NOT NULL;

CREATE TABLE audit_furthersighting (
  at timestamptz NOT NULL,
  request uuid NOT NULL,
  stream_id integer NOT NULL,
  request_block integer,
  response_block integer,
  token_id integer,
  CONSTRAINT a_sighting_has_a_half CHECK (request_block IS NOT NULL OR response_block IS NOT NULL)
) PARTITION BY RANGE (at);
-- ledger.mark_own()
CREATE INDEX sighting_by_token ON audit_furthersighting (token_id) WHERE token_id IS NOT NULL;

CREATE VIEW audit_sighting AS
  SELECT at, request, stream_id, request_block, response_block, token_id FROM audit_event
  UNION ALL
  SELECT at, request, stream_id, request_block, response_block, token_id FROM audit_furthersighting;

CREATE TABLE audit_blocklines (
  until timestamptz NOT NULL,
  stream_id integer NOT NULL,
  sequence integer NOT NULL,
  data bytea NOT NULL
) PARTITION BY RANGE (until);
"""

FUNCTIONS = """
CREATE FUNCTION leasehold_make_day(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  suffix text := to_char(day, '_YYYYMMDD');
  parent text;
  made boolean := false;
BEGIN
  IF to_regclass('public.audit_event' || suffix) IS NOT NULL
     AND to_regclass('public.audit_furthersighting' || suffix) IS NOT NULL
     AND to_regclass('public.audit_blocklines' || suffix) IS NOT NULL THEN
    RETURN false;
  END IF;
  IF day < date '2015-01-01' OR day > current_date + 30 THEN
    RAISE EXCEPTION 'no events can be of %', day;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('leasehold partitions'));
  FOREACH parent IN ARRAY ARRAY['audit_event', 'audit_furthersighting', 'audit_blocklines'] LOOP
    IF to_regclass('public.' || parent || suffix) IS NULL THEN
      -- made apart and then attached: that waits for no reader and no writer of the other days
      EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', parent || suffix, parent);
      IF parent = 'audit_event' THEN
        EXECUTE format('CREATE UNIQUE INDEX ON public.%I (request, vault_id)', parent || suffix);
      ELSIF parent = 'audit_furthersighting' THEN
        EXECUTE format('CREATE UNIQUE INDEX ON public.%I (request, stream_id)', parent || suffix);
      ELSE
        EXECUTE format('CREATE UNIQUE INDEX ON public.%I (stream_id, sequence)', parent || suffix);
        -- zstd has compressed it already
        EXECUTE format('ALTER TABLE public.%I ALTER COLUMN data SET STORAGE EXTERNAL', parent || suffix);
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON public.%I FROM {role}', parent || suffix);
      END IF;
      EXECUTE format(
        'ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        parent, parent || suffix, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00'
      );
      made := true;
    END IF;
  END LOOP;
  RETURN made;
END $$;

CREATE FUNCTION leasehold_drop_day(day date, raw boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  suffix text := to_char(day, '_YYYYMMDD');
  parent text;
  dropped boolean := false;
BEGIN
  IF day > current_date - 30 THEN
    RAISE EXCEPTION 'nothing of % can be dropped: it is less than 30 days old', day;
  END IF;
  FOREACH parent IN ARRAY CASE WHEN raw THEN ARRAY['audit_blocklines'] ELSE ARRAY['audit_event', 'audit_furthersighting'] END LOOP
    IF to_regclass('public.' || parent || suffix) IS NOT NULL THEN
      EXECUTE format('DROP TABLE public.%I', parent || suffix);
      dropped := true;
    END IF;
  END LOOP;
  RETURN dropped;
END $$;

REVOKE EXECUTE ON FUNCTION leasehold_make_day(date), leasehold_drop_day(date, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION leasehold_make_day(date), leasehold_drop_day(date, boolean) TO {role};

-- what `rebuild` makes again from the raw lines
GRANT TRUNCATE ON audit_event, audit_furthersighting, audit_hourly, audit_renewals, audit_hash, audit_ending, audit_leasetoken TO {role};
"""


def make(apps: Any, schema_editor: Any) -> None:
    role = schema_editor.connection.ops.quote_name(settings.DATABASES["default"]["USER"])
    schema_editor.execute(TABLES, None)
    schema_editor.execute(FUNCTIONS.replace("{role}", role), None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_interned_events")]
    operations = [
        migrations.RunPython(make, migrations.RunPython.noop),
        append_only("audit_rawblock", "audit_blocklines", "audit_rejectedline", "audit_conflict", "audit_gap"),
    ]
