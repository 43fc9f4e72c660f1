"""Is a source usable? Each check returns, or raises an error that names the cause and the fix. Workers and doctor share them."""

from leases import clients, databases
from leases.kube import KubeDenied
from leases.models import Cluster, Database, Vault
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
    for resource in ("pods", "serviceaccounts"):
        for verb in ("list", "watch"):
            if not client.can(verb, resource):
                raise KubeDenied(
                    f"The account may not {verb} {resource} in cluster {cluster.name}",
                    "Apply deploy/kubernetes/rbac.yaml, which grants just that.",
                    verb,
                    resource,
                )


def check_database(database: Database) -> None:
    """The monitoring account can log in and read roles. Raises DatabaseError, NotConfigured or SecretUnavailable."""
    databases.get(database.kind).check(clients.monitor_dsn(database))
