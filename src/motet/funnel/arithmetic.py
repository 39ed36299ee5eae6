"""Spot checks: statements such as "12 + 7 * 2 = 26" in a trace are computed again, exactly.

    statements("so 12 + 7 = 19, and 3 * 4 = 13")  ->  (2, ["3 * 4 = 13"])

Only what stands by itself is read: no part of a longer formula, no power, remainder or other base, no program.
"""

from __future__ import annotations

import re
from fractions import Fraction

from motet.funnel.candidate import View

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,12})?(?![\d.]*\d)"
_OPERATOR = r"[+\-*/]"
_STATEMENT = re.compile(
    rf"(?<![\w.,^\\])({_NUMBER}(?:\s?{_OPERATOR}\s?{_NUMBER})+)\s?=\s?(-?{_NUMBER})"
    r"(?!\s?[+\-*/^_!%(\\{]|[A-Za-z]|\s?(?:mod|rem|R\d))"
)
_TOKEN = re.compile(rf"{_NUMBER}|{_OPERATOR}")
_BEFORE = re.compile(r"[+\-*/^_\\)\]}(|%!]\s*$")
_SIGNS = [("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\u2212", "-"), ("\u00d7", "*"), ("\u00f7", "/")]
_OTHER_RULES = re.compile(
    r"\b(?:mod|modulo|modulus|base|binary|octal|hex|hexadecimal|remainder|XOR|clock)\b", re.IGNORECASE
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MONEY = re.compile(r"\\?\$")
NEAR = 200
"""Characters before a wrong statement in which a word may say that it is of another arithmetic."""
MOST = 2000
"""Statements of one trace that are computed."""


def statements(text: str) -> tuple[int, list[str]]:
    """How many were computed, and those that are wrong."""
    if "=" not in text:
        return 0, []
    if "```" in text:
        text = _CODE.sub(" ", text)
    if "$" in text:
        text = _MONEY.sub("", text)
    for sign, plain in _SIGNS:
        text = text.replace(sign, plain)
    checked, wrong = 0, []
    for match in _STATEMENT.finditer(text):
        if _BEFORE.search(text, max(0, match.start() - 8), match.start()):
            continue
        right = _holds(match[1], match[2])
        if right is None:
            continue
        if not right and _OTHER_RULES.search(text, max(0, match.start() - NEAR), match.end() + 40):
            continue
        checked += 1
        if not right:
            wrong.append(match.group())
        if checked == MOST:
            break
    return checked, wrong


def wrong_arithmetic(view: View, most: float) -> str | None:
    checked, wrong = statements(view.trace)
    if len(wrong) <= most * checked:
        return None
    return f"{len(wrong)} of {checked} statements are wrong: {wrong[0][:60]}"


def _holds(left: str, right: str) -> bool | None:
    """None for a division by zero. A quotient may be rounded or cut at the last digit that is given."""
    tokens = _TOKEN.findall(left)
    total: Fraction | int = 0
    term, sign, divided = _value(tokens[0]), 1, False
    for operator, number in zip(tokens[1::2], map(_value, tokens[2::2]), strict=True):
        if operator in "+-":
            total, term, sign = total + sign * term, number, 1 if operator == "+" else -1
        elif operator == "/":
            if number == 0:
                return None
            term, divided = Fraction(term) / number, True
        else:
            term *= number
    given = -_value(right[1:]) if right.startswith("-") else _value(right)
    difference = total + sign * term - given
    if not divided and "." not in left:
        return difference == 0
    distance = abs(Fraction(difference))
    unit = Fraction(1, 10 ** len(right.partition(".")[2]))
    return distance < unit if divided else distance <= unit / 2


def _value(number: str) -> Fraction | int:
    number = number.replace(",", "")
    return Fraction(number) if "." in number else int(number)
