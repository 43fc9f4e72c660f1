"""Is a source usable? Each check returns, or raises an error that names the cause and the fix. Workers and doctor share them."""

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from leases import clients, kube, monitors, sessions
from leases.databases import SessionsHidden
from leases.errors import Doubt
from leases.identities import place
from leases.kube import Kind, KubeClient, KubeDenied
from leases.models import Cluster, Database, Pod, Vault
from leases.vault import Health, VaultClient, VaultDenied, VaultError


def needed_to_observe(vault: Vault) -> dict[str, list[str]]:
    """Path -> capabilities that the observing account needs (deploy/vault/leasehold-observe.hcl)."""
    needed = {"sys/leases/lookup": ["update"], "sys/audit-hash/any": ["update"]}
    for mount in vault.lease_mounts:
        needed[f"sys/leases/lookup/{mount}/creds/"] = ["list", "sudo"]
        needed[f"{mount}/config"] = ["list"]
        needed[f"{mount}/config/any"] = ["read"]
        needed[f"{mount}/roles"] = ["list"]
        needed[f"{mount}/roles/any"] = ["read"]
    return needed


def wanted_to_observe(vault: Vault) -> dict[str, list[str]]:
    """The same for what can be done without, each with a loss: irrevocable leases, and leases of child namespaces."""
    own = vault.namespace.strip("/")
    wanted = {"sys/leases": ["read", "sudo"]}
    for namespace in (name.strip("/").removeprefix(own).strip("/") for name in vault.namespaces):
        wanted[f"{namespace}/sys/leases"] = ["read", "sudo"]
        wanted[f"{namespace}/sys/leases/lookup"] = ["update"]
        for mount in vault.lease_mounts:
            wanted[f"{namespace}/sys/leases/lookup/{mount}/creds/"] = ["list", "sudo"]
    return wanted | {path: ["read"] for path in monitoring_paths(vault)}


def monitoring_paths(vault: Vault) -> list[str]:
    """Where Vault itself has the monitoring accounts of its databases: what the observing account then reads."""
    rows = Database.objects.filter(vault=vault).exclude(monitor=None).order_by("id")
    return sorted({path for row in rows if (path := monitors.vault_path(row))})


def needed_to_respond(vault: Vault) -> dict[str, list[str]]:
    """Path -> capabilities that the responding account needs (deploy/vault/leasehold-respond.hcl)."""
    return {f"sys/leases/revoke/{mount}/creds/any/any": ["update"] for mount in vault.lease_mounts}


def needed_to_contain(vault: Vault) -> dict[str, list[str]]:
    """The same for containing service accounts, which can be left out: beside each namespace that an auth mount of a cluster is in."""
    own = vault.namespace.strip("/")
    places = {place(vault, mount.path)[0] for mount in vault.auth_mounts.all()}
    needed: dict[str, list[str]] = {}
    for namespace in sorted(places):
        below = f"{namespace.removeprefix(own).strip('/')}/".lstrip("/")
        needed |= {
            f"{below}sys/auth": ["read"],
            f"{below}identity/lookup/entity": ["update"],
            f"{below}identity/entity/id/any": ["read", "update"],
            f"{below}auth/token/accessors": ["list", "sudo"],
            f"{below}auth/token/lookup-accessor": ["update"],
            f"{below}auth/token/revoke-accessor": ["update"],
        }
    return needed


def check_vault(vault: Vault) -> Doubt | None:
    """Reachable, unsealed, log-in works, nothing missing that is needed; what only limits it is returned. Raises VaultError."""
    active, standby = active_node(vault)
    if active != vault.active_address:
        vault.active_address = active
        Vault.objects.filter(pk=vault.pk).update(active_address=active)
    client = clients.observer(vault)
    client.ensure_ready()
    needed, wanted = needed_to_observe(vault), wanted_to_observe(vault)
    have = client.capabilities([*needed, *wanted])
    _check_capabilities(client, have, needed, policy="leasehold-observe")
    if standby is None and (missing := _missing(have, wanted)):
        path, capability = missing[0]
        loss, first = _loss(path, monitoring=path in monitoring_paths(vault))
        return Doubt(
            f"The account lacks the capability {capability} on {path} in Vault at {client.address}, so {loss}",
            _write_policy("leasehold-observe") + first,
        )
    return standby


def _loss(path: str, *, monitoring: bool) -> tuple[str, str]:
    """What is lost without a capability that is wanted, and what to do to the policy before it is written."""
    if monitoring:
        rule = f'path "{path}" {{ capabilities = ["read"] }}'
        return "the database behind it is not watched", f" Add the line for its monitoring account first: {rule}"
    if path == "sys/leases":
        return "irrevocable leases are not listed", ""
    return "leases of that namespace have no times", " Repeat its lines for namespaces first."


def active_node(vault: Vault) -> tuple[str, Doubt | None]:
    """The address to ask: empty where the configured one leads to the active node; or why its standby has to do.

    The address that a standby names is asked only under the same scheme, and gets a token only if a server of the same cluster
    answers there that it is active. Raises VaultError where the configured address does not answer.
    """
    here = clients.observer_at(vault, vault.address)
    health = here.health()
    if health.version != vault.version:
        vault.version = health.version
        Vault.objects.filter(pk=vault.pk).update(version=health.version)
    if not health.standby or health.sealed:
        return "", None
    leader = here.leader().address
    why_not = refused_leader(vault, leader, health)
    if not why_not:
        return leader, None
    return "", Doubt(
        f"Vault at {vault.address} is a standby, so times of leases may be old; {why_not}",
        "Write the active node's address, or one that leads to it, into leasehold.toml (docs/install.md).",
    )


