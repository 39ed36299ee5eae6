"""Attention over packed documents, forward and backward: every kernel that motet can run, beside the peers' own.

    python bench/attention.py            # on a GPU, in bfloat16
    python bench/attention.py --tiny     # the same table in miniature, on a CPU in float32

16 query and 8 key/value heads of 128, causal inside each document. Kernels: `motet` is what motet chooses on this
device, `motet without FA4` what it chooses where FlashAttention 4 is not installed (cuDNN for each long document,
varlen flash attention for runs of short ones), then each of these alone. Peers: `varlen_attn` of
torch.nn.attention.varlen, transformers' SDPA attention (documents of one length as rows of a batch; others have no such
call), and the varlen function of FlashAttention 4.

TFLOP/s = 3.5 x 2 x H x E x (sum of the documents' squared lengths) / time: the forward pass is two products of half of
L x L x E a head, the backward pass five. Time is the median over repetitions of forward + backward, by the device's
own events. Before that every kernel is compared with the definition in float64, on six documents of 1 to 2,500 tokens:
relative errors, in the Euclidean norm, of the result and of the gradients of queries, keys and values. Ends with 1
where one is above 1 % or could not be had.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from motet.model import packed
from motet.model.kernels import Documents, attend

HEADS, KEY_HEADS, WIDTH = 16, 8, 128
ROWS = {
    "8K": [8192], "32K": [32768], "64K": [65536], "8 x 8K": [8192] * 8, "64 x 1K": [1024] * 64,
    "uneven": [24576, 16384, 9000, 6000, 4096, 2500, 1500, 1000, 300, 180],
}  # fmt: skip
SMALL = [2500, 700, 300, 5, 1, 600]
TOLERANCE = 0.01
WITHOUT = "cudnn+varlen"
REFUSED = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, ImportError)
"""What a kernel, or another version of its package, raises."""
Tensors = tuple[torch.Tensor, ...]


class Row(NamedTuple):
    lengths: list[int]
    documents: Documents
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grad: torch.Tensor


Run = Callable[[Row], torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="again for more; unset, all")
    parser.add_argument("--budget", type=float, default=240, help="seconds; no case begins after them")
    parser.add_argument("--tiny", action="store_true", help="miniatures on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    arguments = parser.parse_args()
    from plan_probe import machine

    until = time.monotonic() + arguments.budget
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"machine": machine(), "command": "python bench/attention.py"}
    found = kernels(device)
    small = [n // 50 + 1 for n in SMALL] if arguments.tiny else SMALL
    report["errors"], report["failed"], report["tflops"], report["seconds"] = {}, {}, {}, {}
    print(f"{'relative error':<22}" + "".join(f"{name:>10}" for name in ("result", "d query", "d key", "d value")))
    for name, run in list(found.items()):
        try:
            values = report["errors"][name] = errors(run, small, device)
        except REFUSED as error:  # the others are measured all the same
            report["failed"][name] = said(error)
            print(f"{name:<22}failed: {said(error)}", flush=True)
            del found[name]
            continue
        print(f"{name:<22}" + "".join(f"{value:>10.1e}" for value in values), flush=True)
    for label in arguments.row or ROWS:
        lengths = [max(1, n // 256) for n in ROWS[label]] if arguments.tiny else ROWS[label]
        row = make(lengths, device, torch.bfloat16 if device == "cuda" else torch.float32)
        flop = 7 * HEADS * WIDTH * sum(n * n for n in lengths)
        times: dict[str, float] = {}
        for name, run in found.items():
            if time.monotonic() > until:
                print(f"{label}, {name}: not begun, the time is up", flush=True)
            elif (taken := seconds(run, row)) is not None:
                times[name] = taken
        report["seconds"][label] = times
        report["tflops"][label] = {name: flop / taken / 1e12 for name, taken in times.items()}
        speeds = ", ".join(f"{name} {speed:.3g}" for name, speed in report["tflops"][label].items())
        print(f"{label}: {speeds}", flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    table(report, list(found))
    wrong = any(not value <= TOLERANCE for values in report["errors"].values() for value in values)
    return int(wrong or bool(report["failed"]))


def table(report: dict[str, Any], names: list[str]) -> None:
    rows = report["tflops"]
    print(f"\n{'TFLOP/s':<22}" + "".join(f"{label:>10}" for label in rows))
    for name in names:
        cells = [rows[label].get(name) for label in rows]
        print(f"{name:<22}" + "".join(f"{'-' if cell is None else f'{cell:.3g}':>10}" for cell in cells))
    for own in ("motet", "motet without FA4"):
        cells = [(rows[label].get(own), rows[label].get("varlen_attn")) for label in rows]
        ratios = [f"{a / b:.2f}" if a and b else "-" for a, b in cells]
        print(f"{own + ' / varlen_attn':<32}" + "".join(f"{ratio:>10}" for ratio in ratios)[10:])


def kernels(device: str) -> dict[str, Run]:
    """What can run here, by name."""
    if device != "cuda":
        return {"motet": chosen, "motet's operation": one_of("plain"), "transformers sdpa": transformers_sdpa}
    fa4 = packed.fastest(torch.device("cuda")) == "flash4"
    found: dict[str, Run] = {"motet": chosen, "motet without FA4": one_of(WITHOUT)}
    found |= {"cuDNN": one_of("cudnn"), "varlen": one_of("varlen")}
    found |= {"varlen_attn": varlen_attn, "transformers sdpa": transformers_sdpa}
    return found | ({"FA4 varlen": flash4_varlen} if fa4 else {})


def chosen(row: Row) -> torch.Tensor:
    return attend(row.query, row.key, row.value, row.documents)


def one_of(name: str) -> Run:
    def run(row: Row) -> torch.Tensor:
        starts, host = row.documents.starts, row.documents.starts_host
        return packed.attend(row.query, row.key, row.value, starts, host, WIDTH**-0.5, name)

    return run


def varlen_attn(row: Row) -> torch.Tensor:
    from torch.nn.attention import varlen

    function: Any = varlen.varlen_attn
    takes = inspect.signature(function).parameters
    causal = {"is_causal": True} if "is_causal" in takes else {"window_size": (-1, 0)}
    grouped = {"enable_gqa": True} if "enable_gqa" in takes else {}
    starts, longest = row.documents.starts, max(row.lengths)
    out: torch.Tensor = function(row.query, row.key, row.value, starts, starts, longest, longest, **causal, **grouped)
    return out


def transformers_sdpa(row: Row) -> torch.Tensor:
    """As transformers calls it without a mask: [documents, heads, tokens, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if len(set(row.lengths)) > 1:
        raise NotImplementedError("documents of several lengths")
    count = len(row.lengths)
    q, k, v = (x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in (row.query, row.key, row.value))
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, HEADS // KEY_HEADS  # type: ignore[assignment]
    out, _ = sdpa_attention_forward(module, q, k, v, None, scaling=WIDTH**-0.5, is_causal=True)
    return out.flatten(0, 1)  # type: ignore[no-any-return]


def flash4_varlen(row: Row) -> torch.Tensor:
    from flash_attn.cute.interface import flash_attn_varlen_func

    starts, longest = row.documents.starts, max(row.lengths)
    out = flash_attn_varlen_func(
        row.query, row.key, row.value, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest,
        max_seqlen_k=longest, softmax_scale=WIDTH**-0.5, causal=True,
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def make(lengths: list[int], device: str, dtype: torch.dtype) -> Row:
    stream = torch.Generator(device=device).manual_seed(0)
    shapes = [(sum(lengths), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    made = [torch.randn(shape, generator=stream, device=device).to(dtype) for shape in shapes]
    inputs = [x.requires_grad_() for x in made[:3]]
    return Row(lengths, Documents.plan(lengths, device), inputs[0], inputs[1], inputs[2], made[3])


def both(run: Run, row: Row) -> Tensors:
    out = run(row)
    return out, *torch.autograd.grad(out, (row.query, row.key, row.value), row.grad)


def errors(run: Run, lengths: list[int], device: str) -> list[float]:
    """Against the definition in float64; the lengths made alike where a kernel takes no others."""
    if run is transformers_sdpa:
        lengths = [max(lengths)] * 2
    row = make(lengths, device, torch.bfloat16 if device == "cuda" else torch.float32)
    inputs = (x.detach().double().requires_grad_() for x in (row.query, row.key, row.value))
    exact = both(one_of("plain"), Row(lengths, row.documents, *inputs, row.grad.double()))
    pairs = zip(both(run, row), exact, strict=True)
    return [float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs]


def seconds(run: Run, row: Row) -> float | None:
    """Median; None where it cannot."""
    try:
        both(run, row)
        taken = [once(run, row) for _ in range(2)]
        count = max(5, min(30, int(0.5 / max(taken[-1], 1e-9))))
        return statistics.median(once(run, row) for _ in range(count))
    except NotImplementedError:
        return None
    except REFUSED as error:
        print(f"failed: {said(error)}", flush=True)
        return None


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def once(run: Run, row: Row) -> float:
    if not torch.cuda.is_available():
        began = time.perf_counter()
        both(run, row)
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    both(run, row)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


if __name__ == "__main__":
    sys.exit(main())
