"""Rows for tests of pages and probes: plain functions with sound defaults. `scene()` is a whole evening's worth."""

import json
import secrets
import uuid
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import Group, User
from django.db.models import F
from django.utils import timezone

from audit import follow, intern, partitions
from audit.batch import hour
from audit.ingest import ingest
from audit.models import (
    AttributionChange,
    Conflict,
    Coverage,
    Device,
    Event,
    Finding,
    FindingChange,
    FindingKind,
    FurtherSighting,
    Gap,
    Kind,
    Notice,
    NoticeLine,
    NoticeState,
    Receiver,
    RejectedLine,
    Severity,
    Stream,
)
from leases.models import (
    Action,
    ActionStep,
    ApiCost,
    AuthMount,
    Certainty,
    Cluster,
    ContainedEntity,
    Containment,
    Database,
    DatabaseRole,
    DatabaseServer,
    DynamicUser,
    EndReason,
    Job,
    Lease,
    LeaseState,
    Login,
    Plan,
    Pod,
    PodAddress,
    Revocation,
    SampledPeriod,
    Sampling,
    Session,
    SourceState,
    Vault,
)
from leases.models.sessions import Place
from leases.models.sources import SourceKind

PASSWORD = "a password for tests only"
NAMED = {Certainty.EXACT, Certainty.INFERRED}


def user(name: str, *groups: str, password: str | None = PASSWORD) -> User:
    """Without a password the user can only be logged in by force, which is much faster."""
    made = User.objects.create_user(name, password=password)
    made.groups.set([Group.objects.get_or_create(name=group)[0] for group in groups])
    return made


def vault(name: str = "demo", **fields: Any) -> Vault:
    found, _ = Vault.objects.get_or_create(
        name=name, defaults={"address": "http://127.0.0.1:8200", "lease_mounts": ["database"], **fields}
    )
    return found


def cluster(name: str = "demo", **fields: Any) -> Cluster:
    found, _ = Cluster.objects.get_or_create(name=name, defaults={"address": "http://127.0.0.1:6443", **fields})
    return found


def database(name: str = "orders", *, monitored: bool = True, **fields: Any) -> Database:
    monitor = {"file": f"/etc/leasehold/{name}.dsn"} if monitored else None
    found, _ = Database.objects.get_or_create(
        vault=vault(), mount="database", name=name, defaults={"kind": "postgresql", "monitor": monitor, **fields}
    )
    return found


def stream(device: str = "file-a", node: str = "bao-0", **fields: Any) -> Stream:
    row, _ = Device.objects.get_or_create(vault=vault(), name=device)
    found, _ = Stream.objects.get_or_create(
        device=row, node=node, defaults={"path": f"/var/log/openbao/{device}.log", **fields}
    )
    return found


def cost(kind: str = "lookup", **fields: Any) -> ApiCost:
    """Own requests of the last hour."""
    defaults = {"requests": 1_204, "audit_bytes": 7_100_000, "first_at": timezone.now() - timedelta(minutes=50)}
    row, _ = ApiCost.objects.update_or_create(
        vault=vault(), kind=kind, hour=hour(timezone.now()), defaults=defaults | fields
    )
    return row


def coverage(stream: Stream, *, hours_ago: int = 0, **counts: Any) -> Coverage:
    """One hour of a stream; without `counts` a thousand whole pairs."""
    counts = counts or {"lines": 2000, "pairs": 1000, "lag_seconds": 0.4}
    at = hour(timezone.now()) - timedelta(hours=hours_ago)
    row, _ = Coverage.objects.update_or_create(stream=stream, hour=at, defaults=counts)
    return row


def gap(stream: Stream, *, kind: str = "replaced", hours_ago: float = 2, seconds: float = 40, **fields: Any) -> Gap:
    """Lines that were lost within `seconds` up to some hours ago."""
    to_at = timezone.now() - timedelta(hours=hours_ago)
    defaults: dict[str, Any] = {
        "from_at": to_at - timedelta(seconds=seconds),
        "to_at": to_at,
        "at": to_at,
        "what": f"{stream.path} is another file now; the one before had been read up to byte 81337, and whether more was "
        "written to it cannot be known",
    }
    return Gap.objects.create(stream=stream, kind=kind, **defaults | fields)


def read_lines(stream: Stream, lines: bytes) -> None:
    """Takes lines for real: into a block, and each to what it is."""
    chunk = follow.Chunk(lines, stream.offset, follow.Position(offset=stream.offset + len(lines)), 0)
    ingest(stream.pk, chunk, expected=None, now=timezone.now())
    stream.refresh_from_db()


