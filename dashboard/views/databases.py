"""Which pod used which database; and one database with its sessions and how they are watched."""

from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from audit import exports
from audit.findings import queries as findings
from dashboard import live
from dashboard import usage as layout
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import MOST, csv, csv_of, gather
from dashboard.forms import PERIODS, USUAL_PERIOD, SessionFilterForm, UseForm
from dashboard.paging import begun, cursor, link, order
from leases import queries, session_queries, usage

# so many reads and live leases in all, and they are shown pod by pod unless asked otherwise
MOST_BY_POD = 1000


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    known = usage.places()
    watched = [row.pk for row in queries.databases()]
    form = UseForm(request.GET, databases=[(str(key), known[key].path) for key in watched], now=now)
    period = request.GET.get("period") or USUAL_PERIOD
    context: dict[str, object] = {
        "now": now,
        "form": form,
        "known": watched,
        "periods": [
            (key, name, link(request, period=key, to="", after="", **{"from": ""}))
            for key, (name, _) in PERIODS.items()
        ],
        "period": "" if request.GET.get("from") or request.GET.get("to") else period,
        "sources": watched,
    }
    if form.is_valid():
        context |= _used(request, form, known, watched)
    return render(request, "databases/list.html", context)


def _used(request: PageRequest, form: UseForm, known: dict[int, usage.Place], watched: list[int]) -> dict[str, object]:
    span, where = form.span(), form.where()
    accounts = usage.by_account(span)
    rows = [row for row in accounts.rows if where.fits(row)]
    few = sum(row.reads + row.live for row in accounts.rows if where.looked_through.fits(row)) <= MOST_BY_POD
    by = request.GET.get("by") or ("pod" if few else "account")
    uses = usage.by_pod(span, where) if by == "pod" else accounts
    shown = [row for row in uses.rows if where.fits(row)]
    sort = request.GET.get("sort", "")
    sort = sort if sort in layout.SORTS else "reads"
    page = layout.page(shown, sort=sort, after=request.GET.get("after", ""))
    sessions = session_queries.open_by_database()
    return {
        "span": span,
        "where": where,
        "by": by,
        "choices": [
            (name, words, link(request, by=name, after=""))
            for name, words in (("pod", "Pods"), ("account", "Service accounts"))
        ],
        # one mount alone goes without saying
        "several": len({(place.vault, place.mount) for place in known.values()}) > 1,
        "drawing": layout.drawing(shown),
        "reads": sum(row.reads for row in shown),
        "live": sum(row.live for row in shown),
        "holders": len({row.holder for row in shown if row.holder.name}),
        "counted": uses,
        "page": page,
        "sort": sort,
        "sorts": {name: link(request, sort=name, after="") for name in layout.SORTS},
        "first": link(request, after="") if request.GET.get("after") else "",
        "more": link(request, after=page.after) if page.after else "",
        "databases": [
            (row, sessions.get(row.place.key or 0, 0))
            for row in usage.by_database(rows, known, watched=watched)
            if where.database in (None, row.place.key or "unknown")
        ],
        "narrow": begun(request, service_account="", namespace="", by="pod", sort="", after=""),
        "of_database": begun(request, database="", after=""),
    }


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
    """Who used which database, as the page of all of them lists it, each row by itself."""
    now = timezone.now()
    known = usage.places()
    watched = [row.pk for row in queries.databases()]
    form = UseForm(request.GET, databases=[(str(key), known[key].path) for key in watched], now=now)
    if not form.is_valid():
        raise BadRequest("Mend the period on the page of databases; its CSV link names it.")
    span, where = form.span(), form.where()
    uses = usage.by_account(span) if request.GET.get("by") == "account" else usage.by_pod(span, where)
    rows = [row for row in uses.rows if where.fits(row)]
    return csv("use-of-databases", exports.USES, exports.of_uses(rows), now=now, whole=uses.counted_from is None)


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
    return csv_of("sessions", [row.pk for row in rows], now=now, whole=whole)
