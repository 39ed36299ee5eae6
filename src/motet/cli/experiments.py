"""Commands that answer a question with several runs of one recipe."""

from __future__ import annotations

from pathlib import Path

import click

from motet.cli.root import Group, cli, common, load


@cli.group(cls=Group)
def experiment() -> None:
    """Several runs of one recipe that answer a question."""


@experiment.command()
@common
@click.option("--sweep", default="1,4,8", metavar="S,S,...", help="Gradient steps on each sampled batch [1,4,8].")
@click.option("--stage", metavar="NAME", help="Which rl stage; needed when the recipe has several.")
@click.option("--probes", type=click.IntRange(1), default=6, help="Looks at the held-out problems in each arm [6].")
@click.option("--guard", is_flag=True, help="Leave the recipe's guard on: it ends the steps on a batch that is spent.")
def reuse(recipe: Path, overrides: tuple[str, ...], runs: Path, sweep: str, stage: str | None, probes: int,
          guard: bool) -> None:  # fmt: skip
    """How many gradient steps a batch of rollouts is good for: S as passes and as minibatches, from one checkpoint.

    Every arm has the same seed, rollouts and learning rate. Killed, the same command goes on.
    """
    from motet.experiments import reuse as experiments
    from motet.experiments.reuse_view import summary

    loaded = load(recipe, overrides)
    result = experiments.run(loaded, runs, recipe, _whole("sweep", sweep, "1,4,8"), stage, probes, guard)
    _tell(summary(result), runs / loaded.name, "reuse")


@experiment.command()
@common
@click.option("--teacher", "stages", multiple=True, metavar="STAGE", help="A synthesize stage; repeatable. Without any "
              "teacher: all synthesize stages of the recipe.")  # fmt: skip
@click.option("--traces", multiple=True, metavar="NAME=FILE", help="A teacher's traces, given as conversations; "
              "repeatable.")  # fmt: skip
@click.option("--student", metavar="STAGE", help='Whose weights are to learn, or "base" [what the first synthesize '
              "stage starts from].")  # fmt: skip
@click.option("--probe", metavar="STAGE", help="The sft stage that a probe is like [the first that reads traces].")
@click.option("--steps", type=click.IntRange(0), default=30, help="Steps of a probe; 0: read only, train nothing [30].")
@click.option("--equal", type=click.Choice(["examples", "tokens"]), default="examples", help="What every probe has as "
              "much of [examples].")  # fmt: skip
@click.option("--own", type=click.IntRange(0), default=2, help="Traces that the student writes of each problem [2].")
def teachers(recipe: Path, overrides: tuple[str, ...], runs: Path, stages: tuple[str, ...], traces: tuple[str, ...],
             student: str | None, probe: str | None, steps: int, equal: str, own: int) -> None:  # fmt: skip
    """Whose traces help this student: how they fit it, and what a short SFT on each does to held-out accuracy.

    Every teacher is looked at on the same problems. Killed, the same command goes on.
    """
    from motet.base.errors import UserError
    from motet.experiments import teachers as experiments
    from motet.experiments.teachers_view import summary

    wrong = [text for text in traces if not all(text.partition("="))]
    if wrong:
        raise UserError(f"--traces {wrong[0]}: write it as NAME=FILE, big=data/big.jsonl say")
    files = {name: Path(file) for name, _, file in (text.partition("=") for text in traces)}
    loaded = load(recipe, overrides)
    result = experiments.run(
        loaded, runs, recipe, stages, files, student, probe, steps, "tokens" if equal == "tokens" else "examples", own
    )
    _tell(summary(result), runs / loaded.name, "teachers")


@experiment.command()
@common
@click.option("--stage", metavar="NAME", help="Which sft stage; needed when the recipe has several.")
@click.option("--lengths", default="16384,32768,65536", metavar="L,L,...", help="Longest conversation of each phase, "
              "in tokens [16384,32768,65536].")  # fmt: skip
@click.option("--scale", type=click.FloatRange(0, min_open=True), help="Divide the lengths by this; unset, so that the "
              "longest is the stage's context.")  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of a step.")
