"""How values look: times, countdowns, and badges that say everything by shape and word before colour."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal
from urllib.parse import urlencode

from django import template
from django.template.context import Context
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audit.hours import Hour, State
from audit.models import Finding, Notice, Severity
from dashboard import addresses
from dashboard.lanes import Bar, Mark
from dashboard.paging import link
from dashboard.receipts import Line
from leases import commands
from leases.models import Action, ActionStep, Database, Lease, Session
from leases.queries import database_key
from leases.review import length
from leases.usage import Holder

register = template.Library()

# value -> icon, tone
CERTAINTIES = {
    "exact": ("exact", "good"),
    "inferred": ("inferred", "good"),
    "ambiguous": ("ambiguous", "warn"),
    "service account": ("account", "plain"),
    "unknown": ("unknown", "warn"),
}
STATES = {
    "live": ("live", "live"),
    "revoking": ("busy", "warn"),
    "irrevocable": ("alarm", "bad"),
    "ended": ("ended", "plain"),
}
STATUSES = {
    "ok": ("check", "good", "answers"),
    "limited": ("stale", "warn", "answers in part"),
    "failing": ("alarm", "bad", "fails"),
    "stale": ("stale", "warn", "stale"),
    "waiting": ("unknown", "plain", "not asked yet"),
}
REVOCATIONS = {
    "requested": ("busy", "warn", "waiting for a worker"),
    "revoking": ("busy", "warn", "revoking"),
    "verifying": ("busy", "warn", "verifying"),
    "verified": ("check", "good", "verified"),
    "unverified": ("unknown", "warn", "not verified"),
    "failed": ("alarm", "bad", "failed"),
    "stopped": ("skipped", "plain", "stopped before its turn"),
}
JOBS = {
    "waiting for approval": ("busy", "warn", "waits for approval"),
    "refused": ("cross", "bad", "refused"),
    "running": ("busy", "warn", "running"),
    "stopped": ("skipped", "warn", "stopped"),
    "done": ("ended", "plain", "done"),
}
CONTAINMENTS = {
    "containing": ("busy", "warn", "containing"),
    "contained": ("shut", "bad", "contained"),
    "failed": ("alarm", "bad", "not wholly contained"),
    "lifting": ("busy", "warn", "lifting"),
    "lifted": ("ended", "plain", "lifted"),
    "refused": ("cross", "plain", "refused"),
}
OUTCOMES = {
    "ok": ("check", "good", "done"),
    "failed": ("alarm", "bad", "failed"),
    "unverified": ("unknown", "warn", "not verified"),
    "waiting": ("busy", "plain", "waiting"),
    "skipped": ("skipped", "plain", "not reached"),
}
NOTICES = {
    "waiting": ("busy", "plain", "waiting"),
    "refused": ("alarm", "bad", "refused"),
    "sent": ("check", "good", "sent"),
    "given up": ("alarm", "bad", "given up"),
}
# of an hour of a stream, worst last; each has a shape of its own
HOURS = {
    "complete": ("full", "good"),
    "lag": ("stale", "warn"),
    "rejected": ("cross", "warn"),
    "gap": ("alarm", "bad"),
    "no lines": ("skipped", "plain"),
    "before the first line": ("dot", "plain"),
}
# of a session
PLACES = {
    "holder": ("check", "good", "holder"),
    "NAT": ("info", "plain", "NAT"),
    "pooler": ("info", "plain", "pooler"),
    "elsewhere": ("alarm", "bad", "elsewhere"),
    "not judged": ("unknown", "plain", "not judged"),
    "": ("busy", "plain", "not judged yet"),
}
SEVERITIES = {3: ("alarm", "bad"), 2: ("medium", "warn"), 1: ("info", "plain")}
UNKNOWN = ("unknown", "plain")


# rows of a list have the same few of these again and again
@register.simple_tag
@lru_cache(maxsize=256)
def icon(name: str) -> SafeString:
    """One symbol of the sprite in parts/icons.html; the word beside it carries the meaning."""
    return format_html('<svg class="icon" aria-hidden="true" focusable="false"><use href="#i-{}"></use></svg>', name)


@lru_cache(maxsize=1024)
def _badge(symbol: str, tone: str, word: str) -> SafeString:
    return format_html('<span class="badge {}">{}{}</span>', tone, icon(symbol), word)


@register.simple_tag
def certainty(value: str) -> SafeString:
    return _badge(*CERTAINTIES.get(value, UNKNOWN), value)


@register.simple_tag
def state(value: str) -> SafeString:
    return _badge(*STATES.get(value, UNKNOWN), value)


@register.simple_tag
def status(value: str) -> SafeString:
    return _badge(*STATUSES.get(value, (*UNKNOWN, value)))


@register.simple_tag
def revocation(value: str) -> SafeString:
    return _badge(*REVOCATIONS.get(value, (*UNKNOWN, value)))


@register.simple_tag
def outcome(value: str) -> SafeString:
    return _badge(*OUTCOMES.get(value, (*UNKNOWN, value)))


@register.simple_tag
def job_state(value: str) -> SafeString:
    return _badge(*JOBS.get(value, (*UNKNOWN, value)))


@register.simple_tag
def containment_state(value: str) -> SafeString:
    return _badge(*CONTAINMENTS.get(value, (*UNKNOWN, value)))


@register.simple_tag
def after(step: ActionStep, action: Action) -> SafeString:
    """How long after the action began a step was decided."""
    return format_html(
        '<time class="after" datetime="{}" title="{} UTC">+{} s</time>',
        _iso(step.at),
        f"{step.at.astimezone(UTC):%H:%M:%S.%f}",
        f"{(step.at - action.at).total_seconds():.2f}",
    )


@register.simple_tag
def tick(line: Line) -> SafeString:
    """One step of a receipt in a table: its sign, with its words on hover and for those who hear the page."""
    return _tick(line.text, line.outcome)


@lru_cache(maxsize=64)
def _tick(text: str, outcome: str) -> SafeString:
    symbol, tone, word = OUTCOMES.get(outcome, (*UNKNOWN, outcome))
    words = f"{text}: {word}"
    return format_html(
        '<span class="badge {}" title="{}">{}<span class="hush">{}</span></span>', tone, words, icon(symbol), words
    )


@register.simple_tag
def hour_state(value: str) -> SafeString:
    return _badge(*HOURS.get(value, UNKNOWN), value)


@register.simple_tag
def severity(value: int) -> SafeString:
    return _badge(*SEVERITIES[value], Severity(value).label)


@register.simple_tag
def place(value: str) -> SafeString:
    return _badge(*PLACES.get(value, (*UNKNOWN, value)))


@register.simple_tag
def session_state(session: Session) -> SafeString:
    if session.ended_at:
        return _badge("ended", "plain", "ended")
    return _badge("live", "live", f"open, {session.state}" if session.state else "open")


@register.filter
def long_unseen(session: Session) -> bool:
    """Whether it can have ended much earlier than the sample that did not show it."""
    return session.ended_at is not None and session.ended_at - session.last_seen_at > timedelta(seconds=30)


@register.simple_tag
def finding_state(finding: Finding) -> SafeString:
    if finding.open:
        return _badge("live", "live", "open")
    return _badge("check", "plain", "closed")


@register.simple_tag
def notice_state(notice: Notice | None) -> SafeString:
    return _badge(*NOTICES[notice.state if notice else "waiting"])


@register.filter
def when(text: str) -> datetime:
    """A time that evidence names, as RFC 3339."""
    return datetime.fromisoformat(text)


@register.simple_tag
def gap_state(closed: bool) -> SafeString:
    return _badge("check", "plain", "closed") if closed else _badge("alarm", "bad", "open")


@register.simple_tag
def strip(hours: list[Hour]) -> SafeString:
    """Hours as marks in a row, oldest first; the words beside it (in_words) say the same."""
    marks = (
        (HOURS[hour.state][1], f"{hour.at.astimezone(UTC):%H:%M} {hour.state}", icon(HOURS[hour.state][0]))
        for hour in hours
    )
    return format_html(
        '<span class="strip" aria-hidden="true">{}</span>',
        format_html_join("", '<span class="mark {}" title="{}">{}</span>', marks),
    )


@register.filter
def in_words(hours: list[Hour]) -> str:
    """How many hours are what, worst first: "1 h gap, 23 h complete"."""
    counts = Counter(hour.state for hour in hours)
    return ", ".join(f"{counts[state]} h {state}" for state in reversed(State) if state in counts)


@register.simple_tag
def legend() -> SafeString:
    """Each mark of a strip with its word."""
    return format_html_join(" ", "{}", ((hour_state(state),) for state in HOURS))


@register.filter
def grouped(number: int) -> str:
    """12,345,678"""
    return f"{number:,}"


@register.filter
def beside(names: Sequence[str], values: Sequence[int]) -> list[tuple[str, int]]:
    """Each name with its value."""
    return list(zip(names, values, strict=True))


@register.filter
def size(count: int) -> str:
    """Bytes as people read them: 950 B, 3.9 MB, 8.5 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


