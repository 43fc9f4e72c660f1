#!/usr/bin/env python3
"""Is an evidence pack of Leasehold as it was made, and who signed it? Stands alone: Python 3.9 and its package `cryptography`.

    python3 -I verify.py [--fingerprint HEX]... [--keys FILE] [--json] PACK.zip

Exit code 0: intact. 1: altered, or not signed by one of the keys that were given. 2: nothing is known to be wrong, and nothing
is proven either: it is not signed, or it could not be checked.

A verifier that comes in a pack says what the maker of the pack wants. Take this file from elsewhere: `audit/pack/verifier.py` of
Leasehold's source; or run `manage.py verify`. Nothing of a pack is executed, unpacked to the disk, or held in memory as a whole.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = "leasehold evidence 1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
ACCESSES, SAMPLE = "accesses.csv", "sample.csv"
# what no pack comes near
MOST_FILES = 1000
MOST_DIRECTORY = 1024 * 1024
MOST_MANIFEST = 64 * 1024 * 1024
MOST_BYTES = 1024**4
LONGEST_ROW = 16 * 1024 * 1024
CHUNK = 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
HEX64 = re.compile(r"[0-9a-f]{64}")


class CannotCheck(Exception):
    """It is no pack, or cannot be read: nothing can be said of what is in it."""


@dataclass
class Result:
    """`problems`: sentences about what is not as it was made. `signer`: pinned, unverified, or none."""

    problems: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    signer: str = "none"
    fingerprint: str = ""
    files: int = 0

    @property
    def code(self) -> int:
        if self.problems:
            return 1
        return 2 if self.signer == "none" else 0

    @property
    def verdict(self) -> str:
        if self.problems:
            return "NOT INTACT"
        if self.signer == "pinned":
            return f"intact, signed by {self.fingerprint} (pinned)"
        if self.signer == "unverified":
            return "intact, signer unverified"
        return "intact, not signed: anybody can have made it"


def check(path: str | Path, fingerprints: frozenset[str] = frozenset()) -> Result:
    """`fingerprints`: of the keys that may have signed. Raises CannotCheck."""
    result = Result()
    try:
        with open(path, "rb") as file:
            if length_of_directory(file) > MOST_DIRECTORY:
                raise CannotCheck(f"{path} lists more files than any pack has")
            with zipfile.ZipFile(file) as pack:
                check_pack(pack, file, fingerprints, result)
    except OSError as error:
        raise CannotCheck(f"{path} cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as error:
        raise CannotCheck(f"{path} is no zip file, or is damaged as a whole ({error})") from error
    return result


def check_pack(pack: zipfile.ZipFile, file: BinaryIO, fingerprints: frozenset[str], result: Result) -> None:
    members = members_of(pack, result)
    result.problems += structure(pack, file)
    if MANIFEST not in members:
        raise CannotCheck(f"There is no {MANIFEST} in it: it is no evidence pack, or that file was removed or renamed")
    written = Contents(pack, members[MANIFEST], most=MOST_MANIFEST)
    data = b"".join(written)
    if written.problem:
        raise CannotCheck(f"{MANIFEST} {written.problem}")
    manifest = result.manifest = read_manifest(data)
    check_signature(pack, members, data, fingerprints, result)
    files = {entry["name"]: entry for entry in manifest["files"]}
    check_files(pack, members, files, result)
    if not result.problems and ACCESSES in files and SAMPLE in files:
        result.problems += check_sample(pack, members, manifest, files)


# --- the zip -----------------------------------------------------------------------------------------------------


def length_of_directory(file: BinaryIO) -> int:
    """How long the zip's own list of its files claims to be. Asked before it is read: that takes memory for each of them."""
    file.seek(0, 2)
    file.seek(max(0, file.tell() - 65536 - 22 - 20 - 56))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        return 0  # no zip, as zipfile will say
    length: int = struct.unpack("<L", tail[at + 12 : at + 16])[0]
    if tail[at - 20 : at - 16] == b"PK\x06\x07" and at >= 76:
        length = max(length if length != 0xFFFFFFFF else 0, struct.unpack("<Q", tail[at - 36 : at - 28])[0])
    return length


