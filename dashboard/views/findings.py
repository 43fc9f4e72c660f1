"""Findings: the list, one with its evidence, and closing one."""

from django.contrib import messages
from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone

from audit.findings import kinds, queries, watch
from audit.models import Finding
from audit.notices import queries as notices
from dashboard import live
from dashboard.access import PageRequest, groups, may_close_findings, may_read, may_revoke, needs
from dashboard.downloads import MOST, csv_of, gather
from dashboard.forms import CloseForm, FindingFilterForm
from dashboard.paging import link
from leases.queries import vaults


@needs(may_read)
@live.shared
def index(request: PageRequest) -> HttpResponse:
    text = request.GET.get("before", "")
    after = queries.Place.parse(text) if text else None
    if text and after is None:
        raise BadRequest("This is no page of the list.")
    look = queries.last_look()
    late = queries.is_late(look, now=timezone.now())
    version = f"{queries.list_version()}-{look.at.timestamp() if look else 0:.0f}-{late:d}"
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    form = FindingFilterForm(request.GET, vaults=[row.name for row in vaults()])
    page = queries.page(form.where(), after=after) if form.is_valid() else queries.FindingPage([], None)
    context = {
        "look": look,
        "late": late,
        "told": notices.told_how(),
        "form": form,
        "page": page,
        "first": after is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
        "poll": link(request, version=version),
        "part": bool(request.htmx),
    }
    return render(request, "findings/_list.html" if request.htmx else "findings/list.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    text = request.GET.get("before", "")
    after = queries.Place.parse(text) if text else None
    form = FindingFilterForm(request.GET, vaults=[row.name for row in vaults()])
    if not form.is_valid() or (text and after is None):
        raise BadRequest("Mend the filter on the page of findings; its CSV link names it.")
    where = form.where()
    rows, whole = gather(lambda place: queries.page(where, after=place, size=MOST), after)
    return csv_of("findings", [row.pk for row in rows], now=now, whole=whole)


@needs(may_read)
def detail(request: PageRequest, pk: int) -> HttpResponse:
    return _detail(request, _finding_or_404(pk), CloseForm())


@needs(may_close_findings)
def close(request: PageRequest, pk: int) -> HttpResponse:
    finding = _finding_or_404(pk)
    if request.method != "POST":
        # back from a log-in that came in between
        return redirect("findings-detail", pk=pk)
    form = CloseForm(request.POST)
    if not form.is_valid():
        return _detail(request, finding, form, status=422)
    try:
        watch.close(
            finding,
            by=request.user.get_username(),
            reason=form.cleaned_data["reason"].strip(),
            now=timezone.now(),
        )
    except watch.NotOpen:
        messages.warning(request, "It was closed before: nothing was changed.")
    return redirect("findings-detail", pk=pk)


def _detail(request: PageRequest, finding: Finding, form: CloseForm, *, status: int = 200) -> HttpResponse:
    context = {
        "finding": finding,
        "cluster": queries.cluster_of(finding),
        "means": kinds.MEANS[finding.kind],
        "do": kinds.DO[finding.kind],
        "targets": queries.targets(finding) if finding.open and may_revoke(groups(request)) else None,
        "changes": queries.changes_of(finding),
        "told": notices.told_of(finding),
        "form": form,
        "may_close": may_close_findings(groups(request)),
        "comes_back_hours": watch.COMES_BACK.total_seconds() // 3600,
    }
    return render(request, "findings/detail.html", context, status=status)


def _finding_or_404(pk: int) -> Finding:
    found = queries.finding(pk)
    if found is None:
        raise Http404
    return found
