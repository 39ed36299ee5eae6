"""Losses: functions of log-probabilities, never of logits. They return a sum over tokens; the learner divides once.

`Loss = (Scored, Batch, extra_N | None) -> (summed loss, sums to report)`; legend: N scored tokens.

A loss that is a sum of known coefficients times log-probabilities says so by a method `coefficients(batch) -> [N]`:
then its gradients are formed while the logits exist, and its value is only reported. `entropy` on a loss says what it
wants of entropies: False, it does not look at them; True (and without it), figures; "gradient", differentiable ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from motet.data.pack import Batch
from motet.train.logprobs import Scored

Sums = dict[str, torch.Tensor]
Loss = Callable[[Scored, Batch, torch.Tensor | None], tuple[torch.Tensor, Sums]]
"""The third argument is what the caller gave the learner for this batch: in RL the anchor's log-probabilities."""


class CrossEntropy:
    """Negative log-likelihood, summed over the scored tokens."""

    def __call__(self, scored: Scored, batch: Batch, _: torch.Tensor | None = None) -> tuple[torch.Tensor, Sums]:
        nll = -scored.logprobs_N.sum()
        entropy = {} if scored.entropy_N is None else {"policy/entropy": scored.entropy_N.sum()}
        return nll, {"loss/nll": nll.detach(), **entropy}

    def coefficients(self, batch: Batch) -> torch.Tensor:
        return torch.full_like(batch.targets_N, -1.0, dtype=torch.float32)


cross_entropy = CrossEntropy()
