"""One line of an audit device -> one half of an event. Pure: no database, no clock, no file.

Shapes: https://developer.hashicorp.com/vault/docs/audit and FIELD-GUIDE notes in docs/architecture.md. Only the fields that are
read are declared, so that unknown ones pass; a declared one of the wrong type rejects the line.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

# text that looks like a token of Vault or OpenBao, or like a signed JWT, wherever it stands
# (what precedes it may be a JSON or percent escape, whose last character is a letter or a digit)
TOKEN_SHAPED = re.compile(
    rb"hv[sbr]\.[A-Za-z0-9_-]{20,}"
    rb"|(?:(?<![A-Za-z0-9_-])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))[sbr]\.[A-Za-z0-9_-]{24,}"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
# Vault leaves text that looks like a time as it is, also where it hashes everything else
TIME_SHAPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
REDACTED = b"[redacted]"
HMAC = "hmac-sha256:"
# no id of Vault is that long, and an index row has a limit
LONGEST_ID = 1000


class Rejected(Exception):
    """The line is no audit entry; the message is the reason."""


class RawSecret(Exception):
    """A field that an HMAC must cover stands in plain text: nothing of this stream may be stored."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Auth(msgspec.Struct):
    client_token: str | None = None
    accessor: str | None = None
    display_name: str | None = None
    policies: list[str] | None = None
    metadata: dict[str, str] | None = None
    entity_id: str | None = None
    token_type: str | None = None


class Namespace(msgspec.Struct):
    id: str | None = None
    path: str | None = None


class Request(msgspec.Struct):
    id: str | None = None
    operation: str | None = None
    path: str | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    namespace: Namespace | None = None
    remote_address: str | None = None
    client_token: str | None = None
    client_token_accessor: str | None = None
    data: dict[str, Any] | None = None


class Secret(msgspec.Struct):
    lease_id: str | None = None


class Response(msgspec.Struct):
    auth: Auth | None = None
    secret: Secret | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    # read only where it holds a credential: lists can be megabytes
    data: msgspec.Raw = msgspec.Raw(b"")


class Entry(msgspec.Struct):
    time: str
    type: str
    auth: Auth | None = None
    request: Request | None = None
    response: Response | None = None
    error: str | None = None


class Half(msgspec.Struct, frozen=True):
    """What one line says of one request. `accessor` and the like are HMACs of the device (or plain where tuned so)."""

    request_id: str
    kind: str  # "request" | "response"
    at: datetime
    operation: str
    path: str
    mount_point: str
    mount_type: str
    namespace_path: str
    address: str
    display_name: str
    entity_id: str
    token_type: str
    policies: list[str]
    metadata: dict[str, str]
    lease_id: str
    error: str
    accessor: str
    # of the token that the response created
    new_accessor: str
    new_metadata: dict[str, str]
    new_display_name: str
    new_entity_id: str
    new_token_type: str
    new_policies: list[str]
    username: str
    data_lease_id: str
    data_accessor: str


_decode = msgspec.json.Decoder(Entry).decode
_decode_data = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def redact(line: bytes) -> tuple[bytes, int]:
    """The line without token-shaped text, and how often some was taken out. Anybody can put such text into a path."""
    return TOKEN_SHAPED.subn(REDACTED, line)


