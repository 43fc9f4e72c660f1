"""The numbers for Prometheus, read from the database at each scrape, so that every web process tells the same."""

from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import audit.queries
from audit import heads, retention
from audit.findings import queries as findings
from audit.models import Housekeeping, Signing
from audit.notices import queries as notices
from audit.queries import DatabaseLogStatus
from leases import queries, session_queries
from leases.version import VERSION

STREAM_COUNTERS = {
    "lines": "Audit lines read: the sum of parts, duplicates, rejected, expired and conflicts",
    "parts": "Lines that became a part of an event",
    "duplicates": "Audit lines that were there already",
    "rejected": "Lines that are no audit entry",
    "expired": "Lines older than retention",
    "redacted": "Lines in which token-shaped text was redacted",
    "conflicts": "Lines whose key was known with other content",
}

DATABASE_LOG_COUNTERS = {
    "lines": "Records of a database server's log that were read",
    "invalid": "Records that are no entry of its format",
    "connections": "Sessions of dynamic users whose begin it told",
    "disconnections": "Sessions of dynamic users whose end it told",
    "rejected": "Log-ins of dynamic users that the server refused",
}


class LedgerCollector(Collector):
    """One scrape's worth of reads; registered with a registry of its own, never the global one."""

    def __init__(self, *, now: datetime) -> None:
        self.now = now

    def describe(self) -> list[Metric]:
        return []  # registering must not read the database

    def collect(self) -> Iterator[Metric]:
        yield _gauge("leasehold_build_info", "The running version", ["version"], [([VERSION], 1)])
        yield _gauge(
            "leasehold_leases_live",
            "Leases that have not ended",
            ["vault", "database", "certainty", "state"],
            [([c["vault"], c["database"], c["certainty"], c["state"]], c["count"]) for c in queries.live_counts()],
        )
        yield _gauge(
            "leasehold_revocations",
            "Revocations by state",
            ["state"],
            [([count["state"]], count["count"]) for count in queries.revocations_by_state()],
        )
        yield _gauge(
            "leasehold_jobs",
            "Jobs that end leases, by state; leasehold_revocations counts their items",
            ["state"],
            [([count["state"]], count["count"]) for count in queries.jobs_by_state()],
        )
        yield _gauge(
            "leasehold_findings_open",
            "Findings that are open, by what they are",
            ["kind", "severity"],
            [([found.kind, found.word], found.count) for found in findings.open_counts()],
        )
        look = findings.last_look()
        yield _gauge(
            "leasehold_findings_looked_timestamp_seconds",
            "When the rules that make findings were last run; more than three minutes ago is too long",
            [],
            [([], look.at.timestamp())] if look else [],
        )
        yield _gauge(
            "leasehold_findings_look_seconds",
            "How long that took",
            [],
            [([], look.seconds)] if look else [],
        )
        streams = audit.queries.stream_statuses(now=self.now)
        logs = audit.queries.database_logs(now=self.now)
        followed = [status.source for status in streams] + [status.source for status in logs]
        sources = [*queries.sources(now=self.now), *followed]
        yield _gauge(
            "leasehold_source_up",
            "1 where a source answers and its answer is fresh",
            ["kind", "name"],
            [([source.kind, source.name], int(source.ok)) for source in sources],
        )
        watched = queries.watched_clusters()
        yield _gauge(
            "leasehold_cluster_watched_timestamp_seconds",
            "Until when it is proven that no change of a pod was missed",
            ["cluster"],
            [([one.cluster.name], one.until.timestamp()) for one in watched if one.until],
        )
        yield _gauge(
            "leasehold_cluster_unwatched_kinds",
            "Kinds of objects (owners of pods, service accounts) that the cluster does not let us watch",
            ["cluster"],
            [([one.cluster.name], one.unwatched) for one in watched],
        )
        yield from _sessions(now=self.now)
        yield from _costs()
        yield from _sampling()
        yield from _house(now=self.now)
        yield from _heads()
        yield from _notices()
        labelled = [
            ([status.stream.device.vault.name, status.stream.device.name, status.stream.node], status)
            for status in streams
        ]
        yield _gauge(
            "leasehold_stream_lag_seconds",
            "Age of the last line read where more is waiting",
            ["vault", "device", "node"],
            [(labels, status.lag_seconds) for labels, status in labelled],
        )
        yield _gauge(
            "leasehold_stream_lag_bytes",
            "Bytes of the file that are not read yet",
            ["vault", "device", "node"],
            [(labels, status.stream.unread_bytes) for labels, status in labelled],
        )
        yield _gauge(
            "leasehold_stream_last_line_timestamp_seconds",
            "The newest line's own time",
            ["vault", "device", "node"],
            [(labels, at.timestamp()) for labels, status in labelled if (at := status.stream.last_line_at)],
        )
        yield _gauge(
            "leasehold_stream_read_timestamp_seconds",
            "When the stream's file was last looked at, or its last batch was pushed",
            ["vault", "device", "node"],
            [(labels, status.stream.read_at.timestamp()) for labels, status in labelled if status.stream.read_at],
        )
        yield from _database_logs(logs)
        gaps = audit.queries.gaps_by_stream()
        counters = [
            (name, text, [(labels, getattr(status.stream, name)) for labels, status in labelled])
            for name, text in STREAM_COUNTERS.items()
        ]
        counters.append(
            (
                "gaps",
                "Records of lines that are known to be missing, closed ones too",
                [(labels, gaps.get(status.stream.pk, 0)) for labels, status in labelled],
            )
        )
        for name, text, values in counters:
            yield _counter(f"leasehold_stream_{name}", text, ["vault", "device", "node"], values)


