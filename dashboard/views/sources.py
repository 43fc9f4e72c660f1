"""What is watched and how each of it is doing."""

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

import audit.queries
from dashboard.access import PageRequest, may_read, needs
from leases import queries


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    version = queries.ledger_version(now=now)
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    status = {(source.kind, source.name): source for source in queries.sources(now=now)}
    context = {
        "now": now,
        "version": version,
        "vaults": [(row, status["vault", row.name]) for row in queries.vaults()],
        "clusters": [(row, status["cluster", row.name]) for row in queries.clusters()],
        "auth_mounts": queries.auth_mounts(),
        "databases": [(row, status.get(("database", queries.database_key(row)))) for row in queries.databases()],
        "streams": audit.queries.stream_statuses(now=now),
    }
    return render(request, "sources/_state.html" if request.htmx else "sources/page.html", context)
