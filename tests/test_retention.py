"""Retention: days made ahead and dropped, raw lines moved to an archive with their chain, and nothing that goes without a record."""

import io
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from audit import blocks, doctor, partitions, parts, retention
from audit.archive import Archive, ArchiveUnavailable, Bucket, Folder, keep, named
from audit.follow import Chunk, Position
from audit.ingest import Counts, ingest
from audit.management.commands.ingest import stream_named
from audit.models import (
    Coverage,
    DatabaseLog,
    Dropped,
    Ending,
    Event,
    Hourly,
    Housekeeping,
    Moved,
    RawBlock,
    Sighting,
    Stream,
)
from audit.tasks import keep_house as keep_house_task
from demo import processes
from leases import session_queries
from leases.configuration import ConfigurationError, load
from leases.models import DynamicUser, Policy, SampledPeriod, Session
from tests import factories, s3

ROOT = Path(__file__).resolve().parent.parent
# committed for real: partitions are dropped, and another connection has to see it
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "owner"])

AGES = (450, 399, 100, 40, 1)


def policy(**fields: Any) -> Policy:
    return Policy.objects.update_or_create(pk=1, defaults={"event_days": 0, "raw_days": 0, "archive": "", **fields})[0]


def day(age: int) -> date:
    return (timezone.now() - timedelta(days=age)).date()


def line(age: float, name: str) -> bytes:
    at = timezone.now() - timedelta(days=age)
    entry = {
        "time": at.isoformat(),
        "type": "request",
        "request": {"id": name, "operation": "read", "path": "database/creds/orders", "mount_point": "database/"},
    }
    return json.dumps(entry).encode() + b"\n"


def take(stream: Stream, lines: bytes) -> Counts:
    """One block of its own."""
    offset = Stream.objects.get(pk=stream.pk).offset
    chunk = Chunk(lines, offset, Position(offset=offset + len(lines)), 0)
    return ingest(stream.pk, chunk, expected=None, now=timezone.now())


def fresh(stream: Stream) -> Stream:
    return Stream.objects.select_related("device__vault").get(pk=stream.pk)


