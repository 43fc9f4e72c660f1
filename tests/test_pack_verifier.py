"""The verifier that stands alone: whatever is done to a pack is named, and a hostile pack can do nothing to who checks it."""

import csv
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django import DjangoDbBlocker

from audit import ed25519, exports
from audit.pack import verifier
from tests import packs
from tests.packs import Files, changed, files_of, run_verifier, without, written


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> tuple[Path, str]:
    """A signed pack, and its key's fingerprint. All tests here look at copies of it; none needs the database."""
    folder = tmp_path_factory.mktemp("pack")
    with django_db_blocker.unblock():
        try:
            packs.watched()
            fingerprint = packs.signing_key(folder)
            pack = packs.report(folder / "out").path
        finally:
            call_command("flush", database="owner", interactive=False, verbosity=0)
    return pack, fingerprint


@pytest.fixture(scope="module")
def files(made: tuple[Path, str]) -> Files:
    return files_of(made[0])


@pytest.fixture
def verify(made: tuple[Path, str], tmp_path: Path) -> Callable[[Files], list[str]]:
    """verify(files): the problems that the verifier names, by itself, of these files packed anew."""

    def verified(altered: Files) -> list[str]:
        code, said = run_verifier(
            tmp_path, "--fingerprint", made[1], "--json", written(tmp_path / "altered.zip", altered)
        )
        told = json.loads(said)
        assert code == (1 if told["problems"] else 0)
        problems: list[str] = told["problems"]
        return problems

    return verified


Verify = Callable[[Files], list[str]]

NAMES = [
    "README.txt",
    "VERIFY.txt",
    "accesses.csv",
    "actions.csv",
    "coverage.csv",
    "events.csv",
    "findings.csv",
    "gaps.csv",
    "leases.csv",
    "sample.csv",
    "verify.py",
]


def another_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


# what somebody does to a pack


def test_a_pack_that_was_unpacked_and_packed_again_is_as_good_as_before(files: Files, verify: Verify) -> None:
    assert {name for name, _ in files} >= {*NAMES, "manifest.json", "manifest.sig"}
    assert verify(files) == []
    assert verify(files[::-1]) == []


@pytest.mark.parametrize("name", NAMES)
def test_one_byte_of_a_file_that_is_another_one_is_named(files: Files, verify: Verify, name: str) -> None:
    (problem,) = verify(changed(files, name, another_byte))
    assert problem.startswith(f"{name} was altered: ")


def test_a_row_that_was_removed_is_named_by_its_table(files: Files, verify: Verify) -> None:
    def one_less(data: bytes) -> bytes:
        rows = data.splitlines(keepends=True)
        return b"".join(rows[:5] + rows[6:])

    (problem,) = verify(changed(files, "accesses.csv", one_less))
    size = len(dict(files)["accesses.csv"])
    assert problem.startswith("accesses.csv was altered: it has ")
    assert f" bytes instead of {size}, 11 rows instead of 12, its SHA-256 is " in problem


def test_a_file_that_was_removed_added_or_renamed_is_named(files: Files, verify: Verify) -> None:
    assert verify(without(files, "leases.csv")) == ["leases.csv was removed"]
    assert verify([*files, ("notes.txt", b"x")]) == ["notes.txt was added: it is no file of this pack"]
    renamed = [("lease.csv" if name == "leases.csv" else name, data) for name, data in files]
    assert verify(renamed) == ["leases.csv was renamed to lease.csv"]
    assert verify(without(renamed, "gaps.csv")) == ["leases.csv was renamed to lease.csv", "gaps.csv was removed"]
    swapped = [({"gaps.csv": "leases.csv", "leases.csv": "gaps.csv"}.get(name, name), data) for name, data in files]
    assert [problem.split(":")[0] for problem in verify(swapped)] == ["leases.csv was altered", "gaps.csv was altered"]


def test_a_file_that_stands_twice_is_named_whichever_of_them_is_the_right_one(files: Files, verify: Verify) -> None:
    right = ("gaps.csv", dict(files)["gaps.csv"])
    assert verify([*files, right]) == ["gaps.csv stands twice in it"]
    assert verify([("gaps.csv", b"other"), *files]) == ["gaps.csv stands twice in it"]
    problems = verify([*files, ("gaps.csv", b"other")])
    assert [problem.split(":")[0] for problem in problems] == ["gaps.csv stands twice in it", "gaps.csv was altered"]
    assert "manifest.json stands twice in it" in verify([("manifest.json", b"{}"), *files])


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "a/b.csv", "C:\\x", ".hidden", "a\x1b[2J", "x\u202ecsv", "..", "a\nb"]
)
def test_a_name_that_leads_elsewhere_or_deceives_is_named_so_that_it_can_do_nothing(
    files: Files, verify: Verify, name: str
) -> None:
    problems = verify([*files, (name, b"x")])
    assert len(problems) == 2
    assert "do not unpack it" in problems[0]
    assert all(problem.isprintable() for problem in problems)


