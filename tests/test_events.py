"""The audit search page and the page of one event, on real lines that were ingested."""

import csv
import io
import re
import uuid
from datetime import datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import event_queries, partitions, raw_lines
from audit.event_queries import EventFilter, events_page
from audit.models import Event
from leases import queries
from tests import factories, logged
from tests.test_pages import HOSTILE, text

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def ids(where: EventFilter, **more: Any) -> list[str]:
    return [event.request_id for event in events_page(where, **more).rows]


def walk(where: EventFilter, *, size: int = 3) -> list[str]:
    """Every page, one after the other."""
    found, before = [], None
    for _ in range(500):
        page = events_page(where, before=before, size=size)
        found += [event.request_id for event in page.rows]
        if page.older is None:
            return found
        before = page.older
    raise AssertionError("it never ends")


def days_ago(days: float) -> datetime:
    return timezone.now().replace(microsecond=0) - timedelta(days=days)


# --- the list ----------------------------------------------------------------------------------------------------


def test_pages_show_every_event_once_newest_first_over_days_without_any() -> None:
    expected = [logged.log(days_ago(days)) for days in (0.01, 0.02, 0.02, 0.5, 3, 3.01, 20, 21, 21.2)]
    assert sorted(walk(EventFilter())) == sorted(expected)
    times = [event.at for event in events_page(EventFilter()).rows]
    assert times == sorted(times, reverse=True)


def test_one_log_that_is_known_as_two_vaults_is_paged_without_loss() -> None:
    at = days_ago(1)
    expected = [logged.log(at + timedelta(seconds=number)) for number in range(5)]
    copied = factories.vault("copy")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE twice ON COMMIT DROP AS SELECT * FROM audit_event")
        cursor.execute("UPDATE twice SET vault_id = %s", [copied.pk])
        cursor.execute("INSERT INTO audit_event SELECT * FROM twice")
    assert sorted(walk(EventFilter(), size=3)) == sorted(expected * 2)


@pytest.fixture
def some() -> dict[str, str]:
    at = days_ago(2)
    return {
        "plain": logged.log(at),
        "other account": logged.log(at, account="finance/reports", path="secret/data/a_b"),
        "same name": logged.log(at, account="other/checkout", path="secret/data/axb"),
        "address": logged.log(at, address="10.9.8.7", operation="update"),
        "error": logged.log(at, error="permission denied", path="secret/data/100%"),
        "old": logged.log(days_ago(9)),
    }


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, {"plain", "other account", "same name", "address", "error", "old"}),
        ({"path": "secret/data/a_"}, {"other account"}),
        ({"path": "secret/"}, {"other account", "same name", "error"}),
        ({"path": "secret/data/100%"}, {"error"}),
        ({"path": "nothing"}, set()),
        ({"identity": "finance/reports"}, {"other account"}),
        ({"identity": "checkout"}, {"plain", "same name", "address", "error", "old"}),
        ({"identity": "shop/checkout"}, {"plain", "address", "error", "old"}),
        ({"identity": "kubernetes-finance-reports"}, {"other account"}),
        ({"identity": "nobody"}, set()),
        ({"address": "10.9.8.7"}, {"address"}),
        ({"address": "10.9.8.8"}, set()),
        ({"operation": "update"}, {"address"}),
        ({"errors": True}, {"error"}),
        ({"errors": True, "identity": "reports"}, set()),
        ({"identity": "checkout", "path": "secret/"}, {"same name", "error"}),
        ({"identity": "checkout", "path": "secret/", "errors": True, "address": "127.30.0.7"}, {"error"}),
        ({"vault": "demo", "address": "10.9.8.7"}, {"address"}),
        ({"vault": "elsewhere"}, set()),
        ({"own": "only"}, set()),
    ],
)
def test_filters_narrow_the_list(some: dict[str, str], where: dict[str, Any], expected: set[str]) -> None:
    names = {request_id: name for name, request_id in some.items()}
    assert {names[request_id] for request_id in ids(EventFilter(**where))} == expected


def test_a_period_has_its_begin_and_not_its_end(some: dict[str, str]) -> None:
    at = Event.objects.get(request=some["old"]).at
    assert ids(EventFilter(from_at=at, to_at=at + timedelta(seconds=1))) == [some["old"]]
    assert ids(EventFilter(from_at=at - timedelta(days=1), to_at=at)) == []
    assert some["old"] not in ids(EventFilter(from_at=at + timedelta(microseconds=1)))


