"""Pushed batches, through a real push process: every answer a shipper can get, and what it leaves in the database."""

import contextlib
import gzip
import io
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

import audit.queries
from audit import blocks as raw_blocks
from audit import configuration, push, users
from audit.doctor import readable
from audit.models import Device, Event, RawBlock, RejectedLine, Sighting, Stream
from demo.processes import free_port
from leases.configuration import ConfigurationError, load
from leases.errors import SourceError
from leases.models import SourceState
from leases.models.sources import SourceKind
from leases.turns import turn
from tests import factories, pushing
from tests.pushing import Answer, Push, ids, requests

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "owner"]),
    pytest.mark.filterwarnings("ignore:No directory at"),
]

RAW = '{"time":"2026-11-20T10:00:00Z","type":"request","auth":{"client_token":"hvs.verysecret"},"request":{"id":"2"}}'
PATH = "/ingest/demo/file-a/bao-0"


@pytest.fixture(scope="module")
def server(run_folder: Path, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Push]:
    with pushing.running(tmp_path_factory.mktemp("push")) as started:
        yield started


@pytest.fixture
def stream() -> Stream:
    return pushed()


@pytest.fixture
def token(stream: Stream) -> str:
    made = push.new_token()
    push.set_token(stream, made)
    return made


def pushed(device: str = "file-a", node: str = "bao-0") -> Stream:
    return factories.stream(device, node, path="", pushed=True)


def body(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def stored() -> dict[str, object]:
    """All that a batch may change, but for when it was read last and how often lines came again."""
    passing = {"read_at", "lines", "duplicates"}
    streams = [{k: v for k, v in row.items() if k not in passing} for row in Stream.objects.order_by("id").values()]
    models: tuple[Any, ...] = (Event, Sighting, RawBlock, RejectedLine)
    return {"streams": streams} | {
        model.__name__: sorted(tuple(map(str, row)) for row in model.objects.values_list()) for model in models
    }


def refused(answer: Answer, status: int, word: str) -> None:
    assert (answer.status, word in answer.json["error"]) == (status, True), answer


# --- what is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_a_batch_is_committed_when_it_is_answered(server: Push, stream: Stream, token: str, encoding: str) -> None:
    lines = requests(3)
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "identity": bytes,
    }
    answer = server.post(PATH, compress[encoding](body(lines)), token=token, Content_Encoding=encoding)
    assert answer.status == 200
    assert answer.json == dict.fromkeys(answer.json, 0) | {"lines": 6, "parts": 6}
    assert set(answer.json) == {"lines", "parts", "duplicates", "rejected", "redacted", "expired", "conflicts"}
    assert factories.request_ids() == ids(lines)
    stream.refresh_from_db()
    assert (stream.lines, stream.offset) == (6, len(body(lines)))
    assert stream.read_at
    assert stream.last_line_at


def test_a_batch_that_comes_again_changes_nothing(server: Push, stream: Stream, token: str) -> None:
    lines = requests(3)
    server.post(PATH, body(lines), token=token)
    before = stored()
    again = server.post(PATH, gzip.compress(body(lines)), token=token, Content_Encoding="gzip")
    assert again.json == dict.fromkeys(again.json, 0) | {"lines": 6, "duplicates": 6}
    after = stored()
    assert after.pop("Event") == before.pop("Event")
    assert (after["RawBlock"], after["Sighting"]) == (before["RawBlock"], before["Sighting"])


def test_a_batch_with_rejected_lines_that_comes_again_changes_nothing(server: Push, stream: Stream, token: str) -> None:
    lines = body([*requests(1), "no entry"])
    server.post(PATH, lines, token=token)
    before = stored()
    server.post(PATH, lines, token=token)
    after = stored()
    assert (after["RawBlock"], after["RejectedLine"]) == (before["RawBlock"], before["RejectedLine"])


def test_a_batch_that_comes_twice_at_once_is_taken_once(server: Push, stream: Stream, token: str) -> None:
    lines = requests(300)
    answers = []

    def send() -> None:
        while (answer := server.post(PATH, body(lines), token=token)).status == 429:
            time.sleep(float(answer.headers["Retry-After"]) / 10)
        answers.append(answer.json)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answer["parts"] for answer in answers) == 600
    assert sum(answer["duplicates"] for answer in answers) == 1200
    assert factories.request_ids() == ids(lines)
    blocks = RawBlock.objects.order_by("sequence")
    assert blocks[0].offset_from == 0
    assert all(a.offset_to <= b.offset_from for a, b in pairwise(blocks))


