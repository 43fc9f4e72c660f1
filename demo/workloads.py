"""What runs in the two simulated clusters: applications, their service accounts, and the database roles they read.

Most behave. The others are what makes a lease's holder hard to know: shared and reused addresses, a second cluster with
the same names, somebody who fetches for others, tokens and answers of kinds that leave less in the audit log.
"""

from dataclasses import dataclass, replace
from typing import Literal

CLUSTER, SECOND_CLUSTER = "demo", "demo-2"
VAULT = "demo"
MOUNT = "database"
# seconds; short enough to watch a lease being renewed, replaced and ended
LEASE_TTL, LEASE_MAX_TTL = 60, 180
# a log-in's token is renewed until its own end, then the agent logs in again and two leases overlap for a while
TOKEN_TTL, TOKEN_MAX_TTL = 120, 300
DATABASES = ("orders", "billing")
# the first two numbers of the pods' addresses, and the address of the gateway that translates those of some
NETWORK = "127.20"
GATEWAY = f"{NETWORK}.0.100"

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

# how a pod gets its credentials: by an agent beside it, from somebody else (`consumer`), or by itself (demo.programs)
Program = Literal["agent", "plain", "batch", "wrapped", "child", "operator", "maintenance", "consumer"]
# whose address the pod's traffic has: its own, its node's, or that of a gateway that translates addresses
Network = Literal["own", "host", "nat"]

# roles that only the maintenance pod reads: ending a whole prefix ends just its lease. Of the last one no user can be dropped
PREFIX_ROLE, FORCED_ROLE, STUCK_ROLE = "maintenance-prefix", "maintenance-forced", "maintenance-stuck"
REVOKE_FAILS = ("SELECT 1 / 0;",)


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
    cluster: str = CLUSTER
    program: Program = "agent"
    network: Network = "own"
    # whether it opens the database; otherwise it only holds the credential
    connects: bool = True
    more_roles: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def auth_mount(self) -> str:
        """Where it logs in: each cluster has its own mount."""
        return "kubernetes-2" if self.cluster == SECOND_CLUSTER else self.method

    @property
    def logs_in(self) -> bool:
        """Whether Vault knows it."""
        return self.program != "consumer"

    @property
    def holds_credentials(self) -> bool:
        """Whether its pods have a file with credentials all the time."""
        return self.program not in ("operator", "maintenance")

    @property
    def vault_role(self) -> str:
        """Name of the role in its auth mount and of its policy."""
        return f"{self.namespace}-{self.service_account}"

    @property
    def credentials_path(self) -> str:
        """What the agent reads."""
        return f"{MOUNT}/creds/{self.database_role}"

    @property
    def secret(self) -> str | None:
        """The Secret that a consumer's pods refer to, and that the operator fills."""
        return f"{self.database_role}-db" if self.program == "consumer" else None

    @property
    def database_roles(self) -> tuple[str, ...]:
        """All that it may read."""
        return (self.database_role, *self.more_roles)


_ORDERS = "SELECT id, status FROM orders WHERE status = 'paid' ORDER BY ordered_at LIMIT 5"
_INVOICES = "SELECT id, amount FROM invoices ORDER BY issued_at DESC LIMIT 5"

APPLICATIONS = (
    Application(
        namespace="shop",
        service_account="storefront",
        replicas=2,
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
        query=_ORDERS,
        revokes_on_shutdown=True,
    ),
    Application(
        namespace="finance",
        service_account="billing-api",
        replicas=1,
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
        query=_INVOICES,
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
    # on the host network, all on one node: two pods of one service account with one address
    Application(
        namespace="monitoring",
        service_account="node-agent",
        replicas=2,
        database_role="node-agent",
        database="orders",
        query="SELECT count(*) FROM orders",
        program="plain",
        network="host",
        connects=False,
    ),
    # what they send to Vault and to the database leaves through a gateway: its address is no pod's
    Application(
        namespace="partners",
        service_account="sync",
        replicas=2,
        database_role="sync",
        database="orders",
        query="SELECT id, customer_id FROM orders ORDER BY ordered_at DESC LIMIT 3",
        program="plain",
        network="nat",
    ),
    # as External Secrets Operator: one service account that fetches for others, under its own address
    Application(
        namespace="external-secrets",
        service_account="external-secrets",
        replicas=1,
        database_role="dashboards",
        database="orders",
        query="",
        program="operator",
        connects=False,
        labels=(("app.kubernetes.io/name", "external-secrets"),),
    ),
    # one of those others: never talks to Vault
    Application(
        namespace="analytics",
        service_account="dashboards",
        replicas=1,
        database_role="dashboards",
        database="orders",
        query="SELECT status, count(*) FROM orders GROUP BY status",
        program="consumer",
    ),
    Application(
        namespace="batch",
        service_account="nightly",
        replicas=1,
        database_role="nightly",
        database="billing",
        query=_INVOICES,
        program="batch",
        connects=False,
    ),
    Application(
        namespace="ci",
        service_account="pipeline",
        replicas=1,
        database_role="pipeline",
        database="orders",
        query=_ORDERS,
        program="wrapped",
        connects=False,
    ),
    Application(
        namespace="ci",
        service_account="runner",
        replicas=1,
        database_role="runner",
        database="orders",
        query=_ORDERS,
        program="child",
        connects=False,
    ),
    # where the demo's administrator tries out how leases end
    Application(
        namespace="platform",
        service_account="maintenance",
        replicas=1,
        database_role=PREFIX_ROLE,
        database="orders",
        query="",
        program="maintenance",
        connects=False,
        more_roles=(FORCED_ROLE, STUCK_ROLE),
    ),
)

# the second cluster: the same namespaces, names and addresses as in the first, behind another auth mount
SECOND_APPLICATIONS = tuple(
    replace(application, cluster=SECOND_CLUSTER, replicas=1, program="plain", revokes_on_shutdown=False, connects=False)
    for application in APPLICATIONS[:2]
)
ALL_APPLICATIONS = APPLICATIONS + SECOND_APPLICATIONS
