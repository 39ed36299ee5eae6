"""What would stop a run, found before anything is started or set aside: names, files and folders of the stages that are
to do. Nothing is read but names, so a data set with a bad row still fails when its stage reads it (`motet check`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.base import places
from motet.base.errors import UserError
from motet.base.recipe import (
    CleanStage,
    Engine,
    EvaluateStage,
    FilterStage,
    Recipe,
    RlStage,
    SftStage,
    SynthesizeStage,
    weights_of,
)

if TYPE_CHECKING:
    from motet.train.world import World


def missing(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """One line for each thing that `stages` need and that is not here: its key in the recipe, and why."""
    found = [(key, why) for key, check in _checks(recipe, stages) if (why := _why(check))]
    return [why if why.startswith(key) else f"{key}: {why}" for key, why in found]


def refuse(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raises UserError that names all of `missing`."""
    found = missing(recipe, stages)
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise UserError(f"{len(found)} of what the recipe names cannot be used; nothing was started\n{lines}")


def refuse_mesh(recipe: Recipe, world: World) -> None:
    """Raises UserError for a mesh that does not fit these processes or the model's heads, where its config is here."""
    from motet.train.mesh import resolve

    heads = recipe.model.tiny.heads if recipe.model.tiny is not None else _config(recipe).get("num_attention_heads")
    if heads is not None:
        resolve(recipe.mesh, world.size, world.per_node, heads)


def refuse_silence(recipe: Recipe, stages: Sequence[str], world: World) -> None:
    """Raises UserError where several processes would take an engine that is allowed to be slow for one that hangs."""
    limit = recipe.mesh.silence_seconds
    for place, engine in _engines(recipe, stages):
        if world.size > 1 and engine.kind in ("endpoint", "vllm") and engine.timeout_seconds >= limit:
            raise UserError(
                f"{place}.timeout_seconds = {engine.timeout_seconds:g}: a reply may take longer than the other "
                f"{world.size - 1} processes wait for a sign of life (mesh.silence_seconds = {limit}); set "
                f"mesh.silence_seconds to more than {engine.timeout_seconds:g}"
            )


