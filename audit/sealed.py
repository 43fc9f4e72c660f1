"""Text that only this installation's processes can read, for the way through the broker. The one module that imports Fernet.

The key follows from LEASEHOLD_SECRET_KEY, which web and workers share.
"""

import base64
import hashlib
from typing import TYPE_CHECKING

from django.conf import settings

# 12 MB of memory that only those pay who seal: imported where it is used
if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class NotReadable(Exception):
    """It was sealed with another key, altered, or too long ago."""


def seal(text: str) -> str:
    return _fernet().encrypt(text.encode()).decode()


def unseal(sealed: str, *, seconds: int) -> str:
    """The text, if it was sealed no longer ago than that. Raises NotReadable."""
    from cryptography.fernet import InvalidToken

    try:
        return _fernet().decrypt(sealed.encode(), ttl=seconds).decode()
    except InvalidToken as error:
        raise NotReadable("LEASEHOLD_SECRET_KEY of the two processes differs, or it came too late") from error


def _fernet() -> "Fernet":
    from cryptography.fernet import Fernet

    # https://cryptography.io/en/latest/fernet/: 32 bytes, in base64
    key = hashlib.sha256(b"leasehold sealed text\n" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