def test_two_names_that_are_one_on_some_machines_are_named(files: Files, verify: Verify) -> None:
    assert "Gaps.csv and gaps.csv are one and the same file on some machines" in verify([*files, ("Gaps.csv", b"x")])


def test_a_manifest_that_was_edited_is_named_whatever_was_made_to_fit(files: Files, verify: Verify) -> None:
    manifest = json.loads(dict(files)["manifest.json"])
    manifest["completeness"]["complete"] = False
    assert verify(with_manifest(files, manifest)) == [FORGED]
    # every checksum fits, only the signature cannot
    forged = changed(files, "accesses.csv", another_byte)
    (entry,) = [file for file in manifest["files"] if file["name"] == "accesses.csv"]
    entry["sha256"] = hashlib.sha256(dict(forged)["accesses.csv"]).hexdigest()
    assert verify(with_manifest(forged, manifest)) == [FORGED]
    assert verify(
        changed(files, "manifest.json", lambda data: data.replace(b'"made_by":"ann"', b'"made_by":"bob"'))
    ) == [FORGED]
    assert verify(changed(files, "manifest.json", lambda data: data + b"\n")) == [FORGED]


FORGED = "manifest.json or manifest.sig was altered: the signature does not fit"


def with_manifest(files: Files, manifest: dict[str, Any], *, signer: ed25519.Signer | None = None) -> Files:
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    found = changed(files, "manifest.json", lambda _: data)
    return changed(found, "manifest.sig", lambda _: signer.sign(data).hex().encode() + b"\n") if signer else found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_byte, "manifest.sig was altered|the signature does not fit"),
        (lambda _: b"", "manifest.sig was altered: it is no signature"),
        (lambda _: b"x" * 1000, "manifest.sig was altered: it is no signature"),
        (lambda _: b"0" * 128, "the signature does not fit"),
    ],
)
def test_a_signature_that_was_altered_is_named(
    files: Files, verify: Verify, change: Callable[[bytes], bytes], said: str
) -> None:
    (problem,) = verify(changed(files, "manifest.sig", change))
    assert any(part in problem for part in said.split("|"))


def test_a_signature_that_was_taken_away_does_not_make_a_pack_that_was_never_signed(
    files: Files, verify: Verify, tmp_path: Path
) -> None:
    assert verify(without(files, "manifest.sig")) == ["manifest.sig is missing: manifest.json says that it was signed"]
    manifest = json.loads(dict(files)["manifest.json"]) | {"public_key": "", "fingerprint": ""}
    assert verify(with_manifest([*without(files, "manifest.sig"), ("manifest.sig", b"")], manifest)) != []
    unsigned = without(with_manifest(files, manifest), "manifest.sig")
    assert verify(unsigned) == ["it is not signed, though it should be by one of the keys that were given"]
    code, said = run_verifier(tmp_path, written(tmp_path / "unsigned.zip", unsigned))
    assert (code, said.splitlines()[0]) == (2, "intact, not signed: anybody can have made it")


def test_a_pack_that_somebody_else_has_signed_is_intact_only_for_who_pins_no_key(
    files: Files, verify: Verify, tmp_path: Path
) -> None:
    signer = ed25519.signer(ed25519.new_pair()[0].decode())
    other = ed25519.fingerprint(signer.public)
    manifest = json.loads(dict(files)["manifest.json"]) | {"public_key": signer.public.hex(), "fingerprint": other}
    forged = with_manifest(files, manifest, signer=signer)
    assert verify(forged) == [f"it is signed with another key than those that were given: {other}"]
    code, said = run_verifier(tmp_path, written(tmp_path / "forged.zip", forged))
    assert (code, said.splitlines()[:2]) == (0, ["intact, signer unverified", f"  The key that signed it is {other}."])
    # a fingerprint that is claimed only is none
    claimed = manifest | {"fingerprint": json.loads(dict(files)["manifest.json"])["fingerprint"]}
    assert "does not have the fingerprint that it names" in verify(with_manifest(files, claimed, signer=signer))[0]


