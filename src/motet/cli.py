"""The command line. Nothing heavy is imported before a command needs it: `motet --help` is instant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from motet.base.recipe import Recipe


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of this file, not of the alphabet


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="motet")
def cli() -> None:
    """From a checkpoint to a reasoning model by one recipe: SFT, verified traces, difficulty filter, GRPO, a report."""


def _common(function: Any) -> Any:
    for decorate in (
        click.argument("overrides", nargs=-1, metavar="[a.b=value]..."),
        click.argument("recipe", type=click.Path(path_type=Path)),
        click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of all runs."),
    ):
        function = decorate(function)
    return function


@cli.command()
@_common
@click.option("--from", "start", metavar="STAGE", help="Do this stage and all after it again.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what would be done.")
def run(recipe: Path, overrides: tuple[str, ...], runs: Path, start: str | None, dry_run: bool) -> None:
    """Run a recipe: all stages in order, then the report. Killed, the same command goes on."""
    loaded = _load(recipe, overrides)
    if dry_run:
        _print_plan(loaded, runs / loaded.name, start)
        return
    _execute(loaded, recipe, runs, start=start)


def _stage_command(kind: str, text: str) -> None:
    @_common
    @click.option("--stage", metavar="NAME", help=f"Which {kind} stage; needed when the recipe has several.")
    def command(recipe: Path, overrides: tuple[str, ...], runs: Path, stage: str | None) -> None:
        loaded = _load(recipe, overrides)
        _execute(loaded, recipe, runs, only=[_pick(loaded, kind, stage)])

    cli.command(name=kind, help=text)(command)


_stage_command("sft", "Run one supervised fine-tuning stage of a recipe.")
_stage_command("synthesize", "Run one stage of verified synthetic traces.")
_stage_command("clean", "Run one stage of the data funnel on conversations that exist.")
_stage_command("filter", "Run one difficulty filter.")
_stage_command("rl", "Run one reinforcement learning stage.")
_stage_command("evaluate", "Run one evaluation stage.")


@cli.group(cls=_Group)
def experiment() -> None:
    """Several runs of one recipe that answer a question."""


@experiment.command()
@_common
@click.option("--sweep", default="1,4,8", metavar="S,S,...", help="Gradient steps on each sampled batch [1,4,8].")
@click.option("--stage", metavar="NAME", help="Which rl stage; needed when the recipe has several.")
@click.option("--probes", type=click.IntRange(1), default=6, help="Looks at the held-out problems in each arm [6].")
@click.option("--guard", is_flag=True, help="Leave the recipe's guard on: it ends the steps on a batch that is spent.")
def reuse(recipe: Path, overrides: tuple[str, ...], runs: Path, sweep: str, stage: str | None, probes: int,
          guard: bool) -> None:  # fmt: skip
    """How many gradient steps a batch of rollouts is good for: S as passes and as minibatches, from one checkpoint.

    Every arm has the same seed, rollouts and learning rate. Killed, the same command goes on.
    """
    from motet.base.errors import UserError
    from motet.base.run import follows
    from motet.experiments import reuse as experiments
    from motet.experiments.reuse_view import summary

    if not all(part.strip().isdigit() for part in sweep.split(",")):
        raise UserError(f"--sweep {sweep}: give whole numbers with commas between them, 1,4,8 say")
    loaded = _load(recipe, overrides)
    result = experiments.run(loaded, runs, recipe, [int(part) for part in sweep.split(",")], stage, probes, guard)
    if not follows():
        click.echo(summary(result))
        click.echo(f"page: {runs / loaded.name / 'experiments' / 'reuse' / 'reuse.html'}")


@experiment.command()
@_common
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
    from motet.base.run import follows
    from motet.experiments import teachers as experiments
    from motet.experiments.teachers_view import summary

    wrong = [text for text in traces if not all(text.partition("="))]
    if wrong:
        raise UserError(f"--traces {wrong[0]}: write it as NAME=FILE, big=data/big.jsonl say")
    files = {name: Path(file) for name, _, file in (text.partition("=") for text in traces)}
    loaded = _load(recipe, overrides)
    result = experiments.run(
        loaded, runs, recipe, stages, files, student, probe, steps, "tokens" if equal == "tokens" else "examples", own
    )
    if not follows():
        click.echo(summary(result))
        click.echo(f"page: {runs / loaded.name / 'experiments' / 'teachers' / 'teachers.html'}")


@experiment.command()
@_common
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
    from motet.base.errors import UserError
    from motet.base.run import follows
    from motet.experiments import curriculum as experiments
    from motet.experiments.curriculum_view import summary

    if not all(part.strip().isdigit() for part in lengths.split(",")):
        raise UserError(f"--lengths {lengths}: give whole numbers with commas between them, 16384,32768,65536 say")
    loaded = _load(recipe, overrides)
    if seeds and not all(part.strip().isdigit() for part in seeds.split(",")):
        raise UserError(f"--seeds {seeds}: give whole numbers with commas between them, 1,2,3 say")
    chosen = [int(part) for part in lengths.split(",")]
    drawn = [int(part) for part in seeds.split(",")] if seeds else ()
    result = experiments.run(loaded, runs, recipe, stage, chosen, scale, batch_tokens, probes, drawn, jobs=jobs)
    if not follows():
        click.echo(summary(result))
        click.echo(f"page: {runs / loaded.name / 'experiments' / 'curriculum' / 'curriculum.html'}")


@experiment.command()
@_common
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
    from motet.base.run import follows
    from motet.experiments import difficulty as experiments
    from motet.experiments.difficulty_view import summary

    try:
        chosen = [float(part) for part in betas.split(",")]
    except ValueError:
        raise UserError(f"--betas {betas}: give numbers with commas between them, 0.4,0.6,0.8 say") from None
    loaded = _load(recipe, overrides)
    result = experiments.run(loaded, runs, recipe, count, chosen, stage)
    if not follows():
        click.echo(summary(result))
        click.echo(f"page: {runs / loaded.name / 'experiments' / 'difficulty' / 'difficulty.html'}")


@experiment.command(name="filter-cost")
@_common
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
    from motet.base.errors import UserError
    from motet.base.run import follows
    from motet.experiments import filter_cost as experiments
    from motet.experiments.filter_cost_view import summary

    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise UserError(f"--seeds {seeds}: give whole numbers with commas between them, 1,2,3 say")
    loaded = _load(recipe, overrides)
    chosen = [int(part) for part in seeds.split(",")]
    result = experiments.run(loaded, runs, recipe, chosen, refill, stage, probes, jobs=jobs)
    if not follows():
        click.echo(summary(result))
        click.echo(f"page: {runs / loaded.name / 'experiments' / 'filter-cost' / 'filter-cost.html'}")


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@click.option("--nodes", type=click.IntRange(1), help="Computers [machine.nodes].")
@click.option("--gpus", type=click.IntRange(1), help="GPUs of each [machine.gpus].")
@click.option("--memory", type=click.FloatRange(0, min_open=True), help="GiB of a GPU [machine.memory_gib].")
@click.option("--probe", is_flag=True, help="Run two steps of each stage's longest row here, and correct the plan.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, in bytes.")
def plan(recipe: Path, overrides: tuple[str, ...], nodes: int | None, gpus: int | None, memory: float | None,
         probe: bool, as_json: bool) -> None:  # fmt: skip
    """Say what fits where, before the run: memory of each stage on each GPU, by mesh and by what is recomputed.

    Needs no GPU and no weights, only the model's configuration or model.sizes. Exit status 1: a stage does not fit.
    """
    from motet.plan import probe as probing
    from motet.plan.report import as_json as jsonable
    from motet.plan.report import plan_of, planner_of
    from motet.plan.sizing import positions_of
    from motet.plan.view import probed, text
    from motet.plan.work import works_of

    loaded = _load(recipe, overrides)
    planner = planner_of(loaded, nodes, gpus, memory)
    if probe:
        for name, found in probing.probe_stages(planner, works_of(loaded, positions_of(loaded.model))):
            words = f"probe of {name}: {found}" if isinstance(found, str) else probed(name, found)
            click.echo(words, err=as_json)
    made = plan_of(loaded, planner)
    click.echo(json.dumps(jsonable(made), indent=1) if as_json else text(made))
    sys.exit(0 if made.fits else 1)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option("--every", type=click.FloatRange(0.1), default=2.0, help="Seconds between two looks [2].")
def watch(folder: Path, once: bool, every: float) -> None:
    """Show a run in the terminal while it goes on: stages, curves, phases, alarms, log. q ends."""
    from motet.insight import watch as watching

    if once:
        click.echo(watching.once(folder))
    else:
        watching.live(folder, every)


@cli.command()
@click.argument("model")
@click.option(
    "--mesh", "meshes", multiple=True, metavar="R,S,P", help="dp_replicate,dp_shard,sp to examine; repeatable."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["packing", "rows", "head", "recompute", "resume", "processes"]),
    help="Examine this alone; repeatable.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where [auto].")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[bfloat16 on a GPU, else float32]")
def doctor(model: str, meshes: tuple[str, ...], only: tuple[str, ...], device: str, dtype: str | None) -> None:
    """Prove on MODEL, a folder, a hub id or "tiny", that packing, micro-batches, the loss head, recomputation, several
    processes and resume change nothing but speed.

    Each check runs in processes of its own. Exit status 1: something differs.
    """
    from motet.base.errors import UserError
    from motet.doctor import examine, view

    axes = [tuple(int(part) for part in mesh.split(",") if part.strip().isdigit()) for mesh in meshes]
    for mesh, given in zip(axes, meshes, strict=True):
        if len(mesh) != 3 or min(mesh) < 1:
            raise UserError(f"--mesh {given}: give dp_replicate,dp_shard,sp, 1,2,2 say")
    with examine.scratch() as place:
        case = examine.case_of(model, device, dtype, Path(place))
        click.echo(view.title(model, case))
        found = []
        for one in examine.examine(case, Path(place), only, [(r, s, p) for r, s, p in axes]):
            found.append(one)
            click.echo(view.lines(one))
    click.echo(view.summary(found))
    sys.exit(1 if any(finding.failed for one in found for finding in one.findings) else 0)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html and report.json of a run folder, and print the summary."""
    from motet.insight.report import terminal_summary, write_report

    _exists(folder)
    click.echo(terminal_summary(write_report(folder)))


