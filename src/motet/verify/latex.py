r"""Short pieces of LaTeX as models write them: the last box of a text, and one spelling for each thing.

    boxes(r"so \boxed{\frac12}.")  ->  [Box(3, 18, r"\frac12")]
    clean(r"\left(-1,\,½\right).")  ->  r"(-1, \frac{1}{2})"

Nothing here understands mathematics; `exact` and `symbolic` do.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple


class Box(NamedTuple):
    start: int
    end: int
    content: str


_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[Box]:
    """The balanced \\boxed{} and \\fbox{} that lie in no other one, in order. Linear in the text."""
    open_braces: list[tuple[int, int] | None] = []  # (start of the command, start of its content), None for a plain {
    closed: list[Box] = []
    for token in _BOX_TOKEN.finditer(text):
        if token.group().endswith("{") and len(token.group()) > 2:
            open_braces.append((token.start(), token.end()))
        elif token.group() == "{":
            open_braces.append(None)
        elif token.group() == "}" and open_braces:
            begun = open_braces.pop()
            if begun is not None:
                while closed and closed[-1].start > begun[0]:
                    closed.pop()  # it lies inside this one
                closed.append(Box(begun[0], token.end(), text[begun[1] : token.start()]))
    return closed


_CHARACTERS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63", "-"),
    **dict.fromkeys(map(chr, [0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000, 9, 10]), " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{c: f"^{{{n}}}" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)},
    **{"\u00d7": r"\times ", "÷": "/", "·": r"\cdot ", "∙": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ", "∞": r"\infty "},
    **{"°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "\u222a": r"\cup ", "∅": r"\emptyset "},
}
for _character in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
    _above, _, _below = unicodedata.normalize("NFKC", _character).partition("\u2044")
    _CHARACTERS[_character] = rf"\frac{{{_above}}}{{{_below}}}"
_TRANSLATION = str.maketrans(_CHARACTERS)

_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\$|\$|\\[()\[\]]|\\(?:displaystyle|limits)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s*\{\s*(?:and|,)\s*\}| and ", ", "),
        (r"\\(?:mathrm|operatorname)\s*\{\s*e\s*\}", "e"),
        (r"√\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"(?<![\\a-zA-Z])exp\s*\(([^()]*)\)", r"e^{\1}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"\s+", " "),
        (r" (?=[,)\]])|(?<=[(\[]) ", ""),
    ]
]


def clean(text: str) -> str:
    """One spelling: ASCII, no dollars, no sizes, \\frac, single spaces, no full stop at the end."""
    text = text.translate(_TRANSLATION)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    while text.startswith("{") and text.endswith("}") and "," not in text and _one_group(text):
        text = text[1:-1].strip()
    return text


def _one_group(text: str) -> bool:
    """The first brace is closed by the last one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def words(text: str) -> str | None:
    """The plain words of an answer such as \\text{no real solution}, in lower case; None when it holds mathematics.

    A bare run of fewer than four letters may be a product of variables and is none.
    """
    bare = _TEXT.sub(r" \1 ", text)
    flat = " ".join(bare.split()).casefold().strip(" .,!")
    if not re.fullmatch(r"[a-z][a-z' -]*", flat):
        return None
    return flat if bare != text or re.search(r"[a-z]{4}", flat) else None
