"""Notes some of this product's own polls by their request ids: what the audit log must show, `audit` looks for."""

from datetime import datetime, timedelta

from leases.models import OwnRequest

# one in so many seconds tells when a device stopped as well as all of them would
EVERY = timedelta(seconds=10)

# vault -> when this process noted one last: most polls are then not worth a query
_noted: dict[int, datetime] = {}


def note(vault_id: int, request_id: str, *, now: datetime) -> bool:
    """Notes a request that the vault has answered, unless another was noted less than EVERY ago. Returns whether it was."""
    last = _noted.get(vault_id)
    if last is not None and now - last < EVERY:
        return False
    _noted[vault_id] = now
    if OwnRequest.objects.filter(vault=vault_id, at__gt=now - EVERY).exists():
        return False
    OwnRequest.objects.create(vault_id=vault_id, request_id=request_id, at=now)
    return True