@cli.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare two run folders, paired by problem."""
    from motet.insight.report import compare_runs

    _exists(first)
    _exists(second)
    click.echo(compare_runs(first, second))


@cli.command()
@click.argument("key")
def explain(key: str) -> None:
    """Say what a recipe's key means, e.g. `motet explain clip_high`."""
    from motet.base.load_recipe import describe

    click.echo(describe(key))


def _judging(function: Any) -> Any:
    positive = click.FloatRange(0, min_open=True)
    for decorate in (
        click.option("--memory-mb", type=click.IntRange(64), help="Address space of one worker [4096]."),
        click.option("--sandbox", help="How programs are kept in: a value of verification.sandbox [auto]."),
        click.option("--deadline", type=positive, help="Seconds for one verdict [10]."),
        click.option("--workers", type=click.IntRange(1), help="Processes that judge [2]."),
    ):
        function = decorate(function)
    return function


@cli.command()
@click.argument("problems", metavar="PROBLEMS")
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@_judging
@click.option("--verifier", help="Of a file whose rows do not tell theirs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def check(problems: str, overrides: tuple[str, ...], verifier: str | None, as_json: bool, **limits: Any) -> None:
    """Prove the verifiers on your own problems: a data file, or a recipe with all its sources. Trains nothing.

    Every gold answer must be judged correct, and nonsense, empty, echoing, repeated, many-answer and malformed
    completions must not. Exit status 0: fine; 1: something was found; 2: it could not be done.
    """
    from motet.base.run import console_log
    from motet.tasks import check_view, checking

    sources, loaded = checking.sources_of(problems, overrides, verifier)
    with console_log(), checking.pool_of(loaded, **limits) as pool:
        found = checking.run(sources, pool, loaded)
    if as_json:
        click.echo(json.dumps(checking.as_json(found), indent=1))
    else:
        check_view.show(found)
    sys.exit(1 if found.counts else 0)


@cli.command()
@click.argument("data")
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@click.option("--rows", type=click.IntRange(0), default=3, help="Conversations shown token by token [3].")
@click.option("--check", "most", type=click.IntRange(0), default=1000, help="Conversations checked; 0: all [1000].")
@click.option("--full", is_flag=True, help="Show every token of long conversations too.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Whose chat and sft stage count; DATA may be "
              "the name of one of its problem sets or stages.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Our field and the file's column.")
@click.option("--split", default="train", help="Split of a hub data set [train].")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of all runs.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page too.")
@click.option("--plain", is_flag=True, help="Without colour.")
def inspect(data: str, model: str, overrides: tuple[str, ...], rows: int, most: int, full: bool, recipe: Path | None,
            columns: tuple[str, ...], split: str, runs: Path, html: Path | None, plain: bool) -> None:  # fmt: skip
    """What MODEL would learn from the conversations of DATA, token by token, and what is wrong with it.

    Exit status 0: fine; 1: something is refused; 2: it could not be done.
    """
    from motet.base.errors import UserError
    from motet.insight import inspection, inspection_view

    wrong = [text for text in columns if "=" not in text]
    if wrong:
        raise UserError(f"--column {wrong[0]}: write it as FIELD=COLUMN, messages=chat say")
    mapping = dict(text.split("=", 1) for text in columns)
    loaded, source, stage = inspection.source_of(data, model, recipe, overrides, mapping, split)
    found = inspection.inspect(source, stage, loaded, model, runs, rows, most, full)
    click.echo(inspection_view.text(found, colour=not plain and sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if html is not None:
        inspection_view.write(html, found)
        click.echo(f"page: {html}")
    sys.exit(1 if found["refused"] else 0)


@cli.command()
@click.argument("rows", metavar="ROWS")
@_judging
@click.option("--out", metavar="FILE", default="-", help="Where verdicts go; a file that holds some is gone on with.")
@click.option("--overwrite", is_flag=True, help="Judge all rows again.")
@click.option("--resume", is_flag=True, help="Go on although ROWS is newer than the verdicts.")
@click.option("--think", type=click.Choice(["optional", "required", "open", "off"]), default="optional",
              help="The think block; open: its first tag is the prompt's.")  # fmt: skip
@click.option("--truncated-reward", type=float, help="Score of a truncated completion; unset, it has none.")
@click.option("--quarantine", type=click.Path(path_type=Path), help="Where items go that kill a verifier.")
def judge(rows: str, out: str, overwrite: bool, resume: bool, think: str, truncated_reward: float | None,
          quarantine: Path | None, **limits: Any) -> None:  # fmt: skip
    """Judge a file of answers, one JSON object a line: {id, verifier, reference, completion}; - is standard input.

    One verdict for each line, in order: {id, kind, score, answer, detail, seconds}. Killed, the same command goes on.
    """
    from motet.base.run import console_log
    from motet.verify import tool

    with console_log(), tool.pool_of(**limits, quarantine=quarantine) as pool:
        click.echo(tool.run(rows, out, pool, tool.rules_of(think, truncated_reward), overwrite, resume), err=True)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def audit(file: Path, as_json: bool) -> None:
    """How far a judge of facts and a person agree: FILE is an audit.jsonl that the person has filled in, or its stage's
    folder."""
    from motet.funnel import audit as auditing

    found = auditing.agreement(file)
    click.echo(json.dumps(found, indent=1) if as_json else auditing.text(found))


@cli.command()
def tasks() -> None:
    """List the built-in problem sets."""
    from motet.tasks import describe_tasks

    click.echo(describe_tasks())


@cli.command()
def suites() -> None:
    """List the named evaluation suites with their settings."""
    from motet.tasks.suites import describe_suites

    click.echo(describe_suites())


def main() -> None:
    """Prints what a user can mend without a traceback (exit code 2); Ctrl-C says how to go on (130)."""
    from motet.base.errors import Elsewhere, UserError

    try:
        cli(prog_name="motet", standalone_mode=False)
    except Elsewhere:
        sys.exit(2)
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        without = " (without --from)" if "--from" in sys.argv else ""
        click.echo(f"motet: stopped; the same command{without} goes on from here", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `motet judge ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as error:
        if error.errno != 28:
            raise
        click.echo("motet: the disk is full. Nothing that was finished is lost: free some room, and the same command "
                   "goes on.", err=True)  # fmt: skip
        sys.exit(2)


def _say(error: str) -> None:
    """Of several processes with the same error the first one says it; the end of that one ends the others."""
    from motet.base.run import follows

    if follows():
        import faulthandler
        import signal
        import time

        faulthandler.unregister(signal.SIGTERM)
        time.sleep(10.0)
    click.echo(f"motet: {error}", err=True)


def _load(recipe: Path, overrides: tuple[str, ...]) -> Recipe:
    from motet.base.load_recipe import load

    return load(recipe, list(overrides))


def _execute(loaded: Recipe, source: Path, runs: Path, start: str | None = None, only: list[str] | None = None) -> None:
    from motet import pipeline
    from motet.base.run import follows
    from motet.insight.report import terminal_summary

    folder = runs / loaded.name
    command = "motet " + " ".join(sys.argv[1:])
    result = pipeline.run(loaded, folder, source, command, start, only)
    if follows():
        return
    click.echo(terminal_summary(result))
    click.echo(f"report: {folder / 'report.html'}")


def _pick(recipe: Recipe, kind: str, name: str | None) -> str:
    from motet.base.errors import UserError

    names = [n for n in recipe.stages if recipe.stage[n].kind == kind]
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    raise UserError(f"--stage {name or 'NAME'}: the recipe's {kind} stages are {', '.join(names) or 'none'}; name one")


def _print_plan(recipe: Recipe, folder: Path, start: str | None) -> None:
    from motet.pipeline import plan
    from motet.preflight import missing

    click.echo(recipe.model_dump_json(indent=1, exclude_none=True))
    click.echo(f"\nrun folder: {folder}")
    planned = plan(recipe, folder, start)
    for item in planned:
        todo = {
            "done": "done, not run again",
            "running": "was killed, goes on",
            "stale": "out of date, done again",
            "unevaluated": "done, evaluated again",
        }
        click.echo(
            f"  {item.name:<14} {item.stage.kind:<11} reads {', '.join(item.reads):<28} {todo.get(item.state, 'to do')}"
        )
    lacking = missing(recipe, [item.name for item in planned if item.state != "done"])
    if lacking:
        click.echo("\nnot here, and a run would stop at once:")
        click.echo("\n".join(f"  {line}" for line in lacking))


def _exists(folder: Path) -> None:
    from motet.base.errors import UserError

    if not (folder / "resolved.json").exists():
        raise UserError(f"{folder}: no run folder (resolved.json is missing)")


if __name__ == "__main__":
    main()
