"""Turns: one worker at a time does a piece of work, under a PostgreSQL advisory lock that dies with its connection."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import InterfaceError, OperationalError, connection


@contextmanager
def turn(kind: str, key: int) -> Iterator[bool]:
    """True if this worker has the turn, False if another one does. Never waits."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s), %s)", [kind, key])
        mine = bool(cursor.fetchone()[0])
    try:
        yield mine
    finally:
        # after a lost connection the server has let go of the lock itself
        if mine and connection.connection is not None and not connection.connection.closed:
            with suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtext(%s), %s)", [kind, key])
