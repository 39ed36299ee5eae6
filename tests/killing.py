"""Kills runs with SIGKILL at random moments, starts them again, and compares them with one that nobody killed.

    python tests/killing.py RECIPE FOLDER --moments 3 --seed 1 [--phases train,generate] [--vllm] [a.b=value ...]

Prints one JSON object: the runs, each with the moments at which it was killed, what was under way, and what was not
equal in the end. Runs are forks of this process, which has imported everything and computed nothing: a start costs no
import. With `--vllm` they sample from a small server with vLLM's interface in this process, which nobody kills.
"""

from __future__ import annotations

import argparse
import hashlib
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
from fake_vllm import FakeVllm
from motet import pipeline
from motet.base.load_recipe import load
from motet.base.run import Timers

WIDTH = 64
"""Bytes of the note in which a run says what it is at."""
CLOCK = ("time", "time/", "tokens/second", "tokens/sampled_per_second")
"""Beginnings of what metrics.jsonl holds of the clock."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--moments", type=int, default=3)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--phases", type=lambda text: text.split(","), default=[])
    parser.add_argument("--vllm", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    server = FakeVllm(light=True) if options.vllm else None
    if server is not None:
        options.overrides += ["engine.kind='vllm'", f"engine.urls=['{server.url}']"]
    print(json.dumps(kill(**{k: v for k, v in vars(options).items() if k != "vllm"}, server=server)))


def kill(
    recipe: Path,
    overrides: Sequence[str],
    folder: Path,
    moments: int,
    seed: str,
    phases: Sequence[str] = (),
    server: FakeVllm | None = None,
    twice: int = 0,
) -> dict[str, Any]:
    """`seconds`: of the run that nobody killed; `weights`: its digest; `runs`: of each one its `kills` (second,
    what the run said it was at, what its folder shows) and what `differs` in the end. Every run whose number `twice`
    divides is killed again, at a moment of what is left. With a server also `asked`: for how many completions it was
    asked. A kill comes after a random time, and then in the next of `phases`, where given."""
    whole = folder / "whole"
    began = time.monotonic()
    run(recipe, overrides, whole, None)
    seconds = time.monotonic() - began
    asked = len(server.bodies) if server is not None else 0
    expected = outcome(whole)
    stream = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < moments:
        again = folder / f"killed-{len(rows) + 1}"
        shutil.rmtree(again, ignore_errors=True)
        before = len(server.bodies) if server is not None else 0
        kills: list[dict[str, Any]] = []
        left = seconds
        for _ in range(2 if twice and (len(rows) + 1) % twice == 0 else 1):
            moment = stream.random() * left
            said = run(recipe, overrides, again, moment, phases[len(rows) % len(phases)] if phases else "")
            if said is not None:
                kills.append({"second": round(moment, 2), "said": said, **seen(again)})
            left -= moment
        if not kills:  # it had ended by then: another moment
            continue
        run(recipe, overrides, again, None)
        row = {"kills": kills, "differs": differing(outcome(again), expected)}
        rows.append(row | ({"asked": len(server.bodies) - before} if server is not None else {}))
        print(f"{folder.name} {len(rows)}: {rows[-1]}", file=sys.stderr, flush=True)
        if row["differs"]:
            break
        shutil.rmtree(again)
    return {"seconds": round(seconds, 2), "asked": asked, "weights": expected["weights"], "runs": rows}


def run(recipe: Path, overrides: Sequence[str], folder: Path, moment: float | None, phase: str = "") -> str | None:
    """In a child. With `moment`, it is killed after so many seconds, when it next says that it is at `phase`; returns
    what it was at, None if it had ended."""
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
        if deadline is not None and time.monotonic() >= deadline and (not phase or said_in(note) == phase):
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    said = said_in(note)
    killed = os.WIFSIGNALED(ended[1]) and os.WTERMSIG(ended[1]) == signal.SIGKILL
    assert killed or ended[1] == 0, f"the run failed with status {ended[1]}; {folder}/log.txt says why"
    return said or "start" if killed else None


def said_in(note: mmap.mmap) -> str:
    return bytes(note[:WIDTH]).rstrip(b"\0").decode()


def noted(note: mmap.mmap) -> None:
    """The innermost phase that is timed, of whichever thread timed one last."""
    plain = Timers.__call__

    def timed(self: Timers, name: str) -> Any:
        note[:WIDTH] = name.encode()[:WIDTH].ljust(WIDTH, b"\0")
        return plain(self, name)

    Timers.__call__ = timed  # type: ignore[method-assign]


def seen(folder: Path) -> dict[str, Any]:
    """What was under way, as the run folder shows it. `step`, from 1, is the one after the last that was reported."""
    rl, done = folder / "rl", max((row["step"] for row in rows_of(folder)), default=0)
    checkpoints = [int(path.name[5:]) for path in (rl / "checkpoints").glob("step-*") if path.suffix != ".tmp"]
    journals = sorted(rl.glob("*/*.part.jsonl"))
    if (rl / "model").exists():
        shown = "after the stage"
    elif (rl / "model.tmp").exists():
        shown = "export"
    elif list((rl / "checkpoints").glob("*.tmp")):
        shown = "checkpoint"
    elif any(journal.parent.name == "probes" for journal in journals):
        shown = "probe"
    elif any(journal.name.startswith("refill") for journal in journals):
        shown = "refill"
    elif (rl / "rollouts" / f"step-{done + 1:05d}.jsonl").exists():
        shown = "gradient steps" + (", next batch" if journals else "")
    elif journals:
        shown = "sampling"
    else:
        shown = "between steps" if done else "start"
    recorded = sum(len(whole_lines(journal)) for journal in journals)
    return {"step": done + 1, "shown": shown, "checkpoint": max(checkpoints, default=0), "recorded": recorded}


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal in two runs: digests of weights, of every file of rollouts and probes, of the problems' state;
    and the rows of metrics.jsonl but for the clock."""
    rl = folder / "rl"
    found: dict[str, Any] = {"weights": [digest(path) for path in sorted((rl / "model").glob("*.safetensors"))]}
    for kind in ("rollouts", "probes"):
        found[kind] = {path.name: digest(path) for path in sorted((rl / kind).glob("*"))}
    found["problems"] = digest(rl / "problems-state.jsonl")
    found["metrics"] = [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows_of(folder)]
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not equal, in words."""
    other = [name for name in ("weights", "problems") if found[name] != expected[name]]
    for kind in ("rollouts", "probes"):
        names = sorted(found[kind].keys() | expected[kind].keys())
        other += [f"{kind}/{name}" for name in names if found[kind].get(name) != expected[kind].get(name)]
    steps = [[row["step"] for row in each["metrics"]] for each in (found, expected)]
    if steps[0] != steps[1]:
        return [*other, f"metrics: steps {steps[0]}"]
    for row, wanted in zip(found["metrics"], expected["metrics"], strict=True):
        names = sorted(name for name in row.keys() | wanted.keys() if row.get(name) != wanted.get(name))
        other += [f"metrics, step {row['step']}: {', '.join(names)}"] if names else []
    return other


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in whole_lines(folder / "metrics.jsonl") if row["stage"] == "rl"]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file whose last one may be torn."""
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


if __name__ == "__main__":
    main(sys.argv[1:])
