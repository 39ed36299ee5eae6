from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from motet.model.footprint import rows_of_a_chunk
from motet.train import logprobs
from motet.train.logprobs import Scored, score, score_plainly

N, D, V = 10, 6, 23


def inputs(n: int = N, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden_ND = (2 * torch.randn(n, D, generator=generator)).to(dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator, requires_grad=True)
    return hidden_ND, weight_VD, torch.randint(V, (n,), generator=generator)


def gradients(scored: Scored, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of a sum in which every token has another weight, one of them zero and some negative."""
    weights_N = torch.arange(scored.logprobs_N.numel()) - 3.0
    return torch.autograd.grad((scored.logprobs_N * weights_N).sum(), of)


@pytest.mark.parametrize("chunk", [1, 3, 10, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scoring_in_chunks_is_scoring_at_once(temperature: float, chunk: int) -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    plain = score_plainly(hidden_ND, weight_VD, targets_N, temperature)
    chunked = score(hidden_ND, weight_VD, targets_N, temperature, chunk)
    torch.testing.assert_close(chunked.logprobs_N, plain.logprobs_N, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(chunked.entropy_N, plain.entropy_N, atol=2e-6, rtol=1e-6)
    expected = gradients(plain, hidden_ND, weight_VD)
    for found, wanted in zip(gradients(chunked, hidden_ND, weight_VD), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def test_a_flat_distribution_over_23_tokens_has_log_probability_and_entropy_log_23() -> None:
    scored = score(torch.zeros(2, D), torch.ones(V, D), torch.tensor([0, 22]))
    assert scored.logprobs_N.tolist() == pytest.approx([-math.log(23)] * 2)
    assert scored.entropy_N.tolist() == pytest.approx([math.log(23)] * 2)


def test_no_token_to_score_gives_empty_results_and_zero_gradients() -> None:
    hidden_ND, weight_VD, targets_N = inputs(0)
    scored = score(hidden_ND, weight_VD, targets_N)
    assert (scored.logprobs_N.shape, scored.entropy_N.shape) == ((0,), (0,))
    grad_hidden, grad_weight = gradients(scored, hidden_ND, weight_VD)
    assert grad_hidden.shape == (0, D) and not grad_weight.any()


def test_logits_of_bfloat16_hidden_states_are_not_rounded_to_bfloat16() -> None:
    hidden_ND, weight_VD, targets_N = inputs(dtype=torch.bfloat16)
    exact_VD = weight_VD.detach().bfloat16().float().requires_grad_()  # so that the product has no rounded input
    plain = score_plainly(hidden_ND, exact_VD, targets_N)
    scored = score(hidden_ND, exact_VD, targets_N, chunk=4)
    assert scored.logprobs_N.dtype == torch.float32
    torch.testing.assert_close(scored.logprobs_N, plain.logprobs_N, atol=1e-5, rtol=1e-6)
    grad_hidden, grad_weight = gradients(scored, hidden_ND, exact_VD)
    wanted_hidden, wanted_weight = gradients(plain, hidden_ND, exact_VD)
    assert (grad_hidden.dtype, grad_weight.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(grad_hidden, wanted_hidden, atol=0.1, rtol=0.02)
    torch.testing.assert_close(grad_weight, wanted_weight, atol=0.1, rtol=0.02)


def test_the_entropy_is_a_figure_to_report_and_carries_no_gradient() -> None:
    assert not score(*inputs()).entropy_N.requires_grad


@pytest.mark.parametrize("chunk", [1, 3, 10])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_coefficients_known_beforehand_give_the_gradients_that_the_loss_would_have(
    temperature: float, chunk: int
) -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    coefficients_N = torch.arange(N) - 3.0
    plain = score_plainly(hidden_ND, weight_VD, targets_N, temperature)
    expected = gradients(plain, hidden_ND, weight_VD)
    known = score(hidden_ND, weight_VD, targets_N, temperature, chunk, coefficients_N=coefficients_N)
    assert known.weighted is not None and not known.logprobs_N.requires_grad
    torch.testing.assert_close(known.weighted, (coefficients_N * plain.logprobs_N).sum(), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(known.entropy_N, plain.entropy_N, atol=2e-6, rtol=1e-6)
    for found, wanted in zip(torch.autograd.grad(2 * known.weighted, (hidden_ND, weight_VD)), expected, strict=True):
        torch.testing.assert_close(found, 2 * wanted, atol=4e-5, rtol=1e-5)


def test_known_coefficients_change_no_bit_of_a_gradient() -> None:
    """-1/7 for every token, as a mean over 7 tokens has it."""
    hidden_ND, weight_VD, targets_N = inputs(7)
    later = score(hidden_ND, weight_VD, targets_N, chunk=4)
    expected = torch.autograd.grad(-later.logprobs_N.sum() / 7, (hidden_ND, weight_VD))
    known = score(hidden_ND, weight_VD, targets_N, chunk=4, coefficients_N=torch.full((7,), -1.0) / 7)
    assert known.weighted is not None
    for found, wanted in zip(torch.autograd.grad(known.weighted, (hidden_ND, weight_VD)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_with_coefficients_and_a_head_that_is_not_trained_only_hidden_states_have_a_gradient() -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    known = score(hidden_ND, weight_VD.detach(), targets_N, coefficients_N=torch.arange(N) - 3.0)
    plain = score_plainly(hidden_ND, weight_VD, targets_N)
    assert known.weighted is not None
    (found,) = torch.autograd.grad(known.weighted, hidden_ND)
    torch.testing.assert_close(found, gradients(plain, hidden_ND)[0], atol=2e-5, rtol=1e-5)


def test_coefficients_without_gradients_only_weigh() -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    with torch.no_grad():
        known = score(hidden_ND, weight_VD, targets_N, coefficients_N=torch.full((N,), -1.0))
    torch.testing.assert_close(known.weighted, -known.logprobs_N.sum())


def test_entropies_are_left_out_where_nobody_asks() -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    without = score(hidden_ND, weight_VD, targets_N, chunk=3, entropy=False)
    assert without.entropy_N is None
    found, wanted = (gradients(s, hidden_ND, weight_VD) for s in (without, score(hidden_ND, weight_VD, targets_N)))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
@pytest.mark.parametrize("kind", ["known", "later", "entropy"])
def test_gradients_of_several_chunks_multiplied_at_once_are_the_same(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; ten rows are no multiple of two or three chunks of three or four."""
    hidden_ND, weight_VD, targets_N = inputs()
    weights_N = torch.arange(N) - 3.0
    found = []
    for together in (1, 2, 3):
        monkeypatch.setattr(logprobs, "_together", lambda head, together=together: together)
        if kind == "known":
            value = score(hidden_ND, weight_VD, targets_N, 0.6, chunk, coefficients_N=weights_N).weighted
        else:
            scored = score(hidden_ND, weight_VD, targets_N, 0.6, chunk, "gradient" if kind == "entropy" else False)
            value = (scored.logprobs_N * weights_N).sum()
            if scored.entropy_N is not None:
                value = value + (scored.entropy_N * weights_N.flip(0)).sum()
        assert value is not None
        found.append(torch.autograd.grad(value, (hidden_ND, weight_VD)))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_a_chunk_has_as_many_rows_as_the_budget_holds() -> None:
    """Bytes of a row: 8 x vocabulary in bfloat16, where gradients of two chunks lie side by side, and in float32; rows
    come in 256s, 4,096 at most."""
    assert rows_of_a_chunk(151_936, 2) == 1024  # 1.52e9 / 1,215,488 = 1,250
    assert rows_of_a_chunk(151_936, 4) == 1024
    assert rows_of_a_chunk(32_768, 2) == 4096  # 1.52e9 / 262,144 = 5,798
    assert rows_of_a_chunk(100, 4) == 4096
    assert rows_of_a_chunk(10_000_000, 4) == 128


@pytest.mark.parametrize("chunk", [1, 3, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_differentiable_entropies_in_chunks_have_the_gradient_of_those_at_once(temperature: float, chunk: int) -> None:
    hidden_ND, weight_VD, targets_N = inputs()
    tokens_N = torch.arange(N) - 3.0
    found = []
    for scored in (
        score(hidden_ND, weight_VD, targets_N, temperature, chunk, entropy="gradient"),
        score_plainly(hidden_ND, weight_VD, targets_N, temperature, entropy="gradient"),
    ):
        assert scored.entropy_N is not None
        both = (scored.logprobs_N * tokens_N).sum() + (scored.entropy_N * tokens_N.flip(0)).sum()
        alone = scored.entropy_N.sum()
        found.append(
            [*torch.autograd.grad(both, (hidden_ND, weight_VD), retain_graph=True),
             *torch.autograd.grad(alone, (hidden_ND, weight_VD))]
        )  # fmt: skip
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_the_entropy_of_two_tokens_has_the_gradient_worked_by_hand() -> None:
    """p = 0.8, 0.2: dH/dz = -p (log p + H), H = 0.5004; the gradients of a softmax's logits add up to zero."""
    hidden_ND = torch.tensor([[math.log(4.0)]], requires_grad=True)
    scored = score(hidden_ND, torch.tensor([[1.0], [0.0]]), torch.tensor([0]), entropy="gradient")
    assert scored.entropy_N is not None
    scored.entropy_N.sum().backward()
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert scored.entropy_N.item() == pytest.approx(entropy)
    assert hidden_ND.grad is not None and hidden_ND.grad.item() == pytest.approx(-0.8 * (math.log(0.8) + entropy))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_larger_than_a_chunk_of_logits_is_ever_built() -> None:
    hidden_ND, weight_VD, targets_N = inputs(64)
    with LargestTensor() as chunked:
        gradients(score(hidden_ND, weight_VD, targets_N, chunk=8), hidden_ND, weight_VD)
    with LargestTensor() as plain:
        gradients(score_plainly(hidden_ND, weight_VD, targets_N), hidden_ND, weight_VD)
    assert plain.elements == 64 * V  # the probe sees the whole [tokens, vocabulary] where there is one
    assert chunked.elements == max(64 * D, 8 * V)
