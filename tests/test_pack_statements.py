"""What a pack says of itself: holes of its period with their bounds, certainties, figures."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from audit.models import Coverage, Gap, Stream
from audit.pack import figures, statements
from audit.pack.values import Completeness
from leases.models import Lease, OwnRequest, Policy, SampledPeriod, WatchPeriod
from tests import factories, packs
from tests.packs import END, HOUR, START

pytestmark = pytest.mark.django_db


@pytest.fixture
def streams() -> list[Stream]:
    return packs.watched()


def completeness(*, from_at: datetime = START, to_at: datetime = END, now: datetime = END + HOUR) -> Completeness:
    return statements.completeness(from_at=from_at, to_at=to_at, now=now, with_events=True)


# completeness

UNPROVEN = "Leasehold's own requests of then have not been looked for yet: a minute later they have"


def test_a_gap_refuses_the_word_and_is_named_with_its_bounds(streams: list[Stream]) -> None:
    from_at, to_at = START + timedelta(minutes=61, seconds=2), START + timedelta(minutes=63, seconds=12)
    Gap.objects.create(stream=streams[0], kind="replaced", from_at=from_at, to_at=to_at, what="another file", at=to_at)
    found = completeness()
    assert not found.complete
    assert "Complete" not in found.word
    assert found.word == "This pack does not call itself complete, for 1 reason that it names."
    assert found.reasons == [
        "demo/file-a/bao-0, 2026-11-20T11:01:02Z to 2026-11-20T11:03:12Z: replaced: another file. "
        "demo/file-b/bao-0 of the same node lacks nothing then."
    ]
    (hole,) = found.streams[0].holes
    assert (hole.from_at, hole.to_at, hole.also_in) == (from_at, to_at, ["demo/file-b/bao-0"])
    # outside of the period it is none of its business
    assert completeness(from_at=START + 2 * HOUR).complete


def test_a_device_without_a_line_does_not_make_up_for_the_other_one(streams: list[Stream]) -> None:
    at = START + HOUR + timedelta(minutes=5)
    Gap.objects.create(stream=streams[0], kind="replaced", from_at=at, to_at=at + timedelta(seconds=5), what="x", at=at)
    assert completeness().streams[0].holes[0].also_in == ["demo/file-b/bao-0"]
    Coverage.objects.filter(stream=streams[1], hour=START + HOUR).delete()
    assert completeness().streams[0].holes[0].also_in == []


def test_a_gap_on_both_devices_is_covered_by_neither(streams: list[Stream]) -> None:
    for stream in streams:
        Gap.objects.create(stream=stream, kind="replaced", to_at=START + HOUR, what="x", at=START)
    found = completeness()
    assert [hole.also_in for one in found.streams for hole in one.holes] == [[], []]
    # without a beginning it may have been all the time
    assert {(hole.from_at, hole.to_at) for one in found.streams for hole in one.holes} == {(START, START + HOUR)}


def test_lines_that_could_not_be_read_and_expired_ones_are_holes_and_late_ones_are_not(streams: list[Stream]) -> None:
    at = START + 2 * HOUR
    Coverage.objects.filter(stream=streams[0], hour=at).update(
        rejected=2, conflicts=1, expired=3, redacted=4, lag_seconds=90_000
    )
    found = completeness()
    assert [(hole.what, hole.from_at, hole.to_at) for hole in found.streams[0].holes] == [
        ("lines that could not be read", at, at + HOUR),
        ("lines that contradict others", at, at + HOUR),
        ("lines that came when events of their time were kept no longer", at, at + HOUR),
    ]
    assert (found.streams[0].lines.redacted, found.streams[0].longest_wait_seconds) == (4, 90_000)
    Coverage.objects.update(rejected=0, conflicts=0, expired=0)
    assert completeness().complete


def test_the_time_before_the_first_line_and_after_the_last_is_not_covered(streams: list[Stream]) -> None:
    found = completeness(from_at=START - 3 * HOUR, to_at=END + 3 * HOUR, now=END + 4 * HOUR)
    assert [(hole.what, hole.from_at, hole.to_at) for hole in found.streams[0].holes] == [
        ("before the first line that was read of it", START - 3 * HOUR, START - timedelta(minutes=55)),
        (UNPROVEN, END + HOUR - timedelta(seconds=10), END + HOUR),
        ("later lines have not been read yet", END + HOUR, END + 3 * HOUR),
    ]
    assert found.streams[0].hours["before the first line"] == 2
    assert found.streams[0].lag_seconds == 7200


@pytest.mark.parametrize(
    ("state", "said", "since"),
    [
        ({"unread_bytes": 10}, "later lines have not been read yet", timedelta(minutes=50, seconds=1)),
        (
            {"refused": "raw tokens"},
            "it is refused, and nothing more is taken from it: raw tokens",
            timedelta(minutes=50, seconds=1),
        ),
        (
            {"retired": True},
            "it was taken out of the configuration, and nothing later is read",
            timedelta(minutes=50, seconds=1),
        ),
        ({"path": "", "pushed": True}, "nothing later has been pushed", timedelta(minutes=50, seconds=1)),
        ({"path": ""}, "it was read by hand up to here", timedelta(minutes=50, seconds=1)),
    ],
)
def test_what_is_known_of_a_stream_ends_with_its_last_line_where_nothing_proves_more(
    streams: list[Stream], state: dict[str, Any], said: str, since: timedelta
) -> None:
    Stream.objects.filter(pk=streams[0].pk).update(**state)
    found = completeness(to_at=END + 2 * HOUR, now=END + 2 * HOUR)
    last = [hole for hole in found.streams[0].holes if hole.to_at == END + 2 * HOUR]
    assert [(hole.what, hole.from_at) for hole in last] == [(said, END + since)]
    # and up to there it is as good as before
    assert not [one for one in completeness().streams[0].holes if "refused" not in state]


def test_a_stream_that_was_given_up_before_the_period_and_one_that_never_had_a_line(streams: list[Stream]) -> None:
    Stream.objects.filter(pk=streams[0].pk).update(retired=True)
    later = {"from_at": END + HOUR, "to_at": END + HOUR + timedelta(minutes=30), "now": END + 2 * HOUR}
    Stream.objects.filter(pk=streams[1].pk).update(read_at=END + 2 * HOUR)
    Coverage.objects.filter(hour__gt=END).delete()
    found = completeness(**later)
    assert ([one.counts for one in found.streams], found.complete) == ([False, True], True)
    factories.stream("file-c")
    found = completeness(**later)
    assert found.reasons[0].startswith(
        "demo/file-c/bao-0, 2026-11-20T14:00:00Z to 2026-11-20T14:30:00Z: no line of it was ever read."
    )


def test_an_hour_without_a_line_on_any_node_proves_nothing_and_a_quiet_standby_is_no_hole(
    streams: list[Stream],
) -> None:
    standby = factories.stream("file-a", "bao-1", read_at=END + HOUR, last_line_at=START - HOUR)
    Coverage.objects.create(stream=standby, hour=START - 2 * HOUR, lines=2, pairs=1)
    assert completeness().complete
    Coverage.objects.filter(stream=streams[0], hour=START + HOUR).delete()
    found = completeness()
    assert len(found.reasons) == 2
    assert "no line on any node of device file-a, and nothing proves that there was none to write" in found.reasons[0]


def test_a_period_that_is_not_over_a_vault_without_streams_and_a_read_without_an_answer_are_holes(
    streams: list[Stream],
) -> None:
    factories.vault("other")
    lines = list(packs.access(START + timedelta(minutes=30), "file-a"))
    packs.take(streams[0], lines[2], now=END)
    Stream.objects.update(read_at=END + HOUR)
    found = completeness(to_at=END + 9 * HOUR, now=END + HOUR)
    assert found.judged_until == END + HOUR
    assert found.reasons[:3] == [
        "The period was not over when this was made: 2026-11-20T14:00:00Z to 2026-11-20T22:00:00Z is yet to come.",
        "No stream of vault other is read: nothing of its audit log is known.",
        "1 reads of database credentials have no answer in the log: whether they issued a lease is not known.",
    ]


def test_a_pack_of_the_last_minute_is_not_complete_before_own_requests_were_looked_for(streams: list[Stream]) -> None:
    """A device that has just begun to lose lines is noticed by them alone."""
    found = completeness(now=END + timedelta(seconds=20))
    assert [(hole.what, hole.from_at, hole.to_at) for hole in found.streams[0].holes] == [
        (UNPROVEN, END - timedelta(seconds=40), END)
    ]
    assert completeness(now=END + timedelta(seconds=60)).complete
    # the last one that was found stays noted, and proves itself; what follows it still waits
    OwnRequest.objects.create(vault=factories.vault(), request_id="a", at=END - timedelta(minutes=9))
    assert completeness().complete
    OwnRequest.objects.create(vault=factories.vault(), request_id="b", at=END - timedelta(minutes=8))
    OwnRequest.objects.create(vault=factories.vault(), request_id="c", at=END + timedelta(minutes=1))
    (hole,) = completeness().streams[0].holes
    assert (hole.what, hole.from_at, hole.to_at) == (UNPROVEN, END - timedelta(minutes=9), END)


def test_pod_watches_and_samples_are_told_beside_it(streams: list[Stream]) -> None:
    WatchPeriod.objects.update(to_at=START + HOUR)
    WatchPeriod.objects.create(cluster=factories.cluster(), from_at=START + 2 * HOUR, to_at=END + HOUR)
    orders = factories.database("orders")
    SampledPeriod.objects.create(database=orders, from_at=START - HOUR, to_at=START + HOUR)
    SampledPeriod.objects.create(database=orders, from_at=START + 2.5 * HOUR, to_at=END + HOUR)
    SampledPeriod.objects.create(database=orders, logged=True, from_at=START + HOUR / 2, to_at=START + 1.5 * HOUR)
    found = completeness()
    assert found.complete
    (pods,) = found.pods
    assert ([(gap.from_at, gap.to_at) for gap in pods.gaps], pods.gap_seconds) == (
        [(START + HOUR, START + 2 * HOUR)],
        3600,
    )
    (sessions,) = found.sessions
    assert (sessions.database, sessions.sampled_seconds, sessions.logged_seconds) == (
        "demo/database/orders",
        1.5 * 3600,
        3600,
    )
    assert [(gap.from_at, gap.to_at) for gap in sessions.gaps] == [(START + 1.5 * HOUR, START + 2.5 * HOUR)]


# certainty and figures


def test_figures_count_by_database_and_account(streams: list[Stream]) -> None:
    Policy.objects.update_or_create(pk=1, defaults={"max_lease_ttl_seconds": 3600})
    first, second = Lease.objects.filter(accessed_at__gte=START).order_by("accessed_at")[:2]
    for lease, hours in ((first, 1), (second, 3)):
        Lease.objects.filter(pk=lease.pk).update(issued_at=F("accessed_at"), expires_at=F("accessed_at") + hours * HOUR)
    found = figures.figures(from_at=START, to_at=END)
    assert (found.accesses, found.leases) == (12, 12)
    (database,) = found.databases
    assert (database.database, database.accesses, database.service_accounts, database.pods) == (
        "demo/database/orders",
        12,
        1,
        12,
    )
    assert (database.longest_seconds, database.longest_lease, database.limit_seconds) == (10800, second.lease_id, 3600)
    assert (database.issued, database.over_limit, database.lifetime_unknown) == (12, 1, 10)
    (account,) = found.accounts
    assert (account.namespace, account.service_account, account.accesses) == ("shop", "web", 12)
    assert account.databases == ["demo/database/orders"]


def test_figures_tell_revocations_with_the_time_to_contain_and_what_stands_out(streams: list[Stream]) -> None:
    leases = list(Lease.objects.filter(accessed_at__gte=START).order_by("accessed_at")[:3])
    ago = (timezone.now() - START - HOUR).total_seconds()
    for lease, seconds in zip(leases[:2], (1, 3), strict=True):
        action = factories.action(lease, ago=ago, state="verified")
        factories.step(action, lease, "lease gone", after=seconds / 2)
        factories.step(action, lease, "database user gone", after=seconds)
        factories.step(action, lease, "audit line seen", after=60)
    factories.action(leases[2], ago=ago, state="unverified")
    factories.finding(severity=3, first_seen_at=START, last_seen_at=START)
    factories.event(leases[0], seconds=2, error="1 error occurred:\n\t* permission denied\n\n")
    found = figures.figures(from_at=START, to_at=END)
    revoked = found.revocations
    assert (revoked.requested, revoked.verified) == (3, 2)
    assert (revoked.fastest_seconds, revoked.median_seconds, revoked.slowest_seconds) == (1, 2, 3)
    assert [(row.state, row.seconds) for row in revoked.rows] == [
        ("verified", 1),
        ("verified", 3),
        ("unverified", None),
    ]
    exceptions = found.exceptions
    assert [(row.kind, row.severity, row.findings, row.still_open) for row in exceptions.findings] == [
        ("holder unknown", "high", 1, 1)
    ]
    assert (exceptions.denials, exceptions.unknown_holders, exceptions.static_reads) == (1, 0, 0)


def test_certainties_have_shares_that_add_up_and_reasons_without_names(streams: list[Stream]) -> None:
    (ambiguous,) = Lease.objects.filter(accessed_at__gte=START).order_by("accessed_at")[:1]
    Lease.objects.filter(pk=ambiguous.pk).update(
        certainty="ambiguous",
        pod="",
        pod_uid="",
        pod_namespace="",
        certainty_reason="2 pods of this service account fit 10.1.2.3 in cluster demo within 2 s: shop/a, shop/b",
    )
    certainty = statements.certainty(from_at=START, to_at=END)
    assert {share.certainty: (share.accesses, share.percent) for share in certainty.shares} == {
        "exact": (11, 91.67),
        "inferred": (0, 0),
        "ambiguous": (1, 8.33),
        "service account": (0, 0),
        "unknown": (0, 0),
    }
    assert [(reason.reason, reason.accesses) for share in certainty.shares for reason in share.reasons] == [
        ("the login response of a registered auth mount carries the pod's name and uid", 11),
        ("several pods of the service account fit the address", 1),
    ]
    assert certainty.word == "Of 12 accesses 11 are tied to exactly one pod, 1 are not."
