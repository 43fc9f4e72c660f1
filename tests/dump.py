"""What the product knows of one vault, as plain values: ids of rows that repeat are spelled out, so that two dumps compare."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from leases.models import Vault

Row = tuple[Any, ...]

_EVENTS = """
    SELECT e.request, e.request_text, e.has_request, e.kind, e.own, w.entry_type, w.operation, w.path, w.mount_point, w.mount_type,
           w.namespace_path, p.display_name, p.entity_id, p.token_type, p.policies::text, p.metadata::text, a.text, l.text, x.text,
           e.at, e.response_at
    FROM audit_event e JOIN audit_what w ON w.id = e.what_id JOIN audit_who p ON p.id = e.who_id
    JOIN audit_text a ON a.id = e.address_id LEFT JOIN audit_text l ON l.id = e.lease_name_id
    LEFT JOIN audit_text x ON x.id = e.error_text_id WHERE e.vault_id = %s
"""
_HOURLY = """
    SELECT h.hour::text, h.kind, t.text, p.display_name, p.entity_id, p.policies::text, p.metadata::text, h.events, h.errors, h.own
    FROM audit_hourly h JOIN audit_text t ON t.id = h.target_id JOIN audit_who p ON p.id = h.who_id WHERE h.vault_id = %s
"""
_RENEWALS = """
    SELECT t.text, r.count, r.last_at FROM audit_renewals r JOIN audit_text t ON t.id = r.lease_name_id WHERE r.vault_id = %s
"""
_SIGHTINGS = """
    SELECT s.request, d.name, m.node, k.accessor, k.salt_epoch, s.request_block, s.response_block, s.at
    FROM audit_sighting s JOIN audit_stream m ON m.id = s.stream_id JOIN audit_device d ON d.id = m.device_id
    LEFT JOIN audit_token k ON k.id = s.token_id WHERE d.vault_id = %s
"""
_TOKENS = """
    SELECT d.name, k.salt_epoch, k.accessor, k.own_hash, p.accessor, g.request_id, k.renewed_at, k.ends_at
    FROM audit_token k JOIN audit_device d ON d.id = k.device_id
    JOIN leases_login g ON g.id = k.login_id LEFT JOIN audit_token p ON p.id = k.parent_id WHERE d.vault_id = %s
"""
_WRAPPINGS = """
    SELECT d.name, w.salt_epoch, w.key, w.request_id, w.path, w.address, w.accessor, w.rewraps, w.at
    FROM audit_wrapping w JOIN audit_device d ON d.id = w.device_id WHERE d.vault_id = %s
"""
_UNWRAPPINGS = """
    SELECT d.name, u.salt_epoch, u.key, u.request_id, u.lease_id, u.username, u.address, u.at
    FROM audit_unwrapping u JOIN audit_device d ON d.id = u.device_id WHERE d.vault_id = %s
"""
_LEASETOKENS = """
    SELECT l.lease_id, d.name, k.salt_epoch, k.accessor FROM audit_leasetoken j JOIN audit_token k ON k.id = j.token_id
    JOIN audit_device d ON d.id = k.device_id JOIN leases_lease l ON l.id = j.lease_id WHERE l.vault_id = %s
"""
_HASHES = """
    SELECT d.name, h.salt_epoch, h.of, h.hash, t.text FROM audit_hash h JOIN audit_device d ON d.id = h.device_id
    JOIN audit_text t ON t.id = h.lease_name_id WHERE d.vault_id = %s
"""
_ENDINGS = """
    SELECT d.name, e.salt_epoch, e.request_id, e.by, e.target, e.path, e.namespace_path, e.display_name, e.at
    FROM audit_ending e JOIN audit_device d ON d.id = e.device_id WHERE e.vault_id = %s
"""
_COVERAGE = """
    SELECT d.name, m.node, c.hour::text, c.lines, c.pairs, c.unpaired, c.duplicates, c.rejected, c.expired, c.conflicts, c.redacted,
           c.lag_seconds
    FROM audit_coverage c JOIN audit_stream m ON m.id = c.stream_id JOIN audit_device d ON d.id = m.device_id WHERE d.vault_id = %s
"""
# the logins' keys aside, which another vault's rows take
_LOGIN = """
    request_id, mount_path, auth_mount_id, address, display_name, entity_id, policies::text, token_type, metadata::text,
    service_account_namespace, service_account, own, claimed_pod, claimed_pod_uid, claimed_node, is_orphan, was_wrapped, end_reason, logged_in_at,
    expires_at, ended_at
"""
_LOGINS = f"""
    SELECT {", ".join(f"l.{name.strip()}" for name in _LOGIN.split(","))}, p.request_id, o.request_id
    FROM leases_login l LEFT JOIN leases_login p ON p.id = l.parent_id LEFT JOIN leases_login o ON o.id = l.origin_id
    WHERE l.vault_id = %s
