"""The two passes over a chunk of logits, in triton: each reads every logit once. Legend: C rows, V vocabulary.

`train/logprobs.py` has their slow twins, and `bench/head.py` compares the two on a GPU.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

BLOCK = 4096


def statistics(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, scale: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the targets, normalisers and entropies under softmax(logits x scale), all [C] float32."""
    rows, width = logits_CV.shape
    logprobs_C, normaliser_C = (torch.empty(rows, dtype=torch.float32, device=logits_CV.device) for _ in range(2))
    entropy_C = torch.empty_like(logprobs_C) if entropy else None
    _statistics[(rows,)](
        logits_CV, targets_C, logprobs_C, normaliser_C, entropy_C if entropy else logprobs_C, width, scale,
        ENTROPY=entropy, BLOCK=BLOCK, num_warps=16,
    )  # fmt: skip
    return logprobs_C, normaliser_C, entropy_C


def gradient(
    grad_CV: torch.Tensor,
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor,
    normaliser_C: torch.Tensor,
    coefficients_C: torch.Tensor,
    scale: float,
) -> None:
    """coefficient x (one-hot of the target - softmax) x scale, into `grad_CV`, contiguous."""
    rows, width = logits_CV.shape
    _gradient[(rows, triton.cdiv(width, BLOCK))](
        logits_CV, targets_C, normaliser_C, coefficients_C.contiguous(), grad_CV, width, scale,
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _statistics(logits, targets, logprobs, normalisers, entropies, width, scale, ENTROPY: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """A program a row. Each of BLOCK lanes keeps a maximum, a sum and a weighted sum; they meet at the end."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    highest = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        here = start + lanes < width
        x = tl.load(logits + row * width + start + lanes, mask=here, other=0.0) * scale
        higher = tl.where(here, tl.maximum(highest, x), highest)
        rescale = tl.exp(highest - higher)
        p = tl.where(here, tl.exp(x - higher), 0.0)
        total = total * rescale + p
        if ENTROPY:
            weighted = weighted * rescale + p * x
        highest = higher
    top = tl.max(highest, 0)
    rescale = tl.exp(highest - top)
    summed = tl.sum(total * rescale, 0)
    normaliser = top + tl.log(summed)
    target = tl.load(targets + row)
    tl.store(logprobs + row, tl.load(logits + row * width + target) * scale - normaliser)
    tl.store(normalisers + row, normaliser)
    if ENTROPY:
        tl.store(entropies + row, normaliser - tl.sum(weighted * rescale, 0) / summed)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _gradient(logits, targets, normalisers, coefficients, grads, width, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = columns < width
    x = tl.load(logits + row * width + columns, mask=here, other=0.0) * scale
    probability = tl.exp(x - tl.load(normalisers + row))
    hit = tl.where(columns == tl.load(targets + row), 1.0, 0.0)
    grad = tl.load(coefficients + row) * scale * (hit - probability)
    tl.store(grads + row * width + columns, grad.to(grads.dtype.element_ty), mask=here)
