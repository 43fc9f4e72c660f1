"""Who holds a lease: the rule, pure, and the verb that applies it and writes down every change.

Certainty is never guessed upwards: a pod is named only by claims of a registered auth mount, or where address, service
account and time fit exactly one pod and the pod watch had no gap then.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec
from django.db import connection
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from audit.evidence import Candidate, Evidence, Held, LoginSeen, Resalted, canonical, gather
from leases.consumers import MOST, listed
from leases.identity import TOKEN_STORE
from leases.models import Certainty, Lease, Policy, WatchPeriod

# how long later data may still tell who holds a lease
STAYS_OPEN = timedelta(minutes=10)
# and how long a watch that has not come past its read is waited for: it may have been held up, and go on without a gap
WATCH_LATE = timedelta(days=1)
# so many leases are judged at once: enough to make queries cheap, few enough to lock no row for long
SLICE = 2_000
# so often is a lease judged that others change meanwhile
TRIES = 3


@dataclass(frozen=True, slots=True)
class Decision:
    certainty: Certainty
    reason: str
    pod: Candidate | None = None
    # later evidence can still change it
    open: bool = False


def decide(evidence: Evidence) -> Decision:
    """The certainty of one lease's holder, with its reason in words."""
    decision = reader(evidence)
    if evidence.login is not None and evidence.login.inherited:
        decision = passed_on(evidence, evidence.login, decision)
    return handed_over(evidence, decision)


def passed_on(evidence: Evidence, login: LoginSeen, decision: Decision) -> Decision:
    """A token that another one made, or that came wrapped, may be with somebody else: the address of the read must be the login's."""
    how = "read with a token that another token made, or that came wrapped"
    if decision.pod is None or evidence.address == login.address:
        return replace(decision, reason=f"{decision.reason}; {how}")
    return Decision(
        Certainty.AMBIGUOUS,
        f"{how}, at {evidence.address}; its login was that of {decision.pod.namespace}/{decision.pod.name} at {login.address}",
        open=decision.open,
    )


def handed_over(evidence: Evidence, decision: Decision) -> Decision:
    """Credentials that were wrapped are with whoever unwrapped them, which may be another than who read them."""
    if not evidence.unwrapped_from or decision.certainty is Certainty.UNKNOWN:
        return decision
    pod, may_change = decision.pod, decision.open
    names = f" by {pod.namespace}/{pod.name}" if pod else ""
    if evidence.unwrapped_from != evidence.address:
        who = f"unwrapped at {evidence.unwrapped_from}: either can hold it"
    elif pod is None or is_its_own(evidence, pod):
        return decision
    else:
        who = "unwrapped from there, which is not known to be that pod's own address: whoever else comes from there can hold it"
        if evidence.living.count:
            who += f". Of this service account there lived then: {listed(evidence.living.names, evidence.living.count)}"
        may_change = may_change or not evidence.settled
    return Decision(
        Certainty.AMBIGUOUS,
        f"read wrapped at {evidence.address}{names}, {who}. Of the read: {decision.reason}",
        open=may_change,
    )


def is_its_own(evidence: Evidence, pod: Candidate) -> bool:
    """Whether the address of the read was then this pod's and nobody else's, as the pod watch knows."""
    return (
        evidence.gapless
        and not evidence.others
        and [one.uid for one in evidence.candidates if not one.host_network] == [pod.uid]
    )


def reader(evidence: Evidence) -> Decision:
    """Who read it."""
    login = evidence.login
    if login is None:
        why = unfound(evidence.resalted) if evidence.resalted else "was not seen in the audit log"
        return Decision(Certainty.UNKNOWN, f"the login whose token read it {why}", open=True)
    if login.mount_path == TOKEN_STORE:
        why = unfound(evidence.resalted) if evidence.resalted else "was not seen"
        return Decision(Certainty.UNKNOWN, f"its token was made by another token, whose own login {why}", open=True)
    if login.auth_mount_id is None:
        return Decision(
            Certainty.UNKNOWN,
            f"its login came through auth/{login.mount_path}/, which is not registered with a cluster",
        )
    if not login.service_account:
        return Decision(Certainty.UNKNOWN, f"the login through auth/{login.mount_path}/ named no service account")
    if evidence.fetched:
        return for_others(evidence, login)
    if login.claimed_pod and login.claimed_pod_uid:
        return Decision(
            Certainty.EXACT,
            f"the login response of auth/{login.mount_path}/ carries the pod's name and uid",
            Candidate(login.claimed_pod_uid, login.service_account_namespace, login.claimed_pod, False),
        )
    return from_address(evidence, login)


