"""Documents that say what the heads of the chains were: how they are written, signed and checked. docs/integrity.md has the format.

Pure: knows neither the database nor where documents lie.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from audit import ed25519

FORMAT = "leasehold heads 1"

# what the database can be asked for, whoever wrote the document
Name = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Number = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=0)]
Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]*$")]


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stream as it was: `head` is the SHA-256 of its block `sequence`; empty where it had none."""

    vault: Name
    device: Name
    node: Name
    sequence: Number
    head: Hex
    lines: Count
    blocks: Count

    @property
    def stream(self) -> tuple[str, str, str]:
        return self.vault, self.device, self.node


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`previous`: SHA-256 of the whole file before it; empty for number 1. Keys and signature are in hex."""

    format: str
    number: Number
    signed_at: Annotated[datetime, Meta(tz=True)]
    previous: Hex
    public_key: Hex
    fingerprint: Hex
    streams: list[Head]
    signature: Hex = ""


def write(
    *, number: int, signed_at: datetime, previous: str, streams: list[Head], signer: ed25519.Signer
) -> tuple[str, bytes]:
    """A signed document's name and its bytes."""
    unsigned = Document(
        format=FORMAT,
        number=number,
        signed_at=signed_at,
        previous=previous,
        public_key=signer.public.hex(),
        fingerprint=ed25519.fingerprint(signer.public),
        streams=streams,
    )
    signed = msgspec.structs.replace(unsigned, signature=signer.sign(_bytes(unsigned)).hex())
    return f"heads/{signed_at:%Y-%m-%d}/{signed_at:%H%M%S}Z-{number:08}.json", _bytes(signed) + b"\n"


def _bytes(document: Document) -> bytes:
    """JSON with sorted keys and no space: one document is written in one way only."""
    return msgspec.json.encode(document, order="sorted")


def read(data: bytes) -> Document | None:
    """None where it is no document, or not written in the one way."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document if document.format == FORMAT and _bytes(document) + b"\n" == data else None


def sha256(data: bytes) -> str:
    """Of a whole file: what the next document calls `previous`."""
    return hashlib.sha256(data).hexdigest()


def is_signed(document: Document) -> bool:
    """Whether the key that the document names has signed it."""
    try:
        public, signature = bytes.fromhex(document.public_key), bytes.fromhex(document.signature)
    except ValueError:
        return False
    return ed25519.fingerprint(public) == document.fingerprint and ed25519.holds(
        public, signature, _bytes(msgspec.structs.replace(document, signature=""))
    )


@dataclass(slots=True)
class Checked:
    """A set of files looked at. `documents`: those whose signature is right, in their order; `problems`: sentences."""

    documents: list[Document] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fingerprints: set[str] = field(default_factory=set)


def check(files: Iterable[tuple[str, bytes]], *, fingerprints: frozenset[str]) -> Checked:
    """Is each file signed (by one of these keys, if any are given), and none missing, altered or added?

    What is not rightly signed says nothing, so it counts as missing as well.
    """
    checked, known = Checked(), dict[str, Document]()
    names = dict[str, str]()
    for name, data in files:
        if (key := sha256(data)) in known:
            continue  # a copy of a file says nothing new
        document = read(data)
        if document is None:
            checked.problems.append(f"{name} is no signed document, or was altered")
        elif not is_signed(document):
            checked.problems.append(f"{name} was altered: its signature is wrong")
        elif fingerprints and document.fingerprint not in fingerprints:
            checked.problems.append(f"{name} is signed with another key: {document.fingerprint}")
        else:
            known[key], names[key] = document, name
            checked.fingerprints.add(document.fingerprint)
    checked.problems += _unchained(known, names)
    checked.documents = sorted(known.values(), key=lambda document: (document.number, document.signed_at))
    return checked


def _unchained(known: Mapping[str, Document], names: Mapping[str, str]) -> Iterable[str]:
    """Sentences about documents that do not follow one another."""
    seen = dict[int, str]()
    for key, document in sorted(known.items(), key=lambda item: (item[1].number, item[1].signed_at)):
        name, before = names[key], known.get(document.previous)
        if document.number in seen:
            yield f"{name} and {seen[document.number]} are both number {document.number}"
        seen[document.number] = name
        if document.number == 1 and not document.previous:
            continue
        if before is None:
            yield f"{name} follows document {document.number - 1}, which is not here as it was signed"
        elif before.number != document.number - 1:
            yield f"{name} is number {document.number} and follows number {before.number}"
