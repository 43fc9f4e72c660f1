"""What this product's own requests cost a vault: how many of each kind, and how many bytes of audit log they caused.

The bytes are estimated when a request is sent, by sizes that were measured; tests hold them to a real log within a fifth. Counts wait
in memory until flush(), because lookups send from threads.
"""

from collections import Counter
from datetime import datetime
from threading import Lock
from typing import NamedTuple

from django.db import connection

from leases.models.costs import ApiCost
from leases.vault import Sent

Kind = ApiCost.Kind

# of the two lines of a request, with nobody's name in them
BASE = {
    Kind.LOOKUP: 2_950,
    Kind.LIST: 2_450,
    Kind.HASH: 2_730,
    # of the paths that the check of the account names
    Kind.CAPABILITIES: 4_750,
    Kind.LOGIN: 2_350,
    Kind.OTHER: 2_850,
}
# a listed name: its HMAC, quotes and a comma
KEY = 79

_lock = Lock()
_requests: Counter[tuple[int, str]] = Counter()
_bytes: Counter[tuple[int, str]] = Counter()


def kind_of(sent: Sent) -> ApiCost.Kind:
    if sent.path.startswith("sys/leases/lookup"):
        return Kind.LIST if sent.method == "list" else Kind.LOOKUP
    if sent.path.startswith("sys/audit-hash/"):
        return Kind.HASH
    if sent.path == "sys/capabilities-self":
        return Kind.CAPABILITIES
    if sent.path.startswith("auth/"):
        return Kind.LOGIN
    return Kind.OTHER


class Devices(NamedTuple):
    """How many write each request down, and how many of these the names that a LIST answers."""

    all: int = 1
    listing: int = 1


def audit_bytes(sent: Sent, devices: Devices) -> int:
    """What the devices write for it."""
    base = BASE[Kind.LIST if sent.method == "list" else kind_of(sent)]
    return (base + 2 * sent.identity) * devices.all + KEY * sent.keys * devices.listing


def note(vault_id: int, devices: Devices, sent: Sent) -> None:
    """Counts a request; from any thread."""
    kind = kind_of(sent).value
    with _lock:
        _requests[vault_id, kind] += 1
        _bytes[vault_id, kind] += audit_bytes(sent, devices)


def flush(*, now: datetime) -> None:
    """Writes down what was counted since the last time."""
    with _lock:
        rows = sorted((vault, kind, count, _bytes[vault, kind]) for (vault, kind), count in _requests.items())
        _requests.clear()
        _bytes.clear()
    if not rows:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO leases_apicost AS c (vault_id, kind, requests, audit_bytes, hour, first_at)
            SELECT u.vault, u.kind, u.requests, u.bytes, date_trunc('hour', %s::timestamptz, 'UTC'), %s
            FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[]) AS u (vault, kind, requests, bytes)
            WHERE EXISTS (SELECT 1 FROM leases_vault v WHERE v.id = u.vault)
            ON CONFLICT (vault_id, hour, kind) DO UPDATE SET
              requests = c.requests + excluded.requests, audit_bytes = c.audit_bytes + excluded.audit_bytes
            """,
            [now, now, *[list(column) for column in zip(*rows, strict=True)]],
        )
