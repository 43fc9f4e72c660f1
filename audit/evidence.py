"""What is known about who can hold a lease, gathered for many leases with a fixed number of queries. Judges nothing.

Rows travel as JSON in both directions: decoded with their types at once they cost a third of what the ORM's rows cost.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import msgspec
from django.db import connection

from audit.logins import LIFE
from audit.secrets import HMAC
from leases.consumers import MOST, Fetched, Sync, consumers
from leases.identity import TOKEN_STORE
from leases.watch import NOTHING_PROVEN, proven

# a pod's address can reach the API this long after the pod began to use it
ADDRESS_LAG = timedelta(seconds=60)
# a device's salt is asked for once a minute, so it was another one so long before that is noticed
NOTICED_AFTER = timedelta(minutes=2)
# the end of what has not ended
FOREVER = datetime.max.replace(tzinfo=UTC)


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A pod that had the address at that time, allowing for clock skew."""

    uid: str
    namespace: str
    name: str
    host_network: bool
    service_account: str = ""
    node: str = ""
    # it fetches secrets for others
    fetcher: bool = False


class Living(msgspec.Struct, frozen=True, array_like=True):
    """The pods of a service account that lived at that time: the first of them by name, and how many they are."""

    names: tuple[str, ...] = ()
    count: int = 0


NOBODY = Living()


class LoginSeen(msgspec.Struct, frozen=True, array_like=True):
    """A login, with the cluster of its mount where that is registered."""

    logged_in_at: datetime
    mount_path: str
    auth_mount_id: int | None
    address: str
    service_account_namespace: str
    service_account: str
    claimed_pod: str
    claimed_pod_uid: str
    cluster_id: int | None
    cluster: str
    # the lease was read with a token that another one made, in the end this login's, or one that came wrapped
    inherited: bool = False


class Resalted(msgspec.Struct, frozen=True, array_like=True):
    """Every device that logged a read got another salt not long before, or just then: a login of before is hashed otherwise."""

    devices: str
    noticed_at: datetime


class Evidence(msgspec.Struct, frozen=True):
    """All that the rule looks at. `candidates` fit address, service account and time at the read and at the login.

    `others`: pods of other service accounts that had the address at the read. `living`: pods of the service account at the
    read, asked for where no candidate can be named; those of the node, where the address is a node's. `fetched`: the service
    account, or who had the address, is known to fetch for others; then `syncs` are the resources that say for whom.
    """

    login: LoginSeen | None
    cluster: str
    address: str
    candidates: tuple[Candidate, ...]
    # the pod watch had no gap from before the login to after the read, by the skew: who had the address then counts, too
    gapless: bool
    # the pod watch has come past the read, by the skew
    caught_up: bool
    skew_seconds: float
    # pods of the service account that had just started and whose address is not known (yet)
    unplaced: tuple[str, ...] = ()
    # the watch has come so far past the read that no address of then can still turn up
    settled: bool = False
    # the address that took the credentials out of their wrapping, where they were wrapped
    unwrapped_from: str = ""
    others: tuple[Candidate, ...] = ()
    # pods of the service account that had the login's address then
    logged_in: tuple[Candidate, ...] = ()
    living: Living = NOBODY
    fetched: bool = False
    syncs: tuple[Sync, ...] = ()
    # where no login was found
    resalted: Resalted | None = None


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A lease as it is stored: what its attribution rests on, and what it says now."""

    id: int
    login_id: int | None
    accessed_at: datetime | None
    source_ip: str
    certainty: str
    certainty_reason: str
    cluster: str
    service_account_namespace: str
    service_account: str
    pod_namespace: str
    pod: str
    pod_uid: str
    attribution_open: bool
    unwrapped_from: str


class Account(msgspec.Struct, frozen=True):
    """A service account, by the key of its cluster."""

    cluster_id: int
    namespace: str
    name: str


# What is asked about, and on which day: an address that has been reused for a year is read for the days in question only.
# A cluster and an address, or an account.
Subject = tuple[int, str, date] | tuple[Account, str, date]


class Trace(msgspec.Struct, frozen=True):
    """A lease whose login came through a registered mount: where and when its pod must have been."""

    login: LoginSeen
    account: Account
    accessed_at: datetime
    source_ip: str

    @property
    def claimed(self) -> bool:
        """The login itself names the pod."""
        return bool(self.login.claimed_pod and self.login.claimed_pod_uid)


class Asked(msgspec.Struct):
    """One question to PostgreSQL, about all that was so at any time in [earliest, latest]. `place` finds its answer again."""

    place: int
    address: str
    cluster_id: int
    namespace: str
    service_account: str
    earliest: datetime
    latest: datetime


class Addresses(msgspec.Struct):
    """The pods that had an address: lists in step, by when each got it. `latest_to` is the latest end up to there."""

    from_at: list[datetime] = []
    to_at: list[datetime] = []
    latest_to: list[datetime] = []
    pods: list[Candidate] = []

    def add(self, pod: Candidate, *, from_at: datetime, to_at: datetime) -> None:
        self.from_at.append(from_at)
        self.to_at.append(to_at)
        self.latest_to.append(max(to_at, self.latest_to[-1]) if self.latest_to else to_at)
        self.pods.append(pod)

    def at(self, moment: datetime, *, skew: timedelta) -> tuple[Candidate, ...]:
        """The pods that had it at that moment, give or take the skew, in the order in which they got it."""
        earliest = moment - skew
        place = bisect_right(self.from_at, moment + skew)
        found = []
        # backwards, so that what had ended long before is not looked at, however often the address was reused
        while place and self.latest_to[place - 1] >= earliest:
            place -= 1
            if self.to_at[place] >= earliest:
                found.append(self.pods[place])
        return tuple(dict.fromkeys(reversed(found)))


class Unplaced(msgspec.Struct, frozen=True, array_like=True):
    """A pod on a node, without any known address."""

    started_at: datetime
    ended_at: datetime | None
    name: str


LEASES = msgspec.json.Decoder(list[tuple[Held, LoginSeen | None, Resalted | None]])
LIVING = msgspec.json.Decoder(list[tuple[int, Living]])
ACCOUNTS = msgspec.json.Decoder(list[tuple[int, str, str]])
ADDRESSES = msgspec.json.Decoder(list[tuple[int, Candidate, datetime, datetime | None]])
UNPLACED = msgspec.json.Decoder(list[tuple[int, Unplaced]])


class Placed(msgspec.Struct, frozen=True):
    """Who had the addresses of a lease's read and login."""

    candidates: tuple[Candidate, ...]
    others: tuple[Candidate, ...]
    logged_in: tuple[Candidate, ...] = ()

    @property
    def node(self) -> str:
        """The node whose address it is: a pod on the host network has it. Empty where it is no node's."""
        return next((pod.node for pod in (*self.candidates, *self.others) if pod.host_network), "")