def unfound(resalted: Resalted) -> str:
    """Whether it was logged cannot be known."""
    return (
        f"was not found: the salt of device {resalted.devices} was another one by {resalted.noticed_at:%FT%TZ}, and what was "
        "logged before that is hashed otherwise"
    )


def for_others(evidence: Evidence, login: LoginSeen) -> Decision:
    """An operator fetched it: whoever refers to the Secret that it fills may hold the credentials."""
    pods = [f"{pod.namespace}/{pod.name}" for pod in evidence.candidates or evidence.others if evidence.gapless]
    if login.claimed_pod:
        pods = [f"{login.service_account_namespace}/{login.claimed_pod}"]
    account = f"{login.service_account_namespace}/{login.service_account}"
    who = ("the operator's pod " if len(pods) == 1 else "one of the operator's pods ") + ", ".join(pods)
    reason = f"{who if pods else f'a pod of the operator {account}'} fetched it for others"
    for sync in evidence.syncs[:MOST]:
        puts = "puts it" if sync.exact else "reads this path and puts it"
        users = f"used by {sync.named}" if sync.count else "to which no pod known then refers"
        resource = f"{sync.kind} {sync.namespace}/{sync.name}"
        reason += f"; {resource} {puts} into Secret {sync.namespace}/{sync.secret}, {users}"
    if not evidence.syncs:
        reason += "; no resource of its cluster is known that says for whom"
    return Decision(Certainty.AMBIGUOUS, reason, open=not evidence.settled)


def from_address(evidence: Evidence, login: LoginSeen) -> Decision:
    """The pod by its address, where that is enough to name one."""
    found = evidence.candidates
    where = f"{evidence.address} in cluster {evidence.cluster}"
    if not canonical(evidence.address):
        return Decision(Certainty.SERVICE_ACCOUNT, "the audit log shows no address for the read")
    if not found:
        return from_nobody(evidence, login)
    names = ", ".join(f"{pod.namespace}/{pod.name}" for pod in found)
    if any(pod.host_network for pod in found):
        return shared_by_node(evidence)
    if len(found) > 1:
        return Decision(
            Certainty.AMBIGUOUS,
            f"{len(found)} pods of this service account fit {where} within {evidence.skew_seconds:g} s: {names}",
            open=True,
        )
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


def shared_by_node(evidence: Evidence) -> Decision:
    """A node's address: of its pods on the host network, and of all of its pods where it translates addresses."""
    everybody = (*evidence.candidates, *evidence.others)
    node = next((pod.node for pod in everybody if pod.host_network), "")
    where = f"{evidence.address} in cluster {evidence.cluster}"
    known = [f"{pod.namespace}/{pod.name}" for pod in evidence.candidates]
    # those of the account that had the address first; then the others of the account on that node
    rest = [name for name in evidence.living.names if name not in known]
    unnamed = max(0, evidence.living.count - len(evidence.living.names))
    names = listed(known + rest, len(known + rest) + unnamed)
    if not names:
        return Decision(
            Certainty.SERVICE_ACCOUNT,
            f"{where} is the address of node {node}, on which no pod of this service account is known to have been then",
            open=not evidence.settled,
        )
    return Decision(
        Certainty.AMBIGUOUS,
        f"{where} is the address of node {node}, which its pods on the host network share (others reach out through "
        f"it, too, where it translates addresses); of this service account there were: {names}",
        open=not evidence.settled,
    )


def from_nobody(evidence: Evidence, login: LoginSeen) -> Decision:
    """No pod of the service account fits the address."""
    where = f"{evidence.address} in cluster {evidence.cluster}"
    nobody = f"no pod of this service account is known to have had {where} then"
    if evidence.unplaced:
        starting = ", ".join(evidence.unplaced)
        return Decision(
            Certainty.SERVICE_ACCOUNT,
            f"{nobody}; the address of {starting}, which had just started, is not known yet",
            open=True,
        )
    if not evidence.gapless:
        reason = "the pod watch had a gap then" if evidence.caught_up else "the pod watch has not come that far yet"
        return Decision(Certainty.SERVICE_ACCOUNT, f"{nobody}, but {reason}", open=True)
    if any(pod.host_network for pod in evidence.others):
        return shared_by_node(evidence)
    if evidence.others:
        other = evidence.others[0]
        reason = (
            f"{where} was then the address of {listed([f'{pod.namespace}/{pod.name}' for pod in evidence.others], 0)} of "
            f"service account {other.namespace}/{other.service_account}: a proxy, or its token was used elsewhere"
        )
    elif login.address != evidence.address:
        reason = f"the login came from {login.address or 'an unknown address'} and the read from {where}, which fit no single pod"
    else:
        reason = f"{where} was then the address of no pod: NAT or a proxy stands between"
    if not evidence.living.count:
        return Decision(
            Certainty.SERVICE_ACCOUNT,
            f"{reason}; no pod of this service account is known to have lived then",
            open=not evidence.settled,
        )
    return Decision(
        Certainty.AMBIGUOUS,
        f"{reason}; of this service account there lived then: {listed(evidence.living.names, evidence.living.count)}",
        open=not evidence.settled,
    )