def refused_leader(vault: Vault, leader: str, health: Health) -> str:
    """Why the address that a standby (with this health) names is not asked; empty where it is."""
    if not leader:
        return "it names no active node"
    if not vault.follow_leader:
        return "follow_leader is off"
    if urlsplit(leader).scheme != urlsplit(vault.address).scheme:
        return f"the active node's address {leader} has another scheme"
    try:
        there = clients.observer_at(vault, leader).health()
    except VaultError as error:
        return f"the active node cannot be asked: {error.cause}"
    if there.standby or there.sealed or there.cluster_name != health.cluster_name:
        return f"at {leader} there is no active node of the same cluster"
    return ""


def is_open(vault: Vault) -> bool:
    """Whether the server answers that it is unsealed; never raises."""
    try:
        health = clients.observer_at(vault, vault.address).health()
    except (VaultError, clients.NotConfigured):
        return False
    return health.initialized and not health.sealed


def check_responder(vault: Vault) -> Doubt | None:
    """The same for the account that revokes; only where its secret can be read (the `actions` workers)."""
    client = clients.responder(vault)
    client.ensure_ready()
    needed, wanted = needed_to_respond(vault), needed_to_contain(vault)
    have = client.capabilities([*needed, *wanted])
    _check_capabilities(client, have, needed, policy="leasehold-respond")
    if not (missing := _missing(have, wanted)):
        return None
    path, capability = missing[0]
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return Doubt(
        f"Vault {vault.name} lets nobody be contained in full: the responding account lacks {capability} on {path}{more}",
        f"{_write_policy('leasehold-respond')} Leave it so if nobody is to contain service accounts (docs/containing.md).",
    )


def _missing(have: dict[str, list[str]], needed: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [
        (path, capability)
        for path, capabilities in needed.items()
        for capability in capabilities
        if capability not in have[path] and "root" not in have[path]
    ]


def _write_policy(policy: str) -> str:
    return f"Write deploy/vault/{policy}.hcl as its policy: `bao policy write {policy} deploy/vault/{policy}.hcl`."


def _check_capabilities(
    client: VaultClient, have: dict[str, list[str]], needed: dict[str, list[str]], *, policy: str
) -> None:
    if missing := _missing(have, needed):
        path, capability = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise VaultDenied(
            f"The account lacks the capability {capability} on {path}{more} in Vault at {client.address}",
            _write_policy(policy),
            path,
        )


def check_cluster(cluster: Cluster) -> None:
    """Reachable, and pods may be listed and watched. Raises KubeError."""
    client = clients.kube(cluster)
    client.version()
    _check_rules(cluster, client, [kube.PODS], without="no lease can be tied to a pod")


def check_owners(cluster: Cluster) -> None:
    """May what owns pods, and service accounts, be watched? Pods are without it. Raises KubeError."""
    kinds: list[Kind[Any]] = [kube.SERVICE_ACCOUNTS, kube.REPLICA_SETS, kube.JOBS]
    without = "pods are named without their Deployment or CronJob, and an account made anew is not noticed"
    _check_rules(cluster, clients.kube(cluster), kinds, without=without)


def check_fetched(cluster: Cluster) -> None:
    """Where operators fetch secrets for others: may their resources be watched? Raises KubeError."""
    client = clients.kube(cluster)
    kinds: list[Kind[Any]] = [kube.VAULT_DYNAMIC_SECRETS, kube.EXTERNAL_SECRETS, kube.GENERATORS]
    if Pod.objects.filter(cluster=cluster, fetcher=True, ended_at=None).exists():
        _check_rules(cluster, client, kinds, without="who uses what the operators fetch from Vault is not told")


def _check_rules(cluster: Cluster, client: KubeClient, kinds: list[Kind[Any]], *, without: str) -> None:
    missing = [
        (verb, kind.resource) for kind in kinds for verb in ("list", "watch") if not client.can(verb, kind.resource)
    ]
    if missing:
        verbs: dict[str, list[str]] = {}
        for verb, resource in missing:
            verbs.setdefault(resource, []).append(verb)
        what = "; ".join(f"{' and '.join(some)} {resource}" for resource, some in verbs.items())
        rules = "; ".join(kube.rule(", ".join(some), resource) for resource, some in verbs.items())
        raise KubeDenied(
            f"The account may not {what} in cluster {cluster.name}: {without}",
            f"Give its service account these rules: {rules} (`kubectl apply -f deploy/kubernetes/rbac.yaml` grants just that).",
            *missing[0],
        )


def check_responding(database: Database) -> Doubt | None:
    """The responding account can log in, see sessions and end them; only where its secret can be read (the `actions` workers).

    Raises SourceError. Without one that is a doubt, where leases can be revoked at all.
    """
    if database.respond:
        clients.ask_responder(database, lambda kind, dsn: kind.check_responder(dsn))
        return None
    if not database.monitor or not database.vault.respond:
        return None
    return Doubt(
        f"Sessions of a revoked lease live on in {database.name}: Leasehold has no account there to end them with",
        "Name one as `respond` in its [[databases]] entry (docs/databases.md); until then a receipt names them.",
    )


def check_database(database: Database, *, now: datetime) -> Doubt | None:
    """The monitoring account can log in and read roles; what cannot be learned of sessions is returned. Raises SourceError."""
    try:
        clients.ask_monitor(database, lambda kind, dsn: kind.check(dsn))
    except SessionsHidden as error:
        return Doubt(error.cause, error.fix) if database.sample_seconds else None
    return sessions.doubt(database, now=now) if database.sample_seconds else None
