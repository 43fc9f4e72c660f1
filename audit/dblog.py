"""The own logs of database servers: records -> sessions, in one transaction with the log's new position.

What is stored of a log is what fields say of sessions under dynamic users. Its lines may hold statements, and those passwords: they
are never kept, so there are no raw blocks of it and no `rebuild`. Read again from its beginning a log gives the same rows.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import msgspec
from django.db import DataError, OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit import dated
from audit.dated import Place
from audit.follow import CHUNK, LONGEST_LINE, Chunk, FileUnavailable, Gap, Position
from audit.ingest import is_passing
from audit.models import DatabaseLog, ServerStart
from leases import health
from leases.databases import postgresql_log
from leases.databases.postgresql_log import LoggedSession, Told
from leases.errors import Doubt, SourceError
from leases.inventory import NO_ZERO
from leases.models import DatabaseServer, Lease, MonitorUser, SampledPeriod, Session, SourceState
from leases.models.sessions import Ended
from leases.models.sources import SourceKind

logger = logging.getLogger(__name__)

DYNAMIC = "v-"
# what a log is known to have told up to: younger sessions may be sampled before their lines are read
LATE = timedelta(seconds=15)
# how often the state of a log that has nothing new is written
HEARTBEAT = timedelta(seconds=2)
# for how long a page tells of something that was missing
REMEMBERED = timedelta(hours=1)
# a server that has not answered for so long while another one did is not the log's any more
MOVED = timedelta(minutes=10)


class LogUnusable(SourceError):
    """The log cannot be read, or it is not known what it is of."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What the next whole records tell, the place after them, and how many bytes are left. A gap lies before them."""

    told: Told
    place: Place
    unread: int
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What a piece brought: records, and of dynamic users sessions that began, that ended, log-ins that were refused."""

    records: int
    connections: int
    disconnections: int
    rejected: int


def place_of(log: DatabaseLog) -> Place:
    return Place(log.file, log.file_began, Position(log.file_inode, log.file_start, log.offset))


def read_on(log_id: int, *, until: float = 0.0, clock: Callable[[], datetime]) -> bool | None:
    """Takes the next piece, and with a backlog more of them until that time (time.monotonic()).

    False if there was nothing new, None if the log cannot be read (its state says why).
    """
    log = DatabaseLog.objects.get(pk=log_id)
    if log.retired:
        return None
    taken = False
    try:
        server = server_of(log)
        while True:
            looked_at = clock()
            piece = next_piece(log.path, log.format, place_of(log))
            if not piece.told.size:
                _mark(log, server, unread=piece.unread, looked_at=looked_at)
                return taken
            if take(log_id, piece, server=server, expected=place_of(log), now=looked_at) is None:
                return taken
            taken = True
            log = DatabaseLog.objects.get(pk=log_id)
            if time.monotonic() > until:
                report(log, server, now=clock())
                return taken
    except SourceError as error:
        cause, fix = error.cause, error.fix
    except OperationalError as error:
        if not is_passing(error):
            raise
        return None  # somebody else wrote the same sessions: the clock tries again
    except (ValueError, TypeError, LookupError, RecursionError, DataError) as error:
        # a fault of ours: nothing is lost, but nothing goes on either until it is mended, so it must be seen
        logger.exception("%s cannot be read on from offset %s", log, log.offset)
        cause = f"The records from offset {log.offset} on cannot be taken ({type(error).__name__})"
        fix = "This is a fault of Leasehold: report it with the ingest worker's log. Nothing is lost meanwhile."
    health.report_failure(SourceKind.STREAM, str(log), cause=cause, fix=fix, now=clock())
    return None


def server_of(log: DatabaseLog) -> DatabaseServer:
    """Whose log it is: the log does not say, but samples of its databases name their server. Raises LogUnusable."""
    named = DatabaseServer.objects.filter(sampling__database__in=log.databases.all()).distinct().order_by("id")
    found = list(named)
    known = log.server
    if known is not None:
        newest = max((server.sampled_at for server in found if server.sampled_at), default=None)
        # one address may lead to several servers in turn; the log stays with the one that it was begun with
        if known in found or newest is None or (known.sampled_at and newest - known.sampled_at < MOVED):
            return known
    if not found:
        names = ", ".join(log.databases.order_by("name", "id").values_list("name", flat=True))
        raise LogUnusable(
            f"Nothing is read of {log.path} yet: which server writes it is known once a sample of {names} has named it",
            "Give the database a `monitor` and leave its sample_seconds above 0; docs/sessions.md.",
        )
    if len(found) > 1:
        raise LogUnusable(
            f"The databases that name {log.path} are on different servers: {', '.join(map(str, found[:5]))}",
            "Give each server's databases the path of their own server's log.",
        )
    return found[0]


def next_piece(path: str, form: str, place: Place, *, size: int = CHUNK) -> Piece:
    """The next whole records. Lines of one that is not whole yet stay for later; at the end of their file it is torn."""
    began = partial(postgresql_log.began, form=form)
    chunk, after = _read(path, place, size, began=began)
    begin, lines, unread, torn = chunk.offset_from, chunk.lines, chunk.unread, False
    told = postgresql_log.read(lines, form)
    while lines and not told.size:
        more, after_more = _read(path, after, size, began=began)
        another_file = after_more.file != after.file or more.offset_from != after.position.offset
        torn = len(lines) >= LONGEST_LINE or (bool(more.lines) and (another_file or more.gap is not None))
        if torn:
            told = postgresql_log.read(lines, form, ends=True)
            break
        if not more.lines:
            return Piece(Told(), place, len(lines) + more.unread)
        lines, after, unread = lines + more.lines, after_more, more.unread
        told = postgresql_log.read(lines, form)
    position = replace(after.position, offset=begin + told.size)
    after = replace(after, position=position) if lines else place
    return Piece(told, after, unread + len(lines) - told.size, chunk.gap)


def _read(path: str, place: Place, size: int, *, began: dated.Began) -> tuple[Chunk, Place]:
    try:
        return dated.read(path, place, began=began, size=size)
    except FileUnavailable as error:
        if isinstance(error.__cause__, OSError):
            raise LogUnusable(
                f"The log {path} cannot be read ({error.__cause__.strerror})",
                "Check the path in leasehold.toml, that the server writes it (log_destination, logging_collector), and that the ingest "
                "workers' user may read it (log_file_mode = 0640 and the server's group); docs/sessions.md.",
            ) from error
        raise


def take(log_id: int, piece: Piece, *, server: DatabaseServer, expected: Place, now: datetime) -> Taken | None:
    """The transaction: sessions, counts and position, or nothing. None if another worker has moved the log on meanwhile."""
    told = piece.told
    with transaction.atomic():
        log = DatabaseLog.objects.select_for_update().get(pk=log_id)
        if place_of(log) != expected:
            return None
        # as samples do, and before any session: two that change those of one server wait for each other, never both
        DatabaseServer.objects.select_for_update().get(pk=server.pk)
        borne = _borne({session.user for session in told.sessions.values()} | set(told.refused))
        sessions = [session for key, session in sorted(told.sessions.items()) if session.user in borne]
        _write(server, sessions, databases=_databases(log, sessions, borne))
        _end_dead(server, told.died)
        _end_restarted(log, server, told.started)
        counted = Taken(
            records=told.records,
            connections=sum(session.authorized_at is not None for session in sessions),
            disconnections=sum(session.disconnected_at is not None for session in sessions),
            rejected=sum(times for user, times in told.refused.items() if user in borne),
        )
        _move(log, server, piece, counted, now=now)
    return counted


def _borne(users: set[str]) -> dict[str, list[int]]:
    """Those that are Vault's, by their name or a lease that bears it; and of which databases those leases are."""
    found: dict[str, list[int]] = {user: [] for user in users if user.startswith(DYNAMIC)}
    leases = Lease.objects.filter(database_user__in=users).exclude(database=None).order_by("id")
    for user, database in leases.values_list("database_user", "database"):
        found.setdefault(user, []).append(database)
    # what samples log in as is nobody's use
    for own in MonitorUser.objects.filter(name__in=users).values_list("name", flat=True):
        found.pop(own, None)
    return found


