"""Which TCP ports the demo uses: PORT for the pages, and the next free ones after it for everything else."""

import os
import socket
from dataclasses import dataclass


class PortTaken(Exception):
    """The port for the pages is not free, or is no port; the text says how to choose another."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All on loopback; the two `pod_` ones on an address for each pod."""

    web: int
    push: int
    postgres: int
    valkey: int
    openbao: int
    kubernetes: int
    kubernetes_2: int
    pod_openbao: int
    pod_postgres: int


def choose() -> Ports:
    """PORT (default 8000) and the following free ones. Raises PortTaken."""
    text = os.environ.get("PORT") or "8000"
    if not text.isdigit() or not 1 <= int(text) <= 65_500:
        raise PortTaken(f"PORT must be a number between 1 and 65500, not {text!r}. For example: PORT=8010 make demo")
    web = int(text)
    if not _free(web):
        raise PortTaken(
            f"Port {web} is in use by another program. Choose another one: PORT={_next_free(web + 10)} make demo"
        )
    chosen: list[int] = []
    while len(chosen) < 8:
        chosen.append(_next_free(max([web, *chosen]) + 1))
    return Ports(web, *chosen)


def _next_free(port: int) -> int:
    while not _free(port):
        port += 1
        if port > 65_535:
            raise PortTaken("No free ports are left above PORT. Choose a lower one: PORT=8010 make demo")
    return port


def _free(port: int) -> bool:
    """Nobody listens there on 127.0.0.1, nor on all addresses. Old connections that are still closing do not count."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
