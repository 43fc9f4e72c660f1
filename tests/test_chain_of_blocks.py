"""The chain of raw blocks: what somebody with the owner's rights changes behind the product's back is named."""

import io
import json

import pytest
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from audit import blocks
from audit.follow import Chunk, Position
from audit.ingest import ingest
from audit.management.commands.ingest import stream_named
from audit.models import RawBlock, Stream

# committed for real: another connection, the owner's, has to see and change it
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "owner"])


@pytest.fixture
def stream() -> Stream:
    """A stream of five blocks with one line each."""
    made = stream_named("v", "d", "n")
    position = 0
    for number in range(5):
        entry = {
            "time": "2026-11-20T10:00:00Z",
            "type": "request",
            "request": {"id": str(number), "path": "sys/mounts"},
        }
        line = json.dumps(entry).encode() + b"\n"
        ingest(
            made.pk, Chunk(line, position, Position(offset=position + len(line)), 0), expected=None, now=timezone.now()
        )
        position += len(line)
    return Stream.objects.select_related("device__vault").get(pk=made.pk)


def as_owner(statement: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(statement)


def test_an_untouched_chain_holds(stream: Stream) -> None:
    assert blocks.verify(stream) == blocks.Verified(None, 5, 0)
    call_command("verify-chain", stdout=io.StringIO())


@pytest.mark.parametrize(
    ("statement", "block", "what"),
    [
        (
            "UPDATE audit_blocklines SET data = (SELECT data FROM audit_blocklines WHERE sequence = 1) WHERE sequence = 3",
            3,
            "altered",
        ),
        ("UPDATE audit_blocklines SET data = 'x' WHERE sequence = 2", 2, "altered"),
        ("UPDATE audit_rawblock SET lines_sha256 = repeat('0', 64) WHERE sequence = 2", 2, "altered"),
        ("UPDATE audit_rawblock SET offset_to = offset_to + 1 WHERE sequence = 4", 4, "altered"),
        ("UPDATE audit_rawblock SET salt_epoch = 2 WHERE sequence = 4", 4, "altered"),
        ("DELETE FROM audit_rawblock WHERE sequence = 2", 2, "removed"),
        ("DELETE FROM audit_rawblock WHERE sequence = 5", 5, "removed"),
        ("DELETE FROM audit_rawblock WHERE sequence = 1", 1, "removed"),
        (
            "INSERT INTO audit_rawblock (stream_id, sequence, offset_from, offset_to, lines, previous, sha256, at, size,"
            " salt_epoch, until, lines_sha256) SELECT stream_id, 6, offset_from, offset_to, lines, sha256, 'made up', at, size, salt_epoch,"
            " until, lines_sha256 FROM audit_rawblock WHERE sequence = 5",
            6,
            "altered",
        ),
    ],
)
def test_what_was_done_behind_the_products_back_is_named(stream: Stream, statement: str, block: int, what: str) -> None:
    as_owner(statement)
    output = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("verify-chain", json=True, stdout=output)
    result = json.loads(output.getvalue())[0]
    assert (result["ok"], result["block"]) == (False, block)
    assert what in result["what"]


def test_each_block_holds_its_lines(stream: Stream) -> None:
    assert [(blocks.lines_of(block) or b"").count(b"\n") for block in RawBlock.objects.order_by("sequence")] == [1] * 5
