"""Sessions on pages and in exports, and the access review: what they say, and what they do not claim."""

import csv
import io
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import leases.review
from audit import exports
from leases import queries, session_queries
from leases.models import Certainty, Database, Lease, Sampling, Session
from leases.models.sessions import Place
from leases.review import Reviewed, length, review
from leases.session_queries import SessionFilter, sessions_page
from tests import factories
from tests.test_pages import HOSTILE, HTMX, text

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def shown(response: Any) -> list[int]:
    """The sessions of a page, in its order."""
    return [int(pk) for pk in re.findall(r'<tr id="session-(\d+)"', response.content.decode())]


def row_of(response: Any, session: Session) -> str:
    """What a reader sees of one session, with the rows below that belong to it."""
    body = response.content.decode()
    begin = body.index(f'<tr id="session-{session.pk}"')
    end = min(body.find(mark, begin + 5) for mark in ("<tr id=", "</tbody>") if body.find(mark, begin + 5) > 0)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body[begin:end])))


def exported(kind: str, *, days: float = 2) -> list[dict[str, str]]:
    output = io.BytesIO()
    now = timezone.now()
    exports.write(kind, output, from_at=now - timedelta(days=days), to_at=now + timedelta(days=1), form="csv")
    return list(csv.DictReader(io.StringIO(output.getvalue().decode(), newline="")))


# --- the lease's page --------------------------------------------------------------------------------------------


def test_a_lease_shows_its_sessions_with_where_they_came_from_and_how_that_is_known(viewer: Client) -> None:
    lease = factories.lease(age=120)
    factories.sampling(factories.database())
    made = factories.used_in_every_way(lease)
    page = viewer.get(f"/leases/{lease.pk}")
    assert shown(page) == [made[name].pk for name in ("unjudged", "stolen", "log", "nat", "local", "both", "holder")]
    assert "Sessions 7" in text(page)
    holder = row_of(page, made["holder"])
    for said in (
        "127.30.0.7 :",
        "was the holder's when it began",
        "checkout-api",
        "in orders",
        "open, idle",
        "samples",
    ):
        assert said in holder, said
    assert "samples and log" in row_of(page, made["both"])
    assert "as logged" in row_of(page, made["log"])
    assert "local socket" in row_of(page, made["local"])
    assert "no longer seen samples" in row_of(page, made["local"])
    Session.objects.filter(pk=made["local"].pk).update(ended_at=timezone.now())
    page = viewer.get(f"/leases/{lease.pk}")
    assert "no longer seen; last seen" in row_of(page, made["local"])
    assert "or earlier: first seen then" in row_of(page, made["nat"])
    assert "not judged yet" in row_of(page, made["unjudged"])
    assert "guess" not in text(page)


def test_a_stolen_session_stands_out_by_words_and_shape_not_by_colour_alone(viewer: Client) -> None:
    lease = factories.lease(age=120)
    made = factories.used_in_every_way(lease)
    page = viewer.get(f"/leases/{lease.pk}")
    stolen = row_of(page, made["stolen"])
    assert "Used from elsewhere than its holder: 127.30.0.99 was not the holder's" in stolen
    assert "Pod billing/reports-5d9c on node-2 had it" in stolen
    body = page.content.decode()
    cell = body[body.index(f'<tr id="session-{made["stolen"].pk}"') :].partition("</td>")[0]
    assert "#i-alarm" in cell
    assert ">elsewhere</span>" in cell.replace("</svg>", "</svg>>")
    assert body.count("Used from elsewhere") == 1


def test_a_session_that_outlives_its_user_says_what_to_do(viewer: Client) -> None:
    made = factories.used_in_every_way(factories.lease(age=400))
    vanished = made["vanished"]
    told = row_of(viewer.get(f"/leases/{vanished.lease_id}"), vanished)
    assert "and it goes on. Dropping a user does not close its sessions" in told
    assert f"process {vanished.pid}" in told


def test_before_a_lease_is_revoked_its_open_sessions_are_counted(responder: Client) -> None:
    lease = factories.lease(age=120)
    assert "open now" not in text(responder.get(f"/leases/{lease.pk}/revoke"))
    factories.used_in_every_way(lease)
    page = text(responder.get(f"/leases/{lease.pk}/revoke"))
    assert "4 open now, as last sampled" in page
    assert "not ended: the database has no responding account" in page


