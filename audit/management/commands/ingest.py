"""`manage.py ingest FILE… --vault V --device D [--node N] [--follow] [--json]`: takes audit logs from the command line."""

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q
from django.utils import timezone

from audit import follow
from audit.ingest import Counts, Rebuilding, ingest
from audit.models import Device, Event, Stream
from audit.secrets import RawSecret
from leases.models import Vault


class Command(BaseCommand):
    help = "Takes audit logs. Names that are not known yet are created, so that a foreign log can be examined."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
        parser.add_argument("--vault", required=True)
        parser.add_argument("--device", required=True)
        parser.add_argument("--node", default="command-line")
        parser.add_argument("--follow", action="store_true", help="go on with what is added to the last file")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        began = time.monotonic()
        stream = stream_named(options["vault"], options["device"], options["node"])
        events_before = Event.objects.filter(vault=stream.device.vault_id).count()
        counts = Counts()
        try:
            for path in options["files"]:
                take_file(stream, path, counts, keep_on=options["follow"] and path == options["files"][-1])
        except KeyboardInterrupt:
            self.stderr.write(
                "Stopped; what was read is kept, and a new start goes on without counting anything twice."
            )
        except Rebuilding as error:
            raise CommandError(f"{error} is being rebuilt; nothing can be taken in until that is over.") from error
        except (follow.FileUnavailable, RawSecret) as error:
            raise CommandError(
                str(error)
                if isinstance(error, follow.FileUnavailable)
                else f"{error.field} stands in plain text (log_raw?): nothing of this stream is stored."
            ) from error
        events = Event.objects.filter(vault=stream.device.vault_id)
        result = {
            **asdict(counts),
            "events": events.count() - events_before,
            "unpaired": events.filter(Q(has_request=False) | Q(response_at=None)).count(),
            "seconds": round(time.monotonic() - began, 3),
        }
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            self.stdout.write(", ".join(f"{name} {value}" for name, value in result.items()))


def stream_named(vault: str, device: str, node: str) -> Stream:
    vault_row, _ = Vault.objects.get_or_create(name=vault, defaults={"retired": True})
    device_row, _ = Device.objects.get_or_create(vault=vault_row, name=device)
    stream, _ = Stream.objects.get_or_create(device=device_row, node=node)
    return stream


def take_file(stream: Stream, path: Path, counts: Counts, *, keep_on: bool) -> None:
    """The whole file from its beginning: lines that are known already count as duplicates and change nothing."""
    position = follow.Position()
    while True:
        chunk = follow.read(path, position)
        if chunk.lines:
            counts.add(ingest(stream.pk, chunk, expected=None, now=timezone.now()))
        position = chunk.position
        if not chunk.lines:
            if not keep_on:
                return
            time.sleep(0.5)
