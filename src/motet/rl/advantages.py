"""Advantages: from the rewards of groups to one number a rollout. None: not scored, or a group without a signal."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal

from motet.base.recipe import Algorithm
from motet.base.records import UNSCORED, Verdict

EPSILON = 1e-6
"""Rewards closer than this count as equal."""


def reward_of(verdict: Verdict, rewards: Mapping[str, float | None], partial: bool = False) -> float | None:
    """What a verdict earns, by kind; None takes the rollout out of the loss and out of its group's statistics.

    With `partial` an incorrect answer earns its score's share of the way from `incorrect` to `correct`.
    """
    if verdict.kind in UNSCORED:
        return None
    earned, most = rewards[verdict.kind], rewards["correct"]
    if partial and verdict.kind == "incorrect" and verdict.score and earned is not None and most is not None:
        return earned + verdict.score * (most - earned)
    return earned


def standardised(
    rewards: Sequence[float | None], std: Literal["population", "sample"] = "population"
) -> list[float | None] | None:
    """(reward - mean) / deviation over the scored rollouts of a group (GRPO, arXiv 2402.03300, section 4.1.2).

    Rewards 1, 0, 1, 0 give 1, -1, 1, -1 with the population deviation (0.5) and +-0.866 with n - 1 (0.577).
    None for a group without signal: fewer than two scored rewards, or all of them equal.
    """
    if not has_signal(rewards):
        return None
    scored = [r for r in rewards if r is not None]
    mean = sum(scored) / len(scored)
    deviation = _deviation(scored, std)
    return [None if r is None else (r - mean) / deviation for r in rewards]


def has_signal(rewards: Sequence[float | None]) -> bool:
    scored = [r for r in rewards if r is not None]
    return len(scored) >= 2 and max(scored) - min(scored) >= EPSILON


def centred(rewards: Sequence[float | None]) -> list[float | None] | None:
    """reward - mean of the group (Dr. GRPO, arXiv 2503.20783). Rewards 1, 0, 0, 0 give 0.75, -0.25, -0.25, -0.25."""
    if not has_signal(rewards):
        return None
    scored = [r for r in rewards if r is not None]
    mean = sum(scored) / len(scored)
    return [None if r is None else r - mean for r in rewards]


def leave_one_out(rewards: Sequence[float | None]) -> list[float | None] | None:
    """reward - mean of the others (RLOO, arXiv 2402.14740). Rewards 1, 0, 0, 0 give 1, -1/3, -1/3, -1/3."""
    if not has_signal(rewards):
        return None
    scored = [r for r in rewards if r is not None]
    total, others = sum(scored), len(scored) - 1
    return [None if r is None else r - (total - r) / others for r in rewards]


def advantages(
    rewards: Sequence[Sequence[float | None]], domains: Sequence[str], algorithm: Algorithm
) -> list[list[float | None] | None]:
    """Of each group of a batch, as `algorithm.advantage` says. `domains`: of each group.

    "domain" divides what `centred` gives by the deviation of all scored rewards of the batch in that domain, groups
    without a signal included (as arXiv 2508.08221 does over the batch): a rare success counts no more than it is far
    from its group's mean, and domains with other rewards come to one scale.
    """
    if algorithm.advantage == "group":
        return [standardised(group, algorithm.advantage_std) for group in rewards]
    if algorithm.advantage == "leave_one_out":
        return [leave_one_out(group) for group in rewards]
    plain = [centred(group) for group in rewards]
    if algorithm.advantage == "centred":
        return plain
    pooled: dict[str, list[float]] = {}
    for domain, group in zip(domains, rewards, strict=True):
        pooled.setdefault(domain, []).extend(r for r in group if r is not None)
    scale = {domain: _deviation(pool, algorithm.advantage_std) for domain, pool in pooled.items() if len(pool) > 1}
    return [
        None if group is None else [None if a is None else a / scale[domain] for a in group]
        for domain, group in zip(domains, plain, strict=True)
    ]


def _deviation(values: Sequence[float], std: Literal["population", "sample"]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - (std == "sample")))


def shuffled(rewards: Sequence[Sequence[float | None]], seed: int) -> list[list[float | None]]:
    """All scored rewards of a batch of groups, permuted among their places: a control with nothing to learn."""
    places = [(g, i) for g, group in enumerate(rewards) for i, r in enumerate(group) if r is not None]
    values = [rewards[g][i] for g, i in places]
    random.Random(seed).shuffle(values)
    result = [list(group) for group in rewards]
    for (g, i), value in zip(places, values, strict=True):
        result[g][i] = value
    return result
