"""The archive: a folder, or a bucket of an S3-compatible store through botocore. Files in it are written once and never changed.

Knows names and bytes; what stands in the files is `audit.parts`'s business.
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from leases.errors import SourceError
from leases.models import Policy
from leases.references import SecretUnavailable, read_secret

CONNECT_SECONDS, READ_SECONDS = 5, 60


class ArchiveUnavailable(SourceError):
    """The archive cannot be read or written. `cause` and `fix` are for an operator and hold no secret."""


class Archive(Protocol):
    """What both kinds can do; each raises ArchiveUnavailable. Names have "/" between their parts."""

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """The file's bytes, or some of them; None if there is no such file."""

    def write(self, name: str, data: bytes) -> None:
        """Puts a whole file there, or nothing. What is there under that name is replaced."""


def named(place: str, policy: Policy) -> Archive:
    """The archive at a place as the policy writes it: /FOLDER or s3://BUCKET/PREFIX."""
    if place.startswith("s3://"):
        parts = urlsplit(place)
        return Bucket(
            parts.netloc,
            parts.path.strip("/"),
            endpoint=policy.archive_endpoint,
            region=policy.archive_region,
            ca_file=policy.archive_ca_file,
            access_key=policy.archive_access_key,
            secret_key=policy.archive_secret_key,
        )
    return Folder(Path(place))


def keep(archive: Archive, name: str, data: bytes) -> None:
    """Returns only when the file lies there whole, as reading it back shows. Never replaces another content."""
    there = archive.read(name)
    if there is None:
        archive.write(name, data)
        there = archive.read(name)
        if there != data:
            raise ArchiveUnavailable(
                f"The archive gives {name} back otherwise than it was written",
                "Look at the store's disks and log. Nothing was dropped here; the file is written again once it is away.",
            )
    elif there != data:
        raise ArchiveUnavailable(
            f"The archive has another {name} than the one to be written",
            "Does another installation use this place? Give each one a prefix of its own. Else the file was altered: "
            "move it away, and it is written again.",
        )


@dataclass(frozen=True)
class Folder:
    """A folder that is there: a mount that is missing must not be taken for an empty one."""

    root: Path
    # what messages call it, and the key of leasehold.toml that names it
    what: str = "archive folder"
    key: str = "archive"

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        self._look()
        try:
            with (self.root / name).open("rb") as file:
                file.seek(start)
                return file.read() if length is None else file.read(length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", error) from error

    def write(self, name: str, data: bytes) -> None:
        self._look()
        path = self.root / name
        # a fixed name: what a crash leaves is replaced by the next try
        half = path.with_name(f".{path.name}.part")
        try:
            self._make(path.parent)
            with suppress(FileNotFoundError):
                half.unlink()
            with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            half.rename(path)
            _sync(path.parent)
        except OSError as error:
            raise self._failed("write", error) from error

    def _look(self) -> None:
        if not self.root.is_dir():
            raise ArchiveUnavailable(
                f"The {self.what} {self.root} is not there",
                f"Mount it into the workers of the queue `reports`, or correct `{self.key}` in leasehold.toml.",
            )

    def _make(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o750, exist_ok=True)
            _sync(parent.parent)

    def _failed(self, verb: str, error: OSError) -> ArchiveUnavailable:
        return ArchiveUnavailable(
            f"The {self.what} {self.root} cannot be {'read' if verb == 'read' else 'written'} ({error.strerror})",
            "Make it readable and writable for the workers' user, with room on its disk.",
        )


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@dataclass(frozen=True)
class Bucket:
    """A bucket. Without `endpoint` it is AWS'; without keys those of the worker's surroundings are used."""

    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""
    ca_file: str = ""
    access_key: dict[str, str] | None = None
    secret_key: dict[str, str] | None = None

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html"""
        wanted = {"Bucket": self.bucket, "Key": self._key(name)}
        if start or length is not None:
            wanted["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        with self._asking("read"):
            try:
                return bytes(self._client.get_object(**wanted)["Body"].read())
            except self._client.exceptions.NoSuchKey:
                return None
            except self._client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") == "InvalidRange":
                    return b""
                raise

    def write(self, name: str, data: bytes) -> None:
        """https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html: whole, or not at all."""
        # a bucket whose objects are locked wants this header; the store checks it as well
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        with self._asking("write"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data, ContentMD5=md5)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @cached_property
    def _client(self) -> Any:
        # 30 MB of memory that only those pay who have a bucket
        import botocore.session
        from botocore.config import Config

        keys = {}
        if self.access_key and self.secret_key:
            keys = {
                "aws_access_key_id": read_secret(self.access_key),
                "aws_secret_access_key": read_secret(self.secret_key),
            }
        return botocore.session.get_session().create_client(
            "s3",
            region_name=self.region or "us-east-1",
            endpoint_url=self.endpoint or None,
            verify=self.ca_file or None,
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 3},
                # other stores seldom have a name for each bucket, nor AWS' newer checksums
                s3={"addressing_style": "path" if self.endpoint else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **keys,
        )

    @contextmanager
    def _asking(self, verb: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        at = self.endpoint or "AWS"
        try:
            yield
        except SecretUnavailable as error:
            raise ArchiveUnavailable(error.cause, error.fix) from error
        except ClientError as error:
            # of the answer only its code: the rest may hold anything
            code = str(error.response.get("Error", {}).get("Code", "no code"))[:60]
            raise ArchiveUnavailable(
                f"The store at {at} refuses to {verb} in bucket {self.bucket} ({code})", FIXES.get(code, OTHER_FIX)
            ) from error
        except (BotoCoreError, OSError) as error:
            raise ArchiveUnavailable(
                f"The store at {at} cannot be reached or understood ({type(error).__name__})",
                "Check archive_endpoint, archive_region, archive_ca_file and both keys in leasehold.toml, and the network "
                "from the workers of the queue `reports` to the store.",
            ) from error


_RIGHTS = "Allow these keys s3:GetObject and s3:PutObject on the prefix and s3:ListBucket on the bucket."
_KEYS = "Correct archive_access_key and archive_secret_key in leasehold.toml, or what they name."
OTHER_FIX = "Look the code up in the store's documentation, and check `archive` in leasehold.toml."
FIXES = {
    "NoSuchBucket": "Make the bucket, or correct `archive` in leasehold.toml.",
    "AccessDenied": _RIGHTS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AuthorizationHeaderMalformed": "Set archive_region to the bucket's region.",
    "PermanentRedirect": "Set archive_region to the bucket's region.",
}
