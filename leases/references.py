"""Secrets by reference: the configuration says where a secret lies, never what it is."""

import os
from collections.abc import Mapping
from pathlib import Path

from leases.errors import SourceError


class SecretUnavailable(SourceError):
    """A referenced secret cannot be read. `cause` and `fix` are for an operator; the secret itself is never in them."""


def read_secret(reference: Mapping[str, str]) -> str:
    """The text behind `{"env": NAME}` or `{"file": PATH}`, read anew each time, since mounted secrets rotate."""
    if name := reference.get("env"):
        value = os.environ.get(name, "")
        if not value:
            raise SecretUnavailable(
                f"The environment variable {name} is empty", f"Set {name} for the workers, then restart them."
            )
        return value
    path = Path(reference.get("file", ""))
    try:
        value = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise SecretUnavailable(
            f"The secret file {path} cannot be read ({getattr(error, 'strerror', None) or 'not text'})",
            "Mount it, or correct its path in leasehold.toml, and make it readable for the workers' user.",
        ) from error
    if not value:
        raise SecretUnavailable(f"The secret file {path} is empty", "Write the secret into it.")
    return value
