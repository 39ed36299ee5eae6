"""Evaluation questions in training rows: thirteen words in a row, rare runs of eight, and the same with other numbers.

Three rules, each on prompt and trace:

    contamination_13        13 words of a question in a row
    contamination_8         runs of 8 words that cover a share of the question, phrases left out
    contamination_numbers   the same after every number, in digits or words, is made equal

Five words in a row that several evaluation questions share are their template (a task that they repeat, a turn of
phrase), and a longer run that is template by more than half says nothing. A run of eight is a phrase, too, when many
different training prompts hold it (the rarity guard); that is known when all rows were read, so the last two rules are
decided then (`Decision`). A row whose prompt is a question from beginning to end is dropped whatever its words; a
question of fewer than eight words is found in no other way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from motet.base.records import Problem
from motet.funnel.candidate import View
from motet.funnel.words import Hashes, Words, distinct, grams, masked, text_hash, words

LONG, SHORT, TEMPLATE = 13, 8, 5
DISTINCT = {LONG: 6, SHORT: 5}
"""Different words that a run must have: "1 1 1 1 ..." is no question."""
REAL_WORDS = 5
"""Words other than numbers in a run of eight with masked numbers."""
TEMPLATE_SHARE, TEMPLATE_LEAST = 0.02, 3
"""A run in more than this share of a set's questions, and in at least so many, is its template. Instances that
share a `split_key` count as one question."""
PHRASE_LEAST = 4
"""The rarity guard begins at so many different prompts."""
MOST_HITS = 2000
"""Of one row and rule."""
SHOWN = 300


class Question(NamedTuple):
    label: str
    """SET/ID."""
    text: str
    length: int
    """Words that lie in runs of eight which say something; below the same after masking."""
    masked_length: int


class Table(NamedTuple):
    """Runs of one size: which question holds each, and where. P places of R different runs."""

    runs: Hashes
    """R, sorted."""
    first: NDArray[np.int64]
    """R + 1: the places of run r are first[r]..first[r + 1]."""
    question: NDArray[np.int32]
    """P."""
    place: NDArray[np.int32]
    """P: in words of the question (of the masked question)."""
    sieve: NDArray[np.bool_]
    """By the low bits of a hash: False where no run has them. It answers nearly all look-ups."""

    def find(self, hashes: Hashes) -> NDArray[np.int64]:
        """Indices of the runs that occur among `hashes`, each once."""
        if not len(self.runs) or not len(hashes):
            return np.zeros(0, np.int64)
        maybe = hashes[self.sieve[(hashes & np.uint64(len(self.sieve) - 1)).astype(np.int64)]]
        if not len(maybe):
            return np.zeros(0, np.int64)
        found = np.minimum(np.searchsorted(self.runs, maybe), len(self.runs) - 1)
        return np.asarray(sorted(set(found[self.runs[found] == maybe].tolist())), np.int64)


class Hits(NamedTuple):
    """What of one row the last two rules decide on: indices of runs."""

    short: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Index:
    """The evaluation questions; picklable, for the processes that read rows."""

    def __init__(self, sets: Mapping[str, Sequence[Problem]]) -> None:
        self.questions: list[Question] = []
        self.whole: dict[int, int] = {}
        """Hash of a question to its number."""
        long, short, numbers = _Builder(LONG), _Builder(SHORT), _Builder(SHORT, masked=True)
        for name, problems in sets.items():
            plain = [item for problem in problems if (item := self._asked(name, problem)) is not None]
            long.add(plain)
            short.add(plain)
            numbers.add([_masked(item) for item in plain if item.numeric.any()])
        covered = short.lengths(len(self.questions)), numbers.lengths(len(self.questions))
        self.questions = [
            q._replace(length=a, masked_length=b) for q, a, b in zip(self.questions, *covered, strict=True)
        ]
        self.long, self.short, self.numbers = long.table(), short.table(), numbers.table()

    def _asked(self, name: str, problem: Problem) -> _Asked | None:
        """None for a question that is too short for runs; it is known by its whole text then."""
        text = "\n".join(m["content"] for m in problem.messages if m["role"] == "user")
        found, number = words(text), len(self.questions)
        self.questions.append(Question(f"{name}/{problem.id}", text[:SHOWN], 0, 0))
        self.whole.setdefault(text_hash(text), number)
        if len(found) < SHORT:
            return None
        return _Asked(number, str(problem.metadata.get("split_key", problem.id)), found.hashes, found.numeric)

    def __len__(self) -> int:
        return len(self.questions)

    def long_hit(self, view: View) -> str | None:
        """Why the row is dropped at once: thirteen words in a row, or a whole question as its prompt."""
        for place, found in _texts(view):
            runs = self.long.find(grams(found.hashes, LONG))
            if len(runs):
                question = self.questions[int(self.long.question[self.long.first[runs[0]]])]
                return f"{LONG} words of {question.label} in its {place}: {question.text}"
        if self.whole:
            for message in view.candidate.messages:
                number = self.whole.get(text_hash(message["content"])) if message["role"] == "user" else None
                if number is not None:
                    return f"its prompt is {self.questions[number].label}: {self.questions[number].text}"
        return None

    def hits(self, view: View) -> Hits:
        short, numbers = [], []
        for _, found in _texts(view):
            short.append(self.short.find(grams(found.hashes, SHORT)))
            if len(self.numbers.runs):
                numbers.append(self.numbers.find(grams(masked(found).hashes, SHORT)))
        return Hits(_union(short), _union(numbers))


class Decision:
    """The last two rules, when all rows were read: which runs are phrases, and what the others cover.

    `prompts` has one number for each row, equal for equal prompts; a hit is (row, run).
    """

    def __init__(self, index: Index, numbers: bool, hits: Hits, prompts: Hashes, common_share: float) -> None:
        self.index = index
        self.table = index.numbers if numbers else index.short
        self.lengths = [q.masked_length if numbers else q.length for q in index.questions]
        rows, runs = hits
        limit = max(PHRASE_LEAST, common_share * len(distinct(prompts)))
        # a run and a prompt in one number: a prompt that many rows have counts once
        pairs = distinct((runs.astype(np.uint64) << np.uint64(32)) | (prompts[rows] >> np.uint64(32)))
        counts = np.bincount((pairs >> np.uint64(32)).astype(np.int64), minlength=len(self.table.runs))
        rare = counts[runs] < limit
        self.phrases = int((counts >= limit).sum())
        order = np.argsort(rows[rare], kind="stable")
        self.rows, self.runs = rows[rare][order], runs[rare][order]

    def found(self, share: float) -> Iterator[tuple[int, str]]:
        """(row, why) of every contaminated row, in order."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(self.rows))[: len(starts)], strict=True):
            best = self._covered(self.runs[start:end])
            if best is not None and best[0] >= share:
                question = self.index.questions[best[1]]
                yield int(self.rows[start]), f"{best[0]:.0%} of {question.label}: {question.text}"

    def _covered(self, runs: NDArray[np.int64]) -> tuple[float, int] | None:
        """The question of which the runs cover most words: (share, number)."""
        places: defaultdict[int, set[int]] = defaultdict(set)
        for run in runs:
            for at in range(self.table.first[run], self.table.first[run + 1]):
                places[int(self.table.question[at])].add(int(self.table.place[at]))
        best: tuple[float, int] | None = None
        for number, starts in places.items():
            covered = len({start + k for start in starts for k in range(SHORT)})
            best = max(best or (0.0, number), (covered / max(1, self.lengths[number]), number))
        return best


