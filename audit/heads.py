"""Signs the heads of all chains once an hour, delivers that outside the database, and compares it with the database later.

Who takes over the database, even as its owner, can rewrite a chain so that it holds in itself. It is then not the one that was
signed: the key is never in the database, and neither is what was delivered.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import Count, F, Q, QuerySet

from audit import documents, ed25519
from audit.archive import Archive, Folder, keep, named
from audit.documents import Document, Head
from audit.models import HeadsDocument, RawBlock, Signing, Stream
from leases.errors import SourceError
from leases.models import Policy
from leases.references import read_secret

RETRY_EVERY = timedelta(minutes=5)
LONGEST_UNSIGNED = timedelta(hours=2)
# the word in `deliver_to` for the archive of raw lines
ARCHIVE = "archive"
# the most sequences that one query asks for
SLICE = 1000


def is_due(*, now: datetime) -> bool:
    """Whether this hour (of the clock) has no document yet, or one waits for its delivery. A failure is tried again in 5 minutes."""
    if not Policy.current().heads_key:
        return False
    if Signing.objects.filter(pk=1, tried_at__gt=now - RETRY_EVERY, tried_at__lte=now).exclude(cause="").exists():
        return False
    return _is_unsigned(now) or waiting().exists()


def _is_unsigned(now: datetime) -> bool:
    last = HeadsDocument.objects.order_by("-number").first()
    return last is None or last.at < now.replace(minute=0, second=0, microsecond=0)


def waiting() -> QuerySet[HeadsDocument]:
    """Documents that do not lie in every place yet, oldest first."""
    return HeadsDocument.objects.filter(delivered_at=None).order_by("number")


def sign_heads(*, now: datetime) -> list[SourceError]:
    """Signs this hour's document, also if nothing changed, and delivers what waits. What went wrong comes back and is written down.

    Only one may run at a time (`turn("heads", 0)`).
    """
    policy = Policy.current()
    if not policy.heads_key:
        return []
    problems: list[SourceError] = []
    if _is_unsigned(now):
        try:
            _sign(ed25519.signer(read_secret(policy.heads_key)), now=now)
        except SourceError as error:
            problems.append(error)
    problems += deliver(policy, now=now)
    write_down(problems, now=now)
    return problems


@transaction.atomic
def _sign(signer: ed25519.Signer, *, now: datetime) -> None:
    last = HeadsDocument.objects.order_by("-number").first()
    number, signed_at = (last.number + 1 if last else 1), now.replace(microsecond=0)
    name, data = documents.write(
        number=number,
        signed_at=signed_at,
        previous=last.sha256 if last else "",
        streams=list(current_heads()),
        signer=signer,
    )
    # kept before it is delivered: after a crash in between the very same one is delivered
    HeadsDocument.objects.create(
        number=number, at=signed_at, name=name, sha256=documents.sha256(data), document=data.decode()
    )


def current_heads() -> Iterator[Head]:
    """Every stream's, retired ones too, as of one moment."""
    blocks = Count("blocks", filter=Q(blocks__sequence__lte=F("sequence")))
    streams = Stream.objects.select_related("device__vault").annotate(kept=blocks)
    for stream in streams.order_by("device__vault__name", "device__name", "node"):
        yield Head(
            vault=stream.device.vault.name,
            device=stream.device.name,
            node=stream.node,
            sequence=stream.sequence,
            head=stream.head,
            lines=stream.lines,
            blocks=stream.kept,
        )


def deliver(policy: Policy, *, now: datetime) -> list[SourceError]:
    """Brings each document that waits to each place, in order. A place that fails is left until the next try; others go on."""
    problems: dict[str, SourceError] = {}
    for row in waiting():
        data = row.document.encode()
        for place in policy.heads_deliver_to:
            if place in row.delivered_to or place in problems:
                continue
            try:
                keep(place_of(place, policy), row.name, data)
            except SourceError as error:
                problems[place] = error
            else:
                row.delivered_to.append(place)
        if set(policy.heads_deliver_to) <= set(row.delivered_to):
            row.document, row.delivered_at = "", now
        row.save()
    return list(problems.values())


