"""Objectives against numbers worked by hand, against their published formulas written out, and against TRL's loss."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from motet.base.recipe import Algorithm, Correction
from motet.data.pack import Batch, Sample, pack
from motet.rl.aggregation import weighted
from motet.rl.objectives import PolicyLoss, divergence, policy_loss, sequence_means
from motet.train.logprobs import Scored

LOG = math.log
LENGTHS = (4, 1, 7, 3)
ADVANTAGES = (1.5, -0.5, -1.25, 0.75)
LONGEST = 8
OFF = Correction(on=False)


def batch_of(algorithm: Algorithm, lengths: tuple[int, ...] = LENGTHS, advantages: Any = ADVANTAGES) -> Batch:
    """Two prompt tokens, then `lengths` of completion; domains a, b, a, b, ..."""
    samples = [
        Sample((1, 1) + (2,) * n, (False, False) + (True,) * n, a, (-1.0,) * n, "ab"[i % 2])
        for i, (n, a) in enumerate(zip(lengths, advantages, strict=True))
    ]
    (batch,) = pack(weighted(samples, algorithm, LONGEST), 10**6)
    return batch


def tensors(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Current, anchor, behaviour and reference log-probabilities and entropies; ratios from about 0.2 to 5."""
    stream = torch.Generator().manual_seed(seed)
    anchor_N = -2.0 * torch.rand(count, generator=stream) - 0.05
    moved = [anchor_N + s * torch.randn(count, generator=stream) for s in (0.6, 0.3, 0.4)]
    current_N, behaviour_N, reference_N = (m.clamp(max=-0.01) for m in moved)
    return current_N.requires_grad_(), anchor_N, behaviour_N, reference_N, torch.rand(count, generator=stream)


def run(loss: PolicyLoss, batch: Batch, current_N: torch.Tensor, anchor_N: torch.Tensor) -> tuple[float, list[float]]:
    """(loss divided by the number of tokens, its gradient), as the learner does it."""
    total, _ = loss(Scored(current_N, torch.zeros_like(current_N).detach()), batch, anchor_N)
    value = total / batch.num_scored
    (gradient,) = torch.autograd.grad(value, current_N)
    return value.item(), gradient.tolist()


def by_hand(algorithm: Algorithm, ratios: list[float], advantages: list[float], anchor: float = 0.25) -> Any:
    """Summed cost and gradient of single tokens whose anchor and engine gave them the probability `anchor`."""
    count = len(ratios)
    batch = batch_of(algorithm.model_copy(update={"aggregation": "tokens"}), (1,) * count, advantages)
    anchor_N = torch.full((count,), LOG(anchor))
    batch = replace(batch, behaviour_N=anchor_N)
    current_N = (anchor_N + torch.tensor(ratios).log()).requires_grad_()
    total, sums = policy_loss(algorithm)(Scored(current_N, torch.zeros(count)), batch, anchor_N)
    (gradient,) = torch.autograd.grad(total, current_N)
    return total.item(), gradient.tolist(), {name: float(value) for name, value in sums.items()}


# ---- by hand


def test_a_dual_clip_bounds_what_a_blamed_token_costs() -> None:
    total, gradient, sums = by_hand(Algorithm(dual_clip=3.0), [5.0, 2.0, 5.0], [-1.0, -1.0, 1.0])
    assert total == pytest.approx(3.0 + 2.0 - 1.28)
    assert gradient == pytest.approx([0.0, 2.0, 0.0])
    assert (sums["policy/clip_high_share"], sums["policy/clip_low_share"]) == (2.0, 0.0)


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    total, gradient, sums = by_hand(Algorithm(objective="cispo", cispo_max=3.0), [8.0, 0.5, 2.0], [1.0, 1.0, -1.0], 0.1)
    assert gradient == pytest.approx([-3.0, -0.5, 2.0])
    assert total == pytest.approx(-3.0 * LOG(0.8) - 0.5 * LOG(0.05) + 2.0 * LOG(0.2), rel=1e-5)
    assert sums["policy/clip_high_share"] == 1.0


