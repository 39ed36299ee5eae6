"""Lengths of conversations: the bands that a stage draws by, and the edges by which its loss is reported.

Example: bands up to 4 and 8, conversations of 3, 4, 5 and 8 tokens: the places 0, 1 in the first, 2, 3 in the second.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from motet.base.recipe import LengthBand
from motet.data.mix import Chosen, Part, Weight, weight_of
from motet.data.pack import Sample
from motet.data.store import Store

OCTAVES = 4
"""The loss is reported by so many edges, each twice the one before it, up to the stage's context."""


def edges(longest: int, bands: Sequence[LengthBand] = ()) -> list[int]:
    """Upper ends of the lengths by which a stage's loss is reported: the last four octaves, and its own bands.

    Example: 65,536 gives 8,192, 16,384, 32,768 and 65,536.
    """
    own = {band.up_to for band in bands if band.up_to < longest}
    return sorted(({longest >> shift for shift in range(OCTAVES)} | own) - {0})


def places_by_band(lengths: Iterable[int], ends: Sequence[int]) -> list[array[int]]:
    """Which of the conversations are in each band; a length equal to an end is in the band that it ends."""
    found = [array("I") for _ in ends]
    for place, length in enumerate(lengths):
        band = bisect_left(ends, length)
        if band < len(ends):
            found[band].append(place)
    return found


def parts_of(name: str, group: str, store: Store, weight: Weight, bands: Sequence[LengthBand]) -> list[Part[Sample]]:
    """One part of the mixture for the source `name`, or one for each of its bands, which then share its weight."""
    if not bands:
        return [Part(name, store, weight)]
    found = places_by_band(store.lengths.tolist(), [band.up_to for band in bands])
    return [
        Part(f"{name}/{band.up_to}", Chosen(store, places), weight, group=group, within=weight_of(band.weight))
        for band, places in zip(bands, found, strict=True)
    ]
