"""A micro model learns end to end: SFT teaches the form, RL raises the pass rate, rewards without meaning do not."""

from __future__ import annotations

from pathlib import Path

import pytest

import micro
from motet import pipeline
from motet.base import jsonl

RL = ["stage.rl.problems=[{problems='numbers'}]", "stage.rl.steps=50", "stage.rl.prompts_per_step=16",
      "stage.rl.group_size=8", "stage.rl.evaluate=false"]  # fmt: skip

SHUFFLED = "stage.rl.algorithm.shuffle_rewards=true"


def pass_rate(run: Path, stage: str) -> float:
    summary = jsonl.read_json(run / stage / "evaluation.json")
    return float(summary["domains"]["math"]["pass_at_1"]["mean"])


def passes(run: Path) -> tuple[float, float]:
    """Pass rate of the first and of the last five batches of RL."""
    rates = [row["pass/mean"] for row in micro.metrics(run, "rl")]
    return sum(rates[:5]) / 5, sum(rates[-5:]) / 5


@pytest.mark.slow
def test_rl_raises_the_pass_rate_and_shuffled_rewards_do_not(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """From the model of the SFT stage, which solves about a third of the problems."""
    model = f"model={{path='{finished_run / 'sft' / 'model'}', device='cpu'}}"
    stages = ["stages=['rl', 'after']", "stage.after.kind=evaluate", "evaluation.samples=8"]
    recipe = micro.recipe(micro_recipe, model, *RL, *stages)
    pipeline.run(recipe, tmp_path / "rl", console=False)
    first, last = passes(tmp_path / "rl")
    assert last > first + 0.15
    assert pass_rate(tmp_path / "rl", "after") > pass_rate(finished_run, "sft") + 0.1
    control = micro.recipe(micro_recipe, model, *RL, "stages=['rl']", "stage.rl.steps=20", SHUFFLED)
    pipeline.run(control, tmp_path / "control", console=False)
    assert passes(tmp_path / "control")[1] < last - 0.2