def rejected(stream: Stream, line: bytes = b"not an audit entry") -> RejectedLine:
    read_lines(stream, line + b"\n")
    return RejectedLine.objects.filter(stream=stream).latest("id")


def conflict(stream: Stream, **fields: Any) -> Conflict:
    Stream.objects.filter(pk=stream.pk).update(lines=F("lines") + 1, conflicts=F("conflicts") + 1)
    defaults = {
        "block_sequence": 1,
        "line_number": 3,
        "request_id": str(uuid.uuid4()),
        "fields": "path, remote_address",
    }
    return Conflict.objects.create(stream=stream, digest=uuid.uuid4(), at=timezone.now(), **defaults | fields)


def a_day_of_lines(stream: Stream) -> RejectedLine:
    """Every state that an hour can have, each kind of gap, rejected lines and conflicts. Returns a rejected line."""
    for hours_ago in (*range(1, 14), *range(16, 20)):
        coverage(stream, hours_ago=hours_ago)
    coverage(
        stream, hours_ago=3, lines=1204, pairs=600, unpaired=1, rejected=2, conflicts=1, duplicates=0, lag_seconds=0.3
    )
    coverage(stream, hours_ago=11, lines=2400, pairs=1150, duplicates=100, redacted=3, lag_seconds=317.0)
    # in the middle of their hours, whatever the time of day: none reaches into the next
    middle = timezone.now().replace(minute=30, second=0, microsecond=0)
    lost_at = middle - timedelta(hours=7)
    gap(
        stream,
        from_at=lost_at - timedelta(seconds=40),
        to_at=lost_at,
        at=lost_at,
        lost_bytes=4096,
        kind="bytes unread at rotation",
    )
    first = middle - timedelta(hours=5)
    for minute in range(3):
        gap(
            stream,
            kind="poll not seen",
            from_at=first + timedelta(minutes=minute),
            to_at=first + timedelta(minutes=minute + 1),
            what=f"Vault answered these requests of Leasehold's own, and no line of them is in device {stream.device.name}: "
            f"{uuid.uuid4()}, {uuid.uuid4()}",
        )
    conflict(stream)
    rejected(stream, b"\x00\x00 [ERROR] no space left on device")
    return rejected(stream, b'{"time":"2026-11-20T10:00:00Z","type":"request","request":{"id":"8f1c <b>torn</b>')


def source(
    kind: SourceKind, name: str, *, ok: bool = True, cause: str = "", fix: str = "", **ages: float
) -> SourceState:
    """`checked` and `since`: seconds ago."""
    now = timezone.now()
    state, _ = SourceState.objects.update_or_create(
        kind=kind,
        name=name,
        defaults={
            "ok": ok,
            "cause": cause,
            "fix": fix,
            "checked_at": now - timedelta(seconds=ages.get("checked", 1)),
            "since": now - timedelta(seconds=ages.get("since", 600)),
            "retry_at": now,
            "failures": 0 if ok else 3,
        },
    )
    return state


def lease(*, age: float = 60, left: float = 240, certainty: str = Certainty.EXACT, **fields: Any) -> Lease:
    """A live lease issued `age` seconds ago that has `left` seconds to go."""
    now: datetime = fields.pop("now", None) or timezone.now()
    issued_at = now - timedelta(seconds=age)
    role = fields.pop("role", "my-role")
    service_account = fields.pop("service_account", "checkout")
    namespace = fields.pop("namespace", "shop")
    pod = fields.pop("pod", f"{service_account}-6f7c9d-{secrets.token_hex(3)}")
    defaults: dict[str, Any] = {
        "vault": vault(),
        "lease_id": f"database/creds/{role}/{secrets.token_urlsafe(18).replace('-', 'x').replace('_', 'y')}",
        "mount": "database",
        "role": role,
        "database_user": f"v-kubernet-{role[:8]}-{secrets.token_hex(10)}-{int(issued_at.timestamp())}",
        "issued_at": issued_at,
        "expires_at": now + timedelta(seconds=left),
        "renewable": True,
        "request_id": str(uuid.uuid4()),
        "accessed_at": issued_at,
        "source_ip": "127.30.0.7",
        "certainty": certainty,
        "certainty_reason": {
            Certainty.EXACT: "the login through auth/jwt of cluster demo carried the pod's claims",
            Certainty.INFERRED: "127.30.0.7 and shop/checkout fit one pod only, and the pod watch has no gap there",
            Certainty.AMBIGUOUS: "3 pods had 10.0.0.4 within 2 s: shop/checkout-a, shop/checkout-b, shop/checkout-c",
            Certainty.SERVICE_ACCOUNT: "the login names the service account; its address is on the host network",
            Certainty.UNKNOWN: "the audit log has shown no read that issued this lease",
        }[Certainty(certainty)],
        "cluster": "demo",
        "service_account_namespace": namespace,
        "service_account": service_account,
        "attribution_open": False,
        "looked_up_at": now - timedelta(seconds=2),
        "first_seen_at": issued_at + timedelta(milliseconds=900),
        "updated_at": now,
    }
    if "database" not in fields:
        defaults["database"] = database()
    if certainty in NAMED:
        defaults |= {"pod_namespace": namespace, "pod": pod, "pod_uid": str(uuid.uuid4())}
    if certainty == Certainty.UNKNOWN:
        defaults |= {"service_account": "", "service_account_namespace": "", "cluster": "", "accessed_at": None}
        defaults |= {"request_id": "", "source_ip": "", "database_user": ""}
    return Lease.objects.create(**defaults | fields)


