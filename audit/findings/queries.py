"""Reads of findings: one function per question that a page, a metric or an export asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count, Max, Q, QuerySet

from audit.findings.found import Account, Role
from audit.models.findings import Finding, FindingChange, Look, Severity
from leases.models import Lease, LeaseState, Vault
from leases.models.ledger import NEWEST_FIRST
from leases.queries import EPOCH, MICROSECOND, PAGE

# they run once a minute
LATE = timedelta(minutes=3)


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """Empty means everything. `state`: open, closed or empty."""

    state: str = "open"
    kind: str = ""
    severity: int | None = None
    vault: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of the list goes on: after the row with these values. Open ones stand by severity, closed ones by their end."""

    open: bool
    severity: int
    at: datetime
    pk: int

    def __str__(self) -> str:
        return f"{'open' if self.open else 'closed'}-{self.severity}-{(self.at - EPOCH) // MICROSECOND}-{self.pk}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """None if the text is none."""
        state, *numbers = text.split("-")
        sound = all(n.isascii() and n.isdigit() and len(n) < 18 for n in numbers)
        if state not in {"open", "closed"} or len(numbers) != 3 or not sound:
            return None
        severity, at, pk = (int(n) for n in numbers)
        return cls(state == "open", min(severity, 9), EPOCH + timedelta(microseconds=at), pk)


@dataclass(frozen=True, slots=True)
class FindingPage:
    rows: list[Finding]
    older: Place | None


def page(where: FindingFilter, *, after: Place | None = None, size: int = PAGE) -> FindingPage:
    """One page: open ones first, the worst and newest of them on top, then closed ones, the last closed first."""
    match = _matches(where)
    rows: list[Finding] = []
    if where.state != "closed" and (after is None or after.open):
        rows = list(_open(match, after)[: size + 1])
    if where.state != "open" and len(rows) <= size:
        rows += _closed(match, after if after and not after.open else None)[: size + 1 - len(rows)]
    shown = rows[:size]
    return FindingPage(shown, _place(shown[-1]) if len(rows) > size else None)


def _place(row: Finding) -> Place:
    return Place(row.closed_at is None, row.severity, row.closed_at or row.first_seen_at, row.pk)


def _open(match: Q, after: Place | None) -> QuerySet[Finding]:
    rows = Finding.objects.filter(match, closed_at=None)
    if after:
        rows = rows.filter(
            Q(severity__lt=after.severity)
            | Q(severity=after.severity, first_seen_at__lt=after.at)
            | Q(severity=after.severity, first_seen_at=after.at, pk__lt=after.pk)
        )
    return rows.order_by("-severity", "-first_seen_at", "-id")


def _closed(match: Q, after: Place | None) -> QuerySet[Finding]:
    rows = Finding.objects.filter(match, closed_at__isnull=False)
    if after:
        rows = rows.filter(Q(closed_at__lt=after.at) | Q(closed_at=after.at, pk__lt=after.pk))
    return rows.order_by("-closed_at", "-id")


def _matches(where: FindingFilter) -> Q:
    match = Q()
    if where.kind:
        match &= Q(kind=where.kind)
    if where.severity:
        match &= Q(severity=where.severity)
    if where.vault:
        match &= Q(vault=where.vault)
    return match


def worst(*, limit: int) -> list[Finding]:
    """Open findings, the worst and newest first."""
    return list(_open(Q(), None)[:limit])


def finding(pk: int) -> Finding | None:
    return Finding.objects.filter(pk=pk).first()


def changes_of(finding: Finding) -> list[FindingChange]:
    """First to last."""
    return list(finding.changes.order_by("at", "id"))


def concerning(lease: Lease, *, limit: int = 10) -> list[Finding]:
    """Findings about this lease, its role or its service account: open ones first, then those seen last."""
    vault = lease.vault.name
    account = Account(vault, lease.cluster, lease.service_account_namespace, lease.service_account)
    keys = [Role(vault, lease.mount, lease.role).key, f"lease {vault} {lease.lease_id}"]
    if account.name:
        keys += [account.key, f"{account.key} {lease.mount}/{lease.role}"]
    rows = list(Finding.objects.filter(key__in=keys).order_by("-last_seen_at", "-id")[: 5 * limit])
    rows.sort(key=lambda row: (not row.open, -row.severity))
    return rows[:limit]


@dataclass(frozen=True, slots=True)
class Targets:
    """What can be ended because of a finding: leases that its evidence names and that have not ended, as audit.targets writes them,
    and its service account. Empty where there is none."""

    leases: str
    count: int
    account: str


def targets(finding: Finding) -> Targets:
    """In at most two queries."""
    named = [item["lease"] for item in finding.evidence if item.get("lease")]
    live = list(
        Lease.objects.filter(pk__in=named).exclude(state=LeaseState.ENDED).order_by("id").values_list("pk", flat=True)
    )
    account = ""
    if finding.service_account:
        rows = Lease.objects.filter(service_account=finding.service_account)
        # a finding does not name the cluster; the account's newest lease of that vault does
        rows = rows.filter(service_account_namespace=finding.service_account_namespace, vault__name=finding.vault)
        newest = rows.order_by(*NEWEST_FIRST).first()
        account = newest.account_scope if newest else ""
    return Targets(",".join(map(str, live)), len(live), account)


def of_account(*, cluster: str, namespace: str, name: str, limit: int = 20) -> list[Finding]:
    """Findings about a service account: open ones first, then those seen last. Of another cluster's account of that name none, as
    far as a finding names its cluster."""
    vaults = Vault.objects.values_list("name", flat=True)
    its_own = Q(key__in=[Account(vault, cluster, namespace, name).key for vault in vaults])
    names_it = Q(closed_at=None, service_account_namespace=namespace, service_account=name)
    rows = Finding.objects.filter(its_own | names_it).order_by("-last_seen_at", "-id")
    place = f" {cluster}/{namespace}/{name}"
    found = [row for row in rows[: 5 * limit] if not row.key.startswith("account ") or place in row.key]
    found.sort(key=lambda row: (not row.open, -row.severity))
    return found[:limit]


def cluster_of(finding: Finding) -> str:
    """The cluster of the service account that a finding is about; empty where its key names none. Pure."""
    begin, account = f"account {finding.vault} ", f"/{finding.service_account_namespace}/{finding.service_account}"
    cluster, named, _ = finding.key.removeprefix(begin).partition(account)
    return cluster if named and finding.service_account and finding.key.startswith(begin) else ""


def last_look() -> Look | None:
    return Look.objects.filter(pk=1).first()


def is_late(look: Look | None, *, now: datetime) -> bool:
    """Whether nobody has run the rules for so long that no findings means nothing. Pure."""
    return look is None or now - look.at > LATE


def open_by_severity() -> dict[str, int]:
    """How many are open, `all` and those of `high` severity."""
    return Finding.objects.filter(closed_at=None).aggregate(
        all=Count("id"), high=Count("id", filter=Q(severity=Severity.HIGH))
    )


@dataclass(frozen=True, slots=True)
class OpenCount:
    kind: str
    severity: int
    count: int

    @property
    def word(self) -> str:
        return str(Severity(self.severity).label)


def open_counts() -> list[OpenCount]:
    rows = Finding.objects.filter(closed_at=None).order_by("kind", "severity").values_list("kind", "severity")
    return [OpenCount(*row) for row in rows.annotate(count=Count("id"))]


def version() -> str:
    """Changes when a list of open findings would: one opens, closes, or says something else."""
    row = Finding.objects.filter(closed_at=None).aggregate(
        n=Count("id"), newest=Max("first_seen_at"), worst=Max("severity")
    )
    return f"{row['n']}-{_number(row['newest'])}-{row['worst']}" if row["n"] else "0"


def list_version() -> str:
    """Changes when any list of findings would, closed ones too."""
    seen = Finding.objects.order_by("-last_seen_at").values_list("last_seen_at", flat=True).first()
    closed = Finding.objects.filter(closed_at__isnull=False).order_by("-closed_at", "-id")
    last = closed.values_list("closed_at", flat=True).first()
    return f"{version()}-{_number(seen)}-{_number(last)}"


def _number(at: datetime | None) -> int:
    return (at - EPOCH) // MICROSECOND if at else 0


def open_within(*, from_at: datetime, to_at: datetime) -> Iterator[Finding]:
    """Findings that were open at some time in [from, to), as they are now."""
    rows = Finding.objects.filter(Q(closed_at=None) | Q(closed_at__gte=from_at), first_seen_at__lt=to_at)
    return rows.order_by("first_seen_at", "id").iterator(chunk_size=500)
