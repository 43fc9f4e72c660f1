"""A small world of real parts for tests: OpenBao with two databases, a Kubernetes cluster, pods that log in and read.

What a pod does is done here by plain calls under its own address, so that each test decides when.
"""

import http.client
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hvac
import psycopg
from kubernetes.client import ApiClient

from demo import databases, vault_setup
from demo.kube import Cluster, driver
from demo.openbao import OpenBao
from demo.postgres import Postgres
from demo.workloads import APPLICATIONS, MOUNT, Application

AUDIENCE = "openbao"
BY_NAME = {application.service_account: application for application in APPLICATIONS}


@dataclass(slots=True)
class TestPod:
    """A pod of the cluster; `address` is a loopback address that is its own."""

    __test__ = False

    world: "World"
    application: Application
    name: str
    uid: str
    address: str
    token: str = ""

    def log_in(self, role: str | None = None) -> str:
        """Logs in with the pod's service-account token, by default to its application's role; returns the request id."""
        body = {"role": role or self.application.vault_role, "jwt": self.service_account_token()}
        answer = self.call("POST", f"auth/{self.application.method}/login", body)
        self.token = answer["auth"]["client_token"]
        return str(answer["request_id"])

    def service_account_token(self) -> str:
        """As the kubelet projects it."""
        return driver.request_token(
            self.world.api,
            self.application.namespace,
            self.application.service_account,
            pod=self.name,
            pod_uid=self.uid,
            audiences=[AUDIENCE],
        )

    def read_credentials(self) -> dict[str, Any]:
        """Reads a database credential; gives the whole answer (lease_id, data.username, data.password, …)."""
        return self.call("GET", self.application.credentials_path)

    def renew(self, lease_id: str) -> dict[str, Any]:
        return self.call("PUT", "sys/leases/renew", {"lease_id": lease_id})

    def read_wrapped(self) -> str:
        """Reads a database credential into a wrapping token, which it returns."""
        answer = self.call("GET", self.application.credentials_path, wrap_seconds=60)
        return str(answer["wrap_info"]["token"])

    def make_token(self, path: str = "auth/token/create", **parameters: object) -> "TestPod":
        """The same pod with a token that its own token made."""
        answer = self.call("POST", path, {"policies": [self.application.vault_role], **parameters})
        return replace(self, token=answer["auth"]["client_token"])

    def call(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, wrap_seconds: int = 0
    ) -> dict[str, Any]:
        """One request to OpenBao, made from the pod's own address."""
        where = urlsplit(self.world.openbao.address)
        connection = http.client.HTTPConnection(
            str(where.hostname), where.port, timeout=10, source_address=(self.address, 0)
        )
        headers = {"X-Vault-Token": self.token} if self.token else {}
        if wrap_seconds:
            headers["X-Vault-Wrap-TTL"] = f"{wrap_seconds}s"
        connection.request(method, f"/v1/{path}", json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]!r}"
        return json.loads(text) if text else {}


