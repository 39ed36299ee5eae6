"""`motet plan`: every stage of a recipe on a machine, as plain data."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from motet.base.recipe import Machine, Model, Recipe
from motet.model.footprint import LADDER, Sizes
from motet.model.recompute import Policy
from motet.plan.setup import Need, Planner, Sampling, Setup
from motet.plan.sizing import positions_of, sizes_of
from motet.plan.work import Share, Work, works_of

COLUMNS: tuple[Policy, ...] = (*LADDER, "offload")


@dataclasses.dataclass(frozen=True)
class Row:
    """One mesh: what it takes by policy."""

    shape: str
    asked: bool
    needs: tuple[int, ...]
    """Bytes of the fullest GPU, by the policies of COLUMNS."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    work: Work
    need: Need | None
    """None where nothing is trained."""
    engine: Share
    """Of who samples for it, while the learner works where there is one."""
    alone: Sampling | None
    """An engine without the learner: the stage's where it trains nothing, else that of the evaluation after it."""
    change: str
    """The smallest that makes it fit; empty where it fits or nothing helps."""
    changed: Need | Sampling | None
    table: tuple[Row, ...]

    @property
    def fits(self) -> bool:
        return (self.need is None or self.need.fits) and (self.alone is None or self.alone.spare >= 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    name: str
    model: str
    sizes: Sizes
    machine: Machine
    on_gpu: bool
    usable: int
    dtype: str
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)


def planner_of(
    recipe: Recipe, nodes: int | None = None, gpus: int | None = None, memory: float | None = None
) -> Planner:
    """`nodes`, `gpus` of each and their `memory` in GiB replace what the recipe's machine says."""
    given = {"nodes": nodes, "gpus": gpus, "memory_gib": memory}
    given = {key: value for key, value in given.items() if value is not None}
    seen = _seen(recipe.model)
    machine = (recipe.machine or seen or Machine()).model_copy(update=given)
    on_gpu = recipe.model.device != "cpu" and (recipe.machine is not None or bool(given) or torch.cuda.is_available())
    return Planner(recipe, machine, sizes_of(recipe.model), on_gpu)


def plan_of(recipe: Recipe, planner: Planner, tables: bool = True) -> Plan:
    works = works_of(recipe, positions_of(recipe.model))
    stages = tuple(_stage(planner, work, tables) for work in works)
    model = recipe.model.path or "a tiny model"
    return Plan(
        recipe.name, model, planner.sizes, planner.machine, planner.on_gpu, planner.usable, recipe.model.dtype, stages
    )


def _stage(planner: Planner, work: Work, tables: bool) -> StagePlan:
    sampler = work.evaluator if work.trains else work.engine
    alone = planner.sampling(work, sampler)
    found: tuple[str, Need | Sampling] | None = None
    if alone is not None and sampler is not None and alone.spare < 0:
        found = planner.smallest_engine(work, sampler)
    if not work.trains:
        words, changed = found or ("", None)
        return StagePlan(work, None, planner.share(work.engine, work.sampled), alone, words, changed, ())
    setup = planner.asked(work)
    need = planner.need(work, setup)
    if not need.fits:
        found = planner.smallest_change(work, setup)
    table = tuple(_row(planner, work, setup, shape) for shape in planner.shapes()) if tables else ()
    words, changed = found or ("", None)
    return StagePlan(work, need, need.engine, alone, words, changed, table)


def _row(planner: Planner, work: Work, setup: Setup, shape: Any) -> Row:
    setups = [dataclasses.replace(setup, shape=shape, recompute=policy) for policy in COLUMNS]
    return Row(
        " x ".join(map(str, shape)), shape == setup.shape, tuple(planner.need(work, one).total for one in setups)
    )


def _seen(model: Model) -> Machine | None:
    """The machine that the plan is made on."""
    if model.device != "cpu" and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Machine(gpus=torch.cuda.device_count(), memory_gib=memory, host_gib=_host_gib())
    return Machine(memory_gib=_host_gib(), host_gib=_host_gib())


def _host_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes throughout."""
    stages = []
    for stage in plan.stages:
        found: dict[str, Any] = {
            "stage": stage.work.name, "kind": stage.work.kind, "engine": stage.engine.size, "fits": stage.fits,
            "engine_alone": stage.alone.total if stage.alone else 0, "engine_unknown": stage.engine.unknown or None,
            "engine_key": stage.work.engine_key if stage.work.engine else None, "change": stage.change or None,
        }  # fmt: skip
        if stage.need is not None:
            found |= _need(stage.need)
            found["table"] = [
                {"mesh": row.shape, "asked": row.asked, **dict(zip(COLUMNS, row.needs, strict=True))}
                for row in stage.table
            ]
        stages.append(found)
    return {
        "name": plan.name, "model": plan.model, "parameters": plan.sizes.parameters,
        "machine": plan.machine.model_dump(), "usable": plan.usable, "fits": plan.fits, "stages": stages,
    }  # fmt: skip


def _need(need: Need) -> dict[str, Any]:
    state, peak = need.forecast.state, need.forecast.peak
    return {
        "mesh": list(need.setup.shape), "policies": need.policies, "total": need.total, "spare": need.spare,
        "weights": state.weights, "optimizer": state.optimizer, "gradients": state.gradients,
        "gradients_waiting": state.summed, "gathered": state.gathered, "passing": peak.passing,
        "gradients_before_row": state.made(need.forecast.row), "gradients_of_row": peak.gradients,
        "kept": peak.kept, "working": peak.working,
        "attention": need.attention, "exchanged": need.exchanged, "head": peak.head, "highest_at": peak.at,
        "optimizer_away": state.away,
        "reference": need.reference, "sampling": need.sampling.total if need.sampling else 0,
        "host_saving": need.host.saving, "host_exporting": need.host.exporting, "host_offloaded": need.host.offloaded,
        "host_asleep": need.host.asleep,
    }  # fmt: skip
