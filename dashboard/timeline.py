"""Lives on a common axis of time: pure layout. Across in percent, so that a drawing fits any width; down in pixels.

Nothing here reads or links by itself: rows and addresses come in, lanes of bars and marks come out, and the same as a list of moments.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

from audit.models import Event, Kind
from audit.queries import LeaseEvent
from leases.models import Lease, LeaseState, Pod, Revocation, Session
from leases.models.sessions import Place

# of the axis
MOST_TICKS = 6
STEPS = [
    *(timedelta(seconds=n) for n in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)),
    *(timedelta(hours=n) for n in (1, 2, 3, 6, 12, 24, 48, 120, 240, 480, 960)),
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SHORTEST = timedelta(seconds=10)
# marks of one kind that are nearer to one another than so many percent are one, with their number
NEAR = 1.5
# bars that overlap lie in rows of their own; what finds no room is counted
MOST_ROWS = 8
# pixels: a row of bars, and the lowest lane
ROW, LANE = 11, 24


@dataclass(frozen=True, slots=True)
class Axis:
    """A stretch of time, with a little room at both sides."""

    from_at: datetime
    to_at: datetime

    @classmethod
    def over(cls, from_at: datetime, to_at: datetime) -> "Axis":
        room = max(to_at - from_at, SHORTEST) / 40
        return cls(from_at - room, max(to_at, from_at + SHORTEST) + room)

    def x(self, at: datetime) -> float:
        """Percent from the left; below 0 or above 100 for what lies outside."""
        return 100 * ((at - self.from_at) / (self.to_at - self.from_at))

    def holds(self, at: datetime) -> bool:
        return self.from_at <= at <= self.to_at


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    label: str
    # the narrow screen has room for every second one
    minor: bool

    @property
    def anchor(self) -> str:
        return "start" if self.x < 5 else "end" if self.x > 95 else "middle"


@dataclass(frozen=True, slots=True)
class Bar:
    """`kind`: how it looks. `before`, `after`: it began or goes on beyond the axis."""

    x: float
    width: float
    kind: str
    title: str
    address: str = ""
    before: bool = False
    after: bool = False
    y: int = 7


@dataclass(frozen=True, slots=True)
class Mark:
    """`symbol`: of the sprite. `count`: so many lie too near to one another to be told apart."""

    x: float
    symbol: str
    kind: str
    title: str
    address: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Lane:
    name: str
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    height: int = LANE
    # what is not drawn
    note: str = ""
    address: str = ""

    @property
    def middle(self) -> int:
        return self.height // 2


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened, as a line of the list."""

    at: datetime
    lane: str
    what: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    axis: Axis
    ticks: list[Tick]
    lanes: list[Lane]
    now: float | None
    moments: list[Moment] = field(default_factory=list)
    # moments that lie outside of the drawing
    outside: int = 0


