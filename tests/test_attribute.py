"""Attribution of many leases at once: the same evidence as lease by lease, a fixed number of queries, no lost change."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import attribute, tasks
from audit.attribute import Decision, decide
from audit.evidence import ADDRESS_LAG, NOBODY, Candidate, Evidence, Living, LoginSeen, gather
from audit.models import AttributionChange
from leases.consumers import MOST
from leases.models import AuthMount, Certainty, Cluster, Lease, Login, Pod, PodAddress, Vault, WatchPeriod

pytestmark = pytest.mark.django_db

SKEW = timedelta(seconds=2)
# so that the times of one world lie on both sides of midnight
BEGIN = datetime(2026, 11, 3, 23, 58, 30, tzinfo=UTC)
LATER = BEGIN + timedelta(hours=1)
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "::ffff:10.0.0.1"]
# what a log says: other spellings, and what is no address
LOGGED = [*ADDRESSES, "2001:DB8:0::1", "", "@", "10.0.0.1%eth0", "10.0.0.99"]


# The evidence lease by lease, as the rule was first written: what gather() must agree with.


def evidence_one_by_one(lease: Lease, *, skew: timedelta) -> Evidence:
    login = lease.login
    mount = login.auth_mount if login else None
    if login is None or mount is None or lease.accessed_at is None:
        cluster = mount.cluster.name if mount else ""
        return Evidence(seen(login), cluster, lease.source_ip, (), False, False, skew.total_seconds())
    cluster_id, at = mount.cluster_id, lease.accessed_at
    read_by = candidates(cluster_id, lease.source_ip, at=at, skew=skew)
    at_read = of_account(read_by, login)
    at_login = of_account(candidates(cluster_id, login.address, at=login.logged_in_at, skew=skew), login)
    both = tuple(pod for pod in at_read if pod in at_login)
    fitting = both or (tuple(dict.fromkeys(at_read + at_login)) if at_read and at_login else ())
    others = tuple(pod for pod in read_by if pod not in at_read)
    settled = caught_up(cluster_id, at=at, skew=skew + ADDRESS_LAG)
    proven = gapless(cluster_id, from_at=login.logged_in_at - skew, to_at=at + skew)
    claimed = bool(login.claimed_pod and login.claimed_pod_uid)
    fetched = fetches(cluster_id, login.service_account_namespace, login.service_account) or (
        proven
        and not claimed
        and not fitting
        and bool(others)
        and all(fetches(cluster_id, pod.namespace, pod.service_account) for pod in others)
    )
    node = next((pod.node for pod in fitting + others if pod.host_network), "")
    return Evidence(
        login=seen(login),
        cluster=mount.cluster.name,
        address=lease.source_ip,
        candidates=fitting,
        gapless=proven,
        caught_up=caught_up(cluster_id, at=at, skew=skew),
        skew_seconds=skew.total_seconds(),
        unplaced=() if settled else unplaced(cluster_id, login, at=at, skew=skew),
        settled=settled,
        others=others,
        logged_in=at_login,
        living=NOBODY
        if fetched or claimed or (fitting and not node)
        else living(cluster_id, login, node, at=at, skew=skew),
        fetched=fetched,
    )


def of_account(found: tuple[Candidate, ...], login: Login) -> tuple[Candidate, ...]:
    account = (login.service_account_namespace, login.service_account)
    return tuple(pod for pod in found if (pod.namespace, pod.service_account) == account)


def fetches(cluster_id: int, namespace: str, account: str) -> bool:
    if f"{namespace}/{account}" in Cluster.objects.get(pk=cluster_id).fetchers:
        return True
    return Pod.objects.filter(cluster=cluster_id, namespace=namespace, service_account=account, fetcher=True).exists()


def living(cluster_id: int, login: Login, node: str, *, at: datetime, skew: timedelta) -> Living:
    pods = (
        Pod.objects.filter(
            cluster=cluster_id,
            namespace=login.service_account_namespace,
            service_account=login.service_account,
            started_at__lte=at + skew,
        )
        .exclude(ended_at__lt=at - skew)
        .exclude(ended_at=None, phase__in=["Succeeded", "Failed"])
    )
    if node:
        pods = pods.filter(node=node)
    names = tuple(f"{pod.namespace}/{pod.name}" for pod in pods.order_by("started_at", "id"))
    return Living(names[:MOST], len(names))


def seen(login: Login | None) -> LoginSeen | None:
    if login is None:
        return None
    fields = [name for name in LoginSeen.__struct_fields__ if name not in {"cluster_id", "cluster", "inherited"}]
    first = login.origin or login
    cluster = first.auth_mount.cluster if first.auth_mount else None
    values = [getattr(first, name) for name in fields]
    rest = [cluster.pk if cluster else None, cluster.name if cluster else "", first != login]
    return msgspec.convert([*values, *rest], LoginSeen)


def unplaced(cluster_id: int, login: Login, *, at: datetime, skew: timedelta) -> tuple[str, ...]:
    pods = Pod.objects.filter(
        cluster=cluster_id,
        namespace=login.service_account_namespace,
        service_account=login.service_account,
        started_at__gte=at - ADDRESS_LAG,
        started_at__lte=at + skew,
        addresses=None,
    ).exclude(node="")
    return tuple(
        f"{pod.namespace}/{pod.name}" for pod in pods.exclude(ended_at__lt=at - skew).order_by("started_at", "id")
    )


def candidates(cluster_id: int, address: str, *, at: datetime, skew: timedelta) -> tuple[Candidate, ...]:
    try:
        ip = str(ip_address(address))
    except ValueError:
        return ()
    rows = (
        PodAddress.objects.filter(address=ip, pod__cluster=cluster_id, from_at__lte=at + skew)
        .exclude(to_at__lt=at - skew)
        .select_related("pod")
        .order_by("from_at", "id")
    )
    pods: dict[str, Pod] = {row.pod.uid: row.pod for row in rows}
    return tuple(candidate(pod) for pod in pods.values())


def candidate(pod: Pod) -> Candidate:
    return Candidate(pod.uid, pod.namespace, pod.name, pod.host_network, pod.service_account, pod.node, pod.fetcher)


def gapless(cluster_id: int, *, from_at: datetime, to_at: datetime) -> bool:
    return WatchPeriod.objects.filter(cluster=cluster_id, from_at__lte=from_at, to_at__gte=to_at).exists()


def caught_up(cluster_id: int, *, at: datetime, skew: timedelta) -> bool:
    return WatchPeriod.objects.filter(cluster=cluster_id, to_at__gte=at + skew).exists()


# Worlds


@dataclass(frozen=True)
class Scene:
    """One cluster whose only pod holds 10.0.0.1, and the login of that pod."""

    vault: Vault
    cluster: Cluster
    login: Login
    pod: Pod


def moment(dice: random.Random) -> datetime:
    """Few times, so that many coincide, meet at the skew's or the lag's border, or miss it by a microsecond."""
    seconds = dice.choice([0, 1, 2, 3, 4, 30, 58, 60, 62, 64, 90, 120, 122, 124, 180])
    return BEGIN + timedelta(seconds=seconds, microseconds=dice.choice([0, 0, 0, -1, 1]))


def end_after(start: datetime, dice: random.Random) -> datetime | None:
    ends = [at for at in (moment(dice) for _ in range(4)) if at >= start]
    return dice.choice([None, *ends])


def random_world(seed: int, *, leases: int = 60) -> list[Lease]:
    """Pods that share addresses, on the host network, reused, without an address; gaps; logins of every kind."""
    dice = random.Random(seed)  # noqa: S311 (no secret comes of it)
    vault = Vault.objects.create(name=f"v{dice.random()}")
    mounts: list[AuthMount | None] = [None]
    for number in range(2):
        fetchers = ["bank/job"] if dice.random() < 0.2 else []
        cluster = Cluster.objects.create(name=f"c{number}-{dice.random()}", fetchers=fetchers)
        mounts.append(AuthMount.objects.create(vault=vault, cluster=cluster, path=f"kubernetes-{number}"))
        for _ in range(dice.choice([0, 1, 1, 3])):
            start = moment(dice) - timedelta(seconds=dice.choice([0, 60, 600]))
            end = start + timedelta(seconds=dice.choice([0, 62, 120, 124, 200, 900, 900]))
            WatchPeriod.objects.create(cluster=cluster, from_at=start, to_at=end)
        for _ in range(dice.randrange(20)):
            start = moment(dice)
            pod = Pod.objects.create(
                cluster=cluster,
                uid=str(uuid.UUID(int=dice.getrandbits(128))),
                namespace=dice.choice(["shop", "shop", "shop", "bank"]),
                name=f"pod-{dice.randrange(100)}",
                service_account=dice.choice(["web", "web", "web", "job"]),
                node=dice.choice(["n1", "n1", ""]),
                host_network=dice.random() < 0.2,
                phase=dice.choice(["Running", "Running", "Succeeded"]),
                fetcher=dice.random() < 0.02,
                started_at=start,
                ended_at=end_after(start, dice),
            )
            for address in dice.sample(ADDRESSES, dice.choice([0, 1, 1, 2])):
                for from_at in {start, moment(dice)} if dice.random() < 0.3 else {start}:
                    PodAddress.objects.create(pod=pod, address=address, from_at=from_at, to_at=end_after(from_at, dice))
    logins: list[Login | None] = [None]
    for number in range(max(1, leases // 2)):
        claimed = dice.random() < 0.1
        logins.append(
            Login.objects.create(
                vault=vault,
                request_id=f"login-{number}",
                logged_in_at=moment(dice),
                mount_path=dice.choice(["kubernetes-0", "approle"]),
                auth_mount=dice.choice([*mounts, *mounts[1:], *mounts[1:]]),
                address=dice.choice([*ADDRESSES[:2] * 5, *LOGGED]),
                service_account_namespace=dice.choice(["shop", "shop", "shop", "bank"]),
                service_account=dice.choice(["web", "web", "job", ""]),
                claimed_pod="claimed" if claimed else "",
                claimed_pod_uid="uid-of-claimed" if claimed else "",
            )
        )
    return [
        lease(
            vault,
            login := dice.choice(logins),
            accessed_at=moment(dice) if dice.random() < 0.95 else None,
            source_ip=login.address if login and dice.random() < 0.7 else dice.choice(LOGGED),
        )
        for _ in range(leases)
    ]


def lease(vault: Vault, login: Login | None, **fields: Any) -> Lease:
    return Lease.objects.create(**row(vault, login, **fields))


def row(vault: Vault, login: Login | None, **fields: Any) -> dict[str, Any]:
    return {
        "vault": vault,
        "lease_id": f"database/creds/r/{uuid.uuid4()}",
        "mount": "database",
        "login": login,
        "accessed_at": BEGIN,
        "source_ip": "10.0.0.1",
        "first_seen_at": BEGIN,
        "updated_at": BEGIN,
    } | fields


@pytest.fixture
def scene() -> Scene:
    vault, cluster = Vault.objects.create(name="v"), Cluster.objects.create(name="c")
    mount = AuthMount.objects.create(vault=vault, cluster=cluster, path="kubernetes")
    WatchPeriod.objects.create(cluster=cluster, from_at=BEGIN - timedelta(hours=1), to_at=BEGIN + timedelta(hours=1))
    pod = Pod.objects.create(
        cluster=cluster, uid="u", namespace="shop", name="web-1", service_account="web", node="n", started_at=BEGIN
    )
    PodAddress.objects.create(pod=pod, address="10.0.0.1", from_at=BEGIN)
    login = Login.objects.create(
        vault=vault,
        request_id="l",
        logged_in_at=BEGIN,
        mount_path="kubernetes",
        auth_mount=mount,
        address="10.0.0.1",
        service_account_namespace="shop",
        service_account="web",
    )
    return Scene(vault, cluster, login, pod)


def many(scene: Scene, count: int, **fields: Any) -> list[int]:
    """Leases of the scene's login, none attributed yet. Their keys, oldest first."""
    made = Lease.objects.bulk_create([Lease(**row(scene.vault, scene.login, **fields)) for _ in range(count)])
    return sorted(one.pk for one in made)


