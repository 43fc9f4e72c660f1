"""What `python -m demo check` calls wrong: every way in which Leasehold could say something else than what happened."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from demo import check, truth
from demo.book import Deed
from demo.check import Row

NOW = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
ISSUED = truth.Line(
    at="2026-11-02T11:50:00.000000Z",
    event="issue",
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
ENDED = msgspec.structs.replace(ISSUED, at="2026-11-02T11:51:00.000000Z", event="end", reason="by prefix")
RIGHT = Row(
    lease_id="lease-1",
    state="live",
    cluster="demo",
    pod_namespace="shop",
    pod="storefront-1",
    pod_uid="uid-1",
    service_account="storefront",
    certainty="inferred",
    certainty_reason="only this pod",
    end_reason="",
    issued_at=NOW - timedelta(minutes=10),
)
UNNAMED = {"pod": "", "pod_uid": ""}


def judged(row: Row | None, *lines: truth.Line, deeds: tuple[Deed, ...] = ()) -> check.Report:
    return check.judge([ISSUED, *lines], deeds, {row.lease_id: row} if row else {}, now=NOW)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"certainty": "exact"},
        {"certainty": "ambiguous", "certainty_reason": "2 fit: shop/storefront-1, shop/storefront-2", **UNNAMED},
        {"certainty": "service account", **UNNAMED},
    ],
)
def test_what_is_right_is_counted_by_its_certainty(said: dict[str, str]) -> None:
    row = msgspec.structs.replace(RIGHT, **said)
    report = judged(row)
    assert (report.problems, report.right[row.certainty], report.present) == ([], 1, 1)


@pytest.mark.parametrize(
    "said",
    [
        {"pod": "storefront-2", "pod_uid": "uid-2"},
        {"certainty": "exact", "pod_uid": "uid-2"},
        {"cluster": "demo-2"},
        {"certainty": "ambiguous", "certainty_reason": "2 fit: shop/storefront-2, shop/storefront-3", **UNNAMED},
        {"certainty": "service account", "service_account": "fulfilment", **UNNAMED},
        {"certainty": "service account", "cluster": "demo-2", **UNNAMED},
        {"certainty": "service account", "service_account": "", **UNNAMED},
    ],
)
def test_a_holder_that_is_not_the_true_one_is_wrong(said: dict[str, str]) -> None:
    report = judged(msgspec.structs.replace(RIGHT, **said))
    assert (report.wrong, len(report.problems), report.right.total()) == (1, 1, 0)


def test_a_pod_whose_name_only_begins_like_the_true_one_does_not_count_as_listed() -> None:
    row = msgspec.structs.replace(
        RIGHT, certainty="ambiguous", certainty_reason="2 fit: shop/storefront-10, shop/storefront-11", **UNNAMED
    )
    assert judged(row).wrong == 1


def test_unknown_and_missing_leases_are_problems() -> None:
    unknown = judged(msgspec.structs.replace(RIGHT, certainty="unknown", service_account="", **UNNAMED))
    assert (unknown.unknown, unknown.wrong, len(unknown.problems)) == (1, 0, 1)
    missing = judged(None)
    assert (missing.leases, missing.present, len(missing.problems)) == (1, 0, 1)


def test_an_end_is_right_only_with_its_true_reason() -> None:
    deed = Deed(at=ENDED.at, deed="by prefix", lease_id="lease-1")
    found = {}
    for reason in ("", "by prefix", "gone, cause unknown"):
        row = msgspec.structs.replace(
            RIGHT,
            state="ended" if reason else "live",
            end_reason=reason,
            ended_at=datetime.fromisoformat(ENDED.at) if reason else None,
        )
        report = judged(row, ENDED, deeds=(deed,))
        found[reason] = (dict(report.ends["by prefix"]), len(report.problems))
    assert found == {
        "": ({"right": 0, "wrong": 0, "missing": 1}, 1),
        "by prefix": ({"right": 1, "wrong": 0, "missing": 0}, 0),
        "gone, cause unknown": ({"right": 0, "wrong": 1, "missing": 0}, 1),
    }


@pytest.mark.parametrize(("seconds", "right"), [(-9, 1), (9, 1), (-11, 0), (11, 0), (600, 0)])
def test_an_end_is_right_only_at_its_true_time(seconds: float, right: int) -> None:
    ended_at = datetime.fromisoformat(ENDED.at) + timedelta(seconds=seconds)
    row = msgspec.structs.replace(RIGHT, state="ended", end_reason="by prefix", ended_at=ended_at)
    report = judged(row, ENDED)
    assert report.ends["by prefix"] == {"right": right, "wrong": 1 - right, "missing": 0}
    assert len(report.problems) == 1 - right


def test_a_lease_that_was_renewed_after_its_end_had_not_ended() -> None:
    row = msgspec.structs.replace(
        RIGHT, state="ended", end_reason="expired (inferred)", ended_at=NOW - timedelta(minutes=9)
    )
    renewed = msgspec.structs.replace(ISSUED, event="renew", at="2026-11-02T11:55:00.000000Z")
    assert len(judged(row, renewed).problems) == 1
    assert judged(row, msgspec.structs.replace(renewed, at="2026-11-02T11:50:30.000000Z")).problems == []


def test_a_lease_that_vault_gave_up_must_be_irrevocable() -> None:
    deed = Deed(at="2026-11-02T11:40:00.000000Z", deed="cannot be revoked", lease_id="lease-1")
    assert len(judged(RIGHT, deeds=(deed,)).problems) == 1
    assert judged(msgspec.structs.replace(RIGHT, state="irrevocable"), deeds=(deed,)).problems == []
    tried_still = msgspec.structs.replace(deed, at="2026-11-02T11:55:00.000000Z")
    assert judged(RIGHT, deeds=(tried_still,)).problems == []


def test_leases_that_no_pod_got_are_told_apart_from_those_that_were_not_opened_yet() -> None:
    rows = {
        name: msgspec.structs.replace(RIGHT, lease_id=name, issued_at=NOW - timedelta(seconds=age))
        for name, age in (("lease-1", 600), ("by-hand", 600), ("just-wrapped", 2))
    }
    assert check.strangers([ISSUED], [], rows, now=NOW) == ["by-hand"]
    # a wrapped answer that nobody opened explains one lease, of its own time
    at = (NOW - timedelta(seconds=599)).isoformat()
    wrapped = Deed(at=at, deed="read wrapped", lease_id="ab12")
    assert check.strangers([ISSUED], [wrapped], rows, now=NOW) == []
    rows["by-hand-too"] = msgspec.structs.replace(rows["by-hand"], lease_id="by-hand-too")
    assert check.strangers([ISSUED], [wrapped], rows, now=NOW) == ["by-hand-too"]
    opened = msgspec.structs.replace(wrapped, deed="opened")
    assert len(check.strangers([ISSUED], [wrapped, opened], rows, now=NOW)) == 2
    earlier = msgspec.structs.replace(wrapped, at=(NOW - timedelta(seconds=611)).isoformat())
    assert len(check.strangers([ISSUED], [earlier], rows, now=NOW)) == 2


def test_of_two_wrapped_answers_each_explains_its_own_lease_whatever_they_are_called() -> None:
    def ago(seconds: float) -> datetime:
        return NOW - timedelta(seconds=seconds)

    rows = {
        name: msgspec.structs.replace(RIGHT, lease_id=name, issued_at=at)
        for name, at in (("a-later-one", ago(85)), ("b-earlier-one", ago(99)))
    }
    answers = [Deed(at=ago(seconds).isoformat(), deed="read wrapped", lease_id=f"{seconds}") for seconds in (94, 83)]
    # the later lease lies near both answers, the earlier one near the first alone
    assert check.strangers([ISSUED], answers, rows, now=NOW) == []
    assert check.strangers([ISSUED], answers[1:], rows, now=NOW) == ["b-earlier-one"]


def test_an_address_counts_as_reused_only_after_the_pod_before_was_silent() -> None:
    def at(time: str, **changes: str) -> truth.Line:
        return msgspec.structs.replace(ISSUED, event="login", at=f"2026-11-02T11:{time}.000000Z", **changes)

    lines = [
        at("50:00"),
        at("50:05", pod_uid="uid-2"),
        at("50:09", pod_uid="uid-3", service_account="fulfilment"),
        at("50:10", pod_uid="uid-4", cluster="demo-2"),
        at("55:00", pod_uid="uid-5"),
    ]
    assert check.reused(lines) == {"the same service account": 1, "another service account": 1}
