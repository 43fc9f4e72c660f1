"""What runs in the simulated cluster: applications, their service accounts, and the database roles they read."""

from dataclasses import dataclass
from typing import Literal

CLUSTER = "demo"
VAULT = "demo"
MOUNT = "database"
# seconds; short enough to watch a lease being renewed, replaced and ended
LEASE_TTL, LEASE_MAX_TTL = 60, 180
# a log-in's token is renewed until its own end, then the agent logs in again and two leases overlap for a while
TOKEN_TTL, TOKEN_MAX_TTL = 120, 300
DATABASES = ("orders", "billing")

# as in the classic tutorial (https://openbao.org/docs/secrets/databases/postgresql)
CREATE = (
    """CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';""",
    """GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}";""",
)
# the account that Vault uses is no superuser: what it granted has to go before the role can
REVOKE = (
    """REVOKE ALL PRIVILEGES ON ALL TABLES IN SCHEMA public FROM "{{name}}";""",
    """DROP ROLE IF EXISTS "{{name}}";""",
)


@dataclass(frozen=True, slots=True)
class Application:
    """One service account, the Vault role of the same name, and the pods that run under it."""

    namespace: str
    service_account: str
    replicas: int
    database_role: str
    database: str
    query: str
    method: Literal["kubernetes", "jwt"] = "kubernetes"
    # the annotation vault.hashicorp.com/agent-revoke-on-shutdown: the pod ends its own token when it goes
    revokes_on_shutdown: bool = False

    @property
    def vault_role(self) -> str:
        """Name of the role in its auth mount and of its policy."""
        return f"{self.namespace}-{self.service_account}"

    @property
    def credentials_path(self) -> str:
        """What the agent reads."""
        return f"{MOUNT}/creds/{self.database_role}"


APPLICATIONS = (
    Application(
        namespace="shop",
        service_account="storefront",
        replicas=3,
        database_role="my-role",
        database="orders",
        query="SELECT name, price FROM products ORDER BY random() LIMIT 3",
    ),
    Application(
        namespace="shop",
        service_account="fulfilment",
        replicas=2,
        database_role="fulfilment",
        database="orders",
        query="SELECT id, status FROM orders WHERE status = 'paid' ORDER BY ordered_at LIMIT 5",
        revokes_on_shutdown=True,
    ),
    Application(
        namespace="finance",
        service_account="billing-api",
        replicas=2,
        database_role="billing-reader",
        database="billing",
        query="SELECT count(*), sum(amount) FROM invoices WHERE paid_at IS NULL",
    ),
    Application(
        namespace="finance",
        service_account="invoicing",
        replicas=2,
        database_role="invoicing",
        database="billing",
        query="SELECT id, amount FROM invoices ORDER BY issued_at DESC LIMIT 5",
        method="jwt",
    ),
    Application(
        namespace="analytics",
        service_account="reporting",
        replicas=1,
        database_role="reporting",
        database="orders",
        query="SELECT status, count(*) FROM orders GROUP BY status",
    ),
)