def ended(*, ago: float = 30, reason: str = EndReason.EXPIRED, **fields: Any) -> Lease:
    at = timezone.now() - timedelta(seconds=ago)
    evidence = {
        EndReason.EXPIRED: "a lookup after its expiry found it gone",
        EndReason.REVOKED_IN_VAULT: "request 5b1c8f40-6a0e-4c8b-9a7d-0f6f1b2f9d10 by token-admin",
    }.get(EndReason(reason), "a lookup finds no such lease")
    return lease(
        age=ago + 300,
        left=-ago,
        state=LeaseState.ENDED,
        ended_at=at,
        end_reason=reason,
        end_evidence=evidence,
        **fields,
    )


def login(lease: Lease) -> Login:
    """The login behind a lease, through a mount registered with the demo's cluster."""
    mount, _ = AuthMount.objects.get_or_create(vault=lease.vault, path="kubernetes", defaults={"cluster": cluster()})
    made = Login.objects.create(
        vault=lease.vault,
        request_id=str(uuid.uuid4()),
        logged_in_at=(lease.accessed_at or lease.first_seen_at) - timedelta(seconds=2),
        mount_path="kubernetes",
        auth_mount=mount,
        address=lease.source_ip,
        display_name=f"kubernetes-{lease.service_account_namespace}-{lease.service_account}",
        entity_id=str(uuid.uuid4()),
        policies=["default", "orders-read"],
        token_type="service",
        service_account_namespace=lease.service_account_namespace,
        service_account=lease.service_account,
    )
    Lease.objects.filter(pk=lease.pk).update(login=made)
    lease.login = made
    return made


def event(
    lease: Lease,
    *,
    operation: str = "read",
    path: str = "",
    seconds: float = 0,
    error: str = "",
    metadata: dict[str, str] | None = None,
    **fields: Any,
) -> Event:
    """A request that names the lease, logged by two devices."""
    at = (lease.accessed_at or lease.first_seen_at) + timedelta(seconds=seconds)
    partitions.make_for([at.date()])
    what = ("", operation, path or f"{lease.mount}/creds/{lease.role}", f"{lease.mount}/", "database", "")
    who = (
        f"kubernetes-{lease.service_account_namespace}-{lease.service_account}",
        "",
        "service",
        "",
        json.dumps(metadata) if metadata else "",
    )
    texts = intern.texts([lease.source_ip, lease.lease_id, *([error] if error else [])])
    request = lease.request_id if not seconds else str(uuid.uuid4())
    made = Event.objects.create(
        vault=lease.vault,
        request=request,
        at=at,
        has_request=True,
        response_at=at,
        what_id=intern.whats([what])[what],
        who_id=intern.whos([who])[who],
        address_id=texts[lease.source_ip],
        lease_name_id=texts[lease.lease_id],
        error_text_id=texts[error] if error else None,
        stream=stream("file-a"),
        request_block=1,
        response_block=1,
        **fields,
    )
    FurtherSighting.objects.create(at=at, request=request, stream=stream("file-b"), request_block=1, response_block=1)
    return made


def request_ids() -> set[str]:
    """Of all events."""
    return {event.request_id for event in Event.objects.all()}


