"""What is seen of a cluster becomes pods with their workloads, accounts and synced secrets; what is missing is named."""

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from kubernetes.client import ApiException

from audit import doctor
from demo import kube, processes
from demo.kube import driver
from leases import clients, health, inventory, queries, tasks, watch
from leases import kube as kube_client
from leases.inventory import Sight
from leases.kube import OwnerSeen, PodSeen, ServiceAccountSeen, SyncSeen
from leases.models import (
    Cluster,
    Pod,
    PodAddress,
    PodOwner,
    SecretSync,
    ServiceAccount,
    SourceState,
    SyncedLease,
    WatchedKind,
    WatchPeriod,
)
from leases.models.sources import SourceKind
from tests import many_pods as many_pods_server

pytestmark = pytest.mark.django_db

BEGIN = datetime(2026, 11, 3, 12, tzinfo=UTC)
POD = PodSeen(
    uid="u-1",
    namespace="shop",
    name="web-5b7-x",
    service_account="web",
    node="n1",
    host_network=False,
    phase="Running",
    addresses=("10.0.0.1",),
    owner_kind="ReplicaSet",
    owner_name="web-5b7",
    owner_uid="rs-1",
    annotations={},
    fetcher=False,
    secrets=("web-db",),
    created_at=BEGIN,
    started_at=BEGIN + timedelta(seconds=1),
    deleted_at=None,
    resource_version="1",
)
REPLICA_SET = OwnerSeen("rs-1", "ReplicaSet", "shop", "web-5b7", "Deployment", "web")


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster.objects.create(name="c")


def sight(pod: PodSeen, *, at: float = 2, gone: bool = False) -> list[Sight[PodSeen]]:
    return [Sight(pod, gone, after(at))]


def addresses() -> list[tuple[str, datetime, datetime | None]]:
    return list(PodAddress.objects.order_by("from_at", "address").values_list("address", "from_at", "to_at"))


# Pods


def test_a_pod_and_its_addresses_follow_what_was_seen(cluster: Cluster) -> None:
    inventory.take_pods(cluster, sight(replace(POD, addresses=(), phase="Pending", started_at=None)))
    assert (Pod.objects.get().started_at, addresses()) == (BEGIN, [])
    inventory.take_pods(cluster, sight(replace(POD, addresses=("10.0.0.1", "fd00::1")), at=3))
    assert addresses() == [("10.0.0.1", after(1), None), ("fd00::1", after(1), None)]
    inventory.take_pods(cluster, sight(replace(POD, addresses=("10.0.0.2", "fd00::1")), at=60))
    moved = [("10.0.0.1", after(1), after(60)), ("fd00::1", after(1), None), ("10.0.0.2", after(60), None)]
    assert addresses() == moved
    inventory.take_pods(cluster, sight(POD, at=90, gone=True))
    pod = Pod.objects.get()
    assert (pod.ended_at, pod.secrets, pod.phase, pod.node) == (after(90), ["web-db"], "Running", "n1")
    assert [to_at for _, _, to_at in addresses()] == [after(60), after(90), after(90)]
    inventory.take_pods(cluster, sight(POD, at=95, gone=True))
    assert Pod.objects.get().ended_at == after(90)


def test_a_finished_pod_has_given_its_address_back(cluster: Cluster) -> None:
    inventory.take_pods(cluster, sight(POD))
    inventory.take_pods(cluster, sight(replace(POD, phase="Succeeded"), at=30))
    assert Pod.objects.get().ended_at == after(30)
    assert addresses() == [("10.0.0.1", after(1), after(30))]


def test_pods_that_a_list_no_longer_has_ended(cluster: Cluster) -> None:
    other = Cluster.objects.create(name="other")
    inventory.take_pods(other, sight(POD))
    inventory.take_pods(cluster, [Sight(POD, False, after(2)), Sight(replace(POD, uid="u-2"), False, after(2))])
    inventory.end_missing_pods(cluster, ["u-2"], after(60))
    ended = dict(Pod.objects.filter(cluster=cluster).values_list("uid", "ended_at"))
    assert ended == {"u-1": after(60), "u-2": None}
    assert Pod.objects.get(cluster=other).ended_at is None
    assert PodAddress.objects.filter(to_at=None).count() == 2


def test_a_page_of_pods_takes_as_many_statements_as_one(cluster: Cluster) -> None:
    counts = []
    for size in (1, 50, 500):
        pods = [Sight(replace(POD, uid=f"{size}-{number}"), False, after(2)) for number in range(size)]
        with CaptureQueriesContext(connection) as captured:
            inventory.take_pods(cluster, pods)
        counts.append(len(captured.captured_queries))
    assert len(set(counts)) == 1
    assert Pod.objects.count() == 551