def members_of(pack: zipfile.ZipFile, result: Result) -> dict[str, zipfile.ZipInfo]:
    """Each file of the zip by its name; of one that stands twice the last, which is the one that most programs unpack."""
    infos = pack.infolist()
    if len(infos) > MOST_FILES:
        raise CannotCheck(f"There are {len(infos)} files in it, more than in any pack")
    found: dict[str, zipfile.ZipInfo] = {}
    folded: dict[str, str] = {}
    for info in infos:
        name = info.orig_filename
        if name in found:
            result.problems.append(f"{shown(name)} stands twice in it")
        elif not NAME.fullmatch(name):
            result.problems.append(f"{shown(name)} is no name that a file of a pack has: do not unpack it")
        elif (other := folded.setdefault(name.lower(), name)) != name:
            result.problems.append(f"{shown(name)} and {shown(other)} are one and the same file on some machines")
        found[name] = info
    return found


def structure(pack: zipfile.ZipFile, file: BinaryIO) -> Iterator[str]:
    """Does anything hide before, between or after the files? Some programs read a zip from its beginning, others from its end."""
    end = 0
    for info in sorted(pack.infolist(), key=lambda info: info.header_offset):
        name = shown(info.orig_filename)
        if info.header_offset != end:
            yield f"there are bytes before {name} that belong to no file, or it shares its own with another"
            return
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            yield f"{name} does not begin where it should"
            return
        flags, method = struct.unpack("<HH", header[6:10])
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        if file.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace") != info.orig_filename:
            yield f"{name} has another name at the place where it lies"
        if flags & 1 or method != info.compress_type or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{name} is packed in a way that no pack is"
        end += 30 + name_length + extra_length + info.compress_size
        if flags & 8:
            end += length_of_descriptor(file, end, info)
    if end != pack.start_dir:
        yield "there are bytes after the last file that belong to none"
    if pack.comment:
        yield "the zip has a comment, which no pack has"


def length_of_descriptor(file: BinaryIO, at: int, info: zipfile.ZipInfo) -> int:
    """What follows a file that another program has packed as a stream: its checksum and its sizes once more."""
    file.seek(at)
    data, crc = file.read(24), struct.pack("<L", info.CRC)
    mark = 4 if data[:4] == b"PK\x07\x08" and data[4:8] == crc else 0
    if data[mark : mark + 4] != crc:
        return 0
    long = struct.pack("<QQ", info.compress_size, info.file_size)
    return mark + 4 + (16 if data[mark + 4 : mark + 20] == long else 8)


class Contents:
    """A file of the zip, chunk by chunk, never more than `most` bytes of it, whatever size it claims to have.

    After the last chunk: how many bytes there were, their SHA-256, how many rows of a CSV, and what is wrong.
    """

    def __init__(self, pack: zipfile.ZipFile, info: zipfile.ZipInfo, *, most: int) -> None:
        self.pack, self.info, self.most = pack, info, most
        self.bytes, self.ends, self.quotes, self.problem = 0, 0, 0, ""
        self.hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        try:
            with self.pack.open(self.info) as file:
                while chunk := file.read(CHUNK):
                    self.bytes += len(chunk)
                    if self.bytes > self.most:
                        self.problem = f"is longer than the {self.most} bytes that it may have"
                        return
                    self.hash.update(chunk)
                    self.count(chunk)
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            self.problem = f"is damaged ({error})"

    def count(self, chunk: bytes) -> None:
        """Line feeds that end a row: those that are in no quoted cell."""
        for part in chunk.split(b'"'):
            if self.quotes % 2 == 0:
                self.ends += part.count(b"\n")
            self.quotes += 1
        # there is one quote less than there are parts
        self.quotes -= 1

    @property
    def rows(self) -> int:
        """Of a CSV, without its header."""
        return max(0, self.ends - 1)

    @property
    def sha256(self) -> str:
        return self.hash.hexdigest()


