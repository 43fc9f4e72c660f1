"""One simulated pod's network: everything the pod sends to OpenBao and PostgreSQL leaves from the pod's own address.

A pod here is a few processes on a loopback address of their own. They talk to this proxy on that address, and the
proxy binds the same address as its source: so OpenBao's audit log has it as remote_address and PostgreSQL as
client_addr, as on a real pod network. Where the pod shares its node's address, or leaves through a gateway, the source is
that one. The HTTP part also reads what passes and records log-ins, issued and renewed leases and a revoked own token:
names and lease ids, never a token or a password.
"""

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

from demo import relay, truth
from demo.book import Book, digest

# these belong to one connection (RFC 9110, 7.6.1), or are set anew by each side's library
_NOT_FORWARDED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_TIMEOUT = ClientTimeout(total=90, connect=5)


class _Credentials(msgspec.Struct):
    username: str = ""


class _Token(msgspec.Struct):
    client_token: str = ""


class _Wrap(msgspec.Struct):
    token: str = ""


class _Answer(msgspec.Struct):
    """The fields of OpenBao's answers that are read; lease_duration in seconds."""

    lease_id: str = ""
    lease_duration: float = 0
    data: _Credentials | None = None
    auth: _Token | None = None
    wrap_info: _Wrap | None = None


class _RenewRequest(msgspec.Struct):
    lease_id: str = ""


def _without_hop_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _NOT_FORWARDED]


class PodProxy:
    """The two listeners of one pod, on `listen`; what it sends on leaves from `source`. Both are the pod's own address
    by default. `databases` says which database each "mount/creds/role" path opens.
    """

    def __init__(
        self,
        pod: truth.Pod,
        *,
        book: Book,
        databases: Mapping[str, str],
        vault: str,
        vault_port: int,
        postgres: tuple[str, int],
        postgres_port: int,
        listen: str = "",
        source: str = "",
    ) -> None:
        self.pod = pod
        self.listen = listen or pod.ip
        self._source = (source or pod.ip, 0)
        self._book = book
        self._databases = databases
        self._vault = vault.rstrip("/")
        self._vault_port = vault_port
        self._postgres = postgres
        self._postgres_port = postgres_port
        self._stack = contextlib.AsyncExitStack()
        self._client: ClientSession
        self._connections: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def vault_address(self) -> str:
        """Where the pod's agent finds OpenBao."""
        return f"http://{self.listen}:{self._vault_port}"

    async def start(self) -> None:
        """Listen; raises OSError where the address or port cannot be bound."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        self._client = await self._stack.enter_async_context(
            ClientSession(
                connector=TCPConnector(local_addr=self._source, keepalive_timeout=60),
                timeout=_TIMEOUT,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
            )
        )
        application = web.Application(client_max_size=32 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._forward)
        # a request that was sent on is carried to its end and recorded even if the pod no longer waits for it
        runner = web.AppRunner(application, access_log=None, handler_cancellation=False, shutdown_timeout=5)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, self.listen, self._vault_port).start()
        server = await asyncio.start_server(self._tunnel, self.listen, self._postgres_port)
        self._stack.callback(server.close)

    async def stop(self) -> None:
        """Close both listeners and every connection; requests to OpenBao that are under way may end first (5 s)."""
        self._stopping = True
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._stack.aclose()

    # -- OpenBao ---------------------------------------------------------------------------------------------

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            async with self._client.request(
                request.method,
                URL(self._vault + request.raw_path, encoded=True),
                headers=_without_hop_headers(request.headers),
                data=body or None,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
                if answer.status in (200, 204):
                    self._note(request, body, content)
                return web.Response(
                    status=answer.status,
                    headers=_without_hop_headers(answer.headers),
                    body=content,
                )
        except (ClientError, TimeoutError) as error:
            return web.json_response(
                {"errors": [f"the pod's network cannot reach OpenBao ({type(error).__name__})"]}, status=502
            )

    def _note(self, request: web.Request, body: bytes, content: bytes) -> None:
        """Record what a successful exchange means; what cannot be read is not one of these."""
        path = request.path.removeprefix("/v1/").strip("/")
        token = digest(request.headers.get("X-Vault-Token", ""))
        if path == "auth/token/revoke-self":
            self._book.token_revoked(token, deed="by the pod itself")
            return
        with contextlib.suppress(msgspec.MsgspecError):
            answer = msgspec.json.decode(content, type=_Answer)
            user = answer.data.username if answer.data else None
            if path.startswith("auth/") and path.endswith("/login"):
                self._book.login(self.pod)
            elif path == "auth/token/create" and answer.auth:
                self._book.child(token, answer.auth.client_token)
            elif path in self._databases and request.method == "GET":
                if answer.wrap_info:
                    self._book.wrapped(answer.wrap_info.token, self.pod, self._databases[path], token)
                else:
                    database = self._databases[path]
                    self._book.issue(self.pod, answer.lease_id, database, user, token, answer.lease_duration)
            elif path == "sys/wrapping/unwrap":
                self._book.unwrapped(token, answer.lease_id, user, answer.lease_duration)
            elif path in ("sys/leases/renew", "sys/renew"):
                asked = msgspec.json.decode(body, type=_RenewRequest)
                self._book.renew(self.pod, answer.lease_id or asked.lease_id, answer.lease_duration)

    # -- PostgreSQL ------------------------------------------------------------------------------------------

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._stopping:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await relay.carry(reader, writer, to=self._postgres, source=self._source)
        except OSError:
            pass  # the client sees its connection close
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._connections.discard(task)
