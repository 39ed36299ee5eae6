"""The longest training step of one device: motet against TRL's SFTTrainer, both with activations in host memory.

    python bench/longest.py                                       # 0.6B: motet, then TRL
    python bench/longest.py --case 1.7B:motet+bf16 --case 1.7B:trl
    python bench/longest.py --tiny                                # in miniature, on a CPU

A case is SHAPE:SYSTEM. Shapes are Qwen3's with random weights (plan_probe.py). One document in one row, every token
trained on.

    motet        recompute = "offload"; float32 weights and AdamW state, computing in bfloat16
    motet+bf16   the same with weights and AdamW state in bfloat16, as TRL has them
    trl          SFTTrainer, activation_offloading, gradient_checkpointing, its fused head, Liger's layers, all bfloat16

Attention is stubbed on both sides by the same operation: a token gets its query, and the tensors kept and made are
those of a real kernel, so a step is bounded by memory alone. A case is measured at three short lengths, of which the
first is not counted; the line through the peaks of the others says where memory ends; then it is tried there, each
try in a process of its own, and a little shorter or longer after that. A step is forward, backward, clipping and
AdamW, after a short step that allocates AdamW's state. Host memory counts too: a try that leaves less than 2 GiB of
it ends, and is repeated where torch's rounding of a pinned buffer to a power of two takes half.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import capped

GAP = 0.04
"""Share of the device's free memory that the first try leaves: tensors of gigabytes leave holes."""
NO_HOST_MEMORY = 77
SETTINGS = "expandable_segments:True,pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
"""The last two make torch's pinned memory four times as fast to get; TRL's step needs 100 GiB of it."""
ROUNDING = "pinned_max_round_threshold_mb:64"
"""Pinned buffers above this size are not rounded up, in a torch that knows the setting."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="SHAPE:SYSTEM; again for more")
    parser.add_argument("--tries", type=int, default=3, help="long steps of a case at most")
    parser.add_argument("--start", type=int, default=0, help="tokens of the first long step; 0: by the two short ones")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all")
    parser.add_argument("--fill", action="store_true", help="touch the host's memory first: some machines grow by use")
    capped.add(parser)
    parser.add_argument("--tiny", action="store_true", help="miniatures on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "longest.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, action="append", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.folder, arguments.tokens, arguments.out, arguments.tiny)
        return
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = SETTINGS
    held = capped.note(arguments.cap)
    until = time.monotonic() + arguments.budget
    report: dict[str, Any] = {"machine": {}, "command": "python bench/longest.py", **held, "cases": []}
    with tempfile.TemporaryDirectory() as place:
        if arguments.fill:
            (filled,) = child("host:fill", Path(place), [1], arguments.tiny, until)
            report["host"] = {key: filled[key] for key in filled if key != "tokens"}
            print("host memory free, GiB: " + json.dumps(report["host"]), flush=True)
        for name in arguments.case or ["0.6B:motet", "0.6B:trl"]:
            made = child(f"{name.split(':')[0]}:make", Path(place), [1], arguments.tiny, until)[-1]
            report["machine"] = made["machine"] if "machine" in made else sys.exit(made["failed"])
            found: dict[str, Any] = {"case": name, "steps": []}
            report["cases"].append(found)
            for step in steps(name, Path(place), arguments, until):
                found["steps"].append(step)
                print(line(name, step), flush=True)
                found["longest"] = max((s["tokens"] for s in found["steps"] if "failed" not in s), default=0)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    table(report)


def steps(name: str, folder: Path, arguments: argparse.Namespace, until: float) -> Any:
    """Short ones, then where the line through these says that memory ends. The first short one is not counted: what is
    compiled and tuned in it takes memory that no other step does."""
    short = [128, 256, 768] if arguments.tiny else [65_536, 131_072, 262_144]
    found = child(name, folder, short, arguments.tiny, until)
    found = found[1:] if len(found) == len(short) else found
    yield from found
    if len(found) < 2 or "failed" in found[-1]:
        return
    (t0, m0), (t1, m1) = ((step["tokens"], step["allocated"]) for step in found)
    slope = (m1 - m0) / (t1 - t0)
    room = (1 - GAP) * found[1]["room"] - (m0 - slope * t0)
    print(f"{name}: {slope:,.0f} bytes a token, {(m0 - slope * t0) / 2**30:.2f} GiB besides; "
          f"memory ends at {room / slope:,.0f} tokens{forecasted(name, folder, found[1])}", flush=True)  # fmt: skip
    tokens, low, high = arguments.start or (1024 if arguments.tiny else int(room / slope)), 0, 0
    for _ in range(1 if arguments.tiny else arguments.tries):
        tokens -= tokens % 1024
        if time.monotonic() > until - 60 and not arguments.tiny:
            print(f"{name}: {tokens:,} tokens not begun, the time is up", flush=True)
            return
        step = child(name, folder, [tokens], arguments.tiny, until)[-1]
        yield step
        if "failed" not in step:
            low = tokens
            room = (step["room"] - step["allocated"]) / slope
            tokens = (low + high) // 2 if high else tokens + int(0.7 * room)
            if room < 0.02 * low:
                return
        elif "host" in step["failed"]:
            width = 4096 if name.startswith("1.7B") else 2048  # bytes of a token's hidden state
            high, tokens = tokens, 2 ** ((tokens * width).bit_length() - 1) // width - 1024
        else:
            high, tokens = tokens, (low + tokens) // 2 if low else int(0.96 * tokens)


def forecasted(name: str, folder: Path, step: dict[str, Any]) -> str:
    """What motet's own arithmetic says of the same length."""
    if "motet" not in name:
        return ""
    from plan_probe import sizes_of

    from motet.model.footprint import Compute, Training, forecast, row_of

    sizes, training = sizes_of(folder / name.split(":")[0]), Training(2, 2 if "bf16" in name else 4)
    row = row_of(sizes, training, step["tokens"], known=True)
    total = forecast(sizes, Compute(2, False, kernel=False), training, row, ["offload"] * sizes.layers).total
    return f"; at {step['tokens']:,} predicted {total / 2**30:.2f} GiB, measured {step['allocated'] / 2**30:.2f}"