def pod(lease: Lease, *, address: str = "", **fields: Any) -> Pod:
    """The pod that a lease names, with the address that the lease was read from."""
    began = (lease.accessed_at or lease.first_seen_at) - timedelta(minutes=5)
    defaults: dict[str, Any] = {
        "cluster": cluster(lease.cluster),
        "uid": lease.pod_uid,
        "namespace": lease.pod_namespace,
        "name": lease.pod,
        "service_account": lease.service_account,
        "node": "node-1",
        "phase": "Running",
        "owner_kind": "ReplicaSet",
        "owner_name": f"{lease.service_account}-6f7c9d",
        "workload_kind": "Deployment",
        "workload_name": lease.service_account,
        "started_at": began,
    }
    made = Pod.objects.create(**defaults | fields)
    PodAddress.objects.create(pod=made, address=address or lease.source_ip, from_at=began, to_at=made.ended_at)
    return made


def server(identity: str = "postgresql 7301452286314098721 at 127.0.0.1:5432") -> DatabaseServer:
    now = timezone.now()
    defaults = {"started_at": now - timedelta(days=3), "sampled_at": now}
    found, _ = DatabaseServer.objects.get_or_create(identity=identity, defaults=defaults)
    return found


def sampling(database: Database, *, since: float = 86_400, **fields: Any) -> Sampling:
    """A database whose sessions are sampled since some seconds ago, without a hole."""
    now = timezone.now()
    defaults: dict[str, Any] = {
        "server": server(),
        "due_at": now + timedelta(seconds=4),
        "interval_seconds": database.sample_seconds or 5,
        "sampled_at": now - timedelta(seconds=1),
        "users_at": now - timedelta(seconds=20),
        "samples": 17_280,
        "sessions": 3,
        "took_ms": 1.4,
        "total_ms": 17_280 * 1.62,
    }
    row, _ = Sampling.objects.update_or_create(database=database, defaults=defaults | fields)
    sampled(database, since=since)
    return row


def sampled(database: Database, *, since: float, until: float = 0, logged: bool = False) -> SampledPeriod:
    """A period in which sessions were known, from and to so many seconds ago."""
    now = timezone.now()
    return SampledPeriod.objects.create(
        database=database, logged=logged, from_at=now - timedelta(seconds=since), to_at=now - timedelta(seconds=until)
    )


def session(
    lease: Lease | None = None,
    *,
    age: float = 50,
    lasted: float | None = None,
    place: str = Place.HOLDER,
    **fields: Any,
) -> Session:
    """A sampled session that began `age` seconds ago, under a lease's user or nobody's. Open, unless it lasted so many seconds."""
    now = timezone.now()
    began = now - timedelta(seconds=age)
    pid = 1000 + secrets.randbelow(9_000_000)
    address = fields.get("address", (lease.source_ip if lease else "") or "127.30.0.7")
    last = now - timedelta(seconds=2) if lasted is None else began + timedelta(seconds=lasted)
    defaults: dict[str, Any] = {
        "server": server(),
        "key": f"{int(began.timestamp()):x}.{pid:x}",
        "database": lease.database if lease else database(),
        "database_name": "orders",
        "database_user": lease.database_user if lease else f"v-token-my-role-{secrets.token_hex(10)}-1764000000",
        "pid": pid,
        "started_at": began,
        "address": address,
        "port": 40_000 + pid % 20_000,
        "application": "checkout-api",
        "state": "idle",
        "sampled": True,
        "first_seen_at": began,
        "last_seen_at": max(last, began),
        "lease": lease,
        "place": place,
        "place_reason": {
            Place.HOLDER: f"{address} was the holder's when it began",
            Place.NAT: f"{address} is in 10.0.0.0/24, which leasehold.toml names as NAT of this database",
            Place.POOLER: f"{address or 'a local socket'} is a pooler of this database, as leasehold.toml says",
            Place.ELSEWHERE: f"{address} was not the holder's when it began; the holder had 127.30.0.7. Pod "
            "billing/reports-5d9c on node-2 had it",
            Place.NOT_JUDGED: "who holds the lease is not known well enough",
        }.get(Place(place), "")
        if place
        else "",
    }
    if lasted is not None:
        defaults |= {"ended_at": last, "end_known_by": "no longer seen", "state": ""}
    return Session.objects.create(**defaults | fields)


