"""How the product does what is measured: the only module of the bench that knows audit's and leases' insides.

Imported after django.setup(). Every vault is a name of its own, so that several logs can be in one database.
"""

from datetime import datetime
from pathlib import Path

from django.db.models import Count, Model
from django.db.models.fields.json import KT
from django.utils import timezone

from audit import follow
from audit.ingest import ingest
from audit.management.commands.ingest import stream_named
from audit.models import Event

# one row for each request stands here; the rows of all other tables follow from it
EVENTS = "audit_event"


def pipeline(path: Path, *, vault: str) -> int:
    """Ingests the file as one stream of that vault, as its worker does; gives the lines that were taken as event parts."""
    stream = stream_named(vault, "file", "node")
    position, lines = follow.Position(), 0
    while (chunk := follow.read(path, position)).lines:
        lines += ingest(stream.pk, chunk, expected=None, now=timezone.now()).parts
        position = chunk.position
    return lines


def timings() -> dict[str, float]:
    """Seconds that this process' pipeline spent in each step of its writer; empty where it does not say."""
    return {}


def requests(*, vault: str) -> int:
    """Events of that vault that have both halves."""
    return Event.objects.filter(vault__name=vault, request_at__isnull=False, response_at__isnull=False).count()


def accesses_per_service_account(*, vault: str, from_at: datetime, to_at: datetime) -> list[tuple[str, str, int]]:
    """(namespace/service account, path, credential reads that issued a lease in [from, to)), sorted."""
    rows = (
        Event.objects.filter(vault__name=vault, at__gte=from_at, at__lt=to_at, error="", path__contains="/creds/")
        .exclude(lease_id="")
        .exclude(path__startswith="sys/")
        .values_list(KT("metadata__service_account_namespace"), KT("metadata__service_account_name"), "path")
        .annotate(times=Count("id"))
    )
    return sorted((f"{namespace}/{name}", path, times) for namespace, name, path, times in rows)


def rows_for_bulk_create(count: int) -> list[Model]:
    """That many finished rows, as objects of their model."""
    return list(Event.objects.order_by("pk")[:count])
