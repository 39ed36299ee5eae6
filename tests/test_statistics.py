from __future__ import annotations

import subprocess
import sys

import pytest

from motet.base.records import Completion, Group, Problem, Rollout, Verdict, VerdictKind
from motet.base.statistics import (
    bootstrap_mean,
    compare_groups,
    enough_to_tell,
    evaluate_groups,
    paired_difference,
    pass_at_k,
)


def group(id: str, domain: str, *kinds: VerdictKind, prompt: str = "") -> Group:
    problem = Problem(id, ({"role": "user", "content": prompt or id},), "math", "1", domain)
    rollouts = tuple(
        Rollout((1,), Completion("x", (7,) * (i + 1), (), "end", 0), Verdict(kind, float(kind == "correct")))
        for i, kind in enumerate(kinds)
    )
    return Group(problem, rollouts)


def test_pass_at_2_of_five_completions_with_two_right_is_seven_tenths() -> None:
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3, 2) = 3 of the C(5, 2) = 10 pairs hold no right one
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 4) == 1.0  # any four of five hold a right one
    assert pass_at_k(5, 0, 5) == 0.0


def test_pass_at_k_refuses_more_draws_than_completions() -> None:
    with pytest.raises(ValueError, match="k <= n"):
        pass_at_k(4, 2, 5)


def test_a_bootstrap_of_five_zeros_and_five_ones_has_the_quantiles_of_a_binomial() -> None:
    # X ~ Binomial(10, 1/2): P(X <= 1) = 11/1024 < 2.5 % < P(X <= 2) = 56/1024, and the same from above
    interval = bootstrap_mean([0.0] * 5 + [1.0] * 5, 4000, seed=3)
    assert interval.mean == 0.5
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.8))


def test_a_paired_difference_uses_the_pairs_and_not_the_two_samples() -> None:
    # b - a = 1, 0, 0, 0; X ~ Binomial(4, 1/4): P(0) = 0.32, P(X <= 2) = 0.949 < 97.5 % < P(X <= 3) = 0.996
    interval = paired_difference([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], 4000, seed=1)
    assert interval == pytest.approx((0.25, 0.0, 0.75))
    with pytest.raises(ValueError):
        paired_difference([0.0], [0.0, 1.0], 10, seed=1)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [i / 7 for i in range(8)]
    assert bootstrap_mean(values, 50, 1) == bootstrap_mean(values, 50, 1)
    assert bootstrap_mean(values, 50, 1) != bootstrap_mean(values, 50, 2)


def test_all_is_the_mean_over_domains_and_not_over_problems() -> None:
    groups = [group(f"m{i}", "math", "incorrect", "incorrect") for i in range(4)] + [group("c", "code", "correct")]
    domains = evaluate_groups(groups, 200, 1)["domains"]
    assert domains["math"]["pass_at_1"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert domains["all"]["pass_at_1"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert (domains["all"]["n"], domains["all"]["rollouts"], domains["all"]["k"]) == (5, 9, 2)


def test_all_resamples_inside_each_domain() -> None:
    # math: one of 2 solved, all wrong in a quarter of the resamples; code: 7 of 8 solved
    groups = [group(f"{d}{i}", d, "correct" if i else "incorrect") for d in ("math", "code") for i in (0, 1)]
    groups += [group(f"k{i}", "code", "correct") for i in range(6)]
    everything = evaluate_groups(groups, 4000, 1)["domains"]["all"]["pass_at_1"]
    assert everything["mean"] == pytest.approx((0.5 + 7 / 8) / 2)
    # math 0 and code at most 7/8 give 0.4375; the pooled 8 of 10 would reach down to 0.5 only
    assert everything["low"] < 0.45
    assert everything["high"] == pytest.approx(1.0)


def test_a_truncated_rollout_is_not_passed_and_an_unjudged_one_is_left_out() -> None:
    cut = group("a", "math", "correct", "truncated", "malformed", "no_answer")  # 1 of 4
    broken = group("b", "math", "correct", "correct", "infra_error", "infra_error")  # 2 of 2
    lost = group("c", "math", "invalid_problem", "invalid_problem")  # no problem at all
    math = evaluate_groups([cut, broken, lost], 100, 1)["domains"]["math"]
    assert math["pass_at_1"]["mean"] == math["avg_at_k"] == pytest.approx((1 / 4 + 1) / 2)
    assert (math["n"], math["rollouts"], math["unjudged"], math["k"]) == (2, 10, 4, 4)
    assert (math["truncated"], math["malformed"], math["no_answer"]) == (0.1, 0.1, 0.1)
    # pass@2: 1 - C(3,2)/C(4,2) = 1/2 and 1; pass@3: only the first problem has three judged, 1 - 1/4
    assert math["pass_at_k"] == pytest.approx({"1": 0.625, "2": 0.75, "3": 0.75, "4": 1.0})
    assert math["tokens_mean"] == pytest.approx((10 + 10 + 3) / 10)  # completions of 1, 2, 3, ... tokens


def test_an_evaluation_without_a_verdict_has_no_mean_and_does_not_fail() -> None:
    domains = evaluate_groups([group("a", "math", "infra_error")], 100, 1)["domains"]
    assert domains["math"]["pass_at_1"] == {"mean": None, "low": None, "high": None}
    assert domains["all"]["n"] == 0
    assert evaluate_groups([], 100, 1)["domains"]["all"]["rollouts"] == 0


def test_two_evaluations_are_paired_by_problem_whatever_their_order() -> None:
    a = [group("p", "math", "incorrect", "correct"), group("q", "math", "correct"), group("only-a", "math", "correct")]
    b = [group("q", "math", "correct", "incorrect"), group("p", "math", "correct"), group("only-b", "math", "correct")]
    result = compare_groups(a, b)  # p: 1/2 to 1, q: 1 to 1/2
    assert result["math"]["n"] == 2
    assert (result["math"]["a"], result["math"]["b"]) == (0.75, 0.75)
    assert result["math"]["difference"] == pytest.approx({"mean": 0.0, "low": -0.5, "high": 0.5})


def test_an_equal_id_with_another_prompt_is_another_problem() -> None:
    assert compare_groups([group("1", "math", "correct", prompt="2 + 2")], [group("1", "math", "correct")]) == {}


def test_six_problems_are_the_fewest_that_can_tell() -> None:
    assert not enough_to_tell(5)
    assert enough_to_tell(6)


def test_importing_the_statistics_imports_neither_numpy_nor_torch() -> None:
    code = "import sys, motet.base.statistics; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_instances_of_one_template_are_resampled_together() -> None:
    # two templates of fifty instances, one always solved, one never: a resample is 0, 1/2 or 1
    values, units = [1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50
    together = bootstrap_mean(values, 2000, 1, units)
    assert together == (0.5, 0.0, 1.0)
    apart = bootstrap_mean(values, 2000, 1)
    assert apart.low > 0.35 and apart.high < 0.65
    # where each has a template of its own, nothing changes
    assert bootstrap_mean(values, 2000, 1, [str(i) for i in range(100)]) == apart


def test_a_template_with_more_instances_weighs_more_in_the_resample_that_holds_it() -> None:
    # resamples of {a: 3 x 1.0, b: 1 x 0.0}: a a = 1, b b = 0, a b = 3/4
    interval = bootstrap_mean([1.0, 1.0, 1.0, 0.0], 4000, 2, ["a", "a", "a", "b"])
    assert interval.mean == 0.75 and interval.low == 0.0 and interval.high == 1.0
