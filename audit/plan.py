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
    """What this stream adds to its sighting of one event."""

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
    if added[0] or added[1]:
        plan.sighted[key] = Sighted(known.sighted_at or content.at, added[0], added[1], known)
        if content != known.content:
            plan.changed[key] = (known.content, content)


def mark_own(plan: Plan, key: str) -> None:
    """The event was made with a token of this product's own."""
    if key in plan.new:
        plan.new[key][1].own = True
    elif key in plan.changed:
        plan.changed[key][1].own = True
    elif (known := plan.sighted[key].known) and not known.content.own:
        plan.changed[key] = (known.content, msgspec.structs.replace(known.content, own=True))
