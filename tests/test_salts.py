"""A device's salt changes, and that is noticed up to a minute late: lines of one salt then bear two epochs, or those of two one."""

import json
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from audit import attribute
from audit.evidence import NOTICED_AFTER
from audit.models import Device, Ending, Stream, Token
from leases.models import Lease, Login
from tests import factories

pytestmark = pytest.mark.django_db

TOKEN = "hmac-sha256:" + "b" * 64
LEASE_ID = "database/creds/my-role/abcdefgh"


def hashed(letter: str) -> str:
    return "hmac-sha256:" + letter * 64


def who(accessor: str) -> dict[str, Any]:
    return {"display_name": "kubernetes-shop-web", "token_type": "service", "accessor": accessor, "token_ttl": 3600}


def tell(stream: Stream, path: str, *, at: datetime | None = None, operation: str = "read", **parts: Any) -> None:
    """Both lines of a request. `auth`, `data`: of the request; `response`."""
    request = {
        "id": str(uuid.uuid4()),
        "operation": operation,
        "path": path,
        "remote_address": "10.0.0.1",
        "data": parts.get("data", {}),
    }
    lines = b""
    for kind in ("request", "response"):
        entry = {
            "time": (at or timezone.now()).isoformat().replace("+00:00", "Z"),
            "type": kind,
            "auth": parts.get("auth", {}),
            "request": request,
        }
        lines += (
            json.dumps(entry | ({"response": parts.get("response", {})} if kind == "response" else {})).encode() + b"\n"
        )
    factories.read_lines(stream, lines)


def log_in(stream: Stream, accessor: str, **more: Any) -> Login:
    made = {**who(accessor), "client_token": TOKEN}
    tell(stream, "auth/kubernetes/login", operation="update", response={"auth": made}, **more)
    return Login.objects.latest("id")


def read_lease(stream: Stream, accessor: str, **more: Any) -> Lease:
    tell(stream, "database/creds/my-role", auth=who(accessor), response={"secret": {"lease_id": LEASE_ID}}, **more)
    return Lease.objects.get(lease_id=LEASE_ID)


def notice_another_salt(stream: Stream) -> None:
    Device.objects.update(salt_epoch=F("salt_epoch") + 1, salt_changed_at=timezone.now())
    stream.device.refresh_from_db()


@pytest.fixture
def stream() -> Stream:
    return factories.stream("file-a")


@pytest.mark.parametrize("accessor", [hashed("a"), "plain-accessor-0001"])
@pytest.mark.parametrize("read_first", [False, True])
def test_a_login_is_found_though_the_devices_salt_was_noticed_to_be_another_one_since(
    stream: Stream, accessor: str, read_first: bool
) -> None:
    """A salt is asked for once a minute, so its epoch changes among lines of one salt; and a plain accessor has none."""
    first, then = (read_lease, log_in) if read_first else (log_in, read_lease)
    first(stream, accessor)
    notice_another_salt(stream)
    then(stream, accessor)
    assert Lease.objects.get().login == Login.objects.get()
    assert Token.objects.filter(accessor=accessor).count() == 1


def test_a_plain_accessor_outlives_any_number_of_salts(stream: Stream) -> None:
    log_in(stream, "plain-accessor-0001")
    for _ in range(3):
        notice_another_salt(stream)
    assert read_lease(stream, "plain-accessor-0001").login == Login.objects.get()
    tell(stream, "auth/token/revoke-accessor", operation="update", data={"accessor": "plain-accessor-0001"})
    assert Login.objects.get().ended_at is not None
    assert Lease.objects.get().end_seen_reason == "token revoked"


def test_a_token_that_was_revoked_across_a_noticed_change_ends_its_leases(stream: Stream) -> None:
    log_in(stream, hashed("a"))
    read_lease(stream, hashed("a"))
    notice_another_salt(stream)
    tell(stream, "auth/token/revoke-accessor", operation="update", data={"accessor": hashed("a")})
    assert Login.objects.get().ended_at is not None
    assert Lease.objects.get().end_seen_reason == "token revoked"


def test_a_revocation_by_the_hash_of_a_lease_id_is_understood_across_a_noticed_change(stream: Stream) -> None:
    read_lease(stream, hashed("a"))
    renewed = {"secret": {"lease_id": LEASE_ID}}
    tell(stream, "sys/leases/renew", operation="update", data={"lease_id": hashed("c")}, response=renewed)
    notice_another_salt(stream)
    tell(stream, "sys/leases/revoke", operation="update", data={"lease_id": hashed("c")})
    assert Ending.objects.get().salt_epoch == 2
    assert Lease.objects.get().end_seen_reason == "revoked in Vault"


def test_wrapped_credentials_are_found_across_a_noticed_change(stream: Stream) -> None:
    log_in(stream, hashed("a"))
    wrap = {"accessor": hashed("d"), "token": hashed("e"), "ttl": 60, "creation_path": "database/creds/my-role"}
    tell(stream, "database/creds/my-role", auth=who(hashed("a")), response={"wrap_info": wrap})
    notice_another_salt(stream)
    by = {"display_name": "", "token_type": "service", "accessor": hashed("d")}
    tell(stream, "sys/wrapping/unwrap", operation="update", auth=by, response={"secret": {"lease_id": LEASE_ID}})
    assert Lease.objects.get(lease_id=LEASE_ID).login == Login.objects.get()


def test_hashes_of_another_salt_are_never_taken_for_the_same_token(stream: Stream) -> None:
    log_in(stream, hashed("a"))
    notice_another_salt(stream)
    assert read_lease(stream, hashed("f")).login is None


def test_where_the_salt_changed_then_nobody_says_that_the_login_was_not_logged(stream: Stream) -> None:
    log_in(stream, hashed("a"))
    before = read_lease(stream, hashed("f"))
    assert before.certainty_reason == "the login whose token read it was not seen in the audit log"
    # of the new salt, and read before that was noticed
    notice_another_salt(stream)
    attribute.attribute([before.pk], now=timezone.now())
    before.refresh_from_db()
    noticed_at = Device.objects.get().salt_changed_at
    assert before.certainty_reason == (
        f"the login whose token read it was not found: the salt of device file-a was another one by {noticed_at:%FT%TZ}, "
        "and what was logged before that is hashed otherwise"
    )
    assert before.attribution_open


@pytest.mark.parametrize(
    ("accessor", "ago"),
    [
        ("plain-accessor-0001", timedelta(0)),
        (hashed("f"), NOTICED_AFTER + timedelta(seconds=1)),
        (hashed("f"), -timedelta(days=41)),
    ],
)
def test_a_change_of_salt_explains_nothing_that_it_had_no_part_in(
    stream: Stream, accessor: str, ago: timedelta
) -> None:
    """A plain accessor; a read well before; and tokens of today, of which none is as old as that."""
    now = timezone.now()
    Device.objects.update(salt_epoch=2, salt_changed_at=now + ago)
    stream.device.refresh_from_db()
    lease = read_lease(stream, accessor, at=now)
    assert lease.certainty_reason == "the login whose token read it was not seen in the audit log"


def test_a_device_that_kept_its_salt_would_have_shown_the_login(stream: Stream) -> None:
    other = factories.stream("file-b")
    now = timezone.now()
    lease = read_lease(stream, hashed("f"), at=now)
    read_lease(other, hashed("g"), at=now)
    Device.objects.filter(name="file-a").update(salt_epoch=2, salt_changed_at=now)
    attribute.attribute([lease.pk], now=now)
    lease.refresh_from_db()
    assert lease.certainty_reason == "the login whose token read it was not seen in the audit log"
