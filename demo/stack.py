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
from demo.pods import Settings
from demo.ports import Ports
from demo.product import Product
from demo.supervisor import Child, Supervisor
from demo.workloads import APPLICATIONS

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
    variables: dict[str, str] = field(default_factory=dict)
    tokens_due: float = 0
    _postgres: postgres.Postgres = field(init=False)
    _valkey: valkey.Valkey = field(init=False)
    _openbao: openbao.OpenBao = field(init=False)
    _cluster: kube.Cluster = field(init=False)
    _api: kubernetes.ApiClient = field(init=False)

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
        pods = sum(application.replicas for application in APPLICATIONS)
        self._timed(f"{pods} pods: an agent, a client and an address for each", self._start_pods)
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
            *((("etcd", self._cluster.etcd),) if self._cluster.etcd else ()),
            ("each pod's way to OpenBao", f"127.20.x.y:{ports.pod_openbao}"),
            ("each pod's way to PostgreSQL", f"127.20.x.y:{ports.pod_postgres}"),
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
            Child("Kubernetes API", folder / "kube" / kube_log, self._start_kube, stop=lambda _: self._cluster.stop()),
        ]

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        self._postgres = postgres.start(self.folder / "postgres", port=self.ports.postgres)
        return self._postgres.process

    def _start_valkey(self) -> subprocess.Popen[bytes]:
        self._valkey = valkey.start(self.folder / "valkey", port=self.ports.valkey)
        return self._valkey.process

    def _start_openbao(self) -> subprocess.Popen[bytes]:
        self._openbao = openbao.start(self.folder / "openbao", port=self.ports.openbao)
        return self._openbao.process

    def _start_kube(self) -> subprocess.Popen[bytes]:
        self._cluster = kube.start(self.folder / "kube", port=self.ports.kubernetes, tls=True)
        return self._cluster.processes[-1]

    def _raft_address(self) -> str:
        found = re.search(r'cluster_address = "([^"]+)"', (self.folder / "openbao/server.hcl").read_text())
        return found.group(1) if found else ""

    # -- configuration ---------------------------------------------------------------------------------------

    def _configure(self) -> None:
        cluster = self._cluster
        databases.prepare(self._postgres)
        self._api = driver.connect(cluster)
        for namespace in sorted({"leasehold", "openbao", *(application.namespace for application in APPLICATIONS)}):
            driver.create_namespace(self._api, namespace)
        for application in APPLICATIONS:
            driver.create_service_account(self._api, application.namespace, application.service_account)
        for service_account in vault_setup.LEASEHOLD.values():
            driver.create_service_account(self._api, "leasehold", service_account)
        driver.grant_reader(self._api, "leasehold", "leasehold")
        driver.create_service_account(self._api, "openbao", "openbao")
        driver.grant_token_reviewer(self._api, "openbao", "openbao")
        administrator = vault_setup.configure(
            self._openbao,
            postgres=self._postgres,
            identities=vault_setup.Identities(
                kubernetes_address=cluster.address,
                ca_certificate=cluster.ca_certificate,
                reviewer_token=driver.request_token(self._api, "openbao", "openbao", seconds=30 * 86_400),
                public_key=cluster.service_account_public_key,
                issuer=cluster.issuer,
                audience=_AUDIENCE,
            ),
            policies=state.ROOT / "deploy/vault",
        )
        self.variables = product.write_environment(
            self.folder,
            ports=self.ports,
            postgres=self._postgres,
            valkey=self._valkey,
            openbao=self._openbao,
            administrator=administrator,
        )
        product.write_monitor_accounts(self.folder, self._postgres)
        product.write_configuration(
            self.folder, openbao=self._openbao, kubernetes=cluster.address, ca_file=cluster.ca_file
        )
        self._renew_own_tokens()

    def _renew_own_tokens(self) -> None:
        """What the kubelet would project into Leasehold's pods: tokens for OpenBao and one for the API server."""
        for name, service_account, audiences in (
            ("vault-token", "leasehold", [_AUDIENCE]),
            ("vault-respond-token", "leasehold-actions", [_AUDIENCE]),
            ("kubernetes-token", "leasehold", []),
        ):
            token = driver.request_token(
                self._api, "leasehold", service_account, audiences=audiences, seconds=_TOKEN_SECONDS
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
            kubernetes=self._cluster.address,
            ca_file=self._cluster.ca_file,
            admin_token_file=self.folder / "kube/admin-token",
            audience=_AUDIENCE,
            vault=self._openbao.address,
            vault_port=self.ports.pod_openbao,
            postgres_port=self.ports.postgres,
            pod_postgres_port=self.ports.pod_postgres,
        )
        settings_file = folder / "settings.json"
        settings_file.write_bytes(settings.encode())
        log = folder / "pods.log"

        def start() -> subprocess.Popen[bytes]:
            return processes.spawn([sys.executable, "-m", "demo.pods", settings_file], log=log)

        self.supervisor.begin(Child("pods", log, start))
        wanted = sum(application.replicas for application in APPLICATIONS)

        def all_have_credentials() -> bool:
            return len(list(folder.glob("running/*/*/vault/secrets/db-creds"))) >= wanted

        self._wait_for_children(all_have_credentials, what="the pods' database credentials", seconds=90, log=log)

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
