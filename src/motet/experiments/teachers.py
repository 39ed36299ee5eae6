"""`motet experiment teachers RECIPE`: whose traces help this student.

A teacher is a synthesize stage of the recipe (or one of those that a stage names and asks every problem), or a file of
traces. Of all teachers the traces of the same problems are

    read    by the untouched student, in its own template: `fit` and the other measures (`teachers_read.py`)
    probed  a short SFT on each teacher's traces, from the same weights, evaluated on held-out problems

Everything lies in RUN/experiments/teachers: student/ (its evaluation, its own traces, what it said of the teachers'),
a folder for each teacher, teachers.json and teachers.html. Killed, the same command goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import check
from motet.base.recipe import TRAINING, Recipe, SftStage, SynthesizeStage, nearest
from motet.base.run import follows
from motet.experiments import teachers_results as results
from motet.experiments import teachers_view as view
from motet.experiments.reuse_results import evaluation
from motet.experiments.teachers_read import Reading, Teacher, read

UNTOUCHED, PROBE = "untouched", "probe"
Equal = Literal["examples", "tokens"]


class Setup(NamedTuple):
    recipe: Recipe
    folder: Path
    """Of the run."""
    target: Path
    source: Path | None
    console: bool
    student: str
    """A training stage, or "base"."""
    prefix: tuple[str, ...]
    """The recipe's stages up to the student."""
    stages: tuple[str, ...]
    """Synthesize stages, each of one or several teachers."""
    files: Mapping[str, Path]
    probe: SftStage
    steps: int
    """Of a probe; 0: none is run."""
    equal: Equal
    own: int


def run(
    recipe: Recipe,
    runs: Path,
    source: Path | None = None,
    stages: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    student: str | None = None,
    probe: str | None = None,
    steps: int = 30,
    equal: Equal = "examples",
    own: int = 2,
    console: bool = True,
) -> dict[str, Any]:
    """Runs what is not done yet and returns teachers.json's content.

    `stages`: synthesize stages; without them and without `files`, every one of the recipe's tables. `student`: the
    stage whose weights are to learn, "base", or unset, what the first synthesize stage of the order starts from.
    `probe`: the sft stage whose optimizer, batch size and context a probe has; `steps` long, 0 for none. `equal`: with
    "examples" every probe sees as many traces, with "tokens" it learns as many tokens. `own`: traces that the student
    writes itself for each problem, to compare lengths and steps with; 0 for none.
    """
    setup = _setup(recipe, runs, source, tuple(stages), files or {}, student, probe, steps, equal, own, console)
    labels = {stage: _labels(stage, recipe) for stage in setup.stages}
    _told_apart([label or stage for stage, found in labels.items() for label in found], files or {})
    if setup.prefix:
        pipeline.run(recipe, setup.folder, source, only=setup.prefix, console=console)
    teachers = []
    for stage, found_labels in labels.items():
        place = _asked(setup, stage)
        teachers += [Teacher(label or stage, stage=place, label=label) for label in found_labels]
    teachers += [Teacher(name, file=file) for name, file in setup.files.items()]
    home = setup.target / "student"
    untouched = _arm(setup, "student", {UNTOUCHED: {"kind": "evaluate"}}, run=steps > 0)
    reading = Reading(tuple(teachers), _weights(setup), probe_context(setup), setup.probe.micro_batch_tokens, own)
    with pipeline.opened(untouched, home, console) as context:
        found = context.world.first(partial(read, reading, context, home))
    if steps:
        for name, row in found["teachers"].items():
            batch = _batch_size(setup, row, found["teachers"])
            like = {**setup.probe.model_dump(mode="json"), "data": [{"path": str(home / row["file"])}]}
            like |= {"steps": steps, "batch_size": batch, "context": found["context"]}
            row["probe"] = {"steps": steps, "batch_size": batch, "examples": steps * batch}
            _arm(setup, name, {PROBE: {**like, "evaluate": True, "init": "previous"}})
    report = _report(setup, found)
    if not follows():
        jsonl.write_json(setup.target / "teachers.json", report)
        view.write_page(setup.target / "teachers.html", report)
    return report


