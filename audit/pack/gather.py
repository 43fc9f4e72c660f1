"""What a PDF shows beyond the manifest: accesses over time and by workload, the states of hours, the sample. Reads only."""

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timedelta

from audit.exports import Row
from audit.findings.facts import rows_of
from audit.hours import State
from audit.pack import controls, coverage
from audit.pack.figures import ACCESSED, DATABASE, FROM
from audit.pack.pdf.content import WORKLOADS, Content, Series, Workloads
from audit.pack.pdf.parts import MOST_ROWS, utc
from audit.pack.values import Manifest

# columns of the chart, at most, and marks of a stream's strip
MOST_COLUMNS = 120
STEPS = [
    (timedelta(minutes=1), "a minute"),
    (timedelta(minutes=5), "5 minutes"),
    (timedelta(minutes=15), "15 minutes"),
    (timedelta(hours=1), "an hour"),
    (timedelta(hours=6), "6 hours"),
    (timedelta(days=1), "a day"),
    (timedelta(days=7), "a week"),
    (timedelta(days=30), "30 days"),
]


def content(made: Manifest, *, sample: bytes, by_workload: Sequence[Row], now: datetime) -> Content:
    """`made`: the manifest so far; `sample`: sample.csv; `by_workload`: the rows of workloads.csv."""
    period = {"from_at": made.from_at, "to_at": made.to_at}
    return Content(
        manifest=made,
        series=series(**period),
        hours=hours(from_at=made.from_at, until=made.completeness.judged_until, now=now),
        workloads=Workloads([_texts(row) for row in by_workload[:MOST_ROWS]], len(by_workload)),
        sample=list(csv.reader(io.StringIO(sample.decode(), newline=""))),
        frameworks=controls.read([controls.SHIPPED]),
    )


def step_for(length: timedelta) -> tuple[timedelta, str]:
    """The shortest stretch of which not too many fill the period, and its words. Pure."""
    return next((one for one in STEPS if length <= MOST_COLUMNS * one[0]), STEPS[-1])


def series(*, from_at: datetime, to_at: datetime) -> Series:
    """Accesses in equal stretches, those without any too, counted from the period's beginning."""
    step, each = step_for(to_at - from_at)
    rows = rows_of(
        f"""
        SELECT floor(extract(epoch FROM l.accessed_at - %(from)s) / %(step)s)::bigint, count(*)
        FROM leases_lease l WHERE {ACCESSED} GROUP BY 1
        """,  # noqa: S608
        {"from": from_at, "to": to_at, "step": step.total_seconds()},
    )
    counts = {int(number): int(count) for number, count in rows}
    if not counts:
        return Series()
    columns = -(-(to_at - from_at) // step)
    return Series([(from_at + i * step, counts.get(i, 0)) for i in range(columns)], each)


def hours(*, from_at: datetime, until: datetime, now: datetime) -> dict[str, list[str]]:
    """By stream that is judged, the worst state of each stretch of the period."""
    return {
        str(read.stream): stretches([str(one.state) for one in read.hours])
        for read in coverage.streams(from_at=from_at, until=until, now=now)
        if read.counts
    }


def stretches(states: Sequence[str]) -> list[str]:
    """At most MOST_COLUMNS of these, each as its worst. Pure."""
    order = [str(state) for state in State]
    size = -(-len(states) // MOST_COLUMNS) or 1
    return [max(states[i : i + size], key=order.index) for i in range(0, len(states), size)]


def _texts(row: Row) -> list[str]:
    return [f"{row[name]:,}" if isinstance(row[name], int) else _shown(row[name]) for name in WORKLOADS]


def _shown(value: object) -> str:
    return utc(value) if isinstance(value, datetime) else str(value)


def workloads(*, from_at: datetime, to_at: datetime) -> list[Row]:
    """Accesses by service account and database, most first: the rows of workloads.csv. An empty account is nobody known."""
    rows = rows_of(
        f"""
        SELECT l.cluster, l.service_account_namespace, l.service_account, {DATABASE}, count(*),
          count(DISTINCT NULLIF(l.pod_uid, '')),
          count(*) FILTER (WHERE l.certainty = 'exact'), count(*) FILTER (WHERE l.certainty = 'inferred'),
          count(*) FILTER (WHERE l.certainty = 'ambiguous'), count(*) FILTER (WHERE l.certainty = 'service account'),
          count(*) FILTER (WHERE l.certainty = 'unknown'), max(l.accessed_at)
        FROM {FROM} WHERE {ACCESSED} GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4
        """,  # noqa: S608
        {"from": from_at, "to": to_at},
    )
    return [dict(zip(WORKLOADS, row, strict=True)) for row in rows]
