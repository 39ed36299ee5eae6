"""From judged groups to what the learner trains on, and to the figures that a step reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from motet.base.recipe import Algorithm, Rewards
from motet.base.records import UNSCORED, Group, count_kinds
from motet.data.pack import Sample
from motet.rl.advantages import advantages, has_signal, reward_of, shuffled
from motet.rl.telltales import one_answer, telltales


class Experience(NamedTuple):
    live: list[list[Sample]]
    """One list of samples for each group with a signal."""
    metrics: dict[str, float]


OwnRewards = Mapping[str, Mapping[Any, float | None]]
"""By domain, what it rewards otherwise than `Rewards` does."""


def build(
    groups: Sequence[Group], rewards: Rewards, algorithm: Algorithm, seed: int, own: OwnRewards | None = None
) -> Experience:
    """Groups without a signal (all rewards equal) and unscored rollouts are out of the loss; all are counted."""
    scores = [rewards_of(group, rewards, own or {}) for group in groups]
    metrics = _describe(groups, scores)
    if algorithm.shuffle_rewards:
        scores = shuffled(scores, seed)
    live: list[list[Sample]] = []
    domains = [group.problem.domain for group in groups]
    for group, found in zip(groups, advantages(scores, domains, algorithm), strict=True):
        if found is not None:
            live.append(
                [
                    Sample(
                        tokens=r.prompt_tokens + r.completion.tokens,
                        loss_mask=(False,) * len(r.prompt_tokens) + (True,) * len(r.completion.tokens),
                        advantage=advantage,
                        logprobs=r.completion.logprobs,
                        domain=group.problem.domain,
                    )
                    for r, advantage in zip(group.rollouts, found, strict=True)
                    if advantage is not None
                ]
            )
    metrics["groups/in_loss"] = len(live)
    return Experience(live, metrics)


def rewards_of(group: Group, rewards: Rewards, own: OwnRewards) -> list[float | None]:
    """Of each rollout, by the table of the group's domain."""
    table = {**rewards.model_dump(), **own.get(group.problem.domain, {})}
    partial = group.problem.metadata.get("scoring") == "mean"
    return [reward_of(rollout.verdict, table, partial) for rollout in group.rollouts]


def minibatches(live: Sequence[Sequence[Sample]], count: int) -> list[list[Sample]]:
    """Whole groups, dealt out so that the parts differ by one group at most; fewer parts when there are fewer groups.

    Example: five groups in two minibatches: the groups 0, 2, 4 and the groups 1, 3.
    """
    parts = [[sample for group in live[i::count] for sample in group] for i in range(count)]
    return [part for part in parts if part]


def _describe(groups: Sequence[Group], scores: Sequence[Sequence[float | None]]) -> dict[str, float]:
    by_domain: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        by_domain[group.problem.domain].append(index)
    metrics: dict[str, float] = {}
    everything = list(range(len(groups)))
    for suffix, members in [("", everything), *((f"/{d}", m) for d, m in sorted(by_domain.items()))]:
        rollouts = [r for i in members for r in groups[i].rollouts]
        rewards = [s for i in members for s in scores[i] if s is not None]
        kinds = [
            {r.verdict.kind == "correct" for r in groups[i].rollouts if r.verdict.score is not None} for i in members
        ]
        judged = [r for r in rollouts if r.verdict.kind not in UNSCORED]
        metrics[f"reward{suffix or '/mean'}"] = _mean(rewards)
        metrics[f"pass{suffix or '/mean'}"] = _mean([r.verdict.kind == "correct" for r in judged])
        metrics[f"groups/live_share{suffix}"] = _mean([has_signal(scores[i]) for i in members])
        metrics |= one_answer([groups[i] for i in members], suffix)
        if not suffix:
            metrics["groups/all_correct_share"] = _mean([k == {True} for k in kinds])
            metrics["groups/all_wrong_share"] = _mean([k == {False} for k in kinds])
            lengths = [len(r.completion.tokens) for r in rollouts]
            metrics["rollout/tokens_mean"] = _mean(lengths)
            metrics["rollout/tokens_max"] = max(lengths)
            metrics["tokens/sampled"] = sum(lengths)
            metrics |= telltales(groups)
            counted = count_kinds(r.verdict.kind for r in rollouts)
            metrics |= {f"verdict/{kind}": count for kind, count in counted.items()}
            for kind in ("truncated", "malformed", "no_answer", "timeout", "too_complex"):
                metrics[f"rollout/{kind}_share"] = _mean([r.verdict.kind == kind for r in rollouts])
            metrics["rollout/unjudged"] = sum(r.verdict.kind in UNSCORED for r in rollouts)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
