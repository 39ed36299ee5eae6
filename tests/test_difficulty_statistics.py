"""How hard a problem is, by its rollouts: Beta posteriors, the prior of a pilot, the sequential test, live groups."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from motet.base.beta import FLAT, Belief, Beta, cdf, fit, learn, moment
from motet.base.recipe import Band, Rewards, Sequential
from motet.base.records import Completion, Group, Problem, Rollout, Verdict, VerdictKind
from motet.rl.difficulty import Prior, Seen, SequentialTest, learn_priors, learn_rates, seen, share, shares

SCORES: dict[str, float] = {"correct": 1.0, "incorrect": 0.0, "malformed": 0.0}


def group(name: str, *kinds: VerdictKind, domain: str = "math", scoring: str = "all", score: float = 0.0) -> Group:
    scores = {**SCORES, "incorrect": score}
    rollouts = [Rollout((5,), Completion("x", (7,), (-0.5,), "end", 0), Verdict(k, scores.get(k))) for k in kinds]
    problem = Problem(name, ({"role": "user", "content": name},), "math", "1", domain, metadata={"scoring": scoring})
    return Group(problem, tuple(rollouts))


# ---- Beta distributions


@pytest.mark.parametrize(
    ("a", "b", "x", "expected"),
    [
        (1, 1, 0.3, 0.3),
        (2, 1, 0.5, 0.25),  # x^2
        (1, 3, 0.5, 0.875),  # 1 - (1 - x)^3
        (0.5, 0.5, 0.5, 0.5),  # the arcsine distribution
        (0.5, 0.5, 0.25, 1 / 3),  # 2 / pi asin(sqrt x)
        (2, 2, 0.2, 3 * 0.04 - 2 * 0.008),
        (3, 2, 0.9, 4 * 0.729 - 3 * 0.6561),
    ],
)
def test_the_distribution_function_of_beta_is_that_of_its_closed_forms(
    a: float, b: float, x: float, expected: float
) -> None:
    assert cdf(Beta(a, b), x) == pytest.approx(expected, abs=1e-12)


def test_the_distribution_function_agrees_with_a_fine_sum_of_the_density() -> None:
    beta, steps = Beta(2.7, 11.3), 20_000
    whole = sum(((i + 0.5) / steps) ** (beta.a - 1) * (1 - (i + 0.5) / steps) ** (beta.b - 1) for i in range(steps))
    below = sum(((i + 0.5) / steps) ** (beta.a - 1) * (1 - (i + 0.5) / steps) ** (beta.b - 1) for i in range(6000))
    assert cdf(beta, 0.3) == pytest.approx(below / whole, abs=1e-6)
    assert (cdf(beta, 0.0), cdf(beta, 1.0), cdf(beta, 2.0)) == (0.0, 1.0, 1.0)
    assert cdf(Beta(0.001, 5.0), 1e-6) == pytest.approx(0.9889, abs=1e-3)  # nearly all of it at zero, no underflow


def test_moments_and_quantiles_are_those_of_the_uniform_distribution() -> None:
    assert moment(Beta(1, 1), 2, 1) == pytest.approx(1 / 12)  # integral of p^2 (1 - p)
    assert FLAT.quantile(0.05) == pytest.approx(0.05, abs=1e-6)
    assert FLAT.inside(0.2, 0.8) == pytest.approx(0.6)
    assert FLAT.given(3, 2) == Belief(((1.0, Beta(4, 3)),)) and FLAT.given(3, 2).mean == pytest.approx(4 / 7)


def test_the_parts_of_a_mixture_count_by_how_well_they_foresaw() -> None:
    hopeless, easy = Beta(1, 9), Beta(9, 1)
    belief = Belief(((0.5, hopeless), (0.5, easy)))
    assert belief.mean == pytest.approx(0.5)
    after = belief.given(0, 1)  # a failure: expected with 0.9 and 0.1
    assert [part for _, part in after.parts] == [Beta(1, 10), Beta(9, 2)]
    assert [weight for weight, _ in after.parts] == pytest.approx([0.9, 0.1])
    assert after.mean == pytest.approx(0.9 / 11 + 0.1 * 9 / 11)
    assert belief.moment(0, 2) == pytest.approx((90 / 110 + 2 / 110) / 2)


# ---- the prior


def population(rates: Sequence[float], n: int, seed: int) -> Counter[tuple[int, int]]:
    draw = random.Random(seed)
    successes = [sum(draw.random() < p for _ in range(n)) for p in rates]
    return Counter((s, n - s) for s in successes)


def test_the_prior_of_a_population_is_found_from_five_rollouts_each() -> None:
    draw = random.Random(1)
    rates = [draw.betavariate(0.5, 2.0) for _ in range(3000)]
    found = fit(population(rates, 5, 2))
    assert found.mean == pytest.approx(0.2, abs=0.02) and found.a == pytest.approx(0.5, abs=0.1)


def test_two_heaps_are_seen_where_one_beta_distribution_sees_two_ends() -> None:
    """Half of the problems around 0.2, half around 0.8: none is hopeless and none is sure."""
    draw = random.Random(3)
    rates = [p if i % 2 else 1 - p for i in range(2000) for p in [draw.betavariate(2, 8)]]
    observed = population(rates, 8, 3)
    one, mixture = Belief(((1.0, fit(observed)),)), learn(observed)
    truth = sum(1 - p**8 - (1 - p) ** 8 for p in rates) / 2000  # of groups of eight
    errors = [abs(1 - belief.moment(8, 0) - belief.moment(0, 8) - truth) for belief in (one, mixture)]
    assert errors[1] < 0.02 and errors[1] < 0.7 * errors[0]
    assert mixture.inside(0.4, 0.6) < one.inside(0.4, 0.6) - 0.03


def test_a_handful_of_problems_does_not_claim_to_know_all_others() -> None:
    assert learn(Counter()) == FLAT and learn(Counter({(0, 0): 7})) == FLAT
    three = learn(Counter({(5, 0): 3}))
    assert 0.6 < three.mean < 0.95 and three.inside(0.0, 0.5) > 0.02


def test_early_stops_do_not_bias_the_prior() -> None:
    """Problems are stopped at two successes of two: the likelihood knows nothing of the rule and needs not."""
    draw = random.Random(4)
    observed: Counter[tuple[int, int]] = Counter()
    for _ in range(4000):
        p = draw.random()
        successes = sum(draw.random() < p for _ in range(2))
        n = 2
        if successes < 2:
            successes += sum(draw.random() < p for _ in range(8))
            n = 10
        observed[successes, n - successes] += 1
    assert learn(observed).mean == pytest.approx(0.5, abs=0.015)  # the raw mean of all rollouts is far lower
    assert sum(s * c for (s, _), c in observed.items()) / sum((s + f) * c for (s, f), c in observed.items()) < 0.42


# ---- what is evidence


def test_truncated_and_unjudged_rollouts_are_no_evidence_of_difficulty() -> None:
    kinds: list[VerdictKind] = ["correct", "incorrect", "malformed", "truncated", "infra_error", "invalid_problem"]
    assert seen(group("a", *kinds).rollouts) == Seen(correct=1, wrong=2, cut=1)
    more: list[VerdictKind] = ["truncated"] * 6
    cut = [group(str(i), "correct", "incorrect", *more) for i in range(50)]
    plain = [group(str(i), "correct", "incorrect") for i in range(50)]
    assert learn_rates(cut) == learn_rates(plain)


def test_every_problem_has_an_interval_that_ends_where_its_rollouts_do() -> None:
    prior = Prior()
    none, some, every = (prior.interval(Seen(s, 8 - s, 0)) for s in (0, 3, 8))
    assert none.low == 0.0 and none.high == pytest.approx(1 - 0.1 ** (1 / 9), abs=1e-5)  # Beta(1, 9)
    assert every.high == 1.0 and every.low == pytest.approx(0.1 ** (1 / 9), abs=1e-5)
    assert some.mean == pytest.approx(0.4) and 0.0 < some.low < 0.4 < some.high < 1.0
    unknown = prior.interval(Seen(0, 0, 5))
    assert [*unknown] == pytest.approx([0.5, 0.05, 0.95], abs=1e-5)


def test_nine_of_ten_intervals_hold_the_rate_whatever_its_shape() -> None:
    draw = random.Random(5)
    two = [draw.choice((0.1, 0.9)) * 0.8 + 0.1 + draw.uniform(-0.08, 0.08) for _ in range(1500)]
    for rates in ([draw.random() for _ in range(1500)], [draw.betavariate(0.4, 1.6) for _ in range(1500)], two):
        counts = [(s := sum(draw.random() < p for _ in range(6)), 6 - s) for p in rates]
        prior = Prior(learn(Counter(counts)))
        bounds = {pair: prior.interval(Seen(*pair, 0)) for pair in set(counts)}
        held = sum(bounds[pair].low <= p <= bounds[pair].high for pair, p in zip(counts, rates, strict=True))
        assert 0.86 < held / 1500 < 0.95


# ---- the sequential test

RULES = Sequential(least=2, most=6, batch=2, confidence=0.9, keep_at=0.5)


def test_a_problem_is_decided_when_the_rest_can_hardly_turn_the_verdict() -> None:
    test = SequentialTest(FLAT, Band(alpha=0.25, beta=0.75), RULES)
    # six rollouts keep two to four correct ones: of Beta(2, 6), one correct, only 0.44 lies in the band
    assert [test.keeps(s, 6 - s) for s in range(7)] == [False, False, True, True, True, False, False]
    # one of two: kept, unless the four to come are all wrong or all right, B(2, 6) / B(2, 2) = 1/7 each
    assert test.keeps(1, 1) and test.reversal(Seen(1, 1, 0), 4) == pytest.approx(2 / 7)
    # none of two: not kept, unless two or more of four are right, 1 - 3/7 - 2/7
    assert not test.keeps(0, 2) and test.reversal(Seen(0, 2, 0), 4) == pytest.approx(2 / 7)
    assert not test.decided(Seen(1, 1, 0), 2) and not test.decided(Seen(0, 2, 0), 2)
    # none of four: two more turn it only if both are right, B(3, 5) / B(1, 5) = 1/21
    assert test.reversal(Seen(0, 4, 0), 2) == pytest.approx(1 / 21) and test.decided(Seen(0, 4, 0), 4)
    assert test.reversal(Seen(2, 2, 0), 2) == 0.0 and test.decided(Seen(2, 2, 0), 4)


def test_where_few_problems_lie_in_the_band_none_is_given_up_for_its_rarity() -> None:
    """0.078 of the problems lie in the band: to give one up takes 3 x 0.078 of the doubt of 0.1, or 0.023."""
    test = SequentialTest(Belief(((0.85, Beta(20, 1)), (0.15, Beta(1, 1)))), Band(alpha=0.25, beta=0.75), RULES)
    assert test.inside(0, 0) == pytest.approx(0.85 * 0.75**20 + 0.15 * 0.5, abs=1e-6)
    found = Seen(3, 1, 0)
    assert not test.keeps(3, 1) and test.reversal(found, 2) == pytest.approx(0.0354, abs=1e-3)
    assert not test.decided(found, 4) and test.decided(Seen(4, 0, 0), 4)


def test_no_problem_gets_more_rollouts_than_most_though_they_are_all_truncated() -> None:
    test = SequentialTest(FLAT, Band(alpha=0.25, beta=0.75), RULES)
    assert not test.decided(Seen(0, 0, 4), 4) and test.decided(Seen(0, 0, 6), 6)


def test_a_surer_test_asks_for_more() -> None:
    sure = SequentialTest(FLAT, Band(), RULES.model_copy(update={"confidence": 0.999}))
    quick = SequentialTest(FLAT, Band(), RULES.model_copy(update={"confidence": 0.6}))
    states = [(s, f) for n in (2, 4) for s in range(n + 1) for f in [n - s]]
    decided = [{state for state in states if t.decided(Seen(*state, 0), sum(state))} for t in (sure, quick)]
    assert decided[0] < decided[1]


def test_the_pilot_gets_half_of_most_in_whole_batches() -> None:
    assert Sequential().pilot_rollouts == 8
    assert Sequential(least=3, most=17, batch=2).pilot_rollouts == 7
    assert Sequential(least=4, most=4).pilot_rollouts == 4


# ---- live groups


def test_the_forecast_of_a_uniform_rate_is_one_minus_two_ninths() -> None:
    """E[p^8 + (1 - p)^8] = 2/9."""
    assert Prior().live(Seen(0, 0, 0), 8) == pytest.approx(7 / 9)
    assert Prior().live(Seen(1, 1, 0), 2) == pytest.approx(2 * moment(Beta(2, 2), 1, 1))


def test_two_rewards_of_wrong_answers_make_a_group_live_without_a_right_one() -> None:
    hopeless = Belief(((1.0, Beta(1e-9, 1.0)),))
    assert Prior(hopeless).live(Seen(0, 4, 0), 4) == pytest.approx(0.0, abs=1e-6)
    assert Prior(hopeless, wrong=(0.5, 0.5)).live(Seen(0, 4, 0), 4) == pytest.approx(1 - 2 / 16, abs=1e-6)


def exact(p: float, u: float, size: int, cut_reward: float | None) -> float:
    """Chance of a live group by going through all outcomes of its rollouts: right 1, wrong 0, or truncated."""
    outcomes: list[tuple[float | None, float]] = [(1.0, (1 - u) * p), (0.0, (1 - u) * (1 - p)), (cut_reward, u)]
    total = 0.0
    for number in range(3**size):
        picked = [outcomes[number // 3**i % 3] for i in range(size)]
        rewards = {reward for reward, _ in picked if reward is not None}
        total += math.prod(chance for _, chance in picked) * (len(rewards) > 1)
    return total


@pytest.mark.parametrize("cut_reward", [None, 0.0, -0.5])
def test_truncated_rollouts_are_in_the_forecast_as_rl_rewards_them(cut_reward: float | None) -> None:
    p, u = 0.3, 0.25
    rate, cut = (Belief(((1.0, Beta(1e6 * x, 1e6 * (1 - x))),)) for x in (p, u))
    prior = Prior(rate, cut, cut_reward, (1.0,), cut_is_wrong=cut_reward == 0.0)
    assert prior.live(Seen(0, 0, 0), 4) == pytest.approx(exact(p, u, 4, cut_reward), abs=1e-5)


def test_the_rewards_of_a_domain_are_found_among_its_rollouts() -> None:
    groups = [group("a", "correct", "incorrect", "malformed", "truncated"), group("b", "incorrect", domain="code")]
    rewards = Rewards(malformed=-0.5, truncated=-0.5)
    priors = learn_priors(groups, rewards, {"code": {"truncated": None, "malformed": 0.0}})
    assert (priors["math"].wrong, priors["math"].cut_reward, priors["math"].cut_is_wrong) == ((0.5, 0.5), -0.5, True)
    assert priors["math"].cut is not None and priors["code"].cut is None and priors["code"].wrong == (1.0,)
    halves = [group("c", "incorrect", scoring="mean", score=0.5), group("d", "incorrect", scoring="mean")]
    assert learn_priors(halves, Rewards(), {})["math"].wrong == (0.5, 0.5)  # partial marks are rewards of their own


def test_the_share_that_will_be_live_has_the_variance_of_independent_groups() -> None:
    found = share([0.5] * 100)
    assert found.mean == 0.5 and found.high - 0.5 == pytest.approx(1.96 * 0.05)
    assert share([1.0, 1.0]) == (1.0, 1.0, 1.0)
    both = shares({"math": [1.0], "code": [0.0, 0.5], "empty": []})
    assert {domain: interval.mean for domain, interval in both.items()} == {"all": 0.5, "code": 0.25, "math": 1.0}
    assert shares({}) == {}
