"""Several GPUs of one host: the proof that a mesh means the same as one GPU, and figures to choose a mesh by.

    python bench/gpus.py parity --gpus 8            losses, gradients and checkpoints of every mesh against one GPU
    python bench/gpus.py speed  --gpus 8            64K rows, 4B: SFT and RL steps, sp 1 to 8 at equal tokens
    python bench/gpus.py size   --gpus 8            64K rows, 12.7B: memory against `motet plan`
    python bench/gpus.py growth --gpus 8            16K to 128K on 2, 4, 8 GPUs, and a plot
    python bench/gpus.py engine --gpus 8            vLLM on half of the GPUs, the learner on the others
    python bench/gpus.py all    --gpus 8 --call 1   the same in three calls of nine minutes, by worth

`--cpu --tiny` runs any of them on gloo in miniature. `parity --gpus 1` forces one process through FSDP, Ulysses'
exchange, NCCL and distributed checkpoints. `--cap 80` holds each process to 80 x 10^9 bytes, an H100's, on a
larger GPU. Weights are drawn where they are kept: nothing is downloaded, no large file is written.

The report (--out, JSON) is written after every case, with the hardware, versions and command; a case that fails, hangs
or finds no time says so, with the stacks of all processes, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpus_engine
import gpus_group
import gpus_tables
from gpus_group import Case, Options

KINDS = ("parity", "speed", "size", "growth", "engine")
CALLS: dict[int, list[tuple[str, float, str]]] = {
    1: [("parity", 270, ""), ("speed", 230, "")],
    2: [("size", 180, ""), ("growth", 310, "")],
    3: [("engine", 270, ""), ("speed", 130, "sp 4 of"), ("parity", 90, "odd")],
}
"""What is run together, with seconds for each; every call ends within nine minutes."""
SIXTY_FOUR = 65_536
OTHERS = {8: (2, 2, 2), 4: (2, 1, 2), 2: (2, 1, 1)}
"""Meshes that load what another one saved, by their sizes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*KINDS, "all"])
    parser.add_argument("--gpus", type=int, default=8, help="GPUs, or with --cpu processes, at most")
    parser.add_argument("--cpu", action="store_true", help="gloo on a CPU")
    parser.add_argument("--tiny", action="store_true", help="a miniature model and short rows")
    parser.add_argument("--budget", type=float, default=500, help="seconds; no case begins after them")
    parser.add_argument("--cap", type=float, default=0.0, help="10^9 bytes of each GPU at most; 0: all of it")
    parser.add_argument("--call", type=int, choices=sorted(CALLS), help="of `all`: which third")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--shape", help="of speed and growth, instead of 4B: 0.6B, 1.7B, 12.7B")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="that AdamW steps on")
    parser.add_argument("--python", default=sys.executable, help="engine: the Python of an environment with vLLM")
    parser.add_argument("--out", type=Path, help="the report, of `all` the folder of reports; unset, bench/results")
    parser.add_argument("--list", action="store_true", help="name the cases and run none")
    options = parser.parse_args()
    if options.what == "all" and options.call is None:
        parser.error("all needs --call 1, 2 or 3")
    if not options.cpu and not options.list and shutil.which("nvidia-smi") is None:
        parser.error("there is no NVIDIA GPU here; --cpu --tiny runs the same on gloo in miniature")
    parts = CALLS[options.call] if options.what == "all" else [(options.what, options.budget, "")]
    status = 0
    for what, budget, only in parts:
        status |= part(what, budget, only or options.only, options)
    return status


