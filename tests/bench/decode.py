"""msgspec decoding alone, on one core: `python -m tests.bench.decode FILE` prints lines and seconds as JSON.

The fields are those that an ingest has to read, typed; the structs stand here so that the reference stays what it is when the
product changes. Nothing is done with the values: this is what no reader of Python can be faster than.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tests.bench.figures import Void

BLOCK = 8 * 1024 * 1024


class Auth(msgspec.Struct):
    client_token: str | None = None
    accessor: str | None = None
    display_name: str | None = None
    policies: list[str] | None = None
    metadata: dict[str, str] | None = None
    entity_id: str | None = None
    token_type: str | None = None


class Namespace(msgspec.Struct):
    id: str | None = None
    path: str | None = None


class Request(msgspec.Struct):
    id: str | None = None
    operation: str | None = None
    path: str | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    namespace: Namespace | None = None
    remote_address: str | None = None
    client_token: str | None = None
    client_token_accessor: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class Secret(msgspec.Struct):
    lease_id: str | None = None


class Response(msgspec.Struct):
    auth: Auth | None = None
    secret: Secret | None = None
    mount_point: str | None = None
    mount_type: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class Entry(msgspec.Struct):
    time: str
    type: str
    auth: Auth | None = None
    request: Request | None = None
    response: Response | None = None
    error: str | None = None


def decode(path: Path) -> int:
    """Reads the file in blocks, splits them, decodes each line; gives the lines."""
    read = msgspec.json.Decoder(Entry).decode
    lines, rest = 0, b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            whole = (rest + block).split(b"\n")
            rest = whole.pop()
            for line in whole:
                read(line)
            lines += len(whole)
    return lines


def decode_alone(path: Path, *, lines: int) -> float:
    """Lines a second, in a fresh process."""
    done = subprocess.run([sys.executable, "-m", __name__, str(path)], capture_output=True, check=True)
    result = json.loads(done.stdout)
    if result["lines"] != lines:
        raise Void(f"msgspec decoded {result['lines']} of {lines} lines")
    return float(lines / result["seconds"])


def main() -> None:
    began = time.perf_counter()
    lines = decode(Path(sys.argv[1]))
    print(json.dumps({"lines": lines, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
