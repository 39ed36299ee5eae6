"""The think block: what is reasoning and what is answer. Verifiers see the answer alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

from motet.base.records import Verdict

Think = Literal["required", "off"]
OPEN, CLOSE = "<think>", "</think>"


class Parts(NamedTuple):
    reasoning: str
    answer: str


def split(text: str, think: Think, open_think: bool = False) -> Parts | Verdict:
    """`split("<think>7 + 5</think> 12", "required")` is `Parts("7 + 5", " 12")`; a broken structure is "malformed".

    "required": one <think>...</think>, only white space before it, something after it; with `open_think` the opening
    tag is the prompt's and only the closing one may occur. "off": the whole text is the answer, tags mean nothing.
    """
    if think == "off":
        return Parts("", text)
    opened, closed = text.count(OPEN), text.count(CLOSE)
    if open_think:
        if opened:
            return _malformed(f"{OPEN} is written again after the prompt's own")
        text, opened = OPEN + text, 1
    if opened != 1 or closed != 1:
        return _malformed(f"{opened} x {OPEN} and {closed} x {CLOSE}, one of each was expected")
    before, _, rest = text.partition(OPEN)
    reasoning, tag, answer = rest.partition(CLOSE)
    if not tag:
        return _malformed(f"{CLOSE} comes before {OPEN}")
    if before.strip():
        return _malformed(f"there is text before {OPEN}")
    if not answer.strip():
        return _malformed(f"there is nothing after {CLOSE}")
    return Parts(reasoning, answer)


def _malformed(detail: str) -> Verdict:
    return Verdict("malformed", 0.0, None, detail)
