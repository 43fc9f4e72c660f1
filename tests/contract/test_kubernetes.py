"""What the product, the demo and OpenBao rely on in a Kubernetes API: one suite for the stand-in and the real server.

The real one runs where KUBEBUILDER_ASSETS names a folder with etcd and kube-apiserver (`setup-envtest use -p path`).
"""

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hvac
import jwt
import msgspec
import pytest
from kubernetes import client

from demo import kube, openbao, processes
from demo.kube import driver
from leases import kube as product
from leases.kube import (
    EXTERNAL_SECRETS,
    GENERATORS,
    JOBS,
    OLD_EXTERNAL_SECRETS,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    VAULT_DYNAMIC_SECRETS,
    Change,
    Kind,
    KubeClient,
    KubeDenied,
    KubeError,
    KubeGone,
    KubeNotServed,
    KubeUnauthorized,
    KubeUnreachable,
    PodSeen,
    SyncSeen,
)

_SERVERS = ["stand-in", "real"] if os.environ.get("KUBEBUILDER_ASSETS") else ["stand-in"]
_numbers = itertools.count(1)
# a real API server remembers for 10 s that a token was good
_TOKEN_CACHE_SECONDS = 15


@dataclass
class Place:
    """A namespace of its own on the server under test, with a service account `orders`."""

    cluster: kube.Cluster
    admin: client.ApiClient
    namespace: str

    def pod(self, name: str, **options: Any) -> str:
        """Makes a pod of `orders`; gives its uid."""
        return driver.create_pod(self.admin, self.namespace, name, **{"service_account": "orders", **options})

    def delete(self, name: str, grace_seconds: int = 0) -> None:
        """Deletes a pod."""
        driver.delete_pod(self.admin, self.namespace, name, grace_seconds=grace_seconds)

    def token(self, **options: Any) -> str:
        """A token of `orders`."""
        return driver.request_token(self.admin, self.namespace, "orders", **options)

    def client(self, token: str | None = None, **options: Any) -> KubeClient:
        """The product's client, as the administrator if nothing else is said."""
        return _client(self.cluster, token or self.cluster.admin_token, **options)

    def listed(self) -> dict[str, PodSeen]:
        """The pods of this namespace by name, as the product lists them."""
        return {pod.name: pod for pod in self.client().list(PODS) if pod.namespace == self.namespace}

    def review(self, token: str, audiences: list[str] | None = None) -> Any:
        """TokenReview's status."""
        spec = client.V1TokenReviewSpec(token=token, audiences=audiences)
        review: Any = client.AuthenticationV1Api(self.admin).create_token_review(client.V1TokenReview(spec=spec))
        return review.status


@pytest.fixture(scope="module", params=_SERVERS)
def cluster(request: pytest.FixtureRequest, run_folder: Path) -> Iterator[kube.Cluster]:
    running = kube.start(run_folder / f"kube-contract-{request.param}", real=request.param == "real")
    yield running
    running.stop()


def test_a_real_api_server_is_held_to_the_same() -> None:
    if "real" not in _SERVERS:  # said once, not by each test
        pytest.skip("KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver (`setup-envtest use -p path`)")


@pytest.fixture(scope="module")
def admin(cluster: kube.Cluster) -> Iterator[client.ApiClient]:
    with driver.connect(cluster) as api:
        yield api


@pytest.fixture
def place(cluster: kube.Cluster, admin: client.ApiClient) -> Place:
    namespace = f"contract-{next(_numbers)}"
    driver.create_namespace(admin, namespace)
    driver.create_service_account(admin, namespace, "orders")
    return Place(cluster, admin, namespace)


def _client(cluster: kube.Cluster, token: str, **options: Any) -> KubeClient:
    ca_file = str(cluster.ca_file) if cluster.ca_file else None
    return KubeClient(cluster.address, lambda: token, **{"ca_file": ca_file, **options})


def _stand_in_only(place: Place, why: str) -> None:
    if place.cluster.is_real:
        pytest.skip(f"a real API server cannot be made to do this: {why}")


def _watched(place: Place, version: str, seconds: int = 1) -> list[Change[PodSeen]]:
    """All changes of this namespace's pods until the server ends the watch."""
    changes = place.client().watch(PODS, version, seconds=seconds)
    return [change for change in changes if change.seen and change.seen.namespace == place.namespace]


