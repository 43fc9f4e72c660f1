"""The two addresses of the push process, and every answer that a shipper can get."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps

from django.conf import settings
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from audit import push
from audit.ingest import Rebuilding
from audit.models import Stream
from audit.secrets import RawSecret
from dashboard.push import bodies
from leases.version import VERSION

log = logging.getLogger(__name__)

# seconds
AGAIN_SOON, AGAIN_LATER = "2", "5"
COUNTED = ("lines", "parts", "duplicates", "rejected", "redacted", "expired", "conflicts")
# batches that are held in memory at once, in each process
_slots = threading.BoundedSemaphore(settings.PUSH_AT_ONCE)


class Refusal(Exception):
    """An answer other than 200; `error` is for the shipper's log and holds nothing of the body."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, error)
        self.status = status
        self.error = error
        self.headers = headers or {}


def healthz(request: HttpRequest) -> JsonResponse:
    return answer({"ok": True, "version": VERSION})


def answering(view: Callable[..., JsonResponse]) -> Callable[..., JsonResponse]:
    """Turns what went wrong into the answer that makes a shipper do the right thing: come again, or tell a person."""

    @wraps(view)
    def answered(request: HttpRequest, /, **names: str) -> JsonResponse:
        try:
            return view(request, **names)
        except Refusal as refusal:
            return answer({"error": refusal.error}, status=refusal.status, headers=refusal.headers)
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            # ProgrammingError: tables of another version, while an upgrade runs
            log.error("own database: %s %s", type(error).__name__, getattr(error.__cause__, "sqlstate", None) or "")
            return answer(
                {"error": "Leasehold's database does not answer; send the batch again"},
                status=503,
                headers={"Retry-After": AGAIN_LATER},
            )

    return answered


@answering
def ingest(request: HttpRequest, vault: str, device: str, node: str) -> JsonResponse:
    if request.method != "POST":
        raise Refusal(405, "send batches by POST", {"Allow": "POST"})
    stream = push.stream_of(bearer(request), vault=vault, device=device, node=node)
    if stream is None:
        raise Refusal(401, "no such stream, or not its token", {"WWW-Authenticate": "Bearer"})
    try:
        with slot():
            counts = take(request, stream)
    except Refusal as refusal:
        log.warning("%s: %s %s", stream, refusal.status, refusal.error)
        raise
    log.info(
        "%s: took %s", stream, ", ".join(f"{name} {value}" for name, value in counts.items() if value) or "nothing"
    )
    return answer(counts)


def take(request: HttpRequest, stream: Stream) -> dict[str, int]:
    """Receives the batch and takes it; the counts once all of it is committed. Raises Refusal."""
    if stream.refused:
        raise Refusal(422, f"nothing more is taken from this stream: {stream.refused}")
    encoding = content_encoding(request)
    line_key = request.headers.get("Leasehold-Line-Key", "")
    try:
        body = bodies.receive(request.META["wsgi.input"], length=body_length(request), most=settings.PUSH_BODY_BYTES)
        # to the end before anything is taken: damage in the middle must not leave half a batch behind
        bodies.measure(body, encoding, most=settings.PUSH_LINES_BYTES)
        counts = push.take(stream, bodies.unpack(body, encoding), now=timezone.now(), line_key=line_key)
    except bodies.TooLarge as error:
        raise Refusal(413, f"{error}; split the batch and send the parts") from error
    except bodies.Undecodable as error:
        raise Refusal(400, f"{error}; nothing was taken") from error
    except bodies.Unfinished as error:
        # not 408: some shippers throw away what is answered with a 4xx
        raise Refusal(503, "the body did not arrive whole; send it again", {"Retry-After": AGAIN_SOON}) from error
    except RawSecret as error:
        raise Refusal(
            422, f"{error.field} stands in plain text; nothing of this was stored, and the stream is refused"
        ) from error
    except push.Busy as error:
        raise Refusal(429, "another batch of this stream is being taken", {"Retry-After": AGAIN_SOON}) from error
    except Rebuilding as error:
        raise Refusal(503, "this vault's events are being made again", {"Retry-After": AGAIN_LATER}) from error
    except push.Unusable as error:
        raise Refusal(500, "the batch cannot be taken; Leasehold's log says why") from error
    return {name: getattr(counts, name, 0) for name in COUNTED}


@contextmanager
def slot() -> Iterator[None]:
    """One of the few places for a batch in memory. Raises Refusal where all are taken."""
    if not _slots.acquire(blocking=False):
        raise Refusal(429, "too many batches at once", {"Retry-After": AGAIN_SOON})
    try:
        yield
    finally:
        _slots.release()


def bearer(request: HttpRequest) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def content_encoding(request: HttpRequest) -> str:
    named = request.headers.get("Content-Encoding", "").strip().lower() or "identity"
    encoding = {"x-gzip": "gzip"}.get(named, named)
    if encoding not in bodies.ENCODINGS:
        known = ", ".join(bodies.ENCODINGS)
        raise Refusal(415, f"Content-Encoding must be one of {known}", {"Accept-Encoding": known})
    return encoding


def body_length(request: HttpRequest) -> int | None:
    """Bytes, or None for a body in chunks."""
    if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
        return None
    length = request.META.get("CONTENT_LENGTH", "")
    if not length:
        raise Refusal(411, "send Content-Length, or the body in chunks")
    return int(length)


def answer(data: Mapping[str, object], *, status: int = 200, headers: dict[str, str] | None = None) -> JsonResponse:
    return JsonResponse(dict(data), status=status, headers={"Cache-Control": "no-store", **(headers or {})})


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    return answer({"error": "the request cannot be read"}, status=400)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return answer({"error": "batches go to /ingest/VAULT/DEVICE/NODE"}, status=404)


def server_error(request: HttpRequest) -> JsonResponse:
    return answer({"error": "a fault of Leasehold; its log says more"}, status=500)