def used_in_every_way(lease: Lease) -> dict[str, Session]:
    """Sessions under a lease from every place and with every end, one of them a thief's; and some that are nobody's."""
    where = lease.database
    made = {
        "holder": session(lease, age=90),
        "log": session(
            lease,
            age=60,
            lasted=0.4,
            application="psql",
            sampled=False,
            logged=True,
            end_known_by="logged",
            port=51_122,
        ),
        "both": session(lease, age=80, lasted=30, logged=True, end_known_by="logged"),
        "local": session(lease, age=70, lasted=20, place=Place.POOLER, address="", port=None, application="pgbouncer"),
        "nat": session(lease, age=65, place=Place.NAT, address="10.0.0.9", start_is_known=False),
        "stolen": session(
            lease, age=20, place=Place.ELSEWHERE, address="127.30.0.99", application="psql", state="active"
        ),
        "unjudged": session(lease, age=3, place=""),
        "ghost": session(age=40, place=Place.NOT_JUDGED, address="127.30.0.44", application="", database=where),
        "vanished": session(
            ended(database=where), age=330, place=Place.HOLDER, user_vanished_at=timezone.now() - timedelta(seconds=28)
        ),
    }
    DynamicUser.objects.get_or_create(
        server=server(),
        name=lease.database_user,
        defaults={"oid": 16_999, "first_seen_at": made["holder"].started_at, "last_seen_at": timezone.now()},
    )
    return made


def attribution(lease: Lease, *, before: str, certainty: str, reason: str, seconds: float = 1) -> AttributionChange:
    named = certainty in NAMED
    return AttributionChange.objects.create(
        at=(lease.accessed_at or lease.first_seen_at) + timedelta(seconds=seconds),
        vault=lease.vault.name,
        lease_id=lease.lease_id,
        certainty_before=before,
        certainty=certainty,
        reason=reason,
        cluster=lease.cluster,
        pod_namespace=lease.pod_namespace if named else "",
        pod=lease.pod if named else "",
        pod_uid=lease.pod_uid if named else "",
        service_account=lease.service_account,
    )


def action(
    *leases: Lease, by: str = "operator", ago: float = 5, state: str = "requested", reason: str = "", **fields: Any
) -> Action:
    at = timezone.now() - timedelta(seconds=ago)
    defaults: dict[str, Any] = {
        "kind": "revoke",
        "reason": reason or "INC-4211: credentials of checkout seen in a paste",
        "targets": [{"vault": row.vault.name, "lease_id": row.lease_id} for row in leases],
    }
    made = Action.objects.create(by=by, at=at, **defaults | fields)
    for row in leases:
        Revocation.objects.create(action=made, lease=row, state=state, requested_at=at, updated_at=at, claimed_until=at)
    return made


def plan(*leases: Lease, kind: str = "revoke", by: str = "operator", left: float = 900, **fields: Any) -> Plan:
    """What a person sees before ending these leases; good for `left` seconds more."""
    now = timezone.now()
    defaults = {
        "kind": kind,
        "scope": {"kind": "leases", "value": ",".join(str(row.pk) for row in leases)},
        "leases": [row.pk for row in leases],
        "at": now,
        "expires_at": now + timedelta(seconds=left),
    }
    return Plan.objects.create(by=by, **defaults | fields)


def job(action: Action, *, state: str = "done", **fields: Any) -> Job:
    """The job of an action, which a worker looked at just now."""
    now = timezone.now()
    return Job.objects.create(action=action, state=state, **{"updated_at": now, "claimed_until": now} | fields)


def containment(*leases: Lease, state: str = "contained", ago: float = 40, **fields: Any) -> Containment:
    """Of the service account that holds these leases, with one identity that can log in in two ways."""
    first = leases[0]
    name = first.service_account
    scope = {"kind": "service account", "value": first.account_scope}
    reason = f"the token of {name} was seen elsewhere"
    made = action(*leases, state="verified", ago=ago, reason=reason, kind="contain", scope=scope)
    job(made)
    if state == "lifted":
        undo = Action.objects.create(
            kind="undo containment", by="second.operator", reason="mended", at=timezone.now(), scope=scope
        )
        fields |= {"undo": undo, "lifted_at": timezone.now()}
    defaults = {
        "cluster": first.cluster,
        "namespace": first.service_account_namespace,
        "service_account": name,
        "at": made.at,
        "begun_at": made.at,
        "disabled_at": made.at + timedelta(seconds=0.2),
        "updated_at": timezone.now(),
    }
    held = Containment.objects.create(action=made, state=state, **defaults | fields)
    ContainedEntity.objects.create(
        containment=held,
        vault=first.vault,
        entity_id=str(uuid.uuid4()),
        name=f"entity_{secrets.token_hex(4)}",
        aliases=[
            {"mount": "auth/kubernetes", "name": str(uuid.uuid4())},
            {"mount": "auth/jwt", "name": f"system:serviceaccount:{first.service_account_namespace}:{name}"},
        ],
        disabled_at=made.at + timedelta(seconds=0.2),
    )
    for seconds, said, detail in [
        (0.2, "identity disabled", "1 identity, read back as disabled"),
        (1.6, "tokens revoked", "2 of 2 tokens, by accessor"),
        (1.7, "no lease live", f"{len(leases)} of {len(leases)} leases ended"),
    ]:
        ActionStep.objects.create(
            action=made, name=said, outcome="ok", detail=detail, at=made.at + timedelta(seconds=seconds)
        )
    return held


