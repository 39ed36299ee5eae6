"""How well the difficulty filter finds the problems of its band, what it spends, and whether its figures are honest.

    .venv/bin/python bench/difficulty.py                 # simulated populations: a few minutes on one core
    .venv/bin/python bench/difficulty.py --run runs/filter-cost   # and the tiny model of bench/filter_cost.toml

It writes bench/results/difficulty.json. The simulated part runs the filter stage's own code on problems whose pass
rates are known: seven shapes of population, 500 problems, several seeds. The other part reads what
`motet run bench/filter_cost.toml 'stages=["sft","truth"]'` left: 64 rollouts a problem, of which the filter may use 16
and the other 48 say how hard the problem is.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from motet.base import jsonl
from motet.base.recipe import Band, FilterStage, Rewards, Sampling
from motet.base.records import Completion, Group, Problem, Rollout, Verdict, decode_group
from motet.rl.difficulty import learn_priors, seen
from motet.rl.rollouts import Sampler
from motet.stages.filter import judge
from motet.stages.rounds import sample

ROOT = Path(__file__).parent.parent
PROBLEMS = 500
GROUP = 8
BANDS = {"0.2 to 0.8": Band(alpha=0.2, beta=0.8), "0.2 to 0.4": Band(alpha=0.2, beta=0.4)}
METHODS: dict[str, dict[str, Any]] = {
    "n = 5": {"n": 5},
    "n = 16": {"n": 16},
    "sequential": {"method": "sequential"},
}
SHAPES: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda r: r.random(),
    "two ends": lambda r: r.betavariate(0.4, 0.5),
    "hard": lambda r: r.betavariate(0.6, 2.5),
    "easy": lambda r: r.betavariate(3.0, 0.8),
    "a third hopeless": lambda r: 0.0 if r.random() < 0.35 else r.betavariate(1.2, 2.0),
    "two heaps": lambda r: r.betavariate(1.5, 8.0) if r.random() < 0.5 else r.betavariate(9.0, 1.5),
    "logit-normal": lambda r: 1.0 / (1.0 + math.exp(-r.gauss(0.0, 2.0))),
}
NOTHING = Completion("", (1,), (), "end", 0)
RIGHT = Rollout((1,), NOTHING, Verdict("correct", 1.0))
WRONG = Rollout((1,), NOTHING, Verdict("incorrect", 0.0))


class Simulated(Sampler):
    """Rollouts of problems that are solved with a known rate."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self._rates, self._random = rates, random.Random(seed)

    def groups(self, problems: Sequence[Problem], n: int, *_: object) -> list[Group]:
        return [
            Group(p, tuple(RIGHT if self._random.random() < self._rates[p.id] else WRONG for _ in range(n)))
            for p in problems
        ]


class Recorded(Sampler):
    """The first rollouts of each problem that were sampled before, each given out once."""

    def __init__(self, rollouts: Mapping[str, Sequence[Rollout]]) -> None:
        self._left = {name: list(found) for name, found in rollouts.items()}

    def groups(self, problems: Sequence[Problem], n: int, *_: object) -> list[Group]:
        return [Group(p, tuple(self._left[p.id].pop(0) for _ in range(n))) for p in problems]


def main() -> None:
    parser = argparse.ArgumentParser(description="The difficulty filter on problems of known pass rates.")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--run", type=Path, help="a run folder with the stage truth of bench/filter_cost.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "difficulty.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python bench/difficulty.py", *(["--run RUN"] if options.run else [])]),
        "python": sys.version.split()[0],
        "problems": PROBLEMS,
        "seeds": options.seeds,
        "group_size": GROUP,
        "simulated": {},
    }
    for band in BANDS:
        for shape in SHAPES:
            rows = [simulated(SHAPES[shape], BANDS[band], seed) for seed in range(1, options.seeds + 1)]
            result["simulated"].setdefault(band, {})[shape] = {
                method: summary([row[method] for row in rows]) for method in METHODS
            }
            show(f"{band}, {shape}", result["simulated"][band][shape])
    result["overall"] = {band: overall(rows) for band, rows in result["simulated"].items()}
    for band, row in result["overall"].items():
        print(f"{band}: {row}")
    if options.run is not None:
        result["tiny model"] = tiny(options.run)
        for band, row in result["tiny model"]["bands"].items():
            show(f"tiny model, {band}", row)
    jsonl.write_json(options.out, rounded(result))


def simulated(shape: Callable[[random.Random], float], band: Band, seed: int) -> dict[str, dict[str, float]]:
    draw = random.Random(seed)
    problems = [problem(f"p{i}") for i in range(PROBLEMS)]
    rates = {p.id: shape(draw) for p in problems}
    inside = {p.id: band.alpha <= rates[p.id] <= band.beta for p in problems}
    found = {}
    for name, settings in METHODS.items():
        rows, groups = filtered(problems, band, settings, Simulated(rates, seed * 1000 + len(name)))
        kept = [row for row in rows if row["kept"]]
        fresh = Simulated(rates, seed * 1000 + 500).groups([problem(row["id"]) for row in kept], GROUP)
        held = [row["low"] <= rates[row["id"]] <= row["high"] for row in rows]
        found[name] = {
            **scores([row["kept"] for row in rows], [inside[row["id"]] for row in rows]),
            "rollouts": sum(len(group.rollouts) for group in groups) / len(groups),
            "coverage": fmean(held),
            "live_forecast": fmean(row["live"] for row in kept) if kept else 0.0,
            "live_seen": fmean(is_live(group) for group in fresh) if fresh else 0.0,
            "live_before": fmean(1 - p**GROUP - (1 - p) ** GROUP for p in rates.values()),
        }
    return found


