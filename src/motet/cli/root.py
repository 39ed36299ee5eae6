"""The command itself, and what several of its commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from motet.base.recipe import Recipe


class Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of this file, not of the alphabet


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="motet")
def cli() -> None:
    """From a checkpoint to a reasoning model by one recipe: SFT, verified traces, difficulty filter, GRPO, a report."""


def common(function: Any) -> Any:
    for decorate in (
        click.argument("overrides", nargs=-1, metavar="[a.b=value]..."),
        click.argument("recipe", type=click.Path(path_type=Path)),
        click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of all runs."),
    ):
        function = decorate(function)
    return function


def load(recipe: Path, overrides: tuple[str, ...]) -> Recipe:
    from motet.base.load_recipe import load

    return load(recipe, list(overrides))


def execute(loaded: Recipe, source: Path, runs: Path, start: str | None = None, only: list[str] | None = None) -> None:
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


def pick(recipe: Recipe, kind: str, name: str | None) -> str:
    from motet.base.errors import UserError

    names = [n for n in recipe.stages if recipe.stage[n].kind == kind]
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    if not names:
        raise UserError(f"the recipe has no {kind} stage; its stages are {', '.join(recipe.stages)}")
    raise UserError(f"--stage {name or 'NAME'}: the recipe's {kind} stages are {', '.join(names)}; name one")


def exists(folder: Path) -> None:
    from motet.base.errors import UserError

    if not (folder / "resolved.json").exists():
        raise UserError(f"{folder}: no run folder (resolved.json is missing)")
