"""A poll's own request id that does not turn up: a gap that is proven, and never one that is none. With a real OpenBao.

The stream follows a copy of the device's file, out of which a test can cut lines. Time is passed in, so that nobody waits.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from audit import configuration, follow, polls, queries
from audit.ingest import ingest, ingest_all, position_of
from audit.models import Gap, RawBlock, Stream
from audit.polls import Poll, misses
from leases import clients
from leases import polls as noting
from leases.configuration import load
from leases.models import OwnRequest, Vault
from leases.vault import VaultClient, VaultError
from tests.world import World

pytestmark = pytest.mark.django_db

STEP = timedelta(seconds=10)


class Log:
    """Two followed copies of the devices' files, and polls every ten seconds of a time of their own."""

    def __init__(self, world: World, folder: Path) -> None:
        (world.folder / "leasehold.toml").write_text(world.toml())
        configuration.apply(load(world.folder / "leasehold.toml"))
        self.vault = Vault.objects.get()
        self.client = self.connect()
        self.sources = {}
        for stream in Stream.objects.select_related("device"):
            source = Path(stream.path)
            copy = folder / f"{stream.device.name}.log"
            copy.touch()
            self.sources[stream.device.name] = (source, copy, source.stat().st_size)
            Stream.objects.filter(pk=stream.pk).update(path=str(copy))
        self.now = timezone.now()
        self.polls: list[tuple[str, datetime]] = []

    def connect(self) -> VaultClient:
        client = clients.observer(self.vault)
        # the real time is none of ours: poll() notes
        client._on_request_id = None
        return client

    def poll(self) -> str:
        """One request of Leasehold's own, noted ten seconds after the one before."""
        self.now += STEP
        self.client.capabilities(["sys/mounts"])
        request_id = self.client.last_request_id
        assert request_id
        assert noting.note(self.vault.pk, request_id, now=self.now)
        self.polls.append((request_id, self.now))
        return request_id

    def write(self, *, but: dict[str, set[str]] | None = None) -> None:
        """Copies what the devices have written, without the lines of these requests."""
        for device, (source, copy, offset) in self.sources.items():
            with source.open("rb") as file:
                file.seek(offset)
                data = file.read()
            without = (but or {}).get(device, set())
            with copy.open("ab") as file:
                for line in data.splitlines(keepends=True):
                    if json.loads(line)["request"]["id"] not in without:
                        file.write(line)
            self.sources[device] = (source, copy, offset + len(data))

    def read(self, *, only: str | None = None) -> None:
        """What a worker does until there is nothing more."""
        for stream in Stream.objects.exclude(path="").select_related("device__vault").order_by("id"):
            if only is not None and stream.device.name != only:
                continue
            while (chunk := follow.read(Path(stream.path), position_of(stream))).lines:
                ingest(stream.pk, chunk, expected=position_of(stream), now=self.now)
                stream.refresh_from_db()
            Stream.objects.filter(pk=stream.pk).update(read_at=self.now, unread_bytes=chunk.unread)

    def check(self) -> list[Gap]:
        return polls.check(self.vault.pk, now=self.now)

    def after(self, seconds: float) -> "Log":
        self.now += timedelta(seconds=seconds)
        return self


@pytest.fixture
def log(world: World, tmp_path: Path) -> Log:
    made = Log(world, tmp_path)
    made.poll()
    made.write()
    made.read()
    return made


def gaps(device: str) -> list[Gap]:
    return list(Gap.objects.filter(stream__device__name=device).order_by("to_at"))


def test_the_client_that_observes_notes_its_requests_and_not_all_of_them(world: World) -> None:
    (world.folder / "leasehold.toml").write_text(world.toml())
    configuration.apply(load(world.folder / "leasehold.toml"))
    vault = Vault.objects.get()
    client = clients.observer(vault)
    began = timezone.now()
    for _ in range(20):
        client.capabilities(["sys/mounts"])
    noted = OwnRequest.objects.get()
    assert noted.vault == vault
    assert began <= noted.at <= timezone.now()
    assert any(noted.request_id in path.read_text() for path in world.openbao.audit_logs.values())


def test_a_client_whose_poll_was_noted_by_another_worker_notes_none(log: Log) -> None:
    noting._noted.clear()
    assert not noting.note(log.vault.pk, "another", now=log.now + timedelta(seconds=5))
    assert noting.note(log.vault.pk, "yet another", now=log.now + timedelta(seconds=16))


def test_polls_that_turn_up_leave_no_gap_and_are_forgotten(log: Log) -> None:
    for _ in range(5):
        log.poll()
        log.write()
        log.read()
        assert log.check() == []
    log.after(40).read()
    assert log.check() == []
    assert OwnRequest.objects.count() == 1, "the last one stays, as the beginning of a gap that may follow"
    assert not Gap.objects.exists()


