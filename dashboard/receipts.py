"""A receipt's lines: which steps a revocation takes, what is proven of each, and what to do where it is not. Pure rules."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from leases.action_queries import Item
from leases.ending import SESSIONS_ENDED, SESSIONS_SEEN
from leases.models import Action, ActionStep, Job, LeaseState, Revocation
from leases.models.actions import JobState, RevocationState
from leases.revoke import AUDIT_SEEN, LEASE_GONE, USER_GONE, VAULT_ANSWERED

# in the order in which they are proven, with what each one means
STEPS = {
    SESSIONS_SEEN: "Its open sessions noted",
    VAULT_ANSWERED: "Vault's answer",
    LEASE_GONE: "Lease gone from Vault",
    USER_GONE: "Database user gone",
    SESSIONS_ENDED: "Its sessions ended",
    AUDIT_SEEN: "Vault's own audit line",
}
# how long the page goes on looking for the audit line after the rest is decided
AUDIT_PATIENCE = timedelta(seconds=60)
# a worker takes up a revocation at once: after this it is not busy but absent
WORKER_PATIENCE = timedelta(seconds=5)
# of a job that nobody carries on
JOB_PATIENCE = timedelta(seconds=15)
NOTHING_DONE = {RevocationState.FAILED, RevocationState.STOPPED}


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
NOT_LOOKED_AT = "Nobody looked at its sessions: look in the database whether one is still open."


def lines(revocation: Revocation, steps: list[ActionStep], *, now: datetime) -> list[Line]:
    """The steps of one revocation with the last thing that is known of each."""
    last = {step.name: step for step in steps if not _of_an_earlier_attempt(step, revocation)}
    requested_at = revocation.requested_at
    found = [Line("Requested", "ok", f"by {revocation.action.by}", requested_at, 0.0)]
    for name, text in STEPS.items():
        step = last.get(name)
        if step:
            after = (step.at - requested_at).total_seconds()
            found.append(Line(text, step.outcome, step.detail, step.at, after))
        elif revocation.open or (name == AUDIT_SEEN and audit_line_awaited(revocation, now=now)):
            found.append(Line(text, "waiting"))
        elif revocation.state in NOTHING_DONE:
            found.append(Line(text, "skipped"))
        elif name == AUDIT_SEEN:
            found.append(Line(text, "unverified", NOT_SEEN))
        elif name in (SESSIONS_SEEN, SESSIONS_ENDED):
            found.append(Line(text, "unverified", NOT_LOOKED_AT))
        else:
            found.append(Line(text, "skipped"))
    return found


def _of_an_earlier_attempt(step: ActionStep, revocation: Revocation) -> bool:
    """Of what was taken up again: a failure would have ended this attempt, and before Vault is told nothing can be proven."""
    if not revocation.open:
        return False
    begun = revocation.state != RevocationState.REQUESTED or step.name == SESSIONS_SEEN
    return step.outcome == "failed" or (step.outcome == "ok" and not begun)


def audit_line_awaited(revocation: Revocation, *, now: datetime) -> bool:
    return revocation.state not in NOTHING_DONE and now - revocation.updated_at < AUDIT_PATIENCE


def took(shown: Iterable[Line]) -> float | None:
    """Seconds from the request to the last step that was decided."""
    return max((line.after_seconds for line in shown if line.after_seconds), default=None)


NO_WORKER = (
    "No worker has taken this up. See that one runs for the queue `actions` "
    "(celery -A dashboard worker -Q actions) and that the broker answers; it goes on by itself then."
)


def next_move(
    revocation: Revocation, *, now: datetime, job: Job | None = None, steps: Iterable[ActionStep] = ()
) -> str:
    """What the person should do now; empty where nothing is needed."""
    state, outcomes = revocation.state, {step.name: step.outcome for step in steps}
    if state == RevocationState.REQUESTED:
        return NO_WORKER if nobody_works(revocation.requested_at, job, now=now) else ""
    if state == RevocationState.STOPPED:
        return "Nothing was done to this lease: its job was stopped before its turn. Take it up again, or leave it as it is."
    if state == RevocationState.FAILED and outcomes.get(LEASE_GONE) == "ok":
        return (
            "The lease is gone from Vault, and its database user or a session is not. Do what the failed step says in the "
            "database; until then treat the credentials as usable."
        )
    if state == RevocationState.FAILED and revocation.lease.state == LeaseState.IRREVOCABLE:
        return (
            "Vault has given up on this lease: it tries no more. Do what the failed step says, and retry. If the database can "
            "never answer again, drop the user there by hand, then let Vault forget the lease by force."
        )
    if state == RevocationState.FAILED:
        return (
            "The lease may still work. Do what the failed step says, then retry. "
            "Until then treat the credentials as usable."
        )
    if state == RevocationState.UNVERIFIED and outcomes.get(USER_GONE) == "ok":
        return (
            "Lease and database user are gone, but nobody has seen that its sessions are. "
            "Do what the step says before you call this done."
        )
    if state == RevocationState.UNVERIFIED:
        return (
            "The lease is gone from Vault, but nobody has seen that the database user is gone. "
            "Look in the database for it before you call this done."
        )
    return ""


def nobody_works(requested_at: datetime, job: Job | None, *, now: datetime) -> bool:
    """Whether what was asked for lies about: no worker has taken it, or the one that had it is gone."""
    if job is None:
        return now - requested_at > WORKER_PATIENCE
    held_until = job.claimed_until or requested_at
    patience = WORKER_PATIENCE if held_until <= requested_at else JOB_PATIENCE
    return job.state == JobState.RUNNING and now - max(held_until, job.updated_at) > patience


# --- many leases at once -----------------------------------------------------------------------------------------

# the parts of a job's bar, in its order: state -> how it looks
SHARES = {
    RevocationState.VERIFIED: "good",
    RevocationState.UNVERIFIED: "warn",
    RevocationState.FAILED: "bad",
    RevocationState.STOPPED: "plain",
    RevocationState.VERIFYING: "busy",
    RevocationState.REVOKING: "busy",
}
BAR = 1000


@dataclass(frozen=True, slots=True)
class Share:
    """A stretch of a job's bar, in thousandths of its width."""

    state: str
    tone: str
    count: int
    x: float
    width: float


