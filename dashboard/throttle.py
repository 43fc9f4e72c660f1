"""Slows the guessing of passwords: five failures of one user from one address, then a wait."""

from datetime import datetime, timedelta

from django.conf import settings
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from dashboard.models import FailedLogin

FAILURES = 5
WINDOW = timedelta(minutes=5)


def address(request: HttpRequest) -> str:
    """The client's address: the socket's peer, or what our own proxy appended last where one is configured."""
    forwarded = request.headers.get("X-Forwarded-For", "")
    if settings.SECURE_PROXY_SSL_HEADER and forwarded:
        return forwarded.rpartition(",")[2].strip()
    return str(request.META.get("REMOTE_ADDR", ""))


def who(username: str, address: str) -> str:
    return salted_hmac("dashboard.throttle", f"{username.casefold()}\n{address}", algorithm="sha256").hexdigest()


def seconds_to_wait(who: str, *, now: datetime) -> int:
    """0, or the seconds until the oldest of the last FAILURES failures is out of the window."""
    last = list(
        FailedLogin.objects.filter(who=who, at__gt=now - WINDOW)
        .order_by("-at", "-id")
        .values_list("at", flat=True)[:FAILURES]
    )
    if len(last) < FAILURES:
        return 0
    return max(1, round((last[-1] + WINDOW - now).total_seconds()))


def failed(who: str, *, now: datetime) -> None:
    """Notes a failure, and forgets what no longer counts."""
    FailedLogin.objects.create(who=who, at=now)
    FailedLogin.objects.filter(at__lte=now - WINDOW).delete()


def succeeded(who: str) -> None:
    FailedLogin.objects.filter(who=who).delete()
