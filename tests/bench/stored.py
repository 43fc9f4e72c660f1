"""Bytes stored for each request: rows, indexes and raw blocks together, and where they are."""

from tests.bench.database import Size
from tests.bench.figures import Figure


def figure(before: dict[str, Size], after: dict[str, Size], *, requests: int) -> Figure:
    grown = sum(size.total for size in after.values()) - sum(size.total for size in before.values())
    return Figure("bytes stored per request", grown / requests, at_most=500)


def table(after: dict[str, Size], *, requests: int) -> str:
    """One line for each table that has rows, the biggest first."""
    lines = [f"  {'':<28}{'rows':>12}{'heap MB':>10}{'index MB':>10}{'toast MB':>10}{'B/request':>11}"]
    for size in sorted(after.values(), key=lambda size: -size.total):
        if size.rows:
            parts = "".join(f"{part / 1024 / 1024:>10.1f}" for part in (size.heap, size.indexes, size.toast))
            lines.append(f"  {size.table:<28}{size.rows:>12,}{parts}{size.total / requests:>11.1f}")
    return "\n".join(lines)
