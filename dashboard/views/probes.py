"""For machines: is the process up, is it of use, and what are the numbers. No log-in, so no addresses and no identities."""

import redis
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import Error
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

import audit.queries
from dashboard.metrics import LedgerCollector
from dashboard.views.errors import probe_unavailable
from leases import queries
from leases.queries import Source
from leases.version import VERSION


@login_not_required
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"ok": True, "version": VERSION})


@login_not_required
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    try:
        others = queries.sources(now=now)
        streams = audit.queries.stream_statuses(now=now)
        logs = audit.queries.database_logs(now=now)
    except Error as error:
        return probe_unavailable(error)
    answer: dict[str, object] = {"database": {"ok": True}, "broker": _broker()}
    for kind in ("vault", "cluster", "database"):
        answer[f"{kind}s"] = {source.name: _told(source) for source in others if source.kind == kind}
    answer["streams"] = {
        status.source.name: _told(status.source)
        | {"lag_seconds": round(status.lag_seconds, 3), "lag_bytes": status.stream.unread_bytes}
        for status in streams
    }
    answer["database_logs"] = {
        status.log.path: _told(status.source)
        | {"lag_seconds": round(status.lag_seconds, 3), "lag_bytes": status.log.unread_bytes}
        for status in logs
    }
    followed = [status.source for status in streams] + [status.source for status in logs]
    ready = bool(_broker_ok(answer)) and all(source.ok for source in [*others, *followed])
    return JsonResponse({"ready": ready, "version": VERSION, **answer}, status=200 if ready else 503)


@login_not_required
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(now=timezone.now()))
    try:
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
    except Error as error:
        return probe_unavailable(error)


def _told(source: Source) -> dict[str, object]:
    told: dict[str, object] = {"ok": source.ok, "status": source.status}
    return told if not source.cause else told | {"cause": source.cause, "fix": source.fix}


def _broker() -> dict[str, object]:
    try:
        with redis.Redis.from_url(settings.CELERY_BROKER_URL, socket_connect_timeout=1, socket_timeout=1) as broker:
            broker.ping()
    except redis.AuthenticationError:
        return {
            "ok": False,
            "cause": "The broker refuses the log-in",
            "fix": "Check the password in LEASEHOLD_BROKER_URL.",
        }
    except redis.RedisError:
        return {
            "ok": False,
            "cause": "The broker does not answer",
            "fix": "See that Redis or Valkey runs and that LEASEHOLD_BROKER_URL reaches it. Nothing is lost meanwhile.",
        }
    return {"ok": True}


def _broker_ok(answer: dict[str, object]) -> bool:
    return answer["broker"] == {"ok": True}
