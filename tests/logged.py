"""Lines of requests for tests of the audit search: plain functions with sound defaults."""

import json
import uuid
from datetime import datetime
from typing import Any

from audit.models import Stream
from tests import factories

HASH = "hmac-sha256:" + "ab" * 32


def lines(at: datetime, **fields: Any) -> bytes:
    """The request line and the response line of one request.

    `fields`: id, path, operation, address, account ("shop/checkout"), error, accessor, policies.
    """
    namespace, _, name = str(fields.get("account", "shop/checkout")).partition("/")
    path = str(fields.get("path", "database/creds/my-role"))
    auth = {
        "client_token": HASH,
        "accessor": fields.get("accessor", HASH),
        "display_name": f"kubernetes-{namespace}-{name}",
        "entity_id": fields.get("entity", "c5661164-0bf7-92da-8203-a07412aa60f1"),
        "policies": fields.get("policies", ["default", f"{name}-read"]),
        "metadata": {"service_account_name": name, "service_account_namespace": namespace},
        "token_type": "service",
    }
    request = {
        "id": fields.get("id") or str(uuid.uuid4()),
        "operation": fields.get("operation", "read"),
        "path": path,
        "mount_point": f"{path.partition('/')[0]}/",
        "mount_type": "database",
        "namespace": {"id": "root"},
        "remote_address": fields.get("address", "127.30.0.7"),
    }
    written = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    first = {"time": written, "type": "request", "auth": auth, "request": request}
    second = {**first, "type": "response", "response": {"mount_type": "database"}}
    if "error" in fields:
        second["error"] = fields["error"]
    return b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in (first, second))


def log(at: datetime, *, stream: Stream | None = None, **fields: Any) -> str:
    """One request as a stream tells it; returns its id."""
    request_id = str(fields.setdefault("id", str(uuid.uuid4())))
    factories.read_lines(stream or factories.stream(), lines(at, **fields))
    return request_id