def _databases(log: DatabaseLog, sessions: list[LoggedSession], borne: dict[str, list[int]]) -> dict[str, int | None]:
    """By a session's key the database that it is shown at: its lease's, else the one of that name, else the log's first."""
    of_log = list(log.databases.order_by("id").values_list("pk", "name"))
    first = of_log[0][0] if of_log else None
    by_name = {name: pk for pk, name in reversed(of_log)}
    ids = {pk for pk, _ in of_log}
    return {
        session.key: next((pk for pk in borne.get(session.user, []) if pk in ids), by_name.get(session.database, first))
        for session in sessions
    }


# Samples know starts to the microsecond, an end line to the millisecond, a connection line to the second. The line of an end is
# better than a sample that did not see the session any more; what a client calls itself last counts.
_WRITE = """
    INSERT INTO leases_session AS s (
      server_id, key, database_id, database_name, database_user, pid, started_at, start_is_known, address, port, application,
      state, sampled, logged, first_seen_at, last_seen_at, ended_at, end_known_by, place, place_reason)
    SELECT
      %(server)s, l.key, l.database_id, l.database, l.user, l.pid, l.started_at, true, l.address, l.port, l.application,
      '', false, true, l.first_at, l.last_at, l.ended_at, CASE WHEN l.ended_at IS NULL THEN '' ELSE 'logged' END, '', ''
    FROM json_to_recordset(%(rows)s) AS l (
      key text, database_id bigint, database text, "user" text, pid bigint, started_at timestamptz, address text, port integer,
      application text, first_at timestamptz, last_at timestamptz, ended_at timestamptz)
    ON CONFLICT (server_id, key) DO UPDATE SET
      logged = true,
      database_id = coalesce(s.database_id, excluded.database_id),
      database_name = coalesce(nullif(s.database_name, ''), excluded.database_name),
      database_user = coalesce(nullif(s.database_user, ''), excluded.database_user),
      -- with its name its lease can be found
      place_open = s.place_open OR (s.database_user = '' AND excluded.database_user <> ''),
      started_at = CASE
        WHEN s.sampled AND s.start_is_known THEN s.started_at
        WHEN excluded.ended_at IS NULL AND s.end_known_by = 'logged' THEN s.started_at
        ELSE excluded.started_at END,
      start_is_known = true,
      address = coalesce(nullif(s.address, ''), excluded.address),
      port = coalesce(s.port, excluded.port),
      application = CASE
        WHEN excluded.application = '' OR (excluded.ended_at IS NULL AND s.application <> '') THEN s.application
        ELSE excluded.application END,
      first_seen_at = least(s.first_seen_at, excluded.first_seen_at),
      last_seen_at = greatest(s.last_seen_at, excluded.last_seen_at),
      ended_at = coalesce(excluded.ended_at, s.ended_at),
      end_known_by = CASE WHEN excluded.ended_at IS NULL THEN s.end_known_by ELSE 'logged' END
"""


