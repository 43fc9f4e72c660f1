"""Signed heads: whoever takes over the database, even as its owner, cannot rewrite a chain unnoticed."""

import contextlib
import io
import json
import logging
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from audit import blocks, doctor, documents, ed25519, heads
from audit.archive import Folder
from audit.follow import Chunk, Position
from audit.ingest import ingest
from audit.management.commands.ingest import stream_named
from audit.models import HeadsDocument, RawBlock, Signing, Stream
from audit.tasks import sign_heads as sign_heads_task
from leases.configuration import ConfigurationError, load
from leases.errors import SourceError
from leases.models import Policy
from tests import s3

ROOT = Path(__file__).resolve().parent.parent
# committed for real: another connection, the owner's, has to see and change it
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "owner"])

HOUR = timedelta(hours=1)
START = datetime(2026, 11, 20, 10, 0, 30, tzinfo=UTC)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A signing key as the command makes it."""
    return made_key(tmp_path / "heads_key")


def made_key(path: Path) -> Path:
    call_command("make_signing_key", str(path), stdout=io.StringIO(), stderr=io.StringIO())
    return path


def public(key: Path) -> str:
    return f"{key}.pub"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "worm"
    made.mkdir()
    return made


@pytest.fixture
def configured(key: Path, place: Path) -> Policy:
    return policy(heads_key={"file": str(key)}, heads_deliver_to=[str(place)])


def policy(**fields: Any) -> Policy:
    return Policy.objects.update_or_create(pk=1, defaults=fields)[0]


@pytest.fixture
def stream() -> Stream:
    return stream_named("v", "file/a", "node-0")


def take(stream: Stream, name: str) -> None:
    """One block with one line."""
    entry = {
        "time": "2026-11-20T10:00:00Z",
        "type": "request",
        "request": {"id": name, "path": "database/creds/orders", "remote_address": "10.0.0.66"},
    }
    line = json.dumps(entry).encode() + b"\n"
    offset = Stream.objects.get(pk=stream.pk).offset
    ingest(stream.pk, Chunk(line, offset, Position(offset=offset + len(line)), 0), expected=None, now=timezone.now())


def sign(hour: int) -> list[SourceError]:
    return heads.sign_heads(now=START + hour * HOUR)


@pytest.fixture
def signed(stream: Stream, configured: Policy) -> Stream:
    """Five blocks; after each of them the heads were signed, at 10:00 to 14:00."""
    for hour in range(5):
        take(stream, f"request-{hour}")
        assert sign(hour) == []
    return Stream.objects.select_related("device__vault").get(pk=stream.pk)


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def verify(*arguments: object) -> tuple[bool, Any]:
    """Whether the exit code was 0, and what was told."""
    output, code = io.StringIO(), None
    try:
        call_command("verify-chain", *map(str, arguments), "--json", stdout=output)
    except SystemExit as end:
        code = end.code
    assert code in {None, 1}
    return code is None, json.loads(output.getvalue())


def problems(*arguments: object) -> list[str]:
    ok, told = verify(*arguments)
    assert ok == (told["documents"]["ok"] and all(stream["ok"] for stream in told["streams"]))
    found: list[str] = told["documents"]["problems"]
    return found


def as_owner(statement: str, *values: str | int | bytes) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(statement, values)


def rewrite(stream: Stream, *, of: int) -> None:
    """As somebody with the owner's rights would: a line of block `of` is another one, and each hash from there on fits."""
    previous = RawBlock.objects.get(stream=stream, sequence=of).previous
    for block in RawBlock.objects.filter(stream=stream, sequence__gte=of).order_by("sequence"):
        lines = blocks.lines_of(block)
        assert lines is not None
        if block.sequence == of:
            lines = lines.replace(b"10.0.0.66", b"10.0.0.77")
            as_owner(
                "UPDATE audit_blocklines SET data = %s WHERE stream_id = %s AND sequence = %s",
                zstandard.ZstdCompressor().compress(lines),
                stream.pk,
                of,
            )
        lines_sha256 = documents.sha256(lines)
        digest = blocks.digest(
            previous=previous,
            stream=str(stream),
            sequence=block.sequence,
            offset_from=block.offset_from,
            offset_to=block.offset_to,
            lines=block.lines,
            salt_epoch=block.salt_epoch,
            lines_sha256=lines_sha256,
        )
        as_owner(
            "UPDATE audit_rawblock SET previous = %s, lines_sha256 = %s, sha256 = %s WHERE id = %s",
            previous,
            lines_sha256,
            digest,
            block.pk,
        )
        previous = digest
    as_owner("UPDATE audit_stream SET head = %s WHERE id = %s", previous, stream.pk)


