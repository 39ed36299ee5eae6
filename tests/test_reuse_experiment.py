"""`motet experiment reuse`: arms that share everything but how often a batch is used, and what is made of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import micro
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Guard, RlStage
from motet.base.statistics import Tally
from motet.experiments import reuse
from motet.experiments.reuse_results import judge
from motet.experiments.reuse_view import frontier_lines, summary

SMALL = ["stage.rl.steps=2", "stage.rl.prompts_per_step=4"]


def test_arms_are_s_in_both_ways_and_one_step_once() -> None:
    assert [(a.name, a.passes, a.minibatches, a.inner) for a in reuse.arms_of([8, 1, 4, 4])] == [
        ("once", 1, 1, 1), ("passes-4", 4, 1, 4), ("passes-8", 8, 1, 8),
        ("minibatches-4", 1, 4, 4), ("minibatches-8", 1, 8, 8),
    ]  # fmt: skip
    assert [a.name for a in reuse.arms_of([2])] == ["once", "passes-2", "minibatches-2"]
    with pytest.raises(UserError, match="S must be at least 1"):
        reuse.arms_of([0, 4])


def test_an_arm_differs_from_the_recipe_in_its_reuse_alone(micro_recipe: Path) -> None:
    recipe = micro.recipe(micro_recipe)
    own = reuse.variant(recipe, "rl", reuse.Arm("passes-4", "passes", 4, 1), probes=4, guard=False)
    stage, given = own.stage["rl"], recipe.stage["rl"]
    assert isinstance(stage, RlStage) and isinstance(given, RlStage)
    assert (stage.algorithm.passes, stage.algorithm.minibatches, stage.algorithm.guard.on) == (4, 1, False)
    assert (stage.probe_every, own.seed, stage.optimizer) == (2, recipe.seed, given.optimizer)
    assert {n: s for n, s in own.stage.items() if n != "rl"} == {n: s for n, s in recipe.stage.items() if n != "rl"}
    kept = reuse.variant(recipe, "rl", reuse.Arm("passes-4", "passes", 4, 1), probes=4, guard=True).stage["rl"]
    assert isinstance(kept, RlStage) and kept.algorithm.guard == given.algorithm.guard


def test_a_recipe_without_one_rl_stage_is_refused(micro_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe's rl stages are none"):
        reuse.run(micro.recipe(micro_recipe, "stages=['base']"), tmp_path)
    with pytest.raises(UserError, match="prompts_per_step"):
        reuse.run(micro.recipe(micro_recipe), tmp_path, sweep=[1, 3])
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_runs_resumes_and_reports(micro_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """S = 1 and 2 from the SFT model of a finished run."""
    folder = tmp_path / "micro"
    shutil.copytree(finished_run, folder)
    before = {p: p.stat().st_mtime_ns for p in (folder / "sft").rglob("*") if p.is_file()}
    recipe = micro.recipe(micro_recipe, *SMALL)
    report = reuse.run(recipe, tmp_path, micro_recipe, sweep=[1, 2], probes=2, console=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before  # shared, not made again

    target = folder / "experiments" / "reuse"
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert list(arms) == ["once", "passes-2", "minibatches-2"]
    assert [arm["rollouts"] for arm in arms.values()] == [32, 32, 32]
    assert arms["once"]["gradient_steps"] == 2 < arms["passes-2"]["gradient_steps"] == 4
    for arm in arms.values():
        assert [point["step"] for point in arm["points"]] == [1, 2]
        assert [point["rollouts"] for point in arm["points"]] == [16, 32]
        assert arm["points"][-1]["gradient_steps"] == arm["gradient_steps"]
        assert 0 < arm["points"][0]["seconds"] < arm["points"][1]["seconds"] == pytest.approx(arm["seconds"])
        for point in arm["points"]:
            for curve in (point["reward"], point["heldout"]):
                assert curve["low"] <= curve["mean"] <= curve["high"]
        assert arm["start_difference"]["n"] == arms["once"]["start_difference"]["n"] > 10
        first = (target / arm["name"] / "rl" / "rollouts" / "step-00001.jsonl").read_text()
        assert first == (target / "once" / "rl" / "rollouts" / "step-00001.jsonl").read_text()  # equal seeds
    assert arms["once"]["difference"] is None and arms["passes-2"]["difference"]["n"] > 10
    assert report["learning_rate"] == 1e-3
    assert jsonl.read_json(target / "reuse.json") == jsonl_plain(report)

    page = (target / "reuse.html").read_text()
    assert page.count("<svg") == 6 and "Stability frontier" in page and "<script" not in page
    text = summary(report)
    assert "learning rate 0.001" in text and all(name in text for name in arms)

    done = {p: p.stat().st_mtime_ns for p in target.rglob("metrics.jsonl")}
    (target / "passes-2" / "rl" / "manifest.json").unlink()
    shutil.rmtree(target / "passes-2" / "rl")
    again = reuse.run(recipe, tmp_path, micro_recipe, sweep=[1, 2], probes=2, console=False)
    assert [p.name for p in done if p.stat().st_mtime_ns != done[p]] == ["metrics.jsonl"]  # of the one arm
    for arm, other in zip(again["arms"], report["arms"], strict=True):
        assert (arm["final"], arm["gradient_steps"]) == (other["final"], other["gradient_steps"])


def jsonl_plain(report: dict[str, Any]) -> Any:
    import json

    return json.loads(json.dumps(report))


# ---- the frontier


def arm(name: str, s: int, passed: int = 12, ess: float = 0.9, m2: float = 0.01, skipped: int = 0) -> dict[str, Any]:
    """Twenty held-out problems, the first `passed` of them solved."""
    tallies = [Tally("math", str(i), ("correct" if i < passed else "incorrect",), (3,)) for i in range(20)]
    way = "once" if s == 1 else name.partition("-")[0]
    return {"name": name, "way": way, "s": s, "tallies": tallies, "skipped": skipped, "ess": ess, "m2": m2,
            "start_difference": None}  # fmt: skip


def test_the_frontier_is_the_last_s_before_the_first_unstable_one() -> None:
    results = [arm("once", 1), arm("passes-4", 4), arm("passes-8", 8, passed=2), arm("minibatches-4", 4, ess=0.3),
               arm("minibatches-8", 8)]  # fmt: skip
    arms, frontier = judge(results, Guard())
    assert (frontier["passes"]["s"], frontier["minibatches"]["s"]) == (4, 1)
    assert arms[2]["against"] == ["held-out pass@1 is -50.0 points against S = 1"]
    assert frontier["minibatches"]["why"] == ["effective sample size 0.30 < 0.5"]
    assert arms[1]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 20} and "tallies" not in arms[1]
    lines = frontier_lines({"frontier": frontier})
    assert lines[0] == ("passes: stable up to S = 4 (of 1, 4, 8); beyond it: "
                        "held-out pass@1 is -50.0 points against S = 1")  # fmt: skip


def test_what_speaks_against_an_arm() -> None:
    worse = {"mean": -0.2, "low": -0.3, "high": -0.1, "n": 20}
    results = [
        arm("once", 1),
        arm("passes-4", 4, m2=0.09, skipped=2),
        {**arm("passes-8", 8), "start_difference": worse},
    ]
    arms, _ = judge(results, Guard())
    assert arms[1]["against"] == ["2 steps were not finite", "second moment of the log-ratio 0.09 > 0.04"]
    assert arms[2]["against"] == ["held-out pass@1 is -20.0 points against the model that RL began with"]


def test_all_stable_and_none_stable_are_said() -> None:
    _, frontier = judge([arm("once", 1), arm("passes-4", 4), arm("minibatches-4", 4)], Guard())
    assert frontier_lines({"frontier": frontier})[0] == "passes: stable up to the largest S tried, 4 (of 1, 4)"
    _, frontier = judge([arm("once", 1, ess=0.1), arm("passes-4", 4)], Guard())
    assert frontier["passes"]["s"] == 0
    assert frontier_lines({"frontier": frontier})[0].startswith("passes: not even S = 1 is stable: effective sample")