@register.filter
def span(seconds: float) -> str:
    """Seconds as 9 s, 4 m 05 s, 1 h 02 m, 3 d 04 h. live.js writes the same."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} m {left % 60:02} s"
    if left < 86400:
        return f"{left // 3600} h {left % 3600 // 60:02} m"
    return f"{left // 86400} d {left % 86400 // 3600:02} h"


def ago(value: datetime, now: datetime) -> str:
    """A moment's distance from now, in one unit."""
    seconds = int((now - value).total_seconds())
    if seconds < 0:
        return f"in {_unit(-seconds)}"
    return f"{_unit(seconds)} ago" if seconds >= 1 else "now"


def _unit(seconds: int) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@register.simple_tag(takes_context=True)
def moment(context: Context, value: datetime | None, missing: str = "not known") -> SafeString:
    """A time in UTC (with its day unless that is today) and how long ago that is, kept up by live.js."""
    if value is None:
        return format_html('<span class="missing">{}</span>', missing)
    now: datetime = context["now"]
    utc = value.astimezone(UTC)
    shown = f"{utc:%H:%M:%S}" if utc.date() == now.date() else f"{utc:%-d %b %H:%M:%S}"
    return format_html(
        '<time class="moment" datetime="{}" title="{} UTC">{} <span class="ago" data-at="{}">{}</span></time>',
        _iso(value),
        f"{utc:%-d %b %Y %H:%M:%S}",
        shown,
        _iso(value),
        ago(value, now),
    )


