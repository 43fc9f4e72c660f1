"""Notices of findings, sent to a real HTTP(S) server on this machine."""

import base64
import contextlib
import io
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from audit import doctor, tasks, webhook
from audit.findings import watch
from audit.findings.found import Found
from audit.models import Finding, FindingChange, FindingKind, Notice, NoticeLine, NoticeState, Receiver, Severity
from audit.models.notices import TRANSITIONS
from audit.notices import message, queries, receivers, send
from demo import processes, valkey
from demo.kube import keys
from demo.processes import free_port
from leases.configuration import ConfigurationError, load
from tests import factories
from tests.hooks import PATH, Answering, Hook, hook

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]

# committed for real: workers in threads and processes of their own see it
COMMITTED = pytest.mark.django_db(transaction=True, databases=["default", "owner"])
START = timezone.now()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def there() -> Iterator[Hook]:
    with hook() as made:
        yield made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    return path


@pytest.fixture
def on_call(there: Hook, secret: Path) -> Receiver:
    return receiver(there.url, secret)


def receiver(url: str, secret: Path, name: str = "on-call", **fields: Any) -> Receiver:
    defaults = {"form": "json", "url": url, "secret": {"file": str(secret)}, "site_url": "https://leasehold.example"}
    return Receiver.objects.create(name=name, **defaults | fields)


def slack(url: str, folder: Path, name: str = "channel", **fields: Any) -> Receiver:
    (folder / "slack-url").write_text(url)
    reference = {"file": str(folder / "slack-url")}
    return Receiver.objects.create(name=name, form="slack", url_reference=reference, **fields)


def found(key: str = "a", severity: Severity = Severity.HIGH, **fields: Any) -> Found:
    defaults: dict[str, Any] = {"kind": FindingKind.ROOT_TOKEN, "summary": f"A root token ({key}) made 12 requests"}
    return Found(key=key, severity=severity, **defaults | fields)


def see(*now_found: Found, seconds: float = 0) -> None:
    """A look that finds just this."""
    with transaction.atomic():
        watch.settle({(one.kind.value, one.key): one for one in now_found}, now=at(seconds))


def sent(to: Receiver, *, seconds: float) -> send.Outcome | None:
    to.refresh_from_db()
    return send.send(to, now=at(seconds))


def told(there: Hook, number: int = -1) -> Any:
    return json.loads(there.got[number].body)


def changes(there: Hook, number: int = -1) -> list[tuple[str, str]]:
    return [
        (one["summary"].partition("(")[2].partition(")")[0], one["change"]) for one in told(there, number)["findings"]
    ]


def verified_by_the_documentation() -> Any:
    """The function that docs/notices.md gives to receivers."""
    text = (ROOT / "docs" / "notices.md").read_text()
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)  # noqa: S102
    return names["verified"]


# ---------------------------------------------------------------------------------------------------------------
# what is told


def test_a_high_finding_is_told_once_and_so_is_its_end(on_call: Receiver, there: Hook) -> None:
    see(found(vault="main", culprit="root"))
    assert sent(on_call, seconds=9) is None
    assert sent(on_call, seconds=10) == send.Outcome(NoticeState.SENT)
    finding = Finding.objects.get()
    content = told(there)
    assert (content["type"], content["version"], content["more"]) == ("leasehold.findings", 1, 0)
    assert content["id"] == there.got[0].headers["webhook-id"] == Notice.objects.get().webhook_id
    assert content["findings"] == [
        {
            "id": finding.pk,
            "kind": "root token used",
            "severity": "high",
            "change": "opened",
            "changes": ["opened"],
            "changed_at": content["findings"][0]["first_seen_at"],
            "first_seen_at": START.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "summary": "A root token (a) made 12 requests",
            "culprit": "root",
            "vault": "main",
            "service_account_namespace": None,
            "service_account": None,
            "closed_why": None,
            "closed_by": None,
            "url": f"https://leasehold.example/findings/{finding.pk}",
        }
    ]
    headers = there.got[0].headers
    assert (headers["user-agent"], headers["content-type"]) == ("Leasehold/0.1.0", "application/json")
    for seconds in (12, 20, 3600):
        assert sent(on_call, seconds=seconds) is None
    see(seconds=60)
    assert sent(on_call, seconds=70)
    assert changes(there) == [("a", "closed")]
    assert (told(there)["findings"][0]["closed_why"], told(there)["findings"][0]["closed_by"]) == ("no longer so", None)
    see(found(), seconds=120)
    sent(on_call, seconds=130)
    assert changes(there) == [("a", "reopened")]
    assert len(there.got) == 3


def test_the_signature_holds_by_the_code_of_the_documentation_and_no_other_body_does(
    on_call: Receiver, there: Hook, secret: Path
) -> None:
    see(found(summary='with ünïcödé and "quotes"'))
    sent(on_call, seconds=10)
    verified, got, text = verified_by_the_documentation(), there.got[0], secret.read_text()
    assert verified(got.headers, got.body, text)
    assert not verified(got.headers, got.body + b" ", text)
    assert not verified(got.headers | {"webhook-id": "msg_other"}, got.body, text)
    assert not verified(got.headers, got.body, "whsec_" + base64.b64encode(b"x" * 32).decode())
    old = str(int(got.headers["webhook-timestamp"]) - 301)
    assert not verified(got.headers | {"webhook-timestamp": old}, got.body, text)


