"""Writing files that others read at any moment, and that hold secrets."""

import json
import os
from pathlib import Path

from demo import processes


def write_secret(file: Path, text: str, *, for_unprivileged: bool = False) -> None:
    """Put a new text into a file of mode 0600; readers see the old one or the new one.

    `for_unprivileged`: what was started as processes.nobody() is to read it.
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    if for_unprivileged and os.geteuid() == 0:
        user = processes.nobody()
        os.chown(fresh, user.pw_uid, user.pw_gid)
    fresh.replace(file)


def write_passwords(folder: Path, passwords: dict[str, str]) -> None:
    """A server's accounts and their passwords."""
    write_secret(folder / "passwords.json", json.dumps(passwords))


def read_passwords(folder: Path) -> dict[str, str]:
    """As write_passwords() wrote them."""
    passwords: dict[str, str] = json.loads((folder / "passwords.json").read_text())
    return passwords
