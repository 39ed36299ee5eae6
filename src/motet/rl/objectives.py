"""Policy objectives: functions of log-probabilities and advantages. Legend: N scored tokens, B sequences of a batch.

A surrogate says what each token costs; `PolicyLoss` weights the costs (`batch.weights_N`, see `rl/aggregation.py` and
`rl/correction.py`), adds the penalty on the divergence from a reference and the entropy bonus, and reports. Ratios are
of the current policy to the anchor: the learner's own log-probabilities at the start of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from motet.base.recipe import Algorithm
from motet.data.pack import Batch
from motet.train.logprobs import EntropyUse, Scored
from motet.train.losses import Sums

MOST = 20.0
"""A ratio of e^20 is far outside every bound, and an infinite one times a zero advantage would be NaN."""


class Surrogate(NamedTuple):
    cost_N: torch.Tensor
    high_N: torch.Tensor
    """Whether the token is held at the upper bound; `low_N` at the lower one. Such tokens have no gradient, but for
    CISPO, which only bounds their weight."""
    low_N: torch.Tensor


Objective = Callable[[torch.Tensor, torch.Tensor, Batch], Surrogate]
"""(logprobs_N, anchor_N, batch) -> what each token costs."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """PPO's clipped surrogate with asymmetric bounds, a token at a time (DAPO, arXiv 2503.14476, eq. 8-10).

    With ratio r = p / p_anchor and advantage A, a token costs -min(r A, clip(r, 1 - low, 1 + high) A).
    Example (low 0.2, high 0.28): r = 1.5, A = 1 costs -1.28 and has no gradient; r = 1.5, A = -1 costs 1.5.
    With `dual` (arXiv 1912.09729, eq. 5) a token with A < 0 costs at most -dual A: r = 5, A = -1, dual 3 costs 3.
    """

    low: float
    high: float
    dual: float | None = None

    def __call__(self, logprobs_N: torch.Tensor, anchor_N: torch.Tensor, batch: Batch) -> Surrogate:
        return self._of(_bounded(logprobs_N - anchor_N).exp(), batch.advantages_N)

    def _of(self, ratio_N: torch.Tensor, advantages_N: torch.Tensor) -> Surrogate:
        clipped_N = ratio_N.clamp(1.0 - self.low, 1.0 + self.high)
        gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
        high_N = (ratio_N > 1.0 + self.high) & (advantages_N > 0)
        if self.dual is not None:
            most_N = self.dual * advantages_N
            gain_N = torch.where(advantages_N < 0, torch.maximum(gain_N, most_N), gain_N)
            high_N |= (ratio_N > self.dual) & (advantages_N < 0)
        low_N = (ratio_N < 1.0 - self.low) & (advantages_N < 0)
        return Surrogate(-gain_N, high_N, low_N)


@dataclass(frozen=True, slots=True)
class SequenceClipped:
    """GSPO (arXiv 2507.18071, eq. 5-7): the clipped surrogate of a sequence's ratio, which all of its tokens share.

    The ratio is the geometric mean of its tokens': ratios 2 and 0.5 make 1. A published mean over sequences is
    `aggregation = "sequences"`.
    """

    low: float
    high: float

    def __call__(self, logprobs_N: torch.Tensor, anchor_N: torch.Tensor, batch: Batch) -> Surrogate:
        mean_B = sequence_means(logprobs_N - anchor_N, batch)
        return Clipped(self.low, self.high)._of(_bounded(mean_B)[batch.sequence_N].exp(), batch.advantages_N)


@dataclass(frozen=True, slots=True)
class WeightClipped:
    """CISPO (arXiv 2506.13585, eq. 4-5): a token costs -min(r, most) A log p, the ratio r without gradient, so that no
    token loses its gradient. The lower bound is left open, as there. Example (most 5): r = 9, A = 1: gradient -5."""

    most: float

    def __call__(self, logprobs_N: torch.Tensor, anchor_N: torch.Tensor, batch: Batch) -> Surrogate:
        ratio_N = _bounded(logprobs_N - anchor_N).detach().exp()
        high_N = ratio_N > self.most
        return Surrogate(
            -ratio_N.clamp(max=self.most) * batch.advantages_N * logprobs_N, high_N, torch.zeros_like(high_N)
        )


@dataclass(frozen=True, slots=True)
class DivergenceMasked:
    """DPPO by binary total variation (arXiv 2602.04879, eq. 11-13): the ratio is to the engine's policy, unclipped.

    A token is out where |p - p_engine| passes its bound while the ratio has moved as the advantage pushes: `high` where
    A > 0 and r > 1, `low` where A < 0 and r < 1. Example (0.2, 0.2): from 0.001 to 0.1, A = 1 stays in (r = 100); from
    0.5 to 0.8 is out (r = 1.6). Where the engine gave no log-probabilities, the anchor stands for it.
    """

    low: float
    high: float

    def __call__(self, logprobs_N: torch.Tensor, anchor_N: torch.Tensor, batch: Batch) -> Surrogate:
        from_N = torch.where(batch.behaviour_N.isnan(), anchor_N, batch.behaviour_N)
        ratio_N = _bounded(logprobs_N - from_N).exp()
        moved_N = logprobs_N.detach().exp() - from_N.exp()
        high_N = (moved_N > self.high) & (batch.advantages_N > 0)
        low_N = (moved_N < -self.low) & (batch.advantages_N < 0)
        cost_N = torch.where(high_N | low_N, torch.zeros_like(ratio_N), -ratio_N * batch.advantages_N)
        return Surrogate(cost_N, high_N, low_N)


Estimator = Literal["k1", "k2", "k3"]


def divergence(logprobs_N: torch.Tensor, reference_N: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Estimates of KL(current || reference) from one token each; with d = log p_reference - log p_current:

    k1 = -d: unbiased as a figure; as a loss its gradient is zero in expectation. k2 = d^2 / 2: biased as a figure; its
    gradient is that of the divergence. k3 = e^d - 1 - d: unbiased and never negative (GRPO's own, arXiv 2402.03300).
    """
    log_N = _bounded(reference_N - logprobs_N)
    if estimator == "k1":
        return -log_N
    return 0.5 * log_N.square() if estimator == "k2" else log_N.exp() - 1.0 - log_N


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """sum over tokens of weight x (surrogate + kl x divergence from the reference - entropy_bonus x entropy)."""

    objective: Objective
    kl: float = 0.0
    estimator: Estimator = "k3"
    entropy_bonus: float = 0.0

    @property
    def entropy(self) -> EntropyUse:
        return "gradient" if self.entropy_bonus else True

    def __call__(self, scored: Scored, batch: Batch, anchor_N: torch.Tensor | None) -> tuple[torch.Tensor, Sums]:
        assert anchor_N is not None and scored.entropy_N is not None
        found = self.objective(scored.logprobs_N, anchor_N, batch)
        loss = (batch.weights_N * found.cost_N).sum()
        sums = {"loss/policy": loss.detach(), "policy/entropy": scored.entropy_N.detach().sum()}
        if self.kl:
            assert batch.reference_N is not None
            kl_N = divergence(scored.logprobs_N, batch.reference_N, self.estimator)
            loss = loss + self.kl * (batch.weights_N * kl_N).sum()
            sums["policy/kl_to_reference"] = kl_N.detach().sum()
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * (batch.weights_N * scored.entropy_N).sum()
        sums["policy/clip_high_share"] = found.high_N.float().sum()
        sums["policy/clip_low_share"] = found.low_N.float().sum()
        return loss, sums | distances(scored.logprobs_N.detach(), anchor_N, batch.behaviour_N)


