"""Kills runs with SIGKILL at random moments, starts them again, and compares them with one that nobody killed.

    python tests/killing.py RECIPE FOLDER --moments 3 --seed 1 [a.b=value ...]

Prints one JSON object: the moments, each with what was under way, and whether the run ended as the other one. Runs are
forks of this process, which has imported everything and computed nothing: a start costs no import.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401  # imported at first use, which would be in each child

import motet.engine.transformers
import motet.stages.rl  # noqa: F401
from motet import pipeline
from motet.base.load_recipe import load
from motet.base.run import Timers

WIDTH = 64
"""Bytes of the note in which a run says what it is at."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--moments", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", default="rl")
    options = parser.parse_intermixed_args(arguments)
    found = kill(options.recipe, options.overrides, options.folder, options.moments, options.seed, options.stage)
    print(json.dumps(found))


def kill(recipe: Path, overrides: Sequence[str], folder: Path, moments: int, seed: int, stage: str) -> dict[str, Any]:
    """`seconds`: of the run that nobody killed; `moments`: rows of seconds, step, phase, checkpoint, recorded (rollouts
    in the journal of the step), weights and rollouts (whether they are the same, byte by byte)."""
    whole = folder / "whole"
    began = time.monotonic()
    run(recipe, overrides, whole, None)
    seconds = time.monotonic() - began
    expected = {name: contents(whole / stage, name) for name in ("model/*.safetensors", "rollouts/*")}
    stream = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < moments:
        again = folder / f"killed-{len(rows) + 1}"
        shutil.rmtree(again, ignore_errors=True)
        moment = stream.random() * seconds
        phase = run(recipe, overrides, again, moment)
        if phase is None:  # it had ended by then: another moment
            continue
        row = {"seconds": round(moment, 2), **state(again, stage), "phase": phase}
        run(recipe, overrides, again, None)
        same = {name: contents(again / stage, name) == held for name, held in expected.items()}
        rows.append({**row, "weights": same["model/*.safetensors"], "rollouts": same["rollouts/*"]})
    return {"seconds": round(seconds, 2), "moments": rows}


def run(recipe: Path, overrides: Sequence[str], folder: Path, moment: float | None) -> str | None:
    """In a child. With `moment`, it is killed after so many seconds; returns what it was at, None if it had ended."""
    note = mmap.mmap(-1, WIDTH)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            noted(note)
            pipeline.run(load(recipe, list(overrides)), folder, recipe, console=False)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    deadline = None if moment is None else time.monotonic() + moment
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    killed = os.WIFSIGNALED(ended[1]) and os.WTERMSIG(ended[1]) == signal.SIGKILL
    assert killed or ended[1] == 0, f"the run failed with status {ended[1]}; {folder}/log.txt says why"
    return bytes(note).rstrip(b"\0").decode() or "start" if killed else None


def noted(note: mmap.mmap) -> None:
    """The innermost phase that is timed, of whichever thread timed one last."""
    plain = Timers.__call__

    def timed(self: Timers, name: str) -> Any:
        note[:WIDTH] = name.encode()[:WIDTH].ljust(WIDTH, b"\0")
        return plain(self, name)

    Timers.__call__ = timed  # type: ignore[method-assign]


def state(folder: Path, stage: str) -> dict[str, Any]:
    metrics = folder / "metrics.jsonl"
    done = metrics.read_text().count(f'"stage":"{stage}"') if metrics.exists() else 0
    checkpoints = sorted(path.name for path in (folder / stage / "checkpoints").glob("step-*[0-9]"))
    journals = sorted((folder / stage / "rollouts").glob("*.part.jsonl"))
    recorded = sum(file.read_bytes().count(b"\n") for file in journals)
    return {"step": done + 1, "checkpoint": checkpoints[-1] if checkpoints else "", "recorded": recorded}


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


if __name__ == "__main__":
    main(sys.argv[1:])
