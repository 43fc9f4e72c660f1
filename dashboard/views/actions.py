"""What people did here: the list, each action with its job, and the receipt of each lease."""

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime

from django.contrib import messages
from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone

from dashboard import receipts
from dashboard.access import PageRequest, groups, may_read, may_revoke, needs
from dashboard.downloads import csv_of
from dashboard.forms import ActionFilterForm, RefuseForm
from dashboard.paging import cursor, link, order
from dashboard.views.plans import brief, describe, preview
from leases import action_queries as queries
from leases import jobs
from leases.models import Action, Job
from leases.models.actions import JobState, RevocationState

# states of a job's leases as its page lists them: what a person has to look at first
ORDER = [
    RevocationState.FAILED,
    RevocationState.UNVERIFIED,
    RevocationState.STOPPED,
    RevocationState.REVOKING,
    RevocationState.VERIFYING,
    RevocationState.REQUESTED,
    RevocationState.VERIFIED,
]

# of each a CSV has a row for every lease that it was about, which may be thousands
MOST_ACTIONS = 500


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    before, sort = cursor(request, numeric=False), order(request, "oldest")
    form = ActionFilterForm(request.GET)
    try:
        page = (
            queries.actions_page(form.where(), before=before, oldest=bool(sort))
            if form.is_valid()
            else queries.ActionPage([], None)
        )
    except ValueError as error:
        raise BadRequest("This is no page of the list.") from error
    context = {
        "form": form,
        "page": page,
        "rows": [
            {
                "done": row,
                "what": brief(row.action.scope),
                "states": [(state, row.states[state]) for state in ORDER if state in row.states],
            }
            for row in page.rows
        ],
        "waiting": queries.waiting_jobs(),
        "sort": sort,
        "first": before is None,
        "newest": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
    }
    return render(request, "actions/list.html", context)


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now, oldest = timezone.now(), bool(order(request, "oldest"))
    form = ActionFilterForm(request.GET)
    if not form.is_valid():
        raise BadRequest("Mend the filter on the page of actions; its CSV link names it.")
    try:
        page = queries.actions_page(
            form.where(), before=cursor(request, numeric=False), size=MOST_ACTIONS, oldest=oldest
        )
    except ValueError as error:
        raise BadRequest("This is no page of the list.") from error
    return csv_of("actions", [row.action.pk for row in page.rows], now=now, whole=page.older is None)


