"""What the search box finds, kind by kind. Pure reads, each bounded and by an index; the texts that indexes hold only up to a
length are asked for in just that form (migrations/0016)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import connection
from django.db.models import F, Func, Q, QuerySet, TextField, Value
from django.db.models.functions import Left

from audit import event_queries, intern
from audit.event_queries import INDEXED, like
from audit.logins import own_hash
from audit.models import Device, Ending, Hash, Text, Token, Unwrapping, What, Who, Wrapping
from leases.models import Action, Database, Lease, Login, Pod, PodAddress, ServiceAccount, Session, Vault

# of each kind; a page of more helps nobody, but says that there are more
MOST = 10
# rows that are looked at to find names that differ
MOST_SAME = 500
# Kubernetes' own limit of a name
NAME = 253
ADDRESS = 100


@dataclass(frozen=True, slots=True)
class Hit:
    """`of`: what it is (lease, pod, service account, event, login, identity, path, address, database, action). `key`: by what its
    page is found; nothing stands in it that is not in the database."""

    of: str
    key: tuple[str, ...]
    name: str
    says: str = ""


# --- leases and their holders ------------------------------------------------------------------------------------


def leases_by_id(lease_id: str) -> list[Hit]:
    return _leases(Lease.objects.filter(vault__in=_vaults(), lease_id=lease_id))


def leases_beginning(start: str) -> list[Hit]:
    rows = Lease.objects.alias(start=Left("lease_id", INDEXED)).filter(start__startswith=start[:INDEXED])
    return _leases(rows.filter(lease_id__startswith=start))


def leases_ending(last: str) -> list[Hit]:
    """By the beginning of the id's last part: lists show no more of it."""
    part = Func(F("lease_id"), Value("[^/]*$"), function="substring", output_field=TextField())
    return _leases(Lease.objects.alias(last=Left(part, INDEXED)).filter(last__startswith=last[:INDEXED]))


def leases_of_user(name: str) -> list[Hit]:
    return _leases(Lease.objects.filter(database_user=name).exclude(database_user=""))


def leases_from(address: str) -> list[Hit]:
    return _leases(Lease.objects.exclude(source_ip="").alias(start=Left("source_ip", ADDRESS)).filter(start=address))


def _leases(rows: QuerySet[Lease]) -> list[Hit]:
    # the keys first: what is sorted is then no more than that
    keys = list(rows.order_by().values_list("pk", flat=True)[:MOST_SAME])
    found = Lease.objects.filter(pk__in=keys).select_related("vault", "database").order_by("-first_seen_at", "-id")
    return [
        Hit(
            "lease",
            (str(lease.pk),),
            lease.lease_id,
            f"{lease.state}, {f'of {lease.holder}' if lease.holder else 'holder not known'}, in {lease.vault.name}",
        )
        for lease in found[: MOST + 1]
    ]


def _vaults() -> list[int]:
    return list(Vault.objects.order_by("id").values_list("pk", flat=True))


def pods_by_uid(uid: str) -> list[Hit]:
    rows = Pod.objects.alias(start=Left("uid", NAME)).filter(start=uid)
    return _pods(rows, Lease.objects.filter(pod_uid=uid).exclude(pod_uid=""))


def pods_named(name: str, *, namespace: str = "") -> list[Hit]:
    """Whose name begins so."""
    pods = Pod.objects.alias(start=Left("name", NAME)).filter(start__startswith=name[:NAME])
    leases = Lease.objects.exclude(pod="").alias(start=Left("pod", NAME)).filter(start__startswith=name[:NAME])
    if namespace:
        pods, leases = pods.filter(namespace=namespace), leases.filter(pod_namespace=namespace)
    return _pods(pods, leases)


def pods_that_had(address: str) -> list[Hit]:
    """Each once, that which had it last first."""
    rows = PodAddress.objects.filter(address=address).select_related("pod__cluster").order_by("-from_at", "-id")
    return list({row.pod_id: _pod(row.pod) for row in rows[: 5 * MOST]}.values())[: MOST + 1]


def _pods(pods: QuerySet[Pod], leases: QuerySet[Lease]) -> list[Hit]:
    """Those that their cluster told of, running ones first, and those that only a login named."""
    keys = list(pods.order_by().values_list("pk", flat=True)[:MOST_SAME])
    rows = Pod.objects.filter(pk__in=keys).select_related("cluster")
    newest = rows.order_by(F("ended_at").desc(nulls_first=True), "-started_at", "-id")
    found = {(pod.cluster.name, pod.uid): _pod(pod) for pod in newest[: MOST + 1]}
    named = leases.order_by().values_list("cluster", "pod_uid", "pod_namespace", "pod")[:MOST_SAME]
    for cluster, uid, namespace, name in sorted(set(named)):
        said = Hit("pod", (cluster, uid), f"{namespace}/{name}", f"in {cluster}, as its login said")
        found.setdefault((cluster, uid), said)
    return list(found.values())[: MOST + 1]


def _pod(pod: Pod) -> Hit:
    state = "ended" if pod.ended_at else pod.phase.lower() or "known"
    return Hit("pod", (pod.cluster.name, pod.uid), f"{pod.namespace}/{pod.name}", f"{state}, in {pod.cluster.name}")


