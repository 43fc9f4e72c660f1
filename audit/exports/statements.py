"""What each export is made of: its columns and where they come from, as SQL. The database makes the text; nothing here is per row.

A column's kind says how it is written. `text` comes from outside and is kept from being run as a formula; `fixed` is one of our own words.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "fixed", "time", "number", "bool"]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    sql: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Statement:
    """`source`: everything from FROM to the end of WHERE, with %(from)s, %(to)s and %(now)s. `filters`: name -> condition on %(name)s.

    `key`: what tells rows apart, for those that are chosen one by one. `ordered`: an index gives the rows in this order, so that they can be sent as they are read, however many there are.
    """

    columns: tuple[Column, ...]
    source: str
    order: str
    key: str
    filters: dict[str, str] = field(default_factory=dict)
    beforehand: str = ""
    ordered: bool = True

    @property
    def header(self) -> list[str]:
        return [column.name for column in self.columns]


def _texts(**columns: str) -> list[Column]:
    return [Column(name, sql) for name, sql in columns.items()]


# how every export writes a time; cells.cell() does the same for rows that are made here
AT = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
# a named database, as pages name it
_DATABASE = (
    "{} = (SELECT d2.id FROM leases_database d2 JOIN leases_vault v2 ON v2.id = d2.vault_id "
    "WHERE v2.name || '/' || d2.mount || '/' || d2.name = %(database)s)"
)

# --- leases and accesses -----------------------------------------------------------------------------------------

# A life begins with the credential read and ends with the lease, or now: what began since the last sample but one nobody can know yet.
# As leases.session_queries.USES says it for some leases; here for all of a period.
_COVERED = """
    WITH covered AS MATERIALIZED (
      SELECT database_id, range_agg(tstzrange(from_at, to_at, '[]')) AS times
      FROM leases_sampledperiod WHERE to_at >= %(from)s GROUP BY database_id
    )
"""
_LEASE = """
    FROM leases_lease l
    JOIN leases_vault v ON v.id = l.vault_id
    LEFT JOIN leases_database d ON d.id = l.database_id
    LEFT JOIN leases_sampling g ON g.database_id = l.database_id
    LEFT JOIN covered c ON c.database_id = l.database_id
    CROSS JOIN LATERAL (
      SELECT count(*) AS sessions, min(started_at) AS first_at,
        max(CASE WHEN end_known_by = 'logged' THEN GREATEST(ended_at, last_seen_at) ELSE last_seen_at END) AS last_at
      FROM leases_session WHERE lease_id = l.id
    ) s
    CROSS JOIN LATERAL (SELECT COALESCE(l.accessed_at, l.issued_at, l.first_seen_at) AS at) begun
"""
_UNTIL = (
    "GREATEST(begun.at, LEAST(COALESCE(l.ended_at, %(now)s), "
    "%(now)s - make_interval(secs => 2 * COALESCE(g.interval_seconds, 5) + 5)))"
)
# empty: unknown, not none
_SESSIONS = f"""
    CASE WHEN s.sessions > 0 THEN s.sessions
      WHEN l.database_user <> '' AND l.database_user_by <> 'time and name'
        AND c.times @> tstzrange(begun.at, {_UNTIL}, '[]') THEN 0 END