def _later(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


# listing


def test_a_running_pod_is_listed_with_all_that_attribution_needs(place: Place) -> None:
    owner = driver.create_owner(place.admin, "ReplicaSet", place.namespace, "orders-5b7")
    annotations = {"vault.hashicorp.com/role": "orders", "prometheus.io/scrape": "true"}
    uid = place.pod("orders-5b7-x", node="node-a", ip="10.1.2.3", owner=owner, annotations=annotations)
    pod = place.listed()["orders-5b7-x"]
    assert (pod.uid, pod.namespace, pod.service_account, pod.node) == (uid, place.namespace, "orders", "node-a")
    assert (pod.phase, pod.addresses, pod.host_network) == ("Running", ("10.1.2.3",), False)
    assert (pod.owner_kind, pod.owner_name) == ("ReplicaSet", "orders-5b7")
    assert pod.annotations == {"vault.hashicorp.com/role": "orders"}
    assert pod.started_at is not None
    assert abs(datetime.now(UTC) - pod.started_at) < timedelta(minutes=1)
    assert abs(datetime.now(UTC) - pod.created_at) < timedelta(minutes=1)
    assert pod.deleted_at is None
    assert int(pod.resource_version) > 0


def test_a_new_pod_has_no_address_and_no_start(place: Place) -> None:
    place.pod("waiting")
    pod = place.listed()["waiting"]
    assert (pod.phase, pod.addresses, pod.node, pod.started_at) == ("Pending", (), "", None)
    assert (pod.owner_kind, pod.owner_name, pod.annotations) == ("", "", {})


def test_a_pod_of_a_job_on_the_host_network_is_seen_as_such(place: Place) -> None:
    owner = driver.create_owner(place.admin, "Job", place.namespace, "nightly")
    place.pod("nightly-1", node="node-a", ip="10.9.9.9", owner=owner, host_network=True)
    pod = place.listed()["nightly-1"]
    assert (pod.host_network, pod.owner_kind, pod.owner_name) == (True, "Job", "nightly")


def test_a_dual_stack_pod_has_both_addresses_the_primary_one_first(place: Place) -> None:
    place.pod("dual", node="node-a")
    driver.set_pod_running(place.admin, place.namespace, "dual", ips=["fd00:10::7", "10.1.2.7"])
    assert place.listed()["dual"].addresses == ("fd00:10::7", "10.1.2.7")


def test_a_pod_s_new_address_takes_the_place_of_the_old_one(place: Place) -> None:
    place.pod("moved", node="node-a", ip="10.1.2.3")
    driver.set_pod_running(place.admin, place.namespace, "moved", ips=["10.1.2.4"])
    assert place.listed()["moved"].addresses == ("10.1.2.4",)


def test_odd_statuses_are_survived(place: Place) -> None:
    _stand_in_only(place, "it checks statuses")
    place.pod("odd", node="node-a")
    status = {"phase": None, "podIP": "", "podIPs": [{}, {"ip": "not an address"}, {"ip": "FD00:0:0::1"}]}
    driver.patch_pod_status(place.admin, place.namespace, "odd", status)
    pod = place.listed()["odd"]
    assert (pod.phase, pod.addresses) == ("", ("fd00::1",))


@pytest.mark.parametrize("rest", ["", ', "spec": null, "status": null', ', "spec": {}, "status": {"podIPs": null}'])
def test_missing_and_null_parts_of_a_pod_are_survived(rest: str) -> None:
    meta = '{"uid": "u", "name": "n", "creationTimestamp": "2026-11-01T00:00:00Z", "annotations": null}'
    decoded = msgspec.json.decode(f'{{"metadata": {meta}{rest}}}', type=product._Pod)
    pod = product._pod(decoded)
    assert (pod.uid, pod.addresses, pod.phase, pod.service_account, pod.annotations) == ("u", (), "", "", {})


def test_pages_together_hold_every_pod_of_one_moment(place: Place) -> None:
    uids = {place.pod(f"many-{number}") for number in range(7)}
    listing = place.client().list(PODS, page=3)
    late = place.pod("too-late")
    listed = [pod.uid for pod in listing]
    assert len(listed) == len(set(listed))
    assert uids <= set(listed)
    assert late not in listed
    assert [change.seen.uid for change in _watched(place, listing.resource_version) if change.seen] == [late]


def test_service_accounts_are_listed_in_pages(place: Place) -> None:
    uid = driver.create_service_account(place.admin, place.namespace, "billing")
    found = {
        account.name: account
        for account in place.client().list(SERVICE_ACCOUNTS, page=1)
        if account.namespace == place.namespace
    }
    assert set(found) >= {"billing", "orders"}
    assert found["billing"].uid == uid
    assert abs(datetime.now(UTC) - found["billing"].created_at) < timedelta(minutes=1)


def test_a_listing_whose_moment_is_forgotten_is_gone(place: Place) -> None:
    for number in range(3):
        place.pod(f"many-{number}")
    listing = place.client().list(PODS, page=1)
    place.pod("one-more")
    place.cluster.compact()
    if place.cluster.is_real:
        return  # newer servers can go on from the watch cache, older ones answer 410: both are right
    with pytest.raises(KubeGone):
        list(listing)


def test_a_second_object_of_one_name_is_refused(place: Place) -> None:
    place.pod("twin")
    with pytest.raises(client.ApiException) as raised:
        place.pod("twin")
    assert raised.value.status == 409


def test_a_pod_made_anew_under_its_old_name_has_another_uid(place: Place) -> None:
    first = place.pod("again", node="node-a")
    place.delete("again")
    assert place.pod("again", node="node-a") != first


# watching


def test_a_watch_tells_everything_since_the_list_in_order(place: Place) -> None:
    place.pod("before")
    version = place.client().list(PODS).resource_version
    uid = place.pod("orders-1", node="node-a", ip="10.1.2.3")
    place.delete("orders-1")
    changes = _watched(place, version)
    assert [change.kind for change in changes] == ["added", "modified", "deleted"]
    pods = [change.seen for change in changes if change.seen]
    assert {pod.uid for pod in pods} == {uid}
    assert [pod.addresses for pod in pods] == [(), ("10.1.2.3",), ("10.1.2.3",)]
    versions = [int(change.resource_version) for change in changes]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)


