"""Celery tasks of ingestion and attribution: ids in, one verb, safe to run twice."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from celery import shared_task
from django.db import DataError, OperationalError
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerError

from audit import attribute, dblog, follow, guess, hashes, heads, polls, retention, sessions, unexplained, users
from audit.findings import watch as findings
from audit.ingest import Rebuilding, ingest_all, is_passing, position_of
from audit.models import DatabaseLog, Device, Receiver, Stream
from audit.notices import queries as notices
from audit.notices import send
from audit.secrets import RawSecret
from leases import health
from leases.models import Database, OwnRequest, Vault
from leases.models.sources import SourceKind
from leases.tasks import TURN_SECONDS
from leases.turns import turn

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.2
# without a new line for so long a reader lets others have its worker
IDLE_TURN_SECONDS = 1.0


@shared_task(time_limit=30, soft_time_limit=25)
def hash_what_was_typed(question: str, vault_id: int, sealed: str) -> None:
    """Asks a vault's devices how they would write what somebody typed into the search box."""
    hashes.answer(question, vault_id, sealed, now=timezone.now())


def ask_a_worker(question: str, vault_id: int, sealed: str) -> None:
    """Sends that; after the time for which anybody waits it is dropped. Raises OSError where the broker does not take it."""
    try:
        hash_what_was_typed.apply_async((question, vault_id, sealed), expires=hashes.WAIT_SECONDS, retry=False)
    except BrokerError as error:
        raise ConnectionError("the broker does not answer") from error


@shared_task
def follow_streams() -> None:
    """Starts a reader for each followed file; one that is being read already is left alone by its turn."""
    for stream in Stream.objects.filter(retired=False, refused="").exclude(path="").select_related("device__vault"):
        if health.may_ask(SourceKind.STREAM, str(stream), now=timezone.now()):
            follow_stream.apply_async((stream.pk,), expires=3)


@shared_task
def follow_stream(stream_id: int) -> None:
    """Reads one file for a turn. Where there are many streams a turn is short, and one that waits in vain goes to the end of the
    queue after a second, so that none waits for long: what is to be read may be more than there are workers.
    """
    with turn("follow", stream_id) as mine:
        if not mine:
            return
        streams = Stream.objects.filter(retired=False, refused="").exclude(path="").count()
        # logs of database servers wait for the same workers
        streams += DatabaseLog.objects.filter(retired=False).count()
        deadline = time.monotonic() + TURN_SECONDS / max(1, streams / 2)
        busy_at = time.monotonic()
        while (taken := read_on(stream_id, until=deadline)) is not None:
            now = time.monotonic()
            if now > min(deadline, busy_at + IDLE_TURN_SECONDS):
                break
            if taken:
                busy_at = now
            else:
                time.sleep(IDLE_SECONDS)
        else:
            return  # it cannot be read now: the clock tries again when its wait is over
    # the clock would start the next turn within a second; this keeps a new lease from waiting for it
    follow_stream.apply_async((stream_id,), expires=3)


def read_on(stream_id: int, *, until: float = 0.0) -> bool | None:
    """Takes the next chunk, and with a backlog more of them until that time (time.monotonic()).

    False if there was nothing new, None if the stream cannot be read (its state says why).
    """
    stream = Stream.objects.select_related("device__vault").get(pk=stream_id)
    if stream.refused or stream.retired:
        return None
    before = position_of(stream)
    unread: int | None = None
    taken = False
    # taken before the file is looked at: "read to its end at 10:00" must never be said of how it was earlier
    looked_at = timezone.now()

    def chunks() -> Iterator[follow.Chunk]:
        nonlocal unread
        chunk = follow.read(Path(stream.path), before)
        while chunk.lines:
            yield chunk
            if time.monotonic() > until:
                return
            chunk = follow.read(Path(stream.path), chunk.position)
        unread = chunk.unread

    try:
        for _ in ingest_all(stream_id, chunks(), expected=before, clock=timezone.now):
            taken = True
    except follow.FileUnavailable as error:
        health.report_failure(SourceKind.STREAM, str(stream), cause=error.cause, fix=error.fix, now=timezone.now())
        return None
    except OperationalError as error:
        if not is_passing(error):
            raise
        return None  # somebody else is writing for long: the clock tries again
    except (RawSecret, Rebuilding):
        # its state says why; or the clock tries again
        return None
    except (ValueError, TypeError, LookupError, RecursionError, DataError) as error:
        # a fault of ours: nothing is lost, but nothing goes on either until it is mended, so it must be seen
        log.exception("stream %s cannot be read on from offset %s", stream, before.offset)
        health.report_failure(
            SourceKind.STREAM,
            str(stream),
            cause=f"The lines from offset {before.offset} on cannot be taken ({type(error).__name__})",
            fix="This is a fault of Leasehold: report it with the ingest worker's log. Nothing is lost meanwhile.",
            now=timezone.now(),
        )
        return None
    if not taken and unread is not None:
        Stream.objects.filter(pk=stream_id).update(read_at=looked_at, unread_bytes=unread)
    health.report_ok(SourceKind.STREAM, str(stream), now=timezone.now())
    return taken


