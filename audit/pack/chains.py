"""Where the chains of raw blocks stood at both ends of a period, so that the database can be held to it later."""

from datetime import datetime
from typing import Any

from django.db import connection

from audit.models import HeadsDocument
from audit.pack.values import BlockAt, Chain, SignedHeads


def chains(*, from_at: datetime, to_at: datetime) -> list[Chain]:
    """Of every stream, by name. A block's own time is that of its newest line."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH bounds AS (
              SELECT s.id, v.name AS vault, d.name AS device, s.node, s.sequence AS made, s.head,
                COALESCE((SELECT min(b.sequence) - 1 FROM audit_rawblock b WHERE b.stream_id = s.id AND b.until >= %(from)s),
                         s.sequence) AS start,
                COALESCE((SELECT GREATEST(max(b.sequence) FILTER (WHERE b.until < %(to)s),
                                          min(b.sequence) FILTER (WHERE b.until >= %(to)s))
                          FROM audit_rawblock b WHERE b.stream_id = s.id), s.sequence) AS end
              FROM audit_stream s JOIN audit_device d ON d.id = s.device_id JOIN leases_vault v ON v.id = d.vault_id
            ), lines AS (
              SELECT o.id, sum(b.lines) FILTER (WHERE b.sequence <= o.start) AS start,
                sum(b.lines) FILTER (WHERE b.sequence <= o.end) AS end, sum(b.lines) FILTER (WHERE b.sequence <= o.made) AS made
              FROM bounds o JOIN audit_rawblock b ON b.stream_id = o.id GROUP BY o.id
            )
            SELECT o.vault, o.device, o.node, o.start, COALESCE(first.sha256, ''), COALESCE(lines.start, 0),
              o.end, COALESCE(last.sha256, ''), COALESCE(lines.end, 0), o.made, o.head, COALESCE(lines.made, 0)
            FROM bounds o
            LEFT JOIN audit_rawblock first ON first.stream_id = o.id AND first.sequence = o.start
            LEFT JOIN audit_rawblock last ON last.stream_id = o.id AND last.sequence = o.end
            LEFT JOIN lines ON lines.id = o.id
            ORDER BY o.vault, o.device, o.node
            """,
            {"from": from_at, "to": to_at},
        )
        return [chain_of(*row) for row in cursor.fetchall()]


def chain_of(vault: str, device: str, node: str, *blocks: Any) -> Chain:
    """`blocks`: number, SHA-256 and lines, of start, end and made."""
    start, end, made = (BlockAt(blocks[at], blocks[at + 1], int(blocks[at + 2])) for at in (0, 3, 6))
    return Chain(vault, device, node, start, end, made)


def signed_heads(*, from_at: datetime, to_at: datetime) -> SignedHeads:
    within = (
        HeadsDocument.objects.filter(at__gte=from_at, at__lt=to_at).order_by("number").values_list("number", flat=True)
    )
    after = HeadsDocument.objects.filter(at__gte=to_at).order_by("number").values_list("number", flat=True)
    return SignedHeads(within.first(), within.last(), within.count(), after.first())
