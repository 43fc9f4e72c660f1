"""The figures of a pack: who accessed which database how often, how long credentials lived, what was revoked, what stands out. Reads only."""

from datetime import datetime

from audit.findings.facts import rows_of
from audit.findings.queries import open_within
from audit.findings.rules import TTL_SLACK
from audit.models import Event, Kind, Severity
from audit.pack.statements import accesses
from audit.pack.values import (
    MOST,
    AccountFigures,
    DatabaseFigures,
    Exceptions,
    Figures,
    FindingFigures,
    RevocationFigures,
    Revocations,
)
from leases import revoke
from leases.models.actions import RevocationState

ACCESSED = "l.accessed_at >= %(from)s AND l.accessed_at < %(to)s AND l.request_id <> ''"
_ISSUED = "COALESCE(l.issued_at, l.first_seen_at) >= %(from)s AND COALESCE(l.issued_at, l.first_seen_at) < %(to)s"
DATABASE = "v.name || '/' || l.mount || COALESCE('/' || d.name, '')"
FROM = "leases_lease l JOIN leases_vault v ON v.id = l.vault_id LEFT JOIN leases_database d ON d.id = l.database_id"
_ACCOUNT = "l.cluster, l.service_account_namespace, l.service_account"

_CONTAINED = f"""
    WITH asked AS (
      SELECT l.lease_id, a.by, a.reason, r.requested_at, r.state, r.id,
        CASE WHEN r.state = '{RevocationState.VERIFIED}' THEN COALESCE((
          SELECT max(s.at) FROM leases_actionstep s
          WHERE s.action_id = r.action_id AND s.lease_id = l.lease_id AND s.outcome = 'ok'
            AND s.name IN ('{revoke.LEASE_GONE}', '{revoke.USER_GONE}')), r.updated_at) END AS verified_at
      FROM leases_revocation r JOIN leases_action a ON a.id = r.action_id JOIN leases_lease l ON l.id = r.lease_id
      WHERE r.requested_at >= %(from)s AND r.requested_at < %(to)s
    ), timed AS (SELECT *, extract(epoch FROM verified_at - requested_at) AS seconds FROM asked)
"""  # noqa: S608


def figures(*, from_at: datetime, to_at: datetime) -> Figures:
    period = {"from_at": from_at, "to_at": to_at}
    found, more = accounts(**period)
    rows = accesses(**period)
    events = Event.objects.filter(at__gte=from_at, at__lt=to_at)
    return Figures(
        accesses=rows.count(),
        leases=_one(f"SELECT count(*) FROM leases_lease l WHERE {_ISSUED}", **period),  # noqa: S608
        databases=databases(**period),
        accounts=found,
        more_accounts=more,
        revocations=revocations(**period),
        exceptions=exceptions(**period),
        first_event_at=events.order_by("at").values_list("at", flat=True).first(),
        last_event_at=events.order_by("-at").values_list("at", flat=True).first(),
        first_access_at=rows.order_by("accessed_at").values_list("accessed_at", flat=True).first(),
        last_access_at=rows.order_by("-accessed_at").values_list("accessed_at", flat=True).first(),
    )


def databases(*, from_at: datetime, to_at: datetime) -> list[DatabaseFigures]:
    """Those that were accessed, or whose leases were issued; the most used first."""
    rows = rows_of(
        f"""
        WITH life AS (
          SELECT {DATABASE} AS database, l.lease_id, {ACCESSED} AS accessed, {_ISSUED} AS issued, l.certainty, l.pod_uid,
                 NULLIF(concat_ws('/', {_ACCOUNT}), '//') AS account,
                 COALESCE(l.ended_at, l.expires_at) - COALESCE(l.issued_at, l.accessed_at) AS lived,
                 NULLIF(COALESCE(d.max_lease_ttl_seconds,
                   (SELECT max_lease_ttl_seconds FROM leases_policy WHERE id = 1)), 0) AS most
          FROM {FROM} WHERE {ACCESSED} OR {_ISSUED}
        ), ranked AS (
          SELECT *, row_number() OVER (PARTITION BY database ORDER BY issued DESC, lived DESC NULLS LAST, lease_id) AS place FROM life
        )
        SELECT database, count(*) FILTER (WHERE accessed), count(DISTINCT account) FILTER (WHERE accessed),
               count(DISTINCT NULLIF(pod_uid, '')) FILTER (WHERE accessed),
               count(*) FILTER (WHERE accessed AND certainty = 'unknown'), count(*) FILTER (WHERE issued),
               extract(epoch FROM max(lived) FILTER (WHERE issued)),
               max(lease_id) FILTER (WHERE place = 1 AND issued AND lived IS NOT NULL), min(most),
               count(*) FILTER (WHERE issued AND lived > make_interval(secs => most) + %(slack)s),
               count(*) FILTER (WHERE issued AND lived IS NULL)
        FROM ranked GROUP BY database ORDER BY 2 DESC, 1
        """,  # noqa: S608
        {"from": from_at, "to": to_at, "slack": TTL_SLACK},
    )
    return [
        DatabaseFigures(
            database, read, by, pods, unknown, issued, _seconds(longest), lease or "", limit, over, lifetime_unknown
        )
        for database, read, by, pods, unknown, issued, longest, lease, limit, over, lifetime_unknown in rows
    ]