def test_lines_that_a_device_lost_are_a_gap_with_its_bounds_right_to_one_poll(log: Log) -> None:
    last_seen = log.polls[-1][1]
    lost = {log.poll() for _ in range(3)}
    last_lost = log.polls[-1][1]
    log.poll()
    log.write(but={"file-a": lost})
    log.after(40).read()
    log.check()
    (gap,) = gaps("file-a")
    assert (gap.kind, gap.from_at, gap.to_at, gap.lost_bytes) == (polls.KIND, last_seen, last_lost, None)
    assert "device file-a" in gap.what
    assert set(polls.request_ids(gap)) == lost
    assert gaps("file-b") == [], "the other device has lost nothing"
    assert log.check() == [], "it is told once"
    assert OwnRequest.objects.count() == 1


def test_a_device_that_writes_nothing_any_more_is_told_of_soon_and_then_once_a_minute(log: Log) -> None:
    told = []
    for _ in range(20):
        lost = {log.poll()}
        log.write(but={"file-a": lost})
        log.read()
        told += [(log.now - log.polls[1][1]).total_seconds() for _ in log.check()]
    # the first poll that is missing is old enough after 30 s
    assert told == [30, 90, 150]
    found = gaps("file-a")
    assert [gap.from_at for gap in found] == [log.polls[0][1], *(gap.to_at for gap in found[:-1])], (
        "one follows the other"
    )
    assert set().union(*(polls.request_ids(gap) for gap in found)) == {
        request_id for request_id, at in log.polls[1:] if at <= found[-1].to_at
    }
    log.poll()
    log.write()
    log.after(40).read()
    log.check()
    assert gaps("file-a")[-1].to_at == log.polls[-2][1], "when it is back the rest is told"


def test_a_reader_that_is_behind_is_no_gap(log: Log) -> None:
    for _ in range(5):
        log.poll()
    log.write()
    # nobody has read since; then one file only; then the other is known to hold more
    assert log.after(300).check() == []
    log.read(only="file-b")
    assert log.check() == []
    Stream.objects.filter(device__name="file-a").update(unread_bytes=1, read_at=log.now)
    assert log.check() == []
    assert OwnRequest.objects.count() == 6
    log.read()
    assert log.check() == []
    assert OwnRequest.objects.count() == 1
    assert not Gap.objects.exists()


def test_a_worker_that_was_stopped_and_started_finds_no_gap(log: Log) -> None:
    log.poll()
    log.poll()
    log.write()
    clients._cached.cache_clear()
    noting._noted.clear()
    log.client = log.connect()
    log.after(600).poll()
    assert log.check() == []
    log.write()
    log.after(40).read()
    assert log.check() == []
    assert not Gap.objects.exists()


def test_a_sealed_vault_is_no_gap(log: Log, world: World) -> None:
    log.poll()
    world.openbao.seal()
    try:
        for _ in range(3):
            with pytest.raises(VaultError):
                log.client.capabilities(["sys/mounts"])
    finally:
        world.openbao.unseal()
    log.after(60).poll()
    log.write()
    log.after(40).read()
    assert log.check() == []
    assert not Gap.objects.exists()


def test_lines_that_come_late_close_the_gap(log: Log) -> None:
    lost = {log.poll(), log.poll()}
    log.write(but={"file-a": lost})
    log.after(40).read()
    (gap,) = log.check()
    assert polls.turned_up([gap]) == set()
    source, copy, _ = log.sources["file-a"]
    late = [line for line in source.read_bytes().splitlines(keepends=True) if json.loads(line)["request"]["id"] in lost]
    with copy.open("ab") as file:
        file.writelines(late[:2])
    log.after(5).read()
    assert polls.turned_up([gap]) == set(), "one of the two has come"
    with copy.open("ab") as file:
        file.writelines(late[2:])
    log.after(5).read()
    assert polls.turned_up([gap]) == {gap.pk}
    assert [period.closed for period in queries.newest_gaps(gap.stream, limit=5)] == [True]


def test_a_poll_from_before_a_devices_first_line_says_nothing_of_it(log: Log) -> None:
    before = log.poll()
    Stream.objects.filter(device__name="file-a").update(retired=True)
    log.write()
    log.read()
    # a device that was enabled and configured only now: its first line is younger than that poll
    stream = Stream.objects.get(device__name="file-b")
    new = Stream.objects.create(
        device=stream.device.vault.devices.create(name="new"), node="bao-0", path=f"{stream.path}.new"
    )
    entry = {"time": (log.now + STEP).isoformat(), "type": "request", "request": {"id": "first", "path": "sys/mounts"}}
    Path(new.path).write_text(json.dumps(entry) + "\n")
    log.after(40).read()
    assert log.check() == []
    assert before not in {row.request_id for row in OwnRequest.objects.all()[1:]}


