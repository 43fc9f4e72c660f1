"""`manage.py verify PACK [--fingerprint HEX]… [--keys FILE] [--database [--archive]] [--json]`: is an evidence pack as it was made?

Exit code 0: intact. 1: altered, in the pack or (--database) in the database. 2: not signed, or it could not be checked.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError

from audit.pack import against, verifier
from audit.pack.values import Manifest
from leases.errors import SourceError


class Command(BaseCommand):
    help = (
        "Checks an evidence pack: its files, its signature, and with --database whether the raw lines it rests on are still those "
        "that were there, and which accesses have changed since. Without a fingerprint from elsewhere its signer is unverified."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("pack", type=Path)
        parser.add_argument(
            "--fingerprint",
            metavar="HEX",
            action="append",
            default=[],
            help="of a key that may have signed; once for each",
        )
        parser.add_argument("--keys", metavar="FILE", help="fingerprints, one on each line: of older keys too")
        parser.add_argument("--database", action="store_true", help="compare it with this database")
        parser.add_argument(
            "--archive", action="store_true", help="with --database: read the lines that were moved to the archive, too"
        )
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["archive"] and not options["database"]:
            raise CommandError("--archive goes with --database.", returncode=2)
        try:
            pins = verifier.fingerprints_of(options["fingerprint"], options["keys"])
            result = verifier.check(options["pack"], pins)
            held = hold(options["pack"], result, options["archive"]) if options["database"] else None
        except verifier.CannotCheck as problem:
            raise CommandError(f"{problem}. Nothing was proven.", returncode=2) from problem
        except SourceError as error:
            raise CommandError(str(error), returncode=2) from error
        if options["json"]:
            told = verifier.as_json(result) | ({"database": as_json(held)} if held else {})
            self.stdout.write(json.dumps(told, indent=1))
        else:
            for line in [*verifier.about(result), *(about(held) if held else [])]:
                self.stdout.write(line)
        code = 1 if held and not held.ok else result.code
        if code:
            sys.exit(code)


@dataclass(frozen=True, slots=True)
class AgainstDatabase:
    """`accesses`: None where the pack itself is not intact, so that its table is no evidence."""

    chains: list[against.Held]
    accesses: against.Compared | None

    @property
    def ok(self) -> bool:
        return not any(chain.block for chain in self.chains)


def hold(path: Path, result: verifier.Result, read_archive: bool) -> AgainstDatabase:
    try:
        manifest = msgspec.convert(result.manifest, Manifest)
    except msgspec.ValidationError as error:
        raise verifier.CannotCheck(f"{verifier.MANIFEST} does not have what Leasehold writes ({error})") from error
    chains = list(against.chains_hold(manifest, read_archive=read_archive))
    return AgainstDatabase(chains, None if result.problems else against.compare_accesses(path, manifest))


def as_json(held: AgainstDatabase) -> dict[str, Any]:
    return {
        "ok": held.ok,
        "chains": [asdict(chain) for chain in held.chains],
        "accesses": asdict(held.accesses) if held.accesses else None,
    }


def about(held: AgainstDatabase) -> Iterator[str]:
    for chain in held.chains:
        name = verifier.shown_line(chain.stream)
        if chain.block:
            yield f"ALTERED  in the database: {name}: block {chain.block} {chain.what}"
        else:
            gone = f", {chain.moved} of them in the archive" if chain.moved else ""
            gone += f", {chain.dropped} of them dropped (headers checked)" if chain.dropped else ""
            yield f"ok       in the database: {name}: {chain.blocks} blocks{gone}"
    rows = held.accesses
    if rows is None:
        yield "Its accesses were not compared with the database: the pack is not intact."
        return
    yield f"Accesses: {rows.rows} in the pack, {rows.same} of them the same in the database now"
    if not rows.complete:
        yield "  and so many others that the comparison was not carried to its end"
    for number, what in (
        (rows.changed, "changed since: more became known, or the lease went on"),
        (rows.gone, "not in the database any more"),
        (rows.new, "in the database, and not in the pack: their lines came later"),
    ):
        if number:
            yield f"  {number} {what}"
    for one in rows.told:
        columns = f" ({', '.join(one.columns)})" if one.columns else ""
        yield verifier.shown_line(f"  {one.what}: {one.accessed_at} {one.lease_id or one.request_id}{columns}")