def ticks(axis: Axis) -> list[Tick]:
    """Round times in UTC, at most MOST_TICKS and one."""
    length = axis.to_at - axis.from_at
    step = next((step for step in STEPS if length / step <= MOST_TICKS), STEPS[-1])
    at = EPOCH + -(-(axis.from_at - EPOCH) // step) * step
    found: list[Tick] = []
    while at <= axis.to_at:
        found.append(Tick(axis.x(at), _label(at, step, axis), bool(len(found) % 2)))
        at += step
    return found


def _label(at: datetime, step: timedelta, axis: Axis) -> str:
    """As much of a time as the step needs; where the axis reaches over several days, midnight is the day."""
    if step >= DAY or (axis.from_at.date() != axis.to_at.date() and at == at.replace(hour=0, minute=0, second=0)):
        return f"{at:%-d %b}"
    return f"{at:%H:%M:%S}" if step < timedelta(minutes=1) else f"{at:%H:%M}"


def bar(axis: Axis, from_at: datetime, to_at: datetime, *, kind: str, title: str, address: str = "") -> Bar | None:
    """None where all of it lies outside."""
    if to_at < axis.from_at or from_at > axis.to_at:
        return None
    left, right = max(0.0, axis.x(from_at)), min(100.0, axis.x(to_at))
    return Bar(left, max(right - left, 0.0), kind, title, address, from_at < axis.from_at, to_at > axis.to_at)


def packed(bars: Iterable[Bar | None]) -> tuple[list[Bar], int, int]:
    """Bars in rows in which none overlaps, the height of their lane, and how many found no room."""
    ends: list[float] = []
    placed, left = [], 0
    for one in sorted((one for one in bars if one), key=lambda one: (one.x, -one.width)):
        row = next((n for n, end in enumerate(ends) if one.x > end + 0.3), len(ends))
        if row == MOST_ROWS:
            left += 1
            continue
        if row == len(ends):
            ends.append(0.0)
        ends[row] = one.x + max(one.width, 0.5)
        placed.append(replace(one, y=row * ROW))
    height = max(len(ends) * ROW + 4, LANE)
    above = (height - len(ends) * ROW) // 2 + 1
    return [replace(one, y=one.y + above) for one in placed], height, left


def gathered(marks: Iterable[Mark]) -> list[Mark]:
    """Marks of one kind that are too near to one another as one that says how many, and where the first of them leads."""
    found: list[Mark] = []
    for _, group in groupby(
        sorted(marks, key=lambda mark: (mark.kind, mark.symbol, mark.x)), key=lambda m: (m.kind, m.symbol)
    ):
        near: list[Mark] = []
        for mark in group:
            if near and mark.x - near[0].x > NEAR:
                found.append(_one(near))
                near = []
            near.append(mark)
        found.append(_one(near))
    return sorted(found, key=lambda mark: mark.x)


def _one(near: Sequence[Mark]) -> Mark:
    first = near[0]
    if len(near) == 1:
        return first
    title = f"{len(near)} here, the first: {first.title}"
    return Mark(first.x, first.symbol, first.kind, title, first.address, len(near))


# --- one lease ---------------------------------------------------------------------------------------------------

# of a request that named it, by what it did
REQUESTS = {
    Kind.READ: ("credentials read", "issue", "live"),
    Kind.UNWRAP: ("taken out of its wrapping", "issue", "live"),
    Kind.REWRAP: ("wrapped anew", "issue", "dot"),
    Kind.RENEW: ("renewed", "renewal", "medium"),
    Kind.END: ("revocation asked for", "end", "cross"),
}
LEASE, TOKEN, POD, SESSIONS, HERE = "Lease", "Token", "Pod", "Sessions", "Done here"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the drawing of a lease is made from. `of_event`: the address of a request's raw lines, empty where there is none."""

    lease: Lease
    now: datetime
    events: Sequence[LeaseEvent]
    sessions: Sequence[Session]
    revocations: Sequence[Revocation]
    pod: Pod | None
    of_event: Callable[[str], str]
    of_pod: str = ""
    of_action: Callable[[Revocation], str] = lambda _: ""


def of_lease(facts: Facts) -> Timeline:
    """Pod, token, lease with its requests, sessions and what people did here, over the lease's life and what is near it."""
    lease, now = facts.lease, facts.now
    axis = _axis(facts)
    moments = _moments(facts)
    lanes = [lane for lane in (_pod(facts, axis), _token(facts, axis)) if lane]
    lanes.append(_lease(facts, axis))
    lanes += [lane for lane in (_sessions(facts, axis), _here(facts, axis)) if lane]
    outside = sum(not axis.holds(moment.at) for moment in moments)
    shown = axis.x(now) if lease.state != LeaseState.ENDED and axis.holds(now) else None
    return Timeline(axis, ticks(axis), lanes, shown, moments, outside)


def _begin(lease: Lease) -> datetime:
    return lease.accessed_at or lease.issued_at or lease.first_seen_at


def _axis(facts: Facts) -> Axis:
    """The lease's life, and of what hangs on it no more than half as much again at either side."""
    lease, now = facts.lease, facts.now
    begin = _begin(lease)
    if lease.ended_at:
        end = max(lease.ended_at, begin)
    else:
        # of a long time that is left, no more than what tells something
        room = max(2 * (now - begin), timedelta(minutes=1))
        end = max(now, min(lease.expires_at or now, now + room))
    margin = max(end - begin, SHORTEST) / 2
    starts, ends = [begin], [end]
    starts += [session.started_at for session in facts.sessions]
    ends += [session.ended_at or now for session in facts.sessions]
    ends += [row.updated_at for row in facts.revocations]
    if lease.login:
        starts.append(lease.login.logged_in_at)
    if facts.pod:
        starts.append(facts.pod.started_at)
        if facts.pod.ended_at:
            ends.append(facts.pod.ended_at)
    return Axis.over(max(min(starts), begin - margin), min(max(ends), end + margin))


def _pod(facts: Facts, axis: Axis) -> Lane | None:
    pod = facts.pod
    if pod is None:
        return None
    title = f"pod {pod.namespace}/{pod.name}, began {_at(pod.started_at)}, {_until(pod.ended_at, 'runs')}"
    one = bar(axis, pod.started_at, pod.ended_at or facts.now, kind="pod", title=title, address=facts.of_pod)
    ended = (
        [_mark(axis, pod.ended_at, "ended", "end", f"pod ended {_at(pod.ended_at)}", facts.of_pod)]
        if pod.ended_at
        else []
    )
    return Lane(POD, [one] if one else [], [mark for mark in ended if mark], address=facts.of_pod)


def _token(facts: Facts, axis: Axis) -> Lane | None:
    login, now = facts.lease.login, facts.now
    if login is None:
        return None
    address = facts.of_event(login.request_id) or "#login"
    until = login.ended_at or now
    title = f"token of {login.display_name or login.mount_path}, logged in {_at(login.logged_in_at)}, {_until(login.ended_at, 'not known to have ended')}"
    bars = [bar(axis, login.logged_in_at, until, kind="token", title=title, address=address)]
    if not login.ended_at and login.expires_at and login.expires_at > now:
        bars.append(
            bar(axis, now, login.expires_at, kind="left", title=f"its token's time ends {_at(login.expires_at)}")
        )
    marks = [_mark(axis, login.logged_in_at, "full", "login", f"logged in {_at(login.logged_in_at)}", address)]
    if login.ended_at:
        marks.append(
            _mark(axis, login.ended_at, "ended", "end", f"token ended {_at(login.ended_at)}: {login.end_reason}")
        )
    return Lane(TOKEN, [one for one in bars if one], [mark for mark in marks if mark])


def _lease(facts: Facts, axis: Axis) -> Lane:
    lease, now = facts.lease, facts.now
    begin = _begin(lease)
    kind = "stuck" if lease.state == LeaseState.IRREVOCABLE else "lease"
    title = f"lease, read {_at(begin)}, {_until(lease.ended_at, 'live')}"
    bars = [bar(axis, begin, lease.ended_at or now, kind=kind, title=title)]
    if not lease.ended_at and lease.expires_at and lease.expires_at > now:
        bars.append(
            bar(axis, now, lease.expires_at, kind="left", title=f"ends {_at(lease.expires_at)} unless it is renewed")
        )
    marks = []
    for item in facts.events:
        word, kind, symbol = _request(item.event)
        marks.append(
            _mark(axis, item.event.at, symbol, kind, f"{word} {_at(item.event.at)}", _address(facts, item.event))
        )
    if not any(item.event.kind in (Kind.READ, Kind.UNWRAP) for item in facts.events):
        marks.append(_mark(axis, begin, "live", "issue", f"{_first(lease)} {_at(begin)}"))
    if lease.ended_at:
        marks.append(
            _mark(axis, lease.ended_at, "ended", "end", f"ended {_at(lease.ended_at)}: {lease.end_reason}", "#times")
        )
    drawn = sum(item.event.kind == Kind.RENEW and not item.event.error for item in facts.events)
    note = f"{lease.renewals:,} renewals, the last {drawn} are drawn" if lease.renewals > drawn > 0 else ""
    return Lane(LEASE, [one for one in bars if one], gathered(mark for mark in marks if mark), note=note)


def _sessions(facts: Facts, axis: Axis) -> Lane | None:
    if not facts.sessions:
        return None
    bars, height, left = packed(
        bar(
            axis,
            session.started_at,
            session.ended_at or facts.now,
            kind="elsewhere" if session.place == Place.ELSEWHERE else "session",
            title=_session(session),
            address=f"#session-{session.pk}",
        )
        for session in facts.sessions
    )
    stray = [session for session in facts.sessions if session.place == Place.ELSEWHERE]
    note = f"{left} more overlap too much to be drawn" if left else ""
    said = f"{len(stray)} from elsewhere than its holder" if stray else ""
    return Lane(
        SESSIONS, bars, height=height, note=", ".join(part for part in (said, note) if part), address="#sessions"
    )


def _here(facts: Facts, axis: Axis) -> Lane | None:
    if not facts.revocations:
        return None
    marks = []
    for row in facts.revocations:
        address = facts.of_action(row)
        marks.append(
            _mark(
                axis,
                row.requested_at,
                "account",
                "here",
                f"{row.action.by} asked to revoke it {_at(row.requested_at)}",
                address,
            )
        )
        symbol = {"verified": "check", "failed": "alarm"}.get(row.state, "busy")
        marks.append(
            _mark(axis, row.updated_at, symbol, row.state, f"revocation {row.state} {_at(row.updated_at)}", address)
        )
    return Lane(HERE, [], gathered(mark for mark in marks if mark), address="#done-here")


def _moments(facts: Facts) -> list[Moment]:
    """Everything that has a time, first to last."""
    lease, pod = facts.lease, facts.pod
    found: list[Moment] = []
    if pod:
        found.append(Moment(pod.started_at, POD, f"pod {pod.namespace}/{pod.name} began", facts.of_pod))
        if pod.ended_at:
            found.append(Moment(pod.ended_at, POD, f"pod {pod.namespace}/{pod.name} ended", facts.of_pod))
    if login := lease.login:
        address = facts.of_event(login.request_id)
        found.append(Moment(login.logged_in_at, TOKEN, f"logged in through auth/{login.mount_path}", address))
        if login.ended_at:
            found.append(Moment(login.ended_at, TOKEN, f"token ended: {login.end_reason}"))
    found += [
        Moment(item.event.at, LEASE, _request(item.event)[0], _address(facts, item.event)) for item in facts.events
    ]
    if not any(item.event.kind in (Kind.READ, Kind.UNWRAP) for item in facts.events):
        found.append(Moment(_begin(lease), LEASE, _first(lease)))
    for session in facts.sessions:
        address = f"#session-{session.pk}"
        found.append(Moment(session.started_at, SESSIONS, f"session began from {_where(session)}", address))
        if session.ended_at:
            found.append(Moment(session.ended_at, SESSIONS, f"session from {_where(session)} ended", address))
    for row in facts.revocations:
        address = facts.of_action(row)
        found.append(Moment(row.requested_at, HERE, f"{row.action.by} asked to revoke it", address))
        found.append(Moment(row.updated_at, HERE, f"revocation {row.state}", address))
    if lease.ended_at:
        found.append(Moment(lease.ended_at, LEASE, f"ended: {lease.end_reason}", "#times"))
    return sorted(found, key=lambda moment: moment.at)


def _first(lease: Lease) -> str:
    return "credentials read" if lease.accessed_at else "issued" if lease.issued_at else "first seen"


def _request(event: Event) -> tuple[str, str, str]:
    """What a request did, how its mark looks, its symbol."""
    word, kind, symbol = REQUESTS.get(Kind(event.kind), (f"{event.operation} {event.path}", "other", "dot"))
    if event.error:
        return f"refused: {event.error[:120]}", "refused", "alarm"
    return word, kind, symbol


def _address(facts: Facts, event: Event) -> str:
    """Of its raw lines, else of its row on the same page."""
    return facts.of_event(event.request_id) or f"#request-{event.request_id}"


def _mark(axis: Axis, at: datetime | None, symbol: str, kind: str, title: str, address: str = "") -> Mark | None:
    """None where it lies outside."""
    return Mark(axis.x(at), symbol, kind, title, address) if at and axis.holds(at) else None


def _session(session: Session) -> str:
    place = (
        f"from elsewhere than the holder: {_where(session)}"
        if session.place == Place.ELSEWHERE
        else f"from {_where(session)}"
    )
    return f"session {place}, {session.application or 'no application named'}, began {_at(session.started_at)}, {_until(session.ended_at, 'open')}"


def _where(session: Session) -> str:
    return session.address or "a local socket"


def _at(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%-d %b %H:%M:%S} UTC" if at else ""


def _until(at: datetime | None, otherwise: str) -> str:
    return f"ended {_at(at)}" if at else otherwise


# --- many leases -------------------------------------------------------------------------------------------------


def lives(
    leases: Sequence[Lease], *, now: datetime, address: Callable[[Lease], str], pod: Pod | None = None, of_pod: str = ""
) -> Timeline | None:
    """Lives of leases, a lane for each database; with the pod that held them. None without any."""
    if not leases:
        return None
    begins = [_begin(lease) for lease in leases]
    ends = [max(lease.ended_at or now, begin) for lease, begin in zip(leases, begins, strict=True)]
    end = max(ends)
    axis = Axis.over(min(begins), end)
    lanes = []
    if pod:
        title = f"pod {pod.namespace}/{pod.name}, began {_at(pod.started_at)}, {_until(pod.ended_at, 'runs')}"
        one = bar(axis, pod.started_at, pod.ended_at or now, kind="pod", title=title, address=of_pod)
        lanes.append(Lane(POD, [one] if one else []))

    def of(lease: Lease) -> str:
        return lease.database.name if lease.database else f"behind {lease.mount}"

    for name, group in groupby(sorted(leases, key=of), key=of):
        bars, height, left = packed(
            bar(
                axis,
                _begin(lease),
                max(lease.ended_at or now, _begin(lease)),
                kind="stuck" if lease.state == LeaseState.IRREVOCABLE else "gone" if lease.ended_at else "lease",
                title=f"lease {lease.short_id[:8]} as {lease.role or 'an unknown role'}, {lease.holder or 'nobody known'}, read {_at(_begin(lease))}, "
                f"{_until(lease.ended_at, 'live')}",
                address=address(lease),
            )
            for lease in group
        )
        lanes.append(Lane(name, bars, height=height, note=f"{left} more overlap too much to be drawn" if left else ""))
    return Timeline(axis, ticks(axis), lanes, axis.x(now) if axis.holds(now) else None)
