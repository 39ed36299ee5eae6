"""Runs that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import micro
from motet import pipeline
from motet.base import jsonl

OVERRIDES = (
    "stages=['sft','rl']",
    *("stage.sft.steps=40", "stage.sft.evaluate=false", "stage.sft.checkpoint_every=15"),
    *("stage.rl.steps=2", "stage.rl.evaluate=false", "stage.rl.checkpoint_every=1"),
    "stage.rl.problems=[{problems='numbers'}]",
)


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_run_by_two_processes_has_the_losses_of_one(micro_recipe: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    pipeline.run(micro.recipe(micro_recipe, *OVERRIDES), alone, micro_recipe, console=False)
    done = torchrun("-m", "motet.cli", "run", micro_recipe, "--runs", tmp_path, "mesh.sp=2", *OVERRIDES)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "micro"
    for stage, names in (("sft", ("loss/nll", "optim/grad_norm")), ("rl", ("reward/mean", "loss/policy"))):
        rows, expected = micro.metrics(run, stage), micro.metrics(alone, stage)
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for name in names:
            found, wanted = ([row[name] for row in part if name in row] for part in (rows, expected))
            assert wanted and found == pytest.approx(wanted, abs=1e-4), (stage, name)
    assert jsonl.read_json(run / "lineage.json")["processes"] == 2
    for name, tensor in micro.weights(alone, "rl").items():
        assert float((micro.weights(run, "rl")[name] - tensor).abs().max()) < 1e-3, name
    assert done.stdout.count("report: ") == 1 and done.stderr.count("sft: done in") == 1


@pytest.mark.slow
def test_what_a_user_can_mend_is_said_once_by_one_process(micro_recipe: Path, tmp_path: Path) -> None:
    arguments = ("-m", "motet.cli", "run", micro_recipe, "--runs", tmp_path, "stages=['sft']", "stage.sft.context=4")
    done = torchrun(*arguments)
    assert done.returncode != 0 and done.stderr.count("no conversation is left to train on") == 1


HANGS = """
import time
from motet.train.world import World
world = World.join(4, 4, False)
world.gather(world.rank)
def sleeps_for_ever():
    time.sleep(600)
def waits_for_the_other():
    with world.watched():
        world.gather(0)
sleeps_for_ever() if world.rank else waits_for_the_other()
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_with_the_stack_of_every_process(tmp_path: Path) -> None:
    program = tmp_path / "hangs.py"
    program.write_text(HANGS)
    done = torchrun(program)
    assert done.returncode != 0
    assert "in sleeps_for_ever" in done.stderr and "in waits_for_the_other" in done.stderr


SAMPLES = """
import sys, time
from motet.base import signs
from motet.train.world import World
world = World.join(2, 2, False)
def samples():
    for _ in range(12):
        time.sleep(0.5)
        signs.give()
    return "all is sampled"
def hangs_in_sampling():
    samples()
    time.sleep(600)
def waits_for_the_first():
    return world.first(hangs_in_sampling if sys.argv[1:] else samples)
print(waits_for_the_first())
world.leave()
"""


@pytest.mark.slow
def test_the_first_process_may_sample_for_long_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    program = tmp_path / "samples.py"
    program.write_text(SAMPLES)
    done = torchrun(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all is sampled") == 2


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_first_process_that_hangs_in_sampling_ends_the_run_with_the_stack_of_every_process(tmp_path: Path) -> None:
    program = tmp_path / "samples.py"
    program.write_text(SAMPLES)
    done = torchrun(program, "hangs")
    assert done.returncode != 0
    assert "process 1 has waited 2 s (mesh.silence_seconds) without a sign of life" in done.stderr
    assert "in hangs_in_sampling" in done.stderr and "in waits_for_the_first" in done.stderr
