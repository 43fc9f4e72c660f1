"""Who has which lease and under which token, so far as it passed through the pods' networks; writes it into the truth.

One for all pods: a lease can be ended by somebody else than its holder, and a wrapped answer opened by another pod.
Tokens are known by their SHA-256 only.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from demo import truth

# DESIGN's words for how a lease ends, as far as they happen here
REVOKED, BY_PREFIX, FORCED = "revoked in Vault", "by prefix", "forced (database user may live)"
TOKEN_REVOKED, EXPIRED = "token revoked", "expired (inferred)"
# what became of a wrapped answer: its lease is in nobody's hand as long as nobody opens it
READ_WRAPPED, OPENED = "read wrapped", "opened"
# seconds; a lease so near to its expiry may have ended of itself
_MARGIN = 2.0


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `deeds.ndjson`: how exactly a lease was ended, which the truth's reason does not tell.

    Of a wrapped answer `lease_id` is its wrapping token's SHA-256: the lease's id is known to whoever opens it.
    """

    at: str
    deed: str
    lease_id: str


@dataclass(slots=True)
class Issued:
    """A lease; `token` is whose it is, `until` on the monotonic clock."""

    lease_id: str
    pod: truth.Pod
    database: str | None
    database_user: str | None
    token: bytes
    until: float
    since: float = field(default_factory=time.monotonic)
    renewals: int = 0


@dataclass(frozen=True, slots=True)
class Wrapped:
    """An answer that was read but is not opened yet."""

    pod: truth.Pod
    database: str
    token: bytes
    at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Book:
    """All leases that have not ended so far as is known, by id."""

    file: Path
    leases: dict[str, Issued] = field(default_factory=dict)
    _children: dict[bytes, list[bytes]] = field(default_factory=dict)
    _wrapped: dict[bytes, Wrapped] = field(default_factory=dict)

    def login(self, pod: truth.Pod) -> None:
        """A pod logged in."""
        truth.record(self.file, "login", pod)

    def wrapped(self, wrapping_token: str, pod: truth.Pod, database: str, token: bytes) -> None:
        """A pod read a credential, but got only a token to open it with: its lease's id comes then."""
        self._wrapped[digest(wrapping_token)] = Wrapped(pod, database, token)
        self.note(READ_WRAPPED, digest(wrapping_token).hex())

    def unwrapped(self, wrapping_token: bytes, lease_id: str, user: str | None, seconds: float) -> None:
        """Somebody opened such an answer. Its lease belongs to the token that read it."""
        if lease_id and (read := self._wrapped.pop(wrapping_token, None)):
            # its time runs since it was read
            self.issue(read.pod, lease_id, read.database, user, read.token, seconds - (time.monotonic() - read.at))
            # last: whoever finds it opened finds its lease too
            self.note(OPENED, wrapping_token.hex())

    def issue(
        self, pod: truth.Pod, lease_id: str, database: str, user: str | None, token: bytes, seconds: float
    ) -> None:
        """A pod got a lease for so long."""
        self.leases[lease_id] = Issued(lease_id, pod, database, user, token, time.monotonic() + seconds)
        truth.record(self.file, "issue", pod, lease_id=lease_id, database=database, database_user=user)

    def renew(self, pod: truth.Pod, lease_id: str, seconds: float) -> None:
        """A pod renewed a lease."""
        lease = self.leases.get(lease_id)
        if lease:
            lease.until, lease.renewals = time.monotonic() + seconds, lease.renewals + 1
        truth.record(
            self.file,
            "renew",
            pod,
            lease_id=lease_id,
            database=lease.database if lease else None,
            database_user=lease.database_user if lease else None,
        )

    def child(self, parent: bytes, child: str) -> None:
        """A token made another one, which ends with it."""
        self._children.setdefault(parent, []).append(digest(child))

    def token_revoked(self, token: bytes, *, deed: str) -> None:
        """The token's leases went with it and so did its children's, except those that had already run out."""
        family = set(self._family(token))
        for lease in [lease for lease in self.leases.values() if lease.token in family]:
            self.end(lease.lease_id, TOKEN_REVOKED, deed=deed)

    def _family(self, token: bytes) -> Iterator[bytes]:
        yield token
        for child in self._children.pop(token, []):
            yield from self._family(child)

    def prefix_revoked(self, prefix: str, reason: str, *, deed: str) -> None:
        """Everything below this path is gone."""
        for lease_id in [lease_id for lease_id in self.leases if lease_id.startswith(prefix)]:
            self.end(lease_id, reason, deed=deed)

    def end(self, lease_id: str, reason: str, *, deed: str) -> None:
        """A lease was ended; not written if it may have run out before, or was ended before."""
        lease = self.leases.pop(lease_id, None)
        if lease and (reason == EXPIRED or lease.until > time.monotonic() + _MARGIN):
            truth.record(
                self.file,
                "end",
                lease.pod,
                lease_id=lease_id,
                database=lease.database,
                database_user=lease.database_user,
                reason=reason,
            )
            self.note(deed, lease_id)

    def note(self, deed: str, lease_id: str) -> None:
        """One line of `deeds.ndjson`."""
        line = Deed(at=truth.now(), deed=deed, lease_id=lease_id)
        truth.append(deeds_file(self.file), msgspec.json.encode(line))

    def forget_expired(self) -> None:
        """What ran out a minute ago is gone, and nobody saw it."""
        gone = time.monotonic() - 60
        for lease_id in [lease_id for lease_id, lease in self.leases.items() if lease.until < gone]:
            del self.leases[lease_id]


def digest(token: str) -> bytes:
    """How a token is known here."""
    return hashlib.sha256(token.encode()).digest()


def deeds_file(truth_file: Path) -> Path:
    """Beside the truth."""
    return truth_file.with_name("deeds.ndjson")
