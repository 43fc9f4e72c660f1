"""Which pod used which database."""

from datetime import timedelta

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

from dashboard.access import PageRequest, may_read, needs
from dashboard.forms import PERIODS
from dashboard.paging import link
from dashboard.tables import uses_by_database
from leases import queries

# so many reads and live leases in all, and everybody's holders stand on one page
MOST_TOGETHER = 2000


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    now = timezone.now()
    period = request.GET.get("period", "24h")
    if period not in PERIODS:
        period = "24h"
    label, hours = PERIODS[period]
    since = now - timedelta(hours=hours)
    used = queries.databases_used(since=since)
    chosen = request.GET.get("database", "")
    together = not chosen and sum(row.reads + row.live for row in used) <= MOST_TOGETHER
    shown = [row for row in used if together or str(row.pk or "unknown") == chosen]
    uses = queries.use_of_databases(since=since, of={row.pk for row in shown}) if shown else []
    context = {
        "now": now,
        "databases": uses_by_database(used, uses, shown=shown),
        "all": link(request, database="") if chosen else "",
        "period": period,
        "period_label": label,
        "periods": [(key, name, link(request, period=key)) for key, (name, _) in PERIODS.items()],
        "cut_off_at": queries.MOST_USES if len(uses) == queries.MOST_USES else None,
        "grouped_at": queries.MOST_GROUPED if any(row.live > queries.MOST_GROUPED for row in shown) else None,
        "most": queries.MOST_COUNTED,
    }
    return render(request, "databases.html", context)
