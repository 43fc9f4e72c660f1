"""What a batch changes, before the database is asked to change it."""

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from audit import intern
from audit.batch import Clash, Reject, hour
from audit.lines import Half
from audit.merge import Content, Known, absorb, content_of, differing

_IS_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch


@dataclass(frozen=True, slots=True)
class Sighted:
    """What this stream adds to its sighting of one event. `at`: by its own lines, the request's time, else the response's."""

    at: datetime
    request: Half | None
    response: Half | None
    known: Known | None


@dataclass(slots=True)
class Plan:
    """Keys are UUIDs as text (key_of)."""

    # key -> (request id, content)
    new: dict[str, tuple[str, Content]] = field(default_factory=dict)
    # key -> (as it was, as it is now)
    changed: dict[str, tuple[Content, Content]] = field(default_factory=dict)
    sighted: dict[str, Sighted] = field(default_factory=dict)
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


def key_of(request_id: str) -> tuple[str, str | None]:
    """The UUID under which an event stands, as text, and the id's own text where it is no UUID."""
    if _IS_UUID(request_id):
        return request_id, None
    return str(intern.digest(request_id)), request_id


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
    if request is not None:
        content = content_of(request)
        if response is not None:
            content = absorb(content, response)
            plan.fresh.append(response)
        plan.fresh.append(request)
    else:
        assert response is not None  # noqa: S101 (a row has a half)
        content = content_of(response)
        plan.fresh.append(response)
    plan.new[key] = (request_id, content)
    plan.sighted[key] = Sighted(content.at, request, response, None)


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
        plan.new[key] = (request_id, content)
        plan.patched.append(content)
    elif content != known.content:
        plan.changed[key] = (known.content, content)
    if added[0] or added[1] or (known and known.sighted and at != known.sighted_at):
        plan.sighted[key] = Sighted(at, added[0], added[1], known)


def mark_own(plan: Plan, key: str) -> None:
    """The event was made with a token of this product's own."""
    if key in plan.new:
        plan.new[key][1].own = True
    elif key in plan.changed:
        plan.changed[key][1].own = True
    elif key in plan.sighted and (known := plan.sighted[key].known) and not known.content.own:
        plan.changed[key] = (known.content, msgspec.structs.replace(known.content, own=True))
