"""The recipe as a whole, and what its parts have to agree on."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from motet.base.recipe.engine import Engine
from motet.base.recipe.evaluation import EvaluateStage, Evaluation, Tracking
from motet.base.recipe.filter import FilterStage
from motet.base.recipe.model import Chat, Machine, Mesh, Model
from motet.base.recipe.names import unknown_name
from motet.base.recipe.parts import Part
from motet.base.recipe.problems import ProblemSet, Verification
from motet.base.recipe.rl import RlStage
from motet.base.recipe.sft import SftStage
from motet.base.recipe.traces import CleanStage, SynthesizeStage

Stage = Annotated[
    SftStage | SynthesizeStage | CleanStage | FilterStage | RlStage | EvaluateStage, Field(discriminator="kind")
]
TRAINING = ("sft", "rl")
"""Kinds of stages that make weights."""


class Recipe(Part):
    name: str = "run"
    """Name of the run folder, runs/NAME."""
    seed: int = 1
    """All randomness follows from it."""
    stages: tuple[str, ...] = Field(min_length=1)
    """Order of the stages; each is a table [stage.NAME]."""
    model: Model
    """What is trained."""
    mesh: Mesh = Field(default_factory=Mesh)
    """How several processes share the work."""
    machine: Machine | None = None
    """What to plan for; unset, the machine that the plan is made on."""
    chat: Chat = Field(default_factory=Chat)
    """How conversations become tokens."""
    engine: Engine = Field(default_factory=Engine)
    """Who samples from the model in training."""
    verification: Verification = Field(default_factory=Verification)
    """How answers are judged."""
    problems: dict[str, ProblemSet] = Field(default_factory=dict)
    """Problem sets by name."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is measured after every stage."""
    stage: dict[str, Stage]
    """What each stage does."""
    threads: PositiveInt | None = None
    """CPU threads of torch; unset, one a core."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Trackers that are shown the metrics."""

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        # `stage.X` sections that no order names are fine: a control run may take out a stage by stages=[...]
        produced: dict[str, Stage] = {}
        for position, name in enumerate(self.stages):
            if name not in self.stage:
                raise ValueError(unknown_name(f"stages[{position}]", name, self.stage, "a table [stage.NAME]"))
            if name in produced:
                raise ValueError(f"stages[{position}]: {name!r} is named twice")
            stage = self.stage[name]
            trained = [n for n, s in produced.items() if s.kind in TRAINING]
            if stage.init not in ("previous", "base", *trained):
                what = '"previous", "base", or an sft or rl stage that runs before it'
                raise ValueError(unknown_name(f"stage.{name}.init", stage.init, trained, what))
            _refuse_schedules(name, stage)
            for place, problems, source, kinds in _references(name, stage):
                if problems is not None and problems not in self.problems:
                    raise ValueError(
                        unknown_name(place + ".problems", problems, self.problems, "a table [problems.NAME]")
                    )
                made = [n for n, s in produced.items() if s.kind in kinds]
                if source is not None and source not in made:
                    what = f"a {' or '.join(kinds)} stage that runs before it"
                    raise ValueError(unknown_name(place + ".stage", source, made, what))
            produced[name] = stage
        for i, item in enumerate(self.evaluation.sets):
            if item.problems is not None and item.problems not in self.problems:
                place = f"evaluation.sets[{i}].problems"
                raise ValueError(unknown_name(place, item.problems, self.problems, "a table [problems.NAME]"))
            if item.problems is not None and self.problems[item.problems].heldout == 0.0:
                raise ValueError(
                    f"evaluation.sets[{i}]: problems.{item.problems}.heldout = 0 leaves it nothing to measure"
                )
        return self

    @model_validator(mode="after")
    def _filters_give_what_is_read(self) -> Recipe:
        for name in self.stages:
            stage = self.stage.get(name)
            for i, mix in enumerate(getattr(stage, "problems", ())):
                source = self.stage.get(mix.stage or "")
                if isinstance(source, FilterStage) and source.by == "surprisal":
                    raise ValueError(
                        f'stage.{name}.problems[{i}]: stage.{mix.stage} is by = "surprisal": it keeps conversations, '
                        "for an sft stage, and no problems"
                    )
            for i, row in enumerate(stage.data if isinstance(stage, SftStage | FilterStage) else ()):
                source = self.stage.get(row.stage or "")
                solved = isinstance(source, FilterStage) and source.by == "pass_rate"
                if row.rows == "solutions" and not solved:
                    raise ValueError(
                        f'stage.{name}.data[{i}]: rows = "solutions" are those of a filter stage by = "pass_rate"'
                    )
            if isinstance(stage, RlStage) and stage.reuse_filter:
                why = _not_reusable(self, name, stage)
                if why:
                    raise ValueError(f"stage.{name}.reuse_filter: {why}")
        return self

    @model_validator(mode="after")
    def _names_are_folders(self) -> Recipe:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits and . _ - +")
        for table, names in (("stage", self.stage), ("problems", self.problems)):
            for name in names:
                if not re.fullmatch(r"\w[\w+-]*", name):
                    raise ValueError(f"{table}: {name!r} cannot name a folder; use letters, digits and _ - +")
        for name, stage in self.stage.items():
            if name in ("previous", "base-model") or (name == "base" and stage.kind in TRAINING):
                raise ValueError(f"stage: the name {name!r} stands for other weights already; choose another one")
        return self

    @model_validator(mode="after")
    def _head_is_read(self) -> Recipe:
        # one that `stages` leaves out counts: a control run may take the sft stage out
        if self.model.head != "own" and not any(isinstance(stage, SftStage) for stage in self.stage.values()):
            raise ValueError(
                f'model.head = "{self.model.head}" is a head of sft stages, and the recipe has none: nothing reads it '
                "(rl needs motet's own head, for entropies and ratios). Leave it out, or add an sft stage"
            )
        return self

    @model_validator(mode="after")
    def _engine_takes_weights(self) -> Recipe:
        trained = [name for name in self.stages if name in self.stage and self.stage[name].kind in TRAINING]
        if self.engine.kind == "endpoint" and trained:
            raise ValueError(
                f"engine: an endpoint cannot sample from the weights that stage.{trained[0]} makes; use kind = "
                '"transformers", and the endpoint as the teacher of a synthesize stage'
            )
        if self.engine.kind in ("transformers", "vllm") and self.engine.model is not None:
            raise ValueError("engine.model: the model in training is sampled from; a model of its own is a teacher's")
        for name in trained:
            stage = self.stage[name]
            if not (isinstance(stage, RlStage) and stage.overlap):
                continue
            if not stage.algorithm.correction.on and stage.algorithm.objective != "dppo":
                raise ValueError(
                    f"stage.{name}.overlap: its rollouts are of older weights, which algorithm.correction has to "
                    "weigh: set correction = { on = true }"
                )
            if self.engine.kind == "vllm" and (self.engine.sleep or not (self.engine.python or self.engine.urls)):
                raise ValueError(
                    f"stage.{name}.overlap: this engine shares the learner's process or memory and cannot sample while "
                    "it steps; give vLLM a server of its own (engine.python) or servers that run (engine.urls), "
                    "without engine.sleep"
                )
        return self


