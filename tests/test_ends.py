"""Why a lease is gone: the rule, with nothing around it."""

from datetime import UTC, datetime, timedelta

import pytest

from leases.ends import Seen, why_gone
from leases.models import EndReason

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
PAST, FUTURE = NOW - timedelta(minutes=1), NOW + timedelta(minutes=50)
HOUR = timedelta(hours=1)
SEEN = Seen(PAST, EndReason.BY_PREFIX, "sys/leases/revoke-prefix/database by ada, request 1")


@pytest.mark.parametrize(
    ("facts", "reason", "at", "evidence"),
    [
        ({"told_by": "a1", "seen": SEEN, "expires_at": PAST}, EndReason.REVOKED_HERE, NOW, "action a1"),
        ({"seen": SEEN, "expires_at": PAST, "token_ends_at": PAST}, EndReason.BY_PREFIX, PAST, "request 1"),
        ({"expires_at": PAST}, EndReason.EXPIRED, PAST, "its time had come at 2026-11-25T11:59:00Z"),
        ({"expires_at": PAST, "token_ends_at": PAST}, EndReason.EXPIRED, PAST, "its time had come"),
        ({"expires_at": PAST, "token_ends_at": FUTURE}, EndReason.EXPIRED, PAST, "its time had come"),
        (
            {"expires_at": FUTURE, "token_ends_at": PAST},
            EndReason.EXPIRED,
            PAST,
            "the token that it was issued to ended at 2026-11-25T11:59:00Z, though it could have lived until 2026-11-25T12:50:00Z",
        ),
        (
            {"expires_at": PAST, "token_ends_at": PAST - timedelta(minutes=9)},
            EndReason.EXPIRED,
            None,
            "the token",
        ),
        ({"token_ends_at": PAST}, EndReason.EXPIRED, PAST, "the token that it was issued to"),
        (
            {"token_ends_at": PAST, "token_revoked": True},
            EndReason.TOKEN_REVOKED,
            PAST,
            "the token that it was issued to",
        ),
        # a lookup found it with time left after the event
        ({"seen": SEEN, "expires_at": FUTURE, "alive_at": NOW}, EndReason.UNKNOWN, NOW, "no event says why"),
        ({"seen": SEEN, "expires_at": FUTURE, "alive_at": SEEN.at}, EndReason.BY_PREFIX, SEEN.at, "request 1"),
        # a lookup found it with time left after the end of its token
        (
            {"expires_at": PAST, "token_ends_at": PAST - HOUR, "token_revoked": True, "alive_at": PAST - HOUR / 2},
            EndReason.EXPIRED,
            PAST,
            "its time had come at 2026-11-25T11:59:00Z",
        ),
        (
            {"expires_at": FUTURE, "token_ends_at": PAST - HOUR, "alive_at": PAST - HOUR / 2},
            EndReason.UNKNOWN,
            NOW,
            "no event says why",
        ),
        (
            {"expires_at": FUTURE, "token_ends_at": PAST, "token_revoked": True, "alive_at": PAST},
            EndReason.TOKEN_REVOKED,
            PAST,
            "the token that it was issued to",
        ),
        ({"expires_at": FUTURE, "token_ends_at": FUTURE}, EndReason.UNKNOWN, NOW, "no event says why"),
        ({"expires_at": FUTURE}, EndReason.UNKNOWN, NOW, "before its time"),
        ({}, EndReason.UNKNOWN, NOW, "before its time"),
    ],
)
def test_the_best_evidence_gives_the_reason(
    facts: dict[str, object], reason: EndReason, at: datetime | None, evidence: str
) -> None:
    given: dict[str, object] = {"told_by": None, "seen": None, "expires_at": None, "token_ends_at": None, **facts}
    gone = why_gone(now=NOW, **given)  # type: ignore[arg-type]
    assert gone.reason is reason
    assert gone.at == (at or facts["token_ends_at"])
    assert evidence in gone.evidence
    assert gone.evidence.endswith("a lookup finds no such lease")
