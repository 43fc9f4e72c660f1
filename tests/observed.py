"""A vault that is watched with the delivered policy through an AppRole, and leases by the thousand: its roles create nothing in the database."""

import http.client
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
from django.utils import timezone
from psycopg.conninfo import conninfo_to_dict

from audit import configuration, follow, intern
from audit.ingest import ingest, position_of
from audit.models import Stream
from demo import databases
from demo.openbao import OpenBao
from demo.postgres import Postgres
from leases.configuration import load
from leases.models import Vault

ACCOUNT = "leasehold-observe"
POLICIES = Path(__file__).resolve().parent.parent / "deploy" / "vault"
ROLES = ("many", "few")


@dataclass(slots=True)
class Observed:
    server: OpenBao
    postgres: Postgres
    admin: hvac.Client
    folder: Path

    def mount(self, *, namespace: str = "") -> None:
        """A database mount whose roles ROLES make leases fast, and `stuck`, whose leases cannot be revoked."""
        client = hvac.Client(self.server.address, token=self.server.root_token, namespace=namespace or None, timeout=30)
        client.sys.enable_secrets_engine("database", path="database")
        account = databases.connection_account("orders")
        client.secrets.database.configure(
            name="orders",
            plugin_name="postgresql-database-plugin",
            allowed_roles=["*"],
            connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{self.postgres.port}/orders",
            username=account,
            password=conninfo_to_dict(self.postgres.dsn(account))["password"],
            max_open_connections=16,
            max_idle_connections=16,
        )
        for role in (*ROLES, "stuck"):
            client.secrets.database.create_role(
                name=role,
                db_name="orders",
                creation_statements=["SELECT 1"],
                renew_statements=["SELECT 1"],
                revocation_statements=["SELECT no_such_function()" if role == "stuck" else "SELECT 1"],
                default_ttl="2s" if role == "stuck" else "1h",
                max_ttl="3h",
            )

    def issue(self, role: str, *, namespace: str = "") -> str:
        path = f"/v1/{namespace}/database/creds/{role}" if namespace else f"/v1/database/creds/{role}"
        answer: Any = self.admin.adapter.get(path)
        return str(answer["lease_id"])

    def issue_many(self, role: str, count: int, *, connections: int = 16) -> dict[str, str]:
        """So many leases, through several connections at once: the database user of each lease id."""
        failed: list[bytes] = []
        issued: dict[str, str] = {}

        def work(share: int) -> None:
            connection = http.client.HTTPConnection(self.server.address.removeprefix("http://"), timeout=60)
            for _ in range(share):
                connection.request(
                    "GET", f"/v1/database/creds/{role}", headers={"X-Vault-Token": self.server.root_token}
                )
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    failed.append(text)
                    break
                told = json.loads(text)
                issued[told["lease_id"]] = told["data"]["username"]
            connection.close()

        shares = [count // connections + (n < count % connections) for n in range(connections)]
        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[0][:300]
        return issued

    def configure(self, *, address: str = "", more: str = "") -> Vault:
        """As `manage.py configure` does, with every stream read up to now."""
        devices = "".join(
            f'[[vaults.devices]]\nname = "{name}"\nnodes = [{{ name = "bao-0", path = "{path}" }}]\n'
            for name, path in sorted(self.server.audit_logs.items())
        )
        file = self.folder / "leasehold.toml"
        file.write_text(
            f'[[vaults]]\nname = "demo"\naddress = "{address or self.server.address}"\n{more}\n'
            f'[vaults.observe]\nmethod = "approle"\nmount = "approle"\nrole = "{ACCOUNT}"\n'
            f'secret = {{ file = "{self.folder / "secret-id"}" }}\n{devices}'
        )
        configuration.apply(load(file))
        intern.forget()
        self.skip()
        return Vault.objects.get()

    def skip(self) -> None:
        """Leaves unread what was written so far."""
        for stream in Stream.objects.all():
            end = Path(stream.path).stat().st_size
            at = follow.read(Path(stream.path), follow.Position(offset=end)).position
            Stream.objects.filter(pk=stream.pk).update(file_inode=at.inode, file_start=at.start, offset=at.offset)

    def read(self) -> None:
        """What the readers do."""
        for stream in Stream.objects.select_related("device__vault").order_by("id"):
            before = position_of(stream)
            while (chunk := follow.read(Path(stream.path), before)).lines:
                ingest(stream.pk, chunk, expected=before, now=timezone.now())
                before = chunk.position

    def written(self) -> int:
        """Bytes of audit log so far, of all devices."""
        return sum(path.stat().st_size for path in self.server.audit_logs.values())


def prepare(server: OpenBao, postgres: Postgres, folder: Path) -> Observed:
    folder.mkdir(parents=True, exist_ok=True)
    admin = hvac.Client(server.address, token=server.root_token, timeout=60)
    databases.prepare(postgres)
    observed = Observed(server, postgres, admin, folder)
    observed.mount()
    admin.sys.create_or_update_policy(ACCOUNT, (POLICIES / f"{ACCOUNT}.hcl").read_text())
    admin.sys.enable_auth_method("approle")
    admin.write_data(
        f"auth/approle/role/{ACCOUNT}", data={"token_policies": [ACCOUNT], "token_no_default_policy": True}
    )
    admin.write_data(f"auth/approle/role/{ACCOUNT}/role-id", data={"role_id": ACCOUNT})
    made: Any = admin.write_data(f"auth/approle/role/{ACCOUNT}/secret-id")
    (folder / "secret-id").write_text(made["data"]["secret_id"])
    return observed
