"""One audit line: what is read of it, what is redacted, what is refused, what is rejected."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.lines import Half, Rejected, moment, without_nul
from audit.lines import read as read_line
from audit.secrets import RawSecret, clean, suspect_lines

HASH = "hmac-sha256:" + "ab" * 32


def entry(**changes: Any) -> dict[str, Any]:
    line: dict[str, Any] = {
        "time": "2026-11-20T10:00:00.123456789Z",
        "type": "response",
        "auth": {"client_token": HASH, "accessor": HASH, "display_name": "kubernetes-shop-storefront"},
        "request": {
            "id": "11111111-2222-3333-4444-555555555555",
            "operation": "read",
            "path": "database/creds/my-role",
            "mount_point": "database/",
            "namespace": {"id": "root"},
            "remote_address": "127.0.0.9",
        },
        "response": {
            "secret": {"lease_id": "database/creds/my-role/abc"},
            "data": {"username": HASH, "password": HASH},
        },
    }
    line.update(changes)
    return line


def text(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode()


def read(line: bytes) -> Half:
    """As ingestion reads a line: cleaned where the scan points at it."""
    if suspect_lines(line, [line]):
        line = without_nul(clean(line)[0])
    return read_line(line)


def test_a_credential_read_gives_its_lease_its_address_and_the_hash_of_its_user() -> None:
    half = read(text(entry()))
    assert half.lease_id == "database/creds/my-role/abc"
    assert half.address == "127.0.0.9"
    assert half.answer is not None
    assert half.answer.username == HASH
    assert half.at == datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    "time",
    ["2017-03-01T10:00:00Z", "2026-11-20T11:00:00.5+01:00", "2026-11-20T10:00:00.123456789Z", "2026-11-20T10:00:00.1Z"],
)
def test_times_of_every_length_and_offset_are_utc(time: str) -> None:
    assert moment(time).tzinfo == UTC


@pytest.mark.parametrize(
    "time",
    [
        "2026-W48-2T00:00:00.00000000000Z",
        "2026-11-24\t00:31:18.123456789Z",
        "2026-11-24T00:31:18,1234567Z",
        "20261124T003118.123456789Z",
    ],
)
def test_a_time_that_python_reads_is_handed_on_in_its_usual_form(time: str) -> None:
    half = read(text(entry(time=time)))
    assert half.time == half.at.isoformat()


def test_the_old_shape_with_empty_and_null_fields_is_read() -> None:
    half = read(text(entry(auth=None, error="", response={"auth": None, "secret": None, "data": None})))
    assert half.lease_id == ""


def test_a_prefix_before_the_entry_is_passed_over() -> None:
    assert read(b"@cee: " + text(entry())).what[2] == "database/creds/my-role"


def test_an_id_that_no_index_could_hold_is_rejected() -> None:
    with pytest.raises(Rejected, match=r"request\.id"):
        read(text(entry(request={"id": "x" * 5000})))


def test_a_lone_surrogate_is_rejected() -> None:
    with pytest.raises(Rejected):
        read(b'{"time":"2026-11-20T10:00:00Z","type":"request","request":{"id":"1","path":"\\ud800"}}')


def test_an_entry_without_a_request_id_is_known_by_the_hash_of_its_line() -> None:
    line = text(entry(request={"operation": "help", "path": "sys"}))
    assert read(line).request_id == read(line).request_id
    assert read(line).request_id.startswith("sha256:")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"{",
        b"[1]",
        b'{"time": 5, "type": "request"}',
        b'{"type":"request"}',
        b'"{}"',
        b'{"time":"yesterday","type":"request"}',
    ],
)
def test_what_is_no_entry_is_rejected_with_a_reason(line: bytes) -> None:
    with pytest.raises(Rejected, match=r"\w"):
        read(line)


@pytest.mark.parametrize(
    "field",
    [
        {"auth": {"client_token": "hvs.CAESIJ"}},
        {"request": {"id": "1", "client_token": "s.abc"}},
        {"request": {"id": "1", "data": {"jwt": "eyJhbGciOiJSUzI1NiJ9"}}},
        {"response": {"auth": {"client_token": "root"}}},
        {"response": {"secret": {"lease_id": "database/creds/r/1"}, "data": {"password": "hunter2"}}},
    ],
)
def test_a_secret_in_plain_text_where_an_hmac_belongs_refuses_the_stream(field: dict[str, Any]) -> None:
    with pytest.raises(RawSecret):
        read(text(entry(**field)))


def test_the_redaction_of_a_token_does_not_hide_that_the_device_writes_raw() -> None:
    with pytest.raises(RawSecret):
        clean(text(entry(auth={"client_token": "hvs." + "A" * 30})))


@pytest.mark.parametrize(
    "token",
    [
        "hvs." + "A" * 24,
        "s." + "b" * 24,
        "b." + "c" * 90,
        "hvb." + "d" * 90,
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0x.c2lnbmF0dXJl",
    ],
)
def test_a_token_that_somebody_writes_into_a_path_is_redacted_and_stops_nothing(token: str) -> None:
    line, count = clean(text(entry(request={"id": "1", "path": f"secret/{token}/x"})))
    assert count == 1
    assert token.encode() not in line
    assert "[redacted]" in read(line).what[2]


@pytest.mark.parametrize("before", [b"\\n", b"\\t", b"\\u003c", b"%22", b"%3C", b"=", b"/", b"x"])
@pytest.mark.parametrize("token", [b"hvs." + b"A" * 24, b"s." + b"b" * 24])
def test_a_token_behind_an_escape_is_redacted(before: bytes, token: bytes) -> None:
    line, count = clean(b'{"path":"secret/' + before + token + b'"}')
    if before == b"x" and token.startswith(b"s."):
        assert count == 0  # a longer word that ends in s, such as a host's name
    else:
        assert token not in line


def test_a_date_that_a_client_writes_where_a_secret_belongs_stops_nothing() -> None:
    assert read(text(entry(request={"id": "1", "data": {"jwt": "2026-01-01T00:00:00Z"}}))).request_id == "1"


@pytest.mark.parametrize("nested", [b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000])
def test_what_a_client_nests_without_end_hides_no_entry(nested: bytes) -> None:
    line = (
        b'{"time":"2026-11-20T10:00:00Z","type":"request","request":{"id":"1","data":{"x":' + nested + b'},"path":"p"}}'
    )
    assert read(line).what[2] == "p"


def test_a_plain_password_of_a_static_role_refuses_the_stream() -> None:
    with pytest.raises(RawSecret):
        read(text(entry(response={"data": {"username": HASH, "password": "hunter2"}})))


@pytest.mark.parametrize("nul", [b"\\u0000", b"\x00", b"\\u0\x00000", b"\\\x00u0000"])
def test_a_nul_in_a_path_stops_nothing(nul: bytes) -> None:
    line = text(entry(request={"id": "1", "path": "aNULb"})).replace(b"NUL", nul)
    assert "\x00" not in read(line).what[2]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_rejected(line: bytes) -> None:
    try:
        read(clean(line)[0])
    except Rejected:
        return


@given(st.data())
def test_a_real_line_with_any_byte_changed_is_read_rejected_or_refused(data: st.DataObject) -> None:
    line = bytearray(text(entry()))
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    try:
        half = read(clean(bytes(line))[0])
    except (Rejected, RawSecret):
        return
    assert "\x00" not in half.what[2]


def test_a_refusal_names_no_word_of_a_client() -> None:
    token = "hvs." + "A" * 30
    with pytest.raises(RawSecret) as told:
        clean(text({"request": {"data": {token: {"password": "x"}}}}))
    assert told.value.field == "request.data.….….password"
