"""One POST to an address outside, through urllib3: one attempt, no redirect, no proxy, and an end after ten seconds.

An address may be a secret: of it only host and port stand in errors.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import urllib3
from django.conf import settings
from urllib3.connection import HTTPConnection, HTTPSConnection

from leases.errors import SourceError

CONNECT_SECONDS, READ_SECONDS = 3.0, 5.0
# a receiver that sends a byte now and then holds nobody for longer
ALL_SECONDS = 10.0
MOST_BYTES = 4096

_AGAIN = "It is sent again with the same webhook-id. Let the receiver answer first and work later."


class WebhookFailed(SourceError):
    """No answer came. `cause` and `fix` are for an operator; nothing of the address but host and port is in them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`said`: the beginning of the body. `retry_after`: as the header stands there."""

    status: int
    said: str = ""
    retry_after: str = ""


def post(url: str, body: bytes, headers: Mapping[str, str], *, ca_file: str = "") -> Answer:
    """Raises WebhookFailed. The address has been checked (leases.configuration.address_problem)."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    at = f"{host}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(
            host, port, timeout=CONNECT_SECONDS, ssl_context=trusting(ca_file), server_hostname=host
        )
    else:
        connection = HTTPConnection(host, port, timeout=CONNECT_SECONDS)
    held: list[socket.socket] = []
    with _cut_off(connection, held) as over:
        try:
            connection.connect()
            held.append(connection.sock)
            connection.timeout = READ_SECONDS
            connection.request(
                "POST",
                target,
                body=body,
                headers={"Content-Type": "application/json", "User-Agent": settings.USER_AGENT, **headers},
                preload_content=False,
                decode_content=False,
            )
            response = connection.getresponse()
            if over.is_set():
                # in the middle of its headers, which then look as if they ended there
                raise TimeoutError
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, UnicodeError) as error:
            # of a foreign error's text nothing is kept: it may hold the address
            raise _failed(error, at=at, cut_off=over.is_set()) from None
        said = b""
        # the answer is there: what is wrong with its body changes nothing
        with contextlib.suppress(urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
            said = response.read(MOST_BYTES)
        return Answer(response.status, said.decode(errors="replace"), response.headers.get("Retry-After", ""))


def trusting(ca_file: str) -> ssl.SSLContext:
    """Trusts this authority alone, or without one those of the system. Raises WebhookFailed."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as error:
        why = "no certificate in PEM" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
        raise WebhookFailed(
            f"The certificate authority {ca_file} cannot be read ({why})",
            "Mount it into the workers of the queue `reports`, or correct ca_file in leasehold.toml.",
        ) from error


@contextlib.contextmanager
def _cut_off(connection: HTTPConnection, held: list[socket.socket]) -> Iterator[threading.Event]:
    """Ends what goes on over the connection when all the time is over, and sets the event; closes it in any case.

    `held`: its socket, of which http.client lets go while a body is read.
    """
    over = threading.Event()

    def cut() -> None:
        over.set()
        for one in [connection.sock, *held]:
            with contextlib.suppress(OSError):
                if one is not None:
                    # of the socket below TLS: to say goodbye could block as well
                    socket.socket.shutdown(one, socket.SHUT_RDWR)

    timer = threading.Timer(ALL_SECONDS, cut)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()
        connection.close()


def _failed(error: Exception, *, at: str, cut_off: bool) -> WebhookFailed:
    reached = "Start the receiver, or let the workers of the queue `reports` reach it (deploy/kubernetes/networkpolicy.yaml names ports)."
    if cut_off:
        return WebhookFailed(f"{at} did not answer within {ALL_SECONDS:.0f} s", _AGAIN)
    match error:
        case urllib3.exceptions.NameResolutionError() | UnicodeError():
            return WebhookFailed(
                f"The name of {at} cannot be resolved",
                "Correct url in leasehold.toml, or the resolver of the workers of the queue `reports`.",
            )
        case urllib3.exceptions.NewConnectionError():
            return WebhookFailed(f"{at} takes no connection", reached)
        case urllib3.exceptions.ConnectTimeoutError():
            return WebhookFailed(f"{at} takes no connection within {CONNECT_SECONDS:.0f} s", reached)
        case ssl.SSLCertVerificationError():
            return WebhookFailed(
                f"The TLS certificate of {at} is not trusted ({error.verify_message})",
                "Set ca_file in leasehold.toml to the authority that issued it, or correct the name in url.",
            )
        case ssl.SSLError():
            return WebhookFailed(
                f"{at} does not speak TLS as it should ({error.reason or 'no reason'})",
                "Correct the port or the scheme of url in leasehold.toml.",
            )
        case TimeoutError() | urllib3.exceptions.TimeoutError():
            return WebhookFailed(f"{at} did not answer within {READ_SECONDS:.0f} s", _AGAIN)
        case _:
            return WebhookFailed(
                f"{at} ended the connection without an answer ({type(error).__name__})",
                "Look at the receiver's log. " + _AGAIN,
            )


def wait_of(retry_after: str, *, now: datetime) -> float:
    """Seconds that a Retry-After asks for, as a number or a date (RFC 9110, 10.2.3); 0 where it cannot be read. Pure."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