@needs(may_read)
def receipt(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    action, now = _action_or_404(pk), timezone.now()
    open_ = queries.may_change(action, since=now - receipts.AUDIT_PATIENCE)
    job = queries.job_of(action)
    idle = bool(job and open_ and receipts.nobody_works(action.at, job, now=now))
    version = f"{queries.action_version(action)}.{open_:d}{idle:d}"
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    states = queries.states_of([pk]).get(pk, {})
    chosen = request.GET.get("state", "")
    page = queries.items_page(action, state=chosen, after=_after(request))
    context = _about(request, action, states=states, job=job) | {
        "now": now,
        "items": [_item(row, job, now=now) for row in page.rows],
        "chosen": chosen,
        "states": [(state, states[state], link(request, state=state, after="")) for state in ORDER if state in states],
        "all": link(request, state="", after=""),
        "after": link(request, after=str(page.after)) if page.after else "",
        "beginning": link(request, after="") if request.GET.get("after") else "",
        # what another responder reads before allowing it
        "preview": preview(action.plan.leases, now=now) if job and job.state == JobState.WAITING else None,
        # of what was done without a lease
        "steps": queries.own_steps(action),
        "open": open_,
        "idle": idle,
        "poll": link(request, version=version),
    }
    return render(request, "actions/_action.html" if request.htmx else "actions/action.html", context)


@needs(may_read)
def item(request: PageRequest, pk: uuid.UUID, item: int) -> HttpResponse:
    """One lease of an action with its receipt."""
    action, now = _action_or_404(pk), timezone.now()
    found = queries.item(action, item)
    if found is None:
        raise Http404
    job = queries.job_of(action)
    row = found.revocation
    context = {
        "now": now,
        "action": action,
        "job": job,
        "item": _item(found, job, now=now),
        "open": row.open or receipts.audit_line_awaited(row, now=now),
        "may_force": may_revoke(groups(request)) and row.lease_id in queries.forcible(action),
    }
    return render(request, "actions/_item.html" if request.htmx else "actions/item.html", context)


@needs(may_read)
def as_text(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    """The whole receipt, to be pasted into a ticket."""
    action = _action_or_404(pk)
    address = request.build_absolute_uri(reverse("actions-receipt", args=[pk]))
    return HttpResponse(_lines(action, address), content_type="text/plain; charset=utf-8")


def _lines(action: Action, address: str) -> Iterator[str]:
    now, job = timezone.now(), queries.job_of(action)
    states = queries.states_of([action.pk]).get(action.pk, {})
    what = describe(action.scope)
    for line in receipts.text_head(action, what=what, link=address, states=states, job=job, now=now):
        yield line + "\n"
    for step in queries.own_steps(action):
        yield receipts.text_step(step, since=action.at) + "\n"
    for number, found in enumerate(queries.items(action), 1):
        for line in receipts.text_item(number, found, job=job, now=now):
            yield line + "\n"


# --- a job's buttons ---------------------------------------------------------------------------------------------


@needs(may_revoke)
def stop(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    return _press(request, pk, lambda job: jobs.stop(job, by=request.user.get_username(), now=timezone.now()))


@needs(may_revoke)
def retry(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    return _press(request, pk, lambda job: jobs.retry(job, by=request.user.get_username(), now=timezone.now()))


@needs(may_revoke)
def approve(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    return _press(request, pk, lambda job: jobs.approve(job, by=request.user.get_username(), now=timezone.now()))


@needs(may_revoke)
def refuse(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    form = RefuseForm(request.POST)
    if request.method == "POST" and not form.is_valid():
        messages.warning(request, str(form.errors["reason"][0]))
        return redirect("actions-receipt", pk=pk)
    return _press(
        request,
        pk,
        lambda job: jobs.refuse(
            job, by=request.user.get_username(), reason=form.cleaned_data["reason"].strip(), now=timezone.now()
        ),
    )


def _press(request: PageRequest, pk: uuid.UUID, verb: Callable[[Job], object]) -> HttpResponse:
    """Does it, unless this is the way back from a log-in that came in between; what cannot be done now is said on the page."""
    job = queries.job_of(_action_or_404(pk))
    if request.method == "POST" and job:
        try:
            verb(job)
        except jobs.NotNow as refused:
            messages.warning(request, str(refused))
    return redirect("actions-receipt", pk=pk)


def _about(request: PageRequest, action: Action, *, states: dict[str, int], job: Job | None) -> dict[str, object]:
    may_act = may_revoke(groups(request))
    total = sum(states.values())
    return {
        "action": action,
        "job": job,
        "total": total,
        "what": describe(action.scope),
        "headline": receipts.headline(states, job, kind=action.kind),
        "shares": receipts.shares(states) if total > 1 else [],
        "progress": jobs.progress(action) if job and job.open and total > 1 else None,
        "decided": total - sum(states.get(state, 0) for state in RUNNING),
        "forcible": queries.forcible(action) if may_act and states.get(RevocationState.FAILED) else [],
        "may_decide": may_act and action.by != request.user.get_username(),
        "may_stop": may_act and job and job.state == JobState.RUNNING and states.get(RevocationState.REQUESTED),
        "may_retry": may_act
        and job
        and job.state not in WITHOUT_ITEMS
        and any(states.get(state) for state in queries.NOT_DONE),
        "permalink": request.build_absolute_uri(reverse("actions-receipt", args=[action.pk])),
    }


WITHOUT_ITEMS = (JobState.WAITING, JobState.REFUSED)
RUNNING = (RevocationState.REQUESTED, RevocationState.REVOKING, RevocationState.VERIFYING)


def _item(found: queries.Item, job: Job | None, *, now: datetime) -> dict[str, object]:
    row = found.revocation
    shown = receipts.lines(row, found.steps, now=now)
    return {
        "revocation": row,
        "lines": shown,
        "took": receipts.took(shown),
        "account": "/".join((row.lease.cluster, row.lease.service_account_namespace, row.lease.service_account)),
        "next_move": receipts.next_move(row, now=now, job=job, steps=found.steps),
    }


def _after(request: PageRequest) -> int:
    text = request.GET.get("after", "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest("This is no page of the list.")
    return int(text)


def _action_or_404(pk: uuid.UUID) -> Action:
    found = queries.action(pk)
    if found is None:
        raise Http404
    return found
