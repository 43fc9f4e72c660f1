"""What people, the kubelet and the scheduler do in a cluster, done through the real client; for the demo and tests.

Works alike on the stand-in and on a real API server, next to which no kubelet and no controller runs.
"""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from kubernetes import client

from demo.kube import Cluster

_RBAC = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "rbac.yaml"
_RBAC_GROUP = "rbac.authorization.k8s.io"
_TIMEOUT = 10
_HOST = "127.0.0.1"


class Owner(NamedTuple):
    """What controls a pod; see create_owner()."""

    kind: str
    name: str
    uid: str
    api_version: str


def connect(cluster: Cluster, token: str | None = None) -> client.ApiClient:
    """A client under `token` (default: the administrator's); close it, or use it in a with statement."""
    configuration = client.Configuration(host=cluster.address)
    configuration.api_key["authorization"] = f"Bearer {token or cluster.admin_token}"
    configuration.ssl_ca_cert = str(cluster.ca_file) if cluster.ca_file else None
    configuration.proxy = None
    return client.ApiClient(configuration)


def create_namespace(api: client.ApiClient, name: str) -> None:
    """Make a namespace, if it isn't there."""
    body = client.V1Namespace(metadata=client.V1ObjectMeta(name=name))
    try:
        client.CoreV1Api(api).create_namespace(body, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        _only(409, error)


def create_service_account(api: client.ApiClient, namespace: str, name: str) -> str:
    """Make a service account, if it isn't there; gives its uid."""
    core = client.CoreV1Api(api)
    body = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name=name))
    made: Any
    try:
        made = core.create_namespaced_service_account(namespace, body, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        _only(409, error)
        made = core.read_namespaced_service_account(name, namespace, _request_timeout=_TIMEOUT)
    return str(made.metadata.uid)


def create_node(api: client.ApiClient, name: str) -> None:
    """Make a node, if it isn't there."""
    body = client.V1Node(metadata=client.V1ObjectMeta(name=name))
    try:
        client.CoreV1Api(api).create_node(body, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        _only(409, error)


def delete_service_account(api: client.ApiClient, namespace: str, name: str) -> None:
    """Delete a service account."""
    client.CoreV1Api(api).delete_namespaced_service_account(
        name, namespace, _preload_content=False, _request_timeout=_TIMEOUT
    )


def create_owner(api: client.ApiClient, kind: str, namespace: str, name: str, *, owner: Owner | None = None) -> Owner:
    """Make a ReplicaSet or a Job that pods can name as their owner; no controller acts on it.

    `owner`: what controls it in turn, such as a Deployment, which need not be there.
    """
    labels = {"app": name}
    policy = "Never" if kind == "Job" else "Always"
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[_container()], restart_policy=policy),
    )
    metadata = client.V1ObjectMeta(name=name, owner_references=_references(owner))
    made: Any
    if kind == "ReplicaSet":
        spec = client.V1ReplicaSetSpec(selector=client.V1LabelSelector(match_labels=labels), template=template)
        body = client.V1ReplicaSet(metadata=metadata, spec=spec)
        made = client.AppsV1Api(api).create_namespaced_replica_set(namespace, body, _request_timeout=_TIMEOUT)
        return Owner(kind, name, str(made.metadata.uid), "apps/v1")
    job = client.V1Job(metadata=metadata, spec=client.V1JobSpec(template=template))
    made = client.BatchV1Api(api).create_namespaced_job(namespace, job, _request_timeout=_TIMEOUT)
    return Owner(kind, name, str(made.metadata.uid), "batch/v1")


