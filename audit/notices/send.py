"""send(): one attempt at what is due for one receiver. Its state is PostgreSQL's; no transaction spans the network.

A message that was taken and whose worker died before it could write that down is sent again, with the same webhook-id.
"""

import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from audit import webhook
from audit.models.findings import Severity
from audit.models.notices import OPEN_NOTICE_STATES, TRANSITIONS, Form, Notice, NoticeLine, NoticeState, Receiver
from audit.notices import message
from audit.notices.message import MOST, Message, Told
from leases.configuration import address_problem
from leases.errors import SourceError
from leases.references import read_secret

log = logging.getLogger(__name__)

SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=5)
# how long a receiver may ask us to wait
LONGEST_RETRY_AFTER = timedelta(hours=1)
# what was refused is tried again when the configuration is written, and by itself this often
REFUSED_EVERY = timedelta(hours=1)
GIVE_UP_AFTER = timedelta(hours=24)
# an attempt that has not come back by then is lost with its worker; longer than audit.tasks lets one last
CLAIM = timedelta(seconds=40)
# changes that one message takes up, whether told at length or counted
MOST_LINES = 5000
RECHECK_EVERY = timedelta(minutes=1)
LOST = "The last attempt never came back: its worker was ended, or the receiver's name took too long to resolve"
GAVE_UP = "What waited for 24 hours was given up; the findings page shows it. `manage.py send_test_notice` tells whether it works again."
# not mended by sending the same again; the first three may be about the content alone
_CONTENT = {400, 413, 422}
_PASSING = {408, 425, 429}
# Slack says in one such word what is wrong (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/#handling_errors)
_WORD = re.compile(r"[a-z][a-z_]{2,50}")
_FIXES = {
    401: "The receiver wants a log-in: let its address or the signature do, or correct url in leasehold.toml.",
    403: "The receiver does not let us: compare the signing secret on both sides, or make a new address for Slack.",
    404: "Correct url in leasehold.toml, or what it names; then `manage.py configure`.",
    410: "The receiver wants no more of it: make a new address, or take it out of leasehold.toml; then `manage.py configure`.",
}
_FIX = "Look at the receiver's log, correct it or url in leasehold.toml, then `manage.py configure` or `manage.py send_test_notice`."


@dataclass(frozen=True, slots=True)
class Way:
    """How a receiver is reached, once what is named by reference has been read."""

    url: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt means: the state that the message goes to, why, and when it is tried again (None: not any more)."""

    state: NoticeState
    cause: str = ""
    fix: str = ""
    next_try_at: datetime | None = None
    reduced: bool = False


def send(receiver: Receiver, *, now: datetime) -> Outcome | None:
    """None where nothing was due, or another worker has it. The caller holds the receiver's turn, which only spares attempts."""
    notice = _open(receiver) or _made(receiver, now=now)
    if notice is None or notice.next_try_at is None or notice.next_try_at > now or not _claim(notice, now=now):
        return None
    told = _told(notice)
    try:
        answer = post(receiver, notice_message(notice, receiver, told))
    except SourceError as error:
        outcome = _again(notice, error.cause, error.fix, now=now)
    else:
        outcome = judge(answer, notice, now=now)
    _write_down(receiver, notice, outcome, now=now)
    return outcome


def _open(receiver: Receiver) -> Notice | None:
    return Notice.objects.filter(receiver=receiver, state__in=OPEN_NOTICE_STATES).first()


@transaction.atomic
def _made(receiver: Receiver, *, now: datetime) -> Notice | None:
    """A message of all that waits, once the first of it has waited for its group."""
    # one at a time; what is queued meanwhile does not wait for this lock
    locked = Receiver.objects.select_for_update(no_key=True).filter(pk=receiver.pk, retired=False).first()
    waiting = NoticeLine.objects.filter(receiver=receiver, notice=None).order_by("at", "id")
    first = waiting.first()
    if locked is None or first is None or now < first.at + timedelta(seconds=locked.group_seconds) or _open(receiver):
        return None
    notice = Notice.objects.create(receiver=receiver, made_at=now, next_try_at=now)
    lines = list(waiting.values_list("pk", flat=True)[:MOST_LINES])
    NoticeLine.objects.filter(pk__in=lines).update(notice=notice)
    return notice