def test_the_documentation_shows_the_message_as_it_is(on_call: Receiver, there: Hook) -> None:
    shown = json.loads((ROOT / "docs" / "notices.md").read_text().partition("```json\n")[2].partition("```")[0])
    see(found(vault="main", culprit="root"))
    sent(on_call, seconds=10)
    content = told(there)
    assert list(content) == list(shown)
    assert list(content["findings"][0]) == list(shown["findings"][0])


def test_the_signature_is_the_one_of_the_specifications_example() -> None:
    """https://github.com/standard-webhooks/standard-webhooks: its libraries are tested with this one."""
    key = message.keys_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", name="x")
    when = datetime.fromtimestamp(1614265330, tz=UTC)
    headers = message.signed("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', key, at=when)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_a_secret_is_exchanged_both_are_good(on_call: Receiver, there: Hook, secret: Path) -> None:
    new = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode().rstrip("=")
    old = secret.read_text()
    secret.write_text(f"{new} {old}\n")
    see(found())
    sent(on_call, seconds=10)
    verified, got = verified_by_the_documentation(), there.got[0]
    assert [verified(got.headers, got.body, text) for text in (old, new + "=" * (-len(new[6:]) % 4))] == [True, True]


def test_findings_within_ten_seconds_go_in_one_message_each_once_with_all_that_happened(
    on_call: Receiver, there: Hook
) -> None:
    see(found("a"), found("b", Severity.MEDIUM), found("d", Severity.LOW))
    see(found("a"), found("b"), found("c"), found("d", Severity.LOW), seconds=5)
    see(found("b"), found("c"), seconds=9)
    assert sent(on_call, seconds=10)
    # open ones first, the newest of them on top; what closed within the time too
    assert changes(there) == [("c", "opened"), ("b", "worsened"), ("a", "closed")]
    assert told(there)["findings"][2]["changes"] == ["opened", "closed"]
    assert len(there.got) == 1
    see(found("b"), found("c"), found("e"), seconds=11)
    assert sent(on_call, seconds=20) is None
    assert sent(on_call, seconds=21)
    assert changes(there) == [("e", "opened")]


def test_a_receiver_is_told_from_its_severity_on_and_of_ends_that_it_knew_the_beginning_of(
    on_call: Receiver, there: Hook, secret: Path
) -> None:
    all_of_it = receiver(there.url, secret, "all", severity=1)
    see(found("low", Severity.LOW), found("falls"))
    sent(all_of_it, seconds=10)
    assert {name for name, _ in changes(there)} == {"low", "falls"}
    sent(on_call, seconds=10)
    assert changes(there) == [("falls", "opened")]
    see(found("falls", Severity.LOW), seconds=20)
    see(seconds=30)
    # it is low when it closes, but this one was told that it is there
    sent(on_call, seconds=40)
    assert changes(there) == [("falls", "closed")]
    late = receiver(there.url, secret, "late", severity=1)
    see(found("new"), seconds=50)
    see(seconds=51)
    finding = Finding.objects.filter(key="low").get()
    assert not NoticeLine.objects.filter(receiver=late, finding=finding).exists()


def test_a_person_who_closes_a_finding_is_named(on_call: Receiver, there: Hook) -> None:
    see(found())
    watch.close(Finding.objects.get(), by="operator", reason="planned work", now=at(5))
    sent(on_call, seconds=10)
    one = told(there)["findings"][0]
    assert (one["change"], one["closed_by"], one["closed_why"]) == ("closed", "operator", "planned work")


@COMMITTED
def test_what_is_rolled_back_with_its_finding_is_not_told(on_call: Receiver) -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        watch.settle({(FindingKind.ROOT_TOKEN, "a"): found()}, now=at(0))
        assert NoticeLine.objects.exists()
        raise ZeroDivisionError
    assert not NoticeLine.objects.exists()
    assert not FindingChange.objects.exists()


# ---------------------------------------------------------------------------------------------------------------
# receivers that fail


def test_after_a_500_it_is_tried_again_ever_later_with_the_same_id(on_call: Receiver, there: Hook) -> None:
    there.answer(500, 502, 200)
    see(found())
    outcome = sent(on_call, seconds=10)
    assert outcome
    assert (outcome.state, outcome.cause, outcome.next_try_at) == ("waiting", "The receiver answered 500", at(15))
    on_call.refresh_from_db()
    assert (on_call.failing_since, on_call.cause) == (at(10), "The receiver answered 500")
    assert sent(on_call, seconds=14) is None
    outcome = sent(on_call, seconds=15)
    assert outcome
    assert outcome.next_try_at == at(25)
    assert sent(on_call, seconds=25) == send.Outcome(NoticeState.SENT)
    assert len({got.headers["webhook-id"] for got in there.got}) == 1
    assert len({got.body for got in there.got}) == 1
    on_call.refresh_from_db()
    assert (on_call.failing_since, on_call.cause) == (None, "")
    assert Notice.objects.get().attempts == 3
    assert [send.wait_after(n).total_seconds() for n in (1, 2, 3, 7, 8, 500)] == [5, 10, 20, 300, 300, 300]


def test_a_receiver_that_is_not_there_is_told_when_it_is_and_what_waited_goes_in_one_message(secret: Path) -> None:
    port = free_port()
    to = receiver(f"http://127.0.0.1:{port}{PATH}", secret)
    see(found("first"))
    outcome = sent(to, seconds=10)
    assert outcome
    assert outcome.cause == f"127.0.0.1:{port} takes no connection"
    everything = [found("first"), *(found(f"{number:03}") for number in range(120))]
    for minute in range(1, 30):
        see(*everything[: 1 + 4 * minute], seconds=60 * minute)
        sent(to, seconds=60 * minute + 1)
    see(*everything, seconds=1800)
    with hook(port=port) as there:
        for second in range(2000, 2600, 2):
            sent(to, seconds=second)
        assert len(there.got) == 2
        assert changes(there, 0) == [("first", "opened")]
        # the newest first
        assert [name for name, _ in changes(there)] == [f"{number:03}" for number in range(119, 99, -1)]
        assert told(there)["more"] == 100
        assert len(there.got[1].body) < 20_000
    assert set(NoticeLine.objects.values_list("notice__state", flat=True)) == {"sent"}


@pytest.mark.parametrize(
    ("header", "wait"),
    [("120", 120), ("1", 5), ("86400", 3600), ("soon", 5), ("-3", 5), ("DATE", 90), ("9" * 30, 5)],
)
def test_a_receiver_says_when_it_wants_to_be_asked_again(
    on_call: Receiver, there: Hook, header: str, wait: int
) -> None:
    if header == "DATE":
        header = at(10 + 90).strftime("%a, %d %b %Y %H:%M:%S GMT")
    there.answer(429, headers={"Retry-After": header})
    see(found())
    outcome = sent(on_call, seconds=10)
    assert outcome
    assert outcome.next_try_at is not None
    assert abs((outcome.next_try_at - at(10)).total_seconds() - wait) <= 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 418, 302, 307])
