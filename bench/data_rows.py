"""Made-up conversations with traces for bench/data_funnel.py: mathematics, programs and talk, 200 to 2,000 words each.

Sentences are of two kinds: phrases that thousands of rows share word by word, and sentences of nouns, verbs and numbers
drawn anew (words by rank, as in natural text: the r-th word with weight 1 / r). A row is a function of its number.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

Row = dict[str, Any]
SYLLABLES = [a + b for a in ("b", "br", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "st", "t", "v", "w") for b in
             ("a", "ea", "i", "o", "ou", "u", "al", "en", "ir", "or")]  # fmt: skip
PHRASES = [
    "Let me read the question once more and write down what is given and what is asked.",
    "Before I go on I want to make sure that I have not missed any of the conditions.",
    "This looks right, but let me check it again with a small example by hand.",
    "Wait, that does not agree with what I had before, so let me look at the last step again.",
    "Putting all of this together gives the result that we were looking for.",
    "There is another way to see this which does not need any of the above.",
    "First I will handle the simple case and then come back to the general one.",
    "So far everything is consistent with the numbers that were given in the problem.",
    "I should double check the units here because it is easy to mix them up.",
    "Now that the main idea is clear the rest is a matter of careful bookkeeping.",
    "One could also argue by symmetry, but the direct computation is short enough.",
    "In other words, the total does not depend on the order in which we count.",
]
TASKS = [
    "How many {a} are left at the end of the day if nothing else happens in between?",
    "Find the total number of {a} that they have after all of the trades are done.",
    "What is the largest number of {a} that can be packed without breaking any of the rules?",
    "Reason step by step and put the final answer in \\boxed{{}}.",
]
SHAPES = [
    "The {a} {v} the {b} near {n} {c}.", "Every {a} has {n} {b} and {n} {c}.", "{n} {a} {v} a {b} before the {c}.",
    "If the {a} {v} {n} {b}, then the {c} {v} the {d}.", "We know that {a} and {b} {v} {n} {c} together.",
    "Because {a} {v} {b}, each {c} costs {n} {d}.", "A {a} with {n} {b} {v} the {c} of the {d}.",
    "Then {n} {a} go to the {b} and the {c} {v} the rest.", "Between {n} and {n} {a} the {b} {v} no {c}.",
]  # fmt: skip


def vocabulary(count: int = 6000) -> list[str]:
    stream = random.Random("vocabulary")
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(stream.choices(SYLLABLES, k=stream.choice([1, 2, 2, 3])))] = None
    return list(found)


WORDS = vocabulary()
_RANKS = [1.0 / (rank + 10) for rank in range(len(WORDS))]
_CUMULATIVE = list(accumulate(_RANKS))


def draw(stream: random.Random, count: int) -> list[str]:
    return stream.choices(WORDS, cum_weights=_CUMULATIVE, k=count)


def sentence(stream: random.Random) -> str:
    a, b, c, d, v, w = draw(stream, 6)
    text = stream.choice(SHAPES).replace("{v}", v, 1).format(a=a, b=b, c=c, d=d, v=w, n="{n}")
    return re.sub(r"\{n\}", lambda _: str(stream.randint(2, 999)), text)


def sum_of(stream: random.Random) -> str:
    x, y = stream.randint(2, 999), stream.randint(2, 999)
    return stream.choice(
        [f"So {x} + {y} = {x + y}.", f"This is {x} * {y} = {x * y}.", f"We get ${x} + {y} = {x + y}$."]
    )


def program(stream: random.Random) -> str:
    names = draw(stream, 4)
    lines = [f"def {names[0]}({names[1]}, {names[2]}):"]
    for _ in range(stream.randint(3, 12)):
        lines.append(f"    {names[3]} = {stream.choice(names)} {stream.choice('+-*')} {stream.randint(1, 99)}")
    return "```python\n" + "\n".join([*lines, f"    return {names[3]}"]) + "\n```"


def question(stream: random.Random, sentences: int = 5) -> str:
    """A problem: sentences of its own, then one of a few tasks that all problems share."""
    told = [sentence(stream) for _ in range(sentences)]
    return " ".join([*told, stream.choice(TASKS[:3]).format(a=draw(stream, 1)[0]), TASKS[3].format()])


def trace(stream: random.Random, length: int, extra: Callable[[random.Random], str]) -> list[str]:
    found: list[str] = []
    words = 0
    while words < length:
        kind = stream.random()
        text = stream.choice(PHRASES) if kind < 0.12 else extra(stream) if kind < 0.25 else sentence(stream)
        found.append(text)
        words += len(text.split())
    return found


def row(number: int, seed: int = 1) -> Row:
    stream = random.Random(f"{seed}/{number}")
    length = int(200 * 10 ** stream.random())
    domain = stream.choices(["math", "code", "talk"], [5, 3, 2])[0]
    if domain == "math":
        prompt, steps = question(stream, stream.randint(2, 7)), trace(stream, length, sum_of)
        answer = f"The answer is $\\boxed{{{stream.randint(2, 99999)}}}$."
    elif domain == "code":
        prompt = "Write a function. " + " ".join(sentence(stream) for _ in range(3))
        steps, answer = trace(stream, length, lambda s: sentence(s) + " " + sum_of(s)), program(stream)
    else:
        prompt, steps = " ".join(sentence(stream) for _ in range(2)), trace(stream, length, sentence)
        answer = " ".join(sentence(stream) for _ in range(6))
    return made(prompt, paragraphs(stream, steps), answer, domain)


def paragraphs(stream: random.Random, sentences: Sequence[str]) -> str:
    return "".join(text + ("\n\n" if stream.random() < 0.2 else " ") for text in sentences).strip()


def made(prompt: str, reasoning: str, answer: str, domain: str) -> Row:
    turn = {"role": "assistant", "reasoning_content": reasoning, "content": answer}
    return {"messages": [{"role": "user", "content": prompt}, turn], "domain": domain}


# ---- what is planted


def edited(given: Row, share: float, stream: random.Random) -> Row:
    """The row with a share of its words replaced, left out or doubled by a new one, wherever they stand."""
    prompt, turn = given["messages"]

    def edit(text: str) -> str:
        parts = re.split(r"(\s+)", text)
        places = [at for at, part in enumerate(parts) if part.strip()]
        for at in stream.sample(places, min(len(places), round(share * len(places)))):
            new = str(stream.randint(2, 999)) if parts[at].isdigit() else draw(stream, 1)[0]
            parts[at] = stream.choice([new, new, "", f"{parts[at]} {new}"])
        return "".join(parts)

    return made(edit(prompt["content"]), edit(turn["reasoning_content"]), edit(turn["content"]), given["domain"])


def other_numbers(text: str, stream: random.Random) -> str:
    return re.sub(r"\d+", lambda _: str(stream.randint(2, 999)), text)


def contaminated(kind: str, asked: str, number: int, stream: random.Random) -> Row:
    """A row of its own with an evaluation question: as its prompt, or in the midst of its trace; with the question's
    numbers or with others; "phrase": only the sentences that many questions and rows share."""
    own = row(number, seed=2)
    prompt, turn = own["messages"]
    text = other_numbers(asked, stream) if kind.endswith("numbers") else asked
    if kind.startswith("prompt"):
        return made(text, turn["reasoning_content"], turn["content"], own["domain"])
    if kind == "phrase":
        text = " ".join(
            [stream.choice(PHRASES), stream.choice(TASKS[:3]).format(a=draw(stream, 1)[0]), TASKS[3].format()]
        )
    steps = turn["reasoning_content"].split(". ")
    middle = len(steps) // 2
    reasoning = ". ".join([*steps[:middle], f"A problem that I know says: {text} I will use it here", *steps[middle:]])
    return made(prompt["content"], reasoning, turn["content"], own["domain"])
