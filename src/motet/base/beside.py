"""A call in a thread of its own, beside what its caller goes on with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Begins at once; `result` waits, and raises what the call raised. The thread does not keep the process alive."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self.seconds = 0.0
        """That the call took, once it has ended."""
        self._call = call
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the call has ended, however it did."""
        self._thread.join()

    def result(self) -> T:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            self._outcome.append(self._call())
        except BaseException as error:  # raised again in the thread that asks for the result
            self._error = error
        self.seconds = time.perf_counter() - began
