"""Fingerprints of many tensors at once: their slow twin is one after the other. The kernel runs on a GPU, or with
TRITON_INTERPRET=1 and triton on a CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch

from motet.engine import vllm_fingerprints, vllm_worker
from motet.engine.vllm_worker import Fingerprints, fingerprint, fingerprints

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(70, 300), (64, 64), (5,), (4097,), (3, 5000), (1,), (2, 3, 7), ()]


def one_by_one(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([fingerprint(tensor) for tensor in tensors])


@pytest.mark.gpu
@pytest.mark.skipif(
    find_spec("triton") is None or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET")),
    reason="a kernel for a GPU",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_the_kernel_says_what_its_twin_says(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_fingerprints, "PROGRAMS", 3)  # fewer than the largest has pieces
    monkeypatch.setattr(vllm_fingerprints, "BLOCK", 512)
    random = torch.Generator().manual_seed(1)
    tensors = [(100 * torch.randn(shape, generator=random)).to(DEVICE, dtype) for shape in SHAPES]
    tensors += [tensors[0].T, tensors[1][10:50]]  # not in one piece, and a part of one
    assert vllm_fingerprints.at_once(tensors).equal(one_by_one(tensors))


def test_tensors_wait_for_each_other_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def at_once(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        together.append(len(tensors))
        return one_by_one(tensors)

    named = [(str(n), torch.full((4,), float(n))) for n in range(5)] + [("half", torch.ones(2, dtype=torch.bfloat16))]
    plain = fingerprints(named)
    monkeypatch.setattr(vllm_worker, "_at_once", lambda _: at_once)
    monkeypatch.setattr(vllm_worker, "BATCH", 48)  # three of 16 bytes
    assert fingerprints(named) == plain and together == [3, 2, 1]


def test_what_waits_is_let_go_with_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_worker, "_at_once", lambda _: one_by_one)
    found = Fingerprints()
    found.add("one", torch.ones(3))
    assert (
        list(found.words()) == ["one"]
        and found._waiting == []
        and found.words() == fingerprints([("one", torch.ones(3))])
    )


def test_a_cpu_and_a_kernel_that_fails_take_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_worker._at_once("cpu") is None
    device = "cpu:0"  # in the place of a GPU
    for kernel, taken in ((lambda tensors: one_by_one(tensors) + 1, False), (one_by_one, True)):
        monkeypatch.setattr(vllm_fingerprints, "at_once", kernel)
        vllm_worker._at_once.cache_clear()
        assert (vllm_worker._at_once(device) is kernel) == taken
    vllm_worker._at_once.cache_clear()
