"""Exact answers without computer algebra: integers, decimals, fractions, and tuples, lists and sets of them.

    read(r"\\frac{3}{6}")  ->  Fraction(1, 2)
    read("(1, 2.5)")       ->  Items("(", ")", (Fraction(1), Fraction(5, 2)))
    read(r"\\sqrt{2}")     ->  None: not for this module

Input is what `latex.clean` returns. Where both sides are exact, their comparison is final: nothing is rounded.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_DIGITS = 1000
MAX_EXPONENT = 1000
MAX_ITEMS = 100
MAX_DEPTH = 8


class TooComplex(Exception):
    """The answer is too large to be checked; the text says what was too large."""


class Items(NamedTuple):
    opening: str
    """ "(", "[", "{" or "" for a bare list."""
    closing: str
    values: tuple[Value, ...]


Value = Fraction | Items

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_INTEGER = re.compile(r"[+-]?\d+")
_PLAIN = re.compile(rf"([+-]?) ?({_NUMBER})(?: ?(?:[eE]|(?:\\times|\\cdot) ?10 ?\^) ?(\{{ ?)?([+-]?\d+)(?(3) ?\}}))?")
_RATIO = re.compile(
    rf"([+-]?) ?(?:\\frac ?\{{ ?([+-]?{_NUMBER}) ?\}} ?\{{ ?([+-]?{_NUMBER}) ?\}}|\\frac ?(\d) ?(\d)"
    rf"|({_NUMBER}) ?/ ?([+-]?{_NUMBER})|\( ?([+-]?{_NUMBER}) ?/ ?({_NUMBER}) ?\))"
)
_MIXED = re.compile(r"([+-]?) ?(\d+)(?: ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}| ?\\frac ?(\d) ?(\d)| (\d+) ?/ ?(\d+))")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def read(text: str, as_list: bool = False) -> Value | None:
    """The value of an exact answer, or None. With `as_list`, "1,234" is two numbers, otherwise one with a separator.

    Raises TooComplex for numbers of absurd size.
    """
    if not as_list:
        number = read_number(text)
        if number is not None:
            return number
    return _read_items(text.replace(r"\{", "{").replace(r"\}", "}"), 0, as_list)


def read_number(text: str) -> Fraction | None:
    if len(text) > MAX_DIGITS:
        if re.fullmatch(r"[+-]?[\d., ]+", text):
            raise TooComplex(f"a number of more than {MAX_DIGITS} digits")
        return None
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if match := _PLAIN.fullmatch(text):
        sign, number, _, exponent = match.groups()
        if exponent and (len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT):
            raise TooComplex(f"a power of ten beyond {MAX_EXPONENT}")
        return _signed(sign, _plain(number) * Fraction(10) ** int(exponent or 0))
    if match := _RATIO.fullmatch(text):
        sign, *parts = match.groups()
        above, below = (_plain(part) for part in parts if part is not None)
        return _signed(sign, above / below) if below else None
    if match := _MIXED.fullmatch(text):
        sign, whole, *parts = match.groups()
        above, below = (Fraction(part) for part in parts if part is not None)
        return _signed(sign, int(whole) + above / below) if below else None
    return None


def _plain(number: str) -> Fraction:
    return Fraction(number.replace(",", "").replace(" ", ""))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _read_items(text: str, depth: int, as_list: bool) -> Value | None:
    """`as_list` keeps "1,234" apart at this level; one element is the element itself."""
    if depth > MAX_DEPTH:
        raise TooComplex(f"brackets nested more than {MAX_DEPTH} deep")
    opening, closing, inside = "", "", text
    pieces = _split(text)
    if pieces is None:
        return None
    if len(pieces) == 1:
        if not text or text[0] not in _BRACKETS or text[-1] not in ")]}":
            return None if depth == 0 and not as_list else read_number(text)
        opening, closing, inside = text[0], text[-1], text[1:-1].strip()
        if (opening == "{") != (closing == "}"):
            return None
        pieces = _split(inside)
        if pieces is None:
            return None
    if len(pieces) > MAX_ITEMS:
        raise TooComplex(f"more than {MAX_ITEMS} elements")
    values: list[Value] = []
    for piece in pieces:
        value: Value | None = read_number(piece)
        if value is None and piece != text:
            value = _read_items(piece, depth + 1, True)
        if value is None:
            return None
        values.append(value)
    return values[0] if len(values) == 1 else Items(opening, closing, tuple(values))


def _split(text: str) -> list[str] | None:
    """The parts between commas outside of brackets; None when brackets do not balance."""
    pieces, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif character in ",;" and depth == 0:
            pieces.append(text[start:position].strip())
            start = position + 1
    pieces.append(text[start:].strip())
    return pieces if depth == 0 else None


def equal(gold: Value, answer: Value) -> bool:
    """Sets and bare lists ignore order, tuples do not; (1, 2) and [1, 2] are different intervals; no brackets agree
    with any, in order."""
    if isinstance(gold, Fraction) or isinstance(answer, Fraction):
        return gold == answer
    kinds = {_kind(gold), _kind(answer)}
    if kinds <= {"{", ""}:
        return _same_members(gold.values, answer.values, as_set="{" in kinds)
    if "{" in kinds:
        return False
    if len(kinds) == 2 and "" not in kinds and (len(gold.values) == 2 or not kinds <= {"()", "[]"}):
        return False
    return len(gold.values) == len(answer.values) and all(map(equal, gold.values, answer.values))


def _kind(items: Items) -> str:
    return "{" if items.opening == "{" else items.opening + items.closing


def _same_members(gold: tuple[Value, ...], answer: tuple[Value, ...], as_set: bool) -> bool:
    if as_set:
        found = all(any(equal(g, a) for a in answer) for g in gold)
        return found and all(any(equal(g, a) for g in gold) for a in answer)
    left = list(answer)
    for value in gold:
        position = next((i for i, other in enumerate(left) if equal(value, other)), None)
        if position is None:
            return False
        left.pop(position)
    return not left
