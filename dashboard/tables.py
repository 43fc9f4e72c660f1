"""Rows as the pages lay them out: pure rearrangement of what the reads return."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from audit.hours import Hour
from audit.models import Coverage
from audit.timemachine import Held
from leases.models import Lease
from leases.queries import LiveCount, certainties


@dataclass(frozen=True, slots=True)
class LiveRow:
    vault: str
    database: str
    counts: list[int]
    total: int


@dataclass(frozen=True, slots=True)
class LiveMatrix:
    """Live leases: one row per database, one column per certainty that occurs."""

    certainties: list[str] = field(default_factory=list)
    rows: list[LiveRow] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    total: int = 0
    revoking: int = 0
    irrevocable: int = 0

    @property
    def vaults(self) -> int:
        return len({row.vault for row in self.rows})


def live_matrix(counts: list[LiveCount]) -> LiveMatrix:
    columns = certainties(counts)
    rows = []
    for (vault, database), group in groupby(counts, key=lambda count: (count["vault"], count["database"])):
        cells = dict.fromkeys(columns, 0)
        for count in group:
            cells[count["certainty"]] += count["count"]
        rows.append(LiveRow(vault, database, list(cells.values()), sum(cells.values())))
    # an unknown database reads best at the end
    rows.sort(key=lambda row: (row.database == "", row.vault, row.database))
    totals = [sum(column) for column in zip(*(row.counts for row in rows), strict=True)]
    in_state = {state: sum(c["count"] for c in counts if c["state"] == state) for state in ("revoking", "irrevocable")}
    return LiveMatrix(columns, rows, totals, sum(totals), in_state["revoking"], in_state["irrevocable"])


@dataclass(frozen=True, slots=True)
class Holder:
    """Who held leases; `first` is one of them, for its names."""

    first: Lease
    held: list[Held]


def by_holder(rows: Iterable[Held]) -> list[Holder]:
    """Leases that follow on one another and have one holder, under it."""

    def key(held: Held) -> tuple[str, ...]:
        lease = held.lease
        return lease.cluster, lease.pod_namespace, lease.pod, lease.service_account_namespace, lease.service_account

    groups = ([*group] for _, group in groupby(rows, key=key))
    return [Holder(group[0].lease, group) for group in groups]


HOURLY_SUMS = ("lines", "pairs", "unpaired", "duplicates", "rejected", "expired", "conflicts", "redacted")


def total(hours: Iterable[Hour]) -> Coverage:
    """The hours' counts added up, and the worst of their lags; a row that is in no table."""
    rows = [hour.row for hour in hours if hour.row]
    sums = {name: sum(getattr(row, name) for row in rows) for name in HOURLY_SUMS}
    return Coverage(**sums, lag_seconds=max((row.lag_seconds for row in rows), default=0.0))


# of a line that nobody understands; a page is no place for sixteen megabytes
MOST_CHARACTERS = 2000


def readable(line: bytes) -> str:
    """The beginning of a line, with whatever does not print (NULs, marks that turn the direction of writing) spelled out."""
    # a character has at most four bytes
    text = line[: 4 * MOST_CHARACTERS].decode(errors="backslashreplace")[:MOST_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:MOST_CHARACTERS]
