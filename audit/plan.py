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
    """What this stream adds to its sighting of an event that was known.

    `at`: by its own lines, the request's time, else the response's.
    """

    known: Known
    at: datetime
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
    # of lines that are read again out of their blocks
    again: bool = False
    # halves that it knows, told again under another salt (two devices that write to one path); all of them where `again`
    echoes: list[Half] = field(default_factory=list)
    # new contents that more than one request line and one response line made
    patched: list[Content] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    duplicates: Counter[datetime] = field(default_factory=Counter)


def key_of(request_id: str) -> str:
    """The UUID under which an event stands, as text: the id itself, or a digest of one that is no UUID."""
    return request_id if _IS_UUID(request_id) else str(intern.digest(request_id))


def plan_row(
    plan: Plan, key: str, request_id: str, row: list[Half | None], again: list[Half] | None, known: Known | None
) -> None:
    """One request's halves, against what is known of it. `again`: those beyond one request line and one response line."""
    request, response = row
    if known is not None or again:
        halves = [half for half in row if half is not None]
        if again:
            # as if each had come in a batch of its own
            halves = sorted([*halves, *again], key=lambda half: (half.block, half.number))
        _plan_halves(plan, key, request_id, halves, known)
        return
    plan.new[key] = New(request_id, first_content(request, response), request, response)
    if request is not None:
        plan.fresh.append(request)
    if response is not None:
        plan.fresh.append(response)


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


def _plan_halves(plan: Plan, key: str, request_id: str, halves: list[Half], known: Known | None) -> None:
    """One after the other: the result is that of any other way to cut the same lines into batches."""
    content = known.content if known else None
    has: list[Half | bool] = [False, False]
    at: datetime | None = None
    if known and known.sighted:
        has, at = [known.request_block is not None, known.response_block is not None], known.sighted_at
    added: list[Half | None] = [None, None]
    for half in halves:
        if content is not None and (names := differing(content, half)):
            plan.clashes.append(Clash(half, ", ".join(names)))
            continue
        content = content_of(half) if content is None else absorb(content, half)
        if at is None or (not half.is_response and not has[0]):
            at = half.at
        elif not half.is_response or not has[0]:
            at = min(at, half.at)
        if twin := has[half.is_response]:
            plan.duplicates[hour(half.at)] += 1
            accessor = twin.accessor if isinstance(twin, Half) else known.accessor if known else ""
            # without an accessor nothing shows under which salt it was told
            if half.kind and (plan.again or not accessor or half.accessor != accessor):
                plan.echoes.append(half)
            continue
        has[half.is_response] = added[half.is_response] = half
        plan.fresh.append(half)
    if content is None or at is None:
        return
    if known is None:
        plan.new[key] = New(request_id, content, added[0], added[1])
        plan.patched.append(content)
        return
    if content != known.content:
        plan.changed[key] = (known.content, content)
    if added[0] or added[1] or (known.sighted and at != known.sighted_at):
        plan.seen[key] = Seen(known, at, added[0], added[1])


def mark_own(plan: Plan, key: str) -> None:
    """The event was made with a token of this product's own."""
    if key in plan.new:
        plan.new[key].content.own = True
    elif key in plan.changed:
        plan.changed[key][1].own = True
    elif key in plan.seen and not (content := plan.seen[key].known.content).own:
        plan.changed[key] = (content, msgspec.structs.replace(content, own=True))
