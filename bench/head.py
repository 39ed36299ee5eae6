"""The chunked head against other ways to a cross-entropy's gradients: time, and memory over what every way needs.

    python bench/head.py            # 64K tokens, 151,936 words, widths 1024 and 2048, in bfloat16 on a GPU
    python bench/head.py --tiny     # in miniature, on a CPU in float32

One call is forward and backward: gradients of the hidden states and of the head. `SFT` is the sum of log-probabilities,
its coefficients known beforehand; `RL` a loss of the log-probabilities, whose are not, so the logits are built twice.
Both with entropies as figures, where not said otherwise. Ways: motet's; Liger's fused linear cross-entropy; Apple's
cut-cross-entropy; TRL's fused head; and torch's own cross-entropy on compiled chunks of 2,048 tokens. The others know
the coefficients, and are compared with both.

Memory is the device's peak over hidden states, head, targets and the gradients of the first two. Before that each way
is compared with float64 on 512 tokens and 4,096 words: relative errors of the gradients in the Euclidean norm.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from motet.train.logprobs import score

TOKENS, VOCABULARY, WIDTHS = 65_536, 151_936, (1024, 2048)
GOALS = {"SFT": 1.15, "RL": 1.45}
"""Times of the fastest of the others."""
MOST = 2 * 2**30
TOLERANCE = 0.03
"""The others may round logits to bfloat16."""


class Case(NamedTuple):
    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    targets_N: torch.Tensor


Way = Callable[[Case], tuple[torch.Tensor, torch.Tensor]]
"""The gradients, of the hidden states and of the head, of the negative sum of log-probabilities."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=120, help="seconds; no case begins after them")
    parser.add_argument("--tiny", action="store_true", help="miniatures on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "head.json")
    arguments = parser.parse_args()
    from plan_probe import machine

    until = time.monotonic() + arguments.budget
    report: dict[str, Any] = {"machine": machine(), "command": "python bench/head.py", "cases": []}
    tokens, vocabulary = (256, 512) if arguments.tiny else (TOKENS, VOCABULARY)
    for width in (16, 32) if arguments.tiny else WIDTHS:
        small, whole = make(512, 4096, width), make(tokens, vocabulary, width)
        exact = plainly(Case(*(x.detach().double().requires_grad_() for x in small[:2]), small.targets_N))
        product = 2 * tokens * vocabulary * width
        for name, way in ways().items():
            if time.monotonic() > until:
                print(f"{name}, {width}: not begun, the time is up", flush=True)
                continue
            found = {"width": width, "way": name} | measured(way, small, exact, whole)
            if "seconds" in found:
                found["products_at"] = (4 if name == "motet RL" else 3) * product / found["seconds"] / 1e12
            report["cases"].append(found)
            speed = found.get("failed") or f"{1e3 * found['seconds']:.1f} ms"
            print(f"{width} {name}: {speed}", flush=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        del whole
    return table(report)


def table(report: dict[str, Any]) -> int:
    print(f"\n{'width':>6} {'way':<28}{'ms':>9}{'peak GiB':>10}{'TFLOP/s':>9}{'d hidden':>10}{'d head':>10}  x other")
    fine = True
    for found in report["cases"]:
        start = f"{found['width']:>6} {found['way']:<28}"
        if "failed" in found:
            print(start + found["failed"])
            continue
        others = [
            one["seconds"] for one in report["cases"]
            if one["width"] == found["width"] and "seconds" in one and not one["way"].startswith("motet")
        ]  # fmt: skip
        ratio = found["seconds"] / min(others) if others else float("nan")
        kind = found["way"].removeprefix("motet ")
        words = f"{ratio:6.2f}"
        if kind in GOALS:
            met = ratio <= GOALS[kind] and found["peak"] <= MOST
            words += f" (to reach {GOALS[kind]}, {MOST / 2**30:.0f} GiB: {'yes' if met else 'no'})"
        fine &= max(found["errors"]) <= TOLERANCE
        print(
            f"{start}{1e3 * found['seconds']:9.1f}{found['peak'] / 2**30:10.2f}{found['products_at']:9.0f}"
            + "".join(f"{error:10.1e}" for error in found["errors"]) + f"  {words}"
        )  # fmt: skip
    return int(not fine)


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {"motet SFT": motet_sft, "motet SFT, no entropy": motet_sft_plain, "motet RL": motet_rl}
    on_gpu = torch.cuda.is_available()
    if on_gpu and importlib.util.find_spec("liger_kernel"):
        found["Liger fused linear CE"] = liger
    if on_gpu and importlib.util.find_spec("cut_cross_entropy"):
        found["cut-cross-entropy"] = cut
    if importlib.util.find_spec("trl"):
        found["TRL fused head"] = trl
    return found | {"torch CE, compiled chunks": TorchChunks()}


def motet_sft(case: Case, entropy: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    ones_N = torch.full(case.targets_N.shape, -1.0, device=case.targets_N.device)
    scored = score(*case, entropy=entropy, coefficients_N=ones_N)
    assert scored.weighted is not None
    return gradients(scored.weighted, case)


def motet_sft_plain(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return motet_sft(case, entropy=False)


def motet_rl(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return gradients(-score(*case).logprobs_N.sum(), case)


def liger(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return gradients(
        LigerFusedLinearCrossEntropyLoss(reduction="sum")(case.weight_VD, case.hidden_ND, case.targets_N), case
    )


def cut(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return gradients(linear_cross_entropy(*case, reduction="sum"), case)


def trl(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """As its trainers call it: 1.16 has log-probabilities, entropies and top-1 hits from one function."""
    from trl.trainer import utils

    function: Any = utils._ChunkedLogProbFunction
    chunk, fields = utils._CHUNKED_LOGPROB_CHUNK_SIZE, ("log_probs", "entropy", "is_top1")
    found = function.apply(case.hidden_ND, case.weight_VD, None, case.targets_N, 1.0, chunk, None, 1.0, fields)
    return gradients(-found[0].sum(), case)


class TorchChunks:
    """torch's cross-entropy of 2,048 tokens at a time, its logits and their softmax compiled together."""

    def __init__(self) -> None:
        self._loss: Any = self._plain if not torch.cuda.is_available() else torch.compile(self._plain, dynamic=False)

    @staticmethod
    def _plain(hidden_CD: torch.Tensor, weight_VD: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        logits_CV = (hidden_CD @ weight_VD.T).float()
        return torch.nn.functional.cross_entropy(logits_CV, targets_C, reduction="sum")

    def __call__(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        weight_VD = case.weight_VD.detach().requires_grad_()
        grad_ND = torch.empty_like(case.hidden_ND)
        for start in range(0, case.hidden_ND.shape[0], 2048):
            part = slice(start, start + 2048)
            hidden_CD = case.hidden_ND[part].detach().requires_grad_()
            self._loss(hidden_CD, weight_VD, case.targets_N[part]).backward()
            assert hidden_CD.grad is not None
            grad_ND[part] = hidden_CD.grad
        assert weight_VD.grad is not None
        return grad_ND, weight_VD.grad


def plainly(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = case.hidden_ND @ case.weight_VD.T
    return gradients(torch.nn.functional.cross_entropy(logits_NV, case.targets_N, reduction="sum"), case)


def gradients(loss: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_ND, weight_VD = torch.autograd.grad(loss, (case.hidden_ND, case.weight_VD))
    return hidden_ND, weight_VD


def make(tokens: int, vocabulary: int, width: int) -> Case:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    stream = torch.Generator(device=device).manual_seed(0)
    hidden_ND = torch.randn(tokens, width, generator=stream, device=device).to(dtype).requires_grad_()
    weight_VD = (0.04 * torch.randn(vocabulary, width, generator=stream, device=device)).to(dtype).requires_grad_()
    targets_N = torch.randint(0, vocabulary, (tokens,), generator=stream, device=device)
    return Case(hidden_ND, weight_VD, targets_N)


def measured(way: Way, small: Case, exact: tuple[torch.Tensor, ...], whole: Case) -> dict[str, Any]:
    try:
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(way(small), exact, strict=True)]
        way(whole)
        waited()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        way(whole)
        waited()
        needed = whole.hidden_ND.nbytes + whole.weight_VD.nbytes
        peak = torch.cuda.max_memory_allocated() - before - needed if torch.cuda.is_available() else 0
        times = []
        for _ in range(5):
            began = waited()
            way(whole)
            times.append(waited() - began)
    except Exception as error:  # another version of a package, or a kernel that cannot be compiled: the others go on
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    return {"seconds": statistics.median(times), "peak": peak, "errors": errors}


def waited() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
