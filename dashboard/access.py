"""Who may do what: two groups, three rules, and the refusal that names the missing group. No models, no templates."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django_htmx.middleware import HtmxDetails

VIEWER = "viewer"
RESPONDER = "responder"
GROUPS = (VIEWER, RESPONDER)

P = ParamSpec("P")
T = TypeVar("T")


class PageRequest(HttpRequest):
    """A request behind the log-in."""

    user: User
    htmx: HtmxDetails


class GroupNeeded(PermissionDenied):
    """The user lacks a group; the 403 page says which, and who can give it."""

    def __init__(self, group: str, held: frozenset[str]) -> None:
        super().__init__(f"this needs the group {group}")
        self.group = group
        self.held = held


def groups(request: HttpRequest) -> frozenset[str]:
    """The groups of the logged-in user that mean something here; asked once per request."""
    found: frozenset[str] | None = getattr(request, "leasehold_groups", None)
    if found is None:
        user = request.user
        names = user.groups.filter(name__in=GROUPS).values_list("name", flat=True) if user.is_authenticated else ()
        found = frozenset(names) if user.is_active else frozenset()
        request.leasehold_groups = found  # type: ignore[attr-defined]
    return found


def may_read(held: frozenset[str]) -> bool:
    """Viewers and responders see everything."""
    return bool(held & {VIEWER, RESPONDER})


def may_revoke(held: frozenset[str]) -> bool:
    """Only responders end a lease."""
    return RESPONDER in held


def may_close_findings(held: frozenset[str]) -> bool:
    """Only responders say that a finding needs nothing more."""
    return RESPONDER in held


Rule = Callable[[frozenset[str]], bool]
NEEDED: dict[Rule, str] = {may_read: VIEWER, may_revoke: RESPONDER, may_close_findings: RESPONDER}


def require(request: HttpRequest, rule: Rule) -> None:
    """Raises GroupNeeded unless the rule holds for the user's groups."""
    held = groups(request)
    if not rule(held):
        raise GroupNeeded(NEEDED[rule], held)


def needs(
    rule: Rule,
) -> Callable[[Callable[Concatenate[PageRequest, P], HttpResponse]], Callable[Concatenate[Any, P], HttpResponse]]:
    """Puts a rule on a view. Pages with somebody's holdings are not kept by any cache, nor by the Back button."""

    def decorate(
        view: Callable[Concatenate[PageRequest, P], HttpResponse],
    ) -> Callable[Concatenate[Any, P], HttpResponse]:
        @wraps(view)
        def guarded(request: Any, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            require(request, rule)
            return view(request, *args, **kwargs)

        guarded.rule = rule  # type: ignore[attr-defined]
        return never_cache(guarded)

    return decorate