def place_of(place: str, policy: Policy) -> Archive:
    if place == ARCHIVE:
        return named(policy.archive, policy)
    return Folder(Path(place), what="folder of signed heads", key="heads.deliver_to")


def write_down(problems: list[SourceError], *, now: datetime) -> None:
    problem = problems[0] if problems else None
    state = {
        "tried_at": now,
        "cause": problem.cause[:500] if problem else "",
        "fix": problem.fix[:500] if problem else "",
    }
    Signing.objects.update_or_create(pk=1, defaults=state, create_defaults={"since": now, **state})


def ask_anew(*, now: datetime) -> None:
    """After the configuration was written: the next round tries it, and what is late is counted from the first time on."""
    if Policy.current().heads_key:
        Signing.objects.update_or_create(pk=1, defaults={"tried_at": None}, create_defaults={"since": now})
    else:
        Signing.objects.all().delete()


def delivered_until() -> datetime | None:
    """When the newest document was signed up to which all lie in every place."""
    first = waiting().first()
    found = HeadsDocument.objects.filter(number__lt=first.number) if first else HeadsDocument.objects.all()
    newest = found.order_by("-number").first()
    return newest.at if newest else None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The first block of a stream that is not what was signed, or is there no longer."""

    sequence: int
    what: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A stream against what was signed of it: the newest of its blocks that was, and when."""

    last: int
    last_at: datetime | None
    contradiction: Contradiction | None


def compare(signed: Iterable[Document]) -> dict[tuple[str, str, str], Compared]:
    """By (vault, device, node): is each block that was signed still the one that was? Documents must be checked before."""
    of: dict[tuple[str, str, str], dict[tuple[int, str], datetime]] = {}
    for document in signed:
        for head in document.streams:
            place = of.setdefault(head.stream, {})
            if head.sequence:
                # the time at which it was first signed
                place.setdefault((head.sequence, head.head), document.signed_at)
    return {stream: _compared(stream, blocks) for stream, blocks in sorted(of.items())}


def _compared(stream: tuple[str, str, str], signed: dict[tuple[int, str], datetime]) -> Compared:
    vault, device, node = stream
    row = Stream.objects.filter(device__vault__name=vault, device__name=device, node=node).first()
    wanted = sorted(signed)
    there: dict[int, str] = {}
    for start in range(0, len(wanted), SLICE):
        sequences = {sequence for sequence, _ in wanted[start : start + SLICE]}
        there |= dict(RawBlock.objects.filter(stream=row, sequence__in=sequences).values_list("sequence", "sha256"))
    contradiction = next(
        (
            Contradiction(sequence, _what(there.get(sequence), at=signed[sequence, head], known=row is not None))
            for sequence, head in wanted
            if there.get(sequence) != head
        ),
        None,
    )
    last = wanted[-1] if wanted else None
    return Compared(last[0] if last else 0, signed[last] if last else None, contradiction)


def _what(there: str | None, *, at: datetime, known: bool) -> str:
    when = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    if not known:
        return f"was signed at {when}, but the stream is not in the database"
    return f"was signed at {when} and is gone" if there is None else f"is not the one that was signed at {when}"


def read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file in a folder of documents, or in the place that holds it. Raises OSError."""
    root = folder / "heads" if (folder / "heads").is_dir() else folder
    for path in sorted(root.rglob("*.json")):
        yield str(path.relative_to(root)), path.read_bytes()


def not_here(delivered: list[HeadsDocument], found: documents.Checked) -> list[str]:
    """Sentences about documents that the database knows as delivered everywhere, and that are newer than all that are here."""
    newest = max((document.number for document in found.documents), default=0)
    return [
        f"{row.name.removeprefix('heads/')} was delivered and is not here" for row in delivered if row.number > newest
    ]


def delivered() -> list[HeadsDocument]:
    return list(HeadsDocument.objects.exclude(delivered_at=None).order_by("number"))
