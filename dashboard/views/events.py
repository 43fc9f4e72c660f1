"""Events of the audit log: the search over all of them, and one with the lines that tell of it."""

from dataclasses import dataclass

from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from audit import event_queries, raw_lines
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import csv_of
from dashboard.forms import EventFilterForm
from dashboard.paging import EVENT, cursor, link
from dashboard.tables import MOST_OF_A_LINE, readable
from leases import queries

# rows of a CSV file: those that are shown, and older ones
MOST_DOWNLOADED = 2000


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    before = cursor(request, shape=EVENT)
    form = _form(request)
    page = event_queries.EventPage([])
    if form.is_valid():
        page = event_queries.events_page(form.where(), before=before)
    context = {
        "now": timezone.now(),
        "form": form,
        "page": page,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
        "csv": link(request).replace(request.path, "/events.csv", 1),
        "most": MOST_DOWNLOADED,
        "without_login": link(request, login="", before=""),
        "with_own": link(request, own="any", before=""),
    }
    return render(request, "events/list.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    """What the page shows, and as many older rows as one file may have."""
    form = _form(request)
    if not form.is_valid():
        raise BadRequest("The filter makes no sense: mend it on the page of events, whose CSV link carries it.")
    before = cursor(request, shape=EVENT)
    page = event_queries.events_page(form.where(), before=before, size=MOST_DOWNLOADED)
    return csv_of("events", [row.request for row in page.rows], now=timezone.now(), whole=page.older is None)


@needs(may_read)
def detail(request: PageRequest, vault: str, request_id: str) -> HttpResponse:
    event = event_queries.event(vault=vault, request_id=request_id)
    if event is None:
        raise Http404
    sightings = event_queries.sightings(event)
    context = {
        "now": timezone.now(),
        "event": event,
        "streams": [(one, [_shown(line) for line in one.lines]) for one in raw_lines.told(event, sightings)],
        "lease": event_queries.lease_of(event),
        "login": event.token.login if event.token else None,
        "conflicts": event_queries.conflicts_of(event),
        "most": MOST_OF_A_LINE,
    }
    return render(request, "events/detail.html", context)


@dataclass(frozen=True, slots=True)
class Shown:
    """A raw line as the page has it."""

    line: raw_lines.RawLine
    text: str
    whole: bool


def _shown(line: raw_lines.RawLine) -> Shown:
    text = readable(line.text, most=MOST_OF_A_LINE)
    return Shown(line, text, len(line.text) <= MOST_OF_A_LINE)


def _form(request: PageRequest) -> EventFilterForm:
    return EventFilterForm(request.GET, vaults=[row.name for row in queries.all_vaults()])
