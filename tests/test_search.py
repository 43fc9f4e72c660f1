"""The search box: what each identifier leads to, what is refused, and what devices are asked."""

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import hashes, search, tasks
from audit.models import AskedHash, Device, Event, Hash, Text, Token
from audit.sealed import NotReadable, seal, unseal
from audit.search_reads import MOST
from audit.secrets import looks_like_a_secret
from dashboard.celery import app
from dashboard.views.search import address_of
from leases.models import Certainty, Lease, Login, ServiceAccount, Vault
from tests import factories, logged, workers
from tests.test_pages import HOSTILE, LogIn, text
from tests.world import World

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def never(question: str, vault: int, sealed: str) -> None:
    raise AssertionError("no device was to be asked")


def nobody(question: str, vault: int, sealed: str) -> None:
    """The broker takes it, and no worker runs."""


def found(typed: str) -> dict[str, list[str]]:
    """Titles and the addresses of their hits, without devices."""
    groups = search.find(typed, send=nobody, seconds=0).groups
    return {group.title: [address_of(hit) for hit in group.hits] for group in groups}


@pytest.fixture
def scene() -> dict[str, Any]:
    lease = factories.lease(source_ip="10.9.8.7", pod="checkout-6f7c9d-x1", role="orders-rw")
    login = factories.login(lease)
    pod = factories.pod(lease)
    event = factories.event(lease)
    session = factories.session(lease, age=5)
    return {"lease": lease, "login": login, "pod": pod, "event": event, "session": session}


# --- what an identifier leads to ---------------------------------------------------------------------------------


def test_each_identifier_leads_to_its_page(scene: dict[str, Any]) -> None:
    lease, login, pod = scene["lease"], scene["login"], scene["pod"]
    last = lease.lease_id.rsplit("/", 1)[-1]
    page, pods = [f"/leases/{lease.pk}"], [f"/pods/demo/{pod.uid}"]
    requests = [f"/events?login={login.pk}&own=any"]
    assert found(lease.lease_id) == {"Leases": page}
    assert found(lease.database_user) == {"Leases of this database user": page}
    for typed in (last, last[:8], f" '{last[:8]}…' "):
        assert found(typed)["Leases by the end of their id"] == page
    assert found("database/creds/orders-rw")["Leases whose id begins so"] == page
    assert found("checkout-6f")["Pods"] == pods
    assert found("shop/checkout-6f7c9d-x1")["Pods"] == pods
    assert found(pod.uid)["Pods"] == pods
    account = ["/workloads/demo/shop/checkout"]
    assert found("checkout")["Service accounts"] == account
    assert found("shop/check")["Service accounts"] == account
    assert "Service accounts" not in found("elsewhere/checkout")
    assert found(scene["event"].request_id) == {"Requests": [f"/events/demo/{scene['event'].request_id}"]}
    assert found(scene["event"].request_id.upper()) == found(scene["event"].request_id)
    assert found(login.entity_id)["Logins of this entity"] == requests
    assert found(login.display_name)["Logins of this name"] == requests
    assert found("orders") == {"Databases": [f"/databases/{lease.database.pk}"]}
    assert found("demo/database/orders") == {"Databases": [f"/databases/{lease.database.pk}"]}


def test_an_address_leads_to_its_pods_leases_sessions_and_requests(scene: dict[str, Any]) -> None:
    for typed in ("10.9.8.7", "10.9.8.7:41234", " [10.9.8.7]"):
        hits = found(typed)
        assert hits["Pods that had this address"] == [f"/pods/demo/{scene['pod'].uid}"]
        assert hits["Leases that were read from it"] == [f"/leases/{scene['lease'].pk}"]
        assert hits["Requests"] == ["/events?address=10.9.8.7"]
    assert found(scene["session"].address)["Sessions from it"] == [f"/leases/{scene['lease'].pk}"]
    assert found("192.0.2.1") == {}
    assert search.address_of("[2001:DB8::1]:443") == "2001:db8::1"


def test_a_path_leads_to_its_requests_and_so_does_its_beginning() -> None:
    for path in ("secret/data/team", "secret/data/team/key", "secret/other", "sys/100%_x"):
        logged.log(timezone.now(), path=path)
    assert found("secret/data/team")["Paths"] == [
        "/events?path=secret%2Fdata%2Fteam",
        "/events?path=secret%2Fdata%2Fteam%2Fkey",
    ]
    assert found("/v1/secret/other")["Paths"] == ["/events?path=secret%2Fother"]
    assert found("sys/100%_")["Paths"] == ["/events?path=sys%2F100%25_x"]
    assert found("sys/1000") == {}


