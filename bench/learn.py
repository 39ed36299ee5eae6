"""Does RL teach a real model something, how much does reuse cost or gain, and what does the same work take in TRL?

    python bench/learn.py start s1 s4 trl table        # on one GPU with vLLM beside the learner; a word a call is fine
    python bench/learn.py start s1 --recipe bench/quickstart.toml stage.rl.steps=2     # a dry run on a CPU

start   SFT once, its evaluation, and the filter
s1, s4  RL from there with S = 1 and S = 4 (one pass, so many minibatches), each with its evaluation
trl     TRL's GRPOTrainer from the same weights on the problems that s1 drew, in the same order: as many rollouts, the
        same verifiers, clipping, optimizer and learning rate, S = 1, vLLM in its process; evaluated by motet
table   pass@1 by domain, RL's gain with the 95 % interval (paired by problem, resampled by template), seconds

Arms are comparable when the sha256 of the SFT weights, the seed and the device are the same; all three are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.base.recipe import Recipe, RlStage
from motet.base.records import decode_group
from motet.base.statistics import compare_groups

HERE = Path(__file__).resolve().parent
PARTS = ("start", "s1", "s4", "trl", "table")
ARMS = {"s1": 1, "s4": 4}
SFT, FILTER, RL = "sft-1", "filter", "rl"
PACKAGES = ("torch", "transformers", "vllm", "trl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="PART|a.b=value", help=f"of {', '.join(PARTS)}; overrides")
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "smollm2-vllm.toml")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "learn")
    parser.add_argument("--rows", type=int, default=64, help="rollouts that TRL takes in one pass")
    parser.add_argument("--out", type=Path, help="results as JSON; unset, WORK/learn.json")
    parser.add_argument("--child", choices=("train", "evaluate"), help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    overrides = [word for word in options.words if "=" in word]
    wanted = [word for word in options.words if "=" not in word]
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    if options.child:
        (train_in_trl if options.child == "train" else evaluate_trl)(options, load(options.recipe, overrides))
        return 0
    for part in wanted:
        began = time.perf_counter()
        if part == "start":
            motet(options, "start", overrides, stages=[SFT, FILTER])
            print(f"SFT weights {checksum(options.work)}", flush=True)
        elif part in ARMS:
            arm(options, part, overrides)
        elif part == "trl":
            trl(options, overrides)
        else:
            table(options, overrides)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    return 0


def motet(options: argparse.Namespace, name: str, overrides: list[str], **set_to: Any) -> None:
    settings = {f"stage.{SFT}.evaluate": True, f"stage.{RL}.evaluate": True, "name": name, **set_to}
    words = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    call([sys.executable, "-m", "motet", "run", str(options.recipe), "--runs", str(options.work), *words],
         options.work / f"{name}.log")  # fmt: skip


def arm(options: argparse.Namespace, name: str, overrides: list[str]) -> None:
    """The rl stage in a copy of the run that has the SFT weights and the filter: nothing of these is made again."""
    if not (options.work / name).exists():
        shutil.copytree(options.work / "start", options.work / name)
    settings = {f"stage.{RL}.algorithm.{key}": value for key, value in (("passes", 1), ("minibatches", ARMS[name]))}
    motet(options, name, overrides, stages=[SFT, FILTER, RL], **settings)


def trl(options: argparse.Namespace, overrides: list[str]) -> None:
    """rl.jsonl has the problems that s1 drew, step by step; TRL trains on them in a process of its own."""
    steps = sorted((options.work / "s1" / RL / "rollouts").glob("*.jsonl"))
    drawn = [{"problem": row["problem"]} for step in steps for _, row in jsonl.read(step)]
    jsonl.write(options.work / "rl.jsonl", drawn)
    words = ["trl", "--recipe", str(options.recipe), "--work", str(options.work), "--rows", str(options.rows)]
    for child in ("train", "evaluate"):
        command = [sys.executable, str(Path(__file__).resolve()), *words, "--child", child, *overrides]
        call(command, options.work / "trl.log")


def train_in_trl(options: argparse.Namespace, recipe: Recipe) -> None:
    sys.path.insert(0, str(HERE))
    import trl_side

    from motet.data.chat import ChatFormat
    from motet.model.load import load_tokenizer

    start = options.work / "start" / SFT / "model"
    tokenizer = load_tokenizer(start)
    chat = ChatFormat(tokenizer, recipe.chat)
    problems = [row["problem"] for _, row in jsonl.read(options.work / "rl.jsonl")]
    prompts = [chat.prompt(problem["messages"]) for problem in problems]
    data = options.work / "trl-rows.jsonl"
    jsonl.write(data, [
        {"prompt": tokenizer.decode(list(tokens), skip_special_tokens=False), "tokens": tokens, "problem": problem}
        for tokens, problem in zip(prompts, problems, strict=True)
    ])  # fmt: skip
    figures = trl_side.rl(recipe, RL, data, start, options.work / "trl", "micro_batches", options.rows)
    jsonl.write_json(options.work / "trl.json", figures)


def evaluate_trl(options: argparse.Namespace, recipe: Recipe) -> None:
    from motet.base.run import Run
    from motet.stages import evaluate
    from motet.stages.context import Context

    with Run(options.work / "trl-evaluated", console=False) as run:
        context = Context(recipe, run, options.work / "start" / SFT / "model")
        evaluate.run(RL, context, options.work / "trl")
        context.close()


def table(options: argparse.Namespace, overrides: list[str]) -> None:
    recipe = load(options.recipe, overrides)
    rl = recipe.stage[RL]
    assert isinstance(rl, RlStage)
    work = options.work
    evaluations = {"sft": work / "start" / SFT, **{name: work / name / RL for name in ARMS}}
    evaluations["trl"] = work / "trl-evaluated" / RL
    groups = {
        name: [decode_group(row) for _, row in jsonl.read(place / "evaluation.jsonl")]
        for name, place in evaluations.items()
        if (place / "evaluation.jsonl").exists()
    }
    result: dict[str, Any] = {
        "device": device(),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "sft_weights": checksum(work),
        "recipe": recipe.model_dump(mode="json"),
        "rollouts": rl.steps * rl.prompts_per_step * rl.group_size,
        "seconds": {},
        "gain": {name: compare_groups(groups["sft"], groups[name]) for name in groups if name != "sft"},
    }
    for one, other in (("s1", "s4"), ("trl", "s1")):
        if {one, other} <= set(groups):
            result[f"{other} - {one}"] = compare_groups(groups[one], groups[other])
    for name, stages in {"start": (SFT, FILTER), **dict.fromkeys(ARMS, (RL,))}.items():
        for stage in stages:
            if (work / name / stage / "manifest.json").exists():
                result["seconds"][f"{name} {stage}"] = seconds(work / name, stage)
    if (work / "trl.json").exists():
        result["seconds"]["trl rl"] = jsonl.read_json(work / "trl.json")
    jsonl.write_json(options.out or work / "learn.json", result)
    show(result)


def seconds(run: Path, stage: str) -> dict[str, Any]:
    rows = [row for _, row in jsonl.read(run / "metrics.jsonl") if row["stage"] == stage and "time/step" in row]
    train = rows[-1]["time"] - rows[0]["time"] + rows[0]["time/step"] if rows else 0.0
    manifest = jsonl.read_json(run / stage / "manifest.json")
    phases = {p: sum(row.get(f"time/{p}", 0.0) for row in rows) for p in ("generate", "anchor", "train", "load")}
    report = jsonl.read_json(run / "report.json")
    evaluated = report.get("phases", {}).get(stage, {}).get("evaluate", 0.0)
    return {"train": train, "stage": manifest["seconds"], "evaluate": evaluated, "steps": len(rows), "phases": phases}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['device']}; {result['versions']}; SFT weights {result['sft_weights']}; "
          f"{result['rollouts']} rollouts an arm")  # fmt: skip
    print(f"{'pass@1':<10}{'domain':<12}{'before':>9}{'after':>9}{'gain':>8}   95 % interval      problems")
    for name, rows in [*result["gain"].items(), *((n, result[n]) for n in ("s4 - s1", "s1 - trl") if n in result)]:
        for domain, row in rows.items():
            gain = row["difference"]
            print(
                f"{name:<10}{domain:<12}{100 * row['a']:8.1f}%{100 * row['b']:8.1f}%{100 * gain['mean']:+8.1f}   "
                f"[{100 * gain['low']:+6.1f}, {100 * gain['high']:+6.1f}]{row['n']:10}"
            )
    for name, row in result["seconds"].items():
        told = {k: round(v, 1) for k, v in row.items() if isinstance(v, int | float)}
        print(f"{name:<14}{told} { ({k: round(v, 1) for k, v in row['phases'].items()} if 'phases' in row else '') }")


def checksum(work: Path) -> str:
    (weights,) = (work / "start" / SFT / "model").glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def call(command: list[str], log: Path) -> None:
    with log.open("a") as sink:
        code = subprocess.run(command, stdout=sink, stderr=sink, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
    if code:
        raise SystemExit(f"{log.read_text()[-4000:]}\n{' '.join(command[:5])} ... ended with {code}")


if __name__ == "__main__":
    sys.exit(main())