def shares(states: Mapping[str, int]) -> list[Share]:
    """How a job's bar is divided; what is still to come is left open."""
    total = sum(states.values())
    found, x = [], 0.0
    for state, tone in SHARES.items():
        if count := states.get(state, 0):
            width = BAR * count / total
            found.append(Share(str(state), tone, count, round(x, 2), round(width, 2)))
            x += width
    return found


def headline(states: Mapping[str, int], job: Job | None, *, kind: str) -> str:
    """What an action has come to, for its title. Nothing is called done that was not verified."""
    total = sum(states.values())
    done = states.get(RevocationState.VERIFIED, 0)
    if job and job.state == JobState.WAITING:
        return "Waits for another responder"
    if job and job.state == JobState.REFUSED:
        return "Refused: nothing was done"
    if not total:
        return kind.capitalize()
    if any(
        states.get(state) for state in (RevocationState.REQUESTED, RevocationState.REVOKING, RevocationState.VERIFYING)
    ):
        return "Dropping by force" if kind == "force revoke" else "Revoking"
    if done == total:
        return "Revoked and verified"
    if states.get(RevocationState.STOPPED) and not states.get(RevocationState.FAILED):
        return "Stopped"
    if states.get(RevocationState.FAILED) == total:
        return "Revocation failed"
    if states.get(RevocationState.FAILED):
        return f"{states[RevocationState.FAILED]:,} of {total:,} failed"
    return "Revoked, not fully verified"


# --- as text -----------------------------------------------------------------------------------------------------


def stamp(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else ""


def text_head(
    action: Action, *, what: str, link: str, states: Mapping[str, int], job: Job | None, now: datetime
) -> Iterator[str]:
    """The beginning of a receipt as text, a line at a time."""
    facts = {
        "Action": str(action.pk),
        "Permalink": link,
        "What": f"{action.kind}: {what}" if what else action.kind,
        "By": action.by,
        "At": stamp(action.at),
        "Reason": one_line(action.reason),
        "Ticket": one_line(action.ticket),
        "Job": job.state if job else "",
        "Approved by": job.decided_by if job and job.needs_approval and job.state != JobState.REFUSED else "",
        "Refused by": job.decided_by if job and job.state == JobState.REFUSED else "",
        "Stopped by": job.stopped_by if job and job.state == JobState.STOPPED else "",
        "Leases": ", ".join(f"{count:,} {state}" for state, count in states.items()),
        "Read at": stamp(now),
    }
    yield "LEASEHOLD RECEIPT"
    yield from (f"{name:<12}{value}" for name, value in facts.items() if value)
    yield "Only what is marked ok was verified."


def text_item(number: int, item: Item, *, job: Job | None, now: datetime) -> Iterator[str]:
    """One lease of a receipt as text."""
    row, lease = item.revocation, item.revocation.lease
    opens = f"{lease.database.name if lease.database else lease.mount} as {lease.role or 'an unknown role'}"
    yield ""
    yield f"{number}. {lease.lease_id} ({lease.vault.name})"
    yield f"   {row.state}; held by {lease.holder or 'nobody known'} ({lease.certainty}); opens {opens}"
    if lease.database_user:
        yield f"   database user {lease.database_user}"
    for line in lines(row, item.steps, now=now):
        after = f"+{line.after_seconds:.2f} s" if line.after_seconds is not None else ""
        detail = f": {one_line(line.detail)}" if line.detail else ""
        yield f"   {line.outcome:<11}{after:>10}  {stamp(line.at):<24}  {line.text}{detail}"
    if move := next_move(row, now=now, job=job, steps=item.steps):
        yield f"   To do: {move}"


def text_step(step: ActionStep, *, since: datetime) -> str:
    after = f"+{(step.at - since).total_seconds():.2f} s"
    detail = f": {one_line(step.detail)}" if step.detail else ""
    return f"   {step.outcome:<11}{after:>10}  {stamp(step.at):<24}  {step.name}{detail}"


def one_line(text: str) -> str:
    """Without breaks and signs that do not print: nobody writes a line of somebody else's receipt."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
