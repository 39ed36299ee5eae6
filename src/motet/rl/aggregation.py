"""What each token counts for in a step's loss: one weight a sample, so that the learner divides once by N tokens.

With weight w a step's loss is sum(w x cost) / N, N the step's number of scored tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from motet.base.recipe import Algorithm
from motet.data.pack import Batch, Sample


def weighted(samples: Sequence[Sample], algorithm: Algorithm, longest: int) -> list[Sample]:
    """The samples of one optimizer step with their weights; `longest` is `sampling.max_tokens`.

    "domains": the mean over each domain's tokens, then over domains (by `domain_weights`). "tokens": the mean over all
    tokens, w = 1. "sequences": the mean over each sequence's tokens, then over sequences. "constant": Dr. GRPO's
    (arXiv 2503.20783), the sum over tokens divided by sequences x longest. Example, lengths 1 and 3 of domains a and b:
    "domains" and "sequences" weight tokens with 2 and 2/3, "constant" with longest 8 with 4 / 16.
    """
    lengths = [_scored(sample) for sample in samples]
    total = sum(lengths)
    if algorithm.aggregation == "domains":
        shares = _domain_shares(samples, lengths, algorithm.domain_weights)
        counts = _by_domain(samples, lengths)
        weights = [total * shares[s.domain] / counts.get(s.domain, 1.0) for s in samples]
    elif algorithm.aggregation == "sequences":
        weights = [total / (len(samples) * max(length, 1)) for length in lengths]
    elif algorithm.aggregation == "constant":
        weights = [total / (len(samples) * longest)] * len(samples)
    else:
        weights = [1.0] * len(samples)
    weights = _within_shares(samples, lengths, weights, algorithm.most_of_a_domain)
    return [sample if w == 1.0 else replace(sample, weight=w) for sample, w in zip(samples, weights, strict=True)]


def domain_shares(parts: Sequence[Sequence[Sample]], packed: Sequence[Sequence[Batch]]) -> dict[str, float]:
    """Each domain's share of the weighted tokens of all minibatches, as they are learnt from, those that
    `rl/correction.py` has left out or weighed included: what part of the gradient is its own."""
    found = {sample.domain: 0.0 for part in parts for sample in part}
    if len(found) == 1:  # nothing to fetch from a GPU
        return dict.fromkeys(found, 1.0)
    for part, batches in zip(parts, packed, strict=True):
        for batch in batches:
            zeros_B = batch.weights_N.new_zeros(len(batch.order))
            weights_B = zeros_B.index_add(0, batch.sequence_N, batch.weights_N).tolist()
            for index, weight in zip(batch.order, weights_B, strict=True):
                found[part[index].domain] += weight
    total = sum(found.values())
    return {domain: value / total if total else 0.0 for domain, value in sorted(found.items())}


def dealt(live: Sequence[Sequence[Sample]], algorithm: Algorithm) -> Sequence[Sequence[Sample]]:
    """The groups in the order in which minibatches are dealt out. Where a domain's share is bounded those of a domain
    come one after the other, so that each minibatch has some of it: one that has a single domain cannot be bounded."""
    return sorted(live, key=lambda group: group[0].domain) if algorithm.most_of_a_domain < 1.0 else live


def capped(shares: Mapping[str, float], most: float) -> dict[str, float]:
    """Shares of which none exceeds `most` (at least one over their number), the others scaled up alike; sum 1.

    Example: 0.7, 0.2, 0.1 with at most 0.5 become 0.5, 1/3, 1/6.
    """
    most = max(most, 1.0 / len(shares))
    result, held = dict(shares), set[str]()
    while over := {d for d, share in result.items() if d not in held and share > most + 1e-12}:
        held |= over
        rest = sum(shares[d] for d in shares if d not in held)
        left = 1.0 - most * len(held)
        result = {d: most if d in held else shares[d] * left / rest for d in shares}
    return result


def _within_shares(
    samples: Sequence[Sample], lengths: Sequence[int], weights: Sequence[float], most: float
) -> list[float]:
    tokens = _by_domain(samples, [w * n for w, n in zip(weights, lengths, strict=True)])
    total = sum(tokens.values())
    shares = {domain: value / total for domain, value in tokens.items()} if total else {}
    if len(shares) < 2 or max(shares.values()) <= most:
        return list(weights)
    allowed = capped(shares, most)
    return [w * allowed.get(s.domain, 0.0) / shares.get(s.domain, 1.0) for s, w in zip(samples, weights, strict=True)]


def _domain_shares(samples: Sequence[Sample], lengths: Sequence[int], given: Mapping[str, float]) -> dict[str, float]:
    present = {s.domain for s, length in zip(samples, lengths, strict=True) if length}
    total = sum(given.get(domain, 1.0) for domain in present)
    return {s.domain: given.get(s.domain, 1.0) / total if s.domain in present else 0.0 for s in samples}


def _by_domain(samples: Sequence[Sample], values: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for sample, value in zip(samples, values, strict=True):
        found[sample.domain] += value
    return {domain: value for domain, value in found.items() if value}


def _scored(sample: Sample) -> int:
    return sum(sample.loss_mask[1:])
