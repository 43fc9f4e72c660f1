"""A batch, whatever is in it: every line becomes exactly one thing, nothing is lost but secrets, and no secret is kept."""

import gc
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.db import connection
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from audit import glue
from audit.batch import Batch, Counts, Limits, take_apart
from audit.blocks import lines_of
from audit.follow import Chunk, Position
from audit.ingest import ingest
from audit.management.commands.ingest import stream_named
from audit.models import Event, Hourly, RawBlock, Sighting, Stream
from audit.secrets import RawSecret
from tests import mutations
from tests.mutations import REAL, Made

# a text that fails a property is long
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
NOW = datetime(2026, 11, 26, tzinfo=UTC)
LIMITS = Limits(oldest=NOW - timedelta(days=400), newest=NOW + timedelta(days=2))
TOKEN = b"hvs." + b"A" * 30


@pytest.fixture(autouse=True, scope="module")
def without_collections() -> Iterator[None]:
    """Hypothesis has a callback at each garbage collection. One that begins where nesting has used up Python's stack could not
    call it, and pytest takes that for a fault of the test.
    """
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def apart(text: bytes) -> Batch:
    return take_apart(text, offset=0, limits=LIMITS)


def things(batch: Batch) -> int:
    return len(list(batch.halves())) + len(batch.rejects) + batch.expired.total()


def kept(batch: Batch) -> bytes:
    return b"".join(block.text for block in batch.blocks)


def assert_same_but_for_redactions(text: bytes, stored: bytes, redactions: int) -> None:
    if not redactions:
        assert stored == text
        return
    # a line with a redaction may have lost its NULs
    text = text.replace(b"\x00", b"")
    at = 0
    for number, part in enumerate(re.split(rb'"?\[redacted\]"?', stored.replace(b"\x00", b""))):
        found = text.find(part, at)
        assert found >= 0
        assert number or found == 0
        at = found + len(part)
    assert text.endswith(part)


def assert_hidden(secrets: list[bytes], *texts: bytes) -> None:
    for text in texts:
        for secret in secrets:
            assert secret not in text
            assert secret not in text.replace(b"\x00", b"")


@settings(max_examples=300, deadline=None)
@given(mutations.texts())
def test_each_line_of_any_text_becomes_one_thing_and_no_secret_is_kept(made: Made) -> None:
    batch = apart(made.text)
    assert batch.lines == things(batch)
    ends = [0, *(block.offset_to for block in batch.blocks)]
    assert [block.offset_from for block in batch.blocks] == ends[:-1]
    assert ends[-1] == len(made.text)
    assert_same_but_for_redactions(made.text, kept(batch), batch.redacted.total())
    rows = msgspec.json.encode([batch.rows, batch.again])
    reasons = b" ".join(reject.line + reject.reason.encode() for reject in batch.rejects)
    assert_hidden(made.secrets, kept(batch), rows, reasons)
    # as `rebuild` reads it
    again = apart(kept(batch))
    assert msgspec.json.encode([again.rows, again.again]) == rows
    assert (again.lines, again.rejects) == (batch.lines, batch.rejects)
    assert not again.redacted


@settings(max_examples=150, deadline=None)
@given(mutations.texts(raw=True))
def test_one_whole_line_of_a_device_that_writes_raw_values_refuses_the_batch(made: Made) -> None:
    with pytest.raises(RawSecret) as told:
        apart(made.text)
    assert_hidden(made.secrets, str(told.value).encode())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_at_all_add_up(text: bytes) -> None:
    batch = apart(text)
    assert batch.lines == things(batch)
    assert_same_but_for_redactions(text, kept(batch), batch.redacted.total())


@settings(max_examples=150, deadline=None)
@given(mutations.texts())
def test_pieces_of_a_line_joined_are_the_line(made: Made) -> None:
    for line in made.text.split(b"\n"):
        assert b"".join(glue.pieces(line)) == line


