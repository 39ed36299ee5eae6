"""What lies between the engine's policy and the learner's, and when the steps on a batch end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import test_rl
from motet.base.recipe import Algorithm, Correction
from motet.base.run import Timers, log
from motet.data.pack import Sample, pack
from motet.rl.correction import figures, weigh
from motet.rl.reuse import crossed, learn
from test_objectives import LENGTHS, batch_of, run, tensors, trl_loss


def weighed(ratios: list[list[float]], config: Correction, weight: float = 1.0) -> tuple[list[list[float]], Any]:
    """Weights by sequence; `ratios`: learner's probability / engine's, of each sequence's tokens."""
    samples = [
        Sample((1,) * (len(r) + 1), (False,) + (True,) * len(r), logprobs=(-1.0,) * len(r), weight=weight)
        for r in ratios
    ]
    (batch,) = pack(samples, 10**6)
    anchor_N = torch.tensor([math.log(value) - 1.0 for i in batch.order for value in ratios[i]])
    found = weigh(batch, anchor_N, config)
    split = found.batch.weights_N.split([len(ratios[i]) for i in batch.order])
    return [split[batch.order.index(i)].tolist() for i in range(len(ratios))], figures([found])


def test_a_token_weighs_its_ratio_up_to_the_cap() -> None:
    found, metrics = weighed([[0.5, 3.0, 1.0]], Correction(token_cap=2.0, sequence_bound=2.0), weight=0.5)
    assert found[0] == pytest.approx([0.25, 1.0, 0.5])
    assert metrics["correction/importance_mean"] == pytest.approx(1.5)
    assert metrics["correction/importance_max"] == pytest.approx(3.0)
    assert metrics["correction/ess"] == pytest.approx(4.5**2 / (3 * 10.25))
    assert metrics["correction/truncated_share"] == pytest.approx(1 / 3) and metrics["correction/masked_share"] == 0.0


def test_a_sequence_is_out_by_the_geometric_mean_of_its_ratios_whatever_its_length() -> None:
    # geometric means: 1.2 over one token, 1.01 over a hundred (their product is 2.7), 1 over two, 0.8 over one
    found, metrics = weighed([[1.2], [1.01] * 100, [2.0, 0.5], [0.8]], Correction())
    assert found[0] == [0.0] and found[3] == [0.0]
    assert found[1] == pytest.approx([1.01] * 100) and found[2] == pytest.approx([2.0, 0.5])
    assert metrics["correction/masked_share"] == 0.5


def test_rounding_weighs_exactly_nothing() -> None:
    found, metrics = weighed([[1.0 + 4e-6, 1.0 - 5e-4, 1.0]], Correction())
    assert found == [[1.0, 1.0, 1.0]] and metrics["correction/ess"] == 1.0


def test_switched_off_the_correction_reports_what_it_would_do_and_changes_nothing() -> None:
    found, metrics = weighed([[4.0], [1.0]], Correction(on=False))
    assert found == [[1.0], [1.0]]
    assert metrics["correction/masked_share"] == 0.5 and metrics["correction/importance_mean"] == pytest.approx(2.5)


def test_tokens_without_a_behaviour_log_probability_weigh_one_and_are_no_evidence() -> None:
    (batch,) = pack([Sample((1, 2, 3), (False, True, True))], 99)
    found = weigh(batch, torch.tensor([-3.0, -0.1]), Correction())
    assert found.batch.weights_N.tolist() == [1.0, 1.0] and figures([found]) == {"correction/told_share": 0.0}
    (told,) = pack([Sample((1, 2, 3, 4), (False, True, True, True), logprobs=(-3.0, -0.1, -2.0))], 99)
    known = weigh(told, torch.tensor([-3.0, -0.1, -2.0]), Correction())
    assert figures([found, known])["correction/told_share"] == 3 / 5


def test_the_corrected_loss_is_that_of_trl_with_truncated_token_weights() -> None:
    algorithm = Algorithm(aggregation="tokens", correction=Correction(token_cap=1.2, sequence_bound=9.0))
    batch = batch_of(algorithm)
    logs = tensors(batch.num_scored, seed=4)
    batch = replace(batch, behaviour_N=logs[2])
    corrected = weigh(batch, logs[1], algorithm.correction).batch
    from motet.rl.objectives import policy_loss

    value, gradient = run(policy_loss(algorithm), corrected, logs[0], logs[1])
    wanted, wanted_gradient = trl_loss({}, batch, logs, weights=(logs[1] - logs[2]).exp().clamp(max=1.2))
    assert len(set(corrected.weights_N.tolist())) > len(LENGTHS)
    assert value == pytest.approx(wanted, rel=1e-5) and gradient == pytest.approx(wanted_gradient, rel=1e-4, abs=1e-7)


