"""How hard each problem is, from its rollouts: a posterior, whether it lies in the band, how likely its group is live.

Pure functions of counts. A truncated or unjudged rollout is no evidence of the pass rate; how often a domain's rollouts
are truncated is a rate of its own, and the forecast of live groups knows of it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from motet.base.beta import FLAT, Belief, learn
from motet.base.recipe import Band, Rewards, Sequential
from motet.base.records import Group, Rollout
from motet.base.statistics import Interval
from motet.rl.experience import OwnRewards, rewards_of

COVERAGE = 0.9
"""Of a problem's interval."""
RARE = 3.0
"""A problem is given up with the stated confidence where a third of all lie in the band, and with more where fewer do
(ours: the F1 of 16 rollouts is kept on bands that hold a twentieth)."""


class Seen(NamedTuple):
    """What a problem's rollouts have shown."""

    correct: int
    wrong: int
    cut: int
    """Truncated: no evidence of the pass rate."""

    @property
    def judged(self) -> int:
        return self.correct + self.wrong


def seen(rollouts: Iterable[Rollout]) -> Seen:
    kinds = Counter("cut" if r.verdict.kind == "truncated" else
                    "none" if r.verdict.score is None else
                    "correct" if r.verdict.kind == "correct" else "wrong" for r in rollouts)  # fmt: skip
    return Seen(kinds["correct"], kinds["wrong"], kinds["cut"])


@dataclass(frozen=True)
class Prior:
    """Of one domain, learnt from its problems."""

    rate: Belief = FLAT
    cut: Belief | None = None
    """Share of truncated rollouts; None where none was."""
    cut_reward: float | None = None
    wrong: tuple[float, ...] = (1.0,)
    """Shares of the different rewards among wrong rollouts, the one that equals `cut_reward` first if there is one."""
    cut_is_wrong: bool = False
    """A truncated rollout earns what the first share of the wrong ones earns."""
    _cache: dict[tuple[Seen, int], float] = field(default_factory=dict, compare=False, repr=False)

    def posterior(self, found: Seen) -> Belief:
        return self.rate.given(found.correct, found.wrong)

    def interval(self, found: Seen) -> Interval:
        """Mean and 90 % interval of the pass rate. Equal tails; with no success (no failure) it starts at 0 (ends at
        1), as a rate of exactly 0 is then what fits best."""
        belief, outside = self.posterior(found), 1.0 - COVERAGE
        none, every = found.correct == 0, found.wrong == 0
        if none and every:
            none = every = False
        low = 0.0 if none else belief.quantile(outside if every else outside / 2)
        high = 1.0 if every else belief.quantile(1.0 - (outside if none else outside / 2))
        return Interval(belief.mean, low, high)

    def live(self, found: Seen, size: int) -> float:
        """Chance that a fresh group of `size` rollouts has two different rewards among those that have one.

        Without truncation and with one reward for wrong ones: 1 - E[p^size + (1 - p)^size]. In general it is 1 minus
        the chance that every rollout either earns one and the same value or has no reward, summed over the values; all
        without a reward is in each of these and counted once.
        """
        key = (found, size)
        if key not in self._cache:
            self._cache[key] = self._live(found, size)
        return self._cache[key]

    def _live(self, found: Seen, size: int) -> float:
        rate = self.posterior(found)
        cut = self.cut.given(found.cut, found.judged) if self.cut is not None else None

        def alone(success: bool, share: float, joined: bool) -> float:
            """E[(x q)^size], or E[(u + x q)^size] where truncated rollouts may be among them; x = 1 - u is the share
            that is not truncated, q that of the value."""
            total = 0.0
            for k in range(size + 1) if cut is not None and joined else (size,):
                own = rate.moment(k, 0) if success else rate.moment(0, k)
                chance = 1.0 if cut is None else cut.moment(size - k, k)
                total += math.comb(size, k) * chance * share**k * own
            return total

        masked = self.cut_reward is None
        dead = alone(True, 1.0, masked)
        for place, share in enumerate(self.wrong):
            dead += alone(False, share, masked or (self.cut_is_wrong and place == 0))
        if cut is not None and masked:
            dead -= len(self.wrong) * cut.moment(size, 0)
        elif cut is not None and not self.cut_is_wrong:
            dead += cut.moment(size, 0)
        return min(1.0, max(0.0, 1.0 - dead))


