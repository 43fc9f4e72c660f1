"""A database as large as production's, filled set by set: leases with all that belongs to them, and events in daily partitions.

A lease's rows do not change with the number of events; each has its read, its login and some renewals among them. Five of the
leases were renewed thousands of times. One in five is live, whatever its age.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.utils import timezone

from audit import intern, partitions
from audit.models import RawBlock
from leases.models import AuthMount, Cluster, Database, DatabaseRole, DatabaseServer, SourceState, Vault
from leases.models.sources import SourceKind
from tests import factories
from tests.bench.figures import Void, progress

DAYS = 30
DATABASES, ACCOUNTS, NAMESPACES, ADDRESSES = 40, 200, 40, 5000
BUSY, BUSY_EVENTS = 5, 5000
# what fill() writes
TABLES = ("audit_event", "audit_furthersighting", "audit_hourly", "audit_coverage")
NODES, DEVICES = ("node-1", "node-2", "node-3"), ("file-a", "file-b")


@dataclass(frozen=True, slots=True)
class Ground:
    """What the rows refer to, and the moment up to which they reach."""

    leases: int
    from_at: datetime
    to_at: datetime
    values: Mapping[str, Any]


def lay(*, leases: int) -> Ground:
    """Everything but events. The tables must be empty."""
    intern.forget()
    to_at = timezone.now().replace(microsecond=0)
    from_at = to_at - timedelta(days=DAYS)
    vault = Vault.objects.create(name="bench", address="http://127.0.0.1:8200", lease_mounts=["database", "warehouse"])
    clusters = [Cluster.objects.create(name=f"cluster-{number}") for number in (1, 2)]
    mounts = [AuthMount.objects.create(vault=vault, path=f"kubernetes-{row.name}", cluster=row) for row in clusters]
    databases = [
        Database.objects.create(
            vault=vault,
            mount="warehouse" if number % 4 == 3 else "database",
            name=f"team-{number:02}",
            kind="postgresql",
            monitor={"file": "/dev/null"},
        )
        for number in range(DATABASES)
    ]
    for row in databases:
        for role in ("ro", "rw"):
            DatabaseRole.objects.create(vault=vault, mount=row.mount, name=f"{row.name}-{role}", database=row)
    streams = [factories.stream(device, node) for node in NODES for device in DEVICES]
    type(streams[0].device).objects.update(vault=vault)
    Vault.objects.exclude(pk=vault.pk).delete()
    paths = [f"{row.mount}/creds/{row.name}-rw" for row in databases]
    reads = [("", "read", path, path.partition("/")[0] + "/", "database", "") for path in paths]
    renew = ("", "update", "sys/leases/renew", "sys/", "system", "")
    login = ("", "update", "auth/kubernetes/login", "auth/kubernetes/", "kubernetes", "")
    other = [("", "read", f"secret/data/team-{number}/key", "secret/", "kv", "") for number in range(200)]
    whats = intern.whats([*reads, renew, login, *other])
    whos = [
        (f"kubernetes-ns-{n % NAMESPACES:02}-sa-{n:03}", str(uuid.UUID(int=n)), "service", '["default"]', _names(n))
        for n in range(ACCOUNTS)
    ]
    who_ids = intern.whos(whos)
    addresses = [f"10.{n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(ADDRESSES)]
    texts = intern.texts([*addresses, *paths, "secret/", "sys/", "auth/kubernetes/"])
    values = {
        "leases": leases,
        "from": from_at,
        "to": to_at,
        "step": timedelta(days=DAYS) / leases,
        "vault": vault.pk,
        "mounts": [row.pk for row in mounts],
        "databases": [row.pk for row in databases],
        "streams": [row.pk for row in streams[:: len(DEVICES)]],
        "further": [row.pk for row in streams[1 :: len(DEVICES)]],
        "reads": [whats[key] for key in reads],
        "renew": whats[renew],
        "login": whats[login],
        "other": [whats[key] for key in other],
        "whos": [who_ids[key] for key in whos],
        "addresses": [texts[key] for key in addresses],
        "read_targets": [texts[path] for path in paths],
        "targets": [texts["secret/"], texts["auth/kubernetes/"], texts["sys/"]],
        "accounts": ACCOUNTS,
        "databases_": DATABASES,
        "namespaces": NAMESPACES,
        "addresses_": ADDRESSES,
        "busy": BUSY,
        "busy_events": min(BUSY_EVENTS, leases),
    }
    progress(f"{leases:,} leases with logins, attribution and lease ids")
    for statement in LEASES:
        _run(statement, values)
    _run(ACTIONS, values)
    progress("their sessions")
    servers = [DatabaseServer.objects.create(identity=f"postgresql {n}", started_at=from_at) for n in range(4)]
    for row in databases:
        factories.sampling(row, server=servers[row.pk % 4])
    for statement in SESSIONS:
        _run(statement, {**values, "servers": [row.pk for row in servers]})
    _check_digests()
    for kind, names in {
        SourceKind.VAULT: ["bench"],
        SourceKind.CLUSTER: [row.name for row in clusters],
        SourceKind.DATABASE: [f"bench/{row.mount}/{row.name}" for row in databases],
        SourceKind.STREAM: [f"bench/{device}/{node}" for node in NODES for device in DEVICES],
    }.items():
        for name in names:
            factories.source(kind, name)
    for number, stream in enumerate(streams):
        factories.rejected(stream, f"no audit entry {number}".encode())
    assert RawBlock.objects.exists()
    SourceState.objects.update(checked_at=to_at + timedelta(days=1))
    return Ground(leases, from_at, to_at, values)


def fill(ground: Ground, *, events: int) -> None:
    """So many events, with their further sightings, hourly counts and coverage; TABLES must be empty."""
    progress(f"{events:,} events over {DAYS} days")
    every = events // ground.leases
    renewals = max(1, min(12, every // 4 + 1))
    values = {**ground.values, "events": events, "every": every, "renewals": renewals}
    days = [(ground.from_at + timedelta(days=n)).date() for n in range(-1, DAYS + 2)]
    partitions.make_for(days)
    # a day at a time, as they come in: what a transaction holds stays small
    slice_ = -(-events // DAYS)
    for first in range(0, events, slice_):
        _run(EVENTS, {**values, "first": first, "last": min(first + slice_, events) - 1})
    for statement in (BUSY_LEASES, FURTHER, HOURLY, COVERAGE):
        _run(statement, values)


def _names(number: int) -> str:
    return f'{{"service_account_name":"sa-{number:03}","service_account_namespace":"ns-{number % NAMESPACES:02}"}}'


def _run(statement: str, values: Mapping[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def _check_digests() -> None:
    """Lease ids must be found as ingestion would have interned them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT t.text, t.digest FROM audit_text t JOIN leases_lease l ON l.lease_id = t.text LIMIT 5")
        for text, digest in cursor.fetchall():
            if digest != intern.digest(text):
                raise Void("lease ids are interned otherwise than the product does")


