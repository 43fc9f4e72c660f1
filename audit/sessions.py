"""Database sessions: each tied to the lease of its user, and judged by where it came from. In sets, safe to run twice.

The rule is place.py's, its evidence whereabouts.py's.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from django.db import connection, transaction

from audit import whereabouts
from audit.place import Verdict, a_session_comes_from_its_holder_or_from_elsewhere
from audit.whereabouts import SessionSeen
from leases.models import Policy, Session
from leases.models.sessions import Place

# so many sessions are judged at once, and for about so long in one turn
SLICE = 200
TURN = 3.0
# so many leases whose user or holder changed are looked at in one turn
MANY = 1_000

# {which}: sessions whose lease is to be looked for. A name is random enough to be one lease's, whichever vault issued it; of two
# that were told so, the one of the session's own database counts, and of those the last that was issued before it began: a mount
# with a template of its own may give a name again.
_TIE = """
    WITH untied AS (
        SELECT id, database_user, database_id, started_at FROM leases_session
        WHERE lease_id IS NULL AND database_user <> '' AND {which}
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), found AS (
        SELECT DISTINCT ON (untied.id) untied.id, lease.id AS lease_id, lease.database_id
        FROM untied JOIN leases_lease lease ON lease.database_user = untied.database_user AND lease.database_user <> ''
        ORDER BY untied.id, (lease.database_id IS NOT DISTINCT FROM untied.database_id) DESC,
            -- clocks differ by a bit
            (coalesce(lease.accessed_at, lease.issued_at, lease.first_seen_at) <= untied.started_at + interval '10 s') DESC,
            coalesce(lease.accessed_at, lease.issued_at, lease.first_seen_at) DESC, lease.id
    )
    UPDATE leases_session session SET
        lease_id = found.lease_id, database_id = coalesce(found.database_id, session.database_id),
        place = '', place_reason = '', place_open = true
    FROM found WHERE session.id = found.id
