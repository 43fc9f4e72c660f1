"""Service-account tokens: issued as TokenRequest does, checked as the API server's authenticator does."""

import base64
import datetime
import hashlib
import json
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization

from demo.kube import resources, status
from demo.kube.access import User
from demo.kube.keys import Keys
from demo.kube.status import ApiError, Json
from demo.kube.store import Store

ISSUER = "https://kubernetes.default.svc.cluster.local"
_SHORTEST = 600
_USUAL = 3600
_LEEWAY = 60  # seconds, of the server's JWT library
_DELETED_POD_GRACE = 60  # seconds for which a token outlives its pod's deletionTimestamp
_EXTRA = "authentication.kubernetes.io/"


class TokenRefused(Exception):
    """The token is not, or no longer, good; the text goes into TokenReview's status.error."""


class Authority:
    """Signs and checks; the objects that tokens are bound to are looked up in the store."""

    def __init__(self, keys: Keys, store: Store) -> None:
        private = serialization.load_pem_private_key(keys.signing_key.read_bytes(), password=None)
        self._private: Any = private
        self._public: Any = private.public_key()
        self._store = store
        der = self._public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._kid = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()

    def jwks(self) -> Json:
        """RFC 7517, as at /openid/v1/jwks."""
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._public))
        return {"keys": [{"use": "sig", "kty": "RSA", "kid": self._kid, "alg": "RS256", "n": key["n"], "e": key["e"]}]}

    def issue(self, namespace: str, name: str, request: Json) -> Json:
        """Answer a TokenRequest (a copy of it with `status`).

        https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/
        """
        spec = request.get("spec") or {}
        account = self._store.get(resources.SERVICE_ACCOUNTS, namespace, name)
        seconds = int(spec.get("expirationSeconds") or _USUAL)
        if seconds < _SHORTEST:
            why = f"Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            raise status.invalid(resources.SERVICE_ACCOUNTS, name, "spec.expirationSeconds", why)
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        bound: Json = {"namespace": namespace, "serviceaccount": _reference(account)}
        if reference := spec.get("boundObjectRef"):
            bound.update(self._bound_to(reference, namespace, name))
        audiences = spec.get("audiences") or [ISSUER]
        claims = {
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        token = jwt.encode(claims, self._private, algorithm="RS256", headers={"kid": self._kid, "typ": ""})
        expires = datetime.datetime.fromtimestamp(now + seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": None},
            "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": expires},
        }

    def review(self, token: str, audiences: list[str] | None = None) -> tuple[User, list[str]]:
        """Whose token it is, and for which of the wanted audiences (default: the server's own); raises TokenRefused."""
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=["RS256"],
                issuer=ISSUER,
                leeway=_LEEWAY,
                options={"verify_aud": False, "require": ["exp", "iss", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused("[invalid bearer token, service account token has expired]") from error
        except jwt.InvalidTokenError as error:
            raise TokenRefused("invalid bearer token") from error
        wanted = audiences or [ISSUER]
        common = [audience for audience in wanted if audience in claims["aud"]]
        if not common:
            text = f"token audiences {_go(claims['aud'])} is invalid for the target audiences {_go(wanted)}"
            raise TokenRefused(f"[invalid bearer token, {text}]")
        return self._user(claims), common

    def _bound_to(self, reference: Json, namespace: str, account: str) -> Json:
        if (reference.get("kind"), reference.get("apiVersion")) != ("Pod", "v1"):
            kind = f"{reference.get('apiVersion')}, Kind={reference.get('kind')}"
            raise status.bad_request(f'cannot bind token for serviceaccount "{account}" to object of type "{kind}"')
        pod = self._store.get(resources.PODS, namespace, reference.get("name", ""))
        if pod["spec"].get("serviceAccountName") != account:
            raise status.bad_request(
                f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
            )
        if reference.get("uid") and reference["uid"] != pod["metadata"]["uid"]:
            why = (
                f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record."
                " The object might have been deleted and then recreated"
            )
            raise status.conflict(resources.PODS, pod["metadata"]["name"], why)
        bound = {"pod": _reference(pod)}
        if node_name := pod["spec"].get("nodeName"):
            node = self._store.find(resources.NODES, "", node_name)
            bound["node"] = _reference(node) if node else {"name": node_name}
        return bound

    def _user(self, claims: Json) -> User:
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        known = self._store.find(resources.SERVICE_ACCOUNTS, namespace, account["name"])
        if known is None or known["metadata"]["uid"] != account["uid"]:
            raise TokenRefused("[invalid bearer token, service account token has been invalidated]")
        extra = {f"{_EXTRA}credential-id": [f"JTI={claims['jti']}"]}
        if pod := bound.get("pod"):
            self._check_pod(namespace, pod)
            extra |= {f"{_EXTRA}pod-name": [pod["name"]], f"{_EXTRA}pod-uid": [pod["uid"]]}
        if node := bound.get("node"):
            extra[f"{_EXTRA}node-name"] = [node["name"]]
            if "uid" in node:
                extra[f"{_EXTRA}node-uid"] = [node["uid"]]
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(claims["sub"], account["uid"], groups, dict(sorted(extra.items())))

    def _check_pod(self, namespace: str, pod: Json) -> None:
        known = self._store.find(resources.PODS, namespace, pod["name"])
        if known is None or known["metadata"]["uid"] != pod["uid"]:
            raise TokenRefused("[invalid bearer token, service account token has been invalidated]")
        if deleted_at := known["metadata"].get("deletionTimestamp"):
            age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(deleted_at)
            if age.total_seconds() > _DELETED_POD_GRACE:
                raise TokenRefused("[invalid bearer token, service account token has been invalidated]")


def token_review(authority: Authority, body: Json) -> Json:
    """Answer a TokenReview: user and audiences, or the error.

    https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
    """
    spec = body.get("spec") or {}
    token, audiences = spec.get("token", ""), spec.get("audiences")
    if not token:
        raise ApiError(400, "BadRequest", "token is required for TokenReview in authentication")
    try:
        user, common = authority.review(token, audiences)
    except TokenRefused as error:
        result: Json = {"user": {}, "error": str(error)}
    else:
        described = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": user.extra}
        result = {"authenticated": True, "user": described, "audiences": common}
    return {
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": None},
        "spec": spec,
        "status": result,
    }


def _reference(named: Json) -> Json:
    return {"name": named["metadata"]["name"], "uid": named["metadata"]["uid"]}


def _go(words: list[str]) -> str:
    quoted = " ".join(f'"{word}"' for word in words)
    return f"[{quoted}]"
