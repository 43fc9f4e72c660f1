"""Reads of what people do here: one function per question that a page of plans, actions or containments asks. Nothing here writes.

A job may hold thousands of leases: nothing below reads more of it than one page shows, but for the text of its receipt.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Exists, F, Func, IntegerField, Max, OuterRef, Q, QuerySet

from leases.models import Action, ActionStep, Containment, Job, Lease, LeaseState, Plan, Revocation, Session
from leases.models.actions import OPEN_CONTAINMENT_STATES, OPEN_REVOCATION_STATES, JobState, RevocationState
from leases.queries import PAGE, Cursor, these

# so many leases and sessions of a plan are listed, and so many holders and databases; the counts beside them are of all
MOST_LISTED, MOST_GROUPS = 20, 8
# counting sessions goes no further: a page says "10,000 or more"
MOST_COUNTED = 10_000
# so many leases that Vault would not end are forced at once
MOST_FORCED = 1_000
# steps of so many leases are read at once for a receipt's text
CHUNK = 500

NOT_DONE = [RevocationState.FAILED, RevocationState.UNVERIFIED, RevocationState.STOPPED]
# what a list of actions can be narrowed to beside a job's own states
NOT_VERIFIED = "not verified"


# --- plans -------------------------------------------------------------------------------------------------------


def plan(pk: uuid.UUID) -> Plan | None:
    return Plan.objects.select_related("action").filter(pk=pk).first()


def live_of(scope: QuerySet[Lease]) -> list[int]:
    """Primary keys of what a scope means, in their order."""
    return list(scope.values_list("pk", flat=True))


@dataclass(frozen=True, slots=True)
class Group:
    """So many of a plan's leases are `name`'s. `pk`: of the database, where it is one."""

    name: str
    leases: int
    pk: int | None = None


@dataclass(frozen=True, slots=True)
class LiveSessions:
    """Sessions that are open under the users of a plan's leases, as the last samples had them; the newest of them as `rows`."""

    count: int
    databases: list[tuple[str, int, bool]]  # path, how many, whether an account is configured that can end them
    rows: list[Session]


def groups(leases: Collection[int], *, by: str) -> list[Group]:
    """A plan's leases by `database` or by `holder`, the most first; at most MOST_GROUPS, the rest of them as one "others"."""
    rows = Lease.objects.filter(pk__in=these(leases)).order_by()
    if by == "database":
        found = [
            Group(f"{name} ({mount})" if name else f"{mount}, database not known", n, pk)
            for pk, name, mount, n in rows.values_list("database", "database__name", "mount").annotate(n=Count("pk"))
        ]
    else:
        named = rows.values_list("pod_namespace", "pod", "service_account_namespace", "service_account")
        found = [
            Group(f"{pod_ns}/{pod}" if pod else f"some pod of {ns}/{account}" if account else "nobody known", n)
            for pod_ns, pod, ns, account, n in named.annotate(n=Count("pk"))
        ]
    found.sort(key=lambda group: (-group.leases, group.name))
    shown, rest = found[:MOST_GROUPS], found[MOST_GROUPS:]
    if rest:
        shown.append(Group(f"{len(rest):,} others", sum(group.leases for group in rest)))
    return shown


def open_sessions(leases: Collection[int]) -> LiveSessions:
    """Of a plan's leases. In two queries."""
    rows = Session.objects.filter(lease__in=these(leases), ended_at=None)
    counted = (
        rows.order_by("database__vault__name", "database__mount", "database__name")
        .values_list("database__vault__name", "database__mount", "database__name", "database__respond")
        .annotate(n=Count("pk"))
    )
    databases = [
        (f"{vault}/{mount}/{name}" if name else "a database that is not known", n, respond is not None)
        for vault, mount, name, respond, n in counted
    ]
    newest = rows.select_related("server", "database", "lease").order_by("-started_at", "-id")[:MOST_LISTED]
    return LiveSessions(sum(n for _, n, _ in databases), databases, list(newest))


def in_states(leases: Collection[int]) -> dict[str, int]:
    """How many of these leases are live, revoking, irrevocable and ended now."""
    rows = Lease.objects.filter(pk__in=these(leases)).order_by().values_list("state").annotate(n=Count("pk"))
    return dict(rows)


def first_leases(leases: Collection[int], *, limit: int = MOST_LISTED) -> list[Lease]:
    return list(Lease.objects.filter(pk__in=these(leases)).select_related("vault", "database").order_by("id")[:limit])


