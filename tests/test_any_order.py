"""One real evening, told by two audit devices: however its lines are cut, ordered and sourced, the product knows the same."""

import io
import itertools
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from django.core.management import call_command
from django.db import transaction

from audit import intern, push
from audit.models import Coverage, Event, Stream
from leases.models import Certainty, Lease, Vault
from tests import scenario
from tests.dump import Row, differences, dump, dump_of_devices
from tests.scenario import Scene, take
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
A, B = scenario.DEVICES
# how far apart two devices may tell one request
APART = timedelta(milliseconds=50)

Dump = dict[str, list[Row]]


@pytest.fixture(scope="module")
def played(world: World) -> Scene:
    return scenario.play(world)


@pytest.fixture
def scene(played: Scene, db: None, tmp_path: Path) -> Scene:
    scenario.prepare(played, tmp_path)
    return played


class Step(NamedTuple):
    """Lines of one device, so many at a time (None: all at once)."""

    device: str
    lines: list[bytes]
    at_once: int | None = None


def known_after(scene: Scene, *steps: Step, devices: bool = True) -> Dump:
    """What is known after these; then they are undone."""

    def ingestion() -> None:
        for step in steps:
            take(step.device, step.lines, now=scene.now, at_once=step.at_once)

    return known_after_all(ingestion, devices=devices)


def known_after_all(ingestion: Callable[[], None], *, devices: bool) -> Dump:
    intern.forget()
    with transaction.atomic():
        ingestion()
        vault = Vault.objects.get()
        known = dump(vault) | (dump_of_devices(vault) if devices else {})
        transaction.set_rollback(True)
    intern.forget()
    return known


def same(one: Dump, other: Dump, *, within: timedelta | None = None) -> None:
    found = differences(one, other, within=within)
    assert not found, "\n".join(found[:12])


