"""queue(): which receivers are to be told of which changes, written in the transaction that records the changes."""

from collections.abc import Iterable, Sequence

from audit.models.findings import FindingChange
from audit.models.notices import NoticeLine, Receiver

Change = FindingChange.Change


def queue(changes: Sequence[FindingChange]) -> None:
    """The caller's transaction holds the changes too: none is recorded and not told, or told and not recorded."""
    receivers = list(Receiver.objects.filter(retired=False).order_by("id")) if changes else []
    if not receivers:
        return
    open_for = _known_open([change.finding_id for change in changes if change.change == Change.CLOSED])
    lines = [
        NoticeLine(receiver=receiver, finding_id=change.finding_id, change=change, at=change.at)
        for change in changes
        for receiver in receivers
        if is_told(change, receiver, knows_it=(receiver.pk, change.finding_id) in open_for)
    ]
    NoticeLine.objects.bulk_create(lines, batch_size=500)


def is_told(change: FindingChange, receiver: Receiver, *, knows_it: bool) -> bool:
    """What comes is told from the receiver's severity on; that it went, to whom it was told that it is there. Pure."""
    return knows_it if change.change == Change.CLOSED else change.severity >= receiver.severity


def _known_open(findings: Iterable[int]) -> set[tuple[int, int]]:
    """(receiver, finding) where the last that was told, or waits to be, is not that it closed."""
    rows = NoticeLine.objects.filter(finding__in=list(findings)).order_by("receiver", "finding", "-id")
    last = rows.distinct("receiver", "finding").values_list("receiver", "finding", "change__change")
    return {(receiver, finding) for receiver, finding, change in last if change != Change.CLOSED}
