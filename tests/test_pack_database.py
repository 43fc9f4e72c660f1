"""A pack against the database that it was made from: what somebody with the owner's rights altered is named, what became known since is not."""

import contextlib
import hashlib
import io
import json
import resource
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.models import F

from audit import blocks
from audit.models import RawBlock, Stream
from audit.pack import against
from leases.models import Lease
from tests import packs
from tests.bench import scale
from tests.packs import END, HOUR, START, report

# committed for real: another connection, the owner's, has to see and change it
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "owner"])


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    packs.watched()
    packs.signing_key(tmp_path)
    return report(tmp_path / "out").path


def verify(pack: Path, *arguments: str) -> tuple[int, Any]:
    output, code = io.StringIO(), 0
    try:
        call_command("verify", str(pack), "--database", "--json", *arguments, stdout=output)
    except SystemExit as end:
        code = int(str(end.code))
    return code, json.loads(output.getvalue())


def as_owner(statement: str, *values: str | int | bytes) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(statement, values)


def broken(pack: Path) -> list[tuple[str, int, str]]:
    code, told = verify(pack)
    found = [(one["stream"], one["block"], one["what"]) for one in told["database"]["chains"] if one["block"]]
    assert code == bool(found)
    assert told["intact"], "the pack itself is as it was"
    return found


A = "demo/file-a/bao-0"
OF_A = "stream_id = (SELECT s.id FROM audit_stream s JOIN audit_device d ON d.id = s.device_id WHERE d.name = 'file-a')"


def test_a_database_that_is_as_it_was_holds(pack: Path) -> None:
    code, told = verify(pack)
    assert code == 0
    assert [(one["stream"], one["blocks"]) for one in told["database"]["chains"]] == [(A, 4), ("demo/file-b/bao-0", 1)]
    assert told["database"]["accesses"] == {
        "rows": 12,
        "same": 12,
        "changed": 0,
        "gone": 0,
        "new": 0,
        "complete": True,
        "told": [],
    }


@pytest.mark.parametrize(
    ("statement", "block", "what"),
    [
        (
            f"UPDATE audit_blocklines SET data = 'x' WHERE sequence = 3 AND {OF_A}",
            3,
            "altered: its lines cannot be decompressed",
        ),
        (
            f"UPDATE audit_blocklines SET data = (SELECT data FROM audit_blocklines WHERE sequence = 2 AND {OF_A})"
            f" WHERE sequence = 4 AND {OF_A}",
            4,
            "altered: its lines' hash is another one",
        ),
        (
            f"DELETE FROM audit_blocklines WHERE sequence = 2 AND {OF_A}",
            2,
            "removed: its lines are gone and nothing says where to",
        ),
        (f"UPDATE audit_rawblock SET offset_to = offset_to + 1 WHERE sequence = 3 AND {OF_A}", 3, "altered"),
        (f"DELETE FROM audit_rawblock WHERE sequence = 3 AND {OF_A}", 3, "removed"),
        (f"DELETE FROM audit_rawblock WHERE sequence = 5 AND {OF_A}", 5, "removed"),
        (
            "UPDATE audit_stream SET node = 'other' WHERE device_id = (SELECT id FROM audit_device WHERE name = 'file-a')",
            2,
            "is not in",
        ),
    ],
)
def test_a_raw_block_that_was_altered_by_the_owner_is_named(pack: Path, statement: str, block: int, what: str) -> None:
    as_owner(statement)
    ((stream, found, said),) = broken(pack)
    assert (stream, found) == (A, block)
    assert what in said


def test_a_block_of_before_the_period_is_another_ones_business(pack: Path) -> None:
    as_owner(f"UPDATE audit_blocklines SET data = 'x' WHERE sequence = 1 AND {OF_A}")
    assert broken(pack) == []


@pytest.mark.parametrize("of", [2, 4, 5])
def test_a_chain_that_was_written_anew_so_that_it_holds_in_itself_is_named(pack: Path, of: int) -> None:
    stream = Stream.objects.get(device__name="file-a")
    rewrite(stream, of=of)
    assert blocks.verify(Stream.objects.select_related("device__vault").get(pk=stream.pk)).broken is None
    # only the head is in the pack: some block before it is another one
    assert broken(pack) == [(A, 5, "is not the one that was there when the pack was made")]


