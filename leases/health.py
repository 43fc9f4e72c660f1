"""How each source is doing: what went wrong, how to mend it, and when it is asked again (backoff)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.utils import timezone

from leases import meter
from leases.errors import Doubt, SourceError
from leases.models import Policy, SourceState
from leases.models.sources import SourceKind

log = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(seconds=30)
# a state that says the same as before is written again only this often: pages ask for freshness, not for every poll
HEARTBEAT = timedelta(seconds=2)


def stale_after() -> timedelta:
    """How old the last good answer of a source may be before pages say so."""
    return timedelta(seconds=Policy.current().stale_after_seconds)


def wait_after(failures: int) -> timedelta:
    """1, 2, 4 … seconds, at most LONGEST_WAIT."""
    return min(timedelta(seconds=2 ** min(failures - 1, 10)), LONGEST_WAIT)


def report_ok(kind: SourceKind, name: str, *, now: datetime, doubt: Doubt | None = None) -> None:
    """It answers. `doubt`: what can nevertheless not be learned from it."""
    cause, fix = (doubt.cause[:500], doubt.fix[:500]) if doubt else ("", "")
    state = SourceState.objects.filter(kind=kind, name=name).first()
    if state and state.ok and state.cause == cause and now - state.checked_at < HEARTBEAT:
        return
    if state and not state.ok:
        log.info("%s %s answers again", kind, name)
    SourceState.objects.update_or_create(
        kind=kind,
        name=name,
        defaults={
            "ok": True,
            "cause": cause,
            "fix": fix,
            "failures": 0,
            "checked_at": now,
            "retry_at": now,
            "since": state.since if state and state.ok else now,
        },
    )


def report_failure(kind: SourceKind, name: str, *, cause: str, fix: str, now: datetime) -> None:
    state = SourceState.objects.filter(kind=kind, name=name).first()
    failures = state.failures + 1 if state else 1
    if state is None or state.cause != cause:
        log.warning("%s %s: %s. %s", kind, name, cause, fix)
    SourceState.objects.update_or_create(
        kind=kind,
        name=name,
        defaults={
            "ok": False,
            "cause": cause[:500],
            "fix": fix[:500],
            "failures": failures,
            "checked_at": now,
            "retry_at": now + wait_after(failures),
            "since": state.since if state and not state.ok else now,
        },
    )


def may_ask(kind: SourceKind, name: str, *, now: datetime) -> bool:
    """False while a failing source waits for its next try."""
    return not SourceState.objects.filter(kind=kind, name=name, ok=False, retry_at__gt=now).exists()


@contextmanager
def asking(kind: SourceKind, name: str, *, vouches: bool = True) -> Iterator[None]:
    """Runs a block that asks a source; a SourceError becomes the source's state instead of a crash.

    Without `vouches` a success says nothing of the whole source: only its own check may call it well again.
    """
    try:
        yield
    except SourceError as error:
        report_failure(kind, name, cause=error.cause, fix=error.fix, now=timezone.now())
    else:
        if vouches:
            report_ok(kind, name, now=timezone.now())
    finally:
        meter.flush(now=timezone.now())


def forget(kind: SourceKind, names: list[str]) -> None:
    """Drops the states of sources that are no longer configured: everything of `kind` that is not in `names`."""
    SourceState.objects.filter(kind=kind).exclude(name__in=names).delete()
