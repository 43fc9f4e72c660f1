"""Lines of each version of Vault and OpenBao, as the version shapes them, with values that were made up (see FIELD-GUIDE
notes in docs/architecture.md): what is read of them is the same in each."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audit.batch import Batch, Limits, take_apart
from audit.lines import NOBODY, Half
from audit.merge import Content, absorb, content_of
from audit.models import Kind
from audit.secrets import HMAC

SHAPES = Path(__file__).parent / "data" / "shapes"
# each has a login, a read of a database credential, its renewal and a denied read, as pairs
VERSIONS = [
    "vault-0.7",
    "vault-0.10",
    "vault-1.2",
    "vault-1.9",
    "vault-1.15",
    "vault-1.16-enterprise-namespace",
    "vault-1.21",
]


def taken(name: str, *, backwards: bool = False, prefix: bytes = b"") -> Batch:
    lines = (SHAPES / f"{name}.ndjson").read_bytes().splitlines()
    text = b"".join(prefix + line + b"\n" for line in (reversed(lines) if backwards else lines))
    limits = Limits(oldest=datetime(2015, 1, 1, tzinfo=UTC), newest=datetime(2027, 1, 1, tzinfo=UTC))
    return take_apart(text, offset=0, limits=limits)


def event(row: list[Half | None]) -> Content:
    """The row as it is stored, whichever of its halves comes first."""
    request, response = row
    assert request is not None
    assert response is not None
    merged = absorb(content_of(request), response)
    assert merged == absorb(content_of(response), request)
    return merged


def events(name: str) -> list[Content]:
    batch = taken(name)
    assert (batch.rejects, batch.again) == ([], {})
    return [event(row) for row in batch.rows.values()]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_line_is_a_half_of_a_pair(version: str) -> None:
    batch = taken(version)
    assert batch.lines == 8
    assert [None in row for row in batch.rows.values()] == [False] * 4
    assert not batch.redacted


@pytest.mark.parametrize("version", VERSIONS)
def test_a_login_gives_the_identity_that_its_response_names(version: str) -> None:
    login = events(version)[0]
    _, response = next(iter(taken(version).rows.values()))
    assert response is not None
    assert login.kind == Kind.LOGIN
    assert response.answer is not None
    assert response.answer.new_accessor.startswith(HMAC)
    assert login.who == response.answer.new_who
    if version == "vault-0.7":
        assert (login.who[0], login.who[4]) == ("approle", "")
    else:
        assert login.who[0] == "kubernetes-shop-storefront"
        assert json.loads(login.who[4])["service_account_name"] == "storefront"
    assert "storefront" in json.loads(login.who[3])
    assert login.address == "10.1.4.21"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_request_of_a_login_is_nobodys(version: str) -> None:
    request, _ = next(iter(taken(version).rows.values()))
    assert request is not None
    assert (request.who, request.accessor) == (NOBODY, "")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_credential_read_gives_the_lease_and_the_token_that_read_it(version: str) -> None:
    login, read, *_ = taken(version).rows.values()
    assert login[1] is not None
    assert login[1].answer is not None
    assert read[0] is not None
    assert read[1] is not None
    assert read[1].kind == Kind.READ
    assert read[1].lease_id.startswith(("database/creds/my-role/", "postgresql/creds/readonly/"))
    assert read[1].answer is not None
    assert read[1].answer.username.startswith(HMAC)
    assert login[1].answer.new_accessor == read[0].accessor == read[1].accessor
    assert read[1].what[1:3] == ("read", read[1].lease_id.rsplit("/", 1)[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_renewal_names_its_lease(version: str) -> None:
    _, read, renewal, _ = events(version)
    assert renewal.kind == Kind.RENEW
    assert renewal.lease_id == read.lease_id


@pytest.mark.parametrize("version", VERSIONS)
def test_a_denied_read_did_nothing_and_keeps_the_error_of_its_response(version: str) -> None:
    denied = events(version)[-1]
    assert denied.kind == Kind.OTHER
    assert "permission denied" in denied.error
    if version != "vault-0.7":
        assert denied.error == "1 error occurred:\n\t* permission denied\n\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_times_are_those_of_the_lines_to_the_microsecond(version: str) -> None:
    times = [json.loads(line)["time"] for line in (SHAPES / f"{version}.ndjson").read_bytes().splitlines()]
    read = [half.at for row in taken(version).rows.values() for half in row if half is not None]
    assert [at.replace(tzinfo=None).isoformat(timespec="microseconds") for at in read] == [
        (time.removesuffix("Z") + ("" if "." in time else "."))[:26].ljust(26, "0") for time in times
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_lines_in_the_opposite_order_and_behind_a_prefix_say_the_same(version: str) -> None:
    forwards = {request_id: event(row) for request_id, row in taken(version).rows.items()}
    for other in (taken(version, backwards=True), taken(version, prefix=b"@cee: ")):
        assert {request_id: event(row) for request_id, row in other.rows.items()} == forwards


def test_a_namespace_is_its_path_and_the_root_namespace_is_empty() -> None:
    assert {content.what[5] for content in events("vault-1.2")} == {""}
    assert {content.what[5] for content in events("vault-1.21")} == {""}
    assert {content.what[5] for content in events("vault-1.16-enterprise-namespace")} == {"team-a/"}


def test_mounts_are_named_where_the_version_names_them() -> None:
    assert [content.what[3] for content in events("vault-1.21")] == ["auth/kubernetes/", "database/", "sys/", "secret/"]
    assert [content.what[3:5] for content in events("vault-1.9")] == [
        ("", "kubernetes"),
        ("", "database"),
        ("", "system"),
        ("", "kv"),
    ]


def test_types_and_fields_that_nobody_knows_are_kept_under_their_own_names() -> None:
    batch = taken("vault-1.19-enterprise-kmip")
    assert not batch.rejects
    kmip, other = batch.rows.values()
    merged = event(kmip)
    assert (merged.what[0], merged.what[2], merged.who[0]) == ("kmip", "kmip/scope/storage/role/nas", "kmip-nas")
    assert other[0] is not None
    assert other[0].what[:3] == ("observation", "read", "sys/unknown")


def test_requests_that_nothing_answers_are_read_without_a_pair() -> None:
    batch = taken("without-pair")
    assert not batch.rejects
    rows = list(batch.rows.items())
    assert [row[1] for _, row in rows] == [None, None, None]
    assert [row[0].what[2] for _, row in rows if row[0]] == ["sys/seal", "sys/audit/test", "sys/mounts"]
    # a `help` has no request id: it is known by the hash of its line
    assert rows[2][0].startswith("sha256:")


def test_the_error_pair_of_a_standby_is_an_event_with_its_error_and_no_login() -> None:
    (pair,) = events("standby-error-pair")
    assert (pair.error, pair.kind, pair.who) == ("cannot write to readonly storage", Kind.STANDBY, NOBODY)


def test_the_lines_of_openbao_are_read_as_what_its_session_was() -> None:
    path = Path(__file__).parent / "data" / "session.ndjson"
    limits = Limits(oldest=datetime(2015, 1, 1, tzinfo=UTC), newest=datetime(2027, 1, 1, tzinfo=UTC))
    rows = list(take_apart(path.read_bytes(), offset=0, limits=limits).rows.values())
    assert [event(row).kind for row in rows] == [Kind.LOGIN, Kind.TOKEN_RENEW, Kind.OTHER, Kind.READ, Kind.RENEW]
    accessors = {half.accessor for row in rows[1:] for half in row if half is not None}
    assert rows[0][1] is not None
    assert rows[0][1].answer is not None
    assert accessors == {rows[0][1].answer.new_accessor}
