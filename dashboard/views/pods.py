"""One pod: what it is, its addresses in time, the leases that it holds, and the sessions under them."""

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from dashboard import addresses, timeline
from dashboard.access import PageRequest, may_read, needs
from leases import action_queries, queries, session_queries
from leases.models import LeaseState


@needs(may_read)
def detail(request: PageRequest, cluster: str, uid: str) -> HttpResponse:
    found = session_queries.pod_holdings(cluster=cluster, uid=uid)
    if found is None:
        raise Http404
    now = timezone.now()
    shown = found.leases[: queries.PAGE]
    namespace = found.pod.namespace if found.pod else found.leases[0].service_account_namespace
    account = found.pod.service_account if found.pod else found.leases[0].service_account
    context = {
        "now": now,
        "drawn": timeline.lives(shown, found.sessions, now=now, of_lease=addresses.of_lease, pod=found.pod),
        "cluster": cluster,
        "uid": uid,
        "pod_scope": f"{cluster}/{uid}",
        "account_scope": f"{cluster}/{namespace}/{account}" if account else "",
        "live": any(lease.state != LeaseState.ENDED for lease in found.leases),
        "contained": action_queries.containment_of(cluster=cluster, namespace=namespace, service_account=account),
        "pod": found.pod,
        "told": found.leases[0] if found.leases else None,
        "leases": shown,
        "more_leases": len(found.leases) > queries.PAGE,
        "sessions": found.sessions,
        "most": queries.PAGE,
    }
    return render(request, "pods/detail.html", context)
