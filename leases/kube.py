"""The boundary to Kubernetes: the one module that imports its client. Returns typed values, raises KubeError.

Only reads, and only what deploy/kubernetes/rbac.yaml allows. Answers are decoded into the few fields that are used
(the client's own models take 40 times as long and 12 times the memory); of owners and service accounts nothing but
their metadata is asked for. No call is repeated. Every error carries a cause and a fix for an operator; texts from the
server are capped and no token is ever in them.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import urllib3
from kubernetes import client as api
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from leases.errors import SourceError
from leases.references import SecretUnavailable

ANNOTATION_PREFIX = "vault.hashicorp.com/"
# what the operators that fetch secrets for others call themselves, in their charts and manifests
FETCHER_LABEL = "app.kubernetes.io/name"
FETCHER_NAMES = {"external-secrets", "vault-secrets-operator"}
PAGE = 500
_MAX_TEXT = 300
_MAX_EVENT = 16 << 20  # etcd refuses objects of more than 1.5 MiB: what is longer is not a watch event
_SECRETS = re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*|(?i:(?<=bearer )\S+)|(?<=://)[^\s/@:]+:[^\s@]+(?=@)")
_TOKEN = re.compile(r"[\x21-\x7e]+")

Decoded = TypeVar("Decoded")
Seen = TypeVar("Seen")
Item = TypeVar("Item", bound="_Object")


class KubeError(SourceError):
    """Kubernetes did not do what was asked. `cause` and `fix` are for an operator and hold no secret."""


class KubeUnreachable(KubeError):
    """No answer, none that is Kubernetes', or a watch that broke off: address, network, TLS, time limit, overload."""


class KubeUnauthorized(KubeError):
    """The token is refused, or cannot be read."""


class KubeDenied(KubeError):
    """The token is good but no RBAC rule lets it `verb` the `resource`."""

    def __init__(self, cause: str, fix: str, verb: str = "", resource: str = "") -> None:
        super().__init__(cause, fix)
        self.args = (cause, fix, verb, resource)
        self.verb = verb
        self.resource = resource


class KubeNotServed(KubeError):
    """404: the cluster knows no such kind of object; with a custom resource, its operator is not installed."""


class KubeGone(KubeError):
    """410: the history no longer reaches back to the resourceVersion (or the page). List anew."""


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod as the API shows it. Times are UTC; what the API does not say is empty or None.

    `addresses`: of status.podIPs in canonical form, the primary one first. `owner_…`: its controller.
    `annotations`: only the agent injector's. `fetcher`: its label says that it is an operator that fetches secrets for
    others. `secrets`: the names of the Secrets that its containers and volumes refer to. `deleted_at`:
    metadata.deletionTimestamp, the time at which its grace period ends, so it may lie ahead, and until then the pod may
    still work.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    host_network: bool
    phase: str
    addresses: tuple[str, ...]
    owner_kind: str
    owner_name: str
    owner_uid: str
    annotations: dict[str, str]
    fetcher: bool
    secrets: tuple[str, ...]
    created_at: datetime
    started_at: datetime | None
    deleted_at: datetime | None
    resource_version: str


@dataclass(frozen=True, slots=True)
class OwnerSeen:
    """A ReplicaSet or Job, which owns pods, and its own controller (a Deployment, a CronJob); empty without one."""

    uid: str
    kind: str
    namespace: str
    name: str
    owner_kind: str
    owner_name: str


@dataclass(frozen=True, slots=True)
class ServiceAccountSeen:
    """A service account as the API shows it."""

    uid: str
    namespace: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SyncSeen:
    """A custom resource by which an operator copies something of Vault into a Secret, or a generator of such a one.

    `paths`: what it reads of Vault, as far as it says (`database/creds/my-role`). `generators`: names of generators in its
    namespace that it takes its content from. `secret`: the Secret's name; a generator has none. `lease_id`: the lease of
    the newest content, which Vault Secrets Operator writes into the resource's status.
    """

    uid: str
    kind: Literal["ExternalSecret", "VaultDynamicSecret", "generator"]
    namespace: str
    name: str
    paths: tuple[str, ...]
    generators: tuple[str, ...]
    secret: str
    lease_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Change(Generic[Seen]):
    """One event of a watch. A bookmark has no object: it only says how far the watch has come."""

    kind: Literal["added", "modified", "deleted", "bookmark"]
    seen: Seen | None
    resource_version: str