# what somebody with the owner's rights does


def test_a_chain_as_it_was_signed_holds_and_its_signer_is_known(signed: Stream, place: Path, key: Path) -> None:
    ok, told = verify("--heads", place, "--public-key", public(key))
    assert ok
    assert told["documents"] | {"fingerprints": []} == {
        "documents": 5,
        "ok": True,
        "signer": "verified",
        "fingerprints": [],
        "first_at": "2026-11-20T10:00:30Z",
        "last_at": "2026-11-20T14:00:30Z",
        "problems": [],
    }
    (result,) = told["streams"]
    assert (result["ok"], result["signed_block"], result["signed_until"]) == (True, None, 5)
    (fingerprint,) = told["documents"]["fingerprints"]
    assert verify("--heads", place / "heads", "--fingerprint", fingerprint.upper())[0]


@pytest.mark.parametrize("of", [1, 3, 5])
def test_a_chain_that_was_rewritten_so_that_it_holds_in_itself_is_named(
    signed: Stream, place: Path, key: Path, of: int
) -> None:
    rewrite(signed, of=of)
    assert verify()[0], "the attack is not noticed by the chain alone"
    ok, told = verify("--heads", place, "--public-key", public(key))
    assert not ok
    assert told["documents"]["ok"]
    (result,) = told["streams"]
    assert (result["ok"], result["block"], result["signed_block"]) == (False, None, of)
    assert result["signed_what"] == f"is not the one that was signed at 2026-11-20T{9 + of}:00:30Z"
    output = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("verify-chain", heads=place, stdout=output)
    assert f"BROKEN  v/file/a/node-0: block {of} is not the one that was signed at" in output.getvalue()


def test_documents_signed_after_the_rewriting_do_not_cover_it_up(signed: Stream, place: Path, key: Path) -> None:
    rewrite(signed, of=2)
    take(signed, "later")
    assert sign(5) == []
    _, told = verify("--heads", place, "--public-key", public(key))
    assert told["documents"]["ok"]
    assert told["streams"][0]["signed_block"] == 2


def test_a_chain_that_was_cut_off_is_named(signed: Stream, place: Path, key: Path) -> None:
    as_owner("DELETE FROM audit_blocklines WHERE sequence > 3")
    as_owner("DELETE FROM audit_rawblock WHERE sequence > 3")
    as_owner("UPDATE audit_stream SET sequence = 3, head = (SELECT sha256 FROM audit_rawblock WHERE sequence = 3)")
    assert verify()[0], "the attack is not noticed by the chain alone"
    ok, told = verify("--heads", place, "--public-key", public(key))
    assert not ok
    assert told["streams"][0]["signed_block"] == 4
    assert told["streams"][0]["signed_what"] == "was signed at 2026-11-20T13:00:30Z and is gone"


def test_a_stream_that_was_signed_and_is_in_the_database_no_more_is_named(
    signed: Stream, place: Path, key: Path
) -> None:
    as_owner("UPDATE audit_stream SET node = 'another'")
    ok, told = verify("--heads", place, "--public-key", public(key))
    assert not ok
    assert (told["streams"][1]["stream"], told["streams"][1]["signed_block"]) == ("v/file/a/node-0", 1)
    assert "the stream is not in the database" in told["streams"][1]["signed_what"]


def test_what_the_database_remembers_of_documents_can_be_lost_and_altered_without_hiding_anything(
    signed: Stream, place: Path, key: Path
) -> None:
    as_owner("DELETE FROM audit_headsdocument")
    take(signed, "later")
    assert sign(6) == []
    assert "both number 1" in problems("--heads", place, "--public-key", public(key))[0]
    rewrite(signed, of=4)
    assert verify("--heads", place, "--public-key", public(key))[1]["streams"][0]["signed_block"] == 4


