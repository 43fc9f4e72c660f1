"""The pages without a browser: who may see what, what they say, how much they ask of the database."""

import hashlib
import re
import tomllib
import uuid
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, reverse
from django.utils import timezone

import audit.queries
from audit.models import Gap, Stream
from audit.polls import request_ids
from dashboard import throttle, urls
from dashboard.templatetags.leasehold import span
from dashboard.views.errors import explain
from leases import action_queries, queries
from leases.models import Certainty, EndReason, Lease, LeaseState, Revocation
from leases.models.sources import SourceKind
from leases.version import VERSION
from tests import factories

pytestmark = [
    pytest.mark.django_db,
    # static files are served as they lie in static/ where nobody ran collectstatic
    pytest.mark.filterwarnings("ignore:No directory at"),
]

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_LOGIN = {"login", "logout", "healthz", "readyz", "metrics"}
HTMX = {"HX-Request": "true"}
LogIn = Callable[..., Client]


def pages(scene: dict[str, Any]) -> dict[str, str]:
    """Every page that can be read, by name."""
    return {
        "overview": "/",
        "leases": "/leases?state=any",
        "leases-detail": f"/leases/{scene['lease'].pk}",
        "workloads": "/workloads",
        "workloads-detail": "/workloads/demo/shop/checkout",
        "databases": "/databases",
        "search": "/search",
        "events": "/events?own=any",
        "events-detail": f"/events/demo/{scene['lease'].request_id}",
        "findings": "/findings?state=any",
        "findings-detail": f"/findings/{scene['finding'].pk}",
        "databases-detail": f"/databases/{scene['database'].pk}",
        "pods-detail": f"/pods/demo/{scene['pod'].uid}",
        "review": "/access-review?database=demo/database/orders",
        "access": "/access?database=demo/database/orders&to=2026-11-20T12:00",
        "actions": "/actions",
        "actions-receipt": f"/actions/{scene['unverified'].pk}",
        "actions-receipt-of-many": f"/actions/{scene['many'].pk}",
        "actions-receipt-waiting": f"/actions/{scene['waiting'].pk}",
        "actions-item": f"/actions/{scene['many'].pk}/leases/{scene['item'].pk}",
        "containments": "/containments?state=any",
        "containments-detail": f"/containments/{scene['containment'].pk}",
        "sources": "/sources",
        "sources-stream": f"/sources/streams/{scene['stream'].pk}/",
        "sources-rejected": f"/sources/streams/{scene['stream'].pk}/rejected/{scene['rejected'].pk}/",
    }


