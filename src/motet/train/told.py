"""Figures of a step that are still on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch


class Told(Mapping[str, float]):
    """Sums divided by a count, as floats by name. All are fetched when the first is read, which waits for the device;
    until then what follows can be queued."""

    def __init__(self, totals: Mapping[str, torch.Tensor], count: int) -> None:
        self._totals, self._count = totals, count

    def __getitem__(self, name: str) -> float:
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._totals)

    def __len__(self) -> int:
        return len(self._totals)

    @cached_property
    def _read(self) -> dict[str, float]:
        values = torch.stack(list(self._totals.values())).tolist() if self._totals else []
        return {name: value / self._count for name, value in zip(self._totals, values, strict=True)}