def _write(server: DatabaseServer, sessions: list[LoggedSession], *, databases: dict[str, int | None]) -> None:
    if not sessions:
        return
    rows: list[dict[str, object]] = [
        {
            "key": session.key,
            "database_id": databases[session.key],
            "database": session.database,
            "user": session.user,
            "pid": session.pid,
            "started_at": session.started_at,
            "address": session.address,
            "port": session.port,
            "application": session.application,
            "first_at": session.started_at,
            "last_at": max(session.disconnected_at or session.started_at, session.started_at),
            "ended_at": max(session.disconnected_at, session.started_at) if session.disconnected_at else None,
        }
        for session in sessions
    ]
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, {"server": server.pk, "rows": _json(rows)})


def _json(rows: list[dict[str, object]]) -> str:
    """PostgreSQL's json takes no zero byte."""
    return NO_ZERO.sub(r"\1", msgspec.json.encode(rows).decode())


def _end_dead(server: DatabaseServer, died: dict[str, datetime]) -> None:
    """Sessions that authenticated and were then ended by a fatal error. Their connection stands in the log before it."""
    if not died:
        return
    rows: list[dict[str, object]] = [{"key": key, "at": at} for key, at in sorted(died.items())]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_session s SET ended_at = greatest(d.at, s.started_at), end_known_by = 'logged',
              last_seen_at = greatest(s.last_seen_at, d.at)
            FROM json_to_recordset(%s) AS d (key text, at timestamptz)
            WHERE s.server_id = %s AND s.key = d.key AND s.logged AND s.end_known_by <> 'logged'
            """,
            [_json(rows), server.pk],
        )


def _end_restarted(log: DatabaseLog, server: DatabaseServer, started: set[datetime]) -> None:
    """What was open when the server came up has ended, though a crash leaves no line of it; whichever was read first."""
    ServerStart.objects.bulk_create([ServerStart(log=log, at=at) for at in sorted(started)], ignore_conflicts=True)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_session s SET ended_at = r.at, end_known_by = 'server restarted'
            FROM leases_session o, LATERAL (
              SELECT min(b.at) AS at FROM audit_serverstart b WHERE b.log_id = %s AND b.at > o.started_at AND b.at > o.last_seen_at
            ) r
            WHERE s.id = o.id AND o.server_id = %s AND r.at IS NOT NULL
              -- an earlier start may be read after a later one
              AND (o.ended_at IS NULL OR (%s AND o.end_known_by = 'server restarted' AND o.ended_at > r.at))
            """,
            [log.pk, server.pk, bool(started)],
        )