@dataclass(slots=True)
class World:
    openbao: OpenBao
    postgres: Postgres
    cluster: Cluster
    api: ApiClient
    admin: hvac.Client
    folder: Path
    pods: int = 0
    names: set[str] = field(default_factory=set)

    def pod(self, service_account: str, *, address: str | None = None, host_network: bool = False) -> TestPod:
        """A running pod under one of the demo's service accounts, by default at an address that no other had."""
        self.pods += 1
        application = BY_NAME[service_account]
        address = address or f"127.30.{self.pods // 250}.{1 + self.pods % 250}"
        name = f"{service_account}-{secrets.token_hex(3)}"
        uid = driver.create_pod(
            self.api,
            application.namespace,
            name,
            service_account=service_account,
            node="node-1",
            ip=address,
            host_network=host_network,
        )
        return TestPod(self, application, name, uid, address)

    def let_make_tokens(self, service_account: str, *, role: str, **settings: object) -> None:
        """A further role of the Kubernetes method for this service account, whose tokens may make others."""
        application = BY_NAME[service_account]
        self.admin.sys.create_or_update_policy(
            "makes-tokens", 'path "auth/token/create*" { capabilities = ["update", "sudo"] }'
        )
        self.admin.write_data(
            f"auth/kubernetes/role/{role}",
            data={
                "bound_service_account_names": [service_account],
                "bound_service_account_namespaces": [application.namespace],
                "audience": AUDIENCE,
                "token_policies": [application.vault_role, "makes-tokens"],
                "token_ttl": "120s",
                "token_max_ttl": "300s",
                **settings,
            },
        )

    def delete(self, pod: TestPod) -> None:
        driver.delete_pod(self.api, pod.application.namespace, pod.name)

    def toml(self) -> str:
        """leasehold.toml for this world, with the secrets in files beside it."""
        for name, service_account, audiences in (
            ("observe-token", "leasehold", [AUDIENCE]),
            ("respond-token", "leasehold-actions", [AUDIENCE]),
            ("kubernetes-token", "leasehold", []),
        ):
            token = driver.request_token(self.api, "leasehold", service_account, audiences=audiences)
            (self.folder / name).write_text(token)
        for database in ("orders", "billing"):
            (self.folder / f"{database}.dsn").write_text(self.postgres.dsn(databases.MONITOR, database))
            (self.folder / f"{database}-respond.dsn").write_text(self.postgres.dsn(databases.RESPONDER, database))
        ca_file = f'ca_file = "{self.cluster.ca_file}"' if self.cluster.ca_file else ""
        devices = "".join(
            f'[[vaults.devices]]\nname = "{name}"\nnodes = [{{ name = "bao-0", path = "{path}" }}]\n'
            for name, path in sorted(self.openbao.audit_logs.items())
        )
        accounts = "".join(
            f'[vaults.{account}]\nmethod = "kubernetes"\nmount = "kubernetes"\nrole = "leasehold-{account}"\n'
            f'secret = {{ file = "{self.folder}/{account}-token" }}\n'
            for account in ("observe", "respond")
        )
        return f"""
[[vaults]]
name = "demo"
address = "{self.openbao.address}"
lease_mounts = ["{MOUNT}"]
reconcile_seconds = 5
{accounts}{devices}
[[clusters]]
name = "demo"
address = "{self.cluster.address}"
{ca_file}
token = {{ file = "{self.folder}/kubernetes-token" }}
[[clusters.auth_mounts]]
vault = "demo"
path = "kubernetes"
[[clusters.auth_mounts]]
vault = "demo"
path = "jwt"
claims = {{ namespace = "service_account_namespace", service_account = "service_account_name", pod = "pod_name", pod_uid = "pod_uid", node = "node_name" }}
[[databases]]
vault = "demo"
mount = "{MOUNT}"
name = "orders"
kind = "postgresql"
monitor = {{ file = "{self.folder}/orders.dsn" }}
respond = {{ file = "{self.folder}/orders-respond.dsn" }}
[[databases]]
vault = "demo"
mount = "{MOUNT}"
name = "billing"
kind = "postgresql"
monitor = {{ file = "{self.folder}/billing.dsn" }}
respond = {{ file = "{self.folder}/billing-respond.dsn" }}
"""

    def users(self) -> set[str]:
        """Dynamic users that PostgreSQL has now."""
        with psycopg.connect(self.postgres.dsn()) as connection:
            return {row[0] for row in connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")}


def build(openbao: OpenBao, postgres: Postgres, cluster: Cluster, folder: Path) -> World:
    """Sets everything up as `make demo` does."""
    folder.mkdir(parents=True, exist_ok=True)
    databases.prepare(postgres)
    api = driver.connect(cluster)
    for namespace in sorted({"leasehold", "openbao", *(application.namespace for application in APPLICATIONS)}):
        driver.create_namespace(api, namespace)
    for application in APPLICATIONS:
        driver.create_service_account(api, application.namespace, application.service_account)
    for service_account in vault_setup.LEASEHOLD.values():
        driver.create_service_account(api, "leasehold", service_account)
    driver.grant_reader(api, "leasehold", "leasehold")
    driver.create_service_account(api, "openbao", "openbao")
    driver.grant_token_reviewer(api, "openbao", "openbao")
    vault_setup.configure(
        openbao,
        postgres=postgres,
        identities=vault_setup.Identities(
            kubernetes_address=cluster.address,
            ca_certificate=cluster.ca_certificate,
            reviewer_token=driver.request_token(api, "openbao", "openbao", seconds=86_400),
            public_key=cluster.service_account_public_key,
            issuer=cluster.issuer,
            audience=AUDIENCE,
        ),
        policies=Path(__file__).resolve().parent.parent / "deploy" / "vault",
    )
    return World(
        openbao, postgres, cluster, api, hvac.Client(url=openbao.address, token=openbao.root_token, timeout=10), folder
    )
