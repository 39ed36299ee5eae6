"""Short worked solutions of some reasoning-gym generators: what a student is shown before it can solve any.

A line a step, no step that has to be guessed: each line follows from the one before by one look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Entry = Mapping[str, Any]

TERSE = "Easy."
"""The reasoning of a solution that shows no steps. Data found in the wild mixes terse and careful solutions, all
of them correct; a model that imitates the mixture fails where it skips the steps, and RL finds out that they pay."""


def worked_solution(dataset: str, entry: Entry) -> dict[str, str]:
    """{"reasoning", "answer"}; the reasoning is empty for a generator that has no writer in `SOLUTIONS`."""
    write = SOLUTIONS.get(dataset)
    return {"reasoning": write(entry) if write is not None else "", "answer": f"\\boxed{{{entry['answer']}}}"}


def running_totals(entry: Entry) -> str:
    """ "205 - 838 + 505": "205 - 838 = -633\\n-633 + 505 = -128"."""
    first, *rest = re.findall(r"[+-]|\d+", entry["metadata"]["expression"])
    if first == "-":
        first, rest = "-" + rest[0], rest[1:]
    total, lines = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {after}")
        total = after
    return "\n".join(lines)


def letter_hits(entry: Entry) -> str:
    """The words that hold the letter, each with its count and the running total: "see: 1, 1\\nthree: 1, 2"."""
    letter, total, lines = entry["metadata"]["target_letter"].lower(), 0, []
    for word in entry["metadata"]["span"]:
        hits = word.lower().count(letter)
        if hits:
            total += hits
            lines.append(f"{word}: {hits}, {total}")
    return "\n".join(lines) or f"no word holds {letter}"


def letters_backward(entry: Entry) -> str:
    """ "moon": "1m 2o 3o 4n : 4n 3o 2o 1m": each letter with its place, then the places from the last."""
    return _backward([f"{place}{letter}" for place, letter in enumerate(entry["metadata"]["word"], 1)])


def words_backward(entry: Entry) -> str:
    """ "laws, but, of": "1 laws 2 but 3 of : 3 of 2 but 1 laws": the same with words."""
    return _backward([f"{place} {word}" for place, word in enumerate(entry["metadata"]["words"], 1)])


def _backward(places: list[str]) -> str:
    return f"{' '.join(places)} : {' '.join(reversed(places))}"


SOLUTIONS: dict[str, Callable[[Entry], str]] = {
    "chain_sum": running_totals,
    "letter_counting": letter_hits,
    "spell_backward": letters_backward,
    "word_sequence_reversal": words_backward,
}
