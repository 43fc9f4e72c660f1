"""Accounts in databases, to monitor and to respond with: an address by reference, or one that Vault has the user and password of.

What Vault gives is kept in this process's memory alone. It is read anew before its end, and when the server refuses it: a static
role's password is rotated, a dynamic role's user goes with the login that it was read with.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal, TypeVar
from urllib.parse import quote, urlsplit

from django.utils import timezone

from leases import databases
from leases.databases import DatabaseDenied, Kind, MayNotEnd, SessionsHidden
from leases.errors import SourceError
from leases.models import Database, MonitorUser
from leases.references import read_secret
from leases.vault import Credential, VaultClient

# A credential that the server refuses is read anew only when it is older than this: what is refused for another reason, say by
# pg_hba.conf, must not make a new database user for each try. It doubles with each one that was read in vain.
FRESH_SECONDS = {"static_role": 5.0, "role": 60.0}
LONGEST_PATIENCE = 3600.0
# after a read that Vault did not answer
RETRY_SECONDS = 10.0
# Vault drops no user later than its longest lease, which by default is 32 days
FORGET_AFTER = timedelta(days=60)

Answer = TypeVar("Answer")
# which of a database's accounts
Account = Literal["monitor", "respond"]


@dataclass(frozen=True, slots=True)
class _Held:
    """Times are of time.monotonic(). `patience`: how old it must be before a refusal is a reason to read it anew."""

    dsn: str = field(repr=False)
    read_at: float
    renew_at: float
    ends_at: float
    patience: float


_held: dict[tuple[int, str], _Held] = {}


def ask(
    database: Database,
    question: Callable[[Kind, str], Answer],
    *,
    client: Callable[[], VaultClient],
    account: Account = "monitor",
) -> Answer:
    """What `question(module of its kind, address of the account)` returns; it is asked twice where a credential was changed.

    `client`: who reads the credential, where Vault has it. Raises SourceError.
    """
    kind = databases.get(database.kind)
    try:
        answer = question(kind, dsn(database, client=client, account=account))
    except (SessionsHidden, MayNotEnd):
        raise
    except DatabaseDenied:
        held = _held.get(_key(database, account))
        if held is None or time.monotonic() - held.read_at < held.patience:
            raise
        fresh = _read(database, client(), account, patience=min(held.patience * 2, LONGEST_PATIENCE))
        answer = question(kind, fresh.dsn)
    _trust(database, account)
    return answer


def dsn(database: Database, *, client: Callable[[], VaultClient], account: Account = "monitor") -> str:
    """The account's address, with its password. Raises SecretUnavailable or VaultError."""
    configured = _configured(database, account)
    if not configured.get("address"):
        return read_secret(configured)
    held = _held.get(_key(database, account))
    at = time.monotonic()
    if held is None:
        return _read(database, client(), account, patience=FRESH_SECONDS[_what(configured)]).dsn
    if at < held.renew_at:
        return held.dsn
    try:
        return _read(database, client(), account, patience=held.patience).dsn
    except SourceError:
        # Vault is away: what it gave before is good until its end, and nobody rotates a password meanwhile
        if at >= held.ends_at:
            raise
        _held[_key(database, account)] = replace(held, renew_at=at + RETRY_SECONDS)
        return held.dsn


def vault_path(database: Database, account: Account = "monitor") -> str:
    """Where its credential is read in Vault; empty where it does not come from there."""
    configured = _configured(database, account)
    if not configured.get("address"):
        return ""
    mount = (configured.get("mount") or database.mount).strip("/")
    return f"{mount}/{'static-creds' if 'static_role' in configured else 'creds'}/{configured[_what(configured)]}"


def forget() -> None:
    """Reads every credential anew at the next question."""
    _held.clear()


def _read(database: Database, client: VaultClient, account: Account, *, patience: float) -> _Held:
    configured = _configured(database, account)
    credential = client.database_credential(vault_path(database, account))
    at = time.monotonic()
    if "static_role" in configured:
        # its password is another one then, a moment later
        renew_at, ends_at = at + max(credential.seconds, 1) + 1, float("inf")
    else:
        renew_at, ends_at = at + credential.seconds * 2 / 3, at + credential.seconds
        MonitorUser.objects.get_or_create(
            database=database, name=credential.username, defaults={"read_at": timezone.now()}
        )
        MonitorUser.objects.filter(read_at__lt=timezone.now() - FORGET_AFTER).delete()
    held = _Held(_with_account(configured["address"], credential), at, renew_at, ends_at, patience)
    _held[_key(database, account)] = held
    return held


def _trust(database: Database, account: Account) -> None:
    """It was accepted, so the next refusal is a new matter."""
    if held := _held.get(_key(database, account)):
        patience = FRESH_SECONDS[_what(_configured(database, account))]
        if held.patience != patience:
            _held[_key(database, account)] = replace(held, patience=patience)


def _with_account(address: str, credential: Credential) -> str:
    parts = urlsplit(address)
    account = f"{quote(credential.username, safe='')}:{quote(credential.password, safe='')}"
    return parts._replace(netloc=f"{account}@{parts.netloc}").geturl()


def _configured(database: Database, account: Account) -> dict[str, str]:
    return (database.respond if account == "respond" else database.monitor) or {}


def _what(configured: dict[str, str]) -> str:
    return "static_role" if "static_role" in configured else "role"


def _key(database: Database, account: Account = "monitor") -> tuple[int, str]:
    # another configuration is another account
    return database.pk, json.dumps(
        [database.vault_id, database.mount, account, _configured(database, account)], sort_keys=True
    )