def test_the_next_watch_goes_on_where_the_last_one_ended(place: Place) -> None:
    version = place.client().list(PODS).resource_version
    place.pod("first")
    version = _watched(place, version)[-1].resource_version
    place.pod("second")
    assert [change.seen.name for change in _watched(place, version) if change.seen] == ["second"]


def test_a_change_arrives_at_once_while_the_watch_is_open(place: Place) -> None:
    version = place.client().list(PODS).resource_version
    made_at: list[float] = []

    def make() -> None:
        made_at.append(time.monotonic())
        place.pod("sudden")

    timer = _later(0.5, make)
    for change in place.client().watch(PODS, version, seconds=10):
        if change.seen and change.seen.name == "sudden":
            break
    timer.join()
    assert time.monotonic() - made_at[0] < 1


def test_a_quiet_watch_ends_in_good_order_when_its_time_is_over(place: Place) -> None:
    version = place.client().list(PODS).resource_version
    began_at = time.monotonic()
    assert _watched(place, version) == []
    assert 0.5 < time.monotonic() - began_at < 4


def test_a_watch_says_with_a_bookmark_how_far_it_came(place: Place) -> None:
    version = place.client().list(PODS).resource_version
    place.pod("seen")
    changes = list(place.client().watch(PODS, version, seconds=4))
    bookmarks = [change for change in changes if change.kind == "bookmark"]
    assert all(bookmark.seen is None for bookmark in bookmarks)
    if not bookmarks and place.cluster.is_real:
        return  # "at the server's discretion", says its documentation; usually 2 s before the end
    assert int(bookmarks[-1].resource_version) >= int(changes[0].resource_version)
    assert _watched(place, bookmarks[-1].resource_version) == []


def test_a_pod_that_is_asked_to_end_stays_until_its_grace_is_over(place: Place) -> None:
    place.pod("polite", node="node-a", ip="10.1.2.3")
    version = place.client().list(PODS).resource_version
    place.delete("polite", grace_seconds=20)
    leaving = place.listed()["polite"]
    assert leaving.deleted_at is not None
    assert timedelta(seconds=10) < leaving.deleted_at - datetime.now(UTC) < timedelta(seconds=21)
    place.delete("polite", grace_seconds=0)
    assert "polite" not in place.listed()
    kinds = [change.kind for change in _watched(place, version)]
    assert (kinds[0], kinds[-1]) == ("modified", "deleted")


def test_a_pod_without_a_node_is_deleted_at_once(place: Place) -> None:
    place.pod("unplaced")
    place.delete("unplaced", grace_seconds=20)
    assert "unplaced" not in place.listed()


def test_a_watch_from_a_forgotten_version_is_gone(place: Place) -> None:
    place.pod("seen")
    place.cluster.compact()
    with pytest.raises(KubeGone) as raised:
        list(place.client().watch(PODS, "1", seconds=1))
    assert "listed anew" in raised.value.fix


def test_a_watch_that_is_gone_by_http_status_is_the_same(place: Place) -> None:
    _stand_in_only(place, "it sends 410 as an event")
    place.cluster.compact(gone_as_status=True)
    with pytest.raises(KubeGone):
        list(place.client().watch(PODS, "1", seconds=1))
    place.cluster.compact()