def attribute(keys: list[int], *, now: datetime, wait: bool = True) -> int:
    """Applies the rule to these leases; returns how many changed. Without `wait`, what others are changing is left out."""
    if not keys:
        return 0
    skew = timedelta(seconds=Policy.current().clock_skew_seconds)
    ordered = sorted(keys)
    slices = (ordered[begin : begin + SLICE] for begin in range(0, len(ordered), SLICE))
    return sum(attribute_slice(some, skew=skew, now=now, wait=wait) for some in slices)


def attribute_slice(keys: list[int], *, skew: timedelta, now: datetime, wait: bool) -> int:
    """Applies the rule to these leases at once; returns how many changed."""
    changed = 0
    for _ in range(TRIES if wait else 1):
        found = gather(keys, skew=skew)
        settled = (settle(lease, evidence, decide(evidence), now=now) for lease, evidence in found)
        changes = [change for change in settled if change is not None]
        saved = save(changes, now=now, wait=wait)
        changed += sum(change.visible for change in changes if change.after.id in saved)
        # what another worker has changed since it was read is judged again, by what is there now
        keys = [change.after.id for change in changes if change.after.id not in saved]
        if not keys:
            break
    return changed


def open_leases(limit: int = SLICE, *, below: int | None = None) -> list[int]:
    """Leases whose holder later evidence can still tell, newest first; without those for which there can be none yet."""
    leases = judgeable(now=timezone.now())
    if below is not None:
        leases = leases.filter(pk__lt=below)
    return list(leases.order_by("-id").values_list("id", flat=True)[:limit])


def judgeable(*, now: datetime) -> QuerySet[Lease]:
    """Open leases, but for older ones that wait for a watch which has not come as far as their read: they may be many."""
    come_to = dict(WatchPeriod.objects.order_by().values_list("cluster__name").annotate(to_at=Max("to_at")))
    waits = Q(accessed_at__lt=now - STAYS_OPEN, accessed_at__gte=now - WATCH_LATE) & ~Q(cluster="")
    behind = ~Q(cluster__in=list(come_to))
    for cluster, to_at in come_to.items():
        behind |= Q(cluster=cluster, accessed_at__gt=to_at)
    return Lease.objects.filter(attribution_open=True).exclude(waits & behind)


def waiting(*, limit: int = SLICE) -> Iterator[list[int]]:
    """Every open lease once, in slices, newest first; those that come in meanwhile go before the older ones."""
    keys = open_leases(limit)
    newest = keys[0] if keys else 0
    while keys:
        oldest = keys[-1]
        yield keys
        while fresh := list(
            judgeable(now=timezone.now()).filter(pk__gt=newest).order_by("id").values_list("id", flat=True)[:limit]
        ):
            newest = fresh[-1]
            yield fresh
        keys = open_leases(limit, below=oldest)


def attribute_waiting(*, seconds: float, limit: int = SLICE) -> int:
    """Applies the rule to open leases for about `seconds`, to each at most once; returns to how many.

    What is too old to stay open is closed by it, so that a backlog of any size shrinks with each turn.
    """
    deadline = time.monotonic() + seconds
    taken = 0
    for keys in waiting(limit=limit):
        # what ingest is changing now is attributed by ingest, and neither waits for the other
        attribute(keys, now=timezone.now(), wait=False)
        taken += len(keys)
        if time.monotonic() >= deadline:
            break
    return taken


def attribute_period(*, cluster: str, from_at: datetime, to_at: datetime, now: datetime) -> int:
    """Applies the rule to every lease that was read in [from_at, to_at] through a mount of this cluster."""
    keys = Lease.objects.filter(
        login__auth_mount__cluster__name=cluster, accessed_at__gte=from_at, accessed_at__lte=to_at
    ).order_by("id")
    return attribute(list(keys.values_list("id", flat=True)), now=now)


