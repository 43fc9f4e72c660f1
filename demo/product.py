"""Leasehold itself inside the demo: its environment, its leasehold.toml, and the processes that it consists of."""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from demo import kube, processes, state
from demo.databases import MONITOR, RESPONDER
from demo.files import write_secret
from demo.openbao import OpenBao
from demo.ports import Ports
from demo.postgres import Postgres
from demo.supervisor import Child
from demo.valkey import Valkey
from demo.workloads import CLUSTER, DATABASES, GATEWAY, MOUNT, SECOND_APPLICATIONS, VAULT

# watch: a watch for each cluster, and three that sample, attribute and match meanwhile
_QUEUES = {"ingest": 2, "watch": 5, "leases": 2, "actions": 4, "reports": 1}
USER, VIEWER = "demo", "viewer"
# what the product calls a claim, and the log-in metadata of the JWT role that holds it (demo.vault_setup)
_CLAIMS = {
    "namespace": "service_account_namespace",
    "service_account": "service_account_name",
    "pod": "pod_name",
    "pod_uid": "pod_uid",
    "node": "node_name",
}


@dataclass(frozen=True, slots=True)
class Product:
    """Where it stands, and the variables of `env` (see write_environment)."""

    folder: Path
    variables: dict[str, str]

    @property
    def process_environment(self) -> dict[str, str]:
        """What its processes get: no owner's connection, no administrator's token, nothing of the caller's own."""
        own = {
            name: value
            for name, value in self.variables.items()
            if name.startswith(("LEASEHOLD_", "DJANGO_")) and name != "LEASEHOLD_OWNER_DATABASE_URL"
        }
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return {**_inherited(), **own, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}

    def prepare(self) -> None:
        """Migrate, then configure and make the two users. Raises NotReady with the command's last lines."""
        self._manage(["migrate", "--verbosity=0"])
        self._manage(
            ["configure"],
            ["createuser", USER, "--group=responder", "--password-env=DEMO_PASSWORD"],
            ["createuser", VIEWER, "--group=viewer", "--password-env=DEMO_VIEWER_PASSWORD"],
        )

    def _manage(self, *commands: list[str]) -> None:
        """Run `manage.py` commands at the same time."""
        running = []
        for words in commands:
            what, log = " ".join(["manage.py", *words]), self.folder / f"manage-{'-'.join(words[:2])}.log"
            process = processes.spawn(
                [sys.executable, "manage.py", *words],
                log=log,
                env={**_inherited(), **self.variables},
                cwd=state.ROOT,
            )
            running.append((what, log, process))
        for what, log, process in running:
            ended = partial(_has_ended, process)
            processes.wait_until(ended, what=what, seconds=120, log=log)
            if process.returncode != 0:
                processes.wait_until(lambda: False, what=what, seconds=0, log=log, process=process)

    def children(self, ports: Ports) -> list[Child]:
        """The web server, the push process, one worker for each queue, and beat."""
        web = [
            *("gunicorn", "dashboard.wsgi", f"--bind=127.0.0.1:{ports.web}", "--workers=2", "--threads=4"),
            # nothing outside the demo's folder
            *("--no-control-socket", f"--worker-tmp-dir={self.folder}"),
        ]
        push = [
            *("gunicorn", "-c", "python:dashboard.push.server", "dashboard.push.wsgi"),
            *(f"--bind=127.0.0.1:{ports.push}", "--workers=1", f"--worker-tmp-dir={self.folder}"),
        ]
        found = [self._child("web", web), self._child("push", push)]
        for queue, concurrency in _QUEUES.items():
            worker = [
                "-Q",
                queue,
                "-c",
                str(concurrency),
                "-n",
                f"{queue}@demo",
                "--without-gossip",
                "--without-mingle",
            ]
            found.append(self._child(f"worker {queue}", ["celery", "-A", "dashboard", "worker", *worker]))
        schedule = self.folder / "beat-schedule"
        found.append(self._child("beat", ["celery", "-A", "dashboard", "beat", "-s", str(schedule)]))
        return found

    def _child(self, name: str, command: list[str]) -> Child:
        log = self.folder / f"{name.replace(' ', '-')}.log"

        def start() -> subprocess.Popen[bytes]:
            return processes.spawn(
                [sys.executable, "-m", *command],
                log=log,
                env=self.process_environment,
                cwd=state.ROOT,
                # the supervisor is gone: a worker that is asked politely would first try to finish its tasks
                death_signal=signal.SIGKILL,
            )

        # a task that takes longer is begun again by the next worker, by design
        return Child(name, log, start, stop=partial(processes.stop, seconds=4))


