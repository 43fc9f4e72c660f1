"""A large batch is stored as if all of it were new; that must not be seen in what is stored."""

import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command

from audit import follow
from audit.ingest import MANY, ingest
from audit.management.commands.ingest import stream_named
from audit.models import Event, Sighting, Stream
from audit.secrets import RawSecret
from tests.dump import dump

pytestmark = pytest.mark.django_db

SESSION = (Path(__file__).parent / "data" / "session.ndjson").read_bytes().splitlines()
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def log(requests: int, *, begin: datetime) -> list[bytes]:
    """Whole requests, one a second, each as its two lines."""
    lines = []
    pair = [line for line in SESSION if b"4cd91c5d-33e4-2f1d-6d01-72290d9177ab" in line]
    assert len(pair) == 2
    for number in range(requests):
        at = begin + timedelta(seconds=number)
        for half, line in enumerate(pair):
            stamp = (at + timedelta(milliseconds=half)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
            line = re.sub(rb'"time":"[^"]+"', b'"time":"' + stamp + b'"', line)
            lines.append(line.replace(b"4cd91c5d-33e4", b"%08x-33e4" % number))
    return lines


def take(stream: Stream, lines: list[bytes]) -> tuple[int, int, int]:
    text = b"\n".join(lines) + b"\n"
    chunk = follow.Chunk(text, 0, follow.Position(offset=len(text)), 0)
    counts = ingest(stream.pk, chunk, expected=None, now=NOW)
    assert counts.adds_up
    return counts.parts, counts.duplicates, counts.conflicts


def test_a_large_batch_that_is_known_already_changes_nothing() -> None:
    stream, lines = stream_named("v", "d", "n"), log(MANY + 100, begin=NOW - timedelta(hours=3))
    assert take(stream, lines) == (len(lines), 0, 0)
    before = dump(stream.device.vault)
    assert take(stream, lines) == (0, len(lines), 0)
    assert take(stream, lines) == (0, len(lines), 0)
    assert dump(stream.device.vault) == before


def test_a_large_batch_of_another_device_adds_its_sightings_alone() -> None:
    lines = log(MANY + 100, begin=NOW - timedelta(hours=3))
    take(stream_named("v", "d", "n"), lines)
    assert take(stream_named("v", "e", "n"), lines) == (len(lines), 0, 0)
    assert (Event.objects.count(), Sighting.objects.count()) == (len(lines) // 2, len(lines))


def test_one_known_request_among_many_new_ones_is_found() -> None:
    stream, lines = stream_named("v", "d", "n"), log(MANY + 100, begin=NOW - timedelta(hours=3))
    take(stream, lines[400:402])
    assert take(stream, lines) == (len(lines) - 2, 2, 0)
    assert Event.objects.count() == len(lines) // 2


def test_halves_that_two_large_batches_part_become_one_event() -> None:
    stream, lines = stream_named("v", "d", "n"), log(2 * MANY + 200, begin=NOW - timedelta(hours=3))
    middle = len(lines) // 2 + 1
    assert take(stream, lines[:middle]) == (middle, 0, 0)
    assert take(stream, lines[middle:]) == (len(lines) - middle, 0, 0)
    assert Event.objects.filter(has_request=True, response_at__isnull=False).count() == len(lines) // 2


@pytest.mark.parametrize("seconds", [0.0005, 1.0])
def test_a_request_that_another_device_tells_beyond_midnight_is_one_event(seconds: float) -> None:
    midnight = datetime(2026, 11, 25, tzinfo=UTC)
    early = log(MANY + 100, begin=midnight - timedelta(seconds=MANY // 2))
    late = log(MANY + 100, begin=midnight - timedelta(seconds=MANY // 2) + timedelta(seconds=seconds))
    take(stream_named("v", "d", "n"), late)
    take(stream_named("v", "e", "n"), early)
    assert Event.objects.count() == MANY + 100
    assert Event.objects.order_by("at").values_list("at", flat=True)[0] == midnight - timedelta(seconds=MANY // 2)


def test_a_file_taken_beside_a_followed_stream_leaves_its_position_alone(tmp_path: Path) -> None:
    stream = stream_named("v", "d", "n")
    Stream.objects.filter(pk=stream.pk).update(path=str(tmp_path / "audit.log"), offset=77, file_inode="1:2")
    (tmp_path / "restored.log").write_bytes(b"\n".join(log(3, begin=NOW - timedelta(hours=3))) + b"\n")
    call_command("ingest", str(tmp_path / "restored.log"), vault="v", device="d", node="n", stdout=io.StringIO())
    stream.refresh_from_db()
    assert (stream.parts, stream.offset, stream.file_inode, stream.read_at) == (6, 77, "1:2", None)


def test_a_refused_stream_takes_nothing_from_anywhere() -> None:
    stream = stream_named("v", "d", "n")
    Stream.objects.filter(pk=stream.pk).update(refused="auth.client_token stands in plain text")
    with pytest.raises(RawSecret, match=r"auth\.client_token"):
        take(stream, log(2, begin=NOW - timedelta(hours=3)))
    assert not Event.objects.exists()


def test_a_late_request_that_is_of_another_day_than_its_stored_response_is_one_event() -> None:
    stream = stream_named("v", "d", "n")
    lines = log(MANY + 10, begin=NOW - timedelta(hours=3))
    early = re.sub(rb'"time":"[^"]+"', b'"time":"2026-11-24T20:00:00.000000000Z"', lines[0])
    take(stream, [lines[1]])
    assert take(stream, [early, *lines[1:]]) == (len(lines) - 1, 1, 0)
    assert Event.objects.count() == MANY + 10