@shared_task
def follow_database_logs() -> None:
    """Starts a reader for each database server's log; one that is being read already is left alone by its turn."""
    for log in DatabaseLog.objects.filter(retired=False).order_by("id"):
        if health.may_ask(SourceKind.STREAM, str(log), now=timezone.now()):
            follow_database_log.apply_async((log.pk,), expires=3)


@shared_task
def follow_database_log(log_id: int) -> None:
    """Reads one log until nothing is new. Sessions are no hurry: the clock starts the next turn, so no worker is held between."""
    with turn("follow database log", log_id) as mine:
        if mine:
            dblog.read_on(log_id, until=time.monotonic() + TURN_SECONDS, clock=timezone.now)


@shared_task
def match_database_users() -> None:
    """Which database user belongs to which lease: of users and sessions that came in lately, and of databases that nobody samples."""
    for database in Database.objects.exclude(monitor=None).select_related("vault").order_by("id"):
        now = timezone.now()
        vault = database.vault
        if not health.may_ask(SourceKind.DATABASE, database.path, now=now) or not health.may_ask(
            SourceKind.VAULT, vault.name, now=now
        ):
            continue
        with turn("match users", database.pk) as mine:
            if mine:
                names: list[str] = []
                with health.asking(SourceKind.DATABASE, database.path, vouches=False):
                    names = users.unknown_names(database, now=now)
                with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                    users.match(database, names, now=now)
    ask_vaults()
    with turn("tie users", 0) as mine:
        if mine:
            users.tie(now=timezone.now())


@shared_task
def match_left_over_users() -> None:
    """The same for all that are left, also by salts that are new; what no hash tells may be told by time and name."""
    ask_vaults(all_of_them=True)
    with turn("tie users", 0) as mine:
        if mine:
            users.tie(now=timezone.now())
            users.forget(now=timezone.now())
            guess.guess(now=timezone.now())
            users.look_up_leases_of_gone(now=timezone.now())


def ask_vaults(*, all_of_them: bool = False) -> None:
    """Asks every vault about users whose lease is not known."""
    for vault in Vault.objects.filter(retired=False).exclude(observe=None).order_by("id"):
        now = timezone.now()
        if not health.may_ask(SourceKind.VAULT, vault.name, now=now):
            continue
        with turn("ask about users", vault.pk) as mine:
            if mine:
                with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                    users.ask(vault, users.names_for(vault, now=now, all_of_them=all_of_them), now=now)


@shared_task(soft_time_limit=25, time_limit=30)
def tie_sessions() -> None:
    """Which lease a session is of, and whether it came from where that lease's holder was."""
    with turn("sessions", 0) as mine:
        judged = sessions.tie_and_judge(now=timezone.now()) if mine else None
    if judged and judged.elsewhere:
        log.warning("%s sessions came from elsewhere than where their lease's holder was", judged.elsewhere)
    if judged and judged.is_news:
        # here and now: the queue that findings are looked for in may be busy
        look_for_findings(at_once=True)


