"""What every page shows: the time it was made at, who is logged in, where the sections are."""

from django.http import HttpRequest
from django.utils import timezone

from audit.findings import queries as findings
from dashboard import access

SECTIONS = (
    ("overview", "Overview"),
    ("leases", "Leases"),
    ("workloads", "Workloads"),
    ("databases", "Databases"),
    ("events", "Events"),
    ("findings", "Findings"),
    ("access", "Access"),
    ("review", "Review"),
    ("actions", "Actions"),
    ("sources", "Sources"),
)
# the key after g that leads there (static/js/keys.js); a section without one has none
KEYS = {
    "overview": "o",
    "search": "q",
    "leases": "l",
    "workloads": "w",
    "pods": "p",
    "databases": "d",
    "findings": "f",
    "events": "e",
    "access": "t",
    "review": "v",
    "actions": "a",
    "containments": "c",
    "sources": "s",
}


def page(request: HttpRequest) -> dict[str, object]:
    context: dict[str, object] = {"now": timezone.now()}
    # a page of an error that came before the session was read has no user
    if getattr(request, "user", None) is None or not request.user.is_authenticated:
        return context
    held = access.groups(request)
    sections = SECTIONS if access.may_read(held) else ()
    match = request.resolver_match
    return context | {
        "held_groups": [group for group in access.GROUPS if group in held],
        "sections": sections,
        "keys": [(KEYS[name], name, label) for name, label in sections if name in KEYS],
        "section": section_of(match.url_name or "") if match else "",
        "may_revoke": access.may_revoke(held),
        # asked for by the header, and by a part of a page that is sent again
        "open_findings": findings.open_by_severity,
    }


def section_of(name: str) -> str:
    """Which section an address belongs to, by its name."""
    section = name.partition("-")[0]
    return "actions" if section in {"plans", "containments"} else section