@pytest.fixture
def stream() -> Stream:
    """Three blocks for each of AGES, as they were taken while everything was kept."""
    policy()
    made = stream_named("v", "file", "node-0")
    for age in AGES:
        for number in range(3):
            assert take(made, line(age, f"{age}-{number}") + line(age, f"{age}-{number}b")).parts == 2
    return fresh(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "archive"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def store(run_folder: Path) -> Iterator[s3.Store]:
    if not s3.ENDPOINT and s3.program() is None:
        pytest.skip("no S3 server here: neither rclone nor LEASEHOLD_TEST_S3_ENDPOINT")
    started = s3.start(run_folder / "s3")
    yield started
    started.stop()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """The policy's words for an empty archive of each kind."""
    if request.param == "folder":
        return {"archive": str(folder)}
    store = request.getfixturevalue("store")
    return {"archive": f"s3://{store.bucket}/leasehold/{secrets.token_hex(8)}", **store.policy}


def house(**options: Any) -> retention.Kept:
    return retention.keep_house(now=timezone.now(), **options)


def verify(*arguments: str) -> dict[str, Any]:
    output = io.StringIO()
    try:
        call_command("verify-chain", *arguments, "--json", stdout=output)
    except SystemExit:
        assert not all(result["ok"] for result in json.loads(output.getvalue()))
    result: dict[str, Any] = json.loads(output.getvalue())[0]
    return result


def as_owner(statement: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(statement)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# what is made ahead, and what is dropped


def test_partitions_are_made_ahead_once() -> None:
    house()
    assert retention.days_ahead(now=timezone.now()) == retention.DAYS_AHEAD
    assert house().made == 0
    assert retention.what_is_due(now=timezone.now()).make == 0


def test_events_older_than_the_policy_are_dropped_while_counts_and_coverage_stay(stream: Stream) -> None:
    counted, covered = Hourly.objects.count(), Coverage.objects.count()
    policy(event_days=400)
    kept = house()
    assert day(450) in kept.events
    assert day(399) not in kept.events
    assert sorted({row.at.date() for row in Event.objects.all()}) == sorted(day(age) for age in AGES[1:])
    assert sorted({row.at.date() for row in Sighting.objects.all()}) == sorted(day(age) for age in AGES[1:])
    assert (Hourly.objects.count(), Coverage.objects.count()) == (counted, covered)
    assert blocks.verify(fresh(stream)) == blocks.Verified(None, 15, 0)
    assert Dropped.objects.filter(of="audit_event", day=day(450), stream=None).count() == 1


def test_what_told_of_ends_goes_with_the_events(stream: Stream) -> None:
    policy(event_days=400)
    for age in (450, 399):
        Ending.objects.create(
            vault=stream.device.vault,
            device=stream.device,
            salt_epoch=1,
            request_id=f"{age} days ago",
            at=timezone.now() - timedelta(days=age),
            by=Ending.By.PREFIX,
            target="database",
            path="sys/leases/revoke-prefix/database",
        )
    retention.keep_house(now=timezone.now())
    assert [ending.request_id for ending in Ending.objects.all()] == ["399 days ago"]


def test_sessions_go_with_the_events_and_nothing_of_their_time_is_called_known(stream: Stream) -> None:
    days, now = 86_400.0, timezone.now()
    database = factories.database()
    lease = factories.lease(
        age=450 * days, left=-449 * days, database=database, database_user="v-web", database_user_by="audit hash"
    )
    server = factories.server()
    for name, age, lasted in (
        ("dropped", 450, 60.0),
        ("long", 450, 100 * days),
        ("young", 399, 60.0),
        ("on", 450, None),
    ):
        factories.session(
            lease if name == "dropped" else None, age=age * days, lasted=lasted, key=name, database=database
        )
    for age in (450, 399):
        seen = now - timedelta(days=age)
        DynamicUser.objects.create(server=server, name=f"v-{age}", first_seen_at=seen, last_seen_at=seen, gone_at=seen)
    log = DatabaseLog.objects.create(path="/log", format="jsonlog", complete_since=now - timedelta(days=460))
    log.databases.set([database])
    factories.sampled(database, since=460 * days, logged=True)
    factories.sampled(database, since=460 * days, until=410 * days)
    assert session_queries.uses([lease.pk], now=now)[lease.pk].counted == 1

    policy(event_days=400)
    retention.keep_house(now=now)
    assert set(Session.objects.values_list("key", flat=True)) == {"long", "young", "on"}
    assert [user.name for user in DynamicUser.objects.all()] == ["v-399"]
    # it was used, and nobody knows any more: not 0
    assert session_queries.uses([lease.pk], now=now)[lease.pk].counted is None
    (period,) = SampledPeriod.objects.all()
    log.refresh_from_db()
    assert period.from_at == log.complete_since == now - timedelta(days=400)


def test_with_no_policy_nothing_is_dropped(stream: Stream) -> None:
    kept = house()
    assert (kept.events, kept.lines, Event.objects.count()) == ([], [], 30)


def test_an_old_file_that_comes_again_counts_as_expired_and_brings_nothing_back(stream: Stream) -> None:
    policy(event_days=400)
    house()
    before = Event.objects.count()
    counts = take(stream, b"".join(line(450, f"450-{n}") for n in range(3)))
    assert (counts.lines, counts.expired, counts.parts) == (3, 3, 0)
    assert Event.objects.count() == before
    assert not Event.objects.filter(at__lt=timezone.now() - timedelta(days=401)).exists()


def test_lines_of_every_age_are_expired_exactly_where_the_day_is_dropped(stream: Stream) -> None:
    """In the order of a log: each newer than the one before."""
    policy(event_days=400)
    house()
    lines = b"".join(line(age, f"edge-{age}") for age in (500, 402, 401, 400, 399))
    counts = take(stream, lines)
    assert (counts.expired, counts.parts) == (3, 2)
    assert house().events == []


def test_raw_lines_are_dropped_with_a_record_where_there_is_no_archive(stream: Stream) -> None:
    policy(raw_days=90)
    kept = house()
    assert {day(450), day(399), day(100)} <= set(kept.lines)
    assert day(40) not in kept.lines
    assert blocks.verify(fresh(stream)) == blocks.Verified(None, 15, 0, 9)
    record = Dropped.objects.get(of="audit_blocklines", day=day(399), stream=stream)
    assert (record.first, record.last, record.blocks, record.archived) == (4, 6, 3, 0)
    assert Event.objects.count() == 30
    result = verify("--archive")
    assert (result["ok"], result["moved"], result["dropped"]) == (True, 0, 9)


def test_the_same_lines_are_duplicates_after_their_raw_lines_are_gone(stream: Stream) -> None:
    policy(raw_days=90)
    house()
    counts = take(stream, line(100, "100-0"))
    assert (counts.duplicates, counts.parts) == (1, 0)
    assert RawBlock.objects.count() == 15


def test_a_partition_that_is_being_read_is_left_for_the_next_run(stream: Stream) -> None:
    policy(event_days=400, raw_days=90)
    settings = connection.settings_dict
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)
    with psycopg.connect(address) as reader:
        reader.execute("SELECT count(*) FROM audit_event, audit_blocklines").fetchone()
        began = time.monotonic()
        kept = house()
        assert time.monotonic() - began < 30
        assert [name.split()[0] for name in kept.busy] == ["audit_event", "audit_blocklines"]
        assert (kept.lines, kept.problems) == ([], [])
        row = Housekeeping.objects.get()
        assert row.tried_at is not None
        # others are not held up for longer than the try
        assert Event.objects.count() == 30
        reader.rollback()
    assert day(450) in house().lines
    assert Housekeeping.objects.get().kept_at > row.kept_at


# the archive


def test_lines_are_moved_and_the_chain_holds_by_headers_and_by_reading(stream: Stream, place: dict[str, Any]) -> None:
    was = {block.sequence: blocks.lines_of(block) for block in RawBlock.objects.all()}
    policy(raw_days=90, **place)
    kept = house()
    assert (kept.problems, kept.files, kept.blocks) == ([], 3, 9)
    assert {day(450), day(399), day(100)} <= set(kept.lines)
    for arguments in [(), ("--archive",)]:
        result = verify(*arguments)
        assert (result["ok"], result["blocks"], result["moved"], result["dropped"]) == (True, 15, 9, 0)
    for block in RawBlock.objects.all():
        assert blocks.lines_of(block, elsewhere=retention.archived_lines) == was[block.sequence]
        assert (blocks.lines_of(block) is None) == (block.sequence <= 9)
    assert all(row.archived == row.blocks for row in Dropped.objects.exclude(stream=None))
    again = house()
    assert (again.files, again.lines, again.problems) == (0, [], [])


def test_the_files_are_what_the_documentation_says(stream: Stream, folder: Path) -> None:
    was = b"".join(blocks.lines_of(block) or b"" for block in RawBlock.objects.filter(sequence__lte=3))
    policy(raw_days=90, archive=str(folder))
    house()
    base = f"v/file/node-0/{day(450)}/00000001-00000003"
    assert {f"{base}.ndjson.zst", f"{base}.chain.json", "leasehold-archive-1.txt"} <= set(files(folder))
    assert len(files(folder)) == 7
    data = (folder / f"{base}.ndjson.zst").read_bytes()
    assert zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read() == was
    chain = json.loads((folder / f"{base}.chain.json").read_text())
    assert (chain["format"], chain["stream"], chain["day"]) == ("leasehold archive 1", "v/file/node-0", str(day(450)))
    assert [entry["sequence"] for entry in chain["blocks"]] == [1, 2, 3]
    text = (ROOT / "docs" / "retention.md").read_text()
    assert all(f"`{key}`" in text for key in chain)
    assert all(f"`blocks.{key}`" in text for key in chain["blocks"][0])


def checked(folder: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """The documentation's own script, in a Python without any of ours."""
    text = (ROOT / "docs" / "retention.md").read_text()
    script.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    return subprocess.run([sys.executable, "-I", "-S", script, folder], capture_output=True, text=True)


def test_anybody_can_check_the_archive_with_the_script_of_the_documentation(
    stream: Stream, folder: Path, tmp_path: Path
) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    done = checked(folder, tmp_path / "check.py")
    head = RawBlock.objects.get(sequence=9).sha256
    assert done.stdout == f"ok v/file/node-0: 9 blocks, 0 not here, block 9 is {head}\n", done.stderr
    victim = next(folder.rglob("*.ndjson.zst"))
    victim.chmod(0o640)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert "was altered" in checked(folder, tmp_path / "check.py").stderr


def test_two_blocks_are_not_glued_where_the_first_lacks_its_line_feed(folder: Path) -> None:
    policy()
    made = stream_named("v", "file", "node-0")
    take(made, line(100, "a").rstrip(b"\n"))
    take(made, line(100, "b"))
    policy(raw_days=90, archive=str(folder))
    house()
    data = next(folder.rglob("*.ndjson.zst")).read_bytes()
    plain = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    assert [json.loads(text)["request"]["id"] for text in plain.splitlines()] == ["a", "b"]
    assert verify("--archive")["ok"]


def test_lines_that_come_late_get_a_file_of_their_own(stream: Stream, folder: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    assert take(stream, line(100, "late")).parts == 1
    kept = house()
    assert (kept.files, kept.blocks) == (1, 1)
    assert f"v/file/node-0/{day(100)}/00000016-00000016.ndjson.zst" in files(folder)
    assert (verify("--archive")["ok"], verify()["moved"]) == (True, 10)


def test_a_day_is_cut_into_files_that_are_not_too_large(stream: Stream) -> None:
    cut = [(part.first, part.last) for part, _ in retention.day_in_parts(day(450), most=1)]
    assert cut == [(1, 1), (2, 2), (3, 3)]
    assert [part.blocks for part, _ in retention.day_in_parts(day(450))] == [3]


def test_several_streams_keep_their_lines_apart(stream: Stream, folder: Path) -> None:
    other = stream_named("v", "file", "node-1")
    policy()
    take(other, line(100, "100-0"))
    policy(raw_days=90, archive=str(folder))
    assert house().files == 4
    output = io.StringIO()
    call_command("verify-chain", "--archive", stdout=output)
    assert output.getvalue().count("ok ") == 2


@dataclass(frozen=True)
class Failing:
    """A folder whose machine goes away at one of its operations: before it, or after it is done."""

    folder: Folder
    at: int
    after: bool
    done: list[str] = field(default_factory=list)

    def _step(self, what: str) -> bool:
        self.done.append(what)
        if len(self.done) == self.at and not self.after:
            raise KeyboardInterrupt
        return len(self.done) == self.at

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        last = self._step("read")
        found = self.folder.read(name, start=start, length=length)
        if last:
            raise KeyboardInterrupt
        return found

    def write(self, name: str, data: bytes) -> None:
        last = self._step("write")
        self.folder.write(name, data)
        if last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
def test_after_a_crash_at_any_point_nothing_is_lost_and_the_next_run_ends_it(
    stream: Stream, folder: Path, after: bool
) -> None:
    policy(raw_days=90, archive=str(folder))
    crashes = 0
    for at in range(1, 100):
        try:
            house(archive=Failing(Folder(folder), at % 7 + 1, after))
        except KeyboardInterrupt:
            crashes += 1
            assert verify("--archive")["ok"]
            continue
        break
    assert crashes > 5
    result = verify("--archive")
    assert (result["ok"], result["moved"], result["dropped"]) == (True, 9, 0)
    assert len(files(folder)) == 7


def test_a_crash_between_moving_and_dropping_loses_nothing_and_moves_nothing_twice(
    stream: Stream, folder: Path
) -> None:
    current = policy(raw_days=90, archive=str(folder))
    kept = retention.Kept()
    retention.move_day(day(100), current, Folder(folder), kept, now=timezone.now(), until=float("inf"))
    assert (kept.blocks, verify()["moved"]) == (3, 0)
    take(stream, line(100, "meanwhile"))
    # the crash; then, with lines that came in since
    with pytest.raises(partitions.Busy):
        partitions.drop_day(day(100), "audit_blocklines")
    done = house()
    assert (done.blocks, done.problems) == (7, [])
    assert (verify("--archive")["ok"], verify()["moved"]) == (True, 10)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_housekeeping_that_is_killed_again_and_again_loses_nothing(
    stream: Stream, folder: Path, tmp_path: Path
) -> None:
    policy()
    for age in range(100, 140):
        take(stream, line(age, f"more-{age}"))
    was = {block.sequence: blocks.lines_of(block) for block in RawBlock.objects.all()}
    policy(raw_days=90, event_days=90, archive=str(folder))
    settings = connection.settings_dict
    address = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)
    env = {**os.environ, "LEASEHOLD_DATABASE_URL": address}
    chance, kills = random.Random(3), 0  # noqa: S311 (moments to kill at)
    for run in range(60):
        before = len(files(folder))
        process = processes.spawn(
            [sys.executable, "manage.py", "retention"], log=tmp_path / f"{run}.log", env=env, cwd=ROOT
        )
        while process.poll() is None and len(files(folder)) <= before + chance.randrange(12):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills >= 5
    result = verify("--archive")
    assert (result["ok"], result["dropped"]) == (True, 0)
    assert result["moved"] == RawBlock.objects.filter(until__lt=timezone.now() - timedelta(days=91)).count()
    for block in RawBlock.objects.all():
        assert blocks.lines_of(block, elsewhere=retention.archived_lines) == was[block.sequence]
    assert not [name for name in files(folder) if name.endswith(".part")]


# what must not pass unnoticed


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o640)
    path.write_bytes(data)


def alter_line(base: Path) -> None:
    """Somebody who knows the format: one line changed, file and headers made to fit each other again."""
    data_file, chain_file = base.with_suffix(".ndjson.zst"), base.with_suffix(".chain.json")
    chain = json.loads(chain_file.read_text())
    data = data_file.read_bytes()
    entry = chain["blocks"][1]
    frame = data[entry["frame_offset"] : entry["frame_offset"] + entry["frame_bytes"]]
    lines = zstandard.ZstdDecompressor().decompress(frame).replace(b"orders", b"ordres")
    changed = zstandard.ZstdCompressor(level=1).compress(lines)
    entry["frame_offset"], entry["frame_bytes"] = len(data), len(changed)
    rewrite(data_file, data + changed)
    rewrite(chain_file, json.dumps(chain).encode())


def append_frame(base: Path) -> None:
    file = base.with_suffix(".ndjson.zst")
    rewrite(file, file.read_bytes() + zstandard.ZstdCompressor().compress(line(450, "made up")))


@pytest.mark.parametrize(
    ("tamper", "block", "what"),
    [
        (lambda base: rewrite(base.with_suffix(".ndjson.zst"), b"x" * 500), 4, "does not hold its lines"),
        (lambda base: rewrite(base.with_suffix(".chain.json"), b"{}"), 4, "does not have its header"),
        (lambda base: rewrite(base.with_suffix(".chain.json"), b"\xff"), 4, "does not have its header"),
        (lambda base: base.with_suffix(".ndjson.zst").unlink(), 4, "ndjson.zst is not there"),
        (lambda base: base.with_suffix(".chain.json").unlink(), 4, "chain.json is not there"),
        (alter_line, 5, "does not hold its lines"),
        (append_frame, 4, "not the files that were moved"),
    ],
)
def test_what_was_altered_in_the_archive_is_named(
    stream: Stream, folder: Path, tamper: Any, block: int, what: str
) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    tamper(folder / f"v/file/node-0/{day(399)}/00000004-00000006")
    assert verify()["ok"]
    result = verify("--archive")
    assert (result["ok"], result["block"]) == (False, block)
    assert what in result["what"]
    if "not the files" not in what:
        with pytest.raises(ArchiveUnavailable, match="verify-chain"):
            retention.archived_lines(RawBlock.objects.get(sequence=block))


def test_lines_that_go_without_a_record_are_named_and_nothing_covers_it_up(stream: Stream, folder: Path) -> None:
    as_owner("DELETE FROM audit_blocklines WHERE sequence = 8")
    for archive in ("", str(folder)):
        policy(raw_days=90, archive=archive)
        kept = house()
        assert day(100) not in kept.lines
        assert [problem.cause for problem in kept.problems] == [
            f"The lines of block 8 of v/file/node-0 are gone; nothing of {day(100)} is moved or dropped"
        ]
        assert (verify()["block"], verify()["what"]) == (8, "removed: its lines are gone and nothing says where to")
    assert doctored("housekeeping") == kept.problems[0].cause


def test_a_partition_that_the_owner_drops_by_hand_is_named(stream: Stream) -> None:
    as_owner(f"DROP TABLE audit_blocklines_{day(399):%Y%m%d}")
    assert verify()["block"] == 4


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_blocklines SET data = 'x' WHERE sequence = 8",
        "UPDATE audit_blocklines SET data = (SELECT data FROM audit_blocklines WHERE sequence = 1) WHERE sequence = 8",
        "UPDATE audit_rawblock SET offset_to = offset_to + 1 WHERE sequence = 8",
        "DELETE FROM audit_rawblock WHERE sequence = 8",
    ],
)
def test_a_block_that_was_altered_is_neither_moved_nor_dropped_and_other_days_go_on(
    stream: Stream, folder: Path, statement: str
) -> None:
    as_owner(statement)
    policy(raw_days=90, archive=str(folder))
    kept = house()
    assert f"Block 8 of v/file/node-0 is not as it was written; nothing of {day(100)}" in kept.problems[0].cause
    assert {day(450), day(399)} <= set(kept.lines)
    assert day(100) in partitions.days("audit_blocklines")


