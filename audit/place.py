"""Where a session came from, against where its lease's holder was when it began: the rule, pure.

Never a finding for what is not known: whatever evidence is missing leads to waiting, and in the end to "not judged".
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

import msgspec

from leases.models import Certainty
from leases.models.sessions import Place

# a session waits so long for its user's lease
LEASE_WAIT = timedelta(minutes=5)
# and so long for the pod watch to come past it, before it says that it is not judged; then, whether later data may still tell
WATCH_WAIT = timedelta(minutes=10)
STAYS_OPEN = timedelta(hours=1)
# how the configuration names a pooler on the server itself
LOCAL = "local"


class Occupant(msgspec.Struct, frozen=True, array_like=True):
    """A pod that had the session's address when it began, give or take the skew."""

    cluster: str
    uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    host_network: bool

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Holders(msgspec.Struct, frozen=True, array_like=True):
    """The pods that may hold the lease. Lists name the first few, `count` says how many they are in all.

    `there`: uid and name of those that had the address; `soon`: that got it within a minute after, as far as the cluster's API
    tells; `expected`: names with what was known of their addresses then; `unplaced`: alive on a node, with no known address.
    """

    count: int = 0
    soon: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    # how many had a known address then
    placed: int = 0
    there: tuple[tuple[str, str], ...] = ()


NO_HOLDERS = Holders()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the rule looks at. Addresses are in their normal form, empty for a local socket."""

    address: str
    user: str
    at: datetime
    # since it was first seen
    waited: timedelta
    # what the server says instead of an address
    unreadable: str = ""
    nat: tuple[str, ...] = ()
    poolers: tuple[str, ...] = ()
    lease_known: bool = True
    # that the user is the lease's is a guess by time and name
    guessed: bool = False
    certainty: Certainty = Certainty.UNKNOWN
    certainty_reason: str = ""
    cluster: str = ""
    # of the lease: a pod, else a service account
    holder: str = ""
    holders: Holders = NO_HOLDERS
    # an operator fetched it, and for which pods is not known
    for_unknown_others: bool = False
    occupants: tuple[Occupant, ...] = ()
    # where the credential was read at Vault, and unwrapped
    read_from: str = ""
    unwrapped_from: str = ""
    # that, or the address of its login, was then a pod's own, so nothing translates addresses on the way to Vault
    read_at_a_pod: bool = False
    # of the pod watch of the holder's cluster: no gap when the session began, come past that, and come a minute past that
    gapless: bool = False
    caught_up: bool = False
    settled: bool = False

    @property
    def named(self) -> bool:
        """One pod holds the lease for sure."""
        return self.certainty in (Certainty.EXACT, Certainty.INFERRED)

    @property
    def holds(self) -> str:
        return "holds" if self.named else "may hold"

    @property
    def others(self) -> tuple[Occupant, ...]:
        """Who had the address and cannot hold the lease."""
        own = {uid for uid, _ in self.holders.there}
        return tuple(pod for pod in self.occupants if pod.uid not in own)

    @property
    def node(self) -> str:
        """The node whose address it is: a pod on the host network has it."""
        return next((pod.node for pod in self.occupants if pod.host_network), "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`place` is empty while the evidence is not there yet. `open`: later evidence can still change it."""

    place: Place | None
    reason: str
    open: bool = False


def a_session_comes_from_its_holder_or_from_elsewhere(seen: Evidence) -> Verdict:
    """Where a session came from, with the reason in words."""
    if not seen.lease_known or not seen.user:
        return its_lease_is_not_known(seen)
    if seen.certainty is Certainty.UNKNOWN:
        return Verdict(
            Place.NOT_JUDGED, f"who holds its lease is not known: {seen.certainty_reason or 'no reason yet'}"
        )
    if seen.unreadable:
        return Verdict(
            Place.NOT_JUDGED, f"{seen.unreadable!r} is no address, so it cannot be compared with those of pods"
        )
    return (
        a_pod_of_the_holder_had_the_address(seen)
        or the_database_allows_the_address(seen)
        or the_credential_was_unwrapped_there(seen)
        or nobody_can_say_yet(seen)
        or the_credential_was_read_there(seen)
        or the_holder_got_the_address_a_moment_later(seen)
        or it_came_from_elsewhere(seen)
    )


