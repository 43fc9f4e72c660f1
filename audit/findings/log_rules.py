"""Rules about what the audit log tells, and about how well it is told: one function each, named as its sentence. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from audit.findings.found import Found, Item, many, span
from audit.models.findings import FindingKind, Severity

# what happened is a finding for so long
LOOK_BACK = timedelta(hours=24)
DENIALS_WITHIN = timedelta(hours=1)
DENIALS = 20
BEHIND = timedelta(minutes=2)
WATCH_GAP = timedelta(seconds=10)
LONG_WATCH_GAP = timedelta(minutes=5)
WATCH_SILENT = timedelta(minutes=1)
# a response's line comes this soon after its request's
UNANSWERED = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who made requests, in the log's words. Tokens that are nobody are told apart by their address."""

    vault: str
    display_name: str
    entity_id: str = ""
    address: str = ""

    @property
    def key(self) -> str:
        return f"identity {self.vault} {self.display_name or self.address} {self.entity_id}".rstrip()

    def __str__(self) -> str:
        return self.display_name or (f"somebody at {self.address}" if self.address else "somebody unknown")


@dataclass(frozen=True, slots=True)
class RootUse:
    """Requests of one identity whose token has the policy `root`, within LOOK_BACK."""

    by: Identity
    requests: int
    newest_at: datetime
    examples: tuple[Item, ...] = ()


def a_root_token_is_used(use: RootUse) -> Iterator[Found]:
    if not use.requests:
        return
    yield Found(
        FindingKind.ROOT_TOKEN,
        Severity.HIGH,
        use.by.key,
        f"A root token ({use.by}) made {many(use.requests, 'request')} at {use.by.vault}",
        vault=use.by.vault,
        culprit=str(use.by),
        evidence=use.examples,
        weight=use.requests,
        newest_at=use.newest_at,
    )


@dataclass(frozen=True, slots=True)
class StaticReads:
    """Reads of one static role by one identity within LOOK_BACK. `last_hour`: the hour of the last one."""

    by: Identity
    path: str
    reads: int
    last_hour: datetime


def a_static_database_role_is_read(reads: StaticReads) -> Iterator[Found]:
    if not reads.reads:
        return
    yield Found(
        FindingKind.STATIC_ROLE,
        Severity.LOW,
        f"{reads.by.key} {reads.path}",
        f"{reads.by} reads the static role {reads.path}: a password that it shares with every other reader",
        vault=reads.by.vault,
        culprit=str(reads.by),
        evidence=(Item(f"{many(reads.reads, 'read')} within 24 h, the last in the hour from", reads.last_hour),),
        weight=reads.reads,
    )


@dataclass(frozen=True, slots=True)
class Denials:
    """Requests of one identity that Vault denied within DENIALS_WITHIN. `paths`: the ones that were denied most often."""

    by: Identity
    times: int
    paths: tuple[tuple[str, int], ...] = ()
    addresses: tuple[str, ...] = ()


def somebody_is_denied_again_and_again(denials: Denials) -> Iterator[Found]:
    if denials.times < DENIALS:
        return
    yield Found(
        FindingKind.DENIALS,
        Severity.HIGH if denials.times >= 10 * DENIALS else Severity.MEDIUM,
        denials.by.key,
        f"{denials.by} was denied {many(denials.times, 'time')} within {span(DENIALS_WITHIN.total_seconds())}",
        vault=denials.by.vault,
        culprit=str(denials.by),
        evidence=(
            *(Item(f"{many(times, 'time')}: {what}") for what, times in denials.paths),
            *([Item(f"from {', '.join(denials.addresses)}")] if denials.addresses else []),
        ),
        weight=denials.times,
    )


# the path of requests that name the entity in their body
UNNAMED_ENTITY = "identity/entity"


@dataclass(frozen=True, slots=True)
class EntityChange:
    """A successful update of an identity entity. `disabled` as the request said; None where it did not say, or
    (`readable` is False) where its raw line is in the database no longer."""

    by: Identity
    path: str
    at: datetime
    request_id: str
    disabled: bool | None
    readable: bool = True


