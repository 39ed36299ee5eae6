"""Rules on what a trace concludes: its verdict, and whether reasoning and answer say the same."""

from __future__ import annotations

import re

from motet.funnel.candidate import View, last_box
from motet.funnel.values import differ, key, rational

CONCLUDED = 400
"""Last characters of the reasoning in which it says what the answer is."""
_SAYS = re.compile(
    r"\b(?:the )?(?:final )?answer (?:is|=|should be|must be|:)\s*:?\s*(?:\*\*|\$|\\\(|\\boxed\{)*\s*"
    r"(-?(?:\\frac\{\d+\}\{\d+\}|\d{1,3}(?:,\d{3})+|\d+(?:/\d+)?)(?:\.\d+)?)(?![\d/.,]*\d|[A-Za-z^_])",
    re.IGNORECASE,
)
_RETRACTED = re.compile(r"\b(?:wait|but|actually|no,|hmm|check|wrong|not|instead|mistake)\b", re.IGNORECASE)


def answer(view: View, programs: bool) -> str | None:
    """The verdict where it is not "correct"; `programs`: of traces judged by tests, else of all others."""
    verdict = view.candidate.verdict
    if verdict is None or (view.candidate.verifier == "code") != programs or verdict.kind == "correct":
        return None
    return f"{verdict.kind}: {verdict.detail}" if verdict.detail else verdict.kind


def think_answer(view: View) -> str | None:
    """The last box of the reasoning, else a number that its end calls the answer, is not the answer's value."""
    if view.final is None or not view.reasoning:
        return None
    thought = last_box(view.reasoning)
    if thought is None:
        end = view.reasoning[-CONCLUDED:]
        found = list(_SAYS.finditer(end))
        if not found or _RETRACTED.search(end, found[-1].end()) or rational(found[-1][1]) is None:
            return None
        thought = found[-1][1]
    return f"the reasoning ends with {thought}, the answer is {view.final}" if differ(thought, view.final) else None


def answer_key(view: View) -> str:
    """What the majority is counted by; empty without a box."""
    return "" if view.final is None else key(view.final)
