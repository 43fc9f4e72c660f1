"""Where no pod can be named: who may have been it, and why. A case each of NAT, nodes, reuse, two clusters and operators."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from audit import attribute, queries
from audit.models import AttributionChange
from leases import consumers
from leases.models import (
    AuthMount,
    Certainty,
    Cluster,
    Lease,
    Login,
    Pod,
    PodAddress,
    SecretSync,
    ServiceAccount,
    SyncedLease,
    Vault,
    WatchPeriod,
)

pytestmark = [
    pytest.mark.django_db,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]

BEGIN = datetime(2026, 11, 3, 12, tzinfo=UTC)
NOW = BEGIN + timedelta(minutes=5)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


@dataclass
class Place:
    """A cluster that is watched without a gap, and an auth mount of it."""

    name: str = "c"
    cluster: Cluster = field(init=False)
    mount: AuthMount = field(init=False)

    def __post_init__(self) -> None:
        vault, _ = Vault.objects.get_or_create(name="v")
        self.cluster = Cluster.objects.create(name=self.name)
        self.mount = AuthMount.objects.create(vault=vault, cluster=self.cluster, path=f"kubernetes-{self.name}")
        hour = timedelta(hours=1)
        WatchPeriod.objects.create(cluster=self.cluster, from_at=BEGIN - hour, to_at=BEGIN + hour)

    def pod(self, name: str, address: str = "", *, account: str = "web", since: float = -600, **fields: Any) -> Pod:
        """A pod of namespace shop that began so many seconds before; `until`: its end."""
        until = fields.pop("until", None)
        ended_at = at(until) if until is not None else None
        defaults = {"namespace": "shop", "node": "n1", "phase": "Running", **fields}
        made = Pod.objects.create(
            cluster=self.cluster,
            uid=f"{self.name}-{name}",
            name=name,
            service_account=account,
            started_at=at(since),
            ended_at=ended_at,
            **defaults,
        )
        if address:
            PodAddress.objects.create(pod=made, address=address, from_at=at(since), to_at=ended_at)
        return made

    def lease(self, address: str, *, account: str = "web", namespace: str = "shop", **login: Any) -> Lease:
        """A credential read at BEGIN by a login from the same address, attributed."""
        number = Lease.objects.count()
        vault = self.mount.vault
        values = {
            "logged_in_at": BEGIN,
            "mount_path": self.mount.path,
            "auth_mount": self.mount,
            "address": address,
            "service_account_namespace": namespace,
            "service_account": account,
            **login,
        }
        made = Lease.objects.create(
            vault=vault,
            lease_id=f"database/creds/web/{number}",
            mount="database",
            role="web",
            login=Login.objects.create(vault=vault, request_id=f"l{number}", **values),
            accessed_at=BEGIN,
            source_ip=address,
            first_seen_at=BEGIN,
            updated_at=BEGIN,
        )
        attribute.attribute([made.pk], now=NOW)
        made.refresh_from_db()
        return made

    def sync(self, kind: str = "VaultDynamicSecret", name: str = "db", **fields: Any) -> SecretSync:
        defaults = {"namespace": "shop", "secret": "web-db", "created_at": at(-900), **fields}
        return SecretSync.objects.create(cluster=self.cluster, uid=f"{kind}-{name}", kind=kind, name=name, **defaults)


@pytest.fixture
def place() -> Place:
    return Place()


def certainty(lease: Lease) -> tuple[str, str, str]:
    return (lease.certainty, lease.pod, lease.pod_uid)


def test_an_address_is_that_of_the_pod_which_had_it_at_that_time(place: Place) -> None:
    place.pod("before", "10.0.0.1", until=-10)
    place.pod("then", "10.0.0.1", since=-9)
    place.pod("elsewhere", "10.0.0.2")
    assert certainty(place.lease("10.0.0.1")) == (Certainty.INFERRED, "then", "c-then")


def test_an_address_that_changed_hands_within_the_skew_is_ambiguous_and_the_skew_is_stated(place: Place) -> None:
    place.pod("before", "10.0.0.1", until=-1)
    place.pod("then", "10.0.0.1", since=-0.5)
    lease = place.lease("10.0.0.1")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert "within 2 s: shop/before, shop/then" in lease.certainty_reason


def test_one_address_in_two_clusters_is_resolved_by_the_auth_mount(place: Place) -> None:
    other = Place("other")
    for where in (place, other):
        where.pod("web-1", "10.0.0.1")
    assert [certainty(where.lease("10.0.0.1")) for where in (place, other)] == [
        (Certainty.INFERRED, "web-1", "c-web-1"),
        (Certainty.INFERRED, "web-1", "other-web-1"),
    ]


def test_behind_nat_or_a_proxy_the_pods_of_the_account_that_lived_then_are_listed(place: Place) -> None:
    place.pod("web-1", "10.0.0.1")
    place.pod("web-2", "10.0.0.2", since=-500)
    place.pod("over", "10.0.0.3", until=-60)
    place.pod("later", "10.0.0.4", since=60)
    place.pod("job", "10.0.0.5", account="job")
    Place("other").pod("foreign", "203.0.113.9")
    lease = place.lease("203.0.113.9")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason == (
        "203.0.113.9 in cluster c was then the address of no pod: NAT or a proxy stands between; "
        "of this service account there lived then: shop/web-1, shop/web-2"
    )


def test_the_only_pod_of_an_account_is_not_named_where_the_address_is_not_its_own(place: Place) -> None:
    place.pod("web-1", "10.0.0.1")
    lease = place.lease("203.0.113.9")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason.endswith("there lived then: shop/web-1")


def test_of_many_pods_the_first_are_listed_with_how_many_more_there_are(place: Place) -> None:
    for number in range(consumers.MOST + 3):
        place.pod(f"web-{number:02}", f"10.0.0.{number}")
    reason = place.lease("203.0.113.9").certainty_reason
    assert reason.endswith("shop/web-19 and 3 more")
    assert reason.count("shop/web-") == consumers.MOST


def test_an_address_of_another_accounts_pod_is_said_to_be_that_and_names_nobody(place: Place) -> None:
    place.pod("job-1", "10.0.0.9", account="job")
    alone = place.lease("10.0.0.9")
    assert certainty(alone) == (Certainty.SERVICE_ACCOUNT, "", "")
    assert "was then the address of shop/job-1 of service account shop/job" in alone.certainty_reason
    place.pod("web-1", "10.0.0.1")
    lease = place.lease("10.0.0.9")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert "service account shop/job" in lease.certainty_reason
    assert lease.certainty_reason.endswith("there lived then: shop/web-1")


def test_where_the_watch_had_a_gap_nothing_is_said_about_nat(place: Place) -> None:
    place.pod("web-1", "10.0.0.1")
    WatchPeriod.objects.update(from_at=at(1))
    lease = place.lease("203.0.113.9")
    assert certainty(lease) == (Certainty.SERVICE_ACCOUNT, "", "")
    assert "the pod watch had a gap then" in lease.certainty_reason


def test_a_watch_that_began_within_the_skew_before_the_login_names_nobody(place: Place) -> None:
    place.pod("then", "10.0.0.1", since=-0.5)
    WatchPeriod.objects.filter(cluster=place.cluster).update(from_at=at(-1))
    assert certainty(place.lease("10.0.0.1")) == (Certainty.SERVICE_ACCOUNT, "", "")


def test_a_watch_that_comes_late_but_without_a_gap_still_names_the_pod(place: Place) -> None:
    WatchPeriod.objects.update(to_at=at(-1))
    lease = place.lease("10.0.0.1")
    attribute.attribute([lease.pk], now=at(11 * 60))
    place.pod("then", "10.0.0.1")
    WatchPeriod.objects.update(to_at=at(12 * 60))
    for keys in attribute.waiting():
        attribute.attribute(keys, now=at(13 * 60))
    lease.refresh_from_db()
    assert certainty(lease) == (Certainty.INFERRED, "then", "c-then")


def test_what_waits_for_a_late_watch_is_not_judged_again_until_it_has_come_that_far(place: Place) -> None:
    """They may be very many, and every turn looks at open leases."""
    now = timezone.now()
    place.pod("then", "10.0.0.1")
    lease = place.lease("10.0.0.1")
    young = place.lease("10.0.0.1")
    foreign = place.lease("10.0.0.1", auth_mount=None)
    Lease.objects.filter(pk=lease.pk).update(accessed_at=now - timedelta(minutes=11), attribution_open=True)
    Lease.objects.filter(pk=young.pk).update(accessed_at=now - timedelta(minutes=9), attribution_open=True)
    Lease.objects.filter(pk=foreign.pk).update(accessed_at=now - timedelta(minutes=11), attribution_open=True)
    WatchPeriod.objects.update(to_at=now - timedelta(minutes=12))
    assert attribute.open_leases() == [foreign.pk, young.pk]
    WatchPeriod.objects.update(to_at=now - timedelta(minutes=10))
    assert attribute.open_leases() == [foreign.pk, young.pk, lease.pk]
    # and when nobody waits for it any more, so that it is closed
    Lease.objects.filter(pk=lease.pk).update(accessed_at=now - timedelta(days=1, minutes=1))
    WatchPeriod.objects.all().delete()
    assert attribute.open_leases() == [foreign.pk, young.pk, lease.pk]
    assert attribute.attribute_waiting(seconds=60) == 3
    assert attribute.open_leases() == [young.pk]


def test_a_watch_that_began_anew_after_the_read_closes_what_waited_for_it(place: Place) -> None:
    WatchPeriod.objects.update(to_at=at(-1))
    place.pod("then", "10.0.0.1")
    lease = place.lease("10.0.0.1")
    attribute.attribute([lease.pk], now=at(11 * 60))
    lease.refresh_from_db()
    assert (lease.certainty, lease.attribution_open) == (Certainty.SERVICE_ACCOUNT, True)
    assert "the pod watch has not come that far yet" in lease.certainty_reason
    WatchPeriod.objects.create(cluster=place.cluster, from_at=at(600), to_at=at(700))
    attribute.attribute([lease.pk], now=at(12 * 60))
    lease.refresh_from_db()
    assert (lease.certainty, lease.attribution_open) == (Certainty.SERVICE_ACCOUNT, False)
    assert "the pod watch had a gap then" in lease.certainty_reason


def test_nobody_is_named_before_the_watch_has_come_past_the_read_by_the_skew(place: Place) -> None:
    """A pod that gets the address within the skew after the read may have read: only then is that known."""
    place.pod("then", "10.0.0.1", until=1)
    WatchPeriod.objects.update(to_at=at(1.9))
    lease = place.lease("10.0.0.1")
    assert certainty(lease) == (Certainty.SERVICE_ACCOUNT, "", "")
    assert "the pod watch has not come that far yet" in lease.certainty_reason
    assert lease.attribution_open
    place.pod("next", "10.0.0.1", since=1.5)
    WatchPeriod.objects.update(to_at=at(2))
    attribute.attribute([lease.pk], now=NOW)
    lease.refresh_from_db()
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert "shop/then, shop/next" in lease.certainty_reason


def test_a_pod_that_has_no_address_yet_may_be_the_one(place: Place) -> None:
    place.pod("web-1", "10.0.0.1")
    new = place.pod("web-2", since=-1)
    WatchPeriod.objects.update(to_at=at(10))
    lease = place.lease("10.0.0.2")
    assert certainty(lease) == (Certainty.SERVICE_ACCOUNT, "", "")
    assert "shop/web-2" in lease.certainty_reason
    assert lease.attribution_open
    PodAddress.objects.create(pod=new, address="10.0.0.2", from_at=at(-1))
    attribute.attribute_waiting(seconds=60)
    # its address is new evidence; without it the certainty had stayed
    lease.refresh_from_db()
    assert certainty(lease) == (Certainty.INFERRED, "web-2", "c-web-2")
    changes = AttributionChange.objects.order_by("id").values_list("certainty_before", "certainty", "pod")
    assert list(changes) == [
        (Certainty.UNKNOWN, Certainty.SERVICE_ACCOUNT, ""),
        (Certainty.SERVICE_ACCOUNT, Certainty.INFERRED, "web-2"),
    ]


def test_a_nodes_address_is_shared_by_its_pods(place: Place) -> None:
    place.pod("web-host", "10.1.0.1", host_network=True)
    place.pod("proxy", "10.1.0.1", account="proxy", host_network=True)
    place.pod("web-inside", "10.0.0.1")
    place.pod("web-elsewhere", "10.0.0.2", node="n2")
    lease = place.lease("10.1.0.1")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason.startswith("10.1.0.1 in cluster c is the address of node n1")
    assert lease.certainty_reason.endswith("there were: shop/web-host, shop/web-inside")
    # what reaches out through a node without being on its network itself
    Pod.objects.filter(name="web-host").delete()
    lease = place.lease("10.1.0.1")
    assert lease.certainty == Certainty.AMBIGUOUS
    assert lease.certainty_reason.endswith("there were: shop/web-inside")


# Wrapped credentials


def unwrapped(lease: Lease, address: str) -> Lease:
    """The same lease, taken out of its wrapping by this address."""
    Lease.objects.filter(pk=lease.pk).update(unwrapped_from=address, attribution_open=True)
    attribute.attribute([lease.pk], now=NOW)
    lease.refresh_from_db()
    return lease


def claims(name: str) -> dict[str, str]:
    return {"claimed_pod": name, "claimed_pod_uid": f"c-{name}"}


def test_credentials_that_were_unwrapped_behind_the_same_nat_address_may_be_with_another_pod(place: Place) -> None:
    """Where an address is no pod's own, that it is the same one proves nothing about who took them out of their wrapping."""
    place.pod("one", "10.0.0.1")
    place.pod("two", "10.0.0.2", since=-500)
    lease = place.lease("192.0.2.1", **claims("one"))
    assert certainty(lease) == (Certainty.EXACT, "one", "c-one")
    assert certainty(unwrapped(lease, "192.0.2.1")) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason.startswith(
        "read wrapped at 192.0.2.1 by shop/one, unwrapped from there, which is not known to be that pod's own address: "
        "whoever else comes from there can hold it. Of this service account there lived then: shop/one, shop/two. Of the read: "
    )


