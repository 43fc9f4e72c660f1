"""Samples of database servers become rows: servers, sessions with their begin and end, dynamic users, and what sampling costs.

A sample shows a whole server, so its sessions are kept by server; whatever it holds, it is written with a fixed number of statements.
Rows travel as JSON: 2,000 sessions are one parameter.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import connection, transaction
from django.db.models import Q

from leases import clients
from leases.databases import DatabaseUser, Sample, SeenSession, Server
from leases.errors import Doubt, SourceError
from leases.inventory import NO_ZERO
from leases.models import (
    AnsweringServer,
    Database,
    DatabaseServer,
    Lease,
    MonitorUser,
    Policy,
    SampledPeriod,
    Sampling,
    Session,
)

# sampling may take this share of one core of the server
SHARE = 0.01
# where it takes more, it is done less often, but not less often than this
LONGEST_INTERVAL = 60.0
# how much longer an interval may be than the one before: what took long once, since the server was busy with others, must not
# make everything blind for a while
GROWTH = 1.25
# a longer pause between two samples, in intervals, is a hole in what is known
HOLE = 2.5
# how often a server's users are listed beside its sessions
USERS_EVERY = timedelta(seconds=15)
# servers that answered at one address within this time stand behind it together
IN_TURN = timedelta(minutes=15)
# what a log told of last may not be in a sample yet
LOGGED_JUST_NOW = timedelta(seconds=2)
DYNAMIC = "v-"

TAKE_SESSIONS = """
    INSERT INTO leases_session AS s (
        server_id, key, database_id, database_name, database_user, user_oid, user_vanished_at, pid, started_at, start_is_known,
        address, port, application, state, sampled, logged, first_seen_at, last_seen_at, ended_at, end_known_by, place, place_reason
    )
    SELECT
        %(server)s, seen.key, seen.database_id, seen.database,
        coalesce(nullif(seen.user, ''), known.name, ''), seen.user_oid, CASE WHEN seen.user_is_gone OR seen.user = '' THEN %(at)s END,
        seen.pid, coalesce(seen.started_at, %(at)s), seen.started_at IS NOT NULL,
        seen.address, seen.port, seen.application, seen.state, true, false, %(at)s, %(at)s,
        -- a newer sample, which came first, did not show it
        CASE WHEN %(newest)s::timestamptz > %(at)s THEN %(newest)s::timestamptz END, CASE WHEN %(newest)s::timestamptz > %(at)s THEN 'no longer seen' ELSE '' END, '', ''
    FROM json_to_recordset(%(rows)s) AS seen (
        key text, pid bigint, started_at timestamptz, "user" text, user_oid bigint, database text, address text, port integer,
        application text, state text, user_is_gone boolean, database_id bigint
    )
    LEFT JOIN LATERAL (
        SELECT name FROM leases_dynamicuser u
        WHERE u.server_id = %(server)s AND u.oid = seen.user_oid AND seen.user = ''
        ORDER BY u.last_seen_at DESC, u.id DESC LIMIT 1
    ) AS known ON true
    ON CONFLICT (server_id, key) DO UPDATE SET
        sampled = true,
        database_id = coalesce(s.database_id, excluded.database_id),
        database_name = coalesce(nullif(s.database_name, ''), excluded.database_name),
        database_user = coalesce(nullif(s.database_user, ''), excluded.database_user),
        -- with its name its lease can be found
        place_open = s.place_open OR (s.database_user = '' AND excluded.database_user <> ''),
        user_oid = coalesce(s.user_oid, excluded.user_oid),
        user_vanished_at = least(s.user_vanished_at, excluded.user_vanished_at),
        started_at = CASE WHEN excluded.start_is_known THEN excluded.started_at ELSE s.started_at END,
        start_is_known = s.start_is_known OR excluded.start_is_known,
        address = coalesce(nullif(s.address, ''), excluded.address),
        port = coalesce(s.port, excluded.port),
        application = CASE WHEN excluded.last_seen_at < s.last_seen_at THEN s.application ELSE excluded.application END,
        state = CASE WHEN excluded.last_seen_at < s.last_seen_at THEN s.state ELSE excluded.state END,
        first_seen_at = least(s.first_seen_at, excluded.first_seen_at),
        last_seen_at = greatest(s.last_seen_at, excluded.last_seen_at),
        -- what a sample took for its end was none; what the log said stays
        ended_at = CASE WHEN s.end_known_by <> 'logged' AND excluded.last_seen_at > s.ended_at THEN NULL ELSE s.ended_at END,
        end_known_by = CASE WHEN s.end_known_by <> 'logged' AND excluded.last_seen_at > s.ended_at THEN '' ELSE s.end_known_by END
    RETURNING xmax = 0
