"""How fast a vault is told to revoke: one pace for all workers and all jobs, by reserving moments in PostgreSQL.

A single revocation takes the next moment, so it never stands behind a job. Moments that nobody took are lost: no bursts.
"""

from django.db import connection

from leases.models import Vault

# the server's clock, so that workers on several machines agree
_RESERVE = """
    INSERT INTO leases_pace AS p (vault_id, free_at) VALUES (%(vault)s, clock_timestamp() + %(step)s * interval '1 second')
    ON CONFLICT (vault_id) DO UPDATE
      SET free_at = greatest(p.free_at, clock_timestamp()) + %(step)s * interval '1 second'
      WHERE p.free_at <= clock_timestamp() + %(most)s * interval '1 second'
    RETURNING extract(epoch FROM p.free_at - %(step)s * interval '1 second' - clock_timestamp())
"""
_HOLD = """
    INSERT INTO leases_pace AS p (vault_id, free_at) VALUES (%(vault)s, clock_timestamp() + %(step)s * interval '1 second')
    ON CONFLICT (vault_id) DO UPDATE SET free_at = greatest(p.free_at, excluded.free_at)
"""


def reserve(vault: Vault, *, most: float) -> float | None:
    """Seconds until this vault may be told of one more revocation, which is then the caller's; None if it is more than `most`."""
    with connection.cursor() as cursor:
        step = 1 / max(1, vault.revocations_per_second)
        cursor.execute(_RESERVE, {"vault": vault.pk, "step": step, "most": most})
        row = cursor.fetchone()
    return max(0.0, float(row[0])) if row else None


def hold(vault: Vault, *, seconds: float) -> None:
    """Nobody asks this vault for so long: it does not answer."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLD, {"vault": vault.pk, "step": seconds})