def test_another_file_in_the_archive_is_never_replaced(stream: Stream, folder: Path) -> None:
    there = folder / f"v/file/node-0/{day(450)}/00000001-00000003.ndjson.zst"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"evidence of somebody else")
    policy(raw_days=90, archive=str(folder))
    kept = house()
    assert (kept.lines, there.read_bytes()) == ([], b"evidence of somebody else")
    assert "another 00000001-00000003" in kept.problems[0].cause.replace("v/file/node-0/" + str(day(450)) + "/", "")
    assert "prefix of its own" in kept.problems[0].fix


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_dropped (of, day, at) VALUES ('audit_event', '2026-01-01', now())",
        "UPDATE audit_dropped SET archived = 0",
        "DELETE FROM audit_dropped",
        "UPDATE audit_moved SET last = 100",
        "DELETE FROM audit_moved",
        "TRUNCATE audit_moved",
        "DROP TABLE audit_blocklines_{recent}",
        "DELETE FROM audit_blocklines_{recent}",
        "ALTER TABLE audit_blocklines DETACH PARTITION audit_blocklines_{recent}",
    ],
)
def test_the_application_cannot_touch_the_records_nor_the_partitions(
    stream: Stream, folder: Path, statement: str
) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    settings = connection.settings_dict
    address = "postgresql://leasehold_app:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)
    with psycopg.connect(address) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement.format(recent=f"{day(40):%Y%m%d}"))


