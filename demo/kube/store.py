"""Objects, their resource versions and the recent history, as etcd and the watch cache keep them; knows no HTTP.

Every write is appended to a file, so that a restarted server has its objects again (but, like the real one, no
history from before the restart: an older watch gets 410).
"""

import asyncio
import base64
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from demo.kube import resources as known_resources
from demo.kube import status
from demo.kube.status import ApiError, Json, Resource

_HISTORY = 10_000  # changes that a watch can still start before
_SNAPSHOTS = 32  # paged lists that can be continued at one time
_WATCH_BACKLOG = 10_000  # changes that wait for a slow watcher before it is cut off

Key = tuple[str, str]  # namespace (empty for cluster-wide objects), name


class Entry(NamedTuple):
    """One stored object; `encoded` is its JSON."""

    object: Json
    encoded: bytes


class Change(NamedTuple):
    """One write: `kind` is ADDED, MODIFIED or DELETED."""

    version: int
    kind: str
    resource: Resource
    namespace: str
    encoded: bytes


class Page(NamedTuple):
    """A part of a list; all parts of one list show the same moment, `version`."""

    version: int
    items: list[bytes]
    following: str  # the continue token, empty on the last page
    remaining: int


class Watcher(NamedTuple):
    """Somebody who wants the changes of one resource; an empty namespace means all. None in the queue: cut off."""

    resource: Resource
    namespace: str
    queue: asyncio.Queue[Change | None]


