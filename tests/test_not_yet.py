"""What is not yet as it should be: each test says what it should be, and fails until it is."""

import json
import uuid

import pytest
from django.db.models import F
from django.utils import timezone

from audit import attribute
from audit.findings import watch
from audit.models import Device, FindingKind
from leases import lists
from leases.models import Certainty, EndReason, Lease, LeaseState, Login, WatchPeriod
from tests import factories
from tests.test_candidates import Place, at, certainty, place  # noqa: F401 (a fixture)
from tests.test_findings import look

pytestmark = [pytest.mark.django_db, pytest.mark.xfail(strict=True, reason="not yet so")]


def test_a_lease_that_a_list_still_shows_long_after_its_end_has_not_ended() -> None:
    """After Vault was restored from a snapshot, or where a standby gave a false answer."""
    lease = factories.ended(ago=3600)
    lists.take_in_all(factories.vault(), [lease.lease_id], namespace="")
    lease.refresh_from_db()
    assert lease.state == LeaseState.LIVE or lease.lookup_due_at is not None


def test_a_watch_that_comes_late_but_without_a_gap_still_names_the_pod(place: Place) -> None:  # noqa: F811
    WatchPeriod.objects.update(to_at=at(-1))
    lease = place.lease("10.0.0.1")
    attribute.attribute([lease.pk], now=at(11 * 60))
    place.pod("then", "10.0.0.1")
    WatchPeriod.objects.update(to_at=at(12 * 60))
    for keys in attribute.waiting():
        attribute.attribute(keys, now=at(13 * 60))
    lease.refresh_from_db()
    assert certainty(lease) == (Certainty.INFERRED, "then", "c-then")


def test_two_logins_of_one_pod_that_read_one_role_at_start_are_a_double_issue() -> None:
    """The injector's init container and its sidecar log in each for itself."""
    now = timezone.now()
    for number in range(2):
        login = Login.objects.create(
            vault=factories.vault(), request_id=f"l-{number}", logged_in_at=now, mount_path="kubernetes"
        )
        factories.lease(age=60 - number, login=login, pod="checkout-1", pod_uid="u-1", request_id=str(uuid.uuid4()))
    assert FindingKind.ISSUED_TWICE in look()


def test_another_irrevocable_lease_opens_a_finding_again_that_was_closed_for_the_one_before() -> None:
    first = factories.lease(state=LeaseState.IRREVOCABLE, left=-600, revoke_error="e")
    row = look()[FindingKind.IRREVOCABLE]
    watch.close(row, by="ada", reason="mended by hand", now=timezone.now())
    Lease.objects.filter(pk=first.pk).update(
        state=LeaseState.ENDED, ended_at=timezone.now(), end_reason=EndReason.FORCED
    )
    look()
    factories.lease(state=LeaseState.IRREVOCABLE, left=-600, revoke_error="e")
    assert FindingKind.IRREVOCABLE in look()


@pytest.mark.parametrize("accessor", [f"hmac-sha256:{'a' * 64}", "plain-accessor-0001"])
def test_a_login_is_found_though_the_devices_salt_was_noticed_to_be_another_one_since(accessor: str) -> None:
    """A salt is asked for once a minute, so its epoch changes among lines of one salt; and a plain accessor has none."""
    stream, lease_id = factories.stream("file-a"), "database/creds/my-role/abcdefgh"

    def answer(path: str, auth: dict[str, object], response: dict[str, object]) -> None:
        request_id, lines = str(uuid.uuid4()), b""
        for kind in ("request", "response"):
            entry = {
                "time": timezone.now().isoformat().replace("+00:00", "Z"),
                "type": kind,
                "auth": auth,
                "request": {"id": request_id, "operation": "read", "path": path, "remote_address": "10.0.0.1"},
            }
            lines += json.dumps(entry | ({"response": response} if kind == "response" else {})).encode() + b"\n"
        factories.read_lines(stream, lines)

    who = {"display_name": "kubernetes-shop-web", "token_type": "service", "accessor": accessor, "token_ttl": 3600}
    answer("auth/kubernetes/login", {}, {"auth": who | {"client_token": f"hmac-sha256:{'b' * 64}"}})
    assert Login.objects.count() == 1
    Device.objects.update(salt_epoch=F("salt_epoch") + 1)
    stream.device.refresh_from_db()
    answer("database/creds/my-role", who, {"secret": {"lease_id": lease_id}})
    assert Lease.objects.get(lease_id=lease_id).login == Login.objects.get()


def test_credentials_that_were_unwrapped_behind_the_same_nat_address_may_be_with_another_pod(place: Place) -> None:  # noqa: F811
    """Where an address is no pod's own, that it is the same one proves nothing about who took them out of their wrapping."""
    place.pod("one")
    lease = place.lease("192.0.2.1", claimed_pod="one", claimed_pod_uid="c-one")
    Lease.objects.filter(pk=lease.pk).update(unwrapped_from="192.0.2.1", attribution_open=True)
    attribute.attribute([lease.pk], now=at(60))
    lease.refresh_from_db()
    assert lease.certainty == Certainty.AMBIGUOUS
