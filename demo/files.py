"""Writing files that others read at any moment, and that hold secrets."""

import os
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Put a new text into a file of mode 0600; readers see the old one or the new one."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    fresh.replace(file)
