"""Which pod used which database."""

from datetime import timedelta

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone

from dashboard.access import PageRequest, may_read, needs
from dashboard.forms import PERIODS
from dashboard.tables import uses_by_database
from leases import queries


@needs(may_read)
def index(request: PageRequest) -> HttpResponse:
    period = request.GET.get("period", "24h")
    if period not in PERIODS:
        period = "24h"
    label, hours = PERIODS[period]
    uses = queries.use_of_databases(since=timezone.now() - timedelta(hours=hours))
    known = [(row.vault.name, row.mount, row.name) for row in queries.databases()]
    context = {
        "databases": uses_by_database(uses, known),
        "period": period,
        "period_label": label,
        "periods": [(key, name) for key, (name, _) in PERIODS.items()],
        "cut_off_at": queries.MOST_USES if len(uses) == queries.MOST_USES else None,
    }
    return render(request, "databases.html", context)
