"""From a completion's text to a verdict: stop reason, then structure, then the verifier on the answer part."""

from __future__ import annotations

from dataclasses import replace

from motet.base.errors import UserError
from motet.base.records import Problem, Stop, Verdict
from motet.verify import Verifier, resolve, resolve_gold
from motet.verify.sandbox import Settings
from motet.verify.structure import Think, split

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
    parts = split(text, think, open_think)
    return parts if isinstance(parts, Verdict) else parts.answer


def apply(verifier: Verifier, problem: Problem, answer: str) -> Verdict:
    """Runs a verifier; an exception in it says nothing about the text and is an infra_error. UserError passes."""
    try:
        verdict = verifier(problem, answer)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"the verifier returned a {type(verdict).__name__}, not a Verdict")
    except UserError:
        raise
    except Exception as error:  # the boundary: whatever a verifier raises is its own failure
        verdict = Verdict("infra_error", None, None, f"{type(error).__name__}: {error}")
    extracted = None if verdict.answer is None else verdict.answer[:MAX_ANSWER]
    return replace(verdict, answer=extracted, detail=verdict.detail[:MAX_DETAIL])


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
    detail = f"its worked solution is judged {verdict.kind}: {verdict.detail}"[:MAX_DETAIL]
    return Verdict("invalid_problem", None, verdict.answer, detail)
