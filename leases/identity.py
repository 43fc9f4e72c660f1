"""Who a login is: the claims of a registered auth mount, and nothing else. Metadata of other mounts is not identity."""

from leases.models import AuthMount, Lease, Login

KUBERNETES_CLAIMS = {"namespace": "service_account_namespace", "service_account": "service_account_name"}

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
    leases = Lease.objects.filter(login__in=changed)
    leases.update(attribution_open=True)
    return list(leases.values_list("id", flat=True))
