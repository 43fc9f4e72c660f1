"""Drawings on an axis of time: where things come to lie, what is left out, and what a lease's page makes of them."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

import audit.queries
from audit.models import Kind
from dashboard import timeline
from dashboard.lanes import (
    MOST_ROWS,
    MOST_TICKS,
    NEAR,
    ROW,
    Axis,
    Bar,
    Lane,
    Mark,
    Timeline,
    bar,
    gathered,
    packed,
    ticks,
)
from dashboard.timeline import Facts, lives, of_lease
from leases import queries, session_queries
from leases.models import EndReason, Lease, LeaseState, Login
from tests import factories
from tests.test_pages import HOSTILE, text

pytestmark = pytest.mark.filterwarnings("ignore:No directory at")

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


# --- geometry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 1, 9, 61, 400, 3600, 50_000, 86_400, 7 * 86_400, 400 * 86_400, 4000 * 86_400])
def test_an_axis_has_some_round_times_and_never_too_many(seconds: float) -> None:
    axis = Axis.over(NOON + timedelta(seconds=7), NOON + timedelta(seconds=7 + seconds))
    found = ticks(axis)
    assert 1 <= len(found) <= MOST_TICKS + 1
    assert all(0 <= tick.x <= 100 for tick in found)
    assert [tick.x for tick in found] == sorted({tick.x for tick in found})


def test_times_on_an_axis_are_as_exact_as_they_are_near() -> None:
    def labels(from_at: datetime, to_at: datetime) -> list[str]:
        return [tick.label for tick in ticks(Axis(from_at, to_at))]

    assert labels(NOON, NOON + 20 * timedelta(seconds=1)) == [
        "12:00:00",
        "12:00:05",
        "12:00:10",
        "12:00:15",
        "12:00:20",
    ]
    assert labels(NOON, NOON + 10 * MINUTE) == ["12:00", "12:02", "12:04", "12:06", "12:08", "12:10"]
    assert labels(NOON, NOON + DAY) == ["12:00", "18:00", "21 Nov", "06:00", "12:00"]
    assert labels(NOON, NOON + 6 * DAY)[:2] == ["21 Nov", "22 Nov"]


def test_a_bar_is_cut_at_the_axis_and_says_so() -> None:
    axis = Axis(NOON, NOON + 100 * MINUTE)

    def at(begin: float, end: float) -> Bar | None:
        return bar(axis, NOON + begin * MINUTE, NOON + end * MINUTE, kind="lease", title="")

    whole, early, late = at(10, 30), at(-50, 20), at(90, 500)
    assert whole == Bar(10, 20, "lease", "")
    assert early == Bar(0, 20, "lease", "", before=True)
    assert late == Bar(90, 10, "lease", "", after=True)
    assert at(-50, -1) is None
    assert at(101, 200) is None


def test_bars_in_one_row_never_overlap_and_all_are_drawn_or_counted() -> None:
    dice = Random(7)  # noqa: S311
    for _ in range(200):
        bars = [Bar(dice.uniform(0, 95), dice.uniform(0, 30), "session", str(n)) for n in range(dice.randrange(1, 40))]
        placed, height, left = packed([*bars, None])
        assert len(placed) + left == len(bars)
        assert {one.title for one in placed} <= {one.title for one in bars}
        rows: dict[int, list[Bar]] = {}
        for one in placed:
            rows.setdefault(one.y, []).append(one)
            assert 0 <= one.y <= height - ROW
        assert len(rows) <= MOST_ROWS
        for row in rows.values():
            row.sort(key=lambda one: one.x)
            assert all(one.x + one.width < after.x for one, after in pairwise(row))


def test_marks_too_near_to_be_told_apart_are_one_with_their_number() -> None:
    near = [Mark(10 + NEAR * n / 4, "renewed", "renewal", f"n{n}", f"#{n}") for n in range(4)]
    other = Mark(10.1, "alarm", "refused", "refused")
    far = Mark(40, "renewed", "renewal", "far")
    one, two, three = gathered([far, other, *near])
    assert (one.count, one.address, one.x) == (4, "#0", 10)
    assert "4 here" in one.title
    assert (two, three) == (other, far)


# --- a lease -----------------------------------------------------------------------------------------------------


def unsaved(*, age: float = 300, left: float = 300, **fields: Any) -> Lease:
    return Lease(
        **{
            "lease_id": "database/creds/my-role/abc",
            "accessed_at": NOON - timedelta(seconds=age),
            "first_seen_at": NOON - timedelta(seconds=age - 1),
            "expires_at": NOON + timedelta(seconds=left),
            "state": LeaseState.LIVE,
            **fields,
        }
    )


def drawn(lease: Lease, **facts: Any) -> Timeline:
    base = Facts(
        lease=lease,
        now=NOON,
        events=[],
        sessions=[],
        sessions_in_all=0,
        revocations=[],
        pod=None,
        of_event=lambda request_id: f"/events/{request_id}",
    )
    return of_lease(replace(base, **facts))


def lane(of: Timeline, name: str) -> Lane:
    return next(lane for lane in of.lanes if lane.name == name)


def test_a_live_lease_is_drawn_up_to_now_and_what_is_left_of_it_apart() -> None:
    found = drawn(unsaved())
    lived, left = lane(found, timeline.LEASE).bars
    assert (lived.kind, left.kind) == ("lease", "left")
    assert found.now == pytest.approx(lived.x + lived.width) == pytest.approx(left.x)
    assert lived.width == pytest.approx(left.width)


def test_of_a_lease_with_weeks_to_go_its_past_stays_readable() -> None:
    lived, left = lane(drawn(unsaved(age=60, left=30 * 86_400)), timeline.LEASE).bars
    assert lived.width > 25
    assert left.after


def test_an_irrevocable_lease_is_drawn_otherwise_from_its_end_on() -> None:
    good, stuck = lane(drawn(unsaved(age=600, left=-300, state=LeaseState.IRREVOCABLE)), timeline.LEASE).bars
    assert (good.kind, stuck.kind) == ("lease", "stuck")
    assert good.width == pytest.approx(stuck.width)


def test_an_ended_lease_has_no_now_and_its_end_says_why() -> None:
    ended = unsaved(
        age=600, left=-100, state=LeaseState.ENDED, ended_at=NOON - 5 * MINUTE, end_reason=EndReason.BY_PREFIX
    )
    found = drawn(ended)
    assert found.now is None
    assert [one.kind for one in lane(found, timeline.LEASE).bars] == ["lease"]
    assert "by prefix" in lane(found, timeline.LEASE).marks[-1].title
    assert found.moments[-1].what == "ended: by prefix"


def test_an_end_before_the_beginning_draws_a_moment() -> None:
    odd = unsaved(age=10, state=LeaseState.ENDED, ended_at=NOON - MINUTE, end_reason=EndReason.UNKNOWN)
    found = drawn(odd)
    assert found.axis.to_at > found.axis.from_at
    assert all(0 <= one.x <= 100 for one in lane(found, timeline.LEASE).bars)


def test_a_token_that_logged_in_long_before_comes_in_from_the_left_and_is_in_the_list() -> None:
    login = Login(request_id="abc", mount_path="kubernetes", logged_in_at=NOON - 30 * DAY, expires_at=NOON + DAY)
    found = drawn(unsaved(login=login))
    token = lane(found, timeline.TOKEN)
    assert [(one.kind, one.before, one.after) for one in token.bars] == [("token", True, False), ("left", False, True)]
    assert token.bars[0].address == "/events/abc"
    assert not token.marks
    assert found.moments[0].address == "/events/abc"
    assert found.outside == 1


@pytest.mark.django_db
def test_everything_of_a_lease_is_drawn_and_listed() -> None:
    scene = factories.scene()
    lease = scene["lease"]
    factories.event(lease, operation="update", path="sys/leases/renew", seconds=45, kind=Kind.RENEW, error="no")
    now = timezone.now()
    loaded = queries.lease(lease.pk)
    assert loaded is not None
    found = of_lease(
        Facts(
            lease=loaded,
            now=now,
            events=audit.queries.lease_events(lease, now=now),
            sessions=session_queries.of_lease(lease),
            sessions_in_all=60,
            revocations=queries.revocations_of(lease),
            pod=scene["pod"],
            of_event=lambda _: "",
        )
    )
    assert [one.name for one in found.lanes] == ["Pod", "Token", "Lease", "Sessions", "Done here"]
    assert [mark.kind for mark in lane(found, "Lease").marks] == ["issue", "renewal", "refused", "renewal"]
    assert all(mark.address.startswith("#request-") for mark in lane(found, "Lease").marks)
    sessions = lane(found, "Sessions")
    assert [one.kind for one in sessions.bars].count("elsewhere") == 1
    assert "1 from elsewhere" in sessions.note
    assert "the newest 7 of 60" in sessions.note
    said = [moment.what for moment in found.moments]
    assert [moment.at for moment in found.moments] == sorted(moment.at for moment in found.moments)
    for what in (
        "credentials read",
        "renewed",
        "refused: no",
        "logged in through auth/kubernetes",
        "operator asked to revoke it",
    ):
        assert what in said
    assert sum("session began" in what for what in said) == 7


@pytest.mark.django_db
def test_lives_stand_in_a_lane_for_each_database() -> None:
    orders, billing = factories.database("orders"), factories.database("billing")
    held = [
        factories.lease(age=age, database=database)
        for age, database in ((50, orders), (40, orders), (30, billing), (20, None))
    ]
    gone = factories.ended(ago=10, database=billing)
    found = lives([*held, gone], now=timezone.now(), of_lease=lambda lease: f"/{lease.pk}")
    assert found is not None
    assert [one.name for one in found.lanes] == ["behind database", "billing", "orders"]
    assert {one.address for one in lane(found, "billing").bars} == {f"/{held[2].pk}", f"/{gone.pk}"}
    assert {one.kind for one in lane(found, "billing").bars} == {"lease", "gone"}
    assert lives([], now=timezone.now(), of_lease=lambda _: "") is None


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_leases_page_draws_its_life_and_lists_the_same_for_who_cannot_see_it(viewer: Client) -> None:
    scene = factories.scene()
    response = viewer.get(f"/leases/{scene['lease'].pk}")
    page = response.content.decode()
    drawing = page[page.index('class="timeline"') : page.index("</figure>")]
    listed = page[page.index('class="moments"') : page.index("</details>")]
    # what is drawn is hidden from screen readers and from the keyboard; the list has the same links
    assert not re.search(r'<svg class="track"(?![^>]*aria-hidden="true")', drawing)
    assert not re.search(
        r"<a href=(?![^>]*tabindex=\"-1\")", re.sub(r'<div class="name">.*?</div>', "", drawing, flags=re.S)
    )
    for address in set(re.findall(r'<svg class="mark[^>]*>\s*<a href="([^"]+)"', drawing)):
        assert f'href="{address}"' in listed, address
    assert "17 moments" in text(response)


@pytest.mark.django_db
def test_hostile_words_in_a_drawing_are_shown_and_never_run(viewer: Client) -> None:
    lease = factories.lease()
    factories.session(lease, address=HOSTILE, application=HOSTILE)
    factories.event(lease, operation=HOSTILE, path=HOSTILE, error=HOSTILE)
    page = viewer.get(f"/leases/{lease.pk}").content.decode()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page[page.index('class="timeline"') : page.index("</figure>")]