def stored() -> dict[str, int]:
    """How many rows the tables of audit and leases hold; but coverage counts duplicates, and a text may be interned unused."""
    passing = ("audit_coverage", "audit_what", "audit_who", "audit_text", "audit_token")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
            " AND (relname LIKE 'audit\\_%' OR relname LIKE 'leases\\_%')"
        )
        tables = sorted({row[0] for row in cursor.fetchall()} - set(passing))
        counts = {}
        for table in tables:
            cursor.execute(f"SELECT count(*) FROM {table}")
            counts[table] = cursor.fetchone()[0]
        return counts


def columns(*, of: tuple[str, ...]) -> list[tuple[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " JOIN pg_type t ON t.oid = a.atttypid WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " AND (c.relname LIKE 'audit\\_%%' OR c.relname LIKE 'leases\\_%%') AND a.attnum > 0 AND t.typname = ANY(%s)",
            [list(of)],
        )
        return [(str(table), str(column)) for table, column in cursor.fetchall()]


def everything(stream: Stream) -> list[bytes]:
    """Every text, JSON and byte string in the database; compressed lines as they are read."""
    found = [lines_of(block) or b"" for block in RawBlock.objects.filter(stream=stream)]
    with connection.cursor() as cursor:
        for table, column in columns(of=("text", "varchar", "jsonb", "_text")):
            cursor.execute(f"SELECT string_agg({column}::text, ' ') FROM {table}")
            found.append((cursor.fetchone()[0] or "").encode())
        for table, column in columns(of=("bytea",)):
            cursor.execute(f"SELECT string_agg({column}, '\\x00'::bytea) FROM {table}")
            found.append(bytes(cursor.fetchone()[0] or b""))
    return found


def told(stream: Stream) -> tuple[Any, ...]:
    """What the database tells of this stream's vault: events, hourly counts, logins and leases, without their keys."""
    vault = stream.device.vault
    events = [
        (
            event.request_id,
            event.at,
            event.request_at,
            event.response_at,
            *(
                getattr(event.what, name)
                for name in ("entry_type", "operation", "path", "mount_point", "namespace_path")
            ),
            *(getattr(event.who, name) for name in ("display_name", "entity_id", "token_type", "policies", "metadata")),
            event.address.text,
            event.lease_id,
            event.error,
            event.kind,
        )
        for event in Event.objects.filter(vault=vault).select_related(*Event.SPELLED_OUT).order_by("at", "request")
    ]
    hours = list(
        Hourly.objects.filter(vault=vault)
        .order_by("hour", "kind", "target__text", "who__digest")
        .values_list("hour", "kind", "target__text", "who__digest", "events", "errors", "own")
    )
    logins = list(
        vault.logins.order_by("request_id").values_list("request_id", "logged_in_at", "display_name", "address")
    )
    leases = list(
        vault.leases.order_by("lease_id").values_list(
            "lease_id", "request_id", "accessed_at", "state", "renewals", "login__request_id", "service_account"
        )
    )
    sightings = Sighting.objects.filter(stream=stream).count()
    return events, hours, logins, leases, sightings


def take(stream: Stream, text: bytes, cuts: list[int]) -> Counts:
    """Ingests the text, cut after these lines."""
    counts, at = Counts(), 0
    lines = text.splitlines(keepends=True) if b"\r" not in text else re.findall(rb"[^\n]*\n|[^\n]+", text)
    for begin, end in zip([0, *cuts], [*cuts, len(lines)], strict=True):
        chunk = b"".join(lines[begin:end])
        counts.add(ingest(stream.pk, Chunk(chunk, at, Position(offset=at + len(chunk)), 0), expected=None, now=NOW))
        at += len(chunk)
    assert at == len(text)
    return counts


@pytest.mark.django_db
def test_a_request_that_is_told_again_at_an_earlier_time_in_one_batch_has_that_time_at_once() -> None:
    first = json.loads((mutations.DATA / "session.ndjson").read_bytes().splitlines()[0])
    lines = [json.dumps(first | {"time": f"2026-11-24T00:31:{second}.5Z"}).encode() + b"\n" for second in (19, 17, 18)]
    stream = stream_named("told-again", "d", "n")
    take(stream, b"".join(lines), [])
    event = Event.objects.get(vault=stream.device.vault)
    assert (event.at.second, event.has_request) == (17, True)
    said = told(stream)
    take(stream, b"".join(lines), [1, 2])
    assert told(stream) == said


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=mutations.texts(), data=st.data())
def test_any_text_is_stored_once_whatever_its_batches_and_hides_its_secrets(made: Made, data: st.DataObject) -> None:
    # a half looks for its twin in the days beside its own: no request takes longer, unless a clock jumps within it
    times: dict[str, list[datetime]] = {}
    for half in apart(made.text).halves():
        times.setdefault(half.request_id, []).append(half.at)
    assume(all(max(of_one) - min(of_one) < timedelta(days=1) for of_one in times.values()))
    number = Stream.objects.count()
    whole, cut = (stream_named(f"{name}-{number}", "d", "n") for name in ("whole", "cut"))
    counts = take(whole, made.text, [])
    assert counts.adds_up
    # the stream's row holds the sum by a constraint
    whole.refresh_from_db()
    assert (whole.lines, whole.parts, whole.rejected) == (counts.lines, counts.parts, counts.rejected)
    assert_hidden(made.secrets, *everything(whole))

    before, said = stored(), told(whole)
    count = made.text.count(b"\n") + (not made.text.endswith(b"\n") and bool(made.text))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(count - 1, 1)), max_size=4))) if count > 1 else []
    again = take(whole, made.text, cuts)
    assert again.adds_up
    assert (again.lines, again.parts, again.rejected, again.conflicts) == (counts.lines, 0, 0, 0)
    assert (stored(), told(whole)) == (before, said)

    pieces = take(cut, made.text, cuts)
    assert pieces.adds_up
    assert (pieces.lines, pieces.parts, pieces.rejected) == (counts.lines, counts.parts, counts.rejected)
    assert told(cut) == said