# Evidence


@pytest.mark.parametrize("seed", range(25))
def test_evidence_gathered_at_once_is_the_evidence_gathered_lease_by_lease(seed: int) -> None:
    world = random_world(seed)
    found = gather([one.pk for one in world], skew=SKEW)
    assert [held.id for held, _ in found] == [one.pk for one in world]
    for one, (held, evidence) in zip(world, found, strict=True):
        assert evidence == evidence_one_by_one(one, skew=SKEW), held


def test_the_random_worlds_hold_every_kind_of_evidence() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(25):
        for _, one in gather([lease.pk for lease in random_world(seed)], skew=SKEW):
            known = bool(one.candidates)
            kinds[decide(one).certainty] += 1
            kinds["unregistered mount"] += one.login is not None and one.login.auth_mount_id is None
            kinds["host network"] += len(one.candidates) == 1 and one.candidates[0].host_network
            kinds["three at once"] += len(one.candidates) > 2
            kinds["one, and one not placed"] += len(one.candidates) == 1 and bool(one.unplaced) and one.gapless
            kinds["a gap"] += known and one.caught_up and not one.gapless
            kinds["not caught up"] += known and not one.caught_up
            kinds["settled"] += known and one.settled
            kinds["IPv6"] += known and ":" in one.address
            kinds["nobody's address"] += not known and one.gapless and one.living.count > 0
            kinds["another's address"] += not known and bool(one.others)
            kinds["pods of a node"] += one.living.count > 0 and known
            kinds["fetched"] += one.fetched
            kinds["fetched, by address"] += one.fetched and not known and bool(one.others)
    assert len(kinds) == len(Certainty) + 13
    assert min(kinds.values()) >= 3, kinds


