"""A recipe's stages in order. What is already done is not done again; what was killed goes on.

STAGE/manifest.json says what a stage was made from: the hash covers its part of the recipe, the manifests of the stages
that it reads, and motet's version. The same hash and status "done": satisfied. The same hash and "running": killed,
goes on from its files. Another hash: the folder is set aside as STAGE.stale-N and the stage starts afresh.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import motet
from motet import preflight
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.identity import base_part, evaluation_part, hash_of, stage_part, stages_read
from motet.base.recipe import (
    CleanStage,
    EvaluateStage,
    FilterStage,
    Recipe,
    RlStage,
    SftStage,
    Stage,
    SynthesizeStage,
    nearest,
)
from motet.base.run import Followed, Run, log, peak_memory_bytes
from motet.base.tracking import trackers

if TYPE_CHECKING:
    from motet.stages.context import Context
    from motet.train.world import World

BASE = "base-model"


class Planned(NamedTuple):
    name: str
    stage: Stage
    reads: tuple[str, ...]
    """Stages whose output it uses: its weights first."""
    hash: str
    evaluation: str
    """Hash of what its evaluation depends on; empty for a stage that is not evaluated."""
    state: str
    """ "done" | "running" (killed) | "unevaluated" (done but for its evaluation) | "stale" (made from something else) |
    "new" """
    part: dict[str, Any]
    """What of the recipe its result depends on."""


class Begun(NamedTuple):
    manifest: dict[str, Any]
    seconds: float
    """What the stage had taken before it was killed."""
    at: float


def plan(recipe: Recipe, folder: Path, start: str | None = None) -> list[Planned]:
    """What a run would do. `start`: this stage and all after it count as stale."""
    if start is not None and start not in recipe.stages:
        raise UserError(f"--from {start}: no such stage; {nearest(start, list(recipe.stages))}".rstrip("; "))
    planned: list[Planned] = []
    hashes: dict[str, str] = {}
    weights = BASE
    hashes[BASE] = hash_of(base_part(recipe), motet.__version__)
    forced = False
    for name in recipe.stages:
        stage = recipe.stage[name]
        init = {"previous": weights, "base": BASE}.get(stage.init, stage.init)
        if isinstance(stage, CleanStage):  # it reads conversations, and of the model its tokenizer alone
            init = BASE
        reads = (init, *(r for r in stages_read(stage) if r != init))
        part = stage_part(recipe, stage)
        hashes[name] = hash_of(part, motet.__version__, *(hashes[r] for r in reads))
        forced = forced or name == start
        evaluation = hash_of(evaluation_part(recipe), hashes[name]) if _is_evaluated(stage) else ""
        state = _state(folder / name, hashes[name], evaluation, forced)
        planned.append(Planned(name, stage, reads, hashes[name], evaluation, state, part))
        if isinstance(stage, SftStage | RlStage):
            weights = name
    return planned


def run(
    recipe: Recipe,
    folder: Path,
    source: Path | None = None,
    command: str = "",
    start: str | None = None,
    only: Sequence[str] | None = None,
    console: bool = True,
) -> dict[str, Any]:
    """Runs the stages that are not satisfied, then writes the report. Returns report.json's content.

    `source`: the recipe's file, copied into the run. `only`: just these stages; those before them must be done.
    Raises UserError for anything that the user can mend; the run folder keeps all that was finished.
    """
    from motet.insight.report import write_report

    world = _world(recipe)
    planned = world.first(lambda: plan(recipe, folder, start))
    read = {name for item in planned if only is not None and item.name in only for name in item.reads}
    for item in planned:
        if only is not None and item.name in read - set(only) and item.state != "done":
            raise UserError(f"stage {item.name} is not done ({item.state}) and {only[0]} reads it: `motet run` first")
    to_do = [item for item in planned if item.state != "done" and (only is None or item.name in only)]
    names = [item.name for item in to_do]
    world.first(lambda: preflight.refuse(recipe, names))
    preflight.refuse_silence(recipe, names, world)
    if any(isinstance(item.stage, SftStage | RlStage) for item in to_do):
        preflight.refuse_mesh(recipe, world)
    with _open(world, folder, console) as open_run:
        world.first(lambda: _describe_run(recipe, folder, source, command, world))
        if world.rank == 0:
            open_run.trackers = trackers(recipe, folder)
        context = _context(recipe, open_run, world)
        try:
            for item in to_do:  # before the stages that it would cost
                if isinstance(item.stage, RlStage):
                    world.first(partial(context.refuse_domain_settings, item.name, item.stage))
            for item in planned:
                if only is None or item.name in only:
                    _advance(item, context, folder)
        finally:
            context.close()
        result = world.first(lambda: write_report(folder))
    world.leave()
    return result


@contextmanager
def opened(recipe: Recipe, folder: Path, console: bool = True) -> Iterator[Context]:
    """The run folder with what a stage is given, for work on it that is no stage. All processes enter it."""
    world = _world(recipe)
    with _open(world, folder, console) as open_run:
        context = _context(recipe, open_run, world)
        try:
            yield context
        finally:
            context.close()
    world.leave()


def _advance(item: Planned, context: Context, folder: Path) -> None:
    if item.state == "done":
        log.info("%s: already done", item.name)
        return
    begun = context.world.first(lambda: _begin(item, context, folder))
    weights = item.reads[0]
    model = context.base if weights == BASE else folder / weights / "model"
    if isinstance(item.stage, SftStage | RlStage) and item.stage.rope is not None:
        model = context.world.first(lambda: _with_rope(item, model, folder))
    from motet.stages import alarmed
    from motet.train.memory import let_go

    with alarmed.explained(item.name, context, partial(_forecast, item.name, context.recipe)):
        _run_stage(item, context, model)
        let_go()
        context.world.first(lambda: _finish(item, context, folder, model, begun))


def _begin(item: Planned, context: Context, folder: Path) -> Begun:
    target = folder / item.name
    if item.state == "stale":
        aside = next(p for i in range(1, 10_000) if not (p := folder / f"{item.name}.stale-{i}").exists())
        why = _what_changed(item, folder)
        _keep_metrics(item.name, folder)
        target.rename(aside)
        context.run.drop_metrics(item.name, 0)
        log.info("%s: was made from something else; set aside as %s%s", item.name, aside.name, why and f": {why}")
    if item.state in ("running", "unevaluated"):
        _set_evaluation_aside(target, item)
    manifest: dict[str, Any] = {
        "stage": item.name,
        "kind": item.stage.kind,
        "status": "running",
        "hash": item.hash,
        "evaluation": item.evaluation,
        "version": motet.__version__,
        "inputs": {name: _manifest_hash(folder, name) for name in item.reads},
        "made_from": item.part,
    }
    before = _seconds_so_far(target) if item.state in ("running", "unevaluated") else 0.0
    target.mkdir(parents=True, exist_ok=True)
    jsonl.write_json(target / "manifest.json", {**manifest, "seconds": before, "started": time.time()})
    note = {"running": " (goes on)", "unevaluated": " (evaluated again)"}.get(item.state, "")
    log.info("%s: %s%s", item.name, item.stage.kind, note)
    return Begun(manifest, before, time.perf_counter())


def _what_changed(item: Planned, folder: Path, most: int = 4) -> str:
    """What a stage that is to be made anew was made from and what it is made from now, where they differ."""
    file = folder / item.name / "manifest.json"
    manifest = jsonl.read_json(file) if file.exists() else {}
    present = json.loads(json.dumps(item.part))
    was, now = (dict(_flat(part)) for part in (manifest.get("made_from", present), present))
    found = [
        f"{key.removeprefix('files.')} was changed" if key.startswith("files.")
        else f"{key.replace('stage.', f'stage.{item.name}.', 1)} was {json.dumps(was.get(key))} and is "
        f"{json.dumps(now.get(key))}"
        for key in {**was, **now} if was.get(key) != now.get(key)
    ]  # fmt: skip
    inputs = manifest.get("inputs", {})
    found += [
        f"{n}, which it reads, was made anew" for n in item.reads if inputs.get(n, "") != _manifest_hash(folder, n)
    ]
    if manifest.get("version", motet.__version__) != motet.__version__:
        found.append(f"motet was {manifest['version']} and is {motet.__version__}")
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _flat(part: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value); a list is one value."""
    if not isinstance(part, dict):
        yield key, part
        return
    for name, value in part.items():
        yield from _flat(value, f"{key}.{name}" if key else name)