# --- lists of actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActionFilter:
    """What a list of actions is narrowed to; empty means everything. `state`: a job's state, NOT_VERIFIED or empty."""

    kind: str = ""
    by: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """One action, its job if it has one, and how many of its leases are in which state."""

    action: Action
    job: Job | None
    states: dict[str, int]


@dataclass(frozen=True, slots=True)
class ActionPage:
    rows: list[Done]
    older: Cursor | None


def actions_page(
    where: ActionFilter | None = None, *, before: Cursor | None = None, size: int = PAGE, oldest: bool = False
) -> ActionPage:
    """One page of actions, last first or oldest first, in two queries. Raises ValueError for a foreign cursor."""
    where = where or ActionFilter()
    rows = _short(Action.objects.select_related("job"))
    if where.kind:
        rows = rows.filter(kind=where.kind)
    if where.by:
        rows = rows.filter(by=where.by)
    if where.state == NOT_VERIFIED:
        rows = rows.filter(Exists(Revocation.objects.filter(action=OuterRef("pk"), state__in=NOT_DONE)))
    elif where.state:
        rows = rows.filter(job__state=where.state)
    beyond, order = ("gt", ("at", "id")) if oldest else ("lt", ("-at", "-id"))
    if before:
        same = Q(at=before.at, **{f"pk__{beyond}": uuid.UUID(before.pk)})
        rows = rows.filter(Q(**{f"at__{beyond}": before.at}) | same)
    found = list(rows.order_by(*order)[: size + 1])
    page = found[:size]
    states = states_of([row.pk for row in page])
    older = Cursor(page[-1].at, page[-1].pk.hex) if len(found) > size else None
    return ActionPage([Done(row, job_of(row), states.get(row.pk, {})) for row in page], older)


def states_of(actions: Collection[uuid.UUID]) -> dict[uuid.UUID, dict[str, int]]:
    """Action -> how many of its leases are in which state."""
    found: dict[uuid.UUID, dict[str, int]] = {}
    rows = Revocation.objects.filter(action__in=actions).order_by().values_list("action", "state")
    for action, state, n in rows.annotate(n=Count("pk")):
        found.setdefault(action, {})[state] = n
    return found


def job_of(action: Action) -> Job | None:
    """None for what works on no lease, and for what was done before there were jobs."""
    return getattr(action, "job", None)


def waiting_jobs(*, limit: int = PAGE) -> list[Job]:
    """Jobs that another responder has to allow, the oldest first, each with how many leases it is `meant` to end."""
    length = Func(F("action__targets"), function="jsonb_array_length", output_field=IntegerField())
    rows = Job.objects.filter(state=JobState.WAITING).select_related("action").defer("action__targets")
    return list(rows.annotate(meant=length).order_by("id")[:limit])


# --- one action --------------------------------------------------------------------------------------------------


def action(pk: uuid.UUID) -> Action | None:
    rows = Action.objects.select_related("job", "containment", "undone_containment", "plan").defer("plan__leases")
    return _short(rows).filter(pk=pk).first()


def own_steps(action: Action) -> list[ActionStep]:
    """Steps that are about no lease, first to last."""
    return list(action.steps.filter(lease_id="").order_by("at", "id"))


@dataclass(frozen=True, slots=True)
class Item:
    """One lease of an action with its steps, first to last."""

    revocation: Revocation
    steps: list[ActionStep]


@dataclass(frozen=True, slots=True)
class ItemPage:
    rows: list[Item]
    after: int | None


def items_page(action: Action, *, state: str = "", after: int = 0, size: int = PAGE) -> ItemPage:
    """One page of an action's leases in their order, each with its steps. In three queries."""
    rows = action.revocations.filter(pk__gt=after)
    if state:
        rows = rows.filter(state=state)
    # keys alone are put in order: the rows beside them are wide, and the action's are thousands
    found = list(rows.order_by("id").values_list("pk", flat=True)[: size + 1])
    page = list(_revocations(action).filter(pk__in=found[:size]))
    return ItemPage(_with_steps(action, page), page[-1].pk if len(found) > size else None)


def item(action: Action, pk: int) -> Item | None:
    """One lease of an action."""
    rows = list(_revocations(action).filter(pk=pk))
    return _with_steps(action, rows)[0] if rows else None


