"""Hourly counts of events, kept by the transaction that stores them, so that no page ever counts events."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from django.db import connection

from audit.intern import What
from audit.models.events import Kind


class Delta(NamedTuple):
    """What events add to, or take from, their hour's count."""

    hour: datetime
    kind: int
    target: int
    who: int
    events: int
    errors: int
    own: int


# beginnings of paths that are rarely asked for and that a rule of audit.findings looks at: counted apart, so that the hours
# that have any are known without reading the others
RARE = ("sys/audit/", "identity/entity")


def target(what: What, kind: int) -> str:
    """What an event is counted under: the path of credentials that were read, one of RARE, else the mount point."""
    path = what[2]
    if kind in (Kind.READ, Kind.STATIC_READ):
        return path
    if path.startswith(RARE):
        return next(rare for rare in RARE if path.startswith(rare))
    return what[3]


def targets(whats: Iterable[What]) -> set[str]:
    """Every target that events with these can have."""
    found = set()
    for what in whats:
        found.add(target(what, Kind.OTHER))
        if "creds/" in what[2]:
            found.add(what[2])
    return found


def count(vault: int, deltas: Iterable[Delta]) -> None:
    sums: dict[tuple[datetime, int, int, int], list[int]] = {}
    for hour, kind, target_id, who, events, errors, own in deltas:
        key = (hour, kind, target_id, who)
        row = sums.get(key)
        if row is None:
            sums[key] = [events, errors, own]
        else:
            row[0] += events
            row[1] += errors
            row[2] += own
    rows = [(*key, row[0], row[1], row[2]) for key, row in sorted(sums.items()) if any(row)]
    gains = [row for row in rows if min(row[4], row[5], row[6]) >= 0]
    losses = [row for row in rows if min(row[4], row[5], row[6]) < 0]
    with connection.cursor() as cursor:
        if gains:
            cursor.execute(_GAIN, [vault, *[list(column) for column in zip(*gains, strict=True)]])
        if losses:
            columns = [list(column) for column in zip(*losses, strict=True)]
            cursor.execute(_LOSE, [*columns, vault])
            cursor.execute(_EMPTY, [vault, sorted(set(columns[0]))])


_ARRAYS = "%s::timestamptz[], %s::smallint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[]"
_GAIN = f"""
    INSERT INTO audit_hourly AS h (vault_id, hour, kind, target_id, who_id, events, errors, own)
    SELECT %s, * FROM unnest({_ARRAYS})
    ON CONFLICT (vault_id, hour, kind, target_id, who_id) DO UPDATE SET
      events = h.events + excluded.events, errors = h.errors + excluded.errors, own = h.own + excluded.own
"""  # noqa: S608
# an event that was completed may count elsewhere now
_LOSE = f"""
    UPDATE audit_hourly h SET events = h.events + u.events, errors = h.errors + u.errors, own = h.own + u.own
    FROM unnest({_ARRAYS}) AS u (hour, kind, target_id, who_id, events, errors, own)
    WHERE h.vault_id = %s AND h.hour = u.hour AND h.kind = u.kind AND h.target_id = u.target_id AND h.who_id = u.who_id
"""  # noqa: S608
_EMPTY = "DELETE FROM audit_hourly WHERE vault_id = %s AND hour = ANY(%s) AND events = 0"
