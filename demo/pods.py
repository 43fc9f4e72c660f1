"""The simulated pods: made and deleted through the Kubernetes API; each a real agent, a small client and a proxy.

`python -m demo.pods FILE` plays the kubelet, the scheduler and the ReplicaSets of one small cluster: it gives each pod
an address of its own and a projected service-account token, keeps its two processes running, and every so often
deletes a pod and puts another one in its place. FILE is a Settings as JSON; it holds no secret.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import urllib3
from kubernetes import client as kubernetes

from demo import agent, openbao, processes, truth
from demo.files import write_secret
from demo.kube import driver
from demo.proxy import PodProxy
from demo.vault_setup import database_paths
from demo.workloads import APPLICATIONS, CLUSTER, Application

# seconds; the shortest token that Kubernetes gives, replaced at four fifths of its life as the kubelet does
_TOKEN_SECONDS, _TOKEN_REFRESH = 600, 480
_STAGGER = 0.4
# seconds between looks for pods that somebody else deleted
_LOOK = 5
_GRACE = 30
_NODES = ("node-a", "node-b")
# letters of generated names, without vowels and look-alikes
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is; `network` is the first two numbers of the pods' addresses, such as "127.20"."""

    folder: Path
    truth: Path
    kubernetes: str
    ca_file: Path | None
    admin_token_file: Path
    audience: str
    vault: str
    vault_port: int
    postgres_port: int
    pod_postgres_port: int
    network: str = "127.20"
    churn_seconds: float = 25

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


@dataclass(slots=True)
class RunningPod:
    """One simulated pod."""

    application: Application
    identity: truth.Pod
    files: agent.Files
    proxy: PodProxy
    containers: list[Container]
    token_due: float
    started_at: float = field(default_factory=time.monotonic)


class Pods:
    """All simulated pods. Processes are started from the event loop's thread, which lives as long as this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = _connect(settings)
        self._owners: dict[Application, driver.Owner] = {}
        self._running: list[RunningPod] = []

    async def begin(self) -> None:
        """Remove what an earlier process left, then start every application's pods, one after the other."""
        await asyncio.to_thread(self._prepare_cluster)
        for number in range(max(application.replicas for application in APPLICATIONS)):
            for application in APPLICATIONS:
                if number < application.replicas:
                    await self.add(application)
                    await asyncio.sleep(_STAGGER)

    def _prepare_cluster(self) -> None:
        shutil.rmtree(self._settings.folder / "running", ignore_errors=True)
        core = kubernetes.CoreV1Api(self._api)
        for namespace in sorted({application.namespace for application in APPLICATIONS}):
            left: Any = core.list_namespaced_pod(namespace, _request_timeout=10)
            for pod in left.items:
                driver.delete_pod(self._api, namespace, pod.metadata.name)
        for application in APPLICATIONS:
            name = f"{application.service_account}-{_suffix(9)}"
            self._owners[application] = driver.create_owner(self._api, "ReplicaSet", application.namespace, name)

    async def add(self, application: Application) -> None:
        """Make one more pod: in the API first and reported as running with its address, only then its processes."""
        settings, namespace = self._settings, application.namespace
        name = f"{self._owners[application].name}-{_suffix(5)}"
        ip = self._next_address()
        uid = await asyncio.to_thread(self._create, application, name, ip)
        identity = truth.Pod(
            cluster=CLUSTER,
            namespace=namespace,
            service_account=application.service_account,
            pod=name,
            pod_uid=uid,
            ip=ip,
        )
        files = agent.Files(settings.folder / "running" / namespace / name)
        proxy = PodProxy(
            identity,
            truth_file=settings.truth,
            databases=database_paths(),
            vault=settings.vault,
            vault_port=settings.vault_port,
            postgres=("127.0.0.1", settings.postgres_port),
            postgres_port=settings.pod_postgres_port,
        )
        agent.prepare(files, application, vault_address=proxy.vault_address)
        pod = RunningPod(
            application=application,
            identity=identity,
            files=files,
            proxy=proxy,
            containers=[
                Container("agent", lambda: self._start_agent(pod)),
                Container("client", lambda: self._start_client(pod)),
            ],
            token_due=0,
        )
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

    def _create(self, application: Application, name: str, ip: str) -> str:
        namespace = application.namespace
        uid = driver.create_pod(
            self._api,
            namespace,
            name,
            service_account=application.service_account,
            node=secrets.choice(_NODES),
            owner=self._owners[application],
            annotations={
                "vault.hashicorp.com/agent-inject": "true",
                "vault.hashicorp.com/role": application.vault_role,
                "vault.hashicorp.com/agent-inject-secret-db-creds": application.credentials_path,
                "vault.hashicorp.com/agent-revoke-on-shutdown": json.dumps(application.revokes_on_shutdown),
            },
        )
        driver.set_pod_running(self._api, namespace, name, ips=[ip])
        return uid

    def _next_address(self) -> str:
        """Addresses count up, also over restarts: none comes back before some 50,000 others."""
        file = self._settings.folder / "last-address"
        number = int(file.read_text()) + 1 if file.exists() else 0
        file.write_text(str(number))
        return f"{self._settings.network}.{1 + number // 200 % 250}.{10 + number % 200}"

    async def _project_token(self, pod: RunningPod) -> None:
        """A new token into the pod's file, as the kubelet projects it."""
        identity = pod.identity
        token = await asyncio.to_thread(
            driver.request_token,
            self._api,
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
                *(f"--host={pod.identity.ip}", f"--port={self._settings.pod_postgres_port}"),
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
            driver.delete_pod(self._api, pod.identity.namespace, pod.identity.pod, grace_seconds=grace_seconds)
        except kubernetes.ApiException as error:
            if error.status != 404:
                raise

    async def _stop(self, pod: RunningPod) -> None:
        for container in reversed(pod.containers):
            await container.stop()
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
        next_change = time.monotonic() + self._settings.churn_seconds
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
                    next_change = time.monotonic() + self._settings.churn_seconds
                    await self._remove_one()
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
        listed: Any = kubernetes.CoreV1Api(self._api).list_pod_for_all_namespaces(_request_timeout=10)
        return {pod.metadata.uid for pod in listed.items if pod.metadata.deletion_timestamp is None}

    async def _remove_one(self) -> None:
        """One of the older half goes."""
        oldest = sorted(self._running, key=lambda pod: pod.started_at)
        if oldest:
            await self.remove(secrets.choice(oldest[: len(oldest) // 2 + 1]))

    async def _fill(self) -> None:
        """What a ReplicaSet does: as many pods as each application wants."""
        for application in APPLICATIONS:
            present = sum(pod.application == application for pod in self._running)
            for _ in range(present, application.replicas):
                await self.add(application)

    async def end(self) -> None:
        """Stop everything at once; the API keeps the pods, as when a whole machine goes."""
        running, self._running = self._running, []
        await asyncio.gather(*(self._stop(pod) for pod in running), return_exceptions=True)


def _connect(settings: Settings) -> kubernetes.ApiClient:
    configuration = kubernetes.Configuration(host=settings.kubernetes)
    configuration.api_key["authorization"] = f"Bearer {settings.admin_token_file.read_text()}"
    configuration.ssl_ca_cert = str(settings.ca_file) if settings.ca_file else None
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
    await pods.look_after()


def main() -> None:
    """The command line."""
    asyncio.run(_run(Settings.decode(Path(sys.argv[1]).read_bytes())))


if __name__ == "__main__":
    main()