@register.simple_tag(takes_context=True)
def age(context: Context, value: datetime) -> str:
    return ago(value, context["now"])


@register.simple_tag(takes_context=True)
def countdown(context: Context, lease: Lease) -> SafeString:
    """What is left of a lease, with a meter; past its end it says that nobody has confirmed it yet."""
    if lease.state == "ended":
        return format_html('<span class="missing">{}</span>', "ended")
    if lease.expires_at is None:
        return format_html('<span class="missing">{}</span>', "not looked up yet")
    now: datetime = context["now"]
    left = (lease.expires_at - now).total_seconds()
    began = lease.last_renewal_at or lease.issued_at or lease.first_seen_at
    whole = max(1.0, (lease.expires_at - began).total_seconds())
    text = span(left) if left > 0 else f"{span(-left)} over"
    return format_html(
        '<span class="ttl{}"><time datetime="{}" title="ends {} UTC" data-expires-at="{}">{}</time>'
        '<progress max="{}" value="{}" aria-hidden="true"></progress></span>',
        " over" if left <= 0 else "",
        _iso(lease.expires_at),
        f"{lease.expires_at.astimezone(UTC):%-d %b %Y %H:%M:%S}",
        _iso(lease.expires_at),
        text,
        f"{whole:.0f}",
        f"{min(whole, max(0.0, left)):.0f}",
    )


