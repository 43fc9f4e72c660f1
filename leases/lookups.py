"""Lease times from the lease API: what is new, renewed or near its end is looked up, and nothing else is looked up again.

Source: https://developer.hashicorp.com/vault/api-docs/system/leases
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from leases import clients
from leases.ends import OUTLIVED, Gone, Seen, why_gone
from leases.models import ActionKind, EndReason, Lease, LeaseState, Login, Revocation, Vault
from leases.models.actions import RevocationState
from leases.vault import LeaseTimes, VaultDenied, VaultError, VaultLoginFailed, VaultSealed, VaultUnreachable

log = logging.getLogger(__name__)

BATCH = 300
# Vault needs a moment after the expiry until the lease is gone; asking earlier would only have to ask again
AFTER_EXPIRY = timedelta(milliseconds=700)
# one that is still there then is being revoked, or cannot be: it is asked for again ever more slowly
LOOK_AGAIN, SELDOM = timedelta(seconds=2), timedelta(minutes=5)
DENIED = timedelta(minutes=5)
# how long ago a token may have ended for its leases to be asked for; a list tells of older ones
TOKENS_BACK = timedelta(minutes=10)
# of the vault, not of one lease
_OF_THE_VAULT = (VaultUnreachable, VaultSealed, VaultLoginFailed)


def due(vault: Vault, *, now: datetime, limit: int = BATCH) -> list[Lease]:
    """Leases whose lookup is due, the newest request for one first: what was issued just now does not wait behind a backlog."""
    return list(
        Lease.objects.filter(vault=vault, lookup_due_at__lte=now)
        .exclude(state=LeaseState.ENDED)
        .order_by("-lookup_due_at", "-id")[:limit]
    )


def look_up_due(vault: Vault, *, now: datetime, seconds: float = 0.0) -> int:
    """Looks up what is due, batch after batch for so long, at most lookups_per_second; returns how many.

    Raises VaultError; what was done before it is kept.
    """
    client = clients.observer(vault)
    ask_of_ended_tokens(vault, now=now)
    size = max(1, min(BATCH, vault.lookups_per_second // 2))
    end, done = time.monotonic() + seconds, 0
    while leases := due(vault, now=now, limit=size):
        began = time.monotonic()
        answers = client.lookup_leases([(lease.lease_id, lease.vault_namespace) for lease in leases])
        take_answers(vault, leases, answers, now=timezone.now())
        done += len(leases)
        # also after the last one, so that whoever comes next keeps to the rate
        time.sleep(max(0.0, began + len(leases) / vault.lookups_per_second - time.monotonic()))
        if time.monotonic() >= end:
            break
        now = timezone.now()
    return done


def ask_of_ended_tokens(vault: Vault, *, now: datetime) -> None:
    """A lease can say that it lives longer than its token, and dies with it, and so can a token that another one made: what was
    read with tokens whose time has come, or with those that they made, is due."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE over (login_id, at) AS (
              SELECT id, expires_at FROM leases_login WHERE vault_id = %s AND expires_at BETWEEN %s AND %s
              UNION
              SELECT g.id, o.at FROM over o JOIN leases_login g ON g.parent_id = o.login_id WHERE NOT g.is_orphan
            )
            UPDATE leases_lease l SET lookup_due_at = %s FROM over o
            WHERE l.login_id = o.login_id AND l.state <> 'ended'
              -- and once more later, where it is still there: then it has outlived that
              AND COALESCE(l.looked_up_at < o.at + make_interval(secs => CASE WHEN o.at < %s THEN %s ELSE 0 END), true)
              AND COALESCE(l.lookup_due_at > %s, true)
            """,
            [
                vault.pk,
                now - TOKENS_BACK,
                now - AFTER_EXPIRY,
                now,
                now - OUTLIVED - AFTER_EXPIRY,
                OUTLIVED.total_seconds(),
                now,
            ],
        )


def take_answers(
    vault: Vault, leases: Sequence[Lease], answers: Sequence[LeaseTimes | VaultError | None], *, now: datetime
) -> None:
    """Writes down what lookups said. Raises the first error that is not of one lease, after the rest was written."""
    pairs = list(zip(leases, answers, strict=True))
    take_all_times([(lease, answer) for lease, answer in pairs if isinstance(answer, LeaseTimes)], now=now)
    end_all_gone([lease for lease, answer in pairs if answer is None], now=now)
    errors = [(lease, answer) for lease, answer in pairs if isinstance(answer, VaultError)]
    for _, error in errors:
        if isinstance(error, _OF_THE_VAULT):
            raise error
    later = now + DENIED
    # what one lease of a namespace is denied, all of it are: the others shall neither ask in vain nor hold anybody back
    denied = {lease.vault_namespace for lease, error in errors if isinstance(error, VaultDenied)}
    for lease, error in errors:
        log.warning("lease %s cannot be looked up: %s", lease.lease_id, error.cause)
    if errors:
        Lease.objects.filter(
            Q(pk__in=[lease.pk for lease, _ in errors]) | Q(vault=vault, vault_namespace__in=denied),
            lookup_due_at__lt=later,
        ).exclude(state=LeaseState.ENDED).update(lookup_due_at=later)


def take_times(lease: Lease, times: LeaseTimes, *, now: datetime) -> None:
    take_all_times([(lease, times)], now=now)


_TAKE_TIMES = """
    UPDATE leases_lease l SET
      issued_at = u.issued_at, expires_at = u.expires_at, last_renewal_at = u.last_renewal_at, renewable = u.renewable,
      revoke_error = u.revoke_error, looked_up_at = %s, lookup_due_at = u.due_at, updated_at = %s,
      state = CASE WHEN u.irrevocable THEN 'irrevocable' WHEN l.state = 'irrevocable' THEN 'live' ELSE l.state END
    FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::bool[],
                %s::text[], %s::timestamptz[], %s::bool[])
      AS u (id, asked_for_at, issued_at, expires_at, last_renewal_at, renewable, revoke_error, due_at, irrevocable)
    WHERE l.id = u.id AND l.state <> 'ended'
      -- a renewal that came in while this answer was on its way has asked for a lookup of its own: leave that standing
      AND (l.lookup_due_at = u.asked_for_at OR l.lookup_due_at IS NULL)