class _Asked(NamedTuple):
    """A question as an array of word hashes."""

    number: int
    source: str
    hashes: Hashes
    numeric: NDArray[np.bool_]


def _own_words(asked: Sequence[_Asked]) -> list[NDArray[np.bool_]]:
    """Of each question of one set, which words lie in no run of five that is the set's template."""
    holders: defaultdict[int, set[str]] = defaultdict(set)
    runs = [grams(item.hashes, TEMPLATE).tolist() for item in asked]
    for item, own in zip(asked, runs, strict=True):
        for run in own:
            holders[run].add(item.source)
    limit = max(TEMPLATE_LEAST, TEMPLATE_SHARE * len({item.source for item in asked}))
    found = []
    for item, own in zip(asked, runs, strict=True):
        mine = np.ones(len(item.hashes), np.bool_)
        for place, run in enumerate(own):
            if len(holders[run]) >= limit:
                mine[place : place + TEMPLATE] = False
        found.append(mine)
    return found


class _Builder:
    """The runs of all questions of one size and kind."""

    def __init__(self, size: int, masked: bool = False) -> None:
        self._size = size
        self._masked = masked
        self._runs: list[tuple[int, Hashes, NDArray[np.int64]]] = []
        """(question, runs, places)"""

    def add(self, asked: Sequence[_Asked]) -> None:
        for item, mine in zip(asked, _own_words(asked), strict=True):
            if len(item.hashes) >= self._size:
                places = np.flatnonzero(self._says_something(item, mine))
                self._runs.append((item.number, grams(item.hashes, self._size)[places], places))

    def _says_something(self, asked: _Asked, mine: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of each run: enough different words, and at least half of them the question's own."""
        windows = np.sort(sliding_window_view(asked.hashes, self._size), axis=1)
        different = (np.diff(windows, axis=1) != 0).sum(axis=1) + 1
        own = sliding_window_view(mine, self._size).sum(axis=1)
        good = (different >= DISTINCT[self._size]) & (2 * own >= self._size)
        if self._masked:
            numbers = sliding_window_view(asked.numeric, self._size).sum(axis=1)
            good &= numbers <= self._size - REAL_WORDS
        return np.asarray(good, np.bool_)

    def lengths(self, questions: int) -> list[int]:
        """Of each question, how many words lie in its runs."""
        found = [0] * questions
        for number, _, places in self._runs:
            found[number] = len({int(place) + k for place in places for k in range(self._size)})
        return found

    def table(self) -> Table:
        filled = [item for item in self._runs if len(item[1])]
        if not filled:
            nothing = np.zeros(0, np.int32)
            return Table(np.zeros(0, np.uint64), np.zeros(1, np.int64), nothing, nothing, np.zeros(1, np.bool_))
        runs = np.concatenate([runs for _, runs, _ in filled])
        owner = np.concatenate([np.full(len(runs), number, np.int32) for number, runs, _ in filled])
        place = np.concatenate([places for _, _, places in filled]).astype(np.int32)
        order = np.argsort(runs, kind="stable")
        runs = runs[order]
        starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
        sieve = np.zeros(1 << max(16, (16 * len(starts)).bit_length()), np.bool_)
        sieve[(runs & np.uint64(len(sieve) - 1)).astype(np.int64)] = True
        return Table(runs[starts], np.append(starts, len(runs)).astype(np.int64), owner[order], place[order], sieve)


def _masked(asked: _Asked) -> _Asked:
    found = masked(Words(asked.hashes, asked.numeric))
    return asked._replace(hashes=found.hashes, numeric=found.numeric)


def _texts(view: View) -> tuple[tuple[str, Words], tuple[str, Words]]:
    return ("prompt", view.prompt_words), ("trace", view.trace_words)


def _union(found: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    filled = [runs for runs in found if len(runs)]
    if not filled:
        return np.zeros(0, np.int64)
    return np.asarray(sorted(set(np.concatenate(filled).tolist()))[:MOST_HITS], np.int64)
