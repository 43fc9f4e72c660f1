"""Celery tasks of ingestion and attribution: ids in, one verb, safe to run twice."""

import logging
import time
from pathlib import Path

from celery import shared_task
from django.db import DataError
from django.utils import timezone

from audit import attribute, follow, polls, users
from audit.ingest import ingest, position_of
from audit.models import Device, Stream
from audit.secrets import RawSecret
from leases import health
from leases.models import Database, OwnRequest
from leases.models.sources import SourceKind
from leases.tasks import TURN_SECONDS
from leases.turns import turn

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.2


@shared_task
def follow_streams() -> None:
    """Starts a reader for each followed file; one that is being read already is left alone by its turn."""
    for stream in Stream.objects.filter(retired=False, refused="").exclude(path="").select_related("device__vault"):
        if health.may_ask(SourceKind.STREAM, str(stream), now=timezone.now()):
            follow_stream.apply_async((stream.pk,), expires=3)


@shared_task
def follow_stream(stream_id: int) -> None:
    """Reads one file for a turn. Where there are many streams a turn is short, so that none waits for long."""
    with turn("follow", stream_id) as mine:
        if not mine:
            return
        streams = Stream.objects.filter(retired=False, refused="").exclude(path="").count()
        deadline = time.monotonic() + TURN_SECONDS / max(1, streams / 2)
        while (taken := read_on(stream_id)) is not None:
            # with a backlog the turn may last longer, but then others go first
            if time.monotonic() > deadline + (TURN_SECONDS if taken else 0):
                break
        else:
            return  # it cannot be read now: the clock tries again when its wait is over
    # the clock would start the next turn within a second; this keeps a new lease from waiting for it
    follow_stream.apply_async((stream_id,), expires=3)


def read_on(stream_id: int) -> bool | None:
    """Takes the next chunk; False if there was nothing new, None if the stream cannot be read (its state says why)."""
    stream = Stream.objects.select_related("device__vault").get(pk=stream_id)
    if stream.refused or stream.retired:
        return None
    before = position_of(stream)
    # taken before the file is looked at: "read to its end at 10:00" must never be said of how it was earlier
    now = timezone.now()
    try:
        chunk = follow.read(Path(stream.path), before)
        if chunk.lines:
            ingest(stream_id, chunk, expected=before, now=now)
    except follow.FileUnavailable as error:
        health.report_failure(SourceKind.STREAM, str(stream), cause=error.cause, fix=error.fix, now=timezone.now())
        return None
    except RawSecret as error:
        health.report_failure(
            SourceKind.STREAM,
            str(stream),
            cause=f"The device {stream.device.name} writes {error.field} in plain text; nothing of it is stored",
            fix="Enable the device without log_raw under a new path (and treat what it has written as leaked), then "
            "name the new path in leasehold.toml.",
            now=timezone.now(),
        )
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
    if not chunk.lines:
        Stream.objects.filter(pk=stream_id).update(read_at=now, unread_bytes=chunk.unread)
        health.report_ok(SourceKind.STREAM, str(stream), now=timezone.now())
        time.sleep(IDLE_SECONDS)
        return False
    health.report_ok(SourceKind.STREAM, str(stream), now=timezone.now())
    return True


@shared_task
def match_database_users() -> None:
    """Which database user belongs to which lease, for every database with a monitoring account."""
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
                    names = users.unknown_names(database)
                with health.asking(SourceKind.VAULT, vault.name, vouches=False):
                    users.match(database, names, now=now)


@shared_task
def check_salts() -> None:
    """Was an audit device enabled anew? Its hashes are then others."""
    for device in users.followed(Device.objects.filter(vault__retired=False).select_related("vault")):
        if health.may_ask(SourceKind.VAULT, device.vault.name, now=timezone.now()):
            with health.asking(SourceKind.VAULT, device.vault.name, vouches=False):
                users.check_salt(device)


@shared_task
def check_polls() -> None:
    """Did every audit device log the polls that were noted?"""
    for vault_id in OwnRequest.objects.order_by("vault").values_list("vault", flat=True).distinct():
        with turn("check polls", vault_id) as mine:
            for gap in polls.check(vault_id, now=timezone.now()) if mine else []:
                log.warning("gap in stream %s: %s", gap.stream_id, gap.what)


@shared_task
def attribute_open() -> None:
    """Applies the rule again where later pod data can still tell who holds a lease."""
    with turn("attribute", 0) as mine:
        if mine:
            attribute.attribute(attribute.open_leases(), now=timezone.now())
