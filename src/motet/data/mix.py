"""Weighted mixtures whose every draw is a pure function of the step: a resumed run goes on with the same rows.

Weights may change over the steps. What was drawn then follows the sum of all shares so far, to within a few items.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, overload

from motet.base.records import seed_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A weight over the steps: straight lines between (step, weight), constant before the first and after the last.

    Two points at one step are a jump, which the later of them wins: ((0, 3), (100, 3), (100, 1)) is 3 up to step 99.
    """

    points: tuple[tuple[int, float], ...]

    def at(self, step: int) -> float:
        place = bisect_right(self.points, step, key=lambda point: point[0])
        if place == 0:
            return self.points[0][1]
        start, value = self.points[place - 1]
        if place == len(self.points):
            return value
        stop, other = self.points[place]
        return value + (other - value) * (step - start) / (stop - start)


Weight = float | Schedule


def weight_of(given: float | Sequence[tuple[int, float]]) -> Weight:
    """A weight of the recipe: a number, or points [[step, weight], ...]."""
    return Schedule(tuple(given)) if isinstance(given, Sequence) else given


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    name: str
    items: Sequence[T]
    weight: Weight
    group: str | None = None
    """Parts of one group (one source, cut by length) share its weight; each part without one is a group of its own."""
    within: Weight = 1.0
    """The part's share of its group, against the other parts of the group that are not empty."""


@dataclass(frozen=True, slots=True)
class Chosen(Sequence[T]):
    """Some items of another sequence, by their places in it."""

    items: Sequence[T]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Chosen(self.items, self.places[index])
        return self.items[self.places[index]]


class Mixture(Generic[T]):
    """Draws from several parts by weight; each part is gone through in a new random order every epoch.

    Example: weights 3 and 1, four a step: every step has three of the first and one of the second.
    """

    def __init__(self, parts: Sequence[Part[T]], seed: int) -> None:
        self.parts = [part for part in parts if len(part.items) and _positive(part.weight) and _positive(part.within)]
        if not self.parts:
            raise ValueError("a mixture needs at least one part that is not empty")
        self._seed = seed
        self._orders = _Orders(seed)
        self._changes = sorted({0, *(step for part in self.parts for step in _steps(part))})
        for step in self._changes:
            if not sum(self._weights(step)):
                raise ValueError(f"at step {step} the weight of every part that is not empty is 0")
        weights = self._weights(0) if self.is_constant else []
        self._nested = [weight / sum(weights[index:]) for index, weight in enumerate(weights)]
        """Of each part in what it and the parts after it get, where no weight changes."""
        self._plans: dict[int, _Plan] = {}

    @property
    def is_constant(self) -> bool:
        return self._changes == [0]

    def draw(self, step: int, count: int) -> list[T]:
        """The `count` items of step `step` (from 0), in a random order. All steps before it had the same count."""
        items: list[T] = []
        for index, (start, stop) in enumerate(zip(self._taken(step, count), self._taken(step + 1, count), strict=True)):
            items += [self._at(index, position) for position in range(start, stop)]
        random.Random(seed_of(self._seed, "order", step)).shuffle(items)
        return items

    def first(self, count: int) -> list[T]:
        """Up to `count` items, none twice: what a stage that asks each problem once goes through. By the weights of
        step 0."""
        return list(self.drawn(count))

    def drawn(self, count: int) -> Iterator[T]:
        """The same, one by one."""
        mixture = self.at(0)
        places: list[tuple[int, int]] = []
        for index, stop in enumerate(mixture._taken(count, 1)):
            size = len(mixture.parts[index].items)
            places += [(index, position) for position in range(min(stop, size))]
        random.Random(seed_of(self._seed, "first")).shuffle(places)
        return (mixture._at(index, position) for index, position in places)

    def at(self, step: int) -> Mixture[T]:
        """The same with the weights of that step for ever."""
        if self.is_constant:
            return self
        weights = self._weights(step)
        parts = [replace(p, weight=w, group=None, within=1.0) for p, w in zip(self.parts, weights, strict=True)]
        frozen = Mixture(parts, self._seed)
        frozen._orders = self._orders
        return frozen

    def shares(self, step: int) -> list[float]:
        """Of each part in the draws of a step."""
        weights = self._weights(step)
        return [weight / sum(weights) for weight in weights]

    def mean_shares(self, steps: int) -> list[float]:
        """Of each part in the draws of the steps 0 to `steps` - 1 together."""
        if self.is_constant:
            return self.shares(0)
        columns = zip(*(self.shares(step) for step in range(steps)), strict=True)
        return [sum(column) / steps for column in columns]

    def _weights(self, step: int) -> list[float]:
        own = [_value(part.within, step) for part in self.parts]
        groups: dict[object, float] = {}
        for index, (part, value) in enumerate(zip(self.parts, own, strict=True)):
            groups[part.group or index] = groups.get(part.group or index, 0.0) + value
        return [
            _value(part.weight, step) * value / (groups[part.group or index] or 1.0)
            for index, (part, value) in enumerate(zip(self.parts, own, strict=True))
        ]

    def _taken(self, step: int, count: int) -> Sequence[int]:
        """How many of the draws of the steps before `step` fell to each part. They add up to step x count, and a step
        more gives no part less."""
        if not self.is_constant:
            if count not in self._plans:
                self._plans = {count: _Plan(self, count)}
            return self._plans[count].before(step)
        # each part in turn takes its rounded share of what the parts before it left
        taken, left = [], step * count
        for share in self._nested:
            taken.append(math.floor(share * left + 0.5))
            left -= taken[-1]
        return taken

    def _at(self, index: int, position: int) -> T:
        part = self.parts[index]
        epoch, place = divmod(position, len(part.items))
        return part.items[self._orders.of(part.name, epoch, len(part.items))[place]]


