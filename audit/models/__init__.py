"""Tables of what happened: streams and their raw blocks, events and their sightings, how attribution changed."""

from audit.models.events import Event, LoginKey, Sighting
from audit.models.history import AttributionChange
from audit.models.streams import Device, RawBlock, RejectedLine, Stream

__all__ = ["AttributionChange", "Device", "Event", "LoginKey", "RawBlock", "RejectedLine", "Sighting", "Stream"]