def test_in_a_cluster_one_node_of_each_device_is_enough(log: Log) -> None:
    stream = Stream.objects.get(device__name="file-a")
    standby = Stream.objects.create(device=stream.device, node="bao-1", path=f"{stream.path}.standby")
    Path(standby.path).touch()
    lost = log.poll()
    log.write(but={"file-b": {lost}})
    log.after(40).read()
    assert [gap.stream.device.name for gap in log.check()] == ["file-b"]
    lost = log.poll()
    log.write(but={"file-a": {lost}})
    log.after(40).read()
    found = log.check()
    assert {gap.stream for gap in found} == {stream, standby}, "which of them lost it cannot be told"
    assert "any of the 2 nodes" in found[0].what
    # one whose file is not read yet may have it
    log.poll()
    log.write()
    log.after(40).read(only="file-b")
    assert log.check() == []


def test_a_refused_device_and_one_from_the_command_line_are_not_judged(log: Log) -> None:
    Stream.objects.filter(device__name="file-a").update(refused="raw secrets")
    foreign = log.vault.devices.create(name="foreign")
    Stream.objects.create(device=foreign, node="command-line", read_at=log.now + timedelta(days=1))
    lost = log.poll()
    log.write(but={"file-a": {lost}})
    log.after(40).read()
    assert log.check() == []


def test_a_pushed_stream_is_judged_by_the_lines_that_came_after(log: Log) -> None:
    stream = Stream.objects.get(device__name="file-a")
    lost = log.poll()
    log.write(but={"file-a": {lost}})
    log.after(40).read()
    # nothing came after the poll: its shipper may hold it still, whenever its last batch came
    Stream.objects.filter(pk=stream.pk).update(path="", pushed=True)
    assert log.check() == []
    Stream.objects.filter(pk=stream.pk).update(last_line_at=log.polls[-1][1] + timedelta(seconds=12))
    assert log.check() == [], "a clock may be 2 s ahead"
    Stream.objects.filter(pk=stream.pk).update(last_line_at=log.polls[-1][1] + timedelta(seconds=13))
    (gap,) = log.check()
    assert (gap.stream, polls.request_ids(gap)) == (stream, [lost])


def test_what_a_stream_says_of_its_position_is_true_of_when_its_file_was_looked_at(log: Log) -> None:
    stream = Stream.objects.get(device__name="file-a")
    log.poll()
    log.write()
    chunk = follow.read(Path(stream.path), position_of(stream))
    times = [log.now]

    def clock() -> datetime:
        # a worker that waits, or is stopped, between reading and storing
        times.append(times[-1] + timedelta(minutes=1))
        return times[-1]

    list(ingest_all(stream.pk, iter([chunk]), expected=position_of(stream), clock=clock))
    stream.refresh_from_db()
    assert stream.read_at in times[1:3], "the first thing that it does is to look at the clock and at the file"
    assert RawBlock.objects.filter(stream=stream).latest("sequence").at > stream.read_at


def test_a_gap_stays_for_ever(log: Log) -> None:
    for statement in ("UPDATE audit_gap SET what = ''", "DELETE FROM audit_gap", "TRUNCATE audit_gap"):
        with (
            pytest.raises(DatabaseError, match="permission denied"),
            transaction.atomic(),
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)


# --- the rule by itself ------------------------------------------------------------------------------------------

BEGIN = datetime.fromisoformat("2026-11-20T10:00:00+00:00")


def made(pattern: str) -> tuple[list[Poll], set[str], Callable[[int], datetime]]:
    """Polls ten seconds apart: "+" was logged, "-" was not."""

    def at(number: int) -> datetime:
        return BEGIN + number * STEP

    found = [Poll(number, str(number), str(number), at(number)) for number in range(len(pattern))]
    return found, {str(number) for number, sign in enumerate(pattern) if sign == "+"}, at


@pytest.mark.parametrize(
    ("pattern", "last", "expected", "waiting"),
    [
        ("", None, [], 0),
        ("+++", None, [], 0),
        ("++-", None, [(1, 2, 1)], 0),
        ("---", None, [(None, 2, 3)], 0),
        ("+--+-+", None, [(0, 2, 2), (3, 4, 1)], 0),
        # told up to poll 2: what follows waits until it is a minute, or over
        ("+----", 2, [], 2),
        ("+-------", 2, [], 5),
        ("+--------", 2, [(2, 8, 6)], 0),
        ("+----+", 2, [(2, 4, 2)], 0),
        ("+----+-", 2, [(2, 4, 2), (5, 6, 1)], 0),
        # each row names all of its requests, so there are no more than twelve
        ("+" + 30 * "-", None, [(0, 12, 12), (12, 24, 12), (24, 30, 6)], 0),
    ],
)
def test_what_is_told_and_what_waits(
    pattern: str, last: int | None, expected: list[tuple[int | None, int, int]], waiting: int
) -> None:
    found, sighted, at = made(pattern)
    told, rest = misses(found, sighted, last=None if last is None else at(last))
    numbers = {at(number): number for number in range(-1, len(pattern))}
    assert [
        (numbers[miss.from_at] if miss.from_at else None, numbers[miss.to_at], len(miss.polls)) for miss in told
    ] == expected
    assert len(rest) == waiting
