"""The rule about contained service accounts, and its facts."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from audit import comebacks
from audit.comebacks import Attempt
from audit.findings.found import Account, Found, Item, many
from audit.models.findings import FindingKind, Severity
from leases.models import Containment
from leases.models.actions import OPEN_CONTAINMENT_STATES

EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Back:
    """A contained service account and what it could do since, newest first."""

    containment: int
    action: str
    by: str
    account: Account
    since: datetime
    successes: tuple[Attempt, ...]


def back(*, now: datetime) -> Iterator[Back]:
    """Few are contained at a time: each one's log is looked at."""
    rows = Containment.objects.filter(state__in=OPEN_CONTAINMENT_STATES).exclude(disabled_at=None)
    for row in rows.select_related("action", "undo").order_by("id"):
        found = comebacks.successes(row, now=now)
        if found and row.disabled_at:
            account = Account(found[0].vault, row.cluster, row.namespace, row.service_account)
            yield Back(row.pk, str(row.action_id), row.action.by, account, row.disabled_at, found)


def a_contained_service_account_is_back(fact: Back) -> Iterator[Found]:
    newest = fact.successes[0]
    yield Found(
        FindingKind.BACK,
        Severity.HIGH,
        f"containment {fact.containment}",
        f"{fact.account} is contained, and got through {many(len(fact.successes), 'time')} since: {newest.what}",
        vault=fact.account.vault,
        culprit=f"{fact.account}{f' from {newest.address}' if newest.address else ''}",
        account=fact.account,
        evidence=(
            Item(f"contained by {fact.by}", fact.since, action=fact.action),
            *(
                Item(
                    f"{one.what}{f' from {one.address}' if one.address else ''}, request {one.request_id}",
                    one.at,
                    one.lease,
                )
                for one in fact.successes[:EXAMPLES]
            ),
        ),
        weight=len(fact.successes),
        newest_at=newest.at,
    )
