"""Rules about leases and who holds them: one function each, named as the sentence that it stands for. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from audit.findings.found import Account, Found, Item, Role, many, span
from audit.models.findings import FindingKind, Severity

# leases are counted over this stretch to see whether they grow
GROWTH_WINDOW = timedelta(minutes=10)
# fewer live leases of one service account, or fewer gained in the window, are nothing to warn of
FEWEST_LIVE = 30
FEWEST_GAINED = 20
# leases for each pod and role: an agent holds one, and two while an old one overlaps
NORMAL_PER_POD = 3
CROWDED_PER_POD = 10
GROWTH = 0.2
SOON = timedelta(hours=1)
VERY_SOON = timedelta(minutes=15)

# a pod's leases may end a little later than it does; agents revoke theirs while they stop
OUTLIVES = timedelta(minutes=2)
LONG = timedelta(hours=1)
# pods come to be known after the leases that they read
ATTRIBUTION_TIME = timedelta(minutes=5)
# a renewal counts from when Vault takes it
TTL_SLACK = timedelta(seconds=2)
# two reads of one role by one login or one pod are one start
DOUBLE_WITHIN = timedelta(seconds=5)
DOUBLES_OVER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class OnePod:
    """A pod's live leases, and for how many roles they are."""

    name: str
    leases: int
    roles: int


@dataclass(frozen=True, slots=True)
class Growth:
    """A service account's live leases. `issued`, `ended`, `renewed`: leases within GROWTH_WINDOW. `pods`: None if not known.

    `fullest`: of its pods with at least FEWEST_LIVE, the one with the most for each role.
    """

    account: Account
    live: int
    issued: int
    ended: int
    renewed: int
    roles: int
    pods: int | None
    # 0: none is set
    limit: int
    examples: tuple[Item, ...] = ()
    fullest: OnePod | None = None


def a_service_account_takes_ever_more_leases(growth: Growth) -> Iterator[Found]:
    live, gained = growth.live, growth.issued - growth.ended
    before = live - gained
    over_limit = 0 < growth.limit < live
    normal = max(1, growth.pods or 0) * max(1, growth.roles)
    crowded = growth.pods is not None and live >= FEWEST_LIVE and live > CROWDED_PER_POD * normal
    # one of many replicas that leaks does not show in their sum
    one = growth.fullest
    overfull = one if one and one.leases >= FEWEST_LIVE and one.leases > CROWDED_PER_POD * one.roles else None
    # where pods are known, a rollout explains as many leases as it brings pods
    unexplained = growth.pods is None or live > NORMAL_PER_POD * normal
    quick = live >= FEWEST_LIVE and gained >= max(FEWEST_GAINED, GROWTH * before) and unexplained
    if not (over_limit or crowded or quick or overfull):
        return
    doubles_in = live * GROWTH_WINDOW / gained if gained > 0 else None
    full_in = (growth.limit - live) * GROWTH_WINDOW / gained if gained > 0 and growth.limit > live else None
    high = over_limit or (quick and doubles_in is not None and doubles_in <= VERY_SOON)
    high = high or (full_in is not None and full_in <= SOON)
    minutes = span(GROWTH_WINDOW.total_seconds())
    facts = [
        f"{many(live, 'live lease')}; {minutes} ago {before:,}",
        f"in {minutes} {growth.issued:,} were issued, {growth.renewed:,} renewed, {growth.ended:,} ended",
    ]
    if growth.issued > growth.renewed:
        facts.append("it reads new credentials instead of renewing the ones that it has")
    if growth.pods is not None:
        facts.append(
            f"{many(growth.pods, 'pod')} and {many(growth.roles, 'role')}: one lease for each would be {normal:,}"
        )
    else:
        facts.append("how many pods it has is not known")
    if overfull:
        facts.append(f"pod {overfull.name} alone holds {overfull.leases:,}, for {many(overfull.roles, 'role')}")
    if quick and doubles_in is not None:
        facts.append(f"at this pace there are twice as many in {span(doubles_in.total_seconds())}")
    if over_limit:
        facts.append(f"max_live_leases in leasehold.toml is {growth.limit:,}: it is passed")
    elif full_in is not None:
        facts.append(
            f"max_live_leases in leasehold.toml ({growth.limit:,}) is reached in {span(full_in.total_seconds())}"
        )
    yield Found(
        FindingKind.EXPLOSION,
        Severity.HIGH if high else Severity.MEDIUM,
        growth.account.key,
        f"{growth.account} holds {many(live, 'live lease')}"
        + (" and takes ever more" if quick else "")
        + (f", {overfull.leases:,} of them pod {overfull.name} alone" if overfull and live > overfull.leases else ""),
        vault=growth.account.vault,
        culprit=str(growth.account),
        account=growth.account,
        evidence=(*(Item(fact) for fact in facts), *growth.examples),
        weight=live,
    )