def an_entity_was_disabled_or_enabled(changes: tuple[EntityChange, ...]) -> Iterator[Found]:
    """`changes` of one entity."""
    told = sorted(
        (change for change in changes if change.disabled is not None or not change.readable), key=lambda c: c.at
    )
    if not told:
        return
    words = {
        True: "was disabled: its tokens are refused, while its leases live on",
        False: "was enabled: its tokens work",
        None: "was changed; whether it was disabled cannot be read any more",
    }
    last = told[-1]
    named = last.path != UNNAMED_ENTITY
    entity = f"Entity {last.path.rpartition('/')[2]}" if named else "An entity that the log does not name"
    yield Found(
        FindingKind.ENTITY_CHANGED,
        Severity.MEDIUM,
        f"entity {last.by.vault} {last.path if named else last.request_id}",
        f"{entity} {words[last.disabled]}",
        vault=last.by.vault,
        culprit=str(last.by),
        evidence=tuple(
            Item(
                f"{words[change.disabled].partition(':')[0].removeprefix('was ')} by {change.by}, request {change.request_id}",
                change.at,
            )
            for change in reversed(told)
        ),
        weight=len(told),
        newest_at=last.at,
    )


@dataclass(frozen=True, slots=True)
class EditsLeftOut:
    """There are more edits of entities than are looked at: those before `since` are left out."""

    most: int
    since: datetime


def not_every_edit_of_an_entity_is_looked_at(left_out: EditsLeftOut) -> Iterator[Found]:
    yield Found(
        FindingKind.ENTITY_CHANGED,
        Severity.LOW,
        "edits of entities that were left out",
        f"Of more than {many(left_out.most, 'edit')} of entities within {span(LOOK_BACK.total_seconds())} only the newest are looked at: an "
        "older one that disabled an entity is not told",
        evidence=(Item("the oldest that was looked at", left_out.since),),
    )


@dataclass(frozen=True, slots=True)
class DeviceDisabled:
    """A successful request that disabled an audit device, or one whose answer nothing logged (not `answered`)."""

    by: Identity
    device: str
    at: datetime
    request_id: str
    address: str
    answered: bool = True


