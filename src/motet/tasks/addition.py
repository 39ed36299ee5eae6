"""Column addition: the smallest task whose reasoning matters.

One row: prompt "58 + 467 = ?", reference "525", worked solution {"reasoning": "8+7+0=15 5+6+1=12 0+4+1=05",
"answer": "\\boxed{525}"}: the columns from the right, each as digit + digit + carry = carry digit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from motet.base.records import Problem, content_id, seed_of
from motet.tasks.worked import TERSE


def addition(source: str, seed: int, min_digits: int = 2, max_digits: int = 3, terse: float = 0.0) -> Iterator[Problem]:
    """Endless; both numbers have between `min_digits` and `max_digits` digits; a share `terse` of the worked solutions
    shows no steps."""
    stream = random.Random(seed_of("addition", seed))
    while True:
        a, b = (_number(stream, stream.randint(min_digits, max_digits)) for _ in range(2))
        prompt = f"{a} + {b} = ?"
        reasoning = TERSE if stream.random() < terse else columns(a, b)
        yield Problem(
            id=f"{source}-{content_id(prompt)}",
            messages=({"role": "user", "content": prompt},),
            verifier="math",
            reference=str(a + b),
            domain="math",
            source=source,
            metadata={"solution": {"reasoning": reasoning, "answer": f"\\boxed{{{a + b}}}"}},
        )


def columns(a: int, b: int) -> str:
    """columns(58, 467) == "8+7+0=15 5+6+1=12 0+4+1=05"."""
    steps, carry = [], 0
    for _ in range(max(len(str(a)), len(str(b)))):
        total = a % 10 + b % 10 + carry
        steps.append(f"{a % 10}+{b % 10}+{carry}={total:02d}")
        a, b, carry = a // 10, b // 10, total // 10
    return " ".join(steps)


def _number(stream: random.Random, digits: int) -> int:
    return stream.randrange(10 ** (digits - 1), 10**digits)