@pytest.mark.django_db
def test_a_chunk_without_a_line_only_moves_the_position() -> None:
    stream = stream_named("v", "d", "n")
    assert ingest(stream.pk, Chunk(b"", 7, Position(offset=7), 0), expected=None, now=NOW) == Counts()
    stream.refresh_from_db()
    assert stream.offset == 7


@pytest.mark.django_db
def test_a_line_that_contradicts_another_is_told_the_same_whatever_the_batches() -> None:
    line = next(line for line in REAL if b'"type":"request"' in line)
    other = mutations.put(line, ("request", "path"), "elsewhere")
    text = b"".join(part + b"\n" for part in (line, other, line, other))
    for number, cuts in enumerate(([], [1], [2], [1, 2], [1, 3], [1, 2, 3])):
        counts = take(stream_named(f"v{number}", "d", "n"), text, cuts)
        assert (counts.parts, counts.conflicts, counts.duplicates) == (1, 1, 2), cuts


LINE = next(line for line in REAL if b'"path":"' in line)
_PATH = b'"path":"'
_LIST = b'"data":{"keys":[' + b",".join(b'"%040d"' % number for number in range(380_000)) + b"]},"


def _with(before: bytes) -> bytes:
    return LINE.replace(_PATH, before, 1)


# text that would take minutes, if its length counted more than once: 16 MB each, or many lines
HEAVY = {
    "a list of 16 MB": _with(_LIST + _PATH),
    "a list of 16 MB, and a token": _with(_LIST + _PATH + TOKEN),
    "a torn entry of 16 MB": LINE[:-1] + b',"x":"' + b"a" * (16 << 20),
    "a torn list of 16 MB before the next entry": LINE[:400] + _LIST[:-9] + LINE,
    "NULs where a file was truncated": b"\x00" * (16 << 20) + LINE,
    "nothing but braces": b"{}" * (8 << 20),
    "beginnings of entries": b'{"time":"' * 100_000,
    "maps within maps": b'{"auth":' * 1_000_000,
    "maps within maps, and a token": TOKEN + b'{"auth":' * 1_000_000,
    "entries without line ends": LINE * 10_000,
    "entries without line ends, and a token": TOKEN + LINE * 10_000,
    "beginnings of a JWT": _with(_PATH + TOKEN + b"eyJ" * (5 << 20)),
    "parts of a JWT": _with(_PATH + TOKEN + b"eyJabcdefghijk." * (1 << 20)),
    "beginnings of an error": _with(_PATH + TOKEN + b"error converting input " * 600_000),
    "errors": _with(_PATH + TOKEN + b"error converting input x for field " * 400_000),
    "escaped NULs": _with(_PATH + b"\\u0000" * (2 << 20)),
    "quotes": b'"' * (16 << 20) + TOKEN,
    "escaped quotes": LINE[:300] + b'"' + b'\\"' * (5 << 20) + TOKEN,
    "names of secrets": _with(
        b'"data":{' + b",".join(b'"%d":{"token":%d}' % (n, n) for n in range(300_000)) + b"}," + _PATH
    ),
    "lists of lists under a secret's name": _with(b'"data":' + b'{"token":[' * 4000 + b"]}" * 4000 + b"," + _PATH),
    "garbage": b"garbage\n" * 100_000,
    "lines with a token": (_with(_PATH + TOKEN) + b"\n") * 50_000,
    "lines with endless nesting": (_with(b'"data":' + b"[" * 9000 + b"]" * 9000 + b"," + _PATH + TOKEN) + b"\n") * 200,
}


