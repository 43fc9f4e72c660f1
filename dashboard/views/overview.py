"""The first page: what is live, what ends next, what just happened, and whether all of this can be trusted."""

from datetime import timedelta

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

import audit.queries
from audit.findings import queries as findings
from dashboard import live
from dashboard.access import PageRequest, may_read, needs
from dashboard.tables import live_matrix, rate
from leases import queries, usage

FEW = 6
SOON = timedelta(minutes=5)
GRACE = timedelta(seconds=1)


@needs(may_read)
@live.shared
def overview(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    version = live.version("ledger", lambda: f"{queries.ledger_version(now=now)}.{findings.version()}")
    # what is counted by the minute is another one in the next
    if request.htmx and request.GET.get("version") in {f"{version}.{at:%H%M}" for at in (now, now - GRACE)}:
        return HttpResponse(status=204)
    context = {
        "now": now,
        "version": f"{version}.{now:%H%M}",
        "part": bool(request.htmx),
        "live": live_matrix(usage.live()),
        "by_minute": rate(usage.reads_by_minute(now=now)),
        "by_hour": rate(audit.queries.reads_by_hour(now=now)),
        "soon": queries.ending_within(now=now, span=SOON),
        "most": queries.MOST_COUNTED,
        "ending_next": queries.ending_next(limit=FEW),
        "newest": queries.newest(limit=FEW),
        "recent_ends": queries.recent_ends(limit=FEW),
        "findings": findings.worst(limit=FEW),
        "revocations": queries.running_revocations(limit=FEW),
        "sources": audit.queries.sources(now=now),
    }
    return render(request, "overview/_live.html" if request.htmx else "overview/page.html", context)
