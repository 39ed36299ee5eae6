"""From rewards to gradients: advantages, the objective, what of a batch of groups is learnt from, the inner loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.base.recipe import Algorithm, Model, Optimizer, Rewards, RlStage
from motet.base.records import VERDICT_KINDS, Completion, Group, Problem, Rollout, Verdict, VerdictKind
from motet.base.run import Timers
from motet.data.pack import Sample, pack
from motet.rl.advantages import reward_of, shuffled, standardised
from motet.rl.experience import build, minibatches
from motet.rl.objectives import ClippedPolicyLoss
from motet.rl.reuse import engine_difference, learn
from motet.train.learner import Learner
from motet.train.logprobs import Scored

# ---- advantages


def test_rewards_1_0_1_0_give_plus_and_minus_one_with_the_population_deviation() -> None:
    assert standardised([1.0, 0.0, 1.0, 0.0]) == [1.0, -1.0, 1.0, -1.0]
    sample = standardised([1.0, 0.0, 1.0, 0.0], "sample")
    assert sample == pytest.approx([math.sqrt(3) / 2, -math.sqrt(3) / 2] * 2)  # 0.866


def test_one_success_in_four_stands_out_more_than_three_failures() -> None:
    assert standardised([1.0, 0.0, 0.0, 0.0]) == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3])


@pytest.mark.parametrize(
    "rewards", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.5, 0.5 + 1e-9], [1.0], [], [None, None], [1.0, None]]
)
def test_a_group_whose_scored_rewards_are_all_equal_has_no_signal(rewards: list[float | None]) -> None:
    assert standardised(rewards) is None


def test_unscored_rollouts_are_out_of_the_statistics() -> None:
    assert standardised([1.0, None, 0.0]) == [1.0, None, -1.0]


def test_every_kind_of_verdict_but_the_unscored_has_a_reward() -> None:
    table = Rewards(incorrect=-0.5, malformed=-1.0).model_dump()
    found = {kind: reward_of(Verdict(kind, None), table) for kind in VERDICT_KINDS}
    assert found == {
        "correct": 1.0, "incorrect": -0.5, "no_answer": 0.0, "malformed": -1.0, "truncated": None, "too_complex": 0.0,
        "timeout": 0.0, "infra_error": None, "invalid_problem": None,
    }  # fmt: skip
    assert reward_of(Verdict("truncated", None), Rewards(truncated=-0.25).model_dump()) == -0.25


def test_a_share_of_the_instructions_earns_a_share_of_the_way_from_wrong_to_right() -> None:
    table = Rewards(correct=1.0, incorrect=-1.0, malformed=-2.0).model_dump()
    assert reward_of(Verdict("incorrect", 0.25), table, partial=True) == -0.5
    assert reward_of(Verdict("incorrect", 0.25), table) == -1.0
    assert reward_of(Verdict("malformed", 0.25), table, partial=True) == -2.0


def test_shuffled_rewards_are_the_same_rewards_elsewhere_and_the_unscored_stay_where_they_are() -> None:
    rewards = [[1.0, 0.0, None], [0.25, 0.5, 0.75]]
    results = [shuffled(rewards, seed) for seed in range(5)]
    for result in results:
        assert sorted(r for group in result for r in group if r is not None) == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert result[0][2] is None and [len(group) for group in result] == [3, 3]
    assert len({str(result) for result in results}) > 1 and shuffled(rewards, 0) == results[0]
    assert rewards == [[1.0, 0.0, None], [0.25, 0.5, 0.75]]


# ---- the objective


def objective(ratios: list[float], advantages: list[float]) -> tuple[float, list[float], dict[str, float]]:
    """(loss, gradient with respect to each log-probability, sums) with bounds 0.8 and 1.28."""
    anchor_N = torch.log(torch.tensor([0.1, 0.2, 0.3])[: len(ratios)])
    logprobs_N = (anchor_N + torch.log(torch.tensor(ratios))).requires_grad_()
    (batch,) = pack([Sample((1, 2), (False, True), advantage=a) for a in advantages], 99)
    assert batch.order == tuple(range(len(advantages)))
    scored = Scored(logprobs_N, torch.full_like(logprobs_N, 0.5))
    loss, sums = ClippedPolicyLoss(0.2, 0.28)(scored, batch, anchor_N)
    loss.backward()
    assert logprobs_N.grad is not None
    return loss.item(), logprobs_N.grad.tolist(), {name: float(value) for name, value in sums.items()}


def test_the_clipped_objective_on_three_tokens_with_a_positive_advantage() -> None:
    # min(r, clip(r)) of 1.5, 1.1 and 0.5 is 1.28, 1.1 and 0.5; what is clipped has no gradient
    loss, gradient, sums = objective([1.5, 1.1, 0.5], [1.0, 1.0, 1.0])
    assert loss == pytest.approx(-2.88)
    assert gradient == pytest.approx([0.0, -1.1, -0.5])
    assert (sums["policy/clip_high_share"], sums["policy/clip_low_share"]) == (1.0, 0.0)


def test_the_clipped_objective_on_three_tokens_with_a_negative_advantage() -> None:
    # -min(-2 r, -2 clip(r)) is 3, 2.2 and 1.6 for ratios of 1.5, 1.1 and 0.5: the last is held at 0.8
    loss, gradient, sums = objective([1.5, 1.1, 0.5], [-2.0, -2.0, -2.0])
    assert loss == pytest.approx(6.8)
    assert gradient == pytest.approx([3.0, 2.2, 0.0])
    assert (sums["policy/clip_high_share"], sums["policy/clip_low_share"]) == (0.0, 1.0)


def test_the_figures_of_the_objective_by_hand() -> None:
    _, _, sums = objective([1.5, 1.0, 0.5], [1.0, 0.0, -1.0])
    assert sums["policy/ratio_mean"] == pytest.approx(3.0) and sums["policy/ratio_square"] == pytest.approx(3.5)
    assert sums["policy/kl_to_anchor"] == pytest.approx(0.5 - math.log(1.5) - 0.5 - math.log(0.5))
    assert sums["policy/entropy"] == 1.5 and sums["loss/policy"] == pytest.approx(-1.28 + 0.8)


def test_a_ratio_beyond_all_bounds_stays_finite() -> None:
    loss, gradient, _ = objective([1e30, 1e-30], [0.0, -1.0])
    assert loss == pytest.approx(0.8) and gradient == [0.0, 0.0]
    loss, _, _ = objective([1e30], [-1.0])
    assert loss == pytest.approx(math.exp(20))


# ---- what is learnt from


def group(name: str, *kinds: VerdictKind, domain: str = "math", logprobs: tuple[float, ...] = (-0.5, -1.0)) -> Group:
    """Prompt tokens 5 6; completion i has the tokens 10 + i and 1."""
    scores = {"correct": 1.0, "infra_error": None, "invalid_problem": None, "truncated": None}
    rollouts = [
        Rollout((5, 6), Completion("x", (10 + i, 1), logprobs, "end", 0), Verdict(kind, scores.get(kind, 0.0)))
        for i, kind in enumerate(kinds)
    ]
    return Group(Problem(name, ({"role": "user", "content": name},), "math", "1", domain), tuple(rollouts))


GROUPS = [
    group("mixed", "correct", "incorrect", "infra_error", "truncated"),
    group("easy", "correct", "correct", "correct", "correct"),
    group("hard", "incorrect", "malformed", "no_answer", "timeout", domain="code"),
    group("cut", "truncated", "truncated", "correct", "truncated", domain="code"),
]


def test_only_groups_with_a_signal_and_only_scored_rollouts_are_learnt_from() -> None:
    live, metrics = build(GROUPS, Rewards(), Algorithm(), 1)
    ((first, second),) = live
    assert first == Sample((5, 6, 10, 1), (False, False, True, True), 1.0, (-0.5, -1.0), "math")
    assert (second.tokens, second.advantage) == ((5, 6, 11, 1), -1.0)
    assert metrics["groups/in_loss"] == 1 and metrics["groups/live_share"] == 0.25


def test_truncated_rollouts_are_learnt_from_where_they_have_a_reward() -> None:
    live, _ = build(GROUPS, Rewards(truncated=0.0), Algorithm(), 1)
    assert [len(samples) for samples in live] == [3, 4]
    assert [sample.advantage for sample in live[1]] == pytest.approx([-0.57735, -0.57735, 1.73205, -0.57735], abs=1e-5)


def test_the_figures_of_a_batch_count_everything_that_was_sampled() -> None:
    _, metrics = build(GROUPS, Rewards(), Algorithm(), 1)
    # 16 rollouts, 6 correct; 1 not judged; 4 truncated, which count as not passed and have no reward
    assert metrics["pass/mean"] == pytest.approx(6 / 15) and metrics["reward/mean"] == pytest.approx(6 / 11)
    assert (metrics["pass/math"], metrics["pass/code"]) == (pytest.approx(5 / 7), pytest.approx(1 / 8))
    assert (metrics["groups/live_share/math"], metrics["groups/live_share/code"]) == (0.5, 0.0)
    assert (metrics["groups/all_correct_share"], metrics["groups/all_wrong_share"]) == (0.5, 0.25)
    assert metrics["rollout/truncated_share"] == 0.25 and metrics["rollout/malformed_share"] == 1 / 16
    assert metrics["rollout/unjudged"] == 1 and metrics["rollout/tokens_mean"] == metrics["rollout/tokens_max"] == 2


def test_each_of_several_domains_has_figures_of_its_own() -> None:
    _, metrics = build(GROUPS, Rewards(), Algorithm(), 1)
    assert (metrics["rollout/count/math"], metrics["rollout/count/code"], metrics["rollout/count"]) == (8, 8, 16)
    assert (metrics["rollout/truncated_share/math"], metrics["rollout/truncated_share/code"]) == (1 / 8, 3 / 8)
    assert (metrics["rollout/malformed_share/math"], metrics["rollout/malformed_share/code"]) == (0, 1 / 8)
    assert (metrics["groups/all_wrong_share/math"], metrics["groups/all_wrong_share/code"]) == (0, 0.5)
    assert (metrics["rollout/unjudged/math"], metrics["tokens/sampled/code"]) == (1, 16)
    assert metrics["rollout/entropy/math"] == 0.75
    _, alone = build(GROUPS[:2], Rewards(), Algorithm(), 1)
    assert "rollout/truncated_share/math" not in alone and alone["pass/math"] == alone["pass/mean"]


def test_a_batch_without_any_signal_is_all_counted_and_nothing_of_it_learnt() -> None:
    live, metrics = build(GROUPS[1:3], Rewards(), Algorithm(), 1)
    assert live == [] and metrics["groups/in_loss"] == 0
    assert (metrics["groups/all_correct_share"], metrics["groups/all_wrong_share"]) == (0.5, 0.5)


def test_shuffled_rewards_change_who_is_praised_and_not_what_is_reported() -> None:
    groups = [group(str(i), "correct", "incorrect", "correct", "incorrect") for i in range(4)]
    plain, shuffled_rewards = (build(groups, Rewards(), Algorithm(shuffle_rewards=on), 3) for on in (False, True))
    advantages = [[s.advantage for samples in e.live for s in samples] for e in (plain, shuffled_rewards)]
    assert advantages[0] != advantages[1]
    for name in ("reward/mean", "pass/mean", "groups/live_share"):
        assert plain.metrics[name] == shuffled_rewards.metrics[name]


def test_whole_groups_are_dealt_out_to_minibatches_and_empty_ones_fall_away() -> None:
    live = [[Sample((i,), (True,))] * 2 for i in range(5)]
    assert [[s.tokens[0] for s in part] for part in minibatches(live, 2)] == [[0, 0, 2, 2, 4, 4], [1, 1, 3, 3]]
    assert [[s.tokens[0] for s in part] for part in minibatches(live[:1], 4)] == [[0, 0]]


# ---- the inner loop


def learner(folder: Path, rate: float = 1e-2) -> Learner:
    config = Optimizer(learning_rate=rate, warmup_steps=0, schedule="constant")
    return Learner(folder, Model(path=str(folder), device="cpu"), config, 8)


def stage(**algorithm: Any) -> RlStage:
    """Without guard and correction: the log-probabilities of `group` are no engine's."""
    problems: Any = [{"problems": "p"}]
    off: dict[str, Any] = {"guard": {"on": False}, "correction": {"on": False}}
    return RlStage(kind="rl", problems=problems, prompts_per_step=4, algorithm=Algorithm(**(off | algorithm)))