def test_a_document_that_was_altered_in_the_database_before_its_delivery_is_named(
    signed: Stream, place: Path, key: Path
) -> None:
    place.rename(place.with_name("away"))
    take(signed, "later")
    assert len(sign(5)) == 1
    place.with_name("away").rename(place)
    as_owner(
        "UPDATE audit_headsdocument SET document = replace(document, '\"lines\":6', '\"lines\":7') WHERE number = 6"
    )
    assert heads.deliver(Policy.current(), now=START + 6 * HOUR) == []
    found = problems("--heads", place, "--public-key", public(key))
    assert found == ["2026-11-20/150030Z-00000006.json was altered: its signature is wrong", *found[1:]]


# what somebody does to the documents


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_document_that_was_altered_is_named(signed: Stream, place: Path, key: Path) -> None:
    path = files(place)[2]
    for data, said in [
        (path.read_bytes().replace(b'"lines":3', b'"lines":2'), "its signature is wrong"),
        (path.read_bytes().replace(b'"number":3', b'"number": 3'), "is no signed document"),
        (path.read_bytes()[:-20], "is no signed document"),
        (b"", "is no signed document"),
    ]:
        overwrite(path, data)
        found = problems("--heads", place, "--public-key", public(key))
        assert len(found) == 2
        assert found[0].startswith("2026-11-20/120030Z-00000003.json")
        assert said in found[0]
        assert found[1] == ("2026-11-20/130030Z-00000004.json follows document 3, which is not here as it was signed")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "00000002.json follows document 1, which is not here"),
        (3, "00000004.json follows document 3, which is not here"),
        (5, "00000005.json was delivered and is not here"),
    ],
)
def test_a_document_that_was_removed_is_named(signed: Stream, place: Path, key: Path, number: int, said: str) -> None:
    files(place)[number - 1].unlink()
    (found,) = problems("--heads", place, "--public-key", public(key))
    assert said in found


def test_a_document_that_somebody_else_signed_is_named_and_believed_only_without_a_key(
    stream: Stream, place: Path, key: Path, tmp_path: Path
) -> None:
    other = made_key(tmp_path / "other")
    policy(heads_key={"file": str(other)}, heads_deliver_to=[str(place)])
    take(stream, "one")
    sign(0)
    # it says nothing, so that it is missing as well
    found, missing = problems("--heads", place, "--public-key", public(key))
    assert "is signed with another key" in found
    assert "was delivered and is not here" in missing
    ok, told = verify("--heads", place)
    assert (ok, told["documents"]["signer"]) == (True, "unverified")
    output = io.StringIO()
    call_command("verify-chain", heads=place, stdout=output)
    assert "intact, signer unverified" in output.getvalue()


def test_a_copied_document_says_nothing_new(signed: Stream, place: Path, key: Path) -> None:
    shutil.copy(files(place)[1], place / "heads" / "copy.json")
    assert problems("--heads", place, "--public-key", public(key)) == []


@given(at=st.integers(min_value=0, max_value=2000), to=st.integers(min_value=0, max_value=255))
def test_a_byte_that_is_another_one_is_always_noticed(at: int, to: int) -> None:
    signer = ed25519.signer(PAIR[0].decode())
    head = documents.Head(vault="v", device="d", node="ö", sequence=1, head="a" * 64, lines=1, blocks=1)
    _, data = documents.write(number=1, signed_at=START, previous="", streams=[head], signer=signer)
    at %= len(data)
    altered = data[:at] + bytes([to]) + data[at + 1 :]
    checked = documents.check([("a", altered)], fingerprints=frozenset([ed25519.fingerprint(signer.public)]))
    assert bool(checked.problems) == (altered != data)


PAIR = ed25519.new_pair()


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        (b'"sequence":1', b'"sequence":4294967296'),
        (b'"vault":"v"', b'"vault":"\\u0000"'),
        (b'"signed_at":"2026-11-20T10:00:30Z"', b'"signed_at":"2026-11-20T10:00:30"'),
        (b'"signature":"', b'"signature":" '),
        (b'"format":"leasehold heads 1"', b'"format":"leasehold heads 2"'),
        (b'"lines":1', b'"lines":1,"more":1'),
    ],
)
def test_what_no_database_can_be_asked_for_is_no_document(was: bytes, is_now: bytes) -> None:
    head = documents.Head(vault="v", device="d", node="n", sequence=1, head="a" * 64, lines=1, blocks=1)
    _, data = documents.write(
        number=1, signed_at=START, previous="", streams=[head], signer=ed25519.signer(PAIR[0].decode())
    )
    assert documents.read(data) is not None
    assert documents.read(data.replace(was, is_now)) is None
    signature = json.loads(data)["signature"].encode()
    assert documents.read(data.replace(signature, signature.upper())) is None


