"""The search box: what is typed comes by POST, so that it is in no address, no log and no history."""

from django.http import HttpResponse
from django.shortcuts import render

from dashboard.access import PageRequest, may_read, needs


@needs(may_read)
def search(request: PageRequest) -> HttpResponse:
    return render(request, "search/page.html", {})