@register.simple_tag
def holder(lease: Lease) -> SafeString:
    """Who holds it, no better than is known; the namespace stands back."""
    if lease.pod:
        return format_html('<span class="dim">{}/</span><wbr>{}', lease.pod_namespace, lease.pod)
    if lease.service_account:
        return format_html(
            '<span class="dim">{}/</span><wbr>{} <span class="dim">(service account)</span>',
            lease.service_account_namespace,
            lease.service_account,
        )
    return format_html('<span class="missing">{}</span>', "nobody known")


@register.simple_tag
def pod_address(cluster: str, uid: str) -> str:
    """Of a pod's page; empty where nobody can say which pod that is."""
    return addresses.of_pod(cluster, uid)


@register.simple_tag
def event_address(vault: str, request_id: str) -> str:
    """Of the page with a request's raw lines; empty where there is none."""
    return addresses.of_event(vault, request_id)


@register.simple_tag
def account(cluster: str, namespace: str, name: str) -> SafeString:
    """A service account as a link to everything of it; without one where its cluster is not known."""
    if not name:
        return format_html('<span class="missing">{}</span>', "not known")
    shown = format_html('<span class="dim">{}/</span><wbr>{}', namespace, name)
    address = addresses.of_account(cluster, namespace, name)
    return format_html('<a href="{}">{}</a>', address, shown) if address else shown


@register.simple_tag
def drawn_bar(bar: Bar) -> SafeString:
    """A bar of a drawing, with a chevron where it goes on beyond it. The list beside the drawing has the same link for the keyboard."""
    y = bar.y
    chevrons = format_html_join(
        "",
        '<svg x="{}" y="{}" overflow="visible"><path class="edge" d="{}"/></svg>',
        [(x, y, d) for beyond, x, d in ((bar.before, "0", _BEFORE), (bar.after, "100%", _AFTER)) if beyond],
    )
    alarm = (
        format_html(
            '<svg class="mark bad" x="{}" y="{}" overflow="visible"><use href="#i-alarm" x="-6" y="-2" width="12" height="12"/></svg>',
            percent(bar.x),
            y,
        )
        if bar.kind == "elsewhere"
        else ""
    )
    return format_html(
        '<a{}><title>{}</title><rect class="bar {}" x="{}" y="{}" width="{}" height="9" rx="2"/>{}{}</a>',
        _leads_to(bar.address),
        bar.title,
        bar.kind,
        percent(bar.x),
        y,
        percent(bar.width),
        chevrons,
        alarm,
    )


@register.simple_tag
def drawn_mark(mark: Mark, y: int) -> SafeString:
    """A mark of a drawing, and how many it stands for."""
    count = format_html('<text class="times" x="8" y="-4">&times;{}</text>', mark.count) if mark.count > 1 else ""
    return format_html(
        '<svg class="mark {}" x="{}" y="{}" overflow="visible"><a{}><title>{}</title><circle class="back" r="6.5"/>'
        '<use href="#i-{}" x="-5.5" y="-5.5" width="11" height="11"/></a>{}</svg>',
        mark.kind,
        percent(mark.x),
        y,
        _leads_to(mark.address),
        mark.title,
        mark.symbol,
        count,
    )


_BEFORE, _AFTER = "M-2 0.5L-6 4.5L-2 8.5", "M2 0.5L6 4.5L2 8.5"


def _leads_to(address: str) -> SafeString | str:
    return format_html(' href="{}" tabindex="-1"', address) if address else ""


@register.filter
def percent(value: float) -> str:
    """A place in a drawing: 12.345%"""
    return f"{value:.3f}%"


@register.filter
def lasting(seconds: float | None) -> str:
    """A length of time: 1 h, 4 min."""
    return "" if seconds is None else length(seconds)


@register.simple_tag
def opens(lease: Lease) -> SafeString:
    """The database and the role that a lease opens."""
    name = lease.database.name if lease.database else lease.mount
    return format_html('{} <span class="dim">as {}</span>', name, lease.role or "an unknown role")