def test_a_policy_leads_to_the_identities_that_bear_it() -> None:
    logged.log(timezone.now(), account="finance/reports", policies=["default", "billing-read"])
    assert found("billing-read")["Identities with this policy"] == ["/events?identity=kubernetes-finance-reports"]


def test_an_accessor_in_plain_text_and_every_hash_lead_to_the_login(scene: dict[str, Any]) -> None:
    device, login = factories.stream().device, scene["login"]
    hashed = "hmac-sha256:" + "0a" * 32
    Token.objects.create(device=device, salt_epoch=0, accessor="KvTmCzkUJy7y1Jt0gMHVCdIb", login=login)
    Token.objects.create(device=device, salt_epoch=1, accessor=hashed, login=login)
    own = "hmac-sha256:" + "f0" * 32
    Token.objects.filter(accessor=hashed).update(own_hash=int.from_bytes(b"\xf0" * 8, signed=True))
    requests = [f"/events?login={login.pk}&own=any"]
    assert found("KvTmCzkUJy7y1Jt0gMHVCdIb") == {"Logins of this token's accessor": requests}
    assert found(hashed) == {"Logins of this token": requests}
    assert found(own) == {"Logins of this token": requests}
    assert found("hmac-sha256:" + "1b" * 32) == {}


def test_a_hash_of_a_lease_id_or_of_a_user_leads_to_the_lease(scene: dict[str, Any]) -> None:
    device, lease = factories.stream().device, scene["lease"]
    name = Text.objects.get(text=lease.lease_id)
    for number, of in enumerate(Hash.Of.values):
        hashed = f"hmac-sha256:{number:064}"
        Hash.objects.create(device=device, salt_epoch=1, of=of, hash=hashed, lease_name=name)
        assert found(hashed) == {"Leases": [f"/leases/{lease.pk}"]}


def test_a_pod_that_only_a_login_named_is_found() -> None:
    lease = factories.lease(pod="lonely-1", certainty=Certainty.EXACT)
    assert found("lonely-1")["Pods"] == [f"/pods/demo/{lease.pod_uid}"]


def test_a_service_account_without_leases_is_found_and_one_with_thousands_hides_no_other() -> None:
    ServiceAccount.objects.create(
        cluster=factories.cluster(),
        uid="u",
        namespace="shop",
        name="check-in",
        created_at=timezone.now(),
        first_seen_at=timezone.now(),
    )
    for _ in range(30):
        factories.lease(service_account="checkout")
    factories.lease(service_account="checks")
    assert len(found("check")["Service accounts"]) == 3


def test_more_hits_than_a_page_is_for_are_said_to_be_more() -> None:
    for number in range(MOST + 2):
        factories.lease(pod=f"many-{number}")
    (pods,) = [group for group in search.find("many-", send=nobody, seconds=0).groups if group.title == "Pods"]
    assert (len(pods.hits), pods.more) == (MOST, True)


def test_what_a_name_is_found_for_needs_no_device(scene: dict[str, Any]) -> None:
    factories.vault().__class__.objects.update(observe={"method": "token"})
    for typed in (
        scene["lease"].lease_id,
        scene["lease"].database_user,
        scene["event"].request_id,
        "10.9.8.7",
        "checkout",
        "hmac-sha256:" + "1b" * 32,
    ):
        search.find(typed, send=never)