"""


def take_all_times(found: Sequence[tuple[Lease, LeaseTimes]], *, now: datetime) -> None:
    """The times that Vault gave for each lease, and when it is looked up next."""
    rows = [
        (
            lease.pk,
            lease.lookup_due_at,
            times.issued_at,
            times.expires_at,
            times.last_renewal_at,
            times.renewable,
            times.revoke_error or "",
            next_lookup(times, now=now, should_be_over=lease.end_seen_at),
            is_irrevocable(times),
        )
        for lease, times in found
    ]
    _execute(_TAKE_TIMES, [now, now], rows)
    alive = [lease.pk for lease, times in found if lease.end_seen_at is not None and times.ttl_seconds > 0]
    if alive:
        Lease.objects.filter(pk__in=alive, end_seen_at__lt=now - OUTLIVED).update(
            end_seen_at=None, end_seen_reason="", end_seen_evidence=""
        )


def is_irrevocable(times: LeaseTimes) -> bool:
    """Vault has given up to revoke it. An error alone may be one of several tries."""
    return bool(times.revoke_error) and times.ttl_seconds <= 0


def next_lookup(times: LeaseTimes, *, now: datetime, should_be_over: datetime | None = None) -> datetime | None:
    """Just after the expiry; again, ever more slowly, while an expired lease is still there. Nothing changes an irrevocable one
    but a person, and the list of those tells of that.

    `should_be_over`: when an event should have ended it; whether it has outlived that is asked for once.
    """
    if times.expires_at is None or is_irrevocable(times):
        return None
    over = (now - times.expires_at) / 4
    due = max(times.expires_at + AFTER_EXPIRY, now + min(max(over, LOOK_AGAIN), SELDOM))
    if should_be_over is not None and should_be_over >= now - OUTLIVED:
        return min(due, should_be_over + OUTLIVED + AFTER_EXPIRY)
    return due


def end_gone(lease: Lease, *, now: datetime) -> None:
    """The lease API no longer knows the lease: it ended, for the best reason that there is evidence for."""
    end_all_gone([lease], now=now)


def end_all_gone(leases: Sequence[Lease], *, now: datetime) -> None:
    if not leases:
        return
    keys = [lease.pk for lease in leases]
    # as they are now: the event that says why may have come while the lookup was on its way
    rows = Lease.objects.filter(pk__in=keys).exclude(state=LeaseState.ENDED).select_related("login").order_by("id")
    fresh = list(rows)
    times = token_times([lease.login_id for lease in fresh if lease.login_id is not None])
    # one that Vault was not told of yet has ended nothing
    revocations = Revocation.objects.filter(lease__in=keys).order_by("id")
    untold = [RevocationState.REQUESTED, RevocationState.FAILED, RevocationState.STOPPED]
    told = {row.lease_id: row for row in revocations.exclude(state__in=untold)}
    forced = set(revocations.filter(action__kind=ActionKind.FORCE).values_list("pk", flat=True))
    gone = []
    for lease in fresh:
        revocation = told.get(lease.pk)
        why = _why(lease, times.get(lease.login_id or 0), revocation, now=now)
        if revocation is not None and revocation.pk in forced and why.reason == EndReason.REVOKED_HERE:
            why = replace(why, reason=EndReason.FORCED)
        gone.append((lease.pk, why))
    _end_all(gone, now=now)


def token_times(logins: Sequence[int]) -> dict[int, datetime | None]:
    """When the token of each of these logins ends by its TTLs: with the first of those that made it, unless it is an orphan."""
    if not logins:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE up (leaf, login_id) AS (
              SELECT id, id FROM leases_login WHERE id = ANY(%s)
              UNION
              SELECT u.leaf, p.id FROM up u JOIN leases_login g ON g.id = u.login_id JOIN leases_login p ON p.id = g.parent_id
              -- one that was revoked took its children with it, or left them for good
              WHERE NOT g.is_orphan AND p.ended_at IS NULL
            )
            SELECT u.leaf, min(g.expires_at) FROM up u JOIN leases_login g ON g.id = u.login_id GROUP BY 1
            """,
            [list(logins)],
        )
        return dict(cursor.fetchall())


