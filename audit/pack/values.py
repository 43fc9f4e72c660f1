"""The figures of an evidence pack as typed values: what its manifest holds, and what is drawn from it. Times are UTC.

Lists that could have any length are cut, and the number of what was left out stands beside them: the CSVs have all of it.
"""

from datetime import datetime

import msgspec

# of any list below
MOST = 500


class Stretch(msgspec.Struct, frozen=True):
    """[from, to)."""

    from_at: datetime = msgspec.field(name="from")
    to_at: datetime = msgspec.field(name="to")


# --- completeness ------------------------------------------------------------------------------------------------


class Hole(msgspec.Struct, frozen=True):
    """A stretch of the period of which something of a stream is missing. `also_in`: streams of the same node that lack nothing then."""

    what: str
    from_at: datetime = msgspec.field(name="from")
    to_at: datetime = msgspec.field(name="to")
    also_in: list[str] = []


class GapTold(msgspec.Struct, frozen=True):
    """Lines that were lost; without `from` nobody knows since when. `closed`: all that was missing has come since.

    `rows` gaps that follow on one another are one.
    """

    kind: str
    what: str
    to_at: datetime = msgspec.field(name="to")
    from_at: datetime | None = msgspec.field(name="from", default=None)
    lost_bytes: int | None = None
    closed: bool = False
    rows: int = 1


class Lines(msgspec.Struct):
    """What became of the lines of the hours that the period touches. lines = 2 pairs + unpaired + those that are in no event."""

    lines: int = 0
    pairs: int = 0
    unpaired: int = 0
    duplicates: int = 0
    rejected: int = 0
    expired: int = 0
    conflicts: int = 0
    redacted: int = 0


class StreamCoverage(msgspec.Struct, frozen=True):
    """One stream in the period.

    `way`: followed, pushed, or read by hand. `counts`: whether it is judged; a stream that was given up before the period
    is not. `hours`: how many of each state, by audit.hours.State. `read_until`: every line up to then is known to be read.
    `lag_seconds`: from there to the end of what is judged. `blocks_dropped` of the period's days are in the database no
    longer; `blocks_archived` of those are in the archive.
    """

    stream: str
    vault: str
    device: str
    node: str
    way: str
    counts: bool
    retired: bool
    refused: str
    first_line_at: datetime | None
    last_line_at: datetime | None
    read_until: datetime | None
    lag_seconds: float | None
    unread_bytes: int
    longest_wait_seconds: float
    hours: dict[str, int]
    lines: Lines
    gaps: list[GapTold]
    more_gaps: int
    holes: list[Hole]
    more_holes: int
    blocks_dropped: int
    blocks_archived: int


class PodWatch(msgspec.Struct, frozen=True):
    """A cluster whose pods are watched. `gaps`: stretches in which changes may have been missed; accesses of then name no pod by address."""

    cluster: str
    gaps: list[Stretch]
    more_gaps: int
    gap_seconds: float


class SampledDatabase(msgspec.Struct, frozen=True):
    """How long a database's sessions were sampled, and its log read, within the period. Without either nothing is known of use."""

    database: str
    sampled_seconds: float
    logged_seconds: float
    gaps: list[Stretch]
    more_gaps: int


class Completeness(msgspec.Struct, frozen=True):
    """`complete` only where there is no hole; `word` says so or refuses to; `reasons`: sentences, one for each hole."""

    complete: bool
    word: str
    reasons: list[str]
    more_reasons: int
    # the period's end, or the pack's making where that was earlier
    judged_until: datetime
    streams: list[StreamCoverage]
    unwatched_vaults: list[str]
    # reads of credentials whose answer is not in the log: whether they issued a lease is not known
    unanswered_reads: int
    # days whose events were dropped, as the policy says
    events_dropped: list[str]
    pods: list[PodWatch]
    sessions: list[SampledDatabase]
    # what no audit log and no watch can show, in words
    not_covered: list[str]


# --- certainty -----------------------------------------------------------------------------------------------------


class Reason(msgspec.Struct, frozen=True):
    """`reason` without names and addresses, so that alike ones are one."""

    reason: str
    accesses: int


class Share(msgspec.Struct, frozen=True):
    certainty: str
    meaning: str
    accesses: int
    # of all accesses, in percent with two decimals; 0 where there are none
    percent: float
    reasons: list[Reason]


