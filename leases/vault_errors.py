"""What can go wrong with Vault, in an operator's words: errors that carry a cause and a fix, and no secret.

Texts from Vault are capped, and whatever looks like a token, a JWT or a password in an address is taken out of them.
"""

import re

import msgspec
import requests
from urllib3.exceptions import LocationParseError

from leases.errors import SourceError

MAX_TEXT = 300
_SECRETS = re.compile(
    r"(?:hv[sbr]\.|\b[sbr]\.)[A-Za-z0-9_-]{20,}"  # tokens of Vault and OpenBao
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"  # JWTs
    r"|(?<=://)[^\s/@:]+:[^\s@]+(?=@)"  # user:password in an address
    r"|(?i:(?<=password=)\S+)"
)

_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    LocationParseError,
    UnicodeError,
)


class _Errors(msgspec.Struct):
    errors: list[str]


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


def denied(address: str, path: str, *, needs: list[str], rule: str) -> VaultDenied:
    """The error for a 403 of a good token: names the line that its policy lacks."""
    words = ", ".join(f'"{word}"' for word in needs)
    return VaultDenied(
        f"Vault at {address} denies {' and '.join(needs)} on {path}",
        f'Add to the policy of this account: path "{rule}" {{ capabilities = [{words}] }} (see deploy/vault/).',
        path,
    )


def refused(address: str, answer: requests.Response, path: str) -> VaultError:
    """The error for a status that is neither success nor 403."""
    status, text, vault = answer.status_code, clean(texts(answer)), f"Vault at {address}"
    if status in {501, 503} and ("sealed" in text or "initialized" in text):
        return closed(address, sealed="sealed" in text)
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
            f"{address} answers {status}, but not as Vault does{': ' + text if text else ''}",
            "Check the address, scheme (http or https) and port in leasehold.toml.",
        )
    if status >= 500:
        return VaultUnreachable(f"{vault} answers {status} to {path}: {text}", "Look into Vault's own log.")
    if status == 404:
        return VaultError(
            f"{vault} has nothing at {path}{': ' + text if text else ''}",
            "Check the mount's path in leasehold.toml and that it is enabled in Vault.",
        )
    return VaultError(f"{vault} rejects the request to {path} ({status}): {text}", "Check the names in leasehold.toml.")


def closed(address: str, *, sealed: bool) -> VaultSealed:
    if sealed:
        return VaultSealed(
            f"Vault at {address} is sealed", "Unseal it: `bao operator unseal` or `vault operator unseal`."
        )
    return VaultSealed(f"Vault at {address} is not initialised", "Initialise and unseal it: `bao operator init`.")


def not_vault(address: str, what: str) -> VaultUnreachable:
    return VaultUnreachable(f"{address} answers, but not as Vault does: {what}", "Check the address in leasehold.toml.")


def texts(answer: requests.Response) -> str:
    """Vault's own error text, or the answer's plain text; not yet cleaned."""
    try:
        return "; ".join(msgspec.json.decode(answer.content, type=_Errors).errors)
    except (msgspec.DecodeError, UnicodeDecodeError):
        plain = answer.headers.get("Content-Type", "").startswith("text/plain")
        return answer.content[:MAX_TEXT].decode(errors="replace") if plain else ""


def _is_vaults(answer: requests.Response) -> bool:
    try:
        msgspec.json.decode(answer.content, type=_Errors)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def says_invalid_token(text: str) -> bool:
    """A missing capability comes as "1 error occurred: * permission denied", a bad token bare or as "invalid token"."""
    return "invalid token" in text or "bad token" in text or text.strip() == "permission denied"


def clean(text: str) -> str:
    """On one line, without what looks like a secret, at most MAX_TEXT characters."""
    line = re.sub(r"^\d+ errors? occurred: \* ", "", " ".join(text.split()))
    line = _SECRETS.sub("[removed]", line)
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def why_unreachable(error: Exception) -> tuple[str, str]:
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
