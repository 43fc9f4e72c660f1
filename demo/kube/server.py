"""The stand-in's HTTP side: routes, authentication, lists, watches; the answers are made in the modules beside it."""

import asyncio
import contextlib
import ssl
import time
from typing import NamedTuple

import msgspec
from aiohttp import web

from demo.kube import access, objects, resources, status, tokens
from demo.kube.access import Attempt, User
from demo.kube.keys import Keys
from demo.kube.status import ApiError, Json, Resource
from demo.kube.store import Store
from demo.kube.tokens import Authority, TokenRefused

VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0-standin",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "2025-08-27T00:00:00Z",
    "goVersion": "",
    "compiler": "python",
    "platform": "linux/amd64",
}
_LONGEST_WATCH = 1800
_BOOKMARK_SECONDS = 60
_BOOKMARK_BEFORE_END = 2
_REVIEWS = {
    ("authentication.k8s.io", "v1", "tokenreviews"),
    ("authorization.k8s.io", "v1", "subjectaccessreviews"),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews"),
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class Target(NamedTuple):
    """What a path below /api or /apis means."""

    group: str
    version: str
    plural: str
    namespace: str
    name: str
    subresource: str


class Server:
    """One cluster's state and the request handler."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store = store
        self.authority = Authority(keys, store)
        self._admin_token = keys.admin_token
        self._gone_as_status = False
        for resource, body in access.defaults():
            if not store.find(resource, "", body["metadata"]["name"]):
                objects.create(store, resource, "", body)
        for name in ("default", "kube-system"):
            if not store.find(resources.NAMESPACES, "", name):
                objects.create(store, resources.NAMESPACES, "", {"metadata": {"name": name}})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request; refusals become `Status` objects."""
        try:
            user = self._authenticate(request)
            target = _target(request.path)
            if target is None:
                return self._answer_path(request, user)
            attempt = _attempt(request, target)
            # None for the reviews, which are created but never stored, and for what isn't served
            resource = self.store.served(target.group, target.version, target.plural)
            self._authorise(user, attempt, resource)
            return await self._answer_resource(request, user, target, attempt, resource)
        except ApiError as error:
            return _json(error.body(), error.code)

    def _authenticate(self, request: web.Request) -> User:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return access.ANONYMOUS
        if scheme.lower() == "bearer" and token == self._admin_token:
            return access.ADMIN
        try:
            user, _ = self.authority.review(token.strip())
        except TokenRefused as error:
            raise status.unauthorized() from error
        return user

    def _authorise(self, user: User, attempt: Attempt, resource: Resource | None) -> None:
        if not access.allowed_by(self.store, user, attempt):
            raise access.forbidden(user, attempt, resource)

    def _answer_path(self, request: web.Request, user: User) -> web.StreamResponse:
        path = request.path
        self._authorise(user, Attempt(request.method.lower(), path=path), None)
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path.rstrip("/") == "/version":
            return _json(VERSION)
        if path == "/openid/v1/jwks":
            return _json(self.authority.jwks(), content_type="application/jwk-set+json")
        if path == "/.well-known/openid-configuration":
            return _json(
                {
                    "issuer": tokens.ISSUER,
                    "jwks_uri": f"{request.url.origin()}/openid/v1/jwks",
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        if path == "/standin/compact" and request.method == "POST":
            # the hook for tests: what etcd does by itself every five minutes. With as=status a watch that starts too
            # early is answered with HTTP 410, as some servers do, instead of an ERROR event
            self._gone_as_status = request.query.get("as") == "status"
            return _json({"compacted": self.store.compact()})
        raise status.no_such_path()

    async def _answer_resource(
        self, request: web.Request, user: User, target: Target, attempt: Attempt, resource: Resource | None
    ) -> web.StreamResponse:
        verb = attempt.verb
        if (target.group, target.version, target.plural) in _REVIEWS and verb == "create":
            return _json(self._review(target.plural, user, await _body(request)), 201)
        if resource is None or (target.namespace and not resource.namespaced):
            raise status.no_such_path()
        where = (self.store, resource, target.namespace, target.name)
        if (target.plural, target.subresource, verb) == ("serviceaccounts", "token", "create"):
            return _json(self.authority.issue(target.namespace, target.name, await _body(request)), 201)
        if target.subresource not in ("", "status"):
            raise status.no_such_path()
        if verb == "watch":
            return await self._watch(request, resource, target.namespace)
        if verb == "list":
            return self._list(request, resource, target.namespace)
        if verb == "get":
            return _raw(self.store.entry(*where[1:]).encoded)
        body = await _body(request)
        if verb == "create" and not target.name:
            if resource.namespaced and not target.namespace:
                raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the resource")
            made = objects.create(self.store, resource, target.namespace, body)
            if resource == resources.CUSTOM_RESOURCE_DEFINITIONS:
                self.store.serve(body)
            return _raw(made, 201)
        if verb == "delete":
            if "gracePeriodSeconds" in request.query:
                body["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
            return _raw(objects.delete(*where, body))
        if verb == "update":
            return _raw(objects.update(*where, subresource=target.subresource, body=body))
        if verb == "patch":
            strategic = request.content_type == "application/strategic-merge-patch+json"
            if not strategic and request.content_type != "application/merge-patch+json":
                raise ApiError(415, "UnsupportedMediaType", f"patch type {request.content_type} is not supported here")
            return _raw(objects.patch(*where, subresource=target.subresource, patch=body, strategic=strategic))
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _review(self, plural: str, user: User, body: Json) -> Json:
        if plural == "tokenreviews":
            return tokens.token_review(self.authority, body)
        spec = body.get("spec") or {}
        if plural == "subjectaccessreviews":
            user = User(spec.get("user", ""), spec.get("uid", ""), tuple(spec.get("groups") or ()))
        wanted = spec.get("resourceAttributes")
        if wanted is not None:
            keys = ("verb", "group", "resource", "subresource", "namespace", "name")
            attempt = Attempt(**{key: wanted.get(key, "") for key in keys})
        else:
            path = spec.get("nonResourceAttributes") or {}
            attempt = Attempt(path.get("verb", ""), path=path.get("path", ""))
        reason = access.allowed_by(self.store, user, attempt)
        answer = {"allowed": reason is not None, **({"reason": reason} if reason else {})}
        kind = "SubjectAccessReview" if plural == "subjectaccessreviews" else "SelfSubjectAccessReview"
        metadata = {"creationTimestamp": None}
        version = "authorization.k8s.io/v1"
        return {"kind": kind, "apiVersion": version, "metadata": metadata, "spec": spec, "status": answer}

    def _list(self, request: web.Request, resource: Resource, namespace: str) -> web.Response:
        limit = _number(request, "limit") or 0
        page = self.store.page(resource, namespace, limit, request.query.get("continue", ""))
        metadata: Json = {"resourceVersion": str(page.version)}
        if page.following:
            metadata |= {"continue": page.following, "remainingItemCount": page.remaining}
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
        items = page.items
        if _metadata_only(request):
            head |= {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            items = [_partial(item) for item in items]
        return _raw(msgspec.json.encode(head)[:-1] + b',"items":[' + b",".join(items) + b"]}")

    async def _watch(self, request: web.Request, resource: Resource, namespace: str) -> web.StreamResponse:
        """https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes."""
        since = _number(request, "resourceVersion") or None
        seconds = _number(request, "timeoutSeconds") or _LONGEST_WATCH
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        shown = _partial if _metadata_only(request) else bytes
        try:
            earlier, watcher = self.store.watch(resource, namespace, since)
        except ApiError as error:
            if self._gone_as_status:
                raise
            event = b'{"type":"ERROR","object":' + msgspec.json.encode(error.body()) + b"}\n"
            return web.Response(body=event, content_type="application/json")
        stream = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
        ends_at = time.monotonic() + seconds
        try:
            await stream.prepare(request)
            for change in earlier:
                await stream.write(_event(change.kind, shown(change.encoded)))
            while (left := ends_at - time.monotonic()) > 0:
                before_end = left - _BOOKMARK_BEFORE_END
                wait = min(_BOOKMARK_SECONDS, before_end) if bookmarks and before_end > 0 else left
                try:
                    async with asyncio.timeout(wait):
                        following = await watcher.queue.get()
                except TimeoutError:
                    if bookmarks and before_end > 0:
                        await stream.write(_event("BOOKMARK", self._bookmark(resource)))
                    continue
                if following is None:
                    break
                await stream.write(_event(following.kind, shown(following.encoded)))
            await stream.write_eof()
        except ConnectionError:
            pass  # the watcher went away
        finally:
            self.store.unwatch(watcher)
        return stream

    def _bookmark(self, resource: Resource) -> bytes:
        metadata = {"resourceVersion": str(self.store.version), "creationTimestamp": None}
        return msgspec.json.encode({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})


async def serve(server: Server, *, port: int, tls: Keys | None, stopped: asyncio.Event) -> None:
    """Serve on 127.0.0.1 until `stopped`."""
    application = web.Application(client_max_size=4 << 20)
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.certificate_key)
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
    try:
        await stopped.wait()
    finally:
        with contextlib.suppress(Exception):
            await runner.cleanup()


def _target(path: str) -> Target | None:
    """`/api/v1/…` or `/apis/GROUP/VERSION/…` below which there is a resource; None for every other path."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    # /namespaces/NAME is the namespace itself, /namespaces/NAME/pods is what is in it
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource, *more = [*rest, "", ""]
    return None if any(more) else Target(group, version, plural, namespace, name, subresource)


def _attempt(request: web.Request, target: Target) -> Attempt:
    if request.method in ("GET", "HEAD"):
        watching = request.query.get("watch") in ("1", "true")
        verb = "get" if target.name else "watch" if watching else "list"
    elif request.method == "DELETE":
        verb = "delete" if target.name else "deletecollection"
    else:
        verb = _VERBS.get(request.method, request.method.lower())
    if any(key in request.query for key in ("fieldSelector", "labelSelector")):
        raise status.bad_request("this stand-in knows no selectors")
    # RBAC sees requests for one namespace object as made in that namespace
    namespace = target.name if target.plural == "namespaces" else target.namespace
    return Attempt(verb, target.group, target.plural, target.subresource, namespace, target.name)


async def _body(request: web.Request) -> Json:
    text = await request.read()
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=Json)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"the object provided is unrecognized: {error}") from error


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise status.bad_request(f'Invalid value: "{text}": {name} must be a number')
    return int(text)


def _metadata_only(request: web.Request) -> bool:
    """https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches."""
    return "as=PartialObjectMetadata" in request.headers.get("Accept", "")


def _partial(encoded: bytes) -> bytes:
    metadata = msgspec.json.decode(encoded)["metadata"]
    return msgspec.json.encode({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})


def _event(kind: str, encoded: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + encoded + b"}\n"


def _json(body: Json, code: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=code, content_type=content_type)


def _raw(body: bytes, code: int = 200) -> web.Response:
    return web.Response(body=body, status=code, content_type="application/json")
