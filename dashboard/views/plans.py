"""Plans: what would end, whose sessions, who comes back; and confirming that. Nothing is done before the confirmation."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone

from audit import again, targets
from audit.targets import Scope, ScopeKind
from dashboard.access import PageRequest, may_revoke, needs
from dashboard.forms import SCOPES, PlanForm, RevokeForm
from leases import action_queries as queries
from leases import contain, plans
from leases import revoke as verbs
from leases.models import Action, Containment, Lease, LeaseState, Plan
from leases.models.actions import ActionKind
from leases.models.sources import Policy


@needs(may_revoke)
def new(request: PageRequest) -> HttpResponse:
    initial = {name: request.GET.get(name, "") for name in ("kind", "scope_kind", "scope_value")}
    return _form(request, PlanForm(initial=initial | {"kind": initial["kind"] or ActionKind.REVOKE}))


@needs(may_revoke)
def create(request: PageRequest) -> HttpResponse:
    if request.method != "POST":
        # back from a log-in that came in between
        return redirect("plans-new")
    form = PlanForm(request.POST)
    if form.is_valid():
        try:
            made = _plan(form.cleaned_data["kind"], form.cleaned_data["scope"], by=request.user.get_username())
        except (plans.NothingToRevoke, contain.CannotContain, targets.UnknownScope) as error:
            form.add_error(None, str(error))
        except contain.AlreadyContained as other:
            return _theirs(request, other.containment)
        else:
            return redirect("plans-detail", pk=made.pk)
    return _form(request, form, status=422)


@needs(may_revoke)
def detail(request: PageRequest, pk: uuid.UUID) -> HttpResponse:
    plan, now = _plan_or_404(pk), timezone.now()
    if plan.action:
        return redirect("actions-receipt", pk=plan.action.pk)
    policy = Policy.current()
    wide = policy.confirm_above and len(plan.leases) > policy.confirm_above
    form = RevokeForm(request.POST or None, leases=len(plan.leases) if wide else None)
    if request.method == "POST" and form.is_valid():
        return confirm(request, plan, form, now=now)
    contained = contain.preview(plan) if plan.kind == ActionKind.CONTAIN else None
    if request.htmx and contained:
        # only what a worker has found: the rest of the page is being read, and a reason may be half written
        part = {"now": now, "plan": plan, "contained": contained}
        return render(request, "plans/_identities.html", part) if contained.looked_at else HttpResponse(status=204)
    context = {
        "now": now,
        "plan": plan,
        "preview": preview(plan.leases, now=now),
        "kind": plan.kind,
        "what": describe(plan.scope),
        "expired": now >= plan.expires_at,
        "form": form,
        "contained": contained,
        "consequences": plans.FORCE_CONSEQUENCES if plan.kind == ActionKind.FORCE else (),
        "needs_approval": policy.approval_above and len(plan.leases) > policy.approval_above,
        "approval_above": policy.approval_above,
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "plans/detail.html", context, status=status)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a person reads before ending leases: as it is now, though which leases it is was frozen."""

    total: int
    states: dict[str, int]
    databases: list[queries.Group]
    holders: list[queries.Group]
    rows: list[Lease]
    sessions: queries.LiveSessions
    returns: list[again.Return]
    more_returns: int

    @property
    def left(self) -> int:
        return self.total - self.states.get(LeaseState.ENDED, 0)

    @property
    def irrevocable(self) -> int:
        return self.states.get(LeaseState.IRREVOCABLE, 0)

    @property
    def ended(self) -> int:
        return self.states.get(LeaseState.ENDED, 0)


def preview(leases: Collection[int], *, now: datetime) -> Preview:
    returns, more_returns = again.returns(leases, now=now)
    return Preview(
        total=len(leases),
        states=queries.in_states(leases),
        databases=queries.groups(leases, by="database"),
        holders=queries.groups(leases, by="holder"),
        rows=queries.first_leases(leases),
        sessions=queries.open_sessions(leases),
        returns=returns,
        more_returns=more_returns,
    )


