"""From judged groups to what the learner trains on, and to the figures that a step reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from motet.base.recipe import Algorithm, Rewards
from motet.base.records import UNSCORED, Group, count_kinds
from motet.data.pack import Sample
from motet.rl.advantages import advantages, has_signal, reward_of, shuffled
from motet.rl.telltales import one_answer, repeated, telltales

SHARES = ("truncated", "malformed", "no_answer", "timeout", "too_complex")
"""Kinds of verdicts that are reported as a share of the rollouts."""


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


def verdicts(metrics: Mapping[str, float]) -> str:
    """How many rollouts of a step were judged to be what, the most frequent first: "14 infra_error, 2 truncated"."""
    found = {key.removeprefix("verdict/"): int(count) for key, count in metrics.items() if key.startswith("verdict/")}
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items(), key=lambda item: -item[1]) if count)


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
    """Of all groups, and of each domain as NAME/DOMAIN: reward, pass, live share and the one answer in any case, the
    others where there are several domains."""
    by_domain: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        by_domain[group.problem.domain].append(index)
    metrics = {"reward/mean": _rewarded(scores), "pass/mean": _passed(groups)}
    whole = _figures(groups, scores)
    metrics |= whole | one_answer(groups, "") | repeated(groups)
    for domain, members in sorted(by_domain.items()):
        own, own_scores = [groups[i] for i in members], [scores[i] for i in members]
        alone = {"groups/live_share": whole["groups/live_share"]}
        told = _figures(own, own_scores) if len(by_domain) > 1 else alone
        metrics |= {f"reward/{domain}": _rewarded(own_scores), f"pass/{domain}": _passed(own)}
        metrics |= {f"{name}/{domain}": value for name, value in told.items()} | one_answer(own, f"/{domain}")
    counted = count_kinds(r.verdict.kind for group in groups for r in group.rollouts)
    return metrics | {f"verdict/{kind}": count for kind, count in counted.items()}


def _figures(groups: Sequence[Group], scores: Sequence[Sequence[float | None]]) -> dict[str, float]:
    rollouts = [r for group in groups for r in group.rollouts]
    kinds = [{r.verdict.kind == "correct" for r in group.rollouts if r.verdict.score is not None} for group in groups]
    lengths = [len(r.completion.tokens) for r in rollouts]
    return {
        "groups/live_share": _mean([has_signal(own) for own in scores]),
        "groups/all_correct_share": _mean([kind == {True} for kind in kinds]),
        "groups/all_wrong_share": _mean([kind == {False} for kind in kinds]),
        "rollout/tokens_mean": _mean(lengths),
        "rollout/tokens_max": max(lengths),
        "tokens/sampled": sum(lengths),
        **telltales(groups),
        **{f"rollout/{kind}_share": _mean([r.verdict.kind == kind for r in rollouts]) for kind in SHARES},
        "rollout/unjudged": sum(r.verdict.kind in UNSCORED for r in rollouts),
    }


def _rewarded(scores: Sequence[Sequence[float | None]]) -> float:
    return _mean([score for own in scores for score in own if score is not None])


def _passed(groups: Sequence[Group]) -> float:
    return _mean([r.verdict.kind == "correct" for g in groups for r in g.rollouts if r.verdict.kind not in UNSCORED])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