def _counter(name: str, text: str, labels: list[str], values: list[tuple[list[str], float]]) -> Metric:
    counter = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        counter.add_metric(label_values, value)
    return counter


def _sessions(*, now: datetime) -> Iterator[Metric]:
    """One sample for each database of a watched vault, 0 where it has none: so that what comes can be seen to come."""
    rows = [(row.pk, [row.vault.name, row.mount, row.name]) for row in queries.databases()]
    labels = ["vault", "mount", "database"]
    for name, text, counts in (
        (
            "leasehold_sessions_open",
            "Sessions of dynamic users that have not ended, as far as they are sampled or logged",
            session_queries.open_by_database(),
        ),
        (
            "leasehold_sessions_elsewhere",
            "Sessions that began within 24 h and came from elsewhere than their lease's holder",
            session_queries.elsewhere_by_database(now=now),
        ),
    ):
        yield _gauge(name, text, labels, [(values, counts.get(pk, 0)) for pk, values in rows])


def _costs() -> Iterator[Metric]:
    rows = queries.costs_ever()
    labels = ["vault", "kind"]
    yield _counter(
        "leasehold_vault_requests",
        "Leasehold's own requests that audit devices log",
        labels,
        [([v, k], n) for v, k, n, _ in rows],
    )
    yield _counter(
        "leasehold_vault_audit_bytes",
        "Bytes of audit log that these caused, about",
        labels,
        [([v, k], size) for v, k, _, size in rows],
    )


def _sampling() -> Iterator[Metric]:
    labels = ["vault", "mount", "database"]
    rows = [([row.database.vault.name, row.database.mount, row.database.name], row) for row in queries.sampling_rows()]
    yield _counter(
        "leasehold_session_samples",
        "Samples of the sessions on a database's server",
        labels,
        [(names, row.samples) for names, row in rows],
    )
    yield _counter(
        "leasehold_session_sample_seconds",
        "Time that these took on the server, by its own clock",
        labels,
        [(names, row.total_ms / 1000) for names, row in rows],
    )
    yield _gauge(
        "leasehold_sessions_sampled",
        "Sessions of dynamic users in the last sample, of the whole server",
        labels,
        [(names, row.sessions) for names, row in rows],
    )
    yield _gauge(
        "leasehold_session_sample_interval_seconds",
        "Time between two samples; it grows where one costs the server much",
        labels,
        [(names, row.interval_seconds) for names, row in rows],
    )
    yield _gauge(
        "leasehold_session_sampled_timestamp_seconds",
        "When the last sample was taken",
        labels,
        [(names, row.sampled_at.timestamp()) for names, row in rows if row.sampled_at],
    )


