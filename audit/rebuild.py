"""Makes a vault's events, ledger and hourly counts again from its raw blocks, through the code that ingestion uses.

All of a vault in one transaction: pages show what was there until it is committed, and whatever interrupts it leaves everything
as it was. Nothing is ingested meanwhile (ingest.Rebuilding); lookups and revocations go on, since leases are made again in a
temporary table that hides the real one, which is touched at the end, and only where a row differs.

What no block tells stays: all that the lease API said, database users known by their audit hash, actions and revocations, who
holds a lease (unless its login or its read turns out to be another), and how many duplicates and expired lines a stream had.
So does what is older than the lines that are still in the database, or than the events that are kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Sum

from audit import attribute, blocks, endings, ingest, intern, partitions
from audit.batch import OLDEST, Batch, Counts, Limits, take_block
from audit.models import RawBlock, Stream
from audit.secrets import RawSecret
from leases.models import Certainty, Lease, Vault

# so many bytes of lines are taken at once
_AT_ONCE = 8 * 1024 * 1024
# leases whose ends, and whose holders, are looked at in one go
_MANY, _SOME = 5000, 500


class Unsound(Exception):
    """A chain is not as it was written: nothing is made from it. The message names the block."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    vault: str
    # what is older stayed as it was; None: there was nothing older
    since: datetime | None
    blocks: int
    lines: int
    events: int
    # leases that are told of otherwise than before, and those whose holder is another one by that
    leases: int
    attributions: int