def test_a_search_asks_as_often_for_fifty_hits_as_for_one() -> None:
    def asked(typed: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            search.find(typed, send=nobody, seconds=0)
        return len(captured)

    def one_more() -> None:
        lease = factories.lease(pod="checkout-6f7c9d-x1", source_ip="10.9.8.7")
        factories.login(lease)
        factories.pod(lease)
        factories.event(lease)
        factories.session(lease)

    one_more()
    typed = ("checkout-6", "10.9.8.7", "database/creds/", "shop/check")
    once = [asked(one) for one in typed]
    for _ in range(49):
        one_more()
    assert [asked(one) for one in typed] == once
    assert max(once) <= 34


# --- what is refused ---------------------------------------------------------------------------------------------

SECRETS = [
    "hvs.CAESIJ4vbXQx",
    "Authorization: Bearer hvb.AAAAAQJ0",
    "s.Gk3dVlM2xq9TzYb4NwPc7RsF",
    "s.Gk3dVlM2xq9T\n zYb4NwPc7RsF",
    "eyJhbGciOiJSUzI1NiIsImtpZCI6",
    "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlc2ln",
    '{"auth": {"client_token": "x1"}}',
    '{"password": "correct horse"}',
    "https://vault/v1/x?token=hvs%2ECAESIJ4vbXQx",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_refused_before_anything_and_shows_up_nowhere(
    viewer: Client, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    factories.vault(observe={"method": "token"})
    factories.stream()
    caplog.set_level(logging.DEBUG)
    viewer.get("/search")  # the session and its groups are asked for once
    with CaptureQueriesContext(connection) as captured:
        answer = viewer.post("/search", {"text": secret})
    assert answer.status_code == 422
    assert "looks like a token" in text(answer)
    shown = secret.split()[-1].strip('"{}')
    for place in (answer.content.decode(), str(captured.captured_queries), caplog.text, str(answer.headers)):
        assert shown not in place
        assert secret not in place
    assert "searches" not in viewer.session


def test_no_identifier_is_taken_for_a_secret(scene: dict[str, Any]) -> None:
    lease = scene["lease"]
    for text_ in (
        lease.lease_id,
        lease.database_user,
        lease.pod_uid,
        "hmac-sha256:" + "ab" * 32,
        "sys/leases/revoke/database/creds/my-role/AbC",
        "s.example.com",
        "auth/token/create",
        "KvTmCzkUJy7y1Jt0gMHVCdIb.x9Yz1",
    ):
        assert not looks_like_a_secret(text_), text_


@pytest.mark.parametrize(
    ("typed", "said"), [("", "Type or paste"), (" \n\x00 ", "Type or paste"), ("x" * 1001, "longer than")]
)
def test_nothing_and_too_much_are_refused(viewer: Client, typed: str, said: str) -> None:
    answer = viewer.post("/search", {"text": typed})
    assert answer.status_code == 422
    assert said in text(answer)


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_box_is_on_every_page_and_posts(viewer: Client) -> None:
    body = viewer.get("/").content.decode()
    assert '<form class="search" method="post" action="/search"' in body
    assert 'name="csrfmiddlewaretoken"' in body


def test_a_search_needs_a_csrf_token_and_a_group(log_in: LogIn) -> None:
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(factories.user("careful", "viewer", password=None))
    assert careful.post("/search", {"text": "checkout"}).status_code == 403
    assert log_in().post("/search", {"text": "checkout"}).status_code == 403
    assert Client().post("/search", {"text": "checkout"})["Location"] == "/login?next=/search"


def test_one_hit_goes_straight_to_its_page(viewer: Client, scene: dict[str, Any]) -> None:
    answer = viewer.post("/search", {"text": scene["lease"].lease_id})
    assert (answer.status_code, answer["Location"]) == (302, f"/leases/{scene['lease'].pk}")


def test_several_hits_are_listed_where_reload_and_back_find_them_and_no_address_has_what_was_typed(
    viewer: Client, scene: dict[str, Any]
) -> None:
    answer = viewer.post("/search", {"text": "checkout"})
    assert answer.status_code == 302
    assert "checkout" not in answer["Location"]
    for _ in range(2):
        body = viewer.get(answer["Location"]).content.decode()
        assert f'href="/pods/demo/{scene["pod"].uid}"' in body
        assert "Service accounts" in body
    # another's log-in does not have them
    other = Client()
    other.force_login(factories.user("other", "viewer", password=None))
    assert other.get(answer["Location"])["Location"] == "/search"


def test_what_was_typed_is_kept_nowhere(viewer: Client) -> None:
    answer = viewer.post("/search", {"text": "a-name-that-nobody-has"})
    page = viewer.get(answer["Location"])
    assert "Nothing is known" in text(page)
    assert "a-name-that-nobody-has" not in page.content.decode()
    assert "a-name-that-nobody-has" not in str(dict(viewer.session))
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(s::text, '') FROM django_session s")
        assert "a-name-that-nobody-has" not in str(cursor.fetchone())


def test_only_the_last_searches_are_kept(viewer: Client, scene: dict[str, Any]) -> None:
    places = [viewer.post("/search", {"text": "checkout"})["Location"] for _ in range(7)]
    assert viewer.get(places[0]).status_code == 302
    assert viewer.get(places[2]).status_code == 200
    assert "no longer kept" in text(viewer.get(places[0], follow=True))


def test_hostile_names_are_shown_and_never_run(viewer: Client) -> None:
    for number in range(2):
        factories.lease(pod=f"{HOSTILE}{number}")
    page = viewer.post("/search", {"text": HOSTILE.partition("/")[0]}, follow=True)
    assert "&lt;script&gt;" in page.content.decode()
    assert HOSTILE not in page.content.decode()


# --- devices -----------------------------------------------------------------------------------------------------


def test_a_seal_is_read_by_nobody_else_and_not_for_long(settings: Any) -> None:
    sealed = seal("a plain value")
    assert "plain" not in sealed
    assert unseal(sealed, seconds=30) == "a plain value"
    with pytest.raises(NotReadable):
        unseal(sealed, seconds=-1)
    settings.SECRET_KEY = "another"
    with pytest.raises(NotReadable):
        unseal(sealed, seconds=30)


def test_a_device_that_does_not_answer_is_named(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(tasks, "ask_a_worker", nobody)
    factories.vault(observe={"method": "token"})
    factories.stream("file-a")
    factories.stream("file-b")
    factories.lease(service_account="checkout")
    body = text(viewer.post("/search", {"text": "check"}, follow=True))
    # one hit, but a device may know of others
    assert "shop/checkout" in body
    for device in ("file-a", "file-b"):
        assert f"demo/{device} not looked for It has not answered within 0.05 s" in body


def test_a_broker_that_is_away_is_named() -> None:
    factories.vault(observe={"method": "token"})
    factories.stream()

    def refused(*_: object) -> None:
        raise ConnectionError

    (answer,) = search.find("nobody-knows", send=refused, seconds=5).answers
    assert "look at the broker" in answer.cause


def test_devices_that_nobody_can_ask_are_not_waited_for() -> None:
    factories.stream()
    assert search.find("nobody-knows", send=never).answers == []
    Vault.objects.update(observe={"method": "token"}, retired=True)
    assert search.find("nobody-knows", send=never).answers == []
    Vault.objects.update(retired=False)
    Device.objects.update(missing_since=timezone.now())
    assert search.find("nobody-knows", send=never).answers == []


def test_an_answer_is_a_hash_or_a_cause_and_comes_once() -> None:
    device = factories.stream().device
    row = {"question": uuid.uuid4(), "device": device, "at": timezone.now()}
    for wrong in ({}, {"hash": "x", "cause": "y"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            AskedHash.objects.create(**row, **wrong)
    AskedHash.objects.create(**row, hash="x")
    with pytest.raises(IntegrityError), transaction.atomic():
        AskedHash.objects.create(**row, hash="z")


def test_answers_that_nobody_reads_are_forgotten() -> None:
    device = factories.stream().device
    old = timezone.now() - hashes.FORGET_AFTER - timedelta(seconds=1)
    AskedHash.objects.create(question=uuid.uuid4(), device=device, hash="x", at=old)
    hashes.answer(str(uuid.uuid4()), 0, "", now=timezone.now())
    assert not AskedHash.objects.exists()


@pytest.fixture
def at_once() -> Iterator[None]:
    """Tasks run where they are sent from: through Celery, but for the broker."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def test_a_plain_accessor_and_a_plain_user_are_found_by_the_hash_of_each_device(
    configured: World, at_once: None, viewer: Client
) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    accessor = pod.call("GET", "auth/token/lookup-self")["data"]["accessor"]
    answer = pod.read_credentials()
    workers.read_streams()
    login = Login.objects.get(address=pod.address)
    lease = Lease.objects.get(lease_id=answer["lease_id"])
    assert (lease.database_user, Token.objects.filter(accessor=accessor).count()) == ("", 0)
    by_accessor = viewer.post("/search", {"text": accessor})
    assert by_accessor["Location"] == f"/events?login={login.pk}&own=any"
    assert answer["request_id"] in viewer.get(by_accessor["Location"]).content.decode()
    by_user = viewer.post("/search", {"text": answer["data"]["username"]})
    assert by_user["Location"] == f"/leases/{lease.pk}"
    assert not AskedHash.objects.exists()


def test_the_raw_lines_of_a_real_request_have_the_hash_that_the_device_gives(
    configured: World, at_once: None, viewer: Client
) -> None:
    pod = configured.pod("storefront")
    pod.log_in()
    answer = pod.read_credentials()
    workers.read_streams()
    body = viewer.get(f"/events/demo/{answer['request_id']}").content.decode()
    found = search.find(answer["data"]["username"], send=tasks.ask_a_worker)
    assert len(found.answers) == Device.objects.count() > 1
    for one in found.answers:
        assert one.hash in body, one.device
    assert answer["data"]["password"] not in body
    assert Event.objects.filter(request=answer["request_id"]).exists()


def test_a_vault_that_refuses_is_named_with_what_to_do(configured: World, at_once: None) -> None:
    Vault.objects.update(observe={**(Vault.objects.get().observe or {}), "role": "no-such-role"})
    answers = search.find("nobody-knows", send=tasks.ask_a_worker).answers
    assert answers
    assert all(answer.cause and not answer.hash for answer in answers)
