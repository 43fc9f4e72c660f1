"""A receiver of webhooks for tests: a real HTTP(S) server on this machine that answers as it is told, and keeps what it got."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# what a path of its own looks like: a secret
PATH = "/services/T0SECRET/B0SECRET/hunter2hunter2"


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answering:
    """One answer; with `instead` that function does what it likes with the connection."""

    status: int = 200
    body: bytes = b"ok"
    headers: dict[str, str] = field(default_factory=dict)
    instead: Callable[[BaseHTTPRequestHandler], None] | None = None


@dataclass
class Hook:
    """`answers`: one for each request, the last one for all further ones."""

    url: str
    got: list[Got] = field(default_factory=list)
    answers: list[Answering] = field(default_factory=lambda: [Answering()])

    def answer(self, *statuses: int, **more: Any) -> None:
        self.answers = [Answering(status, **more) for status in statuses]


@contextmanager
def hook(*, port: int = 0, certificate: Path | None = None, key: Path | None = None) -> Iterator[Hook]:
    made = Hook("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append(Got(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            answer = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            if answer.instead:
                answer.instead(self)
                return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def do_GET(self) -> None:
            made.got.append(Got(self.path, {}, b""))
            self.send_error(500)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that is gone, or that did not trust us, is what some tests are about."""

    server = Server(("127.0.0.1", port), Handler)
    if certificate and key:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    made.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}{PATH}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
