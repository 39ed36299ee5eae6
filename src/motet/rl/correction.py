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


class Weighed(NamedTuple):
    batch: Batch
    """With its weights multiplied, and with behaviour log-probabilities free of rounding."""
    importance_K: torch.Tensor
    """Anchor / behaviour before truncation, of the K tokens whose behaviour log-probability is known; float64."""
    truncated: int
    """Tokens above the cap."""
    masked: int
    """Sequences outside of the bound."""


@torch.no_grad()
def weigh(batch: Batch, anchor_N: torch.Tensor, config: Correction) -> Weighed:
    """The figures are taken whether the correction is on or not."""
    rounded_N = (anchor_N - batch.behaviour_N).abs() < ROUNDING
    batch = replace(batch, behaviour_N=torch.where(rounded_N, anchor_N, batch.behaviour_N))
    known_N = ~batch.behaviour_N.isnan()
    log_N = torch.where(known_N, anchor_N - batch.behaviour_N, torch.zeros_like(anchor_N)).clamp(-MOST, MOST)
    out_B = sequence_means(log_N, batch).abs() > math.log(config.sequence_bound)
    raw_N = log_N.exp()
    if config.on:
        kept_N = torch.where(out_B[batch.sequence_N], torch.zeros_like(raw_N), raw_N.clamp(max=config.token_cap))
        batch = replace(batch, weights_N=batch.weights_N * kept_N)
    truncated = int((raw_N > config.token_cap).sum())
    return Weighed(batch, raw_N[known_N].double(), truncated, int(out_B.sum()))


def figures(weighed: Sequence[Weighed]) -> dict[str, float]:
    """Of all batches together; the last one alone where the engine told nothing.

    correction/importance_mean, _max: anchor / behaviour before truncation. correction/ess: effective sample size of
    these as a share of the tokens. correction/truncated_share, of tokens, and correction/masked_share, of sequences:
    what the correction does, or would do. correction/told_share: of the tokens those whose log-probability the engine
    told; the others weigh 1.
    """
    known_K = torch.cat([found.importance_K for found in weighed])
    told = known_K.numel() / max(1, sum(found.batch.num_scored for found in weighed))
    if not known_K.numel():
        return {"correction/told_share": told}
    return {
        "correction/told_share": told,
        "correction/importance_mean": float(known_K.mean()),
        "correction/importance_max": float(known_K.max()),
        "correction/ess": float(known_K.sum() ** 2 / (known_K.numel() * known_K.square().sum())),
        "correction/truncated_share": sum(found.truncated for found in weighed) / known_K.numel(),
        "correction/masked_share": sum(found.masked for found in weighed) / sum(len(w.batch.order) for w in weighed),
    }


def weigh_anything(batches: Sequence[Batch]) -> bool:
    """Whether any token of a step has a weight: a step without would move the weights by momentum alone."""
    return any(bool(batch.weights_N.any()) for batch in batches)