class _Plan:
    """How many items of each part the first steps take, where weights change: worked out from step 0 on, so that it
    does not depend on what was asked before. After each step, no part is a whole item away from the sum of its shares
    by more than the number of parts."""

    def __init__(self, mixture: Mixture[T], count: int) -> None:
        self._shares = mixture.shares
        self._count = count
        self._owed = [0.0] * len(mixture.parts)
        self._rows: list[array[int]] = [array("q", [0] * len(mixture.parts))]

    def before(self, step: int) -> Sequence[int]:
        while len(self._rows) <= step:
            self._owed = [
                o + self._count * s for o, s in zip(self._owed, self._shares(len(self._rows) - 1), strict=True)
            ]
            given = _whole(self._owed, self._count)
            self._owed = [o - g for o, g in zip(self._owed, given, strict=True)]
            self._rows.append(array("q", [t + g for t, g in zip(self._rows[-1], given, strict=True)]))
        return self._rows[step]


def _whole(owed: Sequence[float], count: int) -> list[int]:
    """Whole numbers that add up to `count`, as near to `owed` as that allows: largest remainders first."""
    given = [max(0, math.floor(value)) for value in owed]
    while (left := count - sum(given)) != 0:
        rest = [value - have for value, have in zip(owed, given, strict=True)]
        if left > 0:
            place = max(range(len(rest)), key=lambda i: (rest[i], -i))
        else:  # a part that was given more than its share takes none, so the others have one too many
            place = min((i for i in range(len(rest)) if given[i]), key=lambda i: (rest[i], i))
        given[place] += 1 if left > 0 else -1
    return given


def _value(weight: Weight, step: int) -> float:
    return weight.at(step) if isinstance(weight, Schedule) else weight


def _positive(weight: Weight) -> bool:
    return any(value > 0 for _, value in weight.points) if isinstance(weight, Schedule) else weight > 0


def _steps(part: Part[T]) -> Iterator[int]:
    for weight in (part.weight, part.within):
        if isinstance(weight, Schedule):
            yield from (step for step, _ in weight.points)


class _Orders:
    """The random order of each part in an epoch; the latest ones are kept, 4 bytes an item."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[str, dict[tuple[int, int], array[int]]] = {}

    def of(self, name: str, epoch: int, size: int) -> array[int]:
        kept = self._kept.setdefault(name, {})
        if (epoch, size) not in kept:
            order = array("I", range(size))
            random.Random(seed_of(self._seed, name, epoch, size)).shuffle(order)
            if len(kept) == 4:
                del kept[min(kept)]
            kept[epoch, size] = order
        return kept[epoch, size]
