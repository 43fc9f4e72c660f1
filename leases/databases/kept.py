"""Connections that stay open for a while, so that of thousands of questions in a row each does not log in anew."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from leases.errors import SourceError

Session = TypeVar("Session")

_kept: ContextVar[dict[Any, tuple[Any, ExitStack]] | None] = ContextVar("kept", default=None)


@contextmanager
def keeping() -> Iterator[None]:
    """Within this, a connection that a question opened serves the next ones to the same account, too. Not across threads."""
    kept: dict[Any, tuple[Any, ExitStack]] = {}
    before = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(before)
        for _, stack in kept.values():
            # the server may have closed it meanwhile
            with suppress(SourceError):
                stack.close()


@contextmanager
def session(opened: Callable[[str], AbstractContextManager[Session]], dsn: str) -> Iterator[Session]:
    """What `opened(dsn)` gives, or a kept one of it. One in which something failed is closed: the next question opens another."""
    kept = _kept.get()
    if kept is None:
        with opened(dsn) as one:
            yield one
        return
    # taken out while it is in use
    one, stack = kept.pop((opened, dsn)) if (opened, dsn) in kept else _open(opened, dsn)
    with stack:
        yield one
        kept[opened, dsn] = (one, stack.pop_all())


def _open(opened: Callable[[str], AbstractContextManager[Session]], dsn: str) -> tuple[Session, ExitStack]:
    stack = ExitStack()
    return stack.enter_context(opened(dsn)), stack
