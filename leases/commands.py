"""The same by hand: commands of Vault's or OpenBao's own client, quoted for a shell. Pure rules."""

import shlex
from typing import Literal

from leases.models import Database, Lease, Vault


def client(version: str) -> str:
    """The client that belongs to a server of this version: `vault` or `bao`.

    OpenBao's numbers begin with 2.0.0; Vault's were 0 and 1, and Enterprise says `+ent` behind any number. What is not known is
    taken for OpenBao, whose client speaks to both.
    """
    return "vault" if version.startswith(("0.", "1.")) or "+ent" in version else "bao"


def of_lease(lease: Lease, verb: Literal["lookup", "revoke"]) -> str:
    """`bao lease lookup LEASE_ID` or `bao lease revoke -sync LEASE_ID`, in the lease's namespace."""
    sync = "-sync " if verb == "revoke" else ""
    return f"{client(lease.vault.version)} lease {verb} {_namespace(lease.vault_namespace)}{sync}{shlex.quote(lease.lease_id)}"


def of_database(database: Database) -> str:
    """`bao read MOUNT/config/NAME`: the connection as Vault has it; its password is not in the answer."""
    path = shlex.quote(f"{database.mount}/config/{database.name}")
    return f"{client(database.vault.version)} read {_namespace(database.vault.namespace)}{path}"


def of_role(vault: Vault, *, namespace: str, mount: str, role: str) -> str:
    """`bao list sys/leases/lookup/MOUNT/creds/ROLE/`: the leases of a role that Vault has now."""
    path = shlex.quote(f"sys/leases/lookup/{mount}/creds/{role}/")
    return f"{client(vault.version)} list {_namespace(namespace)}{path}"


def _namespace(name: str) -> str:
    return f"-namespace={shlex.quote(name)} " if name else ""
