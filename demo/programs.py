"""Applications that talk to Vault themselves, without an agent: each a task that logs in and reads again and again.

What they do passes through their pod's network (demo.proxy), like everything that a pod does.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from demo import truth
from demo.agent import Files
from demo.files import write_secret
from demo.workloads import LEASE_TTL, MOUNT, STUCK_ROLE, TOKEN_TTL, Application

# seconds; a visit's token outlives its lease, which is renewed once half-way through in every second visit
_RENEW_AFTER, _RETRY = LEASE_TTL / 2, 3.0
_VISIT, _RENEWED_VISIT = LEASE_TTL - 10, LEASE_TTL + 15
# how long a wrapped answer waits to be opened
_WRAP_TTL = "60s"


class Refused(Exception):
    """Vault did not do what was asked for; `status` is its answer's."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Token:
    """What a log-in gives; `accessor` is empty for a batch token. Never printed."""

    secret: str
    accessor: str

    def __repr__(self) -> str:
        return "Token()"


@dataclass(frozen=True, slots=True)
class Visit:
    """One log-in and the lease that was read after it. `token` is the log-in's, whichever token read."""

    token: Token
    lease_id: str


class Program:
    """One pod's dealings with Vault, at `address`. `peers` gives the other programs that can open a wrapped answer."""

    def __init__(
        self,
        application: Application,
        pod: truth.Pod,
        files: Files,
        address: str,
        *,
        peers: Callable[[], Sequence["Program"]],
        deliver: Callable[[str], None],
    ) -> None:
        self.application = application
        self.pod = pod
        self.visit: Visit | None = None
        self._files = files
        self._address = address
        self._peers = peers
        self._deliver = deliver
        self._visits = random.randrange(2)  # noqa: S311 (so that not all renew at the same time)
        self._task: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Begin; called from the event loop."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, and forget every token without telling Vault."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._session:
            await self._session.close()

    def begin_anew(self) -> None:
        """Its lease or its token was ended by somebody: it notices soon, and logs in again."""
        self.visit = None
        self._again.set()

    async def _run(self) -> None:
        if self.application.program == "maintenance":
            # this one's other leases are asked for by the demo's administrator
            await self._read_stuck()
            return
        while True:
            try:
                await self._stay()
            except (Refused, OSError, aiohttp.ClientError, TimeoutError) as error:
                print(f"{truth.now()} {self.pod.pod}: {error or type(error).__name__}", flush=True)
                await asyncio.sleep(_RETRY)

    async def _read_stuck(self) -> None:
        """One lease whose database user cannot be dropped: Vault tries for some ten minutes, then gives up."""
        while True:
            with contextlib.suppress(Refused, OSError, aiohttp.ClientError, TimeoutError):
                await self.read(STUCK_ROLE)
                return
            await asyncio.sleep(_RETRY)

    async def _stay(self) -> None:
        """One visit: log in, read, perhaps renew, and leave the lease to itself."""
        self._again.clear()
        self._visits += 1
        began = time.monotonic()
        token, lease_id, reader = await self._get()
        self.visit = Visit(token, lease_id)
        # nothing that a batch token got can be renewed
        renews = self._visits % 2 == 0 and self.application.program not in ("batch", "operator")
        if renews and not await self._disturbed(began + _RENEW_AFTER):
            await self.call("PUT", "sys/leases/renew", reader, {"lease_id": lease_id})
        if await self._disturbed(began + (_RENEWED_VISIT if renews else _VISIT)):
            await asyncio.sleep(random.uniform(1, 3))  # noqa: S311

    async def _disturbed(self, until: float) -> bool:
        """Wait until then; true at once if somebody ended what it has."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), max(0, until - time.monotonic()))
        return self._again.is_set()

    async def _get(self) -> tuple[Token, str, str]:
        """A log-in, a lease, and the token that read it."""
        token = await self.log_in()
        reader = token.secret
        if self.application.program == "child":
            answer = await self.call(
                "POST",
                "auth/token/create",
                token.secret,
                {"policies": [self.application.vault_role], "display_name": "job", "ttl": f"{TOKEN_TTL}s"},
            )
            reader = answer["auth"]["client_token"]
        if self.application.program == "wrapped":
            answer = await self._read_wrapped(reader)
        else:
            answer = await self.call("GET", self.application.credentials_path, reader)
        self._keep(answer)
        return token, answer["lease_id"], reader

    async def _read_wrapped(self, reader: str) -> dict[str, Any]:
        """A credential that is opened once: here, or every second time by another pod, to which it was handed."""
        answer = await self.call(
            "GET", self.application.credentials_path, reader, headers={"X-Vault-Wrap-TTL": _WRAP_TTL}
        )
        others = [peer for peer in self._peers() if peer is not self]
        opener = random.choice(others) if others and self._visits % 2 else self  # noqa: S311
        await asyncio.sleep(random.uniform(0.2, 2))  # noqa: S311
        return await opener.call("PUT", "sys/wrapping/unwrap", answer["wrap_info"]["token"])

    def _keep(self, answer: Mapping[str, Any]) -> None:
        """Where the application, or whoever it fetches for, finds the credential."""
        data = answer["data"]
        text = f"username={data['username']}\npassword={data['password']}\nlease_id={answer['lease_id']}\n"
        if self.application.program == "operator":
            self._deliver(text)
        else:
            write_secret(self._files.credentials, text)

    async def log_in(self) -> Token:
        """With the pod's service-account token."""
        jwt = self._files.service_account_token.read_text()
        body = {"role": self.application.vault_role, "jwt": jwt}
        answer = await self.call("POST", f"auth/{self.application.auth_mount}/login", "", body)
        return Token(answer["auth"]["client_token"], answer["auth"]["accessor"])

    async def read(self, role: str) -> str:
        """Log in and read one credential of this role; gives its lease's id. For whoever wants to end it."""
        token = await self.log_in()
        answer = await self.call("GET", f"{MOUNT}/creds/{role}", token.secret)
        return str(answer["lease_id"])

    async def call(
        self,
        method: str,
        path: str,
        token: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request from this pod. Raises Refused, aiohttp.ClientError, TimeoutError."""
        if self._session is None:
            raise Refused("the pod has ended")
        return await request(self._session, self._address, method, path, token, body, headers)


async def request(
    session: aiohttp.ClientSession,
    address: str,
    method: str,
    path: str,
    token: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One request to Vault; {} for an empty answer. Raises Refused, aiohttp.ClientError, TimeoutError."""
    own = {"X-Vault-Token": token} if token else {}
    async with session.request(method, f"{address}/v1/{path}", headers={**own, **(headers or {})}, json=body) as answer:
        if answer.status >= 400:
            # an error may quote the request, and with it a token
            raise Refused(f"{method} {path} was answered with {answer.status}", answer.status)
        return dict(await answer.json()) if answer.status == 200 else {}
