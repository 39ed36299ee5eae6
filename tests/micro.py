"""A recipe of all kinds of stages that takes seconds: say a number of two digits after spelling it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.base.recipe import Recipe

RECIPE = """
extends = "stable"
name = "micro"
seed = 3
threads = 1
stages = ["base", "sft", "synthesize", "sft-2", "filter", "rl"]

[model]
device = "cpu"
tiny = { hidden = 32, layers = 2, heads = 2, mlp = 64, context = 64 }

[verification]
workers = 1
deadline_seconds = 60.0

[problems.numbers]
path = "PROBLEMS"
heldout = 0.2

[evaluation]
samples = 2
bootstrap = 200
sampling = { max_tokens = 16 }

[defaults.sft]
context = 48
batch_size = 16
checkpoint_every = 10
optimizer = { learning_rate = 1e-2, warmup_steps = 5 }

[defaults.rl.optimizer]
learning_rate = 1e-3
warmup_steps = 2

[defaults.rl.algorithm]
# at this learning rate a second step is beyond its bounds at times
guard = { on = false }

[stage.base]
kind = "evaluate"

[stage.sft]
kind = "sft"
steps = 60
data = [{ problems = "numbers" }]

[stage.synthesize]
kind = "synthesize"
problems = [{ problems = "numbers" }]
count = 24
samples = 3
sampling = { max_tokens = 16 }

[stage.sft-2]
kind = "sft"
steps = 5
evaluate = false
data = [{ stage = "synthesize" }, { problems = "numbers", weight = 0.5 }]

[stage.filter]
kind = "filter"
problems = [{ problems = "numbers" }]
count = 30
n = 5
sampling = { max_tokens = 16 }
probe = 8

[stage.rl]
kind = "rl"
problems = [{ stage = "filter" }]
steps = 8
prompts_per_step = 8
group_size = 4
checkpoint_every = 2
sampling = { max_tokens = 16 }
"""
STAGES = ("base", "sft", "synthesize", "sft-2", "filter", "rl")


def write_recipe(folder: Path) -> Path:
    """micro.toml, and beside it problems.jsonl: "Say 37", reasoning "3 7", answer 37, for all numbers of two digits."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = folder / "problems.jsonl"
    rows = [(n, f"{n // 10} {n % 10}") for n in range(10, 100)]
    problems.write_text(
        "".join(json.dumps({"id": f"n{n}", "prompt": f"Say {n}", "answer": n, "reasoning": r}) + "\n" for n, r in rows)
    )
    path = folder / "micro.toml"
    path.write_text(RECIPE.replace("PROBLEMS", str(problems)))
    return path


def recipe(path: Path, *overrides: str) -> Recipe:
    return load(path, list(overrides))


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    return [row for _, row in jsonl.read(run / "metrics.jsonl") if row["stage"] == stage]


def weights(run: Path, stage: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / stage / "model" / "model.safetensors")


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