@pytest.mark.parametrize("name", HEAVY)
def test_the_heaviest_text_that_anybody_can_send_takes_seconds(name: str) -> None:
    # of the processor, so that a busy machine fails no test
    began = time.process_time()
    batch = apart(HEAVY[name])
    assert time.process_time() - began < 20
    assert batch.lines == things(batch)
    assert TOKEN not in kept(batch)


def test_what_a_client_nests_like_an_entry_is_none_where_its_own_entry_is_torn() -> None:
    fake = {"time": "2026-01-01T00:00:00Z", "type": "hmac-sha256:ab", "request": {"id": "fake"}}
    line = mutations.put(LINE, ("request", "data"), {"x": fake, "y": 1})
    torn = line[: line.index(b'"y"')]
    batch = apart(torn + LINE)
    assert len(batch.rejects) == 1
    assert [half.what[2] for row in batch.rows.values() for half in row if half] == [
        json.loads(LINE)["request"]["path"]
    ]


def test_lines_of_a_backlog_that_are_older_than_retention_expire_in_whatever_order() -> None:
    lines = [mutations.put(LINE, ("time",), f"2024-0{month}-01T00:00:00Z") for month in range(1, 6)]
    for order in (lines, lines[::-1]):
        batch = apart(b"\n".join([*order, LINE]))
        assert (batch.expired.total(), len(list(batch.halves()))) == (5, 1)


@pytest.mark.django_db
@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 5, 6, 7], [3], [5]])
def test_two_devices_on_one_path_take_turns_and_the_login_is_found_in_the_words_of_either(cuts: list[int]) -> None:
    session = (mutations.DATA / "session.ndjson").read_bytes().splitlines()
    ours = [line for line in session if b"auth/kubernetes/login" in line or b'"path":"database/creds' in line]
    theirs = [re.sub(rb"(hmac-sha256:)[0-9a-f]{32}", rb"\g<1>" + b"0" * 32, line) for line in ours]
    assert len(ours) == 4
    # each entry is written by the one first, or by the other
    pairs = zip([ours, theirs, ours, theirs], [theirs, ours, theirs, ours], range(4), strict=True)
    text = b"".join(line + b"\n" for one, other, n in pairs for line in (one[n], other[n]))
    stream = stream_named("v", "d", "n")
    counts = take(stream, text, cuts)
    assert (counts.parts, counts.duplicates) == (4, 4)
    lease = stream.device.vault.leases.get()
    assert lease.login is not None
    assert lease.login.display_name == "kubernetes-shop-storefront"
