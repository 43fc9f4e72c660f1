"""A port behind which several servers stand: each connection goes to the next one, as behind a load balancer."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle


@contextmanager
def in_turn(*ports: int) -> Iterator[int]:
    """The port to connect to."""
    stop, stopped = socket.socketpair()
    with stop, stopped, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_forward, args=(listener, stopped, ports))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stop.send(b"x")
            thread.join()


def _forward(listener: socket.socket, stopped: socket.socket, ports: tuple[int, ...]) -> None:
    turns, peers = cycle(ports), dict[socket.socket, socket.socket]()
    with selectors.DefaultSelector() as selector:
        for one in (listener, stopped):
            selector.register(one, selectors.EVENT_READ)
        while stopped not in (ready := [key.fileobj for key, _ in selector.select()]):
            for one in [file for file in ready if isinstance(file, socket.socket)]:
                if one is listener:
                    client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", next(turns)))
                    peers |= {client: server, server: client}
                    for end in (client, server):
                        selector.register(end, selectors.EVENT_READ)
                elif one in peers:
                    _pass_on(one, peers, selector)
    for one in peers:
        one.close()


def _pass_on(one: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector) -> None:
    """What came from one end to the other; the end of one is the end of both."""
    other = peers[one]
    try:
        if data := one.recv(65_536):
            other.sendall(data)
            return
    except OSError:
        pass
    for end in (one, other):
        selector.unregister(end)
        del peers[end]
        end.close()
