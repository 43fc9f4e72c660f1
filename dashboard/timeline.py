"""The life of a lease as a drawing and as a list of moments, and the lives of many: pure layout.

Nothing here reads or links by itself: rows and addresses come in, lanes and moments come out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from audit.models import Event, Kind
from audit.queries import LeaseEvent
from dashboard.lanes import SHORTEST, Axis, Bar, Lane, Mark, Moment, Timeline, bar, gathered, packed, ticks
from leases.models import Lease, LeaseState, Pod, Revocation, Session
from leases.models.sessions import Place

# --- one lease ---------------------------------------------------------------------------------------------------

# of a request that named it, by what it did
REQUESTS = {
    Kind.READ: ("credentials read", "issue", "live"),
    Kind.UNWRAP: ("taken out of its wrapping", "issue", "live"),
    Kind.REWRAP: ("wrapped anew", "issue", "dot"),
    Kind.RENEW: ("renewed", "renewal", "renewed"),
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
    sessions_in_all: int
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
    drawn = _sessions(facts.sessions, axis, now=now, in_all=facts.sessions_in_all)
    lanes += [lane for lane in (drawn, _here(facts, axis)) if lane]
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
    one = bar(axis, pod.started_at, pod.ended_at or facts.now, kind="pod", title=_pod_life(pod), address=facts.of_pod)
    ended = (
        [_mark(axis, pod.ended_at, "ended", "end", f"pod ended {_at(pod.ended_at)}", facts.of_pod)]
        if pod.ended_at
        else []
    )
    return Lane(POD, [one] if one else [], [mark for mark in ended if mark], address=facts.of_pod)


def _pod_life(pod: Pod) -> str:
    return f"pod {pod.namespace}/{pod.name}, began {_at(pod.started_at)}, {_until(pod.ended_at, 'runs')}"


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
    title = f"lease, read {_at(begin)}, {_until(lease.ended_at, 'live')}"
    until = lease.ended_at or now
    if lease.state == LeaseState.IRREVOCABLE and lease.expires_at:
        until = min(max(lease.expires_at, begin), now)
    bars = [bar(axis, begin, until, kind="lease", title=title)]
    if lease.state == LeaseState.IRREVOCABLE:
        bars.append(bar(axis, until, now, kind="stuck", title="Vault gave up revoking it: it should have ended"))
    elif not lease.ended_at and lease.expires_at and lease.expires_at > now:
        left = f"ends {_at(lease.expires_at)} unless it is renewed"
        bars.append(bar(axis, now, lease.expires_at, kind="left", title=left))
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


def _sessions(sessions: Sequence[Session], axis: Axis, *, now: datetime, in_all: int = 0) -> Lane | None:
    """Sessions in rows; `in_all`: how many there are, of which these are the newest."""
    if not sessions:
        return None
    bars, height, left = packed(
        bar(
            axis,
            session.started_at,
            session.ended_at or now,
            kind="elsewhere" if session.place == Place.ELSEWHERE else "session",
            title=_session(session),
            address=f"#session-{session.pk}",
        )
        for session in sessions
    )
    strays = sum(session.place == Place.ELSEWHERE for session in sessions)
    notes = [f"{strays} from elsewhere than the holder"] if strays else []
    if in_all > len(sessions):
        notes.append(f"the newest {len(sessions)} of {in_all:,}")
    if left:
        notes.append(f"{left} more overlap too much to be drawn")
    return Lane(SESSIONS, bars, height=height, note=", ".join(notes), address="#sessions")


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
        address = facts.of_event(login.request_id) or "#login"
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
    leases: Sequence[Lease],
    sessions: Sequence[Session] = (),
    *,
    now: datetime,
    of_lease: Callable[[Lease], str],
    pod: Pod | None = None,
) -> Timeline | None:
    """Lives of leases, a lane for each database, with the pod that held them and the sessions under them. None without any."""
    if not leases:
        return None
    axis = Axis.over(min(map(_begin, leases)), max(lease.ended_at or now for lease in leases))
    lanes = []
    if pod:
        one = bar(axis, pod.started_at, pod.ended_at or now, kind="pod", title=_pod_life(pod))
        lanes.append(Lane(POD, [one] if one else []))
    by_database = groupby(sorted(leases, key=_opens), key=_opens)
    for (name, _), group in by_database:
        bars, height, left = packed(_life(axis, lease, now=now, address=of_lease(lease)) for lease in group)
        lanes.append(Lane(name, bars, height=height, note=f"{left} more overlap too much to be drawn" if left else ""))
    if used := _sessions(sessions, axis, now=now):
        lanes.append(used)
    return Timeline(axis, ticks(axis), lanes, axis.x(now) if axis.holds(now) else None)


def _opens(lease: Lease) -> tuple[str, int]:
    return (lease.database.name, lease.database.pk) if lease.database else (f"behind {lease.mount}", 0)


def _life(axis: Axis, lease: Lease, *, now: datetime, address: str) -> Bar | None:
    begin = _begin(lease)
    kind = "stuck" if lease.state == LeaseState.IRREVOCABLE else "gone" if lease.ended_at else "lease"
    title = (
        f"lease {lease.short_id[:8]} as {lease.role or 'an unknown role'}, {lease.holder or 'nobody known'}, "
        f"read {_at(begin)}, {_until(lease.ended_at, lease.state)}"
    )
    return bar(axis, begin, max(lease.ended_at or now, begin), kind=kind, title=title, address=address)
