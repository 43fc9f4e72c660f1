"""Create, change and delete as the API server's generic registry does: defaults, versions, grace periods, conflicts."""

import datetime
import secrets
import uuid

from demo.kube import resources, status
from demo.kube.status import Json, Resource
from demo.kube.store import Store, changed

# lists that a strategic merge patch merges by a key (https://kubernetes.io/docs/reference/kubernetes-api, patch
# strategy of each field)
_MERGE_KEYS = {"conditions": "type", "podIPs": "ip", "hostIPs": "ip", "ownerReferences": "uid", "containers": "name"}
_KEPT = ("uid", "creationTimestamp", "name", "namespace", "deletionTimestamp", "deletionGracePeriodSeconds")


def create(store: Store, resource: Resource, namespace: str, body: Json) -> bytes:
    """Store a new object; gives its JSON. Raises 400, 404 (namespace), 409 and 422."""
    metadata = body.get("metadata") or {}
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
    name = metadata.get("name", "")
    if metadata.get("namespace", namespace) != namespace:
        raise status.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if metadata.get("resourceVersion"):
        raise status.bad_request("resourceVersion should not be set on objects to be created")
    if namespace:
        store.get(resources.NAMESPACES, "", namespace)
    body |= {"apiVersion": resource.api_version, "kind": resource.kind}
    body["metadata"] = {
        **{key: value for key, value in metadata.items() if value is not None},
        "name": name,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": _now(),
        **({"namespace": namespace} if namespace else {}),
    }
    for server_side in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        body["metadata"].pop(server_side, None)
    resources.prepare(resource, body)
    if store.find(resource, namespace, name):
        raise status.already_exists(resource, name)
    return store.put(resource, body).encoded


def patch(
    store: Store, resource: Resource, namespace: str, name: str, *, subresource: str, patch: Json, strategic: bool
) -> bytes:
    """Merge into an object (RFC 7386, or Kubernetes' strategic form); gives its JSON. No change, no new version."""
    before = store.get(resource, namespace, name)
    wanted = changed(before, lambda copy: _merge(copy, patch, strategic))
    return _replace(store, resource, before, wanted, subresource)


def update(store: Store, resource: Resource, namespace: str, name: str, *, subresource: str, body: Json) -> bytes:
    """Replace an object; gives its JSON."""
    return _replace(store, resource, store.get(resource, namespace, name), body, subresource)


def delete(store: Store, resource: Resource, namespace: str, name: str, options: Json) -> bytes:
    """Delete, or mark as being deleted where a kubelet must stop a pod first; gives the object's last JSON.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination: a pod on a node stays, with
    deletionTimestamp (the time at which its grace ends), until it is deleted with a grace of 0.
    """
    before = store.get(resource, namespace, name)
    wanted_uid = (options.get("preconditions") or {}).get("uid")
    if wanted_uid and wanted_uid != before["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {before['metadata']['uid']}"
        raise status.conflict(resource, name, why)
    grace = _grace(before, options.get("gracePeriodSeconds")) if resource == resources.PODS else 0
    earlier = before["metadata"].get("deletionGracePeriodSeconds")
    if earlier is not None and grace >= earlier and grace > 0:
        return store.entry(resource, namespace, name).encoded
    ends_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=grace)

    def mark(copy: Json) -> None:
        copy["metadata"]["deletionTimestamp"] = _now(ends_at)
        copy["metadata"]["deletionGracePeriodSeconds"] = grace

    if grace > 0:
        return store.put(resource, changed(before, mark)).encoded
    if resource == resources.NAMESPACES:
        # what the namespace controller does in a real cluster
        for kind in resources.ALL:
            for entry in store.all(kind, name) if kind.namespaced else ():
                store.remove(kind, changed(entry.object))
    last = changed(before, mark) if resource == resources.PODS else changed(before)
    return store.remove(resource, last).encoded


def _grace(pod: Json, wanted: int | None) -> int:
    seconds = pod["spec"]["terminationGracePeriodSeconds"] if wanted is None else wanted
    if not pod["spec"].get("nodeName") or pod["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    return max(int(seconds), 0)


def _replace(store: Store, resource: Resource, before: Json, wanted: Json, subresource: str) -> bytes:
    old = before["metadata"]
    version = (wanted.get("metadata") or {}).get("resourceVersion")
    if version and version != old["resourceVersion"]:
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise status.conflict(resource, old["name"], why)

    def change(copy: Json) -> None:
        if subresource == "status":
            copy["status"] = wanted.get("status") or {}
            return
        copy.clear()
        copy.update(wanted)
        copy["metadata"] = {**wanted.get("metadata", {}), **{key: old[key] for key in _KEPT if key in old}}
        copy["metadata"]["resourceVersion"] = old["resourceVersion"]
        if "status" in before:
            copy["status"] = before["status"]

    after = changed(before, change)
    if after == before:
        return store.entry(resource, old.get("namespace", ""), old["name"]).encoded
    return store.put(resource, after).encoded


def _merge(target: Json, patch: Json, strategic: bool) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(target[key], value, strategic)
        elif strategic and key in _MERGE_KEYS and isinstance(value, list) and isinstance(target.get(key), list):
            _merge_list(target[key], value, _MERGE_KEYS[key])
        else:
            target[key] = value


def _merge_list(target: list[Json], patch: list[Json], key: str) -> None:
    for item in patch:
        existing = next((known for known in target if known.get(key) == item.get(key)), None)
        if existing is None:
            target.append(item)
        else:
            _merge(existing, item, True)


def _now(moment: datetime.datetime | None = None) -> str:
    return (moment or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