"""
# sessions from before the server came up ended at the latest then
END_SESSIONS = """
    UPDATE leases_session s SET
        ended_at = CASE WHEN s.last_seen_at < %(started)s::timestamptz THEN %(started)s::timestamptz ELSE %(at)s END,
        end_known_by = CASE WHEN s.last_seen_at < %(started)s::timestamptz THEN 'server restarted' ELSE 'no longer seen' END
    WHERE s.server_id = %(server)s AND s.ended_at IS NULL AND s.last_seen_at < %(began)s
        AND (s.sampled OR s.last_seen_at < %(began)s - %(just_now)s AND (
            -- a sample shows no user of another name that has no end; a list of users does not either
            s.database_user LIKE 'v-%%' OR EXISTS (
                SELECT FROM leases_dynamicuser u WHERE u.server_id = s.server_id AND u.name = s.database_user
            )
        ))
"""
TAKE_USERS = """
    INSERT INTO leases_dynamicuser AS u (server_id, name, oid, valid_until, first_seen_at, last_seen_at)
    SELECT %(server)s, seen.name, seen.oid, seen.valid_until, %(at)s, %(at)s
    FROM json_to_recordset(%(rows)s) AS seen (name text, oid bigint, valid_until timestamptz)
    ON CONFLICT (server_id, name) DO UPDATE SET
        oid = CASE WHEN excluded.last_seen_at < u.last_seen_at THEN u.oid ELSE excluded.oid END,
        valid_until = CASE
            WHEN excluded.last_seen_at < u.last_seen_at THEN u.valid_until
            ELSE coalesce(excluded.valid_until, u.valid_until)
        END,
        first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
        last_seen_at = greatest(u.last_seen_at, excluded.last_seen_at),
        gone_at = CASE WHEN excluded.last_seen_at > u.gone_at THEN NULL ELSE u.gone_at END
    -- beside a list every session names its user again
    WHERE %(listed)s OR u.gone_at IS NOT NULL OR u.oid IS DISTINCT FROM excluded.oid
"""
GONE_USERS = """
    UPDATE leases_dynamicuser SET gone_at = %(at)s
    WHERE server_id = %(server)s AND gone_at IS NULL AND last_seen_at < %(began)s
"""


NOTE_ANSWER = """
    INSERT INTO leases_answeringserver AS a (database_id, server_id, first_at, last_at)
    VALUES (%(database)s, %(server)s, %(now)s, %(now)s)
    ON CONFLICT (database_id, server_id) DO UPDATE SET
        -- after a long pause it is as if it had never been there
        first_at = CASE WHEN excluded.last_at - a.last_at > %(in_turn)s THEN excluded.first_at ELSE a.first_at END,
        last_at = greatest(a.last_at, excluded.last_at)
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sample brought: sessions that it showed, how many of them were new, and how many ended.

    `late`: a newer one of that server had come before, so that this one ends nothing.
    """

    sessions: int = 0
    new: int = 0
    ended: int = 0
    late: bool = False


def due(*, now: datetime, only: int | None = None) -> list[Database]:
    """Databases whose next sample's time has come, longest ago first. `only`: of this one."""
    rows = Database.objects.filter(vault__retired=False, sample_seconds__gt=0).exclude(monitor=None)
    if only is not None:
        rows = rows.filter(pk=only)
    rows = rows.filter(Q(sampling=None) | Q(sampling__due_at__lte=now))
    return list(rows.select_related("vault").order_by("sampling__due_at", "id"))


