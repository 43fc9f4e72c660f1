"""OpenBao as the tutorials set it up: a database mount, Kubernetes and JWT log-ins, one policy for each application."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
from psycopg.conninfo import conninfo_to_dict

from demo.databases import connection_account
from demo.openbao import OpenBao
from demo.postgres import Postgres
from demo.workloads import (
    ALL_APPLICATIONS,
    APPLICATIONS,
    CREATE,
    DATABASES,
    LEASE_MAX_TTL,
    LEASE_TTL,
    MOUNT,
    REVOKE,
    REVOKE_FAILS,
    SECOND_APPLICATIONS,
    STUCK_ROLE,
    TOKEN_MAX_TTL,
    TOKEN_TTL,
    Application,
)

# Leasehold's own roles and the service account that each is bound to: who observes cannot revoke
LEASEHOLD = {"leasehold-observe": "leasehold", "leasehold-respond": "leasehold-actions"}
# claims of a service-account token, and the log-in metadata that they become
CLAIM_MAPPINGS = {
    "/kubernetes.io/namespace": "service_account_namespace",
    "/kubernetes.io/serviceaccount/name": "service_account_name",
    "/kubernetes.io/pod/name": "pod_name",
    "/kubernetes.io/pod/uid": "pod_uid",
    "/kubernetes.io/node/name": "node_name",
}
_ADMINISTRATOR = 'path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list", "sudo"] }\n'


@dataclass(frozen=True, slots=True)
class Identities:
    """What OpenBao has to know of the cluster to believe its service accounts."""

    kubernetes_address: str
    ca_certificate: str  # PEM
    reviewer_token: str
    public_key: str  # PEM
    issuer: str
    audience: str


def configure(
    openbao: OpenBao,
    *,
    postgres: Postgres,
    identities: Identities,
    policies: Path,
    second: Identities | None = None,
) -> str:
    """Set everything up and return an administrator's token. `policies`: the folder with Leasehold's own two.

    `second`: the second cluster, if there is one.
    """
    client = hvac.Client(url=openbao.address, token=openbao.root_token, timeout=30)
    set_up_mount(client, postgres)
    _set_up_kubernetes(client, identities)
    _set_up_jwt(client, identities)
    if second:
        _set_up_kubernetes(client, second, mount=SECOND_APPLICATIONS[0].auth_mount)
    for application in ALL_APPLICATIONS if second else APPLICATIONS:
        if application.logs_in:
            _admit(client, application, audience=identities.audience)
    _admit_leasehold(client, policies, audience=identities.audience)
    return _administrator(client)


def set_up_mount(
    client: hvac.Client, postgres: Postgres, *, mount: str = MOUNT, databases: Sequence[str] = DATABASES
) -> None:
    """The database mount with its connections and roles (https://openbao.org/docs/secrets/databases/postgresql)."""
    client.sys.enable_secrets_engine("database", path=mount)
    for database in databases:
        account = connection_account(database)
        roles = sorted({role for a in APPLICATIONS if a.database == database for role in a.database_roles})
        client.secrets.database.configure(
            name=database,
            plugin_name="postgresql-database-plugin",
            allowed_roles=roles,
            connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/{database}?sslmode=disable",
            username=account,
            password=conninfo_to_dict(postgres.dsn(account))["password"],
            mount_point=mount,
        )
        for role in roles:
            client.secrets.database.create_role(
                name=role,
                db_name=database,
                creation_statements=CREATE,
                revocation_statements=REVOKE_FAILS if role == STUCK_ROLE else REVOKE,
                default_ttl=f"{LEASE_TTL}s",
                max_ttl=f"{LEASE_MAX_TTL}s",
                mount_point=mount,
            )


def _set_up_kubernetes(client: hvac.Client, identities: Identities, *, mount: str = "kubernetes") -> None:
    """https://openbao.org/docs/auth/kubernetes"""
    client.sys.enable_auth_method("kubernetes", path=mount)
    client.auth.kubernetes.configure(
        kubernetes_host=identities.kubernetes_address,
        kubernetes_ca_cert=identities.ca_certificate,
        token_reviewer_jwt=identities.reviewer_token,
        disable_local_ca_jwt=True,
        mount_point=mount,
    )


def _set_up_jwt(client: hvac.Client, identities: Identities) -> None:
    """https://openbao.org/docs/auth/jwt: tokens are checked with the cluster's public key alone."""
    client.sys.enable_auth_method("jwt")
    client.auth.jwt.configure(jwt_validation_pubkeys=[identities.public_key], bound_issuer=identities.issuer)


def _admit(client: hvac.Client, application: Application, *, audience: str) -> None:
    """The application's policy, and the role that gives it to its service account."""
    role = application.vault_role
    rules = [f'path "{MOUNT}/creds/{name}" {{ capabilities = ["read"] }}' for name in application.database_roles]
    if application.program == "child":
        rules.append('path "auth/token/create" { capabilities = ["update"] }')
    client.sys.create_or_update_policy(role, "\n".join(rules) + "\n")
    token: dict[str, Any] = {
        "token_policies": [role],
        "token_ttl": f"{TOKEN_TTL}s",
        "token_max_ttl": f"{TOKEN_MAX_TTL}s",
        **({"token_type": "batch"} if application.program == "batch" else {}),
    }
    if application.method == "kubernetes":
        bound: dict[str, Any] = {
            "bound_service_account_names": [application.service_account],
            "bound_service_account_namespaces": [application.namespace],
            "audience": audience,
        }
    else:
        bound = {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [audience],
            "bound_subject": f"system:serviceaccount:{application.namespace}:{application.service_account}",
            # these make the pod part of the token, and so of every line of the audit log
            "claim_mappings": CLAIM_MAPPINGS,
        }
    client.write_data(f"auth/{application.auth_mount}/role/{role}", data={**bound, **token})


def _admit_leasehold(client: hvac.Client, policies: Path, *, audience: str) -> None:
    """Leasehold itself: its two policies as they are delivered, and nothing else."""
    for name, service_account in LEASEHOLD.items():
        file = policies / f"{name}.hcl"
        if not file.exists():
            continue
        client.sys.create_or_update_policy(name, file.read_text())
        client.write_data(
            f"auth/kubernetes/role/{name}",
            data={
                "bound_service_account_names": [service_account],
                "bound_service_account_namespaces": ["leasehold"],
                "audience": audience,
                "token_policies": [name],
                "token_ttl": "1h",
                "token_max_ttl": "24h",
            },
        )


def _administrator(client: hvac.Client) -> str:
    """A token for a person who tries things; the root token stays where it was made."""
    client.sys.create_or_update_policy("administrator", _ADMINISTRATOR)
    answer = client.auth.token.create_orphan(policies=["administrator"], ttl="720h", display_name="administrator")
    return str(answer["auth"]["client_token"])


def database_paths(applications: Sequence[Application] = APPLICATIONS) -> dict[str, str]:
    """Which database each credentials path opens."""
    return {f"{MOUNT}/creds/{role}": one.database for one in applications for role in one.database_roles}