def read_through(pack: zipfile.ZipFile, info: zipfile.ZipInfo, *, most: int) -> Contents:
    contents = Contents(pack, info, most=most)
    for _ in contents:
        pass
    return contents


def shown(name: str) -> str:
    """A name as it can be printed: it may hold anything."""
    text = name if len(name) <= 100 else name[:100] + "…"
    return text if NAME.fullmatch(text) else ascii(text)


# --- the manifest and its signature --------------------------------------------------------------------------------


def read_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise CannotCheck(f"{MANIFEST} is not the JSON that Leasehold writes ({str(error)[:100]})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CannotCheck(
            f"{MANIFEST} is not of the format '{FORMAT}': take the verifier of the version that made the pack"
        )
    files = manifest.get("files")
    if not isinstance(files, list) or not all(is_file(entry) for entry in files):
        raise CannotCheck(f"{MANIFEST} lists its files in another way than Leasehold does")
    if len({entry["name"] for entry in files}) != len(files):
        raise CannotCheck(f"{MANIFEST} lists a file twice")
    if sum(entry["bytes"] for entry in files) > MOST_BYTES:
        raise CannotCheck(f"{MANIFEST} lists more bytes than this verifier would ever read")
    return manifest


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in it")
    return found


def no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def is_file(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    name, sha256, size, rows = (entry.get(key) for key in ("name", "sha256", "bytes", "rows"))
    return (
        isinstance(name, str)
        and bool(NAME.fullmatch(name))
        and name not in (MANIFEST, SIGNATURE)
        and isinstance(sha256, str)
        and bool(HEX64.fullmatch(sha256))
        and is_count(size)
        and (rows is None or is_count(rows))
    )


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_BYTES


def check_signature(
    pack: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], data: bytes, pinned: frozenset[str], result: Result
) -> None:
    """Sets `signer` where the signature is right, whoever's it is; else, and where it is none of the pinned ones, a problem."""
    public, fingerprint = (result.manifest.get(key) for key in ("public_key", "fingerprint"))
    if not public and not fingerprint and SIGNATURE not in members:
        if pinned:
            result.problems.append("it is not signed, though it should be by one of the keys that were given")
        return
    if not isinstance(public, str) or not HEX64.fullmatch(public):
        result.problems.append(f"{MANIFEST} was altered: it names no public key, but there is a {SIGNATURE}")
        return
    if hashlib.sha256(bytes.fromhex(public)).hexdigest() != fingerprint:
        result.problems.append(f"{MANIFEST} was altered: its public key does not have the fingerprint that it names")
        return
    result.fingerprint = fingerprint
    if SIGNATURE not in members:
        result.problems.append(f"{SIGNATURE} is missing: {MANIFEST} says that it was signed")
        return
    contents = Contents(pack, members[SIGNATURE], most=200)
    text = b"".join(contents).decode("ascii", "replace").strip("\n")
    if contents.problem or not re.fullmatch(r"[0-9a-f]{128}", text):
        result.problems.append(f"{SIGNATURE} was altered: it is no signature")
    elif not holds(bytes.fromhex(public), bytes.fromhex(text), data):
        result.problems.append(f"{MANIFEST} or {SIGNATURE} was altered: the signature does not fit")
    elif pinned and fingerprint not in pinned:
        result.problems.append(f"it is signed with another key than those that were given: {fingerprint}")
    else:
        result.signer = "pinned" if pinned else "unverified"


