"""Killed at any moment, the same command goes on and ends with the same weights and rollouts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.records import Group, decode_group


def start(recipe: Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "motet.cli", "run", str(recipe), "--runs", str(runs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def stop_when(process: subprocess.Popen[str], reached: Callable[[], bool], by: signal.Signals) -> str:
    """Sends the signal as soon as `reached`; returns what the process wrote to standard error."""
    while not reached():
        assert process.poll() is None, f"it ended before it could be stopped: {process.communicate()[1]}"
        time.sleep(0.005)
    process.send_signal(by)
    return process.communicate()[1]


def steps(run: Path, stage: str) -> int:
    """How many steps of a stage have been reported so far."""
    path = run / "metrics.jsonl"
    return path.read_text().count(f'"stage":"{stage}"') if path.exists() else 0


def whole(groups: list[Group]) -> list[object]:
    """What must be equal: all but the last bits of log-probabilities, which depend on what was sampled side by side."""
    return [
        (group.problem, [(r.prompt_tokens, r.completion.text, r.completion.tokens, r.verdict) for r in group.rollouts])
        for group in groups
    ]


def groups_of(path: Path) -> list[Group]:
    return [decode_group(row) for _, row in jsonl.read(path)]


def assert_same_run(run: Path, other: Path) -> None:
    for stage in ("sft", "sft-2", "rl"):
        assert micro.same_weights(micro.weights(run, stage), micro.weights(other, stage)), stage
    names = [f"rl/rollouts/step-{step:05d}.jsonl" for step in range(1, 9)]
    for name in (*names, "filter/groups.jsonl", "synthesize/groups.jsonl", "rl/evaluation.jsonl"):
        assert whole(groups_of(run / name)) == whole(groups_of(other / name)), name
    for stage, count in (("sft", 60), ("sft-2", 5), ("rl", 8)):
        rows, expected = micro.metrics(run, stage), micro.metrics(other, stage)
        assert [row["step"] for row in rows] == list(range(1, count + 1))
        for name in ("loss/nll", "loss/policy", "reward/mean", "optim/grad_norm"):
            assert [row.get(name) for row in rows] == [row.get(name) for row in expected]


def test_ctrl_c_says_how_to_go_on_ends_with_130_and_the_same_command_goes_on(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "micro"
    process = start(micro_recipe, tmp_path)
    error = stop_when(process, lambda: steps(run, "sft") >= 13, signal.SIGINT)
    assert process.returncode == 130
    assert "motet: stopped; the same command goes on from here" in error and "Traceback" not in error
    assert [p.name for p in (run / "sft" / "checkpoints").glob("step-0000?0")]
    pipeline.run(micro.recipe(micro_recipe), run, micro_recipe, console=False)
    log = (run / "log.txt").read_text()
    assert "base: already done" in log and "sft: sft (goes on)" in log
    assert_same_run(run, finished_run)


@pytest.mark.slow
def test_a_run_killed_in_sft_and_again_in_rl_ends_as_the_uninterrupted_one(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "micro"
    process = start(micro_recipe, tmp_path)
    stop_when(process, lambda: steps(run, "sft") >= 25, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (run / "sft" / "model").exists()
    process = start(micro_recipe, tmp_path)
    # in the third step, whose journal exists; the checkpoint is that of the second
    third = run / "rl" / "rollouts" / "step-00003.part.jsonl"
    stop_when(process, lambda: third.exists() or steps(run, "rl") >= 3, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (run / "rl" / "model").exists()
    report = pipeline.run(micro.recipe(micro_recipe), run, micro_recipe, console=False)
    assert_same_run(run, finished_run)
    assert report["missing"] == []
    assert not list(run.rglob("*.part.jsonl")) and not list(run.rglob("*.tmp")) and not list(run.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("left", "gone"),
    [
        ("killed between the model and its evaluation", ["rl/evaluation.json", "rl/evaluation.jsonl"]),
        (
            "killed between the rollouts of the filter and its table",
            ["filter/filter.json", "filter/problems.jsonl", "filter/difficulty.jsonl", "filter/data.jsonl"],
        ),
        (
            "killed between the traces and the sieve",
            ["synthesize/funnel.json", "synthesize/data.jsonl", "synthesize/teachers.json"],
        ),
    ],
)
def test_a_stage_killed_between_two_files_writes_the_missing_ones_alone(
    micro_recipe: Path, finished_run: Path, tmp_path: Path, left: str, gone: list[str]
) -> None:
    run = tmp_path / "micro"
    shutil.copytree(finished_run, run)
    stage = gone[0].partition("/")[0]
    manifest = jsonl.read_json(run / stage / "manifest.json")
    jsonl.write_json(run / stage / "manifest.json", {**manifest, "status": "running"})
    for name in gone:
        (run / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (run / stage).rglob("*") if path.is_file()}
    pipeline.run(micro.recipe(micro_recipe), run, micro_recipe, console=False)
    del kept[run / stage / "manifest.json"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, left
    assert_same_run(run, finished_run)
    for name in gone:
        if name.endswith(".jsonl"):
            assert (run / name).read_text() == (finished_run / name).read_text()


# ---- reinforcement learning, killed at random moments (bench/kill_rl.py does it twenty times)

RL = ("threads=1", "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]", "stage.rl.evaluate=false",
      "stage.rl.algorithm.passes=2", "stage.rl.algorithm.minibatches=2", "stage.rl.algorithm.kl=0.05",
      "stage.rl.retire_at=0.9", "stage.rl.steps=6")  # fmt: skip


def killed(recipe: Path, model: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent / "killing.py"), str(recipe), str(folder), *RL]
    given = [*command, f"model={{path='{model}', device='cpu'}}", *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


@pytest.mark.parametrize(
    ("overlap", "phases"), [("false", ["train", "generate"]), ("true", ["train"])], ids=["one by one", "overlap"]
)
def test_rl_killed_at_random_moments_ends_bit_for_bit_as_the_uninterrupted_run(
    micro_recipe: Path, finished_run: Path, tmp_path: Path, overlap: str, phases: list[str]
) -> None:
    """With S = 4, refills, problems that rest, probes and a reference: equal weights, rollouts, probes, metrics."""
    settings = ["--moments", str(len(phases)), "--phases", ",".join(phases), f"stage.rl.overlap={overlap}"]
    probes = ["stage.rl.refill=0.5", "stage.rl.probe_every=2", "stage.rl.probe=6"]
    found = killed(micro_recipe, finished_run / "sft" / "model", tmp_path, *settings, *probes)
    assert [kill["said"] for row in found["runs"] for kill in row["kills"]] == phases
    assert [row["differs"] for row in found["runs"]] == [[]] * len(phases)


def test_with_a_server_of_vllm_a_killed_run_loses_no_rollout_and_counts_none_twice(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """What was recorded is not asked for again: only what was on its way when the run was killed is."""
    # the server's texts are nonsense; those that end in time are better than those that do not
    rewards = ["stage.rl.rewards.truncated=-1.0", "stage.rl.sampling.max_tokens=8", "engine.batch_size=8"]
    found = killed(
        micro_recipe, finished_run / "sft" / "model", tmp_path, "--vllm", "--moments", "1", "--phases", "generate",
        *rewards, "stage.rl.algorithm.correction.on=false", "stage.rl.checkpoint_every=1", "stage.rl.steps=4",
        "engine.largest_drift=100",
    )  # fmt: skip
    (row,) = found["runs"]
    assert row["differs"] == [] and found["asked"] == 4 * 8 * 4 + 4  # the last four: whether engine and learner agree
    assert found["asked"] + 4 <= row["asked"] <= found["asked"] + 4 + 8
