"""The access review of a database over a period: a page, and the same as CSV."""

from datetime import datetime

from django.core.exceptions import BadRequest
from django.http import HttpResponse, QueryDict
from django.shortcuts import render
from django.utils import timezone

from audit import exports
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import csv
from dashboard.forms import REVIEW_DAYS, USUAL_DAYS, ReviewForm
from dashboard.paging import link
from leases import queries, session_queries
from leases.models import Database
from leases.review import MOST_REVIEWED, review


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    known = {queries.database_key(row): row for row in queries.databases(retired=True)}
    form = ReviewForm(_data(request), databases=list(known))
    context: dict[str, object] = {"now": now, "form": form, "known": known}
    if form.is_valid() and (name := form.cleaned_data["database"]):
        context |= _answer(request, known[name], since=now - form.period(), now=now)
        context["days"] = REVIEW_DAYS[form.cleaned_data["days"]]
    return render(request, "review.html", context)


def _data(request: PageRequest) -> QueryDict:
    """The query string, with the usual period where it names none."""
    data = request.GET.copy()
    if not data.get("days"):
        data["days"] = USUAL_DAYS
    return data


def _answer(request: PageRequest, database: Database, *, since: datetime, now: datetime) -> dict[str, object]:
    found = review(database, since=since, now=now)
    sampled = session_queries.sampled(database)
    return {
        "database": database,
        "since": since,
        "review": found,
        "issued": found.total("issued"),
        "used": found.total("used"),
        "unused": found.total("unused"),
        "not_known": found.total("not_known"),
        "sampled": sampled,
        "sampled_late": sampled.from_at is not None and sampled.from_at > since,
        "most": MOST_REVIEWED,
        "csv": link(request).replace(request.path, "/access-review.csv", 1),
    }


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    known = {queries.database_key(row): row for row in queries.databases(retired=True)}
    form = ReviewForm(_data(request), databases=list(known))
    if not form.is_valid() or not (name := form.cleaned_data["database"]):
        raise BadRequest("Choose a database and a period on the page; its CSV link names both.")
    database, since = known[name], now - form.period()
    rows = exports.access_review(database, review(database, since=since, now=now), from_at=since, to_at=now)
    return csv("access-review", exports.REVIEW, rows, now=now)