def step(
    action: Action, lease: Lease, name: str, outcome: str = "ok", detail: str = "", after: float = 0.4
) -> ActionStep:
    return ActionStep.objects.create(
        action=action,
        lease_id=lease.lease_id,
        name=name,
        outcome=outcome,
        detail=detail,
        at=action.at + timedelta(seconds=after),
    )


def finding(*, closed: bool = False, **fields: Any) -> Finding:
    """An open finding, or one that closed by itself, with the history of its coming and going."""
    now = timezone.now()
    defaults: dict[str, Any] = {
        "kind": FindingKind.HOLDER_UNKNOWN,
        "key": str(uuid.uuid4()),
        "severity": Severity.MEDIUM,
        "vault": "demo",
        "summary": "Nobody knows who holds 3 leases for orders as my-role",
        "evidence": [{"text": "database/creds/my-role/abc: the audit log has shown no read that issued this lease"}],
        "first_seen_at": now - timedelta(minutes=30),
        "last_seen_at": now,
    }
    if closed:
        defaults |= {"closed_at": now, "closed_why": "no longer so"}
    made = Finding.objects.create(**defaults | fields)
    said = {"finding": made, "severity": made.severity}
    FindingChange.objects.create(**said, at=made.first_seen_at, change="opened", why=made.summary)
    if made.closed_at:
        FindingChange.objects.create(**said, at=made.closed_at, change="closed", why=made.closed_why, by=made.closed_by)
    return made


def receiver(name: str = "on-call", **fields: Any) -> Receiver:
    """Of the form for Slack, so that it needs no secret."""
    defaults = {"form": "slack", "url_reference": {"file": "/etc/leasehold/notices/url"}, "checked_at": timezone.now()}
    return Receiver.objects.get_or_create(name=name, defaults=defaults | fields)[0]


def told(finding: Finding, to: Receiver, *, state: str = NoticeState.SENT, **fields: Any) -> NoticeLine:
    """All changes of a finding in one message, or with state "" waiting for one. Returns the last line."""
    now = timezone.now()
    notice = None
    if state:
        ended = state in {NoticeState.SENT, NoticeState.GIVEN_UP}
        times = {"ended_at": now} if ended else {"next_try_at": now + timedelta(minutes=5)}
        defaults = {"made_at": now - timedelta(minutes=20), "attempts": 1, **times}
        notice = Notice.objects.create(receiver=to, state=state, **defaults | fields)
    for change in finding.changes.order_by("at", "id"):
        line = NoticeLine.objects.create(receiver=to, finding=finding, change=change, notice=notice, at=change.at)
    return line


def watched() -> None:
    """A vault, a cluster, two databases and two streams, all of which answer."""
    vault(reconciled_at=timezone.now() - timedelta(minutes=3))
    mounts = {"kubernetes": cluster(), "jwt": cluster()}
    for path, row in mounts.items():
        AuthMount.objects.get_or_create(vault=vault(), path=path, defaults={"cluster": row})
    source(SourceKind.VAULT, "demo")
    source(SourceKind.CLUSTER, "demo")
    for name in ("orders", "billing"):
        database(name)
        source(SourceKind.DATABASE, f"demo/database/{name}")
    for name in ("file-a", "file-b"):
        now = timezone.now()
        parts: dict[str, Any] = {
            "lines": 48_211,
            "parts": 47_890,
            "duplicates": 321,
            "redacted": 3 if name == "file-b" else 0,
        }
        stream(name, **parts, offset=81_337_904)
        Stream.objects.filter(device__name=name).update(last_line_at=now - timedelta(seconds=1), read_at=now)
        source(SourceKind.STREAM, f"demo/{name}/bao-0")