def create_pod(
    api: client.ApiClient,
    namespace: str,
    name: str,
    *,
    service_account: str,
    node: str | None = None,
    ip: str | None = None,
    owner: Owner | None = None,
    host_network: bool = False,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    secret: str | None = None,
) -> str:
    """Make a pod, already placed on `node` (made if missing), and with `ip` let it run at once; gives its uid.

    `secret`: the Secret that its container takes its environment from; it need not be there.
    """
    if node:
        create_node(api, node)
    body = client.V1Pod(
        metadata=client.V1ObjectMeta(
            name=name,
            annotations=dict(annotations) if annotations else None,
            labels=dict(labels) if labels else None,
            owner_references=_references(owner),
        ),
        spec=client.V1PodSpec(
            containers=[_container(secret)],
            service_account_name=service_account,
            node_name=node,
            host_network=host_network or None,
        ),
    )
    made: Any = client.CoreV1Api(api).create_namespaced_pod(namespace, body, _request_timeout=_TIMEOUT)
    if ip:
        set_pod_running(api, namespace, name, ips=[ip])
    return str(made.metadata.uid)


def delete_owner(api: client.ApiClient, owner: Owner, namespace: str) -> None:
    """Delete a ReplicaSet or a Job; no garbage collector runs, so its pods stay."""
    options: dict[str, Any] = {"_preload_content": False, "_request_timeout": _TIMEOUT}
    if owner.kind == "ReplicaSet":
        client.AppsV1Api(api).delete_namespaced_replica_set(owner.name, namespace, **options)
    else:
        client.BatchV1Api(api).delete_namespaced_job(owner.name, namespace, **options)


def define(api: client.ApiClient, group: str, version: str, kind: str) -> None:
    """Install a CustomResourceDefinition that takes any content, if it isn't there."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    body: Any = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }
    try:
        client.ApiextensionsV1Api(api).create_custom_resource_definition(
            body, _preload_content=False, _request_timeout=_TIMEOUT
        )
    except client.ApiException as error:
        _only(409, error)


def create_custom(
    api: client.ApiClient,
    group: str,
    version: str,
    kind: str,
    namespace: str,
    name: str,
    spec: Mapping[str, Any],
    *,
    status: Mapping[str, Any] | None = None,
) -> None:
    """Make an object of a kind that was define()d, with its status where that is given."""
    custom, plural = client.CustomObjectsApi(api), f"{kind.lower()}s"
    body = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
    custom.create_namespaced_custom_object(group, version, namespace, plural, body, _request_timeout=_TIMEOUT)
    if status is not None:
        set_custom_status(api, group, version, kind, namespace, name, status)


def set_custom_status(
    api: client.ApiClient, group: str, version: str, kind: str, namespace: str, name: str, status: Mapping[str, Any]
) -> None:
    """Merge into the status of an object that create_custom() made."""
    client.CustomObjectsApi(api).patch_namespaced_custom_object_status(
        group,
        version,
        namespace,
        f"{kind.lower()}s",
        name,
        {"status": dict(status)},
        _content_type="application/merge-patch+json",
        _request_timeout=_TIMEOUT,
    )


def set_pod_running(
    api: client.ApiClient, namespace: str, name: str, *, ips: Iterable[str], host_ip: str = _HOST
) -> None:
    """Report as a kubelet does that the pod runs, with these addresses (at most one of each family)."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    addresses = list(ips)
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    status = {
        "phase": "Running",
        "startTime": now,
        "hostIP": host_ip,
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "conditions": conditions,
    }
    patch_pod_status(api, namespace, name, status)


def patch_pod_status(api: client.ApiClient, namespace: str, name: str, status: Mapping[str, Any]) -> None:
    """Merge `status` (keys as in the API) into the pod's status; lists are replaced."""
    client.CoreV1Api(api).patch_namespaced_pod_status(
        name,
        namespace,
        {"status": dict(status)},
        # not the client's usual strategic merge, which would keep an earlier address beside the new one
        _content_type="application/merge-patch+json",
        _preload_content=False,
        _request_timeout=_TIMEOUT,
    )


def delete_pod(api: client.ApiClient, namespace: str, name: str, *, grace_seconds: int = 0) -> None:
    """Delete a pod. With a grace it stays, marked, until it is deleted again with 0, as the kubelet does at its end."""
    client.CoreV1Api(api).delete_namespaced_pod(
        name, namespace, grace_period_seconds=grace_seconds, _preload_content=False, _request_timeout=_TIMEOUT
    )


