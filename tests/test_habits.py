"""What every list and every live page has alike: orders, CSV, commands to copy, keys, and what open pages cost."""

import csv
import hashlib
import re
from datetime import timedelta
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.middleware.csrf import _does_token_match  # type: ignore[attr-defined]
from django.template import RequestContext, Template
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import exports
from dashboard import context, live, urls
from leases import commands, queries
from leases.models import EndReason, Lease, LeaseState, Vault
from leases.models.sources import SourceState
from leases.queries import LeaseFilter
from tests import factories

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]

HTMX = {"HX-Request": "true"}
ROOT = Path(__file__).resolve().parent


def poll(client: Client, path: str) -> str:
    """The address that a page asks again for."""
    found = re.search(r'hx-get="([^"]+)"', client.get(path).content.decode())
    assert found
    return unescape(found[1])


def walked(path: str, client: Client) -> list[int]:
    """Keys of the leases of a list, page after page."""
    seen: list[int] = []
    while path:
        body = client.get(path).content.decode()
        seen += [int(pk) for pk in re.findall(r'id="lease-(\d+)"', body)]
        following = re.search(r'href="([^"]+)" rel="next"', body)
        path = unescape(following[1]) if following else ""
    return seen


# --- open pages --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production, but for as long as a test takes."""
    monkeypatch.setattr(live, "KEEP", 60.0)


def test_nothing_new_is_repeated_without_a_query_to_whoever_was_just_let_in(viewer: Client, kept: None) -> None:
    factories.watched()
    address = poll(viewer, "/leases?state=any")
    assert viewer.get(address, headers=HTMX).status_code == 204
    with CaptureQueriesContext(connection) as captured:
        response = viewer.get(address, headers=HTMX)
    assert (response.status_code, len(captured)) == (204, 0)
    assert response["Cache-Control"] == "no-store"


def test_nothing_new_is_not_said_to_who_was_not_let_in(viewer: Client, client: Client, log_in: Any, kept: None) -> None:
    factories.watched()
    address = poll(viewer, "/leases")
    assert viewer.get(address, headers=HTMX).status_code == 204
    assert viewer.get(address, headers=HTMX).status_code == 204
    assert client.get(address, headers=HTMX).status_code == 302
    client.cookies["sessionid"] = "forged"
    assert client.get(address, headers=HTMX).status_code == 302
    assert log_in().get(address, headers=HTMX).status_code == 403


def test_a_new_part_is_made_once_for_all_of_a_group_and_only_after_the_rule(
    viewer: Client, responder: Client, log_in: Any, kept: None
) -> None:
    factories.watched()
    address = poll(viewer, "/leases").replace("version=", "version=older")
    first = viewer.get(address, headers=HTMX)
    lease = factories.lease()
    with CaptureQueriesContext(connection) as captured:
        assert viewer.get(address, headers=HTMX).content == first.content
    # the session, the user and its groups
    assert len(captured) == 3
    assert f"lease-{lease.pk}" in responder.get(address, headers=HTMX).content.decode()
    assert log_in().get(address, headers=HTMX).status_code == 403


