"""What a PDF is made of, gathered before it is laid out. Typed values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from audit.pack.controls import Framework
from audit.pack.values import Manifest


@dataclass(frozen=True, slots=True)
class Series:
    """Accesses in equal stretches of the period. `each`: their length in words."""

    counts: Sequence[tuple[datetime, int]] = ()
    each: str = ""


@dataclass(frozen=True, slots=True)
class Workloads:
    """Accesses by service account and database, most first. `rows` as text, in the order of WORKLOADS; cut where there are too many."""

    rows: Sequence[Sequence[str]] = ()
    total: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """`manifest` lacks the PDF itself and what is written after it. `hours`: by stream, the state of each stretch of the period."""

    manifest: Manifest
    series: Series = field(default_factory=Series)
    hours: Mapping[str, Sequence[str]] = field(default_factory=dict)
    workloads: Workloads = field(default_factory=Workloads)
    # with its header first
    sample: Sequence[Sequence[str]] = ()
    frameworks: Sequence[Framework] = ()
    # access reviews that were decided in the period: database, service account, decision, by, at, note
    decisions: Sequence[Sequence[str]] = ()


# the columns of workloads.csv
WORKLOADS = [
    "cluster",
    "namespace",
    "service_account",
    "database",
    "accesses",
    "pods",
    "exact",
    "inferred",
    "ambiguous",
    "service account",
    "unknown",
    "last_at",
]