def sample_database(database: Database, *, now: datetime) -> Taken:
    """Asks the database's server which sessions it has, and takes the answer. Raises SourceError; its next time is set even then."""
    sampling = Sampling.objects.filter(database=database).first()
    with_users = sampling is None or sampling.users_at is None or now - sampling.users_at >= USERS_EVERY
    began = time.monotonic()
    try:
        sample = clients.ask_monitor(database, lambda kind, dsn: kind.sample(dsn, with_users=with_users))
    except SourceError:
        put_off(database, now=now)
        raise
    answered_at = now + timedelta(seconds=time.monotonic() - began)
    return take_sample(database, sample, now=answered_at, asked_at=now)


def put_off(database: Database, *, now: datetime) -> None:
    """After a sample that failed: the next try at its interval, or when the wait of its state is over, whichever is later."""
    seconds = Sampling.objects.filter(database=database).values_list("interval_seconds", flat=True).first()
    seconds = seconds or database.sample_seconds
    due_at = now + timedelta(seconds=seconds)
    Sampling.objects.update_or_create(
        database=database,
        defaults={"due_at": due_at},
        create_defaults={"due_at": due_at, "interval_seconds": seconds},
    )


@transaction.atomic
def take_sample(database: Database, sample: Sample, *, now: datetime, asked_at: datetime | None = None) -> Taken:
    """Writes down what the server said between `asked_at` and `now`, by this product's clock.

    Safe to run twice with the same sample (only its cost then counts twice), and with samples of a server in any order.
    """
    server = _server(sample.server)
    newest = server.sampled_at
    late = newest is not None and sample.at < newest
    if not late:
        started_at = sample.server.started_at or server.started_at
        DatabaseServer.objects.filter(pk=server.pk).update(sampled_at=sample.at, started_at=started_at)
    seen, users = _of_vault(sample)
    _note_sampling(database, server, sample, sessions=len(seen), now=now, asked_at=asked_at or now)
    values: dict[str, Any] = {
        "server": server.pk,
        "database": database.pk,
        "at": sample.at,
        "newest": newest,
        # it looked around at some time between its begin and its end
        "began": sample.at - timedelta(milliseconds=sample.took_ms),
        "started": sample.server.started_at,
        "just_now": LOGGED_JUST_NOW,
        "listed": users is not None,
    }
    ended = 0
    with connection.cursor() as cursor:
        cursor.execute(TAKE_USERS, {**values, "rows": _json(_user_rows(seen, users))})
        cursor.execute(TAKE_SESSIONS, {**values, "rows": _json(_session_rows(seen, database, server))})
        new = sum(is_new for (is_new,) in cursor.fetchall())
        if not late:
            cursor.execute(END_SESSIONS, values)
            ended = cursor.rowcount
            if users is not None:
                cursor.execute(GONE_USERS, values)
    return Taken(len(seen), new, ended, late)


def _server(told: Server) -> DatabaseServer:
    """The server's row, locked: samples of one server that come through several databases are taken one after the other."""
    same = Q(identity=told.identity)
    if told.data and told.started_at:
        same |= Q(identity__startswith=told.data, started_at=told.started_at)
    rows = DatabaseServer.objects.select_for_update().filter(same)
    found = list(rows.order_by("id"))
    if not found:
        DatabaseServer.objects.bulk_create([DatabaseServer(identity=told.identity)], ignore_conflicts=True)
        found = list(rows.order_by("id"))
    return next((row for row in found if row.started_at == told.started_at), found[0])