def items(action: Action) -> Iterator[Item]:
    """All of them, a chunk at a time."""
    after: int | None = 0
    while after is not None:
        page = items_page(action, after=after, size=CHUNK)
        yield from page.rows
        after = page.after


def forcible(action: Action) -> list[int]:
    """Leases of an action that Vault would not end: what can be dropped by force. At most as many as can be selected."""
    failed = action.revocations.filter(state=RevocationState.FAILED).exclude(lease__state=LeaseState.ENDED)
    return [row.lease_id for row in failed.only("lease_id").order_by("id")[:MOST_FORCED]]


def _short(rows: QuerySet[Action]) -> QuerySet[Action]:
    """Without the targets, which may be thousands, but with how many (`meant`) and the first of them."""
    length = Func(F("targets"), function="jsonb_array_length", output_field=IntegerField())
    return rows.defer("targets").annotate(meant=length, first_target=F("targets__0"))


def _revocations(action: Action) -> QuerySet[Revocation]:
    rows = action.revocations.select_related("action", "lease__vault", "lease__database")
    return rows.defer("action__targets", "sessions").order_by("id")


def _with_steps(action: Action, rows: Sequence[Revocation]) -> list[Item]:
    steps: dict[str, list[ActionStep]] = {}
    names = {row.lease.lease_id for row in rows}
    for step in action.steps.filter(lease_id__in=names).order_by("at", "id"):
        steps.setdefault(step.lease_id, []).append(step)
    return [Item(row, steps.get(row.lease.lease_id, [])) for row in rows]


def may_change(action: Action, *, since: datetime) -> bool:
    """Whether looking again can show something new: a job or a lease is under way, or Vault's audit line of one is awaited."""
    job = job_of(action)
    if job and job.open:
        return True
    awaited = Q(audit_request_id="", updated_at__gt=since) & ~Q(
        state__in=[RevocationState.FAILED, RevocationState.STOPPED]
    )
    return action.revocations.filter(Q(state__in=OPEN_REVOCATION_STATES) | awaited).exists()


def action_version(action: Action) -> str:
    """A short hash that changes when anything on an action's page would: its job, one of its leases, a step."""
    moved = action.revocations.aggregate(n=Count("id"), at=Max("updated_at"))
    last = action.steps.order_by("-at", "-id").values_list("id", flat=True).first()
    job = Job.objects.filter(action=action).values_list("state", "updated_at", "decided_by", "stopped_by").first()
    held = Containment.objects.filter(action=action).values_list("state", "updated_at").first()
    return hashlib.sha256(repr((moved, last, job, held)).encode()).hexdigest()[:16]


# --- containments ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContainmentPage:
    rows: list[Containment]
    older: Cursor | None


def containments_page(*, open_only: bool, before: Cursor | None = None, size: int = PAGE) -> ContainmentPage:
    """One page of containments, last first."""
    rows = Containment.objects.select_related("action", "undo").defer("action__targets", "undo__targets")
    if open_only:
        rows = rows.filter(state__in=OPEN_CONTAINMENT_STATES)
    if before:
        rows = rows.filter(Q(at__lt=before.at) | Q(at=before.at, pk__lt=int(before.pk)))
    found = list(rows.order_by("-at", "-id")[: size + 1])
    page = found[:size]
    return ContainmentPage(page, Cursor(page[-1].at, str(page[-1].pk)) if len(found) > size else None)


def containment(pk: int) -> Containment | None:
    rows = Containment.objects.select_related("action__job", "undo").defer("action__targets", "undo__targets")
    return rows.filter(pk=pk).first()


def containment_of(*, cluster: str, namespace: str, service_account: str) -> Containment | None:
    """The one that a service account is under now."""
    rows = Containment.objects.filter(cluster=cluster, namespace=namespace, service_account=service_account)
    return rows.filter(state__in=OPEN_CONTAINMENT_STATES).select_related("action").defer("action__targets").first()


def containment_version(containment: Containment) -> str:
    """Changes when anything of its own page would, apart from attempts to come back."""
    fields: list[Any] = [
        containment.state,
        containment.updated_at,
        containment.undo_id,
        action_version(containment.action),
    ]
    if containment.undo:
        fields.append(action_version(containment.undo))
    fields += containment.entities.order_by("id").values_list("id", "disabled_at", "restored_at")
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:16]