@register.simple_tag
def database_name(lease: Lease) -> str:
    return database_key(lease.database) if lease.database else "unknown"


@register.simple_tag
def command(lease: Lease, verb: Literal["lookup", "revoke"]) -> str:
    """The same by hand: `verb` is `revoke` or `lookup`."""
    return commands.of_lease(lease, verb)


@register.simple_tag
def copy_lease(lease: Lease) -> SafeString:
    """A small button in a row: it copies the lookup of the lease, with Shift its revocation. keys.js: c and C."""
    lookup = commands.of_lease(lease, "lookup")
    revoke = "" if lease.state == "ended" else commands.of_lease(lease, "revoke")
    return format_html(
        '<button type="button" class="one" data-lookup="{}"{} hidden title="{}" aria-label="Copy the command that looks up {}">{}</button>',
        lookup,
        format_html(' data-revoke="{}"', revoke) if revoke else "",
        f"Copy: {lookup}" + ("\nWith Shift, the command that revokes it" if revoke else ""),
        lease.short_id[:8],
        icon("copy"),
    )


@register.simple_tag
def copy_database(database: Database) -> SafeString:
    """The same for a database: how Vault has configured it."""
    text = commands.of_database(database)
    return format_html(
        '<button type="button" class="one" data-text="{}" hidden title="Copy: {}" aria-label="Copy the command that reads the configuration of {}">{}</button>',
        text,
        text,
        database.name,
        icon("copy"),
    )


@register.simple_tag(takes_context=True)
def sort_head(
    context: Context, label: str, *, descending: str | None = None, ascending: str | None = None, number: bool = False
) -> SafeString:
    """A column's head that sorts: `descending` and `ascending` are the values of `sort` for it, None where no index has that order.

    The link leads to the other order, or to the first one of a column that the list is not sorted by.
    """
    request = context["request"]
    current = request.GET.get("sort", "")
    orders = {"descending": descending, "ascending": ascending}
    sorted_ = next((way for way, value in orders.items() if value is not None and value == current), "")
    others = [value for way, value in orders.items() if value is not None and way != sorted_]
    mark = {"descending": "sorted-down", "ascending": "sorted-up"}.get(sorted_)
    words = format_html("{}{}", label, icon(mark) if mark else "")
    head = format_html('<a href="{}">{}</a>', link(request, sort=others[0], before=""), words) if others else words
    return format_html(
        '<th scope="col"{}{}>{}</th>',
        format_html(' aria-sort="{}"', sorted_) if sorted_ else "",
        format_html(' class="{}"', "number") if number else "",
        head,
    )


@register.simple_tag(takes_context=True)
def keep_sort(context: Context) -> SafeString:
    """In the form of a list's filter: the order stays when the filter changes."""
    value = context["request"].GET.get("sort", "")
    return format_html('<input type="hidden" name="sort" value="{}">', value) if value else SafeString()


@register.simple_tag(takes_context=True)
def csv_link(context: Context, name: str, *args: object) -> SafeString:
    """To the same list as CSV: `name` and `args` are its address's, the query string is this page's."""
    query = link(context["request"], version="").partition("?")[2]
    return format_html(
        '<a class="csv" href="{}{}" download title="{}">CSV</a>',
        reverse(name, args=args),
        f"?{query}" if query else "",
        "What is listed from here on; where that is more than one file takes, its name says so",
    )


@register.filter
def of_account(address: str, holder: Holder) -> str:
    """An address that ends with ? or &, for one service account."""
    return f"{address}{urlencode({'service_account': holder.service_account, 'namespace': holder.account_namespace})}"


@register.filter
@lru_cache(maxsize=1024)
def database_address(key: int) -> str:
    return reverse("databases-detail", args=[key])


@register.simple_tag
def listed(values: list[str]) -> SafeString:
    """Words in a row, each in its own element."""
    return format_html_join(" ", "<code>{}</code>", ((value,) for value in values))
