"""`motet experiment reuse RECIPE`: how many gradient steps a sampled batch is good for.

Arms take S = 1, 4, 8 steps on each batch, as passes over it and as minibatches of it, from the same SFT checkpoint with
the same seed, the same number of rollouts and the same learning rate. Each arm is an ordinary run in
RUN/experiments/reuse/ARM that shares the stages up to RL with RUN: killed, the same command goes on. What came out
lies in RUN/experiments/reuse/reuse.json and reuse.html (`experiments/reuse_view.py` shows it).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import check
from motet.base.recipe import Recipe, RlStage
from motet.base.run import follows
from motet.experiments import reuse_view
from motet.experiments.reuse_results import judge, measure, start_of


class Arm(NamedTuple):
    name: str
    way: str
    """ "passes", "minibatches", or "once" for S = 1, which is both."""
    passes: int
    minibatches: int

    @property
    def inner(self) -> int:
        """S: gradient steps on each sampled batch."""
        return self.passes * self.minibatches


def arms_of(sweep: Sequence[int]) -> list[Arm]:
    """S = 1 once, every other S in both ways. Example: 1, 4 gives once, passes-4, minibatches-4."""
    wrong = [s for s in sweep if s < 1]
    if wrong or not sweep:
        raise UserError(f"--sweep: S must be at least 1, got {', '.join(map(str, sweep)) or 'nothing'}")
    larger = sorted({s for s in sweep if s > 1})
    arms = [Arm("once", "once", 1, 1)]
    arms += [Arm(f"passes-{s}", "passes", s, 1) for s in larger]
    return arms + [Arm(f"minibatches-{s}", "minibatches", 1, s) for s in larger]


def run(
    recipe: Recipe,
    runs: Path,
    source: Path | None = None,
    sweep: Sequence[int] = (1, 4, 8),
    stage: str | None = None,
    probes: int = 6,
    guard: bool = False,
    console: bool = True,
) -> dict[str, Any]:
    """Runs what is not done yet and returns reuse.json's content.

    `stage`: which RL stage; needed when there are several. `probes`: how often an arm looks at the held-out problems,
    where the recipe does not say. `guard`: leave the recipe's guard on; off by default, so that S is what it says.
    """
    name = _stage(recipe, stage)
    folder = runs / recipe.name
    before = list(recipe.stages[: recipe.stages.index(name)])
    target = folder / "experiments" / "reuse"
    chosen = arms_of(sweep)
    recipe = _with_start_evaluated(recipe, name)
    variants = {arm: variant(recipe, name, arm, probes, guard) for arm in chosen}
    if before:
        pipeline.run(recipe, folder, source, only=before, console=console)
    results = []
    for arm, own in variants.items():
        if not follows():
            share(folder, target / arm.name, [*before, pipeline.BASE, pipeline.BASE + ".json"])
        pipeline.run(own, target / arm.name, source, console=console)
        results.append({**arm._asdict(), "s": arm.inner, **measure(target / arm.name, own, name)})
    report = _report(recipe, name, results, guard)
    if not follows():
        jsonl.write_json(target / "reuse.json", report)
        reuse_view.write_page(target / "reuse.html", report)
    return report


def variant(recipe: Recipe, name: str, arm: Arm, probes: int, guard: bool) -> Recipe:
    """The recipe up to the RL stage, with the arm's way of reuse."""
    tree = recipe.model_dump(mode="json")
    tree["name"] = f"{recipe.name}-{arm.name}"
    tree["stages"] = list(recipe.stages[: recipe.stages.index(name) + 1])
    own = tree["stage"][name]
    own["evaluate"] = True
    own["algorithm"] |= {"passes": arm.passes, "minibatches": arm.minibatches}
    if not guard:
        own["algorithm"]["guard"]["on"] = False
    if own["probe_every"] is None:
        own["probe_every"] = max(1, own["steps"] // max(1, probes))
    return check(tree, f"experiment reuse, arm {arm.name}")


def _with_start_evaluated(recipe: Recipe, name: str) -> Recipe:
    """What the arms are compared with: an evaluation of the model that they begin with."""
    start = start_of(recipe, name)
    if start is None or recipe.stage[start].evaluate:
        return recipe
    tree = recipe.model_dump(mode="json")
    tree["stage"][start]["evaluate"] = True
    return check(tree, "experiment reuse")


def _stage(recipe: Recipe, given: str | None) -> str:
    names = [name for name in recipe.stages if recipe.stage[name].kind == "rl"]
    if given is None and len(names) == 1:
        return names[0]
    if given in names:
        return str(given)
    raise UserError(f"--stage {given or 'NAME'}: the recipe's rl stages are {', '.join(names) or 'none'}; name one")


def share(folder: Path, arm: Path, names: Sequence[str]) -> None:
    """Links to what all arms start from: their manifests say what it was made from, and it is not made again."""
    arm.mkdir(parents=True, exist_ok=True)
    for name in names:
        place = arm / name
        if (folder / name).exists() and not place.is_symlink():
            place.symlink_to(os.path.relpath(folder / name, arm))


def _report(recipe: Recipe, name: str, results: list[dict[str, Any]], guard: bool) -> dict[str, Any]:
    stage = recipe.stage[name]
    assert isinstance(stage, RlStage)
    arms, frontier = judge(results, stage.algorithm.guard)
    return {
        "name": recipe.name,
        "stage": name,
        "seed": recipe.seed,
        "learning_rate": stage.optimizer.learning_rate,
        "schedule": stage.optimizer.schedule,
        "objective": stage.algorithm.objective,
        "clip": [stage.algorithm.clip_low, stage.algorithm.clip_high],
        "guard": guard and stage.algorithm.guard.on,
        "steps": stage.steps,
        "prompts_per_step": stage.prompts_per_step,
        "group_size": stage.group_size,
        "arms": arms,
        "frontier": frontier,
    }
