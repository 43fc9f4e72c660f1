"""A real etcd and kube-apiserver on loopback, started as Kubernetes' own test tooling (envtest) does.

The binaries are those that KUBEBUILDER_ASSETS names a folder of (`setup-envtest use -p path`). Flags:
https://github.com/kubernetes-sigs/controller-runtime/tree/main/pkg/internal/testing/controlplane and
https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/
"""

import http.client
import json
import ssl
import subprocess
from pathlib import Path

from demo import processes
from demo.kube import tokens
from demo.kube.keys import Keys


def start_etcd(folder: Path, assets: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The process and its client address. Its data stand in `folder/etcd`."""
    client, peer = processes.free_port(), processes.free_port()
    address = f"http://127.0.0.1:{client}"
    log = folder / "etcd.log"
    process = processes.spawn(
        [
            assets / "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={address}",
            f"--advertise-client-urls={address}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync=true",
        ],
        log=log,
        cwd=folder,
    )

    def healthy() -> bool:
        return _answers(http.client.HTTPConnection("127.0.0.1", client, timeout=2), "/health")

    processes.wait_until(healthy, what="etcd", seconds=30, log=log, process=process)
    return process, address


def start_apiserver(folder: Path, assets: Path, keys: Keys, *, etcd: str, port: int) -> subprocess.Popen[bytes]:
    """The process, when /readyz says ok."""
    users = folder / "users.csv"
    users.touch(mode=0o600)
    # https://kubernetes.io/docs/reference/access-authn-authz/authentication/#static-token-file
    users.write_text(f'{keys.admin_token},admin,admin,"system:masters"\n')
    log = folder / "kube-apiserver.log"
    process = processes.spawn(
        [
            assets / "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--cert-dir={folder}",
            "--bind-address=127.0.0.1",
            # without it, a bind address on loopback makes the server look for a default route
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--tls-cert-file={keys.certificate}",
            f"--tls-private-key-file={keys.certificate_key}",
            f"--token-auth-file={users}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={tokens.ISSUER}",
            f"--service-account-key-file={keys.public_key}",
            f"--service-account-signing-key-file={keys.signing_key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
            # no controller manager runs that would make each namespace's default service account
            "--disable-admission-plugins=ServiceAccount",
        ],
        log=log,
        cwd=folder,
    )
    context = ssl.create_default_context(cafile=str(keys.ca))

    def ready() -> bool:
        return _answers(http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=context), "/readyz")

    processes.wait_until(ready, what="kube-apiserver", seconds=60, log=log, process=process)
    return process


def compact(etcd: str) -> None:
    """Make etcd forget its history, as the API server itself has it do every five minutes.

    https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/; the API server's watch cache may still remember.
    """
    host = etcd.removeprefix("http://")
    revision = _post(host, "/v3/kv/range", {"key": "AA=="})["header"]["revision"]
    _post(host, "/v3/kv/compaction", {"revision": revision, "physical": True})


def _post(host: str, path: str, body: dict[str, object]) -> dict[str, dict[str, str]]:
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise processes.NotReady(f"etcd answered {answer.status} to {path}: {text[:200]!r}")
        decoded: dict[str, dict[str, str]] = json.loads(text)
        return decoded
    finally:
        connection.close()


def _answers(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
