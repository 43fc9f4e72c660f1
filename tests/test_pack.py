"""Evidence packs as they are made: what is in them, what they say of themselves, and that they are made the same way each time."""

import ast
import csv
import hashlib
import io
import json
import os
import stat
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from audit import exports
from audit.models import Coverage, Gap, Stream
from audit.pack import verifier
from leases.models import Action, ActionStep, Lease, Policy
from tests import factories, packs
from tests.packs import END, HOUR, START, report, run_verifier

# a pack is read in a transaction of its own
pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


@pytest.fixture
def streams() -> list[Stream]:
    return packs.watched()


def told(pack: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(dict(packs.files_of(pack))["manifest.json"])
    return manifest


def rows(pack: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(dict(packs.files_of(pack))[name].decode(), newline="")))


# what is in it


def test_a_pack_of_a_log_without_a_fault_is_complete_signed_and_verifies_elsewhere(
    streams: list[Stream], tmp_path: Path
) -> None:
    fingerprint = packs.signing_key(tmp_path)
    made = report(tmp_path / "out")
    assert made.manifest.completeness.complete, made.manifest.completeness.reasons
    assert made.manifest.completeness.word.startswith("Complete: every hour of each of 2 streams was read")
    code, said = run_verifier(tmp_path, "--fingerprint", fingerprint, made.path)
    assert (code, said.splitlines()[0]) == (0, f"intact, signed by {fingerprint} (pinned)")
    assert "Complete: every hour" in said
    code, said = run_verifier(tmp_path, made.path)
    assert (code, said.splitlines()[0]) == (0, "intact, signer unverified")
    assert fingerprint in said


def test_its_accesses_are_those_of_the_period_and_no_others(streams: list[Stream], tmp_path: Path) -> None:
    made = report(
        tmp_path / "out", from_at=START + timedelta(minutes=20), to_at=START + timedelta(minutes=50, seconds=1)
    )
    assert [row["lease_id"] for row in rows(made.path, "accesses.csv")] == [
        "database/creds/orders-rw/1020",
        "database/creds/orders-rw/1035",
    ]
    assert {(row["pod"], row["certainty"], row["database"]) for row in rows(made.path, "accesses.csv")} == {
        ("web-1020", "exact", "orders"),
        ("web-1035", "exact", "orders"),
    }


def test_the_manifest_lists_each_file_with_its_checksum_and_its_rows(streams: list[Stream], tmp_path: Path) -> None:
    factories.finding(first_seen_at=START + HOUR, last_seen_at=START + 2 * HOUR)
    made = report(tmp_path / "out")
    files, manifest = dict(packs.files_of(made.path)), told(made.path)
    listed = {file["name"]: file for file in manifest["files"]}
    assert set(files) == {*listed, "manifest.json"}
    for name, file in listed.items():
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(files[name]).hexdigest(), len(files[name]))
        if name.endswith(".csv"):
            assert file["rows"] == len(rows(made.path, name))
    assert {name: file["rows"] for name, file in listed.items() if name.endswith(".csv")} | {"sessions.csv": 0} == {
        "accesses.csv": 12,
        "workloads.csv": 1,
        "sample.csv": 12,
        "leases.csv": 12,
        "actions.csv": 0,
        "findings.csv": 1,
        "sessions.csv": 0,
        "events.csv": 24,
        "coverage.csv": 6,
        "gaps.csv": 0,
    }
    assert ("sessions.csv" in listed) == ("sessions" in exports.KINDS)
    assert (manifest["from"], manifest["to"], manifest["made_by"]) == (
        "2026-11-20T10:00:00Z",
        "2026-11-20T13:00:00Z",
        "ann",
    )
    assert (manifest["figures"]["first_event_at"], manifest["figures"]["last_access_at"]) == (
        "2026-11-20T10:05:00Z",
        "2026-11-20T12:50:01Z",
    )


