"""Rules about what credentials are used for: sessions, database users and logins. One function each, named as its sentence. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from audit.findings.found import Account, Found, Item, Role, many, span
from audit.models.findings import FindingKind, Severity

# a session from elsewhere is told of for so long after it was last seen
SEEN_WITHIN = timedelta(hours=24)
# users come to be known before their leases do, and are dropped at about the time at which these end
JOINING = timedelta(minutes=5)
# a list of users says nothing of what has happened since
LISTED_WITHIN = timedelta(minutes=10)
# a connection pool may take a moment to let go of a session
LETTING_GO = timedelta(minutes=2)
# an open session was seen so lately, or may have ended meanwhile
OPEN_WITHIN = timedelta(minutes=15)
# logins are looked at over this stretch
LOGINS_OVER = timedelta(hours=3)
# so many other service accounts that log in from an address make it a proxy's
PROXY = 2
LONG = timedelta(hours=1)
# so many pieces of evidence stand in a finding about logins
MOST_ITEMS = 20


@dataclass(frozen=True, slots=True)
class Travelled:
    """A lease whose credential was used elsewhere. `addresses`: newest first; `culprit`: the pod that had the newest one, if any."""

    vault: str
    lease: int
    lease_id: str
    holder: str
    account: Account
    role: Role
    sessions: int
    # how many of them are open
    going_on: int
    newest_at: datetime
    addresses: tuple[str, ...]
    culprit: str
    # that the sessions' user is the lease's is a guess
    guessed: bool = False
    examples: tuple[Item, ...] = ()


def a_credential_is_used_from_elsewhere(travelled: Travelled) -> Iterator[Found]:
    if not travelled.sessions:
        return
    first, *others = travelled.addresses
    more = f" and {many(len(others), 'other address', 'other addresses')}" if others else ""
    who = f" ({travelled.culprit})" if travelled.culprit else ""
    going_on = f"{travelled.going_on:,} of them not known to have ended" if travelled.going_on else "all have ended"
    yield Found(
        FindingKind.ELSEWHERE,
        # a guess may be wrong, and then nothing was stolen
        Severity.MEDIUM if travelled.guessed else Severity.HIGH,
        f"lease {travelled.vault} {travelled.lease_id}",
        f"The credential of {travelled.holder or 'an unknown holder'} for {travelled.role} was used from {first}{who}{more}",
        vault=travelled.vault,
        culprit=travelled.culprit or first,
        account=travelled.account if travelled.account.name else None,
        evidence=(
            Item(f"{many(travelled.sessions, 'session')} from elsewhere, {going_on}", lease=travelled.lease),
            *travelled.examples,
        ),
        weight=travelled.sessions,
        newest_at=travelled.newest_at,
    )


@dataclass(frozen=True, slots=True)
class StrayLogins:
    """Logins of a service account from an address that none of its pods had then. `pod`: who had it, empty if no pod did."""

    account: Account
    address: str
    pod: str
    logins: int
    newest_at: datetime
    # others of its logins come from its pods' own addresses
    seen_directly: bool
    # how many other service accounts log in from that address
    other_accounts: int
    examples: tuple[Item, ...] = ()

    @property
    def whose(self) -> str:
        return f"{self.address} ({self.pod or 'no pod'})"

    @property
    def is_odd(self) -> bool:
        """Not so where a proxy or NAT stands between: many accounts log in from there, or this one never from a pod's address."""
        return self.other_accounts < PROXY and bool(self.pod or self.seen_directly)


