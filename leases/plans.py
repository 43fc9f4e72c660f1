"""Plans: what a person is shown before anything is done. A plan freezes its leases; confirming it acts on exactly these."""

from datetime import datetime, timedelta

from leases.models import Action, ActionKind, Lease, LeaseState, Plan, Revocation
from leases.models.actions import RevocationState
from leases.queries import these

LIFE = timedelta(minutes=15)

# what forcing means, for whoever is about to do it
FORCE_CONSEQUENCES = (
    "Vault forgets the lease without ending its database user. The user and its password go on working until somebody "
    "drops the user in the database; neither Vault nor its own expiry will do it any more.",
    "Sessions that are open under the user stay open.",
    "It cannot be undone: Vault has no lease left to revoke again.",
    "Do it only where the database is gone for good, or after the user was dropped there by hand.",
)


class NothingToRevoke(Exception):
    """No lease of the plan is left to be ended; the message says so in an operator's words."""

    def __init__(self, message: str = "Nothing is left to revoke: every one of these leases has ended.") -> None:
        super().__init__(message)


class NotForcible(NothingToRevoke):
    """Some of these leases can be revoked without force."""


class PlanExpired(Exception):
    """The plan is too old: what it shows may no longer be so."""

    def __init__(self) -> None:
        super().__init__(
            f"This plan is older than {LIFE.total_seconds() / 60:g} minutes, so it may no longer show what would end. "
            "Plan again."
        )


class PlanUsed(Exception):
    """Somebody has confirmed it already; `action` is what it became."""

    def __init__(self, action: Action) -> None:
        super().__init__(f"{action.by} has confirmed this plan already")
        self.action = action


def plan(*, kind: ActionKind, scope: dict[str, str], leases: list[int], by: str, now: datetime) -> Plan:
    """Freezes those of `leases` (primary keys) that have not ended, but for this product's own. `scope`: what was meant, as audit.targets
    writes it.

    Raises NothingToRevoke, or NotForcible where a lease shall be forced that was not refused before.
    """
    live = list(
        Lease.objects.filter(pk__in=these(leases))
        .exclude(state=LeaseState.ENDED)
        # what it reads and responds with
        .exclude(login__own=True)
        .order_by("id")
        .values_list("id", "lease_id", "state")
    )
    # a containment shuts an account out also where nothing of it lives
    if not live and kind in {ActionKind.REVOKE, ActionKind.FORCE}:
        raise NothingToRevoke
    if kind == ActionKind.FORCE:
        refused = _refused([key for key, _, _ in live])
        others = [name for key, name, state in live if state != LeaseState.IRREVOCABLE and key not in refused]
        if others:
            raise NotForcible(
                f"{others[0]}{f' and {len(others) - 1:,} more' if len(others) > 1 else ''} can be revoked without force. "
                "Only leases that Vault has given up, or whose revocation failed here, are forced: revoke the others first."
            )
    return Plan.objects.create(
        kind=kind, scope=scope, leases=[key for key, _, _ in live], by=by, at=now, expires_at=now + LIFE
    )


def _refused(keys: list[int]) -> set[int]:
    """Those whose last revocation here failed."""
    last = (
        Revocation.objects.filter(lease__in=these(keys))
        .order_by("lease", "-id")
        .distinct("lease")
        .values_list("lease_id", "state")
    )
    return {key for key, state in last if state == RevocationState.FAILED}


def leases_of(plan: Plan) -> list[Lease]:
    """The frozen leases as they are now, in the plan's order; some may have ended meanwhile."""
    return list(
        Lease.objects.filter(pk__in=these(plan.leases))
        .select_related("vault", "database__vault", "login")
        .order_by("id")
    )


def take(plan: Plan, *, now: datetime) -> Plan:
    """The plan under a lock until the transaction's end, for confirming it. Raises PlanUsed with its action, or PlanExpired."""
    locked = Plan.objects.select_for_update(of=("self",)).select_related("action").get(pk=plan.pk)
    if locked.action is not None:
        raise PlanUsed(locked.action)
    if now >= locked.expires_at:
        raise PlanExpired
    return locked
