"""Who will log in again once its leases have ended, and how soon: pods that still run, tokens that live, what was measured before.

Pure reads, for all service accounts of a plan at once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from leases.models import Cluster, EndReason

# service accounts of a plan that are looked at; a plan for a whole database may have hundreds
MOST_ACCOUNTS = 20
# names of pods that stand in a row
MOST_PODS = 3
# of each account: so many of its newest leases are looked through for ends by revocation, and so many of these are measured
MOST_LOOKED_THROUGH = 2_000
MOST_MEASURED = 20
# a read that comes later than that is not the answer to the end
ANSWERED_WITHIN = timedelta(minutes=10)
REMEMBERED = timedelta(days=30)
# measured with `bao agent`: it serves the dead credential for about that long, then fetches another
AGENT_SECONDS = 10
# the order of the index lease_of_account
_BEGAN = "COALESCE(l.accessed_at, l.first_seen_at)"
REVOKED = [EndReason.REVOKED_HERE, EndReason.REVOKED_IN_VAULT, EndReason.BY_PREFIX, EndReason.TOKEN_REVOKED]


@dataclass(frozen=True, slots=True)
class Return:
    """One service account of a plan, and what speaks for its coming back.

    `running`: its pods that run now; None where nobody watches its cluster. `tokens`: of its logins behind these leases, those
    whose token is not known to have ended. `seconds`: how soon it read again after earlier revocations, the median of `measured`.
    """

    cluster: str
    namespace: str
    service_account: str
    leases: int
    running: int | None
    pods: Sequence[str]
    tokens: int
    seconds: float | None
    measured: int

    @property
    def name(self) -> str:
        return f"{self.namespace}/{self.service_account}" if self.service_account else "nobody known"

    @property
    def scope_value(self) -> str:
        """As audit.targets writes a service account; empty where it has no name."""
        named = self.cluster and self.service_account
        return f"{self.cluster}/{self.namespace}/{self.service_account}" if named else ""

    @property
    def comes_back(self) -> bool:
        return bool(self.running or self.tokens)

    @property
    def expected(self) -> str:
        """What a person reads: whether it comes back, and how soon."""
        if not self.service_account:
            return "Who holds these leases is not known, so whether they are fetched again is not either."
        if self.running == 0 and not self.tokens:
            return "None of its pods runs and no token of it is known to live: nobody is expected to come back."
        if self.measured:
            times = "once" if self.measured == 1 else f"{self.measured} times"
            soon = f"in about {self.seconds:.0f} s, as measured {times} in the last {REMEMBERED.days} days"
        else:
            soon = f"in about {AGENT_SECONDS} s, if it is bao agent; it was never measured for this service account"
        if self.running is None:
            return f"Its cluster is not watched. If a pod of it runs, expect a new lease {soon}."
        if self.running == 0:
            return f"None of its pods runs, but a token of it may live: whoever has that can read again {soon}."
        return f"Expect a new lease {soon}."


def returns(leases: Collection[int], *, now: datetime) -> tuple[list[Return], int]:
    """Service accounts behind these leases, those with the most leases first, and how many more there are. In four queries."""
    watched = set(Cluster.objects.filter(retired=False).values_list("name", flat=True))
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT l.cluster, l.service_account_namespace, l.service_account, count(*),
              count(DISTINCT g.id) FILTER (WHERE g.ended_at IS NULL AND (g.expires_at IS NULL OR g.expires_at > %(now)s))
            FROM leases_lease l LEFT JOIN leases_login g ON g.id = l.login_id
            WHERE l.id = ANY(%(leases)s) GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
            """,
            {"leases": list(leases), "now": now},
        )
        rows = cursor.fetchall()
        shown = rows[:MOST_ACCOUNTS]
        accounts: dict[str, Any] = {
            "clusters": [row[0] for row in shown],
            "namespaces": [row[1] for row in shown],
            "names": [row[2] for row in shown],
        }
        cursor.execute(
            """
            SELECT a.cluster, a.namespace, a.name, count(p.id), (array_agg(p.name ORDER BY p.name))[:%(most)s]
            FROM unnest(%(clusters)s::text[], %(namespaces)s::text[], %(names)s::text[]) AS a (cluster, namespace, name)
            JOIN leases_cluster c ON c.name = a.cluster
            JOIN leases_pod p ON p.cluster_id = c.id AND p.namespace = a.namespace AND p.service_account = a.name
              AND p.ended_at IS NULL
            GROUP BY 1, 2, 3
            """,
            accounts | {"most": MOST_PODS},
        )
        pods = {(row[0], row[1], row[2]): (row[3], row[4]) for row in cursor.fetchall()}
        cursor.execute(
            f"""
            SELECT a.cluster, a.namespace, a.name,
              percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM n.accessed_at - e.ended_at)), count(*)
            FROM unnest(%(clusters)s::text[], %(namespaces)s::text[], %(names)s::text[]) AS a (cluster, namespace, name),
            LATERAL (
              SELECT * FROM (
                SELECT l.* FROM leases_lease l WHERE l.service_account = a.name AND a.name <> ''
                ORDER BY {_BEGAN} DESC, l.id DESC LIMIT %(through)s
              ) l
              WHERE l.cluster = a.cluster AND l.service_account_namespace = a.namespace AND l.state = 'ended'
                AND l.end_reason = ANY(%(reasons)s) AND l.ended_at > %(since)s
              ORDER BY l.ended_at DESC, l.id DESC LIMIT %(measured)s
            ) e,
            LATERAL (
              SELECT l.accessed_at FROM leases_lease l
              WHERE l.service_account = a.name AND {_BEGAN} > e.ended_at AND {_BEGAN} < e.ended_at + %(within)s
                AND l.cluster = a.cluster AND l.service_account_namespace = a.namespace AND l.mount = e.mount AND l.role = e.role
                AND (e.pod_uid = '' OR l.pod_uid = e.pod_uid) AND l.accessed_at > e.ended_at
              ORDER BY {_BEGAN}, l.id LIMIT 1
            ) n
            GROUP BY 1, 2, 3
            """,  # noqa: S608
            accounts
            | {
                "through": MOST_LOOKED_THROUGH,
                "measured": MOST_MEASURED,
                "since": now - REMEMBERED,
                "within": ANSWERED_WITHIN,
                "reasons": [str(reason) for reason in REVOKED],
            },
        )
        soon = {(row[0], row[1], row[2]): (float(row[3]), row[4]) for row in cursor.fetchall()}
    found = []
    for cluster, namespace, name, count, tokens in shown:
        account = (cluster, namespace, name)
        running, names = pods.get(account, (0, []))
        seconds, measured = soon.get(account, (None, 0))
        known = running if cluster in watched else None
        found.append(Return(cluster, namespace, name, count, known, names, tokens, seconds, measured))
    return found, len(rows) - len(shown)