def _setup(
    recipe: Recipe, runs: Path, source: Path | None, stages: tuple[str, ...], files: Mapping[str, Path],
    student: str | None, probe: str | None, steps: int, equal: Equal, own: int, console: bool,
) -> Setup:  # fmt: skip
    made = [name for name, stage in recipe.stage.items() if stage.kind == "synthesize"]
    for name in stages:
        if name not in made:
            raise UserError(f"--teacher {name}: {nearest(name, made)}it must be a synthesize stage of the recipe")
    chosen = stages or (() if files else tuple(made))
    if not chosen and not files:
        raise UserError("no teacher: give the recipe a synthesize stage, or name files of traces by --traces NAME=FILE")
    student = student or _default_student(recipe)
    trained = [name for name in recipe.stages if recipe.stage[name].kind in TRAINING]
    if student != "base" and student not in trained:
        raise UserError(f'--student {student}: {nearest(student, trained)}it must be "base" or a stage that trains')
    prefix = recipe.stages[: recipe.stages.index(student) + 1] if student != "base" else ()
    clash = next((name for name in (UNTOUCHED, PROBE) if name in (*prefix, *chosen)), None)
    if clash:
        raise UserError(f"stage.{clash}: the experiment has a stage of this name itself; call yours otherwise")
    folder = runs / recipe.name
    return Setup(recipe, folder, folder / "experiments" / "teachers", source, console, student, tuple(prefix), chosen,
                 files, _template(recipe, probe), steps, equal, own)  # fmt: skip


def _default_student(recipe: Recipe) -> str:
    """What the first synthesize stage of the order starts from; "base" where there is none."""
    first = next((i for i, name in enumerate(recipe.stages) if recipe.stage[name].kind == "synthesize"), 0)
    trained = [name for name in recipe.stages[:first] if recipe.stage[name].kind in TRAINING]
    return trained[-1] if trained else "base"


def _template(recipe: Recipe, given: str | None) -> SftStage:
    """The sft stage that a probe is like: the one named, else the first that reads traces, else the last."""
    stages = {name: stage for name, stage in recipe.stage.items() if isinstance(stage, SftStage)}
    if given is not None and given not in stages:
        raise UserError(f"--probe {given}: {nearest(given, list(stages))}it must be an sft stage of the recipe")
    if given is not None:
        return stages[given]
    ordered = [stages[name] for name in (*recipe.stages, *stages) if name in stages]
    reading = (stage for stage in ordered if any(source.stage for source in stage.data))
    fallback = ordered[-1] if ordered else SftStage.model_validate({"kind": "sft", "data": [{"path": "traces"}]})
    return next(reading, fallback)


def _labels(name: str, recipe: Recipe) -> list[str | None]:
    """The teachers of a synthesize stage; None for the only one. Raises UserError where they are not asked alike."""
    config = recipe.stage[name]
    assert isinstance(config, SynthesizeStage)
    if not config.teachers:
        return [None]
    if config.assign != "all":
        raise UserError(
            f'stage.{name}: its teachers have different problems; set assign = "all", so that each gets every problem'
        )
    most, allowed = config.samples * len(config.teachers), config.rules.max_per_problem
    if most > allowed:
        raise UserError(
            f"stage.{name}: {len(config.teachers)} teachers write {most} traces of a problem, and "
            f"rules.max_per_problem = {allowed} would drop those of the last; set it to {most}"
        )
    return list(config.teachers)


def _told_apart(asked: Sequence[str], files: Mapping[str, Path]) -> None:
    names = [*asked, *files]
    twice = next((name for name in names if names.count(name) > 1 or name == "student"), None)
    if twice is not None:
        raise UserError(f"two teachers, or one and the student's folder, are called {twice!r}; rename one")
    odd = next((name for name in files if not re.fullmatch(r"\w[\w.+-]*", name)), None)
    if odd is not None:
        raise UserError(f"--traces {odd}=...: the name cannot name a folder; use letters, digits and . _ - +")


