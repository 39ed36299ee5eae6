"""What completions give away without any verifier: loops, and verdicts that do not fit the text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from motet.base.records import Group, Rollout
from motet.verify.guessing import is_plain, sameness

RUN = 8
"""Tokens of a run that counts as repeated: shorter ones recur in any derivation."""
LONGEST = 2048
"""Tokens at a completion's end that are looked at: a loop is there, and 64K of them would take their time."""
SHORT = 40
"""Characters of a reference that is looked for in answers."""
NEAR_THE_END = 400
"""Characters of an answer in which its result stands."""


def telltales(groups: Sequence[Group]) -> dict[str, float]:
    """rollout/count; rollout/entropy, minus the mean log-probability of the sampled tokens, which estimates the
    policy's entropy on every batch, learnt from or not.

    Over problems whose reference is a short text or a number: rollout/wrong_with_reference_share, of the rollouts
    judged incorrect those whose answer holds the reference, and rollout/right_without_reference_share, of those judged
    correct those whose answer does not. A verifier that is alive keeps the first low, and the second where equal
    answers have one form.
    """
    rollouts = [(group.problem.reference, r) for group in groups for r in group.rollouts]
    metrics = {"rollout/count": float(len(rollouts))}
    told = [r.completion.logprobs for _, r in rollouts]
    if any(told):
        metrics["rollout/entropy"] = -math.fsum(p for part in told for p in part) / sum(map(len, told))
    known = [(holds(r, ref), r.verdict.kind) for ref, r in rollouts if is_plain(ref, SHORT)]
    wrong = [has for has, kind in known if kind == "incorrect"]
    right = [not has for has, kind in known if kind == "correct"]
    metrics |= {"rollout/wrong_with_reference_share": _mean(wrong)} if wrong else {}
    return metrics | ({"rollout/right_without_reference_share": _mean(right)} if right else {})


def repeated(groups: Sequence[Group]) -> dict[str, float]:
    """rollout/repetition_share, mean over rollouts."""
    found = [repetition(r.completion.tokens[-LONGEST:]) for group in groups for r in group.rollouts]
    return {"rollout/repetition_share": _mean(found)}


def one_answer(groups: Sequence[Group], suffix: str) -> dict[str, float]:
    """rollout/same_answer_share, of the rollouts those that give the most frequent answer, beside
    rollout/same_reference_share, of the problems those with the most frequent reference; nothing without two different
    references. The first is far above the second where one answer is given whatever the problem says."""
    found = sameness(groups)
    if found is None:
        return {}
    return {
        f"rollout/same_answer_share{suffix}": found.answer,
        f"rollout/same_reference_share{suffix}": found.reference,
    }


def speeds(metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    """Sampled tokens by the time of sampling, tokens/sampled_per_second, and by the whole step's, tokens/second."""
    sampling = metrics.get("time/sample", seconds["generate"])  # where batches overlap, little of it is waited for
    return {
        "tokens/sampled_per_second": metrics["tokens/sampled"] / max(sampling, 1e-9),
        "tokens/second": metrics["tokens/sampled"] / max(seconds["step"], 1e-9),
    }


def repetition(tokens: Sequence[int], size: int = RUN) -> float:
    """Share of runs of `size` tokens that occurred before. 1 2 3 1 2 3 has 5 runs of two, two of them repeated: 0.4."""
    runs = list(zip(*(tokens[i:] for i in range(size)), strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def holds(rollout: Rollout, reference: object) -> bool:
    """Whether the reference stands, as a word of its own, near the end of what follows the reasoning."""
    answer = rollout.completion.text.rpartition("</think>")[2][-NEAR_THE_END:]
    return re.search(rf"(?<![\w.]){re.escape(str(reference))}(?![\w]|\.\d)", answer) is not None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
