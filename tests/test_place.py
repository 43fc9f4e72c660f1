"""Where a session came from: the rule, case by case. Pure: no database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs

from audit.place import (
    LEASE_WAIT,
    STAYS_OPEN,
    WATCH_WAIT,
    Evidence,
    Holders,
    Occupant,
    Verdict,
    a_session_comes_from_its_holder_or_from_elsewhere,
    fitting,
    normal,
)
from leases.models import Certainty
from leases.models.sessions import Place

HOLDERS = Holders(count=1, expected=("shop/web-1 (10.0.0.1)",), nodes=("n1",), placed=1)
THERE = Holders(count=1, there=(("u1", "shop/web-1"),), expected=("shop/web-1 (10.0.0.1)",), nodes=("n1",), placed=1)
HOLDER = Occupant("c", "u1", "shop", "web-1", "web", "n1", False)
THIEF = Occupant("c", "u9", "tools", "debug-7", "debug", "n2", False)
OWN_NODE = Occupant("c", "u5", "kube-system", "proxy-1", "proxy", "n1", True)
OTHER_NODE = Occupant("c", "u6", "kube-system", "proxy-2", "proxy", "n2", True)
# the holder's session, seen a moment ago, with a watch that has come a minute past it
OWN = Evidence(
    address="10.0.0.1",
    user="v-web",
    at=datetime(2026, 11, 25, 12, tzinfo=UTC),
    waited=timedelta(seconds=2),
    certainty=Certainty.INFERRED,
    cluster="c",
    holder="shop/web-1",
    holders=THERE,
    occupants=(HOLDER,),
    read_from="10.0.0.1",
    read_at_a_pod=True,
    gapless=True,
    caught_up=True,
    settled=True,
)
# the same credential from an address that nobody has
STOLEN = replace(OWN, address="203.0.113.9", holders=HOLDERS, occupants=())
# what the holder reads and opens is translated to one address
TRANSLATED = replace(STOLEN, address="198.51.100.1", read_from="198.51.100.1", read_at_a_pod=False)


def judged(seen: Evidence, **changes: Any) -> Verdict:
    return a_session_comes_from_its_holder_or_from_elsewhere(replace(seen, **changes))


@pytest.mark.parametrize(
    ("seen", "place"),
    [
        (OWN, Place.HOLDER),
        # at once: what speaks for the holder needs no proof that nothing else does
        (replace(OWN, caught_up=False, gapless=False, settled=False), Place.HOLDER),
        (replace(OWN, certainty=Certainty.AMBIGUOUS), Place.HOLDER),
        (replace(OWN, certainty=Certainty.SERVICE_ACCOUNT), Place.HOLDER),
        (STOLEN, Place.ELSEWHERE),
        (replace(STOLEN, certainty=Certainty.EXACT), Place.ELSEWHERE),
        (replace(STOLEN, certainty=Certainty.AMBIGUOUS), Place.ELSEWHERE),
        (replace(STOLEN, certainty=Certainty.SERVICE_ACCOUNT), Place.ELSEWHERE),
        # never for a holder that is not known
        (replace(STOLEN, certainty=Certainty.UNKNOWN), Place.NOT_JUDGED),
        (replace(STOLEN, occupants=(THIEF,)), Place.ELSEWHERE),
        (replace(STOLEN, occupants=(OWN_NODE,)), Place.ELSEWHERE),
        (replace(STOLEN, nat=("203.0.113.0/24",)), Place.NAT),
        (replace(STOLEN, nat=("198.51.100.0/24",)), Place.ELSEWHERE),
        (replace(STOLEN, poolers=("203.0.113.9",)), Place.POOLER),
        (replace(STOLEN, poolers=("203.0.113.9",), nat=("203.0.113.0/24",)), Place.POOLER),
        (replace(OWN, nat=("10.0.0.0/8",)), Place.HOLDER),
        (replace(STOLEN, address="", poolers=("local",)), Place.POOLER),
        (replace(STOLEN, address=""), Place.ELSEWHERE),
        (replace(STOLEN, address="", poolers=("203.0.113.9",)), Place.ELSEWHERE),
        # whatever the configuration allows needs no watch
        (replace(STOLEN, nat=("203.0.113.0/24",), caught_up=False, gapless=False), Place.NAT),
        (replace(STOLEN, unwrapped_from="203.0.113.9"), Place.HOLDER),
        (TRANSLATED, Place.HOLDER),
        (replace(TRANSLATED, occupants=(THIEF,)), Place.ELSEWHERE),
        # a node's address, which its pods share: only those of the holder's own node
        (replace(TRANSLATED, occupants=(OWN_NODE,)), Place.HOLDER),
        (replace(TRANSLATED, occupants=(OTHER_NODE,)), Place.ELSEWHERE),
        (replace(TRANSLATED, occupants=(OWN_NODE, THIEF)), Place.ELSEWHERE),
        # its own address of then, which is nobody's now, or a new pod's
        (replace(STOLEN, address="10.0.0.1"), Place.ELSEWHERE),
        (replace(STOLEN, address="10.0.0.1", occupants=(THIEF,)), Place.ELSEWHERE),
        # its address came to be known a moment later; but not where another had it
        (replace(STOLEN, holders=structs.replace(HOLDERS, soon=("shop/web-1",))), Place.HOLDER),
        (replace(STOLEN, holders=structs.replace(HOLDERS, soon=("shop/web-1",)), occupants=(THIEF,)), Place.ELSEWHERE),
        (replace(STOLEN, unreadable="db.example"), Place.NOT_JUDGED),
        (replace(STOLEN, user="", lease_known=False), None),
        (replace(STOLEN, user="", lease_known=False, waited=LEASE_WAIT), Place.NOT_JUDGED),
        (replace(STOLEN, gapless=False), Place.NOT_JUDGED),
        (replace(STOLEN, for_unknown_others=True), Place.NOT_JUDGED),
        (replace(STOLEN, caught_up=False), None),
        (replace(STOLEN, caught_up=False, waited=WATCH_WAIT), Place.NOT_JUDGED),
        (replace(STOLEN, lease_known=False), None),
        (replace(STOLEN, lease_known=False, waited=LEASE_WAIT), Place.NOT_JUDGED),
    ],
)
def test_each_case_has_its_place(seen: Evidence, place: Place | None) -> None:
    verdict = judged(seen)
    assert verdict.place == place
    assert verdict.reason
    # what has no place yet is looked at again
    assert verdict.open or place is not None


def test_a_credential_that_travelled_names_both_ends() -> None:
    for changes, ends in (
        (
            {},
            "expected the address of shop/web-1 (10.0.0.1) in cluster c, but it came from 203.0.113.9, then the address of no pod",
        ),
        (
            {"occupants": (THIEF,)},
            "came from 203.0.113.9, then the address of tools/debug-7 (service account tools/debug, cluster c, node n2)",
        ),
        ({"occupants": (OTHER_NODE,)}, "came from 203.0.113.9, then the address of node n2 of cluster c"),
        ({"address": ""}, "came from a local socket, which is on the database server itself"),
        ({"read_from": "203.0.113.9", "occupants": (THIEF,)}, "; the credential was read from there, too"),
        (
            {"holders": Holders(count=1, expected=("shop/web-1 (ended 2026-11-25T11:00:00Z)",))},
            "expected the address of shop/web-1 (ended 2026-11-25T11:00:00Z)",
        ),
        (
            {"holders": Holders(count=5, expected=("shop/web-1 (10.0.0.1)", "shop/web-2 (10.0.0.2)"), placed=5)},
            "expected the address of one of 5 pods in cluster c: shop/web-1 (10.0.0.1), shop/web-2 (10.0.0.2) and 3 more",
        ),
        (
            {"holders": Holders(), "certainty": Certainty.SERVICE_ACCOUNT, "holder": "service account shop/web"},
            "expected no session at all, since no pod of service account shop/web in cluster c was known then",
        ),
    ):
        verdict = judged(STOLEN, **changes)
        assert verdict.place is Place.ELSEWHERE
        assert ends in verdict.reason


def test_an_own_node_that_is_not_allowed_says_what_to_write_where_it_translates_addresses() -> None:
    verdict = judged(STOLEN, occupants=(OWN_NODE,))
    assert verdict.place is Place.ELSEWHERE
    assert "node n1" in verdict.reason
    assert "name 203.0.113.9 under nat" in verdict.reason
    assert "under nat" not in judged(STOLEN, occupants=(OTHER_NODE,)).reason


def test_what_is_allowed_says_by_which_entry_and_who_else_had_the_address() -> None:
    verdict = judged(STOLEN, nat=("203.0.0.0/16", "203.0.113.0/24"), occupants=(THIEF,))
    assert verdict.place is Place.NAT
    assert "203.0.113.0/24 in nat" in verdict.reason
    assert "tools/debug-7" in verdict.reason
    assert "local in poolers" in judged(STOLEN, address="", poolers=("local",)).reason


@pytest.mark.parametrize("certainty", [Certainty.INFERRED, Certainty.SERVICE_ACCOUNT])
def test_a_pod_that_has_just_started_and_whose_address_is_not_known_yet_is_waited_for(certainty: Certainty) -> None:
    starting = Holders(count=1, expected=("shop/web-1 (no address known)",), unplaced=("shop/web-1",), nodes=("n1",))
    verdict = judged(STOLEN, holders=starting, settled=False, certainty=certainty)
    assert (verdict.place, verdict.open) == (None, True)
    assert "shop/web-1" in verdict.reason
    # the watch ended just after it
    behind = judged(STOLEN, holders=starting, settled=False, certainty=certainty, waited=WATCH_WAIT)
    assert (behind.place, behind.open) == (Place.NOT_JUDGED, True)
    # a minute later there is still none: nothing can be compared
    assert judged(STOLEN, holders=starting, certainty=certainty).place is Place.NOT_JUDGED
    # nor is the pod known at all
    nobody = judged(STOLEN, holders=Holders(), settled=False)
    assert (nobody.place, nobody.open) == (None, True)
    assert judged(STOLEN, holders=Holders()).place is Place.NOT_JUDGED


def test_of_a_service_account_a_pod_that_hangs_without_an_address_hides_nothing_for_long() -> None:
    some = structs.replace(HOLDERS, count=2, unplaced=("shop/web-2",))
    assert judged(STOLEN, certainty=Certainty.SERVICE_ACCOUNT, holders=some, settled=False).place is None
    assert judged(STOLEN, certainty=Certainty.SERVICE_ACCOUNT, holders=some).place is Place.ELSEWHERE


def test_a_finding_is_made_at_once_and_stays_open_until_no_address_of_then_can_turn_up() -> None:
    early, late = judged(STOLEN, settled=False), judged(STOLEN)
    assert early.place is late.place is Place.ELSEWHERE
    assert (early.open, late.open) == (True, False)
    # the watch ended just after it
    assert not judged(STOLEN, settled=False, waited=STAYS_OPEN).open


def test_a_holder_that_the_watch_may_have_lost_since_is_looked_at_again() -> None:
    assert judged(OWN, caught_up=False).open
    assert not judged(OWN, caught_up=False, waited=STAYS_OPEN).open
    assert not judged(OWN).open


def test_what_rests_on_a_guess_says_so() -> None:
    assert judged(STOLEN, guessed=True).reason.endswith("that v-web is this lease's user is a guess by time and name")


def test_a_watch_that_is_behind_for_long_is_told_and_may_still_catch_up() -> None:
    behind = replace(STOLEN, caught_up=False)
    assert judged(behind, waited=WATCH_WAIT).open
    assert not judged(behind, waited=STAYS_OPEN).open
    assert "pod watch of cluster c has not come past" in judged(behind, waited=STAYS_OPEN).reason
    gap = judged(STOLEN, gapless=False)
    assert ("had a gap" in gap.reason, gap.open) == (True, False)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("FD00:0:0::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
        ("localhost", ""),
    ],
)
def test_addresses_compare_in_their_normal_form(written: str, read: str) -> None:
    assert normal(written) == read


@pytest.mark.parametrize(
    ("address", "entries", "entry"),
    [
        ("10.0.0.1", ("10.0.0.1",), "10.0.0.1"),
        ("10.0.0.1", ("10.0.0.0/8", "10.0.0.0/24"), "10.0.0.0/24"),
        ("10.0.0.1", ("::ffff:10.0.0.0/104",), "::ffff:10.0.0.0/104"),
        ("10.0.0.1", ("fd00::/8", "local"), ""),
        ("fd00::1", ("FD00::/8",), "FD00::/8"),
        ("", ("local", "10.0.0.0/8"), "local"),
        ("", ("10.0.0.0/8",), ""),
    ],
)
def test_an_entry_covers_an_address_in_whatever_form_both_are_written(
    address: str, entries: tuple[str, ...], entry: str
) -> None:
    assert fitting(address, entries) == entry
