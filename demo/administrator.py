"""Somebody with an administrator's token, who ends leases in every way that Vault has: one way after the other, slowly.

He talks to Vault directly, from 127.0.0.1. What he did stands in the truth, and in `deeds.ndjson` how he did it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp

from demo import truth
from demo.book import BY_PREFIX, EXPIRED, FORCED, REVOKED, Book, Issued, digest
from demo.programs import Program, Refused, Visit, request
from demo.workloads import FORCED_ROLE, MOUNT, PREFIX_ROLE, STUCK_ROLE

# how a lease is known that Vault tries in vain to revoke
STUCK = "cannot be revoked"
# seconds; nobody ends what has just begun, so that it can be seen before, nor what is about to end by itself
_AGE, _LEFT = 10.0, 5.0
# an expiry is seen by a look so long before it, and by looks after it until the lease is gone
_BEFORE, _AFTER, _LOOKS = 2.0, 0.7, 10
# so long after its time a lease has failed to be revoked
_OVER = 10.0


class Administrator:
    """`programs` gives those that run now."""

    def __init__(
        self, *, vault: str, token: str, book: Book, programs: Callable[[], Sequence[Program]], seconds: float
    ) -> None:
        self._vault = vault
        self._token = token
        self._book = book
        self._programs = programs
        self._seconds = seconds
        self._session: aiohttp.ClientSession

    async def work(self) -> None:
        """Until cancelled."""
        deeds: list[Callable[[], Awaitable[bool]]] = [
            self._by_body_never_renewed,
            self._by_path,
            self._by_accessor,
            self._by_prefix,
            self._by_parent_token,
            self._by_body,
            self._forced,
        ]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as self._session:
            expiries = asyncio.create_task(self._watch_expiries())
            try:
                while True:
                    for deed in deeds:
                        await asyncio.sleep(self._seconds)
                        await self._do(deed)
            finally:
                expiries.cancel()
                await asyncio.gather(expiries, return_exceptions=True)

    async def _do(self, deed: Callable[[], Awaitable[bool]]) -> None:
        """At the next moment at which there is something to do it to; given up after a minute."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                if await deed():
                    return
            except (Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
                print(f"{truth.now()} the administrator: {error or type(error).__name__}", flush=True)
            await asyncio.sleep(1)

    # -- the ways in which a lease is ended ------------------------------------------------------------------

    async def _by_body(self) -> bool:
        """Its id is only hashed in the audit log, where a renewal has told the hash."""
        return await self._revoke_one("by body", renewed=True)

    async def _by_body_never_renewed(self) -> bool:
        """As above, but nothing has told the hash."""
        return await self._revoke_one("by body, never renewed", renewed=False)

    async def _by_path(self) -> bool:
        """Its id stands in the audit log."""
        return await self._revoke_one("by path", in_path=True)

    async def _revoke_one(self, deed: str, *, renewed: bool | None = None, in_path: bool = False) -> bool:
        held = [(program, lease) for program in self._programs() if (lease := self._lease(program))]
        found = [(program, lease) for program, lease in held if renewed in (None, lease.renewals > 0)]
        if not found:
            return False
        program, lease = random.choice(found)  # noqa: S311
        if in_path:
            await self._call(f"sys/leases/revoke/{lease.lease_id}", {"sync": True})
        else:
            await self._call("sys/leases/revoke", {"lease_id": lease.lease_id, "sync": True})
        self._book.end(lease.lease_id, REVOKED, deed=deed)
        program.begin_anew()
        return True

    async def _by_accessor(self) -> bool:
        """A log-in's token, and all that it read."""
        found = [
            (program, visit)
            for program in self._programs()
            # a batch token has no accessor
            if (visit := program.visit) and visit.token.accessor and self._lease(program)
        ]
        if not found:
            return False
        program, visit = random.choice(found)  # noqa: S311
        await self._call("auth/token/revoke-accessor", {"accessor": visit.token.accessor})
        return self._token_ended(program, visit, "by accessor")

    async def _by_parent_token(self) -> bool:
        """The token whose child read the credential."""
        for program in self._programs():
            visit = program.visit
            if program.application.program == "child" and visit and self._lease(program):
                await self._call("auth/token/revoke", {"token": visit.token.secret})
                return self._token_ended(program, visit, "by parent token")
        return False

    def _token_ended(self, program: Program, visit: Visit, deed: str) -> bool:
        self._book.token_revoked(digest(visit.token.secret), deed=deed)
        program.begin_anew()
        return True

    async def _by_prefix(self) -> bool:
        return await self._revoke_below(PREFIX_ROLE, "revoke-prefix", BY_PREFIX, "by prefix")

    async def _forced(self) -> bool:
        return await self._revoke_below(FORCED_ROLE, "revoke-force", FORCED, "forced")

    async def _revoke_below(self, role: str, way: str, reason: str, deed: str) -> bool:
        """All leases of a role that only the maintenance pod reads."""
        pods = [program for program in self._programs() if program.application.program == "maintenance"]
        if not pods:
            return False
        await pods[0].read(role)
        await asyncio.sleep(_AGE)
        prefix = f"{MOUNT}/creds/{role}"
        await self._call(f"sys/leases/{way}/{prefix}", {"sync": True} if reason == BY_PREFIX else {})
        self._book.prefix_revoked(f"{prefix}/", reason, deed=deed)
        return True

    # -- expiry ----------------------------------------------------------------------------------------------

    async def _watch_expiries(self) -> None:
        """One lease after the other: the next that runs out."""
        while True:
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError, TimeoutError):
                await self._note_stuck()
            self._book.forget_expired()
            ours = {program.pod for program in self._programs()}
            now = time.monotonic()
            soon = [
                lease
                for lease in self._book.leases.values()
                if lease.pod in ours
                and f"/{STUCK_ROLE}/" not in lease.lease_id
                and now + _BEFORE < lease.until < now + _BEFORE + 5
            ]
            if not soon:
                await asyncio.sleep(1)
                continue
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError, TimeoutError):
                await self._watch_expiry(min(soon, key=lambda lease: lease.until))

    async def _note_stuck(self) -> None:
        """Leases that should be over and are still there, because their database user cannot be dropped."""
        over = time.monotonic() - _OVER
        for lease in list(self._book.leases.values()):
            if f"/{STUCK_ROLE}/" in lease.lease_id and lease.until < over and await self._expiry(lease):
                del self._book.leases[lease.lease_id]
                self._book.note(STUCK, lease.lease_id)

    async def _watch_expiry(self, lease: Issued) -> None:
        """It is there just before its time, and gone just after: then it expired."""
        await asyncio.sleep(lease.until - _BEFORE - time.monotonic())
        expires_at = await self._expiry(lease)
        if expires_at is None:
            return
        await asyncio.sleep(max(0, (expires_at - datetime.now(UTC)).total_seconds()))
        for _ in range(_LOOKS):
            await asyncio.sleep(_AFTER)
            if await self._expiry(lease) is None:
                self._book.end(lease.lease_id, EXPIRED, deed="expired")
                return

    async def _expiry(self, lease: Issued) -> datetime | None:
        """When it will end; None if it is gone."""
        try:
            answer = await self._call("sys/leases/lookup", {"lease_id": lease.lease_id})
        except Refused as error:
            if error.status == 400:
                return None
            raise
        return datetime.fromisoformat(answer["data"]["expire_time"])

    # -- what is there ---------------------------------------------------------------------------------------

    def _lease(self, program: Program) -> Issued | None:
        """What the program holds, if that is neither new nor about to end."""
        lease = self._book.leases.get(program.visit.lease_id) if program.visit else None
        now = time.monotonic()
        return lease if lease and lease.since + _AGE < now < lease.until - _LEFT else None

    async def _call(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        return await request(self._session, self._vault, "PUT", path, self._token, body)