def scene() -> dict[str, Any]:
    """Live and ended leases of every certainty, revocations in every state. Returns the ones that tests open."""
    cost()
    cost("list", requests=6, audit_bytes=240_000)
    watched()
    orders, billing = database("orders"), database("billing")
    shown = lease(age=97, left=203, certainty=Certainty.INFERRED, renewals=2, last_renewal_at=timezone.now())
    login(shown)
    event(shown, kind=Kind.READ)
    event(shown, operation="update", path="sys/leases/renew", seconds=30, kind=Kind.RENEW)
    event(shown, operation="update", path="sys/leases/renew", seconds=60, kind=Kind.RENEW)
    attribution(
        shown,
        before="",
        certainty=Certainty.SERVICE_ACCOUNT,
        reason="the login names the service account; the pod watch has not come past this moment yet",
    )
    attribution(
        shown, before=Certainty.SERVICE_ACCOUNT, certainty=Certainty.INFERRED, reason=shown.certainty_reason, seconds=3
    )
    for role in ("my-role", "orders-rw"):
        DatabaseRole.objects.get_or_create(vault=vault(), mount="database", name=role, defaults={"database": orders})
    Database.objects.filter(pk=orders.pk).update(nat=["10.0.0.0/24"], poolers=["local", "127.30.0.50"])
    sampling(orders)
    holder = pod(shown)
    PodAddress.objects.create(
        pod=holder, address="127.30.1.7", from_at=holder.started_at - timedelta(hours=1), to_at=holder.started_at
    )
    sessions = used_in_every_way(shown)
    for age, left, account, namespace, where, certainty in [
        (3, 297, "storefront", "shop", orders, Certainty.INFERRED),
        (41, 259, "storefront", "shop", orders, Certainty.INFERRED),
        (12, 48, "invoices", "finance", billing, Certainty.EXACT),
        (50, 10, "invoices", "finance", billing, Certainty.EXACT),
        (55, 5, "reports", "finance", billing, Certainty.SERVICE_ACCOUNT),
        (200, 100, "checkout", "shop", orders, Certainty.AMBIGUOUS),
        (280, 20, "fulfilment-worker", "warehouse-europe-west", orders, Certainty.INFERRED),
        (900, 2700, "unused", "shop", None, Certainty.UNKNOWN),
    ]:
        lease(age=age, left=left, service_account=account, namespace=namespace, database=where, certainty=certainty)
    lease(
        age=700,
        left=-340,
        service_account="checkout",
        database=orders,
        state=LeaseState.IRREVOCABLE,
        revoke_error='failed to revoke entry: ERROR: role "v-kubernet-my-role" cannot be dropped because some objects '
        "depend on it (SQLSTATE 2BP01)",
    )
    for ago, reason in [(14, EndReason.EXPIRED), (70, EndReason.REVOKED_IN_VAULT), (400, EndReason.TOKEN_REVOKED)]:
        ended(ago=ago, reason=reason, database=orders)
    gone = ended(ago=4, reason=EndReason.REVOKED_HERE, database=orders)
    verified = action(gone, ago=5, state="verified")
    Revocation.objects.filter(action=verified).update(audit_request_id="0b0c7e1e-5d0f-4f6b-8f3d-2a7f4f1f6a10")
    step(
        verified,
        gone,
        "sessions seen",
        detail=f"{gone.database_user} had 1 session in orders: 4711 from 10.0.0.7:50412",
        after=0.2,
    )
    step(verified, gone, "sessions ended", detail="1 session was told to end, and is gone", after=0.9)
    step(verified, gone, "Vault answered", detail="Vault answered the revocation without an error", after=0.31)
    step(verified, gone, "lease gone", detail="a lookup finds no such lease", after=0.38)
    step(verified, gone, "database user gone", detail=f"{gone.database_user} no longer exists in orders", after=0.44)
    step(verified, gone, "audit line seen", detail="request 0b0c7e1e in file-a/bao-0 and file-b/bao-0", after=1.21)
    rejected_line = a_day_of_lines(stream("file-a"))
    for hours_ago in range(30):
        coverage(stream("file-b"), hours_ago=hours_ago)
    running = action(shown, ago=1, state="verifying")
    step(running, shown, "Vault answered", detail="Vault answered the revocation without an error", after=0.29)
    half = ended(ago=300, reason=EndReason.REVOKED_HERE, database=billing, service_account="invoices")
    unverified = action(half, ago=302, state="unverified", reason="rotation drill")
    step(unverified, half, "Vault answered", detail="Vault answered the revocation without an error")
    step(unverified, half, "lease gone", detail="a lookup finds no such lease", after=0.5)
    step(
        unverified,
        half,
        "database user gone",
        outcome="unverified",
        detail="billing refuses the monitoring account. Check the DSN that leasehold.toml names.",
        after=0.6,
    )
    stuck = lease(age=400, left=500, service_account="reports", namespace="finance", database=billing)
    failed = action(stuck, ago=120, state="failed", by="second.operator", reason="pod compromised")
    job(failed)
    job(unverified)
    step(
        failed,
        stuck,
        "Vault answered",
        outcome="failed",
        detail="Vault answered 400: failed to revoke entry: ERROR: permission denied to drop role. Give the mount's "
        "database account the right to drop its users.",
    )
    many = action(
        gone, half, stuck, ago=400, state="verified", reason="INC-4212: everything of finance", ticket="INC-4212"
    )
    Revocation.objects.filter(action=many, lease=half).update(state="stopped")
    Revocation.objects.filter(action=many, lease=stuck).update(state="failed")
    job(many, state="stopped", stopped_by="operator", stopped_at=timezone.now())
    for after, name in enumerate(
        ["sessions seen", "Vault answered", "lease gone", "database user gone", "sessions ended"]
    ):
        step(many, gone, name, detail=f"{name}, in short", after=0.2 + after / 10)
    step(
        many,
        stuck,
        "Vault answered",
        outcome="failed",
        detail="Vault answered 400: permission denied to drop role",
        after=0.4,
    )
    waiting = action(
        ago=20,
        reason="all of billing, please look over it",
        by="second.operator",
        targets=[{"vault": "demo", "lease_id": f"database/creds/billing/{n}"} for n in range(30)],
        scope={"kind": "database", "value": str(billing.pk)},
    )
    job(waiting, state="waiting for approval", needs_approval=True)
    plan(lease(age=61, left=240, database=billing), by="second.operator", action=waiting)
    shut_out = containment(ended(ago=30, service_account="importer", namespace="finance", database=billing))
    shown_finding = finding(
        kind=FindingKind.EXPLOSION,
        severity=Severity.HIGH,
        key="account demo demo/shop/checkout",
        summary="shop/checkout holds 311 live leases and takes ever more",
        culprit="shop/checkout",
        service_account_namespace="shop",
        service_account="checkout",
        weight=311,
        evidence=[
            {"text": "311 live leases; 10 min ago 61"},
            {"text": "in 10 min 250 were issued, 3 renewed, 0 ended"},
            {"text": "it reads new credentials instead of renewing the ones that it has"},
            {"text": "4 pods and 1 role: one lease for each would be 4"},
            {"text": f"{shown.lease_id}: issued", "at": timezone.now().isoformat(), "lease": shown.pk},
        ],
    )
    told(shown_finding, receiver())
    failing = receiver(
        "pager",
        cause="The receiver answered 404",
        fix="Correct url in leasehold.toml, or what it names; then `manage.py configure`.",
        failing_since=timezone.now() - timedelta(minutes=20),
    )
    told(shown_finding, failing, state=NoticeState.REFUSED, cause="The receiver answered 404")
    finding()
    finding(
        kind=FindingKind.GAP,
        severity=Severity.HIGH,
        summary="Lines are missing from stream demo/file-a/bao-0: 2 gaps within 24 h",
        evidence=[
            {"text": "bytes unread at rotation, until", "stream": stream("file-a").pk, "at": timezone.now().isoformat()}
        ],
    )
    finding(
        kind=FindingKind.ISSUED_TWICE,
        severity=Severity.LOW,
        summary="shop/storefront reads orders as my-role twice within 5 s: a lease more than it needs",
        culprit="shop/storefront",
    )
    return {
        "finding": shown_finding,
        "closed_finding": finding(
            closed=True,
            closed_by="operator",
            closed_why="drill of the platform team",
            kind=FindingKind.ROOT_TOKEN,
            severity=Severity.HIGH,
            summary="A root token (root) made 12 requests at demo",
            culprit="root",
        ),
        "stream": stream("file-a"),
        "rejected": rejected_line,
        "lease": shown,
        "database": orders,
        "billing": billing,
        "pod": holder,
        "stolen": sessions["stolen"],
        "guessed": lease(
            age=150, left=150, database=orders, database_user_by="time and name", service_account="storefront"
        ),
        "ended": gone,
        "irrevocable": Lease.objects.get(state=LeaseState.IRREVOCABLE),
        "verified": verified,
        "running": running,
        "unverified": unverified,
        "failed": failed,
        "many": many,
        "item": Revocation.objects.get(action=many, lease=stuck),
        "waiting": waiting,
        "containment": shut_out,
        "revocable": lease(age=20, left=280, service_account="checkout", database=orders),
    }