def test_credentials_that_were_unwrapped_from_the_pods_own_address_are_with_it(place: Place) -> None:
    place.pod("one", "10.0.0.1")
    for login in (claims("one"), {}):
        lease = place.lease("10.0.0.1", **login)
        before = certainty(lease)
        assert before[1:] == ("one", "c-one")
        assert certainty(unwrapped(lease, "10.0.0.1")) == before


@pytest.mark.parametrize("other", [{"host_network": True}, {"account": "job", "until": -1}])
def test_an_address_that_a_pod_shares_is_not_its_own(place: Place, other: dict[str, Any]) -> None:
    """A node's, of which others come, too; and one that another pod had within the clock skew."""
    place.pod("one", "10.0.0.1", host_network="host_network" in other)
    place.pod("two", "10.0.0.1", **other)
    lease = place.lease("10.0.0.1", **claims("one"))
    assert certainty(lease) == (Certainty.EXACT, "one", "c-one")
    assert certainty(unwrapped(lease, "10.0.0.1")) == (Certainty.AMBIGUOUS, "", "")


def test_whether_an_address_was_a_pods_own_is_said_once_the_watch_knows(place: Place) -> None:
    WatchPeriod.objects.update(to_at=at(-1))
    lease = place.lease("10.0.0.1", **claims("one"))
    assert certainty(unwrapped(lease, "10.0.0.1")) == (Certainty.AMBIGUOUS, "", "")
    assert lease.attribution_open
    place.pod("one", "10.0.0.1")
    WatchPeriod.objects.update(to_at=at(100))
    assert certainty(unwrapped(lease, "10.0.0.1")) == (Certainty.EXACT, "one", "c-one")
    assert not lease.attribution_open


