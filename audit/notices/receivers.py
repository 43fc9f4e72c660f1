"""Who is told: [[notices]] of leasehold.toml brought into the tables."""

from datetime import datetime

import msgspec
from django.db import transaction
from django.utils import timezone

from audit.models.notices import OPEN_NOTICE_STATES, Notice, NoticeLine, NoticeState, Receiver
from leases.configuration import Configuration, NoticeConfig, Reference

SEVERITIES = {"low": 1, "medium": 2, "high": 3}
TAKEN_OUT = "The receiver was taken out of leasehold.toml"


@transaction.atomic
def apply(config: Configuration) -> None:
    """Writes the receivers. One that is gone from the file is told nothing more, nor later what came meanwhile."""
    site_url = config.site.url.rstrip("/") if config.site else ""
    for notice in config.notices:
        fields = _fields(notice) | {"site_url": site_url, "retired": False}
        Receiver.objects.update_or_create(name=notice.name, defaults=fields)
    gone = Receiver.objects.exclude(name__in=[notice.name for notice in config.notices])
    NoticeLine.objects.filter(receiver__in=gone, notice=None).delete()
    Notice.objects.filter(receiver__in=gone, state__in=OPEN_NOTICE_STATES).update(
        state=NoticeState.GIVEN_UP, ended_at=timezone.now(), next_try_at=None, cause=TAKEN_OUT
    )
    gone.update(retired=True, cause="", fix="", failing_since=None)


def _fields(notice: NoticeConfig) -> dict[str, object]:
    plain = isinstance(notice.url, str)
    return {
        "form": notice.form,
        "url": notice.url if plain else "",
        "url_reference": None if plain else msgspec.to_builtins(notice.url),
        "secret": _reference(notice.secret),
        "severity": SEVERITIES[notice.severity],
        "group_seconds": notice.group_seconds,
        "ca_file": notice.ca_file,
        "insecure": notice.insecure,
    }


def _reference(reference: Reference | None) -> dict[str, str] | None:
    return msgspec.to_builtins(reference) if reference else None


def ask_anew(*, now: datetime, name: str = "") -> None:
    """After the configuration was written, or a test message was taken: what waits, or was refused, is tried at once."""
    wanted = Receiver.objects.filter(retired=False, **({"name": name} if name else {}))
    wanted.update(checked_at=None)
    Notice.objects.filter(receiver__in=wanted, state__in=OPEN_NOTICE_STATES).update(
        state=NoticeState.WAITING, next_try_at=now
    )
