"""What a person wants to end, resolved to leases: one, a selection, or everything of a pod, service account, entity … Pure reads.

Only leases that have not ended, and never those of this product's own logins.
"""

from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet, TextChoices

from leases.models import Database, Lease, LeaseState, Login

# more are no selection but a scope
MOST_SELECTED = 1000


class ScopeKind(TextChoices):
    """What can be named, and how its value is written."""

    # primary keys, "12,15"
    LEASES = "leases"
    # "CLUSTER/UID"
    POD = "pod"
    # "CLUSTER/NAMESPACE/NAME"
    SERVICE_ACCOUNT = "service account"
    # "VAULT/ENTITY-ID"
    ENTITY = "entity"
    # the login's primary key
    LOGIN = "login"
    # "VAULT/MOUNT/ROLE"; a mount may hold slashes
    ROLE = "role"
    # the database's primary key
    DATABASE = "database"
    # "VAULT/PREFIX" of lease ids, at a slash; never sent to Vault as a prefix
    PREFIX = "prefix"


class UnknownScope(ValueError):
    """This names nothing that leases can be found by; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Scope:
    kind: ScopeKind
    value: str

    @classmethod
    def parse(cls, kind: str, value: str) -> "Scope":
        """Raises UnknownScope; that nothing is found is no error here."""
        value = value.strip()
        if kind not in ScopeKind.values:
            raise UnknownScope(
                f"{kind[:40]!r} is nothing that can be ended. It is one of {', '.join(ScopeKind.values)}."
            )
        scope = cls(ScopeKind(kind), value)
        scope._where()
        return scope

    def as_json(self) -> dict[str, str]:
        return {"kind": str(self.kind), "value": self.value}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Scope":
        return cls.parse(str(stored.get("kind")), str(stored.get("value")))

    def _where(self) -> Q:
        match self.kind:
            case ScopeKind.LEASES:
                return Q(pk__in=self._numbers())
            case ScopeKind.LOGIN:
                # the leases of tokens that its token made go with it
                number = self._number()
                return Q(login=number) | Q(login__origin=number)
            case ScopeKind.DATABASE:
                return Q(database=self._number())
            case ScopeKind.POD:
                cluster, uid = self._parts(2, "CLUSTER/UID")
                return Q(cluster=cluster, pod_uid=uid)
            case ScopeKind.SERVICE_ACCOUNT:
                cluster, namespace, name = self._parts(3, "CLUSTER/NAMESPACE/NAME")
                return Q(cluster=cluster, service_account_namespace=namespace, service_account=name)
            case ScopeKind.ENTITY:
                vault, entity = self._parts(2, "VAULT/ENTITY-ID")
                return Q(vault__name=vault, login__entity_id=entity)
            case ScopeKind.ROLE:
                vault, path = self._parts(2, "VAULT/MOUNT/ROLE")
                mount, _, role = path.rpartition("/")
                if not mount or not role:
                    raise UnknownScope("A role is written VAULT/MOUNT/ROLE.")
                return Q(vault__name=vault, mount=mount, role=role)
            case ScopeKind.PREFIX:
                vault, prefix = self._parts(2, "VAULT/PREFIX")
                return Q(vault__name=vault, lease_id__startswith=prefix.rstrip("/") + "/")
        raise UnknownScope(f"{self.kind} is nothing that can be ended.")

    def _parts(self, count: int, form: str) -> list[str]:
        parts = self.value.split("/", count - 1)
        if len(parts) != count or not all(parts):
            raise UnknownScope(f"A {self.kind} is written {form}.")
        return parts

    def _number(self) -> int:
        numbers = self._numbers()
        if len(numbers) != 1:
            raise UnknownScope(f"One {self.kind} is meant here.")
        return numbers[0]

    def _numbers(self) -> list[int]:
        parts = [part.strip() for part in self.value.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            raise UnknownScope(f"{self.kind} is named by numbers of the ledger.")
        if len(parts) > MOST_SELECTED:
            raise UnknownScope(
                f"At most {MOST_SELECTED:,} leases can be selected. End everything of a role or an account instead."
            )
        return sorted({int(part) for part in parts})


def open_leases(scope: Scope) -> QuerySet[Lease]:
    """The leases that the scope means now, in order of their ids in the ledger."""
    return Lease.objects.filter(scope._where()).exclude(state=LeaseState.ENDED).exclude(login__own=True).order_by("id")


def describe(scope: Scope) -> str:
    """In words, as in "everything of pod shop/storefront-7d9"; names that the ledger no longer has stay as they were written."""
    value = scope.value
    match scope.kind:
        case ScopeKind.LEASES:
            count = len(scope._numbers())
            lease = Lease.objects.filter(pk=scope._numbers()[0]).first() if count == 1 else None
            return f"lease {lease.lease_id}" if lease else f"{count:,} selected lease{'' if count == 1 else 's'}"
        case ScopeKind.POD:
            cluster, uid = scope._parts(2, "")
            held = Lease.objects.filter(cluster=cluster, pod_uid=uid).only("pod_namespace", "pod").first()
            return (
                f"everything of pod {held.pod_namespace}/{held.pod} in {cluster}"
                if held
                else f"everything of pod {uid}"
            )
        case ScopeKind.SERVICE_ACCOUNT:
            cluster, namespace, name = scope._parts(3, "")
            return f"everything of service account {namespace}/{name} in {cluster}"
        case ScopeKind.LOGIN:
            login = Login.objects.filter(pk=scope._number()).first()
            return (
                f"everything of the login {login.display_name} at {login.logged_in_at:%FT%TZ}"
                if login
                else f"everything of login {value}"
            )
        case ScopeKind.DATABASE:
            database = Database.objects.select_related("vault").filter(pk=scope._number()).first()
            return f"everything on database {database.path}" if database else f"everything on database {value}"
        case _:
            return f"everything of {scope.kind} {value}"