@pytest.mark.parametrize(("age", "table"), [(29, "audit_blocklines"), (0, "audit_event"), (100, "leases_action")])
def test_the_database_refuses_what_is_young_or_has_no_days(age: int, table: str) -> None:
    with pytest.raises(DatabaseError):
        partitions.drop_day(day(age), table)


def test_the_database_refuses_to_drop_lines_that_are_not_in_the_archive(stream: Stream, folder: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    with pytest.raises(partitions.Busy, match="audit_blocklines"):
        partitions.drop_day(day(100), "audit_blocklines")
    assert verify()["ok"]


# archives that do not answer


def doctored(what: str) -> str:
    """The cause that doctor names."""
    return next(finding.cause for finding in doctor.examine() if finding.what == what)


def test_an_archive_that_is_not_there_is_told_and_drops_nothing(stream: Stream, tmp_path: Path) -> None:
    policy(event_days=400, raw_days=90, archive=str(tmp_path / "none"))
    kept = house()
    assert (kept.lines, day(450) in kept.events) == ([], True)
    assert "is not there" in doctored("housekeeping")
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").mkdir()
    assert house().problems == []
    assert doctored("housekeeping") == ""
    (tmp_path / "none").rename(tmp_path / "away")
    with pytest.raises(CommandError, match="Mount it"):
        call_command("verify-chain", "--archive")


def test_an_archive_that_moved_is_read_where_the_policy_says(stream: Stream, folder: Path, tmp_path: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    folder.rename(tmp_path / "elsewhere")
    policy(raw_days=90, archive=str(tmp_path / "elsewhere"))
    assert verify("--archive")["ok"]
    (tmp_path / "elsewhere").rename(folder)
    # with none configured, where the record says
    policy()
    assert verify("--archive")["ok"]


def test_what_a_killed_write_left_is_replaced(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / ".b.part").write_bytes(b"half of it")
    keep(Folder(folder), "a/b", b"all of it")
    assert files(folder) == ["a/b"]
    assert (folder / "a" / "b").stat().st_mode & 0o777 == 0o440


def archive_of(place: dict[str, Any]) -> Archive:
    return named(place["archive"], Policy(**place))


def test_both_kinds_of_archive_hold_to_the_same_contract(place: dict[str, Any]) -> None:
    archive, data = archive_of(place), bytes(range(256)) * 5000
    name = "v%2Fw/%2E./ä b+&?#/x.ndjson.zst"
    assert archive.read(name) is None
    keep(archive, name, data)
    assert archive.read(name) == data
    assert archive.read(name, start=1000, length=10) == data[1000:1010]
    assert archive.read(name, start=len(data) - 5, length=100) == data[-5:]
    assert archive.read(name, start=len(data) + 5, length=10) == b""
    keep(archive, name, data)
    with pytest.raises(ArchiveUnavailable, match="another"):
        keep(archive, name, b"other")
    archive.write(name, b"shorter")
    assert archive.read(name) == b"shorter"


@pytest.mark.parametrize(
    ("change", "cause", "fix"),
    [
        ({"archive": "s3://no-such-bucket"}, "NoSuchBucket", "Make the bucket"),
        ({"archive_secret_key": {"env": "LEASEHOLD_SECRET_KEY"}}, "SignatureDoesNotMatch", "archive_secret_key"),
        ({"archive_secret_key": {"file": "/none"}}, "cannot be read", "Mount it"),
        ({"archive_ca_file": ""}, "SSLError", "archive_ca_file"),
        ({"archive_endpoint": "https://127.0.0.1:1"}, "EndpointConnectionError", "archive_endpoint"),
        ({"archive_ca_file": "/none"}, "cannot be reached or understood", "archive_ca_file"),
    ],
)
def test_a_bucket_that_does_not_answer_says_why_and_shows_no_secret(
    stream: Stream, store: s3.Store, change: dict[str, Any], cause: str, fix: str
) -> None:
    if store.folder is None:
        pytest.skip("the errors are those of rclone")
    policy(raw_days=90, **{"archive": f"s3://{store.bucket}/wrong", **store.policy, **change})
    kept = house()
    assert kept.lines == []
    problem = kept.problems[0]
    assert cause in problem.cause
    assert fix in problem.fix
    for name in ("access_key", "secret_key"):
        secret = Path(store.policy[f"archive_{name}"]["file"]).read_text()
        assert secret not in f"{problem.cause} {problem.fix}"


def test_objects_lie_below_the_prefix_and_nowhere_else(stream: Stream, store: s3.Store) -> None:
    if store.folder is None:
        pytest.skip("its objects are not ours to list")
    before = set(files(store.folder))
    policy(raw_days=90, archive=f"s3://{store.bucket}/a/b", **store.policy)
    assert house().problems == []
    new = set(files(store.folder)) - before
    assert len(new) == 7
    assert all(name.startswith("a/b/") for name in new)


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_names_stay_apart_and_inside_the_archive(names: list[str]) -> None:
    escaped = [parts.escaped(name.replace("\0", "").encode("utf-8", "replace").decode()) for name in names]
    for text in escaped:
        assert text not in {"", ".", ".."}
        assert re.fullmatch(r"[A-Za-z0-9._~%-]{1,200}", text)
    if len({name.replace("\0", "").encode("utf-8", "replace") for name in names}) == 2:
        assert escaped[0] != escaped[1]


def test_hostile_names_stay_inside_the_archive(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    policy()
    for vault, device, node in [("..", "..", ".."), ("a/b", "/etc", "x" * 500), ("%2E", "é\n", ".hidden")]:
        take(stream_named(vault, device, node), line(100, "a"))
    policy(raw_days=90, archive=str(root))
    assert house().problems == []
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert len(files(root)) == 7
    call_command("verify-chain", "--archive", stdout=io.StringIO())


# configuration, command, task, doctor


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("event_days = 30", "event_days is 30"),
        ("raw_days = 7", "raw_days is 7"),
        ("event_days = -1", "event_days is -1"),
        ('event_days = "400"', "Expected `int`"),
        ('archive = "archive"', "whole path of a folder"),
        ('archive = "/"', "whole path of a folder"),
        ('archive = "/a/../b"', "whole path of a folder"),
        ('archive = "https://bucket"', "whole path of a folder"),
        ('archive = "s3://"', "s3://BUCKET"),
        ('archive = "s3://bucket/../x"', "s3://BUCKET"),
        ('archive = "s3://bucket//x"', "s3://BUCKET"),
        ('archive_region = "eu"', "archive_region is for a bucket"),
        ('archive = "/a"\narchive_access_key = { env = "A" }\narchive_secret_key = { env = "B" }', "is for a bucket"),
        ('archive = "s3://b1"\narchive_access_key = { env = "A" }', "go together"),
        ('archive = "s3://b1"\narchive_access_key = "AKIA"', "Expected `object"),
        ('archive = "s3://b1"\narchive_endpoint = "minio:9000"', "archive_endpoint"),
        ('archive = "s3://b1"\narchive_endpoint = "https://user:secret@minio:9000"', "may not hold a user"),
    ],
)
def test_wrong_policies_are_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "leasehold.toml").write_text(f"[policies]\n{text}\n")
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path / "leasehold.toml")