def rebuild(vault: Vault, *, now: datetime, on_progress: Callable[[int, int], None]) -> Rebuilt:
    """`on_progress` is told how many bytes of lines are done, and of how many. Raises Unsound."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '5min'")
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('rebuild'), %s)", [vault.pk])
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('ingest'), %s)", [vault.pk])
            return _rebuild(vault, now=now, on_progress=on_progress)
    finally:
        # ids that were made inside of a transaction that is undone are gone with it
        intern.forget()


def _rebuild(vault: Vault, *, now: datetime, on_progress: Callable[[int, int], None]) -> Rebuilt:
    streams = {
        stream.pk: stream for stream in Stream.objects.filter(device__vault=vault).select_related("device__vault")
    }
    for stream in streams.values():
        if broken := blocks.verify(stream, headers_only=True).broken:
            raise Unsound(f"{stream}, block {broken.sequence}: {broken.what}")
    moved_until, oldest = since(list(streams), now=now)
    told = RawBlock.objects.filter(stream__in=streams, until__gte=oldest)
    total = told.aggregate(size=Sum("size"))["size"] or 0
    # streams of which something is older than that
    cut = (
        {*streams}
        if moved_until
        else {*RawBlock.objects.filter(stream__in=streams, until__lt=oldest).values_list("stream", flat=True)}
    )
    counts = {key: Counts() for key in streams}
    for stream in streams.values():
        stream.last_line_at = None
    _set_aside(vault, list(streams), oldest)
    done = number = 0
    for group in groups(told):
        stream = streams[group[0].stream_id]
        stored, expired = again(stream, group, oldest=oldest, cut=stream.pk in cut)
        if expired:
            cut.add(stream.pk)
        counts[stream.pk].add(stored)
        number += len(group)
        done += sum(block.size for block in group)
        on_progress(done, total)
    _keep_what_no_line_tells(vault, list(streams), oldest)
    for stream in streams.values():
        if stream.pk not in cut:
            _count(stream, counts[stream.pk])
    changed = _show_leases(vault, oldest, now=now)
    others = _settle_logins(vault, oldest)
    for keys in _chunks(Lease.objects.filter(vault=vault).order_by("id").values_list("id", flat=True), _MANY):
        endings.expect_ends(keys, now=now)
    # one that no read is known of has no holder, and says why
    heard_of = Lease.objects.exclude(request_id="", certainty=Certainty.UNKNOWN).filter(pk__in=changed | others)
    attributions = sum(
        attribute.attribute(keys, now=now)
        for keys in _chunks(heard_of.order_by("id").values_list("id", flat=True), _SOME)
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM audit_event WHERE vault_id = %s AND at >= %s", [vault.pk, oldest])
        events = cursor.fetchone()[0]
    lines = sum(one.lines for one in counts.values())
    return Rebuilt(vault.name, oldest if cut else None, number, lines, events, len(changed), attributions)


def since(streams: list[int], *, now: datetime) -> tuple[datetime | None, datetime]:
    """(the newest line that is in the database no longer, the first day of which every line is there and every event is kept)."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT max(b.until) FROM audit_rawblock b WHERE b.stream_id = ANY(%s) AND NOT EXISTS (
              SELECT 1 FROM audit_blocklines l WHERE l.stream_id = b.stream_id AND l.sequence = b.sequence AND l.until = b.until)
            """,
            [streams],
        )
        moved = cursor.fetchone()[0]
    oldest = ingest.limits(now=now).oldest
    if moved is not None:
        day = moved.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        oldest = max(oldest, day + timedelta(days=1))
    return moved, oldest


def groups(told: Any) -> Iterator[list[RawBlock]]:
    """Blocks in the order in which they were stored (one writer a vault gives their ids), as many of one stream as may go together."""
    group: list[RawBlock] = []
    for block in told.order_by("id").iterator(chunk_size=500):
        if group and (
            (block.stream_id, block.salt_epoch) != (group[0].stream_id, group[0].salt_epoch)
            or sum(one.size for one in group) + block.size > _AT_ONCE
        ):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def again(stream: Stream, group: list[RawBlock], *, oldest: datetime, cut: bool) -> tuple[Counts, int]:
    """Takes the lines of these blocks as they were taken when they came in. Returns what became of them, and how many had expired.

    `cut`: lines before them are older than `oldest`.
    """
    # the hashes in these lines are of that epoch; in memory only
    stream.device.salt_epoch = group[0].salt_epoch
    batch = Batch()
    for block in group:
        lines = blocks.lines_if_whole(block)
        if not isinstance(lines, bytes):
            raise Unsound(f"{stream}, block {block.sequence}: {lines.what if lines else 'its lines are gone'}")
        limits = Limits(oldest=oldest, newest=block.at + ingest.AHEAD)
        try:
            take_block(batch, lines, block.offset_from, limits, keep=False)
        except RawSecret as error:
            raise Unsound(f"{stream}, block {block.sequence}: {error.field} stands in it in plain text") from error
    expired = batch.expired.total()
    # they count in hours that are left as they are
    batch.expired.clear()
    if (expired or cut) and stream.last_line_at is None:
        batch.rejects = [reject for reject in batch.rejects if (reject.after or OLDEST) > OLDEST]
    ingest.intern_all(stream, batch)
    partitions.make_for(ingest.days(batch, now=group[-1].at))
    sequences = {place: block.sequence for place, block in enumerate(group)}
    plan = ingest.make_plan(stream, batch, sequences)
    counts, _ = ingest.derive(stream, batch, plan, sequences, stored_at=[block.at for block in group])
    return counts, expired


def _set_aside(vault: Vault, streams: list[int], oldest: datetime) -> None:
    """Takes away what will be made again, and puts aside what of it no line tells."""
    with connection.cursor() as cursor:
        for statement in (*_SET_ASIDE, *_HIDE_LEASES):
            cursor.execute(statement, {"vault": vault.pk, "streams": streams, "oldest": oldest})


_SET_ASIDE = [
    "DELETE FROM audit_event WHERE vault_id = %(vault)s AND at >= %(oldest)s",
    "DELETE FROM audit_furthersighting WHERE stream_id = ANY(%(streams)s) AND at >= %(oldest)s",
    "DELETE FROM audit_hourly WHERE vault_id = %(vault)s AND hour >= %(oldest)s",
    "DELETE FROM audit_ending WHERE vault_id = %(vault)s AND at >= %(oldest)s",
    """
    CREATE TEMP TABLE was_coverage AS
      SELECT * FROM audit_coverage WHERE stream_id = ANY(%(streams)s) AND hour >= %(oldest)s
    """,
    "DELETE FROM audit_coverage WHERE stream_id = ANY(%(streams)s) AND hour >= %(oldest)s",
    # of a lease that was read before all of this, some renewals may be told by lines that are gone
    """
    CREATE TEMP TABLE was_read_before AS
      SELECT l.id, t.id AS name FROM leases_lease l LEFT JOIN audit_text t ON t.text = l.lease_id
      WHERE l.vault_id = %(vault)s AND l.accessed_at < %(oldest)s
    """,
    """
    CREATE TEMP TABLE was_renewals AS
      SELECT r.* FROM audit_renewals r JOIN was_read_before b ON b.name = r.lease_name_id WHERE r.vault_id = %(vault)s
    """,
    "DELETE FROM audit_renewals WHERE vault_id = %(vault)s",
    """
    DELETE FROM audit_hash h USING audit_device d
    WHERE d.id = h.device_id AND d.vault_id = %(vault)s AND h.lease_name_id NOT IN (
      SELECT name FROM was_read_before WHERE name IS NOT NULL)
    """,
    """
    DELETE FROM audit_leasetoken k USING leases_lease l
    WHERE l.id = k.lease_id AND l.vault_id = %(vault)s AND l.id NOT IN (SELECT id FROM was_read_before)
    """,
    """
    UPDATE audit_token t SET login_id = NULL, parent_id = NULL, own_hash = NULL, renewed_at = NULL, ends_at = NULL FROM leases_login g
    WHERE g.id = t.login_id AND g.vault_id = %(vault)s AND g.logged_in_at >= %(oldest)s
    """,
    """
    UPDATE audit_token t SET parent_id = NULL, own_hash = NULL, renewed_at = NULL, ends_at = NULL FROM audit_device d
    WHERE d.id = t.device_id AND d.vault_id = %(vault)s AND t.login_id IS NULL
    """,
    """
    DELETE FROM audit_wrapping w USING audit_device d
    WHERE d.id = w.device_id AND d.vault_id = %(vault)s AND w.at >= %(oldest)s
    """,
    """
    DELETE FROM audit_unwrapping u USING audit_device d
    WHERE d.id = u.device_id AND d.vault_id = %(vault)s AND u.at >= %(oldest)s
    """,
    "CREATE TEMP TABLE was_login AS SELECT * FROM leases_login WHERE vault_id = %(vault)s",
    # a login that is told of again comes back from there; its key stays, since pages link by it
    """
    UPDATE leases_login SET expires_at = NULL, parent_id = NULL, origin_id = NULL, ended_at = NULL, end_reason = ''
    WHERE vault_id = %(vault)s AND logged_in_at >= %(oldest)s
    """,
    """
    UPDATE leases_login SET logged_in_at = 'infinity' WHERE vault_id = %(vault)s
    """,
]

# unqualified names mean the temporary table until it is dropped: so the code of ingestion works on it
_HIDE_LEASES = [
    """
    CREATE TEMP TABLE leases_lease (
      LIKE public.leases_lease INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES
    )
    """,
    # new leases have keys that the real table will not give to others
    """
    ALTER TABLE pg_temp.leases_lease
      ALTER id SET DEFAULT nextval(pg_get_serial_sequence('public.leases_lease', 'id')::regclass)
    """,
    "INSERT INTO pg_temp.leases_lease SELECT * FROM public.leases_lease WHERE vault_id = %(vault)s",
    """
    UPDATE pg_temp.leases_lease SET
      request_id = '', accessed_at = NULL, source_ip = '', unwrapped_from = '', login_id = NULL, renewals = 0,
      issued_at = CASE WHEN looked_up_at IS NOT NULL THEN issued_at END,
      last_renewal_at = CASE WHEN looked_up_at IS NOT NULL THEN last_renewal_at END
    """,
]


def _keep_what_no_line_tells(vault: Vault, streams: list[int], oldest: datetime) -> None:
    """Lines that were told twice or too late are in no block, unless others of that block were new."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO audit_coverage AS c (
              stream_id, hour, lines, pairs, unpaired, duplicates, rejected, expired, conflicts, redacted, lag_seconds)
            SELECT stream_id, hour, duplicates + expired, 0, 0, duplicates, 0, expired, 0, redacted, 0 FROM was_coverage
            WHERE duplicates + expired + redacted > 0
            ON CONFLICT (stream_id, hour) DO UPDATE SET
              lines = c.lines + GREATEST(excluded.duplicates - c.duplicates, 0) + GREATEST(excluded.expired - c.expired, 0),
              duplicates = GREATEST(c.duplicates, excluded.duplicates),
              expired = GREATEST(c.expired, excluded.expired),
              redacted = GREATEST(c.redacted, excluded.redacted)
            """
        )
        cursor.execute(
            """
            INSERT INTO audit_renewals AS r (vault_id, lease_name_id, count, last_at)
            SELECT vault_id, lease_name_id, count, last_at FROM was_renewals
            ON CONFLICT (vault_id, lease_name_id) DO UPDATE SET
              count = GREATEST(r.count, excluded.count), last_at = GREATEST(r.last_at, excluded.last_at)
            """
        )
        cursor.execute("DROP TABLE was_coverage, was_renewals, was_read_before")


def _count(stream: Stream, told: Counts) -> None:
    """The stream's counters, where all of its lines were told again; of duplicates only a part is in blocks."""
    stream.parts, stream.rejected, stream.conflicts = told.parts, told.rejected, told.conflicts
    stream.duplicates = max(stream.duplicates, told.duplicates)
    stream.lines = stream.parts + stream.duplicates + stream.rejected + stream.expired + stream.conflicts
    stream.save(update_fields=["lines", "parts", "duplicates", "rejected", "conflicts", "last_line_at"])