# each name once: from one to the next greater one by the index, however many leases bear it
_NAMES = """
    WITH RECURSIVE names AS (
      (SELECT left(service_account, 253) AS name FROM leases_lease
       WHERE service_account <> '' AND left(service_account, 253) LIKE %(pattern)s
       ORDER BY left(service_account, 253) USING ~<~ LIMIT 1)
      UNION ALL
      SELECT (SELECT left(service_account, 253) FROM leases_lease
              WHERE service_account <> '' AND left(service_account, 253) LIKE %(pattern)s
                AND left(service_account, 253) ~>~ names.name
              ORDER BY left(service_account, 253) USING ~<~ LIMIT 1)
      FROM names WHERE names.name IS NOT NULL
    )
    SELECT DISTINCT l.cluster, l.service_account_namespace, l.service_account
    FROM (SELECT name FROM names WHERE name IS NOT NULL LIMIT %(most)s) n, LATERAL (
      SELECT cluster, service_account_namespace, service_account FROM leases_lease
      WHERE service_account = n.name ORDER BY COALESCE(accessed_at, first_seen_at) DESC, id DESC LIMIT %(same)s) l
"""


def accounts_named(name: str, *, namespace: str = "") -> list[Hit]:
    """Whose name begins so; those whose cluster tells of none, too, where leases do."""
    with connection.cursor() as cursor:
        cursor.execute(_NAMES, {"pattern": f"{like(name[:NAME])}%", "most": MOST + 1, "same": MOST_SAME})
        held = {row for row in cursor.fetchall() if not namespace or row[1] == namespace}
    rows = ServiceAccount.objects.alias(start=Left("name", NAME)).filter(start__startswith=name[:NAME])
    return _accounts(rows.filter(namespace=namespace) if namespace else rows, held)


def accounts_by_uid(uid: str) -> list[Hit]:
    return _accounts(ServiceAccount.objects.filter(uid=uid), set())


def _accounts(rows: QuerySet[ServiceAccount], held: set[tuple[str, str, str]]) -> list[Hit]:
    known = rows.order_by("namespace", "name", "id").values_list("cluster__name", "namespace", "name")[: MOST + 1]
    return [
        Hit("service account", (cluster, namespace, name), f"{namespace}/{name}", f"in {cluster}")
        for cluster, namespace, name in sorted({*known, *held})
        if cluster and name
    ][: MOST + 1]


# --- requests, tokens, identities --------------------------------------------------------------------------------


def events_by_id(request_id: str) -> list[Hit]:
    places = event_queries.places_of(request_id)[: MOST + 1]
    names = dict(Vault.objects.filter(pk__in=[vault for vault, _ in places]).values_list("pk", "name"))
    return _once(_event(names[vault], request_id, f"at {at:%Y-%m-%d %H:%M:%S} UTC") for vault, at in places)


def _event(vault: str, request_id: str, says: str) -> Hit:
    return Hit("event", (vault, request_id), request_id, f"{says}, in {vault}")


def _once(hits: Iterable[Hit]) -> list[Hit]:
    """Several devices tell of one request."""
    return list({hit.key: hit for hit in hits}.values())


def requests_from(address: str) -> list[Hit]:
    known = Text.objects.filter(digest=intern.digest(address)).exists()
    return [Hit("address", (address,), f"requests from {address}")] if known else []


def logins_of_entity(entity: str) -> list[Hit]:
    rows = Login.objects.exclude(entity_id="").alias(start=Left("entity_id", INDEXED))
    return _logins(rows.filter(start=entity[:INDEXED], entity_id=entity))


def logins_named(name: str) -> list[Hit]:
    rows = Login.objects.exclude(display_name="").alias(start=Left("display_name", INDEXED))
    return _logins(rows.filter(start=name[:INDEXED], display_name=name))


def tokens_of(accessor: str) -> list[Hit]:
    """Of an accessor that a device writes as it is (hmac_accessor=false)."""
    return _tokens([(device, 0, accessor) for device in Device.objects.order_by("id").values_list("pk", flat=True)])


def _tokens(keys: Sequence[tuple[int, int, str]], *, own: Sequence[int] = ()) -> list[Hit]:
    logins = set(Token.objects.filter(_any(keys, "accessor")).values_list("login", flat=True)[: MOST + 1])
    if own:
        logins |= set(Token.objects.filter(own_hash__in=own).values_list("login", flat=True)[: MOST + 1])
    return _logins(Login.objects.filter(pk__in=logins - {None}))


def _logins(rows: QuerySet[Login]) -> list[Hit]:
    keys = list(rows.order_by().values_list("pk", flat=True)[:MOST_SAME])
    newest = Login.objects.filter(pk__in=keys).select_related("vault").order_by("-logged_in_at", "-id")
    return [
        Hit(
            "login",
            (str(login.pk),),
            login.display_name or f"auth/{login.mount_path}",
            f"logged in {login.logged_in_at:%Y-%m-%d %H:%M:%S} UTC from {login.address or 'an unknown address'},"
            f" in {login.vault.name}",
        )
        for login in newest[: MOST + 1]
    ]