def an_audit_device_was_disabled(disabled: DeviceDisabled) -> Iterator[Found]:
    yield Found(
        FindingKind.DEVICE_DISABLED,
        Severity.HIGH,
        f"device {disabled.by.vault} {disabled.device}",
        f"Audit device {disabled.device} of {disabled.by.vault} was disabled"
        + ("" if disabled.answered else ", it seems: no device logged Vault's answer"),
        vault=disabled.by.vault,
        culprit=str(disabled.by),
        evidence=(
            Item(
                f"by {disabled.by} from {disabled.address or 'an unknown address'}, request {disabled.request_id}",
                disabled.at,
            ),
        ),
        newest_at=disabled.at,
    )


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is followed. `missing_since`: Vault lists it no longer. `anew_at`: its salt was found to be another."""

    vault: str
    name: str
    missing_since: datetime | None = None
    anew_at: datetime | None = None


def vault_lists_an_audit_device_no_longer(device: Device) -> Iterator[Found]:
    if device.missing_since is None:
        return
    yield Found(
        FindingKind.DEVICE_DISABLED,
        Severity.HIGH,
        f"device {device.vault} {device.name} is missing",
        f"Vault {device.vault} does not list the audit device {device.name}, which Leasehold follows",
        vault=device.vault,
        evidence=(Item("not listed since", device.missing_since),),
    )


def an_audit_device_was_enabled_anew(device: Device) -> Iterator[Found]:
    if device.anew_at is None:
        return
    yield Found(
        FindingKind.DEVICE_ANEW,
        Severity.MEDIUM,
        f"device {device.vault} {device.name}",
        f"Audit device {device.name} of {device.vault} was enabled anew: its hashes are others, and while it was off it logged nothing",
        vault=device.vault,
        evidence=(Item("noticed by the hash of a fixed text, which was another", device.anew_at),),
        newest_at=device.anew_at,
    )


@dataclass(frozen=True, slots=True)
class StreamFact:
    """A stream that is read. `behind`: how old the last line is that was read where more waits."""

    pk: int
    vault: str
    name: str
    refused: str = ""
    behind: timedelta = timedelta(0)
    last_line_at: datetime | None = None


def a_device_logs_raw_secrets(stream: StreamFact) -> Iterator[Found]:
    if not stream.refused:
        return
    yield Found(
        FindingKind.RAW_DEVICE,
        Severity.HIGH,
        f"stream {stream.name}",
        f"Stream {stream.name} carries raw secrets: nothing of it is taken",
        vault=stream.vault,
        evidence=(Item(stream.refused, stream=stream.pk),),
    )


def a_stream_is_read_too_late(stream: StreamFact) -> Iterator[Found]:
    if stream.behind <= BEHIND or stream.refused:
        return
    yield Found(
        FindingKind.LAG,
        Severity.MEDIUM,
        f"stream {stream.name}",
        f"Stream {stream.name} is read more than {span(BEHIND.total_seconds())} too late: what is shown is from then",
        vault=stream.vault,
        evidence=(Item("the last line that was read is of", stream.last_line_at, stream=stream.pk),),
    )


@dataclass(frozen=True, slots=True)
class Missing:
    """Lines that are known to be missing from a stream; those that turned up since are not."""

    what: str
    from_at: datetime | None
    to_at: datetime


def audit_lines_are_missing(stream: StreamFact, missing: tuple[Missing, ...]) -> Iterator[Found]:
    if not missing:
        return
    newest = max(gap.to_at for gap in missing)
    yield Found(
        FindingKind.GAP,
        Severity.HIGH,
        f"stream {stream.name}",
        f"Lines are missing from stream {stream.name}: {many(len(missing), 'gap')} within 24 h",
        vault=stream.vault,
        evidence=tuple(
            Item(gap.what, gap.to_at, stream=stream.pk) for gap in sorted(missing, key=lambda g: g.to_at)[::-1]
        ),
        weight=len(missing),
        newest_at=newest,
    )


@dataclass(frozen=True, slots=True)
class Watched:
    """A cluster: stretches in which no change of its pods can have been missed, oldest first, and until when to judge."""

    cluster: str
    periods: tuple[tuple[datetime, datetime], ...]
    now: datetime


def the_pod_watch_had_a_gap(watched: Watched) -> Iterator[Found]:
    # one that was never watched waits for its first list: the sources page says so
    gaps: list[tuple[datetime, datetime | None]] = []
    until: datetime | None = None
    for from_at, to_at in watched.periods:
        if until is not None and from_at - until >= WATCH_GAP:
            gaps.append((until, from_at))
        until = to_at if until is None else max(until, to_at)
    if until is not None and watched.now - until > WATCH_SILENT:
        gaps.append((until, None))
    if not gaps:
        return
    long = any(to_at is None or to_at - from_at > LONG_WATCH_GAP for from_at, to_at in gaps)
    lasts = gaps[-1][1] is None
    yield Found(
        FindingKind.WATCH_GAP,
        Severity.MEDIUM if long else Severity.LOW,
        f"cluster {watched.cluster}",
        f"Pods of cluster {watched.cluster} "
        + (
            "are not watched: no pod can be named with certainty"
            if lasts
            else "were not watched for a while: leases read then may lack their pod"
        ),
        evidence=tuple(
            Item(
                f"no change was seen for {span((to_at - from_at).total_seconds())}, from" if to_at else "nothing since",
                from_at,
            )
            for from_at, to_at in reversed(gaps)
        ),
        weight=len(gaps),
        newest_at=gaps[-1][1] or gaps[-1][0],
    )


@dataclass(frozen=True, slots=True)
class Contradictions:
    """Lines of a stream whose request was known with other content, within LOOK_BACK."""

    lines: int
    newest_at: datetime
    examples: tuple[Item, ...] = ()


def two_lines_contradict_each_other(stream: StreamFact, found: Contradictions) -> Iterator[Found]:
    if not found.lines:
        return
    yield Found(
        FindingKind.CONFLICT,
        Severity.HIGH,
        f"stream {stream.name}",
        f"{many(found.lines, 'line')} of stream {stream.name} {'says' if found.lines == 1 else 'say'} other things of a request "
        "than a line before",
        vault=stream.vault,
        evidence=found.examples,
        weight=found.lines,
        newest_at=found.newest_at,
    )


@dataclass(frozen=True, slots=True)
class FailedRevocation:
    """A revocation of this product's whose end is `failed` while its lease lives, or `unverified`."""

    pk: int
    action: str
    vault: str
    lease: int
    lease_id: str
    state: str
    by: str
    at: datetime


def a_revocation_did_not_end_its_lease_for_sure(revocation: FailedRevocation) -> Iterator[Found]:
    failed = revocation.state == "failed"
    yield Found(
        FindingKind.REVOCATION_FAILED,
        Severity.HIGH if failed else Severity.MEDIUM,
        f"lease {revocation.vault} {revocation.lease_id}",
        "A revocation failed: the lease may still work"
        if failed
        else "A revocation was not verified: nobody has seen that the database user and its sessions are gone",
        vault=revocation.vault,
        evidence=(
            Item(f"requested by {revocation.by}", revocation.at, action=revocation.action),
            Item(revocation.lease_id, lease=revocation.lease),
        ),
        newest_at=revocation.at,
    )
