"""Weighted mixtures whose every draw is a pure function of the step: a resumed run goes on with the same rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from motet.base.records import seed_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    name: str
    items: Sequence[T]
    weight: float


class Mixture(Generic[T]):
    """Draws from several parts by weight; each part is gone through in a new random order every epoch.

    Example: weights 3 and 1, four a step: every step has three of the first and one of the second.
    """

    def __init__(self, parts: Sequence[Part[T]], seed: int) -> None:
        self.parts = [part for part in parts if part.items and part.weight > 0]
        if not self.parts:
            raise ValueError("a mixture needs at least one part that is not empty")
        weights = [part.weight for part in self.parts]
        self._shares = [weight / sum(weights[index:]) for index, weight in enumerate(weights)]
        """Of each part in what it and the parts after it get."""
        self._seed = seed

    def draw(self, step: int, count: int) -> list[T]:
        """The `count` items of step `step` (from 0), in a random order."""
        items: list[T] = []
        for index, (start, stop) in enumerate(
            zip(self._taken(step * count), self._taken((step + 1) * count), strict=True)
        ):
            items += [self._at(index, position) for position in range(start, stop)]
        random.Random(seed_of(self._seed, "order", step)).shuffle(items)
        return items

    def first(self, count: int) -> list[T]:
        """Up to `count` items, none twice: what a stage that asks each problem once goes through."""
        items: list[T] = []
        for index, stop in enumerate(self._taken(count)):
            items += [self._at(index, position) for position in range(min(stop, len(self.parts[index].items)))]
        random.Random(seed_of(self._seed, "first")).shuffle(items)
        return items

    def _taken(self, draws: int) -> list[int]:
        """How many of the first `draws` fall to each part. They add up to `draws`, and one draw more gives one part one
        more and no part less: each part in turn takes its rounded share of what the parts before it left."""
        taken, left = [], draws
        for share in self._shares:
            taken.append(math.floor(share * left + 0.5))
            left -= taken[-1]
        return taken

    def _at(self, index: int, position: int) -> T:
        items = self.parts[index].items
        epoch, place = divmod(position, len(items))
        return items[_order(self._seed, self.parts[index].name, epoch, len(items))[place]]


_cache: dict[tuple[int, str, int, int], list[int]] = {}


def _order(seed: int, name: str, epoch: int, size: int) -> list[int]:
    key = (seed, name, epoch, size)
    if key not in _cache:
        if len(_cache) > 64:
            _cache.clear()
        order = list(range(size))
        random.Random(seed_of(*key)).shuffle(order)
        _cache[key] = order
    return _cache[key]
