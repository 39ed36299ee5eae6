"""Sampling in a stage that several processes run: the first one samples and judges, all have the groups."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from motet.base.recipe import Sampling
from motet.base.records import Completion, Group, Problem
from motet.engine.protocol import Engine, Mended, Request, SamplingParams
from motet.rl.rollouts import Sampler
from motet.train.world import World


class SharedSampler(Sampler):
    """The same verbs as a sampler's, called by all processes."""

    def __init__(self, world: World, make: Callable[[], Sampler]) -> None:
        own: list[Sampler] = []
        world.first(lambda: own.append(make()))
        self._world = world
        self.own = own[0] if own else None
        """In the first process."""
        self.engine: Engine = SharedEngine(world, self.own.engine if self.own else None)

    def groups(
        self,
        problems: Sequence[Problem],
        n: int,
        sampling: Sampling,
        stream: tuple[object, ...],
        file: Path,
        title: str,
    ) -> list[Group]:
        def sample() -> list[Group]:
            assert self.own is not None
            return self.own.groups(problems, n, sampling, stream, file, title)

        before = self.own.judging if self.own is not None else 0.0
        groups = self._world.first(sample)
        self.judging += self.own.judging - before if self.own is not None else 0.0
        return groups

    def settle(self) -> None:
        own = self.own
        self._world.first(lambda: own.settle() if own is not None else None)


class SharedEngine:
    """The engine of the first process; the others help to gather the weights that it loads."""

    def __init__(self, world: World, own: Engine | None) -> None:
        self._world = world
        self._own = own
        self.version = 0

    @property
    def mended(self) -> int:
        return self._own.mended if isinstance(self._own, Mended) else 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        """Here at once, in all processes: for a few. Those of a batch come through `SharedSampler.groups`."""
        own = self._own
        return iter(self._world.first(lambda: list(own.generate(requests, sampling)) if own is not None else []))

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        own, left = self._own, iter(weights)

        def load() -> None:
            assert own is not None
            try:
                own.load(left, version)
            finally:
                deque(left, maxlen=0)

        if own is None:  # the processes gather each tensor together: all go through all of them
            deque(left, maxlen=0)
        self._world.first(load)
        self.version = version

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
