"""What people did here: the list, and each action's receipt."""

import uuid

from django.core.exceptions import BadRequest
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from audit import exports
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import csv
from dashboard.paging import cursor, link, order
from dashboard.receipts import is_open, lines, next_move
from leases import queries

# of each a CSV has a row for every lease that it was about, which may be thousands
MOST_ACTIONS = 500


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    before, sort = cursor(request, numeric=False), order(request, "oldest")
    try:
        page = queries.actions_page(before=before, oldest=bool(sort))
    except ValueError as error:
        raise BadRequest("This is no page of the list.") from error
    context = {
        "page": page,
        "sort": sort,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
    }
    return render(request, "actions/list.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now, oldest = timezone.now(), bool(order(request, "oldest"))
    try:
        page = queries.actions_page(before=cursor(request, numeric=False), size=MOST_ACTIONS, oldest=oldest)
    except ValueError as error:
        raise BadRequest("This is no page of the list.") from error
    prefetch_related_objects(page.rows, "steps")
    return csv("actions", exports.ACTIONS, exports.of_actions(page.rows), now=now, whole=page.older is None)


@needs(may_read)
def receipt(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    now = timezone.now()
    found = queries.receipt(pk)
    if found is None:
        raise Http404
    context = {
        "now": now,
        "action": found.action,
        "items": [
            {"revocation": row, "lines": lines(row, steps, now=now), "next_move": next_move(row, now=now)}
            for row, steps in found.revocations
        ],
        # of what was done without a lease
        "steps": found.steps,
        "open": is_open(found, now=now),
    }
    return render(request, "actions/_receipt.html" if request.htmx else "actions/receipt.html", context)