def test_a_request_is_found_by_its_id_and_by_its_login(some: dict[str, str]) -> None:
    event = Event.objects.select_related("token").get(request=some["old"])
    assert ids(EventFilter(request_id=some["old"])) == [some["old"]]
    assert ids(EventFilter(request_id=str(uuid.uuid4()))) == []
    assert event.token is not None
    login = factories.login(factories.lease())
    type(event.token).objects.filter(pk=event.token.pk).update(login=login)
    assert set(ids(EventFilter(login=login.pk))) == set(some.values())
    assert ids(EventFilter(login=login.pk + 1)) == []


def test_own_requests_are_left_out_unless_they_are_asked_for(some: dict[str, str]) -> None:
    Event.objects.filter(request=some["plain"]).update(own=True)
    assert some["plain"] not in ids(EventFilter())
    assert ids(EventFilter(own="only")) == [some["plain"]]
    assert len(ids(EventFilter(own="any"))) == len(some)


def test_a_rare_hit_is_looked_for_in_steps_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_LOOKED_THROUGH", 4)
    at = days_ago(1)
    rare = logged.log(at, operation="delete")
    for seconds in range(1, 12):
        logged.log(at + timedelta(seconds=seconds))
    first = events_page(EventFilter(operation="delete"))
    assert (first.rows, first.looked_until) == ([], at + timedelta(seconds=8))
    assert walk(EventFilter(operation="delete")) == [rare]


def test_a_long_time_without_a_hit_is_looked_through_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queries, "MOST_STRETCHES", 3)
    logged.log(days_ago(0))
    old = logged.log(days_ago(5), address="10.9.8.7")
    assert events_page(EventFilter(address="10.9.8.7")).looked_until is not None
    assert walk(EventFilter(address="10.9.8.7")) == [old]


def test_more_identities_than_can_be_named_are_tried_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queries, "MOST_IDS", 2)
    at = days_ago(1)
    expected = {logged.log(at, path=f"secret/data/{number}", policies=[str(number)]) for number in range(5)}
    logged.log(at, path="other/data", account="finance/reports")
    assert set(ids(EventFilter(path="secret/"))) == expected
    assert set(ids(EventFilter(identity="shop/checkout"))) == expected
    assert set(ids(EventFilter(identity="shop/checkout", path="secret/data/3"))) < expected


def test_a_page_asks_as_often_for_fifty_rows_as_for_one(viewer: Client) -> None:
    at = timezone.now() - timedelta(minutes=1)

    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get("/events").status_code == 200
        return len(captured)

    logged.log(at)
    once = asked()
    for number in range(49):
        logged.log(at, path=f"secret/{number}", address=f"10.0.0.{number}", account=f"shop/a{number}")
    # of one row it is looked whether there are older ones, too
    assert asked() <= once
    assert once <= 20


def test_a_path_of_any_length_is_kept_and_found() -> None:
    long = "secret/" + "x" * 5000
    request_id = logged.log(days_ago(1), path=long, account="shop/" + "y" * 4000)
    assert ids(EventFilter(path=long)) == [request_id]
    assert ids(EventFilter(path=long[:2000])) == [request_id]
    assert ids(EventFilter(path=long + "z")) == []
    assert ids(EventFilter(identity="shop/" + "y" * 4000)) == [request_id]


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_state_of_the_list_is_its_address(viewer: Client, some: dict[str, str]) -> None:
    answer = viewer.get("/events?address=10.9.8.7")
    assert f"/events/demo/{some['address']}" in answer.content.decode()
    assert 'value="10.9.8.7"' in answer.content.decode()
    assert some["plain"] not in answer.content.decode()
    # as somebody copies it from a command
    assert some["error"] in viewer.get("/events?path=/v1/secret/data/100%25").content.decode()


@pytest.mark.parametrize(
    "query", ["vault=nowhere", "from=yesterday", "login=x", "from=2026-11-20T10:00&to=2026-11-20T09:00"]
)
def test_a_filter_that_makes_no_sense_lists_nothing_and_says_so(
    viewer: Client, some: dict[str, str], query: str
) -> None:
    body = text(viewer.get(f"/events?{query}"))
    assert "Nothing is listed until the filter is mended." in body
    assert viewer.get(f"/events.csv?{query}").status_code == 400