def write_environment(
    folder: Path, *, ports: Ports, postgres: Postgres, valkey: Valkey, openbao: OpenBao, administrator: str
) -> dict[str, str]:
    """`env` in the demo's folder (mode 0600), a shell file; returns its variables."""
    variables = {
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
        "LEASEHOLD_SECRET_KEY": secrets.token_urlsafe(50),
        "LEASEHOLD_DATABASE_URL": postgres.dsn("leasehold_app", "leasehold"),
        "LEASEHOLD_OWNER_DATABASE_URL": postgres.dsn("leasehold_owner", "leasehold"),
        "LEASEHOLD_BROKER_URL": valkey.url,
        "LEASEHOLD_CONFIG": str(folder / "leasehold.toml"),
        "LEASEHOLD_ALLOWED_HOSTS": "localhost,127.0.0.1",
        "LEASEHOLD_TRUSTED_ORIGINS": f"http://127.0.0.1:{ports.web},http://localhost:{ports.web}",
        "LEASEHOLD_INSECURE_HTTP": "1",
        "DEMO_URL": f"http://127.0.0.1:{ports.web}",
        "DEMO_PUSH_URL": f"http://127.0.0.1:{ports.push}",
        "DEMO_USER": USER,
        "DEMO_PASSWORD": secrets.token_urlsafe(12),
        "DEMO_VIEWER": VIEWER,
        "DEMO_VIEWER_PASSWORD": secrets.token_urlsafe(12),
        "VAULT_ADDR": openbao.address,
        "VAULT_TOKEN": administrator,
    }
    write_secret(folder / "env", "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))
    return variables


def kubernetes_token(cluster: str) -> str:
    """The file that holds Leasehold's token for a cluster's API."""
    return f"kubernetes-token-{cluster}"


def write_configuration(
    folder: Path, *, openbao: OpenBao, clusters: Mapping[str, kube.Cluster], database_log: Path
) -> None:
    """`leasehold.toml` in the demo's folder, and the addresses of its accounts in the databases in files beside it."""
    secrets_folder = folder / "leasehold"

    def login(role: str, token: str) -> list[str]:
        secret = f"secret = {{ file = {_quoted(secrets_folder / token)} }}"
        return ['method = "kubernetes"', 'mount = "kubernetes"', f'role = "{role}"', secret]

    lines = [
        "# The demo's configuration; written anew at each start.",
        "[[vaults]]",
        f"name = {_quoted(VAULT)}",
        f"address = {_quoted(openbao.address)}",
        f"lease_mounts = [{_quoted(MOUNT)}]",
        # tokens end early here, and their leases with them, which no event tells: look more often than every 10 minutes
        "reconcile_seconds = 20",
        *("[vaults.observe]", *login("leasehold-observe", "vault-token")),
        *("[vaults.respond]", *login("leasehold-respond", "vault-respond-token")),
    ]
    for device, log in openbao.audit_logs.items():
        lines += [
            "[[vaults.devices]]",
            f"name = {_quoted(device)}",
            f'nodes = [{{ name = "bao-0", path = {_quoted(log)} }}]',
        ]
    for name, cluster in clusters.items():
        lines += [
            "[[clusters]]",
            f"name = {_quoted(name)}",
            f"address = {_quoted(cluster.address)}",
            *([f"ca_file = {_quoted(cluster.ca_file)}"] if cluster.ca_file else []),
            f"token = {{ file = {_quoted(secrets_folder / kubernetes_token(name))} }}",
        ]
        for path in ("kubernetes", "jwt") if name == CLUSTER else (SECOND_APPLICATIONS[0].auth_mount,):
            lines += ["[[clusters.auth_mounts]]", f"vault = {_quoted(VAULT)}", f"path = {_quoted(path)}"]
            if path == "jwt":
                lines += ["[clusters.auth_mounts.claims]", *(f'{claim} = "{key}"' for claim, key in _CLAIMS.items())]
    for database in DATABASES:
        lines += [
            "[[databases]]",
            f"vault = {_quoted(VAULT)}",
            f"mount = {_quoted(MOUNT)}",
            f"name = {_quoted(database)}",
            'kind = "postgresql"',
            f"monitor = {{ file = {_quoted(secrets_folder / f'{database}.dsn')} }}",
            f"respond = {{ file = {_quoted(secrets_folder / f'{database}-respond.dsn')} }}",
            f'log = {{ path = {_quoted(database_log)}, format = "jsonlog" }}',
            # the gateway that some pods' traffic leaves through
            f"nat = [{_quoted(GATEWAY)}]",
        ]
    (folder / "leasehold.toml").write_text("\n".join(lines) + "\n")


def write_database_accounts(folder: Path, postgres: Postgres) -> None:
    """For each database one file with the address of the account that looks, and one of the account that ends sessions."""
    (folder / "leasehold").mkdir(mode=0o700, exist_ok=True)
    for database in DATABASES:
        write_secret(folder / "leasehold" / f"{database}.dsn", postgres.dsn(MONITOR, database))
        write_secret(folder / "leasehold" / f"{database}-respond.dsn", postgres.dsn(RESPONDER, database))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _inherited() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LEASEHOLD_", "DJANGO_", "VAULT_", "BAO_", "DEMO_", "CELERY_", "GUNICORN_"))
        or name == state.MARK
    }


def _quoted(text: str | Path) -> str:
    # a TOML basic string's escapes are those of JSON
    return json.dumps(str(text), ensure_ascii=False)
