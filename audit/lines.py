"""One line of an audit device -> one half of an event. Pure: no database, no clock, no file.

Shapes: https://developer.hashicorp.com/vault/docs/audit and FIELD-GUIDE notes in docs/architecture.md. Only the fields that are
read are declared, so that unknown ones pass; a declared one of the wrong type rejects the line.
"""

import hashlib
from datetime import UTC, datetime

import msgspec

from audit.glue import shallow
from audit.intern import What, Who
from audit.models.events import Kind

# no id of Vault is that long, and an index row has a limit
LONGEST_ID = 1000
_NONE = msgspec.Raw(b"")


class Rejected(Exception):
    """The line is no audit entry; the message is the reason."""


# gc=False: these hold no cycles, and millions of them would keep the collector busy
class Auth(msgspec.Struct, gc=False):
    accessor: str | None = None
    client_token: str | None = None
    display_name: str | None = None
    policies: msgspec.Raw = _NONE
    metadata: msgspec.Raw = _NONE
    entity_id: str | None = None
    token_type: str | None = None
    # a number; a device that writes something else there loses no line for it
    token_ttl: object = None


class Namespace(msgspec.Struct, gc=False):
    path: str | None = None


class Request(msgspec.Struct, gc=False):
    id: str | None = None
    operation: str | None = None
    path: str | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    namespace: Namespace | None = None
    remote_address: str | None = None
    client_token: str | None = None
    client_token_accessor: str | None = None
    # read only where it names a lease or a token: it can be megabytes
    data: msgspec.Raw = _NONE


class Secret(msgspec.Struct, gc=False):
    lease_id: str | None = None


class WrapInfo(msgspec.Struct, gc=False):
    accessor: str | None = None
    token: str | None = None
    # of the token that is inside
    wrapped_accessor: str | None = None


class Response(msgspec.Struct, gc=False):
    auth: Auth | None = None
    secret: Secret | None = None
    wrap_info: WrapInfo | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    # read only where it holds a credential: lists can be megabytes
    data: msgspec.Raw = _NONE


class Entry(msgspec.Struct, gc=False):
    time: str
    type: str
    auth: Auth | None = None
    request: Request | None = None
    response: Response | None = None
    error: str | None = None


class Named(msgspec.Struct, gc=False):
    """What of a request's or a response's data is read: HMACs of the device, or plain text where it is tuned so."""

    lease_id: object = None
    accessor: object = None
    username: object = None
    token: object = None
    no_parent: object = None


class Answer(msgspec.Struct, gc=False):
    """What a successful response did that the ledger must know of."""

    # of the token that it created or renewed: its accessor (of a batch token, which has none, its own HMAC), and for how long
    new_accessor: str = ""
    new_who: Who = ("", "", "", "", "")
    new_token: str = ""
    ttl_seconds: int | None = None
    # made without a parent, so that it does not end with the token that made it
    is_orphan: bool = False
    # database user in the response of a credential read
    username: str = ""
    # lease id, accessor and token in the request's data (renew, revoke, revoke-accessor, unwrap)
    data_lease_id: str = ""
    data_accessor: str = ""
    data_token: str = ""
    # the wrapping token that the answer was put into: its accessor and itself
    wrapped_in: tuple[str, ...] = ()


class Half(msgspec.Struct, gc=False):
    """What one line says of one request. Accessors are HMACs of the device, or plain where it is tuned so."""

    request_id: str
    is_response: bool
    at: datetime
    # `at` as PostgreSQL reads it
    time: str
    what: What
    who: Who
    address: str
    lease_id: str
    error: str
    accessor: str
    kind: int
    answer: Answer | None
    # where the line stands in its batch: block, and line in that block, both from 0
    block: int
    number: int


_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_named = msgspec.json.Decoder(Named).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str] | None).decode
_decode_policies = msgspec.json.Decoder(list[str] | None).decode
_sorted = msgspec.json.Encoder(order="deterministic")

RENEWS = ("sys/leases/renew", "sys/renew")
ENDS = ("sys/leases/revoke", "sys/revoke", "auth/token/revoke")
# without a mount its leases, or the tokens that it gave, are revoked
UNMOUNTS = ("sys/mounts/", "sys/auth/")
# a write that was sent to a standby: the true pair is on the active node, under another request id
READ_ONLY = "cannot write to readonly storage"
NOBODY: Who = ("", "", "", "", "")