class Listing(Generic[Seen]):
    """All objects of one kind at one moment, fetched page by page while it is iterated (once).

    `resource_version` is that moment's, known from the start: a watch from it misses nothing. Iterating raises
    KubeError; KubeGone if it took so long that the server forgot the moment.
    """

    def __init__(self, fetch: Callable[[str], tuple[list[Seen], "_ListMeta"]]) -> None:
        self._fetch = fetch
        self._items, meta = fetch("")
        self._following = meta.continue_
        self.resource_version = meta.resourceVersion

    def __iter__(self) -> Iterator[Seen]:
        for page in self.pages():
            yield from page

    def pages(self) -> Iterator[list[Seen]]:
        """Page by page, so that never more than one is held."""
        while True:
            items, self._items = self._items, []
            yield items
            if not self._following:
                return
            self._items, meta = self._fetch(self._following)
            self._following = meta.continue_


# What is read of the API's answers; anything else in them is ignored. The names are the API's own:
# https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Owner(msgspec.Struct):
    kind: str
    name: str
    uid: str = ""
    controller: bool | None = None


class _Meta(msgspec.Struct):
    uid: str
    name: str
    creationTimestamp: datetime
    namespace: str = ""
    resourceVersion: str = ""
    deletionTimestamp: datetime | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    ownerReferences: list[_Owner] | None = None


class _Object(msgspec.Struct):
    metadata: _Meta


class _Page(msgspec.Struct, Generic[Item]):
    metadata: _ListMeta
    items: list[Item] | None = None


class _Named(msgspec.Struct):
    name: str | None = None


class _ValueFrom(msgspec.Struct):
    secretKeyRef: _Named | None = None


class _Env(msgspec.Struct):
    valueFrom: _ValueFrom | None = None


class _EnvFrom(msgspec.Struct):
    secretRef: _Named | None = None


class _Container(msgspec.Struct):
    env: list[_Env] | None = None
    envFrom: list[_EnvFrom] | None = None


class _SecretVolume(msgspec.Struct):
    secretName: str | None = None


class _Source(msgspec.Struct):
    secret: _Named | None = None


class _Projected(msgspec.Struct):
    sources: list[_Source] | None = None


class _Volume(msgspec.Struct):
    secret: _SecretVolume | None = None
    projected: _Projected | None = None


class _PodSpec(msgspec.Struct):
    serviceAccountName: str | None = None
    nodeName: str | None = None
    hostNetwork: bool | None = None
    containers: list[_Container] | None = None
    initContainers: list[_Container] | None = None
    volumes: list[_Volume] | None = None


class _PodIP(msgspec.Struct):
    ip: str | None = None


class _PodStatus(msgspec.Struct):
    phase: str | None = None
    podIP: str | None = None
    podIPs: list[_PodIP] | None = None
    startTime: datetime | None = None


class _Pod(_Object):
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


# https://external-secrets.io/latest/api/spec/
class _RemoteRef(msgspec.Struct):
    key: str | None = None


class _GeneratorRef(msgspec.Struct):
    kind: str = ""
    name: str = ""


class _SourceRef(msgspec.Struct):
    generatorRef: _GeneratorRef | None = None


class _Data(msgspec.Struct):
    remoteRef: _RemoteRef | None = None


class _DataFrom(msgspec.Struct):
    extract: _RemoteRef | None = None
    sourceRef: _SourceRef | None = None


class _ExternalSecretSpec(msgspec.Struct):
    data: list[_Data] | None = None
    dataFrom: list[_DataFrom] | None = None
    target: _Named | None = None


class _ExternalSecret(_Object):
    spec: _ExternalSecretSpec | None = None


class _GeneratorSpec(msgspec.Struct):
    path: str | None = None