@shared_task
def explain_revocations() -> None:
    """Which lease was revoked, where the log only has a hash of its id that nothing else told?"""
    for device in users.followed(Device.objects.filter(vault__retired=False).select_related("vault")):
        now = timezone.now()
        if not health.may_ask(SourceKind.VAULT, device.vault.name, now=now):
            continue
        with turn("explain", device.pk) as mine:
            if mine:
                with health.asking(SourceKind.VAULT, device.vault.name, vouches=False):
                    unexplained.explain(device, now=now)


@shared_task
def check_salts() -> None:
    """Is each audit device there still, and was it enabled anew? Its hashes are then others."""
    for device in users.followed(Device.objects.filter(vault__retired=False).select_related("vault")):
        if health.may_ask(SourceKind.VAULT, device.vault.name, now=timezone.now()):
            with health.asking(SourceKind.VAULT, device.vault.name, vouches=False):
                users.check_device(device, now=timezone.now())


# a file of the archive has to be sent and read again, over a slow line too; what is killed is done again
@shared_task(soft_time_limit=300, time_limit=330)
def keep_house() -> None:
    """Once an hour, or until all is done: with a backlog a turn at a time, so that reports get theirs between."""
    if not retention.is_due(now=timezone.now()):
        return
    with turn("house", 0) as mine:
        if not mine:
            return
        kept = retention.keep_house(now=timezone.now(), until=time.monotonic() + TURN_SECONDS)
    for problem in kept.problems:
        log.warning("housekeeping: %s", problem)
    if not kept.complete:
        keep_house.apply_async(expires=60)


# as above: a place may answer slowly, and what is killed is done again
@shared_task(soft_time_limit=300, time_limit=330)
def sign_heads() -> None:
    """Once an hour, and more often while a delivery fails."""
    if not heads.is_due(now=timezone.now()):
        return
    with turn("heads", 0) as mine:
        problems = heads.sign_heads(now=timezone.now()) if mine else []
    for problem in problems:
        log.warning("signed heads: %s", problem)


@shared_task
def check_polls() -> None:
    """Did every audit device log the polls that were noted?"""
    for vault_id in OwnRequest.objects.order_by("vault").values_list("vault", flat=True).distinct():
        with turn("check polls", vault_id) as mine:
            for gap in polls.check(vault_id, now=timezone.now()) if mine else []:
                log.warning("gap in stream %s: %s", gap.stream_id, gap.what)


@shared_task(soft_time_limit=25, time_limit=30)
def look_for_findings(at_once: bool = False) -> None:
    """Runs the rules and opens, changes and closes findings. `at_once`: there is news, so another's turn is waited for."""
    with turn("findings", 0) as mine:
        looked = findings.look(now=timezone.now()) if mine else None
    if looked is None and at_once:
        # it may have read its facts before the news
        look_for_findings.apply_async((True,), countdown=1)
    if looked and (looked.opened or looked.reopened):
        log.warning("findings: %s opened, %s open again, %s open", looked.opened, looked.reopened, looked.open)


@shared_task
def send_notices() -> None:
    """Starts what is due for each receiver of notices; one query where nothing is."""
    for receiver_id in notices.due(now=timezone.now()):
        send_notices_to.apply_async((receiver_id,), expires=10)


# one attempt ends itself after 10 s, but for the resolving of a name
@shared_task(soft_time_limit=25, time_limit=30)
def send_notices_to(receiver_id: int) -> None:
    """Each receiver has a turn of its own, so that none waits for another one that is slow."""
    with turn("notices", receiver_id) as mine:
        receiver = Receiver.objects.filter(pk=receiver_id, retired=False).first() if mine else None
        if receiver is None:
            return
        now = timezone.now()
        if notices.needs_check(receiver, now=now):
            send.check(receiver, now=now)
            receiver.refresh_from_db()
        send.send(receiver, now=now)


@shared_task
def attribute_open() -> None:
    """Applies the rule again where later pod data can still tell who holds a lease."""
    with turn("attribute", 0) as mine:
        if mine:
            # with a backlog the turn ends early enough for what waits for pod data to be looked at again soon
            attribute.attribute_waiting(seconds=TURN_SECONDS / 3)