def part(what: str, budget: float, only: str, options: argparse.Namespace) -> int:
    cases = [case for case in cases_of(what, options) if only in case.name or case.run == "alone"]
    if options.list:
        for case in cases:
            print(f"{case.name:<60} {case.size} processes, at most {case.limit:.0f} s")
        return 0
    device = "cpu" if options.cpu else "gpu"
    name = f"gpus-{what}-{device}{options.gpus}{'-' + only if only else ''}{'-tiny' if options.tiny else ''}.json"
    out = options.out or Path(__file__).parent / "results" / name
    out = out / name if options.out and options.what == "all" else out
    out.parent.mkdir(parents=True, exist_ok=True)
    words = " ".join(["python bench/gpus.py", *shown(sys.argv[1:])])
    report: dict[str, Any] = {"what": what, "machine": gpus_group.machine(options.cpu, words), "cases": []}
    if options.cap:
        report["machine"]["cap_gigabytes"] = options.cap
    scratch = Path(tempfile.mkdtemp(prefix="motet-gpus-"))
    began = time.monotonic()

    def tell(case: Case, result: dict[str, Any]) -> None:
        report["cases"].append({"case": case.name, "processes": case.size, **result})
        out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"[{time.monotonic() - began:4.0f} s] {gpus_tables.line(what, report['cases'][-1])}", flush=True)

    try:
        if what == "engine":
            gpus_engine.run(cases, options, scratch, began + budget, tell)
        else:
            group = Options(options.cpu, scratch, options.cap, timeout=60 if options.tiny else 240)
            gpus_group.run(cases, group, began + budget, tell)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(gpus_tables.table(report))
    if what == "growth":
        drawn = out.with_suffix(".svg")
        drawn.write_text(gpus_tables.plot(report))
        print(f"drawn: {drawn}")
    return int(any("failed" in case or case.get("ok") is False for case in report["cases"]))


def shown(arguments: Sequence[str]) -> list[str]:
    """Without the places of files."""
    return [Path(word).name if "/" in word else word for word in arguments]


def cases_of(what: str, options: argparse.Namespace) -> list[Case]:
    if what == "parity":
        return list(parity_cases(options.gpus, options.tiny, options.cpu))
    if what == "engine":
        return gpus_engine.cases(options)
    if what == "speed":
        return speed_cases(options)
    return size_cases(options) if what == "size" else growth_cases(options)


# ---- the cases, by worth