def gather(keys: list[int], *, skew: timedelta) -> list[tuple[Held, Evidence]]:
    """These leases by id, each with its evidence. Seven queries at most, however many they are."""
    found = leases_of(keys)
    traces = {lease.id: one for lease, login, _ in found if (one := trace(lease, login))}
    # Before the pods: what a period proves was stored before it, so that no pod of then is missing from what is read next.
    since = min((one.accessed_at for one in traces.values()), default=FOREVER)
    periods = proven({one.account.cluster_id for one in traces.values()}, since=since)
    settled = {
        key
        for key, one in traces.items()
        if periods.get(one.account.cluster_id, NOTHING_PROVEN).caught_up(at=one.accessed_at, skew=skew + ADDRESS_LAG)
    }
    # Before the addresses: a pod that gets its address in between is then seen twice rather than not at all.
    unplaced = unplaced_pods([one for key, one in traces.items() if key not in settled], skew=skew)
    addresses = addresses_of(traces.values(), skew=skew)
    placed = {key: place(one, addresses, skew=skew) for key, one in traces.items()}
    fetchers = fetching_accounts({one.account.cluster_id for one in traces.values()})
    gapless = {
        key
        for key, one in traces.items()
        if periods.get(one.account.cluster_id, NOTHING_PROVEN).gapless(
            from_at=one.login.logged_in_at - skew, to_at=one.accessed_at + skew
        )
    }
    fetched = {key for key, one in traces.items() if was_fetched(one, placed[key], fetchers, gapless=key in gapless)}
    asked = [
        Fetched(key, one.account.cluster_id, one.accessed_at - skew, one.accessed_at + skew + ADDRESS_LAG)
        for key, one in traces.items()
        if key in fetched
    ]
    syncs = consumers(asked)
    wrapped = {lease.id for lease, _, _ in found if lease.unwrapped_from}
    living = living_pods(
        {
            key: (traces[key], there.node)
            for key, there in placed.items()
            if key not in fetched
            and (key in wrapped or not traces[key].claimed)
            and (there.node or not there.candidates)
        },
        skew=skew,
    )

    def evidence(lease: Held, login: LoginSeen | None, resalted: Resalted | None) -> Evidence:
        one = traces.get(lease.id)
        if one is None:
            return Evidence(
                login,
                login.cluster if login else "",
                lease.source_ip,
                (),
                gapless=False,
                caught_up=False,
                skew_seconds=seconds,
                unwrapped_from=lease.unwrapped_from,
                resalted=resalted,
            )
        watch = periods.get(one.account.cluster_id, NOTHING_PROVEN)
        late = lease.id not in settled
        return Evidence(
            login=login,
            cluster=one.login.cluster,
            address=lease.source_ip,
            candidates=placed[lease.id].candidates,
            gapless=lease.id in gapless,
            caught_up=watch.caught_up(at=one.accessed_at, skew=skew),
            skew_seconds=seconds,
            unplaced=just_started(one, unplaced, skew=skew) if late else (),
            settled=not late,
            unwrapped_from=lease.unwrapped_from,
            others=placed[lease.id].others,
            logged_in=placed[lease.id].logged_in,
            living=living.get(lease.id, NOBODY),
            fetched=lease.id in fetched,
            syncs=syncs.get(lease.id, ()),
        )

    seconds = skew.total_seconds()
    return [(lease, evidence(lease, login, resalted)) for lease, login, resalted in found]


