"""What the demo's Leasehold says of itself, by its own commands: `manage.py export`."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from demo import processes, state

T = TypeVar("T")


def exported(folder: Path, kind: str, *, since: datetime, row: type[T]) -> list[T]:
    """The rows of `manage.py export KIND` from an hour before `since` on. Raises NotReady with the command's last words."""
    hour = timedelta(hours=1)
    period = [f"--from={(since - hour).isoformat()}", f"--to={(datetime.now(UTC) + hour).isoformat()}"]
    export = [sys.executable, "manage.py", "export", kind, *period, "--format=ndjson"]
    done = subprocess.run(
        ["sh", "-c", 'set -a; . "$0"; exec "$@"', folder / "env", *export],
        cwd=state.ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise processes.NotReady(
            "\n".join(["Leasehold exports nothing. Does the demo run (`make demo-status`)?", *last])
        )
    decoder = msgspec.json.Decoder(row)
    return [decoder.decode(line) for line in done.stdout.splitlines()]
