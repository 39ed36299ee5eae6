"""Texts as arrays of 64-bit word hashes: what repetition, duplicates and contamination are counted with.

    words("12 apples, 3x").hashes   ->  4 hashes: "12", "apples", "3", "x"

A word is a run of letters or a run of digits, in lower case; punctuation and signs separate. A character of a script
without spaces (Han, kana, Hangul) is a word of its own. Equal words have equal hashes on every machine; different ones
have the same hash once in 2^64 pairs. N words, G = N - size + 1 grams.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
POSITIONS = 64
"""Places in a word that have random numbers of their own; a longer word begins again with the first."""
_NOT_WORD = re.compile(r"[^\w\s]|_")
_ALONE = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half twice"
)


class Words(NamedTuple):
    hashes: Hashes
    """N."""
    numeric: NDArray[np.bool_]
    """N: the word is a run of digits."""

    def __len__(self) -> int:
        return len(self.hashes)


def mix(values: Hashes) -> Hashes:
    """Scatters 64-bit numbers (the finaliser of SplitMix64); a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def stream(seed: int, count: int) -> Hashes:
    """`count` fixed random numbers."""
    return mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed))


def _classes() -> NDArray[np.uint8]:
    """Of each byte: 0 separates, 1 is a letter (or part of one), 2 a digit."""
    table = np.zeros(256, np.uint8)
    table[ord("a") : ord("z") + 1] = 1
    table[128:] = 1
    table[ord("0") : ord("9") + 1] = 2
    return table


_CLASS = _classes()
_TABLE = stream(1, 256 * POSITIONS)
_FACTORS = stream(2, 64) | np.uint64(1)
_EMPTY = Words(np.zeros(0, np.uint64), np.zeros(0, np.bool_))


def words(text: str) -> Words:
    """All words of a text, in order."""
    text = text.lower()
    if not text.isascii():
        text = _ALONE.sub(r" \1 ", _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text)))
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    classes = _CLASS[data]
    inside = classes != 0
    first = inside.copy()
    first[1:] &= classes[1:] != classes[:-1]
    starts = np.flatnonzero(first)
    if not len(starts):
        return _EMPTY
    places = np.cumsum(inside)[starts] - 1  # of each start among the bytes of words
    kept = data[inside].astype(np.int64)
    lengths = np.diff(places, append=len(kept))
    offsets = (np.arange(len(kept)) - np.repeat(places, lengths)) % POSITIONS
    hashes = np.add.reduceat(_TABLE[kept * POSITIONS + offsets], places)
    return Words(mix(hashes), classes[starts] == 2)


def grams(hashes: Hashes, size: int) -> Hashes:
    """G hashes of all runs of `size` words (at most 64); none where the text is shorter."""
    count = len(hashes) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = hashes[:count] * _FACTORS[0]
    for place in range(1, size):
        total += hashes[place : place + count] * _FACTORS[place]
    return mix(total)


_MASK = np.uint64(0x6D6F746574)
_NUMBER_WORDS = np.sort(np.concatenate([words(word).hashes for word in NUMBERS.split()]))


class Masked(NamedTuple):
    hashes: Hashes
    """Every run of numbers, in digits or words, is one and the same word."""
    places: NDArray[np.int64]
    """Where each stood among the words as they were."""
    numeric: NDArray[np.bool_]


def masked(given: Words) -> Masked:
    """ "12 apples, 3.50 each" and "seven apples, 4 each" are the same afterwards."""
    found = np.searchsorted(_NUMBER_WORDS, given.hashes)
    numeric = given.numeric | (_NUMBER_WORDS[np.minimum(found, len(_NUMBER_WORDS) - 1)] == given.hashes)
    keep = np.ones(len(given), np.bool_)
    keep[1:] = ~(numeric[1:] & numeric[:-1])
    places = np.flatnonzero(keep)
    return Masked(np.where(numeric, _MASK, given.hashes)[places], places, numeric[places])


def distinct(values: Hashes) -> Hashes:
    """Each value once, in order; many times faster than numpy.unique on some thousands."""
    ordered = np.sort(values)
    keep = np.ones(len(ordered), np.bool_)
    keep[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(ordered[keep], np.uint64)


def repeated_share(hashes: Hashes, size: int) -> float:
    """Share of the grams that occurred before."""
    found = np.sort(grams(hashes, size))
    return np.count_nonzero(found[1:] == found[:-1]) / len(found) if len(found) else 0.0


def periodic_tail(hashes: Hashes, longest: int = 40) -> int:
    """Words at the end that repeat with a period of at most `longest` words, the first turn left out: 4 for
    "so a b a b a b"."""
    most = 0
    for period in np.flatnonzero(hashes[::-1][1 : longest + 1] == hashes[-1:]) + 1:
        different = np.flatnonzero(hashes[period:] != hashes[:-period])
        most = max(most, len(hashes) - int(period) - (int(different[-1]) + 1 if len(different) else 0))
    return most


def text_hash(text: str) -> int:
    """Of a text without its case and spacing, for exact comparison."""
    import hashlib

    plain = " ".join(text.lower().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")