def _of_vault(sample: Sample) -> tuple[list[SeenSession], list[DatabaseUser] | None]:
    """Sessions and users that are Vault's: by their name or a lease that bears it; without this product's own."""
    names = {session.user for session in sample.sessions if session.user} | {user.name for user in sample.users or ()}
    others = [name for name in names if not name.startswith(DYNAMIC)]
    borne = set(Lease.objects.filter(database_user__in=others).values_list("database_user", flat=True))
    own = set(MonitorUser.objects.filter(name__in=names).values_list("name", flat=True))

    def is_vaults(name: str) -> bool:
        return name not in own and (name.startswith(DYNAMIC) or name in borne)

    seen = [session for session in sample.sessions if not session.user or is_vaults(session.user)]
    users = None if sample.users is None else [user for user in sample.users if is_vaults(user.name)]
    return seen, users


def _session_rows(seen: Collection[SeenSession], database: Database, server: DatabaseServer) -> list[dict[str, Any]]:
    """With the database that each is in: of those on the server the one of that name, else the one that was sampled."""
    # the database that the monitoring account is in says more than the connection's name in Vault
    ranked = [
        (is_guess, pk != database.pk, pk, name)
        for pk, *names in Sampling.objects.filter(server=server).values_list(
            "database", "database_name", "database__name"
        )
        for is_guess, name in enumerate(names)
    ]
    named = {name: pk for _, _, pk, name in sorted(ranked, reverse=True)}
    rows = [{**_fields(session), "database_id": named.get(session.database, database.pk)} for session in seen]
    # in one order, so that none waits for another that waits for it
    return sorted(rows, key=lambda row: row["key"])


def _user_rows(seen: Collection[SeenSession], users: Collection[DatabaseUser] | None) -> list[dict[str, Any]]:
    """One row for each user. A session names its user before the next list does, which may come too late to see it; unless it was dropped."""
    rows = {
        session.user: {"name": session.user, "oid": session.user_oid, "valid_until": None}
        for session in seen
        if session.user and not session.user_is_gone
    }
    rows |= {user.name: _fields(user) for user in users or ()}
    return [rows[name] for name in sorted(rows)]


def _note_sampling(
    database: Database, server: DatabaseServer, sample: Sample, *, sessions: int, now: datetime, asked_at: datetime
) -> None:
    """When the next sample is due, what this one cost, that the time up to now is known, and which server answered."""
    sharing = Sampling.objects.filter(server=server, sampled_at__gt=now - timedelta(seconds=2 * LONGEST_INTERVAL))
    others = sharing.exclude(database=database).count()
    sampling = Sampling.objects.select_for_update().filter(database=database).first()
    if sampling is None:
        sampling = Sampling(database=database, due_at=now, interval_seconds=database.sample_seconds)
    _extend_period(sampling, server, now=now)
    sampling.interval_seconds = next_interval(
        sampling.interval_seconds, least=database.sample_seconds, took_ms=sample.took_ms, sharing=others + 1
    )
    interval = timedelta(seconds=sampling.interval_seconds)
    # the clock that starts samples is a coarse one: what one was late by is taken off the next
    sampling.due_at = (sampling.due_at if sampling.due_at + interval > now else now) + interval
    if sample.users is not None:
        sampling.users_at = now
    elif sampling.server_id != server.pk:
        sampling.users_at = None
    sampling.server = server
    sampling.sampled_at = max(sampling.sampled_at or now, now)
    sampling.samples += 1
    sampling.sessions = sessions
    sampling.took_ms = sample.took_ms
    sampling.total_ms += sample.took_ms
    sampling.database_name = sample.database
    # between question and answer nothing can be told
    sampling.clock_ahead_seconds = (sample.at - min(max(sample.at, asked_at), now)).total_seconds()
    sampling.save()
    values: dict[str, Any] = {"database": database.pk, "server": server.pk, "now": now, "in_turn": IN_TURN}
    with connection.cursor() as cursor:
        cursor.execute(NOTE_ANSWER, values)


