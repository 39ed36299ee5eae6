"""The inner loop: S = passes x minibatches gradient steps on one sampled batch, fewer when it is no longer good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from motet.base.errors import UserError
from motet.base.recipe import Algorithm, Correction, RlStage
from motet.base.run import Timers, log
from motet.data.pack import Batch, Sample, pack
from motet.rl.aggregation import dealt, domain_shares, weighted
from motet.rl.correction import Weighed, figures, weigh, weigh_anything
from motet.rl.experience import minibatches
from motet.rl.objectives import PolicyLoss, policy_loss
from motet.train.learner import Learner
from motet.train.logprobs import Scored
from motet.train.losses import Sums


def learn(
    learner: Learner,
    live: Sequence[Sequence[Sample]],
    config: RlStage,
    time: Timers,
    reference: Learner | None = None,
    own_numbers: bool = False,
    fresh: bool = True,
) -> dict[str, float]:
    """Takes the steps and returns what to report: means over them, and figures by inner step as NAME/1, NAME/2, ...

    `live`: the samples of each group with a signal. `reference`: the weights that `algorithm.kl` holds on to.
    `own_numbers`: the engine computes with the learner's weights and in its precision; where the first minibatch shows
    that it does, its log-probabilities are the anchor of the others, which are then not compared. `fresh`: the rollouts
    are of the learner's present weights; between others the engine's arithmetic cannot be compared.
    """
    algorithm, temperature = config.algorithm, config.sampling.temperature
    _refuse_longer([sample for group in live for sample in group], config)
    dealt_out = minibatches(dealt(live, algorithm), algorithm.minibatches)
    parts = [weighted(part, algorithm, config.sampling.max_tokens) for part in dealt_out]
    packed = [
        pack(part, config.micro_batch_tokens, learner.device, learner.rows, learner.shares_prompts) for part in parts
    ]
    if reference is not None:
        with time("reference"):
            packed = [_with_reference(batches, reference.logprobs(batches, temperature)) for batches in packed]
    with time("train"):
        opening = Opening.take(learner, packed[0], config)
    with time("anchor"):
        compared = [opening.anchors]
        if not (own_numbers and fresh and _same(packed[0], opening.anchors) and _known(packed[1:])):
            compared += [learner.logprobs(batches, temperature) for batches in packed[1:]]
        anchors = compared + [[batch.behaviour_N for batch in batches] for batches in packed[len(compared) :]]
    metrics = engine_difference(packed[: len(compared)], compared) if fresh else {}
    weights = [opening.weighed] + [
        [weigh(batch, anchor_N, algorithm.correction) for batch, anchor_N in zip(batches, part, strict=True)]
        for batches, part in zip(packed[1:], anchors[1:], strict=True)
    ]
    metrics |= figures([found for part in weights for found in part])
    corrected = [[found.batch for found in part] for part in weights]
    shares = domain_shares(parts, corrected)
    with time("train"):
        metrics |= _steps(learner, corrected, anchors, config, opening)
    if len(shares) > 1:
        metrics |= {f"loss/share/{domain}": share for domain, share in shares.items()}
    return metrics | {"tokens/scored": sum(b.num_scored for batches in packed for b in batches)}


def _refuse_longer(samples: Sequence[Sample], config: RlStage) -> None:
    longest = max((len(sample.tokens) for sample in samples), default=0)
    if longest > config.micro_batch_tokens:
        raise UserError(
            f"a rollout of {longest} tokens, prompt and completion, is longer than micro_batch_tokens = "
            f"{config.micro_batch_tokens}, the most that one pass may hold (sampling.max_tokens = "
            f"{config.sampling.max_tokens}). Raise it: the same command goes on with the rollouts that are there."
        )


@dataclass
class Opening:
    """A batch's first step up to its update. The policy is the anchor still: one forward pass is both."""

    anchors: list[torch.Tensor]
    weighed: list[Weighed]
    step: Mapping[str, float] | None
    """What `accumulate` told; None where it is still to be called."""

    @staticmethod
    def take(learner: Learner, batches: Sequence[Batch], config: RlStage) -> Opening:
        algorithm, temperature = config.algorithm, config.sampling.temperature
        loss = _Opening(policy_loss(algorithm), algorithm.correction)
        if learner.world.size == 1:
            step = learner.accumulate(batches, loss, None, temperature)
            return Opening(loss.anchors, loss.weighed, step)
        # each process would see the anchors of its own rows alone, and the figures are those of all
        anchors = learner.logprobs(batches, temperature)
        weighed = [weigh(b, anchor_N, algorithm.correction) for b, anchor_N in zip(batches, anchors, strict=True)]
        return Opening(anchors, weighed, None)


class _Opening:
    """The policy's loss with the anchor, and the weights that follow from it, taken from the same forward pass."""

    def __init__(self, loss: PolicyLoss, correction: Correction) -> None:
        self.entropy = loss.entropy
        self.anchors: list[torch.Tensor] = []
        self.weighed: list[Weighed] = []
        self._loss, self._correction = loss, correction

    def __call__(self, scored: Scored, batch: Batch, _: torch.Tensor | None) -> tuple[torch.Tensor, Sums]:
        anchor_N = scored.logprobs_N.detach()
        found = weigh(batch, anchor_N, self._correction)
        self.anchors.append(anchor_N)
        self.weighed.append(found)
        return self._loss(scored, found.batch, anchor_N)


