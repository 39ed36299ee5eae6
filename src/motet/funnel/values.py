"""Final answers as values: enough to say that two of them differ for sure, without computer algebra."""

from __future__ import annotations

import re
from fractions import Fraction

from motet.verify import latex

_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d{1,60})?(?:\.(\d{1,60}))?")
_RATIO = re.compile(r"([-+]?)(?:\\frac\s*\{(\d{1,60})\}\s*\{(\d{1,60})\}|(\d{1,60})\s*/\s*(\d{1,60}))")
_LETTER = re.compile(r"\(?([A-J])\)?")
LONGEST = 200
"""Characters of an answer that is read as a value."""


def rational(text: str) -> Fraction | None:
    """ "1,234", "-0.5", "3/4" and "\\frac{3}{4}"; None for anything else."""
    text = text.strip()
    if match := _RATIO.fullmatch(text):
        sign, a, b, c, d = match.groups()
        top, bottom = int(a or c), int(b or d)
        return None if bottom == 0 else Fraction(-top if sign == "-" else top, bottom)
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    value = Fraction(f"{(match[2] or '0').replace(',', '')}.{match[3] or '0'}")
    return -value if match[1] == "-" else value


def key(answer: str) -> str:
    """Equal for answers that are equal as numbers or letters, or written alike."""
    if len(answer) > LONGEST:
        return answer
    cleaned = latex.clean(answer)
    value = rational(cleaned)
    if value is not None:
        return str(value)
    letter = _LETTER.fullmatch(latex.plain(cleaned).strip())
    return letter[1] if letter else cleaned.casefold()


def differ(one: str, other: str) -> bool:
    """True only where both are numbers, or both choices, and not the same."""
    if max(len(one), len(other)) > LONGEST:
        return False
    return key(one) != key(other) and _kind(one) is not None and _kind(one) == _kind(other)


def same(one: str, other: str) -> bool:
    return one == other or key(one) == key(other)


def _kind(answer: str) -> str | None:
    cleaned = latex.clean(answer)
    if rational(cleaned) is not None:
        return "number"
    return "letter" if _LETTER.fullmatch(latex.plain(cleaned).strip()) else None