def _move(log: DatabaseLog, server: DatabaseServer, piece: Piece, counted: Taken, *, now: datetime) -> None:
    """Counts and position. What is missing ends the time that is known to be complete."""
    hole, told = "", piece.told
    if piece.gap is not None:
        hole = piece.gap.what
    elif told.invalid:
        hole = f"{told.invalid} of {told.records} records are no {log.format} entries"
    elif told.nameless:
        hole = f"{told.nameless} sessions name their client by its host instead of its address"
    if hole:
        if log.complete_since is not None and log.last_line_at is not None:
            _known(log, since=log.complete_since, until=log.last_line_at)
        log.hole, log.hole_at, log.complete_since = hole, now, None
    elif log.lines == 0:
        log.complete_since = told.first_at
    log.first_line_at = log.first_line_at or told.first_at
    position = piece.place.position
    log.server, log.file, log.file_began = server, piece.place.file, piece.place.began
    log.file_inode, log.file_start, log.offset = position.inode, position.start, position.offset
    log.read_at, log.unread_bytes = now, piece.unread
    log.lines += counted.records
    log.invalid += told.invalid
    log.connections += counted.connections
    log.disconnections += counted.disconnections
    log.rejected += counted.rejected
    if told.newest_at is not None:
        log.last_line_at = max(log.last_line_at or told.newest_at, told.newest_at)
    if told.connected_at is not None:
        log.connected_at = max(log.connected_at or told.connected_at, told.connected_at)
    log.save()


def _mark(log: DatabaseLog, server: DatabaseServer, *, unread: int, looked_at: datetime) -> None:
    """All of it was read at that time: what follows from that, not more often than anybody could see."""
    state = SourceState.objects.filter(kind=SourceKind.STREAM, name=str(log)).first()
    if state and state.ok and looked_at - state.checked_at < HEARTBEAT and log.unread_bytes == unread:
        return
    log.read_at, log.unread_bytes = looked_at, unread
    missed = is_silent(log, server) or unnamed(log, server) > 0
    since = None if missed or not log.lines else log.complete_since or looked_at
    # what is older than the policy keeps may have been dropped meanwhile, and is not to be called known again
    unmoved = {"offset": log.offset, "file": log.file, "lines": log.lines, "complete_since": log.complete_since}
    with transaction.atomic():
        mine = DatabaseLog.objects.filter(pk=log.pk, **unmoved).update(
            read_at=looked_at, unread_bytes=unread, complete_since=since
        )
        if mine and since is not None and not unread:
            _known(log, since=since, until=looked_at - LATE)
    report(log, server, now=looked_at)