class Certainties(msgspec.Struct, frozen=True):
    """Of how many accesses the pod is known how well. Every certainty has an entry; the accesses add up."""

    word: str
    accesses: int
    shares: list[Share]


# --- figures -------------------------------------------------------------------------------------------------------


class DatabaseFigures(msgspec.Struct, frozen=True):
    """`accesses`: credential reads in the period, by how many service accounts and pods. Lifetimes are of leases issued in it,
    from issue to end, in seconds; of those that live, to their expiry. `limit_seconds` as configured when the pack was made."""

    database: str
    accesses: int
    service_accounts: int
    pods: int
    unknown_holders: int
    issued: int
    longest_seconds: float | None
    longest_lease: str
    limit_seconds: int | None
    over_limit: int
    lifetime_unknown: int


class AccountFigures(msgspec.Struct, frozen=True):
    """One service account's accesses; empty names where nobody is known."""

    cluster: str
    namespace: str
    service_account: str
    accesses: int
    databases: list[str]
    pods: int
    last_at: datetime


class RevocationFigures(msgspec.Struct, frozen=True):
    """One lease that somebody here asked to revoke. `seconds`: until lease and user were seen gone; none where that was not verified."""

    lease_id: str
    by: str
    reason: str
    requested_at: datetime
    state: str
    verified_at: datetime | None
    seconds: float | None


class Revocations(msgspec.Struct, frozen=True):
    requested: int
    verified: int
    # time to contain, of the verified ones
    fastest_seconds: float | None
    median_seconds: float | None
    slowest_seconds: float | None
    rows: list[RevocationFigures]
    more_rows: int


class FindingFigures(msgspec.Struct, frozen=True):
    """Findings that were open at some time in the period."""

    kind: str
    severity: str
    findings: int
    # when the pack was made
    still_open: int


class Exceptions(msgspec.Struct, frozen=True):
    findings: list[FindingFigures]
    # requests that a policy denied
    denials: int
    # accesses of which neither pod nor service account is known, and leases first seen in the period that no read was seen of
    unknown_holders: int
    leases_without_read: int
    # reads of static roles' credentials, which have no lease and stand in no table of accesses
    static_reads: int


class Figures(msgspec.Struct, frozen=True):
    accesses: int
    leases: int
    databases: list[DatabaseFigures]
    accounts: list[AccountFigures]
    more_accounts: int
    revocations: Revocations
    exceptions: Exceptions
    first_event_at: datetime | None
    last_event_at: datetime | None
    first_access_at: datetime | None
    last_access_at: datetime | None


# --- sample, chains, files -----------------------------------------------------------------------------------------


class Sample(msgspec.Struct, frozen=True):
    """Accesses drawn at random: `rows` are numbers of rows of accesses.csv. How to draw it again stands in VERIFY.txt."""

    size: int
    seed: str
    rows: list[int]


class BlockAt(msgspec.Struct, frozen=True):
    """A block of a chain: number, SHA-256, and how many lines the chain has up to it. 0 and empty before the first one."""

    sequence: int
    sha256: str
    lines: int


class Chain(msgspec.Struct, frozen=True):
    """One stream's chain. No block up to `start` has a line of the period. `end`: the last one that has, as far as the times
    of blocks tell. `made`: the head when the pack was made."""

    vault: str
    device: str
    node: str
    start: BlockAt
    end: BlockAt
    made: BlockAt

    @property
    def stream(self) -> tuple[str, str, str]:
        return self.vault, self.device, self.node


class SignedHeads(msgspec.Struct, frozen=True):
    """Documents of signed heads (docs/integrity.md) of the period, by number, and the first one after it."""

    first: int | None
    last: int | None
    documents: int
    after: int | None


class File(msgspec.Struct, frozen=True):
    """`rows`: of a CSV, without its header."""

    name: str
    sha256: str
    bytes: int
    rows: int | None = None


class Manifest(msgspec.Struct, frozen=True):
    """manifest.json. Without `public_key` nobody has signed it."""

    format: str
    report_id: str
    from_at: datetime = msgspec.field(name="from")
    to_at: datetime = msgspec.field(name="to")
    # by which rows were left out; none yet
    filters: dict[str, str]
    made_at: datetime
    made_by: str
    reason: str
    software: str
    files: list[File]
    chains: list[Chain]
    signed_heads: SignedHeads
    completeness: Completeness
    certainty: Certainties
    figures: Figures
    sample: Sample
    public_key: str
    fingerprint: str