# keys


def test_a_new_key_signs_on_and_both_are_accepted(signed: Stream, place: Path, key: Path, tmp_path: Path) -> None:
    second = made_key(tmp_path / "second_key")
    policy(heads_key={"file": str(second)})
    take(signed, "later")
    assert sign(5) == []
    ok, told = verify("--heads", place, "--public-key", public(key), "--public-key", public(second))
    assert (ok, told["documents"]["documents"], len(told["documents"]["fingerprints"])) == (True, 6, 2)
    assert "is signed with another key" in problems("--heads", place, "--public-key", public(key))[0]


def test_a_key_is_written_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    output = io.StringIO()
    call_command("make_signing_key", str(tmp_path / "k"), stdout=output, stderr=io.StringIO())
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    raw = ed25519.public_key((tmp_path / "k.pub").read_bytes())
    assert output.getvalue().strip() == ed25519.fingerprint(raw)
    before = (tmp_path / "k").read_bytes(), (tmp_path / "k.pub").read_bytes()
    for missing in [tmp_path / "none", tmp_path / "k.pub"]:
        missing.unlink(missing_ok=True)
        with pytest.raises(CommandError, match="nothing is overwritten"):
            call_command("make_signing_key", str(tmp_path / "k"))
    assert (tmp_path / "k").read_bytes() == before[0]
    assert not (tmp_path / "k.pub").exists()
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("make_signing_key", str(tmp_path / "no" / "k"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_a_key_of_openssls_is_taken(stream: Stream, place: Path, tmp_path: Path) -> None:
    private, public_file = tmp_path / "o", tmp_path / "o.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public_file], check=True)
    policy(heads_key={"file": str(private)}, heads_deliver_to=[str(place)])
    assert sign(0) == []
    assert verify("--heads", place, "--public-key", public_file)[0]


RSA_HEADER = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LW1hdGVyaWFs\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("content", ["secret-material", RSA_HEADER, ""])
def test_a_key_that_is_none_is_told_without_what_was_read(
    stream: Stream, place: Path, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad").write_text(content)
    policy(heads_key={"file": str(tmp_path / "bad")}, heads_deliver_to=[str(place)])
    with caplog.at_level(logging.DEBUG):
        sign_heads_task()
    state = Signing.objects.get()
    assert state.cause
    assert state.fix
    assert files(place) == []
    for secret in ["secret-material", "c2VjcmV0LW1hdGVyaWFs"]:
        assert secret not in caplog.text + state.cause + state.fix
    assert state.cause in caplog.text


def test_no_secret_stands_in_documents_rows_or_logs(
    signed: Stream, place: Path, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        sign(5)
        shutil.rmtree(place)
        sign(6)
        with contextlib.suppress(CommandError):
            verify("--heads", place)
        place.mkdir()
        sign(7)
    rows = json.dumps([list(HeadsDocument.objects.values()), list(Policy.objects.values())], default=str)
    told = b"".join(path.read_bytes() for path in files(place)).decode() + caplog.text + rows
    told += repr(ed25519.signer(key.read_text())) + json.dumps(list(Signing.objects.values()), default=str)
    body = "".join(key.read_text().splitlines()[1:-1])
    for secret in [body, body[-44:], body[-20:]]:
        assert secret not in told
    assert ed25519.signer(key.read_text())._key.private_bytes_raw().hex() not in told


# the hour, and a delivery that fails


def test_an_hour_in_which_nothing_changed_is_signed_too_and_one_document_is_enough(
    stream: Stream, configured: Policy, place: Path
) -> None:
    take(stream, "one")
    assert heads.is_due(now=START)
    sign(0)
    assert not heads.is_due(now=START + timedelta(minutes=59))
    heads.sign_heads(now=START + timedelta(minutes=20))
    assert len(files(place)) == 1
    assert heads.is_due(now=START + HOUR)
    sign(1)
    first, second = (json.loads(path.read_bytes()) for path in files(place))
    assert first["streams"] == second["streams"]
    assert first["streams"] == [
        {
            "vault": "v",
            "device": "file/a",
            "node": "node-0",
            "sequence": 1,
            "head": RawBlock.objects.get().sha256,
            "lines": 1,
            "blocks": 1,
        }
    ]
    assert second["previous"] == documents.sha256(files(place)[0].read_bytes())


def test_nothing_is_signed_where_nothing_is_configured(stream: Stream, place: Path) -> None:
    policy(heads_key=None)
    assert not heads.is_due(now=START)
    assert sign(0) == []
    assert not HeadsDocument.objects.exists()


def test_a_folder_that_cannot_be_written_is_told_with_its_fix_and_tried_again(
    stream: Stream, configured: Policy, place: Path
) -> None:
    place.rmdir()
    (problem,) = sign(0)
    assert (problem.cause, problem.fix) == (
        f"The folder of signed heads {place} is not there",
        "Mount it into the workers of the queue `reports`, or correct `heads.deliver_to` in leasehold.toml.",
    )
    assert doctored() == (False, problem.cause, problem.fix)
    assert not heads.is_due(now=START + timedelta(minutes=4))
    assert heads.is_due(now=START + timedelta(minutes=5, seconds=1))
    place.write_text("a file, where a folder should be")
    assert len(sign(1)) == 1
    assert len(sign(2)) == 1
    assert heads.waiting().count() == 3
    place.unlink()
    place.mkdir()
    (place / "heads").write_text("in the way")
    (problem,) = sign(3)
    assert "cannot be" in problem.cause
    (place / "heads").unlink()
    assert sign(3) == []
    # each hour is there, as it was signed
    assert problems("--heads", place) == []
    assert [path.name[:4] for path in files(place)] == ["1000", "1100", "1200", "1300"]
    assert heads.waiting().count() == 0
    assert set(HeadsDocument.objects.values_list("document", flat=True)) == {""}


def test_one_place_that_fails_does_not_hold_the_others_back(
    stream: Stream, configured: Policy, place: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    policy(heads_deliver_to=[str(second), str(place)])
    take(stream, "one")
    assert len(sign(0)) == 1
    assert len(files(place)) == 1
    assert heads.delivered_until() is None
    second.mkdir()
    assert sign(1) == []
    assert [path.read_bytes() for path in files(second)] == [path.read_bytes() for path in files(place)]
    assert heads.delivered_until() == START + HOUR


def test_what_lies_there_is_never_overwritten(stream: Stream, configured: Policy, place: Path) -> None:
    there = place / "heads" / "2026-11-20" / "100030Z-00000001.json"
    there.parent.mkdir(parents=True)
    there.write_text("something else")
    (problem,) = sign(0)
    assert "has another heads/2026-11-20" in problem.cause
    assert there.read_text() == "something else"


def test_after_a_crash_before_the_delivery_the_very_same_document_is_delivered(
    stream: Stream, configured: Policy, place: Path, key: Path
) -> None:
    take(stream, "one")
    heads._sign(ed25519.signer(key.read_text()), now=START)
    take(stream, "two")
    assert sign(0) == []
    (path,) = files(place)
    assert documents.sha256(path.read_bytes()) == HeadsDocument.objects.get().sha256
    assert json.loads(path.read_bytes())["streams"][0]["sequence"] == 1


@pytest.fixture(scope="module")
def store(run_folder: Path) -> Iterator[s3.Store]:
    if not s3.ENDPOINT and s3.program() is None:
        pytest.skip("no S3 server here: neither rclone nor LEASEHOLD_TEST_S3_ENDPOINT")
    started = s3.start(run_folder / "heads-s3")
    yield started
    started.stop()


def test_documents_are_delivered_to_the_archives_bucket(
    signed: Stream, place: Path, store: s3.Store, key: Path
) -> None:
    prefix = secrets.token_hex(4)
    policy(archive=f"s3://{store.bucket}/{prefix}", heads_deliver_to=[str(place), "archive"], **store.policy)
    assert sign(5) == []
    archive = heads.place_of("archive", Policy.current())
    last = files(place)[-1]
    assert archive.read(str(last.relative_to(place))) == last.read_bytes()
    if store.folder:
        assert [path.name for path in files(store.folder / prefix)] == [last.name]


# configuration, task, doctor, metrics


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[heads]\nkey = { file = "/k" }', "deliver_to"),
        ('[heads]\ndeliver_to = ["/a"]', "key"),
        ('[heads]\nkey = "PEM"\ndeliver_to = ["/a"]', "Expected `object"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = []', "names no place"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["a"]', "whole path of a folder"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["/a/../b"]', "whole path of a folder"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["s3://b"]', "whole path of a folder"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["archive"]', "policies.archive is empty"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["/a", "/a/"]', "twice"),
        ('[heads]\nkey = { file = "/k" }\ndeliver_to = ["/a"]\nevery = 1', "unknown field"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "leasehold.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path / "leasehold.toml")


def test_configure_sets_signing_up_and_takes_it_back(tmp_path: Path, settings: Any) -> None:
    settings.CONFIG_FILE = tmp_path / "leasehold.toml"
    settings.CONFIG_FILE.write_text('[heads]\nkey = { file = "/k" }\ndeliver_to = ["/a/"]\n')
    call_command("configure", stdout=io.StringIO())
    current = Policy.current()
    assert (current.heads_key, current.heads_deliver_to) == ({"file": "/k"}, ["/a"])
    assert doctored() == (True, "", "")
    assert heads.is_due(now=timezone.now())
    settings.CONFIG_FILE.write_text("")
    call_command("configure", stdout=io.StringIO())
    assert Policy.current().heads_key is None
    assert not Signing.objects.exists()


def doctored() -> tuple[bool, str, str]:
    found = next(finding for finding in doctor.examine() if finding.what == "signed heads")
    return found.ok, found.cause, found.fix


@pytest.mark.filterwarnings("ignore:No directory at")
def test_doctor_and_metrics_tell_when_no_heads_were_signed_for_two_hours(
    stream: Stream, configured: Policy, client: Any
) -> None:
    assert "so far" in doctored()[1]
    sign_heads_task()
    assert doctored() == (True, "", "")
    text = client.get("/metrics").content.decode()
    told = re.search(r"^leasehold_heads_signed_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert told is not None
    assert float(told[1]) == HeadsDocument.objects.get().at.timestamp()
    assert "leasehold_heads_ok 1.0" in text
    assert "leasehold_heads_waiting 0.0" in text
    past = timezone.now() - timedelta(hours=2, minutes=1)
    HeadsDocument.objects.update(at=past)
    Signing.objects.update(since=past)
    assert "No signed heads were delivered since" in doctored()[1]


@pytest.mark.filterwarnings("ignore:No directory at")
def test_without_a_key_doctor_gives_a_hint_and_metrics_say_nothing(client: Any) -> None:
    policy(heads_key=None)
    found = next(finding for finding in doctor.examine() if finding.what == "signed heads")
    assert (found.ok, "[heads]" in found.hint) == (True, True)
    assert "leasehold_heads_ok 1" not in client.get("/metrics").content.decode()


def test_the_task_signs_once_an_hour(stream: Stream, configured: Policy, place: Path) -> None:
    before = timezone.now().hour
    sign_heads_task()
    sign_heads_task()
    assert len(files(place)) == 1 or timezone.now().hour != before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--heads", "{place}"],
        ["--heads", "{place}/none"],
        ["--heads", "{place}", "--public-key", "{place}"],
        ["--heads", "{place}", "--fingerprint", "abc"],
        ["--fingerprint", "a" * 64],
    ],
)
def test_what_cannot_be_checked_is_an_error(place: Path, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("verify-chain", *(argument.format(place=place) for argument in arguments))


def test_a_document_is_readable_only_and_a_reader_finds_no_half_file(signed: Stream, place: Path) -> None:
    for path in files(place):
        assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert [path for path in files(place) if path.suffix != ".json"] == []
    assert isinstance(heads.place_of(str(place), Policy.current()), Folder)


def test_anybody_can_check_the_documents_with_the_script_of_the_documentation(
    signed: Stream, place: Path, key: Path, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "integrity.md").read_text()
    script = tmp_path / "check.py"
    script.write_text(text.partition("```python\n")[2].partition("```")[0])

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(place), public(key)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"v/file/a/node-0: block 5 is {signed.head}"
    path = files(place)[1]
    was = path.read_bytes()
    overwrite(path, was.replace(b'"lines":2', b'"lines":3'))
    assert run().returncode != 0
    path.unlink()
    assert run().returncode != 0