def describe(scope: dict[str, Any]) -> str:
    """What was meant, in words; empty for what was done before scopes were kept."""
    try:
        return targets.describe(Scope.from_json(scope)) if scope else ""
    except targets.UnknownScope:
        return f"everything of {scope.get('kind')} {scope.get('value')}"


def brief(scope: dict[str, Any]) -> str:
    """As describe(), for a list: asks nothing. Empty for leases that were named one by one."""
    kind, value = scope.get("kind", ScopeKind.LEASES), str(scope.get("value", ""))
    if kind == ScopeKind.LEASES:
        return ""
    if kind in {ScopeKind.POD, ScopeKind.LOGIN, ScopeKind.DATABASE}:
        return f"everything of a {kind}"
    return f"everything of {kind} {value}"


def _plan(kind: str, scope: Scope, *, by: str) -> Plan:
    now = timezone.now()
    if kind == ActionKind.CONTAIN:
        if scope.kind != ScopeKind.SERVICE_ACCOUNT:
            raise targets.UnknownScope("What is contained is a service account.")
        cluster, namespace, name = scope.value.split("/", 2)
        return contain.plan(cluster=cluster, namespace=namespace, service_account=name, by=by, now=now)
    leases = queries.live_of(targets.open_leases(scope))
    return plans.plan(kind=ActionKind(kind), scope=scope.as_json(), leases=leases, by=by, now=now)


def confirm(request: PageRequest, plan: Plan, form: RevokeForm, *, now: datetime) -> HttpResponse:
    """Makes an action of it and leads there, or to that of whoever was first."""
    verb = contain.confirm if plan.kind == ActionKind.CONTAIN else verbs.confirm
    try:
        action: Action = verb(plan, by=request.user.get_username(), reason=form.why, ticket=form.ticket_number, now=now)
    except (verbs.AlreadyRequested, plans.PlanUsed) as other:
        messages.warning(request, f"{other.action.by} was first: this is what they do about the same.")
        return redirect("actions-receipt", pk=other.action.pk)
    except contain.AlreadyContained as other:
        return _theirs(request, other.containment)
    except plans.PlanExpired as error:
        messages.warning(request, str(error))
        return redirect("plans-detail", pk=plan.pk)
    except plans.NothingToRevoke:
        messages.info(request, "All of it had ended before: nothing was left to revoke.")
        return redirect("leases")
    if plan.kind == ActionKind.CONTAIN:
        return redirect("containments-detail", pk=action.containment.pk)
    return redirect("actions-receipt", pk=action.pk)


def _theirs(request: PageRequest, containment: Containment) -> HttpResponse:
    messages.warning(request, f"{containment.action.by} was first: this is their containment.")
    return redirect("containments-detail", pk=containment.pk)


def _form(request: PageRequest, form: PlanForm, *, status: int = 200) -> HttpResponse:
    return render(request, "plans/new.html", {"form": form, "scopes": SCOPES, "forms": _WRITTEN}, status=status)


# how each scope's value is written, with an example
_WRITTEN = [
    (ScopeKind.POD, "CLUSTER/UID", "demo/6f0e8c1a-…"),
    (ScopeKind.SERVICE_ACCOUNT, "CLUSTER/NAMESPACE/NAME", "demo/shop/checkout"),
    (ScopeKind.ENTITY, "VAULT/ENTITY-ID", "demo/0b7c3e5d-…"),
    (ScopeKind.LOGIN, "number of the login", "see the lease's page"),
    (ScopeKind.ROLE, "VAULT/MOUNT/ROLE", "demo/database/my-role"),
    (ScopeKind.DATABASE, "number of the database", "see the database's page"),
    (ScopeKind.PREFIX, "VAULT/PREFIX of lease ids", "demo/database/creds/my-role"),
]


def _plan_or_404(pk: uuid.UUID) -> Plan:
    found = queries.plan(pk)
    if found is None:
        raise Http404
    return found
