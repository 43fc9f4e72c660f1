"""The whole stack: what starts in which order, and what each part has to know of the others."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import urllib3
from kubernetes import client as kubernetes

from demo import databases, kube, openbao, postgres, processes, product, state, valkey, vault_setup
from demo.files import write_secret
from demo.kube import driver
from demo.pods import ClusterAccess, Settings
from demo.ports import Ports
from demo.product import Product
from demo.supervisor import Child, Supervisor
from demo.workloads import ALL_APPLICATIONS, CLUSTER, SECOND_CLUSTER, Application

# the audience of the service-account tokens that are for OpenBao: the API server does not accept them
_AUDIENCE = "openbao"
# seconds; Leasehold's own tokens are replaced at half their life, as long as the API answers
_TOKEN_SECONDS, _TOKEN_REFRESH, _TOKEN_RETRY = 3600, 1800, 15
# a part that dies so often before everything is up will not come up
_START_FAILURES = 3


@dataclass(slots=True)
class Stack:
    """Everything that runs; `say` prints one line of progress."""

    folder: Path
    ports: Ports
    supervisor: Supervisor
    say: Callable[[str], None]
    # how many times as fast as usual pods come and go, and the administrator ends leases
    pace: float = 1
    variables: dict[str, str] = field(default_factory=dict)
    tokens_due: float = 0
    _postgres: postgres.Postgres = field(init=False)
    _valkey: valkey.Valkey = field(init=False)
    _openbao: openbao.OpenBao = field(init=False)
    _clusters: dict[str, kube.Cluster] = field(default_factory=dict)
    _apis: dict[str, kubernetes.ApiClient] = field(default_factory=dict)

    def start(self, *, with_product: bool) -> None:
        """Everything, in order; raises NotReady with the last lines of the log of what did not come up."""
        for child in self._servers():
            self._timed(child.name, partial(self.supervisor.begin, child))
        self._timed("service accounts, databases, OpenBao's mounts, roles and policies", self._configure)
        if with_product:
            leasehold = Product(self.folder / "leasehold", self.variables)
            self._timed("Leasehold: migrate, configure, users", leasehold.prepare)
            for child in leasehold.children(self.ports):
                self.supervisor.begin(child)
            self._timed(f"Leasehold: web on {self.variables['DEMO_URL']}, workers, beat", self._wait_until_ready)
        pods = sum(application.replicas for application in ALL_APPLICATIONS)
        self._timed(f"{pods} pods in two clusters, each with what runs in it and a network", self._start_pods)
        if with_product:
            # the pods are what it is to see: still healthy with them
            self._timed("Leasehold is ready (/readyz)", self._wait_until_ready)

    def look(self) -> None:
        """One round of looking after everything."""
        self.supervisor.look()
        if time.monotonic() > self.tokens_due:
            try:
                self._renew_own_tokens()
            except (kubernetes.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                self.tokens_due = time.monotonic() + _TOKEN_RETRY
                self.say(f"Leasehold's service-account tokens cannot be renewed: {type(error).__name__}")

    def stop(self) -> None:
        """Everything, quickly, in an order in which nobody complains about the others."""
        servers = [child.name for child in self._servers()]
        self.supervisor.stop(*(child.name for child in self.supervisor.children if child.name not in servers))
        self.supervisor.stop()

    def listeners(self) -> list[tuple[str, str]]:
        """Every address that something listens on, and what it is; for people."""
        ports = self.ports
        return [
            ("Leasehold", f"127.0.0.1:{ports.web}"),
            ("Leasehold's push process", f"127.0.0.1:{ports.push}"),
            ("PostgreSQL", f"127.0.0.1:{ports.postgres}"),
            ("Valkey", f"127.0.0.1:{ports.valkey}"),
            ("OpenBao", f"127.0.0.1:{ports.openbao}"),
            ("OpenBao's raft", self._raft_address()),
            ("Kubernetes API", f"127.0.0.1:{ports.kubernetes}"),
            ("Kubernetes API of the second cluster", f"127.0.0.1:{ports.kubernetes_2}"),
            *(("etcd", cluster.etcd) for cluster in self._clusters.values() if cluster.etcd),
            ("each pod's way to OpenBao", f"127.21.x.y:{ports.pod_openbao}"),
            ("each pod's way to PostgreSQL", f"127.21.x.y:{ports.pod_postgres}"),
        ]

    # -- servers ---------------------------------------------------------------------------------------------

    def _servers(self) -> list[Child]:
        folder = self.folder
        kube_log = "kube-apiserver.log" if os.environ.get("KUBEBUILDER_ASSETS") else "standin.log"
        return [
            Child(
                "PostgreSQL",
                folder / "postgres/postgres.log",
                self._start_postgres,
                stop=lambda _: self._postgres.stop(),
            ),
            Child("Valkey", folder / "valkey/valkey.log", self._start_valkey),
            Child("OpenBao", folder / "openbao/server.log", self._start_openbao),
            Child(
                "Kubernetes API",
                folder / "kube" / kube_log,
                partial(self._start_kube, CLUSTER),
                stop=lambda _: self._clusters[CLUSTER].stop(),
            ),
            Child(
                "Kubernetes API 2",
                folder / "kube-2/standin.log",
                partial(self._start_kube, SECOND_CLUSTER),
                stop=lambda _: self._clusters[SECOND_CLUSTER].stop(),
            ),
        ]

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        # only in the format that Leasehold reads
        settings = {**postgres.COLLECTED, "log_destination": "jsonlog"}
        self._postgres = postgres.start(self.folder / "postgres", port=self.ports.postgres, settings=settings)
        return self._postgres.process

    def _start_valkey(self) -> subprocess.Popen[bytes]:
        self._valkey = valkey.start(self.folder / "valkey", port=self.ports.valkey)
        return self._valkey.process

    def _start_openbao(self) -> subprocess.Popen[bytes]:
        self._openbao = openbao.start(self.folder / "openbao", port=self.ports.openbao)
        return self._openbao.process

    def _start_kube(self, name: str) -> subprocess.Popen[bytes]:
        """The second cluster is always a stand-in: it is there for its names and addresses."""
        cluster = (
            kube.start(self.folder / "kube", port=self.ports.kubernetes, tls=True)
            if name == CLUSTER
            else kube.start(self.folder / "kube-2", port=self.ports.kubernetes_2, tls=True, real=False)
        )
        self._clusters[name] = cluster
        return cluster.processes[-1]

    def _raft_address(self) -> str:
        found = re.search(r'cluster_address = "([^"]+)"', (self.folder / "openbao/server.hcl").read_text())
        return found.group(1) if found else ""

    # -- configuration ---------------------------------------------------------------------------------------

    def _configure(self) -> None:
        databases.prepare(self._postgres)
        identities = {name: self._prepare_cluster(name) for name in self._clusters}
        administrator = vault_setup.configure(
            self._openbao,
            postgres=self._postgres,
            identities=identities[CLUSTER],
            second=identities[SECOND_CLUSTER],
            policies=state.ROOT / "deploy/vault",
        )
        write_secret(self._administrator_token_file, administrator)
        self.variables = product.write_environment(
            self.folder,
            ports=self.ports,
            postgres=self._postgres,
            valkey=self._valkey,
            openbao=self._openbao,
            administrator=administrator,
        )
        product.write_database_accounts(self.folder, self._postgres)
        product.write_configuration(
            self.folder,
            openbao=self._openbao,
            clusters=self._clusters,
            database_log=self._postgres.collected / "postgresql-*.json",
        )
        self._renew_own_tokens()

    @property
    def _administrator_token_file(self) -> Path:
        return self.folder / "openbao/administrator-token"

    def _prepare_cluster(self, name: str) -> vault_setup.Identities:
        """A cluster's namespaces and service accounts, and what OpenBao has to know of it."""
        cluster = self._clusters[name]
        api = self._apis[name] = driver.connect(cluster)
        applications = [application for application in ALL_APPLICATIONS if application.cluster == name]
        for namespace in sorted({"leasehold", "openbao", *(application.namespace for application in applications)}):
            driver.create_namespace(api, namespace)
        for application in applications:
            driver.create_service_account(api, application.namespace, application.service_account)
        for application in applications:
            if application.program == "consumer":
                _order_secret(api, application)
        for service_account in vault_setup.LEASEHOLD.values():
            driver.create_service_account(api, "leasehold", service_account)
        driver.grant_reader(api, "leasehold", "leasehold")
        driver.create_service_account(api, "openbao", "openbao")
        driver.grant_token_reviewer(api, "openbao", "openbao")
        return vault_setup.Identities(
            kubernetes_address=cluster.address,
            ca_certificate=cluster.ca_certificate,
            reviewer_token=driver.request_token(api, "openbao", "openbao", seconds=30 * 86_400),
            public_key=cluster.service_account_public_key,
            issuer=cluster.issuer,
            audience=_AUDIENCE,
        )

    def _renew_own_tokens(self) -> None:
        """What the kubelet would project into Leasehold's pods: tokens for OpenBao and one for each API server."""
        wanted: list[tuple[str, str, str, list[str]]] = [
            ("vault-token", CLUSTER, "leasehold", [_AUDIENCE]),
            ("vault-respond-token", CLUSTER, "leasehold-actions", [_AUDIENCE]),
            *((product.kubernetes_token(cluster), cluster, "leasehold", []) for cluster in self._clusters),
        ]
        for name, cluster, service_account, audiences in wanted:
            token = driver.request_token(
                self._apis[cluster], "leasehold", service_account, audiences=audiences, seconds=_TOKEN_SECONDS
            )
            write_secret(self.folder / "leasehold" / name, token)
        self.tokens_due = time.monotonic() + _TOKEN_REFRESH

    # -- the product and the pods ----------------------------------------------------------------------------

    def _wait_until_ready(self) -> None:
        try:
            self._wait_for_children(
                lambda: self._get("readyz")[0] == self._get("healthz", of="DEMO_PUSH_URL")[0] == 200,
                what="Leasehold's /readyz, and the push process",
                seconds=60,
            )
        except processes.NotReady as error:
            raise processes.NotReady(f"{error}\nIts last answer: {self._get('readyz')[1]}") from None

    def _get(self, path: str, *, of: str = "DEMO_URL") -> tuple[int, str]:
        """Status (0: no answer) and the beginning of the text."""
        try:
            with urllib.request.urlopen(f"{self.variables[of]}/{path}", timeout=5) as answer:  # noqa: S310
                return answer.status, answer.read().decode(errors="replace")[:1500]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")[:1500]
        except OSError as error:
            return 0, type(error).__name__

    def _start_pods(self) -> None:
        folder = self.folder / "pods"
        folder.mkdir(mode=0o700)
        settings = Settings(
            folder=folder,
            truth=self.folder / "truth.ndjson",
            clusters={
                CLUSTER: self._access(CLUSTER, self.folder / "kube"),
                SECOND_CLUSTER: self._access(SECOND_CLUSTER, self.folder / "kube-2"),
            },
            administrator_token_file=self._administrator_token_file,
            audience=_AUDIENCE,
            vault=self._openbao.address,
            vault_port=self.ports.pod_openbao,
            postgres_port=self.ports.postgres,
            pod_postgres_port=self.ports.pod_postgres,
            pace=self.pace,
        )
        settings_file = folder / "settings.json"
        settings_file.write_bytes(settings.encode())
        log = folder / "pods.log"

        def start() -> subprocess.Popen[bytes]:
            return processes.spawn([sys.executable, "-m", "demo.pods", settings_file], log=log)

        self.supervisor.begin(Child("pods", log, start))
        wanted = sum(application.replicas for application in ALL_APPLICATIONS if application.holds_credentials)

        def all_have_credentials() -> bool:
            return len(list(folder.glob("running/*/*/vault/secrets/db-creds"))) >= wanted

        self._wait_for_children(all_have_credentials, what="the pods' database credentials", seconds=90, log=log)

    def _access(self, cluster: str, folder: Path) -> ClusterAccess:
        found = self._clusters[cluster]
        return ClusterAccess(address=found.address, ca_file=found.ca_file, admin_token_file=folder / "admin-token")

    def _wait_for_children(
        self, condition: Callable[[], bool], *, what: str, seconds: float, log: Path | None = None
    ) -> None:
        """Wait, and meanwhile restart what dies."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                processes.wait_until(lambda: False, what=what, seconds=0, log=log)
            self.supervisor.look()
            for child in self.supervisor.children:
                if child.failures >= _START_FAILURES:
                    raise processes.NotReady(f"{child.name} ends again and again (see above)")
            time.sleep(0.2)

    def _timed(self, what: str, work: Callable[[], None]) -> None:
        began = time.monotonic()
        work()
        self.say(f"{what} ({time.monotonic() - began:.1f} s)")


def _order_secret(api: kubernetes.ApiClient, consumer: Application) -> None:
    """What External Secrets Operator goes by: read this path, put it into that Secret.

    https://external-secrets.io/latest/api/generator/vault/
    """
    generator, external = ("generators.external-secrets.io", "v1alpha1"), ("external-secrets.io", "v1")
    name = consumer.service_account
    spec = {"path": f"/{consumer.credentials_path}", "method": "GET"}
    reference = {"apiVersion": "/".join(generator), "kind": "VaultDynamicSecret", "name": name}
    order = {
        "refreshInterval": "50s",
        "target": {"name": consumer.secret},
        "dataFrom": [{"sourceRef": {"generatorRef": reference}}],
    }
    for (group, version), kind, content in (
        (generator, "VaultDynamicSecret", spec),
        (external, "ExternalSecret", order),
    ):
        driver.define(api, group, version, kind)
        make = partial(driver.create_custom, api, group, version, kind, consumer.namespace, name, content)
        # a real server serves a new definition only after a moment
        processes.wait_until(partial(_succeeds, make), what=f"{kind} {name}", seconds=20)


def _succeeds(make: Callable[[], None]) -> bool:
    try:
        make()
    except kubernetes.ApiException as error:
        if error.status != 404:
            raise
        return False
    return True
