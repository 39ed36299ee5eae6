"""Tokens drawn for a whole batch of vLLM's at once: the slow twin of the kernel, and when it is taken."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from motet.engine import vllm_draw, vllm_worker
from motet.engine.vllm_draw import AtOnce, draw, install


def philox(key: int, counters: np.ndarray[Any, Any], offset: int) -> list[np.ndarray[Any, Any]]:
    """Philox4x32-10, as its paper writes it down."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = counters.astype(np.uint64), np.full(len(counters), offset, dtype=np.uint64)
    c = d = np.zeros_like(a)
    first, second = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    for _ in range(10):
        one, other = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (other >> half) ^ b ^ first, other & low, (one >> half) ^ d ^ second, one & low
        first, second = (first + np.uint64(0x9E3779B9)) & low, (second + np.uint64(0xBB67AE85)) & low
    return [a, b, c, d]


def drawn_slowly(probs: torch.Tensor, seed: int, offset: int) -> int:
    quarter, columns = vllm_draw.QUARTER, len(probs)
    numbers = np.empty(-(-columns // (4 * quarter)) * 4 * quarter)
    for part in range(len(numbers) // (4 * quarter)):
        counters = np.arange(part * quarter, (part + 1) * quarter)
        for n, values in enumerate(philox(seed % 2**64, counters, offset)):
            numbers[(4 * part + n) * quarter :][:quarter] = values
    exponential = -np.log1p(-(numbers[:columns] + 0.5) / 2**32)
    return int((probs.double().numpy() / exponential).argmax())


def test_the_twins_numbers_are_those_that_the_inventors_publish() -> None:
    (a,), (b,), (c,), (d,) = philox(0, np.zeros(1), 0)
    assert [int(x) for x in (a, b, c, d)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_tokens_come_as_often_as_their_probability_says() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = np.bincount([drawn_slowly(probs, seed=11, offset=4 * n) for n in range(4000)], minlength=4)
    expected = 4000 * probs.numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square of 3 degrees at 0.1 %


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a kernel for a GPU")
@pytest.mark.parametrize("columns", [7, 2048, 5000, 151_936])
def test_the_kernel_draws_what_its_twin_draws(columns: int) -> None:
    probs = torch.randn(30, columns).mul(2.0).softmax(-1)
    seeds = [n * 2**40 + n if n % 2 else -n - 1 for n in range(30)]
    offsets = torch.arange(0, 120, 4, device="cuda")
    found = draw(probs.cuda(), torch.tensor(seeds, device="cuda"), offsets).tolist()
    assert found == [drawn_slowly(row, seed, 4 * n) for n, (row, seed) in enumerate(zip(probs, seeds, strict=True))]


class Generator:
    """torch's, as it is on a GPU."""

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed, self.offset = seed, offset

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


def test_a_row_has_its_requests_seed_and_the_request_has_moved_on_by_one_draw() -> None:
    own = AtOnce(lambda *_: torch.empty(0))
    first, second, third = Generator(7, 8), Generator(2**64 - 1), Generator(9)

    def told(generators: Any) -> list[list[int]]:
        return [numbers.tolist() for numbers in own.streams(generators, torch.device("cpu"))]

    assert told({1: first, 0: second}) == [[-1, 7], [0, 8]]
    assert told({1: first, 0: second}) == [[-1, 7], [4, 12]]
    assert told({0: first, 1: second}) == [[7, -1], [16, 8]]  # they have changed places
    second.offset -= vllm_draw.ADVANCE  # vLLM has dropped its token
    assert told({0: third, 1: second}) == [[9, -1], [0, 8]]


def test_a_batch_in_which_a_request_has_no_seed_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(vllm_draw, "draw", lambda *_: asked.append("at once"))
    own = AtOnce(lambda *given: asked.append("one after the other"))  # type: ignore[arg-type,return-value]
    generators: Any = {0: Generator(1), 1: Generator(2)}
    own(torch.ones(3, 4), generators)
    own(torch.ones(2, 4), generators)
    own(torch.ones(2, 4), generators, False)
    own(torch.ones(2, 4), generators, True)  # a switch that is not known here
    assert asked == ["one after the other", "at once", "at once", "one after the other"]


def modules(monkeypatch: pytest.MonkeyPatch, parameters: Iterable[str]) -> Any:
    """A vLLM with this function, a triton, and a GPU."""
    ops: Any = ModuleType(vllm_draw.OPS)
    exec(f"def random_sample({', '.join(parameters)}): return 'plain'", ops.__dict__)
    names = vllm_draw.OPS.split(".")
    for count in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:count]), ModuleType(names[count - 1]))
    monkeypatch.setitem(sys.modules, vllm_draw.OPS, ops)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(vllm_draw, "draw", lambda *_: None)
    return ops


def test_vllms_function_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = modules(monkeypatch, ["probs", "generators"])
    plain = ops.random_sample
    assert install() == install() == ""
    assert isinstance(ops.random_sample, AtOnce) and ops.random_sample._plain is plain


def test_a_vllm_that_is_built_otherwise_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = modules(monkeypatch, ["logits", "generators"])
    plain = ops.random_sample
    assert install() == "it has no random_sample(probs, generators)" and ops.random_sample is plain


def test_a_kernel_that_cannot_be_made_leaves_vllm_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = modules(monkeypatch, ["probs", "generators"])
    plain = ops.random_sample

    def fails(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(vllm_draw, "draw", fails)
    assert install() == "the kernel cannot be made: RuntimeError: no C compiler" and ops.random_sample is plain


def test_without_a_gpu_vllm_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert vllm_worker.draw_at_once() == "it is not on a GPU"


def test_a_worker_that_was_copied_without_the_file_beside_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_worker, "__name__", "motet_vllm")
    assert vllm_worker.draw_at_once() == "No module named 'motet_vllm_draw'"
