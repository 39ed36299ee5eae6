"""Is a filter's forecast of live groups what RL then sees: with the weights that the filter asked, and a few steps on?

    .venv/bin/python bench/forecast.py [--seeds 1,2,3] [--steps 5]

The recipe is bench/filter_cost.toml as `bench/filter_cost.py --long` has it, with a constant learning rate and so few
steps. Of each seed bench/results/forecast.json has the share of live groups before the filter, forecast for what it
kept, in the pilot step, and of each RL step the forecast for the groups that it drew beside what was seen. The first
step samples with the filter's own weights, the others with weights that have learnt from what the filter kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from filter_cost import LONG, RECIPE, ROOT
from quickstart import machine

from motet import pipeline
from motet.base import jsonl
from motet.base.load_recipe import load


def main() -> None:
    parser = argparse.ArgumentParser(description="Live groups: forecast and seen.")
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9,10,11,12")
    parser.add_argument("--steps", type=int, default=5, help="of RL [5]")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "forecast.json")
    options = parser.parse_args()
    rows = []
    for seed in map(int, options.seeds.split(",")):
        rows.append(one(seed, options.steps, options.runs))
        print(rows[-1], flush=True)
        command = " ".join(["python", "bench/forecast.py", *sys.argv[1:]])
        jsonl.write_json(
            options.out, {"command": command, "machine": machine(1), "points": points(rows), "seeds": rows}
        )
    print(points(rows))


def one(seed: int, steps: int, runs: Path) -> dict[str, Any]:
    own = [f"name=forecast-{seed}", f"seed={seed}", "threads=1", f"stage.rl.steps={steps}",
           f"stage.rl.probe_every={steps}", "stage.rl.optimizer.schedule=constant"]  # fmt: skip
    run = runs / f"forecast-{seed}"
    pipeline.run(load(RECIPE, [*LONG, *own]), run, RECIPE, console=False)
    found = jsonl.read_json(run / "filter" / "filter.json")
    shares = {key: found[f"live_share_{key}"]["all"] for key in ("before", "forecast", "after")}
    drawn = [row for _, row in jsonl.read(run / "metrics.jsonl") if row["stage"] == "rl"]
    return {"seed": seed, **shares, "rl": [[row["forecast/live"], row["forecast/seen"]] for row in drawn]}


def points(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, in percent, and the errors (seen less forecast) of the pilot step, of RL's first step and of
    all its steps: mean, least and largest."""
    means = {key: _mean([100 * row[key] for row in rows]) for key in ("before", "forecast", "after")}
    errors = {
        "after": [row["after"] - row["forecast"] for row in rows],
        "rl, first step": [row["rl"][0][1] - row["rl"][0][0] for row in rows],
        "rl, all steps": [sum(seen - live for live, seen in row["rl"]) / len(row["rl"]) for row in rows],
    }
    told = {key: [_mean([100 * e for e in own]), *(round(100 * f(own), 1) for f in (min, max))]
            for key, own in errors.items()}  # fmt: skip
    return {"means": means, "errors": told}


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 1)


if __name__ == "__main__":
    main()
