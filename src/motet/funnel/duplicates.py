"""Near duplicates: MinHash signatures of word 3-grams, banded, each candidate pair compared exactly before it counts.

With B bands of R numbers, two traces of similarity s (Jaccard) become candidates with probability 1 - (1 - s^R)^B:
0.99 at s = 0.6, 0.001 at s = 0.08 for B = 32 and R = 4. Signatures lie in a file, 512 bytes a trace; bands are gone
through one at a time by sorting, so memory is some tens of bytes a trace, whatever their length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from motet.funnel.words import Hashes, Words, distinct, grams, mix, stream, words

SHINGLE = 3
BANDS, ROWS = 32, 4
SIZE = BANDS * ROWS
Signature = NDArray[np.uint32]
MARGIN = 0.15
"""A pair is compared exactly when its estimated similarity is at most this (3.5 deviations) below the threshold."""
FEW_NUMBERS = 4
BLOCK = 4096
"""Shingles that are hashed at once."""
_FACTORS = (stream(11, SIZE) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_SHIFTS = (stream(12, SIZE) >> np.uint64(32)).astype(np.uint32)


def signature(given: Words) -> Signature:
    """SIZE numbers; equal ones of two texts are the estimate of their similarity."""
    shingles = (grams(given.hashes, SHINGLE) >> np.uint64(32)).astype(np.uint32)
    found = np.full(SIZE, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(shingles), BLOCK):
        values = shingles[None, start : start + BLOCK] * _FACTORS[:, None]
        values += _SHIFTS[:, None]
        np.minimum(found, values.min(axis=1), out=found)
    return found


def similarity(one: Words, other: Words) -> float:
    """Jaccard similarity of the sets of word 3-grams."""
    a, b = (set(grams(item.hashes, SHINGLE).tolist()) for item in (one, other))
    return len(a & b) / len(a | b) if a or b else 1.0


def other_numbers(one: Words, other: Words) -> bool:
    """The same words about other numbers are another problem: fewer than half of the numbers are common."""
    a, b = (Counter(item.hashes[item.numeric].tolist()) for item in (one, other))
    common, total = (a & b).total(), (a | b).total()
    if min(a.total(), b.total()) < FEW_NUMBERS:
        return common == 0 and min(a.total(), b.total()) > 1
    return common < total / 2


def pairs(file: Path, count: int, eligible: NDArray[np.bool_], threshold: float) -> list[tuple[int, int]]:
    """Candidate pairs (earlier row, later row) of a file of `count` signatures, in order of the later row."""
    if count == 0 or int(eligible.sum()) < 2:
        return []
    signatures = np.memmap(file, np.uint32, "r", shape=(count, SIZE))
    rows = np.flatnonzero(eligible)
    keys = np.memmap(file.with_name(file.name + ".bands"), np.uint64, "w+", shape=(BANDS, len(rows)))
    for start in range(0, len(rows), BLOCK):
        keys[:, start : start + BLOCK] = _band_keys(signatures[rows[start : start + BLOCK]])
    found = np.zeros(0, np.uint64)
    for band in range(BANDS):
        new = np.setdiff1d(_neighbours(keys[band], rows), found, assume_unique=False)
        found = np.concatenate([found, new[_alike(signatures, new, threshold - MARGIN)]])
    del keys
    file.with_name(file.name + ".bands").unlink()
    ordered = sorted(((int(pair) & 0xFFFFFFFF, int(pair) >> 32) for pair in found), key=lambda p: (p[1], p[0]))
    return [(a, b) for a, b in ordered]


def duplicates(
    candidates: list[tuple[int, int]], text: Callable[[int], str], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """(row, kept row that it repeats, similarity) in order. A candidate that was itself dropped stands for the row that
    it repeats."""
    original: dict[int, int] = {}
    cache: dict[int, Words] = {}

    def words_of(row: int) -> Words:
        if row not in cache:
            if len(cache) > 256:
                cache.pop(next(iter(cache)))
            cache[row] = words(text(row))
        return cache[row]

    compared: set[int] = set()
    last = -1
    for earlier, row in candidates:
        if row != last:
            compared, last = set(), row
        kept = original.get(earlier, earlier)
        if row in original or kept in compared:
            continue
        compared.add(kept)
        share = similarity(words_of(kept), words_of(row))
        if share >= threshold and not other_numbers(words_of(kept), words_of(row)):
            original[row] = kept
            yield row, kept, share


def _band_keys(signatures: Signature) -> Hashes:
    """[BANDS, rows] hashes of each band's numbers."""
    parts = signatures.reshape(-1, BANDS, ROWS).astype(np.uint64)
    keys: Hashes = np.zeros((BANDS, len(parts)), np.uint64)
    for place in range(ROWS):
        keys = mix(keys + parts[:, :, place].T)
    return keys


def _neighbours(keys: Hashes, rows: NDArray[np.int64]) -> Hashes:
    """Rows with one key, each paired with the one before it and with the first: later row << 32 | earlier row."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not len(equal):
        return np.zeros(0, np.uint64)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    first = starts[np.searchsorted(starts, equal, side="right") - 1]
    later = rows[order[equal]].astype(np.uint64) << np.uint64(32)
    before, opening = (later | rows[order[places]].astype(np.uint64) for places in (equal - 1, first))
    return distinct(np.concatenate([before, opening]))


def _alike(signatures: NDArray[np.uint32], given: Hashes, least: float) -> NDArray[np.bool_]:
    alike = np.zeros(len(given), np.bool_)
    for start in range(0, len(given), BLOCK):
        block = given[start : start + BLOCK]
        a = signatures[(block & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        b = signatures[(block >> np.uint64(32)).astype(np.int64)]
        alike[start : start + BLOCK] = (a == b).mean(axis=1) >= least
    return alike