def test_a_database_user_that_is_known_by_time_and_name_is_called_a_guess(viewer: Client) -> None:
    lease = factories.lease(database_user_by="time and name")
    session = factories.session(lease)
    page = text(viewer.get(f"/leases/{lease.pk}"))
    assert "a guess, by time and name" in page
    assert "A guess: its database user is known by time and name only" in page
    assert lease.database is not None
    assert "by time and name: a guess" in row_of(viewer.get(f"/databases/{lease.database.pk}"), session)
    sure = factories.lease(database_user_by="audit hash")
    assert "by audit hash" in text(viewer.get(f"/leases/{sure.pk}"))


def no_monitor() -> Lease:
    return factories.lease(database=factories.database("legacy", monitored=False))


def switched_off() -> Lease:
    return factories.lease(database=factories.database("off", sample_seconds=0))


def too_old() -> Lease:
    factories.sampled(factories.database(), since=100)
    return factories.ended(ago=300)


def in_part() -> Lease:
    factories.sampled(factories.database(), since=40)
    return factories.lease(age=60)


def a_hole() -> Lease:
    factories.sampled(factories.database(), since=900, until=45)
    factories.sampled(factories.database(), since=30)
    return factories.lease(age=60)


def over_the_end() -> Lease:
    """Sampling stopped before the lease ended."""
    factories.sampled(factories.database(), since=900, until=100)
    return factories.ended(ago=50)


def sampling_stopped() -> Lease:
    factories.sampled(factories.database(), since=900, until=60)
    return factories.lease(age=300)


def nameless() -> Lease:
    factories.sampled(factories.database(), since=900)
    return factories.lease(age=60, database_user="")


def guessed() -> Lease:
    factories.sampled(factories.database(), since=900)
    return factories.lease(age=60, database_user_by="time and name")


def unused_so_far() -> Lease:
    factories.sampled(factories.database(), since=900, until=3)
    return factories.lease(age=60)


def just_issued() -> Lease:
    """No sample was taken since."""
    factories.sampled(factories.database(), since=900, until=4)
    return factories.lease(age=2)


def never_used() -> Lease:
    # two periods that overlap are as good as one
    factories.sampled(factories.database(), since=900, until=250)
    factories.sampled(factories.database(), since=300, until=10)
    return factories.ended(ago=30)


def never_used_by_the_log() -> Lease:
    factories.sampled(factories.database(), since=900, logged=True)
    return factories.ended(ago=30)


UNKNOWN: dict[Callable[[], Lease], str] = {
    lambda: factories.lease(database=None): "its database is not known",
    no_monitor: "Name a monitoring account as monitor",
    switched_off: "sampling is switched off",
    lambda: factories.lease(): "no sample has been taken yet",
    nameless: "this lease's database user is not known",
    guessed: "this lease's database user is only a guess",
    too_old: "and not of its time",
    in_part: "sampling does not cover all of its life",
    a_hole: "sampling does not cover all of its life",
    over_the_end: "sampling does not cover all of its life",
    sampling_stopped: "sampling does not cover all of its life",
    just_issued: "and not of its time",
}
UNUSED: dict[Callable[[], Lease], str] = {
    unused_so_far: "It has not been used so far. Sampled every 5 s: a session shorter",
    never_used: "It was never used: issued, and no session in all of its life. Sampled every 5 s",
    never_used_by_the_log: "It was never used: issued, and no session in all of its life. The server's log was read",
}


@pytest.mark.parametrize(("made", "said"), UNKNOWN.items())
def test_not_known_to_be_used_is_neither_called_unused_nor_counted_as_none(
    viewer: Client, made: Callable[[], Lease], said: str
) -> None:
    lease = made()
    page = text(viewer.get(f"/leases/{lease.pk}"))
    assert said in page
    assert "Unused." not in page
    for kind in ("accesses", "leases"):
        (row,) = exported(kind)
        assert (row["sessions"], row["first_session_at"], row["last_session_at"]) == ("", "", ""), kind