def test_dppo_leaves_out_what_moved_far_in_probability_and_not_what_moved_far_in_ratio() -> None:
    algorithm = Algorithm(objective="dppo", dppo_low=0.2, dppo_high=0.1, correction=OFF)
    # from 0.25: to 0.375 (+0.125: out when praised, in when blamed), to 0.3, to 0.025 (-0.225: out when blamed)
    total, gradient, sums = by_hand(algorithm, [1.5, 1.5, 1.2, 0.1, 0.1], [1.0, -1.0, 1.0, -1.0, 1.0])
    assert gradient == pytest.approx([0.0, 1.5, -1.2, 0.0, -0.1])
    assert total == pytest.approx(1.5 - 1.2 - 0.1)
    assert (sums["policy/clip_high_share"], sums["policy/clip_low_share"]) == (1.0, 1.0)
    _, gradient, _ = by_hand(algorithm, [50.0], [1.0], anchor=0.001)  # to 0.05
    assert gradient == pytest.approx([-50.0])


def test_dppo_measures_from_the_engine_and_from_the_anchor_where_the_engine_said_nothing() -> None:
    algorithm = Algorithm(objective="dppo", aggregation="tokens", correction=OFF)
    batch = replace(batch_of(algorithm, (1, 1), (1.0, 1.0)), behaviour_N=torch.tensor([LOG(0.5), math.nan]))
    current_N = torch.tensor([LOG(0.6), LOG(0.6)], requires_grad=True)
    total, _ = policy_loss(algorithm)(Scored(current_N, torch.zeros(2)), batch, torch.tensor([LOG(0.1), LOG(0.5)]))
    assert total.item() == pytest.approx(-2.4)


def test_all_tokens_of_a_sequence_share_the_geometric_mean_of_their_ratios_in_gspo() -> None:
    algorithm = Algorithm(objective="gspo", gspo_low=0.1, gspo_high=0.1, aggregation="tokens")
    batch = batch_of(algorithm, (2, 2, 1), (1.0, 1.0, -1.0))
    assert batch.order == (0, 1, 2)
    anchor_N = torch.full((5,), -1.0)
    current_N = (anchor_N + torch.tensor([2.0, 0.5, 4.0, 1.0, 0.5]).log()).requires_grad_()
    total, sums = policy_loss(algorithm)(Scored(current_N, torch.zeros(5)), batch, anchor_N)
    assert total.item() == pytest.approx(-2 * 1.0 - 2 * 1.1 + 0.9)  # ratios 1, 2 (held at 1.1), 0.5 (held at 0.9)
    (gradient,) = torch.autograd.grad(total, current_N)
    assert gradient.tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.0, 0.0])
    assert (sums["policy/clip_high_share"].item(), sums["policy/clip_low_share"].item()) == (2.0, 1.0)


def test_the_mean_of_a_sequence_without_scored_tokens_is_zero() -> None:
    (batch,) = pack([Sample((1, 2, 3), (False, True, True)), Sample((1, 2), (False, False))], 99)
    assert sequence_means(torch.tensor([1.0, 2.0]), batch).tolist() == [1.5, 0.0]


def test_three_estimates_of_the_divergence_of_a_token_of_probability_half_whose_reference_has_a_quarter() -> None:
    current_N = torch.tensor([LOG(0.5)], requires_grad=True)
    found = {}
    for kind in ("k1", "k2", "k3"):
        value = divergence(current_N, torch.tensor([LOG(0.25)]), kind)
        found[kind] = (value.item(), torch.autograd.grad(value.sum(), current_N)[0].item())
    two = LOG(2.0)
    assert found["k1"] == pytest.approx((two, 1.0))
    assert found["k2"] == pytest.approx((two**2 / 2, two))
    assert found["k3"] == pytest.approx((0.5 - 1 + two, 0.5))


