"""Halves of one request -> its content, whichever comes first and whichever device tells it. Pure.

A field that one half leaves empty is filled by the other; two that are both filled must agree, or the later one is a conflict.
So the order in which halves come cannot matter.
"""

from datetime import datetime
from typing import TypeVar

import msgspec

from audit.intern import What, Who
from audit.lines import NOBODY, Half
from audit.models.events import Kind

WHAT_FIELDS = ("type", "operation", "path", "mount_point", "mount_type", "namespace")
# not token_type: the request of a login names one that its response replaces
WHO_FIELDS = ("display_name", "entity_id", None, "policies", "metadata")


class Content(msgspec.Struct, gc=False):
    """An event, with everything spelled out. `at` is the request's time, else the response's."""

    at: datetime
    has_request: bool
    response_at: datetime | None
    what: What
    who: Who
    address: str
    lease_id: str
    error: str
    kind: int
    own: bool = False


def content_of(half: Half) -> Content:
    return Content(
        half.at,
        not half.is_response,
        half.at if half.is_response else None,
        half.what,
        half.who,
        half.address,
        half.lease_id,
        half.error,
        half.kind,
    )


def agree(one: Half, other: Half) -> bool:
    """Two halves of one request that obviously fit; where it is not obvious, differing() tells."""
    return (
        one.what == other.what
        and one.address == other.address
        and (one.who == other.who or one.who == NOBODY or other.who == NOBODY)
        and (one.lease_id == other.lease_id or not one.lease_id or not other.lease_id)
        and one.is_response != other.is_response
    )


def differing(content: Content, half: Half) -> list[str]:
    """The names of the fields that are known on both sides and differ; hashes and times are not looked at."""
    found = [
        name
        for name, one, other in zip(WHAT_FIELDS, content.what, half.what, strict=True)
        if one and other and one != other
    ]
    # a login that was sent with an older token bears that one's identity in its request, its own in its response
    if (content.kind == Kind.LOGIN) == (half.kind == Kind.LOGIN):
        found += [
            name
            for name, one, other in zip(WHO_FIELDS, content.who, half.who, strict=True)
            if name and one and other and one != other
        ]
    if content.address and half.address and content.address != half.address:
        found.append("remote_address")
    if content.lease_id and half.lease_id and content.lease_id != half.lease_id:
        found.append("lease_id")
    # each half words its error in its own way; that of the response is kept
    if half.is_response and content.response_at and content.error and half.error and content.error != half.error:
        found.append("error")
    return found


def absorb(content: Content, half: Half) -> Content:
    """The content with what this half adds to it; the two agree."""
    first, second = (content, half) if half.is_response else (half, content)
    at, has_request, response_at = content.at, content.has_request, content.response_at
    if half.is_response:
        response_at = min(response_at, half.at) if response_at else half.at
        error = half.error or content.error
    else:
        at, has_request = (min(at, half.at) if has_request else half.at), True
        error = content.error or half.error
    if not has_request and response_at:
        at = response_at
    return Content(
        at,
        has_request,
        response_at,
        first.what if first.what == second.what else _fill(first.what, second.what),
        _who(content, half, first.who, second.who),
        content.address or half.address,
        content.lease_id or half.lease_id,
        error,
        max(content.kind, half.kind),
        content.own,
    )


def _who(content: Content, half: Half, first: Who, second: Who) -> Who:
    if (content.kind == Kind.LOGIN) != (half.kind == Kind.LOGIN):
        return half.who if half.kind == Kind.LOGIN else content.who
    return first if first == second else _fill(first, second)


_Texts = TypeVar("_Texts", What, Who)


def _fill(first: _Texts, second: _Texts) -> _Texts:
    return tuple(one or other for one, other in zip(first, second, strict=True))  # type: ignore[return-value]


class Known(msgspec.Struct, gc=False):
    """An event as it is stored, and one stream's sighting of it."""

    content: Content
    # the stream told of it before: in the event itself (`at_home`) or in a row of its own, which is of `sighted_at`
    sighted: bool = False
    at_home: bool = False
    sighted_at: datetime | None = None
    request_block: int | None = None
    response_block: int | None = None
    # of the sighting's token, in that device's words
    accessor: str = ""
