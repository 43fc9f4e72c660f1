"""manifest.json and manifest.sig: what a pack holds, in one way of writing it, and the key that signs it."""

import msgspec

from audit import ed25519
from audit.pack.values import Manifest
from audit.pack.verifier import FORMAT, MANIFEST, SIGNATURE
from leases.models import Policy
from leases.references import read_secret

__all__ = ["FORMAT", "MANIFEST", "SIGNATURE", "encode", "read", "signer"]


def signer() -> ed25519.Signer | None:
    """The key that signs heads, too; None where none is configured. Raises SourceError where it cannot be read."""
    reference = Policy.current().heads_key
    return ed25519.signer(read_secret(reference)) if reference else None


def encode(manifest: Manifest) -> bytes:
    """JSON on one line, with sorted keys and no space."""
    return msgspec.json.encode(manifest, order="sorted") + b"\n"


def read(data: bytes) -> Manifest:
    """Raises msgspec.ValidationError for one of another version."""
    return msgspec.json.decode(data, type=Manifest)
