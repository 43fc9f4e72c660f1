"""How devices would write what a person typed into the search box. The web process has no account on a vault: workers ask.

What was typed travels sealed, and is stored nowhere; a worker's answers, which are hashes, stand in AskedHash until they are read.
"""

import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from audit.models import AskedHash, Device
from audit.sealed import NotReadable, seal, unseal
from audit.users import followed
from leases import clients
from leases.errors import SourceError
from leases.models import Vault

# so long a search waits for the answers of all devices
WAIT_SECONDS = 2.0
LOOK_EVERY_SECONDS = 0.03
# whatever nobody has read by then
FORGET_AFTER = timedelta(minutes=10)

# (question, vault's key, sealed text) on its way to a worker; raises what sending raises
Send = Callable[[str, int, str], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """One device's hash, or why there is none."""

    device: Device
    hash: str
    cause: str = ""


def devices() -> list[Device]:
    """Those that can be asked: of watched vaults with an observing account, and there as far as is known."""
    rows = Device.objects.filter(vault__retired=False, missing_since=None).exclude(vault__observe=None)
    return list(followed(rows).select_related("vault").order_by("vault__name", "name", "id"))


def ask(text: str, *, send: Send, seconds: float | None = None) -> list[Answer]:
    """Each device's answer, in their order; who has not answered in time is said to have not."""
    asked = devices()
    if not asked:
        return []
    question = uuid.uuid4()
    causes = {}
    for vault in {device.vault_id for device in asked}:
        try:
            send(str(question), vault, seal(text))
        except OSError as error:
            causes[vault] = f"The broker took no question ({type(error).__name__}): look at the broker"
    wait = WAIT_SECONDS if seconds is None else seconds
    waiting = {device.pk for device in asked if device.vault_id not in causes}
    rows = _wait(question, waiting, seconds=wait)
    AskedHash.objects.filter(question=question).delete()
    late = (
        f"It has not answered within {wait:g} s: see that a worker of the queue leases runs,"
        " and under Sources whether the vault answers"
    )
    return [
        Answer(device, row.hash, row.cause)
        if (row := rows.get(device.pk))
        else Answer(device, "", causes.get(device.vault_id, late))
        for device in asked
    ]


def _wait(question: uuid.UUID, devices: Collection[int], *, seconds: float) -> dict[int, AskedHash]:
    deadline = time.monotonic() + seconds
    while True:
        rows = {row.device_id: row for row in AskedHash.objects.filter(question=question)}
        if len(rows) >= len(devices) or time.monotonic() > deadline:
            return rows
        time.sleep(LOOK_EVERY_SECONDS)


def answer(question: str, vault_id: int, sealed: str, *, now: datetime) -> None:
    """What a worker does: asks each device of the vault, and writes down what it says."""
    AskedHash.objects.filter(at__lt=now - FORGET_AFTER).delete()
    vault = Vault.objects.filter(pk=vault_id, retired=False).first()
    if vault is None:
        return
    rows = followed(Device.objects.filter(vault=vault, missing_since=None))
    try:
        text = unseal(sealed, seconds=30)
    except NotReadable as error:
        for device in rows:
            _write(question, device, cause=f"The worker could not read the question: {error}", now=now)
        return
    for device in rows:
        try:
            hashed = clients.observer(vault).audit_hash(device.name, text)
        except SourceError as error:
            _write(question, device, cause=f"{error.cause}. {error.fix}", now=timezone.now())
        else:
            _write(question, device, hashed=hashed, now=timezone.now())


def _write(question: str, device: Device, *, now: datetime, hashed: str = "", cause: str = "") -> None:
    """A question that comes twice is answered once."""
    AskedHash.objects.bulk_create(
        [AskedHash(question=question, device=device, hash=hashed, cause=cause, at=now)], ignore_conflicts=True
    )
