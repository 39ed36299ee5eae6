"""Problems of a set on disk: what is in memory of a million is where each begins, its domain and its side::

problems = stored(found, folder)        # Iterable[Problem] -> Problems
problems[17].id                         # read from disk
problems.by_domain()["math"]            # Problems too
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from motet.base.records import Problem, content_id, decode_problem, encode
from motet.base.shelf import Shelf


class Kind(NamedTuple):
    domain: str
    verifier: str


class Shelved:
    """Problems as they were added, with the kind of each."""

    def __init__(self, folder: Path | None = None) -> None:
        self.items: Shelf[Problem] = Shelf(encode, decode_problem, folder)
        self.kinds: list[Kind] = []
        self.kind_of = array("I")
        """Of each problem, which of `kinds`."""
        self._number: dict[Kind, int] = {}

    def add(self, problem: Problem) -> None:
        kind = Kind(problem.domain, problem.verifier)
        if kind not in self._number:
            self._number[kind] = len(self.kinds)
            self.kinds.append(kind)
        self.kind_of.append(self._number[kind])
        self.items.add(problem)


class Problems(Sequence[Problem]):
    """Some of the problems that were shelved, in an order of their own."""

    def __init__(self, shelved: Shelved, places: array[int]) -> None:
        self._shelved = shelved
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Problems: ...
    def __getitem__(self, index: int | slice) -> Problem | Problems:
        if isinstance(index, slice):
            return Problems(self._shelved, self._places[index])
        return self._shelved.items[self._places[index]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Problems) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def by_domain(self) -> dict[str, Problems]:
        """In order of name; the order inside a domain is the order here."""
        found: dict[str, array[int]] = {}
        for place in self._places:
            domain = self._shelved.kinds[self._shelved.kind_of[place]].domain
            found.setdefault(domain, array("I")).append(place)
        return {domain: Problems(self._shelved, places) for domain, places in sorted(found.items())}

    def verifiers(self) -> set[str]:
        return {self._shelved.kinds[number].verifier for number in {self._shelved.kind_of[p] for p in self._places}}


def stored(problems: Iterable[Problem], folder: Path | None = None) -> Problems:
    """All of them, in order; the file lies in `folder` and has no name."""
    shelved = Shelved(folder)
    for problem in problems:
        shelved.add(problem)
    return Problems(shelved, array("I", range(len(shelved.items))))


def rank(split_key: str) -> float:
    """Where a split key lies between 0 and 1: below the held-out share it is held out."""
    return float(int(content_id("heldout", split_key), 16) / 16**16)


def heldout(ranks: Sequence[float], share: float) -> bytearray:
    """Of each problem, by the rank of its split key, 1 where it is held out: about `share` of the keys, each by its own
    hash; at least one key on each side where that is possible."""
    sides = bytearray(value < share for value in ranks)
    if 0.0 < share < 1.0 and len(sides) and min(ranks) < max(ranks):
        if not any(sides):
            first = min(ranks)
            return bytearray(value == first for value in ranks)
        if all(sides):
            last = max(ranks)
            return bytearray(value < last for value in ranks)
    return sides


class Digests:
    """A set of 64-bit numbers, in 16 to 32 bytes each: a table with open addressing, at most half full."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 << 10))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return bool(self._slots[self._place(number or 1)])

    def add(self, number: int) -> bool:
        """Whether it is new. 0 counts as 1: an empty place is 0."""
        if 2 * self._count >= len(self._slots):
            held, self._slots, self._count = self._slots, array("Q", bytes(16 * len(self._slots))), 0
            for known in held:
                if known:
                    self._put(known)
        return self._put(number or 1)

    def _put(self, number: int) -> bool:
        place = self._place(number)
        if self._slots[place]:
            return False
        self._slots[place] = number
        self._count += 1
        return True

    def _place(self, number: int) -> int:
        """Where the number stands, or the empty place where it would."""
        slots = self._slots
        mask = len(slots) - 1
        place = number & mask
        while slots[place] and slots[place] != number:
            place = (place + 1) & mask
        return place
