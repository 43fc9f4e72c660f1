"""Writes an evidence pack: everything is read as of one moment and goes into the zip as it comes, however much it is.

The same data and parameters give the same CSVs to the byte. That a pack was made is an action, kept before anything is read.
"""

import hashlib
import io
import os
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec
from django.db import connection, transaction
from django.utils import timezone

from audit import ed25519, exports
from audit.pack import chains, coverage, gather, manifest, statements, texts, verifier
from audit.pack.figures import figures
from audit.pack.pdf.content import WORKLOADS, Content
from audit.pack.pdf.render import Progress, render
from audit.pack.values import File, Manifest, Sample
from leases.errors import SourceError
from leases.models import Action, ActionStep
from leases.models.actions import Outcome
from leases.version import VERSION

KIND = "report"
WRITTEN = "pack written"
SAMPLE_SIZE = 25
# in this order
CSVS = ("accesses", "leases", "actions", "findings", "sessions")
EVENTS = "events"


class PackUnwritable(SourceError):
    """The folder does not take it."""


@dataclass(frozen=True, slots=True)
class Made:
    """Without `fingerprint` it is not signed."""

    path: Path
    report_id: uuid.UUID
    size: int
    sha256: str
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint


def make(
    *, from_at: datetime, to_at: datetime, folder: Path, by: str, reason: str, now: datetime, with_events: bool = False
) -> Made:
    """Makes the pack of [from, to) in a folder. `with_events`: each request to a vault too, which may be many gigabytes.

    Raises SourceError: the signing key cannot be read, or the folder not written.
    """
    signer = manifest.signer()
    from_at, to_at = from_at.astimezone(UTC), to_at.astimezone(UTC)
    name = f"leasehold-evidence-{from_at:%Y%m%dT%H%M%SZ}-{to_at:%Y%m%dT%H%M%SZ}"
    report_id = uuid.uuid4()
    path = folder / f"{name}-{report_id.hex[:8]}.zip"
    with taking(path) as part:
        summary = f"Evidence pack of {texts.utc(from_at)} to {texts.utc(to_at)}"
        # in the same words as other actions: no lease, but what was made
        target = {"vault": "", "lease_id": "", "report": str(report_id), "summary": summary}
        action = Action.objects.create(pk=report_id, kind=KIND, by=by, reason=reason, at=now, targets=[target])
        try:
            with snapshot(), zipfile.ZipFile(part, "w") as pack:
                writing = Writing(pack, from_at)
                written = fill(
                    writing,
                    action=action,
                    from_at=from_at,
                    to_at=to_at,
                    with_events=with_events,
                    signer=signer,
                    now=now,
                )
            part.flush()
            os.fsync(part.fileno())
            size, sha256 = os.fstat(part.fileno()).st_size, sha256_of(part)
        except BaseException as error:
            note(action, Outcome.FAILED, f"{type(error).__name__}: it was not made")
            raise
    note(action, Outcome.OK, f"{path.name}, {size} bytes, SHA-256 {sha256}")
    return Made(path, report_id, size, sha256, written)


def note(action: Action, outcome: Outcome, detail: str) -> None:
    ActionStep.objects.create(action=action, name=WRITTEN, outcome=outcome, detail=detail, at=timezone.now())


@contextmanager
def taking(path: Path) -> Iterator[IO[bytes]]:
    """A file beside it that takes its name when all went well, and is gone otherwise. Raises PackUnwritable."""
    beside = path.with_name(f".{path.name}.part")
    try:
        try:
            # readable for its owner alone: it says who can reach which database
            number = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with open(number, "w+b") as part:
                yield part
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise PackUnwritable(
            f"The pack cannot be written to {path.parent} ({error.strerror or error})",
            "Name a folder that is there, has room and is writable for the user that runs this.",
        ) from error


