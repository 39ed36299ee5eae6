"""Word problems of the first school years: a few sums told as a story, with worked solutions.

One row: prompt "Nora has 42 stickers. Nora gives 17 of them to Omar. Then the number of stickers triples. Nora puts
them into boxes of 5. How many boxes are full at the end?\\nPut ...", reference "15", worked solution {"reasoning":
"42 - 17 = 25\\n25 * 3 = 75\\n75 / 5 = 15", "answer": "\\boxed{15}"}, split key: the sentences without their names,
things and numbers, so that what is held out are stories that were never told, and not known ones with other numbers.

For models to which the templates of gsm_symbolic are closed: those take two to eight steps, most of them with
fractions, rates or units.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from motet.base.errors import UserError
from motet.base.records import Problem, content_id, seed_of
from motet.tasks.worked import TERSE

INSTRUCTION = "Put the final number in \\boxed{}."
NAMES = ("Nora", "Omar", "Lena", "Igor", "Mei", "Paul", "Zoe", "Amir", "Ruth", "Tom", "Ines", "Karl", "Yuki", "Ben")
THINGS = (
    "stickers", "marbles", "shells", "coins", "stamps", "beads", "cards", "pencils", "apples", "books", "buttons",
    "stones", "balloons", "cookies", "candles", "seeds",
)  # fmt: skip
PLUS = (
    "{a} buys {x} more.", "{b} gives {a} {x} {things}.", "Then {a} finds {x} {things}.", "{a} wins {x} {things}.",
    "The next day {x} more {things} arrive.", "{a} is handed {x} {things} by a neighbour.",
    "For a birthday {a} gets another {x}.", "{a} picks up {x} more on the way home.",
)  # fmt: skip
MINUS = (
    "{a} gives {x} of them to {b}.", "{a} sells {x} {things}.", "{x} of them get lost.", "{b} borrows {x} {things}.",
    "{a} leaves {x} of them at school.", "{x} {things} break and are thrown away.", "{a} uses {x} of them.",
    "On the way {a} drops {x} {things}.",
)  # fmt: skip
TIMES = (
    "Then the number of {things} {grows}.", "A month later {a} has {x} times as many.",
    "{a} trades each of them for {x} smaller {things}.",
)  # fmt: skip
DIVIDED = (
    "{a} gives away all but one in {x} of them.", "Only one of every {x} {things} is kept.",
)  # fmt: skip
GROWS = {2: "doubles", 3: "triples"}
LEFT = (
    "How many {things} does {a} have now?",
    "How many {things} are there in the end?",
    "How many does {a} have left?",
)
WORTH = (
    "Each is worth {x} cents. How many cents are all of them worth?",
    "{a} sells them all for {x} dollars each. How many dollars does {a} get?",
    "It takes {x} minutes to paint one. How many minutes does it take to paint them all?",
)  # fmt: skip
SHARED = (
    "{a} puts them into boxes of {x}. How many boxes are full at the end?",
    "{a} shares them equally among {x} children. How many does each child get?",
    "{a} lays them out in {x} equal rows. How many are in one row?",
)  # fmt: skip
COMPARED = (
    "{b} has {x} more than {a}. How many do they have together?",
    "{b} has {x} {things} more. How many {things} do the two have in all?",
)  # fmt: skip


def stories(
    source: str,
    seed: int,
    min_steps: int = 1,
    max_steps: int = 3,
    largest: int = 100,
    instruction: str = INSTRUCTION,
    terse: float = 0.0,
) -> Iterator[Problem]:
    """Endless; a story takes `min_steps` to `max_steps` sums, no result of which passes 10 x `largest`; numbers that
    are told are at most `largest`; a share `terse` of the worked solutions shows no sums. Raises UserError for steps or
    numbers that leave nothing to tell."""
    if not 1 <= min_steps <= max_steps:
        raise UserError(f"stories: min_steps = {min_steps}, max_steps = {max_steps}: give 1 <= min_steps <= max_steps")
    if largest < 10:
        raise UserError(f"stories: largest = {largest} leaves no room for sums; give 10 or more")
    stream = random.Random(seed_of("stories", seed))
    while True:
        told = _Story(stream, largest)
        if told.tell(stream.randint(min_steps, max_steps)):
            prompt = f"{' '.join(told.sentences)}\n{instruction}".strip()
            reasoning = TERSE if seed_of("terse", prompt) < terse * 2**63 else "\n".join(told.sums)
            yield Problem(
                id=f"{source}-{content_id(prompt)}",
                messages=({"role": "user", "content": prompt},),
                verifier="math",
                reference=str(told.value),
                domain="math",
                source=source,
                metadata={
                    "split_key": "stories/" + content_id(*told.template),
                    "solution": {"reasoning": reasoning, "answer": f"\\boxed{{{told.value}}}"},
                },
            )


@dataclass(frozen=True, slots=True)
class _Turn:
    """One way in which a story goes on: sentences, the operand for the value so far, the sums that follow from both."""

    sentences: tuple[str, ...]
    draw: Callable[[random.Random, int, int], int | None]
    """(stream, value, largest) -> operand; None when there is none."""
    sums: Callable[[int, int], Sequence[tuple[int, str, int]]]
    """(value, operand) -> (left, sign, right) of each sum, the left of the next being the result of the one before."""


class _Story:
    def __init__(self, stream: random.Random, largest: int) -> None:
        self._stream, self._largest = stream, largest
        self.value = stream.randint(largest // 10 + 1, largest)
        a, b = stream.sample(NAMES, 2)
        self._words = {"a": a, "b": b, "things": stream.choice(THINGS)}
        self.sentences: list[str] = []
        self.template: list[str] = []
        self.sums: list[str] = []

    def tell(self, steps: int) -> bool:
        """Exactly `steps` sums; False when the numbers came out so that the story cannot go on."""
        self._say("{a} has {x} {things}.", self.value)
        while len(self.sums) < steps:
            left = steps - len(self.sums)
            if left <= 2 and self._stream.random() < 0.5:  # a question that is a sum, or two, itself
                turn = COMPARISON if left == 2 else self._stream.choice((COST, SHARE))
                return self._take(turn)
            if not self._take(self._stream.choice((GAIN, LOSS, GAIN, LOSS, GROWTH, REST))):
                return False
        self._say(self._stream.choice(LEFT), 0)
        return True

    def _take(self, turn: _Turn) -> bool:
        operand = turn.draw(self._stream, self.value, self._largest)
        if operand is None:
            return False
        for left, sign, right in turn.sums(self.value, operand):
            self.value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
            self.sums.append(f"{left} {sign} {right} = {self.value}")
        self._say(self._stream.choice(turn.sentences), operand)
        return self.value <= 10 * self._largest

    def _say(self, sentence: str, x: int) -> None:
        self.template.append(sentence)
        grows = GROWS.get(x, f"grows to {x} times as many")
        self.sentences.append(sentence.format(x=x, grows=grows, **self._words))


def _added(stream: random.Random, value: int, largest: int) -> int:
    return stream.randint(2, largest)


def _taken(stream: random.Random, value: int, largest: int) -> int | None:
    return stream.randint(2, min(value - 1, largest)) if value > 2 else None


def _factor(stream: random.Random, value: int, largest: int) -> int:
    return stream.randint(2, 9)


def _divisor(stream: random.Random, value: int, largest: int) -> int | None:
    fitting = [x for x in range(2, 10) if value % x == 0 and value > x]
    return stream.choice(fitting) if fitting else None


GAIN = _Turn(PLUS, _added, lambda value, x: [(value, "+", x)])
LOSS = _Turn(MINUS, _taken, lambda value, x: [(value, "-", x)])
GROWTH = _Turn(TIMES, _factor, lambda value, x: [(value, "*", x)])
REST = _Turn(DIVIDED, _divisor, lambda value, x: [(value, "/", x)])
COST = _Turn(WORTH, _factor, lambda value, x: [(value, "*", x)])
SHARE = _Turn(SHARED, _divisor, lambda value, x: [(value, "/", x)])
COMPARISON = _Turn(COMPARED, _added, lambda value, x: [(value, "+", x), (value + x, "+", value)])
