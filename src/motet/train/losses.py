"""Losses: functions of log-probabilities, never of logits. They return a sum over tokens; the learner divides once.

`Loss = (Scored, Batch, extra_N | None) -> (summed loss, sums to report)`; legend: N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from motet.data.pack import Batch
from motet.train.logprobs import Scored

Sums = dict[str, torch.Tensor]
Loss = Callable[[Scored, Batch, torch.Tensor | None], tuple[torch.Tensor, Sums]]
"""The third argument is what the caller gave the learner for this batch: in RL the anchor's log-probabilities."""


def cross_entropy(scored: Scored, batch: Batch, _: torch.Tensor | None = None) -> tuple[torch.Tensor, Sums]:
    """Negative log-likelihood, summed over the scored tokens."""
    nll = -scored.logprobs_N.sum()
    return nll, {"loss/nll": nll.detach(), "policy/entropy": scored.entropy_N.sum()}
