"""Filtering beforehand against refilling and against neither, on the tiny model: `motet experiment filter-cost`.

    .venv/bin/python bench/filter_cost.py            # two seeds: about ten minutes on two idle cores

It runs bench/filter_cost.toml and writes bench/results/filter_cost.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quickstart import machine

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.experiments import filter_cost
from motet.experiments.filter_cost_view import summary

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "bench" / "filter_cost.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of equal held-out accuracy: filter, refill, neither.")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "filter_cost.json")
    options = parser.parse_args()
    recipe = load(RECIPE, options.overrides)
    seeds = [int(part) for part in options.seeds.split(",")]
    report = filter_cost.run(recipe, options.runs, RECIPE, seeds)
    head: dict[str, Any] = {
        "command": f"python bench/filter_cost.py --seeds {options.seeds}",
        "machine": machine(recipe.threads or 2),
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
