"""The figures that benchmarks report beside what they measure, worked by hand; and the page that shows them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
profiles: Any = importlib.import_module("profiles")
train_speed: Any = importlib.import_module("train_speed")


def test_the_floor_of_a_step_is_attention_and_products_alone() -> None:
    """28 blocks of 16 heads of 128: 7 x 28 x 2048 x 65,536 squared at 646 TFLOP/s, and 6 N x 65,536 at 798."""
    weights = train_speed.parameters(1024, 3072, 28)
    assert weights == 151_936 * 1024 + 28 * (1024 * 128 * 48 + 3 * 1024 * 3072)
    attention, products = 7 * 28 * 2048 * 65536**2 / 646e12, 6 * weights * 65536 / 798e12
    assert (attention, products) == (pytest.approx(2.669, abs=1e-3), pytest.approx(0.294, abs=1e-3))
    assert train_speed.floor(weights, 28, [65536]) == pytest.approx(attention + products)
    eight = 7 * 28 * 2048 * 8 * 8192**2 / 554e12
    assert train_speed.floor(weights, 28, [8192] * 8) == pytest.approx(eight + products)


def event(cat: str, name: str, start: float, length: float) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": start, "dur": length}


def test_a_step_falls_into_kinds_of_kernels_and_time_in_which_none_runs() -> None:
    """Microseconds: attention 0-40, a product 40-60, nothing until 70, the head's product 70-90, a copy beside it."""
    events = [
        event("gpu_user_annotation", "motet:head", 68, 24),
        event("gpu_user_annotation", "somebody else's", 0, 100),
        event("kernel", "nvjet_tst_128x256", 40, 20),
        event("kernel", "cutlass___call___flash_attn_fwd", 0, 40),
        event("kernel", "nvjet_tst_128x256", 70, 20),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 94, 1),
        event("kernel", "vectorized_elementwise_kernel<4, float>", 95, 5),
        event("cpu_op", "aten::mm", 0, 100),
    ]
    found = profiles.summary(events, wall=100e-6)
    assert {kind: pytest.approx(1e-6 * us) for kind, us in {
        "attention": 40, "matrix products": 20, "head": 20, "norm, rope, elementwise": 5, "copies": 1,
    }.items()} == found["kinds"]  # fmt: skip
    assert found["idle"] == pytest.approx(14e-6)
    assert [(pytest.approx(gap["seconds"]), gap["after"][:5], gap["before"][:6]) for gap in found["gaps"]] == [
        (10e-6, "nvjet", "nvjet_"),
        (4e-6, "nvjet", "Memcpy"),
    ]
    assert [(one["kind"], one["count"]) for one in found["kernels"]][:1] == [("attention", 1)]
    assert "attention" in profiles.table(found).splitlines()[0]


def test_the_page_says_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "page.py"), "--check"], check=False)
    assert done.returncode == 0, "docs/speed.md is not what bench/results says: python bench/page.py"


def test_a_case_that_was_profiled_counts_as_measured_where_no_other_was() -> None:
    def case(system: str, speed: float) -> dict[str, Any]:
        return {"case": f"0.6B:8K:{system}", "tokens_per_second": speed, "seconds": 0.1, "mfu": 0.4, "peak_gib": 1.0}

    page: Any = importlib.import_module("page")
    profiled = case("motet+profile", 9e3)
    assert "| `motet` | 9.0K |" in page.train_speeds([{"results": [profiled]}])
    both = page.train_speeds([{"results": [case("motet", 8e3), profiled]}])
    assert "| `motet` | 8.0K |" in both and "9.0K" not in both
