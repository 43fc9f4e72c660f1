"""`manage.py verify-chain [--archive] [--heads DIR [--public-key FILE | --fingerprint HEX]…] [--json]`.

Is every raw block as it was written, and as it was signed? Exit code 1 if one is not.
"""

import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit import blocks, documents, ed25519, heads, retention
from audit.models import Stream
from leases.errors import SourceError


class Command(BaseCommand):
    help = "Checks the chain of raw blocks of every stream and names the first block that was altered, removed or inserted."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--archive", action="store_true", help="read what was moved to the archive too")
        parser.add_argument(
            "--heads", metavar="DIR", type=Path, help="compare with the signed documents of this folder"
        )
        parser.add_argument(
            "--public-key",
            metavar="FILE",
            type=Path,
            action="append",
            default=[],
            help="with --heads: a key (PEM) that may have signed; once for each key",
        )
        parser.add_argument(
            "--fingerprint",
            metavar="HEX",
            action="append",
            default=[],
            help="with --heads: the same, by its SHA-256",
        )
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        signed = None
        if options["heads"]:
            signed = look_at(options["heads"], keys(options["public_key"], options["fingerprint"]))
        elif options["public_key"] or options["fingerprint"]:
            raise CommandError("--public-key and --fingerprint go with --heads.")
        results = [of_stream(stream, read_archive=options["archive"], signed=signed) for stream in streams()]
        if signed:
            results += [of_nothing(name, compared) for name, compared in signed.compared.items()]
        told: Any = {"streams": results, "documents": of_documents(signed)} if signed else results
        if options["json"]:
            self.stdout.write(json.dumps(told, indent=1))
        else:
            for line in [*lines(results, read_archive=options["archive"]), *(about(signed) if signed else [])]:
                self.stdout.write(line)
        if not all(result["ok"] for result in results) or (signed and signed.problems):
            sys.exit(1)


def streams() -> Iterator[Stream]:
    return iter(Stream.objects.select_related("device__vault").order_by("id"))


@dataclass(slots=True)
class Signed:
    """What the documents say. `compared`: by (vault, device, node); what is left of it after all streams is in no database."""

    checked: documents.Checked
    problems: list[str]
    compared: dict[tuple[str, str, str], heads.Compared]
    by_known_keys: bool


def keys(files: list[Path], fingerprints: list[str]) -> frozenset[str]:
    """The fingerprints of the keys that may have signed."""
    found = {text.replace(":", "").lower() for text in fingerprints}
    for text in found:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise CommandError("A fingerprint is the SHA-256 of the raw public key: 64 hexadecimal digits.")
    for path in files:
        try:
            found.add(ed25519.fingerprint(ed25519.public_key(path.read_bytes())))
        except OSError as error:
            raise CommandError(f"{path} cannot be read ({error.strerror}).") from error
        except ed25519.KeyUnusable as error:
            raise CommandError(f"{path}: {error}") from error
    return frozenset(found)


def look_at(folder: Path, fingerprints: frozenset[str]) -> Signed:
    # asked first: what is delivered meanwhile is then no document that is missing
    delivered = heads.delivered()
    try:
        files = list(heads.read_folder(folder))
    except OSError as error:
        raise CommandError(f"{folder} cannot be read ({error.strerror}).") from error
    if not files:
        raise CommandError(f"There is no signed document in {folder}.")
    checked = documents.check(files, fingerprints=fingerprints)
    problems = [*checked.problems, *heads.not_here(delivered, checked)]
    return Signed(checked, problems, heads.compare(checked.documents), bool(fingerprints))


def of_stream(stream: Stream, *, read_archive: bool, signed: Signed | None) -> dict[str, Any]:
    try:
        archived = retention.examine(stream) if read_archive else None
    except SourceError as error:
        raise CommandError(str(error)) from error
    verified = blocks.verify(stream, archived=archived)
    broken = verified.broken
    result = {
        "stream": str(stream),
        "blocks": verified.blocks,
        "moved": verified.moved,
        "dropped": verified.dropped,
        "ok": broken is None,
        "block": broken.sequence if broken else None,
        "what": broken.what if broken else "",
        "head": stream.head,
    }
    if signed:
        name = (stream.device.vault.name, stream.device.name, stream.node)
        result |= of_signed(signed.compared.pop(name, None), ok=broken is None)
    return result


def of_nothing(name: tuple[str, str, str], compared: heads.Compared) -> dict[str, Any]:
    """A stream that was signed and is not in the database."""
    result = {"stream": "/".join(name), "blocks": 0, "moved": 0, "dropped": 0, "block": None, "what": "", "head": ""}
    return result | of_signed(compared, ok=True)


def of_signed(compared: heads.Compared | None, *, ok: bool) -> dict[str, Any]:
    """`signed_block` is the first that is not what was signed; `signed_until` the newest that was signed at all."""
    wrong = compared.contradiction if compared else None
    return {
        "ok": ok and wrong is None,
        "signed_block": wrong.sequence if wrong else None,
        "signed_what": wrong.what if wrong else "",
        "signed_until": compared.last if compared else 0,
        "signed_at": time_of(compared.last_at if compared else None),
    }


def of_documents(signed: Signed) -> dict[str, Any]:
    found = signed.checked.documents
    return {
        "documents": len(found),
        "ok": not signed.problems,
        "signer": "verified" if signed.by_known_keys else "unverified",
        "fingerprints": sorted(signed.checked.fingerprints),
        "first_at": time_of(found[0].signed_at if found else None),
        "last_at": time_of(found[-1].signed_at if found else None),
        "problems": signed.problems,
    }


def time_of(at: datetime | None) -> str | None:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at else None


def lines(results: list[dict[str, Any]], *, read_archive: bool) -> Iterator[str]:
    where = "read in the archive" if read_archive else "in the archive (headers checked; --archive reads them)"
    for result in results:
        if result["block"]:
            yield f"BROKEN  {result['stream']}: block {result['block']} {result['what']}"
        if result.get("signed_block"):
            yield f"BROKEN  {result['stream']}: block {result['signed_block']} {result['signed_what']}"
        if result["ok"]:
            gone = f", {result['moved']} of them {where}" if result["moved"] else ""
            gone += f", {result['dropped']} of them dropped (headers checked)" if result["dropped"] else ""
            until = f", signed up to block {result['signed_until']}" if result.get("signed_until") else ""
            yield f"ok      {result['stream']}: {result['blocks']} blocks{gone}{until}, head {result['head'] or 'none'}"


def about(signed: Signed) -> Iterator[str]:
    told = of_documents(signed)
    for problem in signed.problems:
        yield f"BROKEN  signed heads: {problem}"
    if not signed.problems:
        span = f"{told['documents']} documents from {told['first_at']} to {told['last_at']}"
        who = (
            "signer verified"
            if signed.by_known_keys
            else "intact, signer unverified (give --public-key or --fingerprint)"
        )
        yield f"ok      signed heads: {span}, {who}: {', '.join(told['fingerprints'])}"
