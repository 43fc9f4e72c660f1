"""Ed25519 keys and signatures (RFC 8032), through cryptography, which only this module imports. A private key never leaves it.

Keys are PEM files as `openssl genpkey -algorithm ed25519` writes them. A fingerprint is the SHA-256 in hex of the 32 raw bytes
of a public key.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leases.errors import SourceError

# 12 MB of memory that only those pay who sign or check: imported where it is used
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAKE_ONE = "Make one with `manage.py make_signing_key PATH`, or `openssl genpkey -algorithm ed25519`."


class KeyUnusable(SourceError):
    """A key cannot be used. `cause` and `fix` hold nothing of what was read."""


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key; `public`: the raw public key that belongs to it."""

    public: bytes
    _key: "Ed25519PrivateKey"

    def sign(self, data: bytes) -> bytes:
        """64 bytes; the same each time for the same data."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"Signer({fingerprint(self.public)})"


def new_pair() -> tuple[bytes, bytes]:
    """A new private key and its public one, both PEM (PKCS#8, SubjectPublicKeyInfo)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def signer(pem: str) -> Signer:
    """Raises KeyUnusable."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # not chained: whatever a parser says of a private key stays out of every log
        raise KeyUnusable("The signing key is no PEM file of a private key without a password", MAKE_ONE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable("The signing key is not an Ed25519 key", MAKE_ONE)
    return Signer(key.public_key().public_bytes_raw(), key)


def public_key(pem: bytes) -> bytes:
    """The raw public key of a PEM file. Raises KeyUnusable."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable(
            "It is no PEM file of an Ed25519 public key", "Name the .pub file that lies beside the signing key."
        )
    return key.public_bytes_raw()


def fingerprint(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()


def holds(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether that key signed these bytes."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
