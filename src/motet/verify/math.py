"""Mathematics with a gold answer: what stands in the last \\boxed{} of the answer is compared with the reference.

    reference "1/2" or 0.5;  answer "... so it is $\\boxed{\\frac{2}{4}}$."  ->  correct

Exact answers (numbers, tuples, sets, choice letters, words) are compared exactly and in microseconds; the rest goes
to computer algebra, behind guards.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any

from motet.base.records import Problem, Verdict
from motet.verify import exact, latex, symbolic
from motet.verify.exact import Items, TooComplex

MAX_LENGTH = 5000
MAX_GAP = 60
"""Characters between two boxes with an "or" between them that still make one hedge."""

_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])", re.IGNORECASE)
_CHOICE = re.compile(r"[(\[]?(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)? ?[(\[]?([A-Ja-j])[)\]]?[.:]? ?\}?[)\]]?")
_ASSIGNMENT = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-z]\))? ?= ?(?=[^=])")
_UNIT = re.compile(
    r" ?(?:\\(?:text|mathrm|mbox|textrm|textbf)\s*\{([^{}]*)\}(\^ ?\{?\d\}?)?|\^ ?\{? ?\\circ ?\}?( ?[CF])?|\\?%"
    r"|(?<=\d) ([A-Za-z]{2,}(?: [A-Za-z]+)*)|(?<=\d) ?_ ?\{? ?(\d+) ?\}?)$"
)


def verify(problem: Problem, answer: str) -> Verdict:
    gold = _gold_text(problem.reference)
    if gold is None:
        return Verdict("invalid_problem", None, None, f"the reference {problem.reference!r} is no text or number")
    content = last_box(answer)
    if isinstance(content, Verdict):
        return content
    try:
        number = exact.read_number(content)
        if number is not None and (expected := _number(gold)) is not None:
            return _verdict(number == expected, content)
        return _compare(gold, content)
    except TooComplex as error:
        return Verdict("too_complex", 0.0, content, str(error))
    except symbolic.Unparsable as error:
        return Verdict("invalid_problem", None, content, f"the reference {error}")


def gold(problem: Problem) -> str | None:
    """Why the reference cannot be verified against, or None."""
    text = _gold_text(problem.reference)
    if text is None or not text.strip():
        return f"the reference {problem.reference!r} is no text or number"
    boxed = rf"\boxed{{{text}}}"
    if [box.content for box in latex.boxes(boxed)] != [text]:
        return f"the reference {text!r} has unbalanced braces"
    verdict = verify(problem, boxed)
    if verdict.kind != "correct":
        return f"the reference {text!r} does not pass its own verifier: {verdict.kind} {verdict.detail}".strip()
    shown = latex.clean(text)
    try:
        if not _simple(shown):
            value = _strip_unit(shown)[0]
            if not symbolic.equal(value, value):
                return f"the reference {text!r} is not equal to itself for the verifier"
    except (TooComplex, symbolic.Unparsable) as error:
        return f"the reference {text!r} cannot be verified against: {error}"
    return None


def last_box(answer: str) -> str | Verdict:
    """The content of the last box; no_answer without one, malformed where the text leaves it open which one counts."""
    found = latex.boxes(answer)
    if not found or not found[-1].content.strip():
        return Verdict("no_answer", 0.0, None, r"no \boxed{} in the answer" if not found else r"an empty \boxed{}")
    last = found[-1]
    start = max((match.end() for match in _SENTENCE_END.finditer(answer, 0, last.start)), default=0)
    for box in found[:-1]:
        near = last.start - box.end <= MAX_GAP and _OR.search(answer, box.end, last.start)
        if (box.start >= start or near) and not _same(box.content, last.content):
            return Verdict("malformed", 0.0, last.content, "several different boxes in the final sentence")
    inner = latex.boxes(last.content)
    return (inner[-1] if inner else last).content.strip()


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    left, right = latex.clean(one[:MAX_LENGTH]), latex.clean(other[:MAX_LENGTH])
    try:
        value = exact.read(left)
        return left == right or (value is not None and value == exact.read(right))
    except TooComplex:
        return False


def _gold_text(reference: Any) -> str | None:
    if isinstance(reference, str):
        inside = latex.boxes(reference)
        return inside[-1].content if inside else reference
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        return str(reference)
    return None


def _compare(gold: str, content: str) -> Verdict:
    if len(content) > MAX_LENGTH:
        raise TooComplex(f"longer than {MAX_LENGTH} characters")
    expected, given = _cleaned(gold), latex.clean(content)
    if _OR.search(given) and not _OR.search(expected):
        return Verdict("malformed", 0.0, content, "several answers joined by 'or'")
    if expected == given:
        return _verdict(True, content)
    choice = _CHOICE.fullmatch(expected)
    if choice and choice[1].isupper():
        match = _CHOICE.fullmatch(given)
        return _verdict(match is not None and match[1].upper() == choice[1], content)
    text = latex.words(expected)
    if text is not None:
        return _verdict(latex.words(given) == text, content)
    if "=" not in expected:
        given = _ASSIGNMENT.sub("", given, count=1) if _ASSIGNMENT.match(given) else given
    (expected, unit), (given, given_unit) = _strip_unit(expected), _strip_unit(given)
    if unit and given_unit and unit != given_unit:
        return Verdict("incorrect", 0.0, content, f"in {given_unit}, not {unit}")
    value = exact.read(expected)
    other = exact.read(given, as_list=isinstance(value, Items))
    if value is not None and other is not None:
        return _verdict(_equal(value, unit, other, given_unit), content)
    return _verdict(symbolic.equal(expected, given), content)


def _equal(gold: exact.Value, unit: str, answer: exact.Value, answer_unit: str) -> bool:
    if exact.equal(gold, answer):
        return True
    if isinstance(gold, Items) or isinstance(answer, Items) or unit == answer_unit or "%" not in (unit, answer_unit):
        return False
    return (gold / 100 if unit == "%" else gold) == (answer / 100 if answer_unit == "%" else answer)


def _simple(gold: str) -> bool:
    """Compared without computer algebra."""
    if _CHOICE.fullmatch(gold) or latex.words(gold) is not None:
        return True
    return exact.read(_strip_unit(gold)[0]) is not None


def _strip_unit(text: str) -> tuple[str, str]:
    """`5 \\text{ hours}` is ("5", "hour"); a text that is nothing but a unit keeps it."""
    match = _UNIT.search(text)
    if not match or not text[: match.start()].strip():
        return text, ""
    words, power, scale, plain, base = match.groups()
    if base:
        unit = f"base {base}"
    elif words is not None or plain:
        unit = "".join((words or plain).casefold().split()).rstrip(".").removesuffix("s") + (power or "")
    else:
        unit = "%" if "%" in match.group() else f"degree{(scale or '').strip()}"
    return text[: match.start()].strip(), unit


def _verdict(correct: bool, answer: str) -> Verdict:
    return Verdict("correct", 1.0, answer) if correct else Verdict("incorrect", 0.0, answer)


@functools.lru_cache(maxsize=4096)
def _number(gold: str) -> Fraction | None:
    return exact.read_number(gold)


@functools.lru_cache(maxsize=4096)
def _cleaned(gold: str) -> str:
    return latex.clean(gold)