def test_what_was_kept_is_made_anew_when_its_moment_is_over(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    factories.watched()
    monkeypatch.setattr(live, "KEEP", 60.0)
    address = poll(viewer, "/leases")
    assert viewer.get(address, headers=HTMX).status_code == 204
    factories.lease()
    assert viewer.get(address, headers=HTMX).status_code == 204
    live.forget()
    assert viewer.get(address, headers=HTMX).status_code == 200


def test_no_shared_part_holds_the_name_of_its_reader(viewer: Client, responder: Client) -> None:
    scene = factories.scene()
    for path in ("/", "/leases?state=any", "/findings?state=any", "/sources", f"/databases/{scene['database'].pk}"):
        for client, name in ((viewer, "user-viewer"), (responder, "user-responder")):
            body = client.get(poll(client, path).replace("version=", "version=older"), headers=HTMX).content.decode()
            assert name not in body, path


def test_a_form_in_a_shared_part_has_each_readers_own_token(rf: RequestFactory, kept: None) -> None:
    form = Template("<form>{% csrf_token %}</form>")
    made = []

    @live.shared
    def view(request: Any) -> HttpResponse:
        made.append(request)
        return HttpResponse(form.render(RequestContext(request)))

    def ask(user: User) -> tuple[str, str]:
        request: Any = rf.get("/leases?version=1", headers=HTMX)
        request.user = user
        body = view(request).content.decode()
        found = re.fullmatch(r'<form><input type="hidden" name="csrfmiddlewaretoken" value="(\w{64})"></form>', body)
        assert found, body
        return found[1], request.META["CSRF_COOKIE"]

    people = [factories.user(name, "responder", password=None) for name in ("ada", "grace")]
    answers = [ask(person) for person in people]
    assert len(made) == 1
    assert all(_does_token_match(token, secret) for token, secret in answers)
    assert not _does_token_match(answers[1][0], answers[0][1])


def test_the_age_of_sources_makes_a_page_come_again_once_for_all_of_them() -> None:
    factories.watched()
    begin = timezone.now().replace(second=0, microsecond=0)
    SourceState.objects.update(checked_at=begin)
    seen = set()
    for second in range(10):
        for row in SourceState.objects.order_by("id"):
            SourceState.objects.filter(pk=row.pk).update(
                checked_at=begin + timedelta(seconds=second, milliseconds=100 * (row.pk % 10))
            )
            seen.add(queries.ledger_version(now=begin + timedelta(seconds=second)))
    assert len(seen) == 2


# --- orders ------------------------------------------------------------------------------------------------------


def test_every_order_of_leases_shows_each_of_them_once(viewer: Client) -> None:
    at = timezone.now() - timedelta(minutes=5)
    for number in range(120):
        lease = factories.lease(accessed_at=at - timedelta(seconds=number // 40))
        # many that end at once, and some whose end is not known
        end = None if number % 5 == 0 else at + timedelta(minutes=9, seconds=number % 3)
        Lease.objects.filter(pk=lease.pk).update(expires_at=end)
    rows = {row.pk: row for row in Lease.objects.all()}
    oldest = walked("/leases?sort=oldest", viewer)
    assert oldest == sorted(rows, key=lambda pk: (rows[pk].accessed_at, pk))
    assert walked("/leases", viewer) == oldest[::-1]
    ending = walked("/leases?sort=ending", viewer)
    assert ending == sorted(rows, key=lambda pk: (rows[pk].expires_at or queries.NEVER, pk))
    assert walked("/leases?sort=ending&database=demo/database/orders&certainty=inferred", viewer) == [
        pk for pk in ending if rows[pk].certainty == "inferred"
    ]


def test_a_rare_hit_is_looked_for_in_steps_in_each_order(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_LOOKED_THROUGH", 20)
    for number in range(45):
        lease = factories.lease(pod="needle" if number in (0, 19, 20, 44) else "hay", age=number // 7)
        if number % 4 == 0:
            Lease.objects.filter(pk=lease.pk).update(expires_at=None)
    for order in queries.ORDERS:
        assert len(walked(f"/leases?pod=needle&sort={order}", viewer)) == 4, order


@pytest.mark.parametrize(
    ("path", "heads"),
    [
        ("/leases", {"descending": "Issued"}),
        ("/leases?sort=oldest", {"ascending": "Issued"}),
        ("/leases?sort=ending", {"ascending": "Left, or end"}),
        ("/actions?sort=oldest", {"ascending": "Time"}),
        ("/databases/{}", {"descending": "Began"}),
        ("/databases/{}?sort=oldest", {"ascending": "Began"}),
    ],
)
def test_the_head_says_how_a_list_is_sorted(viewer: Client, path: str, heads: dict[str, str]) -> None:
    scene = factories.scene()
    body = viewer.get(path.format(scene["database"].pk)).content.decode()
    found = {
        way: re.sub(r"<[^>]+>", "", words) for way, words in re.findall(r'aria-sort="(\w+)"[^>]*>(.*?)</th>', body)
    }
    assert found == heads


@pytest.mark.parametrize("path", ["/leases?sort=pod", "/leases?sort=ending&state=ended", "/actions?sort=ending"])
def test_an_order_that_no_index_has_is_refused(viewer: Client, path: str) -> None:
    assert viewer.get(path).status_code == 400


def test_the_order_stays_when_the_filter_changes(viewer: Client) -> None:
    factories.lease()
    assert '<input type="hidden" name="sort" value="ending">' in viewer.get("/leases?sort=ending").content.decode()


# --- CSV ---------------------------------------------------------------------------------------------------------


def table(response: Any) -> list[dict[str, str]]:
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(StringIO(response.content.decode())))


def csv_of(client: Client, page: str) -> Any:
    """What the page's CSV link leads to."""
    found = re.search(r'<a class="csv" href="([^"]+)"', client.get(page).content.decode())
    assert found, page
    return client.get(unescape(found[1]))


def test_the_csv_of_leases_is_what_the_page_lists_and_what_follows(viewer: Client) -> None:
    for number in range(120):
        factories.lease(age=number, service_account="checkout" if number % 3 else "other")
    for query in ("", "sort=oldest", "sort=ending", "service_account=checkout", "service_account=checkout&sort=oldest"):
        page = f"/leases?{query}"
        ids = dict(Lease.objects.values_list("pk", "lease_id"))
        assert [row["lease_id"] for row in table(csv_of(viewer, page))] == [ids[pk] for pk in walked(page, viewer)]
    second = re.search(r'href="([^"]+)" rel="next"', viewer.get("/leases").content.decode())
    assert second
    assert len(table(csv_of(viewer, unescape(second[1])))) == 70


def test_a_csv_that_is_not_all_says_so_in_its_name(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from dashboard.views import leases

    monkeypatch.setattr(leases, "MOST", 2)
    monkeypatch.setattr("dashboard.downloads.MOST", 2)
    for _ in range(3):
        factories.lease()
    response = csv_of(viewer, "/leases")
    assert len(table(response)) == 2
    assert "only-the-first-2.csv" in response["Content-Disposition"]
    Lease.objects.order_by("pk").first().delete()  # type: ignore[union-attr]
    assert "only" not in csv_of(viewer, "/leases")["Content-Disposition"]


def test_no_cell_of_any_csv_is_run_as_a_formula(viewer: Client) -> None:
    evil = "=cmd|' /C calc'!A0"
    lease = factories.lease(lease_id=evil, database_user=evil)
    factories.action(lease, by=evil, reason=evil)
    factories.finding(summary=evil, culprit=evil)
    factories.session(lease, application=evil)
    for page in ("/leases", "/actions", "/findings", f"/databases/{lease.database_id}", "/databases"):
        rows = table(csv_of(viewer, page))
        assert rows, page
        assert not [cell for row in rows for cell in row.values() if cell.startswith(exports.FORMULAS)], page


def test_actions_without_a_lease_are_in_their_csv_too(viewer: Client) -> None:
    from leases.models import Action

    factories.action(factories.lease(), state="verified")
    Action.objects.create(kind="close finding", by="ada", reason="seen", at=timezone.now(), targets=[{"finding": 7}])
    rows = table(csv_of(viewer, "/actions"))
    assert {(row["by"], bool(row["lease_id"])) for row in rows} == {("ada", False), ("operator", True)}


def test_a_csv_asks_as_often_for_fifty_rows_as_for_one(viewer: Client) -> None:
    def one_more() -> None:
        lease = factories.lease(service_account="many")
        factories.session(lease)
        factories.action(lease)
        factories.finding()

    def asked(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(path).status_code == 200
        return len(captured)

    one_more()
    database = Lease.objects.get().database_id
    paths = ["/leases.csv", "/actions.csv", "/findings.csv", "/databases.csv", f"/databases/{database}/sessions.csv"]
    once = [asked(path) for path in paths]
    for _ in range(49):
        one_more()
    assert [asked(path) for path in paths] == once


def test_every_csv_needs_the_right_to_read(client: Client, log_in: Any) -> None:
    paths = [str(pattern.pattern) for pattern in urls.urlpatterns if str(pattern.pattern).endswith(".csv")]
    assert len(paths) >= 7
    nobody = log_in()
    for path in paths:
        address = "/" + path.replace("<int:pk>", "1")
        assert client.get(address).status_code == 302, address
        assert nobody.get(address).status_code == 403, address


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("2.7.2", "bao"),
        ("", "bao"),
        ("1.21.0", "vault"),
        ("1.17.1+ent.hsm", "vault"),
        ("2.0.1+ent", "vault"),
        ("0.11.6", "vault"),
    ],
)
def test_a_command_begins_with_the_servers_own_client(version: str, word: str) -> None:
    assert commands.client(version) == word
    lease = factories.lease(vault_namespace="team a/")
    Vault.objects.update(version=version)
    lease = queries.lease(lease.pk)  # type: ignore[assignment]
    assert commands.of_lease(lease, "lookup") == f"{word} lease lookup -namespace='team a/' {lease.lease_id}"
    assert commands.of_lease(lease, "revoke") == f"{word} lease revoke -namespace='team a/' -sync {lease.lease_id}"
    assert commands.of_database(lease.database) == f"{word} read database/config/orders"  # type: ignore[arg-type]


def test_each_row_of_leases_has_its_commands_and_an_ended_one_only_the_lookup(viewer: Client) -> None:
    lease, ended = factories.lease(), factories.ended()
    body = viewer.get("/leases?state=any").content.decode()
    assert (
        f'data-lookup="bao lease lookup {lease.lease_id}" data-revoke="bao lease revoke -sync {lease.lease_id}"' in body
    )
    assert f'data-lookup="bao lease lookup {ended.lease_id}" hidden' in body


# --- keys --------------------------------------------------------------------------------------------------------


def test_every_section_has_a_key_of_its_own(viewer: Client) -> None:
    assert len(set(context.KEYS.values())) == len(context.KEYS)
    body = viewer.get("/").content.decode()
    keys = re.findall(r'data-go="(\w)"', body)
    assert len(keys) == len(context.SECTIONS) == len(set(keys))
    # what a key does on a page is not taken by one that follows g
    assert "g" not in keys


def test_vendored_test_scripts_are_the_ones_that_their_readme_names() -> None:
    folder = ROOT / "browser" / "vendor"
    readme = (folder / "README.md").read_text()
    scripts = list(folder.glob("*.js"))
    assert scripts
    for script in scripts:
        assert f"`{script.name}`" in readme
        assert hashlib.sha256(script.read_bytes()).hexdigest() in readme


def test_the_page_of_leases_in_one_order_is_the_reads(viewer: Client) -> None:
    # no more than the filter says: an ended one is in no list of what ends next
    live_one = factories.lease()
    Lease.objects.filter(pk=factories.lease().pk).update(
        state=LeaseState.ENDED, ended_at=timezone.now(), end_reason=EndReason.EXPIRED
    )
    page = queries.leases_page(LeaseFilter(state="open"), order="ending")
    assert [row.pk for row in page.rows] == [live_one.pk]