def _why(lease: Lease, token_time: datetime | None, told: Revocation | None, *, now: datetime) -> Gone:
    seen = None
    if lease.end_seen_at is not None:
        seen = Seen(lease.end_seen_at, EndReason(lease.end_seen_reason), lease.end_seen_evidence)
    alive_at = lease.looked_up_at if lease.expires_at and lease.expires_at > (lease.looked_up_at or now) else None
    token_ends_at, token_revoked = _token_ends_at(lease.login, token_time, alive_at=alive_at)
    if told is not None and alive_at is not None and told.updated_at < alive_at - OUTLIVED:
        # it came back, from a snapshot of before
        told = None
    return why_gone(
        now=now,
        told_by=str(told.action_id) if told is not None else None,
        seen=seen,
        expires_at=lease.expires_at,
        token_ends_at=token_ends_at,
        token_revoked=token_revoked,
        alive_at=alive_at,
    )


def _token_ends_at(
    login: Login | None, token_time: datetime | None, *, alive_at: datetime | None
) -> tuple[datetime | None, bool]:
    """When the holder's token ends by its TTLs, or (then true) was ended, as far as events told and no lease outlived that."""
    if login is None:
        return None, False
    if login.ended_at and (alive_at is None or login.ended_at >= alive_at - OUTLIVED):
        return login.ended_at, True
    return token_time, False


def end(lease: Lease, *, at: datetime, reason: EndReason, evidence: str, now: datetime) -> bool:
    """Ends a lease once: the first cause that was proven stays. Returns whether this call ended it."""
    return bool(_end_all([(lease.pk, Gone(at, reason, evidence))], now=now))


_END = """
    UPDATE leases_lease l SET
      state = 'ended', ended_at = u.at, end_reason = u.reason, lookup_due_at = NULL, updated_at = %s,
      -- with what was said of an end that was none
      end_evidence = concat_ws('; ', u.evidence, NULLIF(l.end_evidence, ''))
    FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[]) AS u (id, at, reason, evidence)
    WHERE l.id = u.id AND l.state <> 'ended'
"""


def _end_all(gone: Sequence[tuple[int, Gone]], *, now: datetime) -> int:
    return _execute(_END, [now], [(key, why.at, str(why.reason.value), why.evidence) for key, why in gone])


def _execute(query: str, parameters: list[Any], rows: Sequence[tuple[Any, ...]]) -> int:
    """One statement for all of these rows, column by column; returns how many it changed."""
    if not rows:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(query, [*parameters, *[list(column) for column in zip(*rows, strict=True)]])
        return int(cursor.rowcount)
