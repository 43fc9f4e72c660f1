"""Each export is an action: who took what out, when and why, and what it was to the byte."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from django.utils import timezone

from audit.exports.copying import Form, Written
from leases.models import Action, ActionStep
from leases.models.actions import Outcome

EXPORT = "export"
WRITTEN = "export written"


def begin(
    kind: str,
    *,
    by: str,
    reason: str,
    from_at: datetime,
    to_at: datetime,
    form: Form,
    where: Mapping[str, str],
    now: datetime,
) -> Action:
    """Kept before anything is read."""
    narrowed = "".join(f", {name} {value}" for name, value in sorted(where.items()))
    summary = f"{kind} of {_utc(from_at)} to {_utc(to_at)} as {form}{narrowed}"
    # in the same words as other actions: no lease, but what was made
    target = {"vault": "", "lease_id": "", "summary": summary}
    return Action.objects.create(kind=EXPORT, by=by, reason=reason, at=now, targets=[target])


def finish(action: Action, written: Written, *, now: datetime) -> None:
    detail = f"{written.rows} rows, {written.bytes} bytes, SHA-256 {written.sha256}"
    ActionStep.objects.create(action=action, name=WRITTEN, outcome=Outcome.OK, detail=detail, at=now)


def fail(action: Action, written: Written, why: str, *, now: datetime) -> None:
    detail = f"{why}; {written.rows} rows had gone out"
    ActionStep.objects.create(action=action, name=WRITTEN, outcome=Outcome.FAILED, detail=detail[:1000], at=now)


@contextmanager
def recorded(
    kind: str,
    *,
    by: str,
    reason: str,
    from_at: datetime,
    to_at: datetime,
    form: Form,
    where: Mapping[str, str],
    now: datetime,
) -> Iterator[Written]:
    """An export inside is an action: give what is yielded to write()."""
    action = begin(kind, by=by, reason=reason, from_at=from_at, to_at=to_at, form=form, where=where, now=now)
    written = Written()
    try:
        yield written
    except BaseException as error:
        fail(action, written, f"{type(error).__name__}: it was not finished", now=timezone.now())
        raise
    finish(action, written, now=timezone.now())


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
