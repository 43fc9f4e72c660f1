"""Who holds a lease: the rule, pure, and the verb that applies it and writes down every change.

Certainty is never guessed upwards: a pod is named only by claims of a registered auth mount, or where address, service
account and time fit exactly one pod and the pod watch had no gap then.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from django.db import connection, transaction

from audit.models import AttributionChange
from leases.models import Certainty, Lease, Login, Pod, PodAddress, Policy
from leases.watch import caught_up, gapless

# how long later pod data may still tell who holds a lease
STAYS_OPEN = timedelta(minutes=10)
# a pod's address can reach the API this long after the pod began to use it
ADDRESS_LAG = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that had the address at that time, allowing for clock skew."""

    uid: str
    namespace: str
    name: str
    host_network: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the rule looks at. `candidates` fit address, service account and time at the read and at the login."""

    login: Login | None
    cluster: str
    address: str
    candidates: tuple[Candidate, ...]
    # the pod watch had no gap around the login and the read
    gapless: bool
    # the pod watch has come past the read
    caught_up: bool
    skew_seconds: float
    # pods of the service account that had just started and whose address is not known (yet)
    unplaced: tuple[str, ...] = ()
    # the watch has come so far past the read that no address of then can still turn up
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    certainty: Certainty
    reason: str
    pod: Candidate | None = None
    # later evidence can still change it
    open: bool = False


def decide(evidence: Evidence) -> Decision:
    """The certainty of one lease's holder, with its reason in words."""
    login = evidence.login
    if login is None:
        return Decision(Certainty.UNKNOWN, "the login whose token read it was not seen in the audit log", open=True)
    if login.auth_mount_id is None:
        return Decision(
            Certainty.UNKNOWN,
            f"its login came through auth/{login.mount_path}/, which is not registered with a cluster",
        )
    if not login.service_account:
        return Decision(Certainty.UNKNOWN, f"the login through auth/{login.mount_path}/ named no service account")
    if login.claimed_pod and login.claimed_pod_uid:
        return Decision(
            Certainty.EXACT,
            f"the login response of auth/{login.mount_path}/ carries the pod's name and uid",
            Candidate(login.claimed_pod_uid, login.service_account_namespace, login.claimed_pod, False),
        )
    return from_address(evidence)


def from_address(evidence: Evidence) -> Decision:
    """The pod by its address, where that is enough to name one."""
    found = evidence.candidates
    where = f"{evidence.address} in cluster {evidence.cluster}"
    if not evidence.address:
        return Decision(Certainty.SERVICE_ACCOUNT, "the audit log shows no address for the read")
    if not found:
        return Decision(
            Certainty.SERVICE_ACCOUNT,
            f"no pod of this service account is known to have had {where} then",
            open=True,
        )
    names = ", ".join(f"{pod.namespace}/{pod.name}" for pod in found)
    if len(found) > 1:
        return Decision(
            Certainty.AMBIGUOUS,
            f"{len(found)} pods of this service account fit {where} within {evidence.skew_seconds:g} s: {names}",
            open=True,
        )
    if found[0].host_network:
        return Decision(Certainty.AMBIGUOUS, f"{names} is on the host network, whose address {where} others share")
    if evidence.unplaced:
        return Decision(
            Certainty.SERVICE_ACCOUNT,
            f"{names} fits {where}, but the address of {', '.join(evidence.unplaced)}, which had just started, is not "
            "known yet",
            open=True,
        )
    if not evidence.gapless:
        reason = "the pod watch had a gap then" if evidence.caught_up else "the pod watch has not come that far yet"
        return Decision(Certainty.SERVICE_ACCOUNT, f"{names} fits {where}, but {reason}", open=not evidence.caught_up)
    return Decision(
        Certainty.INFERRED,
        f"only this pod of the service account had {where} at the login and at the read "
        f"(clock skew up to {evidence.skew_seconds:g} s allowed for), and the pod watch had no gap",
        found[0],
        # a pod that took the address over, and whose address comes late, would make it ambiguous
        open=not evidence.settled,
    )


def attribute(keys: list[int], *, now: datetime) -> int:
    """Applies the rule to these leases; returns how many changed."""
    if not keys:
        return 0
    skew = timedelta(seconds=Policy.current().clock_skew_seconds)
    leases = Lease.objects.filter(pk__in=keys).select_related("vault", "login__auth_mount__cluster").order_by("id")
    changes = [change for lease in leases if (change := settle(lease, decide(gather(lease, skew=skew)), now=now))]
    with transaction.atomic():
        save([lease for lease, _ in changes])
        history = [row for _, row in changes if row is not None]
        AttributionChange.objects.bulk_create(history)
    return len(history)


def open_leases(limit: int = 500) -> list[int]:
    """Leases whose holder later evidence can still tell, newest first."""
    return list(Lease.objects.filter(attribution_open=True).order_by("-id").values_list("id", flat=True)[:limit])