def test_what_is_refused_is_tried_again_only_hourly_or_after_configuring(
    on_call: Receiver, there: Hook, status: int
) -> None:
    there.answer(status, headers={"Location": there.url})
    see(found())
    outcome = sent(on_call, seconds=10)
    assert outcome
    assert (outcome.state, outcome.cause) == ("refused", f"The receiver answered {status}")
    assert outcome.fix
    assert sent(on_call, seconds=3600) is None
    assert sent(on_call, seconds=3610)
    # one POST for each attempt: a redirect is followed nowhere
    assert len(there.got) == 2
    there.answer(200)
    receivers.ask_anew(now=at(3700))
    assert sent(on_call, seconds=3700) == send.Outcome(NoticeState.SENT)
    assert len({got.headers["webhook-id"] for got in there.got}) == 1


def test_text_that_a_receiver_refuses_keeps_no_finding_from_being_told(on_call: Receiver, there: Hook) -> None:
    there.answer(400, 200)
    see(found(summary="words that it does not like", culprit="shop/evil", vault="main"))
    assert sent(on_call, seconds=10)
    assert sent(on_call, seconds=15) == send.Outcome(NoticeState.SENT)
    content = told(there)
    assert (content["reduced"], content["findings"][0]["kind"]) == (True, "root token used")
    assert "words that" not in there.got[1].body.decode()
    assert "evil" not in there.got[1].body.decode()
    there.answer(422)
    see(found("b"), seconds=60)
    outcomes = [sent(on_call, seconds=seconds) for seconds in (70, 75)]
    assert [outcome and outcome.state for outcome in outcomes] == ["waiting", "refused"]


def test_after_a_day_it_is_given_up_and_said_and_what_comes_later_is_told(
    on_call: Receiver, there: Hook, client: Any
) -> None:
    there.answer(500)
    see(found("a"))
    sent(on_call, seconds=10)
    outcome = sent(on_call, seconds=86_500)
    assert outcome
    assert (outcome.state, outcome.next_try_at) == (NoticeState.GIVEN_UP, None)
    told_how = queries.told_how()[0]
    assert (told_how.failing, told_how.given_up.at, told_how.waiting) == (True, at(86_500), 0)
    assert 'leasehold_notices_total{receiver="on-call",state="given up"} 1.0' in client.get("/metrics").content.decode()
    there.answer(200)
    see(found("a"), found("b"), seconds=90_000)
    assert sent(on_call, seconds=90_010) == send.Outcome(NoticeState.SENT)
    assert changes(there) == [("b", "opened")]
    assert not queries.told_how()[0].failing


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte of a header now and then, without end."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(600):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(webhook.READ_SECONDS + 1)


