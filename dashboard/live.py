"""What many open pages ask for again and again, answered from this process's memory for a moment.

A poll names the version that its page shows, so that all who see the same get the same answer: nothing new, or the new part. Neither
a log-in nor a group is decided here: a part goes only through the view's own rule, and a session that ended less than ASKED ago
learns no more than that nothing is new.
"""

import re
import time
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, Concatenate, ParamSpec

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token

from dashboard.access import PageRequest, groups

# seconds for which an answer stands; less than a person notices
KEEP = 0.5
# seconds for which a session that was let in need not be looked up to be told that nothing is new
ASKED = 60.0
# addresses and sessions that are remembered at most
MOST = 5000

# as Django's {% csrf_token %} writes it, and what stands for it in what is kept
FIELD = b'<input type="hidden" name="csrfmiddlewaretoken" value="%s">'
TOKEN = re.compile(FIELD % rb"[A-Za-z0-9]+")
PLACE = b"<!-- token -->"

P = ParamSpec("P")
View = Callable[Concatenate[PageRequest, P], HttpResponse]

# (page, version): the version says all that a filter shows, too, so whatever its query string
_nothing_new: dict[tuple[str, str], float] = {}
_versions: dict[str, tuple[float, str]] = {}
_let_in: dict[str, float] = {}
# address and groups -> until when, status, text without any token
_answers: dict[tuple[str, ...], tuple[float, int, bytes]] = {}
_locks: dict[tuple[str, ...], Lock] = {}


def forget() -> None:
    """As a process that has just begun."""
    for kept in (_nothing_new, _versions, _let_in, _answers, _locks):
        kept.clear()


def version(name: str, make: Callable[[], str]) -> str:
    """What `make` says, which several pages ask for: once for all of them at that moment."""
    until, kept = _versions.get(name, (0.0, ""))
    if until < time.monotonic():
        began = time.monotonic()
        kept = make()
        _versions[name] = (began + KEEP, kept)
    return kept


def shared(view: View[P]) -> View[P]:
    """Of a view whose live part looks the same for everybody in the same groups: it is made once for all who ask at that moment.

    Tokens against forged forms are nobody else's: they are taken out of what is kept, and each reader gets the own one.
    """

    @wraps(view)
    def once(request: PageRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        if not _is_poll(request):
            return view(request, *args, **kwargs)
        key = (request.get_full_path(), *sorted(groups(request)))
        _bound(_answers)
        _bound(_locks)
        with _locks.setdefault(key, Lock()):
            until, status, text = _answers.get(key, (0.0, 0, b""))
            if until >= time.monotonic():
                return HttpResponse(_with_token(request, text), status=status)
            began, made = time.monotonic(), view(request, *args, **kwargs)
            text, tokens = TOKEN.subn(PLACE, made.content)
            # a token that stands elsewhere than in a form's field is in no answer that is kept
            if tokens or not request.META.get("CSRF_COOKIE_NEEDS_UPDATE"):
                _answers[key] = (began + KEEP, made.status_code, text)
        return made

    return once


def _with_token(request: HttpRequest, text: bytes) -> bytes:
    return text.replace(PLACE, FIELD % get_token(request).encode()) if PLACE in text else text


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Repeats "nothing new" where this process has just found that for the same address and has just let in the same session."""

    def answer(request: HttpRequest) -> HttpResponse:
        session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        if not session or not _is_poll(request):
            return get_response(request)
        now, address = time.monotonic(), (request.path, request.GET["version"])
        if _nothing_new.get(address, 0.0) > now and _let_in.get(session, 0.0) > now:
            return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
        response = get_response(request)
        if response.status_code == 204:
            _bound(_nothing_new)
            _bound(_let_in)
            # the answer stands since it was begun; one that was repeated does not make it stand longer
            if _nothing_new.get(address, 0.0) <= now:
                _nothing_new[address] = now + KEEP
            _let_in[session] = now + ASKED
        return response

    return answer


def _is_poll(request: HttpRequest) -> bool:
    return request.method == "GET" and request.META.get("HTTP_HX_REQUEST") == "true" and "version" in request.GET


def _bound(kept: dict[Any, Any]) -> None:
    """What is forgotten is only asked once more."""
    if len(kept) > MOST:
        kept.clear()
