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

-- No partition goes without a record, and only this function can write one: whoever takes over the application can drop what
-- policy lets it drop anyway, but not without leaving when, what, and whether it was in the archive.
CREATE FUNCTION leasehold_drop_day(the_day date, parent text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  part text := parent || to_char(the_day, '_YYYYMMDD');
  moved text := 'EXISTS (SELECT FROM public.audit_moved m WHERE m.stream_id = b.stream_id AND m.day = $1'
    ' AND b.sequence BETWEEN m.first AND m.last)';
  missing bigint;
BEGIN
  IF parent <> ALL (ARRAY['audit_event', 'audit_furthersighting', 'audit_blocklines']) THEN
    RAISE EXCEPTION '% has no days', parent;
  END IF;
  IF the_day IS NULL OR NOT isfinite(the_day) OR the_day > current_date - 30 THEN
    RAISE EXCEPTION 'nothing of % can be dropped: it is less than 30 days old', the_day;
  END IF;
  -- the whole first, as everybody else does: then nobody waits for us who holds what we wait for
  EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', parent);
  IF to_regclass('public.' || part) IS NULL THEN
    RETURN false;
  END IF;
  EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', part);
  IF parent = 'audit_blocklines' THEN
    IF EXISTS (SELECT FROM public.leases_policy WHERE archive <> '') THEN
      EXECUTE format('SELECT count(*) FROM public.%I b WHERE NOT ' || moved, part) INTO missing USING the_day;
      IF missing > 0 THEN
        RAISE EXCEPTION '% blocks of % are not in the archive', missing, the_day USING ERRCODE = 'object_not_in_prerequisite_state';
      END IF;
    END IF;
    EXECUTE format(
      'INSERT INTO public.audit_dropped (of, day, stream_id, first, last, blocks, archived, at)'
      ' SELECT $2, $1, b.stream_id, min(b.sequence), max(b.sequence), count(*), count(*) FILTER (WHERE ' || moved || '),'
      ' clock_timestamp() FROM public.%I b GROUP BY b.stream_id', part
    ) USING the_day, parent;
  ELSE
    INSERT INTO public.audit_dropped (of, day, at) VALUES (parent, the_day, clock_timestamp());
  END IF;
  EXECUTE format('DROP TABLE public.%I', part);
  RETURN true;
END $$;

REVOKE EXECUTE ON FUNCTION leasehold_make_day(date), leasehold_drop_day(date, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION leasehold_make_day(date), leasehold_drop_day(date, text) TO {role};

-- written by leasehold_drop_day() alone
REVOKE INSERT ON audit_dropped FROM {role};
"""


def make(apps: Any, schema_editor: Any) -> None:
    role = schema_editor.connection.ops.quote_name(settings.DATABASES["default"]["USER"])
    schema_editor.execute(TABLES, None)
    schema_editor.execute(FUNCTIONS.replace("{role}", role), None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_interned_events")]
    operations = [
        migrations.RunPython(make, migrations.RunPython.noop),
        append_only(
            "audit_rawblock",
            "audit_blocklines",
            "audit_rejectedline",
            "audit_conflict",
            "audit_gap",
            "audit_what",
            "audit_who",
            "audit_text",
        ),
        append_only("audit_moved", "audit_dropped"),
        # interned texts are found by their digest: one that could be altered would alter every event that refers to it
        append_only("audit_what", "audit_who", "audit_text"),
    ]