@pytest.mark.parametrize(("made", "said"), UNUSED.items())
def test_a_lease_without_a_session_in_all_of_its_life_is_unused(
    viewer: Client, made: Callable[[], Lease], said: str
) -> None:
    lease = made()
    page = text(viewer.get(f"/leases/{lease.pk}"))
    assert f"Unused. {said}" in page
    for kind in ("accesses", "leases"):
        (row,) = exported(kind)
        assert (row["sessions"], row["first_session_at"], row["last_session_at"]) == ("0", "", ""), kind


# --- the database's page -----------------------------------------------------------------------------------------


def test_a_database_tells_how_its_sessions_are_known_what_that_costs_and_what_is_allowed(viewer: Client) -> None:
    scene = factories.scene()
    page = text(viewer.get(f"/databases/{scene['database'].pk}"))
    for said in (
        "every 5 s",
        "1.4 ms the last sample, 1.6 ms on average over 17,280 samples",
        "postgresql 7301452286314098721 at 127.0.0.1:5432",
        "my-role orders-rw",
        "10.0.0.0/24 sessions from there are no finding",
        "local 127.30.0.50 sessions from there",
        "6 open now · 1 of them without a lease",
        "1 open session comes from elsewhere than its holder",
    ):
        assert said in page, said
    assert f'href="/databases/{scene["database"].pk}"' in viewer.get("/databases").content.decode()
    assert "of orders: 6" in text(viewer.get("/databases"))
    assert viewer.get("/databases/999999").status_code == 404


def test_a_sampling_that_slowed_down_says_why(viewer: Client) -> None:
    database = factories.database()
    factories.sampling(database, interval_seconds=40)
    assert "every 40 s instead of every 5 s, as a sample costs the server much" in text(
        viewer.get(f"/databases/{database.pk}")
    )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"holder", "log", "both", "local", "nat", "stolen", "unjudged", "ghost", "vanished"}),
        ("state=open", {"holder", "nat", "stolen", "unjudged", "ghost", "vanished"}),
        ("state=ended", {"log", "both", "local"}),
        ("place=elsewhere", {"stolen"}),
        ("place=elsewhere&state=ended", set()),
        ("place=pooler", {"local"}),
        ("lease=none", {"ghost"}),
        ("lease=none&state=open", {"ghost"}),
        ("lease=none&state=ended", set()),
        ("address=127.30.0.99", {"stolen"}),
        ("address=127.30.0.9", set()),
        ("address=local", {"local"}),
        ("user=v-token-", {"ghost"}),
        ("user=%25", set()),
        ("address=127.30.0.99&place=elsewhere&state=open&user=v-", {"stolen"}),
    ],
)
def test_filters_narrow_the_sessions(viewer: Client, query: str, expected: set[str]) -> None:
    lease = factories.lease(age=120)
    made = factories.used_in_every_way(lease)
    elsewhere = factories.lease(database=factories.database("billing"))
    factories.session(elsewhere, place=Place.ELSEWHERE, address="127.30.0.99")
    page = viewer.get(f"/databases/{factories.database().pk}?{query}")
    assert {name for name, session in made.items() if session.pk in shown(page)} == expected
    assert len(shown(page)) == len(expected), "nothing of another database"
    if not expected:
        assert "No session fits this filter" in text(page)


def test_a_session_filter_that_makes_no_sense_lists_nothing(viewer: Client) -> None:
    database = factories.session(factories.lease()).database
    assert database is not None
    assert "Nothing is listed until the filter is mended" in text(viewer.get(f"/databases/{database.pk}?place=nowhere"))


def walk(viewer: Client, path: str) -> list[list[int]]:
    """The sessions of each page, from the first to the last."""
    pages = []
    while path:
        page = viewer.get(path)
        pages.append(shown(page))
        older = re.search(r'href="([^"]+)" rel="next"', page.content.decode())
        path = unescape(older[1]) if older else ""
    return pages


