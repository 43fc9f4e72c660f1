"""Leases: the list, one lease with all that is known of it, and the form that ends it."""

from datetime import UTC, timedelta

from django.contrib import messages
from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone

import audit.queries
from audit.findings import queries as findings
from dashboard import addresses, live, timeline
from dashboard.access import PageRequest, may_read, may_revoke, needs
from dashboard.downloads import MOST, csv_of, gather
from dashboard.forms import LeaseFilterForm, RevokeForm
from dashboard.paging import cursor, link, order
from dashboard.views.plans import confirm, preview
from leases import action_queries, plans, queries, session_queries
from leases.models import Lease
from leases.models.actions import ActionKind


@needs(may_read)
@live.shared
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    before, sort = cursor(request), order(request, *queries.ORDERS)
    version = live.version(
        "ledger without ages", lambda: f"{queries.ledger_version(now=now, ages=False)}.{findings.version()}"
    )
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    form = LeaseFilterForm(request.GET, databases=[queries.database_key(row) for row in queries.databases()])
    # only what has not ended can be sorted by its end
    may_end = form.is_valid() and form.where().state not in {"", "ended"}
    if not may_end and sort == "ending":
        raise BadRequest("Leases that have ended have no time left to be sorted by. Choose another order or state.")
    page = (
        queries.leases_page(form.where(), before=before, order=sort) if form.is_valid() else queries.LeasePage([], None)
    )
    context = {
        "now": now,
        "form": form,
        "page": page,
        "sort": sort,
        "may_end": may_end,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
        "sources": audit.queries.sources(now=now),
        "poll": link(request, version=version),
        "part": bool(request.htmx),
    }
    return render(request, "leases/_rows.html" if request.htmx else "leases/list.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    sort = order(request, *queries.ORDERS)
    form = LeaseFilterForm(request.GET, databases=[queries.database_key(row) for row in queries.databases()])
    if not form.is_valid():
        raise BadRequest("Mend the filter on the page of leases; its CSV link names it.")
    where = form.where()
    rows, whole = gather(
        lambda before: queries.leases_page(where, before=before, size=MOST, order=sort), cursor(request)
    )
    return csv_of("leases", [row.pk for row in rows], now=now, whole=whole)


@needs(may_read)
def detail(request: PageRequest, pk: int) -> HttpResponse:
    lease, now = _lease_or_404(pk), timezone.now()
    revocations = queries.revocations_of(lease)
    sessions = session_queries.of_lease(lease)
    use = session_queries.uses([pk], now=now)[pk]
    sampled = session_queries.sampled(lease.database) if lease.database else None
    events, pod = audit.queries.lease_events(lease, now=now), queries.pod_of(lease)
    drawn = timeline.of_lease(
        timeline.Facts(
            lease=lease,
            now=now,
            events=events,
            sessions=sessions,
            sessions_in_all=use.sessions,
            revocations=revocations,
            pod=pod,
            of_event=lambda request_id: addresses.of_event(lease.vault.name, request_id),
            of_pod=addresses.of_pod(lease.cluster, lease.pod_uid),
            of_action=lambda row: reverse("actions-receipt", args=[row.action_id]),
        )
    )
    context = {
        "now": now,
        "lease": lease,
        "sessions": sessions,
        "use": use,
        "unused": None if sessions else session_queries.why_none(lease, use, sampled),
        "sampled": sampled,
        "most": queries.PAGE,
        "could_read": _could_read(lease),
        "history": audit.queries.lease_history(lease),
        "events": events,
        "timeline": drawn,
        "pod": pod,
        "account_deleted_at": queries.account_deleted_at(lease),
        "syncs": audit.queries.consumers_of(lease, now=now),
        "findings": findings.concerning(lease),
        "revocations": revocations,
        "running": next((row for row in revocations if row.open), None),
        "contained": action_queries.containment_of(
            cluster=lease.cluster, namespace=lease.service_account_namespace, service_account=lease.service_account
        ),
    }
    return render(request, "leases/detail.html", context)


@needs(may_revoke)
def revoke(request: PageRequest, pk: int) -> HttpResponse:
    """One lease: what is shown is planned and confirmed at once."""
    lease, now = _lease_or_404(pk), timezone.now()
    form = RevokeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        scope, by = {"kind": "leases", "value": str(pk)}, request.user.get_username()
        try:
            made = plans.plan(kind=ActionKind.REVOKE, scope=scope, leases=[pk], by=by, now=now)
        except plans.NothingToRevoke:
            own = lease.login and lease.login.own
            messages.info(
                request,
                "It is Leasehold's own, which it does not end: nothing was done."
                if own
                else "The lease had ended before: nothing was left to revoke.",
            )
            return redirect("leases-detail", pk=pk)
        return confirm(request, made, form, now=now)
    context = {"now": now, "lease": lease, "form": form, "preview": preview([pk], now=now)}
    return render(request, "leases/revoke.html", context)


def _could_read(lease: Lease) -> dict[str, str]:
    """Its database, and the first whole second at which it was live, for a link."""
    at = (lease.accessed_at or lease.issued_at or lease.first_seen_at) + timedelta(seconds=1)
    return {
        "database": queries.database_key(lease.database) if lease.database else "",
        "at": f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}",
    }


def _lease_or_404(pk: int) -> Lease:
    lease = queries.lease(pk)
    if lease is None:
        raise Http404
    return lease
