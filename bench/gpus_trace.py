"""How a step's seconds on a GPU divide into computing and communicating, from the kernels of a torch.profiler trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

KINDS = {
    "all-to-all": ("SendRecv", "AllToAll", "alltoall"),
    "all-gather": ("AllGather", "allgather"),
    "reduce-scatter": ("ReduceScatter", "reduce_scatter"),
    "all-reduce": ("AllReduce", "allreduce"),
}
"""Parts of the names of NCCL's kernels, and of torch's operations on a CPU. An all-to-all is sends and receives."""
Span = tuple[float, float]


class Kernel(NamedTuple):
    name: str
    start: float
    """Seconds."""
    end: float


def shares(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Of the time from the first kernel to the last: in each kind of communication, in any, and in none; `hidden` is
    the share of communication during which something is computed as well. A collective's kernel also runs while it
    waits for the others, so who is late shows here as communication of those who are not."""
    if not kernels:
        return {}
    start, whole = min(k.start for k in kernels), max(k.end for k in kernels) - min(k.start for k in kernels)
    by_kind: dict[str, list[Span]] = {kind: [] for kind in KINDS}
    computing: list[Span] = []
    for kernel in kernels:
        span = (kernel.start - start, kernel.end - start)
        by_kind[kind].append(span) if (kind := kind_of(kernel.name)) else computing.append(span)
    communicating = union([span for spans in by_kind.values() for span in spans])
    busy = union(computing)
    in_any = length(communicating)
    both = in_any + length(busy) - length(union([*communicating, *busy]))
    found = {kind: length(union(spans)) / whole for kind, spans in by_kind.items()}
    return found | {
        "communication": in_any / whole,
        "hidden": both / in_any if in_any else 1.0,
        "exposed": (in_any - both) / whole,
        "computing": length(busy) / whole,
        "idle": 1.0 - length(union([*communicating, *busy])) / whole,
        "seconds": whole,
    }


def kind_of(name: str) -> str | None:
    if "nccl" not in name and "c10d" not in name:
        return None
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), None)


def union(spans: Iterable[Span]) -> list[Span]:
    """Example: (0, 2), (1, 3), (5, 6) -> (0, 3), (5, 6)."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def read(file: Path, cpu: bool) -> list[Kernel]:
    """Kernels and copies of a Chrome trace; on a CPU, torch's operations."""
    wanted = ("cpu_op",) if cpu else ("kernel", "gpu_memcpy", "gpu_memset")
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return [
        Kernel(str(event["name"]), 1e-6 * float(event["ts"]), 1e-6 * (float(event["ts"]) + float(event["dur"])))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in wanted
    ]
