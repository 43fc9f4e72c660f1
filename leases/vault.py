"""The boundary to Vault and OpenBao: the one module that imports hvac. Returns typed values, raises VaultError.

Every error carries a cause and a fix for an operator. Texts from Vault are capped, and whatever looks like a token, a
JWT or a password in an address is taken out of them. No call is repeated, but for one case: a request that was refused
(403) because the token had ended is sent again after a new login.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
import requests
from hvac.adapters import RawAdapter
from urllib3.exceptions import LocationParseError

from leases.errors import SourceError
from leases.references import SecretUnavailable

# dropping a database user can take long; giving up early would leave its outcome unknown
REVOKE_TIMEOUT_SECONDS = 20.0
# a token that is refused for a missing capability is replaced only when it is older than this: a role may have got more
# policies since, but each login makes a token, and a poller that lacks a capability must not make one per poll
FRESH_TOKEN_SECONDS = 60.0
_MAX_TEXT = 300
_SECRETS = re.compile(
    r"(?:hv[sbr]\.|\b[sbr]\.)[A-Za-z0-9_-]{20,}"  # tokens of Vault and OpenBao
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"  # JWTs
    r"|(?<=://)[^\s/@:]+:[^\s@]+(?=@)"  # user:password in an address
    r"|(?i:(?<=password=)\S+)"
)


class VaultError(SourceError):
    """Vault did not do what was asked. `cause` and `fix` are for an operator and hold no secret."""


class VaultUnreachable(VaultError):
    """No answer, or none that is Vault's: address, network, TLS, time limit, overload, standby."""


class VaultSealed(VaultError):
    """Vault answers that it is sealed, or not yet initialised."""


class VaultLoginFailed(VaultError):
    """The log-in was refused, or its secret cannot be read."""


class VaultDenied(VaultError):
    """The token is good but its policies do not allow the call on `path`."""

    def __init__(self, cause: str, fix: str, path: str = "") -> None:
        super().__init__(cause, fix)
        self.args = (cause, fix, path)
        self.path = path


class RevocationFailed(VaultError):
    """Vault tried to revoke and could not; the lease stays. `text` is the database's error."""

    def __init__(self, cause: str, fix: str, text: str = "") -> None:
        super().__init__(cause, fix)
        self.args = (cause, fix, text)
        self.text = text


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


_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    LocationParseError,
    UnicodeError,
)

# What is read of Vault's answers; anything else in them is ignored.


class _Auth(msgspec.Struct):
    client_token: str
    lease_duration: int = 0
    renewable: bool = False


class _Envelope(msgspec.Struct):
    request_id: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    auth: _Auth | None = None


class _Errors(msgspec.Struct):
    errors: list[str]


class _Health(msgspec.Struct):
    initialized: bool
    sealed: bool
    standby: bool
    version: str = ""
    cluster_name: str = ""


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


class _Hash(msgspec.Struct):
    hash: str


class _Self(msgspec.Struct):
    ttl: int
    renewable: bool = False


class _Connection(msgspec.Struct):
    plugin_name: str


class _Role(msgspec.Struct):
    db_name: str
    default_ttl: int = 0
    max_ttl: int = 0


_Read = TypeVar("_Read")