def test_the_estimates_average_to_the_divergence_and_k2_has_its_gradient() -> None:
    """Over three tokens with probabilities 0.5, 0.3, 0.2 against 0.2, 0.3, 0.5."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * divergence(p.log(), q.log(), kind)).sum()) == pytest.approx(exact)
    logits = p.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    (wanted,) = torch.autograd.grad((logprobs.exp() * (logprobs - q.log())).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((p * divergence(logprobs, q.log(), "k2")).sum(), logits, retain_graph=True)
    (nothing,) = torch.autograd.grad((p * divergence(logprobs, q.log(), "k1")).sum(), logits)
    torch.testing.assert_close(found, wanted)
    assert nothing.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)


def test_penalty_and_bonus_are_weighted_like_the_cost() -> None:
    algorithm = Algorithm(kl=0.5, kl_estimator="k2", entropy_bonus=0.1)
    batch = batch_of(Algorithm(aggregation="tokens"), (1, 1), (0.0, 0.0))
    batch = replace(batch, weights_N=torch.tensor([2.0, 0.0]), reference_N=torch.tensor([-1.0, -1.0]))
    entropy_N = torch.tensor([0.25, 9.0], requires_grad=True)
    loss = policy_loss(algorithm)
    assert loss.entropy == "gradient" and policy_loss(Algorithm()).entropy is True
    total, sums = loss(Scored(torch.tensor([-2.0, -9.0]), entropy_N), batch, torch.tensor([-2.0, -9.0]))
    assert total.item() == pytest.approx(2.0 * (0.5 * 0.5 - 0.1 * 0.25))
    assert torch.autograd.grad(total, entropy_N)[0].tolist() == pytest.approx([-0.2, 0.0])
    assert sums["policy/kl_to_reference"].item() == pytest.approx(0.5 + 32.0)


def test_figures_against_the_engine_count_the_tokens_that_it_told() -> None:
    batch = replace(batch_of(Algorithm(), (1, 1), (1.0, 1.0)), behaviour_N=torch.tensor([-1.0, math.nan]))
    _, sums = policy_loss(Algorithm())(Scored(torch.tensor([-0.5, -0.5]), torch.zeros(2)), batch, torch.zeros(2))
    found = {name: float(value) for name, value in sums.items()}
    assert found["policy/behaviour_known"] == 1.0 and found["policy/m2_to_behaviour"] == pytest.approx(0.25)
    assert found["policy/kl_to_behaviour"] == pytest.approx(math.exp(0.5) - 1.5)
    assert found["policy/m2_to_anchor"] == pytest.approx(0.5)


# ---- the published formulas, a token at a time


def slowly(
    algorithm: Algorithm, logs: dict[str, list[float]], lengths: Any = LENGTHS, advantages: Any = ADVANTAGES
) -> float:
    """The objective of one step from its formulas, with math.exp and loops. `logs`: by policy, all tokens in order."""
    start, sequences = 0, []
    for length, advantage in zip(lengths, advantages, strict=True):
        sequences.append(({name: v[start : start + length] for name, v in logs.items()}, advantage))
        start += length
    costs = [_sequence_costs(algorithm, own, a) for own, a in sequences]
    if algorithm.aggregation == "tokens":
        return sum(map(sum, costs)) / sum(lengths)
    if algorithm.aggregation == "sequences":
        return sum(sum(c) / len(c) for c in costs) / len(costs)
    if algorithm.aggregation == "constant":
        return sum(map(sum, costs)) / (len(costs) * LONGEST)
    domains = [[c for own in costs[i::2] for c in own] for i in range(2)]
    return sum(sum(own) / len(own) for own in domains) / 2


def _sequence_costs(algorithm: Algorithm, logs: dict[str, list[float]], a: float) -> list[float]:
    current, anchor, behaviour = logs["current"], logs["anchor"], logs["behaviour"]
    ratios = [math.exp(c - o) for c, o in zip(current, anchor, strict=True)]
    if algorithm.objective == "gspo":
        ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
        low, high = algorithm.gspo_low, algorithm.gspo_high
    else:
        low, high = algorithm.clip_low, algorithm.clip_high
    if algorithm.objective == "cispo":
        return [-min(r, algorithm.cispo_max) * a * c for r, c in zip(ratios, current, strict=True)]
    if algorithm.objective == "dppo":
        costs = []
        for c, mu in zip(current, behaviour, strict=True):
            r, far = math.exp(c - mu), abs(math.exp(c) - math.exp(mu))
            out = (a > 0 and r > 1 and far > algorithm.dppo_high) or (a < 0 and r < 1 and far > algorithm.dppo_low)
            costs.append(0.0 if out else -r * a)
        return costs
    gains = [min(r * a, min(max(r, 1 - low), 1 + high) * a) for r in ratios]
    if algorithm.dual_clip is not None and a < 0:
        gains = [max(gain, algorithm.dual_clip * a) for gain in gains]
    kl = [math.exp(r - c) - 1 - (r - c) for r, c in zip(logs["reference"], current, strict=True)]
    return [algorithm.kl * k - gain for gain, k in zip(gains, kl, strict=True)]


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"dual_clip": 1.5},
    {"kl": 0.3},
    {"objective": "gspo", "gspo_low": 0.05, "gspo_high": 0.1},
    {"objective": "cispo", "cispo_max": 1.5},
    {"objective": "dppo", "dppo_low": 0.1, "dppo_high": 0.15, "correction": OFF},
]


@pytest.mark.parametrize("aggregation", ["domains", "tokens", "sequences", "constant"])
@pytest.mark.parametrize("given", OBJECTIVES, ids=str)
def test_the_loss_is_that_of_the_published_formula(given: dict[str, Any], aggregation: Any) -> None:
    algorithm = Algorithm(**given, aggregation=aggregation)
    batch = batch_of(algorithm)
    current_N, anchor_N, behaviour_N, reference_N, _ = tensors(batch.num_scored)
    batch = replace(batch, behaviour_N=behaviour_N, reference_N=reference_N)
    value, _ = run(policy_loss(algorithm), batch, current_N, anchor_N)
    named = {"current": current_N, "anchor": anchor_N, "behaviour": behaviour_N, "reference": reference_N}
    parts: dict[str, list[float]] = {}
    for name, whole_N in named.items():  # the batch holds the longest sequence first
        split = dict(zip(batch.order, whole_N.detach().split([LENGTHS[i] for i in batch.order]), strict=True))
        parts[name] = torch.cat([split[i] for i in range(len(LENGTHS))]).double().tolist()
    assert value == pytest.approx(slowly(algorithm, parts), rel=2e-5, abs=1e-6)


# ---- TRL


def trl_loss(settings: dict[str, Any], batch: Batch, logs: tuple[torch.Tensor, ...], weights: Any = None) -> Any:
    """(loss, gradient) of `GRPOTrainer._compute_loss` on the same tokens, padded to rows."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    current_N, anchor_N, _, reference_N, entropy_N = logs
    lengths = [LENGTHS[i] for i in batch.order]
    rows, width = len(lengths), max(lengths)
    place = torch.cat([i * width + torch.arange(n) for i, n in enumerate(lengths)])

    def padded(values_N: torch.Tensor) -> torch.Tensor:
        return torch.zeros(rows * width).index_put((place,), values_N).view(rows, width)

    mask = padded(torch.ones(len(place)))
    chosen = {"loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2,
              "epsilon_high": 0.28, "delta": None, "entropy_coef": 0.0, **settings}  # fmt: skip
    nothing = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, **_: x, num_processes=1, gather_for_metrics=lambda x: x
    )
    trainer = SimpleNamespace(
        **chosen, aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        args=SimpleNamespace(delta=chosen["delta"], use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=weights is not None, vllm_importance_sampling_correction=weights is not None,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, accelerator=nothing,
        max_completion_length=LONGEST, _entropy_bonus_enabled=chosen["entropy_coef"] > 0, use_adaptive_entropy=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(current_N), padded(entropy_N), None),
    )  # fmt: skip
    trainer.accelerator.sync_gradients = False
    inputs = {
        "prompt_ids": torch.zeros(rows, 1), "prompt_mask": torch.ones(rows, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask, "old_per_token_logps": padded(anchor_N), "ref_per_token_logps": padded(reference_N),
        "advantages": torch.tensor([ADVANTAGES[i] for i in batch.order]), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if weights is not None:
        inputs["importance_sampling_ratio"] = padded(weights)
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, current_N)
    return loss.item(), gradient.tolist()


PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"aggregation": "tokens"}, {"loss_type": "dapo"}),
    ({"aggregation": "sequences"}, {"loss_type": "grpo"}),
    ({"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    ({"aggregation": "tokens", "dual_clip": 1.5}, {"delta": 1.5}),
    ({"aggregation": "tokens", "kl": 0.3}, {"beta": 0.3}),
    ({"aggregation": "tokens", "objective": "cispo", "cispo_max": 1.5}, {"loss_type": "cispo", "epsilon_high": 1.5}),
    (
        {"aggregation": "sequences", "objective": "gspo", "gspo_low": 0.05, "gspo_high": 0.1},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
    ),
]


@pytest.mark.parametrize(("own", "theirs"), PAIRS, ids=str)
def test_loss_and_gradient_are_those_of_trl(own: dict[str, Any], theirs: dict[str, Any]) -> None:
    algorithm = Algorithm(**own)
    batch = batch_of(algorithm)
    logs = tensors(batch.num_scored, seed=4)
    value, gradient = run(policy_loss(algorithm), replace(batch, reference_N=logs[3]), logs[0], logs[1])
    wanted, wanted_gradient = trl_loss(theirs, batch, logs)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert gradient == pytest.approx(wanted_gradient, rel=1e-4, abs=1e-7)


def test_an_entropy_bonus_is_that_of_trl() -> None:
    algorithm = Algorithm(aggregation="tokens", entropy_bonus=0.2)
    batch = batch_of(algorithm)
    logs = tensors(batch.num_scored)
    total, _ = policy_loss(algorithm)(Scored(logs[0], logs[4]), batch, logs[1])
    wanted, _ = trl_loss({"entropy_coef": 0.2}, batch, logs)
    assert total.item() / batch.num_scored == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"dual_clip": 3.0, "objective": "gspo"}, 'dual_clip belongs to objective = "clip"; "gspo" does not read it'),
        ({"dual_clip": 1.1}, "dual_clip .1.1. must be above"),
        ({"gspo_high": 1e-3}, 'gspo_high belongs to objective = "gspo"; "clip" does not read it: leave it out'),
        ({"cispo_max": 4.0, "objective": "gspo"}, 'cispo_max belongs to objective = "cispo"'),
        ({"dppo_low": 0.1}, 'dppo_low belongs to objective = "dppo"'),
        ({"domain_weights": {"math": 2.0}, "aggregation": "tokens"}, 'domain_weights belongs to aggregation = "domain'),
        ({"advantage_std": "sample", "advantage": "centred"}, 'belongs to advantage = "group" or advantage = "domain"'),
        ({"kl_estimator": "k1"}, 'kl_estimator = "k1" has no effect with kl = 0: set kl, or leave it out'),
    ],
)
def test_settings_without_an_effect_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Algorithm.model_validate(given)
    plain = Algorithm()
    assert Algorithm.model_validate(plain.model_dump()) == plain  # spelled out, a default is none
