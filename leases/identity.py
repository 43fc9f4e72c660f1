"""Who a login is: the claims of a registered auth mount, and nothing else. Metadata of other mounts is not identity."""

from django.db.models import Q

from leases.models import AuthMount, Lease, Login, Vault

KUBERNETES_CLAIMS = {"namespace": "service_account_namespace", "service_account": "service_account_name"}

# where tokens that other tokens make come from: never a registered mount (leases.configuration)
TOKEN_STORE = "token"

# claim of [[clusters.auth_mounts]] -> field of Login
FIELDS = {
    "namespace": "service_account_namespace",
    "service_account": "service_account",
    "pod": "claimed_pod",
    "pod_uid": "claimed_pod_uid",
    "node": "claimed_node",
}


def identity(mount: AuthMount | None, metadata: dict[str, str]) -> dict[str, str]:
    """Values of Login's identity fields; all empty without a registered mount."""
    claims = mount.claims if mount else {}
    return {field: metadata.get(claims.get(claim, ""), "") for claim, field in FIELDS.items()}


def identify_again(mount: AuthMount) -> list[int]:
    """After a mount was registered or its claims changed: its logins anew. Returns the keys of the leases to attribute."""
    changed = []
    for login in Login.objects.filter(vault=mount.vault_id, mount_path=mount.path).iterator():
        values = {"auth_mount_id": mount.pk, **identity(mount, login.metadata)}
        if any(getattr(login, name) != value for name, value in values.items()):
            Login.objects.filter(pk=login.pk).update(**values)
            changed.append(login.pk)
    leases = Lease.objects.filter(Q(login__in=changed) | Q(login__origin__in=changed))
    leases.update(attribution_open=True)
    return list(leases.values_list("id", flat=True))


def mount_path(vault: Vault, namespace: str, mount_point: str) -> str:
    """An auth mount's path, as leasehold.toml names it: relative to the vault's own namespace.

    `auth/kubernetes/` -> `kubernetes`, of a namespace below `team//kubernetes`, of any other `//team//kubernetes`: whoever rules
    over another namespace can mount what he likes there, and shall not lend its identities to this one. No mount's path
    holds two slashes.
    """
    own, there = vault.namespace.strip("/"), namespace.strip("/")
    # the log gives the mount point with its namespace, a path without it
    path = mount_point.removeprefix(f"{there}/").removeprefix("auth/").strip("/")
    if there == own:
        return path
    if not own or there.startswith(f"{own}/"):
        return f"{there.removeprefix(own).strip('/')}//{path}"
    return f"//{there}//{path}"