def test_a_watch_that_breaks_off_is_no_clean_end_and_goes_on_after_a_restart(
    cluster: kube.Cluster, run_folder: Path
) -> None:
    folder = run_folder / f"kube-broken-{cluster.is_real}"
    port = processes.free_port()
    apart = kube.start(folder, port=port, real=cluster.is_real)
    try:
        with driver.connect(apart) as api:
            driver.create_namespace(api, "shop")
            driver.create_service_account(api, "shop", "orders")
            uid = driver.create_pod(api, "shop", "orders-1", service_account="orders", node="node-a", ip="10.1.2.3")
        reader = _client(apart, apart.admin_token)
        version = reader.list(PODS).resource_version
        timer = _later(0.5, apart.kill)
        with pytest.raises(KubeUnreachable, match="broke off"):
            list(reader.watch(PODS, version, seconds=10))
        timer.join()
        with pytest.raises(KubeUnreachable, match="cannot be reached: Connection refused"):
            reader.list(PODS)
        apart = kube.start(folder, port=port, real=cluster.is_real)
        assert [pod.uid for pod in reader.list(PODS)] == [uid]
    finally:
        apart.kill()


# what owns pods, service accounts, what operators fetch


def test_an_owner_is_seen_with_what_controls_it_and_without_its_pod_template(place: Place) -> None:
    deployment = driver.Owner("Deployment", "orders", str(uuid.uuid4()), "apps/v1")
    cron_job = driver.Owner("CronJob", "nightly", str(uuid.uuid4()), "batch/v1")
    driver.create_owner(place.admin, "ReplicaSet", place.namespace, "orders-5b7", owner=deployment)
    driver.create_owner(place.admin, "ReplicaSet", place.namespace, "alone")
    driver.create_owner(place.admin, "Job", place.namespace, "nightly-1", owner=cron_job)
    found = [*place.client().list(REPLICA_SETS, page=1), *place.client().list(JOBS)]
    owners = {one.name: (one.kind, one.owner_kind, one.owner_name) for one in found if one.namespace == place.namespace}
    assert owners == {
        "orders-5b7": ("ReplicaSet", "Deployment", "orders"),
        "alone": ("ReplicaSet", "", ""),
        "nightly-1": ("Job", "CronJob", "nightly"),
    }
    answer = place.client()._call(
        "list",
        "",
        REPLICA_SETS.call(place.client()._client),
        **product._accept(REPLICA_SETS, "PartialObjectMetadataList"),
    )
    assert b"PartialObjectMetadataList" in answer
    assert b"registry.invalid" not in answer


@pytest.mark.parametrize("kind", [SERVICE_ACCOUNTS, REPLICA_SETS, JOBS], ids=lambda kind: kind.resource)
def test_every_kind_is_watched_from_where_it_was_listed(place: Place, kind: Kind[Any]) -> None:
    def make(name: str) -> Callable[[], object]:
        if kind is SERVICE_ACCOUNTS:
            driver.create_service_account(place.admin, place.namespace, name)
            return lambda: driver.delete_service_account(place.admin, place.namespace, name)
        owner = driver.create_owner(place.admin, "Job" if kind is JOBS else "ReplicaSet", place.namespace, name)
        return lambda: driver.delete_owner(place.admin, owner, place.namespace)

    make("before")
    version = place.client().list(kind).resource_version
    make("after")()
    changes = list(place.client().watch(kind, version, seconds=1))
    told = [(change.kind, change.seen.name) for change in changes if change.seen]
    # a real server may mark a Job before it goes
    assert [told[0], told[-1]] == [("added", "after"), ("deleted", "after")]
    assert all(int(change.resource_version) > int(version) for change in changes)
    place.cluster.compact()
    with pytest.raises(KubeGone, match=kind.resource):
        list(place.client().watch(kind, "1", seconds=1))


def test_a_pod_names_the_secrets_that_it_refers_to_and_an_operator_that_fetches_for_others_is_known(
    place: Place,
) -> None:
    place.pod("orders-1", secret="orders-database")
    label = {"app.kubernetes.io/name": "vault-secrets-operator"}
    place.pod("operator", labels=label)
    place.pod("other", labels={"app.kubernetes.io/name": "external-secrets-webhook"})
    found = {name: (pod.secrets, pod.fetcher) for name, pod in place.listed().items()}
    assert found == {"orders-1": (("orders-database",), False), "operator": ((), True), "other": ((), False)}


def test_every_way_in_which_a_pod_refers_to_a_secret_is_read() -> None:
    spec = """{
        "initContainers": [{"name": "i", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
        "containers": [
            {"name": "a", "env": [{"name": "B", "value": "x"}, {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "f"}}}]},
            {"name": "b", "env": null, "envFrom": [{"secretRef": {"name": "whole"}}, {"configMapRef": {"name": "no"}}]}
        ],
        "volumes": [
            {"name": "v", "secret": {"secretName": "volume"}},
            {"name": "w", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {"name": "no"}}]}},
            {"name": "e", "emptyDir": {}}
        ]
    }"""
    decoded = msgspec.json.decode(spec, type=product._PodSpec)
    assert product.secret_names(decoded) == ("key", "projected", "volume", "whole")