def test_a_sequence_that_is_out_moves_nothing(model_folder: Path) -> None:
    """Two learners, one of which never sees the sequences that the other one masks."""
    live = test_rl.live_groups()
    own, other = test_rl.learner(model_folder), test_rl.learner(model_folder)
    anchors = {s.tokens: a for group in live for s in group for a in [other.logprobs(pack([s], 99))[0].tolist()]}
    told = [[replace(s, logprobs=tuple(anchors[s.tokens])) for s in group] for group in live]
    far = [[replace(s, logprobs=tuple(v - 1.0 for v in s.logprobs)) if s.advantage < 0 else s for s in g] for g in told]
    zero = [[replace(s, advantage=0.0) if s.advantage < 0 else s for s in g] for g in told]
    config = test_rl.stage(passes=1, minibatches=1, correction={})
    metrics = learn(own, far, config, Timers())
    learn(other, zero, config, Timers())
    assert metrics["correction/masked_share"] == pytest.approx(2 / 3)
    for (name, tensor), (_, wanted) in zip(own.weights(), other.weights(), strict=True):
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=0, msg=name)


def test_where_every_sequence_is_out_no_step_is_taken(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = test_rl.learner(model_folder)
    live = [[replace(s, logprobs=(-30.0, -30.0)) for s in group] for group in test_rl.live_groups()]
    with caplog.at_level("INFO", logger=log.name):
        metrics = learn(own, live, test_rl.stage(passes=2, minibatches=2, correction={}), Timers())
    assert metrics["inner_steps"] == 0 and metrics["correction/masked_share"] == 1.0 and own.version == 0
    assert "no step taken on this batch" in caplog.text


# ---- the guard


def told(**given: float) -> dict[str, float]:
    still = {"policy/clip_low_share": 0.0, "policy/clip_high_share": 0.0, "policy/m2_to_anchor": 0.0,
             "policy/kl_to_anchor": 0.0, "policy/ess": 1.0}  # fmt: skip
    return still | {f"policy/{name}": value for name, value in given.items()}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, ""),
        ({"m2_to_anchor": 0.05}, "mean square of the log-ratio to the anchor 0.05 > guard.m2 0.04"),
        ({"m2_to_anchor": 0.05, "m2_to_behaviour": 0.03, "kl_to_behaviour": 0.01}, ""),
        ({"m2_to_behaviour": 0.06, "kl_to_behaviour": 0.0}, "mean square of the log-ratio to the behaviour 0.06"),
        ({"ess": 0.4}, "effective sample size 0.400 < guard.ess 0.5"),
        ({"clip_low_share": 0.03, "clip_high_share": 0.03}, "share of clipped tokens 0.060 > guard.clip_share 0.05"),
        ({"kl_to_anchor": 0.03}, "divergence from the anchor 0.03 > guard.kl 0.02"),
    ],
)
def test_each_bound_ends_the_steps(given: dict[str, float], text: str) -> None:
    found = crossed(told(**given), Algorithm())
    assert found.startswith(text) and bool(found) == bool(text)
    assert crossed(told(**given), Algorithm.model_validate({"guard": {"on": False}})) == ""


def test_a_bound_of_zero_is_none_and_gspo_is_not_judged_by_what_it_clips() -> None:
    everything = told(m2_to_anchor=9.0, ess=0.0, clip_high_share=1.0, kl_to_anchor=9.0)
    assert crossed(everything, Algorithm.model_validate({"guard": {"m2": 0, "ess": 0, "clip_share": 0, "kl": 0}})) == ""
    assert crossed(told(clip_high_share=0.5), Algorithm(objective="gspo")) == ""


def test_the_guard_leaves_the_steps_that_the_batch_is_not_good_for(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded, free = test_rl.learner(model_folder), test_rl.learner(model_folder)
    live = [[replace(s, logprobs=()) for s in group] for group in test_rl.live_groups()]
    with caplog.at_level("INFO", logger=log.name):
        metrics = learn(guarded, live, test_rl.stage(passes=4, minibatches=2, guard={"m2": 1e-6}), Timers())
    assert (metrics["inner_steps"], metrics["guard/stopped"], guarded.version) == (1, 1.0, 1)
    assert metrics["policy/m2_to_anchor/2"] > 1e-6 and "policy/m2_to_anchor/3" not in metrics
    assert "1 of 8 steps taken on this batch: mean square of the log-ratio to the anchor" in caplog.text
    # what had been added for the step that was not taken is forgotten
    learn(free, live[::2], test_rl.stage(passes=1, minibatches=1), Timers())
    for (name, tensor), (_, wanted) in zip(guarded.weights(), free.weights(), strict=True):
        assert torch.equal(tensor, wanted), name
    assert all(p.grad is None or not p.grad.any() for p in guarded.model.parameters())


def test_figures_are_told_of_every_inner_step(model_folder: Path) -> None:
    live = test_rl.live_groups()
    metrics = learn(test_rl.learner(model_folder), live, test_rl.stage(passes=2, minibatches=1), Timers())
    names = ("ratio_mean", "ratio_std", "ess", "clip_low_share", "clip_high_share", "kl_to_anchor", "kl_to_behaviour",
             "m2_to_anchor", "m2_to_behaviour")  # fmt: skip
    assert all(f"policy/{name}/{inner}" in metrics for name in names for inner in (1, 2))
    assert metrics["policy/ess/1"] == 1.0 > metrics["policy/ess/2"] and metrics["policy/m2_to_anchor/1"] == 0.0
    assert "guard/stopped" not in metrics
