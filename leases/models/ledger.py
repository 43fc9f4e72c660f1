"""The ledger: logins and leases. Derived from events, the lease API and Kubernetes; `rebuild` can make it again."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from leases.models.sources import AuthMount, Database, Vault

# the order of lists: the credential read, else first sight
NEWEST_FIRST = (Coalesce("accessed_at", "first_seen_at").desc(), F("id").desc())


class Certainty(models.TextChoices):
    """How the pod is known. Never guessed upwards."""

    EXACT = "exact"
    INFERRED = "inferred"
    AMBIGUOUS = "ambiguous"
    SERVICE_ACCOUNT = "service account"
    UNKNOWN = "unknown"


class LeaseState(models.TextChoices):
    LIVE = "live"
    REVOKING = "revoking"
    IRREVOCABLE = "irrevocable"
    ENDED = "ended"


class EndReason(models.TextChoices):
    REVOKED_HERE = "revoked here"
    REVOKED_IN_VAULT = "revoked in Vault"
    BY_PREFIX = "by prefix"
    FORCED = "forced (database user may live)"
    TOKEN_REVOKED = "token revoked"
    EXPIRED = "expired (inferred)"
    UNKNOWN = "gone, cause unknown"


class Login(models.Model):
    """The life of one token, keyed by the request whose response created it."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="logins")
    request_id = models.TextField()
    logged_in_at = models.DateTimeField()
    mount_path = models.TextField()
    # empty where the mount is not registered with a cluster: then nothing below is identity
    auth_mount = models.ForeignKey(AuthMount, models.SET_NULL, null=True)
    address = models.TextField(blank=True)
    display_name = models.TextField(blank=True)
    entity_id = models.TextField(blank=True)
    policies = models.JSONField(default=list)
    token_type = models.TextField(blank=True)
    # as the login's response gave it; only a registered mount's claim keys make identity of it
    metadata = models.JSONField(default=dict)
    service_account_namespace = models.TextField(blank=True)
    service_account = models.TextField(blank=True)
    # made by this product's own accounts
    own = models.BooleanField(default=False)
    claimed_pod = models.TextField(blank=True)
    claimed_pod_uid = models.TextField(blank=True)
    claimed_node = models.TextField(blank=True)
    # of a token that another token made: the login of that one, and the first login of the line, whose identity it inherits
    parent = models.ForeignKey("self", models.SET_NULL, null=True, related_name="children", db_index=False)
    origin = models.ForeignKey("self", models.SET_NULL, null=True, related_name="+", db_index=False)
    # made without a parent in Vault's sense: it does not end with the token that made it
    is_orphan = models.BooleanField(default=False, db_default=False)
    # its token came wrapped, and is with whoever unwrapped it
    was_wrapped = models.BooleanField(default=False, db_default=False)
    # as far as its TTLs told; renewals move it
    expires_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    end_reason = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["vault", "request_id"], name="login_is_one_request")]
        # audit.logins.inherit(), and the ends of tokens: down the line
        indexes = [
            models.Index(fields=["parent"], name="login_by_parent", condition=~Q(parent=None)),
            # findings.session_facts: logins of the last hours
            models.Index(fields=["logged_in_at"], name="login_newest", condition=~Q(auth_mount=None)),
            # identities.shared_with(): who else logs in as this entity
            models.Index(
                fields=["entity_id", "service_account_namespace", "service_account"],
                name="login_of_entity",
                condition=~Q(entity_id=""),
            ),
            # lookups.ask_of_ended_tokens()
            models.Index(fields=["vault", "expires_at"], name="login_expiry", condition=~Q(expires_at=None)),
            # workload_queries.logins_of()
            models.Index(
                fields=["service_account_namespace", "service_account", "-logged_in_at", "-id"],
                name="login_of_account",
                condition=~Q(auth_mount=None) & ~Q(service_account=""),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.display_name or self.mount_path} {self.request_id}"


class Lease(models.Model):
    """One lease id in one vault: its holder, its times, its end."""

    vault = models.ForeignKey(Vault, models.CASCADE, related_name="leases")
    lease_id = models.TextField()
    vault_namespace = models.TextField(blank=True)
    mount = models.TextField()
    role = models.TextField(blank=True)
    database = models.ForeignKey(Database, models.SET_NULL, null=True, related_name="leases")
    # by the audit hash of its name, or plain where the mount is tuned
    database_user = models.TextField(blank=True)
    # how that is known (sessions.TiedBy)
    database_user_by = models.TextField(blank=True, default="", db_default="")

    state = models.TextField(choices=LeaseState, default=LeaseState.LIVE)
    issued_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    last_renewal_at = models.DateTimeField(null=True)
    renewals = models.PositiveIntegerField(default=0)
    renewable = models.BooleanField(default=False)
    revoke_error = models.TextField(blank=True)
    ended_at = models.DateTimeField(null=True)
    end_reason = models.TextField(choices=EndReason, blank=True)
    # what the reason rests on, in words: a request id, an answer of the lease API
    end_evidence = models.TextField(blank=True)

    # an event that should have ended it; it counts once a lookup agrees
    end_seen_at = models.DateTimeField(null=True)
    end_seen_reason = models.TextField(choices=EndReason, blank=True)
    end_seen_evidence = models.TextField(blank=True)

    # the read that issued it; empty where no event for it was seen
    request_id = models.TextField(blank=True)
    accessed_at = models.DateTimeField(null=True)
    source_ip = models.TextField(blank=True)
    # the address that took it out of its wrapping, where it was handed over wrapped
    unwrapped_from = models.TextField(blank=True, default="", db_default="")
    login = models.ForeignKey(Login, models.SET_NULL, null=True, related_name="leases")

    certainty = models.TextField(choices=Certainty, default=Certainty.UNKNOWN)
    certainty_reason = models.TextField(blank=True)
    cluster = models.TextField(blank=True)
    service_account_namespace = models.TextField(blank=True)
    service_account = models.TextField(blank=True)
    pod_namespace = models.TextField(blank=True)
    pod = models.TextField(blank=True)
    pod_uid = models.TextField(blank=True)
    # its user or its holder has become another: its sessions are to be tied and judged again
    sessions_due = models.BooleanField(default=False, db_default=False)
    # until this moment new pod data can still change who holds it
    attribution_open = models.BooleanField(default=True)

    looked_up_at = models.DateTimeField(null=True)
    lookup_due_at = models.DateTimeField(null=True)
    first_seen_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["vault", "lease_id"], name="lease_id_is_unique_in_its_vault"),
            models.CheckConstraint(
                condition=Q(state=LeaseState.ENDED, ended_at__isnull=False) & ~Q(end_reason="")
                | ~Q(state=LeaseState.ENDED) & Q(ended_at=None, end_reason=""),
                name="an_ended_lease_has_an_end_and_a_reason",
            ),
            models.CheckConstraint(
                condition=(Q(certainty__in=[Certainty.EXACT, Certainty.INFERRED]) & ~Q(pod_uid=""))
                | (~Q(certainty__in=[Certainty.EXACT, Certainty.INFERRED]) & Q(pod="", pod_uid="")),
                name="a_pod_is_named_only_with_certainty",
            ),
        ]
        indexes = [
            # queries.live_leases(): ending soonest first
            models.Index(fields=["expires_at", "id"], name="lease_live", condition=~Q(state="ended")),
            # queries.ledger_version()
            models.Index(fields=["updated_at"], name="lease_updated"),
            # queries.leases_page() of any state
            models.Index(*NEWEST_FIRST, name="lease_newest"),
            # queries.leases_page() and newest(): what has not ended
            models.Index(*NEWEST_FIRST, name="lease_open_newest", condition=~Q(state="ended")),
            # queries.leases_page() of what somebody must look at
            models.Index(*NEWEST_FIRST, name="lease_stuck_newest", condition=Q(state__in=["revoking", "irrevocable"])),
            # queries.leases_page() and usage.by_pod() of a database
            models.Index(
                F("database"), *NEWEST_FIRST, name="lease_of_database", include=["accessed_at", "first_seen_at"]
            ),
            models.Index(*NEWEST_FIRST, name="lease_of_no_database", condition=Q(database=None)),
            # queries.leases_page() of a service account
            models.Index(F("service_account"), *NEWEST_FIRST, name="lease_of_account"),
            # workload_queries.accounts_page(), opened(), leases_of(): which account read credentials for which database, and when last
            models.Index(
                F("cluster"),
                F("service_account_namespace"),
                F("service_account"),
                Coalesce("database", 0),
                *NEWEST_FIRST,
                name="lease_of_workload",
                condition=~Q(service_account=""),
            ),
            # workload_queries.accounts_page() and opened(): what an account holds now, read from nothing but this index
            models.Index(
                fields=[
                    "cluster",
                    "service_account_namespace",
                    "service_account",
                    "vault",
                    "database",
                    "certainty",
                ],
                name="lease_open_of_workload",
                condition=~Q(state="ended") & ~Q(service_account=""),
            ),
            # session_queries.pod_holdings()
            models.Index(F("pod_uid"), *NEWEST_FIRST, name="lease_of_pod", condition=~Q(pod_uid="")),
            # queries.live_counts() and ledger_version(), which read nothing but this index
            models.Index(
                fields=["vault", "database", "certainty", "state"],
                name="lease_open_counts",
                condition=~Q(state="ended"),
            ),
            # usage.by_account(): every read of a period, by nothing but this index
            models.Index(
                fields=["accessed_at"],
                name="lease_reads",
                include=["vault", "database", "cluster", "service_account_namespace", "service_account", "certainty"],
                condition=~Q(accessed_at=None),
            ),
            # usage.by_account(): what is live, by nothing but this index and already in groups
            models.Index(
                fields=["vault", "database", "cluster", "service_account_namespace", "service_account", "certainty"],
                name="lease_open_holders",
                condition=~Q(state="ended"),
            ),
            # lease_lived, lease_issue_unknown and lease_forced stand in migration 0011: audit/timemachine.py
            # queries.recent_ends()
            models.Index(fields=["-ended_at", "-id"], name="lease_ended_newest", condition=Q(state="ended")),
            # exports.accesses()
            models.Index(fields=["accessed_at", "id"], name="lease_accessed", condition=~Q(request_id="")),
            # lookups.due()
            models.Index(
                fields=["vault", "lookup_due_at"],
                name="lease_due",
                condition=~Q(state="ended") & ~Q(lookup_due_at=None),
            ),
            # lists.take_list(): what a role should still have
            models.Index(
                fields=["vault", "vault_namespace", "mount", "role"],
                name="lease_live_of_role",
                condition=~Q(state="ended"),
            ),
            # attribute.open_leases()
            models.Index(fields=["id"], name="lease_unattributed", condition=Q(attribution_open=True)),
            # sessions: whose user is this
            models.Index(fields=["database_user"], name="lease_by_database_user", condition=~Q(database_user="")),
            # audit.sessions: whose sessions are to be looked at again
            models.Index(fields=["id"], name="lease_sessions_due", condition=Q(sessions_due=True)),
            # audit.users: which lease may be a user's, by its time
            models.Index(
                F("database"),
                Coalesce("issued_at", "accessed_at"),
                name="lease_without_user",
                condition=Q(database_user=""),
            ),
            # audit.users: guesses that a hash may correct
            models.Index(fields=["id"], name="lease_user_guessed", condition=Q(database_user_by="time and name")),
            # ledger: join with the read's event
            models.Index(fields=["vault", "request_id"], name="lease_by_request"),
        ]

    def __str__(self) -> str:
        return self.lease_id

    @property
    def short_id(self) -> str:
        """The last part of the lease id, which tells leases of one role apart."""
        return self.lease_id.rsplit("/", 1)[-1]

    @property
    def holder(self) -> str:
        """The best name of who holds it, no better than its certainty allows."""
        if self.pod:
            return f"{self.pod_namespace}/{self.pod}"
        if self.service_account:
            return f"{self.service_account_namespace}/{self.service_account}"
        return ""

    @property
    def account_scope(self) -> str:
        """Its service account as audit.targets writes it; empty where none is known."""
        if not (self.cluster and self.service_account):
            return ""
        return f"{self.cluster}/{self.service_account_namespace}/{self.service_account}"

    @property
    def pod_scope(self) -> str:
        """Its pod, likewise."""
        return f"{self.cluster}/{self.pod_uid}" if self.cluster and self.pod_uid else ""

    @property
    def role_scope(self) -> str:
        """Its role, likewise. Needs its vault."""
        return f"{self.vault.name}/{self.mount}/{self.role}" if self.mount and self.role else ""