def test_a_kind_that_the_cluster_does_not_know_is_told_as_such(place: Place) -> None:
    with pytest.raises(KubeNotServed):
        place.client().list(OLD_EXTERNAL_SECRETS)


def test_what_operators_fetch_from_vault_is_seen_with_the_secret_that_they_fill(place: Place) -> None:
    def served(kind: Kind[SyncSeen]) -> bool:
        try:
            place.client().list(kind)
        except KubeNotServed:
            return False
        return True

    hashicorp, external, generators = "secrets.hashicorp.com", "external-secrets.io", "generators.external-secrets.io"
    for group, version, name, kind in [
        (hashicorp, "v1beta1", "VaultDynamicSecret", VAULT_DYNAMIC_SECRETS),
        (external, "v1", "ExternalSecret", EXTERNAL_SECRETS),
        (generators, "v1alpha1", "VaultDynamicSecret", GENERATORS),
    ]:
        driver.define(place.admin, group, version, name)
        processes.wait_until(lambda kind=kind: served(kind), what=f"{name} of {group}", seconds=20)  # type: ignore[misc]
    spec = {"mount": "database", "path": "creds/orders", "destination": {"name": "orders-db", "create": True}}
    lease_id = "database/creds/orders/q7Wq"
    # as Vault Secrets Operator 1.0 writes it
    lease = {"id": lease_id, "duration": 3600, "renewable": True, "requestID": "5b1c8f40"}
    where = (hashicorp, "v1beta1", "VaultDynamicSecret", place.namespace, "orders")
    driver.create_custom(place.admin, *where, spec)
    version = place.client().list(VAULT_DYNAMIC_SECRETS).resource_version
    driver.set_custom_status(place.admin, *where, {"secretLease": lease, "lastRenewalTime": 1, "lastGeneration": 1})
    generator = {"path": "/database/creds/billing", "method": "GET", "provider": {"server": "https://vault"}}
    driver.create_custom(
        place.admin, generators, "v1alpha1", "VaultDynamicSecret", place.namespace, "billing", generator
    )
    from_generator = {
        "sourceRef": {"generatorRef": {"apiVersion": "x/v1", "kind": "VaultDynamicSecret", "name": "billing"}}
    }
    external_spec = {
        "refreshInterval": "1h",
        "target": {"name": "billing-db"},
        "dataFrom": [from_generator, {"extract": {"key": "creds/reports"}}],
        "data": [{"secretKey": "user", "remoteRef": {"key": "database/creds/audit", "property": "username"}}],
    }
    driver.create_custom(place.admin, external, "v1", "ExternalSecret", place.namespace, "billing", external_spec)
    driver.create_custom(place.admin, external, "v1", "ExternalSecret", place.namespace, "plain", {})

    def seen(kind: Kind[SyncSeen]) -> dict[str, tuple[object, ...]]:
        return {
            one.name: (one.kind, one.paths, one.generators, one.secret, one.lease_id)
            for one in place.client().list(kind)
            if one.namespace == place.namespace
        }

    assert seen(VAULT_DYNAMIC_SECRETS) == {
        "orders": ("VaultDynamicSecret", ("database/creds/orders",), (), "orders-db", lease_id)
    }
    assert seen(GENERATORS) == {"billing": ("generator", ("database/creds/billing",), (), "", "")}
    assert seen(EXTERNAL_SECRETS) == {
        "billing": ("ExternalSecret", ("creds/reports", "database/creds/audit"), ("billing",), "billing-db", ""),
        "plain": ("ExternalSecret", (), (), "plain", ""),
    }
    watched = place.client().watch(VAULT_DYNAMIC_SECRETS, version, seconds=1)
    assert [change.seen.lease_id for change in watched if change.seen] == [lease_id]


# tokens


def test_a_pod_s_token_has_the_real_claims_and_signature(place: Place) -> None:
    uid = place.pod("orders-1", node="node-a")
    token = place.token(pod="orders-1", pod_uid=uid, seconds=1200)
    claims = jwt.decode(
        token,
        place.cluster.service_account_public_key,
        algorithms=["RS256"],
        audience=place.cluster.issuer,
        issuer=place.cluster.issuer,
    )
    bound = claims["kubernetes.io"]
    assert claims["sub"] == f"system:serviceaccount:{place.namespace}:orders"
    assert claims["exp"] - claims["iat"] == 1200
    assert {"nbf", "jti"} <= set(claims)
    assert bound["namespace"] == place.namespace
    assert bound["serviceaccount"]["name"] == "orders"
    assert bound["pod"] == {"name": "orders-1", "uid": uid}
    assert bound["node"]["name"] == "node-a"
    assert bound["node"]["uid"]


