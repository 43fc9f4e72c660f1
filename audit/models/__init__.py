"""Tables of what happened: streams and their raw blocks, logs of database servers, events and what is derived from them, how attribution changed, findings."""

from audit.models.database_logs import DatabaseLog, LogFormat, ServerStart
from audit.models.events import (
    Ending,
    Event,
    FurtherSighting,
    Hash,
    Hourly,
    Kind,
    LeaseToken,
    Renewals,
    Sighting,
    Text,
    Token,
    Unwrapping,
    What,
    Who,
    Wrapping,
)
from audit.models.findings import Finding, FindingChange, FindingKind, Look, Severity
from audit.models.heads import HeadsDocument, Signing
from audit.models.history import AttributionChange
from audit.models.notices import Notice, NoticeLine, NoticeState, Receiver
from audit.models.retention import Dropped, Housekeeping, Moved
from audit.models.streams import (
    BlockLines,
    Conflict,
    Coverage,
    Device,
    Gap,
    RawBlock,
    RejectedLine,
    Stream,
)

__all__ = [
    "AttributionChange",
    "BlockLines",
    "Conflict",
    "Coverage",
    "DatabaseLog",
    "Device",
    "Dropped",
    "Ending",
    "Event",
    "Finding",
    "FindingChange",
    "FindingKind",
    "FurtherSighting",
    "Gap",
    "Hash",
    "HeadsDocument",
    "Hourly",
    "Housekeeping",
    "Kind",
    "LeaseToken",
    "LogFormat",
    "Look",
    "Moved",
    "Notice",
    "NoticeLine",
    "NoticeState",
    "RawBlock",
    "Receiver",
    "RejectedLine",
    "Renewals",
    "ServerStart",
    "Severity",
    "Sighting",
    "Signing",
    "Stream",
    "Text",
    "Token",
    "Unwrapping",
    "What",
    "Who",
    "Wrapping",
]
