"""Fingerprints of many tensors in one kernel: vllm_worker.py's, which by torch are ten kernels for each tensor.

Of a model of 311 tensors the host would launch for longer than the device reads. Like `vllm_worker.py` this file runs
inside vLLM, with the standard library, torch and triton alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

BLOCK = 2048
"""Elements that a program reads at once."""
PROGRAMS = 1024
"""Of each tensor."""


def at_once(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """[N, 2] int64: `fingerprint` of each of N tensors on one device, all of one element size."""
    whole = [tensor.detach().contiguous() for tensor in tensors]
    rows = [[t.data_ptr(), t.numel(), t.shape[-1] if t.ndim > 1 else max(1, t.numel())] for t in whole]
    device = whole[0].device
    table = torch.tensor(rows, dtype=torch.int64)
    table = table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
    sums = torch.zeros(len(whole), 2, dtype=torch.int64, device=device)
    kernel, types = _kernel()
    kernel[(len(whole), PROGRAMS)](table, sums, BITS=types[whole[0].element_size()], BLOCK=BLOCK, PROGRAMS=PROGRAMS)
    return sums


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    globals()["tl"] = tl  # a kernel's names are looked up in its module

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def place(index):  # type: ignore[no-untyped-def]
        number = (index.to(tl.int64) + 1) * -7046029254386353131
        number = (number ^ (number >> 30)) * -4658895280553007687
        return number ^ (number >> 27)

    globals()["place"] = place

    @triton.jit  # type: ignore[untyped-decorator]
    def weighted_sums(table, sums, BITS: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):  # type: ignore[no-untyped-def]
        own = table + 3 * tl.program_id(0)
        count, width = tl.load(own + 1), tl.load(own + 2)
        bits = tl.load(own).to(tl.pointer_type(BITS))
        lanes = tl.arange(0, BLOCK)
        by_row, by_column = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
        for start in range(tl.program_id(1).to(tl.int64) * BLOCK, count, PROGRAMS * BLOCK):
            here = (start % width).to(tl.int32) + lanes
            down = here // width.to(tl.int32)
            value = tl.load(bits + start + lanes, mask=start + lanes < count, other=0).to(tl.int64)
            by_row += value * place(start // width + down)
            by_column += value * place(here - down * width.to(tl.int32))
        tl.atomic_add(sums + 2 * tl.program_id(0), tl.sum(by_row, 0))
        tl.atomic_add(sums + 2 * tl.program_id(0) + 1, tl.sum(by_column, 0))

    return weighted_sums, {1: tl.uint8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