def test_old_packs_verify_after_a_change_of_keys_with_a_file_of_both_fingerprints(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    later = "0123456789abcdef" * 4
    keys.write_text(f"# keys of Leasehold\n{later}  since 2027\n\n{made[1].upper()}  # until 2027\n")
    assert run_verifier(tmp_path, "--keys", keys, made[0])[0] == 0
    pairs = ":".join(made[1][at : at + 2] for at in range(0, 64, 2))
    assert run_verifier(tmp_path, "--fingerprint", later, "--fingerprint", pairs, made[0])[0] == 0
    keys.write_text(later)
    assert run_verifier(tmp_path, "--keys", keys, made[0])[0] == 1


def test_a_sample_that_was_chosen_is_named_though_its_maker_signed_it(
    files: Files, verify: Verify, tmp_path: Path
) -> None:
    signer = ed25519.signer(ed25519.new_pair()[0].decode())
    fingerprint = ed25519.fingerprint(signer.public)
    manifest = json.loads(dict(files)["manifest.json"]) | {
        "public_key": signer.public.hex(),
        "fingerprint": fingerprint,
    }

    def problems(altered: Files) -> list[str]:
        code, said = run_verifier(
            tmp_path, "--fingerprint", fingerprint, "--json", written(tmp_path / "chosen.zip", altered)
        )
        found: list[str] = json.loads(said)["problems"]
        assert code == bool(found)
        return found

    assert problems(with_manifest(files, manifest, signer=signer)) == []
    sample = manifest["sample"]
    for chosen in ({"rows": sample["rows"][:-1]}, {"seed": "0" * 64}, {"size": 3}):
        altered = manifest | {"sample": sample | chosen}
        assert problems(with_manifest(files, altered, signer=signer)) == [
            "the sample was not drawn with the seed that its period and its accesses give"
        ]
    rows = dict(files)["sample.csv"].splitlines(keepends=True)
    other = b"".join([*rows[:-1], rows[-2]])
    (entry,) = [file for file in manifest["files"] if file["name"] == "sample.csv"]
    entry |= {"sha256": hashlib.sha256(other).hexdigest(), "bytes": len(other)}
    altered_files = with_manifest(changed(files, "sample.csv", lambda _: other), manifest, signer=signer)
    assert problems(altered_files) == ["sample.csv does not hold the rows of accesses.csv that were drawn"]


# hostile packs


def test_what_hides_between_the_files_of_a_zip_is_named(made: tuple[Path, str], tmp_path: Path) -> None:
    data = made[0].read_bytes()
    with zipfile.ZipFile(made[0]) as pack:
        start = pack.start_dir
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as other:
        other.writestr("accesses.csv", "forged")
    for altered, said in [
        (hidden.getvalue() + data, "there are bytes before accesses.csv"),
        (b"#!/bin/sh\n" + data, "there are bytes before accesses.csv"),
        (moved(data, start, b"x" * 50), "there are bytes after the last file"),
        (data[:-2] + struct.pack("<H", 5) + b"hello", "the zip has a comment"),
    ]:
        path = tmp_path / "hidden.zip"
        path.write_bytes(altered)
        result = verifier.check(path, frozenset([made[1]]))
        assert result.code == 1
        assert said in result.problems[0]


def moved(data: bytes, start: int, between: bytes) -> bytes:
    """Bytes put before the zip's list of its files, which is told where it lies now."""
    end = data.rindex(b"PK\x05\x06")
    return (
        data[:start]
        + between
        + data[start:end]
        + data[end : end + 16]
        + struct.pack("<L", start + len(between))
        + data[end + 20 :]
    )


def test_a_bomb_is_not_unpacked_beyond_what_the_manifest_says(
    files: Files, made: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in files:
            if name == "gaps.csv":
                with pack.open(name, "w", force_zip64=True) as member:
                    for _ in range(50):
                        member.write(bytes(1024 * 1024))
            else:
                pack.writestr(name, data)
    result = verifier.check(path, frozenset([made[1]]))
    size = len(dict(files)["gaps.csv"])
    assert result.problems == [f"gaps.csv was altered: it is longer than the {size} bytes that it may have"]
    with zipfile.ZipFile(path) as pack:
        assert verifier.read_through(pack, pack.getinfo("gaps.csv"), most=size).bytes <= verifier.CHUNK


def test_a_manifest_without_end_is_not_read(files: Files, made: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack,
        pack.open("manifest.json", "w", force_zip64=True) as member,
    ):
        for _ in range(100):
            member.write(b" " * 1024 * 1024)
    with pytest.raises(verifier.CannotCheck, match="is longer than the"):
        verifier.check(path)


HOSTILE_JSON = [
    b"",
    b"not json",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"format":"leasehold evidence 1","files":' + b"[" * 100_000,
    b'{"format":"leasehold evidence 1","format":"leasehold evidence 1","files":[]}',
    b'{"format":"leasehold evidence 1","files":[],"x":NaN}',
    b'{"format":"leasehold evidence 1","files":[],"x":' + b"9" * 10_000 + b"}",
    b'{"format":"leasehold evidence 2","files":[]}',
    b'{"format":"leasehold evidence 1"}',
    b'{"format":"leasehold evidence 1","files":[{}]}',
    b'{"format":"leasehold evidence 1","files":[{"name":"../x","sha256":"' + b"0" * 64 + b'","bytes":1}]}',
    b'{"format":"leasehold evidence 1","files":[{"name":"x","sha256":"' + b"0" * 64 + b'","bytes":-1}]}',
    b'{"format":"leasehold evidence 1","files":[{"name":"x","sha256":"' + b"0" * 64 + b'","bytes":true}]}',
    b'{"format":"leasehold evidence 1","files":[{"name":"x","sha256":"' + b"0" * 64 + b'","bytes":99999999999999}]}',
    b'\xff\xfe{"format"',
]


@pytest.mark.parametrize("data", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_json_that_is_none_or_hostile_is_told_without_a_crash(data: bytes, tmp_path: Path) -> None:
    code, said = run_verifier(tmp_path, written(tmp_path / "x.zip", [("manifest.json", data)]))
    assert (code, said.splitlines()[0].endswith("Nothing was proven.")) == (2, True)
    assert said.strip().isprintable()


def test_what_is_no_pack_is_told_with_its_cause(tmp_path: Path, made: tuple[Path, str]) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_bytes(made[0].read_bytes()[:-100])
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "none"], "cannot be read (No such file or directory)"),
        ([tmp_path], "cannot be read (Is a directory)"),
        ([tmp_path / "text"], "is no zip file"),
        ([tmp_path / "cut"], "is no zip file"),
        ([written(tmp_path / "empty.zip", [])], "There is no manifest.json in it"),
        (["--fingerprint", "abc", made[0]], "64 hexadecimal digits"),
        (["--keys", tmp_path / "none", made[0]], "cannot be read"),
    ]
    for arguments, cause in cases:
        code, said = run_verifier(tmp_path, *arguments)
        assert code == 2
        assert cause in said
    assert json.loads(run_verifier(tmp_path, "--json", tmp_path / "none")[1])["intact"] is None


