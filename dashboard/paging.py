"""Keyset pages in the query string: `before` is the last row of the page before."""

import re

from django.core.exceptions import BadRequest
from django.http import HttpRequest

from leases.queries import Cursor

# the key of an event's row: its UUID and its vault's number
EVENT = r"[0-9a-f]{32}[0-9]{1,9}"


def cursor(request: HttpRequest, *, numeric: bool = True, shape: str = "") -> Cursor | None:
    """The cursor of this page, None on the first; BadRequest for anything that this site did not write."""
    text = request.GET.get("before", "")
    if not text:
        return None
    found = Cursor.parse(text)
    sound = found is not None and (
        found.pk.isascii() and found.pk.isdigit() and len(found.pk) < 19 if numeric else len(found.pk) == 32
    )
    if shape:
        sound = found is not None and re.fullmatch(shape, found.pk) is not None
    if not sound:
        raise BadRequest("This is no page of the list.")
    return found


def link(request: HttpRequest, **changes: str) -> str:
    """This page's address with some parameters set, or dropped where the value is empty."""
    query = request.GET.copy()
    query.pop("version", None)
    for name, value in changes.items():
        query.pop(name, None)
        if value:
            query[name] = value
    for name in [name for name, value in query.items() if not value]:
        del query[name]
    return f"{request.path}?{query.urlencode()}" if query else request.path


def begun(request: HttpRequest, **changes: str) -> str:
    """As link(), to be gone on with by a parameter that is another one in each row."""
    address = link(request, **changes)
    return f"{address}{'&' if '?' in address else '?'}"


def order(request: HttpRequest, *known: str) -> str:
    """How the list is sorted: one of `known`, or empty for its usual order. BadRequest for any other."""
    found = request.GET.get("sort", "")
    if found and found not in known:
        raise BadRequest("The list cannot be sorted like this. Choose an order in its head.")
    return found