# Operators that fetch for others


OPERATOR: dict[str, Any] = {"namespace": "operators", "account": "vso", "fetcher": True}


def test_what_an_operator_fetched_names_the_operator_and_no_holder(place: Place) -> None:
    place.pod("vso-1", "10.0.0.50", **OPERATOR)
    lease = place.lease("10.0.0.50", account="vso", namespace="operators")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason == (
        "the operator's pod operators/vso-1 fetched it for others; no resource of its cluster is known that says for whom"
    )


def test_an_operator_that_only_the_configuration_knows_is_one_also_where_the_login_claims_its_pod(place: Place) -> None:
    place.pod("sync-1", "10.0.0.50", account="sync")
    claims = {"claimed_pod": "sync-1", "claimed_pod_uid": "c-sync-1"}
    before = place.lease("10.0.0.50", account="sync", **claims)
    assert certainty(before) == (Certainty.EXACT, "sync-1", "c-sync-1")
    Cluster.objects.update(fetchers=["shop/sync"])
    lease = place.lease("10.0.0.50", account="sync", **claims)
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason.startswith("the operator's pod shop/sync-1 fetched it for others")


def test_an_operator_with_a_token_of_another_account_is_known_by_its_address(place: Place) -> None:
    place.pod("vso-1", "10.0.0.50", **OPERATOR)
    place.pod("web-1", "10.0.0.1")
    lease = place.lease("10.0.0.50")
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason.startswith("the operator's pod operators/vso-1 fetched it for others")
    # what such an account reads itself is its own
    assert certainty(place.lease("10.0.0.1")) == (Certainty.INFERRED, "web-1", "c-web-1")
    WatchPeriod.objects.update(from_at=at(1))
    assert place.lease("10.0.0.50").certainty == Certainty.SERVICE_ACCOUNT


