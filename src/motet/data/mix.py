"""Weighted mixtures whose every draw is a pure function of the step, so that a resumed run goes on with the same rows."""

from __future__ import annotations

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
        total = sum(part.weight for part in self.parts)
        self._shares = [part.weight / total for part in self.parts]
        self._seed = seed

    def draw(self, step: int, count: int) -> list[T]:
        """The `count` items of step `step` (from 0), in a random order."""
        items: list[T] = []
        for index, (start, stop) in enumerate(zip(self._taken(step * count), self._taken((step + 1) * count), strict=True)):
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
        """How many of the first `draws` fall to each part: cumulative rounding, so that they always add up."""
        bounds, cumulative = [], 0.0
        for share in self._shares:
            cumulative += share
            bounds.append(round(cumulative * draws))
        return [bound - before for bound, before in zip(bounds, [0, *bounds], strict=False)]

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