def test_a_last_line_without_its_newline_is_whole(server: Push, stream: Stream, token: str) -> None:
    lines = requests(2)
    assert server.post(PATH, body(lines).rstrip(), token=token).json["parts"] == 4
    server.post(PATH, body(requests(1)), token=token)
    stream.refresh_from_db()
    assert stream.rejected == 0


def test_a_body_in_chunks_is_taken(server: Push, stream: Stream, token: str) -> None:
    lines = requests(40)
    whole = body(lines)
    chunks = (whole[start : start + 1000] for start in range(0, len(whole), 1000))
    assert server.post(PATH, chunks, token=token).json["parts"] == 80


def test_a_gzip_body_of_several_members_is_taken(server: Push, stream: Stream, token: str) -> None:
    whole = body(requests(10))
    for compress, encoding in ((gzip.compress, "gzip"), (zstandard.compress, "zstd")):
        packed = b"".join(compress(whole[start : start + 3000]) for start in range(0, len(whole), 3000))
        answer = server.post(PATH, packed, token=token, Content_Encoding=encoding)
        assert (answer.status, answer.json["lines"]) == (200, 20)


def test_an_empty_batch_is_a_sign_of_life(server: Push, stream: Stream, token: str) -> None:
    assert server.post(PATH, b"", token=token).json["lines"] == 0
    stream.refresh_from_db()
    assert stream.read_at
    assert audit.queries.stream_statuses(now=timezone.now())[0].source.status == "ok"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("encoding", ["identity", "zstd"])
