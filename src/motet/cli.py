"""The command line. Nothing heavy is imported before a command needs it: `motet --help` is instant."""

from __future__ import annotations

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
_stage_command("filter", "Run one difficulty filter.")
_stage_command("rl", "Run one reinforcement learning stage.")
_stage_command("evaluate", "Run one evaluation stage.")


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


@cli.command()
@_common
def check(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Read every problem set of a recipe and put every gold answer through its verifier. Trains nothing."""
    from motet.tasks import load_problem_set

    loaded = _load(recipe, overrides)
    for name, config in loaded.problems.items():
        split = load_problem_set(name, config, loaded.seed)
        dropped = ", ".join(f"{count} dropped: {reason}" for reason, count in split.dropped.items()) or "none dropped"
        click.echo(f"{name}: {len(split.train)} to train, {len(split.heldout)} held out, {dropped}")


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
    from motet.base.errors import UserError

    try:
        cli(prog_name="motet", standalone_mode=False)
    except UserError as error:
        click.echo(f"motet: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        without = " (without --from)" if "--from" in sys.argv else ""
        click.echo(f"motet: stopped; the same command{without} goes on from here", err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno != 28:
            raise
        click.echo("motet: the disk is full. Nothing that was finished is lost: free some room, and the same command "
                   "goes on.", err=True)  # fmt: skip
        sys.exit(2)


def _load(recipe: Path, overrides: tuple[str, ...]) -> Recipe:
    from motet.base.load_recipe import load

    return load(recipe, list(overrides))


def _execute(loaded: Recipe, source: Path, runs: Path, start: str | None = None, only: list[str] | None = None) -> None:
    from motet import pipeline
    from motet.insight.report import terminal_summary

    folder = runs / loaded.name
    command = "motet " + " ".join(sys.argv[1:])
    result = pipeline.run(loaded, folder, source, command, start, only)
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

    click.echo(recipe.model_dump_json(indent=1, exclude_none=True))
    click.echo(f"\nrun folder: {folder}")
    for item in plan(recipe, folder, start):
        todo = {
            "done": "done, not run again",
            "running": "was killed, goes on",
            "stale": "out of date, done again",
            "unevaluated": "done, evaluated again",
        }
        click.echo(
            f"  {item.name:<14} {item.stage.kind:<11} reads {', '.join(item.reads):<28} {todo.get(item.state, 'to do')}"
        )


def _exists(folder: Path) -> None:
    from motet.base.errors import UserError

    if not (folder / "resolved.json").exists():
        raise UserError(f"{folder}: no run folder (resolved.json is missing)")


if __name__ == "__main__":
    main()