def _beyond(recipe: Recipe, stages: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Contexts and completions longer than the positions of the weights that a stage starts from, where the base
    model's are known here: through the stages before it, which may set a rope."""
    positions = {"base": _positions(recipe)}
    told = set[str]()
    for name in recipe.stages:
        stage = recipe.stage[name]
        own = positions[weights_of(recipe, name)]
        if isinstance(stage, SftStage | RlStage):
            own = positions[name] = stage.rope.positions if stage.rope is not None else own
            key, tokens = ("context", stage.context) if isinstance(stage, SftStage) else (
                "sampling.max_tokens", stage.sampling.max_tokens)  # fmt: skip
            said = isinstance(stage, RlStage) or key in stage.model_fields_set
            if name in stages and said and own is not None:
                yield f"stage.{name}", lambda n=name, k=key, t=tokens, o=own: places.check_positions(n, k, t, o)  # type: ignore[misc]
        for key, tokens in _sampled(recipe, name):
            if name in stages and own is not None and tokens > own and key not in told:
                told.add(key)
                yield key, lambda k=key, n=name, t=tokens, o=own: places.check_sampled(k, n, t, o)  # type: ignore[misc]


def _sampled(recipe: Recipe, name: str) -> Iterator[tuple[str, int]]:
    """(key, tokens of a completion) of what a stage samples from the recipe's own weights, but for its training."""
    stage, config = recipe.stage[name], recipe.evaluation
    own = ("transformers", "vllm")
    if isinstance(stage, FilterStage) and stage.by == "pass_rate" and recipe.engine.kind in own:
        yield f"stage.{name}.sampling.max_tokens", stage.sampling.max_tokens
    if isinstance(stage, SynthesizeStage) and not stage.teachers:
        engine = stage.teacher or recipe.engine
        if engine.kind in own and engine.model is None:
            yield f"stage.{name}.sampling.max_tokens", stage.sampling.max_tokens
    evaluated = isinstance(stage, EvaluateStage) or (isinstance(stage, SftStage | RlStage) and stage.evaluate)
    if evaluated and recipe.engine.kind in own:
        held = any(problems.heldout for problems in recipe.problems.values())
        if any(item.problems and item.max_tokens is None for item in config.sets) if config.sets else held:
            yield "evaluation.sampling.max_tokens", config.sampling.max_tokens
        for i, item in enumerate(config.sets):
            if item.max_tokens is not None:
                yield f"evaluation.sets[{i}].max_tokens", item.max_tokens


def _positions(recipe: Recipe) -> int | None:
    if recipe.model.tiny is not None:
        return recipe.model.tiny.context
    found = _config(recipe).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _config(recipe: Recipe) -> dict[str, Any]:
    """Of the model, where its folder is here."""
    config = Path(recipe.model.path or "") / "config.json"
    if recipe.model.path is None or not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:  # whoever loads the model says so
        return {}
    return found if isinstance(found, dict) else {}


def _why(check: Callable[[], None]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _checks(recipe: Recipe, stages: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    from motet.tasks import refuse_unusable

    if not stages:
        return
    if recipe.model.path is not None:
        path = recipe.model.path
        yield "model.path", lambda: places.check_folder(path)
    yield from _beyond(recipe, stages)
    for place, engine in _engines(recipe, stages):
        yield from _engine(place, engine)
    sets: dict[str, None] = {}
    for name in stages:
        stage, place = recipe.stage[name], f"stage.{name}"
        if isinstance(stage, SynthesizeStage | FilterStage | RlStage):
            sets |= dict.fromkeys(mix.problems for mix in stage.problems if mix.problems is not None)
        if isinstance(stage, SftStage | RlStage) and stage.lora is not None:
            yield f"{place}.lora", places.check_peft
        if isinstance(stage, SftStage | CleanStage | FilterStage):
            sets |= dict.fromkeys(row.problems for row in stage.data if row.problems is not None)
            for i, row in enumerate(stage.data):
                if row.path is not None:
                    yield f"{place}.data[{i}].path", lambda path=row.path: places.check_data(path)  # type: ignore[misc]
    if any(recipe.stage[name].evaluate for name in stages):
        sets |= dict.fromkeys(item.problems for item in recipe.evaluation.sets if item.problems is not None)
        yield from _suites(recipe)
    for name in sets:
        yield f"problems.{name}", lambda name=name: refuse_unusable(name, recipe.problems[name])  # type: ignore[misc]


def _engines(recipe: Recipe, stages: Sequence[str]) -> Iterator[tuple[str, Engine]]:
    """The recipe's, and the teachers and judges of `stages`, by key."""
    yield "engine", recipe.engine
    for name in stages:
        stage, place = recipe.stage[name], f"stage.{name}"
        if isinstance(stage, SynthesizeStage):
            teachers = {"teacher": stage.teacher, **{f"teachers.{n}": t for n, t in stage.teachers.items()}}
            yield from ((f"{place}.{label}", teacher) for label, teacher in teachers.items() if teacher is not None)
        if isinstance(stage, SynthesizeStage | CleanStage) and stage.rules.judge is not None:
            yield f"{place}.rules.judge", stage.rules.judge


def _engine(place: str, engine: Engine) -> Iterator[tuple[str, Callable[[], None]]]:
    script, python = engine.script, engine.python
    if script is not None:
        yield f"{place}.script", lambda: places.check_file(script)
    if python is not None:
        yield f"{place}.python", lambda: places.check_python(python)


def _suites(recipe: Recipe) -> Iterator[tuple[str, Callable[[], None]]]:
    from motet.tasks.suites import refuse_unknown

    for i, item in enumerate(recipe.evaluation.sets):
        if item.suite is not None:
            yield f"evaluation.sets[{i}].suite", lambda name=item.suite: refuse_unknown(name)  # type: ignore[misc]
        if item.path is not None:
            yield f"evaluation.sets[{i}].path", lambda path=item.path: places.check_data(path)  # type: ignore[misc]