# a name that stands plain in a line is better than none or a guess; what a hash told meanwhile stays
_PLAIN = "s.database_user_by = 'plain name in the log' AND l.database_user_by IN ('', 'time and name')"
# what events tell of a lease, as it is now (s) beside what the lease API said (l)
_TOLD = {
    "request_id": "s.request_id",
    "accessed_at": "s.accessed_at",
    "source_ip": "s.source_ip",
    "unwrapped_from": "s.unwrapped_from",
    "login_id": "s.login_id",
    "renewals": "s.renewals",
    "database_user": f"CASE WHEN {_PLAIN} THEN s.database_user ELSE l.database_user END",
    "database_user_by": f"CASE WHEN {_PLAIN} THEN s.database_user_by ELSE l.database_user_by END",
    "sessions_due": f"l.sessions_due OR ({_PLAIN})",
    "issued_at": "CASE WHEN l.looked_up_at IS NULL THEN s.issued_at ELSE COALESCE(l.issued_at, s.issued_at) END",
    "last_renewal_at": "CASE WHEN l.looked_up_at IS NULL THEN s.last_renewal_at ELSE l.last_renewal_at END",
}


def _show_leases(vault: Vault, oldest: datetime, *, now: datetime) -> set[int]:
    """Writes to the real table what differs, and lets it be seen again. Returns the keys of those leases."""
    names, values = ", ".join(f"l.{name}" for name in _TOLD), ", ".join(_TOLD.values())
    settings = ", ".join(f"{name} = {value}" for name, value in _TOLD.items())
    with connection.cursor() as cursor:
        for statement in _TAKEN_IN_MEANWHILE:
            cursor.execute(statement)
        # in the order in which others lock them
        cursor.execute(
            f"""
            SELECT l.id FROM public.leases_lease l JOIN pg_temp.leases_lease s ON s.id = l.id
            WHERE ({names}) IS DISTINCT FROM ({values}) AND NOT (s.request_id = '' AND COALESCE(l.accessed_at < %s, false))
            ORDER BY l.id FOR NO KEY UPDATE OF l
            """,  # noqa: S608 (the constant above)
            [oldest],
        )
        changed = {row[0] for row in cursor.fetchall()}
        cursor.execute(
            f"""
            UPDATE public.leases_lease l SET {settings}, updated_at = %s
            FROM pg_temp.leases_lease s WHERE s.id = l.id AND l.id = ANY(%s)
            """,  # noqa: S608
            [now, sorted(changed)],
        )
        cursor.execute(
            """
            INSERT INTO public.leases_lease SELECT s.* FROM pg_temp.leases_lease s
            WHERE NOT EXISTS (SELECT 1 FROM public.leases_lease l WHERE l.id = s.id) RETURNING id
            """
        )
        changed |= {row[0] for row in cursor.fetchall()}
        cursor.execute("DROP TABLE pg_temp.leases_lease")
    return changed