def test_a_token_can_be_checked_with_the_published_keys(place: Place) -> None:
    token = place.token(audiences=["vault"])
    with driver.connect(place.cluster, place.token()) as api:
        published: Any = client.OpenidApi(api).get_service_account_issuer_open_id_keyset(_preload_content=False)
        configuration: Any = client.WellKnownApi(api).get_service_account_issuer_open_id_configuration(
            _preload_content=False
        )
    keys = jwt.PyJWKSet.from_json(published.data)
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["RS256"], audience="vault")["aud"] == ["vault"]
    assert msgspec.json.decode(configuration.data)["issuer"] == place.cluster.issuer


@pytest.mark.parametrize(
    ("options", "code"),
    [({"seconds": 60}, 422), ({"pod": "foreign"}, 400), ({"pod": "mine", "pod_uid": "x"}, 409), ({"pod": "none"}, 404)],
    ids=["shorter than 10 minutes", "a pod of another account", "another uid", "no such pod"],
)
def test_a_token_request_is_refused(place: Place, options: dict[str, Any], code: int) -> None:
    driver.create_service_account(place.admin, place.namespace, "billing")
    place.pod("mine", node="node-a")
    place.pod("foreign", service_account="billing", node="node-a")
    with pytest.raises(client.ApiException) as raised:
        place.token(**options)
    assert raised.value.status == code


def test_a_token_review_names_the_account_and_the_pod(place: Place) -> None:
    uid = place.pod("orders-1", node="node-a")
    status = place.review(place.token(pod="orders-1", pod_uid=uid))
    assert status.authenticated
    assert status.user.username == f"system:serviceaccount:{place.namespace}:orders"
    assert set(status.user.groups) == {
        "system:serviceaccounts",
        f"system:serviceaccounts:{place.namespace}",
        "system:authenticated",
    }
    prefix = "authentication.kubernetes.io/"
    assert status.user.extra[f"{prefix}pod-name"] == ["orders-1"]
    assert status.user.extra[f"{prefix}pod-uid"] == [uid]
    assert status.user.extra[f"{prefix}node-name"] == ["node-a"]
    assert status.user.extra[f"{prefix}credential-id"][0].startswith("JTI=")
    assert status.audiences == [place.cluster.issuer]


def test_a_token_is_no_longer_good_when_its_pod_is_gone(place: Place) -> None:
    uid = place.pod("orders-1", node="node-a")
    token = place.token(pod="orders-1", pod_uid=uid)
    assert place.review(token).authenticated
    place.delete("orders-1")
    processes.wait_until(
        lambda: not place.review(token).authenticated, what="end of a deleted pod's token", seconds=_TOKEN_CACHE_SECONDS
    )
    assert "invalidated" in place.review(token).error
    with pytest.raises(KubeUnauthorized):
        place.client(token).list(PODS)


def test_a_token_is_reviewed_for_the_audience_that_is_asked_for(place: Place) -> None:
    token = place.token(audiences=["vault"])
    assert place.review(token, ["vault", "other"]).audiences == ["vault"]
    refused = place.review(token)
    assert not refused.authenticated
    assert "audiences" in refused.error


