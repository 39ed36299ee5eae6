"""AdamW in one pass against torch's fused AdamW with what it needs around it, on the parameters of Qwen3 1.7B.

    python bench/adamw.py                    # on a GPU with 50 GB free

Gradients are bfloat16, as they come. `torch`: they are cast to the weights' type, their norm is taken, torch's fused
AdamW clips and steps, and float32 weights are rounded for the model. `motet` is train/adamw_kernels.py, by elements and
warps of a program. Bytes a parameter at least: 30 with float32 weights (gradient twice 2, weight and moments read and
written 24, rounded weight 2), 16 with bfloat16 ones. Milliseconds are the device's, medians of seven; `host` is how
long the calls took to return.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHAPES = [(151_936, 2048), *28 * [(2048, 2048), (1024, 2048), (1024, 2048), (2048, 2048), (6144, 2048), (6144, 2048),
                                  (2048, 6144), (2048,), (2048,), (128,), (128,)]]  # fmt: skip
BLOCKS = [(512, 4), (1024, 2), (1024, 4), (2048, 4), (4096, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    count = sum(torch.Size(shape).numel() for shape in SHAPES)
    rows: list[dict[str, Any]] = []
    for weights, least in ((torch.float32, 30), (torch.bfloat16, 16)):
        for name, milliseconds, host in measured(weights):
            row = {"weights": str(weights).removeprefix("torch."), "way": name, "ms": milliseconds, "host_ms": host,
                   "tb_per_second": least * count / milliseconds / 1e9}  # fmt: skip
            rows.append(row)
            print(f"{row['weights']:<9} {name:<22} {milliseconds:7.2f} ms, host {host:5.2f} ms, "
                  f"{row['tb_per_second']:.2f} TB/s of the least bytes", flush=True)  # fmt: skip
    x = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = 2 * 2**32 / timed(lambda: y.copy_(x))[0] / 1e9
    print(f"{torch.cuda.get_device_name()}: a copy runs at {copy:.2f} TB/s")
    if out:
        found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_tb_per_second": copy}
        out.write_text(json.dumps({**found, "parameters": count, "rows": rows}, indent=1) + "\n")


def measured(dtype: torch.dtype) -> list[tuple[str, float, float]]:
    from motet.train import adamw_kernels as kernels

    weights = [torch.randn(shape, device="cuda", dtype=dtype) for shape in SHAPES]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    gradients = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in SHAPES]
    rounded = [torch.empty_like(g) if dtype == torch.float32 else None for g in gradients]
    tensors = [kernels.Tensors(*own) for own in zip(weights, gradients, first, second, rounded, strict=True)]
    numbers = torch.tensor([[0.1, 0.05**0.5, 0.1]] * len(SHAPES), device="cuda")
    one, zero = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
    found = []
    for block, warps in BLOCKS:
        kernels.BLOCK, kernels.WARPS, places = block, warps, kernels.Places()

        def step(places: kernels.Places = places) -> None:
            table = kernels.Table(tensors, places)
            table.squares()
            table.step(numbers, one, zero, 1e-4, (0.9, 0.95), 1e-8)

        found.append((f"motet {block} x {warps}", *timed(step)))
    parameters = [torch.nn.Parameter(w) for w in weights]
    theirs = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    theirs.grad_scale, theirs.found_inf = one, zero  # type: ignore[attr-defined]

    def plain() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(dtype)
        torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        theirs.step()
        if dtype == torch.float32:
            torch._foreach_copy_(rounded, weights)

    return [*found, ("torch", *timed(plain))]


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """The device's and the host's milliseconds."""
    run()
    device, host = [], []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        began = time.perf_counter()
        run()
        host.append(1e3 * (time.perf_counter() - began))
        end.record()
        end.synchronize()
        device.append(begin.elapsed_time(end))
    return statistics.median(device), statistics.median(host)


if __name__ == "__main__":
    main()