def text(response: Any) -> str:
    """What a reader sees: no tags, single spaces."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", response.content.decode())))


# --- access ------------------------------------------------------------------------------------------------------


def test_every_address_has_a_rule_or_is_meant_to_need_no_log_in() -> None:
    for pattern in urls.urlpatterns:
        assert isinstance(pattern, URLPattern)
        open_to_all = not getattr(pattern.callback, "login_required", True)
        assert open_to_all == (pattern.name in WITHOUT_LOGIN), pattern.name
        assert open_to_all or hasattr(pattern.callback, "rule"), pattern.name


def test_nobody_reads_anything_without_a_log_in(client: Client) -> None:
    scene = factories.scene()
    for path in [*pages(scene).values(), f"/leases/{scene['revocable'].pk}/revoke"]:
        response = client.get(path)
        assert response.status_code == 302
        assert response["Location"].startswith("/login?next=")


def test_a_live_part_whose_session_ended_reloads_the_page(client: Client) -> None:
    response = client.get("/login?next=/", headers=HTMX)
    assert response["HX-Refresh"] == "true"


def test_a_user_in_no_group_is_told_so_and_who_can_help(log_in: LogIn) -> None:
    scene = factories.scene()
    client = log_in()
    for path in [*pages(scene).values(), f"/leases/{scene['revocable'].pk}/revoke"]:
        response = client.get(path)
        assert response.status_code == 403
        assert "You belong to no group" in text(response)
        assert "manage.py createuser user --group" in text(response)


@pytest.mark.parametrize("group", ["viewer", "responder"])
def test_both_groups_read_every_page(log_in: LogIn, group: str) -> None:
    client = log_in(group)
    for path in pages(factories.scene()).values():
        assert client.get(path).status_code == 200, path


def test_a_viewer_cannot_revoke(viewer: Client) -> None:
    lease = factories.lease()
    path = reverse("leases-revoke", args=[lease.pk])
    for response in (viewer.get(path), viewer.post(path, {"reason": "because"})):
        assert response.status_code == 403
        assert "This needs the group responder" in text(response)
    assert not Revocation.objects.exists()
    assert "Revoke…" not in text(viewer.get(reverse("leases-detail", args=[lease.pk])))


def test_pages_are_kept_by_no_cache(viewer: Client) -> None:
    assert "no-store" in viewer.get("/")["Cache-Control"]


# --- log-in ------------------------------------------------------------------------------------------------------


def test_after_the_log_in_one_is_where_one_wanted_to_be_but_never_elsewhere(client: Client) -> None:
    factories.user("operator", "viewer")
    form = {"username": "operator", "password": factories.PASSWORD}
    assert client.post("/login", form | {"next": "/leases?pod=a"})["Location"] == "/leases?pod=a"
    client.post("/logout")
    assert client.post("/login", form | {"next": "https://elsewhere.example/"})["Location"] == "/"


def test_five_wrong_passwords_are_followed_by_a_wait_for_that_user_at_that_address(client: Client) -> None:
    factories.user("operator", "viewer")
    factories.user("other", "viewer")
    right = {"username": "operator", "password": factories.PASSWORD}
    for _ in range(throttle.FAILURES):
        assert "do not match" in text(client.post("/login", right | {"password": "wrong"}))
    refused = client.post("/login", right)
    assert refused.status_code == 422
    assert "Too many wrong passwords" in text(refused)
    assert client.post("/login", right, REMOTE_ADDR="192.0.2.7").status_code == 302
    client.post("/logout")
    assert client.post("/login", right | {"username": "other"}).status_code == 302


def test_the_wait_is_over_when_the_failures_are_old() -> None:
    now = timezone.now()
    who = throttle.who("operator", "192.0.2.7")
    for _ in range(throttle.FAILURES):
        throttle.failed(who, now=now)
    assert 0 < throttle.seconds_to_wait(who, now=now) <= throttle.WINDOW.total_seconds()
    assert throttle.seconds_to_wait(who, now=now + throttle.WINDOW) == 0


def test_what_was_typed_as_a_user_name_is_not_kept(client: Client) -> None:
    client.post("/login", {"username": "my secret by mistake", "password": "x"})
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(failedlogin::text, '') FROM dashboard_failedlogin failedlogin")
        kept = cursor.fetchone()[0]
    assert kept
    assert "my secret" not in kept


def test_logging_out_needs_a_post(viewer: Client) -> None:
    assert viewer.get("/logout").status_code == 405
    assert viewer.post("/logout").status_code == 302
    assert viewer.get("/").status_code == 302


# --- createuser --------------------------------------------------------------------------------------------------


def test_createuser_makes_a_user_and_may_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "correct horse battery")
    call_command("createuser", "ada", "--group=viewer", "--password-env=SECRET", verbosity=0)
    before = User.objects.get().password
    call_command("createuser", "ada", "--group=responder", "--password-env=SECRET")
    user = User.objects.get()
    assert user.password == before, "an unchanged password must not end the user's sessions"
    assert [group.name for group in user.groups.all()] == ["responder"]
    call_command("createuser", "ada", "--group=viewer")
    assert [group.name for group in user.groups.all()] == ["viewer"]


@pytest.mark.parametrize(
    ("password", "complaint"), [("short", "too weak"), ("password1234", "too weak"), ("", "not set or empty")]
)
def test_createuser_refuses_what_is_no_password(monkeypatch: pytest.MonkeyPatch, password: str, complaint: str) -> None:
    monkeypatch.setenv("SECRET", password)
    with pytest.raises(CommandError, match=complaint):
        call_command("createuser", "ada", "--group=viewer", "--password-env=SECRET")
    assert not User.objects.exists()


def test_createuser_wants_a_password_for_a_new_user() -> None:
    with pytest.raises(CommandError, match="ada is new"):
        call_command("createuser", "ada", "--group=viewer")


# --- what pages say ----------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>"


def test_hostile_names_are_shown_and_never_run(responder: Client) -> None:
    scene = factories.scene()
    lease = scene["lease"]
    Lease.objects.filter(pk=lease.pk).update(
        pod=HOSTILE,
        pod_namespace=HOSTILE,
        service_account=HOSTILE,
        certainty_reason=HOSTILE,
        role=HOSTILE,
        lease_id=f"database/creds/{HOSTILE}/'; rm -rf '",
        source_ip=HOSTILE,
    )
    factories.event(lease, seconds=5, error=HOSTILE, metadata={HOSTILE: HOSTILE})
    factories.action(scene["irrevocable"], by=HOSTILE, reason=HOSTILE)
    factories.source(SourceKind.VAULT, "demo", ok=False, cause=HOSTILE, fix=HOSTILE)
    factories.database(HOSTILE)
    stream = scene["stream"]
    factories.gap(stream, kind=HOSTILE, what=HOSTILE)
    factories.conflict(stream, fields=HOSTILE, request_id=HOSTILE)
    line = factories.rejected(stream, HOSTILE.encode())
    factories.stream(HOSTILE, refused=HOSTILE)
    paths = [*pages(scene).values(), f"/leases/{lease.pk}/revoke", f"/leases?pod={HOSTILE}", "/leases?before=1-1"]
    paths += [f"/sources/streams/{stream.pk}/rejected/{line.pk}/", f"/sources/streams/{stream.pk}/?day={HOSTILE}"]
    for path in paths:
        body = responder.get(path).content.decode()
        assert HOSTILE not in body, path
        assert "alert(1)" not in body or "&lt;script&gt;" in body


def test_the_command_to_copy_is_quoted_for_a_shell(viewer: Client) -> None:
    lease = factories.lease(lease_id="database/creds/my-role/'; rm -rf ~'")
    body = text(viewer.get(f"/leases/{lease.pk}"))
    assert """bao lease revoke -sync 'database/creds/my-role/'"'"'; rm -rf ~'"'"''""" in body


def test_nothing_is_inline_and_the_policy_is_strict(responder: Client) -> None:
    scene = factories.scene()
    for path in [*pages(scene).values(), f"/leases/{scene['revocable'].pk}/revoke", "/nowhere", "/leases?before=x"]:
        response = responder.get(path)
        body = response.content.decode()
        assert not re.search(r"\sstyle=|<style|\son\w+=|<script>|<script [^>]*>[^<]|javascript:", body), path
        assert not re.search(r"hx-on|hx-vals=.js:|\[[^\]]*\]\s*from", body), path
        policy = response["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


def test_the_vendored_script_is_the_one_that_its_readme_names() -> None:
    folder = ROOT / "static" / "vendor"
    readme = (folder / "README.md").read_text()
    scripts = list(folder.glob("*.js"))
    assert scripts
    for script in scripts:
        assert f"`{script.name}`" in readme
        assert hashlib.sha256(script.read_bytes()).hexdigest() in readme


def test_the_version_is_the_one_of_the_project_file() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 m 00 s"), (3599, "59 m 59 s"), (3600, "1 h 00 m"), (90_000, "1 d 01 h")],
)
def test_a_span_is_written_in_two_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_an_empty_installation_says_what_to_do(viewer: Client) -> None:
    for path in ("/", "/leases", "/databases", "/sources"):
        assert "manage.py configure" in text(viewer.get(path)), path
    assert "Nobody has done anything here yet" in text(viewer.get("/actions"))


def test_a_failing_source_stands_on_top_with_cause_and_fix(viewer: Client) -> None:
    factories.watched()
    factories.source(SourceKind.VAULT, "demo", ok=False, cause="Vault is sealed", fix="Unseal it.")
    for path in ("/", "/leases", "/sources"):
        body = text(viewer.get(path))
        assert "Vault is sealed" in body, path
        assert "Unseal it." in body, path


def test_data_that_is_stale_or_never_came_is_called_so(viewer: Client) -> None:
    factories.watched()
    factories.source(SourceKind.CLUSTER, "demo", checked=16)
    factories.vault("second")
    body = text(viewer.get("/"))
    assert "Cluster demo: Its last answer is older than 15 s." in body
    assert "Vault second: No worker has asked it yet." in body


def test_a_database_without_a_monitoring_account_is_not_called_failing(viewer: Client) -> None:
    factories.watched()
    factories.database("legacy", monitored=False)
    assert "no monitoring account" in text(viewer.get("/sources"))
    assert "legacy" not in text(viewer.get("/"))


def test_a_lease_past_its_end_that_nobody_has_seen_gone_is_called_over(viewer: Client) -> None:
    factories.lease(left=-7)
    assert re.search(r"[78] s over", text(viewer.get("/leases")))


def test_an_irrevocable_lease_is_announced(viewer: Client) -> None:
    factories.scene()
    assert "Vault gave up revoking 1 lease." in text(viewer.get("/"))


def test_a_lease_tells_everything_that_is_known(viewer: Client) -> None:
    scene = factories.scene()
    lease = scene["lease"]
    body = text(viewer.get(f"/leases/{lease.pk}"))
    for known in (
        lease.lease_id,
        lease.pod_uid,
        lease.certainty_reason,
        lease.database_user,
        lease.source_ip,
        lease.login.request_id,
        lease.request_id,
        "file-a/bao-0, file-b/bao-0",
        "the pod watch has not come past this moment yet",
        "2 times",
        "operator is revoking it",
    ):
        assert known in body
    assert "a lookup finds no such lease" in text(viewer.get(f"/leases/{scene['ended'].pk}"))


def test_a_lease_that_was_never_seen_is_not_found(viewer: Client) -> None:
    assert viewer.get("/leases/999999").status_code == 404
    assert viewer.get(f"/actions/{uuid.uuid4()}").status_code == 404


# --- how complete a stream is ------------------------------------------------------------------------------------


def test_a_streams_sum_is_shown_and_adds_up(viewer: Client) -> None:
    factories.watched()
    Stream.objects.filter(device__name="file-a").update(
        lines=1_234_567, parts=1_234_000, duplicates=500, rejected=40, expired=20, conflicts=7, redacted=3
    )
    stream = factories.stream("file-a")
    factories.coverage(stream, hours_ago=1, lines=3, pairs=1, unpaired=1)
    for path in ("/sources", f"/sources/streams/{stream.pk}/"):
        body = viewer.get(path).content.decode()
        cells = dict(re.findall(r'data-label="([^"]+)" class="number[^"]*">([\d,]+)<', body)[::-1])
        told = {label.strip("=+ ").lower(): int(cell.replace(",", "")) for label, cell in cells.items()}
        parts = told.get("parts") or told["event parts"]
        assert (told["lines"], parts) == (1_234_567, 1_234_000), path
        assert told["lines"] == parts + sum(told[name] for name in ("duplicates", "rejected", "expired", "conflicts"))
    assert "1 unpaired" in text(viewer.get("/sources"))


@pytest.mark.parametrize(
    ("row", "gaps", "expected"),
    [
        ({"lines": 2, "pairs": 1}, 0, "complete"),
        ({"lines": 2, "pairs": 1, "lag_seconds": 15.5}, 0, "lag"),
        ({"lines": 1, "rejected": 1, "lag_seconds": 60}, 0, "rejected"),
        ({"lines": 1, "conflicts": 1}, 0, "rejected"),
        ({"lines": 1, "rejected": 1}, 1, "gap"),
        (None, 1, "gap"),
        (None, 0, "no lines"),
    ],
)
def test_an_hour_is_called_by_the_worst_that_is_known_of_it(
    row: dict[str, Any] | None, gaps: int, expected: str
) -> None:
    factories.watched()
    stream = factories.stream("file-a")
    factories.coverage(stream, hours_ago=9)
    if row:
        factories.coverage(stream, hours_ago=4, **row)
    for _ in range(gaps):
        factories.gap(stream, hours_ago=4, seconds=0)
    hours = audit.queries.last_day([stream], now=timezone.now())[stream.pk].hours
    assert len(hours) == 24
    assert hours[-5].state == expected
    assert [hour.state for hour in hours[:14]] == ["before the first line"] * 14
    assert hours[14].state == "complete"


def test_hours_that_nobody_has_read_to_their_end_are_not_called_empty(viewer: Client) -> None:
    factories.watched()
    stream = factories.stream("file-a")
    factories.coverage(stream, hours_ago=9)
    now = timezone.now()
    Stream.objects.filter(pk=stream.pk).update(read_at=now - timedelta(hours=3))
    stream.refresh_from_db()
    hours = audit.queries.last_day([stream], now=now)[stream.pk].hours
    assert [hour.state for hour in hours[-4:]] == ["lag"] * 4
    assert "not read to its end" in text(viewer.get(f"/sources/streams/{stream.pk}/"))


def test_each_mark_of_a_day_has_a_shape_and_the_words_say_the_same(viewer: Client) -> None:
    scene = factories.scene()
    body = viewer.get("/sources").content.decode()
    strips = re.findall(r'<span class="strip" aria-hidden="true">(.*?)</a>', body, re.S)
    assert len(strips) == 2
    marks = re.findall(r'title="\d\d:\d\d ([^"]+)"><svg[^>]*><use href="#(i-[\w-]+)">', strips[0])
    assert len(marks) == 24
    assert len(set(marks)) == len({state for state, _ in marks}) == len({shape for _, shape in marks}) == 6
    words = {state: int(n) for n, state in re.findall(r"(\d+) h ([a-z ]+)", text(viewer.get("/sources")))}
    assert words["gap"] == sum(state == "gap" for state, _ in marks) == 2
    assert f'href="/sources/streams/{scene["stream"].pk}/#hours"' in body


def test_a_day_of_a_stream_can_be_chosen_and_walked(viewer: Client) -> None:
    stream = factories.stream("file-a")
    for hours_ago in (1, 30, 60):
        factories.coverage(stream, hours_ago=hours_ago, lines=hours_ago * 1000, pairs=hours_ago * 500)
    path = f"/sources/streams/{stream.pk}/"
    seen = []
    address = path
    while address:
        body = viewer.get(address).content.decode()
        seen += [
            int(n.replace(",", "")) for n in re.findall(r'<td data-label="Lines" class="number">([\d,]+)</td>', body)
        ]
        before = re.search(r'href="(\?day=[\d-]+)#hours" rel="prev"', body)
        address = path + before[1] if before else ""
    # the hours of each day, and its sum below them
    assert {1000, 30_000, 60_000} <= set(seen)
    long_ago = text(viewer.get(f"{path}?day=2026-01-31"))
    assert "Of this day the stream has no line and no gap. Its lines begin on" in long_ago


@pytest.mark.parametrize("day", ["x", "2026-13-01", "2026-02-30", "1999-01-01", "9999-12-31", "0001-01-01"])
def test_a_day_that_is_none_is_refused(viewer: Client, day: str) -> None:
    assert viewer.get(f"/sources/streams/{factories.stream().pk}/", {"day": day}).status_code == 400


def test_gaps_that_follow_on_one_another_are_one_and_a_closed_one_is_called_so(viewer: Client) -> None:
    stream = factories.a_day_of_lines(factories.stream("file-a")).stream
    told = audit.queries.newest_gaps(stream)
    assert [(gap.kind, gap.rows, gap.closed) for gap in told] == [
        ("poll not seen", 3, False),
        ("bytes unread at rotation", 1, False),
    ]
    assert (told[0].to_at - told[0].from_at).total_seconds() == 180  # type: ignore[operator]
    body = text(viewer.get(f"/sources/streams/{stream.pk}/"))
    assert "4,096" in body
    assert "Closed" not in body
    entry = '{"time":"%s","type":"request","request":{"id":"%s","path":"sys/mounts"}}\n'
    for gap in Gap.objects.filter(kind="poll not seen"):
        for request_id in request_ids(gap):
            factories.read_lines(stream, (entry % (gap.to_at.isoformat(), request_id)).encode())
    assert "Closed: what was missing has come since." in text(viewer.get(f"/sources/streams/{stream.pk}/"))
    (day,) = audit.queries.last_day([stream], now=timezone.now()).values()
    assert day.open_gaps == 1


def test_a_rejected_line_is_shown_on_demand_and_never_run(viewer: Client, log_in: LogIn) -> None:
    stream = factories.stream("file-a")
    line = factories.rejected(stream, b'<img src=x onerror="alert(1)">\x00\xe2\x80\xae\xff' + b"x" * 5000)
    page, content = f"/sources/streams/{stream.pk}/", f"/sources/streams/{stream.pk}/rejected/{line.pk}/"
    assert "onerror" not in viewer.get(page).content.decode()
    body = viewer.get(content).content.decode()
    assert f'href="{content}"' in viewer.get(page).content.decode()
    assert "<img" not in body
    # what does not print, or turns the direction of writing, is spelled out; no more than 2,000 characters
    shown = unescape(re.search(r"<pre[^>]*><code>(.*?)</code>", body, re.S)[1])  # type: ignore[index]
    assert shown.startswith('<img src=x onerror="alert(1)">\\x00\\u202e\\xff' + "xxx")
    assert len(shown) == 2000
    assert "2,000 characters" in text(viewer.get(content))
    assert log_in().get(content).status_code == 403


def test_of_two_entries_glued_on_one_line_only_the_rejected_piece_is_shown(viewer: Client) -> None:
    stream = factories.stream("file-a")
    at = timezone.now().isoformat()
    entry = '{"time":"%s","type":"request","request":{"id":"%s","path":"sys/mounts"}}'
    lines = [entry % (at, "one"), '{"time":"torn' + entry % (at, "two"), entry % (at, "three")]
    factories.read_lines(stream, "\n".join([*lines, ""]).encode())
    line = stream.rejected_lines.get()
    assert (line.block_sequence, line.line_number) == (1, 1)
    body = text(viewer.get(f"/sources/streams/{stream.pk}/rejected/{line.pk}/"))
    assert '{"time":"torn' in body
    assert "two" not in body


def test_a_line_of_another_stream_or_none_is_not_found(viewer: Client) -> None:
    line = factories.rejected(factories.stream("file-a"))
    other = factories.stream("file-b")
    assert viewer.get(f"/sources/streams/{other.pk}/rejected/{line.pk}/").status_code == 404
    assert viewer.get(f"/sources/streams/{line.stream_id}/rejected/999999/").status_code == 404
    assert viewer.get("/sources/streams/999999/").status_code == 404


def test_a_stream_without_anything_says_so(viewer: Client) -> None:
    body = text(viewer.get(f"/sources/streams/{factories.stream(path='').pk}/"))
    for said in (
        "No line of this stream has been read yet.",
        "No gap is known.",
        "Every line so far was an audit entry.",
        "No line contradicts another.",
        "no block yet",
        "manage.py verify-chain",
    ):
        assert said in body


def test_a_refused_and_a_retired_stream_say_why_nothing_is_read(viewer: Client) -> None:
    refused = factories.stream("raw", refused="auth.client_token stands in plain text")
    body = text(viewer.get(f"/sources/streams/{refused.pk}/"))
    assert "Nothing more is taken from it: auth.client_token stands in plain text." in body
    assert "without log_raw" in body
    retired = factories.stream("old", retired=True)
    assert "Retired: nothing more is read from it." in text(viewer.get(f"/sources/streams/{retired.pk}/"))


def test_a_stream_asks_as_often_for_fifty_hours_as_for_one(viewer: Client) -> None:
    factories.watched()
    stream = factories.stream("file-a")

    def asked(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(path).status_code == 200
        return len(captured)

    def one_more(hours_ago: int) -> None:
        factories.coverage(stream, hours_ago=hours_ago)
        factories.gap(stream, kind="poll not seen", hours_ago=hours_ago, what=f"missing: {uuid.uuid4()}")
        factories.gap(stream, hours_ago=hours_ago)
        factories.rejected(stream, str(hours_ago).encode())
        factories.conflict(stream)

    one_more(0)
    paths = ["/sources", f"/sources/streams/{stream.pk}/"]
    once = [asked(path) for path in paths]
    for hours_ago in range(1, 50):
        one_more(hours_ago)
    assert [asked(path) for path in paths] == once
    assert max(once) <= 36


# --- live parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/leases", "/leases?state=any", "/sources"])
def test_a_live_part_is_sent_again_only_when_something_changed(viewer: Client, path: str) -> None:
    factories.watched()
    poll = re.search(r'hx-get="([^"]+)"', viewer.get(path).content.decode())
    assert poll
    address = unescape(poll[1])
    assert viewer.get(address, headers=HTMX).status_code == 204
    lease = factories.lease()
    changed = viewer.get(address, headers=HTMX)
    assert changed.status_code == 200
    assert b"<html" not in changed.content
    address = unescape(re.search(r'hx-get="([^"]+)"', changed.content.decode())[1])  # type: ignore[index]
    assert viewer.get(address, headers=HTMX).status_code == 204
    Lease.objects.filter(pk=lease.pk).update(
        state=LeaseState.ENDED, ended_at=timezone.now(), end_reason=EndReason.EXPIRED, updated_at=timezone.now()
    )
    assert viewer.get(address, headers=HTMX).status_code == 200
    # a reader without htmx always gets the page
    assert viewer.get(address).status_code == 200


def test_the_version_changes_when_data_becomes_stale_and_when_a_revocation_moves() -> None:
    factories.watched()
    lease = factories.lease()
    now = timezone.now()
    version = queries.ledger_version(now=now)
    assert queries.ledger_version(now=now) == version
    assert queries.ledger_version(now=now + timedelta(seconds=30)) != version
    factories.action(lease)
    requested = queries.ledger_version(now=now)
    assert requested != version
    Revocation.objects.update(state="verified", updated_at=now)
    assert queries.ledger_version(now=now) != requested


def test_only_the_first_page_of_a_list_is_live(viewer: Client) -> None:
    for age in range(60):
        factories.lease(age=age)
    first = viewer.get("/leases").content.decode()
    assert "hx-get" in first
    older = re.search(r'href="(/leases\?before=[^"]+)"', first)
    assert older
    assert "hx-get" not in viewer.get(unescape(older[1])).content.decode()


# --- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"a", "b", "u"}),
        ("state=any", {"a", "b", "u", "e"}),
        ("state=ended", {"e"}),
        ("state=live", {"a", "b", "u"}),
        ("database=demo/database/billing", {"b"}),
        ("database=unknown", {"u"}),
        ("certainty=service+account", {"b"}),
        ("certainty=exact&state=any", {"a", "e"}),
        ("namespace=finance", {"b"}),
        ("service_account=checkout", {"a"}),
        ("pod=OUT-6f", {"a"}),
        ("pod=%25", set()),
        ("certainty=exact&namespace=finance", set()),
    ],
)
def test_filters_narrow_the_list(viewer: Client, query: str, expected: set[str]) -> None:
    unknown: dict[str, Any] = {"certainty": Certainty.UNKNOWN, "database": None}
    found = {
        "a": factories.lease(pod="checkout-6f7c"),
        "b": factories.lease(
            database=factories.database("billing"),
            service_account="reports",
            namespace="finance",
            certainty=Certainty.SERVICE_ACCOUNT,
        ),
        "u": factories.lease(**unknown),
        "e": factories.ended(),
    }
    body = viewer.get(f"/leases?{query}").content.decode()
    assert {name for name, lease in found.items() if f'id="lease-{lease.pk}"' in body} == expected


def test_a_filter_that_makes_no_sense_lists_nothing(viewer: Client) -> None:
    factories.lease()
    body = text(viewer.get("/leases?certainty=certain"))
    assert "Nothing is listed until the filter is mended" in body


def test_keyset_pages_show_every_lease_once_newest_first(viewer: Client) -> None:
    at = timezone.now() - timedelta(minutes=5)
    for number in range(120):
        # many at the very same moment, and some that only Vault's list of leases has shown
        moment = at - timedelta(seconds=number // 40)
        if number % 7:
            factories.lease(accessed_at=moment)
        else:
            factories.lease(certainty=Certainty.UNKNOWN, first_seen_at=moment)
    seen: list[int] = []
    path = "/leases"
    while path:
        body = viewer.get(path).content.decode()
        seen += [int(pk) for pk in re.findall(r'id="lease-(\d+)"', body)]
        older = re.search(r'href="([^"]+)" rel="next"', body)
        path = unescape(older[1]) if older else ""
    assert sorted(seen) == sorted(Lease.objects.values_list("pk", flat=True))
    began = {lease.pk: lease.accessed_at or lease.first_seen_at for lease in Lease.objects.all()}
    assert seen == sorted(seen, key=lambda pk: (began[pk], pk), reverse=True)


def test_a_rare_hit_is_looked_for_in_steps_and_found(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_LOOKED_THROUGH", 20)
    at = timezone.now() - timedelta(minutes=5)
    for number in range(45):
        # the last of a step, the first of the next one, and the very last
        factories.lease(
            pod="needle" if number in (19, 20, 44) else "hay", accessed_at=at - timedelta(seconds=number // 7)
        )
    path, found, steps = "/leases?pod=NEEDLE", 0, 0
    while path:
        body = viewer.get(path).content.decode()
        found += len(re.findall(r'id="lease-\d+"', body))
        older = re.search(r'href="([^"]+)" rel="next"', body)
        assert (older is not None) == ("Look further back" in body)
        path = unescape(older[1]) if older else ""
        steps += 1
    assert (found, steps) == (3, 3)


def test_actions_are_paged_too(viewer: Client) -> None:
    lease = factories.ended()
    made = {factories.action(lease, state="verified", ago=number // 20).pk.hex for number in range(70)}
    first = action_queries.actions_page()
    assert first.older
    second = action_queries.actions_page(before=first.older)
    assert second.older is None
    shown = [row.action.pk.hex for row in [*first.rows, *second.rows]]
    assert len(shown) == len(made)
    assert set(shown) == made
    assert viewer.get(f"/actions?before={first.older}").status_code == 200


@pytest.mark.parametrize("cursor", ["x", "1-", "-1", "1-x", "1-1;drop", "99999999999999999-99999999999999999999"])
def test_a_page_that_this_site_did_not_name_is_refused(viewer: Client, cursor: str) -> None:
    assert viewer.get("/leases", {"before": cursor}).status_code == 400
    assert viewer.get("/actions", {"before": cursor}).status_code == 400


def one_more() -> None:
    """A lease with all that hangs on it, live, ended and revoked."""
    lease = factories.lease(service_account=f"sa-{uuid.uuid4()}")
    factories.login(lease)
    factories.event(lease)
    factories.action(lease)
    done = factories.ended(database=factories.database("billing"))
    action = factories.action(done, state="verified")
    factories.step(action, done, "Vault answered")


@pytest.mark.parametrize("path", ["/", "/leases?state=any", "/databases", "/actions", "/sources"])
def test_a_page_asks_as_often_for_fifty_rows_as_for_one(viewer: Client, path: str) -> None:
    factories.watched()

    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(path).status_code == 200
        return len(captured)

    one_more()
    once = asked()
    for _ in range(49):
        one_more()
    assert asked() == once
    assert once <= 36


def test_a_lease_with_fifty_events_asks_as_often_as_one_with_a_single_event(viewer: Client) -> None:
    lease = factories.lease()
    factories.login(lease)

    def asked() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(f"/leases/{lease.pk}").status_code == 200
        return len(captured)

    factories.event(lease)
    factories.action(lease, state="failed")
    factories.attribution(lease, before="", certainty="exact", reason="because")
    once = asked()
    for seconds in range(1, 50):
        factories.event(lease, seconds=seconds)
        factories.action(lease, state="failed")
        factories.attribution(lease, before="", certainty="exact", reason="because")
    assert asked() == once


def test_an_unchanged_live_part_asks_little(viewer: Client) -> None:
    factories.watched()
    for _ in range(20):
        one_more()
    poll = re.search(r'hx-get="([^"]+)"', viewer.get("/").content.decode())
    assert poll
    with CaptureQueriesContext(connection) as captured:
        response = viewer.get(unescape(poll[1]), headers=HTMX)
    assert response.status_code == 204
    # session, user, groups, and six for the version
    assert len(captured) <= 9


# --- revoking ----------------------------------------------------------------------------------------------------


def test_the_preview_says_what_ends_and_what_does_not(responder: Client) -> None:
    lease = factories.lease(pod="checkout-1")
    body = text(responder.get(f"/leases/{lease.pk}/revoke"))
    for said in (lease.lease_id, "checkout-1", "Whose live sessions", "Who logs in again", "expect a new lease"):
        assert said in body
    assert not Revocation.objects.exists()


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_revocation_needs_a_reason(responder: Client, reason: str) -> None:
    lease = factories.lease()
    response = responder.post(f"/leases/{lease.pk}/revoke", {"reason": reason})
    assert "Write why." in text(response)
    assert not Revocation.objects.exists()


def test_a_revocation_leads_to_its_receipt(responder: Client) -> None:
    lease = factories.lease()
    response = responder.post(f"/leases/{lease.pk}/revoke", {"reason": "INC-1"})
    revocation = Revocation.objects.select_related("action").get()
    assert response["Location"] == f"/actions/{revocation.action.pk}"
    assert (revocation.action.by, revocation.action.reason) == ("user-responder", "INC-1")
    body = text(responder.get(response["Location"]))
    assert "waiting for a worker" in body
    assert "Revoked" not in body


def test_the_second_of_two_is_shown_the_receipt_of_the_first(responder: Client) -> None:
    lease = factories.lease()
    first = factories.action(lease, by="somebody.else")
    response = responder.post(f"/leases/{lease.pk}/revoke", {"reason": "me too"}, follow=True)
    assert response.redirect_chain[-1][0] == f"/actions/{first.pk}"
    assert "somebody.else was first" in text(response)
    assert Revocation.objects.count() == 1


def test_an_ended_lease_is_not_revoked(responder: Client) -> None:
    lease = factories.ended()
    response = responder.post(f"/leases/{lease.pk}/revoke", {"reason": "late"}, follow=True)
    assert "nothing was left to revoke" in text(response)
    assert "Nothing is left to revoke" in text(responder.get(f"/leases/{lease.pk}/revoke"))


def test_a_form_without_its_token_does_nothing() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(factories.user("operator", "responder"))
    lease = factories.lease()
    assert client.post(f"/leases/{lease.pk}/revoke", {"reason": "forged"}).status_code == 403
    assert not Revocation.objects.exists()


def steps_shown(response: Any) -> list[str]:
    """The outcome of each step, as its badge says."""
    return re.findall(r'<li class="(\w+)">', response.content.decode())


def test_a_receipt_shows_done_only_what_was_verified(viewer: Client) -> None:
    scene = factories.scene()
    expected = {
        "verified": ["ok", "ok", "ok", "ok", "ok", "ok", "ok"],
        "running": ["ok", "waiting", "ok", "waiting", "waiting", "waiting", "waiting"],
        # of a version that did not look at sessions
        "unverified": ["ok", "unverified", "ok", "ok", "unverified", "unverified", "unverified"],
        "failed": ["ok", "skipped", "failed", "skipped", "skipped", "skipped", "skipped"],
    }
    for name, steps in expected.items():
        assert steps_shown(viewer.get(f"/actions/{scene[name].pk}")) == steps, name
    assert "Revoked and verified" in text(viewer.get(f"/actions/{scene['verified'].pk}"))
    assert "The lease may still work." in text(viewer.get(f"/actions/{scene['failed'].pk}"))
    assert "nobody has seen that the database user is gone" in text(viewer.get(f"/actions/{scene['unverified'].pk}"))


def test_a_receipt_looks_again_only_while_something_is_open(viewer: Client) -> None:
    scene = factories.scene()
    for name, polls in {"running": True, "verified": False, "failed": False, "unverified": False}.items():
        response = viewer.get(f"/actions/{scene[name].pk}", headers=HTMX)
        assert (b"hx-trigger" in response.content) == polls, name
        assert b"<html" not in response.content


def test_after_the_end_is_verified_the_audit_line_is_awaited_for_a_minute(viewer: Client) -> None:
    lease = factories.ended()
    action = factories.action(lease, state="verified", ago=2)
    for name in ("sessions seen", "Vault answered", "lease gone", "database user gone", "sessions ended"):
        factories.step(action, lease, name)
    response = viewer.get(f"/actions/{action.pk}")
    assert steps_shown(response) == [*["ok"] * 6, "waiting"]
    assert b"hx-trigger" in response.content
    Revocation.objects.update(updated_at=timezone.now() - timedelta(seconds=61))
    response = viewer.get(f"/actions/{action.pk}")
    assert steps_shown(response) == [*["ok"] * 6, "unverified"]
    assert b"hx-trigger" not in response.content


def test_a_revocation_that_no_worker_takes_up_says_what_to_start(viewer: Client) -> None:
    action = factories.action(factories.lease(), ago=6)
    assert "celery -A dashboard worker -Q actions" in text(viewer.get(f"/actions/{action.pk}"))


# --- the own database --------------------------------------------------------------------------------------------


def test_each_way_in_which_the_own_database_fails_is_explained() -> None:
    class Refused(Exception):
        sqlstate = "28P01"

    error = OperationalError("password authentication failed for user x")
    error.__cause__ = Refused()
    assert explain(error) == (
        "The database refuses the application's log-in",
        "Check user and password in LEASEHOLD_DATABASE_URL.",
    )
    assert explain(OperationalError("connection refused"))[0] == "The database does not answer"  # type: ignore[index]
    assert explain(ValueError("anything else")) is None
