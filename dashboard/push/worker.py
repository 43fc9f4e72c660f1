"""A worker of gunicorn with a limit on how long a client may take to send a request.

gunicorn's threaded worker has none: a client that sends a byte now and then would hold a thread for ever.
"""

import contextlib
import socket
import time
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.util import write_error
from gunicorn.workers.gthread import ThreadWorker


class Worker(ThreadWorker):  # type: ignore[misc]
    """Ends what does not arrive in time; names errors of parsing without quoting what was sent."""

    # seconds; the body's begin when the headers are there
    headers_within = 10.0
    body_within = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # connections that a thread waits for, and until when
        self.arriving: dict[Any, float] = {}

    def handle(self, conn: Any) -> Any:
        self.arriving[conn] = time.monotonic() + self.headers_within
        try:
            return super().handle(conn)
        finally:
            self.arriving.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        self.arriving[conn] = time.monotonic() + self.body_within
        return super().handle_request(req, conn)

    def murder_pending(self) -> None:
        """Called by gunicorn's own loop, once a second or oftener."""
        super().murder_pending()
        now = time.monotonic()
        for conn, until in list(self.arriving.items()):
            if until < now:
                # Reading ends as if the client had gone; an answer can still be written, and does no harm to a body that
                # is whole. The plain socket's method: that of a TLS socket would drop the encryption.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(conn.sock, socket.SHUT_RD)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        # gunicorn's own would log the offending header, which may be the one with the token, or the address with its query
        client_error = isinstance(exc, ParseException | OSError)
        if client_error:
            self.log.warning("a request from %s cannot be read: %s", (addr or ("",))[0], type(exc).__name__)
        else:
            self.log.error("a request from %s failed", (addr or ("",))[0], exc_info=exc)
        with contextlib.suppress(OSError):
            write_error(client, *((400, "Bad Request", "") if client_error else (500, "Internal Server Error", "")))
