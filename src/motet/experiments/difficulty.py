"""`motet experiment difficulty RECIPE`: which problems will teach this model anything, before RL is paid for.

A sample of the problems gets the rollouts of the recipe's filter stage. What they say of each band that might be chosen
is computed from the same rollouts: how many rows it keeps, and the share of live groups at RL's group size. A pilot
step then samples fresh groups of what the recipe's own band keeps: RL has something to learn from, or it has not. It is
a run in RUN/experiments/difficulty that shares the stages up to the filter with RUN: killed, the same command goes on.
What came out lies in difficulty.json and difficulty.html there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import check
from motet.base.recipe import Band, FilterStage, Recipe, RlStage
from motet.base.records import Group, decode_group
from motet.base.run import follows
from motet.base.statistics import ALL, bootstrap_mean
from motet.experiments import difficulty_view
from motet.experiments.reuse import share
from motet.rl.difficulty import learn_priors, shares
from motet.stages.filter import Aim, aim_of, describe, forecasts, judge

BETAS = (0.4, 0.6, 0.8)
COUNT = 500
RESAMPLES = 1000
MADE = "difficulty"
"""Name of the filter stage that is made for a recipe without one."""


def run(
    recipe: Recipe,
    runs: Path,
    source: Path | None = None,
    count: int = COUNT,
    betas: Sequence[float] = BETAS,
    stage: str | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Runs what is not done yet and returns difficulty.json's content. `stage`: which filter stage, where there are
    several; a recipe without one gets the filter's defaults before its first rl stage."""
    if not betas or not all(0.0 < beta <= 1.0 for beta in betas):
        raise UserError(f"--betas: pass rates above 0 and up to 1, got {', '.join(map(str, betas)) or 'nothing'}")
    whole, name = _with_filter(recipe, stage)
    folder = runs / recipe.name
    before = list(whole.stages[: whole.stages.index(name)])
    target = folder / "experiments" / "difficulty"
    own = variant(whole, name, count)
    if before:
        pipeline.run(recipe, folder, source, only=before, console=console)
    if not follows():
        share(folder, target, [*before, pipeline.BASE, pipeline.BASE + ".json"])
    refused = ""
    try:
        pipeline.run(own, target, source, only=[name], console=console)
    except UserError as error:
        if not (target / name / "difficulty.jsonl").exists():
            raise
        refused = str(error)
    report = _report(own, name, target / name, betas, refused)
    if not follows():
        jsonl.write_json(target / "difficulty.json", report)
        difficulty_view.write(target / "difficulty.html", report)
    return report


def variant(recipe: Recipe, name: str, count: int) -> Recipe:
    """The recipe with so many problems in its filter stage."""
    tree = recipe.model_dump(mode="json")
    tree["name"] = f"{recipe.name}-difficulty"
    tree["stage"][name]["count"] = count
    return check(tree, "experiment difficulty")