def attribute_period(*, cluster: str, from_at: datetime, to_at: datetime, now: datetime) -> int:
    """Applies the rule to every lease that was read in [from_at, to_at] through a mount of this cluster."""
    keys = Lease.objects.filter(
        login__auth_mount__cluster__name=cluster, accessed_at__gte=from_at, accessed_at__lte=to_at
    ).order_by("id")
    return attribute(list(keys.values_list("id", flat=True)), now=now)


def gather(lease: Lease, *, skew: timedelta) -> Evidence:
    login = lease.login
    mount = login.auth_mount if login else None
    if login is None or mount is None or lease.accessed_at is None:
        return Evidence(login, "", lease.source_ip, (), False, False, skew.total_seconds())
    at_read = candidates(mount.cluster_id, login, lease.source_ip, at=lease.accessed_at, skew=skew)
    at_login = candidates(mount.cluster_id, login, login.address, at=login.logged_in_at, skew=skew)
    both = tuple(pod for pod in at_read if pod in at_login)
    # a login from one pod and a read from another fit no single pod: name them all
    fitting = both or (tuple(dict.fromkeys(at_read + at_login)) if at_read and at_login else ())
    settled = caught_up(mount.cluster_id, at=lease.accessed_at, skew=skew + ADDRESS_LAG)
    return Evidence(
        login=login,
        cluster=mount.cluster.name,
        address=lease.source_ip,
        candidates=fitting,
        gapless=gapless(mount.cluster_id, from_at=login.logged_in_at, to_at=lease.accessed_at),
        caught_up=caught_up(mount.cluster_id, at=lease.accessed_at, skew=skew),
        skew_seconds=skew.total_seconds(),
        unplaced=() if settled else unplaced(mount.cluster_id, login, at=lease.accessed_at, skew=skew),
        settled=settled,
    )


def unplaced(cluster_id: int, login: Login, *, at: datetime, skew: timedelta) -> tuple[str, ...]:
    """Pods of the login's service account that had just started on a node at `at` and have no known address."""
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


def candidates(cluster_id: int, login: Login, address: str, *, at: datetime, skew: timedelta) -> tuple[Candidate, ...]:
    """Pods of the login's service account that had `address` at `at`, give or take the skew."""
    try:
        ip = str(ip_address(address))
    except ValueError:
        return ()  # a unix socket, or a log that says something else there
    rows = (
        PodAddress.objects.filter(
            address=ip,
            pod__cluster=cluster_id,
            pod__namespace=login.service_account_namespace,
            pod__service_account=login.service_account,
            from_at__lte=at + skew,
        )
        .exclude(to_at__lt=at - skew)
        .select_related("pod")
        .order_by("from_at", "id")
    )
    pods: dict[str, Pod] = {row.pod.uid: row.pod for row in rows}
    return tuple(Candidate(pod.uid, pod.namespace, pod.name, pod.host_network) for pod in pods.values())


# what settle() may change
SETTLED = [
    "certainty",
    "certainty_reason",
    "cluster",
    "service_account_namespace",
    "service_account",
    "pod_namespace",
    "pod",
    "pod_uid",
    "attribution_open",
    "updated_at",
]


def save(leases: list[Lease]) -> None:
    """What settle() changed, in one round trip: ten times as fast as the ORM's bulk_update, on the way of every read."""
    columns = ", ".join(f"{name} = %s" for name in SETTLED)
    with connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE leases_lease SET {columns} WHERE id = %s",  # noqa: S608 (the constant above)
            [(*(getattr(lease, name) for name in SETTLED), lease.pk) for lease in leases],
        )


def settle(lease: Lease, decision: Decision, *, now: datetime) -> tuple[Lease, AttributionChange | None] | None:
    """Brings a lease in line with a decision, unsaved, with the row of its history; None if it is in line already."""
    pod, login = decision.pod, lease.login
    too_old = lease.accessed_at is not None and now - lease.accessed_at > STAYS_OPEN
    still_open = decision.open and not too_old
    after = {
        "certainty": decision.certainty,
        "certainty_reason": decision.reason,
        "cluster": login.auth_mount.cluster.name if login and login.auth_mount else "",
        "service_account_namespace": login.service_account_namespace if login else "",
        "service_account": login.service_account if login else "",
        "pod_namespace": pod.namespace if pod else "",
        "pod": pod.name if pod else "",
        "pod_uid": pod.uid if pod else "",
    }
    before = lease.certainty
    changed = any(getattr(lease, name) != value for name, value in after.items())
    if not changed and lease.attribution_open == still_open:
        return None
    lease.attribution_open = still_open
    if not changed:
        return lease, None
    for name, value in after.items():
        setattr(lease, name, value)
    lease.updated_at = now
    return lease, AttributionChange(
        at=now,
        vault=lease.vault.name,
        lease_id=lease.lease_id,
        certainty_before=before,
        certainty=lease.certainty,
        reason=lease.certainty_reason,
        cluster=lease.cluster,
        pod_namespace=lease.pod_namespace,
        pod=lease.pod,
        pod_uid=lease.pod_uid,
        service_account=f"{lease.service_account_namespace}/{lease.service_account}" if lease.service_account else "",
    )