def _keep_metrics(name: str, folder: Path) -> None:
    """The figures of a stage go with it when it is set aside."""
    file = folder / "metrics.jsonl"
    rows = [row for _, row in jsonl.read(file) if row["stage"] == name] if file.exists() else []
    if rows:
        jsonl.write(folder / name / "metrics.jsonl", rows)


def _with_rope(item: Planned, model: Path | str, folder: Path) -> Path | str:
    """The model with the stage's positions, for as long as the stage runs; what it exports has them too."""
    from motet.model.rope import with_rope

    assert isinstance(item.stage, SftStage | RlStage) and item.stage.rope is not None
    return with_rope(model, item.stage.rope, folder / item.name / "start")


def _finish(item: Planned, context: Context, folder: Path, model: Path | str, begun: Begun) -> None:
    target = folder / item.name
    if item.evaluation:
        from motet.stages import evaluate

        changed = isinstance(item.stage, SftStage | RlStage)
        evaluate.run(item.name, context, target / "model" if changed else model)
    if isinstance(item.stage, RlStage):
        from motet.stages import alarmed

        alarmed.after_evaluation(item.name, item.stage, context)
    shutil.rmtree(target / "start", ignore_errors=True)
    seconds = begun.seconds + time.perf_counter() - begun.at
    done = {"status": "done", "seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
    outputs = sorted(p.name for p in target.iterdir() if p.name != "manifest.json")
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    jsonl.write_json(target / "manifest.json", {**begun.manifest, **done, "finished": finished, "outputs": outputs})
    log.info("%s: done in %.1f s", item.name, seconds)


def _run_stage(item: Planned, context: Context, model: Path | str) -> None:
    from motet.stages import alarmed, clean, rl, sft, synthesize
    from motet.stages import filter as filtering

    match item.stage:
        case SftStage():
            sft.run(item.name, item.stage, context, model)
        case SynthesizeStage():
            _alone(context, partial(synthesize.run, item.name, item.stage, context, model))
        case CleanStage():
            _alone(context, partial(clean.run, item.name, item.stage, context, model))
        case FilterStage():
            _alone(context, partial(filtering.run, item.name, item.stage, context, model))
        case RlStage():
            alarmed.run(item.name, item.stage, context, rl.run, model)
        case EvaluateStage():
            pass  # the evaluation itself is what follows every stage


def _forecast(name: str, recipe: Recipe) -> str:
    """What `motet plan` says of a stage's memory; empty where it cannot say anything."""
    from motet.plan.report import plan_of, planner_of

    try:
        plan = plan_of(recipe, planner_of(recipe), tables=False)
    except (UserError, OSError):  # a model whose configuration cannot be read: it is not what the user is told about
        return ""
    stage = next((stage for stage in plan.stages if stage.work.name == name), None)
    if stage is None or stage.need is None:
        return ""
    text = f"{stage.need.total / 2**30:.2f} GiB of {stage.need.usable / 2**30:.2f} that may be used"
    return text + (f"; it proposes {stage.change}" if stage.change else "")


def _open(world: World, folder: Path, console: bool) -> Run:
    """The first process writes the run folder; the others have to see the same one."""
    opened: list[Run] = []
    world.first(lambda: opened.append(Run(folder, console)))
    if not all(world.gather(folder.is_dir())):
        raise UserError(f"{folder}: not every node sees this folder; give --runs a folder on a shared file system")
    return opened[0] if opened else Followed(folder)


def _alone(context: Context, run: Callable[[], None]) -> None:
    """A stage that trains nothing is the first process's; the others wait."""
    context.world.first(run)


def _world(recipe: Recipe) -> World:
    """The processes of this run. Several write one folder, so all have to see it."""
    from motet.model.load import device_of
    from motet.train.world import World

    mesh = recipe.mesh
    return World.join(mesh.timeout_seconds, mesh.silence_seconds, device_of(recipe.model).type == "cuda")


def _context(recipe: Recipe, open_run: Run, world: World) -> Context:
    import torch
    import transformers

    from motet.stages.context import Context

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    context = Context(recipe, open_run, recipe.model.path or open_run.folder / BASE, world)
    if recipe.model.tiny is not None:
        world.first(lambda: _make_base(recipe, context, open_run.folder / BASE))
    return context


def _make_base(recipe: Recipe, context: Context, folder: Path) -> None:
    """A tiny model's tokenizer is made of the words of the recipe's own training problems."""
    from motet.base.records import prompt_text
    from motet.model.load import make_tiny
    from motet.model.tokenizer import make_tokenizer

    assert recipe.model.tiny is not None
    digest = hash_of(base_part(recipe), motet.__version__)
    stamp = folder.with_name(folder.name + ".json")
    if folder.exists() and stamp.exists() and jsonl.read_json(stamp)["hash"] == digest:
        return
    problems = [p for name in recipe.problems for p in context.split(name).train]
    solutions = [p.metadata["solution"] for p in problems if "solution" in p.metadata]
    texts = [s["reasoning"] + s["answer"] for s in solutions]
    tokenizer = make_tokenizer([prompt_text(p) for p in problems], texts)
    make_tiny(recipe.model.tiny, tokenizer, recipe.seed, folder)
    jsonl.write_json(stamp, {"hash": digest})


def _describe_run(recipe: Recipe, folder: Path, source: Path | None, command: str, world: World) -> None:
    import platform

    import torch
    import transformers

    if source is not None and source.resolve() != (folder / "recipe.toml").resolve():
        shutil.copyfile(source, folder / "recipe.toml")
    jsonl.write_json(folder / "resolved.json", recipe.model_dump(mode="json"))
    lineage = {
        "motet": motet.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": recipe.threads or torch.get_num_threads(),
        "processes": world.size,
        "seed": recipe.seed,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    jsonl.write_json(folder / "lineage.json", lineage)


def _is_evaluated(stage: Stage) -> bool:
    return isinstance(stage, EvaluateStage) or (isinstance(stage, SftStage | RlStage) and stage.evaluate)


def _state(folder: Path, digest: str, evaluation: str, forced: bool) -> str:
    path = folder / "manifest.json"
    if not path.exists():
        return "stale" if folder.exists() and any(folder.iterdir()) else "new"
    manifest = jsonl.read_json(path)
    if forced or manifest["hash"] != digest:
        return "stale"
    if manifest["status"] == "done" and evaluation and manifest["evaluation"] != evaluation:
        return "unevaluated"
    return str(manifest["status"])


def _set_evaluation_aside(folder: Path, item: Planned) -> None:
    """An evaluation with other settings is kept under another name, like a stage that was made from something else."""
    if jsonl.read_json(folder / "manifest.json")["evaluation"] == item.evaluation:
        return
    found = [*folder.glob("evaluation.json*"), *folder.glob("evaluation-*.jsonl")]
    number = next(i for i in range(1, 10_000) if not any(folder.glob(f"stale-{i}.evaluation*")))
    for file in found:
        file.rename(folder / f"stale-{number}.{file.name}")


def _manifest_hash(folder: Path, name: str) -> str:
    path = folder / name / "manifest.json"
    return str(jsonl.read_json(path)["hash"]) if path.exists() else ""


def _seconds_so_far(folder: Path) -> float:
    """Of a killed stage: what it had recorded before, and from its start to the last file that it wrote."""
    manifest = jsonl.read_json(folder / "manifest.json")
    last = max(p.stat().st_mtime for p in folder.rglob("*"))
    return float(manifest.get("seconds", 0.0)) + max(0.0, last - float(manifest.get("started", last)))
