"""How the product does what is measured: the only module of the bench that knows audit's and leases' insides.

Imported after django.setup(). Every vault is a name of its own, so that several logs can be in one database.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from django.db.models import Model
from django.utils import timezone

from audit import follow, queries
from audit.ingest import ingest_all
from audit.management.commands.ingest import stream_named
from audit.models import Event
from tests.bench import steps

# one row for each request stands here; the rows of all other tables follow from it
EVENTS = "audit_event"


def pipeline(path: Path, *, vault: str) -> int:
    """Ingests the file as one stream of that vault, as its worker does; gives the lines that were taken as event parts."""
    stream = stream_named(vault, "file", "node")
    backend = steps.watch()
    taken = sum(c.parts for _, c in ingest_all(stream.pk, chunks(path), expected=None, clock=timezone.now))
    steps.end(backend)
    return taken


def chunks(path: Path) -> Iterator[follow.Chunk]:
    position = follow.Position()
    while (chunk := follow.read(path, position, finished=True)).lines:
        yield chunk
        position = chunk.position


def timings() -> dict[str, float]:
    """Seconds of processor time that each step took, of this process and of the server's backend."""
    return dict(steps.seconds)


def requests(*, vault: str) -> int:
    """Events of that vault that have both halves."""
    return Event.objects.filter(vault__name=vault, has_request=True, response_at__isnull=False).count()


def accesses_per_service_account(*, vault: str, from_at: datetime, to_at: datetime) -> list[tuple[str, str, int]]:
    """(namespace/service account, path, credential reads that issued a lease in [from, to)), sorted."""
    return queries.accesses_by_service_account(vault=vault, from_at=from_at, to_at=to_at)


def rows_for_bulk_create(count: int) -> list[Model]:
    """That many finished rows, as objects of their model."""
    return list(Event.objects.order_by("at")[:count])