def test_what_an_annotation_may_hold_stops_nothing(cluster: Cluster) -> None:
    odd = {"vault.hashicorp.com/a": 'zero\x00, \\u0000, \\\x00 and a quote "'}
    inventory.take_pods(cluster, sight(replace(POD, annotations=odd)))
    assert Pod.objects.get().annotations == {"vault.hashicorp.com/a": 'zero, \\u0000, \\ and a quote "'}


# Owners


@pytest.mark.parametrize("first", ["pod", "owner"])
def test_a_pods_workload_is_known_whichever_is_seen_first_and_stays_when_the_owner_goes(
    cluster: Cluster, first: str
) -> None:
    steps: list[Callable[[], None]] = [
        lambda: inventory.take_pods(cluster, sight(POD)),
        lambda: inventory.take_owners(cluster, [Sight(REPLICA_SET, False, after(2))]),
    ]
    for step in steps if first == "pod" else reversed(steps):
        step()
    pod = Pod.objects.get()
    assert (pod.owner_kind, pod.owner_name) == ("ReplicaSet", "web-5b7")
    assert (pod.workload_kind, pod.workload_name) == ("Deployment", "web")
    inventory.take_owners(cluster, [Sight(replace(REPLICA_SET, owner_kind="", owner_name=""), True, after(3))])
    inventory.take_pods(cluster, sight(replace(POD, phase="Failed"), at=4))
    inventory.take_pods(cluster, sight(replace(POD, uid="late"), at=5))
    assert Pod.objects.get(uid="u-1").workload_name == "web"


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Node", ""])
def test_an_owner_of_another_kind_is_the_workload_itself(cluster: Cluster, kind: str) -> None:
    inventory.take_pods(cluster, sight(replace(POD, owner_kind=kind, owner_name=kind and "data", owner_uid=kind)))
    pod = Pod.objects.get()
    assert (pod.workload_kind, pod.workload_name) == (kind, kind and "data")


def test_owners_of_one_uid_in_two_clusters_are_two(cluster: Cluster) -> None:
    other = Cluster.objects.create(name="other")
    inventory.take_pods(other, sight(POD))
    inventory.take_owners(cluster, [Sight(REPLICA_SET, False, after(2))])
    assert Pod.objects.get().workload_kind == "ReplicaSet"


# Service accounts and synced secrets


def test_an_account_made_anew_under_its_name_is_another_one(cluster: Cluster) -> None:
    first = ServiceAccountSeen("a", "shop", "web", BEGIN)
    inventory.take_service_accounts(cluster, [Sight(first, False, after(1))])
    inventory.take_service_accounts(cluster, [Sight(first, True, after(9))])
    second = ServiceAccountSeen("b", "shop", "web", after(10))
    inventory.take_service_accounts(cluster, [Sight(second, False, after(11))])
    rows = ServiceAccount.objects.order_by("id").values_list("uid", "created_at", "first_seen_at", "deleted_at")
    assert list(rows) == [("a", BEGIN, after(1), after(9)), ("b", after(10), after(11), None)]
    inventory.end_missing_service_accounts(cluster, [], after(20))
    assert ServiceAccount.objects.get(uid="b").deleted_at == after(20)
    assert ServiceAccount.objects.get(uid="a").deleted_at == after(9)


def test_each_lease_that_a_resource_names_stays_linked_to_it(cluster: Cluster) -> None:
    sync = SyncSeen("s", "VaultDynamicSecret", "shop", "db", ("database/creds/r",), (), "web-db", "", BEGIN)
    for number, lease_id in enumerate(["", "database/creds/r/1", "database/creds/r/1", "database/creds/r/2"]):
        inventory.take_syncs(cluster, [Sight(replace(sync, lease_id=lease_id), False, after(number))])
    found = SyncedLease.objects.order_by("id").values_list("lease_id", "seen_at", "sync__secret")
    assert list(found) == [("database/creds/r/1", after(1), "web-db"), ("database/creds/r/2", after(3), "web-db")]
    inventory.end_missing_syncs("ExternalSecret", cluster, [], after(9))
    assert SecretSync.objects.get().deleted_at is None
    inventory.end_missing_syncs("VaultDynamicSecret", cluster, [], after(9))
    assert SecretSync.objects.get().deleted_at == after(9)


# A cluster over HTTP


