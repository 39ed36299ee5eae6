"""The next token of every request of a vLLM batch in one kernel, each from a random stream of its own.

vLLM draws for a request that has a seed apart from the others: a small kernel for each request and step, on the thread
on which the GPU's next step waits. Here a step is one kernel. A request's numbers are Philox4x32-10 of its seed and of
how many tokens it has drawn, so a completion does not depend on its neighbours' streams, and they are drawn from the
same distribution: argmax of p / E with E exponential is distributed as p.

Like `vllm_worker.py` this file runs inside vLLM, with the standard library, torch and triton alone. `install` puts
`draw` in the place of vLLM's function; a vLLM that is built otherwise, or has no GPU, goes on as it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch

OPS = "vllm.v1.sample.ops.topk_topp_sampler"
NAME, ARGUMENTS = "random_sample", ["probs", "generators"]
QUARTER = 512
"""A program looks at four times as many columns: Philox gives four numbers at once."""
ADVANCE = 4
"""What a draw adds to a generator's offset, as vLLM's own does: it takes as much back when it drops a token."""
Draw = Callable[..., torch.Tensor]


def install() -> str:
    """Returns why vLLM keeps its own way; nothing: empty."""
    if not torch.cuda.is_available():
        return "it is not on a GPU"
    try:
        import_module("triton")
        ops: Any = import_module(OPS)
    except ImportError as error:
        return str(error)
    plain = getattr(ops, NAME, None)
    if isinstance(plain, AtOnce):
        return ""
    if not callable(plain) or list(inspect.signature(plain).parameters)[:2] != ARGUMENTS:
        return f"it has no {NAME}({', '.join(ARGUMENTS)})"
    try:
        numbers = torch.zeros(2, dtype=torch.int64, device="cuda")
        draw(torch.ones(2, 8, device="cuda"), numbers, numbers)
    except Exception as error:  # a kernel is compiled here and now: whatever its compiler raises, vLLM goes on without
        return f"the kernel cannot be made: {type(error).__name__}: {error}"[:300]
    setattr(ops, NAME, AtOnce(plain))
    return ""


class AtOnce:
    """In the place of vLLM's `random_sample`, which it calls where some request has no seed."""

    def __init__(self, plain: Draw) -> None:
        self._plain = plain
        self._known: list[torch.Generator] = []
        self._seeds = torch.empty(0, dtype=torch.int64)
        """Theirs, on the device: a step's requests are mostly those of the step before."""

    def __call__(self, probs: torch.Tensor, generators: Mapping[int, torch.Generator], *options: Any) -> torch.Tensor:
        """`options` are switches that a later vLLM has: whoever sets one gets vLLM's own."""
        if len(generators) != probs.shape[0] or any(options):
            return self._plain(probs, generators, *options)
        return draw(probs, *self.streams(generators, probs.device))

    def streams(
        self, generators: Mapping[int, torch.Generator], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeds and offsets of the rows 0, 1, ... on the device; moves each generator on by one draw."""
        own = [generators[row] for row in range(len(generators))]
        if own != self._known:
            seeds = [generator.initial_seed() for generator in own]
            self._seeds = _on(device, [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in seeds])
            self._known = own
        offsets = [generator.get_offset() for generator in own]
        for generator, offset in zip(own, offsets, strict=True):
            generator.set_offset(offset + ADVANCE)
        return self._seeds, _on(device, offsets)


def _on(device: torch.device, numbers: list[int]) -> torch.Tensor:
    values = torch.tensor(numbers, dtype=torch.int64)
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def draw(probs_NV: torch.Tensor, seeds_N: torch.Tensor, offsets_N: torch.Tensor) -> torch.Tensor:
    """Tokens [N] of the rows' distributions; probabilities need not be normalised. N requests, V vocabulary.

    Column c of a row uses number (c // QUARTER) % 4 of Philox4x32-10 with key seed and counter (c // (4 QUARTER) x
    QUARTER + c % QUARTER, offset, 0, 0) (Salmon et al., SC 2011): u = (number + 1/2) / 2^32 and E = -log(1 - u).
    """
    rows, columns = probs_NV.shape
    parts = -(-columns // (4 * QUARTER))
    best = torch.empty(rows, parts, dtype=torch.float32, device=probs_NV.device)
    places = torch.empty(rows, parts, dtype=torch.int64, device=probs_NV.device)
    grid = (rows, parts)
    _kernel()[grid](probs_NV, probs_NV.stride(0), seeds_N, offsets_N, best, places, columns, parts, QUARTER=QUARTER)
    return places.gather(1, best.argmax(1, keepdim=True)).view(-1)


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    globals()["tl"] = tl  # a kernel's names are looked up in its module

    @triton.jit  # type: ignore[untyped-decorator]
    def best_of_part(probs, stride, seeds, offsets, best, places, columns, parts, QUARTER: tl.constexpr):  # type: ignore[no-untyped-def]
        row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        seed, offset = tl.load(seeds + row), tl.load(offsets + row).to(tl.int32)
        lane = tl.arange(0, QUARTER)
        counter, zero = part * QUARTER + lane, lane * 0
        numbers = tl.philox(seed, counter, zero + offset, zero, zero)
        highest, where = tl.full((), -1.0, tl.float32), tl.full((), 0, tl.int32)
        for quarter in tl.static_range(4):
            u = (numbers[quarter].to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
            # near 0, where 1 - u would round, by the series: small E decide
            exponential = tl.where(u < 1e-3, u * (1.0 + u * (0.5 + u / 3.0)), -tl.log(1.0 - u))
            column = (4 * part + quarter) * QUARTER + lane
            p = tl.load(probs + row * stride + column, mask=column < columns, other=0.0)
            score = tl.where(column < columns, p / exponential, -1.0)
            top, place = tl.max(score, 0, return_indices=True)
            place += (4 * part + quarter) * QUARTER
            where = tl.where(top > highest, place, where)
            highest = tl.maximum(top, highest)
        tl.store(best + row * parts + part, highest)
        tl.store(places + row * parts + part, where.to(tl.int64))

    return best_of_part