@pytest.mark.parametrize("seed", range(5))
def test_leases_and_their_history_say_what_the_rule_decides_on_that_evidence(seed: int) -> None:
    world = random_world(seed)
    decided = {one.pk: decide(evidence_one_by_one(one, skew=SKEW)) for one in world}
    held = {lease.id: (lease, evidence) for lease, evidence in gather(list(decided), skew=SKEW)}
    changed = attribute.attribute([one.pk for one in world], now=LATER)
    assert changed == AttributionChange.objects.count() == len(world)
    changes = AttributionChange.objects.order_by("id")
    for before, change in zip(world, changes, strict=True):
        after = Lease.objects.select_related("login__auth_mount__cluster").get(pk=before.pk)
        decision = decided[before.pk]
        assert said(after) == expected(before, decision)
        assert after.attribution_open == (decision.open and not attribute.is_over(*held[before.pk], now=LATER))
        assert after.updated_at == LATER
        assert (change.at, change.vault, change.lease_id) == (LATER, before.vault.name, before.lease_id)
        assert (change.certainty_before, change.certainty) == (Certainty.UNKNOWN, decision.certainty)
        assert (change.reason, change.cluster) == (decision.reason, after.cluster)
        assert (change.pod_namespace, change.pod, change.pod_uid) == (after.pod_namespace, after.pod, after.pod_uid)
        account = after.service_account and f"{after.service_account_namespace}/{after.service_account}"
        assert change.service_account == account
    assert attribute.attribute([one.pk for one in world], now=LATER) == 0
    assert AttributionChange.objects.count() == len(world)


