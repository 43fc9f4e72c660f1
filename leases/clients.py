"""Clients for configured sources. One Vault client per account and process, so that a login lasts as long as its token."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from django.utils import timezone

from leases import polls
from leases.errors import SourceError
from leases.kube import KubeClient
from leases.models import Cluster, Database, Vault
from leases.references import SecretUnavailable, read_secret
from leases.vault import LoginMethod, VaultClient


class NotConfigured(SourceError):
    """The configuration has no account for what is asked."""


def observer(vault: Vault) -> VaultClient:
    """The client that reads: lists and looks up leases, hashes, reads database configuration."""
    return _client(vault, vault.observe, "observe", polls_of=vault.pk)


def responder(vault: Vault) -> VaultClient:
    """The client that revokes. Only the `actions` workers can read its secret."""
    return _client(vault, vault.respond, "respond")


def _client(
    vault: Vault, login: Mapping[str, object] | None, account: str, *, polls_of: int | None = None
) -> VaultClient:
    if not login:
        raise NotConfigured(
            f"Vault {vault.name} has no account to {account} with",
            f"Add [vaults.{account}] to leasehold.toml and run `manage.py configure`.",
        )
    return _cached(vault.address, vault.ca_file, vault.namespace, json.dumps(login, sort_keys=True), polls_of)


@lru_cache(maxsize=64)
def _cached(address: str, ca_file: str, namespace: str, login: str, polls_of: int | None) -> VaultClient:
    parts = json.loads(login)

    def note(request_id: str) -> None:
        if polls_of is not None:
            polls.note(polls_of, request_id, now=timezone.now())

    return VaultClient(
        address,
        LoginMethod(
            method=parts["method"],
            mount=parts["mount"],
            role=parts["role"],
            read_secret=partial(read_secret, parts["secret"]),
        ),
        ca_file=ca_file or None,
        namespace=namespace or None,
        on_request_id=note,
    )


def kube(cluster: Cluster) -> KubeClient:
    read_token: Callable[[], str] = partial(read_secret, cluster.token or {})
    return KubeClient(cluster.address, read_token, ca_file=cluster.ca_file or None)


def monitor_dsn(database: Database) -> str:
    """The monitoring account's address; raises NotConfigured or SecretUnavailable."""
    if not database.monitor:
        raise NotConfigured(
            f"Database {database.name} has no monitoring account",
            "Add `monitor` to its [[databases]] entry in leasehold.toml and run `manage.py configure`.",
        )
    return read_secret(database.monitor)


__all__ = ["NotConfigured", "SecretUnavailable", "kube", "monitor_dsn", "observer", "responder"]