def live_groups(count: int = 4) -> list[list[Sample]]:
    groups = [group(str(i), "correct", "incorrect", "incorrect") for i in range(count)]
    return build(groups, Rewards(), Algorithm(), 1).live


def test_the_ratio_to_the_anchor_is_exactly_one_at_the_first_inner_step_and_not_after(model_folder: Path) -> None:
    metrics = learn(learner(model_folder), live_groups(), stage(passes=2, minibatches=2), Timers())
    assert metrics["inner_steps"] == 4
    assert metrics["policy/ratio_mean/1"] == 1.0 and metrics["policy/ratio_std/1"] == 0.0
    assert all(metrics[f"policy/ratio_std/{s}"] > 0.0 for s in (2, 3, 4))


def test_s_is_passes_times_minibatches_and_less_when_there_are_fewer_groups(model_folder: Path) -> None:
    own = learner(model_folder)
    assert learn(own, live_groups(4), stage(passes=3, minibatches=4), Timers())["inner_steps"] == 12
    assert own.version == 12
    assert learn(own, live_groups(1), stage(passes=3, minibatches=4), Timers())["inner_steps"] == 3


def test_one_inner_step_is_plain_grpo(model_folder: Path) -> None:
    """With S = 1 the ratio is 1, so the gradient is that of -advantage x log-probability, a token mean."""
    own, plain = learner(model_folder), learner(model_folder)
    live = live_groups()
    learn(own, live, stage(passes=1, minibatches=1), Timers())
    batches = pack([sample for samples in live for sample in samples], 10**6, share_prompts=True)
    plain.accumulate(batches, lambda s, b, _: (-(b.advantages_N * s.logprobs_N).sum(), {}))
    plain.update()
    for (name, tensor), (_, other) in zip(own.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-6, rtol=0, msg=name)