def logins_came_from_no_pod_of_their_service_account(strays: Sequence[StrayLogins]) -> Iterator[Found]:
    """`strays`: of one service account, an address each."""
    odd = sorted(
        (stray for stray in strays if stray.is_odd), key=lambda one: (one.newest_at, one.address), reverse=True
    )
    if not odd:
        return
    newest, account = odd[0], odd[0].account
    logins = sum(stray.logins for stray in odd)
    more = f" and {many(len(odd) - 1, 'other address', 'other addresses')}" if len(odd) > 1 else ""
    yield Found(
        FindingKind.LOGIN_ELSEWHERE,
        Severity.MEDIUM,
        account.key,
        f"{account} logged in from {newest.whose}{more}, where none of its pods was",
        vault=account.vault,
        culprit=newest.pod or newest.address,
        account=account,
        evidence=(
            Item(f"{many(logins, 'login')} within {span(LOGINS_OVER.total_seconds())}"),
            *(item for stray in odd for item in stray.examples),
        )[:MOST_ITEMS],
        weight=logins,
        newest_at=newest.newest_at,
    )


@dataclass(frozen=True, slots=True)
class Ghosts:
    """Users of one server that no live lease bears. `with_sessions`: how many have open ones. `unsure`: how many others there are
    of which that cannot be said, because what Vault issued then is not known."""

    vault: str
    server: str
    database: str
    users: int
    with_sessions: int
    unsure: int
    newest_at: datetime | None
    examples: tuple[Item, ...] = ()


def database_users_have_no_lease(ghosts: Ghosts) -> Iterator[Found]:
    if not ghosts.users:
        return
    facts = [f"{many(ghosts.with_sessions, 'user')} with open sessions"] if ghosts.with_sessions else []
    if ghosts.unsure:
        facts.append(
            f"{many(ghosts.unsure, 'more user')} not counted: a lease that has no user may be theirs, or neither the audit log "
            "nor a list of leases tells of the time when they were made"
        )
    yield Found(
        FindingKind.GHOST_USER,
        Severity.HIGH if ghosts.with_sessions else Severity.MEDIUM,
        f"server {ghosts.server}",
        f"{many(ghosts.users, 'user')} of {ghosts.database} {'has' if ghosts.users == 1 else 'have'} no lease: Vault will never "
        f"drop {'it' if ghosts.users == 1 else 'them'}",
        vault=ghosts.vault,
        evidence=(*(Item(fact) for fact in facts), *ghosts.examples),
        weight=ghosts.users,
        newest_at=ghosts.newest_at,
    )


@dataclass(frozen=True, slots=True)
class Zombies:
    """Live leases of one role whose users their server no longer has. `longest`: what the longest has left, None if endless."""

    role: Role
    leases: int
    longest: timedelta | None
    examples: tuple[Item, ...] = ()


def live_leases_have_no_database_user(zombies: Zombies) -> Iterator[Found]:
    if not zombies.leases:
        return
    long = zombies.longest is None or zombies.longest > LONG
    yield Found(
        FindingKind.NO_USER,
        Severity.MEDIUM if long else Severity.LOW,
        zombies.role.key,
        f"{many(zombies.leases, 'live lease')} for {zombies.role} "
        f"{'has a user that' if zombies.leases == 1 else 'have users that'} the database no longer has",
        vault=zombies.role.vault,
        evidence=zombies.examples,
        weight=zombies.leases,
    )


@dataclass(frozen=True, slots=True)
class Outliving:
    """Open sessions that go on though their user was dropped or their lease ended; of one lease, or of a server without one."""

    vault: str
    key: str
    what: str
    account: Account | None
    sessions: int
    # a person revoked the lease here
    revoked_here: bool
    newest_at: datetime
    examples: tuple[Item, ...] = ()


def sessions_outlive_their_user(outliving: Outliving) -> Iterator[Found]:
    if not outliving.sessions:
        return
    one = outliving.sessions == 1
    why = (
        "though its lease was revoked here"
        if outliving.revoked_here
        else "though the user was dropped or the lease ended"
    )
    yield Found(
        FindingKind.USER_VANISHED,
        Severity.HIGH if outliving.revoked_here else Severity.MEDIUM,
        outliving.key,
        f"{many(outliving.sessions, 'session')} of {outliving.what} {'goes' if one else 'go'} on, {why}",
        vault=outliving.vault,
        culprit=str(outliving.account) if outliving.account else "",
        account=outliving.account,
        evidence=outliving.examples,
        weight=outliving.sessions,
        newest_at=outliving.newest_at,
    )