class VaultClient:
    """One account on one Vault. Logs in at the first call that needs a token and keeps the token in memory only.

    Not shared between threads. Each call raises VaultError; `timeout_seconds` limits connecting and each wait for data.
    `on_request_id` is told the id of each request whose answer bears one: the audit log has it under the same.
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
    ) -> None:
        self.address = address.rstrip("/")
        self.last_request_id: str | None = None
        self._on_request_id = on_request_id
        self._login = login
        self._renewable = False
        self._logged_in_at = self._renew_at = 0.0
        session = requests.Session()
        # no proxy, .netrc or CA bundle from the environment: what is sent here opens every database
        session.trust_env = False
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
        # sys/health exists outside of namespaces only, and needs no token
        self._public = RawAdapter(**options)

    # -- the server

    def health(self) -> Health:
        """State of the server that answers; needs no token.

        https://developer.hashicorp.com/vault/api-docs/system/health
        """
        # by default the status code tells the state; asked like this, each state answers 200
        codes = ("standbycode", "perfstandbycode", "drsecondarycode", "sealedcode", "uninitcode")
        answer = self._send("get", "sys/health", adapter=self._public, params=dict.fromkeys(codes, "200"))
        if answer.status_code != 200:
            raise self._refused(answer, "sys/health")
        health = self._decode(answer.content, _Health)
        return Health(health.initialized, health.sealed, health.standby, health.version, health.cluster_name)

    def ensure_ready(self) -> None:
        """Return if the server is unsealed and this account is logged in."""
        health = self.health()
        if health.sealed or not health.initialized:
            raise self._closed(sealed=health.initialized)
        self._ensure_token()

    def capabilities(self, paths: list[str]) -> dict[str, list[str]]:
        """What the account may do on each path, e.g. {"sys/audit": ["read", "sudo"]}; ["deny"] for nothing.

        https://developer.hashicorp.com/vault/api-docs/system/capabilities-self
        """
        data = self._request("post", "sys/capabilities-self", needs=["update"], json={"paths": paths})
        found = self._decode(data, dict[str, Any])
        return {path: [str(word) for word in found.get(path, ["deny"])] for path in paths}

    # -- leases

    def lookup_lease(self, lease_id: str) -> LeaseTimes | None:
        """Times of one lease; None if Vault knows no such lease.

        https://developer.hashicorp.com/vault/api-docs/system/leases#read-lease
        """
        answer = self._answer("put", "sys/leases/lookup", needs=["update"], json={"lease_id": lease_id})
        if answer.status_code == 400 and "invalid lease" in self._errors(answer):
            return None
        lease = self._decode(self._data(answer, "sys/leases/lookup"), _Lease)
        issued_at = _utc(lease.issue_time)
        if issued_at is None:
            raise self._not_vault("a lease without an issue time")
        return LeaseTimes(
            lease_id=lease.id,
            issued_at=issued_at,
            expires_at=_utc(lease.expire_time),
            last_renewal_at=_utc(lease.last_renewal),
            renewable=lease.renewable,
            ttl_seconds=lease.ttl,
            revoke_error=_clean(lease.revoke_error) if lease.revoke_error else None,
        )

    def list_leases(self, prefix: str) -> list[str]:
        """One level below `prefix`: names of leases, and of folders, which end in "/". Nothing there is an empty list.

        https://developer.hashicorp.com/vault/api-docs/system/leases#list-leases
        """
        root = prefix.strip("/").partition("/")[0]
        return self._list(
            _path("sys/leases/lookup", *([prefix] if root else [])) + "/",
            needs=["list", "sudo"],
            rule=f"sys/leases/lookup/{root}/*" if root else "sys/leases/lookup/*",
        )

    def walk_leases(self, prefix: str) -> Iterator[str]:
        """Every whole lease id below `prefix`; one request per folder."""
        folders = [prefix.strip("/") + "/" if prefix.strip("/") else ""]
        while folders:
            folder = folders.pop()
            for name in self.list_leases(folder):
                if name.endswith("/"):
                    folders.append(folder + name)
                else:
                    yield folder + name

    def revoke_lease(self, lease_id: str) -> str | None:
        """Revoke one lease and wait for it. Returns the request id where the answer has one (a 204 has none).

        The URL form: the audit log then has the lease id in plain text. Vault answers 204 for a lease that it does not
        know, too, so what this returns proves nothing. Raises RevocationFailed when the database refuses.
        https://developer.hashicorp.com/vault/api-docs/system/leases#revoke-lease
        """
        path = _path("sys/leases/revoke", lease_id)
        answer = self._answer(
            "put",
            path,
            needs=["update"],
            rule=f"sys/leases/revoke/{lease_id.strip('/').partition('/')[0]}/*",
            json={"sync": True},
            timeout=max(REVOKE_TIMEOUT_SECONDS, self._timeout_seconds),
        )
        text = _clean(self._errors(answer))
        if answer.status_code == 400 or (answer.status_code == 500 and "revoke" in text):
            raise RevocationFailed(
                f"Vault at {self.address} could not revoke the lease, which stays valid: {text}",
                "Make the database reachable for Vault and check the role's revocation statements, then revoke again.",
                text,
            )
        return self._envelope(answer, path).request_id or None

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
        """Paths of the enabled devices, without the slash at the end.

        https://developer.hashicorp.com/vault/api-docs/system/audit#list-enabled-audit-devices
        """
        data = self._request("get", "sys/audit", needs=["read", "sudo"])
        return sorted(name.rstrip("/") for name in self._decode(data, dict[str, Any]))

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
                f"Vault at {self.address} refused the {login.method} log-in at {path}: {_clean(self._errors(answer))}",
                f"Check that the auth method is enabled at auth/{login.mount}, that its role"
                + (f" {login.role}" if login.method == "kubernetes" else "")
                + " exists and admits this account, and that the secret is current.",
            )
        auth = self._envelope(answer, path).auth
        if auth is None:
            raise self._not_vault("a log-in without a token")
        self._adapter.token = auth.client_token
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
            if _says_invalid_token(self._errors(answer)):
                raise VaultLoginFailed(
                    f"Vault at {self.address} does not accept the token: it is wrong, expired or revoked",
                    "Put a valid token into the secret that leasehold.toml names; it is read again at the next try.",
                )
            # a good token whose policies hide its own TTL
            return 0, False
        found = self._decode(self._data(answer, "auth/token/lookup-self"), _Self)
        return found.ttl, found.renewable

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
            raise self._refused(answer, path)

    def _keep(self, ttl_seconds: int, *, renewable: bool) -> None:
        self._renewable = renewable
        self._logged_in_at = time.monotonic()
        self._renew_at = self._logged_in_at + ttl_seconds * 2 / 3 if ttl_seconds else float("inf")

    # -- requests

    def _list(self, path: str, *, needs: list[str], rule: str | None = None) -> list[str]:
        answer = self._answer("list", path, needs=needs, rule=rule)
        # nothing there and a mount that is not there answer 404 both; only the second says so
        if answer.status_code == 404 and not self._errors(answer):
            return []
        return self._decode(self._data(answer, path), _Keys).keys

    def _request(self, method: str, path: str, *, needs: list[str], rule: str | None = None, **sent: Any) -> bytes:
        return self._data(self._answer(method, path, needs=needs, rule=rule, **sent), path)

    def _answer(
        self, method: str, path: str, *, needs: list[str], rule: str | None = None, **sent: Any
    ) -> requests.Response:
        """Send with the token. A 403 becomes VaultDenied, naming the policy line, after at most one new login."""
        self._ensure_token()
        answer = self._send(method, path, **sent)
        if answer.status_code == 403:
            age = time.monotonic() - self._logged_in_at
            if _says_invalid_token(self._errors(answer)) or age > FRESH_TOKEN_SECONDS:
                self._log_in()
                answer = self._send(method, path, **sent)
        if answer.status_code == 403:
            words = ", ".join(f'"{word}"' for word in needs)
            raise VaultDenied(
                f"Vault at {self.address} denies {' and '.join(needs)} on {path}",
                f'Add to the policy of this account: path "{rule or path}" {{ capabilities = [{words}] }}'
                " (see deploy/vault/).",
                path,
            )
        return answer

    def _send(self, method: str, path: str, *, adapter: RawAdapter | None = None, **sent: Any) -> requests.Response:
        try:
            answer: requests.Response = (adapter or self._adapter).request(
                method, f"v1/{path}", raise_exception=False, **sent
            )
        except (requests.RequestException, LocationParseError, UnicodeError) as error:
            # requests lets the last two through for a host name that cannot be encoded
            cause, fix = _why_unreachable(error)
            raise VaultUnreachable(f"Vault at {self.address} cannot be reached: {cause}", fix) from error
        return answer

    def _data(self, answer: requests.Response, path: str) -> bytes:
        return bytes(self._envelope(answer, path).data)

    def _envelope(self, answer: requests.Response, path: str) -> _Envelope:
        if answer.status_code == 204:
            return _Envelope()
        if answer.status_code not in {200, 202}:
            raise self._refused(answer, path)
        envelope = self._decode(answer.content, _Envelope)
        if envelope.request_id:
            self.last_request_id = envelope.request_id
            if self._on_request_id is not None:
                self._on_request_id(envelope.request_id)
        return envelope

    def _refused(self, answer: requests.Response, path: str) -> VaultError:
        """The error for a status that is neither success nor 403."""
        status, text, vault = answer.status_code, _clean(self._errors(answer)), f"Vault at {self.address}"
        if status in {501, 503} and ("sealed" in text or "initialized" in text):
            return self._closed(sealed="sealed" in text)
        if 300 <= status < 400:
            return VaultUnreachable(
                f"{vault} redirects to another address",
                "Write the address of the active node, or of the load balancer before it, into leasehold.toml.",
            )
        if status == 429:
            return VaultUnreachable(
                f"{vault} answers that there are too many requests", "Raise its rate limit quota for this account."
            )
        if status in {412, 472, 473} or (status == 503 and "standby" in text):
            return VaultUnreachable(
                f"{vault} is a standby that cannot answer", "Use the address of the active node in leasehold.toml."
            )
        if not _is_vaults(answer):
            return VaultUnreachable(
                f"{self.address} answers {status}, but not as Vault does{': ' + text if text else ''}",
                "Check the address, scheme (http or https) and port in leasehold.toml.",
            )
        if status >= 500:
            return VaultUnreachable(f"{vault} answers {status} to {path}: {text}", "Look into Vault's own log.")
        if status == 404:
            return VaultError(
                f"{vault} has nothing at {path}{': ' + text if text else ''}",
                "Check the mount's path in leasehold.toml and that it is enabled in Vault.",
            )
        return VaultError(
            f"{vault} rejects the request to {path} ({status}): {text}", "Check the names in leasehold.toml."
        )

    def _closed(self, *, sealed: bool) -> VaultSealed:
        if sealed:
            return VaultSealed(
                f"Vault at {self.address} is sealed", "Unseal it: `bao operator unseal` or `vault operator unseal`."
            )
        return VaultSealed(
            f"Vault at {self.address} is not initialised", "Initialise and unseal it: `bao operator init`."
        )

    def _not_vault(self, what: str) -> VaultUnreachable:
        return VaultUnreachable(
            f"{self.address} answers, but not as Vault does: {what}", "Check the address in leasehold.toml."
        )

    def _decode(self, content: bytes, shape: type[_Read]) -> _Read:
        try:
            return msgspec.json.decode(content, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # the decoder's text names fields and types, never values
            raise self._not_vault(str(error)[:_MAX_TEXT]) from error

    def _errors(self, answer: requests.Response) -> str:
        """Vault's own error text, or the answer's plain text; not yet cleaned."""
        try:
            return "; ".join(msgspec.json.decode(answer.content, type=_Errors).errors)
        except (msgspec.DecodeError, UnicodeDecodeError):
            plain = answer.headers.get("Content-Type", "").startswith("text/plain")
            return answer.content[:_MAX_TEXT].decode(errors="replace") if plain else ""


def _is_vaults(answer: requests.Response) -> bool:
    try:
        msgspec.json.decode(answer.content, type=_Errors)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _says_invalid_token(text: str) -> bool:
    """A missing capability comes as "1 error occurred: * permission denied", a bad token bare or as "invalid token"."""
    return "invalid token" in text or "bad token" in text or text.strip() == "permission denied"


def _path(*parts: str) -> str:
    """The parts as one quoted path. Raises ValueError for steps that would leave the path they are put under."""
    joined = "/".join(part.strip("/") for part in parts)
    if any(step in {"", ".", ".."} for step in joined.split("/")):
        raise ValueError(f"{joined[:_MAX_TEXT]!r} is no path in Vault")
    return quote(joined, safe="/")


def _utc(moment: datetime | None) -> datetime | None:
    """In UTC; None for Go's zero time, which stands for "never"."""
    return None if moment is None or moment.year <= 1 else moment.astimezone(UTC)


