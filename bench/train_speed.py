"""Training speed of motet and its peers on one device: same model, same tokens, one process for each case.

    python bench/train_speed.py                          everything that is installed
    python bench/train_speed.py --rows 64K --rows 8x8K --budget 540
    python bench/train_speed.py --case 0.6B:64K:motet --case 0.6B:64K:trl+selective
    python bench/train_speed.py --profile 0.6B:64K:motet+attention
    python bench/train_speed.py --case tiny:tiny:motet   on a CPU

A case is SHAPE:ROW:SYSTEM. Shapes are Qwen3's with random weights. Rows: `64K` is one document of 65,536 tokens, `8x8K`
eight of 8,192. Systems:

    motet            the Learner as a recipe makes it: float32 weights and AdamW state, computing in bfloat16; what is
                     recomputed it chooses by itself (auto)
    motet+POLICY     auto, none, matmul, hosted, attention, full or offload in place of that
    motet+aside      AdamW's moments wait on the host (optimizer.offload = "on")
    motet+bf16       weights and AdamW state in bfloat16, as all peers below have them
    motet+any        blocks compiled for rows of any length, as stages have them, not for the bench's one length
    motet+nofa4      as if FlashAttention 4 were not installed
    hf               transformers with torch's AdamW; hf+liger with all of Liger's kernels
    trl              SFTTrainer with Liger's layers and its own fused head: +off, +selective, +full say what it
                     recomputes, +fa4 runs FlashAttention 4 in place of SDPA

A step is forward, backward, clipping and AdamW; loading data is outside it for everyone. Seconds are wall-clock with
the device waited for at both ends, the first step left out; the median is reported.
MFU = (6 N + 6 L d S) x tokens/s / 989 TFLOP/s: N parameters (embedding and head, one tensor, once), L layers, d heads x
head width, S mean length of a token's document (causal attention is half of 12 L d S).
The floor is what the step would take if it were nothing but attention, forward and backward, at the highest speed seen
of any kernel on an H100 (7 L d x sum of squared lengths, at 499, 630, 646 TFLOP/s for one document of 8K, 32K, 64K, and
554 for eight of 8K), and matrix products, forward and backward, at the highest seen of cuBLAS (6 N x tokens, at 798
TFLOP/s), with nothing computed again. `left` is the rest of the step.
`--profile` says what that rest is: the device's time in one more step, by kind of kernel and by kernel. The steps
before it are timed as any other's: a profiled case needs no other run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import capped
import profiles

VOCABULARY, HEADS, KEY_HEADS, HEAD = 151_936, 16, 8, 128
SHAPES = {"0.6B": (1024, 3072, 28), "1.7B": (2048, 6144, 28), "tiny": (64, 96, 2)}
"""Hidden width, MLP width, layers."""
ROWS = {
    "8K": [8192], "32K": [32768], "64K": [65536], "8x8K": [8192] * 8, "256K": [262144],
    "tiny": [96], "4xtiny": [24] * 4,
}  # fmt: skip
PEERS = ("trl+off", "trl+selective", "trl+full", "trl+fa4+off", "trl+fa4+full", "hf", "hf+liger")
PEAK = 989e12
MATMUL = 798e12
ATTENTION = {8192: 499e12, 32768: 630e12, 65536: 646e12}
PACKED = 554e12
BACKGROUND = ("8K", "32K", "64K", "8x8K")
CASES = {
    "64K": ("motet", "motet+aside", "trl+full", "trl+fa4+full", "trl+selective", "hf+liger", "motet+bf16"),
    "8x8K": ("motet", "trl+fa4+full", "motet+attention", "motet+nofa4"),
    "8K": ("motet", "trl+full", "trl+off", "hf+liger", "motet+bf16"),
    "32K": ("motet", "trl+full", "trl+fa4+full", "trl+selective", "hf+liger"),
}
"""By rows, motet and the peers that its figures are to be compared with."""
Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="SHAPE:ROW:SYSTEM; again for more")
    parser.add_argument("--rows", action="append", choices=list(CASES), help="of both shapes; again for more")
    parser.add_argument("--profile", action="append", metavar="CASE", help="SHAPE:ROW:SYSTEM, profiled")
    parser.add_argument("--steps", type=int, help="timed steps; unset, 3 for rows of 64K and more, else 8")
    parser.add_argument("--limit", type=float, default=180, help="seconds for a case")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all; no case begins after them")
    capped.add(parser)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_speed.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.folder, arguments.turn, arguments.out, arguments.steps)
        return
    capped.note(arguments.cap)
    cases = [f"{s}:{r}:{x}" for r in arguments.rows or () for s in ("0.6B", "1.7B") for x in CASES[r]]
    cases += [*(arguments.case or []), *(f"{case}+profile" for case in arguments.profile or ())]
    cases = cases or [f"{s}:{r}:{x}" for s in ("0.6B", "1.7B") for r in BACKGROUND for x in ("motet", *PEERS)]
    report = run(cases, arguments.steps, arguments.limit, arguments.budget, arguments.out)
    table(report["results"])


# ---- the process that runs the cases


def run(cases: Sequence[str], steps: int | None, limit: float, budget: float, out: Path) -> dict[str, Any]:
    """A case's process loads its modules while the one before it is measured, and touches the device after it."""
    began = time.monotonic()
    report: dict[str, Any] = {"machine": machine() | capped.noted(), "results": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shapes = dict.fromkeys(case.split(":")[0] for case in cases)
        makers = [subprocess.Popen(_command(f"{shape}:make", folder, steps)) for shape in shapes]
        if sum(maker.wait() for maker in makers):
            raise SystemExit("the models could not be made")
        started: dict[int, subprocess.Popen[str]] = {}
        for index, case in enumerate(cases):
            left = budget - (time.monotonic() - began)
            if left < 15:
                print(f"{case}: not begun, the time is up", flush=True)
                continue
            for ahead in (index, index + 1):
                if ahead < len(cases) and ahead not in started:
                    started[ahead] = subprocess.Popen(
                        _command(cases[ahead], folder, steps, ahead), stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, start_new_session=True,
                    )  # fmt: skip
            report["results"].append(_result(case, started[index], folder, index, min(limit, left)))
            out.write_text(json.dumps(report, indent=1) + "\n")
            print(line(report["results"][-1]), flush=True)
        for process in started.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return report


def _command(case: str, folder: Path, steps: int | None, index: int = 0) -> list[str]:
    own = [
        sys.executable,
        "-u",
        __file__,
        "--one",
        case,
        "--folder",
        str(folder),
        "--turn",
        str(folder / f"{index}.go"),
    ]
    return [*own, "--out", str(folder / f"{index}.json"), *(["--steps", str(steps)] if steps else [])]


def _result(case: str, process: subprocess.Popen[str], folder: Path, index: int, limit: float) -> dict[str, Any]:
    (folder / f"{index}.go").touch()
    killer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
    killer.start()
    output, _ = process.communicate()
    killer.cancel()
    file = folder / f"{index}.json"
    if file.exists():
        return {"case": case, **json.loads(file.read_text())}
    lines = [text for text in output.splitlines() if text.strip()]
    if process.returncode == -signal.SIGKILL:
        lines.append(f"stopped after {limit:.0f} s")
    return {"case": case, "failed": lines[-1][:400] if lines else "no output", "output": lines[-12:]}


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "triton", "flash-attn-4", "trl", "liger-kernel", "accelerate")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), "versions": versions}