def test_a_token_that_is_none_is_not_authenticated(place: Place) -> None:
    status = place.review("eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
    assert not status.authenticated
    assert status.error


# who may what


def test_a_refused_token_is_named_as_such(place: Place) -> None:
    reader = place.client("a-token-of-nobody")
    with pytest.raises(KubeUnauthorized, match="does not accept the token") as raised:
        reader.list(PODS)
    assert "a-token-of-nobody" not in f"{raised.value!r}{raised.value}{raised.value.__cause__!r}"
    with pytest.raises(KubeUnauthorized):
        list(reader.watch(PODS, "1", seconds=1))


def test_a_missing_permission_is_named_with_the_rule_that_gives_it(place: Place) -> None:
    reader = place.client(place.token())
    with pytest.raises(KubeDenied) as raised:
        reader.list(PODS)
    assert (raised.value.verb, raised.value.resource) == ("list", "pods")
    assert 'apiGroups: [""], resources: [pods], verbs: [list]' in raised.value.fix
    assert "cannot list resource" in raised.value.cause
    with pytest.raises(KubeDenied) as watching:
        list(reader.watch(PODS, "1", seconds=1))
    assert watching.value.verb == "watch"


def test_the_product_s_role_lets_it_read_what_it_needs_and_nothing_else(place: Place) -> None:
    reader = place.client(place.token())
    wanted = [(verb, what) for verb in ("list", "watch") for what in ("pods", "serviceaccounts")]
    wanted += [(verb, what) for verb in ("list", "watch") for what in ("replicasets.apps", "jobs.batch")]
    wanted += [(verb, kind.resource) for verb in ("list", "watch") for kind in (EXTERNAL_SECRETS, GENERATORS)]
    wanted += [(verb, VAULT_DYNAMIC_SECRETS.resource) for verb in ("list", "watch")]
    assert not any(reader.can(*permission) for permission in wanted)
    driver.grant_reader(place.admin, place.namespace, "orders")
    processes.wait_until(lambda: reader.can("list", "pods"), what="a new role binding", seconds=10)
    assert [permission for permission in wanted if not reader.can(*permission)] == []
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete", "*"):
        assert not reader.can(verb, "secrets")
        assert not reader.can(verb, "configmaps")
        assert not reader.can(verb, "pods/log")
    for verb in ("create", "update", "patch", "delete"):
        assert not reader.can(verb, "pods")
    list(reader.list(PODS))
    with driver.connect(place.cluster, place.token()) as api, pytest.raises(client.ApiException) as raised:
        client.CoreV1Api(api).list_secret_for_all_namespaces()
    assert raised.value.status == 403


def test_only_a_token_reviewer_may_review_tokens_and_access(place: Place) -> None:
    token = place.token()
    review = client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token))
    attributes = client.V1ResourceAttributes(verb="list", resource="pods")
    spec = client.V1SubjectAccessReviewSpec(user="somebody", groups=["system:masters"], resource_attributes=attributes)
    access = client.V1SubjectAccessReview(spec=spec)
    with driver.connect(place.cluster, token) as api:
        with pytest.raises(client.ApiException) as raised:
            client.AuthenticationV1Api(api).create_token_review(review)
        assert raised.value.status == 403
        driver.grant_token_reviewer(place.admin, place.namespace, "orders")

        def allowed() -> bool:
            try:
                answer: Any = client.AuthenticationV1Api(api).create_token_review(review)
            except client.ApiException:
                return False
            return bool(answer.status.authenticated)

        processes.wait_until(allowed, what="a new role binding", seconds=10)
        answer: Any = client.AuthorizationV1Api(api).create_subject_access_review(access)
        assert answer.status.allowed


def test_anybody_without_a_token_may_read_nothing_but_health_and_version(place: Place) -> None:
    configuration: Any = client.Configuration(host=place.cluster.address)
    configuration.ssl_ca_cert = str(place.cluster.ca_file) if place.cluster.ca_file else None
    with client.ApiClient(configuration) as nobody:
        assert client.VersionApi(nobody).get_code().git_version.startswith("v1.")
        with pytest.raises(client.ApiException) as raised:
            client.CoreV1Api(nobody).list_pod_for_all_namespaces()
    assert raised.value.status == 403


def test_the_token_is_read_again_for_each_request(place: Place) -> None:
    tokens = iter(["outdated", place.cluster.admin_token])
    ca_file = str(place.cluster.ca_file) if place.cluster.ca_file else None
    reader = KubeClient(place.cluster.address, lambda: next(tokens), ca_file=ca_file)
    with pytest.raises(KubeUnauthorized):
        reader.list(PODS)
    assert reader.list(PODS).resource_version


def test_the_version_is_told(place: Place) -> None:
    assert place.client().version().startswith("v1.")


# what goes wrong on the way


def test_a_wrong_address_is_named_with_its_fix() -> None:
    port = processes.free_port()
    with pytest.raises(KubeUnreachable, match=f"http://127.0.0.1:{port} cannot be reached: Connection refused") as one:
        KubeClient(f"http://127.0.0.1:{port}", lambda: "secret-token").list(PODS)
    assert "leasehold.toml" in one.value.fix
    with pytest.raises(KubeUnreachable, match="its name cannot be resolved"):
        KubeClient("https://kubernetes.invalid", lambda: "secret-token").version()
    with pytest.raises(KubeUnreachable) as written_wrong:
        KubeClient("https://user:password@127.0.0.1:x", lambda: "secret-token").version()
    assert "password" not in str(written_wrong.value)


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reader = KubeClient(f"http://127.0.0.1:{silent.getsockname()[1]}", lambda: "secret", timeout_seconds=0.3)
        began_at = time.monotonic()
        with pytest.raises(KubeUnreachable, match=r"no answer within 0\.3 s"):
            reader.list(PODS)
        assert time.monotonic() - began_at < 2


def test_a_server_that_is_no_kubernetes_is_named_as_such(openbao: openbao.OpenBao) -> None:
    with pytest.raises(KubeError, match="HTTP 404") as raised:
        KubeClient(openbao.address, lambda: "secret").list(PODS)
    assert "Kubernetes API server" in raised.value.fix


def test_an_unusable_token_never_gets_into_an_error() -> None:
    for token in ("", "two\nlines-of-secret"):
        reader = KubeClient("http://127.0.0.1:9", lambda token=token: token)  # type: ignore[misc]
        with pytest.raises(KubeUnauthorized) as raised:
            reader.list(PODS)
        assert "secret" not in str(raised.value)


