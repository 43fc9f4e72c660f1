"""The first page: what is live, what ends next, what just happened, and whether all of this can be trusted."""

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

import audit.queries
from audit.findings import queries as findings
from dashboard import live
from dashboard.access import PageRequest, may_read, needs
from dashboard.tables import live_matrix
from leases import queries

FEW = 6


@needs(may_read)
@live.shared
def overview(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    version = live.version("ledger", lambda: f"{queries.ledger_version(now=now)}.{findings.version()}")
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    context = {
        "now": now,
        "version": version,
        "part": bool(request.htmx),
        "live": live_matrix(queries.live_counts()),
        "ending_next": queries.ending_next(limit=FEW),
        "newest": queries.newest(limit=FEW),
        "recent_ends": queries.recent_ends(limit=FEW),
        "findings": findings.worst(limit=FEW),
        "revocations": queries.running_revocations(limit=FEW),
        "sources": audit.queries.sources(now=now),
    }
    return render(request, "overview/_live.html" if request.htmx else "overview/page.html", context)