def said(lease: Lease) -> tuple[str, ...]:
    names = (lease.pod_namespace, lease.pod, lease.pod_uid)
    account = (lease.service_account_namespace, lease.service_account)
    return (lease.certainty, lease.certainty_reason, lease.cluster, *account, *names)


def expected(lease: Lease, decision: Decision) -> tuple[str, ...]:
    pod, login = decision.pod, lease.login
    cluster = login.auth_mount.cluster.name if login and login.auth_mount else ""
    account = (login.service_account_namespace, login.service_account) if login else ("", "")
    names = (pod.namespace, pod.name, pod.uid) if pod else ("", "", "")
    return (decision.certainty, decision.reason, cluster, *account, *names)


def test_a_link_local_address_with_its_interface_is_no_pods_and_stops_nothing(scene: Scene) -> None:
    strange = lease(scene.vault, scene.login, source_ip="fe80::1%eth0")
    plain = lease(scene.vault, scene.login)
    attribute.attribute([strange.pk, plain.pk], now=BEGIN)
    assert Lease.objects.get(pk=strange.pk).certainty == Certainty.SERVICE_ACCOUNT
    assert Lease.objects.get(pk=plain.pk).certainty == Certainty.INFERRED


def test_an_address_that_was_reused_on_another_day_is_not_confused_with_that_of_today(scene: Scene) -> None:
    day = timedelta(days=1)
    PodAddress.objects.update(to_at=BEGIN + timedelta(minutes=5))
    old = Pod.objects.create(
        cluster=scene.cluster, uid="o", namespace="shop", name="old", service_account="web", node="n", started_at=BEGIN
    )
    PodAddress.objects.create(pod=old, address="10.0.0.1", from_at=BEGIN - day, to_at=BEGIN - timedelta(seconds=3))
    scene.login.pk = None
    before = scene.login
    before.request_id, before.logged_in_at = "yesterday", BEGIN - day
    before.save()
    today = Login.objects.get(request_id="l")
    keys = [lease(scene.vault, today).pk, lease(scene.vault, before, accessed_at=BEGIN - day).pk]
    found = [evidence.candidates for _, evidence in gather(keys, skew=SKEW)]
    assert [[pod.name for pod in pods] for pods in found] == [["web-1"], ["old"]]