def _house(*, now: datetime) -> Iterator[Metric]:
    house = Housekeeping.objects.filter(pk=1).first()
    ages = [((now - house.kept_at).total_seconds(), house.cause)] if house else []
    yield _gauge(
        "leasehold_partition_days_ahead",
        "Days after today for which events have a partition; below 2 nobody keeps the house",
        [],
        [([], retention.days_ahead(now=now))],
    )
    yield _gauge(
        "leasehold_housekeeping_age_seconds",
        "Since all that retention wants was done; more than 26 hours are too long",
        [],
        [([], age) for age, _ in ages],
    )
    yield _gauge(
        "leasehold_housekeeping_ok",
        "0 where something keeps it from being done, such as an archive that cannot be written; doctor says what",
        [],
        [([], int(not cause)) for _, cause in ages],
    )


def _heads() -> Iterator[Metric]:
    """Without samples where no heads are to be signed."""
    state = Signing.objects.filter(pk=1).first()
    until = heads.delivered_until() if state else None
    yield _gauge(
        "leasehold_heads_signed_timestamp_seconds",
        "When the newest heads were signed of those that were delivered to every place; more than two hours ago is too long",
        [],
        [([], until.timestamp())] if until else [],
    )
    yield _gauge(
        "leasehold_heads_waiting",
        "Signed documents that do not lie in every place yet",
        [],
        [([], heads.waiting().count())] if state else [],
    )
    yield _gauge(
        "leasehold_heads_ok",
        "0 where something keeps heads from being signed or delivered; doctor says what",
        [],
        [([], int(not state.cause))] if state else [],
    )


def _notices() -> Iterator[Metric]:
    """Without samples where nobody is told."""
    told = notices.told_how()
    yield _counter(
        "leasehold_notices",
        "Messages about findings that ended: sent, or given up after 24 hours",
        ["receiver", "state"],
        [
            ([one.receiver.name, state], ended.count)
            for one in told
            for state, ended in (("sent", one.sent), ("given up", one.given_up))
        ],
    )
    yield _gauge(
        "leasehold_notices_waiting",
        "Findings of which a receiver is still to be told",
        ["receiver"],
        [([one.receiver.name], one.waiting) for one in told],
    )
    yield _gauge(
        "leasehold_notices_failing",
        "1 where a receiver of notices cannot be told; doctor says why",
        ["receiver"],
        [([one.receiver.name], int(one.failing)) for one in told],
    )


def _database_logs(statuses: list[DatabaseLogStatus]) -> Iterator[Metric]:
    labelled = [([status.log.path], status) for status in statuses]
    yield _gauge(
        "leasehold_database_log_lag_seconds",
        "Age of the last record read of a database server's log where more is waiting",
        ["path"],
        [(labels, status.lag_seconds) for labels, status in labelled],
    )
    yield _gauge(
        "leasehold_database_log_lag_bytes",
        "Bytes of it that are not read yet",
        ["path"],
        [(labels, status.log.unread_bytes) for labels, status in labelled],
    )
    yield _gauge(
        "leasehold_database_log_read_timestamp_seconds",
        "When it was last looked at",
        ["path"],
        [(labels, status.log.read_at.timestamp()) for labels, status in labelled if status.log.read_at],
    )
    for name, text in DATABASE_LOG_COUNTERS.items():
        values = [(labels, getattr(status.log, name)) for labels, status in labelled]
        yield _counter(f"leasehold_database_log_{name}", text, ["path"], values)


def _gauge(name: str, text: str, labels: list[str], values: list[tuple[list[str], float]]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        gauge.add_metric(label_values, value)
    return gauge
