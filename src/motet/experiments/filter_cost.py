"""`motet experiment filter-cost RECIPE`: is it cheaper to filter the problems once, or to refill dead groups in RL?

Three arms from the same weights: "filter" chooses problems by rollouts beforehand (the paper's way), "refill" samples
more problems in place of groups without a signal (DAPO's dynamic sampling), "neither" takes what comes. They have the
same problems (the filter tries all that the others draw from), steps, group size and seeds; each is an ordinary run in
RUN/experiments/filter-cost/seed-N/ARM. Killed, the same command goes on. What came out lies in filter-cost.json and
filter-cost.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import check
from motet.base.recipe import FilterStage, Recipe, RlStage, weights_of
from motet.base.run import follows
from motet.experiments import filter_cost_view
from motet.experiments.filter_cost_results import judge, measure
from motet.experiments.side_by_side import Task, run_beside

ARMS = ("filter", "refill", "neither")
SLOWEST_FIRST = ("refill", "filter", "neither")
"""Beside each other, so that no slow one begins last."""
REFILL = 3.0
"""Batches a step: what DAPO spends at most over GRPO (evidence: up to three times the rollouts)."""
EVERYTHING = 1_000_000_000
START = "start"


def run(
    recipe: Recipe,
    runs: Path,
    source: Path | None = None,
    seeds: Sequence[int] = (1,),
    refill: float | None = None,
    stage: str | None = None,
    probes: int = 8,
    console: bool = True,
    jobs: int = 1,
) -> dict[str, Any]:
    """Runs what is not done yet and returns filter-cost.json's content. `stage`: which rl stage; `refill`: budget of
    the arm that refills; `probes`: how often an arm looks at the held-out problems, where the recipe does not say;
    `jobs`: so many arms beside each other, each with one thread: their seconds are those of such a run."""
    name, filtering = _stages(recipe, stage)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give each seed once, 1,2,3 say")
    folder = runs / recipe.name
    target = folder / "experiments" / "filter-cost"
    before = list(recipe.stages[: recipe.stages.index(filtering)])
    origin = weights_of(recipe, name)
    if before:
        pipeline.run(recipe, folder, source, only=before, console=console)
    model = recipe.model.path if origin == "base" else str((folder / origin / "model").absolute())
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    starts = {seed: starting(recipe, seed, model) for seed in seeds}
    arms = {(seed, arm): variant(recipe, name, filtering, arm, seed, model, refill, probes)
            for arm in SLOWEST_FIRST for seed in seeds}  # fmt: skip
    if jobs > 1 and not follows():
        tasks = [Task(own, target / f"seed-{seed}" / arm) for (seed, arm), own in arms.items()]
        tasks += [Task(own, target / f"seed-{seed}" / START) for seed, own in starts.items()]
        run_beside(tasks, jobs, console=console)
    for seed in seeds:
        place = target / f"seed-{seed}"
        pipeline.run(starts[seed], place / START, source, console=console)
        for arm in ARMS:
            pipeline.run(arms[seed, arm], place / arm, source, console=console)
            results[arm].append(measure(place / arm, arms[seed, arm], name, filtering, place / START / START))
    report = _report(recipe, name, filtering, list(seeds), results, refill)
    if not follows():
        jsonl.write_json(target / "filter-cost.json", report)
        filter_cost_view.write(target / "filter-cost.html", report)
    return report


def starting(recipe: Recipe, seed: int, model: str | None) -> Recipe:
    """Nothing but the evaluation of the weights that all arms begin with."""
    tree = _from(recipe, seed, model) | {"stages": [START], "stage": {START: {"kind": "evaluate"}}}
    return check(tree | {"name": f"{recipe.name}-start"}, "experiment filter-cost")


def variant(
    recipe: Recipe, name: str, filtering: str, arm: str, seed: int, model: str | None, refill: float | None, probes: int
) -> Recipe:
    """Filter and RL, or RL alone, from the weights in `model`."""
    tree = _from(recipe, seed, model)
    tree["name"] = f"{recipe.name}-{arm}"
    own, filtered = dict(tree["stage"][name]), dict(tree["stage"][filtering])
    filtered |= {"init": "base", "count": EVERYTHING}
    own |= {"init": "base", "evaluate": False, "refill": 0.0}
    if own["probe_every"] is None:
        own["probe_every"] = max(1, own["steps"] // probes)
    if arm != "filter":
        own |= {"problems": filtered["problems"], "reuse_filter": 0}
    if arm == "refill":
        own["refill"] = refill or tree["stage"][name]["refill"] or REFILL
    tree["stage"] = {filtering: filtered, name: own} if arm == "filter" else {name: own}
    tree["stages"] = list(tree["stage"])
    return check(tree, f"experiment filter-cost, arm {arm}")


def _from(recipe: Recipe, seed: int, model: str | None) -> dict[str, Any]:
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    tree["seed"] = seed
    if model is not None:
        tree["model"] |= {"path": model, "tiny": None}
    return tree


def _stages(recipe: Recipe, given: str | None) -> tuple[str, str]:
    """(the rl stage, the filter stage that it reads)."""
    names = [name for name in recipe.stages if isinstance(recipe.stage[name], RlStage)]
    if given not in names and (given is not None or len(names) != 1):
        raise UserError(f"--stage {given or 'NAME'}: the recipe's rl stages are {', '.join(names) or 'none'}; name one")
    name = given or names[0]
    stage = recipe.stage[name]
    assert isinstance(stage, RlStage)
    sources = {mix.stage for mix in stage.problems}
    filters = [source for source in sources if source is not None and isinstance(recipe.stage[source], FilterStage)]
    if len(filters) != 1 or len(sources) != 1:
        raise UserError(f"stage.{name}.problems: this experiment needs all of them from one filter stage")
    theirs, ours = weights_of(recipe, filters[0]), weights_of(recipe, name)
    if theirs != ours:
        raise UserError(
            f"stage.{filters[0]} has the weights of {theirs} and stage.{name} those of {ours}; make them one"
        )
    return name, filters[0]


def _report(
    recipe: Recipe,
    name: str,
    filtering: str,
    seeds: list[int],
    results: dict[str, list[dict[str, Any]]],
    refill: float | None,
) -> dict[str, Any]:
    stage, filtered = recipe.stage[name], recipe.stage[filtering]
    assert isinstance(stage, RlStage) and isinstance(filtered, FilterStage)
    return {
        "name": recipe.name,
        "stage": name,
        "filter": filtering,
        "method": filtered.method,
        "n": filtered.n if filtered.method == "fixed" else filtered.sequential.most,
        "seeds": seeds,
        "steps": stage.steps,
        "prompts_per_step": stage.prompts_per_step,
        "group_size": stage.group_size,
        "refill": refill or stage.refill or REFILL,
        **judge(results),
    }
