"""A Kubernetes API on one machine: a stand-in or, with KUBEBUILDER_ASSETS set, a real etcd and kube-apiserver."""

import http.client
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from demo import processes
from demo.kube import keys, tokens
from demo.kube import real as real_server
from demo.kube.keys import Keys

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Cluster:
    """A running API server; the same interface for the stand-in and the real one."""

    address: str
    ca_file: Path | None  # None: plain HTTP
    ca_certificate: str  # PEM, there with plain HTTP too: OpenBao's Kubernetes method wants one in any case
    admin_token: str = field(repr=False)  # of a user in system:masters
    service_account_public_key: str  # PEM
    issuer: str  # of service-account tokens, and their usual audience
    is_real: bool
    etcd: str  # the real etcd's address, empty with the stand-in
    processes: list[subprocess.Popen[bytes]]

    def compact(self, *, gone_as_status: bool = False) -> None:
        """Forget the history, so that watches from earlier versions (and unfinished lists) get 410 Gone.

        `gone_as_status` (stand-in only): as an HTTP status instead of an ERROR event in the stream.
        """
        if self.is_real:
            real_server.compact(self.etcd)
            return
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        path = "/standin/compact" + ("?as=status" if gone_as_status else "")
        code = _send(self.address, self.ca_file, "POST", path, headers)
        if code != 200:
            raise processes.NotReady(f"{path} at {self.address} answered {code}")

    def stop(self) -> None:
        """End it in order; its objects stay in its folder."""
        for process in reversed(self.processes):
            processes.stop(process)

    def kill(self) -> None:
        """End it as a crash would."""
        for process in reversed(self.processes):
            processes.kill(process)


def start(folder: Path, *, port: int | None = None, tls: bool = False, real: bool | None = None) -> Cluster:
    """Start the cluster of `folder`, whose keys, tokens and objects stay there, so that it can be started again.

    Gives a Cluster once it answers. The real one (always HTTPS) is started if KUBEBUILDER_ASSETS names the folder of
    its binaries; `real` says which of the two instead. `tls`: HTTPS from the stand-in too.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    prepared = keys.prepare(folder)
    port = port or processes.free_port()
    assets = os.environ.get("KUBEBUILDER_ASSETS") if real is not False else None
    if real and not assets:
        raise processes.NotReady("KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver")
    if assets:
        started, etcd = _start_real(folder, Path(assets), prepared, port)
    else:
        started, etcd = [_start_standin(folder, prepared, port, tls)], ""
    secure = tls or bool(assets)
    return Cluster(
        address=f"{'https' if secure else 'http'}://127.0.0.1:{port}",
        ca_file=prepared.ca if secure else None,
        ca_certificate=prepared.ca.read_text(),
        admin_token=prepared.admin_token,
        service_account_public_key=prepared.service_account_public_key,
        issuer=tokens.ISSUER,
        is_real=bool(assets),
        etcd=etcd,
        processes=started,
    )


def _start_real(folder: Path, assets: Path, prepared: Keys, port: int) -> tuple[list[subprocess.Popen[bytes]], str]:
    store, etcd = real_server.start_etcd(folder, assets)
    try:
        return [store, real_server.start_apiserver(folder, assets, prepared, etcd=etcd, port=port)], etcd
    except BaseException:
        processes.kill(store)
        raise


def _start_standin(folder: Path, prepared: Keys, port: int, tls: bool) -> subprocess.Popen[bytes]:
    log = folder / "standin.log"
    process = processes.spawn(
        [sys.executable, "-m", "demo.kube", f"--folder={folder}", f"--port={port}", *(["--tls"] if tls else [])],
        log=log,
        cwd=_ROOT,
    )
    address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return _send(address, prepared.ca if tls else None, "GET", "/readyz", {}) == 200
        except OSError:
            return False

    processes.wait_until(ready, what=f"Kubernetes API stand-in at {address}", seconds=30, log=log, process=process)
    return process


def _send(address: str, ca_file: Path | None, method: str, path: str, headers: dict[str, str]) -> int:
    scheme, _, host = address.partition("://")
    connection = (
        http.client.HTTPSConnection(host, timeout=5, context=ssl.create_default_context(cafile=ca_file))
        if scheme == "https"
        else http.client.HTTPConnection(host, timeout=5)
    )
    try:
        connection.request(method, path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
