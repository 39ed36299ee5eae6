"""Predicted against measured peak memory of training steps, and the longest step of one device.

    python bench/plan_probe.py                       # all cases, then one step of 256K tokens with real attention
    python bench/plan_probe.py --case 0.6B:64K:auto  # SHAPE:ROW:WORDS, again for more
    python bench/plan_probe.py --tiny                # the same cases in miniature, on a CPU in seconds

Shapes are Qwen3's with random weights. Rows: `64K` is one document of 65,536 tokens, `8x8K` eight of 8,192 in one row,
`2r16K` two rows in one step. Words: none, matmul, attention, full, offload, auto (what is kept), rl (its loss; else
SFT's), lora, eager (not compiled), bf16 (weights and optimizer state in bfloat16; else float32). A case is two steps in
this process; the second is measured. A case that runs out of memory is compared with the device's size: the prediction
was right if it did not fit either.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import capped
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from motet.base.recipe import Lora, Model
from motet.model import kernels, packed
from motet.model.blocks import blocks_of, is_compiled
from motet.model.footprint import MARGIN, Compute, Sizes, Training, forecast, row_of
from motet.model.recompute import Policy
from motet.model.skeleton import skeleton
from motet.plan.probe import Probed, probe

SHAPES: dict[str, dict[str, int]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
HEAD = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 96}  # fmt: skip
ROWS = {
    "8K": [[8192]], "32K": [[32768]], "64K": [[65536]], "128K": [[131072]], "256K": [[262144]],
    "8x8K": [[8192] * 8], "64x1K": [[1024] * 64], "2r16K": [[16384], [16384]],
}  # fmt: skip
CASES = (
    "0.6B:8K:none", "0.6B:8K:none+eager", "0.6B:32K:none", "0.6B:2r16K:matmul", "0.6B:64K:attention+rl",
    "0.6B:64K:full", "0.6B:64K:auto", "0.6B:8x8K:auto", "0.6B:64x1K:attention", "0.6B:64K:offload",
    "0.6B:64K:attention+lora", "0.6B:32K:auto+rl", "1.7B:8K:matmul+rl", "1.7B:32K:auto", "1.7B:64K:attention",
    "1.7B:64K:full+rl", "0.6B:128K:auto", "4B:32K:full+bf16", "0.6B:256K:auto",
    "0.6B:256K:offload",
)  # fmt: skip
STUB = "stub"
TINY_TOKENS = 64
"""A row is so many times shorter with --tiny."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="SHAPE:ROW:WORDS; again for more")
    parser.add_argument("--budget", type=float, default=540, help="seconds; no case begins after them")
    capped.add(parser)
    parser.add_argument("--tiny", action="store_true", help="miniatures on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan_probe.json")
    arguments = parser.parse_args()
    began = time.monotonic()
    held = capped.note(arguments.cap)
    capped.hold()
    report: dict[str, Any] = {"machine": machine() | held, "cases": []}
    cases = arguments.case or CASES
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name in cases:
            if time.monotonic() - began > arguments.budget:
                print(f"{name}: not begun, the time is up", flush=True)
                continue
            report["cases"].append(case(name, Path(place), arguments.tiny))
            print(line(report["cases"][-1]), f"  (at {time.monotonic() - began:.0f} s)", flush=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    table(report)


def case(name: str, place: Path, tiny: bool) -> dict[str, Any]:
    shape, row, words = name.split(":")
    options = words.split("+")
    recompute = next(w for w in options if w not in ("rl", "lora", "eager", "bf16"))
    rows = [[n // TINY_TOKENS for n in lengths] for lengths in ROWS[row]] if tiny else ROWS[row]
    config = model_of(make(shape, place, tiny), recompute, "eager" in options, "bf16" in options)
    found: dict[str, Any] = {"case": name}
    try:
        lora = Lora(rank=16) if "lora" in options else None
        done = probe(
            place / shape, config, rows, reinforced="rl" in options, lora=lora,
            short_first=max(map(sum, rows)) > 65536,
        )  # fmt: skip
        found |= described(done)
    except RuntimeError as error:
        found |= {"failed": f"{type(error).__name__}: {error}"[:300]}
    if "failed" in found and recompute != "auto":
        found |= unseen(place / shape, config, rows, "rl" in options)
    free()
    return found


def unseen(folder: Path, config: Model, rows: list[list[int]], reinforced: bool) -> dict[str, Any]:
    """What had been predicted for a step that failed."""
    sizes, on_gpu = sizes_of(folder), torch.cuda.is_available()
    training = Training(2, 4 if config.weights == "float32" else 2, rounds=len(rows))
    row = row_of(sizes, training, max(map(sum, rows)), known=not reinforced)
    policies: list[Policy] = ["none" if config.recompute == "auto" else config.recompute] * sizes.layers
    total = forecast(sizes, Compute(2, is_compiled(config, on_gpu)), training, row, policies).total
    return {"predicted": total, "fits": fits(total)}


def sizes_of(folder: Path) -> Sizes:
    model = skeleton(folder, "motet", torch.float32)
    return Sizes.of(model, blocks_of(model))


def described(done: Probed) -> dict[str, Any]:
    peak = done.forecast.peak
    return {
        "policies": done.policies,
        "predicted": done.forecast.total,
        "allocated": done.allocated,
        "reserved": done.reserved,
        "error": done.error,
        "seconds": done.seconds,
        "highest_at": peak.at,
        "parts": {"state": done.forecast.state.total, "kept": peak.kept, "working": peak.working, "head": peak.head},
        "fits": fits(done.forecast.total),
    }


def fits(size: int) -> bool | None:
    if not torch.cuda.is_available():
        return None
    return size <= (1 - MARGIN) * capped.share() * torch.cuda.get_device_properties(0).total_memory


def line(found: dict[str, Any]) -> str:
    if "failed" in found:
        said = f"predicted {found['predicted'] / 2**30:.2f} GiB" if "predicted" in found else "chosen as fitting"
        return f"{found['case']:<26} FAILED ({said})  {found['failed'][:120]}"
    unit, name = (2**30, "GiB") if found["allocated"] > 2**28 else (2**20, "MiB")
    kept = ", ".join(f"{count} {policy}" for policy, count in found["policies"].items())
    return (
        f"{found['case']:<26}{found['predicted'] / unit:9.2f}{found['allocated'] / unit:9.2f}"
        f"{found['reserved'] / unit:9.2f} {name} {100 * found['error']:+7.2f} %  {found['highest_at']:<9}"
        f"{found['seconds']:8.2f} s  {kept}"
    )


def table(report: dict[str, Any]) -> None:
    done = [found for found in report["cases"] if "failed" not in found]
    heads = "".join(f"{name:>9}" for name in ("predicted", "measured", "reserved"))
    print(f"\n{'case':<26}{heads}{'error':>13}    highest at   second step  kept")
    for found in report["cases"]:
        print(line(found))
    if done:
        errors = sorted(abs(found["error"]) for found in done)
        print(
            f"{len(done)} cases: largest error {100 * errors[-1]:.2f} %, "
            f"median {100 * statistics.median(errors):.2f} %, "
            f"within 10 %: {sum(e <= 0.1 for e in errors)}; not run: {len(report['cases']) - len(done)}"
        )


class Stub:
    """Attention that costs nothing: each token gets its query. Shapes and kept tensors are those of a real kernel."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: packed.Row) -> packed.Tensors:
        lse = torch.zeros(query.shape[0] * query.shape[1], dtype=torch.float32, device=query.device)
        return query.clone(), lse

    def backward(self, grad: torch.Tensor, saved: packed.Tensors, row: packed.Row) -> packed.Tensors:
        return grad.clone(), torch.zeros_like(saved[1]), torch.zeros_like(saved[2])


def stub() -> Any:
    """Runs it in place of the fastest kernel; returns what puts things back."""
    packed.KERNELS[STUB] = Stub()
    before = packed.fastest
    packed.fastest = lambda device, width=128: STUB
    return lambda: setattr(packed, "fastest", before)


def tokenizer() -> PreTrainedTokenizerFast:
    """One that only has to exist."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model_of(folder: Path, recompute: str, eager: bool, bf16: bool) -> Model:
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {"recompute": recompute, "dtype": "bfloat16"}
    options |= {"compile": "off"} if eager or not on_gpu else {}
    options |= {"weights": "bfloat16"} if bf16 else {}
    return Model(path=str(folder), **options)


def make(shape: str, place: Path, tiny: bool) -> Path:
    """A Qwen3 with random weights in bfloat16, made once."""
    folder = place / shape
    if folder.exists():
        return folder
    sizes = TINY if tiny else SHAPES[shape] | HEAD
    config = Qwen3Config(**sizes, tie_word_embeddings=True, max_position_embeddings=4_194_304)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    free()
    return folder


def free() -> None:
    """Between cases: nothing of one is left for the next, neither memory nor compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "triton", "flash-attn-4", "trl", "liger-kernel", "accelerate")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"python": platform.python_version(), "versions": versions, "device": device}
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"device": torch.cuda.get_device_name(), "memory": memory}
    found["attention"] = kernels.describe(device, torch.bfloat16)
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