@click.option("--probes", type=click.IntRange(1), default=4, help="Looks at the held-out loss in each phase [4].")
@click.option("--seeds", metavar="N,N,...", help="Every arm runs with each; intervals are over them [the recipe's].")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Arms beside each other, each with one thread [1].")
def curriculum(recipe: Path, overrides: tuple[str, ...], runs: Path, stage: str | None, lengths: str,
               scale: float | None, batch_tokens: int | None, probes: int, seeds: str | None,
               jobs: int) -> None:  # fmt: skip
    """Lengths in steps or a jump to the longest at once, at equal tokens: loss, gradient norm, loss by position.

    Every arm has the same phases, optimizer and seed, and the same batches in the last phase. Killed, the same command
    goes on.
    """
    from motet.experiments import curriculum as experiments
    from motet.experiments.curriculum_view import summary

    loaded = load(recipe, overrides)
    chosen = _whole("lengths", lengths, "16384,32768,65536")
    drawn = _whole("seeds", seeds, "1,2,3") if seeds else ()
    result = experiments.run(loaded, runs, recipe, stage, chosen, scale, batch_tokens, probes, drawn, jobs=jobs)
    _tell(summary(result), runs / loaded.name, "curriculum")


@experiment.command()
@common
@click.option("--count", type=click.IntRange(1), default=500, help="Problems, all domains together [500].")
@click.option("--betas", default="0.4,0.6,0.8", metavar="B,B,...", help="Upper ends of the band [0.4,0.6,0.8].")
@click.option("--stage", metavar="NAME", help="Which filter stage; needed when the recipe has several.")
def difficulty(recipe: Path, overrides: tuple[str, ...], runs: Path, count: int, betas: str,
               stage: str | None) -> None:  # fmt: skip
    """Which problems will teach this model anything: rows kept and live groups forecast, for several bands.

    One sample of rollouts answers for all bands; a pilot step confirms that rewards vary. Killed, the same command
    goes on.
    """
    from motet.base.errors import UserError
    from motet.experiments import difficulty as experiments
    from motet.experiments.difficulty_view import summary

    try:
        chosen = [float(part) for part in betas.split(",")]
    except ValueError:
        raise UserError(f"--betas {betas}: give numbers with commas between them, 0.4,0.6,0.8 say") from None
    loaded = load(recipe, overrides)
    result = experiments.run(loaded, runs, recipe, count, chosen, stage)
    _tell(summary(result), runs / loaded.name, "difficulty")


@experiment.command(name="filter-cost")
@common
@click.option("--seeds", default="1", metavar="N,N,...", help="Seeds of filter and RL; every arm runs with each [1].")
@click.option("--refill", type=click.FloatRange(0, min_open=True), help="Budget of the arm that refills, in batches a "
              "step [the recipe's, else 3].")  # fmt: skip
@click.option("--stage", metavar="NAME", help="Which rl stage; needed when the recipe has several.")
@click.option("--probes", type=click.IntRange(2), default=8, help="Looks at the held-out problems in each arm [8].")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Arms beside each other, each with one thread [1].")
def filter_cost(recipe: Path, overrides: tuple[str, ...], runs: Path, seeds: str, refill: float | None,
                stage: str | None, probes: int, jobs: int) -> None:  # fmt: skip
    """Filter the problems before RL, refill dead groups in RL, or neither: the cost of equal held-out accuracy.

    Every arm has the same model, problems, seeds and steps. Killed, the same command goes on.
    """
    from motet.experiments import filter_cost as experiments
    from motet.experiments.filter_cost_view import summary

    loaded = load(recipe, overrides)
    chosen = _whole("seeds", seeds, "1,2,3")
    result = experiments.run(loaded, runs, recipe, chosen, refill, stage, probes, jobs=jobs)
    _tell(summary(result), runs / loaded.name, "filter-cost")


def _whole(option: str, text: str, example: str) -> list[int]:
    from motet.base.errors import UserError

    if not all(part.strip().isdigit() for part in text.split(",")):
        raise UserError(f"--{option} {text}: give whole numbers with commas between them, {example} say")
    return [int(part) for part in text.split(",")]


def _tell(summary: str, folder: Path, name: str) -> None:
    """Of several processes the first one prints."""
    from motet.base.run import follows

    if not follows():
        click.echo(summary)
        click.echo(f"page: {folder / 'experiments' / name / f'{name}.html'}")