"""
_OF_LEASE = {
    column.name: column
    for column in [
        *_texts(vault="v.name", vault_namespace="l.vault_namespace"),
        *_texts(database="COALESCE(d.name, l.mount)", database_role="l.role"),
        *_texts(lease_id="l.lease_id", database_user="l.database_user", cluster="l.cluster"),
        # a pod runs in the namespace of its service account, so this is known where the pod is not
        *_texts(pod_namespace="COALESCE(NULLIF(l.pod_namespace, ''), l.service_account_namespace)"),
        *_texts(pod="l.pod", pod_uid="l.pod_uid", service_account="l.service_account", source_ip="l.source_ip"),
        *_texts(certainty_reason="l.certainty_reason", end_evidence="l.end_evidence", request_id="l.request_id"),
        Column("state", "l.state", "fixed"),
        Column("certainty", "l.certainty", "fixed"),
        Column("end_reason", "l.end_reason", "fixed"),
        *(
            Column(name, f"l.{name}", "time")
            for name in ("accessed_at", "issued_at", "expires_at", "last_renewal_at", "ended_at")
        ),
        Column("renewals", "l.renewals", "number"),
        Column("sessions", _SESSIONS, "number"),
        Column("first_session_at", "s.first_at", "time"),
        Column("last_session_at", "s.last_at", "time"),
    ]
}
ACCESSES = [
    *("accessed_at", "vault", "vault_namespace", "database", "database_role", "lease_id", "database_user", "cluster"),
    *("pod_namespace", "pod", "pod_uid", "service_account", "source_ip", "certainty", "certainty_reason", "issued_at"),
    *("expires_at", "renewals", "ended_at", "end_reason", "sessions", "first_session_at", "last_session_at"),
    "request_id",
]
LEASES = [
    *("lease_id", "vault", "vault_namespace", "database", "database_role", "database_user", "state", "issued_at"),
    *("expires_at", "last_renewal_at", "renewals", "ended_at", "end_reason", "end_evidence", "cluster"),
    *("pod_namespace", "pod", "pod_uid", "service_account", "certainty", "certainty_reason", "request_id"),
    *("sessions", "first_session_at", "last_session_at"),
]
_LEASE_FILTERS = {
    "vault": "v.name = %(vault)s",
    "database": _DATABASE.format("l.database_id"),
    "cluster": "l.cluster = %(cluster)s",
    "namespace": "COALESCE(NULLIF(l.pod_namespace, ''), l.service_account_namespace) = %(namespace)s",
    "service_account": "l.service_account = %(service_account)s",
    "pod": "strpos(l.pod, %(pod)s) > 0",
    "certainty": "l.certainty = %(certainty)s",
    "state": "(l.state = %(state)s OR %(state)s = 'open' AND l.state <> 'ended')",
}

# --- all kinds ---------------------------------------------------------------------------------------------------

STATEMENTS: dict[str, Statement] = {
    # one row per database credential read
    "accesses": Statement(
        tuple(_OF_LEASE[name] for name in ACCESSES),
        f"{_LEASE} WHERE l.accessed_at >= %(from)s AND l.accessed_at < %(to)s AND l.request_id <> ''",
        "l.accessed_at, l.id",
        "l.id",
        _LEASE_FILTERS,
        _COVERED,
    ),
    # one row per lease that was issued then; where that is not known, first seen then
    "leases": Statement(
        tuple(_OF_LEASE[name] for name in LEASES),
        f"{_LEASE} WHERE COALESCE(l.issued_at, l.first_seen_at) >= %(from)s AND COALESCE(l.issued_at, l.first_seen_at) < %(to)s",
        "COALESCE(l.issued_at, l.first_seen_at), l.id",
        "l.id",
        _LEASE_FILTERS,
        _COVERED,
        ordered=False,
    ),
    # one row per database session that began then, tied to a lease or not
    "sessions": Statement(
        (
            Column("started_at", "s.started_at", "time"),
            *_texts(vault="COALESCE(v.name, lv.name)", database="d.name", database_name="s.database_name"),
            *_texts(database_user="s.database_user"),
            Column("user_known_by", "l.database_user_by", "fixed"),
            *_texts(lease_id="l.lease_id", cluster="l.cluster"),
            *_texts(pod_namespace="COALESCE(NULLIF(l.pod_namespace, ''), l.service_account_namespace)"),
            *_texts(pod="l.pod", service_account="l.service_account", address="s.address"),
            Column("port", "s.port", "number"),
            # whoever connects chooses this text
            *_texts(application="s.application"),
            Column("start_is_known", "s.start_is_known", "bool"),
            Column("last_seen_at", "s.last_seen_at", "time"),
            Column("ended_at", "s.ended_at", "time"),
            Column("end_known_by", "s.end_known_by", "fixed"),
            Column("sampled", "s.sampled", "bool"),
            Column("logged", "s.logged", "bool"),
            Column("place", "s.place", "fixed"),
            *_texts(place_reason="s.place_reason", server="r.identity"),
        ),
        """
        FROM leases_session s JOIN leases_databaseserver r ON r.id = s.server_id
        LEFT JOIN leases_database d ON d.id = s.database_id LEFT JOIN leases_vault v ON v.id = d.vault_id
        LEFT JOIN leases_lease l ON l.id = s.lease_id LEFT JOIN leases_vault lv ON lv.id = l.vault_id
        WHERE s.started_at >= %(from)s AND s.started_at < %(to)s
        """,
        "s.started_at, s.id",
        "s.id",
        {
            "database": _DATABASE.format("s.database_id"),
            "place": "s.place = %(place)s",
            "user": "strpos(s.database_user, %(user)s) > 0",
            "address": "s.address = %(address)s",
            "service_account": "l.service_account = %(service_account)s",
        },
        ordered=False,
    ),
    # one row per request to a vault, own ones included and marked
    "events": Statement(
        (
            Column("at", "e.at", "time"),
            *_texts(vault="v.name", request_id="COALESCE(e.request_text, e.request::text)", operation="w.operation"),
            *_texts(path="w.path", vault_namespace="w.namespace_path", address="a.text"),
            *_texts(display_name="p.display_name", entity_id="p.entity_id", lease_id="n.text", error="x.text"),
            Column("own", "e.own", "bool"),
            Column("request_at", "CASE WHEN e.has_request THEN e.at END", "time"),
            Column("response_at", "e.response_at", "time"),
        ),
        """
        FROM audit_event e JOIN leases_vault v ON v.id = e.vault_id JOIN audit_what w ON w.id = e.what_id
        JOIN audit_who p ON p.id = e.who_id JOIN audit_text a ON a.id = e.address_id
        LEFT JOIN audit_text n ON n.id = e.lease_name_id LEFT JOIN audit_text x ON x.id = e.error_text_id
        WHERE e.at >= %(from)s AND e.at < %(to)s
        """,
        "e.at, e.request",
        "e.request",
        {
            "vault": "v.name = %(vault)s",
            "path": "starts_with(w.path, %(path)s)",
            "operation": "w.operation = %(operation)s",
            "address": "a.text = %(address)s",
            "service_account": "p.metadata->>'service_account_name' = %(service_account)s",
            "own": "e.own = %(own)s::bool",
        },
    ),
    # one row per lease of an action, with its steps in words; what was done without a lease has one with an empty lease id
    "actions": Statement(
        (
            Column("at", "a.at", "time"),
            *_texts(kind="a.kind", by="a.by", reason="a.reason", ticket="a.ticket"),
            *_texts(vault="t.target->>'vault'", lease_id="t.target->>'lease_id'"),
            Column("state", "r.state", "fixed"),
            *_texts(steps="s.steps"),
            Column("id", "a.id::text", "fixed"),
        ),
        f"""
        FROM leases_action a LEFT JOIN LATERAL jsonb_array_elements(a.targets) WITH ORDINALITY AS t (target, place) ON true
        LEFT JOIN (
          SELECT DISTINCT ON (r.action_id, l.lease_id) r.action_id, l.lease_id, r.state
          FROM leases_revocation r JOIN leases_lease l ON l.id = r.lease_id
          WHERE r.action_id IN (SELECT id FROM leases_action WHERE at >= %(from)s AND at < %(to)s)
          ORDER BY r.action_id, l.lease_id, r.id DESC
        ) r ON r.action_id = a.id AND r.lease_id = t.target->>'lease_id'
        LEFT JOIN (
          SELECT action_id, lease_id,
            string_agg(name || ': ' || outcome || ' at ' || {AT.format("at")}, '; ' ORDER BY at, id) AS steps
          FROM leases_actionstep
          WHERE action_id IN (SELECT id FROM leases_action WHERE at >= %(from)s AND at < %(to)s)
          GROUP BY action_id, lease_id
        ) s ON s.action_id = a.id AND s.lease_id = COALESCE(t.target->>'lease_id', '')
        WHERE a.at >= %(from)s AND a.at < %(to)s
        """,  # noqa: S608
        "a.at, a.id, t.place",
        "a.id",
        {"kind": "a.kind = %(kind)s", "by": "a.by = %(by)s"},
        ordered=False,
    ),
    # one row per finding that was open at some time in the period, as it is now, with its evidence in words
    "findings": Statement(
        (
            Column("first_seen_at", "f.first_seen_at", "time"),
            Column("last_seen_at", "f.last_seen_at", "time"),
            Column("closed_at", "f.closed_at", "time"),
            *_texts(closed_by="f.closed_by", closed_why="f.closed_why"),
            Column("kind", "f.kind", "fixed"),
            Column("severity", "CASE f.severity WHEN 3 THEN 'high' WHEN 2 THEN 'medium' ELSE 'low' END", "fixed"),
            *_texts(vault="f.vault", culprit="f.culprit", service_account_namespace="f.service_account_namespace"),
            *_texts(service_account="f.service_account", summary="f.summary"),
            *_texts(
                evidence="(SELECT string_agg(btrim((i.item->>'text') || ' ' || COALESCE(i.item->>'at', '')), '; ' ORDER BY i.place) "
                "FROM jsonb_array_elements(f.evidence) WITH ORDINALITY AS i (item, place))"
            ),
            Column("id", "f.id", "number"),
        ),
        """
        FROM audit_finding f
        WHERE f.first_seen_at < %(to)s AND (f.closed_at IS NULL OR f.closed_at >= %(from)s)
        """,
        "f.first_seen_at, f.id",
        "f.id",
        {
            "vault": "f.vault = %(vault)s",
            "kind": "f.kind = %(kind)s",
            "severity": "f.severity >= CASE %(severity)s WHEN 'high' THEN 3 WHEN 'medium' THEN 2 ELSE 1 END",
            "state": "(f.closed_at IS NULL) = (%(state)s = 'open')",
        },
        ordered=False,
    ),
}