def _clean(text: str) -> str:
    """On one line, without what looks like a secret, at most _MAX_TEXT characters."""
    line = re.sub(r"^\d+ errors? occurred: \* ", "", " ".join(text.split()))
    line = _SECRETS.sub("[removed]", line)
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


def _why_unreachable(error: Exception) -> tuple[str, str]:
    address = "Check the vault's address in leasehold.toml and that Vault runs."
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        reason = re.search(r"certificate verify failed: ([^(]*)", text)
        if reason:
            return (
                f"its certificate is not trusted ({reason[1].strip()})",
                "Set ca_file in leasehold.toml to the CA that signed it, and use a host name that it names.",
            )
        return "TLS failed", "Check the scheme (http or https) and port of the address in leasehold.toml."
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time", "Check address, routes and firewalls between here and Vault."
    if isinstance(error, requests.exceptions.Timeout):
        return (
            "it took too long to answer",
            "Look at Vault's load, its storage and its audit devices (each can block it).",
        )
    if isinstance(error, _BAD_ADDRESS):
        return "its address is no URL", "Write http(s)://HOST:PORT into leasehold.toml."
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "its address is neither http nor https", "Write http(s)://HOST:PORT into leasehold.toml."
    if "resolve" in text or "Name or service" in text:
        return "its host name cannot be resolved", "Check the host name in leasehold.toml and the DNS."
    if "refused" in text:
        return "connection refused", address
    if isinstance(error, OSError) and "unreachable" in text:
        return "network unreachable", "Check address, routes and firewalls between here and Vault."
    return "the connection broke", address