def test_a_zip_with_a_list_of_files_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as pack:
        for number in range(30_000):
            pack.writestr(f"{number}.csv", b"")
    (tmp_path / "many.zip").write_bytes(many.getvalue())
    with pytest.raises(verifier.CannotCheck, match="lists more files than any pack has"):
        verifier.check(tmp_path / "many.zip")
    few = [(f"{number}.csv", b"") for number in range(1001)]
    with pytest.raises(verifier.CannotCheck, match="more than in any pack"):
        verifier.check(written(tmp_path / "few.zip", few))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_byte_of_the_zip_that_is_another_one_never_changes_what_an_intact_pack_holds(
    made: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A zip's own dates and versions say nothing; everything else is noticed, and nothing makes the verifier fall over."""
    original = made[0].read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    to = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.zip"
    path.write_bytes(original[:at] + bytes([to]) + original[at + 1 :])
    try:
        result = verifier.check(path, frozenset([made[1]]))
    except verifier.CannotCheck:
        return
    if result.code == 0:
        assert files_of(path) == files_of(made[0])


@given(st.lists(st.text(alphabet='a,"\n\r;é', max_size=6), min_size=1, max_size=30), st.integers(1, 7))
def test_rows_are_counted_and_cut_as_the_csv_writer_wrote_them(cells: list[str], size: int) -> None:
    text = io.StringIO(newline="")
    exports.write_csv(["x", "y"], ({"x": "x", "y": cell} for cell in cells), text)
    read = list(csv.reader(io.StringIO(text.getvalue(), newline="")))
    assert [row[1].removeprefix("'") for row in read] == ["y", *cells]
    data = text.getvalue().encode()
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    found = list(verifier.rows_of(iter(chunks)))
    assert b"".join(found) == data
    assert len(found) == len(cells) + 1
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as pack:
        pack.writestr("x.csv", data)
    with zipfile.ZipFile(packed) as pack:
        contents = verifier.read_through(pack, pack.getinfo("x.csv"), most=len(data))
    assert (contents.rows, contents.bytes) == (len(cells), len(data))


def test_the_verifier_needs_nothing_but_cryptography_and_says_so_where_that_is_missing(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    assert run_verifier(tmp_path, made[0])[0] == 0
    for package in (tmp_path / "alone" / "packages").iterdir():
        package.unlink()
    code, said = run_verifier(tmp_path, made[0])
    assert code == 2
    assert "`cryptography` is missing: python3 -m pip install cryptography" in said
