"""What the device does in a step: its kernels by kind, and the time in which it does nothing.

    with profiles.recorded():
        step()
    print(profiles.table(profiles.last))

Times come from torch.profiler's trace of the device. A kernel belongs to the range of `marked` that it runs in ("head",
"optimizer"), else to the kind that its name says.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "attention": r"flash|fmha|sdpa|attention|attn",
    "matrix products": r"gemm|nvjet|cutlass|cublas|wgmma|splitk|xmma",
    "copies": r"memcpy|memset|copy_kernel|direct_copy|CatArray",
    "optimizer": r"adam|multi_tensor|foreach|lpnorm",
    "norm, rope, elementwise": r"",
}
"""By name, the first that fits."""
last: dict[str, Any] = {}
"""Of the step recorded last."""


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose kernels are counted as `name`."""
    from torch.profiler import record_function

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"motet:{name}"):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """The work inside waits for the device at its end."""
    from torch.profiler import profile

    with tempfile.TemporaryDirectory() as place:
        trace = Path(place) / "trace.json"
        with profile() as profiler:
            began = time.perf_counter()
            yield
            wall = time.perf_counter() - began
        profiler.export_chrome_trace(str(trace))
        last.clear()
        last.update(summary(json.loads(trace.read_text())["traceEvents"], wall))


def summary(events: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Seconds by kind and by kernel. What runs side by side counts for both; idle is time in which nothing runs."""
    work = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    marks = [e for e in events if e.get("cat") == "gpu_user_annotation" and str(e["name"]).startswith("motet:")]
    marks.sort(key=lambda e: float(e["ts"]))
    starts = [float(e["ts"]) for e in marks]
    kinds: dict[str, float] = defaultdict(float)
    kernels: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    busy, until, before = 0.0, 0.0, ""
    gaps: list[tuple[float, str, str]] = []
    for event in sorted(work, key=lambda e: float(e["ts"])):
        start, length = float(event["ts"]), float(event["dur"])
        kind = _kind(event, marks, starts)
        kinds[kind] += length / 1e6
        entry = kernels[kind, str(event["name"])[:120]]
        entry[0] += length / 1e6
        entry[1] += 1
        if until and start > until:
            gaps.append(((start - until) / 1e6, before, str(event["name"])[:80]))
        if start + length > until:
            before = str(event["name"])[:80]
        busy += max(0.0, start + length - max(start, until)) / 1e6
        until = max(until, start + length)
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
    return {
        "wall": wall,
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "idle": max(0.0, wall - busy),
        "gaps": [{"seconds": s, "after": a, "before": b} for s, a, b in sorted(gaps, reverse=True)[:12]],
        "kernels": [{"kind": k, "name": n, "seconds": s, "count": int(c)} for (k, n), (s, c) in top],
    }


def _kind(event: dict[str, Any], marks: list[dict[str, Any]], starts: list[float]) -> str:
    place = bisect_right(starts, float(event["ts"])) - 1
    if place >= 0 and float(event["ts"]) < starts[place] + float(marks[place]["dur"]):
        return str(marks[place]["name"]).removeprefix("motet:")
    name = "memcpy" if event["cat"] != "kernel" else str(event["name"])
    return next(kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))


def table(found: dict[str, Any]) -> str:
    wall = found["wall"]
    rows = [*found["kinds"].items(), ("nothing runs", found["idle"])]
    lines = [f"{kind:<26}{1e3 * seconds:9.1f} ms {100 * seconds / wall:5.1f} %" for kind, seconds in rows]
    lines.append("")
    lines += [
        f"{1e3 * one['seconds']:9.1f} ms {one['count']:6}  {one['kind']:<24} {one['name'][:80]}"
        for one in found["kernels"]
    ]
    if found.get("gaps"):
        lines += ["", "longest gaps"]
        lines += [f"{1e3 * g['seconds']:9.2f} ms  {g['after'][:48]}  ->  {g['before'][:48]}" for g in found["gaps"][:6]]
    return "\n".join(lines)