def learn_priors(groups: Sequence[Group], rewards: Rewards, own: OwnRewards) -> dict[str, Prior]:
    """By domain, from all rollouts so far. `rewards` and `own` are RL's: they say which groups it can learn from."""
    rates: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    cuts: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    wrong: defaultdict[str, Counter[float]] = defaultdict(Counter)
    for group in groups:
        domain, found = group.problem.domain, seen(group.rollouts)
        rates[domain][found.correct, found.wrong] += 1
        cuts[domain][found.cut, found.judged] += 1
        for rollout, reward in zip(group.rollouts, rewards_of(group, rewards, own), strict=True):
            if reward is not None and rollout.verdict.kind not in ("correct", "truncated"):
                wrong[domain][round(reward, 6)] += 1
    return {domain: _prior(domain, rates[domain], cuts[domain], wrong[domain], rewards, own) for domain in rates}


def learn_rates(groups: Sequence[Group]) -> dict[str, Belief]:
    """The prior of the pass rate alone, by domain."""
    rates: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for group in groups:
        found = seen(group.rollouts)
        rates[group.problem.domain][found.correct, found.wrong] += 1
    return {domain: learn(counted) for domain, counted in rates.items()}


def _prior(domain: str, rates: Counter[tuple[int, int]], cuts: Counter[tuple[int, int]], wrong: Counter[float],
           rewards: Rewards, own: OwnRewards) -> Prior:  # fmt: skip
    table = {**rewards.model_dump(), **own.get(domain, {})}
    cut_reward = None if table["truncated"] is None else round(table["truncated"], 6)
    values = sorted(wrong, key=lambda value: (value != cut_reward, value)) or [round(table["incorrect"] or 0.0, 6)]
    total = sum(wrong.values())
    return Prior(
        learn(rates),
        learn(cuts) if any(cut for cut, _ in cuts) else None,
        cut_reward,
        tuple(wrong[value] / total for value in values) if total else (1.0,),
        cut_is_wrong=values[0] == cut_reward,
    )


@dataclass(frozen=True)
class SequentialTest:
    """Whether a problem lies in its band, and when its rollouts are enough.

    Wald's question with a bound on the sample: a problem is decided once the verdict that `most` rollouts would give
    stands with the stated confidence, by the posterior's own forecast of the rollouts that are left. Problems beside
    the band's ends, where more rollouts would still leave a coin's toss, end early that way. Where few problems lie in
    the band, one that is given up must be surer, in proportion: or rarity alone would decide.
    """

    rate: Belief
    band: Band
    rules: Sequential

    @cached_property
    def _known(self) -> dict[tuple[int, int], float]:
        return {}

    def inside(self, correct: int, wrong: int) -> float:
        """P(alpha <= pass rate <= beta)."""
        key = (correct, wrong)
        if key not in self._known:
            self._known[key] = self.rate.given(correct, wrong).inside(self.band.alpha, self.band.beta)
        return self._known[key]

    def keeps(self, correct: int, wrong: int) -> bool:
        return self.inside(correct, wrong) >= self.rules.keep_at

    def decided(self, found: Seen, asked: int) -> bool:
        """After `asked` rollouts, those without evidence included."""
        left = self.rules.most - asked
        if left <= 0:
            return True
        doubt = 1.0 - self.rules.confidence
        if not self.keeps(found.correct, found.wrong):
            doubt *= min(1.0, RARE * self.inside(0, 0))
        return self.reversal(found, left) <= doubt + 1e-12

    def reversal(self, found: Seen, left: int) -> float:
        """Chance that `left` more judged rollouts turn the verdict."""
        belief = self.rate.given(found.correct, found.wrong)
        now = self.keeps(found.correct, found.wrong)
        return sum(
            math.comb(left, j) * belief.moment(j, left - j)
            for j in range(left + 1)
            if self.keeps(found.correct + j, found.wrong + left - j) != now
        )


def share(chances: Sequence[float]) -> Interval:
    """The share of groups that will be live, one group of each problem, with its 95 % interval.

    A group is live or not: of n independent ones with the chances c the share has the variance sum of c (1 - c) / n^2,
    which holds what is not known of each problem and the luck of its group.
    """
    n = len(chances)
    mean = sum(chances) / n
    reach = 1.96 * math.sqrt(sum(c * (1.0 - c) for c in chances)) / n
    return Interval(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def shares(chances: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """`share` by domain, and over all groups as "all"; domains without a problem are left out."""
    filled = {domain: values for domain, values in sorted(chances.items()) if values}
    everything = [value for values in filled.values() for value in values]
    return {"all": share(everything), **{d: share(v) for d, v in filled.items()}} if everything else {}