class Store:
    """All state of one cluster. Used from one event loop only, so nothing here needs a lock."""

    def __init__(self, log: Path, resources: Iterable[Resource]) -> None:
        # so that a cluster made anew is ahead of what its predecessor at the same address counted: whoever goes on with
        # an old version gets 410 instead of missing everything in silence
        self.version = int(time.time() * 100)
        self._objects: dict[Resource, dict[Key, Entry]] = {resource: {} for resource in resources}
        self._history: deque[Change] = deque()
        self._snapshots: dict[str, tuple[int, list[bytes]]] = {}
        self._watchers: dict[int, Watcher] = {}
        if log.exists():
            self._replay(log)
        self.compacted = self.version
        fresh = log.with_suffix(".new")
        with fresh.open("wb") as file:
            for resource, entries in self._objects.items():
                for entry in entries.values():
                    file.write(_line(int(entry.object["metadata"]["resourceVersion"]), "ADDED", resource, entry))
            file.write(msgspec.json.encode([self.version]) + b"\n")
        fresh.replace(log)
        self._log = log.open("ab", buffering=0)

    def serve(self, definition: Json) -> None:
        """From now on there may be objects of this CustomResourceDefinition."""
        self._objects.setdefault(known_resources.defined_by(definition), {})

    def served(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource of that name, None if there is none."""
        wanted = (group, version, plural)
        return next((one for one in self._objects if (one.group, one.version, one.plural) == wanted), None)

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """One object; raises 404. Not to be changed in place: hand a changed copy to put()."""
        entry = self.entry(resource, namespace, name)
        return entry.object

    def entry(self, resource: Resource, namespace: str, name: str) -> Entry:
        """One object with its JSON; raises 404."""
        try:
            return self._objects[resource][namespace, name]
        except KeyError:
            raise status.not_found(resource, name) from None

    def find(self, resource: Resource, namespace: str, name: str) -> Json | None:
        """One object, or None."""
        entry = self._objects[resource].get((namespace, name))
        return entry.object if entry else None

    def all(self, resource: Resource, namespace: str = "") -> list[Entry]:
        """In the order of their keys."""
        entries = self._objects[resource]
        return [entries[key] for key in sorted(entries) if not namespace or key[0] == namespace]

    def put(self, resource: Resource, changed: Json) -> Entry:
        """Store a new or changed object under the next resource version."""
        metadata = changed["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        kind = "MODIFIED" if key in self._objects[resource] else "ADDED"
        return self._write(kind, resource, key, changed)

    def remove(self, resource: Resource, last: Json) -> Entry:
        """Remove an object; `last` is what watchers see of it, with the version of its end."""
        metadata = last["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        entry = self._write("DELETED", resource, key, last)
        del self._objects[resource][key]
        return entry

    def page(self, resource: Resource, namespace: str, limit: int, following: str) -> Page:
        """Up to `limit` objects (0: all), or what comes after the page that gave `following`; raises 410."""
        if following:
            identity, offset = _continued(following)
            if identity not in self._snapshots:
                raise status.expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a"
                    " new list without the continue parameter, or use the continue token in this response to retrieve"
                    " the remainder of the results."
                )
            version, items = self._snapshots[identity]
        else:
            identity, offset = secrets.token_hex(8), 0
            version, items = self.version, [entry.encoded for entry in self.all(resource, namespace)]
        end = offset + limit if limit else len(items)
        if end < len(items):
            self._snapshots[identity] = (version, items)
            while len(self._snapshots) > _SNAPSHOTS:
                del self._snapshots[next(iter(self._snapshots))]
            return Page(version, items[offset:end], _continue(identity, end), len(items) - end)
        self._snapshots.pop(identity, None)
        return Page(version, items[offset:], "", 0)

    def watch(self, resource: Resource, namespace: str, since: int | None) -> tuple[list[Change], Watcher]:
        """What happened after version `since` (None: everything that is there, as ADDED) and a queue of what follows.

        Raises 410 if the history no longer reaches back to `since`. Hand the watcher to unwatch() in the end.
        """
        if since is None:
            now = self.all(resource, namespace)
            earlier = [
                Change(int(entry.object["metadata"]["resourceVersion"]), "ADDED", resource, namespace, entry.encoded)
                for entry in now
            ]
        elif since < self.compacted:
            raise status.expired(f"too old resource version: {since} ({self.compacted})")
        else:
            earlier = [
                change
                for change in self._history
                if change.version > since
                and change.resource == resource
                and (not namespace or change.namespace == namespace)
            ]
        watcher = Watcher(resource, namespace, asyncio.Queue())
        self._watchers[id(watcher)] = watcher
        return earlier, watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Stop feeding its queue."""
        self._watchers.pop(id(watcher), None)

    def compact(self) -> int:
        """Forget the history and all unfinished lists, as etcd does every few minutes; gives the version."""
        self._history.clear()
        self._snapshots.clear()
        self.compacted = self.version
        return self.compacted

    def _write(self, kind: str, resource: Resource, key: Key, changed: Json) -> Entry:
        self.version += 1
        changed["metadata"]["resourceVersion"] = str(self.version)
        entry = Entry(changed, msgspec.json.encode(changed))
        self._objects[resource][key] = entry
        self._log.write(_line(self.version, kind, resource, entry))
        change = Change(self.version, kind, resource, key[0], entry.encoded)
        self._history.append(change)
        if len(self._history) > _HISTORY:
            self.compacted = self._history.popleft().version
        for watcher in list(self._watchers.values()):
            if watcher.resource == resource and watcher.namespace in ("", key[0]):
                if watcher.queue.qsize() >= _WATCH_BACKLOG:
                    self.unwatch(watcher)
                    watcher.queue.put_nowait(None)
                else:
                    watcher.queue.put_nowait(change)
        return entry

    def _replay(self, log: Path) -> None:
        self.version = 0
        known = {(resource.group, resource.plural): resource for resource in self._objects}
        for line in log.read_bytes().splitlines():
            try:
                version, *rest = msgspec.json.decode(line)
            except msgspec.DecodeError:  # the last line of a server that was killed
                continue
            self.version = max(self.version, version)
            if not rest:
                continue
            kind, group, plural, written = rest
            resource = known[group, plural]
            if resource == known_resources.CUSTOM_RESOURCE_DEFINITIONS:
                self.serve(written)
                custom = known_resources.defined_by(written)
                known[custom.group, custom.plural] = custom
            metadata = written["metadata"]
            key = (metadata.get("namespace", ""), metadata["name"])
            if kind == "DELETED":
                self._objects[resource].pop(key, None)
            else:
                self._objects[resource][key] = Entry(written, msgspec.json.encode(written))


def changed(entry: Json, change: Callable[[Json], None] | None = None) -> Json:
    """A copy of a stored object, on which `change` has worked."""
    copy: Json = msgspec.json.decode(msgspec.json.encode(entry))
    if change:
        change(copy)
    return copy


def _line(version: int, kind: str, resource: Resource, entry: Entry) -> bytes:
    parts = [version, kind, resource.group, resource.plural, msgspec.Raw(entry.encoded)]
    return msgspec.json.encode(parts) + b"\n"


def _continue(identity: str, offset: int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([identity, offset])).decode()


def _continued(following: str) -> tuple[str, int]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(following), type=tuple[str, int])
    except (ValueError, msgspec.DecodeError):
        raise ApiError(400, "BadRequest", "continue key is not valid: encoded value cannot be read") from None