def holds(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise CannotCheck("Python's package `cryptography` is missing: python3 -m pip install cryptography") from error
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- the files -----------------------------------------------------------------------------------------------------


def check_files(
    pack: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], files: dict[str, dict[str, Any]], result: Result
) -> None:
    missing = [name for name in files if name not in members]
    longest = max((files[name]["bytes"] for name in missing), default=0)
    for name, info in members.items():
        if name in files or name in (MANIFEST, SIGNATURE):
            continue
        contents = read_through(pack, info, most=longest) if missing else None
        was = next((one for one in missing if contents and is_it(contents, files[one])), None)
        if was is None:
            result.problems.append(f"{shown(name)} was added: it is no file of this pack")
        else:
            missing.remove(was)
            result.problems.append(f"{was} was renamed to {shown(name)}")
    result.problems += [f"{name} was removed" for name in missing]
    for name, entry in files.items():
        if name in members:
            contents = read_through(pack, members[name], most=entry["bytes"])
            if not is_it(contents, entry):
                result.problems.append(f"{name} was altered: {difference(contents, entry)}")
            elif entry.get("rows") is not None and contents.rows != entry["rows"]:
                result.problems.append(f"{name} has {contents.rows} rows, and {MANIFEST} says {entry['rows']}")
            else:
                result.files += 1


def is_it(contents: Contents, entry: dict[str, Any]) -> bool:
    return not contents.problem and contents.bytes == entry["bytes"] and contents.sha256 == entry["sha256"]


def difference(contents: Contents, entry: dict[str, Any]) -> str:
    if contents.problem:
        return f"it {contents.problem}"
    said = []
    if contents.bytes != entry["bytes"]:
        said.append(f"it has {contents.bytes} bytes instead of {entry['bytes']}")
    if entry.get("rows") is not None and contents.rows != entry["rows"]:
        said.append(f"{contents.rows} rows instead of {entry['rows']}")
    return ", ".join([*said, f"its SHA-256 is {contents.sha256}"])


# --- the sample ----------------------------------------------------------------------------------------------------


def seed_of(from_text: str, to_text: str, population: str) -> str:
    """What the sample was drawn with. `population`: the SHA-256 of accesses.csv, so that nobody can choose it beforehand."""
    return hashlib.sha256(f"leasehold sample 1\n{from_text}\n{to_text}\n{population}\n".encode()).hexdigest()


def draw(seed: str, rows: int, size: int) -> list[int]:
    """Which rows (from 1 on, the header not counted) are in the sample: those with the smallest SHA-256 of `SEED:ROW`."""
    tickets = ((hashlib.sha256(f"{seed}:{row}".encode()).digest(), row) for row in range(1, rows + 1))
    return sorted(row for _, row in heapq.nsmallest(size, tickets))