def identities_named(name: str) -> list[Hit]:
    rows = Who.objects.alias(start=Left("display_name", INDEXED))
    return _identities(rows.filter(start=name[:INDEXED], display_name=name))


def identities_with_policy(name: str) -> list[Hit]:
    return _identities(Who.objects.filter(policies__contains=[name]))


def _identities(rows: QuerySet[Who]) -> list[Hit]:
    names = set(rows.order_by().values_list("display_name", flat=True)[:MOST_SAME])
    return [Hit("identity", (name,), name, "its requests") for name in sorted(names) if name][: MOST + 1]


def paths_beginning(start: str) -> list[Hit]:
    rows = What.objects.alias(start=Left("path", INDEXED)).filter(
        start__startswith=start[:INDEXED], path__startswith=start
    )
    # one that was typed whole is among them, however many there are
    paths = {*rows.filter(path=start).values_list("path", flat=True)[:1]}
    paths |= {*rows.order_by().values_list("path", flat=True)[:MOST_SAME]}
    return [Hit("path", (path,), path, "its requests") for path in sorted(paths, key=lambda path: (len(path), path))][
        : MOST + 1
    ]


# --- databases and actions ---------------------------------------------------------------------------------------


def databases_called(text: str) -> list[Hit]:
    """By name, MOUNT/NAME or VAULT/MOUNT/NAME; there are never many."""
    rows = Database.objects.select_related("vault").order_by("vault__name", "mount", "name", "id")
    return [
        Hit("database", (str(row.pk),), row.path, row.kind)
        for row in rows
        if text in (row.name, f"{row.mount}/{row.name}", row.path)
    ][: MOST + 1]


def sessions_of_user(name: str) -> list[Hit]:
    """Of a user whose lease is not known."""
    return _sessions(Session.objects.filter(lease=None, database_user=name))


def sessions_from(address: str) -> list[Hit]:
    return _sessions(Session.objects.exclude(address="").alias(start=Left("address", ADDRESS)).filter(start=address))


def _sessions(rows: QuerySet[Session]) -> list[Hit]:
    hits = []
    for row in rows.select_related("lease", "database__vault").order_by("-started_at", "-id")[: MOST + 1]:
        says = f"began {row.started_at:%Y-%m-%d %H:%M:%S} UTC, {'ended' if row.ended_at else 'open'}"
        name = row.database_user or "a dropped user"
        if row.lease:
            hits.append(Hit("lease", (str(row.lease.pk),), name, says))
        elif row.database:
            hits.append(Hit("database", (str(row.database.pk),), name, f"{says}, on {row.database.path}"))
    return hits


def actions_by_id(text: str) -> list[Hit]:
    return [
        Hit("action", (str(row.pk),), f"{row.kind} by {row.by}", row.reason) for row in Action.objects.filter(pk=text)
    ]


# --- what stands under a hash ------------------------------------------------------------------------------------


def under_hashes(known: Sequence[tuple[Device, str]]) -> list[tuple[str, list[Hit]]]:
    """(what, hits): what the log tells under these hashes, each in the words of one device, in any salt that it has had."""
    keys = [(device.pk, epoch, text) for device, text in known for epoch in range(device.salt_epoch + 2)]
    of_lease = Hash.objects.filter(_any(keys, "hash", of__in=Hash.Of.values)).select_related("lease_name", "device")
    ids = {(row.device.vault_id, row.lease_name.text) for row in of_lease[: MOST + 1]}
    unwrapped = Unwrapping.objects.filter(_any(keys, "key")).select_related("device")
    ids |= {(row.device.vault_id, row.lease_id) for row in unwrapped[: MOST + 1]}
    leases, ended = Q(pk__in=[]), Q(pk__in=[])
    for vault, lease_id in ids:
        leases |= Q(vault=vault, lease_id=lease_id)
    own = {number for _, text in known if (number := own_hash(text)) is not None}
    for device, text in known:
        ended |= Q(vault=device.vault_id, by__in=Ending.By.values, target__in=[text, str(own_hash(text))])
    ends = Ending.objects.filter(ended).select_related("vault").order_by("-at", "-id")[: MOST + 1]
    wraps = Wrapping.objects.filter(_any(keys, "key")).select_related("device__vault")[: MOST + 1]
    return [
        ("Leases", _leases(Lease.objects.filter(leases))),
        ("Logins of this token", _tokens(keys, own=sorted(own))),
        ("Requests that ended it", _once(_event(row.vault.name, row.request_id, row.path) for row in ends)),
        (
            "Requests whose answer it wraps",
            _once(_event(row.device.vault.name, row.request_id, row.path) for row in wraps),
        ),
    ]


def _any(keys: Sequence[tuple[int, int, str]], column: str, **fixed: object) -> Q:
    """One of these, by their unique index: (device, salt epoch, what stands in the column)."""
    either = Q(pk__in=[])
    for device, epoch, text in keys:
        either |= Q(device=device, salt_epoch=epoch, **fixed, **{column: text})
    return either