def parity_cases(gpus: int, tiny: bool, cpu: bool) -> list[Case]:
    """References first. Then the whole machine, its halves, and what is odd; each size of a mesh is one group."""
    shape = "tiny" if tiny else "parity"
    dtypes = ["float32"] if cpu else ["bfloat16", "float32"]
    common = {"shape": shape}
    found = [Case(f"alone {dtype}", "alone", 1, common | {"dtype": dtype}) for dtype in dtypes]
    found += [Case(f"alone {dtype} lora", "alone", 1, common | {"dtype": dtype, "lora": True}) for dtype in dtypes[:1]]
    even = [size for size in (8, 4, 2) if size <= gpus]
    odd = [size for size in (6, 3, 5, 7) if size <= gpus]
    if gpus == 1:
        found += mesh_cases((1, 1, 1), "forced 1 x 1 x 1", common, dtypes)
        found += saving((1, 1, 1), [(0, 0, 0), (1, 1, 1)], common, dtypes)
        found += special_cases(1, common, dtypes, compiled=not cpu)
    for size in even:
        if size < even[0]:  # what more processes saved
            found += [load_case(OTHERS[size], dtype, common) for dtype in dtypes]
        for axes in meshes(size):
            found += mesh_cases(axes, name_of(axes), common, dtypes)
        found += saving((1, size // 2, 2), [OTHERS[size]], common, dtypes)
        found += special_cases(size, common, dtypes, compiled=size == even[0] and not cpu)
    if even:  # by the last mesh that saved: two processes
        found += [load_case((0, 0, 0), dtype, common) for dtype in dtypes]
    for size in odd:
        for axes in meshes(size):
            found += [
                Case(f"odd {name_of(axes)} {d}", "parity", size, common | {"axes": axes, "dtype": d}) for d in dtypes
            ]
    return found


def mesh_cases(axes: tuple[int, int, int], name: str, common: dict[str, Any], dtypes: Sequence[str]) -> list[Case]:
    size, told = max(1, axes[0] * axes[1] * axes[2]), common | {"axes": axes}
    return [Case(f"{name} {dtype}", "parity", size, told | {"dtype": dtype}) for dtype in dtypes]


def special_cases(size: int, common: dict[str, Any], dtypes: Sequence[str], compiled: bool) -> list[Case]:
    """With adapters, and compiled: without and with all-to-alls inside a block."""
    told = common | {"axes": (1, 1, size), "dtype": dtypes[0]}
    found = [Case(f"{name_of((1, 1, size))} {dtypes[0]} lora", "parity", size, told | {"lora": True})]
    for axes in dict.fromkeys(((1, 1, size), (1, size, 1))) if compiled else ():
        told = common | {"axes": axes, "dtype": "bfloat16", "compiled": True}
        found.append(Case(f"{name_of(axes)} bfloat16 compiled", "parity", size, told))
    return found


def saving(
    axes: tuple[int, int, int], others: Sequence[tuple[int, int, int]], common: dict[str, Any], dtypes: Sequence[str]
) -> list[Case]:
    size = axes[0] * axes[1] * axes[2]
    found = []
    for dtype in dtypes:
        told = common | {"axes": axes, "dtype": dtype}
        found.append(Case(f"saved by {name_of(axes)} {dtype}", "save", size, told))
        found += [load_case(other, dtype, common) for other in others]
    return found


def load_case(axes: tuple[int, int, int], dtype: str, common: dict[str, Any]) -> Case:
    size = max(1, axes[0] * axes[1] * axes[2])
    return Case(f"loaded by {name_of(axes)} {dtype}", "load", size, common | {"axes": axes, "dtype": dtype})


def meshes(size: int) -> list[tuple[int, int, int]]:
    """Of so many processes, for 24 heads; the widest sharing of rows first."""
    found = [(size // s // p, s, p) for p in range(size, 0, -1) for s in range(1, size + 1) if size % (s * p) == 0]
    return [axes for axes in found if 24 % axes[2] == 0]


def name_of(axes: tuple[int, int, int]) -> str:
    return "one process" if axes == (0, 0, 0) else " x ".join(map(str, axes))


def speed_cases(options: argparse.Namespace) -> list[Case]:
    """As many rows as GPUs, whatever the mesh: equal tokens. The mesh of the published figures first."""
    shape = "tiny" if options.tiny else options.shape or "4B"
    length = 96 if options.tiny else SIXTY_FOUR
    gpus, found = options.gpus, []
    for sp in [p for p in (8, 4, 2, 1) if gpus % p == 0 and p <= gpus]:
        for loss in ("sft", "rl"):
            axes = (1, gpus // sp, sp)
            told = {
                "shape": shape, "axes": axes, "loss": loss, "rows": [[length]] * gpus, "weights": options.weights,
                "reduce_once": False,
            }  # fmt: skip
            found.append(Case(f"{shape} 64K {loss} sp {sp} of {gpus}", "steps", gpus, told, 180))
            if (sp, loss) == (8, "rl") and not options.tiny:  # what was published for four GPUs
                four = told | {"axes": (1, 1, 4), "loss": "sft", "rows": [[length]] * 2}
                found.append(Case(f"{shape} 64K sft sp 4 of 4", "steps", 4, four, 180))
    return found


def size_cases(options: argparse.Namespace) -> list[Case]:
    """Two rows a step, so that gradients of the first are there when the second comes, as with any more of them."""
    shape = "tiny" if options.tiny else "12.7B"
    length = 96 if options.tiny else SIXTY_FOUR
    axes, found = (1, 1, options.gpus), []
    for loss, recompute in (("sft", "attention"), ("rl", "attention"), ("sft", "auto"), ("rl", "auto")):
        if options.cpu and recompute == "auto":
            continue
        told = {
            "shape": shape, "axes": axes, "loss": loss, "rows": [[length]] * 2, "recompute": recompute,
            "reduce_once": False, "planned": shape == "12.7B", "trace": False,
        }  # fmt: skip
        found.append(Case(f"{shape} 64K {loss} {recompute}", "steps", options.gpus, told, 200))
    return found


def growth_cases(options: argparse.Namespace) -> list[Case]:
    shape = "tiny" if options.tiny else options.shape or "4B"
    lengths = [24, 48, 96, 192] if options.tiny else [16_384, 32_768, SIXTY_FOUR, 131_072]
    found = []
    for size in [n for n in (8, 4, 2) if n <= options.gpus]:
        told = {"shape": shape, "axes": (1, 1, size), "lengths": lengths, "reduce_once": False}
        found.append(Case(f"{shape} on {size}", "growth", size, told, 240))
    return found


if __name__ == "__main__":
    sys.exit(main())