class Place:
    """A cluster of its own, watched under a service account that may do what it is given."""

    def __init__(self, server: kube.Cluster) -> None:
        self.server = server
        self.api = driver.connect(server)
        for namespace in ("leasehold", "shop"):
            driver.create_namespace(self.api, namespace)
        driver.create_service_account(self.api, "leasehold", "leasehold")
        driver.create_service_account(self.api, "shop", "web")

    def watched(self, folder: Path) -> Cluster:
        token = folder / f"token-{uuid.uuid4()}"
        token.write_text(driver.request_token(self.api, "leasehold", "leasehold"))
        ca_file = str(self.server.ca_file) if self.server.ca_file else ""
        return Cluster.objects.create(
            name=f"c-{uuid.uuid4()}", address=self.server.address, ca_file=ca_file, token={"file": str(token)}
        )

    def pod(self, name: str, **options: object) -> str:
        values = {"service_account": "web", "node": "n1", **options}
        return driver.create_pod(self.api, "shop", name, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(run_folder: Path) -> Iterator[Place]:
    server = kube.start(run_folder / "kube-inventory")
    place = Place(server)
    yield place
    place.api.close()  # type: ignore[no-untyped-call]
    server.stop()


def follow(cluster: Cluster) -> None:
    """One window of every watch, as a turn of a worker does it."""
    watch.follow(cluster, seconds=0, on_change=lambda: tasks.pods_changed(cluster), window=1)


def test_without_the_rules_for_owners_pods_are_watched_and_the_missing_rules_are_named(
    place: Place, tmp_path: Path
) -> None:
    driver.grant(place.api, "pods-only", [("", ["pods"])], "leasehold", "leasehold")
    cluster = place.watched(tmp_path)
    uid = place.pod("plain", ip="10.9.0.1")
    follow(cluster)
    assert Pod.objects.get(uid=uid).addresses.get().address == "10.9.0.1"
    assert WatchPeriod.objects.filter(cluster=cluster).count() == 1
    state = SourceState.objects.get(kind=SourceKind.CLUSTER, name=cluster.name)
    assert state.ok
    for resource in ("jobs", "replicasets", "serviceaccounts"):
        assert f"resources: [{resource}], verbs: [list]" in state.fix
    # an operator that is not there is not missed
    assert "secrets" not in state.cause + state.fix
    source = next(one for one in queries.sources(now=timezone.now()) if one.name == cluster.name)
    assert (source.status, source.cause) == ("limited", state.cause)
    wrong = {finding.what.removeprefix(f"cluster {cluster.name}"): finding for finding in doctor.clusters()}
    assert wrong[""].ok
    owners = wrong[", owners of pods"]
    assert not owners.ok
    assert 'apiGroups: ["apps"], resources: [replicasets], verbs: [list, watch]' in owners.fix
    assert (wrong[", fetched secrets"].ok, wrong[", fetched secrets"].hint) == (True, "")
    driver.create_pod(
        place.api, "shop", "eso", service_account="web", labels={"app.kubernetes.io/name": "external-secrets"}
    )
    follow(cluster)
    hint = {finding.what: finding for finding in doctor.clusters()}[f"cluster {cluster.name}, fetched secrets"].hint
    assert "resources: [externalsecrets], verbs: [list, watch]" in hint
    # with the rules it is asked for again, and nothing is missing any more
    driver.grant_reader(place.api, "leasehold", "leasehold")
    WatchedKind.objects.filter(cluster=cluster).update(retry_at=timezone.now())
    follow(cluster)
    assert watch.missing_rules(cluster) is None
    assert all(finding.ok and not finding.hint for finding in doctor.clusters())


def test_every_kind_is_listed_then_watched_and_listed_anew_where_its_history_is_gone(
    place: Place, tmp_path: Path
) -> None:
    driver.grant_reader(place.api, "leasehold", "leasehold")
    cluster = place.watched(tmp_path)
    deployment = driver.Owner("Deployment", "orders", str(uuid.uuid4()), "apps/v1")
    before = driver.create_owner(place.api, "ReplicaSet", "shop", "orders-1", owner=deployment)
    first = place.pod("orders-1-x", owner=before)
    follow(cluster)
    assert Pod.objects.get(uid=first).workload_name == "orders"
    period = WatchPeriod.objects.get(cluster=cluster)
    cron_job = driver.Owner("CronJob", "nightly", str(uuid.uuid4()), "batch/v1")
    job = driver.create_owner(place.api, "Job", "shop", "nightly-1", owner=cron_job)
    second = place.pod("nightly-1-x", owner=job)
    account = driver.create_service_account(place.api, "shop", "short-lived")
    follow(cluster)
    assert Pod.objects.get(uid=second).workload_name == "nightly"
    assert ServiceAccount.objects.get(uid=account).deleted_at is None
    # nothing was listed anew
    assert WatchPeriod.objects.get(cluster=cluster).pk == period.pk
    driver.delete_service_account(place.api, "shop", "short-lived")
    driver.delete_pod(place.api, "shop", "nightly-1-x")
    place.server.compact()
    if not place.server.is_real:
        WatchedKind.objects.filter(cluster=cluster).update(resource_version="1")
        follow(cluster)
        assert set(WatchedKind.objects.filter(cluster=cluster).values_list("resource_version", flat=True)) == {""}
    follow(cluster)
    assert ServiceAccount.objects.get(uid=account).deleted_at is not None
    assert Pod.objects.get(uid=second).ended_at is not None
    assert WatchPeriod.objects.filter(cluster=cluster).count() == (1 if place.server.is_real else 2)
    assert PodOwner.objects.filter(cluster=cluster).count() == 2


def test_an_operators_resources_are_watched_once_it_is_installed_also_under_the_older_version(
    place: Place, tmp_path: Path
) -> None:
    driver.grant_reader(place.api, "leasehold", "leasehold")
    cluster = place.watched(tmp_path)
    follow(cluster)
    assert not SecretSync.objects.exists()
    group = "external-secrets.io"
    driver.define(place.api, group, "v1beta1", "ExternalSecret")
    spec = {"target": {"name": "web-db"}, "dataFrom": [{"extract": {"key": "database/creds/web"}}]}

    def made() -> bool:
        try:
            driver.create_custom(place.api, group, "v1beta1", "ExternalSecret", "shop", "web", spec)
        except ApiException:
            return False
        return True

    processes.wait_until(made, what="ExternalSecret", seconds=20)
    WatchedKind.objects.filter(cluster=cluster).update(retry_at=timezone.now())
    follow(cluster)
    sync = SecretSync.objects.get()
    assert (sync.kind, sync.secret, sync.paths) == ("ExternalSecret", "web-db", ["database/creds/web"])
    assert watch.missing_rules(cluster) is None


def test_a_cluster_whose_pods_may_not_be_seen_is_failing(place: Place, tmp_path: Path) -> None:
    driver.create_service_account(place.api, "leasehold", "nobody")
    cluster = place.watched(tmp_path)
    assert cluster.token is not None
    Path(cluster.token["file"]).write_text(driver.request_token(place.api, "leasehold", "nobody"))
    tasks.watch_cluster(cluster.pk)
    state = SourceState.objects.get(kind=SourceKind.CLUSTER, name=cluster.name)
    assert not state.ok
    assert 'apiGroups: [""], resources: [pods], verbs: [list]' in state.fix
    assert not health.may_ask(SourceKind.CLUSTER, cluster.name, now=state.checked_at)


def test_a_broken_watch_of_another_kind_stops_no_pod(place: Place, tmp_path: Path) -> None:
    driver.grant_reader(place.api, "leasehold", "leasehold")
    cluster = place.watched(tmp_path)
    follow(cluster)
    WatchedKind.objects.filter(cluster=cluster, kind="jobs.batch v1").update(resource_version="no version")
    uid = place.pod("steady", ip="10.9.0.7")
    follow(cluster)
    assert Pod.objects.filter(cluster=cluster, uid=uid).exists()
    doubt = watch.missing_rules(cluster)
    assert doubt is not None
    assert "jobs.batch" in doubt.cause


# Very many


PODS = 20_000


@pytest.fixture
def many_pods(run_folder: Path, tmp_path: Path) -> Iterator[Cluster]:
    port = processes.free_port()
    command = [sys.executable, "-m", "tests.many_pods", str(port), str(PODS)]
    server = processes.spawn(command, log=run_folder / "many-pods.log", cwd=Path(__file__).resolve().parent.parent)
    processes.wait_until(lambda: processes.accepts(port), what="many pods", seconds=20)
    (tmp_path / "token").write_text("token")
    yield Cluster.objects.create(
        name="many", address=f"http://127.0.0.1:{port}", token={"file": str(tmp_path / "token")}
    )
    processes.stop(server)


def memory(of: str) -> float:
    """Megabytes: VmRSS now, or VmHWM, the most since it was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{of}:"))


@pytest.mark.slow
def test_twenty_thousand_pods_are_listed_and_stored_in_a_page_s_memory(many_pods: Cluster) -> None:
    pod_bytes = len(many_pods_server.encoded(1))
    assert 10_000 < pod_bytes < 13_000
    client = clients.kube(many_pods)
    # what is loaded once by the first page is not the history's
    next(client.list(kube_client.PODS).pages())
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    began_at = time.monotonic()
    watch.list_all(many_pods, client)
    seconds, grown = time.monotonic() - began_at, memory("VmHWM") - before
    assert Pod.objects.filter(cluster=many_pods, ended_at=None).count() == PODS
    assert PodAddress.objects.filter(to_at=None).count() == PODS
    assert Pod.objects.first().secrets == ["web-db"]  # type: ignore[union-attr]
    began_at = time.monotonic()
    watch.list_all(many_pods, client)
    again = time.monotonic() - began_at
    assert PodAddress.objects.count() == PODS
    figures = f"{pod_bytes} B a pod: {seconds:.1f} s, anew {again:.1f} s, {grown:.0f} MB more at most"
    assert grown < 60, figures
    assert seconds < 60, figures