def child(name: str, folder: Path, lengths: list[int], tiny: bool, until: float) -> list[dict[str, Any]]:
    out = folder / "step.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--out", str(out)]
    command += [word for n in lengths for word in ("--tokens", str(n))] + ["--tiny"] * tiny
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=max(30.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    found: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    if len(found) < len(lengths) and not (found and "failed" in found[-1]):
        gone = {NO_HOST_MEMORY: "host memory ended", -9: "killed: time or host memory ended"}
        last = (said.strip().splitlines() or ["no output"])[-1][:300]
        found.append({"tokens": lengths[len(found)], "failed": gone.get(process.returncode, last)})
    return found


def line(name: str, step: dict[str, Any]) -> str:
    start = f"{name:<16}{step['tokens']:>11,} tokens  "
    if "failed" in step:
        return start + step["failed"]
    device, reserved, host = (step[key] / 2**30 for key in ("allocated", "reserved", "host"))
    return (
        start + f"{device:7.2f} GiB ({reserved:.2f} reserved), {host:6.1f} GiB of host memory, {step['seconds']:.1f} s"
    )


def table(report: dict[str, Any]) -> None:
    print(f"\n{'case':<16}{'longest step':>14}")
    longest = {found["case"]: found.get("longest", 0) for found in report["cases"]}
    for name, tokens in longest.items():
        shape, system = name.split(":")
        other = longest.get(f"{shape}:trl")
        words = f"  {tokens / other:.2f} x trl" if other and system != "trl" else ""
        print(f"{name:<16}{tokens:>14,}{words}")


# ---- one process: steps of growing length, until one fails


def one(name: str, folder: Path, lengths: list[int], out: Path, tiny: bool) -> None:
    import torch

    from motet.model.offload import host_memory

    shape, system = name.split(":")
    if system == "make":  # here, so that the process that waits takes nothing of the device
        import plan_probe

        plan_probe.make(shape, folder, tiny)
        out.write_text(json.dumps([{"tokens": 1, "machine": plan_probe.machine()}]))
        return
    if system == "fill":
        out.write_text(json.dumps([{"tokens": 1} | fill(2**30 if tiny else 1 << 62)]))
        return
    on_gpu, before = torch.cuda.is_available(), host_memory()
    lowest = [before]

    def watch() -> None:
        while True:
            lowest[0] = min(lowest[0], host_memory())
            if lowest[0] < 2 * 2**30 and on_gpu:
                os._exit(NO_HOST_MEMORY)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    capped.hold()
    room = 0
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        room = min(free, int(capped.share() * total))
    found: list[dict[str, Any]] = []
    began = 0.0

    def begin() -> None:
        nonlocal began
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()

    def end(tokens: int) -> None:
        peaks = {"allocated": 0, "reserved": 0}
        if on_gpu:
            torch.cuda.synchronize()
            peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        seconds = time.perf_counter() - began
        if not on_gpu:  # no measure of tensors: a line with a slope, so that the rest can be tried out
            peaks = {"allocated": tokens * 1000, "reserved": tokens * 1000}
        step = {"tokens": tokens, **peaks, "room": room or 10**7, "host": before - lowest[0], "seconds": seconds}
        if tokens != 1024 or tokens in lengths:
            found.append(step)
            out.write_text(json.dumps(found))

    run = run_trl if system == "trl" else run_motet
    try:
        run(folder / shape, [1024, *lengths], system, begin, end, tiny)
    except torch.OutOfMemoryError as error:
        at = lengths[len(found)]
        found.append({"tokens": at, "failed": "device memory ended", "error": str(error).splitlines()[0][:200]})
        out.write_text(json.dumps(found))


def fill(most: int, floor: int = 4 * 2**30, seconds: float = 75.0) -> dict[str, float]:
    """Touches `most` bytes of host memory, or as much as there is, and gives all back: a virtual machine may be given
    its memory by use, and says until then that it has less. Returns GiB free before and after."""
    from motet.model.offload import host_memory

    before, until = host_memory(), time.monotonic() + seconds
    pieces: list[mmap.mmap] = []
    while len(pieces) * 2**30 < most and time.monotonic() < until:
        grown = time.monotonic() + 3
        while host_memory() < floor and time.monotonic() < grown:
            time.sleep(0.1)
        if host_memory() < floor:
            break
        pieces.append(mmap.mmap(-1, 2**30))
        pieces[-1][::4096] = bytes(2**30 // 4096)
    for piece in pieces:
        piece.close()
    return {"before": before / 2**30, "touched": len(pieces), "after": host_memory() / 2**30}


def run_motet(folder: Path, lengths: list[int], system: str, begin: Any, end: Any, tiny: bool) -> None:
    from plan_probe import model_of, stub

    from motet.base.recipe import Optimizer
    from motet.plan.probe import sample_rows
    from motet.train.learner import Learner
    from motet.train.losses import cross_entropy

    stub()
    model = model_of(folder, "offload", eager=False, bf16="bf16" in system)
    learner = Learner(folder, model, Optimizer(learning_rate=1e-6, warmup_steps=0), 10)
    for tokens in lengths:
        batches = sample_rows([[tokens]], learner.model.config.vocab_size, learner.device)
        begin()
        learner.accumulate(batches, cross_entropy)
        learner.update()
        end(tokens)


def run_trl(folder: Path, lengths: list[int], system: str, begin: Any, end: Any, tiny: bool) -> None:
    import torch
    from datasets import Dataset
    from plan_probe import STUB, Stub, tokenizer
    from transformers import AttentionInterface, AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from motet.model import packed

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        with contextlib.suppress(Exception):  # an older torch: pinned buffers are rounded up
            torch.cuda.memory._set_allocator_settings(f"{SETTINGS},{ROUNDING}")
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3(cross_entropy=False, fused_linear_cross_entropy=False)
    packed.KERNELS[STUB] = Stub()

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        starts = torch.tensor([0, query.shape[2]], dtype=torch.int32)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return packed.attend(q, k, v, starts.to(q.device), starts, scaling, STUB)[None], None

    AttentionInterface.register("stub", attend)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="stub")
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, model.config.vocab_size, (n,), generator=draw).tolist() for n in lengths]
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=1, max_steps=len(rows), max_length=None,
        gradient_checkpointing=True, activation_offloading=on_gpu, bf16=False, optim="adamw_torch_fused",
        learning_rate=1e-6, lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, shuffle_dataset=False, use_cpu=not on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    taken: list[int] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            assert taken == lengths[: len(taken)], f"steps of {taken} tokens, where {lengths} were asked for"
            end(taken[-1])

    class InOrder(SFTTrainer):
        """A Trainer draws its rows at random."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            taken.append(inputs["input_ids"].shape[1])
            return super().compute_loss(model, inputs, *rest, **named)

    InOrder(
        model, arguments, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tokenizer(), callbacks=[Clock()],
    ).train()  # fmt: skip


if __name__ == "__main__":
    main()