def _claim(notice: Notice, *, now: datetime) -> bool:
    """Compare-and-set: whoever counts the attempt makes it. What it counted before and never heard of again is said."""
    lost = {"cause": LOST} if notice.attempts and not notice.cause else {}
    taken = Notice.objects.filter(pk=notice.pk, state=notice.state, attempts=notice.attempts).update(
        attempts=F("attempts") + 1, next_try_at=now + CLAIM, **lost
    )
    notice.attempts += 1
    return bool(taken)


def _told(notice: Notice) -> list[Told]:
    """Each finding of the message once, with all that happened to it: those that are open first, the worst and newest of them."""
    rows = (
        notice.lines.select_related("finding", "change").defer("finding__evidence").order_by("change__at", "change_id")
    )
    lines: dict[int, list[NoticeLine]] = {}
    for line in rows:
        lines.setdefault(line.finding_id, []).append(line)
    return [_finding(of) for of in sorted(lines.values(), key=_place)]


def _place(lines: list[NoticeLine]) -> tuple[bool, int, float, int]:
    last = lines[-1].change
    return last.change == message.CLOSED, -last.severity, -last.at.timestamp(), -last.finding_id


def _finding(lines: list[NoticeLine]) -> Told:
    finding, last = lines[-1].finding, lines[-1].change
    closed = last.change == message.CLOSED
    return Told(
        id=finding.pk,
        kind=finding.kind,
        severity=str(Severity(last.severity).label),
        changes=tuple(line.change.change for line in lines),
        # as it was said then; of one that closed, what it had been
        summary=finding.summary if closed else last.why,
        first_seen_at=finding.first_seen_at,
        changed_at=last.at,
        culprit=finding.culprit,
        vault=finding.vault,
        service_account_namespace=finding.service_account_namespace,
        service_account=finding.service_account,
        why=last.why if closed else "",
        by=last.by,
    )


def notice_message(notice: Notice, receiver: Receiver, told: list[Told]) -> Message:
    return Message(
        id=notice.webhook_id,
        sent_at=notice.made_at,
        findings=tuple(told[:MOST]),
        more=max(0, len(told) - MOST),
        site_url=receiver.site_url,
        reduced=notice.reduced,
    )


def way(receiver: Receiver) -> Way:
    """Reads what is named by reference, anew each time. Raises SourceError."""
    url = read_secret(receiver.url_reference) if receiver.url_reference else receiver.url
    if problem := address_problem(url, insecure=receiver.insecure):
        raise SourceError(
            f"The address of {receiver.name} {problem}", "Correct what url of this notice names in leasehold.toml."
        )
    keys = message.keys_of(read_secret(receiver.secret), name=receiver.name) if receiver.secret else []
    return Way(url, tuple(keys))


def post(receiver: Receiver, content: Message) -> webhook.Answer:
    """One attempt. The time under the signature is the real one: a receiver compares it with its clock. Raises SourceError."""
    reached = way(receiver)
    body = message.as_slack(content) if receiver.form == Form.SLACK else message.as_json(content)
    headers = message.signed(content.id, body, list(reached.keys), at=timezone.now()) if reached.keys else {}
    return webhook.post(reached.url, body, headers, ca_file=receiver.ca_file)


def without_address(text: str, receiver: Receiver) -> str:
    """What a receiver said, without the parts of its address that may be a secret: some repeat it."""
    parts = urlsplit(way(receiver).url)
    for word in sorted([*parts.path.split("/"), *parts.query.split("&")], key=len, reverse=True):
        if len(word) >= 6:
            text = text.replace(word, "[address]")
    return text


