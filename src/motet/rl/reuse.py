"""The inner loop: S = passes x minibatches gradient steps on one sampled batch, fewer when it is no longer good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from motet.base.recipe import Algorithm, RlStage
from motet.base.run import Timers, log
from motet.data.pack import Batch, Sample, pack
from motet.rl.aggregation import domain_shares, weighted
from motet.rl.correction import Logprobs, Packed, weigh, weigh_anything
from motet.rl.experience import minibatches
from motet.rl.objectives import policy_loss
from motet.train.learner import Learner


def learn(
    learner: Learner, live: Sequence[Sequence[Sample]], config: RlStage, time: Timers, reference: Learner | None = None
) -> dict[str, float]:
    """Takes the steps and returns what to report: means over them, and figures by inner step as NAME/1, NAME/2, ...

    `live`: the samples of each group with a signal. `reference`: the weights that `algorithm.kl` holds on to.
    """
    algorithm, temperature = config.algorithm, config.sampling.temperature
    parts = [weighted(part, algorithm, config.sampling.max_tokens) for part in minibatches(live, algorithm.minibatches)]
    with time("anchor"):
        packed = [pack(part, config.micro_batch_tokens, learner.device, learner.rows) for part in parts]
        anchors = [learner.logprobs(batches, temperature) for batches in packed]
    if reference is not None:
        with time("reference"):
            packed = [_with_reference(batches, reference.logprobs(batches, temperature)) for batches in packed]
    metrics = engine_difference(packed, anchors)
    packed, corrected = weigh(packed, anchors, algorithm.correction)
    metrics |= corrected
    with time("train"):
        metrics |= _steps(learner, packed, anchors, config)
    shares = domain_shares([sample for part in parts for sample in part])
    if len(shares) > 1:
        metrics |= {f"loss/share/{domain}": share for domain, share in shares.items()}
    return metrics | {"tokens/scored": sum(b.num_scored for batches in packed for b in batches)}


def _steps(learner: Learner, packed: Packed, anchors: Logprobs, config: RlStage) -> dict[str, float]:
    algorithm = config.algorithm
    loss = policy_loss(algorithm)
    pairs = [pair for pair in zip(packed, anchors, strict=True) if weigh_anything(pair[0])]
    by_step: dict[str, float] = {}
    sums: dict[str, float] = {}
    inner, broken = 0, ""
    for batches, anchor in pairs * algorithm.passes:
        step = _described(learner.accumulate(batches, loss, anchor, config.sampling.temperature))
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


def _with_reference(batches: Sequence[Batch], logprobs: Sequence[torch.Tensor]) -> list[Batch]:
    return [replace(batch, reference_N=own_N) for batch, own_N in zip(batches, logprobs, strict=True)]
