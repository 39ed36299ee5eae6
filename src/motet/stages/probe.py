"""Held-out problems sampled while RL goes on: how the model in training does on what it is not trained on."""

from __future__ import annotations

from pathlib import Path

from motet.base import jsonl
from motet.base.recipe import EvaluateStage, Recipe, RlStage, SftStage
from motet.base.records import decode_group
from motet.base.run import Timers
from motet.base.statistics import Tally, tally
from motet.rl import heldout
from motet.rl.rollouts import Sampler
from motet.stages import evaluate
from motet.stages.context import Context


class Probe:
    """The first `probe` problems of each set of the evaluation, with the evaluation's own random numbers: the last
    probe and the evaluation that follows agree on them."""

    def __init__(self, name: str, config: RlStage, context: Context) -> None:
        self._name, self._config, self._context = name, config, context
        self._sets = evaluate.sets(context) if config.probe_every is not None else []
        self._before = outcomes_before(name, context) if self._sets else []

    def measure(self, sampler: Sampler, step: int, time: Timers) -> dict[str, float]:
        """After step `step` (from 1), where one is due: the figures of `rl/heldout.py`."""
        if self._config.probe_every is None or step % self._config.probe_every:
            return {}
        with time("probe"):
            return self._measure(sampler, step)

    def _measure(self, sampler: Sampler, step: int) -> dict[str, float]:
        recipe, groups = self._context.recipe, []
        for label, problems, samples, sampling in self._sets:
            chosen = problems[: self._config.probe]
            if chosen:
                file = self._context.folder(self._name) / "probes" / f"step-{step:05d}-{label}.jsonl"
                stream = (recipe.seed, "evaluation", label)
                groups += sampler.groups(chosen, samples, sampling, stream, file, f"{self._name} {step} probe {label}")
        return heldout.figures(groups, self._before, recipe.evaluation.bootstrap, recipe.seed)


def outcomes_before(name: str, context: Context) -> list[Tally]:
    """Of the evaluation of the weights that stage `name` starts from; none where they were not evaluated."""
    stage = evaluated_before(name, context.recipe)
    return outcomes_of(context.folder(stage)) if stage is not None else []


def outcomes_of(stage: Path) -> list[Tally]:
    """What became of the held-out problems in a stage's evaluation; none where there is none."""
    file = stage / "evaluation.jsonl"
    return [tally(decode_group(row)) for _, row in jsonl.read(file)] if file.exists() else []


def evaluated_before(name: str, recipe: Recipe) -> str | None:
    """The last stage before `name` whose evaluation is of the weights that `name` starts from."""
    weights, found = "base", dict[str, str]()
    for other in recipe.stages[: recipe.stages.index(name) + 1]:
        stage = recipe.stage[other]
        start = weights if stage.init == "previous" else stage.init
        if other == name:
            return found.get(start)
        if isinstance(stage, EvaluateStage):
            found[start] = other
        elif isinstance(stage, SftStage | RlStage):
            weights = other
            if stage.evaluate:
                found[other] = other
    return None