@dataclass(frozen=True, slots=True)
class Outlived:
    """Live leases of a service account whose pods ended more than OUTLIVES ago. `longest`: what the longest has left."""

    account: Account
    leases: int
    pods: int
    longest: timedelta | None
    examples: tuple[Item, ...] = ()
    # since when the newest of them does
    newest_at: datetime | None = None


def leases_outlive_their_pods(outlived: Outlived) -> Iterator[Found]:
    if not outlived.leases:
        return
    long = outlived.longest is None or outlived.longest > LONG
    yield Found(
        FindingKind.OUTLIVES_POD,
        Severity.MEDIUM if long else Severity.LOW,
        outlived.account.key,
        f"{many(outlived.leases, 'lease')} of {outlived.account} still "
        f"{'works' if outlived.leases == 1 else 'work'}, though {many(outlived.pods, 'pod')} that held "
        f"{'it' if outlived.leases == 1 else 'them'} {'has' if outlived.pods == 1 else 'have'} ended",
        vault=outlived.account.vault,
        culprit=str(outlived.account),
        account=outlived.account,
        evidence=outlived.examples,
        weight=outlived.leases,
        newest_at=outlived.newest_at,
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Live leases of one role that have something in common. `newest_at`: since when the newest of them has it."""

    role: Role
    leases: int
    examples: tuple[Item, ...] = ()
    newest_at: datetime | None = None


def nobody_knows_who_holds_these_leases(unknown: Group) -> Iterator[Found]:
    """`unknown`: first seen more than ATTRIBUTION_TIME ago."""
    if not unknown.leases:
        return
    yield Found(
        FindingKind.HOLDER_UNKNOWN,
        Severity.MEDIUM,
        unknown.role.key,
        f"Nobody knows who holds {many(unknown.leases, 'lease')} for {unknown.role}",
        vault=unknown.role.vault,
        evidence=unknown.examples,
        weight=unknown.leases,
        newest_at=unknown.newest_at,
    )


def vault_gave_up_revoking_these_leases(irrevocable: Group) -> Iterator[Found]:
    if not irrevocable.leases:
        return
    yield Found(
        FindingKind.IRREVOCABLE,
        Severity.HIGH,
        irrevocable.role.key,
        f"Vault gave up revoking {many(irrevocable.leases, 'lease')} for {irrevocable.role}: "
        f"{'its database user' if irrevocable.leases == 1 else 'their database users'} may still work",
        vault=irrevocable.role.vault,
        evidence=irrevocable.examples,
        weight=irrevocable.leases,
        newest_at=irrevocable.newest_at,
    )


@dataclass(frozen=True, slots=True)
class OverTtl:
    """Live leases of one role that live longer from their issue on than `limit`. `renewed`: how many got there by renewals."""

    role: Role
    limit: timedelta
    leases: int
    renewed: int
    longest: timedelta
    examples: tuple[Item, ...] = ()


def leases_live_longer_than_policy_allows(over: OverTtl) -> Iterator[Found]:
    if not over.leases or over.longest <= over.limit + TTL_SLACK:
        return
    yield Found(
        FindingKind.OVER_TTL,
        Severity.HIGH if over.longest > 10 * over.limit else Severity.MEDIUM,
        over.role.key,
        f"{many(over.leases, 'lease')} for {over.role} {'lives' if over.leases == 1 else 'live'} longer than "
        f"{span(over.limit.total_seconds())}",
        vault=over.role.vault,
        evidence=(
            Item(f"the longest lives {span(over.longest.total_seconds())} from its issue on"),
            Item(f"{over.renewed:,} of {over.leases:,} got there by renewals, the others were issued so"),
            *over.examples,
        ),
        weight=over.leases,
    )


@dataclass(frozen=True, slots=True)
class Doubled:
    """How often within DOUBLES_OVER one login or one pod of a service account read one role twice within DOUBLE_WITHIN."""

    account: Account
    role: Role
    times: int
    examples: tuple[Item, ...] = ()


def credentials_are_issued_twice_at_start(doubled: Doubled) -> Iterator[Found]:
    if not doubled.times:
        return
    account = doubled.account
    who = str(account) if account.name else "a login that is no service account's"
    yield Found(
        FindingKind.ISSUED_TWICE,
        Severity.LOW,
        f"{account.key} {doubled.role.mount}/{doubled.role.name}",
        f"{who} reads {doubled.role} twice within {span(DOUBLE_WITHIN.total_seconds())}: a lease more than it needs",
        vault=account.vault,
        culprit=str(account) if account.name else "",
        account=account if account.name else None,
        evidence=(
            Item(f"{many(doubled.times, 'time')} within {span(DOUBLES_OVER.total_seconds())}"),
            *doubled.examples,
        ),
        weight=doubled.times,
    )
