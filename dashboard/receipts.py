"""A receipt's lines: which steps a revocation takes, what is proven of each, and what to do where it is not. Pure rules."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from leases.models import ActionStep, Revocation
from leases.queries import Receipt
from leases.revoke import AUDIT_SEEN, LEASE_GONE, USER_GONE, VAULT_ANSWERED

# in the order in which they are proven, with what each one means
STEPS = {
    VAULT_ANSWERED: "Vault's answer",
    LEASE_GONE: "Lease gone from Vault",
    USER_GONE: "Database user gone",
    AUDIT_SEEN: "Vault's own audit line",
}
# how long the page goes on looking for the audit line after the rest is decided
AUDIT_PATIENCE = timedelta(seconds=60)
# a worker takes up a revocation at once: after this it is not busy but absent
WORKER_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Line:
    """One step. `outcome`: ok, failed, unverified, waiting, or skipped (never reached)."""

    text: str
    outcome: str
    detail: str = ""
    at: datetime | None = None
    after_seconds: float | None = None


NOT_SEEN = (
    f"It was not seen within {AUDIT_PATIENCE.total_seconds():g} s. See whether the streams are read: the sources page says so. "
    "When it is read later it is noted here."
)


def lines(revocation: Revocation, steps: list[ActionStep], *, now: datetime) -> list[Line]:
    """The steps of one revocation with the last thing that is known of each."""
    last = {step.name: step for step in steps}
    requested_at = revocation.requested_at
    found = [Line("Requested", "ok", f"by {revocation.action.by}", requested_at, 0.0)]
    for name, text in STEPS.items():
        step = last.get(name)
        if step:
            after = (step.at - requested_at).total_seconds()
            found.append(Line(text, step.outcome, step.detail, step.at, after))
        elif revocation.open or (name == AUDIT_SEEN and _audit_line_awaited(revocation, now=now)):
            found.append(Line(text, "waiting"))
        elif name == AUDIT_SEEN and revocation.state != "failed":
            found.append(Line(text, "unverified", NOT_SEEN))
        else:
            found.append(Line(text, "skipped"))
    return found


def _audit_line_awaited(revocation: Revocation, *, now: datetime) -> bool:
    return revocation.state != "failed" and now - revocation.updated_at < AUDIT_PATIENCE


def is_open(receipt: Receipt, *, now: datetime) -> bool:
    """Whether looking again can still show something new."""
    for revocation, steps in receipt.revocations:
        if revocation.open:
            return True
        seen = any(step.name == AUDIT_SEEN for step in steps)
        if not seen and _audit_line_awaited(revocation, now=now):
            return True
    return False


def next_move(revocation: Revocation, *, now: datetime) -> str:
    """What the person should do now; empty where nothing is needed."""
    if revocation.state == "requested" and now - revocation.requested_at > WORKER_PATIENCE:
        return (
            "No worker has taken this up. See that one runs for the queue `actions` "
            "(celery -A dashboard worker -Q actions) and that the broker answers; it goes on by itself then."
        )
    if revocation.state == "failed":
        return (
            "The lease may still work. Do what the failed step says, then revoke again from the lease's page. "
            "Until then treat the credentials as usable."
        )
    if revocation.state == "unverified":
        return (
            "The lease is gone from Vault, but nobody has seen that the database user is gone. "
            "Look in the database for it before you call this done."
        )
    return ""
