"""Is a source usable? Each check returns, or raises an error that names the cause and the fix. Workers and doctor share them."""

from typing import Any

from leases import clients, databases, kube
from leases.kube import Kind, KubeClient, KubeDenied
from leases.models import Cluster, Database, Pod, Vault
from leases.vault import VaultClient, VaultDenied, VaultError


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


def needed_to_respond(vault: Vault) -> dict[str, list[str]]:
    """Path -> capabilities that the responding account needs (deploy/vault/leasehold-respond.hcl)."""
    return {f"sys/leases/revoke/{mount}/creds/any/any": ["update"] for mount in vault.lease_mounts}


def check_vault(vault: Vault) -> None:
    """Reachable, unsealed, log-in works, nothing missing from the observing policy. Raises VaultError."""
    client = clients.observer(vault)
    client.ensure_ready()
    _check_capabilities(client, needed_to_observe(vault), policy="leasehold-observe")


def is_open(vault: Vault) -> bool:
    """Whether the server answers that it is unsealed; never raises."""
    try:
        health = clients.observer(vault).health()
    except (VaultError, clients.NotConfigured):
        return False
    return health.initialized and not health.sealed


def check_responder(vault: Vault) -> None:
    """The same for the account that revokes; only where its secret can be read (the `actions` workers)."""
    client = clients.responder(vault)
    client.ensure_ready()
    _check_capabilities(client, needed_to_respond(vault), policy="leasehold-respond")


def _check_capabilities(client: VaultClient, needed: dict[str, list[str]], *, policy: str) -> None:
    have = client.capabilities(list(needed))
    missing = [
        (path, capability)
        for path, capabilities in needed.items()
        for capability in capabilities
        if capability not in have[path] and "root" not in have[path]
    ]
    if missing:
        path, capability = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise VaultDenied(
            f"The account lacks the capability {capability} on {path}{more} in Vault at {client.address}",
            f"Write deploy/vault/{policy}.hcl as its policy: `bao policy write {policy} deploy/vault/{policy}.hcl`.",
            path,
        )


def check_cluster(cluster: Cluster) -> None:
    """Reachable, and pods may be listed and watched. Raises KubeError."""
    client = clients.kube(cluster)
    client.version()
    _check_rules(cluster, client, [kube.PODS], without="no lease can be tied to a pod")


def check_owners(cluster: Cluster) -> None:
    """May what owns pods, and service accounts, be watched? Pods are without it. Raises KubeError."""
    kinds = [kube.SERVICE_ACCOUNTS, kube.REPLICA_SETS, kube.JOBS]
    without = "pods are named without their Deployment or CronJob, and an account made anew is not noticed"
    _check_rules(cluster, clients.kube(cluster), kinds, without=without)


def check_fetched(cluster: Cluster) -> None:
    """Where operators fetch secrets for others: may their resources be watched? Raises KubeError."""
    client = clients.kube(cluster)
    kinds = [kube.VAULT_DYNAMIC_SECRETS, kube.EXTERNAL_SECRETS, kube.GENERATORS]
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


def check_database(database: Database) -> None:
    """The monitoring account can log in and read roles. Raises DatabaseError, NotConfigured or SecretUnavailable."""
    databases.get(database.kind).check(clients.monitor_dsn(database))
