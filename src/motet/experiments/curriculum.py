"""`motet experiment curriculum RECIPE`: lengths in steps, or a jump to the longest at once.

Arms train the same sft stage as several phases from the same weights. They differ in the longest conversations of each
phase alone: "stepped" 16K, 32K, 64K; "jump" 16K, 64K, 64K; "direct" 64K three times. Every phase has as many steps of
about as many tokens, the same optimizer, started anew, and the same seed, and the last phase draws the same batches in
all arms. Several seeds do all of it again with other draws (and, where the stage starts from a model that is made by
the recipe, other weights); the conversations held out are the same. Each arm is an ordinary run in
RUN/experiments/curriculum/seed-N/ARM: killed, the same command goes on. What came out lies in
RUN/experiments/curriculum/curriculum.json and curriculum.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import check
from motet.base.recipe import Recipe, SftStage, weights_of
from motet.base.run import follows
from motet.experiments import curriculum_view
from motet.experiments.curriculum_results import judge, measure
from motet.experiments.side_by_side import Task, run_beside

LENGTHS = (16384, 32768, 65536)
"""Of the paper's stages."""
HELDOUT = 0.03
"""Share of the conversations that measures the arms, where the stage's own `heldout` says nothing."""


class Arm(NamedTuple):
    name: str
    lengths: tuple[int, ...]
    """Longest conversation of each phase, in tokens."""


def arms_of(lengths: Sequence[int]) -> list[Arm]:
    """Example: 24, 48, 96 gives stepped (24, 48, 96), jump (24, 96, 96) and direct (96, 96, 96)."""
    if len(lengths) < 2 or list(lengths) != sorted(set(lengths)) or lengths[0] < 2:
        given = ",".join(map(str, lengths))
        raise UserError(f"--lengths {given}: give at least two rising lengths in tokens, 16384,32768,65536 say")
    last, phases = lengths[-1], len(lengths)
    arms = [Arm("stepped", tuple(lengths))]
    if phases > 2:
        arms.append(Arm("jump", (lengths[0], *[last] * (phases - 1))))
    return [*arms, Arm("direct", (last,) * phases)]


def scaled(lengths: Sequence[int], scale: float | None, context: int) -> tuple[list[int], float]:
    """The lengths divided by `scale`; unset, by what makes the longest one the stage's context."""
    scale = max(lengths) / context if scale is None else scale
    return [round(length / scale) for length in lengths], scale