# a number of lease i that looks random and is the same each time: h(i, salt) in 0 … 2^31-1
_H = "(hashint8extended(%s, %s) & 2147483647)"


def _h(of: str, salt: int) -> str:
    return _H % (of, salt)


# few accounts issue most leases; the lease's account, and of it the database
_ACCOUNT = f"(({_h('i', 1)} %% %(accounts)s) * ({_h('i', 2)} %% %(accounts)s) / %(accounts)s)"
_LEASE_ID = """
    CASE WHEN database %% 4 = 3 THEN 'warehouse' ELSE 'database' END || '/creds/team-' || lpad(database::text, 2, '0')
      || '-rw/' || substr(md5('lease' || i), 1, 24)
"""
LEASES = [
    f"""
    CREATE TEMP TABLE made ON COMMIT PRESERVE ROWS AS
    SELECT i, account, database, {_LEASE_ID} AS lease_id, (%(from)s + i * %(step)s) AS at,
           i %% 5 = 0 OR i < %(busy)s AS live, {_h("i", 3)} AS h,
           CASE WHEN i %% 50 = 7 THEN 'unknown' WHEN i %% 50 = 9 THEN 'ambiguous' WHEN i %% 10 = 3 THEN 'service account'
                WHEN i %% 3 = 0 THEN 'exact' ELSE 'inferred' END AS certainty
    FROM (
      SELECT i, account, account %% %(databases_)s AS database
      FROM (SELECT i, {_ACCOUNT} AS account FROM generate_series(0, %(leases)s - 1) AS i) a
    ) b
    """,
    """
    INSERT INTO audit_text (id, digest, text)
    SELECT 1000000 + i, encode(substr(sha256('\\x91d9'::bytea || set_byte('\\x00'::bytea, 0, octet_length(lease_id))
      || convert_to(lease_id, 'UTF8')), 1, 16), 'hex')::uuid, lease_id
    FROM made ORDER BY i
    """,
    """
    INSERT INTO leases_login (
      id, vault_id, request_id, logged_in_at, mount_path, auth_mount_id, address, display_name, entity_id, policies, token_type,
      metadata, service_account_namespace, service_account, own, claimed_pod, claimed_pod_uid, claimed_node, end_reason)
    SELECT 1000000 + i, %(vault)s, md5('login' || i)::uuid, at - interval '1 second', 'kubernetes', (%(mounts)s::bigint[])[1 + i %% 2],
           '10.0.0.' || i %% 250, 'kubernetes-sa-' || account, md5('entity' || account), '["default"]', 'service', '{}',
           'ns-' || lpad((account %% %(namespaces)s)::text, 2, '0'), 'sa-' || lpad(account::text, 3, '0'), false, '', '', '', ''
    FROM made ORDER BY i
    """,
    """
    INSERT INTO leases_lease (
      id, vault_id, lease_id, vault_namespace, mount, role, database_id, database_user, state, issued_at, expires_at,
      last_renewal_at, renewals, renewable, revoke_error, ended_at, end_reason, end_evidence, end_seen_reason, end_seen_evidence,
      request_id, accessed_at, source_ip, login_id, certainty, certainty_reason, cluster, service_account_namespace,
      service_account, pod_namespace, pod, pod_uid, attribution_open, looked_up_at, lookup_due_at, first_seen_at, updated_at)
    SELECT 1000000 + i, %(vault)s, lease_id, '', split_part(lease_id, '/', 1), split_part(lease_id, '/', 3),
      CASE WHEN i %% 1000 <> 999 THEN (%(databases)s::bigint[])[1 + database] END, 'v-kubernet-team-rw-' || substr(md5('user' || i), 1, 20),
      CASE WHEN NOT live THEN 'ended' WHEN i %% 4000 = 0 THEN 'irrevocable' WHEN i %% 4000 = 5 THEN 'revoking' ELSE 'live' END,
      CASE WHEN i %% 100 <> 57 THEN at END, CASE WHEN live THEN %(to)s + make_interval(secs => h %% 86400) ELSE at + interval '1 hour' END,
      at + interval '30 minutes', 2, true, '',
      CASE WHEN NOT live THEN LEAST(at + make_interval(secs => 60 + h %% 86400), %(to)s) END,
      CASE WHEN live THEN '' WHEN i %% 1000 = 1 THEN 'forced (database user may live)' WHEN i %% 10 = 2 THEN 'gone, cause unknown'
           WHEN i %% 10 = 4 THEN 'revoked in Vault' ELSE 'expired (inferred)' END,
      CASE WHEN live THEN '' ELSE 'a lookup finds no such lease' END, '', '',
      CASE WHEN known THEN md5('read' || i)::uuid::text ELSE '' END, CASE WHEN known THEN at END, CASE WHEN known THEN '10.0.0.' || i %% 250 ELSE '' END,
      CASE WHEN known THEN 1000000 + i END, certainty, 'the login carried the pod''s claims', CASE WHEN known THEN 'cluster-' || 1 + i %% 2 ELSE '' END,
      CASE WHEN known THEN namespace ELSE '' END, CASE WHEN known THEN name ELSE '' END,
      CASE WHEN named THEN namespace ELSE '' END, CASE WHEN named THEN name || '-' || substr(md5('set' || account), 1, 9) || '-' || substr(md5('pod' || i / 4), 1, 5) ELSE '' END,
      CASE WHEN named THEN md5('pod' || i / 4)::uuid::text ELSE '' END, false, at + interval '20 minutes',
      CASE WHEN live THEN %(to)s + make_interval(secs => h %% 86400) END, at + interval '1 second', at + interval '1 hour'
    FROM (
      SELECT *, certainty <> 'unknown' AS known, certainty IN ('exact', 'inferred') AS named,
             'ns-' || lpad((account %% %(namespaces)s)::text, 2, '0') AS namespace, 'sa-' || lpad(account::text, 3, '0') AS name
      FROM made ORDER BY i
    ) m
    """,
    """
    INSERT INTO audit_attributionchange (at, vault, lease_id, certainty_before, certainty, reason, cluster, pod_namespace, pod, pod_uid, service_account)
    SELECT at + make_interval(secs => step), 'bench', lease_id, '', certainty, 'a reason', '', '', '', '', ''
    FROM made, generate_series(1, 2) AS step
    """,
]
# three in four leases were used, by up to three sessions; of one in ten the user was not known; one in a thousand was used from elsewhere;
# each database was sampled with some holes
SESSIONS = [
    """
    INSERT INTO leases_session (
      server_id, key, database_id, database_name, database_user, user_oid, pid, started_at, start_is_known, address, port, application,
      state, sampled, logged, first_seen_at, last_seen_at, ended_at, end_known_by, lease_id, place, place_reason)
    SELECT (%(servers)s::bigint[])[1 + database %% 4], i || '.' || n, (%(databases)s::bigint[])[1 + database], 'app',
      'v-kubernet-team-rw-' || substr(md5('user' || i), 1, 20), 16384 + i, i, at + make_interval(secs => 5 * n), true, '10.0.0.' || i %% 250, 40000 + i %% 20000,
      'app-' || account, '', true, i %% 2 = 0, at + make_interval(secs => 5 * n), at + make_interval(secs => 60 * n),
      CASE WHEN NOT live OR n > 1 THEN at + make_interval(secs => 60 * n) END, CASE WHEN NOT live OR n > 1 THEN 'no longer seen' ELSE '' END,
      CASE WHEN i %% 10 <> 9 THEN 1000000 + i END,
      CASE WHEN i %% 10 = 9 THEN 'not judged' WHEN i %% 1000 = 7 THEN 'elsewhere' ELSE 'holder' END, 'a reason'
    FROM made, generate_series(1, 3) AS n WHERE n <= h %% 4 ORDER BY at
    """,
    """
    INSERT INTO leases_sampledperiod (database_id, logged, from_at, to_at)
    SELECT d, n %% 5 = 0, %(from)s + n * interval '7 hours', %(from)s + n * interval '7 hours' + interval '6 hours 59 minutes'
    FROM unnest(%(databases)s::bigint[]) AS d, generate_series(0, 100) AS n
    """,
    """
    INSERT INTO leases_pod (cluster_id, uid, namespace, name, service_account, node, host_network, phase, owner_kind, owner_name, owner_uid,
      workload_kind, workload_name, annotations, fetcher, secrets, started_at)
    SELECT c.id, pod_uid, min(pod_namespace), min(pod), min(service_account), 'node', false, 'Running', '', '', '', '', '', '{}', false, '[]', min(first_seen_at)
    FROM leases_lease l JOIN leases_cluster c ON c.name = l.cluster WHERE pod_uid <> '' GROUP BY 1, 2
    """,
    """
    INSERT INTO leases_podaddress (pod_id, address, from_at) SELECT id, ('10.0.0.' || id %% 250)::inet, started_at FROM leases_pod
    """,
]
ACTIONS = """
    WITH acted AS (SELECT i, at, lease_id, gen_random_uuid() AS action, live FROM made WHERE i %% 40 IN (0, 1)),
    actions AS (
      INSERT INTO leases_action (id, kind, by, reason, at, targets)
      SELECT action, 'revoke', 'operator', 'drill', at, jsonb_build_array(jsonb_build_object('vault', 'bench', 'lease_id', lease_id)) FROM acted
    ), revocations AS (
      INSERT INTO leases_revocation (action_id, lease_id, state, audit_request_id, requested_at, updated_at)
      SELECT action, 1000000 + i, CASE WHEN i %% 4000 = 0 THEN 'verifying' ELSE 'verified' END, '', at, at FROM acted
    )
    INSERT INTO leases_actionstep (action_id, lease_id, name, outcome, detail, at)
    SELECT action, lease_id, (ARRAY['Vault answered', 'lease gone', 'database user gone'])[step], 'ok', '', at + make_interval(secs => step)
    FROM acted, generate_series(1, 3) AS step
"""
# of `every` events the first is a lease's read, the second its login, the next ones renew a lease of the last hours
EVENTS = f"""
    INSERT INTO audit_event (at, request, response_at, vault_id, what_id, who_id, address_id, lease_name_id, error_text_id, stream_id,
      request_block, response_block, token_id, kind, has_request, own, request_text)
    SELECT at, CASE slot WHEN 0 THEN md5('read' || lease)::uuid WHEN 1 THEN md5('login' || lease)::uuid ELSE md5('event' || i)::uuid END,
      at + interval '2 milliseconds', %(vault)s,
      CASE WHEN slot = 0 THEN (%(reads)s::int[])[1 + account %% %(databases_)s] WHEN slot = 1 THEN %(login)s
           WHEN slot < 2 + %(renewals)s THEN %(renew)s ELSE (%(other)s::int[])[1 + h %% 200] END,
      (%(whos)s::int[])[1 + account], (%(addresses)s::int[])[1 + h %% %(addresses_)s],
      CASE WHEN slot = 0 THEN 1000000 + lease
           WHEN slot BETWEEN 2 AND 1 + %(renewals)s THEN 1000000 + GREATEST(lease - h %% 500, 0) END,
      NULL, (%(streams)s::int[])[1 + h %% 3], i / 128, i / 128, 1000000 + lease,
      CASE WHEN slot = 0 THEN 2 WHEN slot = 1 THEN 1 WHEN slot < 2 + %(renewals)s THEN 4 ELSE 0 END, true, false, NULL
    FROM (
      SELECT i, i / %(every)s AS lease, i %% %(every)s AS slot, {_h("i", 5)} AS h,
             %(from)s + i * (%(step)s / %(every)s) AS at, {_ACCOUNT.replace("i,", "i / %(every)s,")} AS account
      FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
    ) e
    WHERE lease < %(leases)s
"""
BUSY_LEASES = """
    INSERT INTO audit_event (at, request, response_at, vault_id, what_id, who_id, address_id, lease_name_id, stream_id,
      request_block, response_block, kind, has_request, own)
    SELECT %(from)s + n * (%(to)s::timestamptz - %(from)s) / %(busy_events)s, md5('busy' || i || '-' || n)::uuid, %(from)s, %(vault)s, %(renew)s,
      (%(whos)s::int[])[1], (%(addresses)s::int[])[1], 1000000 + i, (%(streams)s::int[])[1], 1, 1, 4, true, false
    FROM generate_series(0, %(busy)s - 1) AS i, generate_series(1, %(busy_events)s - 1) AS n
"""
# both devices tell of each request that names a lease
FURTHER = """
    INSERT INTO audit_furthersighting (at, request, stream_id, request_block, response_block)
    SELECT at, request, (%(further)s::int[])[array_position(%(streams)s::int[], stream_id)], request_block, response_block
    FROM audit_event WHERE lease_name_id IS NOT NULL
"""
HOURLY = """
    INSERT INTO audit_hourly (vault_id, hour, kind, target_id, who_id, events, errors, own)
    SELECT vault_id, date_trunc('hour', at), kind,
      CASE kind WHEN 2 THEN (%(read_targets)s::int[])[array_position(%(reads)s::int[], what_id)] WHEN 1 THEN (%(targets)s::int[])[2]
                WHEN 4 THEN (%(targets)s::int[])[3] ELSE (%(targets)s::int[])[1] END,
      who_id, count(*), 0, 0
    FROM audit_event GROUP BY 1, 2, 3, 4, 5
"""
COVERAGE = """
    INSERT INTO audit_coverage (stream_id, hour, lines, pairs, unpaired, duplicates, rejected, expired, conflicts, redacted, lag_seconds)
    SELECT s, hour, 2000, 1000, 0, 0, 0, 0, 0, 0, 0.4
    FROM unnest(%(streams)s::int[] || %(further)s::int[]) AS s,
         generate_series(date_trunc('hour', %(from)s::timestamptz), date_trunc('hour', %(to)s::timestamptz), interval '1 hour') AS hour
    ON CONFLICT DO NOTHING
"""
