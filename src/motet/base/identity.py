"""What a stage's result depends on: the parts of the recipe, and the content of the files that they name.

Whatever changes speed, memory or what is reported alone is left out, so that a stage goes on when it is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motet.base.recipe import (
    ENGINE_IDENTITY,
    CleanStage,
    Engine,
    FilterStage,
    Recipe,
    RlStage,
    SftSource,
    SftStage,
    Stage,
    SynthesizeStage,
)

MEMORY_ONLY = {"model": {"recompute", "compile"}}
"""Settings that change memory and speed, and results by rounding alone: a stage that ran out of memory goes on with
others."""
OF_A_STAGE: dict[str, Any] = {
    **dict.fromkeys(("alarms", "checkpoint_every", "evaluate", "micro_batch_tokens"), True),
    "optimizer": {"offload"},
}


def stages_read(stage: Stage) -> list[str]:
    if isinstance(stage, SftStage | CleanStage) or (isinstance(stage, FilterStage) and stage.data):
        return [source.stage for source in stage.data if source.stage]
    if isinstance(stage, SynthesizeStage | FilterStage | RlStage):
        return [mix.stage for mix in stage.problems if mix.stage]
    return []


def stage_part(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What of the recipe the stage's own result depends on: nothing that only changes speed or its evaluation."""
    own = stage.model_dump(mode="json", exclude=OF_A_STAGE)
    sources = (*getattr(stage, "data", ()), *getattr(stage, "problems", ()))
    used = {source.problems for source in sources if source.problems}
    named = [source.path for source in sources if isinstance(source, SftSource)]
    if isinstance(stage, SynthesizeStage | CleanStage):
        own["rules"] |= {"judge": _answering(stage.rules.judge)}
        named += [stage.rules.judge.script] if stage.rules.judge is not None else []
    if isinstance(stage, SynthesizeStage):
        own |= {"teacher": _answering(stage.teacher)}
        own |= {"teachers": {name: _answering(teacher) for name, teacher in stage.teachers.items()}}
        named += [teacher.script for teacher in (stage.teacher, *stage.teachers.values()) if teacher is not None]
    return {"stage": own, **_shared_part(recipe, used, named)}


def _answering(teacher: Engine | None) -> dict[str, Any] | None:
    """What of a teacher its answers depend on: not its caps, its price or how often it is asked again."""
    kept = ENGINE_IDENTITY | {"share", "sampling", "ask"}
    return None if teacher is None else {k: v for k, v in teacher.model_dump(mode="json").items() if k in kept}


def evaluation_part(recipe: Recipe) -> dict[str, Any]:
    config = recipe.evaluation
    used = {item.problems for item in config.sets if item.problems} if config.sets else set(recipe.problems)
    named = [item.path for item in config.sets]
    return {"evaluation": config.model_dump(mode="json"), **_shared_part(recipe, used, named)}


def _shared_part(recipe: Recipe, problems: set[str], named: list[str | None]) -> dict[str, Any]:
    sets = {name: recipe.problems[name] for name in sorted(problems)}
    named += [path for p in sets.values() for path in (p.path, (p.verifier or "").rpartition(":")[0])]
    return {
        **recipe.model_dump(mode="json", include={"seed", "model", "chat"}, exclude=MEMORY_ONLY),
        "problems": {name: part.model_dump(mode="json") for name, part in sets.items()},
        "engine": {
            **recipe.engine.model_dump(mode="json", include={"kind", "url", "model", "script"}),
            **{name: value for name in ("extra", "omit") if (value := getattr(recipe.engine, name))},
        },
        **_fingerprints("files", [*named, recipe.chat.template, recipe.engine.script]),
    }


def base_part(recipe: Recipe) -> dict[str, Any]:
    named = [path for p in recipe.problems.values() for path in (p.path, (p.verifier or "").rpartition(":")[0])]
    return {
        **recipe.model_dump(mode="json", include={"seed", "model", "problems"}, exclude=MEMORY_ONLY),
        **_fingerprints("problem_files", named),
    }


def _fingerprints(key: str, named: Sequence[str | None]) -> dict[str, Any]:
    """{key: {file: hash of its content}} of those that are local: an edited file is another input."""
    paths = [Path(name) for name in named if name]
    files = sorted({f for path in paths for f in (path.rglob("*") if path.is_dir() else (path,)) if f.is_file()})
    hashes = {}
    for file in files:
        with file.open("rb") as content:
            hashes[str(file)] = hashlib.file_digest(content, "sha256").hexdigest()
    return {key: hashes} if hashes else {}


def hash_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
