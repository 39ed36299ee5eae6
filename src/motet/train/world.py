"""The processes of a run: who they are, and how they agree on something that only one of them does.

A run is one process, or several that torchrun started. Above the learner all of them run the same code over the same
data; `World.first` is for what has an effect outside (files, sampling, judging): the first process does it, and all
of them have the result, or the error.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from motet.base.errors import Elsewhere
from motet.train.pulse import Pulse

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""Longest wait for the first process while it samples and judges, and gives signs of life. One that dies ends the wait
at once."""


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1
    per_node: int = 1
    """Processes on each node."""
    timeout_seconds: int = 900
    """Longest wait for a collective operation on tensors."""
    objects: dist.ProcessGroup | None = None
    """For Python objects, over the hosts' network."""
    files: dist.ProcessGroup | None = None
    """For checkpoints, which are written by a thread of their own."""
    pulse: Pulse | None = None
    """By which the others know that the first process is at work."""

    @staticmethod
    def join(timeout_seconds: int, silence_seconds: int, cuda: bool) -> World:
        """The world that torchrun's environment describes; a single process has no group, and nothing is started."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if cuda:
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            # torchrun ends all processes when one has failed: each says where it was
            faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
            # later than the learner's own watch, which shows more
            patience = timedelta(seconds=timeout_seconds + 60)
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=patience)
        rank = dist.get_rank()
        return World(
            rank=rank,
            size=size,
            per_node=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
            timeout_seconds=timeout_seconds,
            objects=dist.new_group(backend="gloo", timeout=PATIENCE),
            files=dist.new_group(backend="gloo", timeout=timedelta(seconds=silence_seconds)),
            pulse=Pulse(_get_default_store().clone(), rank, silence_seconds),  # type: ignore[attr-defined]
        )

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            faulthandler.unregister(signal.SIGTERM)
            if self.pulse is not None:
                self.pulse.close()
            dist.destroy_process_group()

    def first(self, function: Callable[[], T]) -> T:
        """Calls it in the first process alone. All processes return its result or raise its error; all must call."""
        if self.size == 1:
            return function()
        outcome: tuple[T | None, Exception | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = (function(), None)
            except Exception as error:
                outcome = (None, error)
        with self._awaited():
            result, failure = self._from_first(outcome)
        if failure is None:
            return result  # type: ignore[return-value]
        faulthandler.unregister(signal.SIGTERM)  # what is wrong is known
        if self.rank > 0:
            raise Elsewhere(str(failure)) from failure
        raise outcome[1] or failure

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self._awaited():
            dist.all_gather_object(values, value, group=self.objects)
        return values  # type: ignore[return-value]

    @contextmanager
    def watched(self) -> Iterator[Callable[[], None]]:
        """Inside, the process ends with the stack of every thread when the yielded function was not called for longer
        than the timeout: another process hangs, or this one."""
        if self.size == 1:
            yield lambda: None
            return

        def alive() -> None:
            faulthandler.dump_traceback_later(self.timeout_seconds, exit=True)

        alive()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _awaited(self) -> AbstractContextManager[None]:
        return nullcontext() if self.pulse is None else self.pulse.awaited()

    def _from_first(self, outcome: tuple[T | None, Exception | None]) -> tuple[T | None, Exception | None]:
        if outcome[1] is not None:
            try:
                pickle.loads(pickle.dumps(outcome[1]))
            except Exception:  # whatever a library's error holds or asks for when it is built again
                outcome = (None, RuntimeError(f"{type(outcome[1]).__name__}: {outcome[1]}"))
        box = [outcome]
        dist.broadcast_object_list(box, src=0, group=self.objects)
        return box[0]