def _asked(setup: Setup, name: str) -> Path:
    """Runs a synthesize stage and returns its folder: in the run where the recipe's order has it at the student's
    place, so that the run itself finds it done, else one of its own."""
    place = setup.folder
    planned = pipeline.plan(setup.recipe, place) if name in setup.recipe.stages else []
    reads = next((item.reads for item in planned if item.name == name), ("",))
    needed = [read for read in reads[1:] if read not in setup.prefix]
    weights = pipeline.BASE if setup.student == "base" else setup.student
    if reads[0] == weights and not needed:
        pipeline.run(setup.recipe, place, setup.source, only=[name], console=setup.console)
    else:
        place = setup.target / name
        _arm(setup, name, {name: setup.recipe.stage[name].model_dump(mode="json")})
    return place / name


def _arm(setup: Setup, name: str, stages: Mapping[str, Mapping[str, Any]], run: bool = True) -> Recipe:
    """The student's stages and these, in a folder of their own that shares the former with the run."""
    tree = setup.recipe.model_dump(mode="json")
    tree["name"] = f"{setup.recipe.name}-{name}"
    tree["stages"] = [*setup.prefix, *stages]
    tree["stage"] = {**{n: tree["stage"][n] for n in setup.prefix}, **stages}
    own = check(tree, f"experiment teachers, {name}")
    if not follows():
        _link(setup, setup.target / name)
    if run:
        pipeline.run(own, setup.target / name, setup.source, console=setup.console)
    return own


def _link(setup: Setup, arm: Path) -> None:
    arm.mkdir(parents=True, exist_ok=True)
    for name in (*setup.prefix, pipeline.BASE, pipeline.BASE + ".json"):
        place = arm / name
        if (setup.folder / name).exists() and not place.is_symlink() and not place.exists():
            place.symlink_to(os.path.relpath(setup.folder / name, arm))


def _weights(setup: Setup) -> Path | None:
    """Where the student's weights lie; None for those that the recipe starts from."""
    return None if setup.student == "base" else setup.folder / setup.student / "model"


def probe_context(setup: Setup) -> int:
    """Longest trace in tokens, prompt included, that a probe takes."""
    return min(setup.probe.context, setup.probe.micro_batch_tokens)


def _batch_size(setup: Setup, row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> int:
    """With equal tokens, the teacher with the shortest traces has the stage's batch size, and others a smaller one."""
    if setup.equal == "examples":
        return setup.probe.batch_size
    shortest = float(min(r["trace_tokens"] for r in rows.values()))
    return max(1, round(setup.probe.batch_size * shortest / float(row["trace_tokens"])))


def _report(setup: Setup, found: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = found["teachers"]
    student = evaluation(setup.target / "student" / UNTOUCHED) if setup.steps else []
    if setup.steps and not student:
        raise UserError("the recipe holds no problem out, so a probe cannot be evaluated; set problems.NAME.heldout")
    if setup.steps:
        tallies = {name: evaluation(setup.target / name / PROBE) for name in rows}
        for name, compared in results.probed(student, tallies, setup.recipe.seed).items():
            if compared["student"] is None:
                raise UserError(f"{name}: no held-out problem could be judged both before and after its probe")
            folder = setup.target / name
            steps = (row for _, row in jsonl.read(folder / "metrics.jsonl") if row["stage"] == PROBE)
            rows[name]["probe"] |= {
                **compared,
                "pass_at_1": _passed(folder / PROBE),
                "trained_tokens": int(sum(row["tokens/trained"] for row in steps)),
            }
    by = ["fit", "rsr", "surprisal", *(["probe"] if setup.steps else [])]
    ranking = {key: results.ranked(rows, key) for key in by}
    order = ranking["probe" if setup.steps else "fit"]
    return {
        "name": setup.recipe.name,
        "seed": setup.recipe.seed,
        "student": {"stage": setup.student, "own": found["own"],
                    "pass_at_1": _passed(setup.target / "student" / UNTOUCHED) if setup.steps else None},
        "problems": found["problems"],
        "equal": setup.equal,
        "steps": setup.steps,
        "learning_rate": setup.probe.optimizer.learning_rate,
        "heldout": len({tally.key for tally in student}),
        "teachers": {name: rows[name] for name in order},
        "ranking": ranking,
        "advice": results.advice(rows),
        "examples": found["examples"],
    }  # fmt: skip


def _passed(stage: Path) -> Any:
    return jsonl.read_json(stage / "evaluation.json")["domains"]["all"]["pass_at_1"]
