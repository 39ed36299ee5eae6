"""vLLM on some GPUs beside a learner on others, as `motet run` under torchrun: seconds of a step by phase.

The model has random weights, of the 0.6B shape, and ends a completion with the same small probability after every
token: lengths are spread as a real model's are, and nothing that is learnt changes them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpus_group import Case, Result

HERE = Path(__file__).parent
RECIPE = HERE / "gpus_engine.toml"
FIRST = 2
"""Steps that are left out: compilation."""
PROMPTS = 16
"""Of a step, for each learner's GPU: as many engines have them."""
PHASES = ("step", "generate", "sample", "judge", "anchor", "train", "load")
MEAN_TOKENS = 400
"""Of a completion."""


def cases(options: argparse.Namespace) -> list[Case]:
    learners = max(1, options.gpus // 2)
    meshes = [(1, learners, 1)] + ([(1, learners // 2, 2)] if learners >= 4 else [])
    return [
        Case(f"{learners} learners {' x '.join(map(str, axes))}, overlap {'on' if overlap else 'off'}", "engine",
             learners, {"axes": axes, "overlap": overlap}, 240)
        for axes in meshes for overlap in (False, True)
    ]  # fmt: skip


def run(
    wanted: Sequence[Case], options: argparse.Namespace, scratch: Path, deadline: float,
    tell: Callable[[Case, Result], None],
) -> None:  # fmt: skip
    """Each case starts its own servers; the model is made once, by a process that is gone when they start."""
    shape = "tiny" if options.tiny else options.shape or "0.6B"
    made = subprocess.run([sys.executable, __file__, str(scratch), shape, "cpu" if options.cpu else "cuda"],
                          capture_output=True, text=True)  # fmt: skip
    for number, case in enumerate(wanted):
        left = deadline - time.monotonic()
        if made.returncode:
            tell(case, {"failed": f"no model: {(made.stderr.strip().splitlines() or ['nothing was said'])[-1]}"})
        elif left < 10:
            tell(case, {"not_run": "the time was up"})
        else:
            tell(case, one(case, options, scratch, number, min(case.limit, left + 30)))


def one(case: Case, options: argparse.Namespace, scratch: Path, number: int, limit: float) -> Result:
    replicate, shard, sp = case.settings["axes"]
    engines = list(range(case.size, options.gpus))
    told = [
        f"name='case-{number}'", f"model.path='{scratch / 'model'}'",
        f"problems.words.path='{scratch / 'problems.jsonl'}'",
        f"problems.words.verifier='{HERE / 'gpus_judge.py'}:parity'",
        f"mesh.dp_replicate={replicate}", f"mesh.dp_shard={shard}", f"mesh.sp={sp}",
        f"stage.rl.overlap={str(case.settings['overlap']).lower()}", *engine_of(options, engines),
    ]  # fmt: skip
    if not options.tiny:
        told += [f"stage.rl.prompts_per_step={PROMPTS * case.size}"]
    else:
        told += ["stage.rl.steps=4", "stage.rl.prompts_per_step=4", "stage.rl.group_size=4", "verification.workers=1",
                 "stage.rl.sampling.max_tokens=24", "stage.rl.micro_batch_tokens=256"]  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(case.size),
        "--master-addr", "127.0.0.1", "--master-port", str(29_400 + number),
        "-m", "motet.cli", "run", str(RECIPE), "--runs", str(scratch / "runs"), *told,
    ]  # fmt: skip
    own = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "GLOO_SOCKET_IFNAME": "lo"}
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    began = time.monotonic()
    log = scratch / f"log-{number}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        late = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGTERM)  # each process prints its stacks
            time.sleep(3.0)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = figures(scratch / "runs" / f"case-{number}" / "metrics.jsonl")
    found["seconds"] = round(time.monotonic() - began, 1)
    if process.returncode:
        lines = [line[:300] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [" ".join(lines[n : n + 2]) for n, line in enumerate(lines) if line.startswith("motet: ")]
        errors = errors or [line for line in lines if "Error" in line and "ChildFailedError" not in line]
        why = f"ran longer than {limit:.0f} s" if late else (errors or lines or ["nothing was said"])[-1]
        return {**found, "failed": why, "output": lines[-60:]}
    return found


def engine_of(options: argparse.Namespace, gpus: Sequence[int]) -> list[str]:
    if not options.cpu:
        return [f"engine.gpus=[{','.join(map(str, gpus))}]", f"engine.python='{options.python}'",
                "engine.transfer='nccl'", "engine.memory_share=0.85", "engine.context=4096"]  # fmt: skip
    told = ["model.device='cpu'", "model.dtype='float32'"]
    if options.python == sys.executable:  # no vLLM: the learner's own engine
        return [*told, "engine.kind='transformers'"]
    return [*told, f"engine.python='{options.python}'", "engine.transfer='files'", "engine.eager=true",
            "engine.context=64", "engine.batch_size=16"]  # fmt: skip


def figures(file: Path) -> Result:
    """Medians over the steps after the first ones."""
    if not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row for row in rows if row.get("stage") == "rl"][FIRST:]
    wanted = [f"time/{phase}" for phase in PHASES]
    wanted += ["rollout/tokens_mean", "tokens/second", "rollout/staleness_max", "engine/logprob_diff_mean"]
    found: Result = {"steps_measured": len(rows)}
    for name in wanted:
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = statistics.median(values)
    return found


def make(folder: Path, shape: str, device: str) -> None:
    """The model, and problems for it. All embeddings share a large first component, which no block touches, so behind
    the last norm it is about the same everywhere; the end token's row of the head reads nothing else."""
    import random_model
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    sizes = random_model.SHAPES[shape]
    mean = MEAN_TOKENS if shape != "tiny" else 12
    settings: dict[str, Any] = dict(sizes)
    config = Qwen3Config(**settings, max_position_embeddings=8192, tie_word_embeddings=False, initializer_range=0.04,
                         bos_token_id=None, eos_token_id=1, pad_token_id=0)  # fmt: skip
    with torch.device(device), torch.no_grad():
        model: Any = Qwen3ForCausalLM(config)
        model.eval()
        model.model.embed_tokens.weight[:, 0] = 4.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[1] = 0.0
        hidden = model.model(torch.randint(2, sizes["vocab_size"], (1, 512))).last_hidden_state[0]
        others = model.lm_head(hidden).logsumexp(-1).mean()
        model.lm_head.weight[1, 0] = (others - math.log(mean)) / hidden[:, 0].mean()
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder / "model")
    random_model.tokenizer(sizes["vocab_size"]).save_pretrained(folder / "model")
    prompts = random_model.prompts(1024 if shape != "tiny" else 40, 128 if shape != "tiny" else 6, sizes["vocab_size"])
    rows = [{"id": f"w{n}", "prompt": " ".join(f"t{t}" for t in p), "answer": "0"} for n, p in enumerate(prompts)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