"""
# all but those that another worker changes now
_REOPEN = """
    WITH theirs AS (
        SELECT id FROM leases_session WHERE lease_id = ANY(%s) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE leases_session session SET place_open = true FROM theirs WHERE session.id = theirs.id
    RETURNING session.id
"""
_UNTIE = """
    UPDATE leases_session session SET lease_id = NULL, place = '', place_reason = ''
    FROM leases_lease lease
    WHERE session.id = ANY(%s) AND lease.id = session.lease_id AND session.database_user <> lease.database_user
"""
# leases of which a session was left out have another turn
_LEFT_OUT = """
    UPDATE leases_lease lease SET sessions_due = true
    WHERE lease.id = ANY(%s) AND (
        EXISTS (
            SELECT FROM leases_session session WHERE session.lease_id = lease.id
                AND (NOT session.place_open OR session.database_user <> lease.database_user)
        ) OR lease.database_user <> '' AND EXISTS (
            SELECT FROM leases_session session
            WHERE session.lease_id IS NULL AND session.database_user = lease.database_user
        )
    )
"""
# those that another worker changes now, has tied to another lease, or knows the user's name of meanwhile, have their turn again
_SAVE = """
    WITH judged AS (
        SELECT given.* FROM json_to_recordset(%s) AS given (
            id bigint, lease_id bigint, "user" text, place text, reason text, still_open boolean
        ) JOIN leases_session session USING (id)
        WHERE session.lease_id IS NOT DISTINCT FROM given.lease_id AND session.database_user = given."user"
        ORDER BY session.id FOR NO KEY UPDATE OF session SKIP LOCKED
    )
    UPDATE leases_session session
    SET place = judged.place, place_reason = judged.reason, place_open = judged.still_open
    FROM judged WHERE session.id = judged.id
    RETURNING session.id
"""


@dataclass(slots=True)
class Judged:
    """What one turn did. `elsewhere`: sessions that are now known to come from elsewhere, and were not before."""

    tied: int = 0
    judged: int = 0
    waiting: int = 0
    elsewhere: int = 0
    # what was called so before, and no longer is
    cleared: int = 0

    @property
    def is_news(self) -> bool:
        """Whether findings say otherwise now."""
        return bool(self.elsewhere or self.cleared)


def tie_and_judge(*, now: datetime, seconds: float = TURN) -> Judged:
    """Ties sessions that have no lease, judges those whose evidence is there; for about `seconds`, the newest first."""
    done = Judged()
    deadline = time.monotonic() + seconds
    done.tied = look_again() + tie_open()
    skew = timedelta(seconds=Policy.current().clock_skew_seconds)
    for keys in open_sessions():
        judge(keys, skew=skew, now=now, done=done)
        if time.monotonic() >= deadline:
            break
    return done


def look_again() -> int:
    """Sessions of leases whose user or holder became another one: tied anew, and open again. Returns how many were tied."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """
            WITH due AS (
                SELECT id FROM leases_lease WHERE sessions_due ORDER BY id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE leases_lease lease SET sessions_due = false FROM due WHERE lease.id = due.id
            RETURNING lease.id, lease.database_user
            """,
            [MANY],
        )
        rows = cursor.fetchall()
        if not rows:
            return 0
        keys = [key for key, _ in rows]
        cursor.execute(_REOPEN, [keys])
        cursor.execute(_UNTIE, [[key for (key,) in cursor.fetchall()]])
        cursor.execute(_TIE.format(which="database_user = ANY(%s)"), [[user for _, user in rows if user]])
        tied = int(cursor.rowcount)
        cursor.execute(_LEFT_OUT, [keys])
        return tied


def tie_open() -> int:
    """Sessions that came in since: most of their leases are known by then. Returns how many were tied."""
    with connection.cursor() as cursor:
        cursor.execute(_TIE.format(which="place_open"))
        return int(cursor.rowcount)


def open_sessions(limit: int = SLICE) -> Iterator[list[int]]:
    """Every session that later evidence can still tell of, in slices, newest first."""
    below: int | None = None
    while True:
        rows = Session.objects.filter(place_open=True)
        if below is not None:
            rows = rows.filter(pk__lt=below)
        keys = list(rows.order_by("-id").values_list("id", flat=True)[:limit])
        if not keys:
            return
        yield keys
        below = keys[-1]


def judge(keys: Iterable[int], *, skew: timedelta, now: datetime, done: Judged) -> None:
    """Applies the rule to these sessions and writes down what it says of them."""
    before: dict[int, SessionSeen] = {}
    verdicts: dict[int, Verdict] = {}
    for session, seen in whereabouts.gather(list(keys), skew=skew, now=now):
        verdict = a_session_comes_from_its_holder_or_from_elsewhere(seen)
        if verdict.place is None:
            done.waiting += 1
            if session.place:
                # what was said before holds until something else can be said
                continue
        if is_news(session, verdict):
            before[session.id], verdicts[session.id] = session, verdict
    for key in save(before, verdicts):
        verdict, was = verdicts[key], before[key].place
        done.judged += verdict.place is not None
        done.elsewhere += verdict.place is Place.ELSEWHERE and was != Place.ELSEWHERE
        done.cleared += verdict.place is not Place.ELSEWHERE and was == Place.ELSEWHERE


def is_news(session: SessionSeen, verdict: Verdict) -> bool:
    """Whether it says something else than what is stored. Pure."""
    said = (verdict.place.value if verdict.place else "", verdict.reason, verdict.open)
    return said != (session.place, session.place_reason, session.place_open)


def save(before: dict[int, SessionSeen], verdicts: dict[int, Verdict]) -> list[int]:
    if not verdicts:
        return []
    rows = [
        {
            "id": key,
            "lease_id": before[key].lease_id,
            "user": before[key].database_user,
            "place": verdict.place.value if verdict.place else "",
            "reason": verdict.reason,
            "still_open": verdict.open,
        }
        for key, verdict in verdicts.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(_SAVE, [msgspec.json.encode(rows).decode()])
        return [key for (key,) in cursor]