"""
# the same of leases, and when somebody asked for a lookup
_LEASE = """
    lease_id, vault_namespace, mount, role, database_user, database_user_by, state, renewals, renewable, revoke_error, end_reason, end_evidence,
    end_seen_reason, end_seen_evidence, request_id, source_ip, unwrapped_from, certainty, certainty_reason, cluster, service_account_namespace,
    service_account, pod_namespace, pod, pod_uid, attribution_open, issued_at, expires_at, last_renewal_at, ended_at, end_seen_at,
    accessed_at, looked_up_at
"""
_LINKED = f"""
    SELECT {", ".join(f"l.{name.strip()}" for name in _LEASE.split(","))}, g.request_id
    FROM leases_lease l LEFT JOIN leases_login g ON g.id = l.login_id WHERE l.vault_id = %s
"""


def dump(vault: Vault) -> dict[str, list[Row]]:
    """What any order of the same lines must lead to, whichever device tells them."""
    return {
        "events": _rows(_EVENTS, vault),
        "hourly": _rows(_HOURLY, vault),
        "renewals": _rows(_RENEWALS, vault),
        "logins": _rows(_LOGINS, vault),
        "leases": _rows(_LINKED, vault),
    }


def dump_of_devices(vault: Vault) -> dict[str, list[Row]]:
    """What any order of the same lines of the same devices must lead to: rows that bear HMACs, and coverage but for its lag."""
    return {
        "sightings": [(*row[:5], row[5] is not None, row[6] is not None, *row[7:]) for row in _rows(_SIGHTINGS, vault)],
        "tokens": _rows(_TOKENS, vault),
        "leasetokens": _rows(_LEASETOKENS, vault),
        "hashes": _rows(_HASHES, vault),
        "endings": _rows(_ENDINGS, vault),
        "wrappings": _rows(_WRAPPINGS, vault),
        "unwrappings": _rows(_UNWRAPPINGS, vault),
        "coverage": [row[:-1] for row in _rows(_COVERAGE, vault)],
    }


def dump_of_rows(vault: Vault) -> dict[str, list[Row]]:
    """What making it all again must lead to: every row, with the keys that pages link by and the blocks that hold the lines."""
    return {
        **dump(vault),
        **dump_of_devices(vault),
        "sightings": _rows(_SIGHTINGS, vault),
        "coverage": _rows(_COVERAGE, vault),
        "logins": _rows("SELECT * FROM leases_login WHERE vault_id = %s", vault),
        "leases": _rows(
            "SELECT to_jsonb(l) - 'updated_at' - 'sessions_due' FROM leases_lease l WHERE vault_id = %s", vault
        ),
        "streams": _rows(
            "SELECT to_jsonb(m) FROM audit_stream m JOIN audit_device d ON d.id = m.device_id WHERE d.vault_id = %s",
            vault,
        ),
        "rejected": _rows(
            "SELECT to_jsonb(r) FROM audit_rejectedline r JOIN audit_stream m ON m.id = r.stream_id"
            " JOIN audit_device d ON d.id = m.device_id WHERE d.vault_id = %s",
            vault,
        ),
        "conflicts": _rows(
            "SELECT to_jsonb(r) FROM audit_conflict r JOIN audit_stream m ON m.id = r.stream_id"
            " JOIN audit_device d ON d.id = m.device_id WHERE d.vault_id = %s",
            vault,
        ),
    }


def differences(
    one: dict[str, list[Row]], other: dict[str, list[Row]], *, within: timedelta | None = None
) -> list[str]:
    """The rows that differ, table by table; empty if all are equal. `within`: times may be apart by so much."""
    found = []
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name, []), other.get(name, [])
        if len(first) != len(second):
            found.append(f"{name}: {len(first)} rows and {len(second)}")
        found += [
            f"{name}:\n  {a}\n  {b}"
            for a, b in zip(first, second, strict=False)
            if len(a) != len(b) or not all(_same(x, y, within) for x, y in zip(a, b, strict=True))
        ]
    return found


def _same(one: Any, other: Any, within: timedelta | None) -> bool:
    if within is not None and isinstance(one, datetime) and isinstance(other, datetime):
        return abs(one - other) <= within
    return bool(one == other)


def _rows(query: str, vault: Vault) -> list[Row]:
    with connection.cursor() as cursor:
        cursor.execute(query, [vault.pk])
        # times last in every row: those of two devices are apart by microseconds, and would change the order of rows
        by: Callable[[Row], str] = lambda row: str([item for item in row if not isinstance(item, datetime)])  # noqa: E731
        return sorted(cursor.fetchall(), key=lambda row: (by(row), str(row)))
