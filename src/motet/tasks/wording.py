"""Small writing tasks with checkable constraints: IFEval's ids on a vocabulary of twenty words.

One row: prompt "Write at least 4 words. Say fox at least twice. End with moon.", reference [{"id":
"length_constraints:number_words", "kwargs": {"relation": "at least", "num_words": 4}}, ...], worked solution
{"reasoning": "moon fox fox: fox fox tree moon", "answer": "fox fox tree moon"}: what is demanded, then a draft.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from motet.base.records import Problem, content_id, seed_of
from motet.tasks.worked import TERSE

WORDS = [
    "fox", "tree", "moon", "river", "stone", "cloud", "bird", "lamp", "road", "snow", "fire", "leaf", "star", "wolf",
    "boat", "hill", "rain", "wind", "seed", "bell",
]  # fmt: skip

TIMES = {1: "once", 2: "twice"}


def wording(source: str, seed: int, max_words: int = 6, terse: float = 0.0) -> Iterator[Problem]:
    """Endless; texts of 2 to `max_words` words under two to four constraints; a share `terse` of the worked solutions
    shows no steps."""
    stream = random.Random(seed_of("wording", seed))
    while True:
        prompt, constraints, demands, words = _draw(stream, max_words)
        reasoning = TERSE if stream.random() < terse else f"{' '.join(demands)}: {' '.join(words)}"
        yield Problem(
            id=f"{source}-{content_id(prompt)}",
            messages=({"role": "user", "content": prompt},),
            verifier="instruction",
            reference=constraints,
            domain="instruction",
            source=source,
            metadata={
                "solution": {
                    "reasoning": reasoning,
                    "answer": " ".join(words),
                }
            },
        )


def _draw(stream: random.Random, max_words: int) -> tuple[str, list[dict[str, Any]], list[str], list[str]]:
    """A prompt, its constraints, the words that they demand, and a text: the keyword first, the ending last."""
    keyword, end, forbidden, *others = stream.sample(WORDS, len(WORDS))
    times = stream.randint(1, 2)
    use_end, use_forbidden = stream.random() < 0.5, stream.random() < 0.3
    length = stream.randint(max(2, times + use_end), max(max_words, times + use_end))
    at_least = stream.random() < 0.5
    relation, bound = ("at least", length) if at_least else ("less than", length + 1)
    sentences = [f"Write {relation} {bound} words.", f"Say {keyword} at least {TIMES[times]}."]
    constraints: list[dict[str, Any]] = [
        {"id": "length_constraints:number_words", "kwargs": {"relation": relation, "num_words": bound}},
        {"id": "keywords:frequency", "kwargs": {"keyword": keyword, "frequency": times, "relation": "at least"}},
    ]
    if use_forbidden:
        sentences.append(f"Never say {forbidden}.")
        constraints.append({"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": [forbidden]}})
    if use_end:
        sentences.append(f"End with {end}.")
        constraints.append({"id": "startend:end_checker", "kwargs": {"end_phrase": end}})
    fillers = [stream.choice(others) for _ in range(length - times - use_end)]
    words = [keyword] * times + fillers + [end] * use_end
    return " ".join(sentences), constraints, [end] * use_end + [keyword] * times, words