def test_it_names_the_blocks_that_hold_the_lines_of_the_period(streams: list[Stream], tmp_path: Path) -> None:
    chains = report(tmp_path / "out").manifest.chains
    # a block an hour, from an hour before the period to one after it; and one block with all of it
    assert [(chain.device, chain.start.sequence, chain.end.sequence, chain.made.sequence) for chain in chains] == [
        ("file-a", 1, 5, 5),
        ("file-b", 0, 1, 1),
    ]
    assert [(block.lines, block.sequence) for block in (chains[0].start, chains[0].made)] == [(16, 1), (80, 5)]
    stream = Stream.objects.get(device__name="file-a")
    assert chains[0].made.sha256 == stream.head
    assert chains[0].start.sha256 == stream.blocks.get(sequence=1).sha256


def test_an_empty_period_still_makes_a_pack_that_verifies(streams: list[Stream], tmp_path: Path) -> None:
    fingerprint = packs.signing_key(tmp_path)
    made = report(tmp_path / "out", from_at=START + timedelta(minutes=6), to_at=START + timedelta(minutes=7))
    assert (made.manifest.figures.accesses, made.manifest.sample.rows) == (0, [])
    assert made.manifest.completeness.complete
    assert run_verifier(tmp_path, "--fingerprint", fingerprint, made.path)[0] == 0


def test_a_pack_of_a_database_that_has_seen_nothing_says_so(tmp_path: Path) -> None:
    made = report(tmp_path / "out")
    assert made.manifest.completeness.reasons == ["No stream was read in this period."]
    assert run_verifier(tmp_path, made.path)[0] == 2


def test_its_readme_says_in_words_what_the_manifest_says_in_figures(streams: list[Stream], tmp_path: Path) -> None:
    Gap.objects.create(
        stream=streams[0], kind="replaced", from_at=START, to_at=START + HOUR, what="another file", at=START
    )
    lease = Lease.objects.filter(accessed_at__gte=START).order_by("accessed_at")[0]
    action = factories.action(lease, ago=(timezone.now() - START - HOUR).total_seconds(), state="verified")
    factories.step(action, lease, "database user gone", after=2)
    factories.finding(first_seen_at=START, last_seen_at=START)
    text = dict(packs.files_of(report(tmp_path / "out").path))["README.txt"].decode()
    for said in [
        "Period    2026-11-20T10:00:00Z to 2026-11-20T13:00:00Z, the end not included",
        "This pack does not call itself complete, for 1 reason that it names.",
        "- demo/file-a/bao-0, 2026-11-20T10:00:00Z to 2026-11-20T11:00:00Z: replaced: another file.",
        "demo/file-a/bao-0 (followed): 48 lines, 24 pairs, 0 unpaired, 0 rejected",
        "Pods of cluster demo: watched without a gap",
        "Sessions of demo/database/orders: sampled for 0 s, its log read for 0 s of the period; nothing is known of the use",
        "exact                   12  100.00 %  the login itself names the pod",
        "demo/database/orders: 12 accesses by 1 service accounts, 12 pods",
        "12 leases issued: no lifetime is known; no limit is set, 12 of unknown lifetime",
        "12  demo shop/web: demo/database/orders",
        "time to contain: 2 s the fastest, 2 s the median, 2 s the slowest",
        "1  findings: holder unknown (medium), 1 of them still open",
        "accesses.csv    each read of database credentials: who, when, from where, how surely that is known (12 rows)",
    ]:
        assert said in text, text


# the sample


def test_the_sample_can_be_drawn_again_from_the_table_as_verify_txt_says(streams: list[Stream], tmp_path: Path) -> None:
    for number in range(40):
        factories.lease(now=START + HOUR, age=number + 1, certainty_reason='a "quoted"\nreason, of two lines')
    made = report(tmp_path / "out")
    files, manifest = dict(packs.files_of(made.path)), told(made.path)
    population = hashlib.sha256(files["accesses.csv"]).hexdigest()
    seed = hashlib.sha256(
        f"leasehold sample 1\n{manifest['from']}\n{manifest['to']}\n{population}\n".encode()
    ).hexdigest()
    accesses = rows(made.path, "accesses.csv")
    numbers = range(1, len(accesses) + 1)
    drawn = sorted(sorted(numbers, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest())[:25])
    assert len(accesses) == 52
    assert manifest["sample"] == {"size": 25, "seed": seed, "rows": drawn}
    assert rows(made.path, "sample.csv") == [{"row": str(n), **accesses[n - 1]} for n in drawn]


# made the same way each time