def _refuse_schedules(name: str, stage: Stage) -> None:
    """Only a stage of steps can follow a weight that changes."""
    if isinstance(stage, SynthesizeStage | FilterStage):
        for i, mix in enumerate(stage.problems):
            if not isinstance(mix.weight, float):
                raise ValueError(f"stage.{name}.problems[{i}].weight: a {stage.kind} stage has no steps over which a "
                                 "weight could change; give a number")  # fmt: skip
    for i, row in enumerate(stage.data if isinstance(stage, FilterStage) else ()):
        if not isinstance(row.weight, float):
            raise ValueError(f"stage.{name}.data[{i}].weight: a filter stage has no steps over which a weight could "
                             "change; give a number")  # fmt: skip


def _references(name: str, stage: Stage) -> list[tuple[str, str | None, str | None, tuple[str, ...]]]:
    """(place in the recipe, problem set, stage, kinds that the stage may have) of everything that a stage reads."""
    found: list[tuple[str, str | None, str | None, tuple[str, ...]]] = []
    if isinstance(stage, SftStage | CleanStage | FilterStage):
        kinds = ("synthesize", "clean", "filter")
        found += [(f"stage.{name}.data[{i}]", s.problems, s.stage, kinds) for i, s in enumerate(stage.data)]
    if isinstance(stage, SynthesizeStage | FilterStage | RlStage):
        mixes = enumerate(stage.problems)
        found += [(f"stage.{name}.problems[{i}]", m.problems, m.stage, ("filter",)) for i, m in mixes]
    return found


def weights_of(recipe: Recipe, name: str) -> str:
    """The stage whose weights a stage starts from; "base" for the model that the recipe starts from."""
    stage = recipe.stage[name]
    before = recipe.stages[: recipe.stages.index(name)]
    trained = [n for n in before if recipe.stage[n].kind in TRAINING]
    return (trained[-1] if trained else "base") if stage.init == "previous" else stage.init


def _not_reusable(recipe: Recipe, name: str, stage: RlStage) -> str:
    """Why an rl stage cannot begin with its filter's rollouts; empty where it can."""
    sources = sorted({mix.stage for mix in stage.problems if mix.stage is not None})
    if not sources:
        return "its problems come from no filter stage, so there are no rollouts to begin with"
    for source in sources:
        filtered = recipe.stage[source]
        assert isinstance(filtered, FilterStage)
        ours, theirs = weights_of(recipe, name), weights_of(recipe, source)
        if ours != theirs:
            return f"stage.{source} sampled from the weights of {theirs}, and this stage starts from those of {ours}"
        if stage.rope is not None:
            return "rope gives this stage other positions than the filter's model had"
        if stage.sampling != filtered.sampling:
            return f"stage.{source} samples with {filtered.sampling}, and this stage with {stage.sampling}"
    if stage.reuse_filter > 1 and not (stage.algorithm.correction.on or stage.algorithm.objective == "dppo"):
        return (
            f"in step {stage.reuse_filter} the rollouts are of older weights: set algorithm.correction = "
            "{ on = true }, or reuse_filter = 1"
        )
    return ""