class _Generator(_Object):
    spec: _GeneratorSpec | None = None


# https://developer.hashicorp.com/vault/docs/platform/k8s/vso/api-reference#vaultdynamicsecret
class _DynamicSpec(msgspec.Struct):
    mount: str = ""
    path: str = ""
    destination: _Named | None = None


class _DynamicLease(msgspec.Struct):
    id: str = ""


class _DynamicStatus(msgspec.Struct):
    secretLease: _DynamicLease | None = None


class _VaultDynamicSecret(_Object):
    spec: _DynamicSpec | None = None
    status: _DynamicStatus | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _VersionOnly(msgspec.Struct):
    metadata: _ListMeta


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None


class _Allowed(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Allowed


class _Version(msgspec.Struct):
    gitVersion: str


@dataclass(frozen=True, slots=True)
class Kind(Generic[Seen]):
    """A kind of object that can be listed and watched. `resource`: as RBAC names it, with its group."""

    resource: str
    version: str
    item: type[Any]
    see: Callable[[Any], Seen]
    # how the official client lists it in all namespaces
    call: Callable[[Any], Callable[..., Any]]
    metadata_only: bool = False


class KubeClient:
    """One cluster under one token, which is read again for each request, since projected tokens rotate.

    `ca_file`: PEM; without it the system's authorities count. `timeout_seconds`: for connecting, and for each silence
    of the server. Safe to use from several threads. Nothing is sent before the first call.
    """

    def __init__(
        self, address: str, read_token: Callable[[], str], *, ca_file: str | None = None, timeout_seconds: float = 5.0
    ) -> None:
        self._address = address.rstrip("/")
        self._shown = _clean(self._address)  # in error texts: without what looks like user:password@
        self._read_token = read_token
        self._ca_file = ca_file
        self._timeout = timeout_seconds
        configuration: Any = api.Configuration(host=self._address)
        configuration.ssl_ca_cert = ca_file
        # a retry or a redirect would hide what is wrong, multiply the time limit or carry the token elsewhere
        configuration.retries = False
        configuration.api_key["authorization"] = ""
        configuration.refresh_api_key_hook = self._set_token
        # a peer that vanished without a word is noticed within a quiet watch too
        configuration.socket_options = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        ]
        if _is_loopback(self._address):
            configuration.proxy = None
        try:
            self._client: Any = api.ApiClient(configuration)
        except (ValueError, HTTPError) as error:
            raise KubeUnreachable(
                f"The address {self._shown} cannot be used",
                "Check `address` of this cluster in leasehold.toml.",
            ) from error

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def list(self, kind: Kind[Seen], page: int = PAGE) -> Listing[Seen]:
        """Every object of this kind in the cluster, `page` at a time.

        https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks
        """

        def fetch(following: str) -> tuple[list[Seen], _ListMeta]:
            answer = self._call(
                "list",
                kind.resource,
                kind.call(self._client),
                limit=page,
                _continue=following or None,
                **_accept(kind, "PartialObjectMetadataList"),
            )
            decoded: Any = self._decode(answer, _Page[kind.item])  # type: ignore[name-defined]
            return [kind.see(item) for item in decoded.items or ()], decoded.metadata

        return Listing(fetch)

    def watch(self, kind: Kind[Seen], resource_version: str, *, seconds: int) -> Iterator[Change[Seen]]:
        """Each change of an object of this kind after `resource_version`, as soon as it arrives.

        Ends by itself after about `seconds`, when the server closes the watch in good order: until then nothing was
        missed, and the next watch goes on at the last change's resource_version. Raises KubeGone (list anew), and
        KubeUnreachable if the stream broke off: what was delivered is good, and the watch can go on from there.
        https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
        """
        answer = self._send(
            "watch",
            kind.resource,
            kind.call(self._client),
            watch=True,
            resource_version=resource_version,
            allow_watch_bookmarks=True,
            timeout_seconds=seconds,
            _request_timeout=(self._timeout, seconds + self._timeout),
            **_accept(kind, "PartialObjectMetadata"),
        )
        overdue_at = time.monotonic() + seconds + self._timeout
        try:
            for line in self._lines(kind.resource, answer):
                yield self._change(kind, line)
                if time.monotonic() > overdue_at:
                    raise self._broken(kind.resource, "the server does not end it at the time that was asked for")
        except (HTTPError, OSError) as error:
            raise self._broken(kind.resource, _why(error, self._timeout)) from error
        finally:
            # not back to the pool: the caller may have stopped in the middle of the stream
            answer.close()

    def can(self, verb: str, resource: str) -> bool:
        """Whether the token may `verb` the `resource` in all namespaces; also `replicasets.apps`, `pods/log`.

        https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/
        """
        whole, _, subresource = resource.partition("/")
        plural, _, group = whole.partition(".")
        attributes = api.V1ResourceAttributes(verb=verb, resource=plural, group=group, subresource=subresource)
        spec = api.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        answer = self._call(
            "create",
            "selfsubjectaccessreviews.authorization.k8s.io",
            api.AuthorizationV1Api(self._client).create_self_subject_access_review,
            body=api.V1SelfSubjectAccessReview(spec=spec),
        )
        return self._decode(answer, _Review).status.allowed

    def version(self) -> str:
        """The server's version, such as `v1.34.0`. Needs no permission."""
        answer = self._call("get", "/version", api.VersionApi(self._client).get_code)
        return self._decode(answer, _Version).gitVersion

    def _set_token(self, configuration: api.Configuration) -> None:
        try:
            token = self._read_token().strip()
        except SecretUnavailable as error:
            raise KubeUnauthorized(error.cause, error.fix) from error
        if not _TOKEN.fullmatch(token):
            # sent as it is, it would end up in the HTTP library's error text
            raise KubeUnauthorized(
                f"The token for the Kubernetes API at {self._shown} is empty or holds characters that no token has",
                "Check what `token` of this cluster in leasehold.toml names.",
            )
        configuration.api_key["authorization"] = f"Bearer {token}"

    def _call(self, verb: str, resource: str, call: Callable[..., Any], **parameters: Any) -> bytes:
        answer = self._send(verb, resource, call, **parameters)
        try:
            return answer.data
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            answer.release_conn()

    def _send(self, verb: str, resource: str, call: Callable[..., Any], **parameters: Any) -> urllib3.BaseHTTPResponse:
        parameters.setdefault("_request_timeout", (self._timeout, self._timeout))
        try:
            return cast(urllib3.BaseHTTPResponse, call(**parameters, _preload_content=False))
        except api.ApiException as error:
            if not error.status:  # how the client hands on a TLS error
                raise self._tls(str(error.reason)) from error
            body = error.body or b""
            answered = _status(body if isinstance(body, bytes) else str(body).encode())
            # nor may a proxy's error page fill the log by way of the chained error
            error.body = error.data = _clean(answered.message or "")
            error.headers = None
            raise self._refused(error.status, answered, verb, resource) from error
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _lines(self, resource: str, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Lines of a stream as they arrive; HTTPError when it breaks off, before its end or in the middle of a line."""
        if not getattr(answer, "chunked", False) and not answer.headers.get("Content-Length"):
            raise self._broken(
                resource, "something between here and the API server does not pass on streams (no chunks)"
            )
        rest = b""
        # amt=None: each chunk at once, since the server sends each event as one
        for chunk in answer.stream(None, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
            if len(rest) > _MAX_EVENT:
                raise self._broken(resource, "an event is longer than any object can be")
        if rest:
            raise self._broken(resource, "it ended in the middle of an event")

    def _change(self, kind: Kind[Seen], line: bytes) -> Change[Seen]:
        event = self._decode(line, _Event)
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            item = self._decode(event.object, kind.item)
            what = cast(Literal["added", "modified", "deleted"], event.type.lower())
            return Change(what, kind.see(item), item.metadata.resourceVersion)
        if event.type == "BOOKMARK":
            return Change("bookmark", None, self._decode(event.object, _VersionOnly).metadata.resourceVersion)
        if event.type == "ERROR":
            answered = _status(bytes(event.object))
            raise self._refused(answered.code or 500, answered, "watch", kind.resource)
        raise self._strange(f"an event of the unknown type {_clean(event.type)}")

    def _decode(self, text: bytes | msgspec.Raw, kind: type[Decoded]) -> Decoded:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise self._strange(_clean(str(error))) from error

    def _refused(self, code: int, answered: _Status, verb: str, resource: str) -> KubeError:
        text = _clean(answered.message or "no text")
        where = f"The Kubernetes API at {self._shown}"
        if code == 401:
            return KubeUnauthorized(
                f"{where} does not accept the token ({text})",
                "Check that `token` of this cluster in leasehold.toml names a token of this very cluster that has not"
                " expired; a projected token is renewed by its kubelet, a copied one is not.",
            )
        if code == 403:
            return KubeDenied(
                f"{where} does not let the token {verb} {resource} ({text})",
                f"Give its service account the RBAC rule {rule(verb, resource)}:"
                " `kubectl apply -f deploy/kubernetes/rbac.yaml`.",
                verb,
                resource,
            )
        if code == 410:
            return KubeGone(
                f"{where} has forgotten the changes since the last one seen ({text})",
                f"Nothing to do: {resource} are listed anew.",
            )
        if code == 429 or code >= 500:
            return KubeUnreachable(
                f"{where} cannot answer now (HTTP {code}: {text})",
                "Look at the API server's health (`kubectl get --raw /readyz?verbose`); it is asked again by itself.",
            )
        return (KubeNotServed if code == 404 else KubeError)(
            f"{where} refused to {verb} {resource} (HTTP {code}: {text})",
            "Check that `address` of this cluster in leasehold.toml is that of a Kubernetes API server, with https://.",
        )

    def _unreachable(self, error: Exception) -> KubeError:
        if isinstance(error, SSLError):
            return self._tls(str(error))
        if isinstance(error, FileNotFoundError | PermissionError) and self._ca_file:
            return self._tls(f"{error.strerror}: {self._ca_file}")
        return KubeUnreachable(
            f"The Kubernetes API at {self._shown} cannot be reached: {_why(error, self._timeout)}",
            "Check `address` of this cluster in leasehold.toml, and that the network lets this machine reach it.",
        )

    def _tls(self, text: str) -> KubeUnreachable:
        return KubeUnreachable(
            f"No trusted TLS connection to the Kubernetes API at {self._shown}: {_clean(text)}",
            "Set `ca_file` of this cluster in leasehold.toml to the cluster's certificate authority"
            " (in a pod: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt), and check `address`.",
        )

    def _broken(self, resource: str, why: str) -> KubeUnreachable:
        return KubeUnreachable(
            f"The watch of {resource} at {self._shown} broke off: {why}",
            "It goes on by itself; if this repeats, look at the API server and at any proxy or load balancer before"
            " it.",
        )

    def _strange(self, what: str) -> KubeError:
        return KubeError(
            f"The Kubernetes API at {self._shown} answered something unexpected: {what}",
            "Check that `address` of this cluster in leasehold.toml is that of a Kubernetes API server; if it is,"
            " this version of it is not known here: please report it.",
        )


def _accept(kind: Kind[Any], shape: str) -> dict[str, Any]:
    """Asks for no more than the metadata, where no more is used: a pod template can hold anything.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches
    """
    if not kind.metadata_only:
        return {}
    return {"_headers": {"Accept": f"application/json;as={shape};g=meta.k8s.io;v=v1,application/json"}}


def _controller(meta: _Meta) -> _Owner:
    owners = meta.ownerReferences or []
    return next((owner for owner in owners if owner.controller), owners[0] if owners else _Owner("", ""))


def _pod(item: _Pod) -> PodSeen:
    meta, spec, status = item.metadata, item.spec or _PodSpec(), item.status or _PodStatus()
    owner = _controller(meta)
    return PodSeen(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        service_account=spec.serviceAccountName or "",
        node=spec.nodeName or "",
        host_network=bool(spec.hostNetwork),
        phase=status.phase or "",
        addresses=_addresses(status),
        owner_kind=owner.kind,
        owner_name=owner.name,
        owner_uid=owner.uid,
        annotations={
            key: value for key, value in (meta.annotations or {}).items() if key.startswith(ANNOTATION_PREFIX)
        },
        fetcher=(meta.labels or {}).get(FETCHER_LABEL) in FETCHER_NAMES,
        secrets=secret_names(spec),
        created_at=meta.creationTimestamp,
        started_at=status.startTime,
        deleted_at=meta.deletionTimestamp,
        resource_version=meta.resourceVersion,
    )


def secret_names(spec: _PodSpec) -> tuple[str, ...]:
    """The Secrets that a pod's containers and volumes refer to."""
    found: set[str | None] = set()
    for container in [*(spec.initContainers or ()), *(spec.containers or ())]:
        found |= {ref.name for env in container.env or () if env.valueFrom and (ref := env.valueFrom.secretKeyRef)}
        found |= {source.secretRef.name for source in container.envFrom or () if source.secretRef}
    for volume in spec.volumes or ():
        if volume.secret:
            found.add(volume.secret.secretName)
        if volume.projected:
            found |= {source.secret.name for source in volume.projected.sources or () if source.secret}
    return tuple(sorted(filter(None, found)))


def _owner(kind: str, item: _Object) -> OwnerSeen:
    meta, owner = item.metadata, _controller(item.metadata)
    return OwnerSeen(meta.uid, kind, meta.namespace, meta.name, owner.kind, owner.name)


def _service_account(item: _Object) -> ServiceAccountSeen:
    meta = item.metadata
    return ServiceAccountSeen(meta.uid, meta.namespace, meta.name, meta.creationTimestamp)


def _external_secret(item: _ExternalSecret) -> SyncSeen:
    meta, spec = item.metadata, item.spec or _ExternalSecretSpec()
    references = [part.remoteRef for part in spec.data or ()] + [part.extract for part in spec.dataFrom or ()]
    generators = [part.sourceRef.generatorRef for part in spec.dataFrom or () if part.sourceRef]
    return SyncSeen(
        uid=meta.uid,
        kind="ExternalSecret",
        namespace=meta.namespace,
        name=meta.name,
        paths=_paths(reference.key for reference in references if reference),
        generators=tuple(sorted({one.name for one in generators if one and one.kind == "VaultDynamicSecret"})),
        secret=(spec.target.name if spec.target else None) or meta.name,
        lease_id="",
        created_at=meta.creationTimestamp,
    )


def _generator(item: _Generator) -> SyncSeen:
    meta = item.metadata
    paths = _paths([item.spec.path if item.spec else None])
    return SyncSeen(
        meta.uid, "generator", meta.namespace, meta.name, paths, (), "", lease_id="", created_at=meta.creationTimestamp
    )


def _vault_dynamic_secret(item: _VaultDynamicSecret) -> SyncSeen:
    meta, spec, lease = item.metadata, item.spec or _DynamicSpec(), item.status and item.status.secretLease
    return SyncSeen(
        uid=meta.uid,
        kind="VaultDynamicSecret",
        namespace=meta.namespace,
        name=meta.name,
        paths=_paths([f"{spec.mount.strip('/')}/{spec.path.strip('/')}"]),
        generators=(),
        secret=(spec.destination.name if spec.destination else None) or "",
        lease_id=lease.id if lease else "",
        created_at=meta.creationTimestamp,
    )


def _paths(found: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({path.strip("/") for path in found if path and path.strip("/")}))


def _addresses(status: _PodStatus) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for text in (status.podIP, *(entry.ip for entry in status.podIPs or ())):
        try:
            found[ipaddress.ip_address(text or "").compressed] = None
        except ValueError:
            continue  # empty, or nothing that could ever be compared with a peer's address
    return tuple(found)


def rule(verb: str, resource: str) -> str:
    """The RBAC rule that lets the token do it, as it stands in a ClusterRole."""
    plural, _, group = resource.partition(".")
    return f'apiGroups: ["{group}"], resources: [{plural}], verbs: [{verb}]'


def _status(body: bytes) -> _Status:
    try:
        return msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        return _Status(message=body[: 4 * _MAX_TEXT].decode(errors="replace"))


def _why(error: BaseException, timeout: float) -> str:
    """What went wrong with a connection, without the HTTP library's object addresses."""
    if isinstance(error, NameResolutionError):
        return "its name cannot be resolved"
    if isinstance(error, NewConnectionError) and isinstance(error.__cause__, OSError):
        return _clean(error.__cause__.strerror or "no connection")
    if isinstance(error, ConnectTimeoutError):
        return f"no connection within {timeout:g} s"
    if isinstance(error, ReadTimeoutError):
        return f"no answer within {timeout:g} s"
    return _clean(re.sub(r"<[^>]*object at 0x[^>]*>:? ?", "", str(error)) or type(error).__name__)


def _clean(text: str) -> str:
    """One line, capped, without anything that looks like a token or a password."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return _SECRETS.sub("[removed]", " ".join(printable.split()))[:_MAX_TEXT].rstrip(" .")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _custom(group: str, version: str, plural: str) -> Callable[[Any], Callable[..., Any]]:
    return lambda client: partial(api.CustomObjectsApi(client).list_cluster_custom_object, group, version, plural)


PODS = Kind("pods", "v1", _Pod, _pod, lambda client: api.CoreV1Api(client).list_pod_for_all_namespaces)
SERVICE_ACCOUNTS = Kind(
    "serviceaccounts",
    "v1",
    _Object,
    _service_account,
    lambda client: api.CoreV1Api(client).list_service_account_for_all_namespaces,
    metadata_only=True,
)
REPLICA_SETS = Kind(
    "replicasets.apps",
    "v1",
    _Object,
    partial(_owner, "ReplicaSet"),
    lambda client: api.AppsV1Api(client).list_replica_set_for_all_namespaces,
    metadata_only=True,
)
JOBS = Kind(
    "jobs.batch",
    "v1",
    _Object,
    partial(_owner, "Job"),
    lambda client: api.BatchV1Api(client).list_job_for_all_namespaces,
    metadata_only=True,
)
VAULT_DYNAMIC_SECRETS = Kind(
    "vaultdynamicsecrets.secrets.hashicorp.com",
    "v1beta1",
    _VaultDynamicSecret,
    _vault_dynamic_secret,
    _custom("secrets.hashicorp.com", "v1beta1", "vaultdynamicsecrets"),
)
EXTERNAL_SECRETS = Kind(
    "externalsecrets.external-secrets.io",
    "v1",
    _ExternalSecret,
    _external_secret,
    _custom("external-secrets.io", "v1", "externalsecrets"),
)
# before version 0.16 of the operator; the fields that are read are the same
OLD_EXTERNAL_SECRETS = Kind(
    "externalsecrets.external-secrets.io",
    "v1beta1",
    _ExternalSecret,
    _external_secret,
    _custom("external-secrets.io", "v1beta1", "externalsecrets"),
)
GENERATORS = Kind(
    "vaultdynamicsecrets.generators.external-secrets.io",
    "v1alpha1",
    _Generator,
    _generator,
    _custom("generators.external-secrets.io", "v1alpha1", "vaultdynamicsecrets"),
)

__all__ = [
    "EXTERNAL_SECRETS",
    "GENERATORS",
    "JOBS",
    "OLD_EXTERNAL_SECRETS",
    "PODS",
    "REPLICA_SETS",
    "SERVICE_ACCOUNTS",
    "VAULT_DYNAMIC_SECRETS",
    "Change",
    "Kind",
    "KubeClient",
    "KubeDenied",
    "KubeError",
    "KubeGone",
    "KubeNotServed",
    "KubeUnauthorized",
    "KubeUnreachable",
    "Listing",
    "OwnerSeen",
    "PodSeen",
    "ServiceAccountSeen",
    "SyncSeen",
    "rule",
    "secret_names",
]
