"""Which pod used which database; and one database with its sessions and how they are watched."""

from datetime import timedelta

from django.core.exceptions import BadRequest
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from audit import exports
from audit.findings import queries as findings
from dashboard import live
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import MOST, csv, gather
from dashboard.forms import PERIODS, SessionFilterForm
from dashboard.paging import cursor, link, order
from dashboard.tables import uses_by_database
from leases import queries, session_queries

# so many reads and live leases in all, and everybody's holders stand on one page
MOST_TOGETHER = 2000


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    period = request.GET.get("period", "24h")
    if period not in PERIODS:
        period = "24h"
    label, hours = PERIODS[period]
    since = now - timedelta(hours=hours)
    used = queries.databases_used(since=since)
    chosen = request.GET.get("database", "")
    together = not chosen and sum(row.reads + row.live for row in used) <= MOST_TOGETHER
    shown = [row for row in used if together or str(row.pk or "unknown") == chosen]
    uses = queries.use_of_databases(since=since, of={row.pk for row in shown}) if shown else []
    context = {
        "now": now,
        "databases": uses_by_database(used, uses, shown=shown, sessions=session_queries.open_by_database()),
        "all": link(request, database="") if chosen else "",
        "period": period,
        "period_label": label,
        "periods": [(key, name, link(request, period=key)) for key, (name, _) in PERIODS.items()],
        "cut_off_at": queries.MOST_USES if len(uses) == queries.MOST_USES else None,
        "grouped_at": queries.MOST_GROUPED if any(row.live > queries.MOST_GROUPED for row in shown) else None,
        "most": queries.MOST_COUNTED,
    }
    return render(request, "databases/list.html", context)


@needs(may_read)
@live.shared
def detail(request: PageRequest, pk: int) -> HttpResponse:
    now = timezone.now()
    database = session_queries.database(pk)
    if database is None:
        raise Http404
    before, sort = cursor(request), order(request, "oldest")
    form = SessionFilterForm(request.GET)
    page = (
        session_queries.sessions_page(database, form.where(), before=before, oldest=bool(sort))
        if form.is_valid()
        else session_queries.SessionPage([], None)
    )
    watching = session_queries.watching(database)
    source = queries.source_of(database, now=now) if database.monitor else None
    live = session_queries.live_leases(database)
    version = f"{session_queries.page_version(page, watching, source)}.{live}.{findings.version()}"
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    context = {
        "now": now,
        "database": database,
        "source": source,
        "sources": [source] if source else [],
        "roles": session_queries.roles(database),
        "live": live,
        "watching": watching,
        "most": session_queries.MOST_COUNTED,
        "form": form,
        "page": page,
        "sort": sort,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
        "poll": link(request, version=version),
        "part": bool(request.htmx),
    }
    return render(request, "databases/_live.html" if request.htmx else "databases/detail.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    """Who used which database, as the page of all of them lists it."""
    now = timezone.now()
    period = request.GET.get("period", "24h")
    _, hours = PERIODS.get(period, PERIODS["24h"])
    since = now - timedelta(hours=hours)
    chosen = request.GET.get("database", "")
    of = {row.pk for row in queries.databases_used(since=since) if not chosen or str(row.pk or "unknown") == chosen}
    uses = queries.use_of_databases(since=since, of=of)
    whole = len(uses) < queries.MOST_USES
    return csv("use-of-databases", exports.USES, exports.of_uses(uses), now=now, whole=whole)


@needs(may_read)
def download_sessions(request: PageRequest, pk: int) -> HttpResponse:
    now, oldest = timezone.now(), bool(order(request, "oldest"))
    database = session_queries.database(pk)
    if database is None:
        raise Http404
    form = SessionFilterForm(request.GET)
    if not form.is_valid():
        raise BadRequest("Mend the filter on the database's page; its CSV link names it.")
    where = form.where()
    rows, whole = gather(
        lambda before: session_queries.sessions_page(database, where, before=before, size=MOST, oldest=oldest),
        cursor(request),
    )
    prefetch_related_objects(rows, "database__vault")
    return csv("sessions", exports.SESSIONS, exports.of_sessions(rows), now=now, whole=whole)