@pytest.mark.parametrize("before", ["x", "1-1", f"1-{'g' * 32}1", f"1-{'0' * 32}", f"1-{'0' * 32}-1"])
def test_a_place_in_the_list_that_this_site_did_not_name_is_refused(viewer: Client, before: str) -> None:
    assert viewer.get(f"/events?before={before}").status_code == 400


def test_an_empty_list_says_what_to_do(viewer: Client) -> None:
    assert "No event is known." in text(viewer.get("/events"))
    logged.log(days_ago(1))
    assert "No request fits this filter." in text(viewer.get("/events?address=192.0.2.1"))


def test_the_file_holds_what_is_shown_and_no_formula(viewer: Client) -> None:
    logged.log(days_ago(1), path="=HYPERLINK(1)", address="10.9.8.7")
    logged.log(days_ago(1), path="secret/other")
    page = viewer.get("/events?address=10.9.8.7").content.decode()
    link = re.search(r'href="(/events\.csv[^"]*)"', page)
    assert link
    answer = viewer.get(unescape(link[1]))
    assert answer["Content-Disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert [(row["path"], row["address"]) for row in rows] == [("'=HYPERLINK(1)", "10.9.8.7")]


# --- one event ---------------------------------------------------------------------------------------------------


def told_of(request_id: str) -> list[raw_lines.Told]:
    event = event_queries.event(vault="demo", request_id=request_id)
    assert event is not None
    return raw_lines.told(event, event_queries.sightings(event))


def test_the_raw_lines_of_each_device_are_read_back_as_they_were_written(viewer: Client) -> None:
    at = days_ago(1)
    files: dict[str, bytes] = {}
    request_id = str(uuid.uuid4())
    for device in ("file-a", "file-b"):
        stream = factories.stream(device)
        before = logged.lines(at, path="secret/before")
        own = logged.lines(at, id=request_id, accessor=f"hmac-sha256:{device.encode().hex():0>64}")
        files[device] = before + own + logged.lines(at, path="secret/after")
        factories.read_lines(stream, files[device])
    found = told_of(request_id)
    assert [one.sighting.stream.device.name for one in found] == ["file-a", "file-b"]
    for one in found:
        file = files[one.sighting.stream.device.name]
        assert [line.half for line in one.lines] == ["request", "response"]
        for line in one.lines:
            assert line.text == file.split(b"\n")[line.number]
            assert line.offset is not None
            assert file[line.offset :].startswith(line.text)
    body = unescape(viewer.get(f"/events/demo/{request_id}").content.decode())
    for device, file in files.items():
        assert file.split(b"\n")[2].decode() in body, device
    assert "secret/after" not in body


def test_of_two_entries_on_one_line_the_right_one_is_shown() -> None:
    at, request_id = days_ago(1), str(uuid.uuid4())
    first, second = logged.lines(at, id=request_id).splitlines()
    other = logged.lines(at, path="secret/other").splitlines()[0]
    factories.read_lines(factories.stream(), first[:60] + other + first + b"\n" + second + b"\n")
    lines = told_of(request_id)[0].lines
    assert [line.text for line in lines] == [first, second]


def test_where_something_was_redacted_no_byte_of_the_file_is_named() -> None:
    request_id = logged.log(days_ago(1), path="secret/data/hvs." + "A" * 24)
    (told,) = told_of(request_id)
    assert [line.offset for line in told.lines] == [None, None]
    assert b"[redacted]" in told.lines[0].text
    assert b"AAAA" not in told.lines[0].text


def test_an_id_that_stands_in_the_data_of_another_request_is_not_that_request() -> None:
    at, request_id = days_ago(1), str(uuid.uuid4())
    other = logged.lines(at, path=f"secret/{request_id}")
    factories.read_lines(factories.stream(), other + logged.lines(at, id=request_id))
    assert [line.number for line in told_of(request_id)[0].lines] == [2, 3]


def test_lines_that_are_gone_are_said_to_be(viewer: Client) -> None:
    lease = factories.lease()
    event = factories.event(lease)
    told = told_of(event.request_id)
    assert [one.lines for one in told] == [[], []]
    assert all("verify-chain" in unread.cause for one in told for unread in one.unread)
    assert viewer.get(f"/events/demo/{event.request_id}").status_code == 200


def test_a_stream_that_has_only_the_answer_shows_that_alone(viewer: Client) -> None:
    request_id = str(uuid.uuid4())
    _, answer = logged.lines(days_ago(1), id=request_id).splitlines()
    factories.read_lines(factories.stream(), answer + b"\n")
    assert [line.half for line in told_of(request_id)[0].lines] == ["response"]
    assert "its request line was not seen" in text(viewer.get(f"/events/demo/{request_id}"))


def test_a_line_that_says_something_else_of_the_request_is_named(viewer: Client) -> None:
    stream, request_id = factories.stream(), str(uuid.uuid4())
    logged.log(days_ago(1), id=request_id)
    factories.read_lines(stream, logged.lines(days_ago(1), id=request_id, path="secret/other"))
    body = text(viewer.get(f"/events/demo/{request_id}"))
    assert "Lines that say something else of this request" in body
    assert "path" in body


def test_an_event_leads_to_its_lease_its_login_and_what_came_from_its_address(viewer: Client) -> None:
    lease = factories.lease(source_ip="10.9.8.7")
    event = factories.event(lease)
    body = viewer.get(f"/events/demo/{event.request_id}").content.decode()
    assert f'href="/leases/{lease.pk}"' in body
    assert 'href="/events?address=10.9.8.7"' in body


def test_a_request_whose_id_is_no_uuid_is_found_by_it(viewer: Client) -> None:
    request_id = logged.log(days_ago(1), id="req 2017 é")
    assert ids(EventFilter(request_id=request_id)) == [request_id]
    assert viewer.get(f"/events/demo/{request_id}").status_code == 200
    assert b"/events/demo/req%202017%20%C3%A9" in viewer.get("/events").content


def test_what_nobody_knows_is_not_found(viewer: Client) -> None:
    request_id = logged.log(days_ago(1))
    assert viewer.get(f"/events/elsewhere/{request_id}").status_code == 404
    assert viewer.get(f"/events/demo/{uuid.uuid4()}").status_code == 404
    assert viewer.get("/events/demo/anything").status_code == 404


def test_a_request_that_two_devices_tell_on_both_sides_of_midnight_is_one(viewer: Client) -> None:
    midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
    partitions.make_for([midnight.date(), (midnight - timedelta(days=1)).date()])
    request_id = str(uuid.uuid4())
    logged.log(midnight - timedelta(microseconds=5), id=request_id)
    logged.log(midnight + timedelta(microseconds=5), id=request_id, stream=factories.stream("file-b"))
    assert len(told_of(request_id)) == 2
    assert ids(EventFilter()) == [request_id]


def test_hostile_lines_are_shown_and_never_run(viewer: Client) -> None:
    request_id = logged.log(
        days_ago(1), path=f"secret/{HOSTILE}", account=f"{HOSTILE}/{HOSTILE}", error=HOSTILE, address=HOSTILE
    )
    for address in ("/events", f"/events/demo/{request_id}", f"/events?address={HOSTILE}&path={HOSTILE}"):
        body = viewer.get(address).content.decode()
        assert HOSTILE not in body
        assert "&lt;script&gt;" in body


def test_a_very_long_line_is_cut_and_said_to_be(viewer: Client) -> None:
    request_id = logged.log(days_ago(1), policies=[f"policy-{number}" for number in range(4000)])
    body = viewer.get(f"/events/demo/{request_id}").content.decode()
    assert "no more than the first 20,000 characters are shown" in re.sub(r"\s+", " ", body)


def test_reading_asks_as_often_whatever_the_size_of_a_block(viewer: Client) -> None:
    stream = factories.stream()

    def asked(request_id: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(f"/events/demo/{request_id}").status_code == 200
        return len(captured)

    alone = asked(logged.log(days_ago(1), stream=stream))
    many = [str(uuid.uuid4()) for _ in range(50)]
    factories.read_lines(stream, b"".join(logged.lines(days_ago(1), id=one) for one in many))
    assert asked(many[25]) == alone
    assert alone <= 20


def test_conflicts_of_a_request_are_found_by_their_index() -> None:
    request_id = logged.log(days_ago(1))
    known = factories.conflict(factories.stream(), request_id=request_id)
    with CaptureQueriesContext(connection) as captured:
        assert event_queries.conflicts_of(Event.objects.get()) == [known]
    with connection.cursor() as cursor:
        # a few rows are read sooner without one
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {captured[-1]['sql']}", None)
        assert any("conflict_by_request" in line for (line,) in cursor.fetchall())