def rows_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The rows of a CSV as they stand there, each with its line feed. Raises CannotCheck for one that is longer than any."""
    kept: list[bytes] = []
    length = quotes = 0
    for chunk in chunks:
        for line in chunk.splitlines(keepends=True) if b"\r" not in chunk else lines_of(chunk):
            kept.append(line)
            length += len(line)
            quotes += line.count(b'"')
            if length > LONGEST_ROW:
                raise CannotCheck("A row of a CSV is longer than any that Leasehold writes")
            if line.endswith(b"\n") and quotes % 2 == 0:
                yield b"".join(kept)
                kept, length, quotes = [], 0, 0
    if kept:
        yield b"".join(kept)


def lines_of(chunk: bytes) -> list[bytes]:
    """As splitlines(), which takes a carriage return for the end of a line, too."""
    *lines, rest = chunk.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def picked(rows: Iterator[bytes], numbers: list[int]) -> Iterator[bytes]:
    """What sample.csv holds: the header and these rows, each with its number before it."""
    yield b"row," + next(rows, b"\n")
    wanted = set(numbers)
    for number, row in enumerate(rows, start=1):
        if number in wanted:
            yield b"%d,%s" % (number, row)
            if number == numbers[-1]:
                return


def check_sample(
    pack: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    manifest: dict[str, Any],
    files: dict[str, dict[str, Any]],
) -> Iterator[str]:
    """Was the sample drawn as it is said that it was?"""
    sample, rows = manifest.get("sample"), files[ACCESSES].get("rows")
    if not isinstance(sample, dict) or not is_count(sample.get("size")) or not isinstance(rows, int):
        yield f"{MANIFEST} does not say how the sample was drawn"
        return
    seed = seed_of(str(manifest.get("from")), str(manifest.get("to")), files[ACCESSES]["sha256"])
    numbers = draw(seed, rows, min(sample["size"], MOST_FILES))
    if sample.get("seed") != seed or sample.get("rows") != numbers:
        yield "the sample was not drawn with the seed that its period and its accesses give"
        return
    accesses = Contents(pack, members[ACCESSES], most=files[ACCESSES]["bytes"])
    drawn = hashlib.sha256(b"".join(picked(rows_of(iter(accesses)), numbers))).hexdigest()
    if drawn != files[SAMPLE]["sha256"]:
        yield f"{SAMPLE} does not hold the rows of {ACCESSES} that were drawn"


# --- the command line ------------------------------------------------------------------------------------------------


def fingerprints_of(given: list[str], keys: str | None) -> frozenset[str]:
    """Of the options, and of a file with one on each line (what follows a space or a # is a remark). Raises CannotCheck."""
    lines = list(given)
    if keys is not None:
        try:
            text = Path(keys).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CannotCheck(f"{keys} cannot be read ({error})") from error
        lines += [words[0] for line in text.splitlines() if (words := line.partition("#")[0].split())]
        if not lines:
            raise CannotCheck(f"There is no fingerprint in {keys}")
    found = frozenset(line.replace(":", "").strip().lower() for line in lines)
    for one in found:
        if not HEX64.fullmatch(one):
            raise CannotCheck("A fingerprint is the SHA-256 of the raw public key: 64 hexadecimal digits")
    return found


def about(result: Result) -> Iterator[str]:
    """What a person reads. Everything of the manifest is shown so that it can do nothing to a terminal."""
    for problem in result.problems:
        yield f"ALTERED  {problem}"
    yield result.verdict
    if result.signer == "unverified":
        yield f"  The key that signed it is {result.fingerprint}."
        yield "  Compare that with what you have from elsewhere, or give it as --fingerprint."
    if not result.problems:
        known = result.manifest
        yield f"  Period {said(known, 'from')} to {said(known, 'to')}, made {said(known, 'made_at')} by {said(known, 'made_by')}"
        yield f"  {result.files} files, report {said(known, 'report_id')}"
        completeness = known.get("completeness")
        if isinstance(completeness, dict):
            yield f"  {said(completeness, 'word')}"


def said(of: dict[str, Any], key: str) -> str:
    return shown_line(str(of.get(key, ""))[:1000])


def shown_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def as_json(result: Result) -> dict[str, Any]:
    return {
        "intact": not result.problems,
        "verdict": result.verdict,
        "signer": result.signer,
        "fingerprint": result.fingerprint,
        "files": result.files,
        "problems": result.problems,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Is an evidence pack as it was made, and who signed it?")
    parser.add_argument("pack", metavar="PACK.zip")
    parser.add_argument(
        "--fingerprint", metavar="HEX", action="append", default=[], help="of a key that may have signed"
    )
    parser.add_argument("--keys", metavar="FILE", help="fingerprints, one on each line: of older keys too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        result = check(options.pack, fingerprints_of(options.fingerprint, options.keys))
    except CannotCheck as problem:
        text = f"{problem}. Nothing was proven."
        sys.stdout.write(json.dumps({"intact": None, "verdict": text}) + "\n" if options.json else text + "\n")
        return 2
    lines = [json.dumps(as_json(result))] if options.json else about(result)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return result.code


if __name__ == "__main__":
    sys.exit(main())
