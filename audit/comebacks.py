"""Attempts of a contained service account to come back, as the audit log tells them: denied ones, and (worst) any that succeeded."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Q

from leases import contain, identities
from leases.models import AuthMount, Containment, Lease, Login, PodAddress, Policy
from leases.models.actions import ContainmentState

# a log-in that is denied bears no identity, nor does a token that has ended: these are looked for by address, this far back at most
NAMELESS_WITHIN = timedelta(hours=1)
# of each kind; more are "more than"
MOST = 1000
EXAMPLES = 10
# events that are looked through for addresses
MOST_READ = 50_000
# tokens of the account that may still be used, newest first
MOST_TOKENS = 5000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request. `what` is in words; `lease`: its key in the ledger, where a lease came of it."""

    at: datetime
    what: str
    vault: str
    request_id: str
    address: str = ""
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """`since`: from when on it counts, None while no identity is disabled yet. What bears no identity counts from `nameless_since` on.

    Denied log-ins, and denied requests with tokens that have ended, are those from addresses of its pods. `successes` are all that got
    through, `denied` the newest that did not, both newest first.
    """

    since: datetime | None
    nameless_since: datetime | None = None
    denied_logins: int = 0
    denied_requests: int = 0
    last_at: datetime | None = None
    denied: tuple[Attempt, ...] = ()
    successes: tuple[Attempt, ...] = ()

    @property
    def counted_all(self) -> bool:
        return self.denied_logins + self.denied_requests < MOST


def attempts(containment: Containment, *, now: datetime) -> Attempts:
    """From when its identities were seen disabled until it was undone, or now. Times are Vault's; ours may be off by the clock skew."""
    if containment.disabled_at is None:
        return Attempts(None)
    since, until = containment.disabled_at, _undone_at(containment) or now
    mounts, account = _mounts(containment), contain.account(containment)
    begin = since - _skew()
    nameless_since, nameless = _from_addresses(
        mounts, _addresses(account, since=since), max(begin, until - NAMELESS_WITHIN), until
    )
    denied = _requests(_tokens(mounts, account, since=since), begin, until, denied=True) + nameless
    denied.sort(key=lambda one: one.at, reverse=True)
    logins = [one for one in denied if _is_login(one, mounts)]
    return Attempts(
        since=since,
        nameless_since=nameless_since,
        denied_logins=len(logins),
        denied_requests=len(denied) - len(logins),
        last_at=denied[0].at if denied else None,
        denied=tuple(denied[:EXAMPLES]),
        successes=successes(containment, now=now),
    )


def successes(containment: Containment, *, now: datetime) -> tuple[Attempt, ...]:
    """What got through in spite of it, newest first. Later by more than the clock skew: within it nobody can tell what came first."""
    if containment.disabled_at is None:
        return ()
    since, until = containment.disabled_at + _skew(), _undone_at(containment) or now
    mounts, account = _mounts(containment), contain.account(containment)
    tokens = _tokens(mounts, account, since=containment.disabled_at)
    # a request that is found as an event, as a log-in and as a lease is one; the lease, which comes last, says most
    found = {
        (one.vault, one.request_id): one
        for one in (
            *_requests(tokens, since, until, denied=False),
            *_logins(mounts, account, since, until),
            *_leases(account, since, until),
        )
    }
    return tuple(sorted(found.values(), key=lambda one: (one.at, one.request_id), reverse=True))


def _skew() -> timedelta:
    return timedelta(seconds=Policy.current().clock_skew_seconds)


def _mounts(containment: Containment) -> list[AuthMount]:
    return [mount for rows in identities.mounts_of(containment.cluster).values() for mount in rows]


def _undone_at(containment: Containment) -> datetime | None:
    """Whoever undoes it lets it in from the moment on that he says so."""
    lets_in = containment.state in {ContainmentState.LIFTING, ContainmentState.LIFTED}
    return containment.undo.at if lets_in and containment.undo else None


def _tokens(mounts: Sequence[AuthMount], account: identities.Account, *, since: datetime) -> list[int]:
    """How its tokens, and those that they made, show in the log: of log-ins whose token may still have lived then."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE first AS (
              SELECT id FROM leases_login
              WHERE auth_mount_id = ANY(%(mounts)s) AND service_account_namespace = %(namespace)s
                AND service_account = %(name)s AND logged_in_at > %(oldest)s
              ORDER BY logged_in_at DESC, id DESC LIMIT %(most)s
            ), line (id) AS (
              SELECT id FROM first
              UNION
              SELECT g.id FROM line l JOIN leases_login g ON g.parent_id = l.id
            )
            SELECT t.id FROM line JOIN audit_token t ON t.login_id = line.id LIMIT %(most)s
            """,
            {
                "mounts": [mount.pk for mount in mounts],
                "namespace": account.namespace,
                "name": account.name,
                "oldest": since - identities.OLDEST,
                "most": MOST_TOKENS,
            },
        )
        return [row[0] for row in cursor.fetchall()]


_EVENTS = """
    SELECT e.at, w.operation, w.path, v.name, COALESCE(e.request_text, e.request::text), a.text
    FROM audit_event e
    JOIN audit_what w ON w.id = e.what_id JOIN leases_vault v ON v.id = e.vault_id JOIN audit_text a ON a.id = e.address_id
    WHERE e.at > %(since)s AND e.at <= %(until)s AND NOT e.own AND {where}
    ORDER BY e.at DESC, e.request DESC LIMIT %(most)s
"""


