"""The engine's policy against the learner's: weights for what one sampled and the other is trained on.

Three policies: behaviour (the engine's, which sampled), anchor (the learner's at the start of the batch: the same
weights in other arithmetic, or newer ones), current. The objective's ratio is current to anchor; what lies between
behaviour and anchor is corrected here, once a batch and without gradient: a token weighs anchor / behaviour, truncated
at `token_cap` (truncated importance sampling); a sequence whose tokens' geometric mean of this leaves
[1 / sequence_bound, sequence_bound] is out. The mean goes by length: a product would throw out every long sequence.

Tokens without a behaviour log-probability weigh 1. Legend: N scored tokens, B sequences of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from motet.base.recipe import Correction
from motet.data.pack import Batch
from motet.rl.objectives import MOST, sequence_means

ROUNDING = 1e-3
"""A difference of log-probabilities below this is another order of summation, not another policy: the engine's value is
taken to be the anchor's, and the weight is 1, bit for bit. So a resumed run, whose engine decodes other completions
side by side, takes the same steps."""

Packed = list[list[Batch]]
"""Batches by minibatch."""
Logprobs = list[list[torch.Tensor]]
"""One tensor a batch of these."""


class Weighed(NamedTuple):
    packed: Packed
    """The batches with their weights multiplied, and with behaviour log-probabilities free of rounding."""
    metrics: dict[str, float]


@torch.no_grad()
def weigh(packed: Packed, anchors: Logprobs, config: Correction) -> Weighed:
    """The figures are taken whether the correction is on or not; there are none where the engine told nothing.

    correction/importance_mean, _max: anchor / behaviour before truncation. correction/ess: effective sample size of
    these as a share of the tokens. correction/truncated_share, of tokens, and correction/masked_share, of sequences:
    what the correction does, or would do.
    """
    weights, result = [], []
    masked = sequences = truncated = 0
    for batches, parts in zip(packed, anchors, strict=True):
        done = []
        for batch, anchor_N in zip(batches, parts, strict=True):
            rounded_N = (anchor_N - batch.behaviour_N).abs() < ROUNDING
            batch = replace(batch, behaviour_N=torch.where(rounded_N, anchor_N, batch.behaviour_N))
            known_N = ~batch.behaviour_N.isnan()
            log_N = torch.where(known_N, anchor_N - batch.behaviour_N, torch.zeros_like(anchor_N)).clamp(-MOST, MOST)
            out_B = sequence_means(log_N, batch).abs() > math.log(config.sequence_bound)
            raw_N = log_N.exp()
            masked, sequences = masked + int(out_B.sum()), sequences + out_B.numel()
            truncated += int((raw_N > config.token_cap).sum())
            weights.append(raw_N[known_N].double())
            if config.on:
                kept_N = torch.where(
                    out_B[batch.sequence_N], torch.zeros_like(raw_N), raw_N.clamp(max=config.token_cap)
                )
                batch = replace(batch, weights_N=batch.weights_N * kept_N)
            done.append(batch)
        result.append(done)
    known = torch.cat(weights)
    if not known.numel():
        return Weighed(result, {})
    metrics = {
        "correction/importance_mean": float(known.mean()),
        "correction/importance_max": float(known.max()),
        "correction/ess": float(known.sum() ** 2 / (known.numel() * known.square().sum())),
        "correction/truncated_share": truncated / known.numel(),
        "correction/masked_share": masked / sequences,
    }
    return Weighed(result, metrics)


def weigh_anything(batches: Sequence[Batch]) -> bool:
    """Whether any token of a step has a weight: a step without would move the weights by momentum alone."""
    return any(bool(batch.weights_N.any()) for batch in batches)