@contextmanager
def snapshot() -> Iterator[None]:
    """All reads inside are of one moment, and nothing can be written."""
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def fill(
    writing: "Writing",
    *,
    action: Action,
    from_at: datetime,
    to_at: datetime,
    with_events: bool,
    signer: ed25519.Signer | None,
    now: datetime,
    progress: Progress | None = None,
) -> Manifest:
    """Everything that a pack holds, the manifest last. `progress`: of the PDF's making."""
    period = {"from_at": from_at, "to_at": to_at}
    told = statements.completeness(**period, with_events=with_events, now=now)
    for kind in [*CSVS, *([EVENTS] if with_events else [])]:
        writing.export(kind, now=now, **period)
        if kind == "accesses":
            sample, picked = draw(writing, **period)
    by_workload = gather.workloads(**period)
    writing.csv("workloads.csv", WORKLOADS, by_workload)
    judged = {"from_at": from_at, "until": told.judged_until, "now": now}
    writing.csv("coverage.csv", coverage.HOURS, coverage.hour_rows(**judged))
    writing.csv("gaps.csv", coverage.GAPS, coverage.gap_rows(**judged))
    made = Manifest(
        format=manifest.FORMAT,
        report_id=str(action.pk),
        from_at=from_at,
        to_at=to_at,
        filters={},
        made_at=now.astimezone(UTC),
        made_by=action.by,
        reason=action.reason,
        software=VERSION,
        files=writing.files,
        chains=chains.chains(**period),
        signed_heads=chains.signed_heads(**period),
        completeness=told,
        certainty=statements.certainty(**period),
        figures=figures(**period),
        sample=sample,
        public_key=signer.public.hex() if signer else "",
        fingerprint=ed25519.fingerprint(signer.public) if signer else "",
    )
    shown = gather.content(made, sample=picked, by_workload=by_workload, now=now)
    writing.pdf("report.pdf", shown, progress=progress)
    made = msgspec.structs.replace(made, files=writing.files)
    writing.bytes("README.txt", texts.readme(made).encode())
    writing.bytes("VERIFY.txt", texts.VERIFY.encode())
    writing.bytes("verify.py", Path(verifier.__file__).read_bytes())
    made = msgspec.structs.replace(made, files=writing.files)
    data = manifest.encode(made)
    writing.bytes(manifest.MANIFEST, data)
    if signer:
        writing.bytes(manifest.SIGNATURE, signer.sign(data).hex().encode() + b"\n")
    return made


def draw(writing: "Writing", *, from_at: datetime, to_at: datetime) -> tuple[Sample, bytes]:
    """Draws the sample from accesses.csv as it lies in the zip, and adds it; the second are its rows."""
    accesses = writing.files[-1]
    seed = verifier.seed_of(_json_time(from_at), _json_time(to_at), accesses.sha256)
    rows = verifier.draw(seed, accesses.rows or 0, SAMPLE_SIZE)
    contents = verifier.Contents(writing.pack, writing.pack.getinfo(accesses.name), most=accesses.bytes)
    picked = b"".join(verifier.picked(verifier.rows_of(iter(contents)), rows))
    writing.bytes("sample.csv", picked, rows=len(rows))
    return Sample(SAMPLE_SIZE, seed, rows), picked


def _json_time(at: datetime) -> str:
    """As the manifest writes it."""
    return str(msgspec.to_builtins(at))


class Writing:
    """A zip that is being written, and what went into it. Everything in it bears the time at which the period begins."""

    def __init__(self, pack: zipfile.ZipFile, at: datetime) -> None:
        self.pack, self.files = pack, list[File]()
        # what a zip can say
        self.at = (min(max(at.year, 1980), 2107), at.month, at.day, at.hour, at.minute, at.second)

    def export(self, kind: str, *, from_at: datetime, to_at: datetime, now: datetime) -> None:
        with self.pack.open(self._info(f"{kind}.csv"), "w", force_zip64=True) as member:
            told = exports.write(kind, member, from_at=from_at, to_at=to_at, now=now)
        self.files.append(File(f"{kind}.csv", told.sha256, told.bytes, told.rows))

    def csv(self, name: str, header: list[str], rows: Iterable[exports.Row]) -> None:
        # how long it gets is not known: told so, a zip has room for the length of more than 4 GB
        with self.pack.open(self._info(name), "w", force_zip64=True) as member:
            counted = Counted(member)
            with io.TextIOWrapper(io.BufferedWriter(counted, 256 * 1024), encoding="utf-8", newline="") as text:
                count = exports.write_csv(header, rows, text)
        self.files.append(File(name, counted.hash.hexdigest(), counted.count, count))

    def pdf(self, name: str, content: Content, *, progress: Progress | None) -> None:
        with self.pack.open(self._info(name), "w", force_zip64=True) as member:
            counted = Counted(member)
            with io.BufferedWriter(counted, 256 * 1024) as buffered:
                render(content, buffered, progress=progress)
        self.files.append(File(name, counted.hash.hexdigest(), counted.count))

    def bytes(self, name: str, data: bytes, *, rows: int | None = None) -> None:
        self.pack.writestr(self._info(name), data)
        self.files.append(File(name, hashlib.sha256(data).hexdigest(), len(data), rows))

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, self.at)
        info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
        return info


class Counted(io.RawIOBase):
    """Passes on what is written, and counts it."""

    def __init__(self, to: IO[bytes]) -> None:
        super().__init__()
        self.to, self.count, self.hash = to, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.count += len(data)
        return self.to.write(data)


def sha256_of(file: IO[bytes]) -> str:
    file.seek(0)
    found = hashlib.sha256()
    while chunk := file.read(1024 * 1024):
        found.update(chunk)
    return found.hexdigest()
