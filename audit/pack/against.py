"""Holds a pack to the database that it was made from: are its raw lines still the same, and which accesses are known otherwise now?"""

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path

from audit import blocks, exports, retention
from audit.models import RawBlock, Stream
from audit.pack.values import BlockAt, Chain, Manifest

ACCESSES = "accesses.csv"
# differences that are told one by one, and those that are held at once
MOST_TOLD = 20
MOST_HELD = 100_000

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Held:
    """One stream's blocks, from the period's first one to the last one that was there when the pack was made.

    `block`: the first that is not as it was, and `what` is wrong with it. Of `moved` and `dropped` ones only headers were read.
    """

    stream: str
    blocks: int
    moved: int
    dropped: int
    block: int | None = None
    what: str = ""


def chains_hold(manifest: Manifest, *, read_archive: bool = False) -> Iterator[Held]:
    """Raises SourceError where the archive cannot be read."""
    for chain in manifest.chains:
        name = "/".join(chain.stream)
        row = (
            Stream.objects.filter(device__vault__name=chain.vault, device__name=chain.device, node=chain.node)
            .select_related("device__vault")
            .first()
        )
        if row is None:
            yield Held(name, 0, 0, 0, chain.start.sequence + 1, "is not in the database, and neither is its stream")
            continue
        archived = retention.examine(row) if read_archive else None
        verified = blocks.verify(
            row, archived=archived, after=(chain.start.sequence, chain.start.sha256), up_to=chain.made.sequence
        )
        broken = min(
            (found for found in (verified.broken, other_block(row, chain)) if found),
            key=lambda found: found.sequence,
            default=None,
        )
        yield Held(
            name,
            verified.blocks,
            verified.moved,
            verified.dropped,
            broken.sequence if broken else None,
            broken.what if broken else "",
        )


def other_block(stream: Stream, chain: Chain) -> blocks.Break | None:
    """The first of the blocks that the pack names which is another one now, though the chain may hold in itself."""
    named: list[BlockAt] = [chain.start, chain.end, chain.made]
    rows = RawBlock.objects.filter(stream=stream, sequence__in=[block.sequence for block in named])
    there = dict(rows.values_list("sequence", "sha256"))
    for block in named:
        if block.sequence and there.get(block.sequence) != block.sha256:
            gone = block.sequence not in there
            return blocks.Break(
                block.sequence, "is gone" if gone else "is not the one that was there when the pack was made"
            )
    return None


@dataclass(frozen=True, slots=True)
class Difference:
    """One access that the database tells otherwise now. `what`: changed (in these columns), not there any more, or new."""

    what: str
    accessed_at: str
    request_id: str
    lease_id: str
    columns: tuple[str, ...] = ()


@dataclass(slots=True)
class Compared:
    """Accesses of the pack against those of the database. `complete`: False where there were too many differences to go on."""

    rows: int = 0
    same: int = 0
    changed: int = 0
    gone: int = 0
    new: int = 0
    complete: bool = True
    told: list[Difference] = field(default_factory=list)

    def tell(self, difference: Difference) -> None:
        if len(self.told) < MOST_TOLD:
            self.told.append(difference)


def compare_accesses(path: Path, manifest: Manifest) -> Compared:
    """Of a pack that is known to be intact. What differs has changed since: more became known, or a lease went on.

    Both are in the order of the time of access: what is of one time is compared at once, so that little of it is held.
    """
    with zipfile.ZipFile(path) as pack, pack.open(ACCESSES) as member:
        packed = csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline=""))
        names = [name for name in exports.ACCESSES if name in (packed.fieldnames or ())]
        now = rows_now(from_at=manifest.from_at, to_at=manifest.to_at)
        return compare(packed, now, names=names)


def rows_now(*, from_at: datetime, to_at: datetime) -> Iterator[Row]:
    """Accesses as an export has them now, a chunk of whole rows at a time."""
    header = exports.header("accesses")
    chunks = exports.stream("accesses", from_at=from_at, to_at=to_at)
    for chunk in chunks:
        for row in csv.reader(io.StringIO(chunk.decode(), newline="")):
            if row != header:
                yield dict(zip(header, row, strict=True))


def compare(packed: Iterable[Row], now: Iterable[Row], *, names: list[str]) -> Compared:
    """Pure. A row is known by vault, request and lease: its time may be another one."""
    found = Compared()
    gone: dict[tuple[str, str, str], Row] = {}
    new: dict[tuple[str, str, str], Row] = {}
    for before, after in side_by_side(packed, now):
        found.rows += len(before)
        of_before, of_after = {key_of(row): row for row in before}, {key_of(row): row for row in after}
        gone |= of_before
        new |= of_after
        for key in [key for key in of_before | of_after if key in gone and key in new]:
            was, is_now = gone.pop(key), new.pop(key)
            columns = tuple(name for name in names if was[name] != is_now[name])
            found.same += not columns
            found.changed += bool(columns)
            if columns:
                found.tell(difference("changed", was, columns))
        if len(gone) + len(new) > MOST_HELD:
            found.complete = False
            break
    found.gone, found.new = len(gone), len(new)
    for what, rows in (("not there any more", gone), ("new", new)):
        for row in rows.values():
            found.tell(difference(what, row))
    return found


def side_by_side(packed: Iterable[Row], now: Iterable[Row]) -> Iterator[tuple[list[Row], list[Row]]]:
    """What either has of each time of access, in its order."""
    left, right = (
        ((at, list(rows)) for at, rows in groupby(of, key=lambda row: row["accessed_at"])) for of in (packed, now)
    )
    one, other = next(left, None), next(right, None)
    while one or other:
        at = min(group[0] for group in (one, other) if group)
        before = after = list[Row]()
        if one and one[0] == at:
            before, one = one[1], next(left, None)
        if other and other[0] == at:
            after, other = other[1], next(right, None)
        yield before, after


def key_of(row: Row) -> tuple[str, str, str]:
    return row["vault"], row["request_id"], row["lease_id"]


def difference(what: str, row: Row, columns: tuple[str, ...] = ()) -> Difference:
    return Difference(what, row["accessed_at"], row["request_id"], row["lease_id"], columns)