def its_lease_is_not_known(seen: Evidence) -> Verdict:
    if seen.waited < LEASE_WAIT:
        return Verdict(None, f"the lease of {seen.user or 'its dropped user'} is not known yet", open=True)
    if not seen.user:
        return Verdict(Place.NOT_JUDGED, "its user was dropped before anybody saw its name, so its lease is not known")
    return Verdict(Place.NOT_JUDGED, f"the lease of {seen.user} is not known: no read that was logged fits its name")


def a_pod_of_the_holder_had_the_address(seen: Evidence) -> Verdict | None:
    if not seen.address or not seen.holders.there:
        return None
    names = ", ".join(name for _, name in seen.holders.there)
    return Verdict(
        Place.HOLDER,
        f"{seen.address} was then the address of {names}, which {seen.holds} the lease",
        # where the watch is behind, the pod may have ended by then
        open=not seen.caught_up and seen.waited < STAYS_OPEN,
    )


def the_database_allows_the_address(seen: Evidence) -> Verdict | None:
    # what is named as one address tells more than a network
    for place, word, entries in ((Place.POOLER, "poolers", seen.poolers), (Place.NAT, "nat", seen.nat)):
        if entry := fitting(seen.address, entries):
            pods = [str(pod) for pod in seen.others if not pod.host_network]
            also = f"; it was then the address of {', '.join(pods)}, too" if pods else ""
            return Verdict(place, f"{came_from(seen)} is allowed by {entry} in {word} of the database{also}")
    return None


def the_credential_was_unwrapped_there(seen: Evidence) -> Verdict | None:
    if not seen.address or seen.address != seen.unwrapped_from:
        return None
    return Verdict(Place.HOLDER, f"{seen.address} is the address that took the credential out of its wrapping")


def nobody_can_say_yet(seen: Evidence) -> Verdict | None:
    """What speaks against an address needs a pod watch that has come past the session without a gap."""
    watch = f"the pod watch of cluster {seen.cluster}"
    if not seen.caught_up:
        return later_data_may_tell(seen, f"{watch} has not come past its start yet")
    if not seen.gapless:
        return Verdict(Place.NOT_JUDGED, f"{watch} had a gap when it began")
    if seen.for_unknown_others:
        return Verdict(Place.NOT_JUDGED, "an operator fetched the credential, and for which pods is not known")
    pods = ", ".join(name for name in seen.holders.unplaced if name not in seen.holders.soon)
    if pods and not seen.settled:
        return later_data_may_tell(seen, f"the address of {pods}, which may hold the lease, is not known yet")
    # of a service account a pod may hang for ever, and the others tell enough
    if pods and not seen.holders.placed:
        return Verdict(Place.NOT_JUDGED, f"no address of {pods}, which may hold the lease, was known then")
    if seen.named and not seen.holders.count:
        who = f"{seen.holder}, which holds the lease,"
        if not seen.settled:
            return later_data_may_tell(seen, f"{who} is not known in cluster {seen.cluster} yet")
        return Verdict(Place.NOT_JUDGED, f"{who} was never seen in cluster {seen.cluster}")
    return None


def later_data_may_tell(seen: Evidence, why: str) -> Verdict:
    """It waits; after long it says that it is not judged, and in the end it waits no more."""
    if seen.waited < WATCH_WAIT:
        return Verdict(None, why, open=True)
    return Verdict(Place.NOT_JUDGED, why, open=seen.waited < STAYS_OPEN)