def line(result: dict[str, Any]) -> str:
    shape, row, system = str(result["case"]).split(":")
    start = f"{shape:<5}{row:<6}{system:<15}"
    if "failed" in result:
        return start + "FAILED " + result["failed"]
    return (
        f"{start}{result['tokens_per_second'] / 1e3:8.2f}K tok/s {1e3 * result['seconds']:9.1f} ms  "
        f"MFU {100 * result['mfu']:5.1f} %  peak {result['peak_gib']:5.1f} GiB  "
        f"floor {1e3 * result['floor']:.0f} ms, left {100 * (1 - result['floor'] / result['seconds']):.0f} %  "
        f"loss {result['losses'][0]:.4f} {result['losses'][-1]:.4f}  until measured {result['until_measured']:.0f} s  "
        f"{result['remark']}"
    )


def table(results: Sequence[dict[str, Any]]) -> None:
    """Ratios of motet's speed to each peer's."""
    speeds: dict[str, dict[str, float]] = {}
    for result in results:
        shape, row, system = result["case"].split(":")
        if "profile" in result:
            print(f"\n{result['case']}: one step, {1e3 * result['profile']['wall']:.1f} ms")
            print(profiles.table(result["profile"]))
        if "failed" not in result:  # a step is timed before one is profiled
            speeds.setdefault(f"{shape} {row}", {})[system.removesuffix("+profile")] = result["tokens_per_second"]
    for where, found in speeds.items():
        for own in (system for system in found if system.startswith("motet")):
            ratios = [f"{found[own] / v:.2f} x {n}" for n, v in found.items() if not n.startswith("motet")]
            print(f"{where}: {own} is " + ", ".join(ratios or ["alone"]))


# ---- one case, in a process of its own


def one(case: str, folder: Path, turn: Path, out: Path, steps: int | None) -> None:
    shape, *rest = case.split(":")
    if rest == ["make"]:
        make(shape, folder / shape)
        return
    row, system = rest
    lengths = ROWS[row]
    _import(system)
    while not turn.exists():
        time.sleep(0.05)
    began = time.monotonic()
    capped.hold()
    count = steps or (3 if sum(lengths) >= 65536 else 8)
    seconds, losses, remark, first = _systems(system)(folder / shape, lengths, count, system)
    found = {**figures(shape, lengths, seconds, losses), "until_measured": first - began, "remark": remark}
    out.write_text(json.dumps(found | ({"profile": profiles.last} if profiles.last else {})))


def figures(shape: str, lengths: list[int], seconds: list[float], losses: list[float]) -> dict[str, Any]:
    import torch

    hidden, mlp, layers = SHAPES[shape]
    tokens, median = sum(lengths), statistics.median(seconds)
    count = parameters(hidden, mlp, layers)
    mean = sum(n * n for n in lengths) / tokens
    flop = (6 * count + 6 * layers * HEADS * HEAD * mean) * tokens
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "tokens_per_second": tokens / median,
        "seconds": median,
        "all_seconds": seconds,
        "mfu": flop / median / PEAK,
        "floor": floor(count, layers, lengths),
        "peak_gib": peak,
        "losses": losses,
    }


def parameters(hidden: int, mlp: int, layers: int) -> int:
    """In matrices; the embedding, which is the head, once."""
    return VOCABULARY * hidden + layers * (hidden * HEAD * (2 * HEADS + 2 * KEY_HEADS) + 3 * hidden * mlp)


def floor(weights: int, layers: int, lengths: Sequence[int]) -> float:
    """Seconds of an H100. Example: 0.6B, one document of 64K: 2.67 of attention and 0.29 of products."""
    longest = max(lengths)
    speed = min((abs(known - longest), speed) for known, speed in ATTENTION.items())[1]
    attention = 7 * layers * HEADS * HEAD * sum(n * n for n in lengths)
    return attention / (PACKED if len(lengths) > 1 else speed) + 6 * weights * sum(lengths) / MATMUL


def make(shape: str, folder: Path) -> None:
    """A Qwen3 of this shape with random weights in bfloat16, and a tokenizer that only has to exist."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    hidden, mlp, layers = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=HEAD, tie_word_embeddings=True,
        max_position_embeddings=1_048_576,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def documents(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    import torch

    random = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=random).tolist() for n in lengths]


def _systems(system: str) -> Callable[[Path, list[int], int, str], tuple[list[float], list[float], str, float]]:
    return {"motet": run_motet, "hf": run_hf, "trl": run_trl}[system.split("+")[0]]


def _import(system: str) -> None:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    if system.startswith("motet"):
        import motet.train.learner
        import motet.train.losses  # noqa: F401
    if system.startswith("trl"):
        import datasets  # noqa: F401
        from trl import SFTTrainer  # type: ignore[attr-defined]  # noqa: F401
    if system.startswith("trl") and importlib.util.find_spec("liger_kernel"):
        import liger_kernel.transformers  # noqa: F401


def _waited() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _timed(step: Step, count: int, profiled: bool = False) -> tuple[list[float], list[float], float]:
    losses = [step()]
    _waited()
    first = time.monotonic()
    seconds = []
    for _ in range(count):
        start = _waited()
        losses.append(step())
        seconds.append(_waited() - start)
    if profiled:
        try:
            with profiles.recorded():
                step()
                _waited()
        except (RuntimeError, KeyError, ValueError, OSError) as error:  # what was timed stands
            print(f"not profiled: {type(error).__name__}: {error}"[:300], flush=True)
    return seconds, losses, first


def run_motet(folder: Path, lengths: list[int], count: int, system: str) -> tuple[list[float], list[float], str, float]:
    import torch

    from motet.base.recipe import Model, Optimizer
    from motet.data.pack import Sample, pack
    from motet.model import kernels, packed
    from motet.train import policy
    from motet.train.learner import Learner
    from motet.train.losses import cross_entropy

    options: dict[str, Any] = {"dtype": "bfloat16" if torch.cuda.is_available() else "float32"}
    own: dict[str, Any] = {"learning_rate": 1e-5}
    any_length = False
    for word in system.split("+")[1:]:
        if word == "nofa4":
            packed.fastest = lambda device, width=128: "cudnn+varlen" if device.type == "cuda" else "plain"
        elif word == "aside":
            own["offload"] = "on"
        elif word == "any":
            any_length = True
        elif word != "profile":
            options |= {"weights": "bfloat16"} if word == "bf16" else {"recompute": word}
    model = Model(path=str(folder), **options)
    learner = Learner(str(folder), model, Optimizer(**own), total_steps=100, any_length=any_length)
    samples = [Sample(tuple(tokens), (False, *[True] * (len(tokens) - 1))) for tokens in documents(lengths)]
    batches = pack(samples, sum(lengths), learner.device)

    def step() -> float:
        found = learner.accumulate(batches, cross_entropy)
        learner.update()
        return found["loss/nll"]

    if "profile" in system:
        policy.score = profiles.marked("head", policy.score)
        for name in ("clip", "step", "step_unread"):
            setattr(learner._optimizers, name, profiles.marked("optimizer", getattr(learner._optimizers, name)))
    earliest = step()  # its measured peak may change what is kept, and that is compiled then
    seconds, losses, first = _timed(step, count, "profile" in system)
    losses.insert(0, earliest)
    kept = getattr(learner, "_keeping", None)
    words = "" if kept is None else f"{kept.words}, correction {kept.correction:.2f}"
    words += ", moments aside" if learner._optimizers.moments.leaves else ""
    return seconds, losses, f"{kernels.describe(learner.device, getattr(torch, options['dtype']))}; {words}", first


def run_hf(folder: Path, lengths: list[int], count: int, system: str) -> tuple[list[float], list[float], str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    if "liger" in system:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rows = torch.tensor(documents(lengths), device=device)  # documents of one length are rows of a batch

    def step() -> float:
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    seconds, losses, first = _timed(step, count, "profile" in system)
    return seconds, losses, "SDPA, full recomputation", first


def run_trl(folder: Path, lengths: list[int], count: int, system: str) -> tuple[list[float], list[float], str, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    fa4, on_gpu = "fa4" in system, torch.cuda.is_available()
    if importlib.util.find_spec("liger_kernel") and on_gpu:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3(cross_entropy=False, fused_linear_cross_entropy=False)
    kernel = "flash_attention_4" if fa4 else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=kernel)
    profiled = "profile" in system
    recorded = profiles.recorded()
    total = count + 1 + profiled
    rows = documents(lengths) * total
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=len(lengths), max_steps=total, max_length=None,
        padding_free=fa4 and len(lengths) > 1, gradient_checkpointing="off" not in system,
        gradient_checkpointing_kwargs={"selective": True} if "selective" in system else None,
        bf16=False, optim="adamw_torch_fused", learning_rate=1e-5, lr_scheduler_type="constant", max_grad_norm=1.0,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=not on_gpu,
    )  # fmt: skip
    seconds: list[float] = []
    starts: list[float] = []
    firsts: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if len(starts) == 1:
                firsts.append(time.monotonic())
            starts.append(_waited())
            if profiled and len(starts) == total:
                recorded.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(_waited() - starts[-1])
            if profiled and len(starts) == total:
                recorded.__exit__(None, None, None)

    trainer = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return seconds[1 : count + 1], losses, kernel, firsts[0]


if __name__ == "__main__":
    main()
