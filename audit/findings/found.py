"""What a rule yields. Pure: no database, no clock."""

from dataclasses import dataclass
from datetime import datetime

from audit.models.findings import FindingKind, Severity


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of evidence, with what it can be looked up under: keys of a lease, a stream or an action, a pod's name."""

    text: str
    at: datetime | None = None
    lease: int | None = None
    stream: int | None = None
    action: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """A service account of a cluster, by whose logins a vault issues leases."""

    vault: str
    cluster: str
    namespace: str
    name: str

    @property
    def key(self) -> str:
        return f"account {self.vault} {self.cluster}/{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Role:
    """A role of a database mount, and the database that it opens, empty where that is not known."""

    vault: str
    mount: str
    name: str
    database: str = ""

    @property
    def key(self) -> str:
        return f"role {self.vault} {self.mount}/{self.name}"

    def __str__(self) -> str:
        return f"{self.database or self.mount} as {self.name or 'an unknown role'}"


@dataclass(frozen=True, slots=True)
class Found:
    """A finding as a rule sees it now. `weight`: how much of it there is; `newest_at`: of what happens again and again."""

    kind: FindingKind
    severity: Severity
    key: str
    summary: str
    vault: str = ""
    culprit: str = ""
    account: Account | None = None
    evidence: tuple[Item, ...] = ()
    weight: int = 1
    newest_at: datetime | None = None


def many(number: int, thing: str, things: str = "") -> str:
    """1 lease, 2 leases, 1,234 leases"""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def span(seconds: float) -> str:
    """In one unit, rounded down: 40 s, 12 min, 5 h, 3 d."""
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name}"
    return f"{int(seconds)} s"
