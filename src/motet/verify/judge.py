"""From a completion's text to a verdict: stop reason, then structure, then the verifier on the answer part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from motet.base.errors import UserError
from motet.base.records import UNSCORED, VERDICT_KINDS, Problem, Stop, Verdict
from motet.verify import Verifier, resolve, resolve_gold
from motet.verify.sandbox import Settings
from motet.verify.structure import CLOSE, OPEN, split

Think = Literal["required", "optional", "off"]
""""optional": a text with a think tag in it must have one balanced block, a text without any is all answer."""
MAX_ANSWER = 2000
MAX_DETAIL = 500


def judge(
    problem: Problem,
    text: str,
    stop: Stop,
    think: Think = "required",
    open_think: bool = False,
    settings: Settings | None = None,
) -> Verdict:
    """The verdict on one completion. Raises UserError for a verifier that cannot be loaded."""
    answer = answer_part(text, stop, think, open_think)
    if isinstance(answer, Verdict):
        return answer
    return apply(resolve(problem.verifier, settings), problem, answer)


def answer_part(text: str, stop: Stop, think: Think, open_think: bool) -> str | Verdict:
    """What a verifier is to see, or the verdict where none is needed. Linear in the text, safe to run anywhere."""
    if stop == "length":
        return Verdict("truncated", None, None, "cut at the token limit")
    tagged = open_think or OPEN in text or CLOSE in text
    parts = split(text, ("required" if tagged else "off") if think == "optional" else think, open_think)
    return parts if isinstance(parts, Verdict) else parts.answer


def apply(verifier: Verifier, problem: Problem, answer: str) -> Verdict:
    """Runs a verifier; an exception in it says nothing about the text and is an infra_error. UserError passes."""
    try:
        verdict = verifier(problem, answer)
        _refuse_nonsense(verdict)
    except UserError:
        raise
    except Exception as error:  # the boundary: whatever a verifier raises is its own failure
        verdict = Verdict("infra_error", None, None, f"{type(error).__name__}: {error}")
    extracted = None if verdict.answer is None else verdict.answer[:MAX_ANSWER]
    score = None if verdict.score is None else float(verdict.score)
    return replace(verdict, score=score, answer=extracted, detail=verdict.detail[:MAX_DETAIL])


def _refuse_nonsense(verdict: object) -> None:
    """A user's verifier may return anything; what is no verdict of the taxonomy is its own failure."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the verifier returned a {type(verdict).__name__}, not a Verdict")
    if verdict.kind not in VERDICT_KINDS:
        raise ValueError(f"the verifier returned the unknown kind {verdict.kind!r}")
    if (verdict.answer is not None and not isinstance(verdict.answer, str)) or not isinstance(verdict.detail, str):
        raise TypeError("answer and detail of a Verdict are texts")
    score = verdict.score
    if verdict.kind in UNSCORED:
        if score is not None:
            raise ValueError(f"{verdict.kind} has no score, got {score!r}")
    elif verdict.kind != "truncated" and (not isinstance(score, int | float) or not math.isfinite(score)):
        raise ValueError(f"a score must be a finite number, got {score!r}")


def check_problem(problem: Problem, settings: Settings | None = None) -> Verdict | None:
    """None for a usable problem; otherwise "invalid_problem", or "infra_error" where the check itself failed.

    Runs the verifier's own check of the reference, then its verdict on the worked solution in
    `metadata["solution"]["answer"]`, if there is one: a solution that is not judged correct makes a problem unusable.
    """
    verifier, gold = resolve(problem.verifier, settings), resolve_gold(problem.verifier)
    try:
        trouble = gold(problem) if gold else None
    except UserError:
        raise
    except Exception as error:  # the same boundary as in `apply`
        return Verdict("infra_error", None, None, f"{type(error).__name__}: {error}"[:MAX_DETAIL])
    if trouble:
        return Verdict("invalid_problem", None, None, trouble[:MAX_DETAIL])
    solution = problem.metadata.get("solution")
    if not solution:
        return None
    verdict = apply(verifier, problem, solution["answer"])
    if verdict.kind == "correct":
        return None
    if verdict.kind == "infra_error":
        return verdict
    why = verdict.detail or (f"its answer is {verdict.answer!r}" if verdict.answer is not None else "without a reason")
    detail = f"its worked solution is judged {verdict.kind}: {why}"[:MAX_DETAIL]
    return Verdict("invalid_problem", None, verdict.answer, detail)
