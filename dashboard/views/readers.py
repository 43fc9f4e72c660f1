"""Who could read a database at one instant, and the difference from another: a page, and the same as CSV."""

from datetime import UTC, datetime, timedelta

from django.core.exceptions import BadRequest
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

from audit import exports, timemachine
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import csv
from dashboard.forms import AccessForm
from dashboard.paging import link
from dashboard.tables import by_holder
from leases import queries
from leases.models import Database

AGO = (("5 min", timedelta(minutes=5)), ("1 h", timedelta(hours=1)), ("24 h", timedelta(hours=24)))


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    known = {queries.database_key(row): row for row in queries.databases(retired=True)}
    form = AccessForm(request.GET, databases=list(known), now=now)
    context = {
        "now": now,
        "form": form,
        "known": known,
        "quick": [(f"{name} ago", link(request, at=_text(_whole(now - ago)), after="")) for name, ago in AGO],
    }
    if form.is_valid() and (name := form.cleaned_data["database"]):
        context |= _answer(
            request, known.get(name), form.cleaned_data["at"] or _whole(now), form.cleaned_data["to"], now=now
        )
    return render(request, "readers.html", context)


def _answer(
    request: PageRequest, database: Database | None, at: datetime, to: datetime | None, *, now: datetime
) -> dict[str, object]:
    change = _change(request) if to else None
    try:
        page = (
            timemachine.changed(database, change, at=at, to=to, after=_after(request))
            if to and change
            else timemachine.could_read(database, at=at, after=_after(request))
        )
    except timemachine.NoSuchPlace as error:
        raise BadRequest("This is no page of the list.") from error
    counts = timemachine.difference(database, at=at, to=to) if to else {None: timemachine.counts(database, at=at)}
    moments = sorted({at, to or at})
    certainties = queries.in_order({certainty for count in counts.values() for certainty in count})
    return {
        "database": database,
        "answered": True,
        "at": at,
        "to": to,
        "change": change,
        "certainties": certainties,
        "counts": [
            (
                of,
                link(request, at=_text(at), show=of or "", after=""),
                [count[name] for name in certainties],
                count.total(),
            )
            for of, count in counts.items()
        ],
        "holders": by_holder(page.rows),
        # the instant is named, so that the next page is of the same one
        "more": link(request, at=_text(at), after=str(page.after)) if page.after else "",
        "first": link(request, at=_text(at), after="") if request.GET.get("after") else "",
        "csv": link(request, at=_text(at), show="", after="").replace(request.path, "/access.csv", 1),
        # of two moments, each is answered by the log up to it
        "arounds": [(when, timemachine.around(database, at=when, now=now)) for when in moments],
        "older": timemachine.older_than_seen(database, at=moments[0]),
        "forced": timemachine.forced_before(database, at=moments[-1]),
        "most": timemachine.MOST,
    }


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    known = {queries.database_key(row): row for row in queries.databases(retired=True)}
    form = AccessForm(request.GET, databases=list(known), now=now)
    if not form.is_valid() or not (name := form.cleaned_data["database"]):
        raise BadRequest("Choose a database and a moment on the page; its CSV link names both.")
    at, to = form.cleaned_data["at"] or _whole(now), form.cleaned_data["to"]
    return csv("could-read", exports.COULD_READ, exports.could_read(known.get(name), at=at, to=to, now=now), now=at)


def _change(request: PageRequest) -> timemachine.Change:
    try:
        return timemachine.Change(request.GET.get("show") or timemachine.Change.GAINED)
    except ValueError as error:
        raise BadRequest("A change is gained, lost or kept.") from error


def _after(request: PageRequest) -> int | None:
    text = request.GET.get("after", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest("This is no page of the list.")
    return int(text)


def _whole(at: datetime) -> datetime:
    """The second that it is: the field of a form holds no part of one."""
    return at.replace(microsecond=0)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00").removesuffix(".000000")
