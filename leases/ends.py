"""Why a lease is gone: pure. A lookup has shown that Vault no longer knows it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from leases.models.ledger import EndReason

# Vault ends a lease with its token, and a token with its TTL, a moment after their times
PROMPT = timedelta(seconds=5)
# a lease that has time left so long after an event has outlived it: clocks differ, and a revocation takes a moment
OUTLIVED = timedelta(seconds=10)
# at the end of the evidence
NO_SUCH_LEASE = "; a lookup finds no such lease"


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that should have ended the lease."""

    at: datetime
    reason: EndReason
    evidence: str


@dataclass(frozen=True, slots=True)
class Gone:
    """When and why it ended, and what that rests on, in words."""

    at: datetime
    reason: EndReason
    evidence: str


def why_gone(
    *,
    now: datetime,
    told_by: str | None,
    seen: Seen | None,
    expires_at: datetime | None,
    token_ends_at: datetime | None,
    token_revoked: bool = False,
    alive_at: datetime | None = None,
) -> Gone:
    """The best reason that there is evidence for: what was done here, what an event says, what the clock says, nothing.

    `told_by`: the action whose revocation Vault was told of. `expires_at`: as the lease API gave it last. `token_ends_at`: when the
    holder's token ends by its own TTL, or with `token_revoked` was ended; leases go with it, so one that is gone before its time is
    then explained.
    `alive_at`: when a lookup last found it with time left: no event before that has ended it, nor has the end of its token.
    """

    def gone(at: datetime, reason: EndReason, evidence: str) -> Gone:
        return Gone(at, reason, evidence + NO_SUCH_LEASE)

    if told_by is not None:
        return gone(now, EndReason.REVOKED_HERE, f"action {told_by}")
    if seen is not None and (alive_at is None or seen.at >= alive_at - OUTLIVED):
        return gone(seen.at, seen.reason, seen.evidence)
    if token_ends_at is not None and alive_at is not None and token_ends_at < alive_at - OUTLIVED:
        # of an orphan's parent, or the token was renewed and nobody saw it
        token_ends_at = None
    with_token = EndReason.TOKEN_REVOKED if token_revoked else EndReason.EXPIRED
    if expires_at is not None and expires_at <= now:
        if token_ends_at is not None and token_ends_at + PROMPT < expires_at:
            return gone(token_ends_at, with_token, _with_token(token_ends_at, expires_at))
        return gone(expires_at, EndReason.EXPIRED, f"its time had come at {expires_at:%FT%TZ}")
    if token_ends_at is not None and token_ends_at <= now:
        return gone(token_ends_at, with_token, _with_token(token_ends_at, expires_at))
    return gone(now, EndReason.UNKNOWN, "it was gone before its time, and no event says why")


def _with_token(token_ends_at: datetime, expires_at: datetime | None) -> str:
    until = f", though it could have lived until {expires_at:%FT%TZ}" if expires_at else ""
    return f"the token that it was issued to ended at {token_ends_at:%FT%TZ}{until}"
