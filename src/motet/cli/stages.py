"""Commands that run a recipe, or one of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from motet.cli.root import cli, common, execute, load, pick

if TYPE_CHECKING:
    from motet.base.recipe import Recipe


@cli.command()
@common
@click.option("--from", "start", metavar="STAGE", help="Do this stage and all after it again.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what would be done.")
def run(recipe: Path, overrides: tuple[str, ...], runs: Path, start: str | None, dry_run: bool) -> None:
    """Run a recipe: all stages in order, then the report. Killed, the same command goes on."""
    loaded = load(recipe, overrides)
    if dry_run:
        _print_plan(loaded, runs / loaded.name, start)
        return
    execute(loaded, recipe, runs, start=start)


def _stage_command(kind: str, text: str) -> None:
    @common
    @click.option("--stage", metavar="NAME", help=f"Which {kind} stage; needed when the recipe has several.")
    def command(recipe: Path, overrides: tuple[str, ...], runs: Path, stage: str | None) -> None:
        loaded = load(recipe, overrides)
        execute(loaded, recipe, runs, only=[pick(loaded, kind, stage)])

    cli.command(name=kind, help=text)(command)


_stage_command("sft", "Run one supervised fine-tuning stage of a recipe.")
_stage_command("synthesize", "Run one stage of verified synthetic traces.")
_stage_command("clean", "Run one stage of the data funnel on conversations that exist.")
_stage_command("filter", "Run one difficulty filter.")
_stage_command("rl", "Run one reinforcement learning stage.")
_stage_command("evaluate", "Run one evaluation stage.")


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
