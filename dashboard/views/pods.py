"""One pod: what it is, its addresses in time, the leases that it holds, and the sessions under them."""

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from dashboard import addresses, timeline
from dashboard.access import PageRequest, may_read, needs
from leases import queries, session_queries


@needs(may_read)
def detail(request: PageRequest, cluster: str, uid: str) -> HttpResponse:
    found = session_queries.pod_holdings(cluster=cluster, uid=uid)
    if found is None:
        raise Http404
    now = timezone.now()
    shown = found.leases[: queries.PAGE]
    context = {
        "now": now,
        "drawn": timeline.lives(shown, found.sessions, now=now, of_lease=addresses.of_lease, pod=found.pod),
        "cluster": cluster,
        "uid": uid,
        "pod": found.pod,
        "told": found.leases[0] if found.leases else None,
        "leases": shown,
        "more_leases": len(found.leases) > queries.PAGE,
        "sessions": found.sessions,
        "most": queries.PAGE,
    }
    return render(request, "pods/detail.html", context)