# Queries


def queries(keys: list[int]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        attribute.attribute(keys, now=BEGIN)
    return [query["sql"] for query in captured.captured_queries]


def test_the_number_of_queries_is_the_same_for_one_lease_and_for_five_hundred(scene: Scene) -> None:
    # the watch has not come far enough, so that starting pods are looked for, too
    WatchPeriod.objects.update(to_at=BEGIN + timedelta(seconds=10))
    counts = {count: len(queries(many(scene, count))) for count in (1, 50, 500)}
    # policy, leases, watch periods, starting pods, addresses, who fetches for others; one more writes all down
    assert counts == {1: 7, 50: 7, 500: 7}
    assert AttributionChange.objects.count() == 551


def test_no_lease_needs_no_query() -> None:
    assert queries([]) == []


def test_what_has_not_changed_is_not_written(scene: Scene) -> None:
    keys = many(scene, 3)
    attribute.attribute(keys, now=BEGIN)
    assert not [sql for sql in queries(keys) if "UPDATE" in sql]


def test_who_had_an_address_is_told_by_the_index_made_for_it(scene: Scene) -> None:
    sql = next(sql for sql in queries(many(scene, 1)) if "FROM leases_podaddress WHERE" in sql)
    with connection.cursor() as cursor:
        # the tables of a test are so small that reading all of them is cheaper
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(line for (line,) in cursor)
    assert "using pod_address_by_address" in plan
    assert "COALESCE(to_at" in plan.partition("pod_address_by_address")[2].partition("Index Cond")[2].splitlines()[0]


# Writing


def test_a_lease_that_another_worker_has_changed_is_not_overwritten_with_older_evidence(scene: Scene) -> None:
    keys = many(scene, 2)
    Lease.objects.update(login=None)
    changes = [
        change
        for held, evidence in gather(keys, skew=SKEW)
        if (change := attribute.settle(held, evidence, decide(evidence), now=LATER))
    ]
    assert len(changes) == 2
    # meanwhile ingest has found the login of the first
    Lease.objects.filter(pk=keys[0]).update(login=scene.login)
    assert attribute.save(changes, now=LATER) == {keys[1]}
    assert list(Lease.objects.order_by("id").values_list("certainty_reason", "attribution_open")) == [
        ("", True),
        ("the login whose token read it was not seen in the audit log", False),
    ]
    assert AttributionChange.objects.count() == 1


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_what_comes_in_while_a_worker_waits_for_a_lease_is_taken_into_account(scene: Scene) -> None:
    key = many(scene, 1)[0]
    Lease.objects.update(login=None)

    def work() -> None:
        attribute.attribute([key], now=BEGIN)
        connection.close()

    worker = threading.Thread(target=work)
    with transaction.atomic(using="owner"):
        Lease.objects.using("owner").filter(pk=key).update(login=scene.login.pk)
        worker.start()
        until_somebody_waits()
    worker.join()
    assert Lease.objects.get().certainty == Certainty.INFERRED
    assert [change.certainty for change in AttributionChange.objects.all()] == [Certainty.INFERRED]


def until_somebody_waits() -> None:
    """Until a statement waits for another one's lock."""
    deadline = time.monotonic() + 20
    with connections["owner"].cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
            time.sleep(0.01)
    raise AssertionError("nobody waits")


@pytest.mark.django_db(transaction=True, databases=["default", "owner"])
def test_a_turn_does_not_wait_for_a_lease_that_is_being_changed_but_leaves_it_to_the_next(scene: Scene) -> None:
    keys = many(scene, 2)
    with transaction.atomic(using="owner"):
        Lease.objects.using("owner").filter(pk=keys[0]).update(renewals=1)
        assert attribute.attribute_waiting(seconds=60) == 2
        assert attribute.open_leases() == keys[:1]
    attribute.attribute_waiting(seconds=60)
    assert attribute.open_leases() == []
    assert AttributionChange.objects.count() == 2


def test_the_end_of_waiting_alone_is_no_change_of_a_leases_history(scene: Scene) -> None:
    PodAddress.objects.all().delete()
    WatchPeriod.objects.update(to_at=BEGIN + timedelta(seconds=10))
    key = many(scene, 1)[0]
    assert attribute.attribute([key], now=BEGIN) == 1
    assert attribute.attribute([key], now=BEGIN + attribute.WATCH_LATE) == 0
    assert Lease.objects.get().attribution_open
    assert attribute.attribute([key], now=BEGIN + attribute.WATCH_LATE + timedelta(minutes=1)) == 0
    found = Lease.objects.get()
    assert (found.attribution_open, found.updated_at) == (False, BEGIN)
    assert AttributionChange.objects.count() == 1


# The backlog


def test_open_leases_are_taken_once_each_newest_first_and_fresh_ones_before_older_ones(scene: Scene) -> None:
    keys = many(scene, 5)
    turn: Iterator[list[int]] = attribute.waiting(limit=2)
    assert next(turn) == [keys[4], keys[3]]
    fresh = many(scene, 3)
    assert [next(turn), next(turn)] == [fresh[:2], fresh[2:]]
    assert list(turn) == [[keys[2], keys[1]], [keys[0]]]


def test_a_lease_that_stays_open_is_looked_at_once_in_a_turn(scene: Scene) -> None:
    PodAddress.objects.all().delete()
    keys = many(scene, 7, accessed_at=timezone.now())
    assert attribute.attribute_waiting(seconds=60, limit=2) == 7
    assert sorted(attribute.open_leases()) == keys


def test_a_turn_ends_after_the_slice_in_which_its_time_is_up(scene: Scene) -> None:
    keys = many(scene, 5)
    assert attribute.attribute_waiting(seconds=0, limit=2) == 2
    assert sorted(attribute.open_leases()) == keys[:3]


def test_a_backlog_of_old_leases_is_closed_and_what_still_waits_is_left_open(scene: Scene) -> None:
    PodAddress.objects.all().delete()
    old = many(scene, 4_100)
    waiting = many(scene, 3, accessed_at=timezone.now())
    tasks.attribute_open()
    assert sorted(attribute.open_leases()) == waiting
    assert AttributionChange.objects.count() == len(old) + len(waiting)


def test_a_struct_of_a_lease_has_the_fields_that_its_query_reads() -> None:
    """The rows are decoded by place: a column that is added to one side only must not go unnoticed."""
    lease(Vault.objects.create(name="v"), None, certainty_reason="r", cluster="c", source_ip="10.0.0.9")
    ((held, _),) = gather(list(Lease.objects.values_list("id", flat=True)), skew=SKEW)
    stored = Lease.objects.values(*msgspec.structs.asdict(held)).get()
    assert msgspec.structs.asdict(held) == stored
