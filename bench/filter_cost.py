"""Filtering beforehand against refilling and against neither, on the tiny model: `motet experiment filter-cost`.

    .venv/bin/python bench/filter_cost.py                                           # two seeds, two idle cores
    .venv/bin/python bench/filter_cost.py --seeds 1,2,3,4 --jobs 14 --long          # 16 cores

It runs bench/filter_cost.toml and writes bench/results/filter_cost.json. With --long the steps are enough for held-out
accuracy to rise: about six passes over the problems that the filter keeps. Killed, the same command goes on; --within
SECONDS ends it after so long (exit status 3), for machines that are lent for a while: the same command goes on there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

from quickstart import machine

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.experiments import filter_cost
from motet.experiments.filter_cost_view import summary

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "bench" / "filter_cost.toml"
LONG = (
    "name=filter-cost-long",
    "problems.addition.args={min_digits=1, max_digits=4, terse=0.5}",
    "problems.wording.args={terse=0.5}",
    "problems.spelling.args={dataset='spell_backward', min_word_len=3, max_word_len=8, instruction='', terse=0.5}",
    "stage.rl.steps=80",
    "stage.rl.probe_every=8",
    "stage.rl.optimizer.learning_rate=2e-4",
)
"""Half of the worked solutions skip the steps: RL then has a habit to unlearn, and held-out accuracy rises in minutes
(with careful solutions alone it rose by less than chance in 28 steps at 1e-4). Problems of more sizes: so that they
differ in difficulty, and a filter has something to find."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of equal held-out accuracy: filter, refill, neither.")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "filter_cost.json")
    parser.add_argument("--jobs", type=int, default=1, help="arms beside each other, one thread each")
    parser.add_argument("--long", action="store_true", help="enough steps for accuracy to rise: LONG in this file")
    parser.add_argument("--within", type=float, help="seconds after which it ends")
    options = parser.parse_args()
    if options.within:
        signal.signal(signal.SIGALRM, lambda *_: sys.exit(3))
        signal.alarm(round(options.within))
    recipe = load(RECIPE, [*(LONG if options.long else ()), *options.overrides])
    seeds = [int(part) for part in options.seeds.split(",")]
    began = time.perf_counter()
    report = filter_cost.run(recipe, options.runs, RECIPE, seeds, jobs=options.jobs)
    head: dict[str, Any] = {
        "command": " ".join(["python", "bench/filter_cost.py", *sys.argv[1:]]),
        "machine": machine(1 if options.jobs > 1 else recipe.threads or 2),
        "jobs": options.jobs,
        "seconds_of_this_call": round(time.perf_counter() - began),
        "learning_rate": recipe.stage["rl"].model_dump()["optimizer"]["learning_rate"],
        "forecast": [forecast(options.runs / recipe.name, seed) for seed in seeds],
    }
    jsonl.write_json(options.out, {**head, **report})
    print(summary(report))


def forecast(run: Path, seed: int) -> dict[str, Any]:
    """Of the filter arm: live groups before, forecast, in the pilot step, and among the first that RL sampled."""
    report = jsonl.read_json(run / "experiments" / "filter-cost" / f"seed-{seed}" / "filter" / "report.json")
    filtered, own = report["filter"], report["rl"]["forecast"]
    shares = {key: filtered[f"live_share_{key}"] for key in ("before", "forecast", "after")}
    return {"seed": seed, **shares, "rl": own}


if __name__ == "__main__":
    main()