def judge(answer: webhook.Answer, notice: Notice, *, now: datetime) -> Outcome:
    """What an answer means. Pure."""
    status = answer.status
    if 200 <= status < 300:
        return Outcome(NoticeState.SENT)
    cause = f"The receiver answered {status}{_word(answer, notice.receiver)}"
    if status in _PASSING or not 300 <= status < 500:
        wait = timedelta(seconds=min(webhook.wait_of(answer.retry_after, now=now), LONGEST_RETRY_AFTER.total_seconds()))
        fix = "It is tried again by itself. Look at the receiver's log if this lasts."
        return _again(notice, cause, fix, now=now, at_least=wait)
    if 300 <= status < 400:
        fix = "Redirects are not followed: write the address that it redirects to as url, then `manage.py configure`."
        return _refused(notice, cause, fix, now=now)
    if status in _CONTENT and not notice.reduced:
        fix = "It is tried once more without summaries and names, in case it took offence at one of them."
        return Outcome(NoticeState.WAITING, cause, fix, now + SHORTEST_WAIT, reduced=True)
    return _refused(notice, cause, _FIXES.get(status, _FIX), now=now)


def _word(answer: webhook.Answer, receiver: Receiver) -> str:
    """Slack's word for what is wrong. Nothing else of a body is kept: it may repeat the address."""
    said = answer.said.strip()
    return f" ({said})" if receiver.form == Form.SLACK and _WORD.fullmatch(said) else ""


def _again(notice: Notice, cause: str, fix: str, *, now: datetime, at_least: timedelta = timedelta()) -> Outcome:
    if now - notice.made_at >= GIVE_UP_AFTER:
        return Outcome(NoticeState.GIVEN_UP, cause, fix)
    return Outcome(NoticeState.WAITING, cause, fix, now + max(wait_after(notice.attempts), at_least))


def _refused(notice: Notice, cause: str, fix: str, *, now: datetime) -> Outcome:
    if now - notice.made_at >= GIVE_UP_AFTER:
        return Outcome(NoticeState.GIVEN_UP, cause, fix)
    return Outcome(NoticeState.REFUSED, cause, fix, now + REFUSED_EVERY)


def wait_after(attempts: int) -> timedelta:
    """5, 10, 20 … seconds, at most LONGEST_WAIT. Pure."""
    doubled: int = 2 ** min(max(attempts, 1) - 1, 10)
    return min(SHORTEST_WAIT * doubled, LONGEST_WAIT)


@transaction.atomic
def _write_down(receiver: Receiver, notice: Notice, outcome: Outcome, *, now: datetime) -> None:
    ended = outcome.next_try_at is None
    fields = {
        "state": outcome.state,
        "cause": outcome.cause[:500],
        "next_try_at": outcome.next_try_at,
        "ended_at": now if ended else None,
        "reduced": notice.reduced or outcome.reduced,
    }
    before = [
        state for state, then in TRANSITIONS.items() if outcome.state in then or (state == outcome.state and then)
    ]
    rows = Notice.objects.filter(pk=notice.pk, state__in=before)
    if outcome.state != NoticeState.SENT:
        # a later attempt knows better how it failed; that it was taken is true in any case
        rows = rows.filter(attempts=notice.attempts)
    if not rows.update(**fields):
        return
    if outcome.state == NoticeState.SENT:
        works(receiver)
        return
    fix = f"{outcome.fix} {GAVE_UP}" if outcome.state == NoticeState.GIVEN_UP else outcome.fix
    if outcome.cause != receiver.cause or outcome.state == NoticeState.GIVEN_UP:
        log.warning("notices to %s: %s. %s", receiver.name, outcome.cause, fix)
    Receiver.objects.filter(pk=receiver.pk, retired=False).update(
        cause=outcome.cause[:500], fix=fix[:500], failing_since=receiver.failing_since or now
    )


def works(receiver: Receiver) -> None:
    """It has taken a message."""
    if receiver.cause:
        log.info("notices to %s: it takes them again", receiver.name)
        Receiver.objects.filter(pk=receiver.pk).update(cause="", fix="", failing_since=None)


def check(receiver: Receiver, *, now: datetime) -> None:
    """Can its address, its secret and its authority be used? Nothing is sent: what is wrong is known before it matters."""
    try:
        webhook.trusting(receiver.ca_file)
        way(receiver)
        cause, fix = "", ""
    except SourceError as error:
        cause, fix = error.cause[:500], error.fix[:500]
        log.warning("notices to %s: %s. %s", receiver.name, cause, fix)
    Receiver.objects.filter(pk=receiver.pk).update(checked_at=now)
    # how an attempt went says more
    Receiver.objects.filter(pk=receiver.pk, failing_since=None, retired=False).update(cause=cause, fix=fix)