def test_the_same_data_and_parameters_give_the_same_tables_to_the_byte(streams: list[Stream], tmp_path: Path) -> None:
    packs.signing_key(tmp_path)
    factories.finding(closed=True, first_seen_at=START, closed_at=START + HOUR, last_seen_at=START)
    first, second = (dict(packs.files_of(report(tmp_path / name).path)) for name in ("one", "two"))
    tables = {name for name in first if name.endswith(".csv")}
    assert len(tables) >= 8
    assert {name for name in first if first[name] != second[name]} == {
        "manifest.json",
        "manifest.sig",
        "README.txt",
        "report.pdf",
    }
    # a pack is another one only by what it says of its own making
    parts = [json.loads(files["manifest.json"]) for files in (first, second)]
    for part in parts:
        part["files"] = [file for file in part["files"] if file["name"] not in ("README.txt", "report.pdf")]
    assert [key for key in parts[0] if parts[0][key] != parts[1][key]] == ["report_id"]


def test_the_zip_has_the_periods_time_and_nothing_of_this_machine(streams: list[Stream], tmp_path: Path) -> None:
    made = report(tmp_path / "out")
    with zipfile.ZipFile(made.path) as pack:
        for info in pack.infolist():
            assert (info.date_time, info.extra, info.comment) == ((2026, 11, 20, 10, 0, 0), b"", b"")
    assert made.path.name.startswith("leasehold-evidence-20261120T100000Z-20261120T130000Z-")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_everything_is_read_as_of_one_moment(
    streams: list[Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exports.write

    def interrupted(kind: str, *given: Any, **more: Any) -> exports.Written:
        written = write(kind, *given, **more)
        # another connection, whose change is there at once for everybody else
        if kind == "accesses":
            with_other_connection("UPDATE leases_lease SET pod = 'forged' WHERE pod <> ''")
        return written

    monkeypatch.setattr(exports, "write", interrupted)
    made = report(tmp_path / "out")
    assert Lease.objects.filter(pod="forged").count() == 20
    assert {row["pod"] for row in rows(made.path, "leases.csv")} == {
        row["pod"] for row in rows(made.path, "accesses.csv")
    }
    assert "forged" not in {row["pod"] for row in rows(made.path, "leases.csv")}


def with_other_connection(statement: str) -> None:
    from django.db import connections

    with connections["owner"].cursor() as cursor:
        cursor.execute(statement)


def test_hostile_cells_stay_cells_and_can_do_nothing_to_a_spreadsheet_or_a_terminal(
    streams: list[Stream], tmp_path: Path
) -> None:
    hostile = ['=cmd|"/c calc"!A1', "+1", "@SUM(A1)", "-2", 'a"b,c\nd\r\ne', "\x1b[2Jgone", "ünï\u202ecod", "\t=1"]
    for number, text in enumerate(hostile):
        factories.lease(
            now=START + HOUR, age=number + 1, role=text, certainty_reason=text, lease_id=f"database/creds/x/{number}"
        )
    Stream.objects.filter(device__name="file-a").update(node="bao\n- Complete: \x1b[1m")
    fingerprint = packs.signing_key(tmp_path)
    made = report(tmp_path / "out")
    found = {row["certainty_reason"] for row in rows(made.path, "accesses.csv")}
    assert {f"'{text}" if text[0] in "=+-@\t" else text for text in hostile} <= found
    assert made.manifest.files[0].rows == 20
    readme = dict(packs.files_of(made.path))["README.txt"].decode()
    assert "\x1b" not in readme
    assert "\n- Complete" not in readme
    code, said = run_verifier(tmp_path, "--fingerprint", fingerprint, made.path)
    assert (code, "\x1b" in said) == (0, False)


# its making


def test_the_making_is_an_action_that_keeps_the_packs_checksum(
    streams: list[Stream], tmp_path: Path, viewer: Client
) -> None:
    made = report(tmp_path / "out")
    action = Action.objects.get()
    assert (action.kind, action.by, action.reason, str(action.pk)) == (
        "report",
        "ann",
        "audit",
        told(made.path)["report_id"],
    )
    step = ActionStep.objects.get()
    sha256 = hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert (step.outcome, step.detail) == (
        "ok",
        f"{made.path.name}, {made.path.stat().st_size} bytes, SHA-256 {sha256}",
    )
    assert made.sha256 == sha256
    assert b"report" in viewer.get("/actions").content
    receipt = viewer.get(f"/actions/{action.pk}").content.decode()
    assert "Evidence pack of 2026-11-20T10:00:00Z to 2026-11-20T13:00:00Z" in receipt
    assert sha256 in receipt
    # and it stands in the export of actions, as others do
    out = io.BytesIO()
    exports.write("actions", out, from_at=action.at, to_at=action.at + HOUR, form="ndjson")
    row = json.loads(out.getvalue())
    assert (row["kind"], row["by"]) == ("report", "ann")


def test_a_pack_that_cannot_be_made_leaves_no_file_and_says_that_it_failed(
    streams: list[Stream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **more: Any) -> exports.Written:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "write", failing)
    with pytest.raises(CommandError, match=r"cannot be written to .*No space left on device.*has room"):
        call_command("report", "--from", str(START), "--to", str(END), "--output", tmp_path)
    assert [(step.outcome, step.detail) for step in ActionStep.objects.all()] == [
        ("failed", "OSError: it was not made")
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named_before_anything_is_done(streams: list[Stream], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file or directory"):
        call_command("report", "--from", str(START), "--to", str(END), "--output", tmp_path / "none")
    assert not Action.objects.exists()


def test_a_key_that_cannot_be_read_makes_no_pack(streams: list[Stream], tmp_path: Path) -> None:
    Policy.objects.update_or_create(pk=1, defaults={"heads_key": {"file": str(tmp_path / "none")}})
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("report", "--from", str(START), "--to", str(END), "--output", tmp_path)
    assert not Action.objects.exists()
    assert os.listdir(tmp_path) == []


def test_without_a_key_the_pack_says_everywhere_that_it_is_not_signed(streams: list[Stream], tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("report", "--from", str(START), "--to", str(END), "--output", tmp_path, stdout=out, stderr=err)
    assert end.value.code == 2
    assert "NOT SIGNED" in err.getvalue()
    (pack,) = tmp_path.iterdir()
    assert "NOT SIGNED" in dict(packs.files_of(pack))["README.txt"].decode()
    code, said = run_verifier(tmp_path, pack)
    assert (code, said.splitlines()[0]) == (2, "intact, not signed: anybody can have made it")
    code, said = run_verifier(tmp_path, "--fingerprint", "0" * 64, pack)
    assert (code, said.splitlines()[0]) == (
        1,
        "ALTERED  it is not signed, though it should be by one of the keys that were given",
    )


@pytest.mark.parametrize(
    "period", [("2026-11-20", "2026-11-20"), ("2026-11-21", "2026-11-20"), ("1970-01-01", "2026-11-20")]
)
def test_a_period_that_is_none_is_refused(period: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--from must be before --to"):
        call_command("report", "--from", period[0], "--to", period[1], "--output", tmp_path)


def test_the_table_of_hours_and_the_table_of_gaps_have_all_of_it(streams: list[Stream], tmp_path: Path) -> None:
    Gap.objects.create(stream=streams[0], kind="replaced", from_at=START, to_at=START + HOUR / 2, what="x", at=START)
    Coverage.objects.update(lag_seconds=0.2)
    made = report(tmp_path / "out")
    hours = rows(made.path, "coverage.csv")
    assert [(row["device"], row["state"]) for row in hours] == [("file-a", "gap")] + [("file-a", "complete")] * 2 + [
        ("file-b", "complete")
    ] * 3
    assert {(row["lines"], row["pairs"], row["unpaired"]) for row in hours} == {("16", "8", "0")}
    (gap,) = rows(made.path, "gaps.csv")
    assert (gap["from"], gap["to"], gap["device"], gap["closed"]) == (
        "2026-11-20T10:00:00.000000Z",
        "2026-11-20T10:30:00.000000Z",
        "file-a",
        "False",
    )


def test_the_verifier_in_the_pack_is_the_one_of_the_source(streams: list[Stream], tmp_path: Path) -> None:
    files = dict(packs.files_of(report(tmp_path / "out").path))
    source = Path(verifier.__file__).read_bytes()
    assert files["verify.py"] == source
    # as old as its first line says
    ast.parse(source, feature_version=(3, 9))
