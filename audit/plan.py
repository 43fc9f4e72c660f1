"""What a batch changes, before the database is asked to change it. Pure."""

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from audit import intern
from audit.batch import Clash, Reject, hour
from audit.lines import NOBODY, Half
from audit.merge import Content, Known, absorb, agree, content_of, differing

_IS_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch


class New(msgspec.Struct, gc=False):
    """An event that was not known, and the halves that this stream has of it."""

    request_id: str
    content: Content
    request: Half | None
    response: Half | None


class Seen(msgspec.Struct, gc=False):
    """Halves that this stream adds to its sighting of an event that was known."""

    known: Known
    content: Content
    request: Half | None
    response: Half | None


@dataclass(slots=True)
class Plan:
    """Keys are UUIDs as text (key_of)."""

    new: dict[str, New] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    # key -> (as it was, as it is now): events that were known and gain something
    changed: dict[str, tuple[Content, Content]] = field(default_factory=dict)
    # halves that are new to this stream
    fresh: list[Half] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    duplicates: Counter[datetime] = field(default_factory=Counter)


def key_of(request_id: str) -> tuple[str, str | None]:
    """The UUID under which an event stands, as text, and the id's own text where it is no UUID."""
    if _IS_UUID(request_id):
        return request_id, None
    return str(intern.digest(request_id)), request_id


def plan_row(plan: Plan, key: str, request_id: str, row: list[Half | None], known: Known | None) -> None:
    """One request's halves, against what is known of it."""
    request, response = row
    if known is None:
        plan.new[key] = New(request_id, first_content(request, response), request, response)
        if request is not None:
            plan.fresh.append(request)
        if response is not None:
            plan.fresh.append(response)
        return
    content = known.content
    added: list[Half | None] = [None, None]
    for half, block in ((request, known.request_block), (response, known.response_block)):
        if half is None:
            continue
        if names := differing(content, half):
            plan.clashes.append(Clash(half, ", ".join(names)))
        elif block is not None:
            plan.duplicates[hour(half.at)] += 1
        else:
            added[half.is_response] = half
            content = absorb(content, half)
            plan.fresh.append(half)
    if added[0] is not None or added[1] is not None:
        plan.seen[key] = Seen(known, content, added[0], added[1])
        if content != known.content:
            plan.changed[key] = (known.content, content)


def first_content(request: Half | None, response: Half | None) -> Content:
    if request is None or response is None:
        return content_of(request or response)  # type: ignore[arg-type]
    if not agree(request, response):
        return absorb(content_of(request), response)
    # nearly every request: what absorb() would make of the two, at once
    return Content(
        request.at,
        True,
        response.at,
        request.what,
        response.who if request.who == NOBODY else request.who,
        request.address,
        response.lease_id or request.lease_id,
        response.error or request.error,
        response.kind,
    )


def mark_own(plan: Plan, key: str) -> None:
    """The event was made with a token of this product's own."""
    if key in plan.new:
        plan.new[key].content.own = True
    elif key in plan.changed:
        plan.changed[key][1].own = True
    elif not (content := plan.seen[key].known.content).own:
        plan.changed[key] = (content, msgspec.structs.replace(content, own=True))