def test_pages_show_every_session_once_newest_first(viewer: Client) -> None:
    lease = factories.lease()
    at = timezone.now() - timedelta(minutes=5)
    for number in range(120):
        factories.session(lease, started_at=at - timedelta(seconds=number // 40), last_seen_at=at)
    pages = walk(viewer, f"/databases/{factories.database().pk}?state=open")
    rows = Session.objects.in_bulk()
    order = sorted(rows.values(), key=lambda row: (row.started_at, row.pk), reverse=True)
    assert [pk for page in pages for pk in page] == [row.pk for row in order]
    assert [len(page) for page in pages] == [50, 50, 20]


def test_a_rare_session_is_looked_for_in_steps_and_found(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_LOOKED_THROUGH", 20)
    lease = factories.lease()
    at = timezone.now() - timedelta(minutes=5)
    for number in range(45):
        factories.session(
            lease,
            address="127.30.9.9" if number in (19, 20, 44) else "127.30.0.7",
            started_at=at - timedelta(seconds=number),
            last_seen_at=at,
        )
    pages = walk(viewer, f"/databases/{factories.database().pk}?address=127.30.9.9")
    assert [len(page) for page in pages] == [1, 1, 1]


@pytest.mark.parametrize("cursor", ["x", "1-", "-1", "1-x", "99999999999999999-99999999999999999999"])
def test_a_page_of_sessions_that_this_site_did_not_name_is_refused(viewer: Client, cursor: str) -> None:
    assert viewer.get(f"/databases/{factories.database().pk}", {"before": cursor}).status_code == 400


def poll(response: Any) -> str:
    return unescape(re.search(r'hx-get="([^"]+)"', response.content.decode())[1])  # type: ignore[index]


def test_a_databases_page_is_sent_again_only_when_something_on_it_changed(viewer: Client) -> None:
    factories.watched()
    lease = factories.lease()
    factories.sampling(factories.database())
    session = factories.session(lease, place="")
    path = f"/databases/{factories.database().pk}?state=open"

    def changed(what: Callable[[], Any]) -> bool:
        address = poll(viewer.get(path))
        assert viewer.get(address, headers=HTMX).status_code == 204
        what()
        response = viewer.get(address, headers=HTMX)
        if response.status_code == 200:
            assert b"<html" not in response.content
            assert b'id="findings-count" hx-swap-oob="true"' in response.content
        return response.status_code == 200

    judged = {"place": Place.ELSEWHERE, "place_reason": "nobody has that address"}
    assert changed(lambda: Session.objects.filter(pk=session.pk).update(**judged))
    assert changed(lambda: factories.session(lease))
    assert changed(lambda: Sampling.objects.update(samples=17_281))
    assert changed(lambda: factories.finding())
    assert changed(lambda: factories.lease())
    ended = {"ended_at": timezone.now(), "end_known_by": "no longer seen"}
    assert changed(lambda: Session.objects.filter(pk=session.pk).update(**ended))
    assert not changed(lambda: factories.session(factories.lease(database=factories.database("billing"))))


def test_a_database_that_is_not_sampled_says_so_and_what_to_do(viewer: Client) -> None:
    legacy = factories.database("legacy", monitored=False)
    page = text(viewer.get(f"/databases/{legacy.pk}"))
    assert "Its sessions are not known: it has no monitoring account. Add monitor" in page
    off = factories.database("off", sample_seconds=0)
    assert "sample_seconds is 0" in text(viewer.get(f"/databases/{off.pk}"))
    fresh = factories.database("fresh")
    assert "No sample was taken yet, so nothing is known of its sessions." in text(viewer.get(f"/databases/{fresh.pk}"))


# --- the pod's page ----------------------------------------------------------------------------------------------


def test_a_pod_shows_its_addresses_in_time_its_leases_and_the_sessions_under_them(viewer: Client) -> None:
    scene = factories.scene()
    pod, lease = scene["pod"], scene["lease"]
    page = viewer.get(f"/pods/demo/{pod.uid}")
    for said in (pod.name, "Deployment checkout", "node-1", "127.30.0.7", "127.30.1.7", "shop/checkout", "has it now"):
        assert said in text(page), said
    assert f'href="/leases/{lease.pk}"' in page.content.decode()
    assert scene["stolen"].pk in shown(page)
    assert "Used from elsewhere than its holder" in text(page)
    assert f'href="/pods/demo/{pod.uid}"' in viewer.get(f"/leases/{lease.pk}").content.decode()


def test_a_pod_that_only_a_log_in_named_is_shown_by_its_leases(viewer: Client) -> None:
    lease = factories.lease(pod="checkout-1", pod_uid="uid-1")
    factories.lease(pod="checkout-1", pod_uid="uid-1", cluster="another", certainty_reason="another cluster's")
    page = viewer.get("/pods/demo/uid-1")
    assert "shop/checkout-1" in text(page)
    assert "known from its log-in's claims alone" in text(page)
    assert page.content.decode().count(f'title="{lease.lease_id}"') == 1
    # in the drawing and in the table
    assert re.findall(r'href="(/leases/\d+)"', page.content.decode()) == [f"/leases/{lease.pk}"] * 2
    for nobody in ("/pods/demo/uid-2", "/pods/nowhere/uid-1", "/pods/demo/a/b"):
        assert viewer.get(nobody).status_code == 404


# --- findings appear by themselves -------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?state=any&severity=3"])
def test_the_list_of_findings_is_sent_again_when_one_comes_changes_or_goes(viewer: Client, query: str) -> None:
    factories.vault()
    address = poll(viewer.get(f"/findings{query}"))
    assert viewer.get(address, headers=HTMX).status_code == 204
    finding = factories.finding(severity=3, summary="A credential was used from elsewhere")
    response = viewer.get(address, headers=HTMX)
    assert "A credential was used from elsewhere" in text(response)
    assert "1 of high severity, 1 open" in text(response)
    assert b"<html" not in response.content
    assert b"<form" not in response.content, "filters stay as they are"
    for change in (
        {"summary": "It was used twice", "last_seen_at": timezone.now()},
        {"closed_at": timezone.now(), "closed_why": "no longer so"},
    ):
        address = poll(response)
        assert viewer.get(address, headers=HTMX).status_code == 204
        type(finding).objects.filter(pk=finding.pk).update(**change)
        response = viewer.get(address, headers=HTMX)
        assert response.status_code == 200
    # a reader without htmx gets the whole page
    assert b"<html" in viewer.get(address).content


def test_the_header_counts_high_findings_apart(viewer: Client) -> None:
    factories.finding(severity=2)
    assert "Findings 1 open" in text(viewer.get("/sources"))
    factories.finding(severity=3)
    assert "Findings 1 of high severity, 2 open" in text(viewer.get("/sources"))


# --- exports -----------------------------------------------------------------------------------------------------


def test_sessions_are_counted_in_accesses_and_leases_with_the_first_and_the_last_sight() -> None:
    factories.sampling(factories.database())
    lease = factories.lease(age=120)
    first = factories.session(lease, age=100, lasted=5)
    last = factories.session(lease, age=50, lasted=10, sampled=False, logged=True, end_known_by="logged")
    # what a person finds here is no session of this lease
    factories.session(factories.lease(age=60))
    factories.session(age=60)
    for kind in ("accesses", "leases"):
        (row,) = [row for row in exported(kind) if row["lease_id"] == lease.lease_id]
        assert row["sessions"] == "2"
        assert row["first_session_at"] == exports.cell(first.started_at)
        assert row["last_session_at"] == exports.cell(last.ended_at)


def test_where_a_lease_was_sampled_in_part_what_was_seen_is_told() -> None:
    lease = in_part()
    factories.session(lease, age=30)
    (row,) = exported("accesses")
    assert row["sessions"] == "1"


def test_the_header_of_accesses_is_what_it_always_was() -> None:
    output = io.BytesIO()
    now = timezone.now()
    exports.write("accesses", output, from_at=now - timedelta(days=1), to_at=now, form="csv")
    assert output.getvalue().decode() == (
        "accessed_at,vault,vault_namespace,database,database_role,lease_id,database_user,cluster,pod_namespace,pod,pod_uid,"
        "service_account,source_ip,certainty,certainty_reason,issued_at,expires_at,renewals,ended_at,end_reason,sessions,"
        "first_session_at,last_session_at,request_id\n"
    )


def test_an_export_asks_once_however_many_leases_there_are() -> None:
    def asked(kind: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            exported(kind)
        return len(captured)

    factories.sampling(factories.database())
    factories.session(factories.lease())
    once = [asked(kind) for kind in ("accesses", "leases", "sessions")]
    for number in range(49):
        factories.session(factories.lease(age=60 + number))
    assert [asked(kind) for kind in ("accesses", "leases", "sessions")] == once
    assert [row["sessions"] for row in exported("accesses")] == ["1"] * 50


def test_sessions_are_exported_whether_they_have_a_lease_or_not() -> None:
    lease = factories.lease(age=120, database_user_by="time and name")
    made = factories.used_in_every_way(lease)
    rows = exported("sessions")
    assert list(rows[0]) == exports.header("sessions")
    assert len(rows) == len(made)
    assert [row["started_at"] for row in rows] == sorted(row["started_at"] for row in rows)
    stolen = next(row for row in rows if row["place"] == "elsewhere")
    assert (stolen["vault"], stolen["database"], stolen["database_name"]) == ("demo", "orders", "orders")
    assert (stolen["lease_id"], stolen["user_known_by"]) == (lease.lease_id, "time and name")
    assert (stolen["pod"], stolen["service_account"], stolen["cluster"]) == (lease.pod, "checkout", "demo")
    assert (stolen["address"], stolen["sampled"], stolen["logged"]) == ("127.30.0.99", "True", "False")
    assert "was not the holder's" in stolen["place_reason"]
    assert stolen["server"].startswith("postgresql ")
    ghost = next(row for row in rows if not row["lease_id"])
    assert (ghost["database"], ghost["pod"], ghost["user_known_by"]) == ("orders", "", "")
    logged = next(row for row in rows if row["end_known_by"] == "logged" and row["sampled"] == "False")
    assert logged["ended_at"]
    output = io.BytesIO()
    now = timezone.now()
    exports.write("sessions", output, from_at=now, to_at=now + timedelta(days=1), form="ndjson")
    assert output.getvalue() == b""


@pytest.mark.parametrize(
    "written", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\n=1", "\uff1d1", '=HYPERLINK("")']
)
def test_what_a_client_calls_itself_is_run_by_no_spreadsheet(written: str) -> None:
    factories.session(factories.lease(), application=written, database_name=written, database_user=written)
    (row,) = exported("sessions")
    for name in ("application", "database_name", "database_user"):
        assert row[name] == "'" + written


# --- the access review -------------------------------------------------------------------------------------------


def reviewed(**fields: Any) -> Reviewed:
    defaults: dict[str, Any] = dict.fromkeys(("ttl_median", "ttl_most", "use_median", "use_most", "last_at"))
    defaults |= {"issued": 1, "live": 0, "used": 0, "unused": 0, "sessions": 0}
    defaults |= dict.fromkeys(("cluster", "namespace", "service_account", "role"), "x")
    return Reviewed(**defaults | fields)


@pytest.mark.parametrize(
    ("fields", "said", "long"),
    [
        ({"ttl_median": 3600, "used": 1, "use_median": 240, "use_most": 240}, "issued for 1 h, used for 4 min", True),
        (
            {"ttl_median": 3600, "used": 2, "use_median": 240, "use_most": 3000},
            "issued for 1 h, used for 4 min (at most 50 min)",
            False,
        ),
        (
            {"ttl_median": 60, "used": 1, "use_median": 5400, "use_most": 5400},
            "issued for 1 min, used for 1 h 30 min, longer than issued",
            False,
        ),
        ({"ttl_median": 3600, "unused": 1}, "issued for 1 h, never used", False),
        ({"ttl_median": 3600}, "issued for 1 h; whether it was used is not known", False),
        (
            {"ttl_median": 3600, "issued": 3, "unused": 2},
            "issued for 1 h; 2 never used, of the others it is not known",
            False,
        ),
        (
            {"used": 1, "use_median": 0.2, "use_most": 0.2},
            "for how long is not known, used for less than 1 s",
            False,
        ),
    ],
)
def test_how_the_time_fits_the_use_is_a_plain_sentence(fields: dict[str, Any], said: str, long: bool) -> None:
    row = reviewed(**fields)
    assert (row.fit, row.long) == (said, long)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "less than 1 s"),
        (59.9, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (5400, "1 h 30 min"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (86_400 * 3 + 59, "3 d"),
    ],
)
def test_a_length_of_time_is_written_in_at_most_two_units(seconds: float, said: str) -> None:
    assert length(seconds) == said


def orders() -> Database:
    return factories.database()


def look(days: float = 30) -> leases.review.Review:
    now = timezone.now()
    return review(orders(), since=now - timedelta(days=days), now=now)


def test_leases_are_reviewed_by_service_account_and_role() -> None:
    factories.sampling(orders(), since=7200)
    for age in (4000, 3000):
        used = factories.lease(age=age, left=3600 - age, last_renewal_at=None)
        factories.session(used, age=age - 10, lasted=240)
    factories.lease(age=2000, left=1600, renewals=1)
    # from before the first sample
    factories.lease(age=9000, left=0)
    factories.lease(age=100, left=3500, service_account="reports", role="reporting", namespace="finance")
    factories.lease(age=50, database=factories.database("billing"))
    factories.ended(ago=86_400 * 31)
    checkout, reports = look().rows
    assert (checkout.namespace, checkout.service_account, checkout.role) == ("shop", "checkout", "my-role")
    assert (checkout.issued, checkout.used, checkout.unused, checkout.not_known) == (4, 2, 1, 1)
    assert checkout.ttl_median == 3600
    assert checkout.use_median == pytest.approx(240, abs=0.01)
    assert checkout.fit == "issued for 1 h, used for 4 min"
    assert checkout.long
    assert checkout.last_at == Session.objects.latest("last_seen_at").last_seen_at
    assert (reports.issued, reports.unused, reports.fit) == (1, 1, "issued for 1 h, never used")


def test_of_a_renewed_lease_the_ttl_is_what_its_last_renewal_gave() -> None:
    now = timezone.now()
    common: dict[str, Any] = {"age": 7200, "left": 1800, "renewals": 3}
    factories.lease(**common, last_renewal_at=now - timedelta(seconds=1800))
    (row,) = look().rows
    assert row.ttl_median == 3600
    # a renewal after the last lookup: the end is an older one
    Lease.objects.update(last_renewal_at=now, looked_up_at=now - timedelta(seconds=60))
    (row,) = look().rows
    assert row.ttl_median is None
    assert row.fit.startswith("for how long is not known")


def test_the_review_of_a_database_that_is_not_sampled_claims_nothing(viewer: Client) -> None:
    factories.lease(database=factories.database("legacy", monitored=False))
    page = text(viewer.get("/access-review?database=demo/database/legacy"))
    assert "Whether anything was used is not known: no session of this database was ever sampled" in page
    assert "whether it was used is not known" in page
    assert "never used" not in page


def test_a_review_says_from_when_on_sessions_are_known_and_which_roles_nobody_read(viewer: Client) -> None:
    factories.scene()
    page = text(viewer.get("/access-review?database=demo/database/orders"))
    assert re.search(r"Sessions are known from .* on\. Of leases from before that, use is not known", page)
    assert "Roles that nobody read: orders-rw" in page
    assert "Longest TTL" in page or "Issued for" in page


def test_a_period_with_more_leases_than_are_reviewed_says_so(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases.review, "MOST_REVIEWED", 3)
    for age in range(10, 60, 10):
        factories.lease(age=age)
    found = look()
    assert found.total("issued") == 3
    assert found.back_to is not None
    assert found.without == []
    page = text(viewer.get("/access-review?database=demo/database/orders"))
    assert "The period has more leases than are reviewed here" in page
    assert "manage.py export leases" in page


def test_the_review_is_a_csv_too_that_no_spreadsheet_runs(viewer: Client) -> None:
    factories.sampling(orders(), since=7200)
    factories.session(factories.lease(age=600, left=3000), age=500, lasted=240)
    factories.lease(role="=1+1", service_account="@evil", age=700)
    page = viewer.get("/access-review?database=demo/database/orders&days=7")
    address = unescape(re.search(r'href="(/access-review\.csv[^"]+)"', page.content.decode())[1])  # type: ignore[index]
    response = viewer.get(address)
    assert response["Content-Type"].startswith("text/csv")
    rows = {row["service_account"]: row for row in csv.DictReader(io.StringIO(response.content.decode()))}
    assert rows["'@evil"]["database_role"] == "'=1+1"
    checkout = rows["checkout"]
    assert (checkout["leases"], checkout["used"], checkout["unused"], checkout["not_known"]) == ("1", "1", "0", "0")
    assert (checkout["ttl_seconds_median"], checkout["use_seconds_max"]) == ("3600", "240")
    assert checkout["fit"] == "issued for 1 h, used for 4 min"
    assert viewer.get("/access-review.csv").status_code == 400
    assert viewer.get("/access-review?database=nowhere").status_code == 200
    assert "Nothing is shown until the form is mended" in text(viewer.get("/access-review?database=nowhere"))


def test_a_review_that_only_a_reader_may_have(log_in: Callable[..., Client], client: Client) -> None:
    factories.database()
    for path in ("/access-review.csv?database=demo/database/orders", f"/databases/{orders().pk}", "/pods/demo/x"):
        assert client.get(path).status_code == 302
    nobody = log_in()
    for path in ("/access-review.csv?database=demo/database/orders", f"/databases/{orders().pk}", "/pods/demo/x"):
        assert nobody.get(path).status_code == 403


# --- all of them -------------------------------------------------------------------------------------------------


def test_pages_ask_as_often_for_fifty_sessions_as_for_one(viewer: Client) -> None:
    factories.watched()
    factories.sampling(orders())
    lease = factories.lease(age=300)
    pod = factories.pod(lease)
    paths = [
        f"/leases/{lease.pk}",
        f"/databases/{orders().pk}",
        f"/databases/{orders().pk}?address=127.30.0.7",
        f"/pods/demo/{pod.uid}",
        "/access-review?database=demo/database/orders",
        "/databases",
        "/metrics",
    ]

    def asked() -> list[int]:
        counts = []
        for path in paths:
            with CaptureQueriesContext(connection) as captured:
                assert viewer.get(path).status_code == 200
            counts.append(len(captured))
        return counts

    def one_more(number: int) -> None:
        other = factories.lease(pod_uid=pod.uid, pod=lease.pod, service_account=f"sa-{number}")
        factories.session(lease, age=100 - number)
        factories.session(other)
        factories.session()
        factories.sampled(orders(), since=9000 + number, until=8999)

    one_more(0)
    once = asked()
    for number in range(1, 50):
        one_more(number)
    # of fifty, a page that is full does not look further
    assert [now <= before for now, before in zip(asked(), once, strict=True)] == [True] * len(paths)
    assert max(once[:-1]) <= 16


def test_hostile_names_in_sessions_are_shown_and_never_run(responder: Client) -> None:
    lease = factories.lease(role=HOSTILE, service_account=HOSTILE, namespace=HOSTILE, pod=HOSTILE)
    factories.session(
        lease,
        application=HOSTILE,
        database_name=HOSTILE,
        database_user=HOSTILE,
        address=HOSTILE,
        state=HOSTILE,
        place=Place.ELSEWHERE,
        place_reason=HOSTILE,
        server=factories.server(HOSTILE),
    )
    factories.sampling(orders(), server=factories.server(HOSTILE))
    Database.objects.update(nat=[HOSTILE], poolers=[HOSTILE])
    factories.pod(lease, address="127.0.0.1", node=HOSTILE, workload_name=HOSTILE, service_account=HOSTILE)
    for path in (
        f"/leases/{lease.pk}",
        f"/databases/{orders().pk}?user={HOSTILE}",
        f"/pods/demo/{lease.pod_uid}",
        "/access-review?database=demo/database/orders",
    ):
        response = responder.get(path)
        body = response.content.decode()
        assert response.status_code == 200
        assert HOSTILE not in body, path
        assert "&lt;script&gt;" in body, path
    # a cluster that no address can name has no page, and breaks no other one
    Lease.objects.filter(pk=lease.pk).update(cluster="a/b")
    assert responder.get(f"/leases/{lease.pk}").status_code == 200


def test_open_sessions_and_those_from_elsewhere_are_counted_by_database(client: Client) -> None:
    lease = factories.lease(age=120)
    factories.database("quiet")
    factories.used_in_every_way(lease)
    factories.session(lease, age=90_000, place=Place.ELSEWHERE)
    told = client.get("/metrics").content.decode()
    assert 'leasehold_sessions_open{database="orders",mount="database",vault="demo"} 7.0' in told
    assert 'leasehold_sessions_elsewhere{database="orders",mount="database",vault="demo"} 1.0' in told
    assert 'leasehold_sessions_elsewhere{database="quiet",mount="database",vault="demo"} 0.0' in told


def test_certainty_does_not_matter_to_the_list() -> None:
    lease = factories.lease(certainty=Certainty.SERVICE_ACCOUNT)
    session = factories.session(lease, place=Place.NOT_JUDGED)
    assert [row.pk for row in sessions_page(orders(), SessionFilter()).rows] == [session.pk]
    assert session_queries.of_lease(lease) == [session]
