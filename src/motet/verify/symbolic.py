"""Equality by computer algebra (math-verify), behind guards. It may still take for ever: only killing it ends that.

Answers reach it as LaTeX only: no Python expression is ever evaluated.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Set
from typing import Any

from motet.verify.exact import TooComplex
from motet.verify.loading import loading

MAX_LENGTH = 400
MAX_NESTING = 12
MAX_CELLS = 36
EXACT_ERROR = 1e-20
"""Largest relative difference of two constants written without decimals; they are compared at 30 digits."""
DECIMALS_ERROR = 1e-6
"""... where one is a decimal approximation, such as 1.4142136 for the square root of 2."""

_HEAVY = [
    (re.compile(r"\d{101}"), "a number of more than 100 digits"),
    (re.compile(r"\^ ?\{? ?[+-]?\d{5}"), "an exponent of 10000 or more"),
    (re.compile(r"\d ?\}?\)? ?\^ ?\{? ?\(?\d+ ?\^"), "a tower of powers"),
    (re.compile(r"\^[^^]*\^[^^]*\^ ?\{[^{}]*\^"), "a tower of powers"),
    (re.compile(r"\d{4} ?!|[)}\]a-z!] ?!"), "a large factorial"),
    (re.compile(r"binom\D{0,3}\d{4}|binom[^}]*\}\D{0,3}\d{4}"), "a large binomial coefficient"),
]
_OPERATORS = re.compile(r"\\(?:sum|prod|i*int|oint|lim|det|Gamma|zeta)(?![a-zA-Z])")
_BASE = re.compile(r"\d ?_ ?\{? ?(\d+)")


class Unparsable(Exception):
    """The gold answer is no mathematics that can be compared."""


def equal(gold: str, answer: str) -> bool:
    """Both as `latex.clean` returns them. Raises TooComplex for the answer, Unparsable for the gold answer."""
    guard(answer, allowed=set(_OPERATORS.findall(gold)))
    bases = [_BASE.findall(side) for side in (gold, answer)]
    if all(bases) and bases[0] != bases[1]:
        return False
    try:
        expected, given = _parse(gold), _parse(answer)
        if expected is None:
            raise Unparsable(f"{gold!r} cannot be parsed")
        return given is not None and _verify(expected, given)
    except (RecursionError, MemoryError) as error:
        raise TooComplex(type(error).__name__) from error


def guard(text: str, allowed: Set[str] = frozenset()) -> None:
    """Raises TooComplex for what computer algebra could not digest in seconds; operators of the gold are `allowed`."""
    if len(text) > MAX_LENGTH:
        raise TooComplex(f"longer than {MAX_LENGTH} characters")
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise TooComplex(f"nested more than {MAX_NESTING} deep")
    if text.count("&") > MAX_CELLS:
        raise TooComplex(f"a matrix of more than {MAX_CELLS} cells")
    for pattern, what in _HEAVY:
        if pattern.search(text):
            raise TooComplex(what)
    for operator in set(_OPERATORS.findall(text)) - allowed:
        raise TooComplex(f"{operator} is left for the verifier to work out")


def _parse(text: str) -> Any:
    """A sympy object, or None."""
    parse, _, configuration = _math_verify()
    found = parse(
        rf"\boxed{{{text}}}",
        extraction_config=configuration,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return found[0] if found else None


def _verify(gold: Any, answer: Any) -> bool:
    _, verify, _ = _math_verify()
    if _symbols(answer) and not _symbols(gold):
        return False
    if _differ(gold, answer):
        return False
    return bool(verify(gold, answer, timeout_seconds=None))


def _symbols(expression: Any) -> set[Any]:
    return set(getattr(expression, "free_symbols", ()))


def _differ(gold: Any, answer: Any) -> bool:
    """Two constants that are certainly different. math-verify rounds to six decimals, where small ones look alike."""
    import sympy

    values = []
    for side in (gold, answer):
        if not isinstance(side, sympy.Expr) or side.free_symbols or isinstance(side, sympy.MatrixExpr):
            return False
        value = side.doit()
        values.append(value if value.is_Rational else value.evalf(30))
    left, right = values
    if left.is_Rational and right.is_Rational:
        return bool(left != right)
    if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
        return False
    approximate = gold.has(sympy.Float) or answer.has(sympy.Float)
    tolerance = DECIMALS_ERROR if approximate else EXACT_ERROR
    return bool(abs(left - right) > tolerance * max(abs(left), abs(right)))


@functools.cache
def _math_verify() -> tuple[Any, Any, Any]:
    """(parse, verify, extraction configuration). Importing sympy takes seconds; the first parse builds tables."""
    with loading():
        from math_verify import LatexExtractionConfig, parse, verify

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        configuration = [LatexExtractionConfig(boxed_match_priority=0)]
        parse(r"\boxed{\frac{1}{\sqrt{2}}}", extraction_config=configuration, parsing_timeout=None)
    return parse, verify, configuration
