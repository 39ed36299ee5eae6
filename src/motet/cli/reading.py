"""Commands that show what there is: runs, reports, keys of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from motet.cli.root import cli, exists


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
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html and report.json of a run folder, and print the summary."""
    from motet.insight.report import terminal_summary, write_report

    exists(folder)
    click.echo(terminal_summary(write_report(folder)))


@cli.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare two run folders, paired by problem."""
    from motet.insight.report import compare_runs

    exists(first)
    exists(second)
    click.echo(compare_runs(first, second))


@cli.command()
@click.argument("key")
def explain(key: str) -> None:
    """Say what a recipe's key means, e.g. `motet explain clip_high`."""
    from motet.base.load_recipe import describe

    click.echo(describe(key))