def _steps(
    learner: Learner,
    packed: Sequence[Sequence[Batch]],
    anchors: Sequence[Sequence[torch.Tensor]],
    config: RlStage,
    opening: Opening,
) -> dict[str, float]:
    algorithm = config.algorithm
    loss = policy_loss(algorithm)
    pairs = [pair for pair in zip(packed, anchors, strict=True) if weigh_anything(pair[0])]
    opened = opening.step
    if opened is not None and not weigh_anything(packed[0]):
        learner.discard()
        opened = None
    by_step: dict[str, float] = {}
    sums: dict[str, float] = {}
    inner, broken = 0, ""
    for batches, anchor in pairs * algorithm.passes:
        found = opened or learner.accumulate(batches, loss, anchor, config.sampling.temperature)
        opened = None
        step = _described(dict(found))
        by_step |= {f"{name}/{inner + 1}": step[name] for name in BY_STEP if name in step}
        broken = crossed(step, algorithm) if inner else ""
        if broken:
            learner.discard()
            break
        step |= learner.update()
        inner += 1
        for key, value in step.items():
            if key not in ONLY_BY_STEP:
                sums[key] = sums.get(key, 0.0) + value
    if not pairs:
        log.info("no step taken on this batch: engine and learner are too far apart on every sequence "
                 "(algorithm.correction.sequence_bound)")  # fmt: skip
    if broken:
        log.info("%d of %d steps taken on this batch: %s", inner, len(pairs) * algorithm.passes, broken)
    if algorithm.guard.on:
        by_step["guard/stopped"] = float(bool(broken))
    return by_step | {key: value / inner for key, value in sums.items()} | {"inner_steps": inner}


def crossed(figures: Mapping[str, float], algorithm: Algorithm) -> str:
    """Which bound the policy has crossed, in words; empty while the batch is good."""
    guard = algorithm.guard
    if not guard.on:
        return ""
    most_clipped = 0.0 if algorithm.objective == "gspo" else guard.clip_share
    clipped = figures["policy/clip_low_share"] + figures["policy/clip_high_share"]
    other = "behaviour" if "policy/kl_to_behaviour" in figures else "anchor"
    m2, kl, ess = figures[f"policy/m2_to_{other}"], figures[f"policy/kl_to_{other}"], figures["policy/ess"]
    found = [
        (guard.m2 and m2 > guard.m2, f"mean square of the log-ratio to the {other} {m2:.4g} > guard.m2 {guard.m2:g}"),
        (ess < guard.ess, f"effective sample size {ess:.3f} < guard.ess {guard.ess:g}"),
        (most_clipped and clipped > most_clipped, f"share of clipped tokens {clipped:.3f} > guard.clip_share "
         f"{guard.clip_share:g}"),
        (guard.kl and kl > guard.kl, f"divergence from the {other} {kl:.4g} > guard.kl {guard.kl:g}"),
    ]  # fmt: skip
    return "; ".join(text for over, text in found if over)


ONLY_BY_STEP = ("policy/ratio_mean", "policy/ratio_std")
"""Figures that start at the same value in every batch: their mean over inner steps would say nothing."""
BY_STEP = (
    *ONLY_BY_STEP, "policy/ess", "policy/clip_low_share", "policy/clip_high_share", "policy/kl_to_anchor",
    "policy/kl_to_behaviour", "policy/m2_to_anchor", "policy/m2_to_behaviour",
)  # fmt: skip


def _described(found: dict[str, float]) -> dict[str, float]:
    """Moments as the figures that are reported: the ratio's deviation, and the effective sample size as a share,
    (sum r)^2 / (N sum r^2). Figures against the engine are means over the tokens whose log-probability it told."""
    mean, square = found["policy/ratio_mean"], found.pop("policy/ratio_square")
    found["policy/ratio_std"] = max(0.0, square - mean**2) ** 0.5
    found["policy/ess"] = mean**2 / square if square else 0.0
    known = found.pop("policy/behaviour_known")
    for name in ("policy/kl_to_behaviour", "policy/m2_to_behaviour"):
        value = found.pop(name)
        if known:
            found[name] = value / known
    return found


def engine_difference(packed: Sequence[Sequence[Batch]], anchors: Sequence[Sequence[torch.Tensor]]) -> dict[str, float]:
    """How far the engine's log-probabilities are from the learner's under the same weights, token by token."""
    pairs = [
        (batch.behaviour_N, a)
        for batches, part in zip(packed, anchors, strict=True)
        for batch, a in zip(batches, part, strict=True)
    ]
    difference_N = torch.cat([(anchor - behaviour).abs() for behaviour, anchor in pairs])
    difference_N = difference_N[~difference_N.isnan()]
    if difference_N.numel() == 0:
        return {}
    return {
        "engine/logprob_diff_mean": float(difference_N.mean()),
        "engine/logprob_diff_max": float(difference_N.max()),
    }


SAME = 1e-4
"""Log-probabilities closer than this, every one of them, are those of the same weights in the same precision, summed in
another order."""


def _same(batches: Sequence[Batch], anchors: Sequence[torch.Tensor]) -> bool:
    return all(bool(((b.behaviour_N - a_N).abs() < SAME).all()) for b, a_N in zip(batches, anchors, strict=True))


def _known(packed: Sequence[Sequence[Batch]]) -> bool:
    """Whether the engine told the log-probability of every token."""
    return not any(bool(batch.behaviour_N.isnan().any()) for batches in packed for batch in batches)


def _with_reference(batches: Sequence[Batch], logprobs: Sequence[torch.Tensor]) -> list[Batch]:
    return [replace(batch, reference_N=own_N) for batch, own_N in zip(batches, logprobs, strict=True)]