def leases_of(keys: list[int]) -> list[tuple[Held, LoginSeen | None, Resalted | None]]:
    """These leases by id, each with its login where that is known: of a token that others made, the first of that line. Where it
    is not known, with what a change of salts may have to do with that."""
    query = """
        SELECT json_agg(json_build_array(
            json_build_array(
                lease.id, lease.login_id, lease.accessed_at, lease.source_ip, lease.certainty, lease.certainty_reason,
                lease.cluster, lease.service_account_namespace, lease.service_account,
                lease.pod_namespace, lease.pod, lease.pod_uid, lease.attribution_open, lease.unwrapped_from
            ),
            CASE WHEN login.id IS NOT NULL THEN json_build_array(
                login.logged_in_at, login.mount_path, login.auth_mount_id, login.address,
                login.service_account_namespace, login.service_account, login.claimed_pod, login.claimed_pod_uid,
                cluster.id, coalesce(cluster.name, ''), login.id <> own.id OR own.was_wrapped OR login.was_wrapped
            ) END,
            CASE WHEN own.id IS NULL OR login.mount_path = %(token_store)s THEN (
                SELECT json_build_array(string_agg(DISTINCT device.name, ', '), max(device.salt_changed_at))
                FROM audit_leasetoken read_by
                JOIN audit_token token ON token.id = read_by.token_id
                JOIN audit_device device ON device.id = token.device_id
                WHERE read_by.lease_id = lease.id
                HAVING bool_and(coalesce(
                    starts_with(token.accessor, %(hmac)s)
                    AND lease.accessed_at >= device.salt_changed_at - %(noticed)s
                    AND lease.accessed_at < device.salt_changed_at + %(life)s,
                    false
                ))
            ) END
        ) ORDER BY lease.id)::text
        FROM leases_lease lease
        LEFT JOIN leases_login own ON own.id = lease.login_id
        LEFT JOIN leases_login login ON login.id = coalesce(own.origin_id, own.id)
        LEFT JOIN leases_authmount mount ON mount.id = login.auth_mount_id
        LEFT JOIN leases_cluster cluster ON cluster.id = mount.cluster_id
        WHERE lease.id = ANY(%(keys)s)
    """
    values: dict[str, Any] = {
        "keys": keys,
        "hmac": HMAC,
        "noticed": NOTICED_AFTER,
        "life": LIFE,
        "token_store": TOKEN_STORE,
    }
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return LEASES.decode(cursor.fetchone()[0] or "[]")


def trace(lease: Held, login: LoginSeen | None) -> Trace | None:
    """What to ask about a lease; nothing where its login is not known or the login's mount not registered."""
    if login is None or login.cluster_id is None or lease.accessed_at is None:
        return None
    account = Account(login.cluster_id, login.service_account_namespace, login.service_account)
    return Trace(login, account, lease.accessed_at, lease.source_ip)


