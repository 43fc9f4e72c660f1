"""What a message says, in both forms, and its signature. Pure: no database, no clock, no network.

Summaries, names of pods and applications are words that others chose: they are shortened, cleaned of what looks like a token, and
in the form for Slack they can neither mention anybody nor lay out the message.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from audit import secrets
from leases.errors import SourceError

VERSION = 1
FINDINGS, TEST = "leasehold.findings", "leasehold.test"
# findings that one message tells at length; of further ones only how many
MOST = 20
_LONGEST = 500
# in Slack, where a section holds 3000 characters and `&` is five of them: of a summary, a reason, and a name
_SUMMARY, _REASON, _NAME = 240, 120, 60
# https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme
_PREFIX, _FEWEST_BYTES, _MOST_BYTES = "whsec_", 24, 64
_MOST_SECRETS = 4
# what Mattermost makes more of than text
_ACTIVE = re.compile(r"@|\]\(|://|www\.", re.IGNORECASE)
TEST_TEXT = "This is a test message of Leasehold: findings will be told here."
CLOSED = "closed"


class UnusableSecret(SourceError):
    """What the reference names is no signing secret. The secret itself is never in the text."""


@dataclass(frozen=True, slots=True)
class Told:
    """One finding of a message. `changes`: what happened to it, first to last; `why`: of the last one, where it closed."""

    id: int
    kind: str
    severity: str
    changes: tuple[str, ...]
    summary: str
    first_seen_at: datetime
    changed_at: datetime
    culprit: str = ""
    vault: str = ""
    service_account_namespace: str = ""
    service_account: str = ""
    why: str = ""
    by: str = ""

    @property
    def change(self) -> str:
        return self.changes[-1]


@dataclass(frozen=True, slots=True)
class Message:
    """`reduced`: without what others chose the words of. `site_url`: what links begin with; empty: no links."""

    id: str
    sent_at: datetime
    type: str = FINDINGS
    findings: tuple[Told, ...] = ()
    more: int = 0
    site_url: str = ""
    reduced: bool = False


def as_json(message: Message) -> bytes:
    """docs/notices.md describes it; what is added later does not change `version`."""
    content: dict[str, Any] = {
        "type": message.type,
        "version": VERSION,
        "id": message.id,
        "sent_at": _time(message.sent_at),
        "reduced": message.reduced,
        "findings": [_finding(told, message) for told in message.findings],
        "more": message.more,
        "url": f"{message.site_url}/findings" if message.site_url else None,
    }
    if message.type == TEST:
        content["text"] = TEST_TEXT
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _finding(told: Told, message: Message) -> dict[str, Any]:
    def said(text: str, longest: int = _LONGEST) -> str | None:
        return None if message.reduced or not text else safe(text, longest=longest)

    return {
        "id": told.id,
        "kind": told.kind,
        "severity": told.severity,
        "change": told.change,
        "changes": list(told.changes),
        "changed_at": _time(told.changed_at),
        "first_seen_at": _time(told.first_seen_at),
        "summary": said(told.summary),
        "culprit": said(told.culprit),
        "vault": said(told.vault),
        "service_account_namespace": said(told.service_account_namespace),
        "service_account": said(told.service_account),
        "closed_why": said(told.why) if told.change == CLOSED else None,
        "closed_by": said(told.by) if told.change == CLOSED else None,
        "url": _link(told, message) or None,
    }


def as_slack(message: Message) -> bytes:
    """`blocks` is what Slack shows (https://docs.slack.dev/reference/block-kit/blocks/), `text` what others do and what a
    notification says: Mattermost shows that alone, so it holds everything."""
    if message.type == TEST:
        parts = [TEST_TEXT]
    else:
        parts = [_headline(message), *(_section(told, message) for told in message.findings)]
        if message.more:
            parts.append(f"… and {message.more:,} more.")
    if message.site_url and (message.more or message.type == TEST):
        parts.append(f"<{_escaped(message.site_url)}/findings|All findings>")
    blocks = [
        # verbatim: only what is written as a link is one
        {"type": "section", "text": {"type": "mrkdwn", "text": part, "verbatim": True}}
        for part in parts
    ]
    return json.dumps({"text": "\n".join(parts), "blocks": blocks}, ensure_ascii=False, separators=(",", ":")).encode()


def _headline(message: Message) -> str:
    counts = {
        change: sum(told.change == change for told in message.findings)
        for change in ("opened", "reopened", "worsened", CLOSED)
    }
    listed = ", ".join(f"{count} {change}" for change, count in counts.items() if count)
    return f"Leasehold findings: {listed}" + (f", {message.more:,} more" if message.more else "")


def _section(told: Told, message: Message) -> str:
    lines = [f"*{told.severity}, {told.change}:* {told.kind}"]
    if not message.reduced:
        lines.append(for_slack(told.summary, longest=_SUMMARY))
    if told.change == CLOSED and not message.reduced:
        by = f" by {for_slack(told.by, longest=_NAME)}" if told.by else ""
        lines.append(f"Closed{by}: {for_slack(told.why, longest=_REASON)}")
    about = [] if message.reduced else [for_slack(text, longest=_NAME) for text in (told.culprit, told.vault) if text]
    if link := _link(told, message):
        about.append(f"<{_escaped(link)}|Finding {told.id}>")
    else:
        about.append(f"Finding {told.id}")
    return "\n".join([*lines, " · ".join(about)])


def for_slack(text: str, *, longest: int) -> str:
    """Words of others. Slack reads &, < and > as control characters (https://docs.slack.dev/messaging/formatting-message-text/);
    Mattermost reads @NAME as a mention, [text](address) as a link or a picture, and makes a link of every address."""
    text = safe(text, longest=longest)
    return _escaped(_ACTIVE.sub(lambda match: f"{match[0][0]}\N{ZERO WIDTH SPACE}{match[0][1:]}", text))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def safe(text: str, *, longest: int) -> str:
    """On one line, without characters that cannot be seen, without what looks like a token, and no longer than that."""
    text = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
    # what turns the direction of writing, hides, or is half a character
    text = "".join(c for c in text if unicodedata.category(c) not in {"Cf", "Cs", "Co", "Cn"})
    try:
        text = secrets.clean(text.encode())[0].decode(errors="replace")
    except secrets.RawSecret:
        return secrets.REDACTED.decode()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _link(told: Told, message: Message) -> str:
    return f"{message.site_url}/findings/{told.id}" if message.site_url else ""


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def keys_of(text: str, *, name: str) -> list[bytes]:
    """The keys behind a secret: one, or while it is exchanged several with spaces between. Raises UnusableSecret."""
    words = text.split()
    keys = [_key(word) for word in words]
    if not words or len(words) > _MOST_SECRETS or None in keys:
        raise UnusableSecret(
            f"The secret of {name} is none that signs: it must be whsec_ and then 24 to 64 bytes in base64",
            "Write a new one for Leasehold and the receiver: printf 'whsec_%s' \"$(openssl rand -base64 32)\".",
        )
    return [key for key in keys if key is not None]


def _key(word: str) -> bytes | None:
    if not word.startswith(_PREFIX):
        return None
    encoded = word.removeprefix(_PREFIX)
    try:
        # others write it without the padding
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if _FEWEST_BYTES <= len(key) <= _MOST_BYTES else None


def signed(id: str, body: bytes, keys: list[bytes], *, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks (the address above), with one signature for each key."""
    seconds = str(int(at.timestamp()))
    content = b".".join([id.encode(), seconds.encode(), body])
    digests = [hmac.new(key, content, hashlib.sha256).digest() for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }
