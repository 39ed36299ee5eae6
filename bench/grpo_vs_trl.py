"""One GRPO step of motet against one of TRL, both with vLLM colocated in the trainer's process.

    python bench/grpo_vs_trl.py --out grpo.json      on a GPU: 0.6B Qwen3 shape, 8 prompts x 8 completions of 256 tokens
    python bench/grpo_vs_trl.py --shape tiny --steps 3 --tokens 16 --python-motet A --python-trl B    a dry run on a CPU

Same in both: start weights, prompts, the number and length of completions, rewards (the parity of the sum of a
completion's token ids, so that every group has a signal), vLLM's share of memory and its sleep mode (level 2;
`--sleep 0`: neither), float32 weights with bfloat16 products, AdamW, clip 0.2 / 0.28, no KL term, S = 1 (one optimizer
step on each sampled batch), the log-probabilities of the engine returned and those of the anchor computed and compared
with them. TRL 1.16 says so by use_vllm with importance-sampling correction, per_device_train_batch_size x
gradient_accumulation_steps = 64 and num_iterations = 1; `--trl-batch` is how many rows it takes in one pass (its logits
are whole).

Each side is a process of its own, one after the other; the device's memory is read by this one while they run.
On a CPU TRL samples with transformers: the times of a dry run say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import capped
import profiles

PHASES = ("sample", "anchor", "train", "load", "wake_up", "sleep")
"""The last two are part of "sample" and "load"."""
PROMPTS, GROUP, PROMPT_TOKENS = 8, 8, 128
SETTINGS = {"learning_rate": 1e-6, "memory_share": 0.3, "clip_low": 0.2, "clip_high": 0.28, "max_grad_norm": 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(description="One GRPO step of motet against one of TRL.")
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--steps", type=int, default=22, help="the first two are left out of the medians")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--sleep", type=int, choices=(0, 2), default=2, help="vLLM's sleep level between phases")
    parser.add_argument("--trl-batch", type=int, nargs="+", default=[16])
    parser.add_argument(
        "--profile", action="store_true", help="what the device does while motet learns in the last step"
    )
    capped.add(parser)
    parser.add_argument("--python-motet", default=sys.executable)
    parser.add_argument("--python-trl", default=sys.executable)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("grpo_vs_trl.json"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    held = capped.note(options.cap)
    if options.side:
        import grpo_sides

        capped.hold()

        run = grpo_sides.motet if options.side == "motet" else grpo_sides.trl
        options.out.write_text(json.dumps(run(options)) + "\n")
        return 0
    folder = options.model or Path(tempfile.mkdtemp(prefix="motet-bench-")) / "model"
    write = [options.python_motet, str(Path(__file__).parent / "random_model.py"), str(folder), options.shape]
    subprocess.run(write, check=True)  # this process takes no memory of the device
    result: dict[str, Any] = {"shape": options.shape, "steps": options.steps, "tokens": options.tokens, **held}
    sides = [("motet", options.python_motet, None), *((f"trl b{b}", options.python_trl, b) for b in options.trl_batch)]
    for name, python, batch in sides:
        result[name] = one_side(name, python, batch, folder, options)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return 0 if not any("failed" in result[name] for name, _, _ in sides) else 1


def one_side(name: str, python: str, batch: int | None, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as answer, Memory() as memory:
        words = ["--side", name.split()[0], "--model", str(folder), "--out", answer.name, "--shape", options.shape,
                 "--steps", str(options.steps), "--tokens", str(options.tokens),
                 "--sleep", str(options.sleep)]  # fmt: skip
        words += ["--trl-batch", str(batch)] if batch else []
        words += ["--profile"] if options.profile else []
        status = subprocess.run([python, str(Path(__file__).resolve()), *words]).returncode
        text = Path(answer.name).read_text()
    if status or not text:
        return {"failed": status}
    found: dict[str, Any] = json.loads(text)
    return {**found, "peak_device_gib": round(memory.peak, 2)}


class Memory:
    """The most memory that was in use on the device while the block ran, in GiB; 0 without a GPU."""

    def __enter__(self) -> Memory:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            device = pynvml.nvmlDeviceGetHandleByIndex(int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]))
        except Exception:  # no GPU, or no package that reads it
            return
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, pynvml.nvmlDeviceGetMemoryInfo(device).used / 2**30)


class Clock:
    """Seconds by step and phase, the device's work included."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.used: dict[str, float] = {}
        """GiB in use on the device, at most, after a call by name."""
        self._began = 0.0

    def start_step(self) -> None:
        self.steps.append({})
        self._began = now()

    def end_step(self) -> None:
        self.steps[-1]["step"] = now() - self._began

    def add(self, phase: str, seconds: float) -> None:
        self.steps[-1][phase] = self.steps[-1].get(phase, 0.0) + seconds

    def medians(self, skip: int = 2) -> dict[str, Any]:
        kept = [step for step in self.steps if "step" in step][skip:] or self.steps
        table = {p: [step.get(p, 0.0) for step in kept] for p in ("step", *PHASES)}
        spread = {"step_min": min(table["step"]), "step_max": max(table["step"]), "counted_steps": len(kept)}
        return {**{p: round(statistics.median(v), 4) for p, v in table.items()}, **spread}


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reward(completion: Sequence[int]) -> float:
    return float(sum(completion) % 2)


def show(result: dict[str, Any]) -> None:
    names = [name for name, value in result.items() if isinstance(value, dict)]
    columns = ("step", "step_min", "step_max", *PHASES, "peak_device_gib", "peak_torch_gib", "tokens_per_step")
    print(f"\n{'':10}" + "".join(f"{column:>17}" for column in columns))
    for name in names:
        print(f"{name:10}" + "".join(f"{result[name].get(column, float('nan')):17.3f}" for column in columns))
    others = [result[name]["step"] for name in names if name != "motet" and "step" in result[name]]
    if others and "step" in result["motet"]:
        print(f"motet's step takes {result['motet']['step'] / min(others):.2f} of TRL's fastest")
    if profile := result["motet"].get("profile"):
        print("\nwhile motet learns\n" + profiles.table(profile))


if __name__ == "__main__":
    sys.exit(main())