# a list of Vault's leases has come since, with leases whose reads are told of here
_TAKEN_IN_MEANWHILE = [
    """
    UPDATE audit_leasetoken k SET lease_id = l.id FROM pg_temp.leases_lease s
    JOIN public.leases_lease l ON l.vault_id = s.vault_id AND l.lease_id = s.lease_id AND l.id <> s.id
    WHERE k.lease_id = s.id
    """,
    """
    UPDATE pg_temp.leases_lease s SET id = l.id FROM public.leases_lease l
    WHERE l.vault_id = s.vault_id AND l.lease_id = s.lease_id AND l.id <> s.id
    """,
]


def _settle_logins(vault: Vault, oldest: datetime) -> set[int]:
    """Logins that no line tells of: older ones are as they were, others never were. Returns leases whose login says other things."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_login g SET logged_in_at = w.logged_in_at, expires_at = COALESCE(g.expires_at, w.expires_at),
              parent_id = COALESCE(g.parent_id, w.parent_id), origin_id = COALESCE(g.origin_id, w.origin_id),
              ended_at = COALESCE(g.ended_at, w.ended_at),
              end_reason = COALESCE(NULLIF(g.end_reason, ''), w.end_reason)
            FROM was_login w WHERE w.id = g.id AND g.logged_in_at = 'infinity' AND (
              w.logged_in_at < %s OR EXISTS (SELECT 1 FROM leases_lease l WHERE l.login_id = g.id))
            """,
            [oldest],
        )
        cursor.execute("DELETE FROM leases_login WHERE vault_id = %s AND logged_in_at = 'infinity'", [vault.pk])
        cursor.execute(
            """
            SELECT l.id FROM leases_lease l JOIN leases_login own ON own.id = l.login_id
            JOIN leases_login g ON g.id IN (own.id, own.origin_id) JOIN was_login w ON w.id = g.id
            WHERE (g.logged_in_at, g.origin_id, g.auth_mount_id, g.address, g.service_account_namespace, g.service_account, g.claimed_pod,
                   g.claimed_pod_uid) IS DISTINCT FROM
                  (w.logged_in_at, w.origin_id, w.auth_mount_id, w.address, w.service_account_namespace, w.service_account, w.claimed_pod,
                   w.claimed_pod_uid)
            """
        )
        others = {row[0] for row in cursor.fetchall()}
        cursor.execute("DROP TABLE was_login")
    return others


def _chunks(keys: Any, size: int) -> Iterator[list[int]]:
    found = list(keys)
    for begin in range(0, len(found), size):
        yield found[begin : begin + size]
