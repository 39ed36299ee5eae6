"""Heavy imports announce themselves, so that a pool can leave them out of the deadline of the item that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[bool], None]] = []


def listen(listener: Callable[[bool], None]) -> None:
    """Calls `listener(True)` before every heavy import of this process and `listener(False)` after it."""
    _listeners.append(listener)


@contextmanager
def loading() -> Iterator[None]:
    for listener in _listeners:
        listener(True)
    try:
        yield
    finally:
        for listener in _listeners:
            listener(False)
