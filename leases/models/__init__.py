"""Tables of what is watched (vaults, clusters, databases), who could hold a lease (pods, logins), the ledger and the actions."""

from leases.models.actions import (
    Action,
    ActionKind,
    ActionStep,
    ContainedEntity,
    Containment,
    Job,
    Pace,
    Plan,
    Revocation,
)
from leases.models.costs import ApiCost, RoleList
from leases.models.ledger import Certainty, EndReason, Lease, LeaseState, Login
from leases.models.pods import (
    Pod,
    PodAddress,
    PodOwner,
    SecretSync,
    ServiceAccount,
    SyncedLease,
    WatchedKind,
    WatchPeriod,
)
from leases.models.polls import OwnRequest
from leases.models.sessions import (
    AnsweringServer,
    DatabaseServer,
    DynamicUser,
    MonitorUser,
    SampledPeriod,
    Sampling,
    Session,
)
from leases.models.sources import AuthMount, Cluster, Database, DatabaseRole, Policy, SourceState, Vault

__all__ = [
    "Action",
    "ActionKind",
    "ActionStep",
    "AnsweringServer",
    "ApiCost",
    "AuthMount",
    "Certainty",
    "Cluster",
    "ContainedEntity",
    "Containment",
    "Database",
    "DatabaseRole",
    "DatabaseServer",
    "DynamicUser",
    "EndReason",
    "Job",
    "Lease",
    "LeaseState",
    "Login",
    "MonitorUser",
    "OwnRequest",
    "Pace",
    "Plan",
    "Pod",
    "PodAddress",
    "PodOwner",
    "Policy",
    "Revocation",
    "RoleList",
    "SampledPeriod",
    "Sampling",
    "SecretSync",
    "ServiceAccount",
    "Session",
    "SourceState",
    "SyncedLease",
    "Vault",
    "WatchPeriod",
    "WatchedKind",
]