@lru_cache(maxsize=10_000)
def canonical(address: str) -> str:
    """An address as PostgreSQL reads it; empty for a unix socket, or a log that says something else there."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""
    # a link-local address is one only together with its interface, and no pod's
    return "" if ip.version == 6 and ip.scope_id else str(ip)


def place(one: Trace, addresses: dict[Subject, Addresses], *, skew: timedelta) -> Placed:
    """The pods of the service account that fit the read and the login, or all that fit either where none fits both."""

    def pods(address: str, at: datetime) -> tuple[Candidate, ...]:
        known = addresses.get((one.account.cluster_id, canonical(address), at.date()))
        return known.at(at, skew=skew) if known else ()

    def own(found: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        return tuple(pod for pod in found if is_of(pod, one.account))

    read_by = pods(one.source_ip, one.accessed_at)
    at_read, at_login = own(read_by), own(pods(one.login.address, one.login.logged_in_at))
    both = tuple(pod for pod in at_read if pod in at_login)
    # a login from one pod and a read from another fit no single pod: name them all
    candidates = both or (tuple(dict.fromkeys(at_read + at_login)) if at_read and at_login else ())
    return Placed(candidates, tuple(pod for pod in read_by if not is_of(pod, one.account)), at_login)


def is_of(pod: Candidate, account: Account) -> bool:
    return (pod.namespace, pod.service_account) == (account.namespace, account.name)


def was_fetched(one: Trace, placed: Placed, fetchers: set[Account], *, gapless: bool) -> bool:
    """An operator logs in under its own service account or, with a token that it asked for, under another's from its address."""
    if one.account in fetchers:
        return True
    if not gapless or placed.candidates or one.claimed:
        return False
    accounts = {Account(one.account.cluster_id, pod.namespace, pod.service_account) for pod in placed.others}
    return bool(accounts) and accounts <= fetchers


def fetching_accounts(clusters: Iterable[int]) -> set[Account]:
    """Service accounts that fetch for others: those of operators' pods, and those that the configuration names."""
    # pod_fetcher holds the few pods in question
    query = """
        SELECT json_agg(json_build_array(cluster_id, namespace, service_account))::text FROM (
            SELECT cluster_id, namespace, service_account FROM leases_pod WHERE fetcher AND cluster_id = ANY(%(clusters)s)
            UNION
            SELECT cluster.id, split_part(account, '/', 1), split_part(account, '/', 2)
            FROM leases_cluster cluster, jsonb_array_elements_text(cluster.fetchers) AS account
            WHERE cluster.id = ANY(%(clusters)s)
        ) AS found
    """
    if not (asked := list(clusters)):
        return set()
    with connection.cursor() as cursor:
        cursor.execute(query, {"clusters": asked})
        return {Account(*found) for found in ACCOUNTS.decode(cursor.fetchone()[0] or "[]")}


def addresses_of(traces: Iterable[Trace], *, skew: timedelta) -> dict[Subject, Addresses]:
    """Which pods of each cluster had each address around the reads and logins."""
    asked: dict[Subject, Asked] = {}
    for one in traces:
        for address, at in ((one.source_ip, one.accessed_at), (one.login.address, one.login.logged_in_at)):
            if ip := canonical(address):
                subject = (one.account.cluster_id, ip, at.date())
                ask(asked, subject, one.account, address=ip, from_at=at - skew, to_at=at + skew)
    if not asked:
        return {}
    # LATERAL with OFFSET: an index lookup for each question (pod_address_by_address, then leases_pod's primary key), never
    # a scan of all history, whatever the planner takes the number of questions to be.
    query = """
        SELECT json_agg(json_build_array(
            asked.place,
            json_build_array(
                pod.uid, pod.namespace, pod.name, pod.host_network, pod.service_account, pod.node, pod.fetcher
            ),
            held.from_at,
            held.to_at
        ) ORDER BY held.from_at, held.id)::text
        FROM json_to_recordset(%s) AS asked (
            place int, address inet, cluster_id bigint, earliest timestamptz, latest timestamptz
        )
        CROSS JOIN LATERAL (
            SELECT * FROM leases_podaddress WHERE address = asked.address
                AND coalesce(to_at, 'infinity') >= asked.earliest AND from_at <= asked.latest
            OFFSET 0
        ) AS held
        CROSS JOIN LATERAL (SELECT * FROM leases_pod WHERE id = held.pod_id OFFSET 0) AS pod
        WHERE pod.cluster_id = asked.cluster_id
    """
    with connection.cursor() as cursor:
        cursor.execute(query, [questions(asked)])
        rows = ADDRESSES.decode(cursor.fetchone()[0] or "[]")
    subjects = list(asked)
    found: dict[Subject, Addresses] = {}
    for place_, pod, from_at, to_at in rows:
        found.setdefault(subjects[place_], Addresses()).add(pod, from_at=from_at, to_at=to_at or FOREVER)
    return found