def run(
    recipe: Recipe,
    runs: Path,
    source: Path | None = None,
    stage: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    scale: float | None = None,
    batch_tokens: int | None = None,
    probes: int = 4,
    seeds: Sequence[int] = (),
    console: bool = True,
    jobs: int = 1,
) -> dict[str, Any]:
    """Runs what is not done yet and returns curriculum.json's content.

    `stage`: which sft stage; needed when there are several. Its steps are shared among the phases. `batch_tokens`: of
    a step; unset, the stage's, else half of batch_size x the longest length. `probes`: looks at the conversations held
    out in each phase. `seeds`: of the arms; unset, the recipe's alone. `jobs`: so many
    arms beside each other, each with one thread.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give each seed once, 1,2,3 say")
    name = _stage(recipe, stage)
    config = recipe.stage[name]
    assert isinstance(config, SftStage)
    own, scale = scaled(lengths, scale, config.context)
    arms = arms_of(own)
    tokens = batch_tokens or config.batch_tokens or max(1, config.batch_size * own[-1] // 2)
    folder = runs / recipe.name
    target = folder / "experiments" / "curriculum"
    before = [n for n in recipe.stages[: recipe.stages.index(name)] if recipe.stage[n].kind != "evaluate"]
    chosen = tuple(seeds) or (recipe.seed,)
    start = _start(recipe, name, folder)
    variants = {
        (seed, arm): variant(recipe, name, arm, own, start, tokens, probes, seed) for seed in chosen for arm in arms
    }
    if before:
        pipeline.run(recipe, folder, source, only=before, console=console)
    results: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in arms}
    if jobs > 1 and not follows():
        tasks = [Task(own, target / f"seed-{seed}" / arm.name) for (seed, arm), own in variants.items()]
        run_beside(tasks[::-1], jobs, console=console)
    for seed in chosen:
        for arm in reversed(arms):  # the direct one first: data without the longest conversations is refused at once
            place = target / f"seed-{seed}" / arm.name
            pipeline.run(variants[seed, arm], place, source, console=console)
            results[arm].append(measure(place, phases_of(arm)))
    report = {
        "name": recipe.name,
        "stage": name,
        "seeds": list(chosen),
        "scale": scale,
        "batch_tokens": tokens,
        "phase_steps": config.steps // len(own),
        "learning_rate": config.optimizer.learning_rate,
        "arms": judge([(arm._asdict(), found) for arm, found in results.items()], recipe.seed),
    }
    if not follows():
        jsonl.write_json(target / "curriculum.json", report)
        curriculum_view.write(target / "curriculum.html", report)
    return report


class Start(NamedTuple):
    """What the arms begin with."""

    model: str | None
    """A folder of weights; None: the model that the recipe makes."""
    rows: Path
    """The run folder, where the rows of earlier stages lie."""


def _start(recipe: Recipe, name: str, folder: Path) -> Start:
    origin = weights_of(recipe, name)
    model = recipe.model.path if origin == "base" else str((folder / origin / "model").absolute())
    return Start(model, folder.absolute())


def phases_of(arm: Arm) -> list[str]:
    return [f"phase-{place + 1}" for place in range(len(arm.lengths))]


def variant(
    recipe: Recipe, name: str, arm: Arm, ladder: Sequence[int], start: Start, tokens: int, probes: int, seed: int
) -> Recipe:
    """The recipe with nothing but the stage, as phases of the arm's lengths. Half of a phase's draws are from its
    longest rung of `ladder`, the other half from those below it alike."""
    tree = recipe.model_dump(mode="json")
    tree["seed"] = seed
    if start.model is not None:
        tree["model"] |= {"path": start.model, "tiny": None}
    config = recipe.stage[name]
    assert isinstance(config, SftStage)
    steps, names, longest = config.steps // len(arm.lengths), phases_of(arm), arm.lengths[-1]
    if steps < 2:
        raise UserError(f"stage.{name}.steps = {config.steps}: too few for {len(arm.lengths)} phases of two steps")
    tree["name"] = f"{recipe.name}-{arm.name}"
    tree["stages"] = names
    own = tree["stage"][name]
    own["data"] = [_source(name, source, start) for source in own["data"]]
    tree["stage"] = {}
    for phase, length in zip(names, arm.lengths, strict=True):
        tree["stage"][phase] = {
            **own,
            "init": "base" if phase == names[0] else "previous",
            "context": longest,
            "lengths": bands(length, ladder),
            "steps": steps,
            "batch_tokens": tokens,
            "micro_batch_tokens": max(own["micro_batch_tokens"], longest),
            "heldout": own["heldout"] or HELDOUT,
            "probe_every": max(1, steps // probes),
            "evaluate": own["evaluate"] and phase == names[-1],
        }
    return check(tree, f"experiment curriculum, arm {arm.name}")


def _source(name: str, source: dict[str, Any], start: Start) -> dict[str, Any]:
    """The rows of an earlier stage as the file that they lie in: the arms are runs without that stage."""
    if source["stage"] is None:
        return source
    if source["rows"] != "traces":
        raise UserError(f"stage.{name}.data: this experiment reads files, problem sets and the traces of a stage, not "
                        f"the {source['rows']} of {source['stage']}")  # fmt: skip
    return {**source, "stage": None, "path": str(start.rows / source["stage"] / "data.jsonl")}


def bands(length: int, ladder: Sequence[int]) -> list[dict[str, Any]]:
    """Example: 96 of 24, 48, 96 gives the bands to 24 and to 48 a quarter each, and the one to 96 a half."""
    below = [{"up_to": end, "weight": 1.0} for end in ladder if end < length]
    return [*below, {"up_to": length, "weight": float(max(1, len(below)))}]


def _stage(recipe: Recipe, given: str | None) -> str:
    names = [name for name in recipe.stages if recipe.stage[name].kind == "sft"]
    if given is None and len(names) == 1:
        return names[0]
    if given in names:
        return str(given)
    raise UserError(f"--stage {given or 'NAME'}: the recipe's sft stages are {', '.join(names) or 'none'}; name one")
