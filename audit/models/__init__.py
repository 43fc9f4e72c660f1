"""Tables of what happened: streams and their raw blocks, events and what is derived from them, how attribution changed."""

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
from audit.models.heads import HeadsDocument, Signing
from audit.models.history import AttributionChange
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
    "Device",
    "Dropped",
    "Ending",
    "Event",
    "FurtherSighting",
    "Gap",
    "Hash",
    "HeadsDocument",
    "Hourly",
    "Housekeeping",
    "Kind",
    "LeaseToken",
    "Moved",
    "RawBlock",
    "RejectedLine",
    "Renewals",
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
