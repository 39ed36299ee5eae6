"""The loss of SFT told apart by the length of the conversation and by the position in it.

A run whose loss jumps for long conversations alone, or for late positions alone, has taken too large a step in length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from motet.base.records import content_id
from motet.data.pack import Batch, Sample, pack
from motet.train.learner import Learner
from motet.train.logprobs import Scored
from motet.train.losses import Sums, cross_entropy

AT_ONCE = 64
"""Conversations in memory while a loss is measured."""
BY = ("length", "position")


class CrossEntropyByLength:
    """Cross-entropy, and of each bucket the sum and the number of its tokens. Buckets end at `ends`, the last one
    holding everything beyond."""

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = list(ends)

    def __call__(self, scored: Scored, batch: Batch, extra: torch.Tensor | None = None) -> tuple[torch.Tensor, Sums]:
        value, sums = cross_entropy(scored, batch, extra)
        nll_N = -scored.logprobs_N.detach().double()
        for by, values_N in zip(BY, _lengths_and_positions(batch), strict=True):
            bucket_N = torch.bucketize(values_N, torch.tensor(self._ends[:-1], device=values_N.device))
            for name, of_N in (("loss", nll_N), ("tokens", torch.ones_like(nll_N))):
                totals = of_N.new_zeros(len(self._ends)).index_add_(0, bucket_N, of_N)
                sums |= {f"{name}/{by}/{end}": totals[i] for i, end in enumerate(self._ends)}
        return value, sums

    def coefficients(self, batch: Batch) -> torch.Tensor:
        return cross_entropy.coefficients(batch)


def means(found: Mapping[str, float], count: int) -> dict[str, float]:
    """What the learner returned (each sum divided by the step's `count` of tokens) as means by bucket: loss/length/END,
    loss/position/END and the numbers of tokens behind them. Buckets without a token are left out."""
    result: dict[str, float] = {}
    for key, value in found.items():
        name, _, bucket = key.partition("/")
        if name == "tokens":
            if value:
                result[key] = round(value * count)
        elif not bucket.startswith(BY):
            result[key] = value
        elif found[f"tokens/{bucket}"]:
            result[key] = value / found[f"tokens/{bucket}"]
    return result


class Measured(NamedTuple):
    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    """{key, tokens, scored, nll} of each conversation; equal ones have equal keys."""


def measure(learner: Learner, samples: Iterable[Sample], ends: Sequence[int], max_tokens: int) -> Measured:
    """The loss of `samples` under the present weights, as heldout/loss and heldout/loss/BY/END, means a token."""
    loss, totals, rows = CrossEntropyByLength(ends), dict[str, float](), list[dict[str, Any]]()
    for own in _chunks(samples):
        batches = pack(own, max_tokens, learner.device, learner.rows)
        for batch, logprobs_N in zip(batches, learner.logprobs(batches), strict=True):
            _, sums = loss(Scored(logprobs_N, None), batch)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            nll = torch.zeros(len(batch.order), dtype=torch.float64, device=logprobs_N.device)
            nll.index_add_(0, batch.sequence_N, -logprobs_N.double())
            rows += [
                {"key": content_id(str(own[place].tokens)), "tokens": len(own[place].tokens),
                 "scored": sum(own[place].loss_mask[1:]), "nll": value}
                for place, value in zip(batch.order, nll.tolist(), strict=True)
            ]  # fmt: skip
    count = sum(row["scored"] for row in rows)
    found = means({name: value / count for name, value in totals.items()}, count)
    metrics = {f"heldout/{name.replace('loss/nll', 'loss')}": value for name, value in found.items()}
    return Measured(metrics, sorted(rows, key=lambda row: str(row["key"])))


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while own := list(islice(rest, AT_ONCE)):
        yield own


def _lengths_and_positions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each scored token: tokens of its conversation, and which of them it is, from 1."""
    starts = batch.documents.starts.to(torch.long)
    lengths_S = starts[1:] - starts[:-1]
    return lengths_S[batch.sequence_N], batch.positions_T[batch.scored_N] + 2
