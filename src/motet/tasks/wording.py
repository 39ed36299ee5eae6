"""Small writing tasks with checkable constraints: IFEval's ids on a vocabulary of twenty words.

One row: prompt "Write at least 4 words. Say fox at least 2 times. End with moon.", reference [{"id":
"length_constraints:number_words", "kwargs": {"relation": "at least", "num_words": 4}}, ...], worked solution
{"reasoning": "1 fox 2 tree 3 fox 4 moon", "answer": "fox tree fox moon"}.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from motet.base.records import Problem, content_id, seed_of

WORDS = (
    "fox tree moon river stone cloud bird lamp road snow fire leaf star wolf boat hill rain wind seed bell"
).split()

TIMES = {1: "once", 2: "twice"}


def wording(source: str, seed: int, max_words: int = 6) -> Iterator[Problem]:
    """Endless; texts of 2 to `max_words` words under two to four constraints."""
    stream = random.Random(seed_of("wording", seed))
    while True:
        prompt, constraints, words = _draw(stream, max_words)
        yield Problem(
            id=f"{source}-{content_id(prompt)}",
            messages=({"role": "user", "content": prompt},),
            verifier="instruction",
            reference=constraints,
            domain="instruction",
            source=source,
            metadata={
                "solution": {
                    "reasoning": f"{len(words)} words: " + " ".join(words),
                    "answer": " ".join(words),
                }
            },
        )


def _draw(stream: random.Random, max_words: int) -> tuple[str, list[dict[str, Any]], list[str]]:
    keyword, end, *forbidden = stream.sample(WORDS, 3)
    times = stream.randint(1, 2)
    use_end, use_forbidden, upper = (stream.random() < p for p in (0.5, 0.4, 0.2))
    floor = times + use_end
    length = stream.randint(max(2, floor), max(max_words, floor))
    at_least = stream.random() < 0.5
    bound = length if at_least else length + 1
    relation = "at least" if at_least else "less than"
    sentences = [f"Write {relation} {bound} words.", f"Say {keyword} at least {TIMES[times]}."]
    constraints: list[dict[str, Any]] = [
        {"id": "length_constraints:number_words", "kwargs": {"relation": relation, "num_words": bound}},
        {"id": "keywords:frequency", "kwargs": {"keyword": keyword, "frequency": times, "relation": "at least"}},
    ]
    if use_forbidden:
        sentences.append(f"Never say {forbidden[0]}.")
        constraints.append({"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": list(forbidden)}})
    if use_end:
        sentences.append(f"End with {end}.")
        constraints.append({"id": "startend:end_checker", "kwargs": {"end_phrase": end}})
    if upper:
        sentences.append("Use capital letters.")
        constraints.append({"id": "change_case:english_capital", "kwargs": {}})
    allowed = [w for w in WORDS if w not in forbidden] if use_forbidden else list(WORDS)
    words = [keyword] * times + [stream.choice(allowed) for _ in range(length - times - use_end)]
    stream.shuffle(words)
    words += [end] * use_end
    return " ".join(sentences), constraints, [w.upper() for w in words] if upper else words
