"""Real audit lines -> templates: what differs between sessions becomes a name, what differs between lines a `%s`."""

import json
import re
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"
# a request's two lines, request first
Shape = tuple[bytes, bytes]

# in the file's order of lines; two requests of the session overlap, so lines are paired by id
_NAMES = {
    "auth/kubernetes/login": "login",
    "auth/token/renew-self": "renew-self",
    "auth/token/lookup-self": "lookup-self",
    "sys/internal/ui/mounts/database/creds/my-role": "ui-mounts",
    "database/creds/my-role": "credential",
    "sys/leases/renew": "renew",
    "secret/data/shop/storefront/smtp": "secret",
    "secret/data/shop/billing/stripe": "denied",
    "database/creds/no-such-role": "unknown-role",
}
_HASH = rb"hmac-sha256:[0-9a-f]{64}"


def shapes() -> dict[str, Shape]:
    """Name of a request -> its lines with `%(name)s` for a session's values, and `%%s` twice: time and request id."""
    lines: dict[str, dict[str, bytes]] = {}
    for line in (DATA / "session.ndjson").read_bytes().splitlines() + (
        DATA / "requests.ndjson"
    ).read_bytes().splitlines():
        entry = json.loads(line)
        path = entry["request"]["path"]
        name = "revoke" if path.startswith("sys/leases/revoke/") else _NAMES[path]
        lines.setdefault(name, {})[entry["type"]] = template(line)
    made = {name: (pair["request"], pair["response"]) for name, pair in lines.items()}
    made["denied-credential"] = (_of_database(made["denied"][0]), _of_database(made["denied"][1]))
    return made


def template(line: bytes) -> bytes:
    """The line with names in it; time and request id come in a second step, for each line."""
    entry = json.loads(line)
    line = line.replace(b"%", b"%%%%")
    for value, name in _values(entry):
        line = line.replace(json.dumps(value).encode(), b'"%%(%s)s"' % name)
    for pattern, put in _PATTERNS:
        line = re.sub(pattern, put, line)
    return line


def _values(entry: dict[str, dict[str, dict[str, str]]]) -> list[tuple[object, bytes]]:
    """Values of this line that a session chooses, wherever in the line they stand."""
    auth, request, response = entry["auth"], entry["request"], entry.get("response", {})
    token = {**auth, **response.get("auth", {})}
    found: list[tuple[object, bytes]] = [
        (token.get("client_token"), b"token"),
        (token.get("accessor"), b"accessor"),
        (token.get("entity_id"), b"entity"),
        (request["path"], b"path"),
        (request["remote_address"], b"address"),
    ]
    return [(value, name) for value, name in found if value]


# the order counts: time and id are the first two `%s` of the finished line
_PATTERNS: tuple[tuple[bytes, bytes], ...] = (
    (rb'^\{"time":"[^"]*"', rb'{"time":"%%s"'),
    (rb'"request":\{"id":"[^"]*"', rb'"request":{"id":"%%s"'),
    (rb'"remote_port":\d+', rb'"remote_port":%(port)s'),
    (rb'"entity_created":true,', rb""),  # once for each service account, long before this log
    (rb'"token_ttl":\d+', rb'"token_ttl":3600'),
    (rb'"creation_ttl":\d+', rb'"creation_ttl":3600'),
    (rb'"(token_issue_time|issue_time)":"[^"]*"', rb'"\1":"%(issued)s"'),
    (rb'"expire_time":"[^"]*"', rb'"expire_time":"%(expires)s"'),
    (rb'"creation_time":\d+', rb'"creation_time":%(issued_epoch)s'),
    (rb'"kubernetes-shop-storefront"', rb'"kubernetes-%(namespace)s-%(service_account)s"'),
    (rb'"shop-storefront"', rb'"%(namespace)s-%(service_account)s"'),
    (rb'"service_account_name":"storefront"', rb'"service_account_name":"%(service_account)s"'),
    (rb'"service_account_namespace":"shop"', rb'"service_account_namespace":"%(namespace)s"'),
    (rb'"service_account_uid":"[0-9a-f-]{36}"', rb'"service_account_uid":"%(uid)s"'),
    (rb'"mount_point":"database/"', rb'"mount_point":"%(mount)s/"'),
    # the files come from two servers
    (rb'"mount_accessor":"([a-z_]+)_[0-9a-f]{8}"', rb'"mount_accessor":"\1_5d1c07ae"'),
    # a secret is the same for all who read it, a database password is new each time
    (rb'("host":"' + _HASH + rb'","password"):"' + _HASH + rb'"', rb'\1:"hmac-sha256:%(secret)s"'),
    (rb'"(jwt|password|username|host|user)":"' + _HASH + rb'"', rb'"\1":"hmac-sha256:%(\1)s"'),
    (rb'("data":\{"increment":0,"lease_id"):"' + _HASH + rb'"', rb'\1:"hmac-sha256:%(lease_hash)s"'),
    (rb'"lease_id":"database/[^"]*"', rb'"lease_id":"%(lease)s"'),
)


def _of_database(line: bytes) -> bytes:
    """A denied read of a secret as one of a credential."""
    line = line.replace(
        b'"mount_point":"secret/","mount_type":"kv"', b'"mount_point":"%(mount)s/","mount_type":"database"'
    )
    return line.replace(b'"mount_accessor":"kv_', b'"mount_accessor":"database_')