_NAMELESS = """
    WITH newest AS MATERIALIZED (
      SELECT at, request, request_text, vault_id, what_id, who_id, address_id, token_id, error_text_id, own FROM audit_event
      WHERE at > %(since)s AND at <= %(until)s ORDER BY at DESC LIMIT %(read)s
    ), found AS (
      SELECT e.at, w.operation, w.path, v.name, COALESCE(e.request_text, e.request::text) AS request_id, a.text
      FROM newest e
      JOIN audit_text a ON a.id = e.address_id AND a.text = ANY(%(addresses)s)
      JOIN audit_who p ON p.id = e.who_id AND p.entity_id = '' AND p.display_name = ''
      JOIN audit_what w ON w.id = e.what_id JOIN leases_vault v ON v.id = e.vault_id
      WHERE e.error_text_id IS NOT NULL AND e.token_id IS NULL AND NOT e.own AND e.vault_id = ANY(%(vaults)s)
      ORDER BY e.at DESC, request_id DESC LIMIT %(most)s
    )
    SELECT r.oldest, r.read, f.* FROM (SELECT min(at) AS oldest, count(*) AS read FROM newest) r LEFT JOIN found f ON true
    ORDER BY f.at DESC, f.request_id DESC
"""


def _events(where: str, words: str, **values: Any) -> list[Attempt]:
    with connection.cursor() as cursor:
        cursor.execute(_EVENTS.format(where=where), {"most": MOST, **values})
        return [
            Attempt(at, words.format(operation=operation, path=path[:200]), vault, request_id, address)
            for at, operation, path, vault, request_id, address in cursor.fetchall()
        ]


def _requests(tokens: list[int], since: datetime, until: datetime, *, denied: bool) -> list[Attempt]:
    if not tokens:
        return []
    return _events(
        "e.token_id = ANY(%(tokens)s) AND "
        + ("e.error_text_id IS NOT NULL" if denied else "e.error_text_id IS NULL AND e.response_at IS NOT NULL"),
        "{operation} {path} with one of its tokens, " + ("refused" if denied else "answered"),
        tokens=tokens,
        since=since,
        until=until,
    )


def _from_addresses(
    mounts: Sequence[AuthMount], addresses: list[str], since: datetime, until: datetime
) -> tuple[datetime, list[Attempt]]:
    """What bore no identity: a log-in that is refused, and a token that has ended, of which no line says whose it was.

    No index knows addresses, so the newest MOST_READ events are looked through; returns how far back that was.
    """
    if not addresses:
        return since, []
    values: dict[str, Any] = {
        "addresses": addresses,
        "vaults": sorted({mount.vault_id for mount in mounts}),
        "since": since,
        "until": until,
        "read": MOST_READ,
        "most": MOST,
    }
    with connection.cursor() as cursor:
        cursor.execute(_NAMELESS, values)
        rows = cursor.fetchall()
    oldest = rows[0][0] if rows and rows[0][1] >= MOST_READ else since
    return oldest, [
        Attempt(at, f"{operation} {path[:200]}, refused", vault, request_id, address)
        for _, _, at, operation, path, vault, request_id, address in rows
        if at is not None
    ]


def _is_login(attempt: Attempt, mounts: Sequence[AuthMount]) -> bool:
    paths = {identities.place(mount.vault, mount.path)[1] for mount in mounts}
    return attempt.what in {f"update auth/{path}/login, refused" for path in paths}


def _addresses(account: identities.Account, *, since: datetime) -> list[str]:
    """Of its pods since then, but for those that share their node's."""
    rows = PodAddress.objects.filter(
        Q(to_at=None) | Q(to_at__gte=since),
        pod__cluster__name=account.cluster,
        pod__namespace=account.namespace,
        pod__service_account=account.name,
        pod__host_network=False,
    )
    return sorted(set(rows.values_list("address", flat=True)))


def _logins(
    mounts: Sequence[AuthMount], account: identities.Account, since: datetime, until: datetime
) -> list[Attempt]:
    rows = Login.objects.filter(
        auth_mount__in=[mount.pk for mount in mounts],
        service_account_namespace=account.namespace,
        service_account=account.name,
        logged_in_at__gt=since,
        logged_in_at__lte=until,
    ).select_related("vault")
    return [
        Attempt(row.logged_in_at, f"log-in at auth/{row.mount_path}", row.vault.name, row.request_id, row.address)
        for row in rows.order_by("-logged_in_at", "-id")[:MOST]
    ]


def _leases(account: identities.Account, since: datetime, until: datetime) -> list[Attempt]:
    rows = Lease.objects.filter(
        cluster=account.cluster,
        service_account_namespace=account.namespace,
        service_account=account.name,
        accessed_at__gt=since,
        accessed_at__lte=until,
    ).select_related("vault")
    return [
        Attempt(
            row.accessed_at,
            f"read the credentials of {row.lease_id}",
            row.vault.name,
            row.request_id,
            row.source_ip,
            row.pk,
        )
        for row in rows.order_by("-accessed_at", "-id")[:MOST]
        if row.accessed_at
    ]
