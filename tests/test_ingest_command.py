"""`manage.py ingest`: many files in their order, seen to progress, stopped and resumed."""

import gzip
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from audit.blocks import lines_of
from audit.management.commands.ingest import Progress, stop_asked
from audit.models import RawBlock, Stream
from tests import factories
from tests.test_commands import log

pytestmark = pytest.mark.django_db


def entries(*hours: int) -> bytes:
    return b"".join(
        json.dumps(
            {
                "time": f"2026-11-20T{hour:02}:00:00.5Z",
                "type": "request",
                "auth": {"client_token": "hmac-sha256:aa", "accessor": "hmac-sha256:bb"},
                "request": {"id": f"r-{hour}", "operation": "read", "path": "secret/x"},
            }
        ).encode()
        + b"\n"
        for hour in hours
    )


def take(*files: object, **options: Any) -> tuple[dict[str, Any], str]:
    """The result, and what was written to stderr."""
    out, err = io.StringIO(), io.StringIO()
    call_command("ingest", *map(str, files), vault="v", device="d", json=True, stdout=out, stderr=err, **options)
    return json.loads(out.getvalue()), err.getvalue()


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    (tmp_path / "audit.log.10.gz").write_bytes(gzip.compress(entries(1, 2)))
    (tmp_path / "audit.log.9").write_bytes(entries(3, 4))
    (tmp_path / "audit.log").write_bytes(entries(5, 6))
    return tmp_path


def test_a_quoted_glob_is_expanded_and_taken_in_the_order_of_writing(rotated: Path) -> None:
    result, errors = take(rotated / "audit.log*")
    assert (result["lines"], result["rejected"], errors) == (6, 0, "")
    assert [block.offset_from for block in RawBlock.objects.order_by("sequence")] == [0, 0, 0]
    blocks = [lines_of(block) or b"" for block in RawBlock.objects.order_by("sequence")]
    assert re.findall(rb"r-\d+", b"".join(blocks)) == [b"r-%d" % n for n in range(1, 7)]
    assert factories.request_ids() == {f"r-{n}" for n in range(1, 7)}


def test_a_torn_last_line_counts_in_a_rotated_file_and_waits_in_a_live_one(rotated: Path) -> None:
    for name in ("audit.log.9", "audit.log"):
        with (rotated / name).open("ab") as file:
            file.write(b'{"torn')
    result, errors = take(rotated / "audit.log*")
    assert (result["lines"], result["rejected"]) == (7, 1)
    assert "audit.log: 6 bytes of a last line that has no end yet are left unread" in errors


def test_a_file_that_cannot_be_decompressed_is_named_and_the_others_are_taken(rotated: Path) -> None:
    packed = gzip.compress(entries(*range(7, 24)))
    (rotated / "audit.log.11.gz").write_bytes(packed[:-20])
    out = io.StringIO()
    with pytest.raises(CommandError, match=r"audit\.log\.11\.gz cannot be decompressed beyond its byte \d+"):
        call_command("ingest", str(rotated / "audit.log*"), vault="v", device="d", json=True, stdout=out)
    result = json.loads(out.getvalue())
    assert result["lines"] > 6
    assert "r-6" in factories.request_ids()


def test_a_name_without_a_file_is_refused_before_anything_is_taken(rotated: Path) -> None:
    with pytest.raises(CommandError, match="No file is named"):
        take(rotated / "audit.log", rotated / "nothing*")
    assert not Stream.objects.exists()


def test_progress_is_shown_when_asked_for(rotated: Path) -> None:
    _, errors = take(rotated / "audit.log*", progress=True)
    assert errors.splitlines()[-1].startswith("audit.log: 100 % of ")


def test_the_time_left_follows_from_what_was_read_in_this_run() -> None:
    progress = Progress([1_000_000, 3_000_000], began=100.0, skipped=(1, 0))
    progress.reach(1, 1_000_000, 2_000_000)
    assert progress.text(160.0) == "50 % of 4.0 MB, 2 min left"
    assert progress.due(160.0)
    assert not progress.due(160.5)


def test_ctrl_c_lets_the_chunk_in_hand_finish_and_a_second_one_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)

    def ask_twice() -> None:
        with stop_asked() as asked:
            assert not asked()
            os.kill(os.getpid(), signal.SIGINT)
            assert asked()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ask_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_stopped_is_resumed_without_reading_it_again(rotated: Path) -> None:
    files = [rotated / "audit.log.10.gz", rotated / "audit.log.9"]
    take(*files)
    with (rotated / "audit.log.9").open("ab") as file:
        file.write(entries(7))
    result, _ = take(rotated / "audit.log*", resume=True)
    assert (result["lines"], result["duplicates"]) == (3, 0)
    assert len(factories.request_ids()) == 7


def test_a_stream_cannot_be_resumed_in_other_files(rotated: Path, tmp_path: Path) -> None:
    take(rotated / "audit.log")
    with pytest.raises(CommandError, match="Leave out --resume"):
        take(log(tmp_path / "other"), resume=True)
