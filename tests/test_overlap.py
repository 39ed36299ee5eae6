"""Overlap: the engine samples the next batch while the learner steps on this one, one step off and no further."""

from __future__ import annotations

import threading
import time as time_
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.records import decode_group
from motet.base.run import Timers
from motet.stages.batches import Batches
from motet.train.world import World


def run(micro_recipe: Path, finished_run: Path, folder: Path, *overrides: str) -> Path:
    """RL alone, four steps, from the SFT model of a finished run."""
    model = f"model={{path='{finished_run / 'sft' / 'model'}', device='cpu'}}"
    common = [model, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]", "stage.rl.steps=4",
              "stage.rl.evaluate=false"]  # fmt: skip
    pipeline.run(micro.recipe(micro_recipe, *common, *overrides), folder, console=False)
    return folder


def versions(folder: Path) -> list[set[int]]:
    """Of the weights that sampled each step's rollouts."""
    files = sorted((folder / "rl" / "rollouts").glob("step-*.jsonl"))
    groups = ([decode_group(row) for _, row in jsonl.read(file)] for file in files)
    return [{r.completion.version for group in step for r in group.rollouts} for step in groups]


def test_each_batch_is_of_the_weights_before_the_last_update_and_the_run_repeats_itself(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    settings = ["stage.rl.overlap=true", "stage.rl.retire_at=0.9", "stage.rl.refill=0.5", "stage.rl.probe_every=2",
                "stage.rl.probe=6"]  # fmt: skip
    folder = run(micro_recipe, finished_run, tmp_path / "one", *settings)
    rows = micro.metrics(folder, "rl")
    steps = [int(row["inner_steps"]) for row in rows]
    assert all(count > 0 for count in steps)
    assert versions(folder) == [{0}, {0}, {steps[0]}, {steps[0] + steps[1]}]
    assert [row["staleness"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    assert [row["rollout/staleness_max"] for row in rows] == [0.0, *steps[:3]]
    assert all(row["correction/importance_max"] > 1.0 for row in rows[1:]) and "heldout/pass" in rows[1]
    assert {"time/sample", "time/generate", "time/judge", "time/train"} <= rows[2].keys()
    # a batch of older weights says nothing of the engine's arithmetic: each step something is drawn by the present ones
    assert all(row["engine/logprob_diff_mean"] <= row["engine/logprob_diff_max"] < 1e-4 for row in rows)
    assert any(row["policy/kl_to_behaviour/1"] > 1e-3 for row in rows[1:])
    again = run(micro_recipe, finished_run, tmp_path / "two", *settings)
    assert micro.same_weights(micro.weights(folder, "rl"), micro.weights(again, "rl"))
    plain = run(micro_recipe, finished_run, tmp_path / "plain", *settings[1:])
    assert not micro.same_weights(micro.weights(folder, "rl"), micro.weights(plain, "rl"))
    assert [row["staleness"] for row in micro.metrics(plain, "rl")] == [0.0] * 4


def batches_of(sample: Any, resumed: bool = False) -> Batches:
    algorithm = SimpleNamespace(passes=2, minibatches=3)
    config: Any = SimpleNamespace(overlap=True, steps=3, algorithm=algorithm)
    context: Any = SimpleNamespace(world=World())
    selection: Any = SimpleNamespace(sample=sample)
    sampler: Any = SimpleNamespace(engine=SimpleNamespace(version=7), oldest=None, judging=0.0, settle=lambda: None)
    return Batches(selection, sampler, config, context, resumed)


def test_the_next_batch_is_sampled_while_the_caller_goes_on() -> None:
    learnt = threading.Event()

    def sample(_: Any, step: int) -> Any:
        assert step == 0 or learnt.wait(20.0), "the learner had to wait for the next batch"
        return [step], {}

    batches, time = batches_of(sample), Timers()
    for step in range(3):
        with time("generate"):
            groups, metrics = batches.take(step, time)
        assert groups == [step] and metrics["time/sample"] >= 0.0
        batches.begin(step + 1)
        learnt.set()
        batches.wait(time)


def test_of_what_is_waited_for_the_verdicts_are_counted_as_judging() -> None:
    """Sampling takes 0.3 s, the last 0.2 of them for verdicts. The learner comes back after 0.2 s and waits for 0.1 s,
    which are the verdicts'; a learner that waits from the start waits for both."""

    def sample(sampler: Any, step: int) -> Any:
        time_.sleep(0.3)
        sampler.judging = 0.2
        return [step], {}

    batches, first, second = batches_of(sample), Timers(), Timers()
    with first("generate"):
        batches.take(0, first)
    assert first.seconds["judge"] == pytest.approx(0.2) and 0.05 < first.seconds["generate"] < 0.2
    batches.begin(1)
    time_.sleep(0.2)
    with second("generate"):
        batches.wait(second)
        batches.take(1, second)
    assert 0.02 < second.seconds["judge"] <= 0.15 and second.seconds["generate"] < 0.05


def test_what_goes_wrong_while_sampling_is_raised_where_the_batch_is_taken() -> None:
    def sample(_: Any, step: int) -> Any:
        if step:
            raise UserError("the engine is gone")
        return [step], {}

    batches, time = batches_of(sample), Timers()
    with time("generate"):
        batches.take(0, time)
    batches.begin(1)
    batches.wait(time)
    with pytest.raises(UserError, match="the engine is gone"), time("generate"):
        batches.take(1, time)


def test_after_a_resume_one_batch_may_be_of_the_weights_of_one_batch_before() -> None:
    seen: list[int | None] = []
    batches: Batches

    def sample(sampler: Any, step: int) -> Any:
        seen.append(sampler.oldest)
        return [step], {}

    batches, time = batches_of(sample, resumed=True), Timers()
    for step in (1, 2):
        with time("generate"):
            batches.take(step, time)
    assert seen == [7 - 2 * 3, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stage.rl.algorithm.correction.on=false"], r"stage\.rl\.overlap: .* correction = \{ on = true \}"),
        (["engine.kind='vllm'"], r"stage\.rl\.overlap: .* give vLLM a server of its own"),
        (["engine.kind='vllm'", "engine.python='/env/bin/python'", "engine.sleep=1"], "without engine.sleep"),
    ],
)
def test_overlap_is_refused_where_it_cannot_be(micro_recipe: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        micro.recipe(micro_recipe, "stage.rl.overlap=true", *settings)