def gone(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


@pytest.mark.parametrize(
    ("how", "least", "most", "cause"),
    [
        (silent, 5, 7, "did not answer within 5 s"),
        (drip, 9.5, 12, "did not answer within 10 s"),
        (gone, 0, 2, "ended the connection without an answer (RemoteDisconnected)"),
    ],
)
def test_a_slow_receiver_holds_nobody_for_long(
    on_call: Receiver, there: Hook, how: Any, least: float, most: float, cause: str
) -> None:
    there.answers = [Answering(instead=how)]
    see(found())
    began = time.monotonic()
    outcome = sent(on_call, seconds=10)
    assert least <= time.monotonic() - began <= most
    assert outcome
    assert outcome.state == "waiting"
    assert cause in outcome.cause


def test_of_a_body_without_end_four_kilobytes_are_read(on_call: Receiver, there: Hook) -> None:
    written = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                handler.wfile.write(b"x" * 10_000)
                written.append(10_000)

    there.answers = [Answering(instead=endless)]
    see(found())
    began = time.monotonic()
    assert sent(on_call, seconds=10) == send.Outcome(NoticeState.SENT)
    assert time.monotonic() - began < 3
    assert sum(written) < 50_000_000
    answer = send.post(on_call, message.Message(id="msg_x", sent_at=START))
    assert len(answer.said) == webhook.MOST_BYTES


@COMMITTED
def test_one_slow_receiver_does_not_hold_another(secret: Path) -> None:
    with hook() as slow, hook() as quick:
        slow.answers = [Answering(instead=silent)]
        for name, there in (("slow", slow), ("quick", quick)):
            receiver(there.url, secret, name, group_seconds=0, checked_at=START)
        see(found())
        ids = dict(Receiver.objects.values_list("name", "pk"))
        assert queries.due(now=at(0)) == sorted(ids.values())
        first = threading.Thread(target=in_thread(tasks.send_notices_to, ids["slow"]))
        first.start()
        wait_until(lambda: bool(slow.got))
        began = time.monotonic()
        tasks.send_notices_to(ids["quick"])
        # the turn is the slow one's worker's: nobody waits for it
        tasks.send_notices_to(ids["slow"])
        assert time.monotonic() - began < 2
        assert (len(quick.got), len(slow.got)) == (1, 1)
        first.join()


def in_thread(call: Any, *arguments: Any) -> Any:
    def run() -> None:
        try:
            call(*arguments)
        finally:
            connections.close_all()

    return run


def wait_until(until: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------
# two workers, lost workers


@COMMITTED
def test_of_two_workers_at_once_one_sends(on_call: Receiver, there: Hook) -> None:
    """Without the turn, too: whoever counts the attempt makes it."""

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        handler.wfile.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    there.answers = [Answering(instead=slowly)]
    see(found())
    assert send._made(on_call, now=at(10))
    threads = [
        threading.Thread(target=in_thread(lambda: send.send(Receiver.objects.get(pk=on_call.pk), now=at(10))))
        for _ in range(4)
    ]
    with transaction.atomic():
        # all of them have read that it is due before one may count its attempt
        Notice.objects.select_for_update().get()
        for thread in threads:
            thread.start()
        wait_until(lambda: waiting_for_a_lock() == 4)
    for thread in threads:
        thread.join()
    assert len(there.got) == 1
    assert [notice.state for notice in Notice.objects.all()] == ["sent"]


def waiting_for_a_lock() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
        return int(cursor.fetchone()[0])


KILLED = """
import os, django
django.setup()
from datetime import datetime
from audit.models import Receiver
from audit.notices import send
send.send(Receiver.objects.get(), now=datetime.fromisoformat({now!r}))
"""


@COMMITTED
def test_a_worker_that_is_killed_after_sending_and_before_committing_sends_again_with_the_same_id(
    on_call: Receiver, there: Hook
) -> None:
    hold = threading.Event()

    def taken_but_not_answered(handler: BaseHTTPRequestHandler) -> None:
        hold.wait(20)

    there.answers = [Answering(instead=taken_but_not_answered), Answering()]
    see(found())
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(now=at(10).isoformat())],
        env=os.environ | {"LEASEHOLD_DATABASE_URL": address, "DJANGO_SETTINGS_MODULE": "dashboard.settings"},
        cwd=ROOT,
    )
    try:
        wait_until(lambda: bool(there.got), 30)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        hold.set()
    notice = Notice.objects.get()
    assert (notice.state, notice.attempts) == ("waiting", 1)
    assert sent(on_call, seconds=45) is None
    assert sent(on_call, seconds=51) == send.Outcome(NoticeState.SENT)
    assert [got.headers["webhook-id"] for got in there.got] == [notice.webhook_id] * 2
    assert there.got[0].body == there.got[1].body


@pytest.mark.slow
@COMMITTED
def test_real_workers_tell_what_was_found_while_broker_and_worker_were_away(
    on_call: Receiver, there: Hook, run_folder: Path
) -> None:
    folder = run_folder / "notices"
    broker = valkey.start(folder / "valkey")
    port = int(broker.url.rsplit(":", 1)[1].split("/")[0])
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**connection.settings_dict)
    env = {**os.environ, "LEASEHOLD_BROKER_URL": broker.url, "LEASEHOLD_DATABASE_URL": address}
    command = [sys.executable, "-m", "celery", "-A", "dashboard"]
    queue = [*command, "worker", "-Q", "reports", "-c", "2", "-n", "notices@test", "--without-gossip"]

    def find(*names: str) -> None:
        with transaction.atomic():
            watch.settle({(FindingKind.ROOT_TOKEN, name): found(name) for name in names}, now=timezone.now())

    worker = processes.spawn(queue, log=folder / "worker.log", env=env, cwd=ROOT)
    beat = processes.spawn([*command, "beat", "-s", folder / "schedule"], log=folder / "beat.log", env=env, cwd=ROOT)
    try:
        find("a")
        began = time.monotonic()
        wait_until(lambda: len(there.got) == 1, 60)
        assert time.monotonic() - began >= 9
        broker.stop()
        worker.kill()
        worker.wait()
        find("a", "b")
        time.sleep(1)
        broker = valkey.start(folder / "valkey", port=port)
        worker = processes.spawn(queue, log=folder / "worker.log", env=env, cwd=ROOT)
        wait_until(lambda: len(there.got) == 2, 90)
        assert [changes(there, number) for number in (0, 1)] == [[("a", "opened")], [("b", "opened")]]
        wait_until(lambda: set(Notice.objects.values_list("state", flat=True)) == {"sent"})
    finally:
        processes.stop(beat)
        processes.stop(worker)
        broker.stop()