def test_a_line_of_16_mb_is_taken(server: Push, stream: Stream, token: str, encoding: str) -> None:
    request, response = [json.loads(line) for line in requests(1)]
    key = "NvKsW0dV9tq1hLkR3bXzYcQe"
    response["response"] = {"data": {"keys": [key] * (16 * 1024 * 1024 // (len(key) + 4) - 50)}}
    whole = body([json.dumps(request), json.dumps(response)])
    assert len(whole) > 15.9 * 1024 * 1024
    packed = zstandard.compress(whole) if encoding == "zstd" else whole
    answer = server.post(PATH, packed, token=token, Content_Encoding=encoding)
    assert answer.status == 200, answer
    assert answer.json["parts"] == 2


def test_lines_inside_of_the_shippers_own_objects_are_stored_as_they_were(
    server: Push, stream: Stream, token: str
) -> None:
    lines = [*requests(2), "no object", ""]
    wrapped = [json.dumps({"log": line}) for line in lines] + ['{"other": 1}']
    answer = server.post(PATH, body(wrapped), token=token, Leasehold_Line_Key="log")
    assert (answer.json["parts"], answer.json["rejected"]) == (4, 2)
    stored_lines = (raw_blocks.lines_of(RawBlock.objects.get()) or b"").decode().splitlines()
    assert stored_lines == [*lines, '{"other": 1}']


def test_token_shaped_text_is_redacted_and_counted(server: Push, stream: Stream, token: str) -> None:
    line = requests(1)[0].replace('"path": "', '"path": "hvs.CAESIJlUa4zKdGbm2XwGV5Yx0f4cH1QkQ')
    assert server.post(PATH, body([line]), token=token).json["redacted"] == 1


@pytest.mark.parametrize("device", ["team/audit-ä", "file a?#%2F", "a'b\"<c>"])
def test_odd_names_are_found_by_the_address_that_is_printed(server: Push, device: str) -> None:
    odd = pushed(device, "node 1 …")
    token = push.new_token()
    push.set_token(odd, token)
    assert server.post(push.address(odd), body(requests(1)), token=token).status == 200


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_wrong_token_and_an_unknown_stream_cannot_be_told_apart(server: Push, stream: Stream, token: str) -> None:
    other = pushed("file-b")
    others = push.new_token()
    push.set_token(other, others)
    followed = factories.stream("file-c")
    without_token = pushed("file-d")
    retired = factories.stream("file-e", path="", pushed=True, retired=True)
    lines = body(requests(1))
    answers = [
        server.post(PATH, lines),
        server.post(PATH, lines, token="wrong"),
        server.post(PATH, lines, token=others),
        server.post(PATH, lines, Authorization=f"Basic {token}"),
        server.post(PATH, lines, Authorization="Bearer "),
        server.post(PATH, lines, Authorization="Bearer \xe4\xff"),
        server.post(push.address(followed), lines, token=token),
        server.post(push.address(without_token), lines, Authorization="Bearer "),
        server.post(push.address(retired), lines, token=token),
        server.post("/ingest/demo/file-a/nobody", lines, token=token),
        server.post("/ingest/demo/file%00a/bao-0", lines, token=token),
        server.post("/ingest/%ff%fe/%ed%a0%80/%0a%0d", lines, token=token),
        server.post("/ingest/demo/../../etc/passwd", lines, token=token),
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"
    assert not Event.objects.exists()


def test_another_address_is_not_found(server: Push, token: str) -> None:
    for path in ("/", "/login", "/metrics", "/ingest", "/ingest/demo/file-a", "/ingest//file-a/bao-0", "/static/x"):
        assert server.post(path, b"", token=token).status == 404, path


def test_a_batch_is_sent_by_post_only(server: Push, token: str) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = server.post(PATH, b"", token=token, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_a_body_without_a_length_is_refused(server: Push, token: str) -> None:
    answer = raw(server, f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
    assert b" 411 " in answer.splitlines()[0]


def test_an_unknown_encoding_is_refused_with_the_known_ones(server: Push, token: str) -> None:
    for encoding in ("br", "gzip, gzip", "deflate"):
        answer = server.post(PATH, b"x", token=token, Content_Encoding=encoding)
        refused(answer, 415, "gzip")
        assert answer.headers["Accept-Encoding"] == "gzip, zstd, identity"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["truncated", "none", "garbage behind", "a flipped byte"])
def test_a_damaged_body_is_refused_and_nothing_of_it_taken(
    server: Push, stream: Stream, token: str, encoding: str, damage: str
) -> None:
    # several pieces long, so that there is much to take before the damage
    whole = body(requests(20)) + b"\n" * (20 * 1024 * 1024)
    if encoding == "gzip":
        packed = gzip.compress(whole, 1)
    else:
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(whole)
    sent = {
        "truncated": packed[:-5],
        "none": whole[:1000],
        "garbage behind": packed + b"garbage",
        "a flipped byte": packed[:-3] + bytes([packed[-3] ^ 1]) + packed[-2:],
    }[damage]
    refused(server.post(PATH, sent, token=token, Content_Encoding=encoding), 400, "nothing was taken")
    assert not Event.objects.exists()


def test_an_empty_compressed_body_is_refused(server: Push, stream: Stream, token: str) -> None:
    refused(server.post(PATH, b"", token=token, Content_Encoding="gzip"), 400, "ends early")


def test_malformed_chunks_are_refused(server: Push, token: str) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 400 " in raw(server, head + "zz\r\nx\r\n").splitlines()[0]


def test_too_large_a_body_is_refused_with_a_hint(server: Push, stream: Stream, token: str) -> None:
    refused(server.post(PATH, b" " * (21 * 1024 * 1024), token=token), 413, "split")
    chunks = (b" " * 1024 * 1024 for _ in range(21))
    refused(server.post(PATH, chunks, token=token), 413, "split")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_decompression_bomb_is_refused_without_filling_the_memory(
    server: Push, stream: Stream, token: str, encoding: str
) -> None:
    if encoding == "gzip":
        packer = zlib.compressobj(1, wbits=31)
        bomb = b"".join(packer.compress(bytes(16 * 1024 * 1024)) for _ in range(16)) + packer.flush()
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
        bomb = b"".join(compressor.compress(bytes(16 * 1024 * 1024)) for _ in range(16)) + compressor.flush()
    before = max(peaks(server).values())
    refused(server.post(PATH, bomb, token=token, Content_Encoding=encoding), 413, "unpacked")
    assert max(peaks(server).values()) - before < 48 * 1024


def test_a_window_that_needs_much_memory_is_refused(server: Push, stream: Stream, token: str) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(body(requests(1))) + compressor.flush()
    refused(server.post(PATH, packed, token=token, Content_Encoding="zstd"), 400, "zstd")


def test_a_million_empty_members_are_refused(server: Push, stream: Stream, token: str) -> None:
    began = time.monotonic()
    refused(server.post(PATH, gzip.compress(b"") * 500_000, token=token, Content_Encoding="gzip"), 400, "frames")
    assert time.monotonic() - began < 20


def test_raw_secrets_refuse_the_stream_by_the_fields_name_alone(server: Push, stream: Stream, token: str) -> None:
    answer = server.post(PATH, body([RAW]), token=token)
    refused(answer, 422, "auth.client_token")
    assert b"verysecret" not in answer.body
    again = server.post(PATH, body(requests(1)), token=token)
    refused(again, 422, "auth.client_token")
    state = SourceState.objects.get(kind=SourceKind.STREAM, name=str(stream))
    assert (state.ok, "verysecret" in state.cause + state.fix) == (False, False)
    assert not RawBlock.objects.exists()


def test_a_busy_stream_says_when_to_come_again(server: Push, stream: Stream, token: str) -> None:
    with turn("push", stream.pk) as mine:
        assert mine
        began = time.monotonic()
        answer = server.post(PATH, body(requests(1)), token=token)
    refused(answer, 429, "being taken")
    assert int(answer.headers["Retry-After"]) >= 1
    assert 1.5 < time.monotonic() - began < 10
    assert server.post(PATH, body(requests(1)), token=token).status == 200


def test_a_lock_in_the_database_says_when_to_come_again(server: Push, stream: Stream, token: str) -> None:
    with transaction.atomic():
        Stream.objects.select_for_update().get(pk=stream.pk)
        answer = server.post(PATH, body(requests(1)), token=token)
    assert (answer.status, int(answer.headers["Retry-After"]) >= 1) == (429, True)
    assert not Event.objects.exists()


def test_a_database_that_is_away_says_when_to_come_again(tmp_path: Path, stream: Stream, token: str) -> None:
    nowhere = f"postgresql://a:b@127.0.0.1:{free_port()}/none"
    with pushing.running(tmp_path, LEASEHOLD_DATABASE_URL=nowhere) as away:
        answer = away.post(PATH, body(requests(1)), token=token)
        assert (answer.status, int(answer.headers["Retry-After"]) >= 1) == (503, True)
        assert away.post("/healthz", method="GET").status == 200


def test_too_many_batches_at_once_are_told_to_come_again(tmp_path: Path, stream: Stream, token: str) -> None:
    with pushing.running(tmp_path, options=("--workers=1",), LEASEHOLD_PUSH_AT_ONCE="1") as small:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"

        def ask_beside_a_slow_one() -> Answer:
            with socket.create_connection(("127.0.0.1", small.port)) as slow:
                slow.sendall(head.encode() + b"half of it")
                # it may itself have been refused, while the request before it was being answered
                time.sleep(0.3)
                return small.post(PATH, body(requests(1)), token=token)

        answer = until(ask_beside_a_slow_one, 429)
        refused(answer, 429, "at once")
        assert int(answer.headers["Retry-After"]) >= 1
        assert until(lambda: small.post(PATH, body(requests(1)), token=token), 200).json["parts"] == 2


def test_streams_that_push_at_the_same_time_do_not_disturb_each_other(server: Push, stream: Stream, token: str) -> None:
    """Each thread of the process has a connection of its own, and ids that it remembers are of that one."""
    other = pushed("file-b")
    push.set_token(other, other_token := push.new_token())
    sent: list[str] = []
    answers: list[Answer] = []

    def send(path: str, bearer: str) -> None:
        for _ in range(12):
            lines = requests(2)
            sent.extend(lines)
            answers.append(until(partial(server.post, path, body(lines), token=bearer), 200))

    ways = [(PATH, token), ("/ingest/demo/file-b/bao-0", other_token)] * 2
    threads = [threading.Thread(target=send, args=way) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 48
    assert sum(answer.json["parts"] for answer in answers) == 4 * 48
    assert factories.request_ids() == ids(sent)


def test_slow_senders_are_cut_off_and_do_not_keep_others_out(tmp_path: Path, stream: Stream, token: str) -> None:
    options = ("--workers=1", "--threads=2", "--worker-class=tests.impatient.Impatient")
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with pushing.running(tmp_path, options=options) as server, contextlib.ExitStack() as opened:
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(4)]
        for one in slow:
            one.settimeout(20)
            one.sendall(head.encode())
        began = time.monotonic()
        assert server.post(PATH, body(requests(1)), token=token).status == 200
        assert time.monotonic() - began < 15
        # of one that sent no whole header there is nothing to answer
        assert all(one.recv(1000) == b"" for one in slow)
        late = opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        late.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"a little")
        assert b" 503 " in late.recv(1000).splitlines()[0]


def test_long_headers_are_refused(server: Push, token: str) -> None:
    for head in (
        f"GET /{'x' * 5000} HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n" + "X: y\r\n" * 100,
        f"GET / HTTP/1.1\r\nX: {'y' * 9000}\r\n",
    ):
        assert b" 400 " in raw(server, head + "\r\n").splitlines()[0]


def test_no_token_and_no_line_is_ever_logged_or_answered(server: Push, stream: Stream, token: str) -> None:
    marked = requests(1)[0].replace("root", "SENTINEL")
    answers = [
        server.post(PATH, body([marked]), token=token).body,
        server.post(PATH, body([marked]), token=token, Content_Encoding="gzip").body,
        server.post(f"{PATH}?token={token}", body([marked]), token=f"wrong-{token}").body,
        server.post(f"/ingest/demo/{token}/bao-0", body([marked]), token=token).body,
        server.post(f"/{token}", body([marked]), token=token).body,
        raw(server, f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {token}\r\n\r\n"),
        raw(server, f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\x00\r\n\r\n"),
        raw(server, f"{token}\r\n\r\n"),
    ]
    log = server.log.read_text()
    assert str(stream) in log
    for text in [log, *(answer.decode() for answer in answers)]:
        assert token not in text
        assert "SENTINEL" not in text


def raw(server: Push, text: str) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(text.encode())
        return connection.recv(10_000)


def until(ask: Callable[[], Answer], status: int) -> Answer:
    deadline = time.monotonic() + 20
    while (answer := ask()).status != status:
        assert answer.status != 500, answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer


def peaks(server: Push) -> dict[str, int]:
    """Highest memory of each worker so far, in kB."""
    found = {}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[child] = int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{child}/status").read_text())[0])
    return found


# --- pieces, tokens, configuration -------------------------------------------------------------------------------


def test_a_batch_is_cut_at_line_ends() -> None:
    blocks = [b"one\ntwo\nth", b"ree\n", b"a line longer than a piece", b" goes on\nfour"]
    assert list(push.pieces(iter(blocks), size=6)) == [
        b"one\ntwo\n",
        b"three\n",
        b"a line longer than a piece goes on\n",
        b"four\n",
    ]
    assert list(push.pieces(iter([]))) == []


def test_a_failure_in_a_later_piece_keeps_the_earlier_ones_for_the_retry(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = requests(4)
    monkeypatch.setattr(push, "PIECE", 1)

    def blocks() -> Iterator[bytes]:
        yield body(lines[:4])
        raise ConnectionError

    with pytest.raises(ConnectionError):
        push.take(stream, blocks(), now=timezone.now())
    counts = push.take(stream, [body(lines)], now=timezone.now())
    assert factories.request_ids() == ids(lines)
    assert counts.lines == 8


def command(*arguments: str) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("push_token", *arguments, stdout=out, stderr=err)
    return out.getvalue().strip(), err.getvalue()


def works(token: str) -> bool:
    return push.stream_of(token, vault="demo", device="file-a", node="bao-0") is not None


def test_a_token_is_printed_once_and_kept_as_its_hash(stream: Stream) -> None:
    token, said = command("demo", "file-a", "bao-0")
    assert len(token) > 40
    assert "/ingest/demo/file-a/bao-0" in said
    stream.refresh_from_db()
    assert stream.push_token_sha256 == push.digest(token)
    assert token not in str(Stream.objects.values())
    assert works(token)
    with pytest.raises(CommandError, match="--rotate"):
        command("demo", "file-a", "bao-0")


def test_the_old_token_ends_when_the_new_one_is_first_used(stream: Stream) -> None:
    old, _ = command("demo", "file-a", "bao-0")
    new, _ = command("demo", "file-a", "bao-0", "--rotate")
    assert works(old)
    assert works(new)
    assert not works(old)
    last, _ = command("demo", "file-a", "bao-0", "--rotate", "--at-once")
    assert (works(new), works(last)) == (False, True)


def test_a_given_token_is_taken_from_a_file_and_again_without_a_change(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "token"
    given.write_text("x" * 40 + "\n")
    for _ in range(2):
        printed, said = command("demo", "file-a", "bao-0", "--from-file", str(given))
        assert printed == ""
        assert "x" * 40 not in said
    assert works("x" * 40)
    monkeypatch.setenv("GIVEN", "short")
    with pytest.raises(CommandError, match="32 characters"):
        command("demo", "file-a", "bao-0", "--rotate", "--from-env", "GIVEN")
    monkeypatch.setenv("GIVEN", "with spaces in it and long enough to pass")
    with pytest.raises(CommandError, match="without spaces"):
        command("demo", "file-a", "bao-0", "--rotate", "--from-env", "GIVEN")
    with pytest.raises(CommandError, match="push = true"):
        command("demo", "file-a", "nobody")


TOML = """
[[vaults]]
name = "demo"
address = "https://bao:8200"
[vaults.observe]
method = "token"
secret = { env = "T" }
[[vaults.devices]]
name = "file-a"
nodes = [{ name = "bao-0"%s }]
"""


def configured(tmp_path: Path, rest: str) -> None:
    (tmp_path / "leasehold.toml").write_text(TOML % rest)
    configuration.apply(load(tmp_path / "leasehold.toml"))


def test_a_stream_that_is_pushed_no_more_loses_its_token(tmp_path: Path) -> None:
    configured(tmp_path, ", push = true")
    token, _ = command("demo", "file-a", "bao-0")
    configured(tmp_path, ", push = true")
    assert works(token)
    configured(tmp_path, ', path = "/var/log/audit.log"')
    configured(tmp_path, ", push = true")
    assert not works(token)
    token, _ = command("demo", "file-a", "bao-0")
    (tmp_path / "leasehold.toml").write_text("")
    configuration.apply(load(tmp_path / "leasehold.toml"))
    assert not works(token)
    assert Stream.objects.get().push_token_sha256 == ""


@pytest.mark.parametrize(
    "rest", [', push = true, path = "/var/log/audit.log"', '/x", push = true, path = "', ", push = 1"]
)
def test_a_stream_is_followed_or_pushed_and_its_names_fit_an_address(tmp_path: Path, rest: str) -> None:
    (tmp_path / "leasehold.toml").write_text((TOML % rest).replace('"bao-0"/x', '"bao-0/x'))
    with pytest.raises(ConfigurationError):
        load(tmp_path / "leasehold.toml")


@pytest.mark.parametrize(
    "wrong",
    [{"path": "/var/log/audit.log"}, {"push_token_sha256": "plain"}, {"pushed": False, "push_token_sha256": "a" * 64}],
)
def test_the_database_holds_what_a_pushed_stream_is(stream: Stream, wrong: dict[str, object]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Stream.objects.filter(pk=stream.pk).update(**wrong)


def test_a_device_whose_lines_are_pushed_is_one_that_the_vault_is_asked_about() -> None:
    pushed("file-a")
    # one node of it is followed, the other pushed
    factories.stream("file-b")
    pushed("file-b", "bao-1")
    factories.stream("from the command line", path="")
    Stream.objects.filter(pk=pushed("file-c").pk).update(retired=True)
    assert [device.name for device in users.followed(Device.objects.all())] == ["file-a", "file-b"]


def test_a_pushed_stream_without_a_token_is_a_finding(stream: Stream) -> None:
    with pytest.raises(SourceError, match=r"manage\.py push_token demo file-a bao-0"):
        readable(stream)


def test_a_pushed_stream_shows_whether_batches_come(stream: Stream, log_in: Callable[..., Client]) -> None:
    now = timezone.now()

    def status(at: datetime) -> tuple[str, str]:
        source = audit.queries.stream_statuses(now=at)[0].source
        return source.status, source.cause + source.fix

    assert status(now)[0] == "waiting"
    assert "push_token" in status(now)[1]
    push.take(stream, [body(requests(1))], now=now)
    assert status(now)[0] == "ok"
    later = now + timedelta(minutes=5)
    assert status(later)[0] == "stale"
    assert "shipper" in status(later)[1]
    assert "beat" not in status(later)[1]
    page = log_in("viewer").get("/sources").content.decode()
    assert "pushed" in page