def living_pods(traces: dict[int, tuple[Trace, str]], *, skew: timedelta) -> dict[int, Living]:
    """By lease, the pods of its service account that lived at the read; those of one node where one is named."""
    if not traces:
        return {}
    # pod_living: from those that had not ended by then on. One that is known to be over, but not since when, tells nothing.
    query = """
        SELECT json_agg(json_build_array(asked.key, json_build_array(found.names, found.count)))::text
        FROM json_to_recordset(%(asked)s) AS asked (
            key bigint, cluster_id bigint, namespace text, service_account text, node text,
            earliest timestamptz, latest timestamptz
        )
        CROSS JOIN LATERAL (
            SELECT json_agg(first.name ORDER BY first.started_at, first.id) AS names, max(first.count) AS count
            FROM (
                SELECT pod.id, pod.started_at, pod.namespace || '/' || pod.name AS name, count(*) OVER () AS count
                FROM leases_pod pod
                WHERE pod.cluster_id = asked.cluster_id
                    AND pod.namespace = asked.namespace AND pod.service_account = asked.service_account
                    AND coalesce(pod.ended_at, 'infinity') >= asked.earliest AND pod.started_at <= asked.latest
                    AND (asked.node = '' OR pod.node = asked.node)
                    AND (pod.ended_at IS NOT NULL OR pod.phase NOT IN ('Succeeded', 'Failed'))
                ORDER BY pod.started_at, pod.id
                LIMIT %(most)s
            ) AS first
        ) AS found
        WHERE found.count > 0
    """
    asked = [
        {
            "key": key,
            **msgspec.structs.asdict(one.account),
            "service_account": one.account.name,
            "node": node,
            "earliest": one.accessed_at - skew,
            "latest": one.accessed_at + skew,
        }
        for key, (one, node) in traces.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(query, {"asked": msgspec.json.encode(asked).decode(), "most": MOST})
        return dict(LIVING.decode(cursor.fetchone()[0] or "[]"))


def unplaced_pods(traces: Iterable[Trace], *, skew: timedelta) -> dict[Subject, list[Unplaced]]:
    """The pods of each service account that had just started at the reads and have no known address."""
    asked: dict[Subject, Asked] = {}
    for one in traces:
        at = one.accessed_at
        subject = (one.account, "", at.date())
        ask(asked, subject, one.account, from_at=at - max(ADDRESS_LAG, skew), to_at=at + skew)
    if not asked:
        return {}
    # pod_by_service_account serves each question, and the foreign key's index tells who has an address
    query = """
        SELECT json_agg(json_build_array(
            asked.place, json_build_array(found.started_at, found.ended_at, found.namespace || '/' || found.name)
        ) ORDER BY found.started_at, found.id)::text
        FROM json_to_recordset(%s) AS asked (
            place int, cluster_id bigint, namespace text, service_account text, earliest timestamptz, latest timestamptz
        )
        CROSS JOIN LATERAL (
            SELECT pod.id, pod.started_at, pod.ended_at, pod.namespace, pod.name
            FROM leases_pod pod
            WHERE pod.cluster_id = asked.cluster_id
                AND pod.namespace = asked.namespace AND pod.service_account = asked.service_account
                AND pod.started_at BETWEEN asked.earliest AND asked.latest
                AND (pod.ended_at IS NULL OR pod.ended_at >= asked.earliest) AND pod.node <> ''
                AND NOT EXISTS (SELECT FROM leases_podaddress held WHERE held.pod_id = pod.id)
            OFFSET 0
        ) AS found
    """
    with connection.cursor() as cursor:
        cursor.execute(query, [questions(asked)])
        rows = UNPLACED.decode(cursor.fetchone()[0] or "[]")
    subjects = list(asked)
    found: dict[Subject, list[Unplaced]] = {}
    for place, pod in rows:
        found.setdefault(subjects[place], []).append(pod)
    return found


def just_started(one: Trace, unplaced: dict[Subject, list[Unplaced]], *, skew: timedelta) -> tuple[str, ...]:
    """Those that had just started at the read, and had not ended."""
    at = one.accessed_at
    pods = unplaced.get((one.account, "", at.date()), [])
    begin = bisect_left(pods, at - ADDRESS_LAG, key=lambda pod: pod.started_at)
    end = bisect_right(pods, at + skew, key=lambda pod: pod.started_at)
    return tuple(pod.name for pod in pods[begin:end] if (pod.ended_at or FOREVER) >= at - skew)


def ask(
    asked: dict[Subject, Asked],
    subject: Subject,
    account: Account,
    *,
    address: str = "",
    from_at: datetime,
    to_at: datetime,
) -> None:
    """Asks about this time, too."""
    known = asked.get(subject)
    if known is None:
        asked[subject] = Asked(len(asked), address, account.cluster_id, account.namespace, account.name, from_at, to_at)
    else:
        known.earliest = min(known.earliest, from_at)
        known.latest = max(known.latest, to_at)


def questions(asked: dict[Subject, Asked]) -> str:
    """As json_to_recordset() takes them."""
    return msgspec.json.encode(list(asked.values())).decode()