def test_an_attempt_that_never_came_back_is_said_and_its_worker_may_not_count_it_again(
    on_call: Receiver, there: Hook
) -> None:
    see(found())
    lost = send._made(on_call, now=at(10))
    assert lost
    assert send._claim(lost, now=at(10))
    assert not send._claim(Notice(pk=lost.pk, state="waiting", attempts=0), now=at(11))
    there.answer(500)
    assert sent(on_call, seconds=49) is None
    assert send._claim(Notice.objects.get(), now=at(50))
    assert (Notice.objects.get().cause, Notice.objects.get().attempts) == (send.LOST, 2)
    assert there.got == []


def test_states_move_only_along_the_transitions_and_the_documentation_draws_them() -> None:
    text = (ROOT / "docs" / "notices.md").read_text()
    drawn = {tuple(line.strip().split(" --> ")) for line in text.splitlines() if " --> " in line and "[*]" not in line}
    assert drawn == {(str(before), str(after)) for before, then in TRANSITIONS.items() for after in then}


def test_the_database_keeps_its_promises(on_call: Receiver) -> None:
    see(found())
    line = NoticeLine.objects.get()
    open_notice = Notice.objects.create(receiver=on_call, made_at=at(0), next_try_at=at(0))
    for make in (
        lambda: Receiver.objects.create(name="none", form="slack"),
        lambda: Receiver.objects.create(name="both", form="slack", url="https://x", url_reference={"env": "X"}),
        lambda: Receiver.objects.create(name="unsigned", form="json", url="https://x"),
        lambda: Receiver.objects.filter(pk=on_call.pk).update(failing_since=at(0)),
        lambda: Notice.objects.create(receiver=on_call, made_at=at(0), next_try_at=at(0)),
        lambda: Notice.objects.filter(pk=open_notice.pk).update(next_try_at=None),
        lambda: Notice.objects.filter(pk=open_notice.pk).update(state="sent"),
        lambda: Notice.objects.filter(pk=open_notice.pk).update(state="refused"),
        lambda: NoticeLine.objects.create(receiver=on_call, finding=line.finding, change=line.change, at=at(0)),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            make()


# ---------------------------------------------------------------------------------------------------------------
# TLS


def test_its_own_authority_is_trusted_and_no_other_certificate(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "other").mkdir()
    made, other = keys.prepare(tmp_path / "tls"), keys.prepare(tmp_path / "other")
    with hook(certificate=made.certificate, key=made.certificate_key) as there:
        to = receiver(there.url, secret, ca_file=str(made.ca), checked_at=START)
        see(found())
        assert sent(to, seconds=10) == send.Outcome(NoticeState.SENT)
        see(found(), found("b"), seconds=20)
        port = there.url.split(":")[2].partition("/")[0]
        for ca_file, cause in (
            (str(other.ca), f"The TLS certificate of 127.0.0.1:{port} is not trusted"),
            ("", f"The TLS certificate of 127.0.0.1:{port} is not trusted"),
            (str(secret), f"The certificate authority {secret} cannot be read (no certificate in PEM)"),
            (str(tmp_path / "none"), f"The certificate authority {tmp_path / 'none'} cannot be read (No such file"),
        ):
            Receiver.objects.filter(pk=to.pk).update(ca_file=ca_file)
            Notice.objects.filter(state="waiting").update(next_try_at=at(30))
            outcome = sent(to, seconds=30)
            assert outcome
            assert outcome.cause.startswith(cause)
        assert len(there.got) == 1
        Receiver.objects.filter(pk=to.pk).update(ca_file=str(made.ca), url=there.url.replace("127.0.0.1", "localhost"))
        Notice.objects.filter(state="waiting").update(next_try_at=at(30))
        sent(to, seconds=30)
    with hook() as plain:
        Receiver.objects.filter(pk=to.pk).update(url=plain.url.replace("http:", "https:"))
        see(found(), found("b"), found("c"), seconds=40)
        Notice.objects.filter(state="waiting").update(next_try_at=at(50))
        outcome = sent(to, seconds=50)
        assert outcome
        assert "does not speak TLS as it should" in outcome.cause


def test_proxies_of_the_environment_are_not_used(
    on_call: Receiver, there: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    see(found())
    assert sent(on_call, seconds=10) == send.Outcome(NoticeState.SENT)


# ---------------------------------------------------------------------------------------------------------------
# Slack, and words that others chose

EVIL = "<!channel> <@U123> <https://evil.example|click> & @here [x](https://evil.example) ![p](http://evil.example/p.png) WWW.evil.example\n# x"


def test_nobody_is_mentioned_and_nothing_is_linked_by_words_of_others(there: Hook, tmp_path: Path) -> None:
    to = slack(there.url, tmp_path, site_url="https://leasehold.example/a&b")
    see(found(summary=EVIL, culprit=EVIL, vault=EVIL))
    sent(to, seconds=10)
    content = told(there)
    assert "webhook-signature" not in there.got[0].headers
    texts = [content["text"], *(block["text"]["text"] for block in content["blocks"])]
    finding = Finding.objects.get()
    link = f"<https://leasehold.example/a&amp;b/findings/{finding.pk}|Finding {finding.pk}>"
    for text in texts:
        ours = text.replace(link, "")
        assert not set(ours) & set("<>")
        assert "&lt;!channel&gt;" in text or "opened" in text
        for active in ("@here", "@U123", "](", "://", "www.", "WWW."):
            assert active not in ours
        assert "\n# x" not in text
    assert link in content["text"]
    assert content["text"].startswith("Leasehold findings: 1 opened\n*high, opened:* root token used\n")
    assert all(block["text"]["verbatim"] for block in content["blocks"])


def test_a_message_for_slack_keeps_to_its_limits(there: Hook, tmp_path: Path) -> None:
    to = slack(there.url, tmp_path, site_url="https://leasehold.example")
    see(*(found(f"{number}", summary="<&>" * 400, culprit="<" * 500, vault="&" * 500) for number in range(40)))
    sent(to, seconds=10)
    content = told(there)
    assert len(content["blocks"]) <= 50
    # https://docs.slack.dev/reference/block-kit/blocks/section-block: 3000 characters
    assert max(len(block["text"]["text"]) for block in content["blocks"]) <= 3000
    assert len(content["text"]) <= 40_000
    assert "… and 20 more." in content["text"]


def test_the_longest_section_that_there_can_be_fits_into_slack() -> None:
    worst = "&" * 1000
    one = message.Told(
        10**12, max(FindingKind, key=len), "medium", ("closed",), worst, START, START, worst, worst, why=worst, by=worst
    )
    content = json.loads(
        message.as_slack(message.Message("x", START, findings=(one,), site_url="https://" + "x" * 190))
    )
    assert 1500 < len(content["blocks"][1]["text"]["text"]) <= 3000


@given(st.text())
def test_no_text_of_others_has_a_control_character_of_slack_left(text: str) -> None:
    shown = message.for_slack(text, longest=300)
    assert not set(shown) & set("<>\n\r\u202e")
    unescaped = shown.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
    assert "&" not in unescaped
    shown.encode()


@pytest.mark.parametrize(
    "text",
    [
        "application hvs.CAESIJ7abcdefghijklmnopqrstuvwxyz0123456789",
        '{"request": {"client_token": "a-token-in-plain-text"}}',
        'x {"password": "hunter2hunter2"}',
    ],
)
def test_what_looks_like_a_token_is_not_sent(on_call: Receiver, there: Hook, text: str) -> None:
    see(found(summary=text))
    sent(on_call, seconds=10)
    body = there.got[0].body.decode()
    assert "[redacted]" in body
    for word in ("CAESIJ7", "a-token", "hunter2"):
        assert word not in body


def test_slack_says_in_a_word_what_is_wrong_and_nothing_else_of_a_body_is_kept(there: Hook, tmp_path: Path) -> None:
    to = slack(there.url, tmp_path)
    there.answer(404, body=b"no_service\n")
    see(found())
    sent(to, seconds=10)
    assert Receiver.objects.get().cause == "The receiver answered 404 (no_service)"
    there.answer(404, body=f"you asked for {there.url}".encode())
    receivers.ask_anew(now=at(20))
    sent(to, seconds=20)
    assert Receiver.objects.get().cause == "The receiver answered 404"


# ---------------------------------------------------------------------------------------------------------------
# secrets


def test_no_secret_is_in_the_database_the_log_the_pages_or_the_output(
    there: Hook, secret: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, viewer: Any, postgres: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    tos = [receiver(there.url.replace(PATH, "/x"), secret), slack(there.url, tmp_path)]
    see(found())
    output = io.StringIO()

    def refused(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(404, explain=f"no such path: {handler.path}")

    def down(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    for answer in (
        Answering(500),
        Answering(302, headers={"Location": there.url}),
        Answering(instead=refused),
        Answering(instead=down),
    ):
        there.answers = [answer]
        receivers.ask_anew(now=at(10))
        for to in tos:
            sent(to, seconds=10)
            send.check(Receiver.objects.get(pk=to.pk), now=at(10))
        with contextlib.suppress(SystemExit):
            call_command("send_test_notice", stdout=output)
    pages = "".join(
        viewer.get(path).content.decode() for path in ("/findings", f"/findings/{Finding.objects.get().pk}", "/metrics")
    )
    everything = [output.getvalue(), caplog.text, pages]
    with connection.cursor() as cursor:
        for table in ("audit_receiver", "audit_notice", "audit_noticeline", "audit_finding"):
            cursor.execute(f"SELECT to_jsonb(t)::text FROM {table} t")
            everything += [row[0] for row in cursor.fetchall()]
    assert "answered 404" in output.getvalue()
    assert "T0SECRET" in there.got[-1].path or "T0SECRET" in there.got[-2].path
    for word in (secret.read_text(), secret.read_text()[6:], "hunter2hunter2", "T0SECRET", "B0SECRET"):
        assert not [text for text in everything if word in text]


# ---------------------------------------------------------------------------------------------------------------
# configuration, task, doctor, pages, metrics

GOOD = """
[site]
url = "https://leasehold.example/"
[[notices]]
name = "on-call"
form = "json"
url = "{url}"
secret = {{ file = "{secret}" }}
[[notices]]
name = "channel"
form = "slack"
url = {{ env = "NO_SUCH_VARIABLE" }}
severity = "medium"
group_seconds = 30
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('form = "json"\nurl = "https://h/"', "is signed and needs secret"),
        ('form = "slack"\nurl = "https://h/"', 'the address of form "slack" is a secret'),
        ('form = "slack"\nurl = { env = "X" }\nsecret = { env = "X" }', "is not signed"),
        ('form = "pigeon"\nurl = "https://h/"', "Invalid enum value"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "http://h.example/"', "must begin with https://"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "http://127.0.0.1.example/"', "must begin with https://"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://u:p@h/"', "may not hold a user or a password"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h:99999/"', "is no address"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "ftp://h/"', "is no address"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/#x"', "fragment"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/ x"', "characters that no address may hold"),
        ('form = "json"\nsecret = "whsec_x"\nurl = "https://h/"', "notices[0].secret"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/"\ngroup_seconds = -1', "group_seconds must be"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/"\nseverity = "worst"', "Invalid enum value"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/"\nca_file = "ca.pem"', "whole path"),
        ('form = "json"\nsecret = { env = "X" }\nurl = "https://h/"\nhurry = 1', "unknown field"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_to_write(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "leasehold.toml").write_text(f'[[notices]]\nname = "on-call"\n{text}\n')
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path / "leasehold.toml")
    assert said in str(error.value)
    assert "u:p@h" not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://localhost/", "http://[::1]:80/x", "https://h/x?y=z"])
def test_addresses_on_this_machine_need_no_tls(tmp_path: Path, url: str) -> None:
    (tmp_path / "leasehold.toml").write_text(GOOD.format(url=url, secret="/s"))
    assert load(tmp_path / "leasehold.toml").notices[0].url == url


@pytest.mark.parametrize("url", ["leasehold.example", "https://x/<y>", "https://x/?a=b", "https://u:p@x"])
def test_links_begin_with_an_address(tmp_path: Path, url: str) -> None:
    (tmp_path / "leasehold.toml").write_text(f'[site]\nurl = "{url}"\n')
    with pytest.raises(ConfigurationError, match=r"site\.url"):
        load(tmp_path / "leasehold.toml")


def test_two_receivers_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "leasehold.toml").write_text(GOOD.format(url="https://h/", secret="/s").replace("channel", "on-call"))
    with pytest.raises(ConfigurationError, match="receiver of notices on-call is there twice"):
        load(tmp_path / "leasehold.toml")


def configure(settings: Any, text: str) -> None:
    settings.CONFIG_FILE.write_text(text)
    call_command("configure", stdout=io.StringIO())


def test_configuring_makes_receivers_and_takes_them_back_with_what_waited(
    there: Hook, secret: Path, tmp_path: Path, settings: Any
) -> None:
    settings.CONFIG_FILE = tmp_path / "leasehold.toml"
    good = GOOD.format(url=there.url, secret=secret)
    configure(settings, good)
    on_call, channel = Receiver.objects.order_by("-name")
    assert (on_call.severity, on_call.group_seconds, on_call.site_url) == (3, 10, "https://leasehold.example")
    assert (channel.severity, channel.group_seconds, channel.url) == (2, 30, "")
    there.answer(410)
    see(found())
    sent(on_call, seconds=10)
    see(found(), found("b"), seconds=20)
    configure(settings, "")
    assert (Receiver.objects.filter(retired=False).count(), NoticeLine.objects.filter(notice=None).count()) == (0, 0)
    notice = Notice.objects.get()
    assert (notice.state, notice.cause) == ("given up", receivers.TAKEN_OUT)
    see(found(), found("b"), found("c"), seconds=30)
    configure(settings, good)
    there.answer(200)
    # what happened while it was gone is not told
    assert sent(on_call, seconds=100) is None
    see(found(), found("b"), found("c"), found("d"), seconds=200)
    assert sent(on_call, seconds=210)
    assert changes(there) == [("d", "opened")]


def test_doctor_and_the_page_say_who_is_told_and_what_is_wrong(
    there: Hook, secret: Path, tmp_path: Path, settings: Any, viewer: Any
) -> None:
    from tests.test_pages import text

    assert "[[notices]]" in next(one.hint for one in doctor.examine() if one.what == "notices")
    assert "Nobody is told of findings who does not look here" in text(viewer.get("/findings"))
    settings.CONFIG_FILE = tmp_path / "leasehold.toml"
    configure(settings, GOOD.format(url=there.url, secret=secret))
    now = timezone.now()
    assert len(queries.due(now=now)) == 2
    for receiver_id in queries.due(now=now):
        tasks.send_notices_to(receiver_id)
    assert queries.due(now=now) == []
    assert there.got == []
    found_wrong = doctored()
    assert found_wrong["notices to on-call"].ok
    assert found_wrong["notices to channel"].cause == "The environment variable NO_SUCH_VARIABLE is empty"
    page = text(viewer.get("/findings"))
    assert "channel is not told of findings: The environment variable NO_SUCH_VARIABLE is empty" in page
    assert "on-call (json, high): nothing sent yet" in page
    # it is looked at again by itself
    Receiver.objects.update(checked_at=now - timedelta(minutes=2))
    assert queries.due(now=now) == [Receiver.objects.get(name="channel").pk]
    secret.write_text("not a signing secret")
    receivers.ask_anew(now=now)
    for receiver_id in queries.due(now=now):
        tasks.send_notices_to(receiver_id)
    assert "whsec_" in doctored()["notices to on-call"].cause
    assert "not a signing secret" not in str(doctored())
    secret.write_text("whsec_" + base64.b64encode(b"x" * 24).decode())
    there.answer(404)
    see(found())
    on_call = Receiver.objects.get(name="on-call")
    sent(on_call, seconds=10)
    assert "The receiver answered 404, since" in doctored()["notices to on-call"].cause
    page = text(viewer.get("/findings"))
    assert "on-call is not told of findings since" in page
    assert "1 finding waits." in page
    assert "refused" in text(viewer.get(f"/findings/{Finding.objects.get().pk}"))
    there.answer(200)
    receivers.ask_anew(now=at(20))
    sent(on_call, seconds=20)
    assert doctored()["notices to on-call"].ok
    assert "on-call (json, high): last sent" in text(viewer.get("/findings"))
    assert Notice.objects.get().webhook_id in text(viewer.get(f"/findings/{Finding.objects.get().pk}"))


def doctored() -> dict[str, doctor.Finding]:
    return {one.what: one for one in doctor.told()}


def test_doctor_tells_that_nobody_sends(on_call: Receiver) -> None:
    with transaction.atomic():
        watch.settle({(FindingKind.ROOT_TOKEN, "a"): found()}, now=timezone.now() - timedelta(minutes=3))
    assert "Findings wait to be told since" in doctored()["notices to on-call"].cause


def test_pages_and_metrics_ask_as_often_for_many_as_for_one(on_call: Receiver, there: Hook, viewer: Any) -> None:
    see(found())
    sent(on_call, seconds=10)

    def asked() -> list[int]:
        counts = []
        for path in ("/findings", f"/findings/{Finding.objects.order_by('id')[0].pk}", "/metrics"):
            with CaptureQueriesContext(connection) as captured:
                viewer.get(path)
            counts.append(len(captured))
        with CaptureQueriesContext(connection) as captured:
            queries.due(now=at(0))
        return [*counts, len(captured)]

    once = asked()
    assert once[-1] == 1
    finding = Finding.objects.get()
    for number in range(50):
        other = factories.receiver(f"r{number}")
        factories.told(finding, other, state="given up" if number % 2 else "", cause="x")
    assert asked() == once


def test_a_look_queues_for_many_findings_with_as_many_queries_as_for_one(on_call: Receiver, secret: Path) -> None:
    def asked(*things: Found, seconds: float) -> int:
        with CaptureQueriesContext(connection) as captured:
            see(*things, seconds=seconds)
        return len(captured)

    once = asked(found("0"), seconds=0), asked(seconds=1)
    for number in range(5):
        receiver("https://x", secret, f"r{number}")
    many = [found(str(number)) for number in range(1, 60)]
    assert (asked(*many, seconds=2), asked(seconds=3)) == once


def test_a_test_message_is_sent_now_and_says_what_was_answered(
    on_call: Receiver, there: Hook, secret: Path, tmp_path: Path
) -> None:
    channel = slack(there.url, tmp_path)
    assert commanded() == (0, "ok     channel: it answered 200, ok\nok     on-call: it answered 200, ok\n")
    content = told(there)
    assert (content["type"], content["findings"]) == ("leasehold.test", [])
    assert verified_by_the_documentation()(there.got[1].headers, there.got[1].body, secret.read_text())
    assert "This is a test message of Leasehold" in told(there, 0)["text"]
    there.answer(403, body=f"nobody at {PATH} knows you\x1b[31m".encode())
    code, output = commanded("--to", "channel")
    assert (code, len(there.got)) == (1, 3)
    assert "FAILED channel: it answered 403, nobody at /[address]/[address]/[address]/[address] knows you" in output
    assert "\x1b" not in output
    with pytest.raises(CommandError, match="No receiver is named pager: there is channel, on-call"):
        commanded("--to", "pager")
    # what was refused is tried again once a test was taken
    there.answer(404)
    see(found())
    sent(channel, seconds=10)
    there.answer(200)
    assert commanded("--to", "channel")[0] == 0
    channel.refresh_from_db()
    assert (channel.cause, channel.failing_since) == ("", None)
    assert sent(channel, seconds=3000) == send.Outcome(NoticeState.SENT)
    Receiver.objects.update(retired=True)
    with pytest.raises(CommandError, match="Nobody is told of findings"):
        commanded()


def commanded(*arguments: str) -> tuple[object, str]:
    output, code = io.StringIO(), 0
    try:
        call_command("send_test_notice", *arguments, stdout=output)
    except SystemExit as end:
        code = int(str(end.code))
    return code, output.getvalue()


def test_of_a_finding_nobody_was_told_of_its_page_says_so(viewer: Any) -> None:
    from tests.test_pages import text

    finding = factories.finding()
    assert "Nobody was told of it" in text(viewer.get(f"/findings/{finding.pk}"))