def test_a_step_lifts_praised_completions_over_blamed_ones(model_folder: Path) -> None:
    own, live = learner(model_folder, 1e-3), live_groups()

    def mean_logprob(praised: bool) -> float:
        chosen = [s for samples in live for s in samples if (s.advantage > 0) == praised]
        return float(torch.cat(own.logprobs(pack(chosen, 999))).mean())

    before = mean_logprob(True) - mean_logprob(False)
    learn(own, live, stage(passes=1, minibatches=2), Timers())
    assert mean_logprob(True) - mean_logprob(False) > before + 1e-4


def test_how_far_the_engine_is_from_the_learner_is_told_where_the_engine_told_anything() -> None:
    given = pack([Sample((1, 2, 3), (False, True, True), logprobs=(-1.0, -2.0)), Sample((1, 2), (False, True))], 9)
    anchors = [torch.tensor([-1.5, -2.0, -9.0])]
    assert engine_difference([given], [anchors]) == {"engine/logprob_diff_mean": 0.25, "engine/logprob_diff_max": 0.5}
    assert engine_difference([pack([Sample((1, 2), (False, True))], 9)], [[torch.tensor([-1.0])]]) == {}


def test_the_reference_holds_the_policy_where_the_stage_began(model_folder: Path) -> None:
    """With a penalty and no advantage the current policy is pulled back to the reference; at the start it is there."""
    own, reference = learner(model_folder), learner(model_folder)
    config = stage(passes=3, minibatches=1, kl=1.0, kl_estimator="k2")
    live = live_groups()
    first = learn(own, live, config, Timers(), reference)
    assert first["policy/kl_to_reference"] > 0.0 and reference.version == 0
    still = [[replace(sample, advantage=0.0) for sample in samples] for samples in live]
    second = learn(own, still, config, Timers(), reference)
    third = learn(own, still, config, Timers(), reference)
    assert third["policy/kl_to_reference"] < second["policy/kl_to_reference"]


def test_an_entropy_bonus_raises_the_entropy(model_folder: Path) -> None:
    own = learner(model_folder, 1e-3)
    live = [[replace(sample, advantage=0.0) for sample in samples] for samples in live_groups()]
    entropies = [
        learn(own, live, stage(passes=1, minibatches=1, entropy_bonus=1.0), Timers())["policy/entropy"]
        for _ in range(3)
    ]
    assert entropies[0] < entropies[1] < entropies[2]


def test_each_domain_has_the_share_of_the_gradient_that_the_recipe_gives_it(model_folder: Path) -> None:
    groups = [group("0", "correct", "incorrect"), group("1", "correct", "incorrect", "incorrect", domain="code")]
    live = build(groups, Rewards(), Algorithm(), 1).live
    metrics = learn(learner(model_folder), live, stage(minibatches=1, domain_weights={"math": 3.0}), Timers())
    assert (metrics["loss/share/math"], metrics["loss/share/code"]) == pytest.approx((0.75, 0.25))