def ClippedPolicyLoss(clip_low: float, clip_high: float) -> PolicyLoss:
    """The default: clipped ratios to the anchor alone."""
    return PolicyLoss(Clipped(clip_low, clip_high))


def policy_loss(algorithm: Algorithm) -> PolicyLoss:
    objectives: dict[str, Objective] = {
        "clip": Clipped(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip),
        "gspo": SequenceClipped(algorithm.gspo_low, algorithm.gspo_high),
        "cispo": WeightClipped(algorithm.cispo_max),
        "dppo": DivergenceMasked(algorithm.dppo_low, algorithm.dppo_high),
    }
    return PolicyLoss(objectives[algorithm.objective], algorithm.kl, algorithm.kl_estimator, algorithm.entropy_bonus)


def distances(logprobs_N: torch.Tensor, anchor_N: torch.Tensor, behaviour_N: torch.Tensor) -> Sums:
    """Sums over tokens that say how far the current policy is from the anchor, and from the engine's where it told its
    log-probabilities (`policy/behaviour_known` counts those). KL is k3's estimate from the other policy's samples."""
    log_ratio_N = logprobs_N - anchor_N
    ratio_N = _bounded(log_ratio_N).exp()
    known_N = ~behaviour_N.isnan()
    from_engine_N = torch.where(known_N, _bounded(logprobs_N - behaviour_N), torch.zeros_like(logprobs_N))
    return {
        "policy/kl_to_anchor": (ratio_N - 1.0 - log_ratio_N).sum(),
        "policy/ratio_mean": ratio_N.sum(),
        "policy/ratio_square": ratio_N.square().sum(),
        "policy/m2_to_anchor": log_ratio_N.square().sum(),
        "policy/kl_to_behaviour": (from_engine_N.exp() - 1.0 - from_engine_N).sum(),
        "policy/m2_to_behaviour": from_engine_N.square().sum(),
        "policy/behaviour_known": known_N.float().sum(),
    }


def sequence_means(values_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[B] mean over each sequence's scored tokens; 0 for a sequence without any. Differentiable."""
    zeros_B = values_N.new_zeros(len(batch.order))
    sums_B = zeros_B.index_add(0, batch.sequence_N, values_N)
    counts_B = zeros_B.index_add(0, batch.sequence_N, torch.ones_like(values_N))
    return sums_B / counts_B.clamp(min=1.0)


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MOST, MOST)