def request_token(
    api: client.ApiClient,
    namespace: str,
    service_account: str,
    *,
    pod: str | None = None,
    pod_uid: str | None = None,
    audiences: Iterable[str] = (),
    seconds: int = 3600,
) -> str:
    """A token of the service account, bound to `pod` if given, as the kubelet projects it; `seconds` ≥ 600."""
    reference = None
    if pod:
        reference = client.V1BoundObjectReference(api_version="v1", kind="Pod", name=pod, uid=pod_uid)
    spec = client.V1TokenRequestSpec(audiences=list(audiences), bound_object_ref=reference, expiration_seconds=seconds)
    made: Any = client.CoreV1Api(api).create_namespaced_service_account_token(
        service_account, namespace, client.AuthenticationV1TokenRequest(spec=spec), _request_timeout=_TIMEOUT
    )
    return str(made.status.token)


def grant_reader(api: client.ApiClient, namespace: str, service_account: str) -> None:
    """Let a service account read what the product reads: the ClusterRole of deploy/kubernetes/rbac.yaml."""
    documents = yaml.safe_load_all(_RBAC.read_text())
    role = next(document for document in documents if document["kind"] == "ClusterRole")
    rules = [
        client.V1PolicyRule(api_groups=rule["apiGroups"], resources=rule["resources"], verbs=rule["verbs"])
        for rule in role["rules"]
    ]
    _create_role(api, role["metadata"]["name"], rules)
    _bind(api, role["metadata"]["name"], namespace, service_account)


def grant(
    api: client.ApiClient, role: str, rules: Iterable[tuple[str, list[str]]], namespace: str, service_account: str
) -> None:
    """Let a service account list and watch these resources of these groups, under a role of its own."""
    wanted = [client.V1PolicyRule(api_groups=[group], resources=some, verbs=["list", "watch"]) for group, some in rules]
    _create_role(api, role, wanted)
    _bind(api, role, namespace, service_account)


def _create_role(api: client.ApiClient, name: str, rules: list[client.V1PolicyRule]) -> None:
    body = client.V1ClusterRole(metadata=client.V1ObjectMeta(name=name), rules=rules)
    try:
        client.RbacAuthorizationV1Api(api).create_cluster_role(body, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        _only(409, error)


def grant_token_reviewer(api: client.ApiClient, namespace: str, service_account: str) -> None:
    """Let a service account check tokens (OpenBao's token_reviewer_jwt): ClusterRole system:auth-delegator."""
    _bind(api, "system:auth-delegator", namespace, service_account)


def _bind(api: client.ApiClient, role: str, namespace: str, service_account: str) -> None:
    body = client.V1ClusterRoleBinding(
        metadata=client.V1ObjectMeta(name=f"{role}:{namespace}:{service_account}"),
        role_ref=client.V1RoleRef(api_group=_RBAC_GROUP, kind="ClusterRole", name=role),
        subjects=[client.RbacV1Subject(kind="ServiceAccount", namespace=namespace, name=service_account)],
    )
    try:
        client.RbacAuthorizationV1Api(api).create_cluster_role_binding(body, _request_timeout=_TIMEOUT)
    except client.ApiException as error:
        _only(409, error)


def _container(secret: str | None = None) -> client.V1Container:
    source = client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=secret)) if secret else None
    return client.V1Container(name="app", image="registry.invalid/app:1", env_from=[source] if source else None)


def _references(owner: Owner | None) -> list[client.V1OwnerReference] | None:
    if owner is None:
        return None
    return [
        client.V1OwnerReference(
            api_version=owner.api_version, kind=owner.kind, name=owner.name, uid=owner.uid, controller=True
        )
    ]


def _only(status: int, error: client.ApiException) -> None:
    if error.status != status:
        raise error
