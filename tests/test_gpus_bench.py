"""bench/gpus.py: what it will say of several GPUs is worked out by hand here, and run in miniature on gloo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import gpus  # noqa: E402
import gpus_group  # noqa: E402
import gpus_tables  # noqa: E402
from gpus_group import Case, Options  # noqa: E402
from gpus_trace import Kernel, kind_of, read, shares, union  # noqa: E402


def test_communication_behind_computing_is_told_from_communication_that_is_waited_for() -> None:
    kernels = [
        Kernel("gemm", 10.0, 14.0),
        Kernel("ncclDevKernel_AllGather_RING_LL(...)", 12.0, 16.0),  # two of its four seconds are hidden
        Kernel("ncclDevKernel_SendRecv(...)", 16.0, 17.0),
        Kernel("attention", 17.0, 19.0),
        Kernel("adamw", 19.5, 20.0),
    ]
    found = shares(kernels)
    assert found["seconds"] == 10.0
    assert found["all-gather"] == pytest.approx(0.4) and found["all-to-all"] == pytest.approx(0.1)
    assert found["communication"] == pytest.approx(0.5) and found["hidden"] == pytest.approx(2 / 5)
    assert found["exposed"] == pytest.approx(0.3) and found["computing"] == pytest.approx(0.65)
    assert found["idle"] == pytest.approx(0.05) and found["reduce-scatter"] == 0.0


def test_two_kinds_at_the_same_time_are_one_time_of_communication() -> None:
    both = [Kernel("ncclDevKernel_AllGather", 0.0, 2.0), Kernel("ncclDevKernel_ReduceScatter_Sum_f32", 1.0, 3.0)]
    found = shares([*both, Kernel("gemm", 3.0, 4.0)])
    assert found["communication"] == 0.75 and found["hidden"] == 0.0
    assert union([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)]
    assert shares([]) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "all-to-all"),
        ("ncclDevKernel_AllReduce_Sum_f32_TREE_LL", "all-reduce"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "reduce-scatter"),
        ("c10d::_allgather_base_", "all-gather"),
        ("void at::native::reduce_kernel<512, 1>(AllReduce)", None),  # somebody else's name for something else
    ],
)
def test_kernels_are_told_by_their_names(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_of_a_trace_the_kernels_and_copies_count_and_no_ranges(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1e6, "dur": 5e5},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "nccl:all_gather", "ts": 0, "dur": 9e9},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 2e6, "dur": 1e6},
    ]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": events}))
    assert read(file, cpu=False) == [Kernel("gemm", 1.0, 1.5), Kernel("Memcpy DtoH", 2.0, 3.0)]


def test_every_mesh_of_eight_processes_is_compared_and_what_eight_saved_is_loaded_by_fewer() -> None:
    assert sorted(gpus.meshes(8)) == [
        (1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 1, 4), (2, 2, 2), (2, 4, 1), (4, 1, 2), (4, 2, 1), (8, 1, 1),
    ]  # fmt: skip
    assert (1, 1, 5) not in gpus.meshes(5)  # 24 heads
    cases = gpus.parity_cases(8, tiny=False, cpu=False)
    meshed = {tuple(case.settings["axes"]) for case in cases if case.run == "parity"}
    assert meshed == {axes for size in range(2, 9) for axes in gpus.meshes(size)}
    assert {case.settings["dtype"] for case in cases if case.run == "parity"} == {"bfloat16", "float32"}
    order = [(case.run, case.size) for case in cases if case.run in ("save", "load")]
    assert order.index(("save", 8)) < order.index(("load", 4)) < order.index(("save", 4)) < order.index(("load", 1))


def test_a_report_has_a_table_and_a_plot(tmp_path: Path) -> None:
    row = {"length": 16384, "tokens_per_second": 5000.0, "allocated": 30 * 2**30}
    case = {"case": "4B on 8", "rows": [row, row | {"length": 32768}], "recompute": "attention",
            "forecast_of": {"16384": 31 * 2**30, "32768": 40 * 2**30}}  # fmt: skip
    failed = {"case": "4B on 4", "failed": "OutOfMemoryError: tried to allocate", "partial": case | {"rows": [row]}}
    report = {"what": "growth", "machine": {"devices": ["NVIDIA H200, 143771 MiB"] * 2, "cap_gigabytes": 80.0},
              "cases": [case, failed]}  # fmt: skip
    text = gpus_tables.table(report)
    assert "2 x NVIDIA H200" in text and "held to 80 GB" in text and "16,384: 5,000 tok/s" in text
    assert "1 failed" in text and "FAILED OutOfMemoryError" in text
    svg = gpus_tables.plot(report)
    assert svg.startswith("<svg xmlns") and svg.count("<svg ") == 3
    assert "4B on 8; grey" in svg and "4B on 4; grey" in svg  # what was measured before it failed


@pytest.mark.slow
def test_one_process_forced_through_the_mesh_says_what_one_process_says(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ["parity", "--cpu", "--tiny", "--gpus", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, str(BENCH / "gpus.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases: dict[str, Any] = {case["case"]: case for case in json.loads(out.read_text())["cases"]}
    assert cases["forced 1 x 1 x 1 float32"]["ok"] and cases["1 x 1 x 1 float32 lora"]["ok"]
    assert cases["loaded by one process float32"]["ok"] and cases["loaded by 1 x 1 x 1 float32"]["ok"]


@pytest.mark.slow
def test_a_case_that_hangs_leaves_the_stacks_of_all_its_processes_and_the_rest_goes_on(tmp_path: Path) -> None:
    cases = [
        Case("hangs", "hang", 2, {"seconds": 300.0}, limit=1.0),
        Case("comes", "hang", 2, {"seconds": 0.0}, limit=60.0),
        Case("fails", "save", 2, {"shape": "no such", "axes": [1, 1, 2], "dtype": "float32"}, limit=60.0),
    ]
    told: dict[str, Any] = {}
    options = Options(cpu=True, scratch=tmp_path, cap=0.0)
    start, gpus_group.START_SECONDS = gpus_group.START_SECONDS, 45.0
    try:
        gpus_group.run(cases, options, time.monotonic() + 300, lambda case, found: told.update({case.name: found}))
    finally:
        gpus_group.START_SECONDS = start
    stacks = told["hangs"]["output"]
    assert told["hangs"]["failed"] == "ran longer than 1 s" and set(stacks) == {"process 0", "process 1"}
    assert any("in hang" in line for line in stacks["process 0"]) and any(
        "in hang" in line for line in stacks["process 1"]
    )
    assert "failed" not in told["comes"]
    assert told["fails"]["failed"] == "KeyError: 'no such'"
