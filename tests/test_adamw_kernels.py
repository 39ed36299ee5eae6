"""AdamW in one pass: its slow twin is torch's. On a GPU, or with TRITON_INTERPRET=1 and triton on a CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from motet.base.recipe import Optimizer
from motet.train import optimizers
from motet.train.optimizers import Masters, OnePass, Optimizers

kernels: Any = optimizers.kernels
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        kernels is None or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET")),
        reason="kernels for a GPU",
    ),
]
SHAPES = {"embedding": (70, 300), "matrix": (64, 64), "gain": (5,), "bias": (4097,), "still": (8,)}
CONFIG = Optimizer(learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=2.0)


def parameters(dtype: torch.dtype) -> dict[str, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=random).to(DEVICE, dtype))
        for name, shape in SHAPES.items()
    }


def gradients(step: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """None of what stands still."""
    random = torch.Generator().manual_seed(100 + step)
    return {
        name: (10.0**step * torch.randn(shape, generator=random)).to(DEVICE, dtype)
        for name, shape in SHAPES.items()
        if name != "still"
    }


def in_one_pass(own: dict[str, torch.nn.Parameter], config: Optimizer, masters: Masters | None = None) -> Optimizers:
    found = Optimizers(own, set(), config, masters)
    found.__dict__["_one_pass"] = OnePass(found.parts, masters.rounded() if masters else {})
    found.prepare()
    return found


def error(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> float:
    return max(float((found[n].detach().double() - e).norm() / e.norm()) for n, e in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clipped_and_unclipped_steps_are_those_of_torch_in_float64(dtype: torch.dtype) -> None:
    own = parameters(torch.float32)
    for p in own.values():
        p.grad_dtype = None
    optimizer = in_one_pass(own, CONFIG)
    norms = []
    for step in (-3, 0, 1):  # norms of about 0.2, 200 and 2,000 around the greatest allowed, 2
        for name, gradient in gradients(step, dtype).items():
            own[name].grad = gradient
        norms.append(float(optimizer.step_unread(0.01 / (step + 4), torch.zeros((), device=DEVICE))))
    expected = {name: torch.nn.Parameter(p.double()) for name, p in parameters(torch.float32).items()}
    twin = Optimizers(expected, set(), CONFIG)
    for step, norm in zip((-3, 0, 1), norms, strict=True):
        for name, gradient in gradients(step, dtype).items():
            expected[name].grad = gradient.double()
        assert norm == pytest.approx(twin.clip(), rel=1e-6)
        twin.step(0.01 / (step + 4))
    assert error(own, {name: p.detach() for name, p in expected.items()}) < 1e-6
    assert torch.equal(own["still"], parameters(torch.float32)["still"])
    state = {key: value for key, value in optimizer.state().items() if not key.endswith("/step")}
    assert error(state, {key: value.double() for key, value in twin.state().items() if key in state}) < 2e-6
    assert float(optimizer.state()["gain/step"]) == 3.0 and float(optimizer.state()["still/step"]) == 0.0


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(what: str) -> None:
    own = parameters(torch.float32)
    optimizer = in_one_pass(own, CONFIG)
    for broken in (False, True):
        before = {key: value.clone() for key, value in (own | optimizer.state()).items()}
        for name, gradient in gradients(0, torch.float32).items():
            own[name].grad = gradient
        if broken and what == "gradient":
            assert own["matrix"].grad is not None
            own["matrix"].grad[3, 4] = float("inf")
        value = torch.tensor(float("nan") if broken and what == "loss" else 1.0, device=DEVICE)
        optimizer.step_unread(0.01, value)
    assert all(torch.equal(value, before[key]) for key, value in (own | optimizer.state()).items())


def test_the_model_gets_the_rounded_weights_and_gradients_of_both_types_are_read() -> None:
    model = parameters(torch.float32)
    start = {name: p.detach().clone() for name, p in model.items()}
    masters = Masters(model)
    optimizer = in_one_pass(dict(masters.copies), CONFIG, masters)
    for name, gradient in gradients(0, torch.bfloat16).items():
        masters.copies[name].grad = gradient.float() if name == "gain" else gradient
    optimizer.step_unread(0.01, torch.zeros((), device=DEVICE))
    expected = {name: torch.nn.Parameter(p.double()) for name, p in start.items()}
    twin = Optimizers(expected, set(), CONFIG)
    for name, gradient in gradients(0, torch.bfloat16).items():
        expected[name].grad = gradient.double()
    twin.clip()
    twin.step(0.01)
    assert error(dict(masters.copies), {name: p.detach() for name, p in expected.items()}) < 1e-6
    moved = [name for name in model if name != "still"]
    assert all(torch.equal(model[name], masters.copies[name].bfloat16()) for name in moved)


def test_bfloat16_weights_and_moments_are_rounded_once() -> None:
    own = parameters(torch.bfloat16)
    optimizer = in_one_pass(own, CONFIG)
    for name, gradient in gradients(0, torch.bfloat16).items():
        own[name].grad = gradient
    optimizer.step_unread(0.01, torch.zeros((), device=DEVICE))
    expected = {name: torch.nn.Parameter(p.double()) for name, p in parameters(torch.bfloat16).items()}
    twin = Optimizers(expected, set(), CONFIG)
    for name, gradient in gradients(0, torch.bfloat16).items():
        expected[name].grad = gradient.double()
    twin.clip()
    twin.step(0.01)
    for name, p in expected.items():
        assert (own[name].double() - p).abs().max() <= p.abs().max() * 2**-8  # half a step of bfloat16, and a bit
    assert optimizer.state()["bias/exp_avg"].dtype == torch.bfloat16


def test_a_small_rate_decays_weights_by_as_much_as_it_says() -> None:
    """1e-6 x 0.1; the float32 number next to 1 - 1e-7 is 1 - 1.19e-7."""
    own = {"matrix": torch.nn.Parameter(1.0 + torch.arange(4096, device=DEVICE).view(64, 64) / 4096)}
    before = own["matrix"].detach().double().mean()
    optimizer = in_one_pass(own, CONFIG)
    own["matrix"].grad = torch.zeros(64, 64, device=DEVICE)
    optimizer.step_unread(1e-6, torch.zeros((), device=DEVICE))
    assert float(1.0 - own["matrix"].detach().double().mean() / before) == pytest.approx(1e-7, rel=0.1)


def test_a_matrix_that_lies_transposed_is_stepped_where_its_gradient_is() -> None:
    own = {"matrix": torch.nn.Parameter(torch.zeros(30, 50, device=DEVICE).t())}
    optimizer = in_one_pass(own, CONFIG)
    (own["matrix"] * torch.eye(50, 30, device=DEVICE)).sum().backward()
    optimizer.step_unread(0.01, torch.zeros((), device=DEVICE))
    assert torch.allclose(own["matrix"], -0.01 * torch.eye(50, 30, device=DEVICE), rtol=1e-5)


def test_tensors_that_begin_anywhere_are_stepped_too() -> None:
    whole = torch.zeros(4100, device=DEVICE)
    own = {"bias": torch.nn.Parameter(whole[3:])}
    optimizer = in_one_pass(own, CONFIG)
    own["bias"].grad = torch.ones(4097, device=DEVICE)
    optimizer.step_unread(0.01, torch.zeros((), device=DEVICE))
    assert torch.allclose(whole[3:], torch.full_like(whole[3:], -0.01), rtol=1e-5) and not whole[:3].any()


def test_steps_are_counted_for_each_parameter_also_after_a_state_was_loaded() -> None:
    own = parameters(torch.float32)
    optimizer = in_one_pass(own, CONFIG)
    for step, without in enumerate(("still", "gain", "still")):
        if step == 2:
            optimizer.load({key: value.clone() for key, value in optimizer.state().items()})
        for name, gradient in (gradients(step, torch.float32) | {"still": torch.ones(8, device=DEVICE)}).items():
            own[name].grad = None if name == without else gradient
        optimizer.step_unread(0.01, torch.zeros((), device=DEVICE))
    state = optimizer.state()
    assert {name: float(state[f"{name}/step"]) for name in own} == {
        "embedding": 3.0, "matrix": 3.0, "gain": 2.0, "bias": 3.0, "still": 1.0,
    }  # fmt: skip