def test_the_evening_holds_what_it_should(scene: Scene) -> None:
    take(A, scene.lines[A], now=scene.now)
    leases = Lease.objects.all()
    assert sorted(leases.values_list("end_seen_reason", flat=True)) == [
        *[""] * 13,
        "by prefix",
        "forced (database user may live)",
        *["revoked in Vault"] * 2,
        *["token revoked"] * 5,
    ]
    assert sorted(leases.values_list("certainty", flat=True)) == [
        *[Certainty.AMBIGUOUS] * 2,
        Certainty.EXACT,
        *[Certainty.INFERRED] * (leases.count() - 3),
    ]
    assert not leases.filter(login=None).exists()
    assert sorted(leases.exclude(renewals=0).values_list("renewals", flat=True)) == [1, 1, 1, 1, 1, 2]
    assert Event.objects.filter(own=True).count() == 4
    days = {event.at.date() for event in Event.objects.all()}
    assert len(days) == 2
    crossing = Event.objects.get(what__path="database/creds/my-role", at__date=min(days), response_at__date=max(days))
    assert crossing.lease_id


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_the_size_of_batches_does_not_matter(scene: Scene, at_once: int) -> None:
    lines = scene.lines[A]
    same(known_after(scene, Step(A, lines)), known_after(scene, Step(A, lines, at_once)))


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_lines_does_not_matter(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    lines = scene.lines[A].copy()
    chance.shuffle(lines)
    at_once = chance.choice([1, 2, 5, 20])
    same(known_after(scene, Step(A, scene.lines[A])), known_after(scene, Step(A, lines, at_once)))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_shuffles_of_its_lines_make_one_ledger(scene: Scene) -> None:
    whole = known_after(scene, Step(A, scene.lines[A]))
    for seed in range(500):
        chance = random.Random(seed)  # noqa: S311
        lines = scene.lines[A].copy()
        chance.shuffle(lines)
        found = differences(whole, known_after(scene, Step(A, lines, chance.choice([5, 20, 50, None]))))
        assert not found, f"seed {seed}:\n" + "\n".join(found[:12])


def test_the_last_line_first_is_the_same(scene: Scene) -> None:
    lines = scene.lines[A]
    same(known_after(scene, Step(A, lines)), known_after(scene, Step(A, lines[::-1], 1)))


def test_the_order_of_files_does_not_matter(scene: Scene) -> None:
    lines = scene.lines[A]
    whole = known_after(scene, Step(A, lines))
    for cut in range(1, len(lines), 5):
        same(whole, known_after(scene, Step(A, lines[cut:]), Step(A, lines[:cut])))


def test_a_file_that_is_taken_again_from_any_place_changes_nothing(scene: Scene) -> None:
    lines = scene.lines[A]
    whole = known_after(scene, Step(A, lines))
    # told twice is counted
    del whole["coverage"]
    for cut in (1, 10, 31):
        again = known_after(scene, Step(A, lines[cut:]), Step(A, lines, 9))
        same(whole, {name: again[name] for name in whole})


def test_the_command_line_leads_to_the_same(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    file.write_bytes(b"".join(scene.lines[A]))

    def command() -> None:
        call_command("ingest", str(file), vault="demo", device=A, json=True, stdout=io.StringIO())

    same(known_after(scene, Step(A, scene.lines[A]), devices=False), known_after_all(command, devices=False))


@pytest.mark.parametrize("seed", range(3))
def test_lines_that_are_pushed_lead_to_the_same_as_a_followed_file(scene: Scene, seed: int) -> None:
    """In batches of any size, some of them sent twice; later seeds mix the lines."""
    chance = random.Random(seed)  # noqa: S311
    lines = scene.lines[A].copy()
    if seed:
        chance.shuffle(lines)
    whole = known_after(scene, Step(A, scene.lines[A]))
    # told twice is counted
    del whole["coverage"]
    Stream.objects.filter(device__name=A).update(path="", pushed=True)

    def pushed() -> None:
        stream = Stream.objects.select_related("device__vault").get(device__name=A)
        left = lines.copy()
        while left:
            size = chance.choice([1, 2, 7, 40])
            batch, left = left[:size], left[size:]
            for _ in range(chance.choice([1, 1, 2])):
                push.take(stream, batch, now=scene.now)

    again = known_after_all(pushed, devices=True)
    same(whole, {name: again[name] for name in whole})


def two_ways(scene: Scene) -> dict[str, list[Step]]:
    """The lines of both devices, in many ways."""
    a, b = scene.lines[A], scene.lines[B]
    chance = random.Random(11)  # noqa: S311
    interleaved: list[Step] = []
    queue = {A: a.copy(), B: b.copy()}
    while left := [name for name, lines in queue.items() if lines]:
        device = chance.choice(left)
        size = chance.randint(1, 6)
        interleaved.append(Step(device, queue[device][:size]))
        queue[device] = queue[device][size:]
    shuffled = [Step(A, [line]) for line in a] + [Step(B, [line]) for line in b]
    chance.shuffle(shuffled)
    return {
        "a then b": [Step(A, a), Step(B, b)],
        "b then a": [Step(B, b), Step(A, a)],
        "line by line": [step for one, two in zip(a, b, strict=True) for step in (Step(A, [one]), Step(B, [two]))],
        "interleaved": interleaved,
        "shuffled": shuffled,
        # what one device tells of logins, the other of what was done with them
        "halves": [
            Step(A, a[len(a) // 2 :]),
            Step(B, b[: len(b) // 2]),
            Step(A, a[: len(a) // 2]),
            Step(B, b[len(b) // 2 :]),
        ],
    }


def test_one_device_or_two_in_any_order_lead_to_the_same(scene: Scene) -> None:
    scene = scenario.without_midnight(scene)
    alone = known_after(scene, Step(A, scene.lines[A]), devices=False)
    same(alone, known_after(scene, Step(B, scene.lines[B]), devices=False), within=APART)
    ways = two_ways(scene)
    both = known_after(scene, *ways.pop("a then b"))
    same(alone, {name: both[name] for name in alone}, within=APART)
    for name, way in ways.items():
        found = differences(both, known_after(scene, *way), within=APART)
        assert not found, name + "\n" + "\n".join(found[:12])


def test_two_devices_that_tell_a_request_on_both_sides_of_midnight_make_one_event(scene: Scene) -> None:
    ways = two_ways(scene)
    both = known_after(scene, *ways["a then b"], devices=False)
    for name in ("b then a", "interleaved", "shuffled"):
        same(both, known_after(scene, *ways[name], devices=False), within=APART)


@pytest.mark.parametrize("seed", range(6))
def test_two_devices_on_one_path_are_one_stream_whose_requests_stand_twice_in_it(scene: Scene, seed: int) -> None:
    scene = scenario.without_midnight(scene)
    alone = known_after(scene, Step(A, scene.lines[A]), devices=False)
    chance = random.Random(seed)  # noqa: S311
    pairs = list(zip(scene.lines[A], scene.lines[B], strict=True))
    # which of the two comes first changes from line to line; later seeds mix it all
    lines = [line for pair in pairs for line in (chance.sample(pair, 2) if seed else pair)]
    if seed > 2:
        chance.shuffle(lines)
    known = known_after(scene, Step(A, lines, [None, 7, 1, 3, 40, 1][seed]))
    same(alone, {name: known[name] for name in alone}, within=APART)
    # the tokens of both salts lead to the login
    assert len(known["tokens"]) == 2 * len(alone["logins"])


def test_login_read_renewal_and_end_in_every_order(scene: Scene) -> None:
    lines = scene.lines[A]
    entries = [json.loads(line) for line in lines]

    def pair(path: str, place: int = 0) -> list[bytes]:
        ids = list(dict.fromkeys(e["request"]["id"] for e in entries if e["request"]["path"].startswith(path)))
        return [line for line, e in zip(lines, entries, strict=True) if e["request"]["id"] == ids[place]]

    accessor = json.loads(pair("auth/token/revoke-self")[0])["auth"]["accessor"]
    logins = [
        line
        for line, e in zip(lines, entries, strict=True)
        if e["type"] == "response" and e["request"]["path"] == "auth/kubernetes/login" and accessor in line.decode()
    ]
    login = [
        line
        for line, e in zip(lines, entries, strict=True)
        if e["request"]["id"] == json.loads(logins[0])["request"]["id"]
    ]
    reads = [
        line
        for line, e in zip(lines, entries, strict=True)
        if e["request"]["path"] == "database/creds/my-role" and e["auth"].get("accessor") == accessor
    ]
    lease_id = json.loads(reads[1])["response"]["secret"]["lease_id"]
    renewal_ids = [
        e["request"]["id"] for e in entries if e["request"]["path"] == "sys/leases/renew" and lease_id in json.dumps(e)
    ]
    renewal = [line for line, e in zip(lines, entries, strict=True) if e["request"]["id"] in renewal_ids]
    pairs = [login, reads[:2], renewal, pair("auth/token/revoke-self")]
    assert [len(one) for one in pairs] == [2, 2, 2, 2]
    first = known_after(scene, *(Step(A, one) for one in pairs))
    assert "token revoked" in first["leases"][0]
    for order in itertools.permutations(pairs):
        for at_once in (None, 1):
            told = [line for one in order for line in one]
            same(first, known_after(scene, Step(A, told, at_once)))
            same(first, known_after(scene, Step(A, told[::-1], at_once)))


def test_a_line_that_contradicts_what_is_known_takes_no_true_line_with_it_however_they_are_cut(scene: Scene) -> None:
    """Which of two contradicting lines is kept is the order's to say: the first. Nothing in them tells which one is true."""
    lines = scene.lines[A]
    forged = [line.replace(b'"remote_address":"', b'"remote_address":"9') for line in lines[30:40]]
    mixed = [line for pair in zip(forged, lines[30:40], strict=True) for line in pair]
    true = known_after(scene, Step(A, lines))
    for at_once in (None, 1, 3):
        for told in ([*lines, *mixed], [*lines[:40], *mixed, *lines[40:]]):
            known = known_after(scene, Step(A, told[: len(lines)]), Step(A, told[len(lines) :], at_once))
            assert sum(row[9] for row in known["coverage"]) == len(forged)
            same(
                {name: true[name] for name in true if name != "coverage"},
                {n: known[n] for n in true if n != "coverage"},
            )
    once = known_after(scene, Step(A, [*forged, *lines], None))
    same(once, known_after(scene, Step(A, [*forged, *lines], 1)))


def test_old_lines_are_expired_wherever_they_stand(scene: Scene) -> None:
    year = scene.now.year
    old = [line.replace(f'"time":"{year}'.encode(), f'"time":"{year - 3}'.encode(), 1) for line in scene.lines[A][:4]]
    expected = known_after(scene, Step(A, scene.lines[A]), devices=False)
    for told in ([*old, *scene.lines[A]], [*scene.lines[A][:20], *old, *scene.lines[A][20:]]):
        for at_once in (None, 1):
            known = known_after(scene, Step(A, told, at_once))
            same(expected, {name: known[name] for name in expected})
            assert sum(row[8] for row in known["coverage"]) == 4


def test_lines_without_any_time_are_kept_with_those_of_today(scene: Scene) -> None:
    take(A, [b"not JSON\n"], now=scene.now)
    (hour,) = Coverage.objects.all()
    assert (hour.hour.date(), hour.rejected) == (scene.now.date(), 1)
