"""The simulated pods: made and deleted through the Kubernetes API; each a real agent or a program, a client and a proxy.

`python -m demo.pods FILE` plays the kubelet, the scheduler and the ReplicaSets of two small clusters: it gives each pod
an address and a projected service-account token, keeps its processes running, and every so often deletes a pod and puts
another one in its place, sometimes with the address that was just given back. FILE is a Settings as JSON; it holds no
secret.
"""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import urllib3
from kubernetes import client as kubernetes

from demo import agent, openbao, processes, truth
from demo.administrator import Administrator
from demo.book import Book
from demo.files import write_secret
from demo.kube import driver
from demo.programs import Program
from demo.proxy import PodProxy
from demo.vault_setup import database_paths
from demo.workloads import ALL_APPLICATIONS, CLUSTER, GATEWAY, NETWORK, Application

# seconds; the shortest token that Kubernetes gives, replaced at four fifths of its life as the kubelet does
_TOKEN_SECONDS, _TOKEN_REFRESH = 600, 480
_STAGGER = 0.4
# seconds between one pod that is replaced and the next, and between one lease that the administrator ends and the next
_CHURN, _DEEDS = 25.0, 20.0
# seconds between looks for pods that somebody else deleted
_LOOK = 5
_GRACE = 30
_NODES = ("node-a", "node-b")
# letters of generated names, without vowels and look-alikes
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class ClusterAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster's API is reached."""

    address: str
    ca_file: Path | None
    admin_token_file: Path


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is; `network` and `inside` are the first two numbers of the addresses that the pods' traffic
    leaves from, and of those at which the pods' own processes find their network.
    """

    folder: Path
    truth: Path
    clusters: dict[str, ClusterAccess]
    administrator_token_file: Path
    audience: str
    vault: str
    vault_port: int
    postgres_port: int
    pod_postgres_port: int
    network: str = NETWORK
    inside: str = "127.21"
    # how many times as fast as usual pods come and go, and the administrator ends leases
    pace: float = 1

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def decode(cls, text: bytes) -> "Settings":
        """From JSON; msgspec knows no paths."""
        return msgspec.json.decode(text, type=cls, dec_hook=lambda kind, value: kind(value))


@dataclass(slots=True)
class Container:
    """One process of a pod, restarted when it ends."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    again_at: float = 0

    def look(self, pod: str) -> None:
        """Start it, or start it again when that is due."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self.again_at = time.monotonic() + min(2.0**self.failures, 30)
            self.failures += 1
            self.process = None
            print(f"{truth.now()} {self.name} of {pod} ended with code {code}", flush=True)
        if self.process is None and time.monotonic() >= self.again_at:
            self.process = self.start()

    async def stop(self, seconds: float = 5) -> None:
        """End it, and never start it again."""
        process, self.process, self.again_at = self.process, None, float("inf")
        if process is not None:
            await asyncio.to_thread(processes.stop, process, seconds)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pod stands: its address as Kubernetes knows it, and the one that its traffic has outside."""

    node: str
    ip: str
    source: str
    host_network: bool = False


@dataclass(slots=True)
class RunningPod:
    """One simulated pod."""

    application: Application
    identity: truth.Pod
    files: agent.Files
    proxy: PodProxy
    containers: list[Container]
    token_due: float
    program: Program | None = None
    started_at: float = field(default_factory=time.monotonic)


