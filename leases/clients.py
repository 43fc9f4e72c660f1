"""Clients for configured sources. One Vault client per account and process, so that a login lasts as long as its token."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from django.utils import timezone

from leases import meter, monitors, polls
from leases.databases import Kind
from leases.errors import SourceError
from leases.kube import KubeClient
from leases.models import Cluster, Database, Vault
from leases.references import SecretUnavailable, read_secret
from leases.vault import LoginMethod, VaultClient

Answer = TypeVar("Answer")


class NotConfigured(SourceError):
    """The configuration has no account for what is asked."""


def observer(vault: Vault) -> VaultClient:
    """The client that reads: lists and looks up leases, hashes, reads database configuration. Asks the active node."""
    return _client(vault, vault.observe, "observe", notes_polls=True)


def observer_at(vault: Vault, address: str) -> VaultClient:
    """The same for this one server of the vault, whatever it is."""
    return _client(vault, vault.observe, "observe", address=address)


def responder(vault: Vault) -> VaultClient:
    """The client that revokes. Only the `actions` workers can read its secret."""
    return _client(vault, vault.respond, "respond")


def _client(
    vault: Vault,
    login: Mapping[str, object] | None,
    account: str,
    *,
    address: str = "",
    notes_polls: bool = False,
) -> VaultClient:
    if not login:
        raise NotConfigured(
            f"Vault {vault.name} has no account to {account} with",
            f"Add [vaults.{account}] to leasehold.toml and run `manage.py configure`.",
        )
    return _cached(
        address or vault.active_address or vault.address,
        vault.ca_file,
        vault.namespace,
        json.dumps(login, sort_keys=True),
        vault.pk,
        meter.Devices(vault.audit_devices, vault.listing_devices),
        notes_polls,
    )


@lru_cache(maxsize=64)
def _cached(
    address: str, ca_file: str, namespace: str, login: str, vault_id: int, devices: meter.Devices, notes_polls: bool
) -> VaultClient:
    parts = json.loads(login)

    def note(request_id: str) -> None:
        if notes_polls:
            polls.note(vault_id, request_id, now=timezone.now())

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
        on_sent=partial(meter.note, vault_id, devices),
    )


def kube(cluster: Cluster) -> KubeClient:
    read_token: Callable[[], str] = partial(read_secret, cluster.token or {})
    return KubeClient(cluster.address, read_token, ca_file=cluster.ca_file or None)


def ask_monitor(database: Database, question: Callable[[Kind, str], Answer]) -> Answer:
    """What `question(module of the database's kind, monitoring account's address)` returns. Raises SourceError."""
    if not database.monitor:
        raise NotConfigured(
            f"Database {database.name} has no monitoring account",
            "Add `monitor` to its [[databases]] entry in leasehold.toml and run `manage.py configure`.",
        )
    return monitors.ask(database, question, client=lambda: observer(database.vault))


def ask_responder(database: Database, question: Callable[[Kind, str], Answer]) -> Answer:
    """The same with the account that ends sessions. Only the `actions` workers can read its secret. Raises SourceError."""
    if not database.respond:
        raise NotConfigured(
            f"Database {database.name} has no responding account, so Leasehold may not end sessions there",
            "Add `respond` to its [[databases]] entry in leasehold.toml and run `manage.py configure` (docs/databases.md).",
        )
    return monitors.ask(database, question, client=lambda: responder(database.vault), account="respond")


__all__ = [
    "NotConfigured",
    "SecretUnavailable",
    "ask_monitor",
    "ask_responder",
    "kube",
    "observer",
    "observer_at",
    "responder",
]