def test_a_server_under_an_unknown_authority_is_not_trusted(run_folder: Path) -> None:
    secure = kube.start(run_folder / "kube-tls", tls=True, real=False)
    try:
        assert secure.ca_file is not None
        assert _client(secure, secure.admin_token).version().startswith("v1.")
        with pytest.raises(KubeUnreachable, match="certificate verify failed") as untrusted:
            KubeClient(secure.address, lambda: "secret-token").version()
        assert "ca_file" in untrusted.value.fix
        with pytest.raises(KubeUnreachable, match="No such file") as missing:
            KubeClient(secure.address, lambda: "secret-token", ca_file="/nowhere/ca.crt").version()
        assert "ca_file" in missing.value.fix
        with pytest.raises(KubeError):
            KubeClient(secure.address.replace("https", "http"), lambda: "secret-token").version()
    finally:
        secure.stop()


# OpenBao's own Kubernetes and JWT log-ins


@pytest.fixture
def vault(openbao: openbao.OpenBao) -> Iterator[hvac.Client]:
    session = hvac.Client(url=openbao.address, token=openbao.root_token)
    yield session
    session.adapter.close()


def test_openbao_s_kubernetes_method_logs_a_pod_in_until_it_is_gone(place: Place, vault: hvac.Client) -> None:
    driver.create_service_account(place.admin, place.namespace, "openbao")
    driver.grant_token_reviewer(place.admin, place.namespace, "openbao")
    reviewer = driver.request_token(place.admin, place.namespace, "openbao", seconds=3600)
    mount = f"kubernetes-{place.namespace}-{place.cluster.is_real}"
    vault.sys.enable_auth_method("kubernetes", path=mount)
    vault.write_data(
        f"auth/{mount}/config",
        data={
            "kubernetes_host": place.cluster.address,
            "kubernetes_ca_cert": place.cluster.ca_certificate,
            "token_reviewer_jwt": reviewer,
            "disable_local_ca_jwt": True,
        },
    )
    role = {"bound_service_account_names": ["orders"], "bound_service_account_namespaces": [place.namespace]}
    vault.write_data(f"auth/{mount}/role/orders", data={**role, "audience": place.cluster.issuer, "ttl": "60s"})
    uid = place.pod("orders-1", node="node-a")
    login = {"role": "orders", "jwt": place.token(pod="orders-1", pod_uid=uid)}
    answer = vault.write_data(f"auth/{mount}/login", data=login)
    metadata = answer["auth"]["metadata"]
    assert metadata["service_account_name"] == "orders"
    assert metadata["service_account_namespace"] == place.namespace
    foreign = {"role": "orders", "jwt": reviewer}
    with pytest.raises(hvac.exceptions.VaultError):
        vault.write_data(f"auth/{mount}/login", data=foreign)
    place.delete("orders-1")

    def refused() -> bool:
        try:
            vault.write_data(f"auth/{mount}/login", data=login)
        except hvac.exceptions.VaultError:
            return True
        return False

    processes.wait_until(refused, what="end of a deleted pod's log-in", seconds=_TOKEN_CACHE_SECONDS)


def test_openbao_s_jwt_method_knows_the_pod_from_the_token_s_claims(place: Place, vault: hvac.Client) -> None:
    mount = f"jwt-{place.namespace}-{place.cluster.is_real}"
    vault.sys.enable_auth_method("jwt", path=mount)
    keys = [place.cluster.service_account_public_key]
    config = {"jwt_validation_pubkeys": keys, "bound_issuer": place.cluster.issuer}
    vault.write_data(f"auth/{mount}/config", data=config)
    vault.write_data(
        f"auth/{mount}/role/orders",
        data={
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["vault"],
            "bound_subject": f"system:serviceaccount:{place.namespace}:orders",
            "claim_mappings": {
                "/kubernetes.io/namespace": "service_account_namespace",
                "/kubernetes.io/serviceaccount/name": "service_account_name",
                "/kubernetes.io/pod/name": "pod_name",
                "/kubernetes.io/pod/uid": "pod_uid",
                "/kubernetes.io/node/name": "node_name",
            },
            "ttl": "60s",
        },
    )
    uid = place.pod("orders-1", node="node-a")
    login = {"role": "orders", "jwt": place.token(pod="orders-1", pod_uid=uid, audiences=["vault"])}
    metadata = vault.write_data(f"auth/{mount}/login", data=login)["auth"]["metadata"]
    assert {key: metadata[key] for key in metadata if key != "role"} == {
        "service_account_namespace": place.namespace,
        "service_account_name": "orders",
        "pod_name": "orders-1",
        "pod_uid": uid,
        "node_name": "node-a",
    }
