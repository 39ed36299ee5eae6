"""The first process' signs of life, seen by the processes that wait for it.

The first one samples and judges for hours while the others wait, so no time-out of the wait itself can tell a process
that works from one that hangs. A thread of the first process passes its signs (`base/signs.py`) on through the store of
the process group. Who waits looks there, and where none came for too long it ends with the stack of every thread;
torchrun then ends the others, and each of them says where it was too.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store

from motet.base import signs

KEY = "motet/signs"
LONGEST_BETWEEN = 10.0
"""Seconds between two looks."""


class Pulse:
    """Of one process; `store` is a connection that nobody else uses, since each is one thread's at a time."""

    def __init__(self, store: Store, rank: int, silence_seconds: float) -> None:
        self._store, self._rank, self._limit = store, rank, silence_seconds
        self._between = min(LONGEST_BETWEEN, silence_seconds / 10)
        self._over = threading.Event()
        self._sender = threading.Thread(target=self._send, name="signs", daemon=True)
        if rank == 0:
            self._sender.start()

    def close(self) -> None:
        self._over.set()
        if self._rank == 0:
            self._sender.join()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around a wait for another process: this one ends when the first gives no sign for too long meanwhile."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), name="awaits-signs", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _send(self) -> None:
        told = signs.given()
        while not self._over.wait(self._between):
            if signs.given() != told:
                told = signs.given()
                self._store.add(KEY, 1)

    def _watch(self, over: threading.Event) -> None:
        seen, since = None, time.monotonic()
        while not over.wait(self._between):
            found = self._store.add(KEY, 0)
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > self._limit:
                self._end()

    def _end(self) -> None:
        where = "The stack of every process follows; where the first one only needed longer, raise mesh.silence_seconds"
        print(
            f"motet: process {self._rank} has waited {self._limit:g} s (mesh.silence_seconds) without a sign of life "
            f"from the first process: no token, reply, verdict or row. {where}.",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)
