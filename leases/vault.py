"""The boundary to Vault and OpenBao: the one module that imports hvac. Returns typed values, raises VaultError.

Every error carries a cause and a fix for an operator (leases/vault_errors.py). No call is repeated, but for one case: a
request that was refused (403) because the token had ended is sent again after a new login.
"""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
import requests
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter
from urllib3.exceptions import LocationParseError

from leases.references import SecretUnavailable
from leases.vault_errors import (
    MAX_TEXT,
    RevocationFailed,
    VaultDenied,
    VaultError,
    VaultLoginFailed,
    VaultSealed,
    VaultUnreachable,
    clean,
    closed,
    denied,
    not_vault,
    refused,
    says_invalid_token,
    texts,
    why_unreachable,
)

# dropping a database user can take long; giving up early would leave its outcome unknown
REVOKE_TIMEOUT_SECONDS = 20.0
# a token that is refused for a missing capability is replaced only when it is older than this: a role may have got more
# policies since, but each login makes a token, and a poller that lacks a capability must not make one per poll
FRESH_TOKEN_SECONDS = 60.0
# lookups that are under way at once: beside the server more than these gain nothing, over a network they hide its round trips
CONNECTIONS = 8

__all__ = [
    "CONNECTIONS",
    "AuthMethod",
    "Credential",
    "DatabaseConnection",
    "DatabaseRole",
    "Entity",
    "EntityAlias",
    "Health",
    "IrrevocableLease",
    "Leader",
    "LeaseTimes",
    "LoginMethod",
    "RevocationFailed",
    "Sent",
    "TokenFacts",
    "VaultClient",
    "VaultDenied",
    "VaultError",
    "VaultLoginFailed",
    "VaultSealed",
    "VaultUnreachable",
]