def rewrite(stream: Stream, *, of: int) -> None:
    """As somebody with the owner's rights would: a line of block `of` is another one, and each hash from there on fits."""
    previous = RawBlock.objects.get(stream=stream, sequence=of).previous
    for block in RawBlock.objects.filter(stream=stream, sequence__gte=of).order_by("sequence"):
        lines = blocks.lines_of(block)
        assert lines is not None
        if block.sequence == of:
            lines = lines.replace(b"10.1.2.3", b"10.6.6.6")
            where = f"sequence = {of} AND {OF_A}"
            as_owner(f"UPDATE audit_blocklines SET data = %s WHERE {where}", zstandard.ZstdCompressor().compress(lines))
        lines_sha256 = hashlib.sha256(lines).hexdigest()
        digest = blocks.digest(
            previous=previous,
            stream=str(stream),
            sequence=block.sequence,
            offset_from=block.offset_from,
            offset_to=block.offset_to,
            lines=block.lines,
            salt_epoch=block.salt_epoch,
            lines_sha256=lines_sha256,
        )
        values = (previous, lines_sha256, digest, block.pk)
        as_owner("UPDATE audit_rawblock SET previous = %s, lines_sha256 = %s, sha256 = %s WHERE id = %s", *values)
        previous = digest
    as_owner("UPDATE audit_stream SET head = %s WHERE id = %s", previous, stream.pk)


def test_what_came_after_the_pack_does_not_matter_to_it(pack: Path) -> None:
    stream = Stream.objects.get(device__name="file-a")
    packs.take(stream, b"".join(packs.hour_of_lines(END + 2 * HOUR, "file-a")), now=END + 3 * HOUR)
    assert broken(pack) == []


def test_accesses_that_are_known_better_since_are_told_as_changed_and_nothing_is_wrong(pack: Path) -> None:
    first, second, third = Lease.objects.filter(accessed_at__gte=START).order_by("accessed_at")[:3]
    Lease.objects.filter(pk=first.pk).update(renewals=3, certainty_reason="=another")
    Lease.objects.filter(pk=second.pk).update(accessed_at=F("accessed_at") - timedelta(milliseconds=1))
    third.delete()
    stream = Stream.objects.get(device__name="file-a")
    packs.take(stream, b"".join(packs.access(START + timedelta(minutes=7), "file-a")), now=END + 3 * HOUR)
    code, told = verify(pack)
    assert code == 0
    rows = told["database"]["accesses"]
    assert {name: rows[name] for name in ("rows", "same", "changed", "gone", "new")} == {
        "rows": 12,
        "same": 9,
        "changed": 2,
        "gone": 1,
        "new": 1,
    }
    assert [(one["what"], one["lease_id"].rsplit("/")[-1], one["columns"]) for one in rows["told"]] == [
        ("changed", "1005", ["certainty_reason", "renewals"]),
        ("changed", "1020", ["accessed_at"]),
        ("not there any more", "1035", []),
        ("new", "1007", []),
    ]
    output = io.StringIO()
    call_command("verify", str(pack), "--database", stdout=output)
    assert "2 changed since: more became known, or the lease went on" in output.getvalue()
    assert "forged" not in output.getvalue()


def test_a_pack_that_was_altered_is_held_to_the_database_by_its_chains_alone(pack: Path, tmp_path: Path) -> None:
    files = packs.files_of(pack)
    altered = packs.written(tmp_path / "x.zip", packs.changed(files, "accesses.csv", lambda data: data[:-1]))
    code, told = verify(altered)
    assert (code, told["database"]["accesses"], told["database"]["ok"]) == (1, None, True)


def test_a_signer_is_pinned_and_misuse_is_told(pack: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    call_command("verify", str(pack), stdout=output)
    assert output.getvalue().startswith("intact, signer unverified")
    with contextlib.suppress(SystemExit):
        call_command("verify", str(pack), "--fingerprint", "0" * 64, stdout=output)
    assert "signed with another key" in output.getvalue()
    for arguments in (["--archive"], ["--fingerprint", "x"]):
        with pytest.raises(CommandError) as error:
            call_command("verify", str(pack), *arguments)
        assert error.value.returncode == 2
    with pytest.raises(CommandError, match="Nothing was proven"):
        call_command("verify", str(tmp_path / "none"))


def test_so_many_differences_that_they_would_fill_the_memory_end_the_comparison() -> None:
    def rows(of: str) -> Any:
        for number in range(80_000):
            yield {"accessed_at": f"{number:09}", "vault": of, "request_id": str(number), "lease_id": ""}

    found = against.compare(rows("a"), rows("b"), names=["accessed_at"])
    assert (found.complete, found.gone + found.new) == (False, against.MOST_HELD + 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_accesses_are_written_and_verified_with_constant_memory(tmp_path: Path) -> None:
    ground = scale.lay(leases=110_000)
    packs.signing_key(tmp_path)

    def peak(hours: int) -> tuple[int, int]:
        """Of this process so far, in MB, and how many accesses there were."""
        from_at = ground.to_at - hours * HOUR
        made = report(tmp_path / f"{hours}", from_at=from_at, to_at=ground.to_at, now=ground.to_at, with_events=False)
        assert verify(made.path)[0] == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, made.manifest.figures.accesses

    few, small = peak(60)
    many, large = peak(scale.DAYS * 24)
    assert small < 10_000 < 100_000 < large
    assert many - few < 30
