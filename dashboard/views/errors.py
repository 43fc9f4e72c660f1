"""Pages for what went wrong. They must not need what is broken: no query, no session, no second error."""

import logging
import sys

from django.db import InterfaceError, OperationalError, ProgrammingError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string

from dashboard.access import GroupNeeded

log = logging.getLogger(__name__)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return HttpResponse(render_to_string("400.html", {"what": str(exception)}), status=400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    needed = exception if isinstance(exception, GroupNeeded) else None
    return render(request, "403.html", {"needed": needed}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    try:
        return render(request, "404.html", status=404)
    except (OperationalError, InterfaceError) as error:
        return unavailable(error)


def server_error(request: HttpRequest) -> HttpResponse:
    """500, or 503 with cause and fix where it is our own database that fails."""
    error = sys.exc_info()[1]
    if explain(error):
        return unavailable(error)
    return HttpResponse(render_to_string("500.html"), status=500)


def unavailable(error: BaseException | None) -> HttpResponse:
    cause, fix = explain(error) or ("", "")
    log.error("own database: %s", cause)
    page = HttpResponse(render_to_string("503.html", {"cause": cause, "fix": fix}), status=503)
    page["Retry-After"] = "5"
    page["Cache-Control"] = "no-store"
    return page


def explain(error: BaseException | None) -> tuple[str, str] | None:
    """Cause and fix of a failing own database; None if the error is about something else.

    SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    if not isinstance(error, OperationalError | InterfaceError | ProgrammingError):
        return None
    state = getattr(error.__cause__, "sqlstate", None) or ""
    if isinstance(error, ProgrammingError):
        if state in {"42P01", "42703"}:
            return (
                "The database has no tables of this version",
                "Run manage.py migrate, with LEASEHOLD_OWNER_DATABASE_URL set.",
            )
        if state == "42501":
            return (
                "The database refuses a right to the application's role",
                "Run manage.py migrate: migrations grant them.",
            )
        return None
    if state.startswith("28"):
        return "The database refuses the application's log-in", "Check user and password in LEASEHOLD_DATABASE_URL."
    if state == "3D000":
        return (
            "The database does not exist",
            "Make it (docs/install.md) and run manage.py migrate, or mend LEASEHOLD_DATABASE_URL.",
        )
    if state == "53300":
        return "The database takes no more connections", "Raise PostgreSQL's max_connections, or run fewer workers."
    if state.startswith("57P"):
        return "The database is starting up or shutting down", "Wait a moment; if it stays, look at PostgreSQL's log."
    if state == "55P03":
        return (
            "The database kept a query waiting on a lock",
            "Look for a long transaction in pg_stat_activity; a migration may run.",
        )
    if state.startswith("53"):
        return "The database has run out of disk or memory", "Look at PostgreSQL's log and free what it names."
    return (
        "The database does not answer",
        "See that PostgreSQL runs and that host and port in LEASEHOLD_DATABASE_URL reach it from here.",
    )


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return render(request, "403.html", {"csrf": True}, status=403)


def probe_unavailable(error: BaseException) -> JsonResponse:
    cause, fix = explain(error) or ("The database answers with an error", "Look at the log of this process.")
    return JsonResponse({"ready": False, "database": {"ok": False, "cause": cause, "fix": fix}}, status=503)
