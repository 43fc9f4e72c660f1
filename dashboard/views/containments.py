"""Service accounts that were shut out: the list, what each containment did and does not cover, attempts to come back, and undoing it."""

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django_htmx.http import HttpResponseClientRefresh

from audit import comebacks
from dashboard import receipts
from dashboard.access import PageRequest, may_read, may_revoke, needs
from dashboard.forms import RevokeForm
from dashboard.paging import cursor, link
from leases import action_queries as queries
from leases import contain, jobs
from leases.models import Containment
from leases.models.actions import OPEN_REVOCATION_STATES, ContainmentState, JobState
from leases.queries import PAGE

UNDER_WAY = {ContainmentState.CONTAINING, ContainmentState.LIFTING}


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    before, open_only = cursor(request), request.GET.get("state") != "any"
    page = queries.containments_page(open_only=open_only, before=before)
    context = {
        "page": page,
        "open_only": open_only,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
    }
    return render(request, "containments/list.html", context)


@needs(may_read)
def detail(request: PageRequest, pk: int) -> HttpResponse:
    return _detail(request, _containment_or_404(pk), RevokeForm())


def _detail(request: PageRequest, containment: Containment, form: RevokeForm, *, status: int = 200) -> HttpResponse:
    now, action = timezone.now(), containment.action
    attempts = comebacks.attempts(containment, now=now)
    newest = attempts.last_at.timestamp() if attempts.last_at else 0
    counted = attempts.denied_logins + attempts.denied_requests
    version = f"{queries.containment_version(containment)}.{counted}-{newest}-{len(attempts.successes)}"
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    if request.htmx and request.GET.get("seen", containment.state) != containment.state:
        # what can be done about it is another thing now, and stands outside of the live part
        return HttpResponseClientRefresh()
    states, job = queries.states_of([action.pk]).get(action.pk, {}), queries.job_of(action)
    receipt = reverse("actions-receipt", args=[action.pk])
    context = {
        "now": now,
        "containment": containment,
        "action": action,
        "job": job,
        "entities": list(containment.entities.select_related("vault").order_by("id")),
        "steps": queries.own_steps(action),
        "undo_steps": queries.own_steps(containment.undo) if containment.undo else [],
        "attempts": attempts,
        "successes": attempts.successes[:PAGE],
        "total": sum(states.values()),
        "states": [(state, count, f"{receipt}?{urlencode({'state': state})}") for state, count in states.items()],
        "shares": receipts.shares(states),
        "decided": sum(states.values()) - sum(states.get(state, 0) for state in OPEN_REVOCATION_STATES),
        "receipt": receipt,
        "progress": jobs.progress(action) if states and containment.state == ContainmentState.CONTAINING else None,
        # what waits, for a person or for an attempt, is looked at less often: that looks through many events
        "under_way": containment.state in UNDER_WAY and not (job and job.state == JobState.WAITING),
        "not_covered": contain.not_covered(containment),
        "form": form,
        "poll": link(request, version=version, seen=containment.state),
    }
    template = "containments/_live.html" if request.htmx else "containments/detail.html"
    return render(request, template, context, status=status)


@needs(may_revoke)
def undo(request: PageRequest, pk: int) -> HttpResponse:
    containment = _containment_or_404(pk)
    form = RevokeForm(request.POST)
    if request.method != "POST":
        # back from a log-in that came in between
        return redirect("containments-detail", pk=pk)
    if not form.is_valid():
        return _detail(request, containment, form, status=422)
    by, now = request.user.get_username(), timezone.now()
    try:
        contain.undo(containment, by=by, reason=form.why, ticket=form.ticket_number, now=now)
    except contain.NotNow as refused:
        messages.warning(request, str(refused))
    return redirect("containments-detail", pk=pk)


@needs(may_revoke)
def again(request: PageRequest, pk: int) -> HttpResponse:
    containment = _containment_or_404(pk)
    if request.method == "POST":
        try:
            contain.again(containment, by=request.user.get_username(), now=timezone.now())
        except contain.NotNow as refused:
            messages.warning(request, str(refused))
    return redirect("containments-detail", pk=pk)


def _containment_or_404(pk: int) -> Containment:
    found = queries.containment(pk)
    if found is None:
        raise Http404
    return found
