"""As whom a service account logs in to the vaults: its entities with every alias, by the ledger and by asking each registered mount.

Asked with the responding account, so only by the `actions` workers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import Q

from leases import clients
from leases.errors import SourceError
from leases.models import AuthMount, Login, Pod, ServiceAccount, Vault
from leases.vault import AuthMethod, Entity, VaultClient

# entities of one account in one vault; more are a mount whose aliases are pods
MOST = 200
MOST_SHARERS = 5
# Vault's own limit for what a token lives, unless somebody raised it
OLDEST = timedelta(days=32)
OWN = "Leasehold itself"
UNKNOWN_UID = (
    " Most mounts know it by its uid, which is not known here: let the cluster's account watch service accounts "
    "(deploy/kubernetes/rbac.yaml)."
)


@dataclass(frozen=True, slots=True)
class Account:
    """A service account of a cluster."""

    cluster: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def subject(self) -> str:
        """As its tokens call it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


@dataclass(frozen=True, slots=True)
class Alias:
    """A way to log in: the auth mount's path, and the name there. `registered`: the mount is one of the cluster's."""

    mount: str
    name: str
    registered: bool = True


@dataclass(frozen=True, slots=True)
class Identity:
    """One entity of one vault. `shared_with`: who else logs in as it; `tokens`: live ones by the audit log, batch tokens included."""

    vault: str
    vault_namespace: str
    entity_id: str
    name: str = ""
    aliases: tuple[Alias, ...] = ()
    disabled: bool = False
    shared_with: tuple[str, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What the vaults told. `without`: mounts where there is nothing to disable; `by_pod`: mounts that know pods instead of the
    account; `loose`: live tokens of no identity that its tokens made; `problems`: vaults that could not be asked, each with its fix."""

    identities: tuple[Identity, ...] = ()
    without: tuple[str, ...] = ()
    by_pod: tuple[str, ...] = ()
    loose: int = 0
    problems: tuple[str, ...] = ()


def mounts_of(cluster: str) -> dict[Vault, list[AuthMount]]:
    """The registered auth mounts of a cluster, by vault."""
    rows = AuthMount.objects.filter(cluster__name=cluster, vault__retired=False).select_related("vault")
    found: dict[Vault, list[AuthMount]] = {}
    for row in rows.order_by("vault__name", "path"):
        found.setdefault(row.vault, []).append(row)
    return found


def look(account: Account, *, now: datetime) -> Found:
    """In every vault that the account's cluster can log in to. A vault that does not tell is a problem, not an error."""
    found = Found()
    for vault, mounts in mounts_of(account.cluster).items():
        try:
            here = look_in(vault, mounts, account, now=now)
        except SourceError as error:
            here = Found(problems=(f"Vault {vault.name}: {error}",))
        found = Found(
            found.identities + here.identities,
            found.without + here.without,
            found.by_pod + here.by_pod,
            found.loose + here.loose,
            found.problems + here.problems,
        )
    return found


def look_in(vault: Vault, mounts: Sequence[AuthMount], account: Account, *, now: datetime) -> Found:
    """In one vault: as whom its logins in the ledger came, and whom each of these mounts knows under its names. Raises SourceError."""
    client = clients.responder(vault)
    entities: dict[tuple[str, str], Entity] = {}
    for namespace, entity_id in sorted(_of_ledger(vault, mounts, account)):
        if entity := client.entity(entity_id, namespace=namespace):
            entities[namespace, entity.entity_id] = entity
    methods: dict[str, dict[str, AuthMethod]] = {}
    without = []
    uids, names = _uids(account), [str(account), account.subject]
    for mount in mounts:
        namespace, path = place(vault, mount.path)
        if namespace not in methods:
            methods[namespace] = client.auth_methods(namespace=namespace)
        method = methods[namespace].get(path)
        if method is None:
            without.append(f"auth/{mount.path} is not enabled in vault {vault.name}: nobody can log in there.")
            continue
        for name in (*uids, *names):
            if entity := client.entity_of_alias(method.accessor, name, namespace=namespace):
                entities[namespace, entity.entity_id] = entity
        if not any(alias.mount_accessor == method.accessor for one in entities.values() for alias in one.aliases):
            without.append(
                f"At auth/{mount.path} of vault {vault.name} no identity of {account} is known, so there is nothing to disable. "
                "Where a role there lets it in, it can log in; that would be noticed, and containing again would disable it."
                f"{'' if uids else UNKNOWN_UID}"
            )
    registered = {place(vault, mount.path) for mount in mounts}
    own = _own(vault, client)
    return Found(
        tuple(
            Identity(
                vault.name,
                namespace,
                one.entity_id,
                one.name,
                tuple(
                    Alias(f"auth/{alias.mount}", alias.name, (namespace, alias.mount) in registered)
                    for alias in one.aliases
                ),
                one.disabled,
                _shared_with(vault, one, account, own=one.entity_id in own),
                _tokens(vault, one.entity_id, now=now),
            )
            for (namespace, _), one in entities.items()
        ),
        tuple(without),
        tuple(_known_by_pod(entities.values(), account)),
        len(loose_logins(mounts, account, now=now)),
    )


def place(vault: Vault, path: str) -> tuple[str, str]:
    """Where a registered mount is: (namespace in Vault, empty for the account's own; path there). See leases.identity.mount_path."""
    own = vault.namespace.strip("/")
    if path.startswith("//"):
        namespace, _, mount = path[2:].partition("//")
        return namespace, mount
    below, apart, mount = path.partition("//")
    return (f"{own}/{below}".strip("/"), mount) if apart else ("", path)


def _uids(account: Account) -> list[str]:
    """What the Kubernetes method calls it, unless it is told to use the name; a JWT method mostly uses the subject of its tokens."""
    rows = ServiceAccount.objects.filter(
        cluster__name=account.cluster, namespace=account.namespace, name=account.name
    ).order_by("id")
    return list(rows.values_list("uid", flat=True))


def _of_ledger(vault: Vault, mounts: Sequence[AuthMount], account: Account) -> set[tuple[str, str]]:
    rows = (
        Login.objects.filter(
            vault=vault,
            auth_mount__in=[mount.pk for mount in mounts],
            service_account_namespace=account.namespace,
            service_account=account.name,
            own=False,
        )
        .exclude(entity_id="")
        .order_by()
        .values_list("mount_path", "entity_id")
        .distinct()[:MOST]
    )
    return {(place(vault, path)[0], entity_id) for path, entity_id in rows}


def _own(vault: Vault, client: VaultClient) -> set[str]:
    """This product's own two accounts, which it must not shut out."""
    observer = clients.observer(vault)
    observer.ensure_ready()
    return {client.entity_id, observer.entity_id} - {""}


def _shared_with(vault: Vault, entity: Entity, account: Account, *, own: bool) -> tuple[str, ...]:
    """Service accounts that have logged in as the same entity, or whose name an alias bears."""
    rows = (
        Login.objects.filter(vault=vault, entity_id=entity.entity_id)
        .exclude(Q(service_account="") | Q(service_account_namespace=account.namespace, service_account=account.name))
        .order_by("service_account_namespace", "service_account")
        .values_list("service_account_namespace", "service_account")
        .distinct()[:MOST_SHARERS]
    )
    others = {f"{namespace}/{name}" for namespace, name in rows}
    for alias in entity.aliases:
        subject = alias.name.removeprefix("system:serviceaccount:")
        if subject != alias.name and alias.name != account.subject:
            others.add(subject.replace(":", "/", 1))
    return (*((OWN,) if own else ()), *sorted(others))


def _tokens(vault: Vault, entity_id: str, *, now: datetime) -> int:
    live = Login.objects.filter(vault=vault, entity_id=entity_id, ended_at=None)
    return live.filter(Q(expires_at=None) | Q(expires_at__gt=now)).count()


def _known_by_pod(entities: Iterable[Entity], account: Account) -> list[str]:
    """Mounts whose aliases are pods: each new pod is somebody new there."""
    names = {alias.name: alias.mount for entity in entities for alias in entity.aliases}
    pods = Pod.objects.filter(
        Q(uid__in=names) | Q(name__in=names),
        cluster__name=account.cluster,
        namespace=account.namespace,
        service_account=account.name,
    )
    known = {name for pair in pods.values_list("uid", "name")[:MOST] for name in pair}
    return sorted({f"auth/{mount}" for name, mount in names.items() if name in known})


def loose_logins(mounts: Sequence[AuthMount], account: Account, *, now: datetime) -> list[int]:
    """Logins of live tokens that its tokens made without a parent: Vault knows neither these nor what they make under its identity."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE line (id, loose) AS (
              SELECT id, false FROM leases_login
              WHERE auth_mount_id = ANY(%s) AND service_account_namespace = %s AND service_account = %s AND logged_in_at > %s
              UNION
              SELECT g.id, l.loose OR g.is_orphan FROM line l JOIN leases_login g ON g.parent_id = l.id
            )
            SELECT g.id FROM line l JOIN leases_login g USING (id)
            WHERE l.loose AND g.ended_at IS NULL AND (g.expires_at IS NULL OR g.expires_at > %s) ORDER BY g.id
            """,
            [[mount.pk for mount in mounts], account.namespace, account.name, now - OLDEST, now],
        )
        return [row[0] for row in cursor.fetchall()]