def read(line: bytes, block: int = 0, number: int = 0) -> Half:
    """One clean line (secrets.clean, where it was suspect). Raises Rejected."""
    try:
        try:
            return half(decode(line), line, block, number)
        except RecursionError:
            # a client may nest its request's data as it likes, and nobody's entry is lost for that
            return half(decode(shallow(line)), line, block, number)
    except msgspec.ValidationError as error:
        raise Rejected(f"not an audit entry: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"not JSON: {error}") from error
    except RecursionError as error:
        raise Rejected("nested too deeply") from error
    except ValueError as error:
        raise Rejected("no time that can be read") from error


def decode(line: bytes) -> Entry:
    """Raises what msgspec raises."""
    if line[:1] != b"{":
        # a device's `prefix` option puts text before the entry
        start = line.find(b"{")
        if start < 0:
            raise Rejected("not JSON: no object on the line")
        line = line[start:]
    return _decode_entry(line)


def without_nul(line: bytes) -> bytes:
    """PostgreSQL's text holds no NUL, and anybody can put one into a path. For reading only: what is kept is the line itself."""
    return line.replace(b"\x00", b"").replace(b"\\u0000", b"\\ufffd")


def half(entry: Entry, line: bytes, block: int, number: int) -> Half:
    kind_of_entry = entry.type
    if kind_of_entry == "response":
        is_response, other_type = True, ""
    elif kind_of_entry == "request":
        is_response, other_type = False, ""
    elif not kind_of_entry:
        raise Rejected("the entry's type is empty")
    else:
        # Enterprise has more (`kmip-request`): kept, under their own name
        base, _, end = kind_of_entry.rpartition("-")
        is_response, other_type = end == "response", (base if end in {"request", "response"} else kind_of_entry)[:40]
    request = entry.request or Request()
    response = entry.response
    auth = entry.auth
    if auth is None:
        who, accessor = NOBODY, request.client_token_accessor or ""
    else:
        who, accessor = identity(auth), auth.accessor or request.client_token_accessor or ""
        if not accessor and auth.token_type == "batch":
            # it has no accessor anywhere, but its own HMAC is the same on each of its lines
            accessor = auth.client_token or ""
    path = request.path or ""
    mount_point, mount_type, lease_id = request.mount_point, request.mount_type, ""
    if response is not None:
        mount_point, mount_type = mount_point or response.mount_point, mount_type or response.mount_type
        if response.secret is not None:
            lease_id = response.secret.lease_id or ""
    kind, answer = 0, None
    error = entry.error or ""
    if is_response:
        if not error:
            kind, answer = outcome(path, request, response, lease_id, auth)
        elif READ_ONLY in error:
            kind = Kind.STANDBY
    request_id = request.id
    if not request_id:
        request_id = "sha256:" + hashlib.sha256(line).hexdigest()
    elif len(request_id) != 36 or len(lease_id) > 200 or len(accessor) > 200:
        refuse_endless(request_id, lease_id, accessor)
    time = entry.time
    if time[-1:] == "Z" and len(time) > 27 and time[10:20:3] == "T::." and time[4:8:3] == "--":
        # nanoseconds, cut (other forms that Python reads, such as weeks, PostgreSQL does not)
        time = time[:26] + "+00:00"
        at = datetime.fromisoformat(time)
    else:
        at = moment(time)
        time = at.isoformat()
    what = (
        other_type,
        request.operation or "",
        path,
        mount_point or "",
        mount_type or "",
        (request.namespace.path if request.namespace is not None else None) or "",
    )
    known = _whats.get(what)
    if known is None:
        if len(_whats) > _MOST:
            _whats.clear()
        _whats[what] = known = what
    return Half(
        request_id,
        is_response,
        at,
        time,
        # one object for all halves that say the same: its hash is then quick
        known,
        who,
        request.remote_address or "",
        lease_id,
        error[:2000],
        accessor,
        kind,
        answer,
        block,
        number,
    )


def identity(auth: Auth) -> Who:
    """Policies and metadata stay JSON, as the device wrote it: it sorts its maps by key. Raises what msgspec raises."""
    said = (auth.display_name, auth.entity_id, auth.token_type, bytes(auth.policies), bytes(auth.metadata))
    known = _whos.get(said)
    if known is None:
        policies = _decode_policies(auth.policies) if said[3] else None
        metadata = _decode_metadata(auth.metadata) if said[4] else None
        known = (
            said[0] or "",
            said[1] or "",
            said[2] or "",
            _sorted.encode(policies).decode() if policies else "",
            _sorted.encode(metadata).decode() if metadata else "",
        )
        if not (known[0] or known[1] or known[3] or known[4]):
            # a request without a token still names a token type: that is nobody
            known = NOBODY
        if len(_whos) > _MOST:
            _whos.clear()
        _whos[said] = known
    return known


# what was read before, so that it is made once
_MOST = 50_000
_whats: dict[What, What] = {}
_whos: dict[tuple[str | None, str | None, str | None, bytes, bytes], Who] = {}


def outcome(
    path: str, request: Request, response: Response | None, lease_id: str, auth: Auth | None
) -> tuple[int, Answer | None]:
    """What a successful response did, and what of it the ledger must know."""
    if response is not None:
        if response.auth is not None:
            if (made := token_outcome(path, request, response.auth)) is not None:
                return made
        elif response.wrap_info is not None:
            return wrapped_outcome(path, request, response.wrap_info, auth)
    if lease_id:
        if path.startswith(RENEWS):
            return Kind.RENEW, Answer(data_lease_id=_text(named(request.data).lease_id))
        if response is not None and path == "sys/wrapping/unwrap":
            return Kind.UNWRAP, Answer(
                username=_text(named(response.data).username), data_token=_text(named(request.data).token)
            )
        if "/creds/" in path and not path.startswith("sys/") and response is not None:
            return Kind.READ, Answer(username=_text(named(response.data).username))
    elif path.startswith(ENDS) or (path.startswith(UNMOUNTS) and request.operation == "delete"):
        data = named(request.data)
        return Kind.END, Answer(
            data_lease_id=_text(data.lease_id), data_accessor=_text(data.accessor), data_token=_text(data.token)
        )
    elif "/static-creds/" in path and request.operation == "read" and not path.startswith("sys/"):
        return Kind.STATIC_READ, None
    return Kind.OTHER, None


def token_outcome(path: str, request: Request, auth: Auth) -> tuple[int, Answer] | None:
    """What was done about the token in a response's auth; None where nothing tells which token that is."""
    token = auth.client_token or ""
    if token == request.client_token:
        # a login that was sent with an older token shows that one there
        token = ""
    accessor = auth.accessor or (token if auth.token_type == "batch" else "")
    answer = Answer(new_accessor=accessor, new_who=identity(auth), new_token=token, ttl_seconds=seconds(auth.token_ttl))
    if not path.startswith("auth/"):
        # unwrapping hands out a token that was made before
        return None
    if path.startswith("auth/token/renew"):
        return (Kind.TOKEN_RENEW, answer) if accessor else None
    if path.startswith("auth/token/"):
        answer.is_orphan = is_orphan(path, request)
        return (Kind.TOKEN, answer) if accessor else None
    # who logged in is known even where it cannot be told by which of its tokens
    return (Kind.LOGIN, answer) if accessor or auth.token_type == "batch" else None


def wrapped_outcome(path: str, request: Request, wrap: WrapInfo, auth: Auth | None) -> tuple[int, Answer | None]:
    """What was done, where only the wrapping token came back: what is inside shows when it is unwrapped."""
    wrapped_in = tuple(text for text in (wrap.accessor or "", wrap.token or "") if text)
    if path == "sys/wrapping/rewrap":
        return Kind.REWRAP, Answer(data_token=_text(named(request.data).token), wrapped_in=wrapped_in)
    if wrap.wrapped_accessor and path.startswith("auth/") and not path.startswith("auth/token/renew"):
        answer = Answer(new_accessor=wrap.wrapped_accessor, wrapped_in=wrapped_in)
        if path.startswith("auth/token/"):
            answer.is_orphan = is_orphan(path, request)
            return Kind.TOKEN, answer
        if auth is not None and auth.accessor == wrap.wrapped_accessor:
            answer.new_who, answer.ttl_seconds = identity(auth), seconds(auth.token_ttl)
        return Kind.LOGIN, answer
    if "/creds/" in path and not path.startswith("sys/") and request.operation == "read":
        return Kind.READ, Answer(wrapped_in=wrapped_in)
    return Kind.OTHER, None


def is_orphan(path: str, request: Request) -> bool:
    """As far as the request tells: a token role may say so, too, and that is in no line."""
    return path.startswith("auth/token/create-orphan") or named(request.data).no_parent is True


def seconds(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def named(data: msgspec.Raw) -> Named:
    raw = bytes(data)
    return _decode_named(raw) if raw[:1] == b"{" else Named()


def refuse_endless(request_id: str, lease_id: str, accessor: str) -> None:
    for name, value in (("request.id", request_id), ("lease_id", lease_id), ("accessor", accessor)):
        if len(value) > LONGEST_ID:
            raise Rejected(f"{name} is longer than {LONGEST_ID} characters")


def moment(text: str) -> datetime:
    """RFC 3339 with any number of digits and any offset -> UTC, cut to microseconds. Raises Rejected."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Rejected(f"no time that can be read: {text[:40]!r}") from error


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= LONGEST_ID else ""