def tiny(run: Path) -> dict[str, Any]:
    """`coverage`: how often the passes in the 48 rollouts that the filter did not see lie in the middle 90 % of what
    the posterior foretells of them."""
    groups = [decode_group(row) for _, row in jsonl.read(run / "truth" / "groups.jsonl")]
    rollouts = {g.problem.id: g.rollouts for g in groups}
    problems = [g.problem for g in groups]
    truth = {name: fmean(r.verdict.kind == "correct" for r in found[16:]) for name, found in rollouts.items()}
    result: dict[str, Any] = {"problems": len(groups), "bands": {}}
    result["pass_rate"] = {
        d: fmean(truth[p.id] for p in problems if p.domain == d) for d in {p.domain for p in problems}
    }
    result["truncated"] = sum(r.verdict.kind == "truncated" for found in rollouts.values() for r in found)
    for band in BANDS:
        inside = {name: BANDS[band].alpha <= rate <= BANDS[band].beta for name, rate in truth.items()}
        result["bands"][band] = {}
        for name, settings in METHODS.items():
            rows, used = filtered(problems, BANDS[band], settings, Recorded({k: v[:16] for k, v in rollouts.items()}))
            kept = [row["id"] for row in rows if row["kept"]]
            blocks = [rollouts[i][16 + GROUP * b : 16 + GROUP * (b + 1)] for i in kept for b in range(48 // GROUP)]
            result["bands"][band][name] = {
                **scores([row["kept"] for row in rows], [inside[row["id"]] for row in rows]),
                "rollouts": sum(len(group.rollouts) for group in used) / len(used),
                "coverage": covered(used, [round(48 * truth[g.problem.id]) for g in used]),
                "live_forecast": fmean(row["live"] for row in rows if row["kept"]),
                "live_seen": fmean(is_live(Group(problems[0], block)) for block in blocks),
                "live_before": fmean(row["live"] for row in rows),
                "kept": len(kept),
            }
    return result


def filtered(
    problems: Sequence[Problem], band: Band, settings: Mapping[str, Any], sampler: Sampler
) -> tuple[list[dict[str, Any]], list[Group]]:
    """What the filter stage makes of them: its rows, and the rollouts that it took."""
    config = FilterStage(kind="filter", problems=({"problems": "p"},), band=band, sampling=Sampling(), **settings)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        groups = sample("filter", config, problems, sampler, 1, Path(folder))
    return judge(groups, learn_priors(groups, Rewards(), {}), config, GROUP), groups


def covered(groups: Sequence[Group], passes: Sequence[int], further: int = 48) -> float:
    """Share of the problems whose further passes lie between the 5th and the 95th percentile of the beta-binomial
    distribution; a count across a percentile is split by chance, so that 0.9 is exact."""
    priors, draw, inside = learn_priors(groups, Rewards(), {}), random.Random(1), 0
    for group, count in zip(groups, passes, strict=True):
        belief = priors[group.problem.domain].posterior(seen(group.rollouts))
        chances = [math.comb(further, j) * belief.moment(j, further - j) for j in range(count + 1)]
        inside += 0.05 <= sum(chances[:-1]) + draw.random() * chances[-1] <= 0.95
    return inside / len(groups)


def scores(kept: Sequence[bool], inside: Sequence[bool]) -> dict[str, float]:
    both = sum(a and b for a, b in zip(kept, inside, strict=True))
    precision = both / sum(kept) if any(kept) else 0.0
    recall = both / sum(inside) if any(inside) else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * both / max(1, sum(kept) + sum(inside))}


def is_live(group: Group) -> bool:
    return len({r.verdict.kind == "correct" for r in group.rollouts if r.verdict.score is not None}) == 2


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over seeds, with the standard error of F1 and the largest error of the forecast, in points."""
    found: dict[str, Any] = {key: fmean(row[key] for row in rows) for key in rows[0]}
    found["f1_error"] = stdev(row["f1"] for row in rows) / math.sqrt(len(rows)) if len(rows) > 1 else None
    errors = [100 * (row["live_forecast"] - row["live_seen"]) for row in rows]
    return {**found, "forecast_error_points": fmean(errors), "forecast_error_points_largest": max(errors, key=abs)}


def overall(shapes: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Over all shapes: F1 and rollouts of the sequential test against n = 16, coverage, errors of the forecast."""

    def mean(method: str, key: str) -> float:
        return fmean(row[method][key] for row in shapes.values())

    covered = [row[method]["coverage"] for row in shapes.values() for method in METHODS]
    errors = [row[method]["forecast_error_points"] for row in shapes.values() for method in METHODS]
    return {
        "f1": {method: mean(method, "f1") for method in METHODS},
        "rollouts": {method: mean(method, "rollouts") for method in METHODS},
        "fewer_than_16": 1 - mean("sequential", "rollouts") / 16,
        "least_saved": min(1 - row["sequential"]["rollouts"] / 16 for row in shapes.values()),
        "largest_loss_of_f1": max(row["n = 16"]["f1"] - row["sequential"]["f1"] for row in shapes.values()),
        "coverage": [min(covered), max(covered)],
        "forecast_error_points": [min(errors), max(errors)],
    }


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    for method, row in rows.items():
        print(
            f"{title:<30} {method:<11} precision {row['precision']:.3f} recall {row['recall']:.3f} F1 {row['f1']:.3f} "
            f"rollouts {row['rollouts']:5.2f} coverage {row['coverage']:.3f} live {row['live_before']:.3f} -> "
            f"{row['live_forecast']:.3f} forecast, {row['live_seen']:.3f} seen",
            flush=True,
        )


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def problem(name: str) -> Problem:
    return Problem(name, ({"role": "user", "content": name},), "math", "1", "all problems")


if __name__ == "__main__":
    main()
