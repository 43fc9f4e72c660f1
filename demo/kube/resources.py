"""Which resources the stand-in serves, and what the API server itself fills in when one is created."""

import re
from typing import Any

from demo.kube import status
from demo.kube.status import Json, Resource

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
NODES = Resource("", "v1", "nodes", "Node", False)
PODS = Resource("", "v1", "pods", "Pod", True)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)
SECRETS = Resource("", "v1", "secrets", "Secret", True)
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet", True)
JOBS = Resource("batch", "v1", "jobs", "Job", True)
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False)

CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)

ALL = (
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SECRETS,
    REPLICA_SETS,
    JOBS,
    CLUSTER_ROLES,
    CLUSTER_ROLE_BINDINGS,
    CUSTOM_RESOURCE_DEFINITIONS,
)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_RBAC_NAME = re.compile(r"[^/%]+")  # path segments: system:auth-delegator


def defined_by(definition: Json) -> Resource:
    """The resource that a CustomResourceDefinition brings; the stand-in serves only the first of its versions."""
    spec = definition["spec"]
    names, version = spec["names"], spec["versions"][0]["name"]
    return Resource(spec["group"], version, names["plural"], names["kind"], spec["scope"] == "Namespaced")


def prepare(resource: Resource, body: Json) -> None:
    """Check a new object and fill in the defaults that readers rely on; raises 422."""
    name = body["metadata"]["name"]
    rule = _RBAC_NAME if resource.group == CLUSTER_ROLES.group else _NAME
    if not rule.fullmatch(name) or len(name) > 253:
        raise status.invalid(resource, name, "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 name')
    if resource == NAMESPACES:
        body["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name
        body["spec"] = {"finalizers": ["kubernetes"]}
        body["status"] = {"phase": "Active"}
    elif resource == PODS:
        _prepare_pod(body, name)
    elif resource in (NODES, REPLICA_SETS, JOBS):
        body.setdefault("spec", {})
        body["status"] = {"replicas": 0} if resource == REPLICA_SETS else {}
    elif resource not in ALL:
        body.pop("status", None)  # it has a subresource of its own


def _prepare_pod(body: Json, name: str) -> None:
    spec: dict[str, Any] = body.setdefault("spec", {})
    if not spec.get("containers"):
        raise status.invalid(PODS, name, "spec.containers", "Required value")
    for container in spec["containers"]:
        if not container.get("name") or not container.get("image"):
            raise status.invalid(PODS, name, "spec.containers[0]", "name and image are required")
        defaults: Json = {
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        }
        container.update({key: value for key, value in defaults.items() if key not in container})
    spec_defaults: Json = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
    }
    spec.update({key: value for key, value in spec_defaults.items() if key not in spec})
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    # whatever the client says about it: status belongs to the kubelet, through its own subresource
    body["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
