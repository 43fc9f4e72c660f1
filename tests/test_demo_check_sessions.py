"""What `python -m demo check` calls wrong about sessions."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from demo import check_sessions, truth
from demo.check_sessions import SessionRow, Sessions
from demo.incident import Incident

NOW = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
OPENED = truth.Line(
    at="2026-11-02T11:50:00.000000Z",
    event="connect",
    cluster="demo",
    namespace="shop",
    service_account="storefront",
    pod="storefront-1",
    pod_uid="uid-1",
    ip="127.20.1.10",
    lease_id="lease-1",
    database="orders",
    database_user="v-1",
)
STOLEN = Incident(
    at="2026-11-02T11:52:00.000000Z",
    lease_id="lease-1",
    database="orders",
    database_user="v-1",
    address="127.66.6.6",
    pod="shop/storefront-1",
)
RIGHT = SessionRow(
    database_user="v-1",
    lease_id="lease-1",
    address="127.20.1.10",
    started_at=datetime(2026, 11, 2, 11, 49, 59, 900_000, tzinfo=UTC),
    place="holder",
    place_reason="the pod's address",
    sampled=True,
    logged=True,
)
THEFT = msgspec.structs.replace(
    RIGHT, address="127.66.6.6", started_at=datetime(2026, 11, 2, 11, 52, tzinfo=UTC), place="elsewhere"
)


def judged(*rows: SessionRow, incidents: tuple[Incident, ...] = ()) -> Sessions:
    return check_sessions.judge([OPENED], incidents, rows, now=NOW)


@pytest.mark.parametrize("place", ["holder", "NAT"])
def test_a_session_that_was_seen_tied_and_taken_for_the_pods_is_right(place: str) -> None:
    report = judged(msgspec.structs.replace(RIGHT, place=place))
    assert report.problems == []
    assert (report.opened, report.seen, report.tied, report.wrong) == (1, 1, 1, 0)
    assert (report.taken_for_theirs, report.not_judged) == (1, 0)


def test_a_few_sessions_may_not_be_judged() -> None:
    for left_out, problems in ((1, 0), (2, 1)):
        rows = [RIGHT] * (10 - left_out) + [msgspec.structs.replace(RIGHT, place="not judged")] * left_out
        report = check_sessions.judge([OPENED] * 10, (), rows, now=NOW)
        assert (report.not_judged, len(report.problems)) == (left_out, problems)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"lease_id": "lease-2"}, 1),
        ({"lease_id": ""}, 0),
        ({"place": "elsewhere"}, 1),
        ({"place": ""}, 0),
        ({"place": "pooler"}, 0),
    ],
)
def test_whatever_else_is_said_of_it_is_not(change: dict[str, str], wrong: int) -> None:
    report = judged(msgspec.structs.replace(RIGHT, **change))
    assert (len(report.problems), report.wrong) == (1, wrong)


@pytest.mark.parametrize("minutes", [-10, 1])
def test_a_session_that_began_at_another_time_is_another_one(minutes: int) -> None:
    report = judged(msgspec.structs.replace(RIGHT, started_at=RIGHT.started_at + timedelta(minutes=minutes)))
    assert (report.seen, len(report.problems)) == (0, 1)


def test_one_row_is_not_two_sessions() -> None:
    report = check_sessions.judge([OPENED, OPENED], (), [RIGHT], now=NOW)
    assert (report.opened, report.seen, len(report.problems)) == (2, 1, 1)


def test_a_theft_must_be_found_and_is_no_false_alarm() -> None:
    assert judged(RIGHT, THEFT, incidents=(STOLEN,)).problems == []
    assert judged(RIGHT, THEFT, incidents=(STOLEN,)).stolen_found == 1
    for row in (msgspec.structs.replace(THEFT, place="holder"), msgspec.structs.replace(THEFT, lease_id="")):
        assert judged(RIGHT, row, incidents=(STOLEN,)).stolen_found == 0
    assert len(judged(RIGHT, incidents=(STOLEN,)).problems) == 1
    # nobody stole anything
    assert judged(RIGHT, THEFT).wrong == 1