def next_interval(interval: float, *, least: float, took_ms: float, sharing: int) -> float:
    """Seconds until the next sample, so that those of all databases that share the server stay within SHARE of one core."""
    wanted = took_ms / 1000 / SHARE * sharing
    return max(least, min(wanted, interval * GROWTH, LONGEST_INTERVAL))


def _extend_period(sampling: Sampling, server: DatabaseServer, *, now: datetime) -> None:
    """The time up to now is known, unless samples were missed or another server answered before: then a new stretch begins."""
    periods = SampledPeriod.objects.filter(database=sampling.database_id, logged=False)
    last = periods.order_by("-to_at", "-id").first()
    hole = timedelta(seconds=HOLE * sampling.interval_seconds)
    if last and now <= last.to_at:
        return
    if last and sampling.server_id == server.pk and now - last.to_at <= hole:
        periods.filter(pk=last.pk).update(to_at=now)
    else:
        SampledPeriod.objects.create(database_id=sampling.database_id, from_at=now, to_at=now)


# --- what cannot be learned ---------------------------------------------------------------------------------------


def doubt(database: Database, *, now: datetime) -> Doubt | None:
    """Why what is sampled of the database may not be the whole truth, though it answers."""
    if several := servers_in_turn(database, now=now):
        where = " and ".join(server.identity.rpartition(" ")[2] for server in several)
        return Doubt(
            f"{len(several)} servers answer in turn at the address of {database.name}'s monitoring account: {where}. "
            "Each is sampled only now and then, so sessions may be missed and ends be known late",
            "Write an address that always leads to the same server, for PostgreSQL that of the primary or "
            "…?target_session_attrs=primary, into the secret that `monitor` names.",
        )
    sampling = Sampling.objects.filter(database=database).first()
    skew = Policy.current().clock_skew_seconds
    if sampling and abs(sampling.clock_ahead_seconds) > skew:
        off = sampling.clock_ahead_seconds
        return Doubt(
            f"The clock of {database.name}'s server is {abs(off):.1f} s {'ahead' if off > 0 else 'behind'}, so its sessions cannot "
            "be compared with pods to the second",
            "Set the clocks of both (NTP), or clock_skew_seconds in leasehold.toml if that is as it should be.",
        )
    if sampling and (named := _without_address(sampling)):
        return Doubt(
            f"{database.name}'s server tells the host name of a client instead of its address, as {named!r}, so from where such "
            "sessions came cannot be judged",
            "Set skip_name_resolve=ON in the configuration of MariaDB or MySQL and restart it; its accounts must then be bound to "
            "addresses or '%', not to names (docs/databases.md).",
        )
    return None


def _without_address(sampling: Sampling) -> str:
    """What the server tells instead of an address of a session that is open; empty where there is none such."""
    open_now = Session.objects.filter(server=sampling.server, ended_at=None).exclude(address="")
    named = open_now.exclude(address__regex=r"^\d+(\.\d+){3}$|:").order_by("id")
    return named.values_list("address", flat=True).first() or ""


def servers_in_turn(database: Database, *, now: datetime) -> list[DatabaseServer]:
    """Servers that answered for it lately, one before and after another; empty if there is one, or one took another's place."""
    rows = AnsweringServer.objects.filter(database=database, last_at__gt=now - IN_TURN)
    lately = list(rows.select_related("server").order_by("first_at", "id"))
    both = {
        server
        for n, earlier in enumerate(lately)
        for later in lately[n + 1 :]
        if later.first_at < earlier.last_at
        for server in (earlier.server, later.server)
    }
    return sorted(both, key=lambda server: server.identity)


def _json(rows: list[dict[str, Any]]) -> str:
    return NO_ZERO.sub(r"\1", msgspec.json.encode(rows).decode())


def _fields(seen: SeenSession | DatabaseUser) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in seen.__slots__}
