"""The search box. What is typed comes by POST and goes into no address, no log and no table: it may be a secret."""

import secrets
from collections.abc import Callable

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode
from django.views.decorators.debug import sensitive_post_parameters

from audit import search as verbs
from audit import tasks
from audit.search_reads import Hit
from dashboard import addresses
from dashboard.access import PageRequest, may_read, needs

# of one user's log-in; what was found, not what was typed
MOST_KEPT = 5


@needs(may_read)
@sensitive_post_parameters("text")
def search(request: PageRequest) -> HttpResponse:
    """One hit leads to its page, several to a page that lists them. GET says what can be searched for."""
    if request.method != "POST":
        return render(request, "search/page.html", {})
    try:
        found = verbs.find(request.POST.get("text", ""), send=tasks.ask_a_worker)
    except verbs.Refused as refusal:
        # without what was typed
        return render(request, "search/page.html", {"refusal": str(refusal)}, status=422)
    if found.only and (page := address_of(found.only)):
        return redirect(page)
    return redirect("search-found", key=_keep(request, found))


@needs(may_read)
def results(request: PageRequest, key: str) -> HttpResponse:
    """What a search of this log-in found: reload and Back show it again, and no address names what was typed."""
    kept = request.session.get("searches", {}).get(key)
    if kept is None:
        messages.info(request, "That search is no longer kept. Type it again.")
        return redirect("search")
    groups = [
        (
            title,
            more,
            [
                (hit, address_of(hit))
                for of, name_key, name, says in hits
                for hit in [Hit(of, tuple(name_key), name, says)]
            ],
        )
        for title, more, hits in kept["groups"]
    ]
    return render(request, "search/page.html", {"found": kept, "groups": groups})


def _keep(request: PageRequest, found: verbs.Found) -> str:
    kept = {
        "taken_for": found.taken_for,
        "groups": [
            (group.title, group.more, [(hit.of, hit.key, hit.name, hit.says) for hit in group.hits])
            for group in found.groups
        ],
        "answers": [(str(answer.device), answer.device.vault.name, answer.cause) for answer in found.answers],
    }
    key = secrets.token_hex(8)
    before = list(request.session.get("searches", {}).items())
    request.session["searches"] = dict([*before[1 - MOST_KEPT :], (key, kept)])
    return key


# of what a hit is -> its page; a hit's key holds nothing that is not in the database
PAGES: dict[str, Callable[..., str]] = {
    "lease": lambda pk: reverse("leases-detail", args=[pk]),
    "pod": lambda cluster, uid: reverse("pods-detail", args=[cluster, uid]),
    "service account": lambda cluster, namespace, name: (
        addresses.of_account(cluster, namespace, name)
        # a finding or a login may not tell the cluster
        or _list("leases", state="any", namespace=namespace, service_account=name)
    ),
    "event": lambda vault, request_id: reverse("events-detail", args=[vault, request_id]),
    "login": lambda pk: _list("events", login=pk, own="any"),
    "identity": lambda name: _list("events", identity=name),
    "path": lambda path: _list("events", path=path),
    "address": lambda address: _list("events", address=address),
    "database": lambda pk: reverse("databases-detail", args=[pk]),
    "action": lambda pk: reverse("actions-receipt", args=[pk]),
}


def address_of(hit: Hit) -> str:
    """Of a hit's page; empty where a name in it has a slash."""
    try:
        return PAGES[hit.of](*hit.key)
    except NoReverseMatch:
        return ""


def _list(name: str, **filters: str) -> str:
    return f"{reverse(name)}?{urlencode(filters)}"