class Pods:
    """All simulated pods. Processes are started from the event loop's thread, which lives as long as this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._apis = {name: _connect(cluster) for name, cluster in settings.clusters.items()}
        self._owners: dict[Application, driver.Owner] = {}
        self._running: list[RunningPod] = []
        self._book = Book(settings.truth)
        self._changes = itertools.cycle([self._replace, self._replace_at_same_address, self._give_address_to_another])
        # what an operator fetched for others, by database role: as the Secret that is mounted into their pods
        self._delivered: dict[str, str] = {}

    async def begin(self) -> None:
        """Remove what an earlier process left, then start every application's pods, one after the other."""
        await asyncio.to_thread(self._prepare_clusters)
        for number in range(max(application.replicas for application in ALL_APPLICATIONS)):
            for application in ALL_APPLICATIONS:
                if number < application.replicas:
                    await self.add(application)
                    if application.program == "agent":
                        await asyncio.sleep(_STAGGER)

    def _prepare_clusters(self) -> None:
        shutil.rmtree(self._settings.folder / "running", ignore_errors=True)
        for cluster, namespace in sorted({(one.cluster, one.namespace) for one in ALL_APPLICATIONS}):
            left: Any = kubernetes.CoreV1Api(self._apis[cluster]).list_namespaced_pod(namespace, _request_timeout=10)
            for pod in left.items:
                driver.delete_pod(self._apis[cluster], namespace, pod.metadata.name)
        for application in ALL_APPLICATIONS:
            name = f"{application.service_account}-{_suffix(9)}"
            api = self._apis[application.cluster]
            deployment = driver.Owner("Deployment", application.service_account, str(uuid.uuid4()), "apps/v1")
            self._owners[application] = driver.create_owner(
                api, "ReplicaSet", application.namespace, name, owner=deployment
            )

    def administrator(self) -> Administrator:
        """Who ends some of these pods' leases."""
        return Administrator(
            vault=self._settings.vault,
            token=self._settings.administrator_token_file.read_text(),
            book=self._book,
            programs=self._programs,
            seconds=_DEEDS / self._settings.pace,
        )

    def _programs(self) -> list[Program]:
        return [pod.program for pod in self._running if pod.program]

    async def add(self, application: Application, *, ip: str = "") -> None:
        """Make one more pod, at `ip` if that is given: in the API first and reported as running with its address, only
        then its processes.
        """
        settings, namespace = self._settings, application.namespace
        name = f"{self._owners[application].name}-{_suffix(5)}"
        place = self._place(application, ip)
        uid = await asyncio.to_thread(self._create, application, name, place)
        identity = truth.Pod(
            cluster=application.cluster,
            namespace=namespace,
            service_account=application.service_account,
            pod=name,
            pod_uid=uid,
            ip=place.ip,
        )
        files = agent.Files(settings.folder / "running" / namespace / name)
        files.make_folders()
        proxy = PodProxy(
            identity,
            book=self._book,
            databases=database_paths(),
            vault=settings.vault,
            vault_port=settings.vault_port,
            postgres=("127.0.0.1", settings.postgres_port),
            postgres_port=settings.pod_postgres_port,
            listen=self._next_address(settings.inside),
            source=place.source,
        )
        pod = RunningPod(
            application=application, identity=identity, files=files, proxy=proxy, containers=[], token_due=0
        )
        self._furnish(pod)
        try:
            await self._project_token(pod)
            await proxy.start()
        except BaseException:
            with contextlib.suppress(kubernetes.ApiException, urllib3.exceptions.HTTPError):
                self._delete(pod, 0)
            raise
        self._running.append(pod)
        for container in pod.containers:
            container.look(name)
        if pod.program:
            pod.program.start()

    def _furnish(self, pod: RunningPod) -> None:
        """What runs in the pod."""
        application = pod.application
        if application.program == "agent":
            agent.prepare(pod.files, application, vault_address=pod.proxy.vault_address)
            pod.containers.append(Container("agent", lambda: self._start_agent(pod)))
        elif application.program == "consumer":
            if text := self._delivered.get(application.database_role):
                write_secret(pod.files.credentials, text)
        else:
            pod.program = Program(
                application,
                pod.identity,
                pod.files,
                pod.proxy.vault_address,
                peers=lambda: [one for one in self._programs() if one.application.cluster == CLUSTER],
                deliver=lambda text: self._deliver(application.database_role, text),
            )
        if application.connects:
            pod.containers.append(Container("client", lambda: self._start_client(pod)))

    def _deliver(self, role: str, text: str) -> None:
        """What the operator fetched reaches the pods that it is for."""
        self._delivered[role] = text
        for pod in self._running:
            if pod.application.program == "consumer" and pod.application.database_role == role:
                write_secret(pod.files.credentials, text)

    def _create(self, application: Application, name: str, place: Place) -> str:
        namespace, api = application.namespace, self._apis[application.cluster]
        annotations = {
            "vault.hashicorp.com/agent-inject": "true",
            "vault.hashicorp.com/role": application.vault_role,
            "vault.hashicorp.com/agent-inject-secret-db-creds": application.credentials_path,
            "vault.hashicorp.com/agent-revoke-on-shutdown": json.dumps(application.revokes_on_shutdown),
        }
        uid = driver.create_pod(
            api,
            namespace,
            name,
            service_account=application.service_account,
            node=place.node,
            owner=self._owners[application],
            host_network=place.host_network,
            annotations=annotations if application.program == "agent" else None,
            labels=dict(application.labels),
            secret=application.secret,
        )
        driver.set_pod_running(api, namespace, name, ips=[place.ip], host_ip=self._node_address(place.node))
        return uid

    def _place(self, application: Application, ip: str) -> Place:
        """A node and addresses for a new pod. What is in the second cluster takes an address that the first one uses."""
        node = secrets.choice(_NODES)
        if application.network == "host":
            address = self._node_address(_NODES[0])
            return Place(_NODES[0], address, address, host_network=True)
        if application.cluster != CLUSTER:
            # the namesakes' addresses that nobody has there yet
            taken = {pod.identity.ip for pod in self._running if pod.application.cluster == application.cluster}
            ip = next((there for there in self._namesakes(application) if there not in taken), "")
        ip = ip or self._next_address(self._settings.network)
        return Place(node, ip, GATEWAY if application.network == "nat" else ip)

    def _namesakes(self, application: Application) -> list[str]:
        """Addresses of the first cluster's pods with the same namespace and service account, newest first."""
        name = (CLUSTER, application.namespace, application.service_account)
        identities = [pod.identity for pod in reversed(self._running)]
        return [one.ip for one in identities if (one.cluster, one.namespace, one.service_account) == name]

    def _node_address(self, node: str) -> str:
        return f"{self._settings.network}.0.{11 + _NODES.index(node)}"

    def _next_address(self, network: str) -> str:
        """Addresses count up, also over restarts: by itself none comes back before some 50,000 others."""
        file = self._settings.folder / f"last-address-{network}"
        number = int(file.read_text()) + 1 if file.exists() else 0
        file.write_text(str(number))
        return f"{network}.{1 + number // 200 % 250}.{10 + number % 200}"

    async def _project_token(self, pod: RunningPod) -> None:
        """A new token into the pod's file, as the kubelet projects it into pods that ask for one."""
        identity = pod.identity
        if not pod.application.logs_in:
            pod.token_due = float("inf")
            return
        token = await asyncio.to_thread(
            driver.request_token,
            self._apis[identity.cluster],
            identity.namespace,
            identity.service_account,
            pod=identity.pod,
            pod_uid=identity.pod_uid,
            audiences=[self._settings.audience],
            seconds=_TOKEN_SECONDS,
        )
        write_secret(pod.files.service_account_token, token)
        pod.token_due = time.monotonic() + _TOKEN_REFRESH

    def _start_agent(self, pod: RunningPod) -> subprocess.Popen[bytes]:
        return processes.spawn(
            [openbao.binary(), "agent", f"-config={pod.files.config}", "-log-level=info"],
            log=pod.files.root / "agent.log",
            # nothing of the caller's VAULT_* and BAO_* variables; one thread of Go's is plenty
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(pod.files.root / "home/vault"), "GOMAXPROCS": "1"},
            cwd=pod.files.root,
        )

    def _start_client(self, pod: RunningPod) -> subprocess.Popen[bytes]:
        application = pod.application
        return processes.spawn(
            [
                *(sys.executable, "-m", "demo.client", f"--credentials={pod.files.credentials}"),
                *(f"--host={pod.proxy.listen}", f"--port={self._settings.pod_postgres_port}"),
                *(f"--database={application.database}", f"--query={application.query}"),
                *(f"--truth={self._settings.truth}", f"--pod={msgspec.json.encode(pod.identity).decode()}"),
            ],
            log=pod.files.root / "client.log",
        )

    async def remove(self, pod: RunningPod) -> None:
        """End a pod as a kubelet does: marked in the API, its processes stopped, then gone from the API."""
        await asyncio.to_thread(self._delete, pod, _GRACE)
        self._running.remove(pod)
        await self._stop(pod)
        shutil.rmtree(pod.files.root, ignore_errors=True)
        await asyncio.to_thread(self._delete, pod, 0)

    def _delete(self, pod: RunningPod, grace_seconds: int) -> None:
        try:
            api = self._apis[pod.identity.cluster]
            driver.delete_pod(api, pod.identity.namespace, pod.identity.pod, grace_seconds=grace_seconds)
        except kubernetes.ApiException as error:
            if error.status != 404:
                raise

    async def _stop(self, pod: RunningPod) -> None:
        for container in reversed(pod.containers):
            await container.stop()
        if pod.program:
            await pod.program.stop()
        if pod.application.revokes_on_shutdown:
            await self._revoke_own_token(pod)
        await pod.proxy.stop()

    async def _revoke_own_token(self, pod: RunningPod) -> None:
        """The preStop hook that agent-revoke-on-shutdown stands for, from the pod's own network."""
        try:
            headers = {"X-Vault-Token": pod.files.vault_token.read_text().strip()}
        except OSError:
            return
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.post(f"{pod.proxy.vault_address}/v1/auth/token/revoke-self", headers=headers),
            ):
                pass

    async def look_after(self) -> None:
        """Restart what ended, renew tokens, and let pods come and go; until cancelled."""
        next_change = time.monotonic() + _CHURN / self._settings.pace
        next_look = 0.0
        while True:
            for pod in self._running:
                for container in pod.containers:
                    container.look(pod.identity.pod)
            try:
                if time.monotonic() > next_look:
                    next_look = time.monotonic() + _LOOK
                    await self._end_deleted()
                if time.monotonic() > next_change:
                    next_change = time.monotonic() + _CHURN / self._settings.pace
                    await next(self._changes)()
                for pod in [pod for pod in self._running if time.monotonic() > pod.token_due]:
                    await self._project_token(pod)
                await self._fill()
            except (kubernetes.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                print(f"{truth.now()} the Kubernetes API does not answer: {type(error).__name__}", flush=True)
                await asyncio.sleep(5)
            await asyncio.sleep(0.5)

    async def _end_deleted(self) -> None:
        """Pods that somebody else deleted through the API, or asked to be deleted."""
        wanted = await asyncio.to_thread(self._uids)
        for pod in [pod for pod in self._running if pod.identity.pod_uid not in wanted]:
            print(f"{truth.now()} {pod.identity.pod} was deleted by somebody", flush=True)
            await self.remove(pod)

    def _uids(self) -> set[str]:
        """Uids of the pods that are to run."""
        found = set()
        for api in self._apis.values():
            listed: Any = kubernetes.CoreV1Api(api).list_pod_for_all_namespaces(_request_timeout=10)
            found |= {pod.metadata.uid for pod in listed.items if pod.metadata.deletion_timestamp is None}
        return found

    async def _replace(self) -> None:
        """One pod goes; another one comes, at an address that nobody had."""
        if pod := self._victim(self._running):
            await self.remove(pod)

    async def _replace_at_same_address(self) -> None:
        """One pod goes, and the one that comes in its place at once has its address."""
        if pod := self._victim(self._with_own_address()):
            await self.remove(pod)
            await self.add(pod.application, ip=pod.identity.ip)

    async def _give_address_to_another(self) -> None:
        """One pod goes, and another application's new pod has its address at once."""
        pod = self._victim(self._with_own_address())
        other = self._victim([one for one in self._with_own_address() if pod and one.application != pod.application])
        if pod and other:
            await self.remove(other)
            await self.remove(pod)
            await self.add(other.application, ip=pod.identity.ip)

    def _with_own_address(self) -> list[RunningPod]:
        """Pods of the first cluster whose address is theirs alone there."""
        found = [pod for pod in self._running if pod.identity.cluster == CLUSTER]
        return [pod for pod in found if pod.application.network == "own" and pod.application.logs_in]

    def _victim(self, pods: Sequence[RunningPod]) -> RunningPod | None:
        """One of the older half of these. The one whose leases are ended in every way stays."""
        oldest = sorted(
            (pod for pod in pods if pod.application.program != "maintenance"), key=lambda pod: pod.started_at
        )
        return secrets.choice(oldest[: len(oldest) // 2 + 1]) if oldest else None

    async def _fill(self) -> None:
        """What a ReplicaSet does: as many pods as each application wants."""
        for application in ALL_APPLICATIONS:
            present = sum(pod.application == application for pod in self._running)
            for _ in range(present, application.replicas):
                await self.add(application)

    async def end(self) -> None:
        """Stop everything at once; the API keeps the pods, as when a whole machine goes."""
        running, self._running = self._running, []
        await asyncio.gather(*(self._stop(pod) for pod in running), return_exceptions=True)


def _connect(cluster: ClusterAccess) -> kubernetes.ApiClient:
    configuration = kubernetes.Configuration(host=cluster.address)
    configuration.api_key["authorization"] = f"Bearer {cluster.admin_token_file.read_text()}"
    configuration.ssl_ca_cert = str(cluster.ca_file) if cluster.ca_file else None
    configuration.proxy = None
    return kubernetes.ApiClient(configuration)


def _suffix(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


async def _run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pods = Pods(settings)
    try:
        work = asyncio.create_task(_work(pods, settings))
        ended = asyncio.create_task(stopped.wait())
        await asyncio.wait([work, ended], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    finally:
        await pods.end()


async def _work(pods: Pods, settings: Settings) -> None:
    await pods.begin()
    (settings.folder / "ready").touch()
    async with asyncio.TaskGroup() as group:
        group.create_task(pods.look_after())
        group.create_task(pods.administrator().work())


def main() -> None:
    """The command line."""
    asyncio.run(_run(Settings.decode(Path(sys.argv[1]).read_bytes())))


if __name__ == "__main__":
    main()
