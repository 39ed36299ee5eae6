"""Rules on the shape of a trace. Each function says why a row fails, or None."""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter

from motet.base.records import Verdict
from motet.funnel.candidate import View
from motet.funnel.values import same
from motet.funnel.words import periodic_tail, repeated_share, words
from motet.verify import latex
from motet.verify.extraction import final_answer
from motet.verify.instructions.language import SCRIPTS
from motet.verify.structure import CLOSE, OPEN, split

FENCE = "```"
COMPRESSED = 1 << 18
"""Bytes of a trace, its last ones, whose compression is measured."""
SHORT = 400
"""A trace of fewer bytes compresses by accident."""
NEUTRAL = frozenset({"latin", "greek"})
"""Scripts of formulas and programs."""
_SCRIPTS = re.compile("|".join(f"(?P<{name}>[{letters}])" for name, letters in SCRIPTS.items() if name != "latin"))
_ASCII = re.compile(r"[\x00-\x7f]+")
_FOREIGN_WANTED = re.compile(
    r"\btranslat|\b(?:chinese|mandarin|japanese|korean|russian|ukrainian|bulgarian|arabic|persian|farsi|urdu|hindi|"
    r"marathi|nepali|bengali|punjabi|gujarati|tamil|telugu|kannada|malayalam|thai|hebrew|unicode|alphabet|emoji)\b",
    re.IGNORECASE,
)


def think_balanced(view: View) -> str | None:
    for number, text in enumerate(view.candidate.turns, 1):
        where = f"turn {number}: " if len(view.candidate.turns) > 1 else ""
        if view.think == "off":
            opened, closed = text.count(OPEN), text.count(CLOSE)
            if opened != closed:
                return f"{where}{opened} x {OPEN} and {closed} x {CLOSE}"
            continue
        parts = split(text, "required", view.open_think)
        if isinstance(parts, Verdict):
            return where + parts.detail
    return None


def finished(view: View) -> str | None:
    """By the stop reason; where nobody knows it, by a box, a code fence or a think block that is never closed."""
    if view.candidate.stop == "length":
        return "cut at the token limit"
    if view.candidate.stop == "end":
        return None
    if view.answer.count(FENCE) % 2:
        return "a code fence is never closed"
    if "boxed" in view.answer:
        found, unclosed = latex.scan(view.answer)
        if unclosed >= 0 and (not found or unclosed > found[-1].start):
            return r"the last \boxed{ never ends"
    if view.think == "off" and view.trace.rfind(OPEN) > view.trace.rfind(CLOSE):
        return f"{OPEN} is never closed"
    return None if view.answer.strip() else "there is no answer"


def one_answer(view: View) -> str | None:
    """Several final answers, a hedge, a denied answer; a text without a box has none of them."""
    if view.final is None:
        return None
    found = final_answer(view.answer, same)
    return found.detail if isinstance(found, Verdict) and found.kind == "malformed" else None


def reasoning_length(view: View, least: int) -> str | None:
    if view.think == "off" or least == 0:
        return None
    if view.candidate.reasoning_tokens is None:
        if least > 1:
            raise ValueError("reasoning_length needs the student's tokens")
        return None if view.reasoning.strip() else "the reasoning is empty"
    counted = view.candidate.reasoning_tokens
    return f"{counted} tokens of reasoning" if counted < least else None


def max_tokens(view: View, most: int) -> str | None:
    if view.candidate.tokens is None:
        raise ValueError("max_tokens needs the student's tokens")
    return f"{view.candidate.tokens} tokens" if view.candidate.tokens > most else None


def repetition(text: str, size: int = 4) -> float:
    """Share of word n-grams that occurred before. "a b c d a b c d" has 5 four-grams, one of them repeated: 0.2."""
    return repeated_share(words(text).hashes, size)


def repeated(view: View, size: int, most: float) -> str | None:
    share = repeated_share(view.trace_words.hashes, size)
    return f"{share:.0%} of its word {size}-grams occurred before" if share > most else None


def tail(view: View, most: int) -> str | None:
    length = periodic_tail(view.trace_words.hashes)
    return f"its last {length} words go round in a circle" if length > most else None


def compression(view: View, most: float) -> str | None:
    data = view.trace.encode("utf-8", "surrogatepass")[-COMPRESSED:]
    if len(data) < SHORT:
        return None
    ratio = len(data) / len(zlib.compress(data, 1))
    return f"zlib makes it {ratio:.0f} times shorter" if ratio > most else None


def foreign_letters(view: View, most: float) -> str | None:
    """Letters in scripts that neither the prompt nor formulas use, as a share of all letters."""
    if view.trace.isascii():
        return None
    rare = _ASCII.sub("", view.trace)
    counts = Counter(match.lastgroup for match in _SCRIPTS.finditer(rare))
    foreign = {name: n for name, n in counts.items() if name not in NEUTRAL}
    if not foreign or _FOREIGN_WANTED.search(view.prompt):
        return None
    own = {match.lastgroup for match in _SCRIPTS.finditer(_ASCII.sub("", view.prompt))}
    if own & {"kana", "han"}:
        own |= {"kana", "han"}
    number = sum(n for name, n in foreign.items() if name not in own)
    letters = sum(map(str.isalpha, view.trace)) if number else 0
    if number <= most * letters:
        return None
    main = max((name for name in foreign if name not in own), key=lambda name: foreign[name])
    return f"{number / letters:.0%} of its letters are foreign to the prompt, most of them {main}"


@functools.cache
def _phrases(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, names))})(?![a-z])")


def named(text: str, names: tuple[str, ...]) -> list[str]:
    """Those of the (lower-case) names that stand in a lower-case text as words."""
    if not names or not any(name in text for name in names):
        return []
    return sorted(set(_phrases(names).findall(text)))
