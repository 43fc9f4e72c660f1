"""Who runs a command on this machine. No models."""

import getpass
import os


def user() -> str:
    """Of this machine; in a container its number may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
