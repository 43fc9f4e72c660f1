"""What was written, read with nothing but Python's own json, and in what the product differs from it. Knows no product."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# what the product counts, beside the lines that became part of an event
SET_ASIDE = ("duplicates", "rejected", "expired", "conflicts")
# request id and request; an id that the product has twice is there twice
Events = list[tuple[str, "Request"]]


@dataclass(frozen=True, slots=True)
class Request:
    """What can be told of one request from its lines."""

    has_request: bool
    has_response: bool
    path: str
    lease_id: str


def reference(lines: Iterable[bytes]) -> dict[str, Request]:
    """Every request that these lines tell of, read with nothing but Python's own json."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        entry = json.loads(line)
        request = found.setdefault(entry["request"]["id"], {"types": set(), "path": "", "lease_id": ""})
        request["types"].add(entry["type"])
        request["path"] = request["path"] or entry["request"].get("path", "")
        secret = entry.get("response", {}).get("secret", {})
        request["lease_id"] = request["lease_id"] or secret.get("lease_id", "")
    return {
        request_id: Request("request" in told["types"], "response" in told["types"], told["path"], told["lease_id"])
        for request_id, told in found.items()
    }


def halves(events: Events) -> set[tuple[str, str]]:
    return {(i, "request") for i, event in events if event.has_request} | {
        (i, "response") for i, event in events if event.has_response
    }


def event_problems(found: Events, expected: dict[str, Request]) -> list[str]:
    doubled = [request_id for request_id, times in Counter(i for i, _ in found).items() if times > 1]
    events = dict(found)
    problems = [f"{len(doubled)} events stand twice: {doubled[:3]}"] if doubled else []
    if missing := sorted(expected.keys() - events.keys()):
        problems.append(f"{len(missing)} of {len(expected)} requests are missing: {missing[:3]}")
    if invented := sorted(events.keys() - expected.keys()):
        problems.append(f"{len(invented)} events are of no request: {invented[:3]}")
    if others := [i for i in expected.keys() & events.keys() if expected[i] != events[i]]:
        problems.append(f"{len(others)} events differ: {events[others[0]]} instead of {expected[others[0]]}")
    return problems


def line_problems(found: Path, expected: list[bytes]) -> list[str]:
    """The raw blocks hold each line once, to the byte. A problem begins with the number of the first line it is about."""
    with found.open("rb") as file:
        stored = Counter(hashlib.blake2b(line, digest_size=16).digest() for line in file)
    missing: list[int] = []
    doubled: list[int] = []
    for number, line in enumerate(expected):
        times = stored.pop(hashlib.blake2b(line, digest_size=16).digest(), 0)
        if times != 1:
            (doubled if times else missing).append(number)
    problems = [
        f"line {numbers[0]} is the first of {len(numbers)} (the last is {numbers[-1]}) that the raw blocks {what}"
        for numbers, what in ((missing, "miss"), (doubled, "hold more than once"))
        if numbers
    ]
    return [*problems, f"line ?: {stored.total()} that nobody wrote stand in the raw blocks"] if stored else problems


def account_problems(stream: dict[str, Any], *, parts: int) -> list[str]:
    """lines = parts + duplicates + rejected + expired + conflicts."""
    aside = {name: stream.get(name, 0) for name in SET_ASIDE}
    if stream["lines"] == parts + sum(aside.values()):
        return []
    return [f"{stream['lines']} lines are not {parts} parts and {aside}"]
