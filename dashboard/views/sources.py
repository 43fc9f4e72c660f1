"""What is watched and how each of it is doing; of each audit stream, how complete it is."""

from datetime import UTC, date, datetime, time, timedelta

from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

import audit.queries
from audit.batch import OLDEST
from audit.findings import queries as findings
from dashboard import live
from dashboard.access import PageRequest, may_read, needs
from dashboard.tables import readable, total
from leases import queries, source_queries

DAY = timedelta(days=1)


@needs(may_read)
@live.shared
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    version = live.version("ledger", lambda: f"{queries.ledger_version(now=now)}.{findings.version()}")
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    status = {(source.kind, source.name): source for source in queries.sources(now=now)}
    streams = audit.queries.stream_statuses(now=now)
    costs, put_off, samplings = queries.costs(now=now), queries.put_off_lists(), queries.samplings()
    days = audit.queries.last_day([item.stream for item in streams], now=now)
    clusters, databases = queries.clusters(), queries.databases()
    watches = source_queries.cluster_watches([row.pk for row in clusters], now=now)
    known = source_queries.database_samplings([row.pk for row in databases], now=now)
    context = {
        "now": now,
        "version": version,
        "part": bool(request.htmx),
        "vaults": [
            (row, status["vault", row.name], costs.get(row.pk), put_off.get(row.pk, [])) for row in queries.vaults()
        ],
        "clusters": [(row, status["cluster", row.name], watches[row.pk]) for row in clusters],
        "auth_mounts": queries.auth_mounts(),
        "databases": [
            (row, status.get(("database", queries.database_key(row))), samplings.get(row.pk), known[row.pk])
            for row in databases
        ],
        "streams": [(item, days[item.stream.pk]) for item in streams],
        "database_logs": audit.queries.database_logs(now=now),
    }
    return render(request, "sources/_state.html" if request.htmx else "sources/page.html", context)


@needs(may_read)
def stream(request: PageRequest, pk: int) -> HttpResponse:
    now = timezone.now()
    found = audit.queries.stream(pk)
    if found is None:
        raise Http404
    day = _day(request, today=now.date())
    begin = datetime.combine(day, time(), UTC)
    known = audit.queries.completeness([found], from_at=begin, to_at=min(begin + DAY, now), now=now)[pk]
    context = {
        "now": now,
        "stream": found,
        "item": next((item for item in audit.queries.stream_statuses(now=now) if item.stream.pk == pk), None),
        "paired": audit.queries.paired(found),
        "day": day,
        "day_before": day - DAY if known.first_at and known.first_at < begin else None,
        "day_after": day + DAY if day < now.date() else None,
        "known": known,
        "total": total(known.hours),
        "gaps": audit.queries.newest_gaps(found),
        "rejected_lines": audit.queries.newest_rejected(found),
        "conflicts": audit.queries.newest_conflicts(found),
        "most": audit.queries.MOST_LINES,
    }
    return render(request, "sources/stream.html", context)


def _day(request: PageRequest, *, today: date) -> date:
    """The day that the query string names, in UTC; BadRequest for what is none, was before Vault or is still to come."""
    text = request.GET.get("day", "")
    try:
        day = date.fromisoformat(text) if text else today
    except ValueError as error:
        raise BadRequest("A day is written as 2026-11-25.") from error
    if not OLDEST.date() <= day <= today:
        raise BadRequest("No audit log can be of that day.")
    return day


@needs(may_read)
def rejected(request: PageRequest, pk: int, line: int) -> HttpResponse:
    found = audit.queries.rejected_line(pk, line)
    if found is None:
        raise Http404
    content = audit.queries.rejected_bytes(found)
    context = {
        "line": found,
        "size": len(content) if content is not None else None,
        "text": readable(content) if content is not None else None,
    }
    return render(request, "sources/rejected.html", context)
