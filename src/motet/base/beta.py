"""What is known of a rate after so many successes and failures: Beta distributions and mixtures of them. No numpy.

Example: Beta(1, 1) before, three successes and two failures: Beta(4, 3), with mean 4/7 and P(0.2 <= p <= 0.8) = 0.884.
A prior is a mixture because the rates of a set of problems often have two heaps, the hopeless and the easy, and the
Beta distribution has one, or both ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

Counts = tuple[int, int]
"""(successes, failures)."""


class Beta(NamedTuple):
    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)


DEGREE = 14
"""Of the Bernstein polynomial beside the fitted Beta: bumps with a standard deviation of 0.06 to 0.12 (ours)."""
ENDS = (Beta(1.0, 200.0), Beta(200.0, 1.0))
"""What is never solved and what is always solved: heaps of their own in most sets (ours)."""
ROUNDS = 100
"""Of the EM iteration; its weights change in the third decimal by then."""
TRUST = 2.0
"""Problems' worth of belief that the single Beta distribution is right (ours)."""


@dataclass(frozen=True)
class Belief:
    """A mixture of Beta distributions; the weights add up to 1."""

    parts: tuple[tuple[float, Beta], ...]

    @property
    def mean(self) -> float:
        return sum(weight * beta.mean for weight, beta in self.parts)

    def given(self, successes: float, failures: float) -> Belief:
        """The posterior: every part takes the counts in, and counts by how well it had foreseen them."""
        grown = [(w * moment(beta, successes, failures), beta) for w, beta in self.parts]
        whole = sum(weight for weight, _ in grown)
        return Belief(tuple((w / whole, Beta(b.a + successes, b.b + failures)) for w, b in grown))

    def below(self, x: float) -> float:
        return sum(weight * cdf(beta, x) for weight, beta in self.parts)

    def inside(self, low: float, high: float) -> float:
        """P(low <= p <= high)."""
        return max(0.0, self.below(high) - (self.below(low) if low > 0.0 else 0.0))

    def quantile(self, share: float) -> float:
        """The x with P(p <= x) = share, to 1e-6."""
        low, high = 0.0, 1.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if self.below(middle) < share else (low, middle)
        return (low + high) / 2

    def moment(self, j: float, k: float) -> float:
        """E[p^j (1 - p)^k]."""
        return sum(weight * moment(beta, j, k) for weight, beta in self.parts)


FLAT = Belief(((1.0, Beta(1.0, 1.0)),))


@lru_cache(maxsize=200_000)
def cdf(beta: Beta, x: float) -> float:
    """P(p <= x): the regularised incomplete beta function, by the series DLMF 8.17.8, to about 1e-12."""
    a, b = beta
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    # all terms are positive, and fall from the start below the mean: above it, the mirror image is computed
    if x > beta.mean:
        return 1.0 - cdf(Beta(b, a), 1.0 - x)
    term = total = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta(a, b)) / a
    n = 0
    while term > 1e-15 * total:
        term *= x * (a + b + n) / (a + 1.0 + n)
        total += term
        n += 1
    return total


def moment(beta: Beta, j: float, k: float) -> float:
    """E[p^j (1 - p)^k] = B(a + j, b + k) / B(a, b)."""
    return math.exp(log_beta(beta.a + j, beta.b + k) - log_beta(*beta))


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def learn(observed: Mapping[Counts, int]) -> Belief:
    """A prior from the counts of many problems: {(successes, failures): how many problems} (empirical Bayes).

    The Beta distribution of `fit`, and beside it two ends and the parts of a Bernstein polynomial, whose weights EM
    finds by maximum likelihood; the Beta starts with half of the weight and TRUST problems. Stopping early by what the
    counts say leaves the likelihood as it is, so problems with few and with many rollouts count alike.
    """
    bumps = [Beta(j + 1.0, DEGREE - j + 1.0) for j in range(DEGREE + 1)]
    parts = [fit(observed), *ENDS, *bumps]
    weights = [0.5, *[0.5 / (len(parts) - 1)] * (len(parts) - 1)]
    rows = [([moment(part, s, f) for part in parts], count) for (s, f), count in sorted(observed.items()) if s + f]
    whole = sum(count for _, count in rows) + TRUST
    for _ in range(ROUNDS if rows else 0):
        found = [TRUST, *[0.0] * (len(parts) - 1)]
        for likelihoods, count in rows:
            joint = [weight * likelihood for weight, likelihood in zip(weights, likelihoods, strict=True)]
            total = sum(joint)
            found = [value + count * share / total for value, share in zip(found, joint, strict=True)]
        weights = [value / whole for value in found]
    kept = [(weight, part) for weight, part in zip(weights, parts, strict=True) if weight > 1e-4]
    total = sum(weight for weight, _ in kept)
    return Belief(tuple((weight / total, part) for weight, part in kept)) if rows else FLAT


def fit(observed: Mapping[Counts, int]) -> Beta:
    """The Beta distribution under which the counts are likeliest; a problem's likelihood is B(a + s, b + f) / B(a, b).

    A weak normal penalty on the logit of the mean and on the log of the strength a + b (both with standard deviation
    1.5, around Beta(1, 1)) keeps a handful of problems from claiming to know all others. Nothing observed: Beta(1, 1).
    """
    rows = [(s, f, count) for (s, f), count in sorted(observed.items()) if s + f > 0]

    def score(logit: float, strength: float) -> float:
        beta = _shaped(logit, strength)
        whole = log_beta(*beta)
        likelihood = sum(n * (log_beta(beta.a + s, beta.b + f) - whole) for s, f, n in rows)
        return likelihood - (logit**2 + (strength - math.log(2.0)) ** 2) / (2 * 1.5**2)

    # a pattern search: the surface is smooth, and this needs no derivatives
    at, step = (0.0, math.log(2.0)), 1.0
    best = score(*at)
    while step > 1e-3:
        near = [(at[0] + step * x, at[1] + step * y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
        values = [score(*point) for point in near]
        if max(values) > best:
            best = max(values)
            at = near[values.index(best)]
        else:
            step /= 2
    return _shaped(*at)


def _shaped(logit: float, strength: float) -> Beta:
    mean = 1.0 / (1.0 + math.exp(-logit))
    total = math.exp(strength)
    return Beta(max(1e-3, mean * total), max(1e-3, (1.0 - mean) * total))