def measure(groups: Sequence[Group], config: FilterStage, aim: Aim, betas: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each upper end and domain, "all" included: {beta, alpha, domain, own, of, kept, kept_share, in_band,
    live}. own: it is the recipe's band. kept_share {mean, low, high}: of the problems at hand, with the interval for
    those that were not tried. in_band: expected share of the kept ones whose pass rate lies in the band. live: forecast
    of live groups among the kept ones, None where none is kept."""
    priors = learn_priors(groups, aim.rewards, aim.own)
    found = []
    for beta in sorted(set(betas)):
        rows = judge(groups, priors, _with_beta(config, {g.problem.domain for g in groups}, beta), aim.size)
        domains = sorted({row["domain"] for row in rows})
        for domain in [*([ALL] if len(domains) > 1 else []), *domains]:
            members = [row for row in rows if domain in (ALL, row["domain"])]
            bands = [config.bands.get(d, config.band) for d in (domains if domain == ALL else [domain])]
            own = all(band.beta == beta for band in bands)
            found.append(
                {"beta": beta, "alpha": min(bands[0].alpha, beta), "domain": domain, "own": own, **_kept(members)}
            )
    return found


def _kept(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [row for row in rows if row["kept"]]
    chances: defaultdict[str, list[float]] = defaultdict(list)
    for row in kept:
        chances[ALL].append(row["live"])
    live = shares(chances).get(ALL)
    return {
        "of": len(rows),
        "kept": len(kept),
        "kept_share": bootstrap_mean([float(row["kept"]) for row in rows], RESAMPLES, 1)._asdict(),
        "in_band": sum(row["in_band"] for row in kept) / len(kept) if kept else None,
        "live": live._asdict() if live else None,
    }


def _with_beta(config: FilterStage, domains: set[str], beta: float) -> FilterStage:
    bands = {domain: config.bands.get(domain, config.band) for domain in domains}
    other = {domain: Band(alpha=min(band.alpha, beta), beta=beta) for domain, band in bands.items()}
    return config.model_copy(update={"bands": other})


def _report(recipe: Recipe, name: str, folder: Path, betas: Sequence[float], refused: str) -> dict[str, Any]:
    config = recipe.stage[name]
    assert isinstance(config, FilterStage)
    aim = aim_of(recipe, name)
    groups = [decode_group(row) for _, row in jsonl.read(folder / "groups.jsonl")]
    rows = [row for _, row in jsonl.read(folder / "difficulty.jsonl")]
    table = jsonl.read_json(folder / "filter.json") if (folder / "filter.json").exists() else {}
    described = describe(groups, rows, config)
    return {
        "name": recipe.name.removesuffix("-difficulty"),
        "stage": name,
        "method": config.method,
        "group_size": aim.size,
        "problems": len(groups),
        "rollouts": described["rollouts"],
        "rollouts_mean": described["rollouts_mean"],
        "tokens": described["tokens"],
        "truncated": described["truncated"],
        "before": forecasts(rows)["live_share_before_interval"],
        "bands": measure(groups, config, aim, betas),
        "pilot": _pilot(table, config),
        "refused": refused,
    }


def _pilot(table: Mapping[str, Any], config: FilterStage) -> dict[str, Any] | None:
    """What the fresh groups of the recipe's own band showed; None where there was none to sample."""
    if not table:
        return None
    return {
        "groups": min(config.probe, table["kept"][ALL]),
        "seen": table["live_share_after_interval"],
        "forecast": table["live_share_forecast_interval"],
    }


def _with_filter(recipe: Recipe, given: str | None) -> tuple[Recipe, str]:
    stages = {name: recipe.stage[name] for name in recipe.stages}
    names = [name for name, stage in stages.items() if isinstance(stage, FilterStage) and stage.by == "pass_rate"]
    if given in names or (given is None and len(names) == 1):
        return recipe, given or names[0]
    if given is not None or names:
        raise UserError(
            f"--stage {given or 'NAME'}: the recipe's filter stages are {', '.join(names) or 'none'}; name one"
        )
    if not recipe.problems:
        raise UserError("the recipe has no problems, so there is no difficulty to measure; add a table [problems.NAME]")
    readers = [i for i, stage in enumerate(stages.values()) if isinstance(stage, RlStage)]
    place = readers[0] if readers else len(stages)
    tree = recipe.model_dump(mode="json")
    tree["stages"].insert(place, MADE)
    tree["stage"][MADE] = {"kind": "filter", "problems": [{"problems": problems} for problems in recipe.problems]}
    if readers:
        own = tree["stage"][recipe.stages[place]]
        mixes = [{key: mix[key] for key in ("problems", "domain")} for mix in own["problems"]]
        tree["stage"][MADE] |= {"problems": mixes, **{key: own[key] for key in ("init", "sampling", "group_size")}}
    return check(tree, "experiment difficulty"), MADE