def read(line: bytes) -> Half:
    """One line, already redacted. Raises Rejected, or RawSecret where tokens stand in plain text."""
    # a device's `prefix` option puts text before the entry
    start = line.find(b"{")
    if start < 0:
        raise Rejected("not JSON: no object on the line")
    # PostgreSQL's text holds no NUL, and anybody can put one into a path
    text = line[start:].replace(b"\\u0000", b"\\ufffd").replace(b"\x00", b"")
    try:
        entry = _decode(text)
    except msgspec.ValidationError as error:
        raise Rejected(f"not an audit entry: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"not JSON: {error}") from error
    except RecursionError as error:
        raise Rejected("nested too deeply") from error
    if entry.type not in {"request", "response"}:
        raise Rejected(f"unknown type {entry.type[:40]!r}")
    refuse_raw_secrets(entry)
    return half(entry, line)


def refuse_raw_secrets(entry: Entry) -> None:
    """Raises RawSecret if a token or a password stands where its HMAC must stand (`log_raw`)."""
    auth, request = entry.auth or Auth(), entry.request or Request()
    response_auth = (entry.response.auth if entry.response else None) or Auth()
    for field, value in (
        ("auth.client_token", auth.client_token),
        ("request.client_token", request.client_token),
        ("response.auth.client_token", response_auth.client_token),
        ("request.data.jwt", (request.data or {}).get("jwt")),
        ("request.data.secret_id", (request.data or {}).get("secret_id")),
    ):
        if is_raw(value):
            raise RawSecret(field)
    # a credential of a static role has no lease, so this does not wait for one
    if entry.response and b'"password"' in bytes(entry.response.data):
        credential_name(entry.response.data)


def is_raw(value: object) -> bool:
    """Text where the device should have written a hash. A client can choose a time, which is left as it is."""
    return isinstance(value, str) and bool(value) and not value.startswith(HMAC) and not TIME_SHAPED.fullmatch(value)


def half(entry: Entry, line: bytes) -> Half:
    request = entry.request or Request()
    response = entry.response or Response()
    auth = entry.auth or Auth()
    new_auth = response.auth or Auth()
    data = request.data or {}
    lease_id = (response.secret.lease_id if response.secret else None) or ""
    for name, value in (("request.id", request.id), ("lease_id", lease_id), ("accessor", auth.accessor)):
        if value and len(value) > LONGEST_ID:
            raise Rejected(f"{name} is longer than {LONGEST_ID} characters")
    username = ""
    if lease_id and response.data:
        username = credential_name(response.data)
    return Half(
        request_id=request.id or "sha256:" + hashlib.sha256(line).hexdigest(),
        kind=entry.type,
        at=moment(entry.time),
        operation=request.operation or "",
        path=request.path or "",
        mount_point=request.mount_point or response.mount_point or "",
        mount_type=request.mount_type or response.mount_type or "",
        namespace_path=(request.namespace.path if request.namespace else None) or "",
        address=request.remote_address or "",
        display_name=auth.display_name or "",
        entity_id=auth.entity_id or "",
        token_type=auth.token_type or "",
        policies=auth.policies or [],
        metadata=auth.metadata or {},
        lease_id=lease_id,
        error=(entry.error or "")[:2000],
        accessor=auth.accessor or request.client_token_accessor or "",
        new_accessor=new_auth.accessor or "",
        new_metadata=new_auth.metadata or {},
        new_display_name=new_auth.display_name or "",
        new_entity_id=new_auth.entity_id or "",
        new_token_type=new_auth.token_type or "",
        new_policies=new_auth.policies or [],
        username=username,
        data_lease_id=_text(data.get("lease_id")),
        data_accessor=_text(data.get("accessor")),
    )


def credential_name(data: msgspec.Raw) -> str:
    """The user's name (an HMAC, or plain where the mount is tuned so). Raises RawSecret if a password is in plain text."""
    try:
        values = _decode_data(data)
        password = msgspec.json.decode(values["password"]) if "password" in values else None
        username = msgspec.json.decode(values["username"]) if "username" in values else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"not JSON: {error}") from error
    except RecursionError as error:
        raise Rejected("nested too deeply") from error
    if is_raw(password):
        raise RawSecret("response.data.password")
    return _text(username)


def moment(text: str) -> datetime:
    """RFC 3339 with up to nanoseconds and any offset -> UTC, cut to microseconds. Raises Rejected."""
    try:
        # Python 3.11 reads at most six digits of a second
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Rejected(f"no time that can be read: {text[:40]!r}") from error
    if not 2015 <= at.year < 2200:
        # Vault is not older than that; a date from nowhere would also overflow the sums made with it
        raise Rejected(f"no time that can be true: {text[:40]!r}")
    return at


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
