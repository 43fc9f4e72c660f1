"""The time machine: who could read a database at an instant, what changed between two, and what the answer cannot know."""

import csv
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from io import StringIO
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import timemachine
from audit.hours import Hour, State
from audit.models import Coverage, Stream
from audit.timemachine import Change, around, changed, could_read, counts, difference, doubts, incomplete_hours
from leases import lookups
from leases.models import Certainty, Database, EndReason, Lease, LeaseState, Login
from tests import factories

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

BEGAN = datetime(2026, 11, 20, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def held(began: datetime = BEGAN, *, minutes: float | None = 60, **fields: Any) -> Lease:
    """A lease that was read at `began` and ended so many minutes later, or is still live."""
    ended_at = began + timedelta(minutes=minutes) if minutes is not None else None
    end = {"state": LeaseState.ENDED, "ended_at": ended_at, "end_reason": EndReason.EXPIRED} if ended_at else {}
    times: dict[str, Any] = {"accessed_at": began, "issued_at": began, "expires_at": ended_at, "looked_up_at": began}
    return factories.lease(**{**times, "first_seen_at": began, **end, **fields})


def live(at: datetime, database: Database | None = None) -> set[int]:
    return {row.lease.pk for row in could_read(database or factories.database(), at=at, size=None).rows}


def text(response: Any) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", response.content.decode())))


# --- when a lease is live ----------------------------------------------------------------------------------------


def test_a_lease_is_live_from_its_read_until_just_before_its_end() -> None:
    lease = held()
    end = BEGAN + timedelta(minutes=60)
    assert live(BEGAN - TICK) == set()
    assert live(BEGAN) == live(end - TICK) == {lease.pk}
    assert live(end) == set()


def test_a_lease_that_has_not_ended_is_live_ever_since() -> None:
    lease = held(minutes=None)
    assert live(BEGAN - TICK) == set()
    assert live(timezone.now()) == {lease.pk}


def test_a_revoked_lease_is_live_until_it_was_revoked_whatever_its_time_would_have_been() -> None:
    held(
        minutes=5,
        end_reason=EndReason.REVOKED_IN_VAULT,
        expires_at=BEGAN + timedelta(hours=1),
    )
    assert len(live(BEGAN + timedelta(minutes=4))) == 1
    assert live(BEGAN + timedelta(minutes=6)) == set()


def test_a_lease_that_is_told_to_have_ended_before_it_began_never_was_live() -> None:
    held(minutes=-1)
    for minutes in (-2, -1, -0.5, 0, 1):
        assert live(BEGAN + timedelta(minutes=minutes)) == set()


def test_while_an_agent_fetches_anew_both_of_its_leases_are_live() -> None:
    pod: dict[str, Any] = {"pod": "checkout-1", "pod_uid": "u-1"}
    first, second = held(minutes=60, **pod), held(BEGAN + timedelta(minutes=50), minutes=60, **pod)
    assert live(BEGAN + timedelta(minutes=40)) == {first.pk}
    assert live(BEGAN + timedelta(minutes=55)) == {first.pk, second.pk}
    assert live(BEGAN + timedelta(minutes=70)) == {second.pk}


def test_another_databases_leases_are_not_there_and_those_of_an_unknown_one_are_asked_for_apart() -> None:
    here, there, nowhere = held(), held(database=factories.database("billing")), held(database=None)
    at = BEGAN + timedelta(minutes=1)
    assert live(at) == {here.pk}
    assert live(at, factories.database("billing")) == {there.pk}
    assert [row.lease.pk for row in could_read(None, at=at).rows] == [nowhere.pk]


def test_what_is_live_at_any_instant_is_what_plain_arithmetic_says() -> None:
    dice = random.Random(7)  # noqa: S311
    leases = [
        held(BEGAN + timedelta(seconds=dice.randrange(600)), minutes=dice.choice([None, 0, 1, 3, 9])) for _ in range(60)
    ]
    for _ in range(40):
        at = BEGAN + timedelta(seconds=dice.randrange(1500))
        expected = {
            row.pk
            for row in leases
            if row.accessed_at and row.accessed_at <= at and (row.ended_at is None or at < row.ended_at)
        }
        assert live(at) == expected
        assert counts(factories.database(), at=at).total() == len(expected)


# --- the difference of two instants ------------------------------------------------------------------------------


def test_the_difference_names_what_was_gained_lost_and_kept() -> None:
    lost, kept = held(minutes=30), held(minutes=90, certainty=Certainty.AMBIGUOUS)
    gained = held(BEGAN + timedelta(minutes=40))
    held(BEGAN + timedelta(minutes=31), minutes=2)  # at neither
    at, to = BEGAN + timedelta(minutes=10), BEGAN + timedelta(minutes=60)
    expected = {Change.GAINED: gained, Change.LOST: lost, Change.KEPT: kept}
    for change, lease in expected.items():
        assert [row.lease.pk for row in changed(lease.database, change, at=at, to=to).rows] == [lease.pk]
    found = difference(factories.database(), at=at, to=to)
    assert found == {change: {lease.certainty: 1} for change, lease in expected.items()}


def test_the_difference_read_backwards_swaps_gained_and_lost_and_adds_up() -> None:
    dice = random.Random(11)  # noqa: S311
    for _ in range(50):
        held(BEGAN + timedelta(seconds=dice.randrange(600)), minutes=dice.choice([None, 1, 3, 9]))
    database = factories.database()
    for _ in range(20):
        at, to = (BEGAN + timedelta(seconds=dice.randrange(1200)) for _ in range(2))
        there, back = difference(database, at=at, to=to), difference(database, at=to, to=at)
        assert there[Change.GAINED] == back[Change.LOST]
        assert there[Change.LOST] == back[Change.GAINED]
        assert there[Change.KEPT] == back[Change.KEPT]
        assert there[Change.KEPT] + there[Change.LOST] == counts(database, at=at)
        assert there[Change.KEPT] + there[Change.GAINED] == counts(database, at=to)


# --- what is not certain -----------------------------------------------------------------------------------------


def test_a_lease_that_was_found_gone_is_doubted_only_after_the_last_thing_that_proves_it() -> None:
    lease = held(minutes=None, expires_at=BEGAN + timedelta(hours=9), looked_up_at=BEGAN + timedelta(minutes=20))
    lookups.end_gone(lease, now=BEGAN + timedelta(minutes=50))
    lease.refresh_from_db()
    assert lease.end_reason == EndReason.UNKNOWN
    (row,) = could_read(lease.database, at=BEGAN + timedelta(minutes=20)).rows
    assert row.doubts == []
    (row,) = could_read(lease.database, at=BEGAN + timedelta(minutes=30)).rows
    (doubt,) = row.doubts
    assert "a lookup found it gone at 2026-11-20 12:50:00 UTC" in doubt
    assert "last known to live at 2026-11-20 12:20:00 UTC" in doubt


def test_a_token_that_was_ended_without_its_lease_ends_it_with_its_own_time_at_the_earliest() -> None:
    ended_at, expires_at = (BEGAN + timedelta(minutes=minutes) for minutes in (1, 120))
    lease = held(minutes=None, expires_at=BEGAN + timedelta(hours=9), looked_up_at=BEGAN + timedelta(minutes=20))
    lease.login = factories.login(lease)
    Login.objects.filter(pk=lease.login.pk).update(ended_at=ended_at, end_reason="revoked", expires_at=expires_at)
    Lease.objects.filter(pk=lease.pk).update(login=lease.login)
    lookups.end_gone(lease, now=BEGAN + timedelta(hours=3))
    lease.refresh_from_db()
    assert (lease.end_reason, lease.ended_at) == (EndReason.EXPIRED, expires_at)


def test_a_lease_ends_with_the_time_of_the_token_that_made_its_token() -> None:
    expires_at, now = BEGAN + timedelta(minutes=10), BEGAN + timedelta(minutes=11)
    lease = held(minutes=None, expires_at=BEGAN + timedelta(hours=1), lookup_due_at=BEGAN + timedelta(hours=1))
    parent, child = factories.login(lease), factories.login(lease)
    Login.objects.filter(pk=parent.pk).update(expires_at=expires_at)
    Login.objects.filter(pk=child.pk).update(expires_at=BEGAN + timedelta(hours=2), parent=parent)
    Lease.objects.filter(pk=lease.pk).update(login=child)
    lookups.ask_of_ended_tokens(lease.vault, now=now)
    assert lookups.due(lease.vault, now=now) == [lease]
    lookups.end_gone(lease, now=now)
    lease.refresh_from_db()
    assert (lease.end_reason, lease.ended_at) == (EndReason.EXPIRED, expires_at)
    # an orphan lives on
    Login.objects.filter(pk=child.pk).update(is_orphan=True)
    assert lookups.token_times([child.pk]) == {child.pk: BEGAN + timedelta(hours=2)}


def test_a_lease_that_is_still_there_after_its_tokens_time_is_asked_for_once_more_and_not_ended_by_that() -> None:
    expires_at = BEGAN + timedelta(minutes=10)
    lease = held(minutes=None, expires_at=BEGAN + timedelta(hours=1), lookup_due_at=BEGAN + timedelta(hours=1))
    login = factories.login(lease)
    Login.objects.filter(pk=login.pk).update(expires_at=expires_at)

    def asked(seconds: float) -> bool:
        """Whether it is looked up so long after the token's time; it is then."""
        at = expires_at + timedelta(seconds=seconds)
        lookups.ask_of_ended_tokens(lease.vault, now=at)
        due = lookups.due(lease.vault, now=at)
        if due:
            Lease.objects.update(looked_up_at=at, lookup_due_at=lease.expires_at)
        return bool(due)

    Lease.objects.filter(pk=lease.pk).update(login=login)
    assert [asked(seconds) for seconds in (0.5, 1, 2, 9, 11, 12, 60)] == [False, True, False, False, True, False, False]
    lookups.end_gone(lease, now=BEGAN + timedelta(hours=2))
    lease.refresh_from_db()
    assert (lease.end_reason, lease.ended_at) == (EndReason.EXPIRED, lease.expires_at)


def test_a_lease_whose_end_has_a_known_cause_is_not_doubted() -> None:
    lease = held(minutes=5, end_reason=EndReason.REVOKED_IN_VAULT)
    assert doubts(lease, at=BEGAN + timedelta(minutes=4)) == []


def test_a_lease_without_an_event_says_whether_its_issue_is_known() -> None:
    listed = held(minutes=None, request_id="", accessed_at=None, issued_at=BEGAN - timedelta(hours=3))
    assert live(BEGAN - timedelta(hours=3)) == {listed.pk}
    assert "Vault says when" in doubts(listed, at=BEGAN)[0]
    older = held(minutes=None, request_id="", accessed_at=None, issued_at=None)
    assert "may be older" in doubts(older, at=BEGAN)[0]
    assert timemachine.older_than_seen(older.database, at=BEGAN - TICK) == 1
    assert timemachine.older_than_seen(older.database, at=BEGAN) == 0


def test_a_lease_past_its_time_that_nobody_saw_gone_and_one_that_nobody_asks_for_say_so() -> None:
    over = held(minutes=None, expires_at=BEGAN + timedelta(minutes=5))
    assert doubts(over, at=BEGAN + timedelta(minutes=4)) == []
    assert "nobody has seen it gone" in doubts(over, at=BEGAN + timedelta(minutes=6))[0]
    offline = factories.vault("offline", retired=True)
    database = Database.objects.create(vault=offline, mount="database", name="old")
    foreign = held(minutes=None, vault=offline, database=database)
    assert "Nobody asks its vault any more" in doubts(foreign, at=BEGAN)[0]


def test_leases_that_were_dropped_by_force_are_named_afterwards() -> None:
    forced = held(minutes=5, end_reason=EndReason.FORCED)
    database = factories.database()
    assert timemachine.forced_before(database, at=BEGAN + timedelta(minutes=4)) == []
    assert timemachine.forced_before(database, at=BEGAN + timedelta(minutes=6)) == [forced]


def an_hour(*, rejected: int = 0, gaps: int = 0, unread: bool = False, lines: bool = True) -> Hour:
    return Hour(BEGAN, State.COMPLETE, Coverage(lines=9, rejected=rejected) if lines else None, gaps, unread)


@pytest.mark.parametrize(
    ("nodes", "incomplete"),
    [
        ([[[an_hour()]]], 0),
        ([[[an_hour(gaps=1)]]], 1),
        ([[[an_hour(unread=True)]]], 1),
        ([[[an_hour(rejected=1)]]], 1),
        # the other device of the node has it all
        ([[[an_hour(gaps=1)], [an_hour()]]], 0),
        # it has nothing of that hour
        ([[[an_hour(gaps=1)], [an_hour(lines=False)]]], 1),
        # the other node logs other requests
        ([[[an_hour(gaps=1)]], [[an_hour()]]], 1),
        # a standby has nothing to log
        ([[[an_hour(lines=False)]], [[an_hour()]]], 0),
        ([[[an_hour(lines=False)]]], 1),
        ([], 0),
    ],
)
def test_an_hour_is_incomplete_where_a_node_has_no_whole_stream_or_nobody_has_a_line(
    nodes: list[list[list[Hour]]], incomplete: int
) -> None:
    assert incomplete_hours(nodes) == incomplete


def test_the_hours_around_an_instant_count_gaps_of_the_databases_own_vault_alone() -> None:
    now = timezone.now()
    stream = factories.stream()
    for hours_ago in range(40):
        factories.coverage(stream, hours_ago=hours_ago)
    factories.stream("file-b", path="")
    known = around(factories.database(), at=now, now=now)
    assert (known.hours, known.incomplete) == (24, 0)
    factories.gap(stream, hours_ago=2, seconds=1)
    assert around(factories.database(), at=now, now=now).incomplete == 1
    assert around(factories.database(), at=now - timedelta(hours=6), now=now).incomplete == 0
    other = Database.objects.create(vault=factories.vault("second"), mount="database", name="orders")
    assert around(other, at=now, now=now).known_from is None


def test_what_a_refused_stream_would_have_told_is_missing_whatever_the_other_nodes_have() -> None:
    now = timezone.now()
    whole, refused = factories.stream(node="bao-0"), factories.stream(node="bao-1", path="", pushed=True)
    for hours_ago in range(24):
        factories.coverage(whole, hours_ago=hours_ago)
    assert around(factories.database(), at=now, now=now).incomplete == 0
    Stream.objects.filter(pk=refused.pk).update(refused="auth.client_token stands in plain text")
    assert around(factories.database(), at=now, now=now).incomplete == 24
    Stream.objects.filter(pk=refused.pk).update(last_line_at=now - timedelta(hours=3))
    assert around(factories.database(), at=now, now=now).incomplete == 4
    Stream.objects.filter(pk=refused.pk).update(retired=True)
    assert around(factories.database(), at=now, now=now).incomplete == 0


# --- pages of the answer -----------------------------------------------------------------------------------------


def test_pages_show_every_lease_once_by_holder() -> None:
    for number in range(7):
        held(pod=f"pod-{number % 3}", pod_uid=f"uid-{number % 3}")
    held(certainty=Certainty.SERVICE_ACCOUNT)
    held(certainty=Certainty.UNKNOWN, accessed_at=None)
    seen: list[Lease] = []
    after = None
    while True:
        page = could_read(factories.database(), at=BEGAN, after=after, size=2)
        seen += [row.lease for row in page.rows]
        after = page.after
        if after is None:
            break
    assert len(seen) == len({row.pk for row in seen}) == 9
    assert [row.pod for row in seen] == ["pod-0"] * 3 + ["pod-1"] * 2 + ["pod-2"] * 2 + ["", ""]
    assert [row.service_account for row in seen][-2:] == ["checkout", ""]


def test_a_page_after_a_lease_that_does_not_exist_is_no_page() -> None:
    with pytest.raises(timemachine.NoSuchPlace):
        could_read(factories.database(), at=BEGAN, after=1)


# --- the page ----------------------------------------------------------------------------------------------------

ORDERS = "demo/database/orders"


def path(**query: str) -> str:
    return "/access?" + "&".join(f"{name}={value}" for name, value in query.items())


def test_the_page_says_who_could_read_and_links_to_the_evidence(viewer: Client) -> None:
    lease = held(pod="checkout-7")
    body = viewer.get(path(database=ORDERS, at="2026-11-20T12:30")).content.decode()
    assert "checkout-7" in body
    assert f'href="/leases/{lease.pk}#request-{lease.request_id}"' in body
    factories.event(lease)
    assert f'id="request-{lease.request_id}"' in viewer.get(f"/leases/{lease.pk}").content.decode()
    assert "Nobody is known to have held" in text(viewer.get(path(database=ORDERS, at="2026-11-20T14:00")))


def test_without_a_moment_the_answer_is_for_now_and_without_a_database_it_asks_for_one(viewer: Client) -> None:
    held(minutes=None, pod="checkout-now")
    assert "checkout-now" in text(viewer.get(path(database=ORDERS)))
    body = viewer.get("/access").content.decode()
    assert "Choose a database" in body
    assert f'href="/access?database={ORDERS.replace("/", "%2F")}"' in body


def test_two_moments_are_compared_and_each_change_can_be_listed(viewer: Client) -> None:
    held(minutes=30, pod="pod-lost")
    held(BEGAN + timedelta(minutes=40), pod="pod-gained")
    query = {"database": ORDERS, "at": "2026-11-20T12:10", "to": "2026-11-20T13:00"}
    assert "pod-gained" in text(viewer.get(path(**query)))
    body = text(viewer.get(path(**query, show="lost")))
    assert "pod-lost" in body
    assert "pod-gained" not in body


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"at": "2040-01-01T00:00"}, "still to come"),
        ({"at": "yesterday"}, "A moment is written as"),
        ({"at": "2001-01-01T00:00"}, "No audit log can be of that time"),
        ({"to": "2040-01-01T00:00"}, "still to come"),
        ({"database": "demo/database/nowhere"}, "No such database is watched"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_to_do(viewer: Client, query: dict[str, str], said: str) -> None:
    factories.database()
    body = text(viewer.get(path(**{"database": ORDERS, **query})))
    assert said in body
    assert "Nothing is shown until the form is mended" in body


@pytest.mark.parametrize("query", [{"after": "x"}, {"after": "999999"}, {"to": "2026-11-20T12:00", "show": "all"}])
def test_a_page_of_the_answer_that_this_site_did_not_name_is_refused(viewer: Client, query: dict[str, str]) -> None:
    factories.database()
    assert viewer.get(path(**{"database": ORDERS, "at": "2026-11-20T12:30", **query})).status_code == 400


def test_a_moment_before_the_first_line_says_from_when_on_data_exists(viewer: Client) -> None:
    factories.database()
    assert "No audit line has been read of this vault yet" in text(viewer.get(path(database=ORDERS)))
    factories.coverage(factories.stream())
    body = text(viewer.get(path(database=ORDERS, at="2026-01-01T00:00")))
    assert "this moment is before that" in body


def test_an_incomplete_log_stands_above_the_answer(viewer: Client) -> None:
    for hours_ago in range(30):
        factories.coverage(factories.stream(), hours_ago=hours_ago)
    factories.database()
    now = f"{timezone.now():%Y-%m-%dT%H:%M:%S}"
    Stream.objects.update(read_at=timezone.now())
    assert "hours up to this moment the audit log is complete" in text(viewer.get(path(database=ORDERS, at=now)))
    factories.gap(factories.stream(), hours_ago=2, seconds=1)
    assert "The answer may be incomplete: in 1 of the 24 hours" in text(viewer.get(path(database=ORDERS, at=now)))


def test_of_two_moments_the_log_up_to_each_is_told(viewer: Client) -> None:
    now, stream = timezone.now(), factories.stream(read_at=timezone.now())
    for hours_ago in range(40):
        factories.coverage(stream, hours_ago=hours_ago)
    factories.gap(stream, hours_ago=2, seconds=1)
    factories.database()
    at, to = (f"{now - timedelta(hours=hours):%Y-%m-%dT%H:%M:%S}" for hours in (6, 0))
    for query in ({"at": at, "to": to}, {"at": to, "to": at}):
        body = text(viewer.get(path(database=ORDERS, **query)))
        assert re.search("In all 24 hours up to .* the audit log is complete", body)
        assert "The answer may be incomplete: in 1 of the 24 hours" in body


def test_the_csv_holds_the_whole_answer_with_its_doubts(viewer: Client) -> None:
    for number in range(60):
        held(pod=f"pod-{number:02}", minutes=30, end_reason=EndReason.UNKNOWN)
    page = viewer.get(path(database=ORDERS, at="2026-11-20T12:10")).content.decode()
    (address,) = re.findall(r'href="(/access\.csv[^"]*)"', page)
    response = viewer.get(unescape(address))
    *rows, whole = csv.DictReader(StringIO(response.content.decode()))
    assert {row["pod"] for row in rows} == {f"pod-{number:02}" for number in range(60)}
    assert rows[0]["at"] == "2026-11-20T12:10:00.000000Z"
    assert "may have been over by then" in rows[0]["doubts"]
    assert (whole["lease_id"], whole["pod"], whole["at"]) == ("", "", "2026-11-20T12:10:00.000000Z")
    assert whole["doubts"].startswith("Of the whole answer: No audit line has been read yet")
    held(BEGAN + timedelta(minutes=11), pod="pod-new")
    rows = list(csv.DictReader(StringIO(viewer.get(unescape(address) + "&to=2026-11-20T12:20").content.decode())))
    assert [row["pod"] for row in rows if row["change"] == "gained"] == ["pod-new"]
    assert [row["at"][11:16] for row in rows if not row["lease_id"]] == ["12:10", "12:20"]
    assert viewer.get("/access.csv").status_code == 400


def test_an_empty_csv_says_how_complete_it_is(viewer: Client) -> None:
    now, stream = timezone.now(), factories.stream(read_at=timezone.now())
    factories.database()

    def whole(at: datetime) -> str:
        response = viewer.get("/access.csv", {"database": ORDERS, "at": f"{at:%Y-%m-%dT%H:%M:%S}"})
        *_, row = csv.DictReader(StringIO(response.content.decode()))
        return row["doubts"]

    for hours_ago in range(26):
        factories.coverage(stream, hours_ago=hours_ago)
    assert whole(now) == "Of the whole answer: In all 24 hours up to this moment the audit log is complete."
    factories.gap(stream, hours_ago=2, seconds=1)
    assert "In 1 of the 24 hours up to this moment the audit log is not known to be complete" in whole(now)
    assert "and this moment is before that" in whole(now - timedelta(days=3))
    factories.ended(ago=600, reason=EndReason.FORCED, database_user="v-left-behind")
    factories.lease(certainty="unknown", issued_at=None, age=60)
    assert "their database users may live on: v-left-behind" in whole(now)
    assert "since nothing says when they were issued: 1." in whole(now - timedelta(minutes=5))


def test_the_answer_asks_as_often_for_fifty_leases_as_for_one(viewer: Client) -> None:
    def asked() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            for query in ({}, {"to": "2026-11-20T12:10"}):
                viewer.get(path(database=ORDERS, at="2026-11-20T12:30", **query))
        return len(captured)

    held()
    one = asked()
    for number in range(49):
        held(
            pod=f"pod-{number}",
            pod_uid=f"uid-{number}",
            end_reason=EndReason.FORCED if number % 2 else EndReason.UNKNOWN,
        )
        held(minutes=5, end_reason=EndReason.FORCED)
    assert asked() == one


def test_who_may_read_leases_may_read_this_and_nobody_else(log_in: Callable[..., Client]) -> None:
    factories.database()
    reader, stranger = log_in("viewer"), log_in()
    for address in (path(database=ORDERS), f"/access.csv?database={ORDERS}"):
        assert reader.get(address).status_code == 200
        assert stranger.get(address).status_code == 403
        assert Client().get(address).status_code == 302