def _known(log: DatabaseLog, *, since: datetime, until: datetime) -> None:
    """Every session of that time is there, for each database of the log."""
    if until <= since:
        return
    for database in log.databases.order_by("id"):
        SampledPeriod.objects.update_or_create(database=database, logged=True, from_at=since, defaults={"to_at": until})


def try_to_read(log: DatabaseLog) -> Doubt | None:
    """For doctor: whether the next piece can be had, without taking it. Raises SourceError."""
    server = server_of(log)
    next_piece(log.path, log.format, place_of(log))
    return doubt(log, server, now=timezone.now())


# --- what cannot be learned --------------------------------------------------------------------------------------


def report(log: DatabaseLog, server: DatabaseServer, *, now: datetime) -> None:
    health.report_ok(SourceKind.STREAM, str(log), now=now, doubt=doubt(log, server, now=now))


def doubt(log: DatabaseLog, server: DatabaseServer, *, now: datetime) -> Doubt | None:
    """Why not every session may be known by the log, though it is read."""
    if is_silent(log, server):
        return Doubt(
            f"{log.path} tells of no connection, not even of those that samples made",
            "Set log_connections = on and lc_messages = 'C' on the server, and see that this is the log that it writes (pg_current_logfile).",
        )
    if missed := unnamed(log, server):
        return Doubt(
            f"{missed} session{'s' if missed > 1 else ''} of the last hour that samples showed {'are' if missed > 1 else 'is'} not in "
            f"{log.path}: it tells of none, or not of all",
            "Set log_connections = on, lc_messages = 'C' and log_hostname = off on the server, and see that this is the log that it writes "
            "(pg_current_logfile).",
        )
    if log.hole_at is not None and now - log.hole_at < REMEMBERED:
        return Doubt(
            f"Something is missing from {log.path}: {log.hole}",
            "Keep rotated files until they are read, set log_hostname = off, and look into the log around then.",
        )
    if unended(log, server):
        return Doubt(
            f"Sessions began in {log.path} and were seen no more, but it does not tell their end",
            "Set log_disconnections = on on the server; until then ends are as exact as samples.",
        )
    return None


def is_silent(log: DatabaseLog, server: DatabaseServer) -> bool:
    """A sample is a connection, too: a log that was read past it and does not tell of it, tells of none."""
    if log.unread_bytes or server.sampled_at is None or log.read_at is None or server.sampled_at > log.read_at:
        return False
    return log.connected_at is None or server.sampled_at - log.connected_at > LATE


def unnamed(log: DatabaseLog, server: DatabaseServer) -> int:
    """Sessions of the last hour that samples showed and the log, which was read past their begin, did not."""
    return _of_last_hour(log, server).filter(sampled=True, logged=False).count()


def unended(log: DatabaseLog, server: DatabaseServer) -> bool:
    """Whether any that the log began is over only because samples do not show it any more."""
    read_to = _read_to(log)
    over = Q(end_known_by=Ended.SAMPLED, ended_at__lt=read_to - LATE) if read_to else Q(pk=None)
    return _of_last_hour(log, server).filter(over, logged=True).exists()


def _of_last_hour(log: DatabaseLog, server: DatabaseServer) -> QuerySet[Session]:
    """Those whose lines must have been read: begun after the first line and after the last hole, and well before the last one."""
    if log.first_line_at is None or (read_to := _read_to(log)) is None:
        return Session.objects.none()
    bounds = [read_to - REMEMBERED, log.first_line_at, log.hole_at]
    return Session.objects.filter(
        server=server,
        start_is_known=True,
        started_at__gt=max(bound for bound in bounds if bound is not None),
        started_at__lt=read_to - LATE,
    )


def _read_to(log: DatabaseLog) -> datetime | None:
    return log.last_line_at if log.unread_bytes else log.read_at