def the_credential_was_read_there(seen: Evidence) -> Verdict | None:
    """The same address towards Vault and towards the database: a NAT, or a node, that stands before the holder."""
    if not seen.address or seen.address != seen.read_from:
        return None
    if any(not pod.host_network for pod in seen.others):
        return None
    where = f"{seen.address} is the address by which the credential was read at Vault"
    if seen.node:
        if seen.node not in seen.holders.nodes:
            return None
        return Verdict(
            Place.HOLDER, f"{where}: that of node {seen.node}, which its pods share; one of them {seen.holds} the lease"
        )
    if seen.read_at_a_pod:
        # an own address that is nobody's any more, or somebody's who read with a stolen token
        return None
    return Verdict(Place.HOLDER, f"{where}, and no pod had it: its pods reach out through it")


def the_holder_got_the_address_a_moment_later(seen: Evidence) -> Verdict | None:
    """A pod uses an address before the cluster's API shows it."""
    if not seen.address or not seen.holders.soon or seen.others:
        return None
    names = ", ".join(seen.holders.soon)
    return Verdict(
        Place.HOLDER, f"{seen.address} came to be known a moment later as that of {names}, which {seen.holds} the lease"
    )


def it_came_from_elsewhere(seen: Evidence) -> Verdict:
    guess = f"; that {seen.user} is this lease's user is a guess by time and name" if seen.guessed else ""
    return Verdict(
        Place.ELSEWHERE,
        f"expected {expected(seen)}, but it came from {came_from(seen)}, {whose(seen)}{guess}",
        # an address of then can still turn up
        open=not seen.settled and seen.waited < STAYS_OPEN,
    )


def expected(seen: Evidence) -> str:
    """Where the holder was."""
    holders = seen.holders
    if not holders.count:
        return f"no session at all, since no pod of {seen.holder} in cluster {seen.cluster} was known then"
    names = ", ".join(holders.expected)
    more = holders.count - len(holders.expected)
    names += f" and {more} more" if more > 0 else ""
    if holders.count == 1:
        return f"the address of {names} in cluster {seen.cluster}"
    return f"the address of one of {holders.count} pods in cluster {seen.cluster}: {names}"


def came_from(seen: Evidence) -> str:
    return seen.address or "a local socket"


def whose(seen: Evidence) -> str:
    """The other end: which pod, node or nothing had the address."""
    if not seen.address:
        return "which is on the database server itself"
    read = "; the credential was read from there, too" if seen.address == seen.read_from else ""
    pods = [pod for pod in seen.others if not pod.host_network]
    if pods:
        named = ", ".join(
            f"{pod} (service account {pod.namespace}/{pod.service_account}, cluster {pod.cluster}, node {pod.node})"
            for pod in pods
        )
        return f"then the address of {named}{read}"
    if seen.node:
        cluster = next(pod.cluster for pod in seen.occupants if pod.host_network)
        hint = (
            f"; the holder runs there: if the node translates addresses towards this database, name {seen.address} under nat"
            if seen.node in seen.holders.nodes
            else ""
        )
        return f"then the address of node {seen.node} of cluster {cluster}{hint}{read}"
    return f"then the address of no pod and no node that is known{read}"


def normal(address: str) -> str:
    """An address in the form in which two of them compare; empty for a local socket, and for what is none."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(ip, "ipv4_mapped", None)
    return str(mapped or ip)


def fitting(address: str, entries: tuple[str, ...]) -> str:
    """The narrowest of these addresses and networks that covers the address; empty where none does."""
    if not address:
        return LOCAL if LOCAL in entries else ""
    ip = ip_address(address)
    networks = []
    for entry in entries:
        if entry == LOCAL:
            continue
        network = ip_network(entry, strict=False)
        # ::ffff:10.0.0.0/104 is 10.0.0.0/8
        if network.version == 6 and (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
            network = ip_network(f"{mapped}/{network.prefixlen - 96}", strict=False)
        if ip.version == network.version and ip in network:
            networks.append((network.prefixlen, entry))
    return max(networks)[1] if networks else ""