def test_configure_writes_the_policies_makes_partitions_and_has_them_tried_at_once(
    tmp_path: Path, settings: Any
) -> None:
    settings.CONFIG_FILE = tmp_path / "leasehold.toml"
    settings.CONFIG_FILE.write_text(
        '[policies]\nevent_days = 0\nraw_days = 31\narchive = "s3://bucket/a/"\narchive_endpoint = "https://s3:9000"\n'
        'archive_access_key = { env = "A" }\narchive_secret_key = { file = "/b" }\n'
    )
    call_command("configure", stdout=io.StringIO())
    current = Policy.current()
    assert (current.event_days, current.raw_days, current.archive) == (0, 31, "s3://bucket/a")
    assert (current.archive_access_key, current.archive_secret_key) == ({"env": "A"}, {"file": "/b"})
    assert retention.is_due(now=timezone.now())
    assert doctored("housekeeping") == ""
    archive = named(current.archive, current)
    assert isinstance(archive, Bucket)
    assert (archive.bucket, archive.prefix) == ("bucket", "a")


def run(*arguments: str) -> dict[str, Any]:
    output = io.StringIO()
    call_command("retention", *arguments, "--json", stdout=output)
    result: dict[str, Any] = json.loads(output.getvalue())
    return result


def test_a_dry_run_says_what_the_run_then_does(stream: Stream, folder: Path) -> None:
    policy(event_days=400, raw_days=90, archive=str(folder))
    told = run("--dry-run")
    assert files(folder) == []
    assert verify()["moved"] == 0
    done = run()
    assert (told["blocks_moved"], told["lines_dropped"]) == (done["blocks_moved"], done["lines_dropped"])
    assert (told["events_dropped"], told["days_made"]) == (done["events_dropped"], done["days_made"])
    assert done["blocks_moved"] == 9
    again = run("--dry-run")
    assert (again["blocks_moved"], again["lines_dropped"], again["events_dropped"]) == (0, [], [])
    output = io.StringIO()
    call_command("retention", stdout=output)
    assert "0 blocks (0 bytes) moved to the archive" in output.getvalue()


