"""Workloads: which service accounts and pods hold or held leases, and everything of one service account."""

from collections.abc import Iterable

from django.core.exceptions import BadRequest
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils import timezone

import audit.queries
from audit.exports import Row
from audit.findings import queries as findings
from dashboard import addresses
from dashboard.access import PageRequest, may_read, needs
from dashboard.downloads import MOST, csv
from dashboard.forms import PERIODS, USUAL_PERIOD, WorkloadFilterForm
from dashboard.paging import cursor, link
from dashboard.timeline import lives
from leases import action_queries, queries, workload_queries
from leases.models import Database
from leases.workload_queries import LAST, Account, Place, PodPage, PodRow, Workload, WorkloadPage


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    version = f"{queries.ledger_version(now=now)}.{findings.version()}"
    if request.htmx and request.GET.get("version") == version:
        return HttpResponse(status=204)
    form = WorkloadFilterForm(_data(request), clusters=[row.name for row in queries.clusters()])
    by_pod = request.GET.get("by") == "pod"
    if not form.is_valid():
        page: WorkloadPage | PodPage = PodPage([], None) if by_pod else WorkloadPage([], None)
    elif by_pod:
        page = workload_queries.pods_page(form.where(now=now), before=cursor(request))
    else:
        sort = form.cleaned_data["sort"] or LAST
        page = workload_queries.accounts_page(form.where(now=now), sort=sort, after=_place(request))
    following = page.older if isinstance(page, PodPage) else page.next
    context = {
        "now": now,
        "form": form,
        "by_pod": by_pod,
        "page": page,
        "sort": request.GET.get("sort") or LAST,
        "period": PERIODS[form.cleaned_data["period"]][0] if form.is_valid() else "",
        "lists": [
            (name, link(request, by=by, before="", sort=""), by_pod == bool(by))
            for by, name in (("", "Service accounts"), ("pod", "Pods"))
        ],
        "sorts": {sort: link(request, sort=sort, before="") for sort in workload_queries.SORTS},
        "first": not request.GET.get("before"),
        "start": link(request, before=""),
        "next": link(request, before=str(following)) if following else "",
        "most_pods": workload_queries.MOST_PODS,
        "sources": audit.queries.sources(now=now),
        "poll": link(request, version=version),
        "part": bool(request.htmx),
    }
    return render(request, "workloads/_rows.html" if request.htmx else "workloads/list.html", context)


ACCOUNTS = ["cluster", "namespace", "service_account", "live", "databases", "certainties", "running_pods", "last_at"]
PODS = ["cluster", "namespace", "pod", "pod_uid", "service_account", "live", "databases", "certainty", "last_at"]


@needs(may_read)
def download(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    form = WorkloadFilterForm(_data(request), clusters=[row.name for row in queries.clusters()])
    if not form.is_valid():
        raise BadRequest("Mend the filter on the page of workloads; its CSV link names it.")
    where = form.where(now=now)
    if request.GET.get("by") == "pod":
        pods = workload_queries.pods_page(where, before=cursor(request), size=MOST)
        return csv("pods", PODS, map(_pod_row, pods.rows), now=now, whole=pods.older is None)
    sort = form.cleaned_data["sort"] or LAST
    accounts = workload_queries.accounts_page(where, sort=sort, after=_place(request), size=MOST)
    whole = accounts.next is None and not accounts.cut_off
    return csv("workloads", ACCOUNTS, map(_account_row, accounts.rows), now=now, whole=whole)


def _account_row(row: Workload) -> Row:
    return {
        "cluster": row.account.cluster,
        "namespace": row.account.namespace,
        "service_account": row.account.name,
        "live": row.live,
        "databases": _names(row.databases),
        "certainties": " ".join(row.certainties),
        "running_pods": row.pods,
        "last_at": row.last_at,
    }


def _pod_row(row: PodRow) -> Row:
    return {
        "cluster": row.newest.cluster,
        "namespace": row.newest.pod_namespace,
        "pod": row.newest.pod,
        "pod_uid": row.newest.pod_uid,
        "service_account": row.newest.service_account,
        "live": row.live,
        "databases": _names(row.databases),
        "certainty": row.newest.certainty,
        "last_at": row.read_at,
    }


def _names(databases: Iterable[Database | None]) -> str:
    return " ".join(database.path if database else "unknown" for database in databases)


def _data(request: PageRequest) -> QueryDict:
    """The query string, with the usual period where it names none."""
    data = request.GET.copy()
    data["period"] = data.get("period") or USUAL_PERIOD
    return data


def _place(request: PageRequest) -> Place | None:
    text = request.GET.get("before", "")
    place = Place.parse(text) if text else None
    if text and place is None:
        raise BadRequest("This is no page of the list.")
    return place


@needs(may_read)
def detail(request: PageRequest, cluster: str, namespace: str, name: str) -> HttpResponse:
    if "\x00" in cluster + namespace + name:
        # no database can look for that
        raise Http404
    now, account = timezone.now(), Account(cluster, namespace, name)
    opened = workload_queries.opened(account)
    every = [row.database.pk if row.database else 0 for row in opened]
    newest = workload_queries.newest_leases(account, databases=every)
    logins = workload_queries.logins_of(account)
    known = workload_queries.kubernetes_accounts(account)
    pods = workload_queries.pods_of(account, newest)
    if not (newest or logins or known or pods):
        raise Http404
    holding, before = request.GET.get("show") == "now", cursor(request)
    chosen = request.GET.get("database", "")
    of = [key for key in every if str(key) == chosen] if chosen else every
    sessions = workload_queries.sessions_of(newest)
    page = workload_queries.leases_of(account, databases=of, holding=holding, before=before)
    context = {
        "now": now,
        "account": account,
        "scope": f"{cluster}/{namespace}/{name}",
        "contained": action_queries.containment_of(cluster=cluster, namespace=namespace, service_account=name),
        "opened": opened,
        "live": sum(row.live for row in opened),
        "last_at": opened[0].last_at if opened else None,
        "known": known,
        "pods": pods,
        "page": page,
        "holding": holding,
        "chosen": chosen,
        "shows": [
            (text, link(request, show=show, before=""), holding == bool(show))
            for show, text in (("", "holds and held"), ("now", "holds now"))
        ],
        "all": link(request, database="", before=""),
        "first": before is None,
        "start": link(request, before=""),
        "older": link(request, before=str(page.older)) if page.older else "",
        "drawn": lives(page.rows, sessions if before is None else (), now=now, of_lease=addresses.of_lease),
        "logins": logins,
        "entities": workload_queries.entities_of(account),
        "sessions": sessions,
        "findings": findings.of_account(cluster=cluster, namespace=namespace, name=name),
        "few": workload_queries.FEW,
        "most_logins": workload_queries.MOST_LOGINS,
        "most_leases": workload_queries.MOST_LEASES,
    }
    return render(request, "workloads/detail.html", context)