def accounts(*, from_at: datetime, to_at: datetime) -> tuple[list[AccountFigures], int]:
    """The MOST service accounts with the most accesses, and how many more there are."""
    rows = rows_of(
        f"""
        SELECT {_ACCOUNT}, count(*), array_agg(DISTINCT {DATABASE}), count(DISTINCT NULLIF(l.pod_uid, '')),
               max(l.accessed_at), count(*) OVER ()
        FROM {FROM} WHERE {ACCESSED} GROUP BY {_ACCOUNT} ORDER BY 4 DESC, {_ACCOUNT} LIMIT {MOST}
        """,  # noqa: S608
        {"from": from_at, "to": to_at},
    )
    return [AccountFigures(*row[:7]) for row in rows], (rows[0][7] - len(rows) if rows else 0)


def revocations(*, from_at: datetime, to_at: datetime) -> Revocations:
    """Of leases that somebody asked to revoke here in the period. Contained is a lease when it and its database user were seen gone."""
    period = {"from": from_at, "to": to_at}
    ((requested, verified, *times),) = rows_of(
        f"{_CONTAINED} SELECT count(*), count(verified_at), min(seconds), "  # noqa: S608
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds), max(seconds) FROM timed",
        period,
    )
    fastest, median, slowest = map(_seconds, times)
    told = [
        RevocationFigures(lease_id, by, reason, requested_at, state, verified_at, _seconds(seconds))
        for lease_id, by, reason, requested_at, state, verified_at, seconds in rows_of(
            f"{_CONTAINED} SELECT lease_id, by, reason, requested_at, state, verified_at, seconds FROM timed "  # noqa: S608
            f"ORDER BY requested_at, id LIMIT {MOST}",
            period,
        )
    ]
    return Revocations(requested, verified, fastest, median, slowest, told, requested - len(told))


def exceptions(*, from_at: datetime, to_at: datetime) -> Exceptions:
    period = {"from_at": from_at, "to_at": to_at}
    counts: dict[tuple[int, str], list[int]] = {}
    for row in open_within(**period):
        count = counts.setdefault((-row.severity, row.kind), [0, 0])
        count[0] += 1
        count[1] += row.open
    return Exceptions(
        findings=[
            FindingFigures(kind, str(Severity(-severity).label), *count)
            for (severity, kind), count in sorted(counts.items())
        ],
        denials=_one(
            """
            SELECT count(*) FROM audit_event e JOIN audit_text x ON x.id = e.error_text_id
            WHERE e.at >= %(from)s AND e.at < %(to)s AND NOT e.own AND x.text LIKE '%%permission denied%%'
            """,
            **period,
        ),
        unknown_holders=accesses(**period).filter(certainty="unknown").count(),
        leases_without_read=_one(
            f"SELECT count(*) FROM leases_lease l WHERE l.request_id = '' AND {_ISSUED}",  # noqa: S608
            **period,
        ),
        static_reads=Event.objects.filter(kind=Kind.STATIC_READ, at__gte=from_at, at__lt=to_at).count(),
    )


def _one(query: str, *, from_at: datetime, to_at: datetime) -> int:
    return int(rows_of(query, {"from": from_at, "to": to_at})[0][0])


def _seconds(value: object) -> float | None:
    """Of what extract() gives, to the millisecond."""
    return None if value is None else round(float(str(value)), 3)