def test_the_command_ends_with_an_error_where_something_kept_it_from_its_work(stream: Stream, tmp_path: Path) -> None:
    policy(raw_days=90, archive=str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        run()


def test_a_backlog_is_done_turn_by_turn(stream: Stream, folder: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    turns = 0
    while not house(until=0).complete:
        turns += 1
        assert retention.is_due(now=timezone.now())
    assert turns >= 3
    assert verify("--archive")["moved"] == 9


def test_the_task_does_it_once_an_hour(stream: Stream, folder: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    keep_house_task()
    assert verify()["moved"] == 9
    tried = Housekeeping.objects.get().tried_at
    keep_house_task()
    assert Housekeeping.objects.get().tried_at == tried
    assert not retention.is_due(now=timezone.now())
    assert retention.is_due(now=timezone.now() + timedelta(hours=1, seconds=1))


@pytest.mark.filterwarnings("ignore:No directory at")
def test_doctor_and_metrics_tell_when_nobody_keeps_the_house(client: Any) -> None:
    house()
    assert doctored("housekeeping") == ""
    text = client.get("/metrics").content.decode()
    assert "leasehold_partition_days_ahead 14.0" in text
    assert "leasehold_housekeeping_ok 1.0" in text
    Housekeeping.objects.update(kept_at=timezone.now() - timedelta(hours=27))
    assert "has not come to its end" in doctored("housekeeping")
    Housekeeping.objects.all().delete()
    assert "so far" in doctored("housekeeping")


def test_doctor_tells_when_partitions_are_not_made_ahead() -> None:
    house()
    today = datetime.now(UTC).date()
    for number in range(2, retention.DAYS_AHEAD + 1):
        as_owner(f"DROP TABLE audit_event_{today + timedelta(days=number):%Y%m%d}")
    assert "made for 1 days ahead" in doctored("housekeeping")
    house()


def test_moved_records_are_made_of_each_file(stream: Stream, folder: Path) -> None:
    policy(raw_days=90, archive=str(folder))
    house()
    rows = list(Moved.objects.order_by("first"))
    assert [(row.first, row.last, row.blocks) for row in rows] == [(1, 3, 3), (4, 6, 3), (7, 9, 3)]
    for row in rows:
        data = (folder / row.name).read_bytes()
        assert (row.size, row.archive) == (len(data), str(folder))
        assert parts.is_as_moved(row, data, (folder / parts.chain_name(row.name)).read_bytes())