def test_the_resource_whose_status_names_the_lease_says_for_whom_it_was_fetched(place: Place) -> None:
    place.pod("vso-1", "10.0.0.50", **OPERATOR)
    place.pod("web-1", "10.0.0.1", secrets=["other", "web-db"])
    place.pod("over", secrets=["web-db"], until=-60)
    place.pod("bystander", secrets=["other"])
    place.pod("same-name", namespace="bank", secrets=["web-db"])
    exact = place.sync()
    place.sync(name="same-path", secret="other", paths=["database/creds/web"])
    lease = place.lease("10.0.0.50")
    assert "Secret shop/other" in lease.certainty_reason
    SyncedLease.objects.create(sync=exact, lease_id=lease.lease_id, seen_at=BEGIN)
    attribute.attribute([lease.pk], now=NOW)
    lease.refresh_from_db()
    assert certainty(lease) == (Certainty.AMBIGUOUS, "", "")
    assert lease.certainty_reason == (
        "the operator's pod operators/vso-1 fetched it for others; VaultDynamicSecret shop/db puts it into Secret "
        "shop/web-db, used by shop/web-1"
    )
    # the page shows who used it for as long as it lived
    place.pod("later", secrets=["web-db"], since=900)
    (sync,) = queries.consumers_of(lease, now=at(1000))
    assert (sync.exact, sync.pods) == (True, ("shop/web-1", "shop/later"))
    assert queries.consumers_of(place.lease("203.0.113.9"), now=at(1000)) == ()


