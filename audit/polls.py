"""A gap that is proven: a request of this product's own, which its vault has answered, that an audit device did not log.

Each device is judged by itself. In a cluster each node logs what it serves, so one node's stream is enough. A poll is looked
for when every stream of the device has been read past it; a reader that is behind proves nothing.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from django.db import transaction
from django.db.models import Max, Min

from audit.models import Gap, RawBlock, Sighting, Stream
from audit.plan import key_of
from leases.models import OwnRequest, Policy

KIND = "poll not seen"
# a poll is looked for when it is so old, and its streams were read to their ends at least so much later than it was made
SETTLED = timedelta(seconds=30)
READ_PAST = timedelta(seconds=10)
# while a device goes on without its polls, a row a minute says so
REPORT_EVERY = timedelta(minutes=1)
# a poll that could not be looked for in this time (a reader that far behind) is let go: it proves nothing any more
KEPT = timedelta(days=2)
# clocks aside, a request is logged when it is made
_AROUND = timedelta(days=1)
_NAMED_AT_MOST = 12


@dataclass(frozen=True, slots=True)
class Poll:
    """A noted request; `key` is the one that its event has."""

    pk: int
    request_id: str
    key: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Miss:
    """Polls that one device did not log, all those between `from_at` (None: nothing is known before) and the last of them."""

    from_at: datetime | None
    polls: list[Poll]

    @property
    def to_at(self) -> datetime:
        return self.polls[-1].at


def check(vault_id: int, *, now: datetime) -> list[Gap]:
    """Looks for the noted polls of one vault and records a gap for each device that lacks some. Returns the new gaps."""
    OwnRequest.objects.filter(vault=vault_id, at__lt=now - KEPT).delete()
    noted = OwnRequest.objects.filter(vault=vault_id, at__lte=now - SETTLED).order_by("at", "id")
    polls = [Poll(row.pk, row.request_id, key_of(row.request_id), row.at) for row in noted]
    if not polls:
        return []
    # the streams first and then the sightings, never the other way: lines that come meanwhile must not seem to be missing
    streams = judged(vault_id)
    skew = timedelta(seconds=Policy.current().clock_skew_seconds)
    sighted = _sightings(streams, polls)
    gaps: list[Gap] = []
    unsettled: set[int] = set()
    for device_id, group in groupby(streams, key=lambda stream: stream.device_id):
        of_device = list(group)
        begun = _begun(of_device, skew=skew)
        due = [poll for poll in polls if all(read_past(stream, poll.at, skew=skew) for stream in of_device)]
        last = Gap.objects.filter(stream__in=of_device, kind=KIND).aggregate(at=Max("to_at"))["at"]
        reported, waiting = misses(
            [poll for poll in due if begun is not None and poll.at >= begun],
            sighted.get(device_id, set()),
            last=last,
        )
        gaps += [_gap(stream, of_device, miss, now=now) for miss in reported for stream in of_device]
        unsettled |= {poll.pk for poll in polls} - {poll.pk for poll in due} | {poll.pk for poll in waiting}
    done = [poll.pk for poll in polls if poll.pk not in unsettled]
    with transaction.atomic():
        Gap.objects.bulk_create(gaps)
        # the last one stays: a gap that follows begins with it
        OwnRequest.objects.filter(pk__in=done[:-1]).delete()
    return gaps


def judged(vault_id: int) -> list[Stream]:
    """The streams of the devices that can be judged, device by device: those that are followed or pushed, none refused."""
    streams = (
        Stream.objects.filter(device__vault=vault_id, retired=False)
        .exclude(path="", pushed=False)
        .select_related("device")
        .order_by("device_id", "id")
    )
    refused = {stream.device_id for stream in streams if stream.refused}
    return [stream for stream in streams if stream.device_id not in refused]


def read_past(stream: Stream, at: datetime, *, skew: timedelta) -> bool:
    """Whether every line that was written up to this time has been read."""
    if stream.pushed:
        # how much its shipper still holds cannot be known: only later lines tell, by Vault's clock
        return stream.last_line_at is not None and stream.last_line_at > at + READ_PAST + skew
    return stream.unread_bytes == 0 and stream.read_at is not None and stream.read_at > at + READ_PAST


def misses(polls: Iterable[Poll], sighted: Collection[str], *, last: datetime | None) -> tuple[list[Miss], list[Poll]]:
    """(what is to be reported, what is missing but waits to be reported with what follows) of one device. Pure.

    `polls` in the order of their times, `sighted` the keys that the device logged, `last` the end of what was reported before.
    A run of missing polls is reported at once, while it lasts once in REPORT_EVERY, and when it is over.
    """
    found: list[Miss] = []
    run: list[Poll] = []
    since = last
    for poll in polls:
        if poll.key in sighted:
            found += _cut(since, run)
            run = []
            since = poll.at if since is None else max(since, poll.at)
        elif last is None or poll.at > last:
            run.append(poll)
    if run and since is not None and since == last and run[-1].at - since < REPORT_EVERY:
        return found, run
    return found + _cut(since, run), []


def _cut(since: datetime | None, run: list[Poll]) -> list[Miss]:
    """In pieces small enough that each names all of its requests."""
    found = []
    for begin in range(0, len(run), _NAMED_AT_MOST):
        found.append(Miss(since, run[begin : begin + _NAMED_AT_MOST]))
        since = found[-1].to_at
    return found


def _begun(streams: Collection[Stream], *, skew: timedelta) -> datetime | None:
    """From when on a device can be judged: a poll from before its first line says nothing of it."""
    first: datetime | None = RawBlock.objects.filter(stream__in=streams, sequence=1).aggregate(at=Min("until"))["at"]
    return first + skew if first else None


def _sightings(streams: Iterable[Stream], polls: Sequence[Poll]) -> dict[int, set[str]]:
    """Which of these polls each device logged; a stream that is retired by now may have logged them too."""
    found: dict[int, set[str]] = {}
    rows = Sighting.objects.filter(
        stream__device__in={stream.device_id for stream in streams},
        request__in=[poll.key for poll in polls],
        at__gte=polls[0].at - _AROUND,
        at__lte=polls[-1].at + _AROUND,
    )
    for device_id, request in rows.values_list("stream__device", "request"):
        found.setdefault(device_id, set()).add(str(request))
    return found


def _gap(stream: Stream, of_device: Collection[Stream], miss: Miss, *, now: datetime) -> Gap:
    return Gap(
        stream=stream,
        kind=KIND,
        from_at=miss.from_at,
        to_at=miss.to_at,
        lost_bytes=None,
        what=_sentence(stream.device.name, len(of_device), [poll.request_id for poll in miss.polls]),
        at=now,
    )


def _sentence(device: str, nodes: int, request_ids: list[str]) -> str:
    where = f"in device {device}" if nodes == 1 else f"on any of the {nodes} nodes of device {device}"
    named = ", ".join(request_ids)
    return f"Vault answered these requests of Leasehold's own, and no line of them is {where}: {named}"


def request_ids(gap: Gap) -> list[str]:
    """The requests that a gap of this kind names."""
    return gap.what.rpartition(": ")[2].split(", ") if gap.kind == KIND else []


def turned_up(gaps: Collection[Gap]) -> set[int]:
    """Which of these gaps are closed: every request that one names has been sighted on its device since.

    Gaps come with their streams (select_related), so that this is one query.
    """
    named = {gap.pk: {key_of(request_id) for request_id in request_ids(gap)} for gap in gaps}
    times = [gap.to_at for gap in gaps if named[gap.pk]]
    if not times:
        return set()
    rows = Sighting.objects.filter(
        stream__device__in={gap.stream.device_id for gap in gaps},
        request__in=set().union(*named.values()),
        at__gte=min(times) - _AROUND,
        at__lte=max(times) + _AROUND,
    )
    sighted = {(device, str(request)) for device, request in rows.values_list("stream__device", "request")}
    return {
        gap.pk for gap in gaps if named[gap.pk] and all((gap.stream.device_id, key) in sighted for key in named[gap.pk])
    }