class Change(msgspec.Struct, frozen=True):
    """A lease after a decision."""

    after: Held
    certainty_before: str
    # false if only the waiting for later evidence is over
    visible: bool


def settle(lease: Held, evidence: Evidence, decision: Decision, *, now: datetime) -> Change | None:
    """What brings a lease in line with a decision; None if it is in line already."""
    pod, login = decision.pod, evidence.login
    after = msgspec.structs.replace(
        lease,
        certainty=decision.certainty.value,
        certainty_reason=decision.reason,
        cluster=evidence.cluster,
        service_account_namespace=login.service_account_namespace if login else "",
        service_account=login.service_account if login else "",
        pod_namespace=pod.namespace if pod else "",
        pod=pod.name if pod else "",
        pod_uid=pod.uid if pod else "",
        attribution_open=decision.open and not is_over(lease, evidence, now=now),
    )
    if after == lease:
        return None
    visible = after != msgspec.structs.replace(lease, attribution_open=after.attribution_open)
    return Change(after, lease.certainty, visible)


def is_over(lease: Held, evidence: Evidence, *, now: datetime) -> bool:
    """The time in which more may come to be known. A login that is told of later opens its leases again."""
    if lease.accessed_at is None:
        return False
    is_watched = evidence.login is not None and evidence.login.cluster_id is not None
    return now - lease.accessed_at > (WATCH_LATE if is_watched and not evidence.settled else STAYS_OPEN)


# Rows are locked in the order of their keys, so that two workers never wait for each other. A lease whose evidence or
# certainty another one has changed since it was read is left as it is.
SAVE = """
    WITH decided AS (
        SELECT asked.* FROM json_to_recordset(%s) AS asked (
            id bigint, login_id bigint, accessed_at timestamptz, source_ip text, certainty_before text, visible boolean,
            certainty text, certainty_reason text, cluster text, service_account_namespace text, service_account text,
            pod_namespace text, pod text, pod_uid text, attribution_open boolean
        ) JOIN leases_lease lease USING (id)
        ORDER BY lease.id FOR NO KEY UPDATE OF lease {or_skip}
    ), saved AS (
        UPDATE leases_lease lease SET
            certainty = decided.certainty,
            certainty_reason = decided.certainty_reason,
            cluster = decided.cluster,
            service_account_namespace = decided.service_account_namespace,
            service_account = decided.service_account,
            pod_namespace = decided.pod_namespace,
            pod = decided.pod,
            pod_uid = decided.pod_uid,
            attribution_open = decided.attribution_open,
            -- where its sessions came from is judged by who holds it
            sessions_due = lease.sessions_due OR decided.visible AND lease.database_user <> '',
            updated_at = CASE WHEN decided.visible THEN %s ELSE lease.updated_at END
        FROM decided
        WHERE lease.id = decided.id
            AND lease.login_id IS NOT DISTINCT FROM decided.login_id
            AND lease.accessed_at IS NOT DISTINCT FROM decided.accessed_at
            AND (lease.source_ip, lease.certainty) IS NOT DISTINCT FROM (decided.source_ip, decided.certainty_before)
        RETURNING lease.*, decided.certainty_before, decided.visible
    ), history AS (
        INSERT INTO audit_attributionchange (
            at, vault, lease_id, certainty_before, certainty, reason, cluster, pod_namespace, pod, pod_uid, service_account
        )
        SELECT
            %s, vault.name, lease_id, certainty_before, certainty, certainty_reason, cluster, pod_namespace, pod, pod_uid,
            CASE WHEN service_account = '' THEN '' ELSE service_account_namespace || '/' || service_account END
        FROM saved JOIN leases_vault vault ON vault.id = saved.vault_id
        WHERE visible
        ORDER BY saved.id
    )
    SELECT id FROM saved
"""


def save(changes: list[Change], *, now: datetime, wait: bool = True) -> set[int]:
    """Writes these down with their history, in one statement; returns the keys of the leases that it wrote to."""
    if not changes:
        return set()
    rows = [
        {"certainty_before": change.certainty_before, "visible": change.visible, **msgspec.structs.asdict(change.after)}
        for change in changes
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            SAVE.format(or_skip="" if wait else "SKIP LOCKED"), [msgspec.json.encode(rows).decode(), now, now]
        )
        return {key for (key,) in cursor}