@pytest.mark.parametrize(
    ("paths", "generators", "found"),
    [
        (["database/creds/web"], [], True),
        (["creds/web"], [], True),
        ([], ["gen"], True),
        (["web"], [], False),
        (["database/creds/web-2"], [], False),
        (["s/creds/web"], [], False),
        ([], ["other"], False),
    ],
)
def test_a_resource_that_reads_the_path_may_be_meant(
    place: Place, paths: list[str], generators: list[str], found: bool
) -> None:
    place.pod("eso-1", "10.0.0.50", **OPERATOR)
    place.pod("web-1", "10.0.0.1", secrets=["web-db"])
    place.sync("generator", "gen", secret="", paths=["database/creds/web"])
    place.sync("generator", "other", secret="", paths=["database/creds/other"])
    place.sync("ExternalSecret", "web", paths=paths, generators=generators)
    place.sync("ExternalSecret", "over", paths=paths, generators=generators, deleted_at=at(-60))
    reason = place.lease("10.0.0.50").certainty_reason
    told = "; ExternalSecret shop/web reads this path and puts it into Secret shop/web-db, used by shop/web-1"
    assert reason.endswith(told if found else "is known that says for whom")


def test_the_page_of_a_lease_names_workload_node_and_a_deleted_account(place: Place, viewer: Client) -> None:
    place.pod(
        "web-1",
        "10.0.0.1",
        owner_kind="ReplicaSet",
        owner_name="web-5b7",
        workload_kind="Deployment",
        workload_name="web",
    )
    times = {"created_at": at(-900), "first_seen_at": at(-900), "deleted_at": at(60)}
    ServiceAccount.objects.create(cluster=place.cluster, uid="sa-1", namespace="shop", name="web", **times)
    lease = place.lease("10.0.0.1", metadata={"service_account_uid": "sa-1"})
    page = viewer.get(reverse("leases-detail", args=[lease.pk])).content.decode()
    for told in ("Deployment web", "ReplicaSet web-5b7", "<dd>n1</dd>", "one of the same name is another account"):
        assert told in page
    assert "Fetched for" not in page


def test_the_page_of_a_fetched_lease_lists_for_whom(place: Place, viewer: Client) -> None:
    place.pod("vso-1", "10.0.0.50", **OPERATOR)
    place.pod("web-1", "10.0.0.1", secrets=["web-db"])
    place.sync(paths=["database/creds/web"])
    page = viewer.get(reverse("leases-detail", args=[place.lease("10.0.0.50").pk])).content.decode()
    for told in (
        "Fetched for",
        "VaultDynamicSecret shop/db",
        "shop/web-db",
        "it reads the same path",
        "shop/web-1</td>",
    ):
        assert told in page


def test_candidates_and_consumers_of_many_leases_take_as_many_queries_as_of_one(place: Place) -> None:
    place.pod("vso-1", "10.0.0.50", **OPERATOR)
    place.pod("web-1", "10.0.0.1", secrets=["web-db"])
    place.sync(paths=["database/creds/web"])
    counts = []
    for size in (1, 20):
        keys = [place.lease(address).pk for address in ("10.0.0.50", "203.0.113.9") for _ in range(size)]
        with CaptureQueriesContext(connection) as captured:
            attribute.attribute(keys, now=NOW)
        counts.append(len(captured.captured_queries))
    assert counts[0] == counts[1] <= 9