@dataclass(frozen=True, slots=True)
class LoginMethod:
    """How to log in. `role` is the role's name (kubernetes) or role_id (approle); the secret is read at each login."""

    method: Literal["kubernetes", "approle", "token"]
    mount: str
    role: str
    read_secret: Callable[[], str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Health:
    initialized: bool
    sealed: bool
    standby: bool
    version: str
    cluster_name: str


@dataclass(frozen=True, slots=True)
class Leader:
    """Which server is the active one. `address` is what it says of itself; empty while there is none."""

    is_self: bool
    address: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that audit devices log. `identity`: bytes of who sent it, `keys`: names that its answer listed."""

    method: str
    path: str
    identity: int
    keys: int


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """What Vault knows of a lease. Times are UTC; `expires_at` is None where it never expires."""

    lease_id: str
    issued_at: datetime
    expires_at: datetime | None
    last_renewal_at: datetime | None
    renewable: bool
    ttl_seconds: int
    revoke_error: str | None


@dataclass(frozen=True, slots=True)
class IrrevocableLease:
    """A lease that Vault has given up to revoke, and the last error."""

    lease_id: str
    error: str


@dataclass(frozen=True, slots=True)
class DatabaseConnection:
    name: str
    plugin: str


@dataclass(frozen=True, slots=True)
class DatabaseRole:
    """`connection` is the DatabaseConnection's name; a TTL of 0 means the mount's."""

    name: str
    connection: str
    default_ttl_seconds: int
    max_ttl_seconds: int


@dataclass(frozen=True, slots=True)
class AuthMethod:
    """An auth mount of one namespace. `accessor` is its name in aliases; of a mount made anew it is another one."""

    path: str
    accessor: str
    type: str


@dataclass(frozen=True, slots=True)
class EntityAlias:
    """One way to log in as an entity: the name at a mount, whose path is without `auth/`."""

    mount: str
    mount_accessor: str
    name: str


@dataclass(frozen=True, slots=True)
class Entity:
    """An identity. Disabled, its tokens are refused and nobody logs in as it; its leases stay."""

    entity_id: str
    name: str
    disabled: bool
    aliases: tuple[EntityAlias, ...]


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What an accessor tells of its token. `entity_id` is empty for a token of nobody, such as an orphan that another one made."""

    accessor: str = field(repr=False)
    entity_id: str
    path: str
    orphan: bool


@dataclass(frozen=True, slots=True)
class Credential:
    """A database account. `seconds`: how long it is good; of a static role until its password is rotated."""

    username: str
    password: str = field(repr=False)
    seconds: int


# What is read of Vault's answers; anything else in them is ignored.


class _Auth(msgspec.Struct):
    client_token: str
    entity_id: str = ""
    policies: list[str] | None = None
    metadata: dict[str, str] | None = None
    lease_duration: int = 0
    renewable: bool = False


class _Envelope(msgspec.Struct):
    request_id: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    auth: _Auth | None = None
    lease_duration: int = 0


class _Health(msgspec.Struct):
    initialized: bool
    sealed: bool
    standby: bool
    version: str = ""
    cluster_name: str = ""


class _Leader(msgspec.Struct):
    is_self: bool
    leader_address: str = ""


class _Keys(msgspec.Struct):
    keys: list[str]


_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Lease(msgspec.Struct):
    id: str
    issue_time: _Time
    renewable: bool
    ttl: int
    expire_time: _Time | None = None
    last_renewal: _Time | None = None
    revoke_error: str | None = None


class _Irrevocable(msgspec.Struct):
    lease_id: str
    error: str = ""


class _IrrevocableList(msgspec.Struct):
    leases: list[_Irrevocable] | None = None


class _Device(msgspec.Struct):
    options: dict[str, str] | None = None


class _Hash(msgspec.Struct):
    hash: str


class _AuthMethod(msgspec.Struct):
    accessor: str
    type: str = ""


class _Alias(msgspec.Struct):
    name: str
    mount_accessor: str
    mount_path: str = ""


class _Entity(msgspec.Struct):
    id: str
    disabled: bool
    name: str = ""
    aliases: list[_Alias] | None = None


class _Token(msgspec.Struct):
    accessor: str
    entity_id: str = ""
    path: str = ""
    orphan: bool = False


class _Self(msgspec.Struct):
    ttl: int
    entity_id: str = ""
    renewable: bool = False
    policies: list[str] | None = None
    meta: dict[str, str] | None = None


class _Connection(msgspec.Struct):
    plugin_name: str


class _Role(msgspec.Struct):
    db_name: str
    default_ttl: int = 0
    max_ttl: int = 0


class _Credential(msgspec.Struct):
    username: str
    password: str
    # of a static role
    ttl: int = 0


_Read = TypeVar("_Read")


class VaultClient:
    """One account on one Vault. Logs in at the first call that needs a token and keeps the token in memory only.

    Not shared between threads. Each call raises VaultError; `timeout_seconds` limits connecting and each wait for data.
    `on_request_id` is told the id of each request whose answer bears one: the audit log has it under the same. `on_sent` is
    told of each request that is logged, also by the threads of lookup_leases().
    """

    def __init__(
        self,
        address: str,
        login: LoginMethod,
        *,
        ca_file: str | None = None,
        namespace: str | None = None,
        timeout_seconds: float = 5.0,
        on_request_id: Callable[[str], object] | None = None,
        on_sent: Callable[[Sent], object] | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        self.last_request_id: str | None = None
        # of the account itself, once it is logged in; empty for a token of nobody
        self.entity_id = ""
        self._on_request_id = on_request_id
        self._on_sent = on_sent
        self._identity = 0
        self._login = login
        self._renewable = False
        self._logged_in_at = self._renew_at = 0.0
        session = requests.Session()
        # no proxy, .netrc or CA bundle from the environment: what is sent here opens every database
        session.trust_env = False
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        options: dict[str, Any] = {
            "base_uri": self.address,
            "verify": ca_file or True,
            "timeout": timeout_seconds,
            "session": session,
            # requests would send the token on to whatever host a redirect names
            "allow_redirects": False,
        }
        self._timeout_seconds = timeout_seconds
        self._adapter = RawAdapter(namespace=namespace, **options)
        # sys/health and sys/leader exist outside of namespaces only, and need no token
        self._public = RawAdapter(**options)
        self._adapters: dict[str, RawAdapter] = {}

    # -- the server

    def health(self) -> Health:
        """State of the server that answers; needs no token.

        https://developer.hashicorp.com/vault/api-docs/system/health
        """
        # by default the status code tells the state; asked like this, each state answers 200
        codes = ("standbycode", "perfstandbycode", "drsecondarycode", "sealedcode", "uninitcode")
        answer = self._send("get", "sys/health", adapter=self._public, params=dict.fromkeys(codes, "200"))
        if answer.status_code != 200:
            raise refused(self.address, answer, "sys/health")
        health = self._decode(answer.content, _Health)
        return Health(health.initialized, health.sealed, health.standby, health.version, health.cluster_name)

    def leader(self) -> Leader:
        """Which server of the cluster is active; needs no token.

        https://developer.hashicorp.com/vault/api-docs/system/leader
        """
        answer = self._send("get", "sys/leader", adapter=self._public)
        if answer.status_code != 200:
            raise refused(self.address, answer, "sys/leader")
        found = self._decode(answer.content, _Leader)
        return Leader(found.is_self, found.leader_address.rstrip("/"))

    def ensure_ready(self) -> None:
        """Return if the server is unsealed and this account is logged in."""
        health = self.health()
        if health.sealed or not health.initialized:
            raise closed(self.address, sealed=health.initialized)
        self._ensure_token()

    def capabilities(self, paths: list[str]) -> dict[str, list[str]]:
        """What the account may do on each path, e.g. {"sys/audit": ["read", "sudo"]}; ["deny"] for nothing.

        https://developer.hashicorp.com/vault/api-docs/system/capabilities-self
        """
        data = self._request("post", "sys/capabilities-self", needs=["update"], json={"paths": paths})
        found = self._decode(data, dict[str, Any])
        return {path: [str(word) for word in found.get(path, ["deny"])] for path in paths}

    # -- leases

    def lookup_lease(self, lease_id: str, *, namespace: str = "") -> LeaseTimes | None:
        """Times of one lease; None if Vault knows no such lease. `namespace`: the lease's, if it is not the account's.

        https://developer.hashicorp.com/vault/api-docs/system/leases#read-lease
        """
        return self._times(
            self._answer(
                "put",
                "sys/leases/lookup",
                needs=["update"],
                rule=self._rule(namespace, "sys/leases/lookup"),
                adapter=self._inside(namespace),
                json={"lease_id": lease_id},
            )
        )

    def lookup_leases(self, leases: Sequence[tuple[str, str]]) -> list[LeaseTimes | VaultError | None]:
        """The same for many (lease id, namespace), CONNECTIONS at once, in their order. An error stands for its lease alone."""
        self._ensure_token()
        adapters = {namespace: self._inside(namespace) for _, namespace in leases}

        def send(lease: tuple[str, str]) -> requests.Response | VaultError:
            lease_id, namespace = lease
            try:
                return self._send("put", "sys/leases/lookup", adapter=adapters[namespace], json={"lease_id": lease_id})
            except VaultError as error:
                return error

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(send, leases))
        found: list[LeaseTimes | VaultError | None] = []
        for (lease_id, namespace), answer in zip(leases, answers, strict=True):
            try:
                if isinstance(answer, VaultError):
                    raise answer
                # a token may have ended meanwhile: one lookup by itself logs in again, or says what is denied
                refused_ = answer.status_code == 403
                found.append(self.lookup_lease(lease_id, namespace=namespace) if refused_ else self._times(answer))
            except VaultError as error:
                found.append(error)
        return found

    def _times(self, answer: requests.Response) -> LeaseTimes | None:
        if answer.status_code == 400 and "invalid lease" in texts(answer):
            return None
        if answer.status_code == 404 and "namespace not found" in texts(answer):
            # whoever deletes a namespace ends its leases; the account's own is there, since it has logged in
            return None
        lease = self._decode(self._data(answer, "sys/leases/lookup"), _Lease)
        issued_at = _utc(lease.issue_time)
        if issued_at is None:
            raise not_vault(self.address, "a lease without an issue time")
        return LeaseTimes(
            lease_id=lease.id,
            issued_at=issued_at,
            expires_at=_utc(lease.expire_time),
            last_renewal_at=_utc(lease.last_renewal),
            renewable=lease.renewable,
            ttl_seconds=lease.ttl,
            revoke_error=clean(lease.revoke_error) if lease.revoke_error else None,
        )

    def list_leases(self, prefix: str, *, namespace: str = "") -> list[str]:
        """One level below `prefix`: names of leases, and of folders, which end in "/". Nothing there is an empty list.

        https://developer.hashicorp.com/vault/api-docs/system/leases#list-leases
        """
        root = prefix.strip("/").partition("/")[0]
        return self._list(
            _path("sys/leases/lookup", *([prefix] if root else [])) + "/",
            needs=["list", "sudo"],
            rule=self._rule(namespace, f"sys/leases/lookup/{root}/*" if root else "sys/leases/lookup/*"),
            adapter=self._inside(namespace),
        )

    def irrevocable_leases(self, *, namespace: str = "") -> list[IrrevocableLease]:
        """Every lease of the namespace that Vault has given up to revoke.

        https://developer.hashicorp.com/vault/api-docs/system/leases#list-irrevocable-leases
        """
        data = self._request(
            "get",
            "sys/leases",
            needs=["read", "sudo"],
            rule=self._rule(namespace, "sys/leases"),
            adapter=self._inside(namespace),
            params={"type": "irrevocable", "limit": "none"},
        )
        found = self._decode(data, _IrrevocableList).leases or []
        return [IrrevocableLease(lease.lease_id, clean(lease.error)) for lease in found]

    def revoke_lease(self, lease_id: str, *, namespace: str = "") -> str | None:
        """Revoke one lease and wait for it. Returns the request id where the answer has one (a 204 has none). `namespace`: as above.

        The URL form: the audit log then has the lease id in plain text. Vault answers 204 for a lease that it does not
        know, too, so what this returns proves nothing. Raises RevocationFailed when the database refuses.
        https://developer.hashicorp.com/vault/api-docs/system/leases#revoke-lease
        """
        path = _path("sys/leases/revoke", lease_id)
        answer = self._answer(
            "put",
            path,
            needs=["update"],
            rule=self._rule(namespace, f"sys/leases/revoke/{lease_id.strip('/').partition('/')[0]}/*"),
            adapter=self._inside(namespace),
            json={"sync": True},
            timeout=max(REVOKE_TIMEOUT_SECONDS, self._timeout_seconds),
        )
        text = clean(texts(answer))
        if answer.status_code == 400 or (answer.status_code == 500 and "revoke" in text):
            raise RevocationFailed(
                f"Vault at {self.address} could not revoke the lease, which stays valid: {text}",
                "Make the database reachable for Vault and check the role's revocation statements, then revoke again.",
                text,
            )
        return self._envelope(answer, path).request_id or None

    def force_revoke_lease(self, lease_id: str, *, namespace: str = "") -> None:
        """Make Vault forget one lease, though its database user cannot be dropped. `lease_id` must be the whole id.

        Vault takes a prefix here; one that is a lease's whole id ends that lease alone. Errors of the database are ignored.
        https://developer.hashicorp.com/vault/api-docs/system/leases#revoke-force
        """
        path = _path("sys/leases/revoke-force", lease_id)
        answer = self._answer(
            "put",
            path,
            needs=["update", "sudo"],
            rule=self._rule(namespace, f"sys/leases/revoke-force/{lease_id.strip('/').partition('/')[0]}/*"),
            adapter=self._inside(namespace),
            json={},
            timeout=max(REVOKE_TIMEOUT_SECONDS, self._timeout_seconds),
        )
        self._envelope(answer, path)

    # -- audit devices

    def audit_hash(self, device: str, value: str) -> str:
        """How the device would write `value`: "hmac-sha256:…".

        https://developer.hashicorp.com/vault/api-docs/system/audit-hash
        """
        path = _path("sys/audit-hash", device)
        return self._decode(
            self._request("put", path, needs=["update"], rule="sys/audit-hash/*", json={"input": value}), _Hash
        ).hash

    def audit_devices(self) -> list[str]:
        """Paths of the enabled devices, without the slash at the end."""
        return sorted(self.audit_device_options())

    def audit_device_options(self) -> dict[str, dict[str, str]]:
        """Path of each enabled device -> its options, as in {"file-a": {"file_path": "/…", "elide_list_responses": "true"}}.

        https://developer.hashicorp.com/vault/api-docs/system/audit#list-enabled-audit-devices
        """
        data = self._request("get", "sys/audit", needs=["read", "sudo"])
        return {
            name.rstrip("/"): device.options or {} for name, device in self._decode(data, dict[str, _Device]).items()
        }

    # -- database mounts

    def database_connections(self, mount: str) -> list[DatabaseConnection]:
        """The connections of a database mount.

        https://developer.hashicorp.com/vault/api-docs/secret/databases#list-connections
        """
        connections = []
        for name in self._list(_path(mount, "config"), needs=["list"]):
            data = self._request(
                "get", _path(mount, "config", name), needs=["read"], rule=f"{mount.strip('/')}/config/+"
            )
            connections.append(DatabaseConnection(name, self._decode(data, _Connection).plugin_name))
        return connections

    def database_roles(self, mount: str) -> list[DatabaseRole]:
        """The roles of a database mount.

        https://developer.hashicorp.com/vault/api-docs/secret/databases#list-roles
        """
        roles = []
        for name in self._list(_path(mount, "roles"), needs=["list"]):
            data = self._request("get", _path(mount, "roles", name), needs=["read"], rule=f"{mount.strip('/')}/roles/+")
            role = self._decode(data, _Role)
            roles.append(DatabaseRole(name, role.db_name, role.default_ttl, role.max_ttl))
        return roles

    def database_credential(self, path: str) -> Credential:
        """This account's own credential for a database: MOUNT/static-creds/NAME, or MOUNT/creds/ROLE, which makes a user and a lease.

        https://developer.hashicorp.com/vault/api-docs/secret/databases#get-static-credentials and …#generate-credentials
        """
        path = _path(path)
        envelope = self._envelope(self._answer("get", path, needs=["read"]), path)
        found = self._decode(bytes(envelope.data), _Credential)
        return Credential(found.username, found.password, envelope.lease_duration or found.ttl)

    # -- identities and tokens

    def auth_methods(self, *, namespace: str = "") -> dict[str, AuthMethod]:
        """Path without slashes at its ends -> the auth mount, of one namespace.

        https://developer.hashicorp.com/vault/api-docs/system/auth#list-auth-methods
        """
        data = self._request(
            "get",
            "sys/auth",
            needs=["read"],
            rule=self._rule(namespace, "sys/auth"),
            adapter=self._inside(namespace),
        )
        found = self._decode(data, dict[str, _AuthMethod])
        return {path.strip("/"): AuthMethod(path.strip("/"), row.accessor, row.type) for path, row in found.items()}

    def entity_of_alias(self, mount_accessor: str, name: str, *, namespace: str = "") -> Entity | None:
        """The entity that logs in under this name at this mount; None if nobody ever did.

        https://developer.hashicorp.com/vault/api-docs/secret/identity/lookup#lookup-an-entity
        """
        path = "identity/lookup/entity"
        answer = self._answer(
            "post",
            path,
            needs=["update"],
            rule=self._rule(namespace, path),
            adapter=self._inside(namespace),
            json={"alias_name": name, "alias_mount_accessor": mount_accessor},
        )
        return None if answer.status_code == 204 else self._entity(self._data(answer, path))

    def entity(self, entity_id: str, *, namespace: str = "") -> Entity | None:
        """The entity as it is now; None if Vault has none of this id.

        https://developer.hashicorp.com/vault/api-docs/secret/identity/entity#read-entity-by-id
        """
        path = _path("identity/entity/id", entity_id)
        answer = self._answer(
            "get",
            path,
            needs=["read"],
            rule=self._rule(namespace, "identity/entity/id/+"),
            adapter=self._inside(namespace),
        )
        if answer.status_code == 404 and not texts(answer):
            return None
        return self._entity(self._data(answer, path))

    def disable_entity(self, entity_id: str, disabled: bool, *, namespace: str = "") -> None:
        """Disables it, or enables it again; its policies, names and metadata stay as they are. Read it back to be sure.

        https://developer.hashicorp.com/vault/api-docs/secret/identity/entity#update-entity-by-id
        """
        self._request(
            "post",
            _path("identity/entity/id", entity_id),
            needs=["update"],
            rule=self._rule(namespace, "identity/entity/id/+"),
            adapter=self._inside(namespace),
            json={"disabled": disabled},
        )

    def _entity(self, data: bytes) -> Entity:
        found = self._decode(data, _Entity)
        aliases = tuple(
            EntityAlias(row.mount_path.strip("/").removeprefix("auth/"), row.mount_accessor, row.name)
            for row in found.aliases or []
        )
        return Entity(found.id, found.name, found.disabled, aliases)

    def token_accessors(self, *, namespace: str = "") -> list[str]:
        """Accessors of every token of the namespace; batch tokens have none.

        https://developer.hashicorp.com/vault/api-docs/auth/token#list-accessors
        """
        path = "auth/token/accessors"
        return self._list(
            path, needs=["list", "sudo"], rule=self._rule(namespace, path), adapter=self._inside(namespace)
        )

    def lookup_tokens(self, accessors: Sequence[str], *, namespace: str = "") -> list[TokenFacts | None]:
        """What each accessor tells, CONNECTIONS at once, in their order; None for a token that has ended. Raises VaultError.

        https://developer.hashicorp.com/vault/api-docs/auth/token#lookup-a-token-accessor
        """
        self._ensure_token()
        path, adapter = "auth/token/lookup-accessor", self._inside(namespace)

        def send(accessor: str) -> requests.Response:
            return self._send("post", path, adapter=adapter, json={"accessor": accessor})

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(send, accessors))
        found: list[TokenFacts | None] = []
        for accessor, answer in zip(accessors, answers, strict=True):
            # our own token may have ended meanwhile: one by itself logs in again, or says what is denied
            if answer.status_code == 403:
                answer = self._answer(
                    "post",
                    path,
                    needs=["update"],
                    rule=self._rule(namespace, path),
                    adapter=adapter,
                    json={"accessor": accessor},
                )
            # Vault answers 403 or 404 in some versions, OpenBao 400
            if answer.status_code in {400, 404} and "invalid accessor" in texts(answer):
                found.append(None)
                continue
            token = self._decode(self._data(answer, path), _Token)
            found.append(TokenFacts(token.accessor, token.entity_id, token.path, token.orphan))
        return found

    def revoke_token(self, accessor: str, *, namespace: str = "") -> None:
        """Revokes a token with the ones that it made and all their leases. One that has ended already is no error.

        https://developer.hashicorp.com/vault/api-docs/auth/token#revoke-a-token-accessor
        """
        path = "auth/token/revoke-accessor"
        answer = self._answer(
            "post",
            path,
            needs=["update"],
            rule=self._rule(namespace, path),
            adapter=self._inside(namespace),
            json={"accessor": accessor},
            timeout=max(REVOKE_TIMEOUT_SECONDS, self._timeout_seconds),
        )
        if not (answer.status_code in {400, 404} and "invalid accessor" in texts(answer)):
            self._data(answer, path)

    def close(self) -> None:
        """Close the connections. The token is left to expire."""
        self._adapter.close()

    # -- logging in

    def _ensure_token(self) -> None:
        if self._adapter.token is None:
            self._log_in()
        elif time.monotonic() >= self._renew_at:
            # where it is cheap a new login, since a token cannot be renewed for ever; a given token can only be renewed
            if self._login.method != "token":
                self._log_in()
            elif self._renewable:
                self._renew()

    def _log_in(self) -> None:
        """https://developer.hashicorp.com/vault/api-docs/auth/kubernetes#login and …/approle#login-with-approle"""
        login = self._login
        try:
            secret = login.read_secret().strip()
        except SecretUnavailable as error:
            raise VaultLoginFailed(error.cause, error.fix) from error
        except OSError as error:
            raise VaultLoginFailed(
                f"The secret for the log-in to Vault cannot be read ({error.strerror})",
                "Correct `secret` in leasehold.toml, or mount the file it names.",
            ) from error
        self._adapter.token = None
        if login.method == "token":
            self._take_token(secret)
            return
        names = ("role", "jwt") if login.method == "kubernetes" else ("role_id", "secret_id")
        path = _path("auth", login.mount, "login")
        answer = self._send("post", path, json=dict(zip(names, (login.role, secret), strict=True)))
        if answer.status_code in {400, 401, 403, 404}:
            raise VaultLoginFailed(
                f"Vault at {self.address} refused the {login.method} log-in at {path}: {clean(texts(answer))}",
                f"Check that the auth method is enabled at auth/{login.mount}, that its role"
                + (f" {login.role}" if login.method == "kubernetes" else "")
                + " exists and admits this account, and that the secret is current.",
            )
        auth = self._envelope(answer, path).auth
        if auth is None:
            raise not_vault(self.address, "a log-in without a token")
        self._adapter.token = auth.client_token
        self.entity_id = auth.entity_id
        self._know_self(auth.policies, auth.metadata)
        self._keep(auth.lease_duration, renewable=auth.renewable)

    def _take_token(self, token: str) -> None:
        """https://developer.hashicorp.com/vault/api-docs/auth/token#lookup-a-token-self"""
        # a header cannot hold it otherwise, and the error that says so would repeat it
        if not re.fullmatch(r"[!-~]+", token):
            raise VaultLoginFailed(
                "The token for Vault holds characters that no token has", "Write the bare token into its secret."
            )
        self._adapter.token = token
        try:
            ttl_seconds, renewable = self._own_ttl()
        except VaultError:
            self._adapter.token = None
            raise
        self._keep(ttl_seconds, renewable=renewable)

    def _own_ttl(self) -> tuple[int, bool]:
        """Seconds that the token still lives (0: for ever, or not told), and whether it can be renewed."""
        answer = self._send("get", "auth/token/lookup-self")
        if answer.status_code == 403:
            if says_invalid_token(texts(answer)):
                raise VaultLoginFailed(
                    f"Vault at {self.address} does not accept the token: it is wrong, expired or revoked",
                    "Put a valid token into the secret that leasehold.toml names; it is read again at the next try.",
                )
            # a good token whose policies hide its own TTL
            return 0, False
        found = self._decode(self._data(answer, "auth/token/lookup-self"), _Self)
        self.entity_id = found.entity_id
        self._know_self(found.policies, found.meta)
        return found.ttl, found.renewable

    def _know_self(self, policies: list[str] | None, metadata: dict[str, str] | None) -> None:
        """How much of each line of the audit log says who this is: policies stand there twice, and once those that granted."""
        self._identity = 2 * len(msgspec.json.encode(policies or [])) + len(msgspec.json.encode(metadata or {}))

    def _renew(self) -> None:
        """https://developer.hashicorp.com/vault/api-docs/auth/token#renew-a-token-self"""
        path = "auth/token/renew-self"
        answer = self._send("post", path, json={})
        if answer.status_code == 200 and (auth := self._envelope(answer, path).auth):
            self._keep(auth.lease_duration, renewable=auth.renewable)
        elif answer.status_code in {400, 403}:
            # ended, or not allowed to renew: perhaps the secret holds another one by now
            self._log_in()
        else:
            raise refused(self.address, answer, path)

    def _keep(self, ttl_seconds: int, *, renewable: bool) -> None:
        self._renewable = renewable
        self._logged_in_at = time.monotonic()
        self._renew_at = self._logged_in_at + ttl_seconds * 2 / 3 if ttl_seconds else float("inf")

    # -- requests

    def _inside(self, namespace: str) -> RawAdapter:
        """The adapter for requests in this namespace, with the token that holds now; by default the account's own."""
        namespace = namespace.strip("/")
        if not namespace or namespace == (self._adapter.namespace or "").strip("/"):
            return self._adapter
        if namespace not in self._adapters:
            self._adapters[namespace] = RawAdapter.from_adapter(self._adapter)
            self._adapters[namespace].namespace = namespace
        self._adapters[namespace].token = self._adapter.token
        return self._adapters[namespace]

    def _rule(self, namespace: str, path: str) -> str:
        """The path as the policy of this account has to name it."""
        own = (self._adapter.namespace or "").strip("/")
        return f"{namespace.strip('/').removeprefix(own).strip('/')}/{path}".lstrip("/")

    def _list(self, path: str, *, needs: list[str], rule: str | None = None, **sent: Any) -> list[str]:
        answer = self._answer("list", path, needs=needs, rule=rule, **sent)
        # nothing there and a mount that is not there answer 404 both; only the second says so
        if answer.status_code == 404 and not texts(answer):
            return []
        return self._decode(self._data(answer, path), _Keys).keys

    def _request(self, method: str, path: str, *, needs: list[str], rule: str | None = None, **sent: Any) -> bytes:
        return self._data(self._answer(method, path, needs=needs, rule=rule, **sent), path)

    def _answer(
        self, method: str, path: str, *, needs: list[str], rule: str | None = None, **sent: Any
    ) -> requests.Response:
        """Send with the token. A 403 becomes VaultDenied, naming the policy line, after at most one new login."""
        self._ensure_token()
        if adapter := sent.get("adapter"):
            adapter.token = self._adapter.token
        answer = self._send(method, path, **sent)
        if answer.status_code == 403:
            age = time.monotonic() - self._logged_in_at
            if says_invalid_token(texts(answer)) or age > FRESH_TOKEN_SECONDS:
                self._log_in()
                if adapter := sent.get("adapter"):
                    adapter.token = self._adapter.token
                answer = self._send(method, path, **sent)
        if answer.status_code == 403:
            raise denied(self.address, path, needs=needs, rule=rule or path)
        return answer

    def _send(self, method: str, path: str, *, adapter: RawAdapter | None = None, **sent: Any) -> requests.Response:
        try:
            answer: requests.Response = (adapter or self._adapter).request(
                method, f"v1/{path}", raise_exception=False, **sent
            )
        except (requests.RequestException, LocationParseError, UnicodeError) as error:
            # requests lets the last two through for a host name that cannot be encoded
            cause, fix = why_unreachable(error)
            raise VaultUnreachable(f"Vault at {self.address} cannot be reached: {cause}", fix) from error
        if self._on_sent is not None and adapter is not self._public:
            keys = answer.content.count(b'","') + 1 if method == "list" and answer.status_code == 200 else 0
            self._on_sent(Sent(method, path, self._identity, keys))
        return answer

    def _data(self, answer: requests.Response, path: str) -> bytes:
        return bytes(self._envelope(answer, path).data)

    def _envelope(self, answer: requests.Response, path: str) -> _Envelope:
        if answer.status_code == 204:
            return _Envelope()
        if answer.status_code not in {200, 202}:
            raise refused(self.address, answer, path)
        envelope = self._decode(answer.content, _Envelope)
        if envelope.request_id:
            self.last_request_id = envelope.request_id
            if self._on_request_id is not None:
                self._on_request_id(envelope.request_id)
        return envelope

    def _decode(self, content: bytes, shape: type[_Read]) -> _Read:
        try:
            return msgspec.json.decode(content, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # the decoder's text names fields and types, never values
            raise not_vault(self.address, str(error)[:MAX_TEXT]) from error


def _path(*parts: str) -> str:
    """The parts as one quoted path. Raises ValueError for steps that would leave the path they are put under."""
    joined = "/".join(part.strip("/") for part in parts)
    if any(step in {"", ".", ".."} for step in joined.split("/")):
        raise ValueError(f"{joined[:MAX_TEXT]!r} is no path in Vault")
    return quote(joined, safe="/")


def _utc(moment: datetime | None) -> datetime | None:
    """In UTC; None for Go's zero time, which stands for "never"."""
    return None if moment is None or moment.year <= 1 else moment.astimezone(UTC)
